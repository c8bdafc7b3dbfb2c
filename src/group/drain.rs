//! Suspending in good order: the peer gets what was written before the command, and nothing after it.

use super::Group;
use crate::{
    command::{CommandError, CommandId, CommandReply},
    output::Output,
    pair::{Cause, PairState, Role},
    units::Order,
};

/// A suspension that waits for the peer.
#[derive(Clone, Copy)]
pub(super) struct Draining {
    pub(super) command: CommandId,
    /// The last entry that is still sent.
    last: Order,
}

impl Group {
    /// Begins it; `false` if there is nothing to wait for.
    pub(super) fn drain(&mut self, command: CommandId) -> Result<bool, CommandError> {
        self.require_primary_pair()?;
        match self.pair.state {
            PairState::Duplex if self.peer.is_streaming() => {}
            PairState::Suspending => return Err(CommandError::InProgress("suspension")),
            PairState::InitialCopy | PairState::DuplexPending => {
                let hint = "the standby is in the midst of a copy; wait until it has ended, or suspend with --now";
                return Err(CommandError::WrongPairState { state: self.pair.state, hint });
            }
            _ => return Ok(false),
        }
        self.draining = Some(Draining { command, last: self.journal.last() });
        self.set_pair_state(PairState::Suspending);
        // The peer acknowledges what is durable there; here it must be as well.
        self.sync.wanted = true;
        self.again = true;
        Ok(true)
    }

    /// The last entry that may be sent.
    pub(super) fn drain_limit(&self) -> Order {
        self.draining.as_ref().map_or(Order(u64::MAX), |draining| draining.last)
    }

    /// Suspends when the peer has everything, or when something else has suspended the pair.
    pub(super) fn continue_drain(&mut self) {
        let Some(Draining { command, last }) = self.draining else {
            return;
        };
        let peer_has = self.position_of(self.peer.acknowledged()).seq;
        if self.pair.state == PairState::Suspending && peer_has < self.position_of(last).seq {
            return;
        }
        self.draining = None;
        self.again = true;
        if self.pair.role != Role::Primary || self.pair.peer.is_none() {
            let hint = "it was the primary of a pair when the suspension began";
            let result = Err(CommandError::WrongRole { role: self.pair.role, hint });
            return self.outputs.push_back(Output::CommandAnswer { id: command, result });
        }
        self.suspend(Cause::Command);
        let count = self.superblock.request();
        self.answer_when_stored(command, count, CommandReply::Done);
    }

    /// The peer is lost: what it has is what it has.
    pub(super) fn give_up_draining(&mut self) {
        if self.pair.state == PairState::Suspending && self.pair.role == Role::Primary {
            self.suspend(Cause::Command);
        }
    }
}
