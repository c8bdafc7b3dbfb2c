//! Random writes all over a volume; if there are many, its journal is full in the end and destaging in balance with what comes.

use super::{
    load,
    report::{Better, Report},
};
use crate::{
    nbd_client::{NbdClient, NbdRequest},
    sites::{SiteOptions, Sites},
};
use anyhow::Context;
use std::{collections::BTreeMap, time::Instant};

const DEPTH: usize = 32;

/// What is measured, over rounds.
pub struct Balance {
    latency: Report,
    rate: Report,
}

impl Default for Balance {
    fn default() -> Self {
        let title = |what| format!("{what} of 4 KiB writes all over a volume, alone, QD {DEPTH}, journal of 1 GiB");
        Self {
            latency: Report::new(&title("Latency"), "ms", Better::Lower),
            rate: Report::new(&title("Rate"), "writes a second", Better::Higher),
        }
    }
}

impl Balance {
    /// Measures `count` writes, and the daemon's memory at most.
    ///
    /// # Errors
    /// When the node or the client fails.
    pub fn measure(&mut self, options: SiteOptions, count: u64, memory: &mut Report) -> anyhow::Result<()> {
        let (size, options) = (options.size.clone(), SiteOptions { journal_size: "1GiB".to_owned(), ..options });
        let sites = Sites::new(&options)?;
        sites.nodes[0].configure_alone()?;
        sites.start(0)?;
        sites.create_volume()?;
        sites.wait_prepared(&[0])?;
        let (millis, seconds) = writes(&mut sites.client(0)?, count)?;
        for (name, share, least) in
            [("99 of 100", 0.99, 100), ("9,999 of 10,000", 0.9999, 10_000), ("the longest", 1.0, 1)]
        {
            // A share of fewer would be the longest by another name.
            if let Some(figure) = load::percentile(&millis, share).filter(|_| millis.len() >= least) {
                self.latency.add(name, &size, figure);
            }
        }
        self.rate.add("writes a second", &size, count as f64 / seconds);
        memory.add("alone, after the writes, at most", &size, memory_of(&sites, 0, "VmHWM:")?);
        Ok(())
    }

    /// What came of it.
    pub fn reports(self) -> [Report; 2] {
        [self.latency, self.rate]
    }
}

/// Milliseconds of each of so many writes, in order of length, and the seconds they took together.
fn writes(client: &mut NbdClient, count: u64) -> anyhow::Result<(Vec<f64>, f64)> {
    let data = [5; 4096];
    let (mut millis, mut begun, mut number) = (Vec::new(), BTreeMap::new(), 0);
    let start = Instant::now();
    while (millis.len() as u64) < count {
        if number < count && begun.len() < DEPTH {
            let offset = load::place(client, number);
            begun.insert(client.submit(NbdRequest::Write { offset, data: &data, durable: false })?, Instant::now());
            number += 1;
            continue;
        }
        let completion = client.complete()?;
        completion.result?;
        let at = begun.remove(&completion.cookie).context("An answer to nothing")?;
        millis.push(at.elapsed().as_secs_f64() * 1e3);
    }
    let seconds = start.elapsed().as_secs_f64();
    millis.sort_by(f64::total_cmp);
    Ok((millis, seconds))
}

/// MiB of a node's daemon, by a line of its status: `VmRSS:` now, `VmHWM:` at most.
///
/// # Errors
/// When there is no such line.
pub fn memory_of(sites: &Sites, node: usize, what: &str) -> anyhow::Result<f64> {
    let status = sites.workplace.proc_file(&sites.nodes[node].name, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| format!("no {what}"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kibibytes / 1024.0)
}
