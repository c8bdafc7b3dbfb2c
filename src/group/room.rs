//! What becomes of a node that finds no room: in a pool, whose blocks are all used, or in the file system that a pool lies in.
//!
//! In a pool something can be given up for room, once none comes by itself. In a file system that has none that helps nobody: what
//! is written goes to places that have no space either. There is only to wait, and to try again.

use super::Group;
use crate::{output::Event, units::Monotonic};

/// How long what is full is left alone.
const FULL_MICROS: u64 = 500_000;

/// When what was found full is tried again.
pub(super) fn tried_again_at(full_since: Monotonic) -> Monotonic {
    full_since.after(FULL_MICROS)
}

impl Group {
    /// A pool has no block for what is to be applied next.
    pub(super) fn pool_is_full(&mut self) {
        self.destage.is_medium_full = false;
        if self.checkpoint.is_running() {
            // Until it ends nothing need be given up for room.
            self.destage.waits_for_checkpoint = true;
            return;
        }
        self.checkpoint.wanted = true;
        if !self.drop_oldest_generation() {
            self.tell_full();
        }
        self.destage.full_since = Some(self.now.monotonic);
        self.sweep();
    }

    /// The file system of a pool has no space for what is to be applied next.
    pub(super) fn medium_is_full(&mut self) {
        self.tell_full();
        (self.destage.full_since, self.destage.is_medium_full) = (Some(self.now.monotonic), true);
    }

    /// Tells the operator, once until something was applied.
    pub(super) fn tell_full(&mut self) {
        if !core::mem::replace(&mut self.destage.told_full, true) {
            self.event(Event::PoolFull);
        }
    }

    /// Whether room comes by itself, though nothing more is applied.
    pub(super) fn has_room_coming(&self) -> bool {
        let limit = self.journal.tail_limit(self.applied);
        self.needs_sweep() || self.volumes.values().any(|volume| volume.table.blocks.is_coming(limit))
    }

    /// Whether what waits to be applied has found no room, and none comes by itself.
    pub(super) fn is_pool_full(&self) -> bool {
        let is_hopeless = || self.destage.is_medium_full || !self.has_room_coming();
        self.checkpoint.is_delayed() || (self.destage.full_since.is_some() && is_hopeless())
    }
}
