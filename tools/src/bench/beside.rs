//! What else can run over link one: TCP alone, TCP and this program's stream together, qemu's mirror.
//!
//! All of it runs between two network namespaces with one line, that is one queue each way. What cannot be had is left out.

use super::{
    lines::{self, Window},
    load,
    network::{End, Network},
    peers::FarMirror,
    report::{Better, Report},
    scenarios::Scenario,
    tcp,
    wan_options::{Part, WanOptions},
};
use crate::{
    emulator::LineCounters,
    nbd_client::NbdClient,
    sites::{GROUP, Sites},
};
use anyhow::{Context, anyhow};
use std::{
    thread,
    time::{Duration, Instant},
};

/// What is measured beside this program, and what was found.
pub struct Beside {
    parts: Vec<Part>,
    algorithms: Vec<&'static str>,
    /// What was left out.
    pub notes: Vec<String>,
    together: Report,
    ratio: Report,
    mirror: Report,
}

impl Beside {
    /// Nothing yet.
    pub fn new(options: &WanOptions) -> Self {
        let parts: Vec<Part> = options.parts.iter().copied().filter(|part| part.over_tcp().is_some()).collect();
        let (algorithms, mut notes) = (tcp::algorithms(), Vec::new());
        if !parts.is_empty() && !algorithms.contains(&"bbr") {
            notes.push("TCP BBR is left out: the kernel does not have it; try: modprobe tcp_bbr".to_owned());
        }
        Self {
            parts,
            algorithms,
            notes,
            together: Report::new("Goodput over one line, alone and together", "Mbit/s", Better::Higher),
            ratio: Report::new(
                "Holdfast beside a TCP flow on one line",
                "× the goodput of that flow",
                Better::NearestOne,
            ),
            mirror: Report::new("Latency of 4 KiB writes to qemu's mirror, write-blocking, QD 1", "ms", Better::Lower),
        }
    }

    /// Measures over the first of a scenario's links. What fails is left out from then on.
    pub fn measure(&mut self, options: &WanOptions, scenario: &Scenario, round: u32, reports: &mut lines::Reports) {
        for part in self.parts.clone() {
            let Some(name) = part.over_tcp() else { continue };
            let measured = match part {
                Part::Shared | Part::Mirror if !scenario.with_others => Ok(()),
                Part::Shared => self.shared(options, scenario, round, reports),
                Part::Mirror => self.mirror(options, scenario, round, reports),
                _ => self.alone(options, scenario, round, reports),
            };
            if let Err(error) = measured {
                let note = format!("{name} is left out from \"{}\" on: {error:#}", scenario.name);
                eprintln!("{note}");
                self.notes.push(note);
                self.parts.retain(|other| *other != part);
            }
        }
    }

    /// In the order in which they are shown.
    pub fn into_reports(self) -> [Report; 3] {
        [self.together, self.ratio, self.mirror]
    }

    fn alone(
        &self,
        options: &WanOptions,
        scenario: &Scenario,
        round: u32,
        reports: &mut lines::Reports,
    ) -> anyhow::Result<()> {
        tcp::check()?;
        let network = Network::start(&scenario.links[0], round.into())?;
        let warm_up = options.warm_up(scenario);
        let cut = lines::Cut {
            after: warm_up + options.took / 3,
            lasts: options.took / 3,
            cut: Box::new(|| network.cut()),
            heal: Box::new(|| network.heal()),
        };
        for algorithm in &self.algorithms {
            let mut goodput = 0.0;
            cut.run(scenario.is_cut, &mut || {
                goodput = tcp::goodput(&network, algorithm, warm_up, options.took)?;
                Ok(())
            })?;
            let column = column(algorithm);
            reports.goodput.add(&scenario.name, &column, goodput);
            reports.share.add(&scenario.name, &column, goodput * 1e6 / rate_bits(scenario));
        }
        Ok(())
    }

