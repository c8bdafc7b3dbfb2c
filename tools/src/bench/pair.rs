//! What an operator waits for in a pair's life: switches, restart points, takeovers, a former primary's return, resynchronisation; what
//! memory a volume takes, and what its host notices when it writes all over it for long.

use super::{
    balance::{Balance, memory_of},
    has_time, machine,
    report::{Better, Report, Results},
};
use crate::{
    emulator::{LineSettings, QueueLimit},
    nbd_client::{NbdClient, NbdRequest},
    sites::{GROUP, SiteOptions, Sites},
};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How to measure.
#[derive(Debug)]
pub struct PairOptions {
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
    /// Blocks of 4 KiB that change between two restart points, and in a suspension.
    pub changed: u32,
    /// Megabits a second of each of the two links of the resynchronisation.
    pub rate: u32,
    /// Rounds.
    pub rounds: u32,
    /// No round begins that would not end by then, but for the first.
    pub limit: Option<Duration>,
}

const BLOCK: u64 = 4096;
const SIZES: [&str; 2] = ["1GiB", "1TiB"];
/// So many times the blocks that change are written until a journal is full, and long after.
const BALANCE_FACTOR: u64 = 10;

/// Measures, telling on stderr what is being done.
///
/// # Errors
/// When a node or a client fails.
pub fn run(options: &PairOptions) -> anyhow::Result<Results> {
    let mut conditions = machine::conditions(&std::env::temp_dir());
    let title = "Switch, restart point and takeover, many blocks changed since the restart point";
    let mut takeover = Report::new(title, "ms", Better::Lower);
    let mut memory = Report::new("Memory of a daemon", "MiB", Better::Lower);
    let sent = "bytes offered to the lines, over bytes that differ or were written meanwhile";
    let mut offered = Report::new("What a resynchronisation sends", sent, Better::Lower);
    let mut rates = Report::new("Rate of a resynchronisation", "of the lines' rate", Better::Higher);
    let mut balance = Balance::default();
    let (start, mut round) = (Instant::now(), 0);
    while round < options.rounds && has_time(options.limit, start, round) {
        round += 1;
        for size in SIZES {
            eprintln!("Round {round}: switch and takeover of {size}");
            self::takeover(options, round, size, &mut takeover, &mut memory)?;
        }
        for size in SIZES {
            eprintln!("Round {round}: {size} in balance");
            let site = site_options(options, round, size, None);
            balance.measure(site, BALANCE_FACTOR * u64::from(options.changed), &mut memory)?;
        }
        for load in [false, true] {
            eprintln!("Round {round}: resynchronisation{}", if load { " under load" } else { "" });
            self::resync(options, round, load, &mut offered, &mut rates)?;
        }
    }
    conditions.push(("rounds", round.to_string()));
    conditions.push(("blocks of 4 KiB changed", options.changed.to_string()));
    conditions.push(("each link of the resynchronisation", format!("{} Mbit/s, 20 ms round trip", options.rate)));
    let [latency, rate] = balance.reports();
    let reports = vec![takeover, latency, rate, memory, offered, rates];
    let notes =
        vec!["Both nodes are on this machine and its disk; nothing between them but for the resynchronisation".into()];
    Ok(Results { name: "pair", conditions, notes, failure: None, reports })
}

fn site_options(options: &PairOptions, round: u32, size: &'static str, line: Option<LineSettings>) -> SiteOptions {
    let (prefix, programs) = ("holdfast-bench", options.programs.clone());
    let (size, journal_size) = (size.to_owned(), "2GiB".to_owned());
    SiteOptions { prefix, programs, line, seed: round.into(), size, journal_size }
}

fn sites(options: &PairOptions, round: u32, size: &'static str, line: Option<LineSettings>) -> anyhow::Result<Sites> {
    let options = site_options(options, round, size, line);
    let sites = Sites::paired(&options)?;
    sites.wait_prepared(&[0, 1])?;
    Ok(sites)
}

