//! Destaging: the newest data of each block goes from the journal to the pool, in cycles of many entries.
//!
//! A cycle takes durable entries in order and ends at a restart point at the latest, so that data of two generations
//! never mixes. It reads what it lacks (payloads no longer in memory, the rest of granules written in part) and writes
//! sorted runs, in as many rounds as memory demands; then it changes the table in memory. A crash at any instant is harmless: the
//! durable table does not name what was written, or the journal still has every byte that was written in place.

use super::{
    Group, Purpose,
    cycle::{CYCLE_ENTRY_COUNT_MAX, Cycle, Slot},
    plan::{News, Plan, runs},
    room::tried_again_at,
    width::Width,
};
use crate::{
    disk::{DiskAction, DiskError, DiskOutcome, MediumId},
    format::record::Kind,
    journal::{LiveEntry, Place},
    stream_state::{Snapshot, StreamState},
    testing::{Plant, planted},
    units::{Monotonic, VolumeId},
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use bytes::Bytes;

/// A cycle starts when so much waits, or when nothing was written for so long.
pub(super) const BACKLOG_SIZE: u64 = 4 << 20;
const IDLE_MICROS: u64 = 100_000;
/// Neighbouring runs are written together up to this many bytes.
const WRITE_SIZE_MAX: usize = 1 << 20;
/// So many bytes of a cycle's plans are in memory at once, or one plan's. Payloads count twice: as they are read, and in their place.
/// Tests have little to write.
pub(super) const ROUND_SIZE_MAX: u64 = if cfg!(test) { 512 << 10 } else { 64 << 20 };
/// Table pages settled between cycles.
const SWEEP_PAGE_COUNT: u32 = 64;

/// What it takes to apply an entry, in bytes. What is in the pool already changes an entry of the table for each block.
fn cost(entry: &LiveEntry) -> u64 {
    match &entry.place {
        Place::Redirected(blocks) => blocks.len() as u64 * 4096,
        Place::Memory | Place::Inline(_) => u64::from(entry.record.payload_size).max(4096),
    }
}

/// The state of destaging.
#[derive(Default)]
pub(super) struct Destage {
    cycle: Option<Cycle>,
    /// When an entry was last staged.
    touched: Monotonic,
    /// What it takes to apply what waits for it, in bytes.
    pub(super) backlog: u64,
    pub(super) width: Width,
    /// No cycle begins before, so that others have their turn.
    rests_until: Monotonic,
    /// What the entries that were applied amount to.
    pub(super) stream: StreamState,
    pub(super) full_since: Option<Monotonic>,
    /// It is the file system of a pool that has no room.
    pub(super) is_medium_full: bool,
    /// The operator was told that there is no room.
    pub(super) told_full: bool,
    /// A pool has no room, but a checkpoint that is running may set some free.
    pub(super) waits_for_checkpoint: bool,
    /// Blocks have become unused since.
    pub(super) has_new_room: bool,
    /// Go on until everything is applied.
    pub(super) hurry: bool,
}

impl Destage {
    /// An entry was staged.
    pub(super) fn staged(&mut self, now: Monotonic, entry: &LiveEntry) {
        self.touched = now;
        self.backlog += cost(entry);
    }

    /// Whether a cycle is running.
    pub(super) fn is_running(&self) -> bool {
        self.cycle.is_some()
    }
}

impl Group {
    /// When destaging wants to be called again.
    pub(super) fn destage_timeout(&self) -> Option<Monotonic> {
        // What is still being written or synced tells by itself when it is there.
        let nothing = self.applied >= self.completed.min(self.destage_limit()) || self.sync.is_running();
        if self.destage.cycle.is_some() || self.cycles_must_wait() {
            return None;
        }
        if nothing {
            let sweeps = self.needs_sweep() && !self.sync.is_running();
            return sweeps.then(|| self.destage.touched.after(IDLE_MICROS));
        }
        if self.now.monotonic < self.destage.rests_until {
            return Some(self.destage.rests_until);
        }
        match self.destage.full_since {
            // Room may come of it.
            Some(_) if self.needs_sweep() && !self.is_about_to_grow() => Some(self.now.monotonic),
            Some(since) if self.wants_cycle() => Some(tried_again_at(since)),
            Some(since) => Some(tried_again_at(since).max(self.destage.touched.after(IDLE_MICROS))),
            None => Some(self.destage.touched.after(IDLE_MICROS)),
        }
    }

    /// Since when nothing was staged.
    pub(super) fn destage_idle_since(&self) -> Monotonic {
        self.destage.touched
    }

    /// Starts a cycle if it is time.
    pub(super) fn start_destage(&mut self) {
        let rests = self.now.monotonic < self.destage.rests_until;
        if self.destage.cycle.is_some() || self.cycles_must_wait() || rests {
            return;
        }
        if self.applied >= self.completed.min(self.destage_limit()) {
            self.sweep();
            return;
        }
        let now = self.now.monotonic;
        let full_since = self.destage.full_since;
        let is_hopeless = full_since.is_some_and(|since| !self.destage.has_new_room && now < tried_again_at(since));
        let idle = now >= self.destage.touched.after(IDLE_MICROS);
        if is_hopeless || !(idle || self.wants_cycle()) {
            if full_since.is_some() {
                self.sweep();
            }
            return;
        }
        self.destage.has_new_room = false;
        if self.durable == self.applied {
            self.sync.wanted = true;
            return self.start_sync();
        }
        self.begin_cycle();
    }

    /// Whether no cycle may begin, whatever there is to do; what ends that calls again.
    fn cycles_must_wait(&self) -> bool {
        self.is_about_to_grow() || self.waits_for_cycle() || self.is_opening() || self.destage.waits_for_checkpoint
    }

    /// Whether a cycle is to begin although the host is busy.
    fn wants_cycle(&self) -> bool {
        self.destage.backlog >= self.backlog_min() || self.hurries()
    }

    /// The least backlog for which a cycle is begun while the host is busy, in bytes.
    pub(super) fn backlog_min(&self) -> u64 {
        // In the ring an entry takes up to twice what it counts for here.
        BACKLOG_SIZE.min(self.journal.ring_size() / 16)
    }

    /// Whether tables have outdated entries or records, which hold blocks.
    pub(super) fn needs_sweep(&self) -> bool {
        self.volumes.values().any(|volume| volume.table.needs_sweep())
    }

    pub(super) fn sweep(&mut self) {
        for volume in self.volumes.values_mut().filter(|volume| volume.table.needs_sweep()) {
            volume.table.sweep_pages(SWEEP_PAGE_COUNT);
        }
    }

    fn begin_cycle(&mut self) {
        // What was let go of is to be free again also under writes that never cease.
        self.sweep();
        let mut entry_count_max = CYCLE_ENTRY_COUNT_MAX;
        loop {
            let (cycle, taken) = self.plan_cycle(entry_count_max);
            if let Some(mut cycle) = cycle
                && self.allocate(&mut cycle)
            {
                (self.destage.full_since, self.destage.is_medium_full) = (None, false);
                self.destage.cycle = Some(cycle);
                return self.begin_round();
            }
            if taken <= 1 {
                return self.pool_is_full();
            }
            entry_count_max = taken / 2;
        }
    }

    /// Goes on with as many of the cycle's plans as may be in memory at once.
    fn begin_round(&mut self) {
        let Some(cycle) = &self.destage.cycle else {
            return;
        };
        let (first, mut size) = (cycle.round.end, 0);
        let fits = |plan: &&Plan| {
            let is_first = size == 0;
            size += self.held_size(plan);
            is_first || size <= ROUND_SIZE_MAX
        };
        let end = first + cycle.plans[first..].iter().take_while(fits).count();
        if let Some(cycle) = &mut self.destage.cycle {
            (cycle.round, cycle.is_writing) = (first..end, false);
        }
        self.read_cycle();
    }

    /// What was planned is in the pool: the next plans, or all is.
    fn end_round(&mut self) {
        let Some(cycle) = &mut self.destage.cycle else {
            return;
        };
        if cycle.round.end == cycle.plans.len() {
            return self.finish_cycle();
        }
        for plan in &mut cycle.plans[cycle.round.clone()] {
            plan.base.clear();
            plan.folded.clear();
        }
        cycle.payloads.clear();
        cycle.parts.clear();
        self.begin_round();
    }

    /// Reads what the plans lack.
    fn read_cycle(&mut self) {
        let Some(cycle) = &self.destage.cycle else {
            return;
        };
        let mut reads: Vec<(Slot, MediumId, u64, u64)> = Vec::new();
        let mut wanted = BTreeSet::new();
        let mut payloads = BTreeMap::new();
        for (index, plan) in cycle.round.clone().zip(&cycle.plans[cycle.round.clone()]) {
            let Some(volume) = self.volumes.get(&plan.volume) else {
                continue;
            };
            let geometry = volume.table.geometry();
            let granule = u64::from(geometry.granule_size());
            let medium = MediumId::Pool(plan.volume);
            for (source, first, count) in plan.base_runs().filter(|(source, _, _)| *source != 0) {
                let offset = geometry.offset_of(source) + u64::from(first) * granule;
                reads.push((Slot::Base { plan: index, first }, medium, offset, u64::from(count) * granule));
            }
            if let Some(fold) = plan.fold.filter(|fold| fold.from != 0) {
                for (first, count) in runs(fold.mask) {
                    let offset = geometry.offset_of(fold.from) + u64::from(first) * granule;
                    reads.push((Slot::Folded { plan: index, first }, medium, offset, u64::from(count) * granule));
                }
            }
            let News::Pieces(pieces) = &plan.news else {
                continue;
            };
            for piece in pieces {
                let Some(entry) = self.journal.entry(piece.order) else {
                    continue;
                };
                if let Some(payload) = &entry.payload {
                    // Held until it is written, whatever is let go of meanwhile.
                    payloads.insert(piece.order, payload.clone());
                    continue;
                }
                if entry.record.kind.zeroes() {
                    continue;
                }
                match &entry.place {
                    Place::Inline(position) if wanted.insert(piece.order) => {
                        let size = u64::from(entry.record.payload_size);
                        let offset = self.journal.offset(*position);
                        reads.push((Slot::Payload(piece.order), MediumId::Journal, offset, size));
                    }
                    Place::Redirected(list) => {
                        let from = piece.offset - entry.record.offset;
                        let block_size = u64::from(geometry.block_size);
                        let Some(block) = list.get((from / block_size) as usize) else {
                            continue;
                        };
                        let offset = geometry.offset_of(*block) + from % block_size;
                        let slot = Slot::Part { offset: piece.offset, volume: plan.volume };
                        reads.push((slot, medium, offset, piece.end - piece.offset));
                    }
                    _ => {}
                }
            }
        }
        let slots: Vec<_> = reads.iter().map(|(slot, _, offset, _)| (*slot, (offset % 4096) as usize)).collect();
        let actions = reads.into_iter().enumerate().map(|(slot, (_, medium, offset, size))| {
            let start = offset & !4095;
            let size = ((offset + size).next_multiple_of(4096) - start) as u32;
            (slot, medium, DiskAction::Read { offset: start, size })
        });
        let queue: Vec<_> = actions.rev().collect();
        if queue.is_empty() {
            if let Some(cycle) = &mut self.destage.cycle {
                cycle.payloads = payloads;
            }
            return self.write_cycle();
        }
        if let Some(cycle) = &mut self.destage.cycle {
            (cycle.slots, cycle.queue, cycle.payloads) = (slots, queue, payloads);
        }
        self.pump_cycle();
    }

    /// Asks for as much of the cycle's work as may be in flight. Thousands of writes at once would keep a host's request waiting
    /// for all of them; a few keep the medium as busy as it must be for the backlog not to grow.
    fn pump_cycle(&mut self) {
        let in_flight_max = self.cycle_width();
        // Some at once: each time the medium is told of work costs more than the work.
        if self.destage.cycle.as_ref().is_some_and(|cycle| cycle.in_flight > in_flight_max / 2) {
            return;
        }
        while let Some(cycle) = &mut self.destage.cycle
            && cycle.in_flight < in_flight_max
            && let Some((slot, medium, action)) = cycle.queue.pop()
        {
            cycle.in_flight += 1;
            cycle.has_waited = true;
            self.disk(medium, action, Purpose::Destage { slot, since: self.now.monotonic });
        }
    }

    /// Whether nothing has come from a host for a while.
    pub(super) fn is_quiet(&self) -> bool {
        self.now.monotonic >= self.destage.touched.after(IDLE_MICROS) && self.reads.is_empty()
    }

    /// A read or write of the cycle ended.
    pub(super) fn destage_done(&mut self, slot: usize, since: Monotonic, outcome: DiskOutcome) {
        let Some(cycle) = &mut self.destage.cycle else {
            return;
        };
        self.destage.width.ended(self.now.monotonic.0.saturating_sub(since.0), cycle.in_flight);
        cycle.in_flight -= 1;
        let (what, lead) = cycle.slots.get(slot).copied().unwrap_or((Slot::Write, 0));
        match (outcome, what) {
            (Err(error), _) => cycle.failed = Some(error),
            (Ok(_), Slot::Write) => {}
            (Ok(bytes), Slot::Base { plan, first }) => {
                let plan = &mut cycle.plans[plan];
                let granule = plan.granule_size as usize;
                let granules =
                    (0..bytes.len() / granule).map(|index| bytes.slice(index * granule..(index + 1) * granule));
                plan.base.extend((first..).zip(granules));
            }
            (Ok(bytes), Slot::Folded { plan, first }) => {
                cycle.plans[plan].folded.insert(first, bytes);
            }
            (Ok(bytes), Slot::Part { offset, volume }) => {
                cycle.parts.insert((volume, offset), bytes.slice(lead.min(bytes.len())..));
            }
            (Ok(bytes), Slot::Payload(order)) => {
                let record = self.journal.entry(order).map(|entry| entry.record);
                let checked = record.and_then(|record| {
                    let end = lead + record.payload_size as usize;
                    let payload = (end <= bytes.len()).then(|| bytes.slice(lead..end))?;
                    record.check_payload(&payload).ok().map(|()| payload)
                });
                match checked {
                    Some(payload) => drop(cycle.payloads.insert(order, payload)),
                    None => cycle.failed = Some(DiskError::Failed { errno: 74 }), // EBADMSG
                }
            }
        }
        if cycle.failed.is_some() {
            cycle.queue.clear();
        }
        if cycle.in_flight > 0 || !cycle.queue.is_empty() {
            return self.pump_cycle();
        }
        match (cycle.failed, cycle.is_writing) {
            (Some(error), writing) => self.abandon_cycle(error, writing),
            (None, false) => self.write_cycle(),
            (None, true) => self.end_round(),
        }
    }

    /// A cycle failed: nothing of it counts, the journal still has everything.
    fn abandon_cycle(&mut self, error: DiskError, writing: bool) {
        let Some(cycle) = self.destage.cycle.take() else {
            return;
        };
        for plan in cycle.plans.iter().filter(|plan| plan.needs_new) {
            if let Some(volume) = self.volumes.get_mut(&plan.volume) {
                volume.table.blocks.unallocate(plan.after.latest);
            }
        }
        if writing && error == DiskError::NoSpace {
            return self.medium_is_full();
        }
        let volume = cycle.plans.first().map_or_else(VolumeId::default, |plan| plan.volume);
        self.fail(MediumId::Pool(volume), error);
    }

    /// Writes the new granules, sorted and joined.
    fn write_cycle(&mut self) {
        let Some(mut cycle) = self.destage.cycle.take() else {
            return;
        };
        let mut writes: Vec<(VolumeId, u64, Bytes)> = Vec::new();
        for plan in &cycle.plans[cycle.round.clone()] {
            self.plan_writes(plan, &cycle, &mut writes);
        }
        writes.sort_by_key(|(volume, offset, _)| (*volume, *offset));
        let mut joined: Vec<(VolumeId, u64, usize, Vec<Bytes>)> = Vec::new();
        for (volume, offset, bytes) in writes {
            match joined.last_mut() {
                Some((last, at, size, pieces))
                    if *last == volume && *at + *size as u64 == offset && *size + bytes.len() <= WRITE_SIZE_MAX =>
                {
                    *size += bytes.len();
                    pieces.push(bytes);
                }
                _ => joined.push((volume, offset, bytes.len(), alloc::vec![bytes])),
            }
        }
        let actions = joined.into_iter().rev().map(|(volume, offset, _, pieces)| {
            (usize::MAX, MediumId::Pool(volume), DiskAction::Write { offset, pieces })
        });
        (cycle.is_writing, cycle.queue) = (true, actions.collect());
        cycle.slots.clear();
        let is_done = cycle.queue.is_empty();
        self.destage.cycle = Some(cycle);
        if is_done {
            return self.end_round();
        }
        self.pump_cycle();
    }

    /// Everything is in the pool: the tables say so from now on.
    fn finish_cycle(&mut self) {
        let Some(cycle) = self.destage.cycle.take() else {
            return;
        };
        self.destage.told_full = false;
        for plan in &cycle.plans {
            let Some(volume) = self.volumes.get_mut(&plan.volume) else {
                continue;
            };
            let dirty = volume.table.entry(plan.block).dirty;
            volume.table.set_entry(plan.block, crate::table::Entry { dirty, ..plan.after });
            match plan.news {
                News::Zeroes => volume.table.blocks.give_back(plan.freed),
                _ => volume.table.blocks.free(plan.freed),
            }
            match plan.fold {
                Some(fold) if fold.to == plan.entry.latest => volume.table.let_go(plan.block, &plan.entry),
                Some(fold) => volume.table.blocks.free(fold.from),
                None => {}
            }
        }
        // Such a block is written wholly for the least change, until the journal lets go of the record in it.
        let relocated = cycle.plans.iter().filter(|plan| plan.relocates).count();
        let unneeded = self.unneeded_limit().min(cycle.last);
        let holds_unneeded = self.journal.first_batch_end().is_some_and(|end| end <= unneeded);
        self.checkpoint.wanted |= relocated * 8 > cycle.plans.len() && holds_unneeded;
        // Before large writes find no block that they could go to.
        self.checkpoint.wanted |= self.volumes.values().any(|volume| volume.table.blocks.gains_by_checkpoint());
        for (id, block) in &cycle.unnamed {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.table.blocks.free(*block);
            }
        }
        let count = (cycle.last.0 - self.applied.0) as usize;
        let (tracking, mut is_boundary) = (self.is_tracking(), false);
        let applied = if planted(Plant::NewerForgotten) { self.journal.last() } else { cycle.last };
        for (order, entry) in self.journal.after(self.applied).take(count) {
            let record = &entry.record;
            self.destage.backlog -= cost(entry);
            if entry.is_void {
                continue;
            }
            if record.kind.changes_data()
                && let Some(volume) = self.volumes.get_mut(&record.volume)
            {
                volume.overlay.remove_applied(record.offset, record.end(), applied);
                if tracking && !(record.kind == Kind::Discard && planted(Plant::DiscardNotDirty)) {
                    volume.table.mark_dirty(record.offset, record.size);
                }
            }
            let snapshot = self.destage.stream.apply(order, record, &entry.note);
            if snapshot != Snapshot::Same {
                let named = (snapshot == Snapshot::Kept).then_some(order);
                let behind = self.volumes.values_mut().filter(|volume| order > volume.applied_before);
                behind.for_each(|volume| volume.table.keep_snapshot(named));
                is_boundary = true;
            }
        }
        self.applied = cycle.last;
        if cycle.is_full && !cycle.has_waited {
            // Nobody else had a turn while it was carried out, as it waited for no medium, and a thousand like it may follow.
            self.destage.rests_until = self.now.monotonic.after(1);
        }
        if is_boundary {
            self.let_go_of_generations();
        }
        self.delay_applied();
        self.again = true;
    }
}
