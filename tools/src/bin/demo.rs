//! `demo`: shows the main job on one machine. Started by `tools/demo`, which builds everything first.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tools::demo::story::{self, DemoOptions};

/// Writes a file system to a volume, over two bad links to a standby, kills the primary, and reads it back.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Leave the nodes running at the end, with commands to play with
    #[arg(long)]
    keep: bool,
    /// How much of the crates' sources goes into the image besides our own, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 96)]
    content: u32,
    /// Decides what the links lose
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let this = std::env::current_exe().context("Cannot tell where the demo is")?;
    story::run(&DemoOptions {
        keep: arguments.keep,
        content_bytes_max: u64::from(arguments.content) << 20,
        seed: arguments.seed,
        programs: this.parent().unwrap_or(Path::new(".")).to_owned(),
    })
    .map(drop)
}
