//! This program over emulated lines: how much comes through, what of it the lines are offered, how old the standby is, how
//! long a synchronous write takes, how soon the standby serves after the primary's death.

use super::{
    echo,
    load::{self, Age, percentile},
    report::{Better, Report},
    scenarios::Scenario,
    wan_options::WanOptions,
};
use crate::{
    emulator::{Emulator, LineCounters, Side},
    sites::{GROUP, SiteOptions, Sites},
};
use anyhow::{Context, anyhow};
use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Of the goodput that was found, while the age of records is sampled.
const LOAD: f64 = 0.7;
/// What a link's death may cost beside a round trip, in milliseconds.
const DEATH_MILLIS: f64 = 100.0;

/// What is found.
pub struct Reports {
    /// Mbit/s of everybody.
    pub goodput: Report,
    /// The same, of the rate of what is used.
    pub share: Report,
    offered: Report,
    /// Packets that found a line's queue full.
    pub dropped: Report,
    processor: Report,
    latency: Report,
    round_trips: Report,
    /// What the line and the machine take themselves, and our latency as a multiple of that.
    echo: Report,
    echoes: Report,
    age: Report,
    cut: Report,
    healed: Report,
    times: Report,
}

impl Default for Reports {
    /// Nothing yet.
    fn default() -> Self {
        let lower = |title: &str, unit: &str| Report::new(title, unit, Better::Lower);
        Self {
            goodput: Report::new("Goodput", "Mbit/s", Better::Higher),
            share: Report::new("Goodput", "of the rate of the links that are used", Better::Higher),
            offered: lower("Offered to the lines by Holdfast", "of their rate"),
            dropped: lower("Lost because a line's queue was full", "% of packets"),
            processor: lower("Processor time of a carrier's thread, for each Gbit that is offered in a backlog", "s"),
            latency: lower("Latency of 4 KiB writes at level remote, QD 1", "ms"),
            round_trips: lower("Latency of 4 KiB writes at level remote, QD 1", "round trips of the nearer link"),
            echo: lower("An echo of one datagram over the nearer link meanwhile, without loss", "ms"),
            echoes: lower("Latency of 4 KiB writes at level remote, QD 1", "of the echo's, figure by figure"),
            age: lower("Age of what the standby lacks, at 70 % of the goodput", "ms"),
            cut: lower("Oldest of what the standby lacks, while link one dies and comes back", "ms"),
            healed: lower("From the end of a cut until link one carries a backlog again", "ms"),
            times: lower("From the command to the answer", "ms"),
        }
    }
}

impl Reports {
    /// Those that have figures, in the order in which they are shown.
    pub fn into_reports(self) -> Vec<Report> {
        let Self { goodput, share, offered, dropped, processor, .. } = self;
        let Self { mut latency, mut round_trips, mut echo, mut echoes, age, cut, healed, times, .. } = self;
        // The first line may have had too few writes for some of them.
        for report in [&mut latency, &mut round_trips, &mut echo, &mut echoes] {
            report.order_columns(&["p50", "p99", "p99.9", "longest"]);
        }
        vec![goodput, share, offered, dropped, processor, latency, round_trips, echo, echoes, age, cut, healed, times]
    }
}

