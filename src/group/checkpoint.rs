//! Checkpoints: the tables become durable, so that the journal before them is needed no more.
//!
//! Steps, each on all pools: changed table pages; sync; superblocks; sync. Then the journal's tail may move. It begins between
//! two cycles of destaging; those that come while it is running are not part of it. Until it counts, what they leave is what
//! the tables on the media and the one that is being written need: what they free is free after the next checkpoint.
//! A write for which a file system has no space is asked for again after a while; the step does not end before.

use super::{Group, Purpose, Volume, room::tried_again_at};
use crate::{
    disk::{DiskAction, DiskError, DiskOutcome, MediumId, OperationId},
    journal::Journal,
    table::{Blocks, TableCheckpoint},
    testing::{Plant, planted},
    units::{Monotonic, Order, VolumeId},
};
use alloc::{collections::BTreeMap, vec, vec::Vec};

/// A checkpoint is made when nothing was written for so long.
const IDLE_MICROS: u64 = 1_000_000;
/// So many of its writes are in flight at once: what a host asks for waits behind them.
const IN_FLIGHT_MAX: usize = 64;

/// So many ranges are given back to the media at once.
const RELEASE_COUNT_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Pages,
    PagesSync,
    Superblocks,
    SuperblocksSync,
}

struct Running {
    step: Step,
    in_flight: BTreeMap<OperationId, (VolumeId, DiskAction)>,
    /// What found no space, and since when.
    refused: Vec<(VolumeId, DiskAction)>,
    full_since: Option<Monotonic>,
    /// What is still to be asked of the pools in this step, but for pages.
    queue: Vec<(VolumeId, DiskAction)>,
    /// A volume that was added meanwhile is not part of it.
    tables: BTreeMap<VolumeId, TableCheckpoint>,
    /// What was dirty when it began is durable when it ends.
    covers_tracking: bool,
}

impl Running {
    /// What is to be asked of the pools next. Pages are encoded only now: there may be a hundred thousand.
    fn next_action(&mut self, volumes: &mut BTreeMap<VolumeId, Volume>) -> Option<(VolumeId, DiskAction)> {
        if self.step != Step::Pages || !self.refused.is_empty() {
            return self.refused.pop().or_else(|| self.queue.pop());
        }
        // Neighbouring pages alternate between slots, so they rarely touch; each is written alone.
        volumes.iter_mut().find_map(|(id, volume)| {
            let (offset, bytes) = volume.table.next_page()?;
            Some((*id, DiskAction::Write { offset, pieces: vec![bytes] }))
        })
    }
}

/// The state of checkpoints.
#[derive(Default)]
pub(super) struct Checkpoint {
    running: Option<Running>,
    /// One is to be made as soon as possible.
    pub(super) wanted: bool,
    /// The table changed without an entry (a mark in the bitmap).
    pub(super) marked: bool,
    begun: u64,
    ended: u64,
    /// Ranges that are being given back.
    releasing: usize,
}

impl Checkpoint {
    /// Whether one is being made.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it waits for a file system to have space.
    pub(super) fn is_delayed(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.full_since.is_some())
    }

    /// What is marked from here on is not in the one that is running.
    pub(super) fn does_not_cover_tracking(&mut self) {
        if let Some(running) = &mut self.running {
            running.covers_tracking = false;
        }
    }

    /// How many were begun since the group was opened.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// How many are durable.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }
}

impl Group {
    /// When a checkpoint wants to be made at the latest.
    pub(super) fn checkpoint_timeout(&self) -> Option<Monotonic> {
        if let Some(running) = &self.checkpoint.running {
            return running.full_since.map(tried_again_at);
        }
        let due = self.applied == self.destage_limit() && self.needs_checkpoint();
        (due && self.may_begin_checkpoint()).then(|| self.destage_idle_since().after(IDLE_MICROS))
    }

    /// Whether a checkpoint may begin now, if there is something to write; what is in its way calls again when it ends.
    pub(super) fn may_begin_checkpoint(&self) -> bool {
        let must_wait = self.is_about_to_grow() || self.is_opening() || self.stops_without_checkpoint();
        !(self.checkpoint.is_running() || self.destage.is_running() || must_wait)
    }

    fn needs_checkpoint(&self) -> bool {
        self.applied > self.applied_durable() || self.checkpoint.marked
    }

