//! Long, lossy lines: this program over them, and beside it what others bring over the same lines.

use super::{
    beside::Beside,
    bursts, has_time,
    lines::{self, Reports},
    machine,
    report::Results,
    scenarios::Scenario,
};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

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

/// Measures, telling on stderr what is being done. What fails of ours is in the results; what others are for is left out
/// when it cannot be had.
pub fn run(options: &WanOptions) -> Results {
    let mut conditions = machine::conditions(&std::env::temp_dir());
    let (mut reports, mut beside, mut writes) = (Reports::default(), Beside::new(options), bursts::report());
    let (start, mut round, mut failure) = (Instant::now(), 0, None);
    let mut check = |what: &str, done: anyhow::Result<()>| {
        if let Err(error) = done {
            // What was measured over other lines, in an hour maybe, is worth keeping.
            eprintln!("{what}: {error:#}");
            failure.get_or_insert(format!("{what}: {error:#}"));
        }
    };
    while round < options.rounds && has_time(options.limit, start, round) {
        round += 1;
        for scenario in &options.scenarios {
            eprintln!("Round {round}: {}", scenario.name);
            if options.parts.contains(&Part::Stream) {
                check(&scenario.name, lines::measure(options, scenario, round, &mut reports));
            }
            beside.measure(options, scenario, round, &mut reports);
        }
        if options.parts.contains(&Part::Writes) {
            eprintln!("Round {round}: writes that do not wait");
            check("writes", bursts::measure(options, round, &mut writes));
        }
    }
    let mut notes = std::mem::take(&mut beside.notes);
    if round < options.rounds {
        notes.push(format!("The time was enough for {round} of {} rounds", options.rounds));
    }
    notes.extend(NOTES.map(str::to_owned));
    conditions.push(("rounds", round.to_string()));
    conditions.push(("each measurement", format!("{:?}", options.took)));
    let relative = bursts::relative(&writes);
    let all = reports.into_reports().into_iter().chain(beside.into_reports()).chain([writes, relative]);
    // What was not to be measured, or left out, is no table.
    let reports = all.filter(|report| !report.rows().is_empty()).collect();
    Results { name: "wan", conditions, notes, failure, reports }
}

const NOTES: [&str; 10] = [
    "Holdfast: more is written at once than the lines can carry; goodput is what becomes durable at the standby in the \
     time. Both links are used, but for one beside TCP.",
    "TCP: one connection of iperf3 over link one, buffers up to 128 MB, what the receiver got in the time. It does not \
     encrypt and writes to no disk.",
    "Alone and together: one line with one queue, which Holdfast and the flow begin to use at the same moment.",
    "qemu's mirror: qemu-storage-daemon and blockdev-mirror over link one to a qemu-nbd, cache=none; goodput is what \
     the line delivers of a copy in the background, without TCP's headers. It copies out of order, and does not encrypt.",
    "Offered: all that leaves the primary for the lines in the time in which goodput and age are measured, lost or not.",
    "A percentile is shown only when there were enough writes: 100 for p99, 1000 for p99.9.",
    "The age is the status's lag, which is zero while the standby has everything; sampled every 5 ms, under 70 % of the \
     goodput that was found before, of which what a cut leaves gets its part. Age, goodput and TCP are measured over warm \
     connections.",
    "A link carries a backlog again when it has delivered what it can in 10 ms; if it does not, the figure is the time of a \
     measurement.",
    "Requests at level local: a burst of at most 10 s, which the journal takes in.",
    "Both nodes, the lines and the clients share this machine: at 1 Gbit/s its processors may be the limit.",
];

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
