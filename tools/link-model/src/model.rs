//! One direction of a line between two nodes, as a pure model.
//!
//! A packet goes through these stations in order: the cable may be cut, the packet may be too large, the queue in front
//! of the rate may be full, or stand and mark it; then, on the way, it is lost alone or in a burst, changed, doubled, delayed and held back.
//! What is lost on the way has used the rate, as on a real line.
//!
//! Invariants:
//! - The same seed, settings, packets and times give the same history, bit for bit.
//! - Each packet that came in is delivered, on its way, or counted as lost under exactly one cause.
//! - Without reordering, packets are delivered in the order in which they came in.
//! - What waits is bounded: by the queue limit where there is a rate, and by [`BYTES_WAITING_MAX`] always.
//!
//! Call order: any number of [`Line::handle_packet`], then [`Line::poll_delivery`] until it gives nothing, then sleep
//! until [`Line::poll_timeout`]. Times are since any fixed origin and must not go back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codel::{Codel, Ecn};
use crate::random::Random;
use crate::settings::{LineSettings, QueueLimit};

/// So many bytes can be on their way; more are lost as if the queue were full.
pub const BYTES_WAITING_MAX: u64 = 256 << 20;

/// What happened to the packets of one direction since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCounters {
    /// Came in.
    pub taken: u64,
    /// Bytes that came in.
    pub taken_bytes: u64,
    /// Went out, each copy counted.
    pub delivered: u64,
    /// Bytes that went out.
    pub delivered_bytes: u64,
    /// Lost by itself.
    pub lost_random: u64,
    /// Lost in a burst.
    pub lost_burst: u64,
    /// Lost because too much was waiting.
    pub lost_queue: u64,
    /// Marked because too much was waiting.
    pub marked: u64,
    /// Lost because larger than the line's limit.
    pub lost_size: u64,
    /// Lost because the line was cut.
    pub lost_cut: u64,
    /// Extra copies made.
    pub duplicated: u64,
    /// Packets with changed bytes, copies not counted again.
    pub corrupted: u64,
    /// Went out after a packet that had come in later.
    pub reordered: u64,
}

impl LineCounters {
    /// All that was lost, whatever the cause.
    pub fn lost(&self) -> u64 {
        self.lost_random + self.lost_burst + self.lost_queue + self.lost_size + self.lost_cut
    }
}

/// What a line carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// What its header says of congestion.
    pub ecn: Ecn,
    /// All that counts for the rate.
    pub bytes: Vec<u8>,
}

/// One whose sender takes no part in explicit congestion notification.
impl From<Vec<u8>> for Packet {
    fn from(bytes: Vec<u8>) -> Self {
        Self { ecn: Ecn::Absent, bytes }
    }
}

/// One direction of a line.
#[derive(Debug)]
pub struct Line {
    settings: LineSettings,
    random: Random,
    counters: LineCounters,
    waiting: BinaryHeap<Reverse<Waiting>>,
    waiting_bytes: u64,
    /// When the rate has sent all that it was given.
    rate_free_at: Duration,
    /// When the last packet arrives that was not held back.
    ordered_until: Duration,
    codel: Codel,
    burst_bad: bool,
    copies_made: u64,
    /// The highest packet number that went out.
    delivered_number: u64,
}

impl Line {
    /// A line that is good at the start; `seed` decides all chances.
    pub fn new(settings: LineSettings, seed: u64) -> Self {
        Self {
            settings,
            random: Random::new(seed),
            counters: LineCounters::default(),
            waiting: BinaryHeap::new(),
            waiting_bytes: 0,
            rate_free_at: Duration::ZERO,
            ordered_until: Duration::ZERO,
            codel: Codel::default(),
            burst_bad: false,
            copies_made: 0,
            delivered_number: 0,
        }
    }

    /// What the line does now.
    pub fn settings(&self) -> &LineSettings {
        &self.settings
    }

