//! The table on its medium: formatted, loaded, and written at a checkpoint.
//!
//! A checkpoint writes the changed pages into their other slots, syncs, then writes the superblock that makes them
//! count, and syncs again. Until that last step the table of the checkpoint before is whole on the medium.

use super::{
    Blocks, Entry, Geometry, Table,
    changes::Changes,
    kept::Kept,
    slots::{PAGE_PAIR_SIZE, PageMeta, Slots},
};
use crate::{
    command::VolumeSpec,
    disk::{DiskError, MediumId, Storage},
    format::{
        FormatError,
        journal_superblock::SLOTS,
        kept_page,
        pool_superblock::{POOL_SUPERBLOCK_SIZE, PoolSuperblock},
        table_page::{self, TABLE_PAGE_ENTRY_COUNT},
        volume_entry::check_geometry,
    },
    occupant::Occupant,
    units::{GroupId, MediumUuid, Order, VOLUME_SIZE_MAX},
};
use alloc::{boxed::Box, vec, vec::Vec};
use bytes::Bytes;

/// Why a pool was not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The medium failed.
    #[error("Cannot read or write the pool")]
    Disk(#[from] DiskError),
    /// Not a pool, damaged, or of another version.
    #[error("The pool cannot be used: {0}")]
    Format(#[from] FormatError),
    /// Another group's or volume's pool.
    #[error(
        "The pool belongs to group {group}, medium {medium}; the journal expects group {expected_group}, medium {expected_medium}"
    )]
    Foreign {
        /// Whose it is.
        group: GroupId,
        /// Which it is.
        medium: MediumUuid,
        /// Whose it should be.
        expected_group: GroupId,
        /// Which it should be.
        expected_medium: MediumUuid,
    },
    /// It holds something already.
    #[error("The medium already holds {0}; {way_out}", way_out = .0.way_out())]
    InUse(Occupant),
    /// Too small.
    #[error(
        "A volume of {volume_size} bytes needs a pool of at least {needed} bytes, but the medium has {medium_size}; choose a smaller volume or a larger medium"
    )]
    Small {
        /// The volume's size in bytes.
        volume_size: u64,
        /// Bytes that hold it once.
        needed: u64,
        /// The medium's size in bytes.
        medium_size: u64,
    },
    /// The volume cannot be.
    #[error("The volume is not possible: {0}")]
    Geometry(&'static str),
    /// The table says what no correct program says.
    #[error(
        "The address table has an impossible {field} for block {block} of the volume; copy the volume anew from the peer or restore it"
    )]
    Entry {
        /// The logical block.
        block: u64,
        /// What of its entry.
        field: &'static str,
    },
    /// Pages are missing or older than the superblock says.
    #[error(
        "The address table is damaged (digest {found:#x}, not {expected:#x}); copy the volume anew from the peer or restore it"
    )]
    Damaged {
        /// What the pages give.
        found: u64,
        /// What the superblock says.
        expected: u64,
    },
}

/// Writes an empty table for a volume.
pub fn format_pool(storage: &mut dyn Storage, group: GroupId, spec: &VolumeSpec) -> Result<(), LoadError> {
    check_geometry(spec).map_err(LoadError::Geometry)?;
    let medium = MediumId::Pool(spec.id);
    let medium_size = storage.size(medium)?;
    let geometry = Geometry::fit(spec.size, spec.table_block_size, medium_size).ok_or_else(|| {
        let twice = super::pool_size_for(spec.size, spec.table_block_size);
        LoadError::Small { volume_size: spec.size, needed: twice - spec.size, medium_size }
    })?;
    if let Some(occupant) = Occupant::find(storage, medium)? {
        return Err(LoadError::InUse(occupant));
    }
    let mut superblock = PoolSuperblock {
        write_count: 0,
        group,
        medium: spec.pool,
        volume: spec.id,
        volume_size: spec.size,
        logical_block_size: spec.logical_block_size,
        block_size: spec.table_block_size,
        block_count: geometry.block_count,
        blocks_offset: geometry.blocks_offset,
        pages_offset: geometry.pages_offset,
        pages_since: 0,
        checkpoint: 0,
        digest: 0,
        applied: Order(0),
        stamp: 1,
        void: Vec::new(),
        kept: Some(Vec::new()),
        extents: Vec::new(),
    };
    for write_count in 0..2 {
        superblock.write_count = write_count;
        storage.write(medium, superblock.slot(), superblock.encode())?;
    }
    Ok(storage.sync(medium)?)
}

