//! `simulate`: seeds, short histories, stories and what became of them.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`seeds`] | many seeds, on all cores, until they are played or the time is over |
//! | [`short`] | all short histories, all tellings of the stories, or one of them |
//! | [`report`] | what came of it, for people and for programs |
//! | [`indexes`] | steps of a script, as the command line writes them |

pub mod indexes;
pub mod report;
pub mod seeds;
pub mod short;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use report::Report;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// How to play this program's histories.
pub const COMMAND: &str = "cargo run --release -p tools --bin simulate --";

/// How often it says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// When a run ends before all is played: at a time, or at a signal. What has begun is played to its end; a second signal ends
/// the program at once.
#[derive(Clone, Debug)]
pub struct Until {
    end: Option<Instant>,
    is_interrupted: Arc<AtomicBool>,
}

impl Until {
    /// Listens for signals from now on.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub fn new(time: Option<Duration>) -> anyhow::Result<Self> {
        let is_interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal sets what the second one looks at.
            flag::register_conditional_shutdown(signal, 1, is_interrupted.clone())
                .and_then(|_| flag::register(signal, is_interrupted.clone()))
                .context("Cannot listen for signals")?;
        }
        Ok(Self { end: time.map(|time| Instant::now() + time), is_interrupted })
    }

    /// Whether more is to be begun.
    pub fn goes_on(&self) -> bool {
        !self.was_interrupted() && self.end.is_none_or(|end| Instant::now() < end)
    }

    /// Whether a signal came.
    pub fn was_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }

    fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }
}

/// Says now and then on the standard error stream how far a run is.
struct Progress {
    next: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { next: Instant::now() + PROGRESS_EVERY }
    }

    fn tell(&mut self, report: &Report, until: &Until) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PROGRESS_EVERY;
        let left = until.left().map(|left| format!(", {} s left", left.as_secs())).unwrap_or_default();
        eprintln!(
            "{} played, {} failed, {:.0} s simulated in {:.0} s{left}",
            report.played, report.failed, report.simulated_seconds, report.real_seconds
        );
    }
}
