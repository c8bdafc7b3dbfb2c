//! What a cycle of destaging takes and plans: entries in order, what becomes of each block, and the new blocks for it. Nothing
//! is read or written yet.

use super::{
    Group,
    plan::{News, Plan},
};
use crate::{
    disk::{DiskAction, DiskError, MediumId},
    journal::Place,
    overlay::{Overlay, Piece},
    testing::{Plant, planted},
    units::{Order, VolumeId},
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use bytes::Bytes;
use core::ops::Range;

/// A cycle takes at most so many entries, blocks and bytes of data.
pub(super) const CYCLE_ENTRY_COUNT_MAX: usize = 2048;
const CYCLE_BLOCK_COUNT_MAX: u64 = 16_384;
const CYCLE_SIZE_MAX: u64 = 16 << 20;

/// What a disk read of a cycle is for.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    /// A whole journalled payload.
    Payload(Order),
    /// Granules of a plan's block, before the change.
    Base { plan: usize, first: u32 },
    /// Granules for a plan's fold.
    Folded { plan: usize, first: u32 },
    /// The part of a redirected record that a piece of a plan needs.
    Part { offset: u64, volume: VolumeId },
    /// A write.
    Write,
}

/// What is destaged together.
pub(super) struct Cycle {
    pub(super) last: Order,
    pub(super) plans: Vec<Plan>,
    /// Which of the plans are being carried out; those before them are in the pools.
    pub(super) round: Range<usize>,
    /// Redirected blocks of the cycle that no entry will name.
    pub(super) unnamed: Vec<(VolumeId, u32)>,
    pub(super) slots: Vec<(Slot, usize)>,
    pub(super) payloads: BTreeMap<Order, Bytes>,
    pub(super) parts: BTreeMap<(VolumeId, u64), Bytes>,
    /// What is still to be asked of the media, the last first.
    pub(super) queue: Vec<(usize, MediumId, DiskAction)>,
    pub(super) in_flight: usize,
    pub(super) is_writing: bool,
    /// It takes as much as a cycle may.
    pub(super) is_full: bool,
    /// It asked something of a medium.
    pub(super) has_waited: bool,
    pub(super) failed: Option<DiskError>,
}

impl Group {
    /// Takes entries up to `entry_count_max` and plans what becomes of each block. Settles entries on the way. How many it took, and
    /// `None` if a pool has no room for what kept generations need then.
    pub(super) fn plan_cycle(&mut self, entry_count_max: usize) -> (Option<Cycle>, usize) {
        let mut overlays: BTreeMap<VolumeId, Overlay> = BTreeMap::new();
        let (mut last, mut taken, mut size, mut blocks) = (self.applied, 0, 0, 0);
        let mut redirected: Vec<(VolumeId, Vec<u32>)> = Vec::new();
        let limit = self.destage_limit();
        let durable = if planted(Plant::UndurableDestaged) { self.completed } else { self.durable };
        self.find_newest(limit);
        let mut is_full = false;
        for (order, entry) in self.journal.after(self.applied) {
            is_full = taken == entry_count_max || size > CYCLE_SIZE_MAX || blocks > CYCLE_BLOCK_COUNT_MAX;
            if is_full || order > durable.min(limit) {
                break;
            }
            (last, taken) = (order, taken + 1);
            if entry.is_void {
                continue;
            }
            let record = &entry.record;
            if let (true, Some(volume)) = (record.kind.changes_data(), self.volumes.get(&record.volume))
                && order > volume.applied_before
            {
                blocks += record.size / u64::from(volume.table.geometry().block_size) + 1;
                match &entry.place {
                    Place::Redirected(list) => redirected.push((record.volume, list.clone())),
                    Place::Memory | Place::Inline(_) => size += u64::from(record.payload_size),
                }
                for part in self.newest_parts(order, record) {
                    overlays.entry(record.volume).or_default().insert(part.offset, part.end, order);
                }
            }
            if record.kind.is_boundary() && !planted(Plant::GenerationsMixed) {
                break;
            }
        }
        if !overlays.iter().all(|(id, overlay)| self.reserve_records(*id, overlay)) {
            return (None, taken);
        }
        let mut plans = Vec::new();
        let mut named = BTreeSet::new();
        for (id, overlay) in &overlays {
            self.plan_volume(*id, overlay, &mut plans, &mut named);
        }
        let blocks = redirected.into_iter().flat_map(|(id, list)| list.into_iter().map(move |block| (id, block)));
        let cycle = Cycle {
            last,
            plans,
            round: 0..0,
            unnamed: blocks.filter(|block| !named.contains(block)).collect(),
            slots: Vec::new(),
            payloads: BTreeMap::new(),
            parts: BTreeMap::new(),
            queue: Vec::new(),
            in_flight: 0,
            is_writing: false,
            is_full,
            has_waited: false,
            failed: None,
        };
        (Some(cycle), taken)
    }

