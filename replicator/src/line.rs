//! What is known of a link, apart from what waits for it.

use crate::{came::Came, packet::Acknowledgement};

/// What goes over a link counts for so long, in microseconds.
const LOAD_MICROS: f64 = 50_000.0;
/// A link of whose rate more than this share is in use is busy.
const BUSY: f64 = 0.65;
/// Over a busy link a block waits for more for this part of a round trip.
const HOLD_PART: u64 = 8;
/// Timers are not more precise, in microseconds.
const HOLD_MICROS_MIN: u64 = 1_000;
/// The shortest round trip counts for so long.
const SHORTEST_MICROS: u64 = 30_000_000;

/// How much goes over a link.
#[derive(Clone, Copy, Default)]
pub(crate) struct Load {
    /// Bytes, each of which counts for less the longer ago it went.
    bytes: f64,
    at: u64,
}

impl Load {
    /// So many bytes go over it.
    pub fn add(&mut self, now: u64, bytes: usize) {
        (self.bytes, self.at) = (self.left(now) + bytes as f64, now);
    }

    /// Whether most of a rate, in bytes a second, is in use.
    pub fn is_high(&self, now: u64, rate: u64) -> bool {
        self.left(now) > BUSY * LOAD_MICROS * rate as f64 / 1e6
    }

    fn left(&self, now: u64) -> f64 {
        self.bytes * (-(now.saturating_sub(self.at) as f64) / LOAD_MICROS).exp()
    }
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    /// The driver can send.
    pub open: bool,
    /// Something was heard lately; and since when.
    pub alive: bool,
    pub up_at: u64,
    pub heard: u64,
    /// Datagrams that came over the other link since one came over this, and when the first of them did.
    pub overtaken: (u32, u64),
    /// That were enough: what comes next over this link ends it.
    pub is_silent: bool,
    /// When it was heard again after it was silent or dead.
    pub back_at: u64,
    pub sent: u64,
    pub sequence: u32,
    pub came: Came,
    pub echo: u64,
    pub echo_at: u64,
    pub rtt: Option<u64>,
    /// The shortest round trip lately, and when it was measured: datagrams that waited somewhere do not count.
    pub shortest: Option<(u64, u64)>,
    /// What the peer said last of what it received and what was lost, the rate of loss from that, and the same where the first
    /// measurement is only a part of it, for what is better too careful.
    pub told: (u32, u32),
    pub seen_loss: Option<f64>,
    pub loss: f64,
    pub bytes: u64,
    pub load: Load,
    /// What it is thought to carry, in bytes a second, if that is known.
    pub rate: Option<u64>,
}

impl Link {
    /// How long a block waits for more before it goes over this link, in microseconds: not at all while there is room.
    pub fn hold(&self, now: u64) -> u64 {
        let hold = self.rtt.unwrap_or_default() / HOLD_PART;
        if self.is_busy(now) && hold >= HOLD_MICROS_MIN { hold } else { 0 }
    }

    /// Whether most of its rate is in use.
    pub fn is_busy(&self, now: u64) -> bool {
        self.rate.is_some_and(|rate| self.load.is_high(now, rate))
    }

    /// Takes the round trip and the loss from what the peer says over the link.
    pub fn measure(&mut self, now: u64, ack: &Acknowledgement) {
        // What was handed out while the link was dead has waited for it.
        if ack.echo != 0 && ack.echo >= self.up_at && now >= ack.echo.saturating_add(ack.hold.into()) {
            let sample = now - ack.echo - u64::from(ack.hold);
            if self.shortest.is_none_or(|(shortest, at)| sample <= shortest || now > at + SHORTEST_MICROS) {
                self.shortest = Some((sample, now));
            }
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (7 * rtt + sample) / 8));
        }
        let (received, lost) = (ack.received.wrapping_sub(self.told.0), ack.lost.saturating_sub(self.told.1));
        if received > 200 && received < u32::MAX / 2 {
            // The peer may say anything.
            let sample = f64::from(lost) / (f64::from(lost) + f64::from(received));
            let smoothed = |loss: f64| 0.75 * loss + 0.25 * sample;
            (self.loss, self.seen_loss) = (smoothed(self.loss), Some(self.seen_loss.map_or(sample, smoothed)));
            self.told = (ack.received, ack.lost);
        } else if received >= u32::MAX / 2 {
            self.told = (ack.received, ack.lost);
        }
    }
}