    /// Changes what the line does from now on. Packets on their way keep their time of arrival, except that a cut
    /// loses them.
    pub fn change_settings(&mut self, settings: LineSettings) {
        self.settings = settings;
        if self.settings.rate_bits.is_none() {
            self.rate_free_at = Duration::ZERO;
        }
        if self.settings.burst.is_none() {
            self.burst_bad = false;
        }
        if self.settings.codel.is_none() {
            self.codel = Codel::default();
        }
        if self.settings.cut {
            let originals = self.waiting.drain().filter(|Reverse(one)| !one.is_copy);
            self.counters.lost_cut += originals.count() as u64;
            self.waiting_bytes = 0;
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> LineCounters {
        self.counters
    }

    /// How many packets are on their way, copies included.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// A packet comes in at `now`.
    pub fn handle_packet(&mut self, now: Duration, packet: impl Into<Packet>) {
        let Packet { mut ecn, bytes } = packet.into();
        let size = bytes.len() as u64;
        self.counters.taken += 1;
        self.counters.taken_bytes += size;
        if self.settings.cut {
            self.counters.lost_cut += 1;
            return;
        }
        if self.settings.packet_bytes_max.is_some_and(|limit| size > u64::from(limit)) {
            self.counters.lost_size += 1;
            return;
        }
        let Some(sent_at) = self.pass_rate(now, size, &mut ecn) else {
            self.counters.lost_queue += 1;
            return;
        };
        // Both kinds of loss are drawn each time, so that changing one does not shift the other's history.
        let lost_in_burst = self.draw_burst();
        let lost_alone = self.settings.loss.happens(&mut self.random);
        if lost_in_burst {
            self.counters.lost_burst += 1;
        } else if lost_alone {
            self.counters.lost_random += 1;
        } else {
            self.send_on_the_way(sent_at, Packet { ecn, bytes });
        }
    }

    /// The next packet whose time has come, if any.
    pub fn poll_delivery(&mut self, now: Duration) -> Option<Packet> {
        if self.poll_timeout()? > now {
            return None;
        }
        let Reverse(one) = self.waiting.pop()?;
        let size = one.packet.bytes.len() as u64;
        self.waiting_bytes -= size;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += size;
        if one.number > self.delivered_number {
            self.delivered_number = one.number;
        } else if one.number < self.delivered_number && !one.is_copy {
            self.counters.reordered += 1;
        }
        Some(one.packet)
    }

    /// When the next packet is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.waiting.peek().map(|Reverse(one)| one.due_at)
    }

    /// When a packet of `size` bytes has left the rate's queue, which may mark it; none when it finds no room, or is told by its loss that the
    /// queue stands.
    fn pass_rate(&mut self, now: Duration, size: u64, ecn: &mut Ecn) -> Option<Duration> {
        if self.waiting_bytes + size > BYTES_WAITING_MAX {
            return None;
        }
        let Some(rate_bits) = self.settings.rate_bits else {
            return Some(now);
        };
        let backlog = self.rate_free_at.saturating_sub(now);
        let room = match self.settings.queue {
            QueueLimit::Time(limit) => backlog <= limit,
            QueueLimit::Bytes(limit) => {
                let queued = backlog.as_nanos() * u128::from(rate_bits) / 8_000_000_000;
                // An idle line takes one packet, however small its queue.
                backlog.is_zero() || queued + u128::from(size) <= u128::from(limit)
            }
        };
        if !room {
            return None;
        }
        let nanoseconds = u128::from(size) * 8_000_000_000 / u128::from(rate_bits.max(1));
        let sending = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        // Behind one packet like it nothing stands.
        let is_told = |target: Duration| self.codel.tells(now + backlog, backlog, target.max(sending));
        if self.settings.codel.is_some_and(is_told) {
            if *ecn == Ecn::Absent {
                return None;
            }
            *ecn = Ecn::Experienced;
            self.counters.marked += 1;
        }
        self.rate_free_at = self.rate_free_at.max(now).saturating_add(sending);
        Some(self.rate_free_at)
    }

    fn draw_burst(&mut self) -> bool {
        let Some(burst) = self.settings.burst else {
            return false;
        };
        let change = if self.burst_bad { burst.end } else { burst.begin };
        if change.happens(&mut self.random) {
            self.burst_bad = !self.burst_bad;
        }
        self.burst_bad && burst.loss.happens(&mut self.random)
    }

    fn send_on_the_way(&mut self, sent_at: Duration, mut packet: Packet) {
        if self.settings.corrupt.happens(&mut self.random) && !packet.bytes.is_empty() {
            self.counters.corrupted += 1;
            self.corrupt(&mut packet.bytes);
        }
        // The number of a packet is its place in the order of coming in.
        let number = self.counters.taken;
        if self.settings.duplicate.happens(&mut self.random) {
            self.counters.duplicated += 1;
            let due_at = self.draw_arrival(sent_at);
            self.wait(due_at, number, true, packet.clone());
        }
        let due_at = self.draw_arrival(sent_at);
        self.wait(due_at, number, false, packet);
    }

    fn draw_arrival(&mut self, sent_at: Duration) -> Duration {
        let jitter = u64::try_from(self.settings.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.below(jitter.saturating_add(1)));
        let due_at = sent_at.saturating_add(self.settings.delay).saturating_add(jitter);
        if self.settings.reorder.happens(&mut self.random) {
            return due_at.saturating_add(self.settings.reorder_by);
        }
        self.ordered_until = self.ordered_until.max(due_at);
        self.ordered_until
    }

    fn wait(&mut self, due_at: Duration, number: u64, is_copy: bool, packet: Packet) {
        self.copies_made += 1;
        self.waiting_bytes += packet.bytes.len() as u64;
        self.waiting.push(Reverse(Waiting { due_at, order: self.copies_made, number, is_copy, packet }));
    }

    /// Changes one to three bytes. Two changes of one byte may undo each other, so the first place is changed only once
    /// and the packet is different for certain.
    fn corrupt(&mut self, bytes: &mut [u8]) {
        let size = bytes.len() as u64;
        let first = self.random.below(size);
        let changes = 1 + self.random.below(3);
        for change in 0..changes {
            let place = if change == 0 { first } else { self.random.below(size) };
            let flip = 1 + self.random.below(255) as u8;
            if change > 0 && place == first {
                continue;
            }
            if let Some(byte) = bytes.get_mut(place as usize) {
                *byte ^= flip;
            }
        }
    }
}

/// A packet on its way. The derived order is the order of delivery: `order` is unique, so nothing after it counts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due_at: Duration,
    order: u64,
    number: u64,
    is_copy: bool,
    packet: Packet,
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
