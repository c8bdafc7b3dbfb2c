//! A page of what kept generations need of a volume and its table no longer names, on the medium: 336 records in 4,096
//! bytes, two slots a page like the table's pages.
//!
//! ```text
//!  0 magic "HFK1"  4 version  6 0  8 checksum  12 page index  16 checkpoint  24 pool  40 0 … 64
//!  64: 336 records of 12 bytes: boundary (4), logical block (4), physical block (4); boundary 0: no record
//! ```

use super::parts::{FormatError, U16, U32, U64, VERSION, checksum_without, prefix, require};
use crate::{buffer::AlignedBuffer, units::MediumUuid};
use alloc::vec::Vec;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a page in bytes.
pub const KEPT_PAGE_SIZE: usize = 4096;
/// Records in a page.
pub const KEPT_PAGE_RECORD_COUNT: usize = 336;

const MAGIC: u32 = 0x314b_4648; // "HFK1"
const WHAT: &str = "page of kept blocks";
const CHECKSUM_AT: usize = 8;

/// A logical block was in this physical block until a boundary, and has been written since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptRecord {
    /// The first stamp that is not part of the generation; 0: this is no record.
    pub boundary: u32,
    /// Logical block.
    pub block: u32,
    /// Physical block that holds all of it; 0 for zeroes.
    pub physical: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRecord {
    boundary: U32,
    block: U32,
    physical: U32,
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

const _: () = assert!(size_of::<RawHeader>() == 64 && size_of::<RawRecord>() == 12);
const _: () = assert!(64 + 12 * KEPT_PAGE_RECORD_COUNT == KEPT_PAGE_SIZE);

/// A page, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPage {
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
    /// Its checksum.
    pub checksum: u32,
    /// What it holds: [`KEPT_PAGE_RECORD_COUNT`] records.
    pub records: Vec<KeptRecord>,
}

/// The page's bytes and checksum.
pub fn encode(pool: MediumUuid, index: u32, checkpoint: u64, records: &[KeptRecord]) -> (Bytes, u32) {
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
    let mut buffer = AlignedBuffer::new(KEPT_PAGE_SIZE);
    let bytes = buffer.as_mut_slice();
    bytes[..64].copy_from_slice(header.as_bytes());
    for (record, slot) in records.iter().zip(bytes[64..].chunks_exact_mut(12)) {
        let raw = RawRecord {
            boundary: record.boundary.into(),
            block: record.block.into(),
            physical: record.physical.into(),
        };
        slot.copy_from_slice(raw.as_bytes());
    }
    let checksum = checksum_without(bytes, CHECKSUM_AT);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    (buffer.freeze(), checksum)
}

/// Reads one slot of page `index` of a pool. [`FormatError::Absent`] if it was never written by this pool.
pub fn parse(bytes: &[u8], pool: MediumUuid, index: u32, block_count: u32) -> Result<KeptPage, FormatError> {
    let bytes = bytes.get(..KEPT_PAGE_SIZE).ok_or(FormatError::Short(WHAT))?;
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
    let mut records = Vec::with_capacity(KEPT_PAGE_RECORD_COUNT);
    for raw in rest.chunks_exact(12) {
        let (raw, _) = prefix::<RawRecord>(raw, WHAT)?;
        require(raw.physical.get() <= block_count, WHAT, "physical block")?;
        records.push(KeptRecord { boundary: raw.boundary.get(), block: raw.block.get(), physical: raw.physical.get() });
    }
    Ok(KeptPage { checkpoint: raw.checkpoint.get(), checksum: found, records })
}
