//! Making the journal's ring larger while the group is used.
//!
//! Where a batch lies follows from the ring's size, so the ring changes when it holds nothing: destaging hurries until little is
//! left, then no new batch begins until the rest is destaged and acknowledged, and one write of the superblock says the new size
//! and that the journal is empty. Whatever is interrupted leaves the old ring as it was.

use super::Group;
use crate::{
    command::{CommandError, CommandId, CommandReply},
    format::journal_superblock::ring_size_of,
    output::Output,
    units::Monotonic,
};

/// New batches begin until no more than so many bytes are to be destaged and acknowledged.
const REST_SIZE: u64 = 4 << 20;
/// Writes wait no longer.
const EMPTYING_MICROS: u64 = 5_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Until little is left.
    Hurrying,
    /// Until nothing is left, but no longer than this; no batch begins.
    Emptying(Monotonic),
    /// Until this superblock is durable; no batch begins.
    Storing(u64),
}

/// A ring that is being made larger.
pub(super) struct JournalGrowth {
    id: CommandId,
    ring_size: u64,
    step: Step,
}

impl JournalGrowth {
    /// Whose command it is.
    pub(super) fn command(&self) -> CommandId {
        self.id
    }
}

impl Group {
    /// `true` if there is nothing to do. `size`: of the medium.
    pub(super) fn grow_journal(&mut self, id: CommandId, size: u64) -> Result<bool, CommandError> {
        let (ring_size, now) = (ring_size_of(size), self.journal.ring_size());
        if self.journal_growth.is_some() {
            return Err(CommandError::InProgress("change of the journal's size"));
        }
        if ring_size < now {
            return Err(CommandError::Journal("it can be made larger, not smaller"));
        }
        if ring_size == now {
            return Ok(true);
        }
        if !self.has_all_or_goes_on() {
            return Err(CommandError::Journal(
                "it holds what the peer lacks; connect the peer, or suspend the pair with --now first",
            ));
        }
        self.journal_growth = Some(JournalGrowth { id, ring_size, step: Step::Hurrying });
        self.again = true;
        Ok(false)
    }

    /// Whether everything is to be destaged at once.
    pub(super) fn hurries(&self) -> bool {
        self.destage.hurry || self.journal_growth.is_some()
    }

    /// Whether no batch may begin.
    pub(super) fn is_emptying_journal(&self) -> bool {
        self.journal_growth.as_ref().is_some_and(|growth| growth.step != Step::Hurrying)
    }

    /// Whether what the journal holds for the peer's sake becomes less.
    fn has_all_or_goes_on(&self) -> bool {
        self.acknowledged_limit() >= self.sealed || self.peer.is_streaming()
    }

    /// When writes have waited long enough.
    pub(super) fn journal_growth_timeout(&self) -> Option<Monotonic> {
        match self.journal_growth.as_ref()?.step {
            Step::Emptying(until) => Some(until),
            Step::Hurrying | Step::Storing(_) => None,
        }
    }

    /// Goes on with it.
    pub(super) fn continue_journal_growth(&mut self) {
        let Some(growth) = &self.journal_growth else { return };
        let (id, ring_size) = (growth.id, growth.ring_size);
        match growth.step {
            Step::Storing(count) if self.superblock.is_durable(count) => {
                self.end_journal_growth(id, Ok(CommandReply::Done));
            }
            Step::Storing(_) => {}
            // Neither waits for an empty journal, and what empties it would have to wait for them.
            _ if self.is_stopping() => self.end_journal_growth(id, Err(CommandError::Stopped)),
            _ if self.is_promoting() => self.end_journal_growth(id, Err(CommandError::InProgress("promotion"))),
            _ if self.is_pool_full() => {
                self.end_journal_growth(id, Err(CommandError::Journal("a pool is full; it cannot be emptied")));
            }
            _ if !self.has_all_or_goes_on() => self.end_journal_growth(id, Err(CommandError::PeerLost)),
            Step::Hurrying => {
                let from = self.applied.min(self.acknowledged_limit());
                if self.journal.size_between(from, self.sealed) <= REST_SIZE {
                    self.set_journal_growth_step(Step::Emptying(self.now.monotonic.after(EMPTYING_MICROS)));
                }
            }
            Step::Emptying(until) => {
                if self.empty_journal() {
                    self.journal.restart_with(ring_size);
                    let count = self.superblock.request();
                    self.set_journal_growth_step(Step::Storing(count));
                } else if self.now.monotonic >= until {
                    let reason = "it was not empty after 5 s without new writes; nothing has changed, try again when less is to do";
                    self.end_journal_growth(id, Err(CommandError::Journal(reason)));
                }
            }
        }
    }

    fn set_journal_growth_step(&mut self, step: Step) {
        if let Some(growth) = &mut self.journal_growth {
            growth.step = step;
        }
        self.again = true;
    }

    /// Does what is needed to empty it; `true` if it is.
    fn empty_journal(&mut self) -> bool {
        let sealed = self.sealed;
        if !self.in_flight.is_empty() || self.applied < sealed {
            return false;
        }
        if self.durable < sealed {
            self.sync.wanted = true;
            return false;
        }
        if self.applied_durable() < sealed {
            self.checkpoint.wanted = true;
            self.again |= self.may_begin_checkpoint();
            return false;
        }
        if self.acknowledged_limit() < sealed || self.reads.oldest_entry().is_some() {
            return false;
        }
        self.retire_up_to(sealed, |_| true);
        true
    }

    fn end_journal_growth(&mut self, id: CommandId, result: Result<CommandReply, CommandError>) {
        self.journal_growth = None;
        self.again = true;
        self.outputs.push_back(Output::CommandAnswer { id, result });
    }
}