    /// Makes room for a record of each block that a cycle touches.
    fn reserve_records(&mut self, id: VolumeId, overlay: &Overlay) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else { return true };
        let block_size = u64::from(volume.table.geometry().block_size);
        let blocks =
            overlay.pieces(0, u64::MAX).map(|piece| piece.end.div_ceil(block_size) - piece.offset / block_size);
        volume.table.reserve_records(u32::try_from(blocks.sum::<u64>()).unwrap_or(u32::MAX))
    }

    fn plan_volume(
        &mut self,
        id: VolumeId,
        overlay: &Overlay,
        plans: &mut Vec<Plan>,
        named: &mut BTreeSet<(VolumeId, u32)>,
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let geometry = *volume.table.geometry();
        let block_size = u64::from(geometry.block_size);
        let mut by_block: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
        for piece in overlay.pieces(0, u64::MAX) {
            let mut at = piece.offset;
            while at < piece.end {
                let block = at / block_size;
                let end = ((block + 1) * block_size).min(piece.end);
                by_block.entry(block as u32).or_default().push(Piece { offset: at, end, ..piece });
                at = end;
            }
        }
        for (block, pieces) in by_block {
            let start = u64::from(block) * block_size;
            let whole_end = (start + block_size).min(geometry.volume_size);
            let covered: u64 = pieces.iter().map(|piece| piece.end - piece.offset).sum();
            let zeroes =
                |piece: &Piece| self.journal.entry(piece.order).is_some_and(|entry| entry.record.kind.zeroes());
            let keeps = |piece: &Piece| self.journal.entry(piece.order).is_some_and(|entry| entry.record.keeps);
            let in_pool = |piece: &Piece| match self.journal.entry(piece.order) {
                Some(entry) => match &entry.place {
                    Place::Redirected(list) => {
                        list.get(((start - entry.record.offset.min(start)) / block_size) as usize).copied()
                    }
                    _ => None,
                },
                None => None,
            };
            let is_whole = covered == whole_end - start;
            let entry = volume.table.settle(block);
            let news = if is_whole && pieces.iter().all(|piece| zeroes(piece) && !keeps(piece)) {
                if entry.latest == 0 && entry.snapshot == 0 {
                    continue;
                }
                News::Zeroes
            } else if let (true, [piece]) = (is_whole, pieces.as_slice())
                && let Some(new) = in_pool(piece)
            {
                named.insert((id, new));
                News::Redirected(new)
            } else {
                News::Pieces(pieces)
            };
            plans.push(Plan::new(id, &volume.table, block, entry, news));
        }
    }

    /// Finds the new blocks that the plans need; takes none if there are not enough.
    pub(super) fn allocate(&mut self, cycle: &mut Cycle) -> bool {
        let mut taken: Vec<(VolumeId, u32)> = Vec::new();
        for plan in cycle.plans.iter_mut().filter(|plan| plan.needs_new) {
            let Some(volume) = self.volumes.get_mut(&plan.volume) else {
                continue;
            };
            let Some(block) = volume.table.blocks.allocate() else {
                for (id, block) in taken {
                    if let Some(volume) = self.volumes.get_mut(&id) {
                        volume.table.blocks.unallocate(block);
                    }
                }
                return false;
            };
            plan.after.latest = block;
            taken.push((plan.volume, block));
        }
        true
    }
}
