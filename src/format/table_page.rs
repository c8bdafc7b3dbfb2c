//! A page of the address table on the medium: 168 entries in 4,096 bytes. Each page has two slots, written in turn, so
//! that the table of the last checkpoint is whole while the next one is being written.
//!
//! ```text
//!  0 magic "HFT1"  4 version  6 0  8 checksum  12 page index  16 checkpoint  24 pool  40 0 … 64
//!  64: 168 entries of 24 bytes: latest (4), snapshot (4), mask (8), stamp (4), dirty (2), 0 (2)
//! ```

use super::parts::{FormatError, U16, U32, U64, VERSION, checksum_without, prefix, require};
use crate::{buffer::AlignedBuffer, units::MediumUuid};
use alloc::boxed::Box;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a page in bytes.
pub const TABLE_PAGE_SIZE: usize = 4096;
/// Entries in a page.
pub const TABLE_PAGE_ENTRY_COUNT: usize = 168;

const MAGIC: u32 = 0x3154_4648; // "HFT1"
const WHAT: &str = "table page";
const CHECKSUM_AT: usize = 8;

/// What the table knows of one logical block. All zero: never written.
///
/// The block's granule i (a 64th of it, at least 4 KiB) is in `latest` if bit i of `mask` is set, else in `snapshot`;
/// block number 0 there means zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Physical block of the newest data.
    pub latest: u32,
    /// Physical block of the state at the last restart point, as far as `stamp` is the table's.
    pub snapshot: u32,
    /// Which granules are in `latest`.
    pub mask: u64,
    /// When it last changed: the table's stamp then.
    pub stamp: u32,
    /// Which sixteenths of the block the peer lacks.
    pub dirty: u16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    latest: U32,
    snapshot: U32,
    mask: U64,
    stamp: U32,
    dirty: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    version: U16,
    reserved0: U16,
    checksum: U32,
    index: U32,
    checkpoint: U64,
    pool: [u8; 16],
    reserved1: [u8; 24],
}

const _: () = assert!(size_of::<RawHeader>() == 64 && size_of::<RawEntry>() == 24);
const _: () = assert!(64 + 24 * TABLE_PAGE_ENTRY_COUNT == TABLE_PAGE_SIZE);

/// The entries of a page.
pub type Entries = Box<[Entry; TABLE_PAGE_ENTRY_COUNT]>;

/// A page, checked.
pub struct TablePage {
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
    /// Its checksum.
    pub checksum: u32,
    /// What it holds.
    pub entries: Entries,
}

/// The page's bytes and checksum.
pub fn encode(pool: MediumUuid, index: u32, checkpoint: u64, entries: &Entries) -> (Bytes, u32) {
    let header = RawHeader {
        magic: MAGIC.into(),
        version: VERSION.into(),
        reserved0: 0.into(),
        checksum: 0.into(),
        index: index.into(),
        checkpoint: checkpoint.into(),
        pool: pool.0,
        reserved1: [0; 24],
    };
    let mut buffer = AlignedBuffer::new(TABLE_PAGE_SIZE);
    let bytes = buffer.as_mut_slice();
    bytes[..64].copy_from_slice(header.as_bytes());
    for (entry, slot) in entries.iter().zip(bytes[64..].chunks_exact_mut(24)) {
        let raw = RawEntry {
            latest: entry.latest.into(),
            snapshot: entry.snapshot.into(),
            mask: entry.mask.into(),
            stamp: entry.stamp.into(),
            dirty: entry.dirty.into(),
            reserved: 0.into(),
        };
        slot.copy_from_slice(raw.as_bytes());
    }
    let checksum = checksum_without(bytes, CHECKSUM_AT);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    (buffer.freeze(), checksum)
}

/// Reads one slot of page `index` of a pool. [`FormatError::Absent`] if it was never written by this pool.
pub fn parse(bytes: &[u8], pool: MediumUuid, index: u32, block_count: u32) -> Result<TablePage, FormatError> {
    let bytes = bytes.get(..TABLE_PAGE_SIZE).ok_or(FormatError::Short(WHAT))?;
    let (raw, rest) = prefix::<RawHeader>(bytes, WHAT)?;
    if raw.magic.get() != MAGIC || raw.pool != pool.0 {
        return Err(FormatError::Absent(WHAT));
    }
    if raw.version.get() != VERSION {
        return Err(FormatError::Version { what: WHAT, found: raw.version.get(), newest: VERSION });
    }
    let (found, expected) = (checksum_without(bytes, CHECKSUM_AT), raw.checksum.get());
    if found != expected {
        return Err(FormatError::Checksum { what: WHAT, found, expected });
    }
    require(raw.index.get() == index, WHAT, "page index")?;
    require(raw.reserved0.get() == 0 && raw.reserved1 == [0; 24], WHAT, "reserved field")?;
    let mut entries = Box::new([Entry::default(); TABLE_PAGE_ENTRY_COUNT]);
    for (entry, raw) in entries.iter_mut().zip(rest.chunks_exact(24)) {
        let (raw, _) = prefix::<RawEntry>(raw, WHAT)?;
        require(raw.latest.get() <= block_count && raw.snapshot.get() <= block_count, WHAT, "physical block")?;
        require(raw.reserved.get() == 0, WHAT, "reserved field")?;
        *entry = Entry {
            latest: raw.latest.get(),
            snapshot: raw.snapshot.get(),
            mask: raw.mask.get(),
            stamp: raw.stamp.get(),
            dirty: raw.dirty.get(),
        };
    }
    Ok(TablePage { checkpoint: raw.checkpoint.get(), checksum: found, entries })
}
