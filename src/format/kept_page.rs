//! A page of what kept generations need of a volume and its table no longer names, on the medium: 336 records, under the
//! header of all pages, with magic "HFK1".
//!
//! ```text
//!  64: 336 records of 12 bytes: boundary (4), logical block (4), physical block (4); boundary 0: no record
//! ```

use super::{
    page::{CONTENT_SIZE, Page, PageKind},
    parts::{FormatError, U32, prefix},
};
use crate::units::MediumUuid;
use alloc::vec::Vec;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Records in a page.
pub const KEPT_PAGE_RECORD_COUNT: usize = 336;

const WHAT: &str = "page of kept blocks";
const KIND: PageKind = PageKind { magic: 0x314b_4648, what: WHAT }; // "HFK1"

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

const _: () = assert!(size_of::<RawRecord>() == 12 && 12 * KEPT_PAGE_RECORD_COUNT == CONTENT_SIZE);

/// The page's bytes and checksum.
pub fn encode(pool: MediumUuid, index: u32, checkpoint: u64, records: &[KeptRecord]) -> (Bytes, u32) {
    KIND.encode(pool, index, checkpoint, |content| {
        for (record, slot) in records.iter().zip(content.chunks_exact_mut(12)) {
            let raw = RawRecord {
                boundary: record.boundary.into(),
                block: record.block.into(),
                physical: record.physical.into(),
            };
            slot.copy_from_slice(raw.as_bytes());
        }
    })
}

/// Reads one slot of page `index` of a pool: [`KEPT_PAGE_RECORD_COUNT`] records. [`FormatError::Absent`] if it was never
/// written by this pool. Whether the records are possible depends on the superblock.
pub fn parse(bytes: &[u8], pool: MediumUuid, index: u32) -> Result<Page<Vec<KeptRecord>>, FormatError> {
    KIND.parse(bytes, pool, index, |content| {
        let mut records = Vec::with_capacity(KEPT_PAGE_RECORD_COUNT);
        for raw in content.chunks_exact(12) {
            let (raw, _) = prefix::<RawRecord>(raw, WHAT)?;
            let (boundary, block, physical) = (raw.boundary.get(), raw.block.get(), raw.physical.get());
            records.push(KeptRecord { boundary, block, physical });
        }
        Ok(records)
    })
}
