//! The address table of a volume: logical block → physical block, for the latest state and for the snapshot.
//!
//! An entry's granules are in its latest block where the mask says so, else in its snapshot block. An entry whose stamp
//! is older than the table's has not changed since the restart point: what it says *is* the snapshot. So a restart
//! point is one increment of the stamp, and rolling back is one increment too, with the stamps since declared void: the
//! content of an entry with a void stamp is what it was before them, its snapshot block if nothing older is recorded. What
//! older generations need beside that is in [`Kept`].
//!
//! Invariants: before an entry takes the table's stamp, its content is in one physical block (or is zero), which
//! becomes its snapshot. No physical block is named twice.

mod blocks;
mod changes;
mod geometry;
mod kept;
mod slots;
mod store;

#[cfg(test)]
mod dirty_tests;
#[cfg(test)]
mod load_tests;

pub use crate::format::table_page::Entry;
pub use blocks::{Blocks, ReadCount};
pub use geometry::{Geometry, grown_pool_size, pool_size_for, smallest_pool_size};
pub use store::{LoadError, TableCheckpoint, format_pool, load};

use crate::{
    format::{
        message::Range,
        table_page::{Entries, TABLE_PAGE_ENTRY_COUNT},
    },
    testing::{Plant, planted},
    units::{GroupId, MediumUuid, Order, VolumeId},
};
use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};
use changes::Changes;
use kept::Kept;
use slots::PageMeta;

/// See the module.
pub struct Table {
    group: GroupId,
    medium: MediumUuid,
    volume: VolumeId,
    logical_block_size: u32,
    geometry: Geometry,
    pages: Vec<Option<Entries>>,
    metas: Vec<Option<PageMeta>>,
    changes: Changes<Entries>,
    /// The first checkpoint of pages in their present place; what lies there from before does not count.
    pages_since: u64,
    stamp: u32,
    void: Vec<[u32; 2]>,
    /// The next page that the sweep looks at; `None`: nothing to sweep.
    sweep: Option<u32>,
    /// The pool's unused blocks.
    pub blocks: Blocks,
    /// How many blocks the durable table knows of.
    block_count_durable: u32,
    /// The generations that are kept.
    kept: Kept,
    /// It was loaded from a format that does not say which generation its snapshot is.
    nameless: bool,
    write_count: u64,
    checkpoint: u64,
    digest: u64,
    /// The last journal entry that the durable table contains.
    applied_durable: Order,
    dirty_count: u64,
}

impl Table {
    /// The volume's layout.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The last journal entry that the durable table contains.
    pub fn applied_durable(&self) -> Order {
        self.applied_durable
    }

    /// Blocks that a journalled record can name: if there was a crash now, the table would know of so many, whatever the medium has
    /// gained since.
    pub fn block_count_durable(&self) -> u32 {
        self.block_count_durable
    }

    /// The stamp of entries that change now.
    pub fn stamp(&self) -> u32 {
        self.stamp
    }

    /// What a logical block's entry means: void stamps resolved.
    pub fn entry(&self, block: u32) -> Entry {
        self.resolve(block, self.raw(block))
    }

    fn resolve(&self, block: u32, entry: Entry) -> Entry {
        let Some(range) = self.void_range(entry.stamp) else { return entry };
        let content = self.kept.find(block, range[0], entry.stamp).unwrap_or(entry.snapshot);
        Entry { stamp: self.last_change(block, range[0]), ..self.whole(content, entry.dirty) }
    }

    fn void_range(&self, stamp: u32) -> Option<[u32; 2]> {
        self.void.iter().find(|range| (range[0]..=range[1]).contains(&stamp)).copied()
    }

    /// A stamp that says after which boundaries before `end` a block has changed last, and after which it has not.
    fn last_change(&self, block: u32, end: u32) -> u32 {
        let mut stamp = self.kept.newest_record(block, end);
        // The boundary may be one to which the volume was taken back: the change came after that.
        while let Some(range) = self.void_range(stamp) {
            stamp = range[1] + 1;
        }
        stamp
    }

    /// The entry of a block whose content is in one place.
    fn whole(&self, content: u32, dirty: u16) -> Entry {
        Entry { latest: content, snapshot: 0, mask: self.geometry.full_mask(), stamp: 0, dirty }
    }

    /// What a logical block's entry was in a generation; `None` if that is not kept.
    pub fn entry_in(&self, generation: Order, block: u32) -> Option<Entry> {
        let boundary = self.kept.boundary(generation)?;
        Some(match self.kept.find(block, boundary, u32::MAX) {
            Some(physical) => self.whole(physical, 0),
            None => {
                let entry = self.entry(block);
                if entry.stamp >= boundary { self.whole(entry.snapshot, 0) } else { entry }
            }
        })
    }

