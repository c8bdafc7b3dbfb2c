//! Long, lossy lines: how much comes through, how old the standby is, how long a synchronous write takes, how soon the
//! standby serves after the primary's death; and what TCP brings over the same lines.

use super::{
    has_time, machine,
    report::{Better, Report, Results},
    scenarios::Scenario,
    tcp::{self, TcpLine},
    with_free_ports,
};
use crate::{
    nbd_client::{NbdClient, NbdRequest},
    sites::{GROUP, SiteOptions, Sites},
};
use anyhow::{Context, anyhow};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How to measure.
#[derive(Debug)]
pub struct WanOptions {
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
    /// The lines.
    pub scenarios: Vec<Scenario>,
    /// How long each of the three measurements takes.
    pub took: Duration,
    /// Is TCP measured as well?
    pub with_tcp: bool,
    /// Rounds.
    pub rounds: u32,
    /// No round begins that would not end by then, but for the first.
    pub limit: Option<Duration>,
}

/// Of the rate of the lines, while the age of records is sampled.
const LOAD: f64 = 0.4;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
const CHUNK: usize = 256 << 10;
const LOAD_CHUNK: usize = 16 << 10;
const BLOCK: usize = 4096;

impl WanOptions {
    /// What is not measured, so that neither we nor TCP are judged by how a connection begins: ten round trips at least, in
    /// whole seconds, as iperf3 has it.
    fn warm_up(&self, scenario: &Scenario) -> Duration {
        let round_trips = scenario.links.iter().map(|line| line.delay * 20).max().unwrap_or_default();
        Duration::from_secs((self.took.as_secs() / 2).clamp(1, 3).max(round_trips.as_secs()))
    }
}

struct Reports {
    goodput: Report,
    share: Report,
    latency: Report,
    round_trips: Report,
    age: Report,
    times: Report,
}

/// Measures, telling on stderr what is being done. What fails of ours is in the results; TCP is left out when it cannot be
/// had.
pub fn run(options: &WanOptions) -> Results {
    let mut conditions = machine::conditions(&std::env::temp_dir());
    let mut notes = Vec::new();
    let lower = |title: &str, unit: &str| Report::new(title, unit, Better::Lower);
    let mut reports = Reports {
        goodput: Report::new("Goodput", "Mbit/s", Better::Higher),
        share: Report::new("Goodput", "of the rate of the links that are used", Better::Higher),
        latency: lower("Latency of 4 KiB writes at level remote, QD 1", "ms"),
        round_trips: lower("Latency of 4 KiB writes at level remote, QD 1", "round trips of the nearer link"),
        age: lower("Age of what the standby lacks, at 40 % of the lines' rate", "ms"),
        times: lower("From the command to the answer", "ms"),
    };
    let mut algorithms = if options.with_tcp { tcp::algorithms() } else { Vec::new() };
    if options.with_tcp && !algorithms.contains(&"bbr") {
        notes.push("TCP BBR is left out: the kernel does not have it; try: modprobe tcp_bbr".to_owned());
    }
    let (start, mut round, mut failure) = (Instant::now(), 0, None);
    while round < options.rounds && has_time(options.limit, start, round) {
        round += 1;
        for scenario in &options.scenarios {
            eprintln!("Round {round}: {}", scenario.name);
            if let Err(error) = holdfast(options, scenario, round, &mut reports) {
                // What was measured over other lines, in an hour maybe, is worth keeping.
                eprintln!("{}: {error:#}", scenario.name);
                failure.get_or_insert(format!("{}: {error:#}", scenario.name));
            }
            if algorithms.is_empty() {
                continue;
            }
            if let Err(error) = over_tcp(options, scenario, round, &algorithms, &mut reports) {
                let note = format!("TCP is left out from \"{}\" on: {error:#}", scenario.name);
                eprintln!("{note}");
                notes.push(note);
                algorithms.clear();
            }
        }
    }
    if round < options.rounds {
        notes.push(format!("The time was enough for {round} of {} rounds", options.rounds));
    }
    notes.extend(NOTES.map(str::to_owned));
    conditions.push(("rounds", round.to_string()));
    conditions.push(("each measurement", format!("{:?}", options.took)));
    let Reports { goodput, share, mut latency, mut round_trips, age, times } = reports;
    // The first line may have had too few writes for some of them.
    for report in [&mut latency, &mut round_trips] {
        report.order_columns(&["p50", "p99", "p99.9", "longest"]);
    }
    let reports = vec![goodput, share, latency, round_trips, age, times];
    Results { name: "wan", conditions, notes, failure, reports }
}