fn read_superblock(storage: &mut dyn Storage, medium: MediumId) -> Result<PoolSuperblock, LoadError> {
    let mut best: Result<PoolSuperblock, LoadError> = Err(FormatError::Absent("pool").into());
    for slot in SLOTS {
        let bytes = storage.read(medium, slot, POOL_SUPERBLOCK_SIZE as u32)?;
        match PoolSuperblock::parse(&bytes) {
            Ok(found) if best.as_ref().is_ok_and(|best| best.write_count >= found.write_count) => {}
            Ok(found) => best = Ok(found),
            // A newer program has been here: the older slot must not be taken for the truth.
            Err(error @ FormatError::Version { .. }) => return Err(error.into()),
            Err(error) if best.is_err() && error != FormatError::Absent("pool superblock") => best = Err(error.into()),
            Err(_) => {}
        }
    }
    best
}

/// Reads a volume's table.
pub fn load(storage: &mut dyn Storage, group: GroupId, spec: &VolumeSpec) -> Result<Table, LoadError> {
    let medium = MediumId::Pool(spec.id);
    let superblock = read_superblock(storage, medium)?;
    if superblock.group != group || superblock.medium != spec.pool {
        return Err(LoadError::Foreign {
            group: superblock.group,
            medium: superblock.medium,
            expected_group: group,
            expected_medium: spec.pool,
        });
    }
    let geometry = Geometry {
        volume_size: superblock.volume_size,
        block_size: superblock.block_size,
        block_count: superblock.block_count,
        blocks_offset: superblock.blocks_offset,
        pages_offset: superblock.pages_offset,
    };
    // A volume whose growth was interrupted is still the smaller one.
    let of_volume = (spec.size..=VOLUME_SIZE_MAX).contains(&geometry.volume_size)
        && spec.table_block_size == geometry.block_size
        && spec.logical_block_size == superblock.logical_block_size;
    if !of_volume || !geometry.is_sound(storage.size(medium)?) {
        return Err(LoadError::Geometry("the pool's layout is not that of the volume, or the medium has shrunk"));
    }
    let page_count = geometry.page_count() as usize;
    let mut blocks = Blocks::new(geometry.block_count);
    let (first, count) = geometry.page_blocks();
    let extents = superblock.extents.iter().map(|extent| (extent.first, extent.count));
    for (first, count) in extents.chain([(first, count)]) {
        let end = first.checked_add(count).filter(|end| *end <= geometry.block_count + 1);
        if !(first..end.unwrap_or_default()).all(|block| blocks.claim(block)) || end.is_none() {
            return Err(FormatError::Field { what: "pool superblock", field: "extent" }.into());
        }
    }
    let nameless = superblock.kept.is_none();
    let kept = Kept::new(superblock.kept.unwrap_or_default(), superblock.stamp, superblock.extents, &geometry);
    let kept = kept.ok_or(FormatError::Field { what: "pool superblock", field: "extent" })?;
    let mut table = Table {
        group,
        medium: superblock.medium,
        volume: spec.id,
        logical_block_size: superblock.logical_block_size,
        geometry,
        pages: vec![None; page_count],
        metas: vec![None; page_count],
        changes: Changes::default(),
        pages_since: superblock.pages_since,
        stamp: superblock.stamp,
        void: superblock.void,
        sweep: Some(0),
        blocks,
        block_count_durable: geometry.block_count,
        kept,
        nameless,
        write_count: superblock.write_count,
        checkpoint: superblock.checkpoint,
        digest: 0,
        applied_durable: superblock.applied,
        dirty_count: 0,
    };
    load_pages(storage, medium, &mut table)?;
    load_kept(storage, medium, &mut table)?;
    if table.digest != superblock.digest {
        return Err(LoadError::Damaged { found: table.digest, expected: superblock.digest });
    }
    Ok(table)
}

