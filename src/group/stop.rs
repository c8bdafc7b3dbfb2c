//! A stop in good order: what was accepted is durable, and the superblock says so.

use super::{Group, trial::Trial};
use crate::{
    command::{CommandError, CommandReply},
    output::Output,
    request::RequestError,
};
use alloc::vec::Vec;

impl Group {
    /// Whether the group is being stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.commands.stopping.is_some() || self.superblock.clean.is_some()
    }

    /// Whether what is staged waits for room in the journal that only room in a pool can make.
    pub(super) fn nothing_can_be_written(&self) -> bool {
        self.is_pool_full() && self.is_journal_full() && !self.destage.is_running() && !self.checkpoint.is_running()
    }

    /// Ends the stop when all that was accepted is durable.
    pub(super) fn continue_stop(&mut self) {
        let Some(id) = self.commands.stopping else {
            return;
        };
        if self.superblock.clean.is_none() && self.nothing_can_be_written() {
            // What waits was never answered. The next start finds out what is there, as after a death.
            self.commands.stopping = None;
            self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::Full) });
            self.halt(
                "it was stopped while its pool and its journal were full",
                RequestError::Stopped,
                &CommandError::Stopped,
            );
        } else if self.superblock.clean.is_none() {
            let settled = self.is_settled() && !self.checkpoint.is_running() && self.in_flight.is_empty();
            if settled && (!self.is_leased() || !self.peer.is_streaming()) {
                // Whoever waits for the peer would wait for ever.
                for id in self.waiting.take_all().into_iter().chain(self.leasing.take_withheld()) {
                    self.answer(id, Err(RequestError::Stopped));
                }
            }
            if settled && self.waiting.is_empty() {
                self.superblock.clean = Some(self.journal.last());
                let count = self.superblock.request();
                self.answer_when_stored(id, count, CommandReply::Done);
                self.commands.stopping = None;
                self.halt_after_stop();
            } else {
                self.sync.wanted = true;
            }
        }
    }

    /// Nothing is accepted any more; the last superblock is still to be written.
    fn halt_after_stop(&mut self) {
        let held: Vec<_> = self.held.drain(..).map(|held| held.request.id).collect();
        let (command, tried) = self.trial.as_mut().map(Trial::abandon).unwrap_or_default();
        held.into_iter().chain(tried).for_each(|id| self.answer(id, Err(RequestError::Stopped)));
        if let Some(id) = command {
            self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::Stopped) });
        }
        self.start_superblock();
    }
}
