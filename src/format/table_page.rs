//! A page of the address table on the medium: 168 entries, under the header of all pages, with magic "HFT1".
//!
//! ```text
//!  64: 168 entries of 24 bytes: latest (4), snapshot (4), mask (8), stamp (4), dirty (2), 0 (2)
//! ```

use super::{
    page::{CONTENT_SIZE, Page, PageKind},
    parts::{FormatError, U16, U32, U64, prefix, require},
};
use crate::units::MediumUuid;
use alloc::boxed::Box;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries in a page.
pub const TABLE_PAGE_ENTRY_COUNT: usize = 168;

const WHAT: &str = "table page";
const KIND: PageKind = PageKind { magic: 0x3154_4648, what: WHAT }; // "HFT1"

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

const _: () = assert!(size_of::<RawEntry>() == 24 && 24 * TABLE_PAGE_ENTRY_COUNT == CONTENT_SIZE);

/// The entries of a page.
pub type Entries = Box<[Entry; TABLE_PAGE_ENTRY_COUNT]>;

/// The page's bytes and checksum.
pub fn encode(pool: MediumUuid, index: u32, checkpoint: u64, entries: &Entries) -> (Bytes, u32) {
    KIND.encode(pool, index, checkpoint, |content| {
        for (entry, slot) in entries.iter().zip(content.chunks_exact_mut(24)) {
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
    })
}

/// Reads one slot of page `index` of a pool. [`FormatError::Absent`] if it was never written by this pool. Whether the entries are
/// possible depends on the superblock, which an unfinished checkpoint may be ahead of.
pub fn parse(bytes: &[u8], pool: MediumUuid, index: u32) -> Result<Page<Entries>, FormatError> {
    KIND.parse(bytes, pool, index, |content| {
        let mut entries = Box::new([Entry::default(); TABLE_PAGE_ENTRY_COUNT]);
        for (entry, raw) in entries.iter_mut().zip(content.chunks_exact(24)) {
            let (raw, _) = prefix::<RawEntry>(raw, WHAT)?;
            require(raw.reserved.get() == 0, WHAT, "reserved field")?;
            *entry = Entry {
                latest: raw.latest.get(),
                snapshot: raw.snapshot.get(),
                mask: raw.mask.get(),
                stamp: raw.stamp.get(),
                dirty: raw.dirty.get(),
            };
        }
        Ok(entries)
    })
}
