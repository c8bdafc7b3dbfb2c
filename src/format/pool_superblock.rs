//! A pool's superblock: whose pool it is, how it is laid out, and which table in it counts. Two slots of 64 KiB,
//! written in turn. The table's pages follow at 128 KiB, two slots of 4 KiB for each; then the physical blocks.
//!
//! ```text
//!  slot: 0 magic "HOLDFAST"  8 kind "POOL"  12 version  14 0  16 checksum (of all 4,096 bytes)  20 block size
//!  24 write count  32 group  48 medium  64 volume size  72 logical block  76 block count  80 blocks' offset
//!  88 checkpoint  96 digest  104 applied order  112 stamp  116 void count  120 volume  122 0
//!  128: 16 void ranges (first stamp, last stamp)  256 pages' offset  264 pages' first checkpoint
//!  272 count of kept generations  276 count of extents of kept pages
//!  280: 80 kept generations: journal entry (8), boundary (4), 0 (4)
//!  1560: 128 extents: first physical block (4), count (4), first checkpoint (8)  3608: 0 … 4096
//! ```
//! Version 1 lacks the pages' place: they are where they were when the pool was made. Versions 1 and 2 keep no generation but
//! the last restart point, and do not say which that is.

use super::parts::{
    FormatError, MAGIC, U16, U32, U64, checksum_without, prefix, require, require_stored, require_stored_32,
};
use crate::{
    buffer::AlignedBuffer,
    units::{GroupId, MediumUuid, Order, TABLE_BLOCK_SIZE_MAX, TABLE_BLOCK_SIZE_MIN, VolumeId},
};
use alloc::vec::Vec;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a slot that are used.
pub const POOL_SUPERBLOCK_SIZE: usize = 4096;
/// Where the table's pages begin on the medium.
pub const TABLE_OFFSET: u64 = 128 << 10;
/// Most ranges of void stamps.
pub const VOID_COUNT_MAX: usize = 16;
/// Most generations that a pool keeps.
pub const KEPT_COUNT_MAX: usize = 80;
/// Most extents of pages of kept blocks.
pub const EXTENT_COUNT_MAX: usize = 128;

const VERSION: u16 = 3;
const KIND: [u8; 4] = *b"POOL";
const WHAT: &str = "pool superblock";
const CHECKSUM_AT: usize = 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    kind: [u8; 4],
    version: U16,
    reserved0: U16,
    checksum: U32,
    block_size: U32,
    write_count: U64,
    group: [u8; 16],
    medium: [u8; 16],
    volume_size: U64,
    logical_block_size: U32,
    block_count: U32,
    blocks_offset: U64,
    checkpoint: U64,
    digest: U64,
    applied: U64,
    stamp: U32,
    void_count: U32,
    volume: U16,
    reserved1: [u8; 6],
    void: [[U32; 2]; VOID_COUNT_MAX],
    pages_offset: U64,
    pages_since: U64,
    kept_count: U32,
    extent_count: U32,
    kept: [RawKept; KEPT_COUNT_MAX],
    extents: [RawExtent; EXTENT_COUNT_MAX],
    reserved2: [u8; 488],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct RawKept {
    order: U64,
    boundary: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct RawExtent {
    first: U32,
    count: U32,
    since: U64,
}

/// A row of physical blocks that pages of kept blocks are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first physical block.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Pages with a lower checkpoint number do not count: they lay there before.
    pub since: u64,
}

const _: () = assert!(size_of::<Raw>() == POOL_SUPERBLOCK_SIZE);

/// The superblock, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSuperblock {
    /// Raised at each write; its parity is the slot.
    pub write_count: u64,
    /// The group.
    pub group: GroupId,
    /// The medium.
    pub medium: MediumUuid,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's size in bytes.
    pub volume_size: u64,
    /// The volume's logical block in bytes.
    pub logical_block_size: u32,
    /// Size of a table block in bytes.
    pub block_size: u32,
    /// Physical blocks; they are numbered from 1.
    pub block_count: u32,
    /// Where physical block 1 begins on the medium.
    pub blocks_offset: u64,
    /// Where the table's pages begin on the medium.
    pub pages_offset: u64,
    /// Table pages with a lower checkpoint number do not count: they lay there before the table did.
    pub pages_since: u64,
    /// Table pages with a higher checkpoint number do not count.
    pub checkpoint: u64,
    /// Sum over the pages that count, so that none can be missing unnoticed.
    pub digest: u64,
    /// The last journal entry that the table contains.
    pub applied: Order,
    /// The stamp of entries that change now.
    pub stamp: u32,
    /// Stamps whose changes were taken back: first and last.
    pub void: Vec<[u32; 2]>,
    /// The generations that are kept: the journal entry of each, and the first stamp that is no part of it. `None`: not known.
    pub kept: Option<Vec<(Order, u32)>>,
    /// Where pages of kept blocks are.
    pub extents: Vec<Extent>,
}

