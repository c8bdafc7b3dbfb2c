//! The address table of a volume: logical block → physical block, for the latest state and for the snapshot.
//!
//! An entry's granules are in its latest block where the mask says so, else in its snapshot block. An entry whose stamp
//! is older than the table's has not changed since the restart point: what it says *is* the snapshot. So a restart
//! point is one increment of the stamp, and rolling back is one increment too, with the old stamp declared void: the
//! content of an entry with a void stamp is its snapshot block.
//!
//! Invariants: before an entry takes the table's stamp, its content is in one physical block (or is zero), which
//! becomes its snapshot. No physical block is named twice.

mod blocks;
mod geometry;
mod store;

pub use crate::format::table_page::Entry;
pub use blocks::{Blocks, ReadCount};
pub use geometry::{Geometry, grown_pool_size, pool_size_for, smallest_pool_size};
pub use store::{LoadError, PageMeta, format_pool, load};

use crate::{
    format::{
        message::Range,
        table_page::{Entries, TABLE_PAGE_ENTRY_COUNT},
    },
    units::{GroupId, MediumUuid, Order, VolumeId},
};
use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};

/// See the module.
pub struct Table {
    group: GroupId,
    medium: MediumUuid,
    volume: VolumeId,
    logical_block_size: u32,
    geometry: Geometry,
    pages: Vec<Option<Entries>>,
    metas: Vec<Option<PageMeta>>,
    changed_pages: BTreeSet<u32>,
    /// The first checkpoint of pages in their present place; what lies there from before does not count.
    pages_since: u64,
    stamp: u32,
    void: Vec<[u32; 2]>,
    /// The next page that the sweep looks at; `None`: nothing to sweep.
    sweep: Option<u32>,
    /// The pool's unused blocks.
    pub blocks: Blocks,
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

    /// The stamp of entries that change now.
    pub fn stamp(&self) -> u32 {
        self.stamp
    }

    /// What a logical block's entry means: void stamps resolved.
    pub fn entry(&self, block: u32) -> Entry {
        let (page, slot) = split(block);
        let entry = self.pages.get(page).and_then(Option::as_ref).map_or_else(Entry::default, |page| page[slot]);
        self.resolve(entry)
    }

    fn resolve(&self, entry: Entry) -> Entry {
        if self.void.iter().any(|range| (range[0]..=range[1]).contains(&entry.stamp)) {
            return Entry {
                latest: entry.snapshot,
                snapshot: 0,
                mask: self.geometry.full_mask(),
                stamp: 0,
                dirty: entry.dirty,
            };
        }
        entry
    }

    /// Replaces a logical block's entry. The caller has freed what the new one does not name.
    pub fn set_entry(&mut self, block: u32, entry: Entry) {
        let (page, slot) = split(block);
        let Some(place) = self.pages.get_mut(page) else {
            return;
        };
        let entries = place.get_or_insert_with(|| Box::new([Entry::default(); TABLE_PAGE_ENTRY_COUNT]));
        let old = core::mem::replace(&mut entries[slot], entry);
        if old != entry {
            self.changed_pages.insert(page as u32);
            self.dirty_count -= u64::from(old.dirty.count_ones());
            self.dirty_count += u64::from(entry.dirty.count_ones());
        }
    }

    /// Settles a void or outdated entry in place, so that it names only what its content needs, and returns it.
    pub fn settle(&mut self, block: u32) -> Entry {
        let (page, slot) = split(block);
        let Some(raw) = self.pages.get(page).and_then(Option::as_ref).map(|page| page[slot]) else {
            return Entry::default();
        };
        let mut entry = self.resolve(raw);
        if entry != raw {
            self.blocks.free(raw.latest);
        }
        // A whole block that did not change since the restart point needs no older one.
        if entry.stamp < self.stamp && entry.mask == self.geometry.full_mask() && entry.snapshot != 0 {
            if entry.latest == 0 {
                self.blocks.give_back(entry.snapshot);
            } else {
                self.blocks.free(entry.snapshot);
            }
            entry.snapshot = 0;
        }
        self.set_entry(block, entry);
        entry
    }

    /// A restart point: what the entries say now becomes the snapshot. O(1).
    pub fn keep_snapshot(&mut self) {
        self.stamp += 1;
        self.sweep = Some(0);
    }

    /// Takes the volume back to the snapshot. O(1), but for a full list of void stamps.
    pub fn roll_back(&mut self) {
        if self.void.len() == crate::format::pool_superblock::VOID_COUNT_MAX {
            self.sweep = Some(0);
            self.sweep_pages(u32::MAX);
        }
        match self.void.last_mut() {
            Some(range) if range[1] + 1 == self.stamp => range[1] = self.stamp,
            _ => self.void.push([self.stamp, self.stamp]),
        }
        self.stamp += 1;
        self.sweep = Some(0);
    }

    /// Settles the entries of the next `page_count` pages; `true` while there is more to do.
    pub fn sweep_pages(&mut self, page_count: u32) -> bool {
        let Some(from) = self.sweep else { return false };
        let to = from.saturating_add(page_count).min(self.pages.len() as u32);
        for page in from..to {
            if self.pages[page as usize].is_some() {
                let first = page * TABLE_PAGE_ENTRY_COUNT as u32;
                (first..first + TABLE_PAGE_ENTRY_COUNT as u32).for_each(|block| {
                    self.settle(block);
                });
            }
        }
        if (to as usize) < self.pages.len() {
            self.sweep = Some(to);
            return true;
        }
        self.sweep = None;
        self.void.clear();
        false
    }

    /// Whether entries wait for [`Table::sweep_pages`].
    pub fn needs_sweep(&self) -> bool {
        self.sweep.is_some()
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

    /// Marks everything as lacking at the peer but for rows of at least `least` blocks that hold nothing; their offsets and
    /// sizes in bytes.
    pub fn mark_all_dirty_but_holes(&mut self, least: u32) -> Vec<(u64, u64)> {
        let (block_size, size) = (u64::from(self.geometry.block_size), self.geometry.volume_size);
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
        let (page, slot) = split(block);
        let raw = self.pages.get(page).and_then(Option::as_ref).map_or_else(Entry::default, |page| page[slot]);
        let dirty = change(raw.dirty);
        if dirty != raw.dirty {
            self.set_entry(block, Entry { dirty, ..raw });
        }
    }
}

fn split(block: u32) -> (usize, usize) {
    (block as usize / TABLE_PAGE_ENTRY_COUNT, block as usize % TABLE_PAGE_ENTRY_COUNT)
}