fn load_pages(storage: &mut dyn Storage, medium: MediumId, table: &mut Table) -> Result<(), LoadError> {
    const PAGES_AT_ONCE: usize = 128;
    let page_count = table.pages.len();
    for first in (0..page_count).step_by(PAGES_AT_ONCE) {
        let count = PAGES_AT_ONCE.min(page_count - first);
        let size = count as u64 * PAGE_PAIR_SIZE;
        let bytes = storage.read(medium, table.geometry.page_offset(first as u32), size as u32)?;
        for (index, pair) in (first..).zip(bytes.chunks_exact(PAGE_PAIR_SIZE as usize)) {
            let parse = |raw: &[u8]| table_page::parse(raw, table.medium, index as u32);
            let slots = Slots::read(pair, table.pages_since, table.checkpoint, parse);
            if slots.unfinished {
                table.changes.add([index as u32]);
                table.pages[index] = Some(Box::new([Entry::default(); TABLE_PAGE_ENTRY_COUNT]));
            }
            let Some((entries, meta)) = slots.newest else { continue };
            for (block, entry) in (index as u64 * TABLE_PAGE_ENTRY_COUNT as u64..).zip(entries.iter()) {
                require_possible(&table.geometry, table.stamp, block, entry)?;
                for physical in [entry.latest, entry.snapshot] {
                    if physical != 0 && !table.blocks.claim(physical) {
                        return Err(LoadError::Entry { block, field: "physical block" });
                    }
                }
                table.dirty_count += u64::from(entry.dirty.count_ones());
            }
            table.digest = table.digest.wrapping_add(meta.weight(index as u32));
            table.metas[index] = Some(meta);
            table.pages[index] = Some(entries);
        }
    }
    Ok(())
}

/// Requires what the rest of the program relies on: only then can a block be read, folded and copied as its entry says.
fn require_possible(geometry: &Geometry, stamp: u32, block: u64, entry: &Entry) -> Result<(), LoadError> {
    let full = geometry.full_mask();
    let is_in_volume = block < geometry.volume_size.div_ceil(u64::from(geometry.block_size));
    let holds_nothing = entry.latest == 0 && entry.snapshot == 0 && entry.dirty == 0;
    // Without a latest block all granules are zeroes, or all are in the snapshot.
    let has_granules = entry.mask & !full == 0 && (entry.latest != 0 || entry.mask == 0 || entry.mask == full);
    let conditions = [
        (is_in_volume || holds_nothing, "place"),
        (has_granules, "mask"),
        (entry.stamp <= stamp, "stamp"),
        (entry.dirty & !geometry.dirty_full() == 0, "set of dirty parts"),
    ];
    match conditions.iter().find(|(holds, _)| !holds) {
        Some((_, field)) => Err(LoadError::Entry { block, field }),
        None => Ok(()),
    }
}

fn load_kept(storage: &mut dyn Storage, medium: MediumId, table: &mut Table) -> Result<(), LoadError> {
    for (index, offset, since) in table.kept.pages(&table.geometry) {
        let bytes = storage.read(medium, offset, PAGE_PAIR_SIZE as u32)?;
        let parse = |raw: &[u8]| kept_page::parse(raw, table.medium, index);
        let slots = Slots::read(&bytes, since, table.checkpoint, parse);
        if slots.unfinished {
            table.kept.rewrite(index);
        }
        let Some((records, meta)) = slots.newest else { continue };
        let block_count = (table.pages.len() * TABLE_PAGE_ENTRY_COUNT) as u32;
        let weight = table.kept.load(index, meta, records, block_count, &mut table.blocks);
        let weight = weight.ok_or(FormatError::Field { what: "page of kept blocks", field: "record" })?;
        table.digest = table.digest.wrapping_add(weight);
    }
    table.kept.loaded();
    Ok(())
}

/// A checkpoint of a table that is being made: what of it is no page.
pub struct TableCheckpoint {
    superblock: PoolSuperblock,
}

