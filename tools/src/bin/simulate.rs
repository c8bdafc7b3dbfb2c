//! `simulate`: histories of a simulated pair, from seeds, all short ones, or stories.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use simulator::{config::Feature, crowd, exhaustive::Case, story::Telling};
use tools::{
    simulate::{
        Until,
        indexes::Indexes,
        report::{Failure, Report},
        seeds::{self, Cut, SeedOptions},
        short,
    },
    units,
};

const EXAMPLES: &str = "\
Examples:
  simulate --count 100                      seeds 1 to 100, on all cores
  simulate --for 8h --report night.json     as many as there is time for
  simulate --seed 42 --trace                what happens in one
  simulate --seed 42 --shrink               what of it is needed to fail
  simulate --seed 42 --without rot --keep 3,7,12-20 --trace
                                            what is left of it
  simulate --exhaustive 4                   all histories of up to 4 events
  simulate --history snapshot:latest:fast:write-a,crash-primary,promote --trace
  simulate --stories                        all stories, with their surprises at every moment
  simulate --story acknowledged:3:0:32:0 --trace

Exit status: 0 nothing failed, 1 something did or could not be done, 2 wrong usage. An interrupted run plays what it has begun
to its end and reports; interrupted again, it ends at once.";

/// Plays histories of a simulated pair: two nodes, bad lines, bad media, crashes, operators. Each follows from its seed alone.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// The first seed
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// How many seeds; 1, or with --for as many as there is time for
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Begins no more after this time: 30s, 10m, 8h
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// How many play at once; all cores if absent
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Says what happens, on the standard error stream; of one seed or history
    #[arg(long, conflicts_with_all = ["count", "time", "exhaustive", "stories"])]
    trace: bool,
    /// Plays only these steps of the seed's script, such as 3,7,12-20
    #[arg(long, value_name = "STEPS", conflicts_with_all = ["count", "time"])]
    keep: Option<Indexes>,
    /// Plays without these features, such as rot,bad-lines
    #[arg(long, value_name = "FEATURE,...", value_delimiter = ',')]
    without: Vec<Feature>,
    /// Shortens the history of a seed that fails
    #[arg(long)]
    shrink: bool,
    /// Plays at most so many histories to shorten one
    #[arg(long, value_name = "NUMBER", default_value_t = 500, requires = "shrink")]
    plays: u32,
    /// Plays all histories of up to so many events on a tiny pair instead of seeds
    #[arg(long, value_name = "EVENTS", conflicts_with_all = ["seed", "count", "keep", "without", "shrink"])]
    exhaustive: Option<usize>,
    /// Plays one such history
    #[arg(long, value_name = "HISTORY", conflicts_with_all = ["seed", "count", "time", "keep", "without", "shrink", "exhaustive"])]
    history: Option<Case>,
    /// Plays all stories, with their surprises at every moment, instead of seeds
    #[arg(long, conflicts_with_all = ["seed", "count", "keep", "without", "shrink", "exhaustive", "history"])]
    stories: bool,
    /// Tells one story once: its name, the pair's number, which surprise, and after how many events it and the next one come
    #[arg(long, value_name = "STORY", conflicts_with_all = ["seed", "count", "time", "keep", "without", "shrink", "exhaustive", "history", "stories"])]
    story: Option<Telling>,
    /// Writes what came of it to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Prints what came of it as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(report) if report.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<Report> {
    if let Some(path) = &arguments.report {
        // What cannot be written is known before a night has gone by, not after it.
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("Cannot write {}", path.display()))?;
    }
    let report = play(&arguments)?;
    let json = || serde_json::to_string_pretty(&report);
    if let Some(path) = &arguments.report {
        fs::write(path, json()? + "\n").with_context(|| format!("Cannot write {}", path.display()))?;
    }
    print(&if arguments.json { json()? } else { report.to_string() });
    Ok(report)
}

fn play(arguments: &Arguments) -> anyhow::Result<Report> {
    let failed = |failure: &Failure| {
        if !arguments.json {
            print(&failure.to_string());
        }
    };
    let jobs = arguments.jobs.map_or_else(crowd::jobs, usize::from);
    if let Some(case) = &arguments.history {
        return Ok(short::run_one(case, arguments.trace, failed));
    }
    if let Some(telling) = &arguments.story {
        return Ok(short::run_story(telling, arguments.trace, failed));
    }
    let until = Until::new(arguments.time)?;
    if arguments.stories {
        return Ok(short::run_stories(jobs, &until, failed));
    }
    if let Some(events_max) = arguments.exhaustive {
        return Ok(short::run(events_max, jobs, &until, failed));
    }
    let options = SeedOptions {
        first: arguments.seed,
        count: arguments.count.unwrap_or(if arguments.time.is_some() { u64::MAX } else { 1 }),
        jobs,
        trace: arguments.trace,
        cut: Cut { keep: arguments.keep.clone(), without: arguments.without.clone() },
        shrink: arguments.shrink.then_some(arguments.plays),
    };
    Ok(seeds::run(&options, &until, failed))
}

/// Whoever has read enough may close the pipe; the run goes on and its exit status counts.
fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn duration(text: &str) -> Result<Duration, String> {
    Ok(Duration::from_secs(units::seconds(text)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
