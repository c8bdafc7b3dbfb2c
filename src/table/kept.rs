//! What kept generations need and the table's entries no longer name.
//!
//! A *boundary* is the first stamp that is no part of a generation. A *record* says in which physical block a logical block was
//! until a boundary; it is made when the entry lets go of that block. So a generation's content of a logical block is: its
//! oldest record at the generation's boundary or a later one; without one, the entry's snapshot if the entry has changed
//! since, else what the entry says.
//!
//! A generation that is let go of leaves records without an owner. Each goes to the next older generation, unless that
//! has the block from before; this is work that can wait, because looking up finds such records all the same.

use super::{
    Blocks, Geometry,
    changes::Changes,
    slots::{PAGE_PAIR_SIZE, PageMeta},
};
use crate::{
    format::{
        kept_page::{self, KEPT_PAGE_RECORD_COUNT, KeptRecord},
        pool_superblock::{EXTENT_COUNT_MAX, Extent},
    },
    units::{MediumUuid, Order},
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use bytes::Bytes;

/// Distinguishes pages of kept blocks from the table's pages in the digest.
const DIGEST_INDEX: u32 = 1 << 31;

/// See the module.
#[derive(Default)]
pub struct Kept {
    /// The journal entry that began each generation's successor, and its boundary.
    points: BTreeMap<Order, u32>,
    /// The durable table's stamp and boundaries: a crash leads back to it, so what it needs must not be overwritten.
    durable: (u32, Vec<u32>),
    /// Boundary → logical block → slot.
    records: BTreeMap<u32, BTreeMap<u32, u32>>,
    slots: Vec<KeptRecord>,
    free: Vec<u32>,
    extents: Vec<Extent>,
    metas: Vec<Option<PageMeta>>,
    changes: Changes<Vec<KeptRecord>>,
    /// Records have no owner.
    has_orphans: bool,
    /// The boundary to which the volume was taken back last, and the first stamp after that: no entry has one between them.
    rolled: Option<(u32, u32)>,
}

/// How many records a pool of so many blocks may have: bounds what is taken from a medium.
fn record_count_max(geometry: &Geometry) -> u64 {
    4 * u64::from(geometry.block_count) + (1 << 16)
}

impl Kept {
    /// What a superblock says, without its records; `None` if it cannot be.
    pub fn new(points: Vec<(Order, u32)>, stamp: u32, extents: Vec<Extent>, geometry: &Geometry) -> Option<Self> {
        let blocks: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
        // Twice, because the last extent may double the room.
        let most = 2 * record_count_max(geometry).div_ceil(KEPT_PAGE_RECORD_COUNT as u64) * PAGE_PAIR_SIZE;
        let is_possible = blocks.checked_mul(u64::from(geometry.block_size)).is_some_and(|size| size <= most);
        if !is_possible || extents.iter().any(|extent| extent.first == 0 || extent.count == 0) {
            return None;
        }
        let durable = (stamp, points.iter().map(|(_, boundary)| *boundary).collect());
        let mut kept = Self { points: points.into_iter().collect(), durable, extents, ..Self::default() };
        let pages = kept.extents.iter().map(|extent| pages_in(extent.count, geometry)).sum();
        kept.metas.resize(pages, None);
        kept.slots.resize(pages * KEPT_PAGE_RECORD_COUNT, KeptRecord::default());
        Some(kept)
    }

    /// Where the first slot of a page is on the medium; `None`: there is no such page.
    fn page_offset(&self, index: u32, geometry: &Geometry) -> Option<u64> {
        let mut left = index as usize;
        for extent in &self.extents {
            let pages = pages_in(extent.count, geometry);
            if left < pages {
                return Some(geometry.offset_of(extent.first) + left as u64 * PAGE_PAIR_SIZE);
            }
            left -= pages;
        }
        None
    }

    /// The pages' places on the medium: index, offset of the first slot, and since which checkpoint they count.
    pub fn pages(&self, geometry: &Geometry) -> Vec<(u32, u64, u64)> {
        let within = |extent: &Extent| {
            let start = geometry.offset_of(extent.first);
            let since = extent.since;
            (0..pages_in(extent.count, geometry) as u64).map(move |page| (start + page * PAGE_PAIR_SIZE, since))
        };
        (0..).zip(self.extents.iter().flat_map(within)).map(|(index, (offset, since))| (index, offset, since)).collect()
    }

    /// The extents.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The generations.
    pub fn points(&self) -> Vec<(Order, u32)> {
        self.points.iter().map(|(order, boundary)| (*order, *boundary)).collect()
    }

    /// Takes a page in that was read; what it adds to the digest. `None`: it cannot be.
    pub fn load(
        &mut self,
        index: u32,
        meta: PageMeta,
        records: Vec<KeptRecord>,
        block_count: u32,
        blocks: &mut Blocks,
    ) -> Option<u64> {
        let first = index as usize * KEPT_PAGE_RECORD_COUNT;
        for (place, record) in (first..).zip(records).filter(|(_, record)| record.boundary != 0) {
            let is_new = self.records.entry(record.boundary).or_default().insert(record.block, place as u32).is_none();
            let is_free = record.physical == 0 || blocks.claim(record.physical);
            if !is_new || !is_free || record.block >= block_count || record.boundary > self.durable.0 {
                return None;
            }
            *self.slots.get_mut(place)? = record;
        }
        *self.metas.get_mut(index as usize)? = Some(meta);
        Some(meta.weight(index | DIGEST_INDEX))
    }

    /// The next checkpoint writes a page again, because an unfinished one may have left something.
    pub fn rewrite(&mut self, index: u32) {
        self.changes.add([index]);
    }

    /// All pages are in.
    pub fn loaded(&mut self) {
        let unused = (0..).zip(&self.slots).filter(|(_, record)| record.boundary == 0).map(|(slot, _)| slot);
        self.free = unused.collect();
        self.free.reverse();
        self.look_for_orphans();
    }

    /// The boundary of a generation.
    pub fn boundary(&self, order: Order) -> Option<u32> {
        self.points.get(&order).copied()
    }

    /// Keeps a generation.
    pub fn keep(&mut self, order: Order, boundary: u32) {
        self.points.insert(order, boundary);
    }

    /// Lets go of the generations that are not `wanted`; `true` if there was one.
    pub fn retain(&mut self, wanted: impl Fn(Order) -> bool) -> bool {
        let count = self.points.len();
        self.points.retain(|order, _| wanted(*order));
        let has_gone = self.points.len() < count;
        if has_gone {
            self.look_for_orphans();
        }
        has_gone
    }

    /// Lets go of the generations after a boundary: the volume is taken back to it, and goes on with the stamp `now`.
    pub fn roll_back(&mut self, boundary: u32, now: u32) {
        self.points.retain(|_, other| *other <= boundary);
        self.rolled = Some((boundary, now));
        self.look_for_orphans();
    }

    /// The newest generation that an entry changed after.
    fn needs(&self, stamp: u32) -> Option<u32> {
        // Most entries are older than all.
        self.points.values().next().filter(|oldest| **oldest <= stamp)?;
        self.points.values().rev().copied().find(|boundary| *boundary <= stamp)
    }

    /// Whether what an entry with this stamp held before may be needed: now, or after a crash, which leads back to the durable
    /// table and from there through boundaries that are behind us now.
    pub fn may_need(&self, stamp: u32) -> bool {
        let (passed, durable) = &self.durable;
        self.needs(stamp).is_some() || *passed < stamp || durable.iter().any(|boundary| *boundary <= stamp)
    }

    /// The only generation that there is; the durable table has it, but does not say which it is.
    pub fn name(&mut self, order: Order, boundary: u32) {
        self.points = [(order, boundary)].into();
        self.durable.1 = [boundary].into();
    }

    /// Whether an entry may have to be recorded before the stamp `now`.
    fn records_may_come(&self, now: u32) -> bool {
        let first = |boundary: &u32| match self.rolled {
            Some((to, since)) if to == *boundary => since,
            _ => *boundary,
        };
        self.points.values().any(|boundary| first(boundary) < now)
    }

    /// The oldest record of a block at a boundary from `from` to `to`.
    pub fn find(&self, block: u32, from: u32, to: u32) -> Option<u32> {
        if to < from {
            return None;
        }
        let slot = self.records.range(from..=to).find_map(|(_, blocks)| blocks.get(&block))?;
        self.slots.get(*slot as usize).map(|record| record.physical)
    }

    /// The blocks that have a record at this boundary or a later one.
    pub fn recorded_since(&self, boundary: u32) -> impl Iterator<Item = u32> {
        self.records.range(boundary..).flat_map(|(_, blocks)| blocks.keys().copied())
    }

    /// The last boundary before `end` that has a record of a block: the block has changed since, and the stamp says so.
    pub fn newest_record(&self, block: u32, end: u32) -> u32 {
        let mut boundaries = self.records.range(..end).rev();
        boundaries.find(|(_, blocks)| blocks.contains_key(&block)).map_or(0, |(boundary, _)| *boundary)
    }

    /// What [`Kept::find`] finds; all records there are forgotten, and their blocks come back oldest first. `from` is not after `to`.
    pub fn take(&mut self, block: u32, from: u32, to: u32) -> Vec<u32> {
        let range = self.records.range_mut(from..=to);
        let slots: Vec<u32> = range.filter_map(|(_, blocks)| blocks.remove(&block)).collect();
        slots.into_iter().map(|slot| self.forget(slot)).collect()
    }

    /// An entry with this stamp lets go of the block that held its content before. `true` if a generation needs it.
    pub fn record(&mut self, block: u32, stamp: u32, physical: u32) -> bool {
        let Some(boundary) = self.needs(stamp).filter(|boundary| self.find(block, *boundary, stamp).is_none()) else {
            return false;
        };
        let Some(slot) = self.free.pop() else {
            debug_assert!(false, "room was not reserved");
            // Better none than one that shows something else.
            self.points.retain(|_, other| *other > boundary);
            self.look_for_orphans();
            return false;
        };
        self.set(slot, KeptRecord { boundary, block, physical });
        self.records.entry(boundary).or_default().insert(block, slot);
        true
    }

    fn set(&mut self, slot: u32, record: KeptRecord) {
        let page = slot / KEPT_PAGE_RECORD_COUNT as u32;
        self.changes.note(page, || self.slots[records_of(page)].to_vec());
        self.slots[slot as usize] = record;
    }

    fn forget(&mut self, slot: u32) -> u32 {
        let physical = self.slots[slot as usize].physical;
        self.set(slot, KeptRecord::default());
        self.free.push(slot);
        physical
    }

    /// Whether records have no owner.
    pub fn has_orphans(&self) -> bool {
        self.has_orphans
    }

    fn look_for_orphans(&mut self) {
        let owned: BTreeSet<u32> = self.points.values().copied().collect();
        self.has_orphans = self.records.keys().any(|boundary| !owned.contains(boundary));
    }

    /// Gives up to `count` records without an owner to the next older generation, or frees their blocks.
    pub fn adopt_orphans(&mut self, count: usize, blocks: &mut Blocks) {
        if !self.has_orphans {
            return;
        }
        let owned: BTreeSet<u32> = self.points.values().copied().collect();
        let mut left = count;
        while left > 0
            && let Some(boundary) = self.records.keys().find(|boundary| !owned.contains(boundary)).copied()
        {
            let older = owned.range(..boundary).next_back().copied();
            let Some(mut orphans) = self.records.remove(&boundary) else { return };
            while left > 0
                && let Some((block, slot)) = orphans.pop_first()
            {
                left -= 1;
                match older.filter(|older| self.find(block, *older, boundary).is_none()) {
                    Some(older) => {
                        self.set(slot, KeptRecord { boundary: older, ..self.slots[slot as usize] });
                        self.records.entry(older).or_default().insert(block, slot);
                    }
                    None => blocks.free(self.forget(slot)),
                }
            }
            if !orphans.is_empty() {
                self.records.insert(boundary, orphans);
            }
        }
        self.records.retain(|_, blocks| !blocks.is_empty());
        self.look_for_orphans();
    }

    /// Makes room for `count` more records, if entries with stamps before `now` may need it. `false`: the pool has none.
    pub fn reserve(
        &mut self,
        count: u32,
        now: u32,
        next_checkpoint: u64,
        geometry: &Geometry,
        blocks: &mut Blocks,
    ) -> bool {
        if !self.records_may_come(now) {
            return true;
        }
        while self.free.len() < count as usize {
            let lacking = (count as usize - self.free.len()).div_ceil(KEPT_PAGE_RECORD_COUNT) as u64;
            let least = (lacking * PAGE_PAIR_SIZE).div_ceil(u64::from(geometry.block_size)) as u32;
            // Each extent doubles the room, so that a few are enough; where there is no row so long, shorter ones do.
            let double = self.extents.iter().map(|extent| extent.count).sum::<u32>().max(least);
            let is_possible =
                self.extents.len() < EXTENT_COUNT_MAX && (self.slots.len() as u64) < record_count_max(geometry);
            let mut sizes = core::iter::successors(Some(double), |size| Some(size / 2)).take_while(|size| *size > 0);
            let found =
                if is_possible { sizes.find_map(|count| Some((blocks.allocate_run(count)?, count))) } else { None };
            let Some((first, count)) = found else { return false };
            self.extents.push(Extent { first, count, since: next_checkpoint });
            let (page, pages) = (self.metas.len(), pages_in(count, geometry));
            self.metas.resize(page + pages, None);
            // All of them are written, so that nothing that lay there can be taken for one of them.
            self.changes.add((page..page + pages).map(|page| page as u32));
            let slot = self.slots.len();
            self.slots.resize(slot + pages * KEPT_PAGE_RECORD_COUNT, KeptRecord::default());
            self.free.extend((slot..self.slots.len()).rev().map(|slot| slot as u32));
        }
        true
    }

    /// Blocks that a generation has and the next newer one has not.
    pub fn record_count(&self, order: Order) -> usize {
        self.boundary(order).and_then(|boundary| self.records.get(&boundary)).map_or(0, BTreeMap::len)
    }

    /// Whether a checkpoint would write a page.
    pub fn is_changed(&self) -> bool {
        !self.changes.is_empty()
    }

    /// A checkpoint begins.
    pub fn begin_checkpoint(&mut self) {
        self.changes.begin();
    }

    /// The next page of the running checkpoint: offset on the medium, bytes, and what it adds to the digest.
    pub fn next_page(&mut self, pool: MediumUuid, checkpoint: u64, geometry: &Geometry) -> Option<(u64, Bytes, u64)> {
        let (index, before) = self.changes.take()?;
        let records = before.as_deref().unwrap_or(&self.slots[records_of(index)]);
        let (bytes, checksum) = kept_page::encode(pool, index, checkpoint, records);
        let meta = &mut self.metas[index as usize];
        let (slot, added) = PageMeta::write(meta, index | DIGEST_INDEX, checkpoint, checksum);
        Some((self.page_offset(index, geometry)? + slot, bytes, added))
    }

    /// A checkpoint of these generations is durable.
    pub fn commit_checkpoint(&mut self, stamp: u32, boundaries: Vec<u32>) {
        self.durable = (stamp, boundaries);
    }
}

/// Which records are in a page.
fn records_of(page: u32) -> core::ops::Range<usize> {
    let first = page as usize * KEPT_PAGE_RECORD_COUNT;
    first..first + KEPT_PAGE_RECORD_COUNT
}

fn pages_in(count: u32, geometry: &Geometry) -> usize {
    (u64::from(count) * u64::from(geometry.block_size) / PAGE_PAIR_SIZE) as usize
}