/// Measures over one pair of lines.
///
/// # Errors
/// When something of ours fails.
pub fn measure(options: &WanOptions, scenario: &Scenario, round: u32, reports: &mut Reports) -> anyhow::Result<()> {
    let sites = sites(options, scenario, round)?;
    latency(options, scenario, round, &sites, reports)?;
    sites.ask(0, &["level", GROUP, "local"])?;
    let goodput = goodput(options, scenario, &sites, reports)?;
    age(options, scenario, &sites, goodput, reports)?;
    sites.wait_in_step(0)?;
    let mut timed = |what: &str, node: usize, arguments: &[&str]| -> anyhow::Result<()> {
        let start = Instant::now();
        sites.ask(node, arguments)?;
        reports.times.add(&scenario.name, what, start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    };
    timed("restart point, durable at the standby", 0, &["restart-point", GROUP, "--wait"])?;
    sites.kill(0)?;
    timed("promotion after the primary's death", 1, &["promote", GROUP])
}

fn sites(options: &WanOptions, scenario: &Scenario, round: u32) -> anyhow::Result<Sites> {
    let backlog = load::backlog_bytes(scenario.rate_bits(), options.warm_up(scenario) + options.took);
    // No larger than it must be, as it is written with zeroes first.
    let journal_size = format!("{}MiB", 256 + (backlog * 1.2) as u64 / (1 << 20));
    let site_options = SiteOptions { journal_size, ..site_options(options, scenario, round) };
    let sites = Sites::new(&site_options)?;
    sites.links[1].change(|line| *line = scenario.links[1].clone());
    sites.start_paired()?;
    sites.wait_prepared(&[0, 1])?;
    Ok(sites)
}

/// Nodes whose both links are the first of these lines.
pub fn site_options(options: &WanOptions, scenario: &Scenario, round: u32) -> SiteOptions {
    SiteOptions {
        prefix: "holdfast-bench",
        programs: options.programs.clone(),
        line: Some(scenario.links[0].clone()),
        seed: round.into(),
        size: "4GiB".to_owned(),
        journal_size: "4GiB".to_owned(),
    }
}

fn latency(
    options: &WanOptions,
    scenario: &Scenario,
    round: u32,
    sites: &Sites,
    reports: &mut Reports,
) -> anyhow::Result<()> {
    sites.ask(0, &["level", GROUP, "remote"])?;
    let mut took = Vec::new();
    let echo = echo::meanwhile(scenario, round.into(), &mut || {
        cut_of(sites, options, Duration::ZERO).run(scenario.is_cut, &mut || {
            took = load::latencies(&mut sites.client(0)?, options.took)?;
            Ok(())
        })?;
        Ok(())
    })?;
    let round_trip = scenario.round_trip().as_secs_f64() * 1e3;
    let figures = latency_figures(took);
    for (name, figure) in &figures {
        reports.latency.add(&scenario.name, name, *figure);
        reports.round_trips.add(&scenario.name, name, figure / round_trip);
    }
    for (name, figure) in latency_figures(echo) {
        reports.echo.add(&scenario.name, name, figure);
        if let Some((_, ours)) = figures.iter().find(|(other, _)| *other == name) {
            reports.echoes.add(&scenario.name, name, ours / figure);
        }
    }
    Ok(())
}

/// Those of the usual figures for which there were enough writes.
pub fn latency_figures(mut took: Vec<f64>) -> Vec<(&'static str, f64)> {
    took.sort_by(f64::total_cmp);
    let wanted = [("p50", 0.5, 1), ("p99", 0.99, 100), ("p99.9", 0.999, 1000), ("longest", 1.0, 1)];
    let enough = wanted.into_iter().filter(|(_, _, least)| took.len() >= *least);
    enough.filter_map(|(name, share, _)| Some((name, percentile(&took, share)?))).collect()
}

/// Bits a second.
fn goodput(options: &WanOptions, scenario: &Scenario, sites: &Sites, reports: &mut Reports) -> anyhow::Result<f64> {
    sites.wait_in_step(0)?;
    let (warm_up, rate) = (options.warm_up(scenario), scenario.rate_bits());
    let (mut window, mut carriers) = (Window::default(), Vec::new());
    let (mut goodput, idle) = (0.0, Mutex::new(None));
    let cut = cut_of(sites, options, warm_up);
    let heal = Box::new(|| {
        (cut.heal)();
        *idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(idle_after(&sites.links[0], options.took));
    });
    Cut { heal, cut: Box::new(|| (cut.cut)()), ..cut }.run(scenario.is_cut, &mut || {
        let mut look = || {
            window.look(sent(sites));
            carriers.push([0, 1].map(|node| carrier_seconds(sites, node)));
        };
        goodput = load::backlog_goodput(sites, rate, [warm_up, options.took], &mut look)?;
        Ok(())
    })?;
    if let Some(idle) = idle.into_inner().unwrap_or_else(PoisonError::into_inner) {
        reports.healed.add(&scenario.name, "holdfast", idle.as_secs_f64() * 1e3);
    }
    reports.goodput.add(&scenario.name, "holdfast", goodput / 1e6);
    reports.share.add(&scenario.name, "holdfast", goodput / rate);
    let offered = window.offered()?;
    reports.offered.add(&scenario.name, "a backlog", offered.rate_bits / rate);
    reports.dropped.add(&scenario.name, "a backlog", offered.dropped_percent);
    let gigabits = offered.rate_bits * offered.took.as_secs_f64() / 1e9;
    if let [before, after] = &carriers[..] {
        for (node, name) in ["primary", "standby"].into_iter().enumerate() {
            if let (Some(before), Some(after)) = (before[node], after[node]) {
                reports.processor.add(&scenario.name, name, (after - before) / gigabits);
            }
        }
    }
    Ok(goodput)
}

/// What the thread of a node's carrier, which is the daemon's first one, has taken of a processor; `None` if the kernel does not tell.
fn carrier_seconds(sites: &Sites, node: usize) -> Option<f64> {
    let schedstat = sites.workplace.proc_file(&sites.nodes[node].name, "schedstat").ok()?;
    Some(schedstat.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// How long a link carries next to nothing from now on, but no longer than `limit`.
fn idle_after(link: &Emulator, limit: Duration) -> Duration {
    let start = Instant::now();
    // More than it takes to find out that a link is there.
    let bytes = link.line_settings(Side::A).rate_bits.unwrap_or_default() / 8 / 100;
    let wanted = link.statistics().a_to_b.delivered_bytes + bytes;
    link.wait_until(limit, |statistics| statistics.a_to_b.delivered_bytes >= wanted);
    start.elapsed()
}

fn age(
    options: &WanOptions,
    scenario: &Scenario,
    sites: &Sites,
    goodput: f64,
    reports: &mut Reports,
) -> anyhow::Result<()> {
    let row = scenario.name.as_str();
    sites.wait_in_step(0)?;
    let (mut ages, mut cut, mut window) = (Vec::new(), None, Window::default());
    // What a link that dies leaves must still be able to carry it, or a backlog would be measured.
    load::under_load(sites, goodput * LOAD * scenario.lasting_share() / 8.0, || {
        thread::sleep(options.warm_up(scenario));
        window.look(sent(sites));
        cut = cut_of(sites, options, Duration::ZERO).run(scenario.is_cut, &mut || {
            ages = load::ages(sites, options.took)?;
            Ok(())
        })?;
        window.look(sent(sites));
        Ok(())
    })?;
    if let Some(cut) = cut {
        for (name, figure) in around(&ages, cut, scenario) {
            reports.cut.add(row, name, figure);
        }
    }
    let mut millis: Vec<f64> = ages.iter().map(|age| age.millis).collect();
    millis.sort_by(f64::total_cmp);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("oldest", 1.0)] {
        percentile(&millis, share).into_iter().for_each(|figure| reports.age.add(row, name, figure));
    }
    let offered = window.offered()?;
    reports.offered.add(row, "70 % load", offered.rate_bits / scenario.rate_bits());
    reports.dropped.add(row, "70 % load", offered.dropped_percent);
    Ok(())
}

/// The oldest before a cut, during it, and after it; and what it may be during it: what it is otherwise, a round trip and
/// what a death may cost.
fn around(ages: &[Age], [cut, healed]: [Instant; 2], scenario: &Scenario) -> Vec<(&'static str, f64)> {
    let oldest = |wanted: &dyn Fn(Instant) -> bool| {
        ages.iter().filter(|age| wanted(age.at)).map(|age| age.millis).reduce(f64::max)
    };
    let before = oldest(&|at| at < cut);
    let round_trip = scenario.links.iter().map(|line| line.delay * 2).max().unwrap_or_default();
    let wanted = before.map(|before| before + round_trip.as_secs_f64() * 1e3 + DEATH_MILLIS);
    let figures = [
        ("before", before),
        ("while it is cut", oldest(&|at| at >= cut && at < healed)),
        ("after that", oldest(&|at| at >= healed)),
        ("before, and a round trip and 100 ms", wanted),
    ];
    figures.into_iter().filter_map(|(name, figure)| Some((name, figure?))).collect()
}

fn cut_of<'a>(sites: &'a Sites, options: &WanOptions, warm_up: Duration) -> Cut<'a> {
    let third = options.took / 3;
    Cut {
        after: warm_up + third,
        lasts: third,
        cut: Box::new(|| sites.links[0].cut()),
        heal: Box::new(|| sites.links[0].heal()),
    }
}