fn takeover(
    options: &PairOptions,
    round: u32,
    size: &'static str,
    times: &mut Report,
    memory: &mut Report,
) -> anyhow::Result<()> {
    let sites = sites(options, round, size, None)?;
    let mut client = sites.client(0)?;
    let mut places = Places::of(client.size(), round);
    places.write(&mut client, options.changed)?;
    sites.wait_in_step(0)?;
    let switch = ["pair", "switch", GROUP];
    let [answered, served] = take_over(&sites, 1, 0, &switch)?;
    times.add("switch, answered", size, answered);
    times.add("switch, first write served by the new primary", size, served);
    sites.wait_in_step(1)?;
    take_over(&sites, 0, 1, &switch)?;
    sites.wait_in_step(0)?;
    sites.ask(0, &["restart-point", GROUP, "--wait"])?;
    let mut client = sites.client(0)?;
    places.again(round);
    places.write(&mut client, options.changed)?;
    sites.wait_in_step(0)?;
    // Asking for the status costs a process and a turn as well, and changes nothing.
    for (what, arguments) in
        [("status is asked", vec!["status", GROUP]), ("a restart point is declared", vec!["restart-point", GROUP])]
    {
        let mut longest: Vec<f64> =
            (0..5).map(|_| longest_write(&sites, &mut client, &arguments)).collect::<Result<_, _>>()?;
        longest.sort_by(f64::total_cmp);
        times.add(&format!("longest write, QD 1, while {what} (median of 5)"), size, longest[2]);
    }
    memory.add("primary", size, memory_of(&sites, 0, "VmRSS:")?);
    memory.add("standby", size, memory_of(&sites, 1, "VmRSS:")?);
    sites.wait_in_step(0)?;
    places.again(round);
    let mut client = sites.client(0)?;
    places.write(&mut client, options.changed)?;
    sites.wait_in_step(0)?;
    sites.kill(0)?;
    let [answered, served] = take_over(&sites, 1, 1, &["promote", GROUP, "--force"])?;
    times.add("promotion, rolled back to the restart point, answered", size, answered);
    times.add("promotion, first write served by the new primary", size, served);
    sites.start(0)?;
    sites.wait(0, "a former primary that is fenced", |status| status["role"] == "fenced")?;
    let start = Instant::now();
    sites.ask(0, &["demote", GROUP, "--discard-fork"])?;
    sites.wait_in_step(1)?;
    times.add("the former primary's return, rolled back and in step", size, start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Milliseconds until a command to one of the nodes is answered, and until the new primary has served a write.
fn take_over(sites: &Sites, primary: usize, node: usize, command: &[&str]) -> anyhow::Result<[f64; 2]> {
    let start = Instant::now();
    let millis = || start.elapsed().as_secs_f64() * 1e3;
    sites.ask(node, command)?;
    let answered = millis();
    sites.client(primary)?.write(0, &[2; BLOCK as usize])?;
    Ok([answered, millis()])
}

/// Milliseconds of the longest write while a command is given.
fn longest_write(sites: &Sites, client: &mut NbdClient, arguments: &[&str]) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<Vec<(Instant, Duration)>> {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                client.write(0, &[1; BLOCK as usize])?;
                took.push((start, start.elapsed()));
            }
            Ok(took)
        });
        thread::park_timeout(Duration::from_millis(200));
        let start = Instant::now();
        let answer = sites.ask(0, arguments);
        let end = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let took = writer.join().map_err(|_| anyhow::anyhow!("The writer failed"))??;
        answer?;
        let during = took.into_iter().filter(|(at, took)| *at + *took > start && *at <= end);
        Ok(during.map(|(_, took)| took).max().unwrap_or_default().as_secs_f64() * 1e3)
    })
}

fn resync(
    options: &PairOptions,
    round: u32,
    load: bool,
    offered_bytes: &mut Report,
    rates: &mut Report,
) -> anyhow::Result<()> {
    let line = LineSettings {
        delay: Duration::from_millis(10),
        rate_bits: Some(u64::from(options.rate) * 1_000_000),
        queue: QueueLimit::Time(Duration::from_millis(100)),
        ..LineSettings::default()
    };
    let sites = sites(options, round, "8GiB", Some(line))?;
    let mut client = sites.client(0)?;
    sites.ask(0, &["pair", "suspend", GROUP])?;
    let mut places = Places::of(client.size() / 2, round);
    places.write(&mut client, options.changed)?;
    let differing = (u64::from(options.changed) * BLOCK) as f64;
    let offered = || -> u64 { sites.links.iter().map(|link| link.statistics().a_to_b.taken_bytes).sum() };
    let (before, start, stop) = (offered(), Instant::now(), AtomicBool::new(false));
    let name = if load { "2,000 writes a second meanwhile" } else { "idle" };
    thread::scope(|scope| -> anyhow::Result<()> {
        let writer = scope.spawn(|| -> anyhow::Result<u64> {
            let half = client.size() / 2;
            let mut count = 0;
            while load && !stop.load(Ordering::Relaxed) {
                client.write(half + count % 4096 * BLOCK, &[3; BLOCK as usize])?;
                count += 1;
                // The load is a rate, not as much as there can be.
                let due = start + Duration::from_micros(500 * count);
                thread::park_timeout(due.saturating_duration_since(Instant::now()));
            }
            Ok(count)
        });
        sites.ask(0, &["pair", "resume", GROUP])?;
        let done = sites.wait(0, "the copy to end", |status| status["pair"]["state"] == "duplex");
        let took = start.elapsed().as_secs_f64();
        let sent = (offered() - before) as f64;
        stop.store(true, Ordering::Relaxed);
        let count = writer.join().map_err(|_| anyhow::anyhow!("The writer failed"))??;
        done?;
        let written = (count * BLOCK) as f64;
        offered_bytes.add("sent", name, sent / (differing + written));
        let line_rate = 2.0 * f64::from(options.rate) * 1e6 / 8.0;
        rates.add("what differs", name, differing / took / line_rate);
        rates.add("that and what is written meanwhile", name, (differing + written) / took / line_rate);
        Ok(())
    })
}

/// Distinct random blocks of a volume.
struct Places {
    count: u64,
    state: u64,
}

impl Places {
    fn of(size: u64, seed: u32) -> Self {
        Self { count: size / BLOCK, state: u64::from(seed) }
    }

    /// The same blocks from the first on.
    fn again(&mut self, seed: u32) {
        self.state = seed.into();
    }

    /// Steps through a permutation: the number of blocks is a power of two, so that an odd multiplier meets each once.
    fn next(&mut self) -> u64 {
        self.state += 1;
        self.state.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.count
    }

    fn write(&mut self, client: &mut NbdClient, count: u32) -> anyhow::Result<()> {
        let mut data = vec![0; BLOCK as usize];
        for number in 0..count {
            data.chunks_exact_mut(8)
                .for_each(|word| word.copy_from_slice(&u64::from(number).wrapping_mul(77).to_le_bytes()));
            while client.pending_count() >= 16 {
                client.complete()?;
            }
            client.submit(NbdRequest::Write { offset: self.next() * BLOCK, data: &data, durable: false })?;
        }
        Ok(client.complete_all()?)
    }
}
