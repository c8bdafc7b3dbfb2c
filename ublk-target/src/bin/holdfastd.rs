//! The daemon `holdfastd`.

use clap::Parser;
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;
use ublk_target::{config::CONFIG_PATH, daemon};

/// Serves the volumes of a node and replicates them to its peers.
///
/// Examples:
///   holdfastd
///   holdfastd --config ./node-a.toml
///   RUST_LOG=debug holdfastd --config ./node-a.toml
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// The node's configuration.
    #[arg(long, default_value = CONFIG_PATH)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match daemon::run(&arguments.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfastd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