    fn shared(
        &mut self,
        options: &WanOptions,
        scenario: &Scenario,
        round: u32,
        reports: &mut lines::Reports,
    ) -> anyhow::Result<()> {
        tcp::check()?;
        let network = Network::start(&scenario.links[0], round.into())?;
        let namespaces = [End::Near, End::Far].map(|end| (network.name(end), end.address()));
        let sites = Sites::in_namespaces(&lines::site_options(options, scenario, round), namespaces)?;
        sites.start_paired()?;
        sites.wait_prepared(&[0, 1])?;
        sites.ask(0, &["level", GROUP, "local"])?;
        let row = scenario.name.as_str();
        let (warm_up, rate) = (options.warm_up(scenario), rate_bits(scenario));
        let ours = |window: &mut Window| {
            load::backlog_goodput(&sites, rate, [warm_up, options.took], &mut || window.look(network.counters()))
        };
        sites.wait_in_step(0)?;
        self.together.add(row, "holdfast alone", ours(&mut Window::default())? / 1e6);
        for algorithm in &self.algorithms {
            let (name, mut window) = (column(algorithm), Window::default());
            sites.wait_in_step(0)?;
            let alone = tcp::goodput(&network, algorithm, warm_up, options.took)?;
            let (ours, theirs) = thread::scope(|scope| -> anyhow::Result<(f64, f64)> {
                let flow = scope.spawn(|| tcp::goodput(&network, algorithm, warm_up, options.took));
                let ours = ours(&mut window);
                let theirs = flow.join().map_err(|_| anyhow!("The flow failed"))?;
                Ok((ours? / 1e6, theirs.context("beside Holdfast")?))
            })?;
            self.together.add(row, &format!("{name} alone"), alone);
            self.together.add(row, &format!("holdfast beside {name}"), ours);
            self.together.add(row, &format!("{name} beside holdfast"), theirs);
            if theirs > 0.0 {
                self.ratio.add(row, &name, ours / theirs);
            }
            reports.dropped.add(row, &format!("a backlog and {name}"), window.offered()?.dropped_percent);
        }
        Ok(())
    }

    fn mirror(
        &mut self,
        options: &WanOptions,
        scenario: &Scenario,
        round: u32,
        reports: &mut lines::Reports,
    ) -> anyhow::Result<()> {
        let network = Network::start(&scenario.links[0], round.into())?;
        let backlog = rate_bits(scenario) / 8.0 * (options.warm_up(scenario) + options.took).as_secs_f64() * 1.1;
        // No larger than it must be: the first copy asks for each range in turn.
        let size = (backlog as u64).next_power_of_two().max(64 << 20);
        for algorithm in &self.algorithms {
            network.use_algorithm(algorithm)?;
            let name = column(algorithm);
            {
                let mirror = FarMirror::start(&network, size, "write-blocking")?;
                let took = load::latencies(&mut client(&mirror)?, options.took)?;
                for (figure, millis) in lines::latency_figures(took) {
                    self.mirror.add(&scenario.name, &format!("{name} {figure}"), millis);
                }
            }
            let mirror = FarMirror::start(&network, size, "background")?;
            let goodput = mirrored(&network, &mirror, backlog, [options.warm_up(scenario), options.took])?;
            let column = format!("qemu's mirror, {name}");
            reports.goodput.add(&scenario.name, &column, goodput / 1e6);
            reports.share.add(&scenario.name, &column, goodput / rate_bits(scenario));
        }
        Ok(())
    }
}

fn client(mirror: &FarMirror<'_>) -> anyhow::Result<NbdClient> {
    Ok(NbdClient::connect_unix(&mirror.socket, "disk")?)
}

/// Bits a second that the copy gets in so long, after a warm-up, while there is more to copy than the line can carry.
fn mirrored(
    network: &Network,
    mirror: &FarMirror<'_>,
    backlog: f64,
    [warm_up, took]: [Duration; 2],
) -> anyhow::Result<f64> {
    let start = Instant::now();
    load::write_bytes(&mut client(mirror)?, backlog)?;
    thread::sleep((start + warm_up).saturating_duration_since(Instant::now()));
    let (before, from) = (network.counters(), Instant::now());
    thread::sleep((from + took).saturating_duration_since(Instant::now()));
    let (after, lasted) = (network.counters(), from.elapsed());
    // Its own count has steps of what is copied at a time, a second of a slow line.
    Ok(payload_bytes(&before, &after) as f64 * 8.0 / lasted.as_secs_f64())
}

/// What TCP delivered without its headers: IP's, its own, and the timestamps.
fn payload_bytes(before: &LineCounters, after: &LineCounters) -> u64 {
    const HEADERS: u64 = 20 + 20 + 12;
    let bytes = after.delivered_bytes - before.delivered_bytes;
    bytes.saturating_sub((after.delivered - before.delivered) * HEADERS)
}

fn column(algorithm: &str) -> String {
    format!("TCP {}", algorithm.to_uppercase())
}

/// Of link one.
fn rate_bits(scenario: &Scenario) -> f64 {
    scenario.links[0].rate_bits.map_or(f64::INFINITY, |bits| bits as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_no_goodput() {
        let before = LineCounters { delivered: 1, delivered_bytes: 1_500, ..LineCounters::default() };
        let after = LineCounters { delivered: 11, delivered_bytes: 16_500, ..LineCounters::default() };
        assert_eq!(payload_bytes(&before, &after), 14_480);
        assert_eq!(payload_bytes(&before, &before), 0);
    }
}