/// What happens to a line while something is measured over it.
pub struct Cut<'a> {
    /// When.
    pub after: Duration,
    /// For how long.
    pub lasts: Duration,
    /// Cuts it.
    pub cut: Box<dyn Fn() + Sync + 'a>,
    /// Ends the cut.
    pub heal: Box<dyn Fn() + Sync + 'a>,
}

impl Cut<'_> {
    /// When it was cut and healed, if that was wanted.
    ///
    /// # Errors
    /// When what is measured fails.
    pub fn run(
        &self,
        is_wanted: bool,
        measure: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<[Instant; 2]>> {
        if !is_wanted {
            return measure().map(|()| None);
        }
        thread::scope(|scope| {
            let cutter = scope.spawn(|| {
                thread::sleep(self.after);
                let cut = Instant::now();
                (self.cut)();
                thread::sleep(self.lasts);
                (self.heal)();
                [cut, Instant::now()]
            });
            let done = measure();
            let times = cutter.join().map_err(|_| anyhow!("The line was not healed"))?;
            done.map(|()| Some(times))
        })
    }
}

/// What came from the primary to all of its links so far.
fn sent(sites: &Sites) -> LineCounters {
    let mut sum = LineCounters::default();
    for link in &sites.links {
        let one = link.statistics().a_to_b;
        sum.taken += one.taken;
        sum.taken_bytes += one.taken_bytes;
        sum.lost_queue += one.lost_queue;
    }
    sum
}

