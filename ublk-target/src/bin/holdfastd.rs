//! The daemon `holdfastd`.

use clap::Parser;
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
use tracing_subscriber::{EnvFilter, Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};
use ublk_target::{config::CONFIG_PATH, daemon, events::EventLayer};

/// Page-aligned buffers come and go with every request: this allocator takes them from lists of used ones, where the C
/// library searches, splits and joins.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,libublk=warn"));
    let log = tracing_subscriber::registry().with(EventLayer.with_filter(LevelFilter::INFO));
    // Under systemd its journal gets group, epoch and link as fields that can be searched.
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    if let Some(journal) = journal {
        log.with(journal.with_filter(filter)).init();
    } else {
        // Colours are for people; a file gets plain text.
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
        log.with(text.with_filter(filter)).init();
    }
    end_on_panic();
    match daemon::run(&arguments.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfastd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is in memory after a panic is nothing to go on from: a group would take requests and answer none, while its standby hears a
/// primary that lives. What was promised is in the journal, and devices wait for the next daemon.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
