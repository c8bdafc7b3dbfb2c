//! The daemon `holdfastd`.

use clap::Parser;
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
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
    // Colours are for people; a log file or the journal gets plain text.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // systemd's journal has its own time.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init()
    } else {
        log.init()
    }
    match daemon::run(&arguments.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfastd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
