//! What came of a run.

use std::{collections::BTreeMap, fmt, time::Instant};

use serde::Serialize;
use simulator::{Outcome, marks};

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The first seed; of short histories there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seed: Option<u64>,
    /// The last seed that was played.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seed: Option<u64>,
    /// How many histories were played.
    pub played: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How long they went.
    pub simulated_seconds: f64,
    /// How long that took.
    pub real_seconds: f64,
    /// The seed that took longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowest: Option<Slowest>,
    /// A signal ended the run.
    pub interrupted: bool,
    /// What failed.
    pub failures: Vec<Failure>,
    /// What was reached, how often.
    pub marks: BTreeMap<String, u64>,
    /// What is reached at all, and was not now.
    pub never_reached: Vec<&'static str>,
    #[serde(skip)]
    start: Instant,
}

/// The seed that took longest.
#[derive(Clone, Debug, Serialize)]
pub struct Slowest {
    /// Which.
    pub seed: u64,
    /// How long.
    pub real_seconds: f64,
}

/// A history that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The seed, or the short history.
    pub name: String,
    /// Its number, if it is a seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What is broken, such as I3.
    pub kind: String,
    /// What went wrong, and where.
    pub message: String,
    /// After which simulated time.
    pub after_seconds: f64,
    /// Plays it again.
    pub replay: String,
    /// Plays what is left of it, if it was shortened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<ShrunkHistory>,
    /// What happened last, in the shortened history if there is one.
    pub last: Vec<String>,
}

/// What is left of a history.
#[derive(Clone, Debug, Serialize)]
pub struct ShrunkHistory {
    /// Plays it.
    pub replay: String,
    /// Its steps.
    pub steps: Vec<String>,
    /// How many histories were played for it.
    pub play_count: u32,
    /// Nothing more can be left out.
    pub is_smallest: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            first_seed: None,
            last_seed: None,
            played: 0,
            failed: 0,
            simulated_seconds: 0.0,
            real_seconds: 0.0,
            slowest: None,
            interrupted: false,
            failures: Vec::new(),
            marks: BTreeMap::new(),
            never_reached: Vec::new(),
            start: Instant::now(),
        }
    }
}

impl Report {
    /// Nothing was played yet, and it begins with this seed.
    pub fn of_seeds(first: u64) -> Self {
        Self { first_seed: Some(first), ..Self::default() }
    }

    /// Counts a history that was played.
    pub fn count(&mut self, outcome: &Outcome) {
        self.played += 1;
        self.failed += u64::from(outcome.failure.is_some());
        self.simulated_seconds += outcome.micros as f64 / 1e6;
        for (name, count) in &outcome.marks {
            *self.marks.entry(name.clone()).or_default() += count;
        }
        self.real_seconds = self.start.elapsed().as_secs_f64();
    }

    /// The run is over.
    pub fn close(&mut self) {
        self.real_seconds = self.start.elapsed().as_secs_f64();
        // Short histories are not meant to reach what chance does.
        let known = marks::EXPECTED.iter().filter(|_| self.first_seed.is_some());
        self.never_reached = known.copied().filter(|name| !self.marks.contains_key(*name)).collect();
        // Which thread was faster does not matter.
        self.failures.sort_by(|a, b| (a.seed, &a.name).cmp(&(b.seed, &b.name)));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.marks {
            writeln!(f, "{count:10} {name}")?;
        }
        if !self.never_reached.is_empty() {
            writeln!(f, "never reached: {}", self.never_reached.join("; "))?;
        }
        if let Some(Slowest { seed, real_seconds }) = &self.slowest {
            writeln!(f, "seed {seed} took longest: {real_seconds:.1} s")?;
        }
        let rate = self.simulated_seconds / self.real_seconds.max(1e-3);
        let histories = self.played as f64 / self.real_seconds.max(1e-3);
        write!(
            f,
            "{} of {} failed; {:.0} s simulated in {:.1} s: {rate:.0} s and {histories:.1} histories a second",
            self.failed, self.played, self.simulated_seconds, self.real_seconds
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} fails after {:.1} s: {}", self.name, self.after_seconds, self.message)?;
        for line in &self.last {
            writeln!(f, "    {line}")?;
        }
        if let Some(shrunk) = &self.shrunk {
            let more = if shrunk.is_smallest { "" } else { "; more plays might leave less" };
            writeln!(f, "{} steps are left after {} plays{more}:", shrunk.steps.len(), shrunk.play_count)?;
            for step in &shrunk.steps {
                writeln!(f, "    {step}")?;
            }
            writeln!(f, "the shortened history:  {}", shrunk.replay)?;
        }
        writeln!(f, "again:  {}", self.replay)
    }
}