/// A line's counters at the beginning and at the end of the time that counts.
#[derive(Default)]
pub struct Window {
    looks: Vec<(Instant, LineCounters)>,
}

/// What a line was given in some time.
#[derive(Debug, PartialEq)]
pub struct Offered {
    /// All of it, lost or not, in bits a second.
    pub rate_bits: f64,
    /// Of the packets those that found the queue full.
    pub dropped_percent: f64,
    /// In so long.
    pub took: Duration,
}

impl Window {
    /// Notes where the counters are.
    pub fn look(&mut self, counters: LineCounters) {
        self.looks.push((Instant::now(), counters));
    }

    /// What was offered between the first and the last look.
    ///
    /// # Errors
    /// When there were not two of them.
    pub fn offered(&self) -> anyhow::Result<Offered> {
        let (Some((from, before)), Some((to, after))) = (self.looks.first(), self.looks.last()) else {
            return Err(anyhow!("The line's counters were not looked at"));
        };
        offered(before, after, *to - *from).context("The line's counters were looked at once only")
    }
}

fn offered(before: &LineCounters, after: &LineCounters, took: Duration) -> Option<Offered> {
    let packets = (after.taken - before.taken).max(1) as f64;
    let rate_bits = (after.taken_bytes - before.taken_bytes) as f64 * 8.0 / took.as_secs_f64();
    let dropped_percent = (after.lost_queue - before.lost_queue) as f64 * 100.0 / packets;
    rate_bits.is_finite().then_some(Offered { rate_bits, dropped_percent, took })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenarios;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_percentile_without_enough_writes_is_no_figure() {
        let names = |count: u32| -> Vec<&str> {
            latency_figures((0..count).map(f64::from).collect()).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(0), [""; 0]);
        assert_eq!(names(99), ["p50", "longest"]);
        assert_eq!(names(999), ["p50", "p99", "longest"]);
        assert_eq!(names(1000), ["p50", "p99", "p99.9", "longest"]);
    }

    #[test]
    fn what_a_line_is_offered_counts_what_it_loses() {
        let before = LineCounters { taken: 10, taken_bytes: 10_000, lost_queue: 1, ..LineCounters::default() };
        let after = LineCounters { taken: 110, taken_bytes: 110_000, lost_queue: 6, ..LineCounters::default() };
        let took = Duration::from_millis(500);
        let found = offered(&before, &after, took);
        assert_eq!(found, Some(Offered { rate_bits: 1_600_000.0, dropped_percent: 5.0, took }));
        assert_eq!(offered(&before, &before, Duration::ZERO), None);
        assert!(Window::default().offered().is_err());
    }

    #[test]
    fn a_cut_is_judged_by_what_was_before_it() {
        let scenario = scenarios::custom(&["delay 10ms, rate 1mbit", "delay 25ms, rate 1mbit"]).expect("a scenario");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let age = |(seconds, millis)| Age { at: at(seconds), millis };
        let ages: Vec<Age> = [(0, 20.0), (1, 30.0), (2, 90.0), (3, 70.0), (4, 40.0)].into_iter().map(age).collect();
        let figures: Vec<f64> =
            around(&ages, [at(2), at(4)], &scenario).into_iter().map(|(_, figure)| figure).collect();
        assert_eq!(figures, [30.0, 90.0, 40.0, 180.0]);
        assert_eq!(around(&[], [at(2), at(4)], &scenario), []);
    }

    #[test]
    fn a_cut_comes_and_goes_only_if_it_is_wanted() {
        let count = AtomicU32::new(0);
        let change = |by: u32| {
            let count = &count;
            Box::new(move || count.store(count.load(Ordering::Relaxed) * 10 + by, Ordering::Relaxed))
        };
        let cut = Cut { after: Duration::ZERO, lasts: Duration::ZERO, cut: change(1), heal: change(2) };
        assert!(cut.run(false, &mut || Ok(())).expect("measured").is_none());
        assert_eq!(count.load(Ordering::Relaxed), 0);
        let [from, to] = cut.run(true, &mut || Ok(())).expect("measured").expect("times");
        assert!(from <= to);
        assert_eq!(count.load(Ordering::Relaxed), 12);
        assert!(cut.run(true, &mut || Err(anyhow!("no"))).is_err());
    }
}
