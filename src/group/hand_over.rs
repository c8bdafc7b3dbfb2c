//! A primary steps down in good order: writes wait, the peer gets everything, then this node is a secondary. The shell then asks
//! the peer to be the primary.

use super::{Group, greeting::Confirmation};
use crate::{
    command::{CommandError, CommandId, CommandReply},
    output::{Event, Output},
    pair::{PairState, Role},
    request::{Operation, Request, RequestError},
    testing::{Plant, planted},
    units::Position,
};

impl Group {
    /// Begins it; answered when this node is durably a secondary.
    pub(super) fn hand_over(&mut self, id: CommandId) -> Result<(), CommandError> {
        let hint = "the peer must be connected and have everything but the newest records; wait for that, or demote with \
                    --discard-fork, which gives up what only this node has";
        self.require_peer_follows(hint)?;
        if self.handing_over.is_some() {
            return Err(CommandError::InProgress("hand-over"));
        }
        self.handing_over = Some(id);
        self.again = true;
        Ok(())
    }

    pub(super) fn require_peer_follows(&self, hint: &'static str) -> Result<(), CommandError> {
        self.require_primary_pair()?;
        let state = self.pair.state;
        if self.peer_follows() { Ok(()) } else { Err(CommandError::WrongPairState { state, hint }) }
    }

    /// Whether the peer is there and gets every record as it is made.
    pub(super) fn peer_follows(&self) -> bool {
        self.pair.state == PairState::Duplex && self.peer.is_streaming() && self.is_confirmed()
    }

    /// Nothing new begins meanwhile, but for reads.
    pub(super) fn waits_for_hand_over(&self, request: &Request) -> bool {
        let reads = matches!(request.operation, Operation::Read { .. } | Operation::Extents { .. });
        self.handing_over.is_some() && !reads
    }

    /// Goes on with it.
    pub(super) fn continue_hand_over(&mut self) {
        let Some(id) = self.handing_over else { return };
        if self.pair.role != Role::Primary || !self.peer_follows() {
            self.handing_over = None;
            self.again = true;
            return self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::PeerLost) });
        }
        let last = self.journal.last();
        if self.durable < last {
            self.sync.wanted = true;
            return;
        }
        let peer_has_all = self.position_of(self.peer.acknowledged()).seq == self.stream.last.seq;
        if (peer_has_all || planted(Plant::HandedOverEarly)) && self.waiting.is_empty() {
            self.handing_over = None;
            self.step_down();
            let count = self.superblock.request();
            self.again = true;
            self.answer_when_stored(id, count, CommandReply::Done);
        }
    }

    /// From now on this node is a secondary.
    pub(super) fn step_down(&mut self) {
        self.release_peer(self.pair.lease_millis);
        self.pair.role = Role::Secondary;
        self.superblock.request_first();
        self.pair.former_epoch = self.epoch();
        self.pair.fork = Position::default();
        self.confirmation = Confirmation::default();
        self.lose_anchor();
        self.copy.stop();
        for id in self.waiting.take_all().into_iter().chain(self.leasing.take_withheld()) {
            self.answer(id, Err(RequestError::NotPrimary));
        }
        if let Some(id) = self.leasing.take_ending() {
            let hint = "it stepped down meanwhile";
            let result = Err(CommandError::WrongRole { role: Role::Secondary, hint });
            self.outputs.push_back(Output::CommandAnswer { id, result });
        }
        self.event(Event::RoleChanged { role: Role::Secondary, epoch: self.epoch() });
    }
}
