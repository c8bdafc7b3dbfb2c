//! What one direction of an emulated line does to packets, and how a person writes it.
//!
//! The command line, the control commands and the tests all read values by [`LineSettings::set`], so that `--loss 1%`
//! at the start and `set loss 1%` later mean the same.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::random::Random;

/// How often something happens, in millionths: whole numbers, so that a seed gives the same history everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Probability(u32);

impl Probability {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Each time.
    pub const ALWAYS: Self = Self(1_000_000);

    /// From millionths; more than a million means always.
    pub fn from_millionths(millionths: u32) -> Self {
        Self(millionths.min(1_000_000))
    }

    /// From whole percent; more than a hundred means always.
    pub fn from_percent(percent: u32) -> Self {
        Self::from_millionths(percent.saturating_mul(10_000))
    }

    /// In millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Draws once. Draws nothing for "never" and "always", so that a setting that is off does not shift the stream.
    pub fn happens(self, random: &mut Random) -> bool {
        match self {
            Self::NEVER => false,
            Self::ALWAYS => true,
            Self(millionths) => random.below(1_000_000) < u64::from(millionths),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 10_000.0)
    }
}

impl FromStr for Probability {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let (number, unit) = match text.strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        let refused = || SettingError::Probability { value: text.to_owned() };
        let share = number.parse::<f64>().map_err(|_| refused())? / unit;
        if !(0.0..=1.0).contains(&share) {
            return Err(refused());
        }
        Ok(Self::from_millionths((share * 1_000_000.0).round() as u32))
    }
}

/// Loss in bursts, after Gilbert and Elliott: the line is good or bad, and changes over packet by packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BurstLoss {
    /// A good line turns bad, per packet.
    pub begin: Probability,
    /// A bad line turns good, per packet.
    pub end: Probability,
    /// A packet is lost while the line is bad.
    pub loss: Probability,
}

impl BurstLoss {
    /// Bursts that lose `share` of all packets, `length_packets` in a row on average (at least 1).
    ///
    /// While the line is bad every packet is lost.
    pub fn averaging(share: Probability, length_packets: u32) -> Self {
        let length = f64::from(length_packets.max(1));
        let bad = f64::from(share.millionths()) / 1_000_000.0;
        // In the long run bad / good = begin / end, and a burst lasts 1 / end packets.
        let begin = if bad < 1.0 { bad / (length * (1.0 - bad)) } else { 1.0 };
        Self {
            begin: Probability::from_millionths((begin * 1_000_000.0).round() as u32),
            end: Probability::from_millionths((1_000_000.0 / length).round() as u32),
            loss: Probability::ALWAYS,
        }
    }
}

/// How much may wait in front of a line that has a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueLimit {
    /// At most so many bytes.
    Bytes(u64),
    /// At most what the line carries in this time.
    Time(Duration),
}

/// What one direction of a line does to packets. The default does nothing at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineSettings {
    /// How long each packet is on its way.
    pub delay: Duration,
    /// Up to so much more, evenly spread. Jitter alone never changes the order.
    pub jitter: Duration,
    /// Bits a second; none means no limit and no queue.
    pub rate_bits: Option<u64>,
    /// What may wait for the rate; what comes on top is lost.
    pub queue: QueueLimit,
    /// What waits for the rate for longer, all the time, is marked now and then, or lost if its sender takes no part in explicit congestion
    /// notification; none means that only a full queue loses.
    pub codel: Option<Duration>,
    /// Each packet by itself is lost.
    pub loss: Probability,
    /// Packets are lost in bursts.
    pub burst: Option<BurstLoss>,
    /// A packet is held back by `reorder_by`, so that later ones overtake it.
    pub reorder: Probability,
    /// How long a reordered packet is held back.
    pub reorder_by: Duration,
    /// A packet arrives twice.
    pub duplicate: Probability,
    /// One to three bytes of a packet are changed.
    pub corrupt: Probability,
    /// A larger packet is lost, in bytes of UDP payload; none means no limit.
    pub packet_bytes_max: Option<u32>,
    /// Nothing comes through, and what was on its way is lost.
    pub cut: bool,
}