const NOTES: [&str; 5] = [
    "Holdfast: as much as the lines could carry in the time is written at once; goodput counts until the standby has the \
     last of it durable. Both links are used.",
    "TCP: one connection of iperf3 over link one, buffers up to 128 MB, what the receiver got in the time. It does not \
     encrypt and writes to no disk.",
    "A percentile is shown only when there were enough writes: 100 for p99, 1000 for p99.9.",
    "The age is the status's lag, which is zero while the standby has everything; sampled every 20 ms. Age, goodput and \
     TCP are measured over warm connections.",
    "Both nodes, the lines and the clients share this machine: at 1 Gbit/s its processors may be the limit.",
];

fn holdfast(options: &WanOptions, scenario: &Scenario, round: u32, reports: &mut Reports) -> anyhow::Result<()> {
    let row = scenario.name.as_str();
    let sites = sites(options, scenario, round)?;
    let (cut, heal) = (|| sites.links[0].cut(), || sites.links[0].heal());
    let with_cut = |measure: &mut dyn FnMut() -> anyhow::Result<()>| {
        let cut = Cut { after: options.took / 3, lasts: options.took / 3, cut: &cut, heal: &heal };
        cut.run(scenario.is_cut, measure)
    };

    sites.ask(0, &["level", GROUP, "remote"])?;
    let mut took = Vec::new();
    with_cut(&mut || {
        took = latencies(&mut sites.client(0)?, options.took)?;
        Ok(())
    })?;
    took.sort_by(f64::total_cmp);
    let round_trip = scenario.round_trip().as_secs_f64() * 1e3;
    for (name, share, least) in [("p50", 0.5, 1), ("p99", 0.99, 100), ("p99.9", 0.999, 1000), ("longest", 1.0, 1)] {
        if let Some(figure) = percentile(&took, share).filter(|_| took.len() >= least) {
            reports.latency.add(row, name, figure);
            reports.round_trips.add(row, name, figure / round_trip);
        }
    }

    sites.ask(0, &["level", GROUP, "local"])?;
    sites.wait_in_step(0)?;
    let mut ages = Vec::new();
    under_load(&sites, scenario.rate_bits() * LOAD / 8.0, || {
        thread::sleep(options.warm_up(scenario));
        with_cut(&mut || {
            ages = self::ages(&sites, options.took)?;
            Ok(())
        })
    })?;
    ages.sort_by(f64::total_cmp);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("oldest", 1.0)] {
        percentile(&ages, share).into_iter().for_each(|figure| reports.age.add(row, name, figure));
    }

    sites.wait_in_step(0)?;
    let size = scenario.rate_bits() / 8.0 * options.took.as_secs_f64();
    // Whole chunks, and no more than the volume and its journal hold.
    let count = ((size / CHUNK as f64) as u64).clamp(4, (3 << 30) / CHUNK as u64);
    let start = Instant::now();
    with_cut(&mut || {
        write(&mut sites.client(0)?, count)?;
        sites.wait_in_step(0)
    })?;
    let goodput = (count * CHUNK as u64) as f64 * 8.0 / start.elapsed().as_secs_f64();
    reports.goodput.add(row, "holdfast", goodput / 1e6);
    reports.share.add(row, "holdfast", goodput / scenario.rate_bits());

    let mut timed = |what: &str, node: usize, arguments: &[&str]| -> anyhow::Result<()> {
        let start = Instant::now();
        sites.ask(node, arguments)?;
        reports.times.add(row, what, start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    };
    timed("restart point, durable at the standby", 0, &["restart-point", GROUP, "--wait"])?;
    sites.kill(0)?;
    timed("promotion after the primary's death", 1, &["promote", GROUP])
}

fn sites(options: &WanOptions, scenario: &Scenario, round: u32) -> anyhow::Result<Sites> {
    let [one, two] = scenario.links.clone();
    let site_options = SiteOptions {
        prefix: "holdfast-bench",
        programs: options.programs.clone(),
        line: one,
        seed: round.into(),
        size: "4GiB".to_owned(),
        journal_size: "4GiB".to_owned(),
    };
    with_free_ports(|| {
        let sites = Sites::new(&site_options)?;
        sites.links[1].change(|line| *line = two.clone());
        sites.start(1)?;
        sites.start(0)?;
        sites.create_volume()?;
        sites.pair()?;
        Ok(sites)
    })
}

