//! Automatic promotion: a secondary whose primary has been silent for so long becomes the primary by itself. Off unless an
//! operator wants it, and only where fencing by lease makes sure that the silent one does not serve.
//!
//! It counts as fenced only if this node has granted a lease in the epoch that its records are of: a primary that was promoted
//! since may serve without one. And it is a promotion without force: a node that knows it lacks something stays what it is.

use super::Group;
use crate::{
    command::{CommandError, CommandId, GenerationId, TakeoverStatus},
    output::Event,
    pair::{Role, Takeover},
    units::{Epoch, Monotonic, Now, Order, Position},
};
use alloc::{string::ToString, vec::Vec};

/// The group's own command; nobody waits for its answer.
const OWN: CommandId = CommandId(u64::MAX);
/// A heartbeat says so long that the peer's node lives.
const HEARD_MICROS: u64 = 5_000_000;

/// How long the peer has been silent.
#[derive(Default)]
pub(super) struct Silence {
    /// Since when there is no session and no heartbeat.
    since: Option<Monotonic>,
    /// A promotion was refused in this silence, and that was told.
    told: bool,
}

impl Silence {
    /// Nothing was heard yet.
    pub(super) fn beginning(now: Monotonic) -> Self {
        Self { since: Some(now), told: false }
    }

    /// The peer has greeted.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// The session is over.
    pub(super) fn begin(&mut self, now: Monotonic) {
        self.since.get_or_insert(now);
    }
}

impl Group {
    /// The peer's node was heard on a path that carries no session: it lives.
    pub fn handle_heartbeat(&mut self, now: Now) {
        self.now = now;
        if let Some(since) = &mut self.silence.since {
            *since = now.monotonic;
        }
        self.heard = Some(now.monotonic);
    }

    /// An operator's rule; `None` turns it off.
    pub(super) fn set_takeover(&mut self, takeover: Option<Takeover>) -> Result<(), CommandError> {
        if takeover.is_some() && self.pair.lease_millis == 0 {
            return Err(CommandError::NotFenced);
        }
        self.pair.takeover = takeover;
        self.silence.told = false;
        self.again = true;
        Ok(())
    }

    /// This node has granted a lease: its primary is fenced while it is silent.
    pub(super) fn arm_takeover(&mut self) {
        let epoch = self.epoch();
        if self.pair.fenced_epoch != epoch {
            self.pair.fenced_epoch = epoch;
            self.superblock.wanted = true;
        }
    }

    /// This node's primary serves without a lease.
    pub(super) fn disarm_takeover(&mut self) {
        if self.pair.fenced_epoch != Epoch::default() {
            self.pair.fenced_epoch = Epoch::default();
            self.superblock.wanted = true;
        }
    }

    /// When the peer has been silent for too long.
    pub(super) fn takeover_timeout(&self) -> Option<Monotonic> {
        let since = self.silence.since.filter(|_| !self.silence.told && self.is_armed())?;
        let after = u64::from(self.pair.takeover?.after_millis) * 1000;
        Some(since.after(after).max(self.promised_until()).max(self.heard_until()))
    }

    /// Until when the peer's node counts as alive.
    fn heard_until(&self) -> Monotonic {
        self.heard.map_or(Monotonic(0), |heard| heard.after(HEARD_MICROS))
    }

    /// Refuses to promote this node while the primary's node is heard somewhere.
    pub(super) fn check_heartbeat(&self) -> Result<(), CommandError> {
        if self.peer.greeted || self.now.monotonic >= self.heard_until() {
            return Ok(());
        }
        let ago = self.now.monotonic.since(self.heard.unwrap_or_default());
        Err(CommandError::PrimaryHeard { seconds: ago / 1_000_000 })
    }

    /// All that force would override in a promotion to this state: whoever uses it for one danger should know of the others.
    pub(super) fn check_dangers(&self, order: Order, at: Position) -> Result<(), CommandError> {
        let mut dangers = Vec::new();
        dangers.extend(self.check_promise().err());
        dangers.extend(self.check_heartbeat().err());
        let fork = self.fork_after(order).map(|fork| GenerationId::Fork(fork.info.at.epoch));
        dangers.extend(fork.map(CommandError::ForkInTheWay));
        let seen = self.peer.primary_head;
        if self.stream.copying || seen > self.stream.last {
            dangers.push(CommandError::Behind { have: at, peer: seen.max(self.stream.last) });
        }
        if self.pair.left_behind {
            dangers.push(CommandError::LeftBehind);
        }
        match dangers.len() {
            0 => Ok(()),
            1 => dangers.pop().map_or(Ok(()), Err),
            _ => Err(CommandError::Several(dangers)),
        }
    }

    fn is_armed(&self) -> bool {
        self.pair.role == Role::Secondary
            && self.pair.peer.is_some()
            && self.pair.lease_millis > 0
            && self.pair.fenced_epoch == self.epoch()
            && !self.is_promoting()
    }

    /// Takes over if it is time.
    pub(super) fn take_over(&mut self) {
        if self.takeover_timeout().is_none_or(|at| self.now.monotonic < at) {
            return;
        }
        let Some(takeover) = self.pair.takeover else { return };
        self.silence.told = true;
        match self.promote(OWN, takeover.target(), false) {
            Ok(()) => self.event(Event::TakingOver),
            Err(error) => self.event(Event::TakeoverRefused { reason: error.to_string() }),
        }
    }

    /// As an operator sees it.
    pub(super) fn takeover_status(&self) -> Option<TakeoverStatus> {
        let takeover = self.pair.takeover?;
        Some(TakeoverStatus {
            after_millis: takeover.after_millis,
            to_latest: takeover.to_latest,
            is_armed: self.is_armed(),
        })
    }
}