impl Default for LineSettings {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate_bits: None,
            queue: QueueLimit::Time(Duration::from_millis(50)),
            codel: None,
            loss: Probability::NEVER,
            burst: None,
            reorder: Probability::NEVER,
            reorder_by: Duration::from_millis(5),
            duplicate: Probability::NEVER,
            corrupt: Probability::NEVER,
            packet_bytes_max: None,
            cut: false,
        }
    }
}

impl LineSettings {
    /// Sets one value by name, as a person writes it: `delay 10ms`, `rate 100mbit`, `queue 64kb`, `burst 1%:8`.
    ///
    /// `none` takes a limit away. On an error nothing has changed.
    ///
    /// # Errors
    /// When there is no such setting, or the value cannot be read.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        match name {
            "delay" => self.delay = duration(value)?,
            "jitter" => self.jitter = duration(value)?,
            "rate" => self.rate_bits = unless_none(value, rate)?,
            "queue" => self.queue = queue(value)?,
            "codel" => self.codel = unless_none(value, duration)?,
            "loss" => self.loss = value.parse()?,
            "burst" => self.burst = unless_none(value, burst)?,
            "reorder" => self.reorder = value.parse()?,
            "reorder-by" => self.reorder_by = duration(value)?,
            "duplicate" => self.duplicate = value.parse()?,
            "corrupt" => self.corrupt = value.parse()?,
            "mtu" => self.packet_bytes_max = unless_none(value, packet_bytes)?,
            _ => {
                return Err(SettingError::Name { name: name.to_owned() });
            }
        }
        Ok(())
    }
}

/// A setting that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingError {
    /// There is no setting of this name.
    #[error(
        "There is no setting '{name}'; there are delay, jitter, rate, queue, codel, loss, burst, reorder, \
         reorder-by, duplicate, corrupt and mtu"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// Not a probability.
    #[error("'{value}' is not a probability; write 1% or 0.01")]
    Probability {
        /// What was given.
        value: String,
    },
    /// Not a time.
    #[error("'{value}' is not a time; write 10ms, 250us or 1.5s")]
    Duration {
        /// What was given.
        value: String,
    },
    /// Not a rate.
    #[error("'{value}' is not a rate; write 100mbit, 64kbit or 1gbit, or none")]
    Rate {
        /// What was given.
        value: String,
    },
    /// Not a queue limit.
    #[error("'{value}' is not a queue limit; write 50ms, or 64kb for bytes")]
    Queue {
        /// What was given.
        value: String,
    },
    /// Not a description of bursts.
    #[error("'{value}' does not describe bursts; write 1%:8 for 1% of all packets, 8 in a row, or none")]
    Burst {
        /// What was given.
        value: String,
    },
    /// Not a packet size.
    #[error("'{value}' is not a packet size; write bytes from 1 to 65535, or none")]
    PacketBytes {
        /// What was given.
        value: String,
    },
}

fn unless_none<T>(value: &str, read: impl Fn(&str) -> Result<T, SettingError>) -> Result<Option<T>, SettingError> {
    if value == "none" { Ok(None) } else { read(value).map(Some) }
}

/// Splits `1.5s` into 1.5 and `s`. Nothing below zero and nothing endless gets through.
fn number_and_unit(value: &str) -> Option<(f64, &str)> {
    let unit_at = value.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(value.len());
    let (number, unit) = value.split_at(unit_at);
    let number = number.parse::<f64>().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number, unit))
}