impl PoolSuperblock {
    /// Where it is to be written.
    pub fn slot(&self) -> u64 {
        super::journal_superblock::SLOTS[(self.write_count % 2) as usize]
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut void = [[U32::new(0); 2]; VOID_COUNT_MAX];
        for (raw, range) in void.iter_mut().zip(&self.void) {
            *raw = [range[0].into(), range[1].into()];
        }
        let mut kept = [RawKept::default(); KEPT_COUNT_MAX];
        for (raw, (order, boundary)) in kept.iter_mut().zip(self.kept.iter().flatten()) {
            (raw.order, raw.boundary) = (order.0.into(), (*boundary).into());
        }
        let mut extents = [RawExtent::default(); EXTENT_COUNT_MAX];
        for (raw, extent) in extents.iter_mut().zip(&self.extents) {
            *raw = RawExtent { first: extent.first.into(), count: extent.count.into(), since: extent.since.into() };
        }
        let raw = Raw {
            magic: MAGIC,
            kind: KIND,
            version: VERSION.into(),
            reserved0: 0.into(),
            checksum: 0.into(),
            block_size: self.block_size.into(),
            write_count: self.write_count.into(),
            group: self.group.0,
            medium: self.medium.0,
            volume_size: self.volume_size.into(),
            logical_block_size: self.logical_block_size.into(),
            block_count: self.block_count.into(),
            blocks_offset: self.blocks_offset.into(),
            checkpoint: self.checkpoint.into(),
            digest: self.digest.into(),
            applied: self.applied.0.into(),
            stamp: self.stamp.into(),
            void_count: (self.void.len() as u32).into(),
            volume: self.volume.0.into(),
            reserved1: [0; 6],
            void,
            pages_offset: self.pages_offset.into(),
            pages_since: self.pages_since.into(),
            kept_count: (self.kept.as_ref().map_or(0, Vec::len) as u32).into(),
            extent_count: (self.extents.len() as u32).into(),
            kept,
            extents,
            reserved2: [0; 488],
        };
        let mut buffer = AlignedBuffer::new(POOL_SUPERBLOCK_SIZE);
        let bytes = buffer.as_mut_slice();
        bytes.copy_from_slice(raw.as_bytes());
        let checksum = checksum_without(bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        buffer.freeze()
    }

    /// Reads one slot.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..POOL_SUPERBLOCK_SIZE).ok_or(FormatError::Short(WHAT))?;
        let (raw, _) = prefix::<Raw>(bytes, WHAT)?;
        if raw.magic != MAGIC || raw.kind != KIND {
            return Err(FormatError::Absent(WHAT));
        }
        if !(1..=VERSION).contains(&raw.version.get()) {
            return Err(FormatError::Version { what: WHAT, found: raw.version.get(), newest: VERSION });
        }
        let (found, expected) = (checksum_without(bytes, CHECKSUM_AT), raw.checksum.get());
        if found != expected {
            return Err(FormatError::Checksum { what: WHAT, found, expected });
        }
        let block_size = raw.block_size.get();
        let range = TABLE_BLOCK_SIZE_MIN..=TABLE_BLOCK_SIZE_MAX;
        require(range.contains(&block_size) && block_size.is_power_of_two(), WHAT, "block size")?;
        require(matches!(raw.logical_block_size.get(), 512 | 4096), WHAT, "logical block")?;
        require(raw.blocks_offset.get().is_multiple_of(4096), WHAT, "blocks' offset")?;
        require(raw.reserved0.get() == 0 && raw.reserved1 == [0; 6], WHAT, "reserved field")?;
        let counters = [raw.write_count, raw.checkpoint, raw.pages_since, raw.applied];
        require_stored(&counters.map(U64::get), WHAT)?;
        require_stored_32(raw.stamp.get(), WHAT)?;
        require(raw.reserved2.iter().all(|byte| *byte == 0), WHAT, "reserved field")?;
        let pages_offset = if raw.version.get() == 1 { TABLE_OFFSET } else { raw.pages_offset.get() };
        require(pages_offset >= TABLE_OFFSET && pages_offset.is_multiple_of(4096), WHAT, "pages' offset")?;
        let void = raw.void.get(..raw.void_count.get() as usize);
        let void = void.ok_or(FormatError::Field { what: WHAT, field: "void count" })?;
        let void: Vec<[u32; 2]> = void.iter().map(|range| [range[0].get(), range[1].get()]).collect();
        // The stamp after a range is one that changes may have: there is one, and it is not void.
        let is_past = |range: &[u32; 2]| (1..=range[1]).contains(&range[0]) && range[1] < raw.stamp.get();
        let rise = void.is_sorted_by(|a, b| a[1] < b[0]);
        require(rise && void.iter().all(is_past), WHAT, "range of void stamps")?;
        let kept = raw.kept.get(..raw.kept_count.get() as usize);
        let kept = kept.ok_or(FormatError::Field { what: WHAT, field: "count of kept generations" })?;
        let extents = raw.extents.get(..raw.extent_count.get() as usize);
        let extents = extents.ok_or(FormatError::Field { what: WHAT, field: "count of extents" })?;
        let kept: Vec<_> = kept.iter().map(|raw| (Order(raw.order.get()), raw.boundary.get())).collect();
        let rise = kept.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1);
        require(rise && kept.iter().all(|(_, boundary)| (1..=raw.stamp.get()).contains(boundary)), WHAT, "boundary")?;
        let extent =
            |raw: &RawExtent| Extent { first: raw.first.get(), count: raw.count.get(), since: raw.since.get() };
        Ok(Self {
            write_count: raw.write_count.get(),
            group: GroupId(raw.group),
            medium: MediumUuid(raw.medium),
            volume: VolumeId(raw.volume.get()),
            volume_size: raw.volume_size.get(),
            logical_block_size: raw.logical_block_size.get(),
            block_size,
            block_count: raw.block_count.get(),
            blocks_offset: raw.blocks_offset.get(),
            pages_offset,
            pages_since: raw.pages_since.get(),
            checkpoint: raw.checkpoint.get(),
            digest: raw.digest.get(),
            applied: Order(raw.applied.get()),
            stamp: raw.stamp.get(),
            void,
            kept: (raw.version.get() >= 3).then_some(kept),
            extents: extents.iter().map(extent).collect(),
        })
    }
}