    /// The blocks that may have changed since a generation: all that have, and maybe more; `None` if that is not kept. In no order,
    /// and some twice.
    pub fn changed_since(&self, generation: Order) -> Option<impl Iterator<Item = u32>> {
        let boundary = self.kept.boundary(generation)?;
        // What is void now has at least been written since; and what an entry no longer says a record does.
        let pages = self.pages.iter().enumerate().filter_map(|(page, entries)| Some((page, entries.as_ref()?)));
        let stamped = pages.flat_map(move |(page, entries)| {
            let slots = entries.iter().enumerate().filter(move |(_, entry)| entry.stamp >= boundary);
            slots.map(move |(slot, _)| (page * TABLE_PAGE_ENTRY_COUNT + slot) as u32)
        });
        Some(stamped.chain(self.kept.recorded_since(boundary)))
    }

    /// Whether a generation is kept, and something that is stored has not changed since.
    pub fn has_from_before(&self, generation: Order) -> bool {
        let Some(boundary) = self.kept.boundary(generation) else { return false };
        let is_older = |entry: &Entry| entry.stamp < boundary && (entry.latest != 0 || entry.snapshot != 0);
        self.pages.iter().flatten().any(|page| page.iter().any(is_older))
    }

    fn raw(&self, block: u32) -> Entry {
        let (page, slot) = split(block);
        self.pages.get(page).and_then(Option::as_ref).map_or_else(Entry::default, |page| page[slot])
    }

    /// Replaces a logical block's entry. The caller has freed what the new one does not name.
    pub fn set_entry(&mut self, block: u32, entry: Entry) {
        let (page, slot) = split(block);
        let Some(place) = self.pages.get_mut(page) else {
            return;
        };
        let entries = place.get_or_insert_with(|| Box::new([Entry::default(); TABLE_PAGE_ENTRY_COUNT]));
        let old = entries[slot];
        if old != entry {
            self.changes.note(page as u32, || entries.clone());
            entries[slot] = entry;
            self.dirty_count -= u64::from(old.dirty.count_ones());
            self.dirty_count += u64::from(entry.dirty.count_ones());
        }
    }

    /// Settles a void or outdated entry in place, so that it names only what its content needs, and returns it. There must be
    /// room for a record; see [`Table::reserve_records`].
    pub fn settle(&mut self, block: u32) -> Entry {
        let (page, slot) = split(block);
        let Some(raw) = self.pages.get(page).and_then(Option::as_ref).map(|page| page[slot]) else {
            return Entry::default();
        };
        let mut entry = raw;
        if let Some(range) = self.void_range(raw.stamp) {
            self.blocks.free(raw.latest);
            let mut older = self.kept.take(block, range[0], raw.stamp).into_iter().chain([raw.snapshot]);
            let content = self.whole(older.next().unwrap_or_default(), raw.dirty);
            entry = Entry { stamp: self.last_change(block, range[0]), ..content };
            older.for_each(|physical| self.blocks.free(physical));
        }
        // A whole block that did not change since the restart point needs no older one.
        if entry.stamp < self.stamp && entry.mask == self.geometry.full_mask() {
            self.let_go(block, &entry);
            entry.snapshot = 0;
        }
        self.set_entry(block, entry);
        entry
    }

    /// An entry needs its snapshot no more; perhaps a generation does.
    pub fn let_go(&mut self, block: u32, entry: &Entry) {
        if !planted(Plant::SnapshotFreed) && self.kept.record(block, entry.stamp, entry.snapshot) {
            return;
        }
        if entry.latest == 0 {
            self.blocks.give_back(entry.snapshot);
        } else {
            self.blocks.free(entry.snapshot);
        }
    }

    /// Whether a generation may need what an entry with this stamp held before.
    pub fn may_need(&self, stamp: u32) -> bool {
        self.kept.may_need(stamp)
    }

    /// Makes room for as many records as `count` entries can need. `false`: the pool has none.
    pub fn reserve_records(&mut self, count: u32) -> bool {
        let count = count.min((self.pages.len() * TABLE_PAGE_ENTRY_COUNT) as u32);
        let Self { kept, blocks, geometry, .. } = self;
        kept.reserve(count, self.stamp, self.checkpoint + 1, geometry, blocks)
    }

    /// What the entries say now becomes the snapshot, and is kept as the generation that `order` ends, if there is one. O(1).
    pub fn keep_snapshot(&mut self, order: Option<Order>) {
        self.stamp += 1;
        self.sweep = Some(0);
        if let Some(order) = order {
            self.kept.keep(order, self.stamp);
        }
    }

