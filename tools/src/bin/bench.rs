//! `bench`: this program beside what users would take instead, measured in one run.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tools::bench::{
    fio, hot_path, html, instructions, pair,
    report::Results,
    scenarios, wan,
    wan_options::{Part, WanOptions},
    write,
};

const EXAMPLES: &str = "\
Examples:
  cargo build --release --workspace --bins && tools/install-packages build bench
  target/release/bench write --quick
  target/release/bench write --job write-4k-qd32,flush-4k-qd1 --rounds 5 --html write.html
  target/release/bench wan --scenario loss-1,cut --html wan.html
  target/release/bench wan --scenario plain --measure shared,mirror --rounds 5
  target/release/bench wan --measure writes
  target/release/bench wan --line 'delay 25ms, rate 100mbit, loss 1%' --line 'delay 40ms, rate 20mbit, burst 5%:8'
  target/release/bench pair --rounds 1 --json pair.json
  target/release/bench instructions
  perf record -g target/release/bench course pair-write-qd32 1000000

Files go below TMPDIR (/tmp): put it on the disk to be measured. What is not installed is left out, and said.
Only ratios within one run mean something; leave the machine alone meanwhile.";

/// No quick run takes longer than this and the round that was begun in time.
const QUICK_LIMIT: Duration = Duration::from_secs(165);

/// Measures this program beside what users would take instead; everything on this machine, in one run.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Ends within three minutes: less of everything, for a first look
    #[arg(long, global = true)]
    quick: bool,
    /// Writes all rounds to this file, as JSON
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Writes charts and tables to this file, as a page that needs nothing from elsewhere
    #[arg(long, value_name = "FILE", global = true)]
    html: Option<PathBuf>,
    /// Rounds; tables show the median and the spread [default: 3; quick: 2, of pair 1]
    #[arg(long, value_name = "NUMBER", global = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Requests over NBD: alone, with a standby, nbdkit, qemu-nbd, qemu's mirror, and the medium itself
    Write(Write),
    /// Emulated long lines: goodput, the standby's age, latency of synchronous writes, takeover; TCP and qemu's mirror over
    /// the same lines, and TCP beside Holdfast on one
    Wan(Wan),
    /// Switch, restart points, takeover, rollback and return at 1 GiB and 1 TiB, resynchronisation, memory
    Pair {
        /// Blocks of 4 KiB that change between restart points, and in a suspension [default: 100000; quick: 5000]
        #[arg(long, value_name = "NUMBER")]
        changed: Option<u32>,
        /// Rate of each of the two links in the resynchronisation
        #[arg(long, value_name = "MBIT/S", default_value_t = 200)]
        rate: u32,
    },
    /// Processor instructions for one request, counted by callgrind: needs no quiet machine
    Instructions,
    /// Carries out requests in memory, for a profiler to watch
    Course {
        /// Which requests
        course: hot_path::Course,
        /// How many
        count: u32,
    },
}

#[derive(Args)]
struct Write {
    /// How long each job runs in each round [default: 5; quick: 0.5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// The size of every volume and file [default: 1024; quick: 256]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    size: Option<u32>,
    /// Measures only these [default: all; quick: the more telling ones]
    #[arg(long = "job", value_name = "JOB,...", value_delimiter = ',', value_parser = job_names())]
    jobs: Vec<String>,
}

#[derive(Args)]
struct Wan {
    /// How long each measurement on each line takes [default: 10; quick: 2]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Measures only these lines [default: all; quick: four of them]
    #[arg(long = "scenario", value_name = "NAME,...", value_delimiter = ',', value_parser = scenario_names())]
    scenarios: Vec<String>,
    /// Measures a line of your own instead; given once for both links, or twice. Settings are those of link-emulator
    #[arg(long = "line", value_name = "SETTING VALUE, ...", conflicts_with = "scenarios")]
    lines: Vec<String>,
    /// Measures only these [default: all; quick: all but writes]; what needs what is not there is left out
    #[arg(long = "measure", value_name = "PART,...", value_delimiter = ',', value_enum)]
    parts: Vec<Part>,
    /// Leaves out tcp, shared and mirror, which need root, for network namespaces
    #[arg(long)]
    no_tcp: bool,
}

impl Wan {
    fn parts(&self, quick: bool) -> anyhow::Result<Vec<Part>> {
        let is_wanted = |part: &Part| match self.parts.as_slice() {
            [] => !quick || *part != Part::Writes,
            parts => parts.contains(part),
        };
        let is_allowed = |part: &Part| !self.no_tcp || part.over_tcp().is_none();
        let all = Part::value_variants().iter();
        let parts: Vec<_> = all.filter(|part| is_wanted(part) && is_allowed(part)).copied().collect();
        if parts.is_empty() {
            bail!("Nothing is left to measure: --no-tcp leaves out all that --measure names");
        }
        Ok(parts)
    }
}

fn scenario_names() -> clap::builder::PossibleValuesParser {
    scenarios::names().map(|(id, name)| clap::builder::PossibleValue::new(id).help(name)).collect::<Vec<_>>().into()
}

