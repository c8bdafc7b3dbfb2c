//! What a failing medium does to a group: it stops.
//!
//! After a failed write or sync nobody knows what the medium holds, so nothing is acknowledged any more; opening the
//! group again finds out. Reads that fail are answered with an error and stop nothing.

use super::{Group, trial::Trial};
use crate::{
    command::CommandError,
    disk::{DiskError, MediumId},
    output::{Event, Output},
    request::RequestError,
};
use alloc::format;

impl Group {
    /// Stops serving: everything in flight is answered with an error.
    pub(super) fn fail(&mut self, medium: MediumId, error: DiskError) {
        self.event(Event::MediumFailed { reason: format!("{medium:?}: {error}") });
        let reason = match error {
            DiskError::NoSpace => "the file system of a medium is full; make room, then: ublk-admin group reopen",
            _ => "a medium failed; mend it, then: ublk-admin group reopen",
        };
        self.halt(reason, RequestError::Io, &CommandError::Io);
    }

    /// Ends all service; nothing is promised any more.
    pub(super) fn halt(&mut self, reason: &'static str, to_hosts: RequestError, to_operators: &CommandError) {
        if self.stopped.is_some() {
            return;
        }
        self.stopped = Some(reason);
        for id in self.waiting.take_all() {
            self.answer(id, Err(to_hosts));
        }
        for held in core::mem::take(&mut self.held) {
            self.answer(held.request.id, Err(to_hosts));
        }
        for id in self.take_unread().into_iter().chain(self.leasing.take_withheld()) {
            self.answer(id, Err(to_hosts));
        }
        // The peer learns that nothing will come of what it sends.
        if self.peer.connected {
            self.outputs.push_back(Output::Reconnect);
        }
        let (command, tried) = self.trial.as_mut().map(Trial::abandon).unwrap_or_default();
        for id in tried {
            self.answer(id, Err(to_hosts));
        }
        for id in self.take_commands().into_iter().chain(command) {
            self.outputs.push_back(Output::CommandAnswer { id, result: Err(to_operators.clone()) });
        }
    }
}