    /// Starts a checkpoint if it is time.
    pub(super) fn start_checkpoint(&mut self) {
        let is_stopping = self.is_stopping();
        if let Some(running) = &mut self.checkpoint.running
            && let Some(since) = running.full_since
            // A stop does not wait for room.
            && (is_stopping || self.now.monotonic >= tried_again_at(since))
        {
            running.full_since = None;
            return self.pump_checkpoint();
        }
        if !self.may_begin_checkpoint() {
            return;
        }
        // Half of what makes destaging hurry: the tail must move before the ring is full.
        let ring_wants = self.applied > self.applied_durable()
            && (self.applied_size_waiting() >= self.journal.ring_size() / 8
                || self.applied.0 - self.applied_durable().0 >= self.journal.entry_count_max() / 8);
        let idle = self.needs_checkpoint()
            && self.applied == self.destage_limit()
            && self.now.monotonic >= self.destage_idle_since().after(IDLE_MICROS);
        if !(self.checkpoint.wanted || ring_wants || idle) {
            return;
        }
        if !self.needs_checkpoint() && !self.volumes.values().any(|volume| volume.table.is_changed()) {
            self.checkpoint.wanted = false;
            return;
        }
        self.begin_checkpoint();
    }

    /// Bytes of the ring that a checkpoint could set free.
    fn applied_size_waiting(&self) -> u64 {
        self.journal.size_between(self.applied_durable(), self.applied)
    }

    /// Makes the tables durable as they are now; nothing is being written to the pools.
    pub(super) fn begin_checkpoint(&mut self) {
        self.checkpoint.begun += 1;
        self.checkpoint.wanted = false;
        self.checkpoint.marked = false;
        let (applied, mut tables) = (self.applied, BTreeMap::new());
        for (id, volume) in &mut self.volumes {
            // A volume that was added has more: the entries before it are not about it.
            tables.insert(*id, volume.table.begin_checkpoint(applied.max(volume.table.applied_durable())));
        }
        let covers_tracking = self.is_tracking();
        self.checkpoint.running = Some(Running {
            step: Step::Pages,
            in_flight: BTreeMap::new(),
            refused: Vec::new(),
            full_since: None,
            queue: Vec::new(),
            tables,
            covers_tracking,
        });
        self.pump_checkpoint();
    }

    /// Asks the pools for more of the step, or begins the next one.
    fn pump_checkpoint(&mut self) {
        // Some at once: each time the medium is told of work costs more than the work.
        let must_wait = |running: &Running| running.in_flight.len() > IN_FLIGHT_MAX / 2 || running.full_since.is_some();
        if self.checkpoint.running.as_ref().is_some_and(must_wait) {
            return;
        }
        while let Some(running) = &mut self.checkpoint.running
            && running.in_flight.len() < IN_FLIGHT_MAX
            && let Some((id, action)) = running.next_action(&mut self.volumes)
        {
            running.in_flight.insert(OperationId(self.next_operation), (id, action.clone()));
            self.disk(MediumId::Pool(id), action, Purpose::Checkpoint);
        }
        if self.checkpoint.running.as_ref().is_some_and(|running| running.in_flight.is_empty()) {
            self.next_checkpoint_step();
        }
    }

    /// A write or sync of the checkpoint ended.
    pub(super) fn checkpoint_done(&mut self, operation: OperationId, outcome: DiskOutcome) {
        let is_stopping = self.is_stopping();
        let Some(running) = &mut self.checkpoint.running else {
            return;
        };
        let Some((volume, action)) = running.in_flight.remove(&operation) else {
            return;
        };
        match outcome {
            Ok(_) => self.pump_checkpoint(),
            Err(DiskError::NoSpace) if matches!(action, DiskAction::Write { .. }) && !is_stopping => {
                running.refused.push((volume, action));
                running.full_since = Some(self.now.monotonic);
                self.tell_full();
            }
            Err(error) => {
                // It never ends: what it would make count is not all there.
                self.checkpoint.running = None;
                self.fail(MediumId::Pool(volume), error);
            }
        }
    }

    fn next_checkpoint_step(&mut self) {
        let Some(running) = &mut self.checkpoint.running else {
            return;
        };
        let step = match running.step {
            Step::Pages if !planted(Plant::PagesNotSynced) => Step::PagesSync,
            Step::Pages | Step::PagesSync => Step::Superblocks,
            Step::Superblocks => Step::SuperblocksSync,
            Step::SuperblocksSync => return self.end_checkpoint(),
        };
        running.step = step;
        for (id, checkpoint) in &mut running.tables {
            let action = match (step, self.volumes.get(id)) {
                (Step::Superblocks, Some(volume)) => {
                    let (offset, bytes) = volume.table.superblock(checkpoint);
                    DiskAction::Write { offset, pieces: vec![bytes] }
                }
                _ => DiskAction::Sync,
            };
            running.queue.push((*id, action));
        }
        self.pump_checkpoint();
    }