    /// Of an empty volume: it was nothing in generations that are older than itself.
    pub fn keep_nothing_as(&mut self, generations: &BTreeSet<Order>) {
        generations.iter().for_each(|order| self.keep_snapshot(Some(*order)));
    }

    /// If the table does not know which generation its snapshot is: it is this one.
    pub fn name_snapshot(&mut self, order: Order) {
        if self.nameless {
            self.kept.name(order, self.stamp);
        }
    }

    /// Whether no checkpoint of it was ever made: what it keeps is not known.
    pub fn is_new(&self) -> bool {
        self.checkpoint == 0
    }

    /// Whether a generation is kept.
    pub fn keeps(&self, order: Order) -> bool {
        self.kept.boundary(order).is_some()
    }

    /// The generations that are kept.
    pub fn kept_generations(&self) -> impl Iterator<Item = Order> {
        self.kept.points().into_iter().map(|(order, _)| order)
    }

    /// Bytes of blocks that only a generation and older ones have.
    pub fn bytes_kept_for(&self, order: Order) -> u64 {
        self.kept.record_count(order) as u64 * u64::from(self.geometry.block_size)
    }

    /// Physical blocks that the list of kept blocks is in.
    #[cfg(test)]
    pub fn extent_blocks(&self) -> u32 {
        self.kept.extents().iter().map(|extent| extent.count).sum()
    }

    /// Lets go of the generations that are not `wanted`; `true` if there was one.
    pub fn retain_generations(&mut self, wanted: impl Fn(Order) -> bool) -> bool {
        self.kept.retain(wanted)
    }

    /// Takes the volume back to a generation. O(1), but for a full list of void stamps. `false` if it is not kept.
    pub fn roll_back(&mut self, generation: Order) -> bool {
        let Some(boundary) = self.kept.boundary(generation) else { return false };
        if self.void.len() == crate::format::pool_superblock::VOID_COUNT_MAX {
            self.settle_void();
        }
        // A void range within the new one has nothing more to say.
        self.void.retain(|range| range[0] < boundary);
        self.void.push([boundary, self.stamp]);
        self.stamp += 1;
        self.kept.roll_back(boundary, self.stamp);
        self.sweep = Some(0);
        true
    }

    /// Settles all void entries; no other one, because that may need room.
    fn settle_void(&mut self) {
        for block in 0..(self.pages.len() * TABLE_PAGE_ENTRY_COUNT) as u32 {
            if self.void_range(self.raw(block).stamp).is_some() {
                self.settle(block);
            }
        }
        self.void.clear();
    }

    /// Settles the entries of the next `page_count` pages, or gives as many records without an owner away.
    pub fn sweep_pages(&mut self, page_count: u32) {
        // Void entries may still need records of generations that were let go of.
        if self.void.is_empty() {
            self.kept.adopt_orphans(TABLE_PAGE_ENTRY_COUNT * page_count as usize, &mut self.blocks);
        }
        let Some(from) = self.sweep else { return };
        let to = from.saturating_add(page_count).min(self.pages.len() as u32);
        for page in (from..to).filter(|page| self.pages[*page as usize].is_some()).collect::<Vec<_>>() {
            let has_room = self.reserve_records(TABLE_PAGE_ENTRY_COUNT as u32);
            let first = page * TABLE_PAGE_ENTRY_COUNT as u32;
            for block in first..first + TABLE_PAGE_ENTRY_COUNT as u32 {
                // Without room for records the others are settled when they are written next.
                if has_room || self.void_range(self.raw(block).stamp).is_some() {
                    self.settle(block);
                }
            }
        }
        self.sweep = Some(to).filter(|to| (*to as usize) < self.pages.len());
        if self.sweep.is_none() {
            self.void.clear();
        }
    }

    /// Whether entries wait for [`Table::sweep_pages`].
    pub fn needs_sweep(&self) -> bool {
        self.sweep.is_some() || self.kept.has_orphans()
    }

    /// Marks a range in bytes as lacking at the peer.
    pub fn mark_dirty(&mut self, offset: u64, size: u64) {
        let block_size = u64::from(self.geometry.block_size);
        let end = offset.saturating_add(size).min(self.geometry.volume_size);
        let mut at = offset;
        while at < end {
            let block = at / block_size;
            let stop = ((block + 1) * block_size).min(end);
            let bits = self.dirty_bits(at - block * block_size, stop - block * block_size);
            self.set_dirty(block as u32, |dirty| dirty | bits);
            at = stop;
        }
    }

