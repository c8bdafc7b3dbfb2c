//! The journal's superblock: written when the tail moved or the pair's record changed; one write at a time.

use super::{Group, Purpose};
use crate::{
    disk::{DiskAction, DiskOutcome, MediumId},
    format::journal_superblock::JournalSuperblock,
    testing::{Plant, planted},
    units::Order,
};
use alloc::vec;

struct Writing {
    is_synced: bool,
    tail: u64,
    tail_order: Order,
}

/// The state of the superblock.
#[derive(Default)]
pub(super) struct SuperblockWriter {
    writing: Option<Writing>,
    /// It is to be written again.
    pub(super) wanted: bool,
    /// The group is being stopped in good order after this entry.
    pub(super) clean: Option<Order>,
    write_count: u64,
    durable_count: u64,
    /// The write that comes before any batch.
    first_count: u64,
}

impl SuperblockWriter {
    /// After opening a superblock with this count.
    pub(super) fn after(write_count: u64) -> Self {
        Self { write_count, durable_count: write_count, ..Self::default() }
    }

    /// The count for a write that is made while the group is opened.
    pub(super) fn next_count(&mut self) -> u64 {
        self.write_count += 1;
        self.durable_count = self.write_count;
        self.write_count
    }

    /// Asks for a write; the count that will say it is durable.
    pub(super) fn request(&mut self) -> u64 {
        self.wanted = true;
        self.write_count + 1
    }

    /// Asks for a write that must be durable before another batch is written: after a crash, nobody may find in the journal what a
    /// peer sent, and not know that it is that peer's secondary, or which epochs are taken.
    pub(super) fn request_first(&mut self) {
        self.first_count = self.request();
    }

    /// Whether batches may be written.
    pub(super) fn allows_batches(&self) -> bool {
        self.is_durable(self.first_count)
    }

    /// Whether the write that [`SuperblockWriter::request`] named is durable.
    pub(super) fn is_durable(&self, count: u64) -> bool {
        self.durable_count >= count
    }
}

impl Group {
    /// Writes the superblock if it is to be written and is not being written.
    pub(super) fn start_superblock(&mut self) {
        if !self.superblock.wanted || self.superblock.writing.is_some() {
            return;
        }
        self.superblock.wanted = false;
        self.superblock.write_count += 1;
        let superblock = self.superblock_now(self.superblock.write_count);
        let (tail, tail_order) = (superblock.tail_position, superblock.tail_order);
        self.superblock.writing = Some(Writing { is_synced: false, tail, tail_order });
        let action = DiskAction::Write { offset: superblock.slot(), pieces: vec![superblock.encode()] };
        self.disk(MediumId::Journal, action, Purpose::Superblock);
    }

    /// The superblock as of now.
    pub(super) fn superblock_now(&self, write_count: u64) -> JournalSuperblock {
        JournalSuperblock {
            write_count,
            group: self.id,
            medium: self.medium,
            name: self.name,
            ring_size: self.journal.ring_size(),
            tail_position: self.journal.tail,
            tail_order: self.journal.tail_order,
            tail_previous_checksum: self.journal.tail_checksum,
            clean: self.superblock.clean,
            stream: self.journal.tail_stream.clone(),
            pair: self.pair,
            volumes: self.volumes.values().map(|volume| volume.spec.clone()).collect(),
        }
    }

    /// The write or the sync ended.
    pub(super) fn superblock_done(&mut self, outcome: DiskOutcome) {
        if let Err(error) = outcome {
            return self.fail(MediumId::Journal, error);
        }
        let Some(writing) = &mut self.superblock.writing else {
            return;
        };
        if !writing.is_synced && !planted(Plant::SuperblockNotSynced) {
            writing.is_synced = true;
            return self.disk(MediumId::Journal, DiskAction::Sync, Purpose::Superblock);
        }
        let (tail, tail_order) = (writing.tail, writing.tail_order);
        self.superblock.writing = None;
        self.superblock.durable_count = self.superblock.write_count;
        self.journal.tail_is_durable(tail, tail_order);
        self.release_blocks();
    }
}
