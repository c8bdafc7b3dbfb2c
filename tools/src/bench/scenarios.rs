//! The lines that are emulated: between them they have what real ones have, one trouble at a time, then together.

use crate::emulator::LineSettings;
use anyhow::{Context, anyhow};
use std::time::Duration;

/// What the two links between the nodes are like.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// As the command line has it.
    pub id: String,
    /// As the tables have it.
    pub name: String,
    /// The links; TCP gets the first one.
    pub links: [LineSettings; 2],
    /// Is the first link cut in the midst of each measurement, and healed?
    pub is_cut: bool,
    /// Is it measured also when there is little time?
    pub is_quick: bool,
    /// Are qemu's mirror, and a TCP flow beside us, measured over its first link?
    pub with_others: bool,
}

/// Each line: id, name, one link or both, each as `NAME VALUE, …` of the link emulator's options.
const LINES: [(&str, &str, &[&str]); 18] = [
    ("near", "1 ms", &["delay 500us, rate 100mbit"]),
    ("plain", "20 ms", &["delay 10ms, rate 100mbit"]),
    ("loss-1", "20 ms, 1 % loss", &["delay 10ms, rate 100mbit, loss 1%"]),
    ("loss-5", "20 ms, 5 % loss", &["delay 10ms, rate 100mbit, loss 5%"]),
    ("loss-10", "20 ms, 10 % loss", &["delay 10ms, rate 100mbit, loss 10%"]),
    ("burst-1", "20 ms, 1 % loss in bursts of 8", &["delay 10ms, rate 100mbit, burst 1%:8"]),
    ("burst-5", "20 ms, 5 % loss in bursts of 8", &["delay 10ms, rate 100mbit, burst 5%:8"]),
    ("burst-10", "20 ms, 10 % loss in bursts of 8", &["delay 10ms, rate 100mbit, burst 10%:8"]),
    ("far", "100 ms", &["delay 50ms, rate 100mbit"]),
    ("far-loss-1", "100 ms, 1 % loss", &["delay 50ms, rate 100mbit, loss 1%"]),
    ("far-burst-5", "100 ms, 5 % loss in bursts of 8", &["delay 50ms, rate 100mbit, burst 5%:8"]),
    ("satellite", "300 ms, 1 % loss", &["delay 150ms, rate 100mbit, loss 1%"]),
    ("slow", "20 ms, 1 % loss, 10 Mbit/s", &["delay 10ms, rate 10mbit, loss 1%"]),
    ("fast", "20 ms, 1 Gbit/s", &["delay 10ms, rate 1gbit"]),
    ("fast-loss-1", "20 ms, 1 % loss, 1 Gbit/s", &["delay 10ms, rate 1gbit, loss 1%"]),
    ("marks", "20 ms, a queue that marks (ECN)", &["delay 10ms, rate 100mbit, queue 500ms, codel 5ms"]),
    (
        "unequal",
        "unequal: 20 ms, 100 Mbit/s; 80 ms, 5 % loss, 20 Mbit/s",
        &["delay 10ms, rate 100mbit", "delay 40ms, rate 20mbit, loss 5%"],
    ),
    ("cut", "20 ms, 1 % loss, link one cut for a third of the time", &["delay 10ms, rate 100mbit, loss 1%"]),
];
const QUICK: [&str; 4] = ["loss-1", "far-burst-5", "unequal", "cut"];
/// One thing that matters to a competitor at a time.
const WITH_OTHERS: [&str; 5] = ["plain", "loss-1", "far", "slow", "marks"];

/// All of them; links have 100 Mbit/s each where the name says nothing else.
///
/// # Errors
/// Never, but for a fault in the list.
pub fn all() -> anyhow::Result<Vec<Scenario>> {
    let scenario = |(id, name, links): &(&str, &str, &[&str])| -> anyhow::Result<Scenario> {
        let mut scenario = custom(links)?;
        (scenario.id, scenario.name) = ((*id).to_owned(), (*name).to_owned());
        (scenario.is_cut, scenario.is_quick) = (*id == "cut", QUICK.contains(id));
        scenario.with_others = WITH_OTHERS.contains(id);
        Ok(scenario)
    };
    LINES.iter().map(scenario).collect()
}