fn job_names() -> clap::builder::PossibleValuesParser {
    fio::JOBS.iter().map(|job| clap::builder::PossibleValue::new(job.id).help(job.name)).collect::<Vec<_>>().into()
}

fn seconds(text: &str) -> Result<Duration, String> {
    let refused = || format!("'{text}' is not a number of seconds from 0.01 to 86400");
    let number: f64 = text.parse().map_err(|_| refused())?;
    if (0.01..=86_400.0).contains(&number) { Ok(Duration::from_secs_f64(number)) } else { Err(refused()) }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    [&arguments.json, &arguments.html].into_iter().flatten().try_for_each(|path| check_writable(path))?;
    let Some(results) = measure(&arguments)? else { return Ok(()) };
    for report in &results.reports {
        println!("{}", report.table());
    }
    for (what, value) in &results.conditions {
        println!("{what}: {value}");
    }
    println!();
    results.notes.iter().for_each(|note| println!("- {note}"));
    if let Some(path) = &arguments.json {
        write_file(path, &serde_json::to_string_pretty(&results.json())?)?;
    }
    if let Some(path) = &arguments.html {
        write_file(path, &html::page(&results))?;
    }
    match results.failure {
        Some(failure) => bail!("The figures are not complete: {failure}"),
        None => Ok(()),
    }
}

/// What was measured, if anything.
fn measure(arguments: &Arguments) -> anyhow::Result<Option<Results>> {
    let this = std::env::current_exe().context("Cannot tell where the programs are")?;
    let programs = this.parent().unwrap_or(Path::new(".")).to_owned();
    let quick = arguments.quick;
    let limit = quick.then_some(QUICK_LIMIT);
    let rounds = |when_quick| arguments.rounds.unwrap_or(if quick { when_quick } else { 3 });
    let results = match &arguments.what {
        What::Course { course, count } => {
            hot_path::run(*course, *count)?;
            return Ok(None);
        }
        What::Instructions => instructions::run(&this),
        What::Write(write) => {
            let mut jobs = write.jobs.clone();
            if jobs.is_empty() && quick {
                jobs = fio::JOBS.iter().filter(|job| job.is_quick).map(|job| job.id.to_owned()).collect();
            }
            let took = write.seconds.unwrap_or(Duration::from_millis(if quick { 500 } else { 5_000 }));
            let size_mib = write.size.unwrap_or(if quick { 256 } else { 1024 });
            write::run(&write::WriteOptions { programs, took, rounds: rounds(2), size_mib, jobs, limit })
        }
        What::Wan(wan) => {
            let scenarios = if wan.lines.is_empty() {
                let chosen = |one: &scenarios::Scenario| match wan.scenarios.as_slice() {
                    [] => one.is_quick || !quick,
                    ids => ids.contains(&one.id),
                };
                scenarios::all()?.into_iter().filter(chosen).collect()
            } else {
                vec![scenarios::custom(&wan.lines)?]
            };
            let took = wan.seconds.unwrap_or(Duration::from_secs(if quick { 2 } else { 10 }));
            let (parts, rounds) = (wan.parts(quick)?, rounds(2));
            Ok(wan::run(&WanOptions { programs, scenarios, took, parts, rounds, limit }))
        }
        What::Pair { changed, rate } => {
            let changed = changed.unwrap_or(if quick { 5_000 } else { 100_000 });
            pair::run(&pair::PairOptions { programs, changed, rate: *rate, rounds: rounds(1), limit })
        }
    };
    results.map(Some)
}

/// A path that cannot be written is said before the measuring, not after it. An older file stays as it is till then.
fn check_writable(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{} is a folder; name a file", path.display());
    }
    let opened = File::options().create(true).append(true).open(path);
    opened.map(drop).with_context(|| format!("Cannot write {}; is its folder there?", path.display()))
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Part::{Mirror, Shared, Stream, Tcp, Writes};

    #[test]
    fn what_is_named_is_measured_and_else_what_there_is_time_for() {
        let parts = |words: &[&str]| {
            let arguments = Arguments::parse_from(["bench", "wan"].iter().chain(words));
            let What::Wan(wan) = &arguments.what else { return None };
            wan.parts(arguments.quick).ok()
        };
        assert_eq!(parts(&[]), Some(vec![Stream, Tcp, Shared, Mirror, Writes]));
        assert_eq!(parts(&["--quick"]), Some(vec![Stream, Tcp, Shared, Mirror]));
        assert_eq!(parts(&["--quick", "--measure", "writes"]), Some(vec![Writes]));
        assert_eq!(parts(&["--no-tcp"]), Some(vec![Stream, Writes]));
        assert_eq!(parts(&["--measure", "mirror,stream", "--measure", "tcp"]), Some(vec![Stream, Tcp, Mirror]));
        assert_eq!(parts(&["--no-tcp", "--measure", "shared"]), None);
    }
}
