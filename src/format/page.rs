//! What the pages of a pool have in common: 4,096 bytes with a header of 64, and two slots each, written in turn, so that the
//! page of the last checkpoint is whole while the next one is being written.
//!
//! ```text
//!  0 magic  4 version  6 0  8 checksum  12 page index  16 checkpoint  24 pool  40 0 … 64
//! ```

use super::parts::{FormatError, U16, U32, U64, VERSION, checksum_without, prefix, require};
use crate::{buffer::AlignedBuffer, units::MediumUuid};
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;
/// What is left of it for the content, in bytes.
pub(super) const CONTENT_SIZE: usize = PAGE_SIZE - size_of::<RawHeader>();

const CHECKSUM_AT: usize = 8;

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

const _: () = assert!(size_of::<RawHeader>() == 64);

/// A page, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
    /// Its checksum.
    pub checksum: u32,
    /// What it holds.
    pub content: T,
}

/// One of the kinds of pages.
pub(super) struct PageKind {
    pub(super) magic: u32,
    pub(super) what: &'static str,
}

impl PageKind {
    /// The bytes and the checksum of page `index`, whose content `fill` writes.
    pub(super) fn encode(
        &self,
        pool: MediumUuid,
        index: u32,
        checkpoint: u64,
        fill: impl FnOnce(&mut [u8]),
    ) -> (Bytes, u32) {
        let header = RawHeader {
            magic: self.magic.into(),
            version: VERSION.into(),
            reserved0: 0.into(),
            checksum: 0.into(),
            index: index.into(),
            checkpoint: checkpoint.into(),
            pool: pool.0,
            reserved1: [0; 24],
        };
        let mut buffer = AlignedBuffer::new(PAGE_SIZE);
        let bytes = buffer.as_mut_slice();
        let (start, content) = bytes.split_at_mut(size_of::<RawHeader>());
        start.copy_from_slice(header.as_bytes());
        fill(content);
        let checksum = checksum_without(bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        (buffer.freeze(), checksum)
    }

    /// Reads one slot of page `index`, and what it holds by `content`. [`FormatError::Absent`] if this pool never wrote it.
    pub(super) fn parse<T>(
        &self,
        bytes: &[u8],
        pool: MediumUuid,
        index: u32,
        content: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<Page<T>, FormatError> {
        let what = self.what;
        let bytes = bytes.get(..PAGE_SIZE).ok_or(FormatError::Short(what))?;
        let (raw, rest) = prefix::<RawHeader>(bytes, what)?;
        if raw.magic.get() != self.magic || raw.pool != pool.0 {
            return Err(FormatError::Absent(what));
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { what, found: raw.version.get(), newest: VERSION });
        }
        let (found, expected) = (checksum_without(bytes, CHECKSUM_AT), raw.checksum.get());
        if found != expected {
            return Err(FormatError::Checksum { what, found, expected });
        }
        require(raw.index.get() == index, what, "page index")?;
        require(raw.reserved0.get() == 0 && raw.reserved1 == [0; 24], what, "reserved field")?;
        Ok(Page { checkpoint: raw.checkpoint.get(), checksum: found, content: content(rest)? })
    }
}
