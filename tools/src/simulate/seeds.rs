//! Seeds: each is a history that chance has written.

use std::time::Instant;

use simulator::{
    Outcome,
    config::Config,
    crowd, script,
    shrink::{self, Part},
    trace::Trace,
};

use super::{
    COMMAND, Progress, Until,
    indexes::Indexes,
    report::{Failure, Report, ShrunkHistory, Slowest},
};

/// So many of the last events are shown.
pub(super) const LAST_COUNT: usize = 40;

/// What to do.
#[derive(Clone, Debug)]
pub struct SeedOptions {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// How many threads.
    pub jobs: usize,
    /// Shows what happens.
    pub trace: bool,
    /// What is played of each.
    pub cut: Cut,
    /// Shortens what fails, in so many plays.
    pub shrink: Option<u32>,
}

/// What of a seed is not played.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// Only these steps are left.
    pub keep: Option<Indexes>,
    /// These features are left out.
    pub without: Vec<simulator::config::Feature>,
}

/// Plays seeds, each in one thread. `failed` hears of each that fails, as soon as it is known.
pub fn run(options: &SeedOptions, until: &Until, mut failed: impl FnMut(&Failure)) -> Report {
    let mut report = Report::of_seeds(options.first);
    let mut progress = Progress::new();
    let last = options.first.saturating_add(options.count.saturating_sub(1));
    let seeds = (options.first..=last).take_while(|_| options.count > 0 && until.goes_on());
    let work = |seed: &u64| {
        let start = Instant::now();
        let (outcome, failure) = play(*seed, options);
        (outcome, failure, start.elapsed().as_secs_f64())
    };
    crowd::each(options.jobs, seeds, work, |seed, (outcome, failure, real_seconds)| {
        report.count(&outcome);
        report.last_seed = report.last_seed.max(Some(seed));
        // What shortening takes says nothing about a seed.
        let is_slowest = report.slowest.as_ref().is_none_or(|slowest| slowest.real_seconds < real_seconds);
        if is_slowest && failure.is_none() {
            report.slowest = Some(Slowest { seed, real_seconds });
        }
        if let Some(failure) = failure {
            failed(&failure);
            report.failures.push(failure);
        }
        progress.tell(&report, until);
    });
    report.interrupted = until.was_interrupted();
    report.close();
    report
}

fn play(seed: u64, options: &SeedOptions) -> (Outcome, Option<Failure>) {
    let mut part = Part { without: options.cut.without.clone(), ..Part::whole(seed) };
    if let Some(keep) = &options.cut.keep {
        part.keep = keep.clone().into_vec();
    }
    let trace = if options.trace { Trace::kept(true) } else { Trace::default() };
    let outcome = part.play(seed, trace);
    let Some(message) = outcome.failure.clone() else { return (outcome, None) };
    let replay = replay(seed, &part, options.cut.keep.is_some());
    let shrunk = options.shrink.map(|plays_max| {
        shrink::shrink(seed, part.clone(), &message, plays_max, |part, plays| {
            eprintln!("seed {seed}: {} steps left after {plays} plays", part.keep.len());
        })
    });
    let shown = shrunk.as_ref().map_or(&part, |shrunk| &shrunk.part);
    // It is played again for its events: to keep those of all seeds would cost more than the seeds.
    let last = shown.play(seed, Trace::kept(false)).last;
    let shrunk = shrunk.as_ref().map(|shrunk| ShrunkHistory {
        replay: self::replay(seed, &shrunk.part, true),
        steps: steps_of(seed, &shrunk.part),
        play_count: shrunk.play_count,
        is_smallest: shrunk.is_smallest,
    });
    let failure = Failure {
        name: format!("seed {seed}"),
        seed: Some(seed),
        kind: shrink::kind(&message),
        message,
        after_seconds: outcome.micros as f64 / 1e6,
        replay,
        shrunk,
        last: last[last.len().saturating_sub(LAST_COUNT)..].to_vec(),
    };
    (outcome, Some(failure))
}

fn steps_of(seed: u64, part: &Part) -> Vec<String> {
    let steps = script::steps(seed, &Config::new(seed));
    part.keep.iter().filter_map(|index| Some(format!("{index:6}  {}", steps.get(*index)?))).collect()
}

fn replay(seed: u64, part: &Part, is_cut: bool) -> String {
    let mut command = format!("{COMMAND} --seed {seed}");
    if !part.without.is_empty() {
        let names: Vec<String> = part.without.iter().map(ToString::to_string).collect();
        command += &format!(" --without {}", names.join(","));
    }
    if is_cut {
        command += &format!(" --keep {}", Indexes::new(part.keep.clone()));
    }
    command + " --trace"
}

#[cfg(test)]
mod tests {
    use super::*;
    use simulator::config::Feature;

    #[test]
    fn the_replay_names_what_is_left() {
        let part = Part { without: vec![Feature::BadLines, Feature::Rot], keep: vec![3, 4, 5, 9] };
        assert_eq!(replay(7, &part, true), format!("{COMMAND} --seed 7 --without bad-lines,rot --keep 3-5,9 --trace"));
        assert_eq!(replay(7, &Part::whole(7), false), format!("{COMMAND} --seed 7 --trace"));
    }

    #[test]
    fn a_run_counts_what_it_played() {
        let cut = Cut { keep: Some(Indexes::new(vec![0, 1])), without: Vec::new() };
        let options = SeedOptions { first: 5, count: 3, jobs: 2, trace: false, cut, shrink: None };
        let until = Until::new(None).unwrap();
        let report = run(&options, &until, |failure| panic!("{failure}"));
        assert_eq!((report.first_seed, report.last_seed, report.played, report.failed), (Some(5), Some(7), 3, 0));
        assert!(report.simulated_seconds > 3.0 && !report.marks.is_empty());
        let none = run(&SeedOptions { count: 0, ..options.clone() }, &until, |_| {});
        assert_eq!(none.played, 0);
        let over = Until::new(Some(std::time::Duration::ZERO)).unwrap();
        assert_eq!(run(&options, &over, |_| {}).played, 0);
    }
}