fn over_tcp(
    options: &WanOptions,
    scenario: &Scenario,
    round: u32,
    algorithms: &[&'static str],
    reports: &mut Reports,
) -> anyhow::Result<()> {
    let settings = &scenario.links[0];
    let rate = settings.rate_bits.map_or(f64::INFINITY, |bits| bits as f64 / 1e6);
    let line = TcpLine::start(settings, round.into())?;
    for algorithm in algorithms {
        let mut goodput = 0.0;
        let (after, lasts) = (options.warm_up(scenario) + options.took / 3, options.took / 3);
        Cut { after, lasts, cut: &|| line.cut(), heal: &|| line.heal() }.run(scenario.is_cut, &mut || {
            goodput = line.goodput(algorithm, options.warm_up(scenario), options.took)?;
            Ok(())
        })?;
        let column = format!("TCP {}", algorithm.to_uppercase());
        reports.goodput.add(&scenario.name, &column, goodput);
        reports.share.add(&scenario.name, &column, goodput / rate);
    }
    Ok(())
}

/// What happens to a line while something is measured over it.
struct Cut<'a> {
    after: Duration,
    lasts: Duration,
    cut: &'a (dyn Fn() + Sync),
    heal: &'a (dyn Fn() + Sync),
}

impl Cut<'_> {
    fn run(&self, is_wanted: bool, measure: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        if !is_wanted {
            return measure();
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(self.after);
                (self.cut)();
                thread::sleep(self.lasts);
                (self.heal)();
            });
            measure()
        })
    }
}

/// Milliseconds of each write, one after the other.
fn latencies(client: &mut NbdClient, took: Duration) -> anyhow::Result<Vec<f64>> {
    let (start, mut all, mut content) = (Instant::now(), Vec::new(), Content::new());
    let places = client.size() / BLOCK as u64;
    while start.elapsed() < took {
        let begin = Instant::now();
        // An odd step meets every block of a volume whose size is a power of two.
        let place = (all.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % places;
        client.write(place * BLOCK as u64, content.next(BLOCK))?;
        all.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(all)
}

/// Does something while so many bytes a second are written.
fn under_load(sites: &Sites, rate: f64, mut during: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut client = sites.client(0)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<()> {
            let (start, mut content, mut count) = (Instant::now(), Content::new(), 0u64);
            let places = client.size() / LOAD_CHUNK as u64;
            while !stop.load(Ordering::Relaxed) {
                while client.pending_count() >= 8 {
                    client.complete()?;
                }
                let offset = count % places * LOAD_CHUNK as u64;
                client.submit(NbdRequest::Write { offset, data: content.next(LOAD_CHUNK), durable: false })?;
                count += 1;
                // The load is a rate, not as much as there can be.
                let due = start + Duration::from_secs_f64((count * LOAD_CHUNK as u64) as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(client.complete_all()?)
        });
        let done = during();
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow!("The writer failed"))??;
        done
    })
}

/// How old what the standby lacks is, in milliseconds, sampled.
fn ages(sites: &Sites, took: Duration) -> anyhow::Result<Vec<f64>> {
    let (start, mut samples) = (Instant::now(), Vec::new());
    while start.elapsed() < took {
        let next = Instant::now() + SAMPLE_EVERY;
        let status = sites.ask(0, &["status", GROUP])?;
        samples.push(status["lag"]["micros"].as_f64().context("The status has no lag")? / 1e3);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(samples)
}

/// Writes so many chunks from the start, a few requests in flight.
fn write(client: &mut NbdClient, count: u64) -> anyhow::Result<()> {
    let mut content = Content::new();
    for number in 0..count {
        while client.pending_count() >= 8 {
            client.complete()?;
        }
        let offset = number * CHUNK as u64;
        client.submit(NbdRequest::Write { offset, data: content.next(CHUNK), durable: false })?;
    }
    Ok(client.complete_all()?)
}

/// What cannot be compressed and is not written twice.
struct Content {
    data: Vec<u8>,
    state: u64,
}

impl Content {
    fn new() -> Self {
        Self { data: Vec::new(), state: 1 }
    }

    fn next(&mut self, size: usize) -> &[u8] {
        self.data.resize(size, 0);
        for word in self.data.chunks_exact_mut(8) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        &self.data
    }
}

/// The figure that this share of all does not pass.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_figure_that_was_measured() {
        let figures: Vec<f64> = (1..=1000).map(f64::from).collect();
        let of = |share| percentile(&figures, share);
        assert_eq!([of(0.5), of(0.99), of(0.999), of(1.0)], [Some(500.0), Some(990.0), Some(999.0), Some(1000.0)]);
        assert_eq!((percentile(&[7.0], 0.5), percentile(&[], 0.5)), (Some(7.0), None));
    }
}
