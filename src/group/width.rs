//! How many operations of a cycle of destaging are in flight at once.
//!
//! A medium does one thing after the other, or a few at once: what a host asks for waits for what was asked for before. So there is
//! never more in flight than the medium gets done in a moment, by what it was seen to do, and of that as much as the backlog demands.

use super::{Group, batch::KEPT_SIZE_MAX, destage::BACKLOG_SIZE};

const LEAST: usize = 8;
const MOST: usize = 64;
/// The moment.
const MOMENT_MICROS: u64 = 4000;
/// Most are in flight when the backlog is so many times the one that begins a cycle: what waits longer than payloads are kept in
/// memory must be read from the journal before it is written to the pool, which makes two of each operation.
const BACKLOG_FACTOR: u64 = 4;
const _: () = assert!(BACKLOG_SIZE * BACKLOG_FACTOR <= KEPT_SIZE_MAX / 2);
/// Parts of a microsecond.
const PARTS: u64 = 16;

/// How fast the media are.
#[derive(Default)]
pub(super) struct Width {
    /// What an operation takes of their time, smoothed, in parts of a microsecond; next to nothing as long as nothing is known.
    service: u64,
}

impl Width {
    /// An operation ended that took so long, when so many were in flight, itself among them.
    pub(super) fn ended(&mut self, micros: u64, in_flight: usize) {
        let sample = micros * PARTS / in_flight.max(1) as u64;
        self.service = (self.service * 15 + sample) / 16;
    }

    /// How many the media get done in a moment.
    fn in_a_moment(&self) -> usize {
        ((MOMENT_MICROS * PARTS / self.service.max(1)) as usize).clamp(LEAST, MOST)
    }
}

impl Group {
    /// How many operations of a cycle may be in flight now.
    pub(super) fn cycle_width(&self) -> usize {
        if self.is_quiet() || self.hurries() {
            return MOST;
        }
        let (least, more) = (self.backlog_min(), (MOST - LEAST) as u64);
        let above = self.destage.backlog.saturating_sub(least);
        let demanded = LEAST + (above * more / (least * (BACKLOG_FACTOR - 1))).min(more) as usize;
        // Whoever writes will soon wait for the journal, and for nothing else.
        let is_crowded = self.destage.backlog > self.journal.ring_size() / 2;
        if is_crowded { demanded } else { demanded.min(self.destage.width.in_a_moment()) }
    }
}
