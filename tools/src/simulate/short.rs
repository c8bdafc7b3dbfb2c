//! All short histories, or one of them.

use std::time::Instant;

use simulator::{
    exhaustive::{self, Case, Setting},
    shrink,
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
    let mut next = Instant::now() + super::PROGRESS_EVERY;
    let survey = exhaustive::survey(
        &Setting::ALL,
        events_max,
        jobs,
        || until.goes_on(),
        |survey| {
            if Instant::now() >= next {
                next = Instant::now() + super::PROGRESS_EVERY;
                eprintln!("{} histories played, {} failed", survey.history_count, survey.failures.len());
            }
        },
    );
    report.played = survey.history_count;
    report.failed = survey.failures.len() as u64;
    report.simulated_seconds = survey.micros as f64 / 1e6;
    report.marks = survey.marks;
    report.interrupted = until.was_interrupted();
    for text in survey.failures.keys().take(SHOWN_MAX) {
        let failure = text.parse().ok().and_then(|case: Case| play(&case, Trace::kept(false)).1);
        report.failures.extend(failure.inspect(|failure| failed(failure)));
    }
    report.close();
    report
}

/// Plays one.
pub fn run_one(case: &Case, trace: bool, mut failed: impl FnMut(&Failure)) -> Report {
    let mut report = Report::default();
    let (outcome, failure) = play(case, Trace::kept(trace));
    report.count(&outcome);
    report.failures.extend(failure.inspect(|failure| failed(failure)));
    report.close();
    report
}

fn play(case: &Case, trace: Trace) -> (simulator::Outcome, Option<Failure>) {
    let exhaustive::Played { outcome, is_vain } = case.play(trace);
    if is_vain {
        eprintln!("The last event of {case} finds nothing to do, so it was not played to its end; leave it out");
    }
    let failure = outcome.failure.clone().map(|message| Failure {
        name: format!("history {case}"),
        seed: None,
        kind: shrink::kind(&message),
        message,
        after_seconds: outcome.micros as f64 / 1e6,
        replay: format!("{COMMAND} --history {case} --trace"),
        shrunk: None,
        last: outcome.last[outcome.last.len().saturating_sub(LAST_COUNT)..].to_vec(),
    });
    (outcome, failure)
}