impl Table {
    /// Makes the volume larger, on a medium of `medium_size` bytes: `false` if that has not enough room. It counts from the
    /// next checkpoint on. If the pages move, that must not be the first checkpoint since the table was loaded: an attempt
    /// that failed before may have left pages with that number.
    pub fn grow(&mut self, volume_size: u64, medium_size: u64) -> bool {
        let (mut grown, is_crowded) = self.geometry.grown(volume_size, medium_size);
        let page_blocks = if is_crowded { grown.pages_size().div_ceil(u64::from(grown.block_size)) } else { 0 };
        let table_blocks = if is_crowded { page_blocks } else { u64::from(self.geometry.page_blocks().1) };
        let needed = volume_size.div_ceil(u64::from(grown.block_size)) + table_blocks;
        // What the medium has gained can be used whatever comes of the rest.
        self.geometry.block_count = grown.block_count;
        self.blocks.extend(grown.block_count);
        if u64::from(grown.block_count) < needed {
            return false;
        }
        if is_crowded {
            let Some(first) = self.blocks.allocate_run(page_blocks as u32) else {
                return false;
            };
            let (old, count) = self.geometry.page_blocks();
            (old..old + count).for_each(|block| self.blocks.free(block));
            grown.pages_offset = grown.offset_of(first);
            // The pages of kept blocks stay where they are, and in the digest.
            for (index, meta) in (0..).zip(&mut self.metas) {
                let gone = meta.take().map_or(0, |meta| meta.weight(index));
                self.digest = self.digest.wrapping_sub(gone);
            }
            self.pages_since = self.checkpoint + 1;
            let stored = (0..).zip(&self.pages).filter(|(_, page)| page.is_some()).map(|(index, _)| index);
            self.changes.add(stored);
        }
        self.pages.resize(grown.page_count() as usize, None);
        self.metas.resize(grown.page_count() as usize, None);
        self.geometry = grown;
        true
    }

    /// Whether a checkpoint would change anything but the applied order.
    pub fn is_changed(&self) -> bool {
        !self.changes.is_empty() || self.kept.is_changed() || self.blocks.is_waiting()
    }

    /// Begins a checkpoint of the table as it is now, with all entries up to `applied`. There is one at a time. Its pages come
    /// from [`Table::next_page`]; when they are written and synced, its superblock makes them count.
    pub fn begin_checkpoint(&mut self, applied: Order) -> TableCheckpoint {
        self.checkpoint += 1;
        self.blocks.begin_checkpoint();
        self.changes.begin();
        self.kept.begin_checkpoint();
        self.write_count += 1;
        // From here on it is said.
        self.nameless = false;
        let superblock = PoolSuperblock {
            write_count: self.write_count,
            group: self.group,
            medium: self.medium,
            volume: self.volume,
            volume_size: self.geometry.volume_size,
            logical_block_size: self.logical_block_size,
            block_size: self.geometry.block_size,
            block_count: self.geometry.block_count,
            blocks_offset: self.geometry.blocks_offset,
            pages_offset: self.geometry.pages_offset,
            pages_since: self.pages_since,
            checkpoint: self.checkpoint,
            // Known when all pages are.
            digest: 0,
            applied,
            stamp: self.stamp,
            void: self.void.clone(),
            kept: Some(self.kept.points()),
            extents: self.kept.extents().to_vec(),
        };
        TableCheckpoint { superblock }
    }

    /// The next page of the running checkpoint, as it was when that began: offset on the medium and bytes. `None`: there are
    /// no more.
    pub fn next_page(&mut self) -> Option<(u64, Bytes)> {
        while let Some((index, before)) = self.changes.take() {
            let Some(entries) = before.as_ref().or(self.pages[index as usize].as_ref()) else {
                continue;
            };
            let (bytes, checksum) = table_page::encode(self.medium, index, self.checkpoint, entries);
            let (slot, added) = PageMeta::write(&mut self.metas[index as usize], index, self.checkpoint, checksum);
            self.digest = self.digest.wrapping_add(added);
            return Some((self.geometry.page_offset(index) + slot, bytes));
        }
        let (offset, bytes, added) = self.kept.next_page(self.medium, self.checkpoint, &self.geometry)?;
        self.digest = self.digest.wrapping_add(added);
        Some((offset, bytes))
    }

    /// What makes a checkpoint count of which all pages were taken: offset on the medium and bytes.
    pub fn superblock(&self, checkpoint: &mut TableCheckpoint) -> (u64, Bytes) {
        checkpoint.superblock.digest = self.digest;
        (checkpoint.superblock.slot(), checkpoint.superblock.encode())
    }

    /// The checkpoint's superblock is durable. `reads` is the number of the next read.
    pub fn commit_checkpoint(&mut self, checkpoint: TableCheckpoint, reads: super::ReadCount) {
        let PoolSuperblock { applied, stamp, kept, block_count, .. } = checkpoint.superblock;
        self.applied_durable = applied;
        self.block_count_durable = block_count;
        self.kept.commit_checkpoint(stamp, kept.into_iter().flatten().map(|(_, boundary)| boundary).collect());
        self.blocks.commit_checkpoint(reads);
    }
}
