//! What a long or lossy line costs writes that do not wait for it.
//!
//! A burst of writes at level local, far more than the lines carry: the journal takes it in. The lines have the same rate
//! each time, so that the stream's own share of this machine is the same; what differs is how far and how lossy they are.

use super::{
    lines::site_options,
    load,
    report::{Better, Report},
    scenarios::{self, Scenario},
    wan_options::WanOptions,
};
use crate::sites::{GROUP, Sites};
use anyhow::{Context, bail};
use std::time::Duration;

/// Each line: name, and settings.
const LINES: [(&str, &str); 6] = [
    ("0 ms", "delay 0ms, rate 100mbit"),
    ("20 ms", "delay 10ms, rate 100mbit"),
    ("100 ms", "delay 50ms, rate 100mbit"),
    ("200 ms", "delay 100ms, rate 100mbit"),
    ("20 ms, 1 % loss", "delay 10ms, rate 100mbit, loss 1%"),
    ("200 ms, 1 % loss", "delay 100ms, rate 100mbit, loss 1%"),
];
/// Under way all the time.
const DEPTH: usize = 32;
/// Until then the stream knows the longest of the lines; the same for all, as a disk changes while it is used.
const WARM_UP: Duration = Duration::from_secs(2);
/// A longer burst would fill the journal, and the pair would be suspended.
const TOOK_MAX: Duration = Duration::from_secs(10);
const ROW: &str = "4 KiB random write, QD 32";

/// Nothing yet.
pub fn report() -> Report {
    Report::new("Requests at level local, over two lines of 100 Mbit/s", "requests a second", Better::Higher)
}

/// The same as multiples of what there is without a delay.
pub fn relative(report: &Report) -> Report {
    report.relative_to(LINES[0].0)
}

/// Measures each line once.
///
/// # Errors
/// When something of ours fails, or a burst was more than the journal could take in.
pub fn measure(options: &WanOptions, round: u32, report: &mut Report) -> anyhow::Result<()> {
    for (name, settings) in in_turn(round) {
        let scenario = scenarios::custom(&[settings])?;
        let rate = one(options, &scenario, round).with_context(|| format!("Writes over a line of {name}"))?;
        report.add(ROW, name, rate);
    }
    report.order_columns(&LINES.map(|(name, _)| name));
    Ok(())
}

/// Whoever follows a neighbour that leaves work behind must not be the same in each round.
fn in_turn(round: u32) -> impl Iterator<Item = (&'static str, &'static str)> {
    let first = round as usize % LINES.len();
    LINES.into_iter().cycle().skip(first).take(LINES.len())
}

fn one(options: &WanOptions, scenario: &Scenario, round: u32) -> anyhow::Result<f64> {
    let site_options = site_options(options, scenario, round);
    let sites = Sites::paired(&site_options)?;
    sites.wait_prepared(&[0, 1])?;
    sites.ask(0, &["level", GROUP, "local"])?;
    // What the one before left behind would be written, and given back, at this one's cost.
    nix::unistd::sync();
    let rate = load::write_rate(&mut sites.client(0)?, DEPTH, WARM_UP, options.took.min(TOOK_MAX))?;
    let status = sites.ask(0, &["status", GROUP])?;
    if status["pair"]["state"] != "duplex" {
        bail!("The pair did not last: {}", status["pair"]);
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_the_same_rate_and_its_turn_in_each_place() {
        for (name, settings) in LINES {
            assert_eq!(scenarios::custom(&[settings]).expect(name).rate_bits(), 200e6);
        }
        let firsts: Vec<_> = (0..LINES.len() as u32).filter_map(|round| in_turn(round).next()).collect();
        assert_eq!(firsts, LINES);
        assert_eq!(in_turn(3).count(), LINES.len());
    }
}