    fn end_checkpoint(&mut self) {
        let Some(mut running) = self.checkpoint.running.take() else {
            return;
        };
        self.checkpoint.ended += 1;
        self.destage.waits_for_checkpoint = false;
        self.again = true;
        let reads = self.reads.next();
        for (id, volume) in &mut self.volumes {
            if let Some(checkpoint) = running.tables.remove(id) {
                volume.table.commit_checkpoint(checkpoint, reads);
            }
        }
        if running.covers_tracking {
            self.peer.tracking_is_durable();
        }
        self.release_blocks();
        self.retire();
        self.superblock.wanted = true;
    }

    /// Gives blocks back that nothing needs any more.
    pub(super) fn release_blocks(&mut self) {
        let (oldest, tail) = (self.reads.oldest(), self.journal.durable_tail_order);
        for volume in self.volumes.values_mut() {
            self.destage.has_new_room |= volume.table.blocks.release(oldest, tail);
        }
        self.release_space();
    }

    /// Gives space back to the media, a little at a time: an `fstrim` may leave a million pieces of it.
    fn release_space(&mut self) {
        while self.checkpoint.releasing < RELEASE_COUNT_MAX {
            let next = self.volumes.iter_mut().find_map(|(id, volume)| {
                let (first, count) = volume.table.blocks.take_leaving()?;
                let geometry = volume.table.geometry();
                let size = u64::from(geometry.block_size) * u64::from(count);
                Some((*id, first, count, DiskAction::Release { offset: geometry.offset_of(first), size }))
            });
            let Some((volume, first, count, action)) = next else { return };
            self.checkpoint.releasing += 1;
            self.disk(MediumId::Pool(volume), action, Purpose::Release { volume, first, count });
        }
    }

    /// The space of blocks is given back.
    pub(super) fn released(&mut self, volume: VolumeId, first: u32, count: u32) {
        self.checkpoint.releasing -= 1;
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.table.blocks.gone(first, count);
            self.destage.has_new_room = true;
            self.again = true;
        }
        self.release_space();
    }

    /// Moves the journal's tail as far as it may and needs to go.
    pub(super) fn retire(&mut self) {
        // What a promotion has made void is void when its record is durable.
        if self.is_opening() {
            return;
        }
        let applied = if planted(Plant::TailBeforeTables) { self.applied } else { self.applied_durable() };
        let mut limit = applied.min(self.acknowledged_limit());
        if let Some(oldest) = self.reads.oldest_entry() {
            limit = limit.min(Order(oldest.0 - 1));
        }
        // What is not in the way is kept: a peer that comes back may ask for it. The tail moves in strides, because each
        // move costs a superblock.
        const ENTRY_COUNT_MAX: usize = 65_536;
        let stride = self.journal.ring_size() / 8;
        if self.volumes.values().any(|volume| volume.table.blocks.has_redirected()) {
            let unneeded = limit.min(self.unneeded_limit());
            if unneeded == applied || self.journal.size_between(self.journal.tail_order, unneeded) >= stride {
                self.retire_up_to(unneeded, |_| true);
            }
        }
        // A pool may be without room for a row of blocks, though it has some.
        let is_full = self.destage.full_since.is_some();
        let lacks = |blocks: &Blocks| blocks.is_short() || (is_full && blocks.is_waiting());
        let pool_is_short = self.volumes.values().any(|volume| lacks(&volume.table.blocks));
        let crowded = self.journal.entry_count() > ENTRY_COUNT_MAX / 8 * 9 || self.journal.live_size() > 3 * stride;
        // Without a peer nobody will ask; then nothing is kept that blocks wait for.
        let kept_for_nobody =
            self.pair.peer.is_none() && self.volumes.values().any(|volume| volume.table.blocks.is_waiting());
        let all = pool_is_short || kept_for_nobody;
        if !crowded && !all {
            return;
        }
        self.retire_up_to(limit, |journal| {
            journal.entry_count() > ENTRY_COUNT_MAX || journal.live_size() > 2 * stride || all
        });
    }

    /// Lets go of batches up to `limit` while there are too many.
    pub(super) fn retire_up_to(&mut self, limit: Order, too_many: impl Fn(&Journal) -> bool) {
        while too_many(&self.journal) {
            let mut gone = Vec::new();
            if !self.journal.retire(limit, |order, entry| gone.push((order, entry.record.payload_size))) {
                break;
            }
            gone.into_iter().for_each(|(order, size)| self.forget_entry(order, size));
            self.superblock.wanted = true;
        }
    }
}