    /// Marks everything that is not a hole as lacking at the peer.
    pub fn mark_stored_dirty(&mut self) {
        let full = self.geometry.dirty_full();
        for page in 0..self.pages.len() {
            if self.pages[page].is_none() {
                continue;
            }
            for block in (page * TABLE_PAGE_ENTRY_COUNT) as u32..((page + 1) * TABLE_PAGE_ENTRY_COUNT) as u32 {
                let entry = self.entry(block);
                if entry.latest != 0 || entry.snapshot != 0 {
                    self.set_dirty(block, |_| full);
                }
            }
        }
    }

    /// Marks everything in the first `size` bytes as lacking at the peer but for rows of at least `least` blocks that hold
    /// nothing; their offsets and sizes in bytes.
    pub fn mark_all_dirty_but_holes(&mut self, size: u64, least: u32) -> Vec<(u64, u64)> {
        let (block_size, size) = (u64::from(self.geometry.block_size), size.min(self.geometry.volume_size));
        let (count, full) = (size.div_ceil(block_size) as u32, self.geometry.dirty_full());
        let (mut block, mut holes) = (0, Vec::new());
        while block < count {
            let run = self.hole_count(block, count - block);
            if run >= least {
                let offset = u64::from(block) * block_size;
                holes.push((offset, (u64::from(run) * block_size).min(size - offset)));
            } else {
                (block..block + run.max(1)).for_each(|block| self.set_dirty(block, |_| full));
            }
            block += run.max(1);
        }
        holes
    }

    /// How many blocks in a row hold nothing, from `from` on, at most `most`.
    pub fn hole_count(&self, from: u32, most: u32) -> u32 {
        let mut count = 0;
        while count < most {
            let (page, slot) = split(from + count);
            match self.pages.get(page) {
                None => break,
                Some(None) => count += (TABLE_PAGE_ENTRY_COUNT - slot) as u32,
                Some(Some(_)) => {
                    let entry = self.entry(from + count);
                    if entry.latest != 0 || entry.snapshot != 0 {
                        break;
                    }
                    count += 1;
                }
            }
        }
        count.min(most)
    }

    /// The dirty bits of a block that ranges of the volume touch.
    pub fn dirty_bits_of(&self, block: u32, ranges: &[Range]) -> u16 {
        let block_size = u64::from(self.geometry.block_size);
        let start = u64::from(block) * block_size;
        let clip = |at: u64| at.clamp(start, start + block_size) - start;
        let parts = ranges.iter().map(|range| (clip(range.offset), clip(range.offset + range.size)));
        parts.filter(|(from, to)| from < to).fold(0, |bits, (from, to)| bits | self.dirty_bits(from, to))
    }

    /// The peer has these parts of a block now.
    pub fn clear_dirty(&mut self, block: u32, bits: u16) {
        self.set_dirty(block, |dirty| dirty & !bits);
    }

    /// The peer is known to have all, or there is no peer.
    pub fn clear_all_dirty(&mut self) {
        for page in 0..self.pages.len() {
            if self.pages[page].as_ref().is_some_and(|page| page.iter().any(|entry| entry.dirty != 0)) {
                let first = (page * TABLE_PAGE_ENTRY_COUNT) as u32;
                (first..first + TABLE_PAGE_ENTRY_COUNT as u32).for_each(|block| self.set_dirty(block, |_| 0));
            }
        }
    }

    /// The first block from `from` on that the peer lacks parts of, and which.
    pub fn next_dirty(&self, from: u32) -> Option<(u32, u16)> {
        if self.dirty_count == 0 {
            return None;
        }
        let (first, slot) = split(from);
        let mut slot = slot;
        for (index, page) in self.pages.iter().enumerate().skip(first) {
            if let Some(page) = page
                && let Some(found) = page[slot..].iter().position(|entry| entry.dirty != 0)
            {
                let block = index * TABLE_PAGE_ENTRY_COUNT + slot + found;
                return Some((block as u32, page[slot + found].dirty));
            }
            slot = 0;
        }
        None
    }

    /// Bytes that the peer lacks, at most.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_count * u64::from(self.geometry.dirty_unit())
    }

    fn dirty_bits(&self, from: u64, to: u64) -> u16 {
        let unit = u64::from(self.geometry.dirty_unit());
        (from / unit..to.div_ceil(unit)).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn set_dirty(&mut self, block: u32, change: impl FnOnce(u16) -> u16) {
        let raw = self.raw(block);
        let dirty = change(raw.dirty);
        if dirty != raw.dirty {
            self.set_entry(block, Entry { dirty, ..raw });
        }
    }
}

fn split(block: u32) -> (usize, usize) {
    (block as usize / TABLE_PAGE_ENTRY_COUNT, block as usize % TABLE_PAGE_ENTRY_COUNT)
}