fn duration(value: &str) -> Result<Duration, SettingError> {
    let refused = || SettingError::Duration { value: value.to_owned() };
    let (number, unit) = number_and_unit(value).ok_or_else(refused)?;
    let seconds = match unit {
        "us" => number / 1_000_000.0,
        "ms" => number / 1_000.0,
        "s" => number,
        "" if number == 0.0 => 0.0,
        _ => return Err(refused()),
    };
    // An hour is far beyond any line; it keeps all sums of times away from overflow.
    if seconds > 3_600.0 {
        return Err(refused());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn rate(value: &str) -> Result<u64, SettingError> {
    let refused = || SettingError::Rate { value: value.to_owned() };
    let (number, unit) = number_and_unit(value).ok_or_else(refused)?;
    let factor = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(refused()),
    };
    let bits = number * factor;
    if !(1.0..=1e13).contains(&bits) {
        return Err(refused());
    }
    Ok(bits as u64)
}

fn queue(value: &str) -> Result<QueueLimit, SettingError> {
    if let Ok(time) = duration(value) {
        return Ok(QueueLimit::Time(time));
    }
    let refused = || SettingError::Queue { value: value.to_owned() };
    let (number, unit) = number_and_unit(value).ok_or_else(refused)?;
    let factor = match unit {
        "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        _ => return Err(refused()),
    };
    Ok(QueueLimit::Bytes((number * factor) as u64))
}

fn burst(value: &str) -> Result<BurstLoss, SettingError> {
    let refused = || SettingError::Burst { value: value.to_owned() };
    let (share, length) = value.split_once(':').ok_or_else(refused)?;
    let share = share.parse().map_err(|_| refused())?;
    match length.parse::<u32>() {
        Ok(length @ 1..=1_000_000) => Ok(BurstLoss::averaging(share, length)),
        _ => Err(refused()),
    }
}

fn packet_bytes(value: &str) -> Result<u32, SettingError> {
    match value.parse::<u32>() {
        Ok(bytes @ 1..=65_535) => Ok(bytes),
        _ => Err(SettingError::PacketBytes { value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_a_person_writes_them() {
        let mut settings = LineSettings::default();
        for (name, value) in [
            ("delay", "10ms"),
            ("jitter", "250us"),
            ("rate", "100mbit"),
            ("queue", "64kb"),
            ("codel", "5ms"),
            ("loss", "1%"),
            ("burst", "1%:8"),
            ("reorder", "0.02"),
            ("reorder-by", "1.5s"),
            ("duplicate", "0.5%"),
            ("corrupt", "0"),
            ("mtu", "1400"),
        ] {
            settings.set(name, value).expect(name);
        }
        assert_eq!(settings.delay, Duration::from_millis(10));
        assert_eq!(settings.jitter, Duration::from_micros(250));
        assert_eq!(settings.rate_bits, Some(100_000_000));
        assert_eq!(settings.queue, QueueLimit::Bytes(64_000));
        assert_eq!(settings.codel, Some(Duration::from_millis(5)));
        assert_eq!(settings.loss, Probability::from_percent(1));
        assert_eq!(settings.burst, Some(BurstLoss::averaging(Probability::from_percent(1), 8)));
        assert_eq!(settings.reorder, Probability::from_percent(2));
        assert_eq!(settings.reorder_by, Duration::from_millis(1_500));
        assert_eq!(settings.duplicate, Probability::from_millionths(5_000));
        assert_eq!(settings.packet_bytes_max, Some(1_400));
        settings.set("rate", "none").expect("rate");
        settings.set("queue", "20ms").expect("queue");
        assert_eq!(settings.rate_bits, None);
        assert_eq!(settings.queue, QueueLimit::Time(Duration::from_millis(20)));
    }

    #[test]
    fn values_that_mean_nothing_are_refused_and_change_nothing() {
        let mut settings = LineSettings::default();
        for (name, value) in [
            ("delay", "10"),
            ("delay", "-1ms"),
            ("delay", "2000000s"),
            ("delay", "NaNs"),
            ("delay", "infs"),
            ("rate", "0mbit"),
            ("rate", "100"),
            ("queue", "many"),
            ("codel", "1%"),
            ("loss", "101%"),
            ("loss", "-0.1"),
            ("burst", "1%"),
            ("burst", "1%:0"),
            ("mtu", "0"),
            ("mtu", "70000"),
            ("colour", "blue"),
        ] {
            assert!(settings.set(name, value).is_err(), "{name} {value}");
        }
        assert_eq!(settings, LineSettings::default());
        assert_eq!(
            settings.set("loss", "often").map_err(|error| error.to_string()),
            Err("'often' is not a probability; write 1% or 0.01".to_owned())
        );
    }
}