/// The ids and names, for the command line.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    LINES.iter().map(|(id, name, _)| (*id, *name))
}

/// One from what the user wrote: one link for both, or each.
///
/// # Errors
/// When a setting cannot be read, or there are none or more than two links.
pub fn custom(links: &[impl AsRef<str>]) -> anyhow::Result<Scenario> {
    let links: Vec<&str> = links.iter().map(AsRef::as_ref).collect();
    let (first, second) = match links[..] {
        [both] => (both, both),
        [first, second] => (first, second),
        _ => return Err(anyhow!("There are two links: write --line once for both, or twice")),
    };
    let name = if first == second { first.to_owned() } else { format!("{first}; {second}") };
    let links = [line(first)?, line(second)?];
    Ok(Scenario { id: "line".to_owned(), name, links, is_cut: false, is_quick: true, with_others: true })
}

fn line(text: &str) -> anyhow::Result<LineSettings> {
    let mut line = LineSettings::default();
    // Routers of such lines hold about so much; also what TCP is used to.
    line.set("queue", "100ms")?;
    for part in text.split(',') {
        let (name, value) = part.trim().split_once(' ').with_context(|| {
            format!("'{part}' is no setting of a line; write for example --line 'delay 10ms, rate 100mbit, loss 1%'")
        })?;
        line.set(name, value.trim()).with_context(|| format!("Cannot use --line '{text}'"))?;
    }
    if line.rate_bits.is_none() {
        return Err(anyhow!("--line '{text}' has no rate: add one, such as 'rate 100mbit', to measure against"));
    }
    Ok(line)
}

impl Scenario {
    /// Of both links together, in bits a second.
    pub fn rate_bits(&self) -> f64 {
        self.links.iter().filter_map(|line| line.rate_bits).map(|bits| bits as f64).sum()
    }

    /// Of the rate of both links, that of those which are there all the time.
    pub fn lasting_share(&self) -> f64 {
        let lasting = self.links.iter().skip(usize::from(self.is_cut)).filter_map(|line| line.rate_bits);
        lasting.map(|bits| bits as f64).sum::<f64>() / self.rate_bits()
    }

    /// Of the nearer link.
    pub fn round_trip(&self) -> Duration {
        self.links.iter().map(|line| line.delay * 2).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_read_and_told_apart() {
        let all = all().expect("the list");
        for (index, one) in all.iter().enumerate() {
            assert!(one.rate_bits() > 0.0 && !one.round_trip().is_zero(), "{}", one.id);
            assert!(all.iter().skip(index + 1).all(|other| other.id != one.id && other.name != one.name), "{}", one.id);
        }
        let count = |wanted: fn(&Scenario) -> bool| all.iter().filter(|one| wanted(one)).count();
        assert_eq!(count(|one| one.is_quick), QUICK.len());
        assert_eq!(count(|one| one.with_others), WITH_OTHERS.len());
        // Something of each kind is measured also when there is little time.
        assert_eq!([count(|one| one.is_quick && one.with_others), count(|one| one.is_quick && one.is_cut)], [1, 1]);
    }

    #[test]
    fn what_is_cut_does_not_last() {
        let all = all().expect("the list");
        let share = |id| all.iter().find(|one| one.id == id).map(Scenario::lasting_share);
        assert_eq!((share("cut"), share("unequal")), (Some(0.5), Some(1.0)));
    }

    #[test]
    fn a_line_of_the_users_own_is_read_or_refused_with_words() {
        let scenario = custom(&["delay 5ms, rate 10mbit", "delay 1ms,rate 20mbit, loss 2%"]).expect("a scenario");
        assert_eq!((scenario.rate_bits(), scenario.round_trip()), (30e6, Duration::from_millis(2)));
        for (text, words) in [
            ("delay", "'delay' is no setting"),
            ("delay 1ms", "has no rate"),
            ("delay 1ms, rate lots", "Cannot use --line 'delay 1ms, rate lots'"),
        ] {
            let error = custom(&[text]).expect_err(text);
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
        assert!(custom(&[""; 3]).is_err());
    }
}
