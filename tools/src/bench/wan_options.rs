//! What is measured over lines, and how.

use super::scenarios::Scenario;
use std::{path::PathBuf, time::Duration};

/// How to measure.
#[derive(Debug)]
pub struct WanOptions {
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
    /// The lines.
    pub scenarios: Vec<Scenario>,
    /// How long each measurement takes.
    pub took: Duration,
    /// What is measured.
    pub parts: Vec<Part>,
    /// Rounds.
    pub rounds: u32,
    /// No round begins that would not end by then, but for the first.
    pub limit: Option<Duration>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Holdfast over both links: goodput, what the lines are offered, age, latency at level remote, takeover
    Stream,
    /// One TCP flow over link one, by iperf3
    Tcp,
    /// Holdfast and one TCP flow together on link one
    Shared,
    /// qemu's mirror over link one: goodput, latency of writes
    Mirror,
    /// Writes at level local over near, far and lossy lines, whatever lines are chosen otherwise
    Writes,
}

impl Part {
    /// Its name, if it is something that runs over TCP, which may not be there.
    pub fn over_tcp(self) -> Option<&'static str> {
        match self {
            Self::Stream | Self::Writes => None,
            Self::Tcp => Some("TCP"),
            Self::Shared => Some("TCP beside Holdfast"),
            Self::Mirror => Some("qemu's mirror"),
        }
    }
}

impl WanOptions {
    /// What is not measured, so that neither we nor TCP are judged by how a connection begins: ten round trips at least, in
    /// whole seconds, as iperf3 has it.
    pub fn warm_up(&self, scenario: &Scenario) -> Duration {
        let round_trips = scenario.links.iter().map(|line| line.delay * 20).max().unwrap_or_default();
        Duration::from_secs((self.took.as_secs() / 2).clamp(1, 3).max(round_trips.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenarios;

    #[test]
    fn a_warm_up_is_ten_round_trips_in_whole_seconds() {
        let warm_up = |line: &str, seconds| {
            let (programs, parts) = (PathBuf::new(), Vec::new());
            let took = Duration::from_secs(seconds);
            let options = WanOptions { programs, scenarios: Vec::new(), took, parts, rounds: 1, limit: None };
            options.warm_up(&scenarios::custom(&[line]).expect(line)).as_secs()
        };
        assert_eq!(warm_up("delay 1ms, rate 1mbit", 1), 1);
        assert_eq!(warm_up("delay 1ms, rate 1mbit", 4), 2);
        assert_eq!(warm_up("delay 1ms, rate 1mbit", 60), 3);
        assert_eq!(warm_up("delay 300ms, rate 1mbit", 1), 6);
    }
}
