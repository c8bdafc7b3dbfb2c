//! Pacing: while a copy is under way and the line is slower than the host, writes wait a little, so that the copy comes to its end
//! before the journal is full and the copy would begin again.
//!
//! No write waits longer than [`PACE_MICROS`] for this. A host that has so many writes in flight that even so it is faster than the
//! line fills the journal in the end, and the pair is suspended: service comes first.

use super::Group;
use crate::{
    request::{Operation, Request},
    units::Monotonic,
};

/// How long a write waits at most.
const PACE_MICROS: u64 = 100_000;

/// A request that waits, and since when.
pub(super) struct Held {
    pub(super) request: Request,
    pub(super) since: Monotonic,
}

impl Group {
    /// Whether writes are paced now.
    fn paces(&self) -> bool {
        self.copy.is_under_way()
            && self.peer.acknowledged() < self.applied_durable()
            && self.journal.live_size() > self.journal.ring_size() / 2
    }

    /// Whether a request has to wait for the line.
    pub(super) fn is_paced(&self, request: &Request, since: Monotonic) -> bool {
        let reads = matches!(request.operation, Operation::Read { .. } | Operation::Extents { .. } | Operation::Flush);
        !reads && self.now.monotonic < since.after(PACE_MICROS) && self.paces()
    }

    /// When the first request has waited long enough.
    pub(super) fn pace_timeout(&self) -> Option<Monotonic> {
        // Who has waited so long is held for another reason.
        let ends = self.held.iter().map(|held| held.since.after(PACE_MICROS)).filter(|end| *end > self.now.monotonic);
        ends.min().filter(|_| self.paces())
    }
}
