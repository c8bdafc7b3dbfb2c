//! Long, lossy lines: this program over them, and beside it what others bring over the same lines.

use super::{
    beside::Beside,
    bursts, has_time,
    lines::{self, Reports},
    machine,
    report::Results,
    wan_options::{Part, WanOptions},
};
use std::time::Instant;

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

const NOTES: [&str; 11] = [
    "Holdfast: more is written at once than the lines can carry; goodput is what becomes durable at the standby in the \
     time. Both links are used, but for one beside TCP.",
    "TCP: one connection of iperf3 over link one, buffers up to 128 MB, what the receiver got in the time. It does not \
     encrypt and writes to no disk.",
    "Alone and together: one line with one queue, which Holdfast and the flow begin to use at the same moment.",
    "qemu's mirror: qemu-storage-daemon and blockdev-mirror over link one to a qemu-nbd, cache=none; goodput is what \
     the line delivers of a copy in the background, without TCP's headers. It copies out of order, and does not encrypt.",
    "Offered: all that leaves the primary for the lines in the time in which goodput and age are measured, lost or not.",
    "A percentile is shown only when there were enough writes: 100 for p99, 1000 for p99.9.",
    "The echo is of one datagram that crosses a line like the nearer one both ways while our writes are measured: what its \
     figures are above the round trip is the machine's and the emulator's own.",
    "The age is the status's lag, which is zero while the standby has everything; sampled every 5 ms, under 70 % of the \
     goodput that was found before, of which what a cut leaves gets its part. Age, goodput and TCP are measured over warm \
     connections.",
    "A link carries a backlog again when it has delivered what it can in 10 ms; if it does not, the figure is the time of a \
     measurement.",
    "Requests at level local: a burst of at most 10 s, which the journal takes in.",
    "Both nodes, the lines and the clients share this machine: at 1 Gbit/s its processors may be the limit.",
];
