//! `bench`: this program beside what users would take instead, measured in one run.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tools::bench::{life, report::Report, wan, write};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p tools --bin bench -- write
  cargo run --release -p tools --bin bench -- wan --rtt 50 --loss 0,1,5
  cargo run --release -p tools --bin bench -- life --rounds 1

Build everything first (cargo build --release --workspace --bins); `write` needs fio, and measures nbdkit and qemu-nbd
where they are installed.";

/// Measures this program beside what users would take instead; everything on this machine, in one run.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Writes all rounds to this file, as JSON
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Rounds; the table shows the median and the spread
    #[arg(long, value_name = "NUMBER", default_value_t = 3, global = true)]
    rounds: u32,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Requests over NBD: alone, with a standby, nbdkit, qemu-nbd
    Write {
        /// How long each job runs in each round
        #[arg(long, value_name = "SECONDS", default_value_t = 5)]
        seconds: u32,
    },
    /// Goodput over emulated long lines with loss, and the time a promotion takes
    Wan {
        /// The round trip in milliseconds
        #[arg(long, value_name = "MILLISECONDS", default_value_t = 50)]
        rtt: u32,
        /// Loss in percent, each measured in turn
        #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', default_values_t = [0, 1, 5])]
        loss: Vec<u32>,
        /// Rate of each of the two links
        #[arg(long, value_name = "MBIT/S", default_value_t = 100)]
        rate: u32,
        /// How much is written in each round
        #[arg(long, value_name = "MIB", default_value_t = 128)]
        size: u32,
    },
    /// Restart points and takeover at 1 GiB and 1 TiB, resynchronisation, memory
    Life {
        /// Blocks of 4 KiB that change between restart points, and in a suspension
        #[arg(long, value_name = "NUMBER", default_value_t = 100_000)]
        changed: u32,
        /// Rate of each of the two links in the resynchronisation
        #[arg(long, value_name = "MBIT/S", default_value_t = 200)]
        rate: u32,
    },
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
    let this = std::env::current_exe().context("Cannot tell where the programs are")?;
    let programs = this.parent().unwrap_or(Path::new(".")).to_owned();
    let rounds = arguments.rounds.max(1);
    let reports = match arguments.what {
        What::Write { seconds } => vec![write::run(&write::WriteOptions { programs, seconds, rounds })?],
        What::Wan { rtt, loss, rate, size } => {
            wan::run(&wan::WanOptions { programs, rtt, loss, rate, size, rounds })?.into()
        }
        What::Life { changed, rate } => life::run(&life::LifeOptions { programs, changed, rate, rounds })?,
    };
    for report in &reports {
        println!("{}", report.table());
    }
    if let Some(path) = arguments.json {
        let all: Vec<_> = reports.iter().map(Report::json).collect();
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))?;
    }
    Ok(())
}
