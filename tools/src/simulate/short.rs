//! Histories that no seed makes: all short ones, all tellings of the stories, or one of them.

use std::{collections::BTreeMap, time::Instant};

use simulator::{
    Outcome,
    exhaustive::{self, Case, Played, Setting},
    shrink,
    story::{self, Telling},
    trace::Trace,
};

use super::{
    COMMAND, Until,
    report::{Failure, Report},
    seeds::LAST_COUNT,
};

/// So many failures are played again to show what happened.
const SHOWN_MAX: usize = 20;

/// Plays all histories of up to so many events. `failed` hears of those that fail, at the end.
pub fn run(events_max: usize, jobs: usize, until: &Until, mut failed: impl FnMut(&Failure)) -> Report {
    let mut report = Report::default();
    let mut say = progress("histories");
    let survey = exhaustive::survey(
        &Setting::ALL,
        events_max,
        jobs,
        || until.goes_on(),
        |survey| say(survey.history_count, survey.failures.len()),
    );
    (report.played, report.marks) = (survey.history_count, survey.marks);
    report.simulated_seconds = survey.micros as f64 / 1e6;
    let again = |text: &str| text.parse().ok().and_then(|case: Case| play(&case, Trace::kept(false)).1);
    show(&mut report, &survey.failures, again, &mut failed);
    report.interrupted = until.was_interrupted();
    report
}

/// Plays all stories, with their surprises at every moment. `failed` hears of those that fail, at the end.
pub fn run_stories(jobs: usize, until: &Until, mut failed: impl FnMut(&Failure)) -> Report {
    let mut report = Report::default();
    let mut say = progress("tellings");
    let survey = story::survey(jobs, || until.goes_on(), |survey| say(survey.played, survey.failures.len()));
    (report.played, report.marks) = (survey.played, survey.marks);
    report.simulated_seconds = survey.micros as f64 / 1e6;
    let again = |text: &str| text.parse().ok().and_then(|telling: Telling| tell(&telling, Trace::kept(false)).1);
    show(&mut report, &survey.failures, again, &mut failed);
    report.interrupted = until.was_interrupted();
    report
}

/// Plays one short history.
pub fn run_one(case: &Case, trace: bool, failed: impl FnMut(&Failure)) -> Report {
    of_one(play(case, Trace::kept(trace)), failed)
}

/// Tells a story once.
pub fn run_story(telling: &Telling, trace: bool, failed: impl FnMut(&Failure)) -> Report {
    of_one(tell(telling, Trace::kept(trace)), failed)
}

/// Says now and then on the standard error stream how many there were.
fn progress(what: &str) -> impl FnMut(u64, usize) {
    let mut next = Instant::now() + super::PROGRESS_EVERY;
    move |played, failed| {
        if Instant::now() >= next {
            next = Instant::now() + super::PROGRESS_EVERY;
            eprintln!("{played} {what} played, {failed} failed");
        }
    }
}

/// Plays again what failed, to show what happened.
fn show(
    report: &mut Report,
    failures: &BTreeMap<String, String>,
    again: impl Fn(&str) -> Option<Failure>,
    failed: &mut impl FnMut(&Failure),
) {
    report.failed = failures.len() as u64;
    let shown = failures.keys().take(SHOWN_MAX).filter_map(|text| again(text));
    report.failures.extend(shown.inspect(|failure| failed(failure)));
    report.close();
}

fn of_one((outcome, failure): (Outcome, Option<Failure>), mut failed: impl FnMut(&Failure)) -> Report {
    let mut report = Report::default();
    report.count(&outcome);
    report.failures.extend(failure.inspect(|failure| failed(failure)));
    report.close();
    report
}

fn play(case: &Case, trace: Trace) -> (Outcome, Option<Failure>) {
    let Played { outcome, is_vain } = case.play(trace);
    if is_vain {
        eprintln!("The last event of {case} finds nothing to do, so it was not played to its end; leave it out");
    }
    let failure = failure(&outcome, format!("history {case}"), format!("--history {case}"));
    (outcome, failure)
}

fn tell(telling: &Telling, trace: Trace) -> (Outcome, Option<Failure>) {
    let outcome = telling.play(trace);
    let failure = failure(&outcome, format!("story {telling}"), format!("--story {telling}"));
    (outcome, failure)
}

fn failure(outcome: &Outcome, name: String, options: String) -> Option<Failure> {
    outcome.failure.clone().map(|message| Failure {
        name,
        seed: None,
        kind: shrink::kind(&message),
        message,
        after_seconds: outcome.micros as f64 / 1e6,
        replay: format!("{COMMAND} {options} --trace"),
        shrunk: None,
        last: outcome.last[outcome.last.len().saturating_sub(LAST_COUNT)..].to_vec(),
    })
}
