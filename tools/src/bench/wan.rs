//! Goodput over long, lossy lines, and how soon the standby serves after the primary's death.

use super::report::{Better, Report, Results};
use crate::{
    emulator::{LineSettings, Probability, QueueLimit},
    nbd_client::NbdRequest,
    sites::{GROUP, SiteOptions, Sites},
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
    /// The round trip in milliseconds.
    pub rtt: u32,
    /// Loss in percent, each measured in turn.
    pub loss: Vec<u32>,
    /// Megabits a second of each of the two links.
    pub rate: u32,
    /// MiB written in each round.
    pub size: u32,
    /// Rounds.
    pub rounds: u32,
}

const CHUNK: usize = 256 << 10;

/// Measures, telling on stderr what is being done: the goodput and the times.
///
/// # Errors
/// When a node or a client fails.
pub fn run(options: &WanOptions) -> anyhow::Result<Results> {
    let mut goodput = Report::new("Goodput of an asynchronous pair over two links", "Mbit/s", Better::Higher);
    let mut times = Report::new("From the command to the answer", "ms", Better::Lower);
    for round in 1..=options.rounds {
        for loss in &options.loss {
            let row = format!("{} ms, 2 x {} Mbit/s, {loss} % loss", options.rtt, options.rate);
            eprintln!("Round {round}: {row}");
            let line = LineSettings {
                delay: Duration::from_millis(options.rtt.into()) / 2,
                rate_bits: Some(u64::from(options.rate) * 1_000_000),
                queue: QueueLimit::Time(Duration::from_millis(100)),
                loss: Probability::from_percent(*loss),
                ..LineSettings::default()
            };
            let sites = Sites::paired(&SiteOptions {
                prefix: "holdfast-bench",
                programs: options.programs.clone(),
                line,
                seed: round.into(),
                size: "4GiB".to_owned(),
                journal_size: "1GiB".to_owned(),
            })?;
            let offered = |sites: &Sites| -> u64 {
                sites.links.iter().map(|link| link.statistics().a_to_b).map(|line| line.taken_bytes).sum()
            };
            let before = offered(&sites);
            let start = Instant::now();
            write(&sites, u64::from(options.size) << 20)?;
            sites.wait_in_step(0)?;
            let (took, bytes) = (start.elapsed().as_secs_f64(), f64::from(options.size) * 1_048_576.0);
            goodput.add(&row, "goodput", bytes * 8.0 / 1e6 / took);
            goodput.add(&row, "offered to the lines", (offered(&sites) - before) as f64 * 8.0 / 1e6 / took);
            let mut timed = |what: &str, node: usize, arguments: &[&str]| -> anyhow::Result<()> {
                let start = Instant::now();
                sites.ask(node, arguments)?;
                times.add(what, &format!("{loss} % loss"), start.elapsed().as_secs_f64() * 1e3);
                Ok(())
            };
            timed("restart point, durable at the standby", 0, &["restart-point", GROUP, "--wait"])?;
            sites.kill(0)?;
            timed("promotion after the primary's death", 1, &["promote", GROUP])?;
        }
    }
    Ok(Results { name: "wan", conditions: Vec::new(), notes: Vec::new(), reports: vec![goodput, times] })
}

/// Writes so many bytes from the start, a few requests in flight.
fn write(sites: &Sites, size: u64) -> anyhow::Result<()> {
    let mut client = sites.client(0)?;
    let mut data = vec![0; CHUNK];
    let mut state = 1u64;
    for offset in (0..size).step_by(CHUNK) {
        for word in data.chunks_exact_mut(8) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        while client.pending_count() >= 8 {
            client.complete()?;
        }
        client.submit(NbdRequest::Write { offset, data: &data, durable: false })?;
    }
    Ok(client.complete_all()?)
}
