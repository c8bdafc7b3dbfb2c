//! A window like TCP CUBIC's, for a queue that others fill too.
//!
//! Whoever measures the path's rate and does not yield to loss takes all of it from flows that do: each probe for more fills the
//! queue, they back off, and what they leave is the rate from then on. So a loss at a long queue that draining has not made
//! shorter begins a contest: the window is that of RFC 9438, which shares with its like, until the queue is gone. The two modes are
//! those of Copa (Arun and Balakrishnan, NSDI 2018).
//!
//! Random loss must not have such an effect. It comes without regard to the queue: when little was sent, too, and again long
//! before the window has grown. Then the contest is over and loss means nothing for a while. The same goes for rivals that do not
//! back off either, such as BBR's first version.
//!
//! A mark (ECN, RFC 3168) is not random, and needs no long queue: who sets it keeps the queue short. So it begins a contest as well,
//! which lasts until the window has grown far without another mark. Where marks come though little is left of what was sent, and
//! nothing waits, they are not about us, or about nothing: then they mean nothing for a while either.

use crate::rate::{OURS_MIN, PACKET_SIZE};

/// The reduced window is so much of the former one, and grows by so many packets in a second cubed: RFC 9438.
const BETA: f64 = 0.7;
const CUBIC: f64 = 0.4;
/// After a mark, as a queue that marks is short: RFC 8511.
const BETA_MARKED: f64 = 0.85;
const PACKET: f64 = PACKET_SIZE as f64;
/// No window is smaller, in packets.
const LEAST: f64 = 2.0;
/// Who is left with this part of the former window, and meets no queue, has yielded enough to marks.
const YIELDED_PART: f64 = 8.0;
/// A window that has grown so far beyond the former one without loss has no rival.
const OUTGROWN: f64 = 1.3;
/// Round trips that are longer by no more than this, in microseconds, are scheduling; and by this part of the shortest, chance.
const SCATTER: u64 = 5_000;
const LONG_PART: u64 = 8;
/// The shortest round trip counts for so long, in microseconds: others may keep a queue for all of the time.
const SHORTEST_MICROS: u64 = 30_000_000;
/// What is lost within so many round trips after a reduction was sent before it, and within so many more for other reasons.
const ROUNDS_SAME: u64 = 2;
const ROUNDS_OTHER: u64 = 10;
/// How long loss means nothing then, in microseconds.
const DEAF_MICROS: u64 = 10_000_000;

/// Since when the window grows, and what it was before, in packets.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    start: u64,
    most: f64,
    /// What part of it the window is reduced to.
    beta: f64,
    /// There are marks, which tell of more than a queue's length does.
    is_marked: bool,
    /// What the window was before the contest, in packets.
    first: f64,
}

/// See the module. Times in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contest {
    now: u64,
    rtt: u64,
    shortest: Option<(u64, u64)>,
    epoch: Option<Epoch>,
    /// Losses mean nothing, and marks.
    deaf_until: u64,
    blind_until: u64,
}

impl Contest {
    /// Round trips take `rtt` now, smoothed. Whether a contest is over.
    pub(crate) fn acknowledged(&mut self, now: u64, rtt: u64) -> bool {
        (self.now, self.rtt) = (now, rtt.max(1));
        if self.shortest.is_none_or(|(shortest, at)| self.rtt <= shortest || now > at + SHORTEST_MICROS) {
            self.shortest = Some((self.rtt, now));
        }
        let Some(Epoch { start, most, is_marked, .. }) = self.epoch else { return false };
        let is_empty = !is_marked && now > start + ROUNDS_SAME * self.rtt && self.queue() == 0;
        let is_outgrown = self.window().is_some_and(|window| window as f64 > OUTGROWN * most * PACKET);
        if is_empty || is_outgrown {
            self.epoch = None;
        }
        self.epoch.is_none()
    }

    /// Who has no more to send contends for nothing: its window would grow unused, and be used all at once. Whether there was a contest.
    pub(crate) fn end(&mut self) -> bool {
        self.epoch.take().is_some()
    }

    /// Something was lost, not at random as far as is known, while `flying` bytes were on their way.
    pub(crate) fn lost(&mut self, flying: u64) {
        let shortest = self.shortest.map_or(0, |(shortest, _)| shortest);
        // Who sends little fills no queue, and what it has on its way is no window to go on from.
        if flying < OURS_MIN || self.now < self.deaf_until || self.queue() <= shortest / LONG_PART {
            return;
        }
        match self.epoch.map(|epoch| (epoch.is_marked, self.rounds(epoch))) {
            // A reduction that a mark has asked for is no mistake.
            Some((true, ..ROUNDS_OTHER) | (_, ..ROUNDS_SAME)) => {}
            Some((_, ..ROUNDS_OTHER)) => (self.epoch, self.deaf_until) = (None, self.now + DEAF_MICROS),
            _ => self.begin(flying as f64 / PACKET, BETA),
        }
    }

    /// Whether marks mean nothing.
    pub(crate) fn is_blind(&self) -> bool {
        self.now < self.blind_until
    }

    /// Something arrived with a mark on a path that holds so many bytes, as far as is known before a contest. Whether that ends one.
    pub(crate) fn marked(&mut self, path: u64) -> bool {
        if let Some(epoch) = self.epoch.filter(|epoch| self.rounds(*epoch) < ROUNDS_SAME) {
            self.epoch = Some(Epoch { is_marked: true, ..epoch });
            return false;
        }
        let window = self.window().unwrap_or(path) as f64 / PACKET;
        let (first, former) = self.epoch.map_or((window, window), |epoch| (epoch.first, epoch.most));
        if window * YIELDED_PART < first && self.has_room() {
            (self.epoch, self.blind_until) = (None, self.now + DEAF_MICROS);
            return true;
        }
        // Who has less than before makes room for whoever has come: RFC 9438, section 4.7.
        let most = if window < former { window * (1.0 + BETA_MARKED) / 2.0 } else { window };
        self.begin(most, BETA_MARKED);
        false
    }

    fn begin(&mut self, most: f64, beta: f64) {
        let first = self.epoch.map_or(most, |epoch| epoch.first);
        self.epoch = Some(Epoch { start: self.now, most, beta, is_marked: beta == BETA_MARKED, first });
    }

    /// How many round trips ago an epoch began.
    fn rounds(&self, epoch: Epoch) -> u64 {
        (self.now - epoch.start) / self.rtt.max(1)
    }

    /// How much longer than the shortest round trips are, in microseconds.
    fn queue(&self) -> u64 {
        self.shortest.map_or(0, |(shortest, _)| self.rtt.saturating_sub(shortest + SCATTER))
    }

    /// Whether there is no queue.
    pub(crate) fn has_room(&self) -> bool {
        self.queue() <= self.shortest.map_or(0, |(shortest, _)| shortest) / 16
    }

    /// Bytes that may be on their way, while there is a contest.
    pub(crate) fn window(&self) -> Option<u64> {
        let Epoch { start, most, beta, .. } = self.epoch?;
        let elapsed = self.now - start;
        let plateau = (most * (1.0 - beta) / CUBIC).cbrt();
        let cubic = CUBIC * (elapsed as f64 / 1e6 - plateau).powi(3) + most;
        // As fast as Reno's window: so many packets a round.
        let reno = most * beta + 3.0 * (1.0 - beta) / (1.0 + beta) * elapsed as f64 / self.rtt as f64;
        Some((cubic.max(reno).max(LEAST) * PACKET) as u64)
    }
}
