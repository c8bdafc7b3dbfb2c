//! A batch: what is written to the journal at once. One header area that lists the entries, then their payloads.
//!
//! ```text
//!  0      4    6      8         12      16     24         32     48        52   56        64            72     128
//!  magic  ver  0      checksum  entry   batch  position   group  previous  0    first     durable       0
//!                               count   size                     checksum       order     order
//!  128: entries of 80 bytes: record header (64), stored size (4), placement (1), 0 (3), fork order or list's checksum (8)
//!  then zeroes up to a multiple of 4,096; then the payloads, each padded to 512 or 4,096 bytes
//! ```
//! `previous checksum` chains the batches, so that one left over from an earlier lap is never taken for the next.
//! A redirected record's payload here is the list of physical blocks that hold its data (u32 each); the payload size
//! and checksum in its header are those of the data. It has no fork: its entry ends with the CRC32C of the list.
//!
//! Version 1 lacks that checksum: what its lists say must be judged by where they lead.

use super::{
    parts::{FormatError, U16, U32, U64, checksum_without, prefix, require},
    record::{Kind, Record},
};
use crate::{
    buffer::{ALIGNMENT, AlignedBuilder},
    units::{GroupId, Order, RECORD_PAYLOAD_SIZE_MAX},
};
use alloc::{vec, vec::Vec};
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most entries in a batch.
pub const BATCH_ENTRY_COUNT_MAX: usize = 256;
/// Most bytes in a batch.
pub const BATCH_SIZE_MAX: usize = 8 << 20;

const VERSION: u16 = 2;
const MAGIC: u32 = 0x3142_4648; // "HFB1"
const WHAT: &str = "journal batch";
const CHECKSUM_AT: usize = 8;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    version: U16,
    reserved0: U16,
    checksum: U32,
    entry_count: U32,
    batch_size: U64,
    position: U64,
    group: [u8; 16],
    previous_checksum: U32,
    reserved1: U32,
    first_order: U64,
    durable_order: U64,
    reserved2: [u8; 56],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    record: [u8; 64],
    stored_size: U32,
    placement: u8,
    reserved: [u8; 3],
    /// Of a redirected record the checksum of its list.
    fork_order: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 128 && size_of::<RawEntry>() == 80);

/// Where an entry's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the batch.
    Inline,
    /// In blocks of the volume's pool; the batch has their numbers.
    Redirected,
}

/// One record in a batch.
#[derive(Clone, Debug)]
pub struct BatchEntry {
    /// The header, as it is on the wire.
    pub record: Record,
    /// Where its data is.
    pub placement: Placement,
    /// For an epoch change: the last entry before it that is still valid; else 0. A redirected record has none.
    pub fork: Order,
    /// What is stored in the batch for it.
    pub stored: Bytes,
}

/// What the header says besides the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Rises by the bytes written, from where the medium's journal began; the place in the ring follows from it.
    pub position: u64,
    /// The header checksum of the batch before.
    pub previous_checksum: u32,
    /// The first entry's number.
    pub first_order: Order,
    /// Entries up to here were durable when the batch was made.
    pub durable_order: Order,
}

/// A batch as it goes to the journal.
pub struct EncodedBatch {
    /// All its bytes, aligned.
    pub bytes: Bytes,
    /// Its header checksum, for the chain.
    pub checksum: u32,
    /// Where each entry's stored bytes begin.
    pub stored_at: Vec<u32>,
}

/// A header and its entries, checked; the payloads are not.
#[derive(Debug)]
pub struct ParsedBatch {
    /// What the header says.
    pub header: BatchHeader,
    /// The header checksum, for the chain.
    pub checksum: u32,
    /// Size of the batch in bytes.
    pub size: u64,
    /// The entries: record, placement, fork order, and where in the batch what is stored for it lies.
    pub entries: Vec<ParsedEntry>,
}

/// An entry in a batch that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedEntry {
    /// The record.
    pub record: Record,
    /// Where its data is.
    pub placement: Placement,
    /// See [`BatchEntry::fork`].
    pub fork: Order,
    /// First byte in the batch of what is stored for it.
    pub stored_at: u32,
    /// How many bytes.
    pub stored_size: u32,
    /// Of a list of blocks its checksum; `None`: the batch is of version 1, or this is no list.
    pub list_checksum: Option<u32>,
}

impl ParsedEntry {
    /// Checks what is stored for it.
    pub fn check_stored(&self, stored: &[u8]) -> Result<(), FormatError> {
        match (self.placement, self.list_checksum) {
            (Placement::Inline, _) => self.record.check_payload(stored),
            (Placement::Redirected, None) => Ok(()),
            (Placement::Redirected, Some(expected)) => {
                let found = crc32c::crc32c(stored);
                let holds = found == expected;
                if holds { Ok(()) } else { Err(FormatError::Checksum { what: "list of blocks", found, expected }) }
            }
        }
    }
}

/// Bytes of the header area for so many entries.
pub fn header_size(entry_count: usize) -> usize {
    (size_of::<RawHeader>() + entry_count * size_of::<RawEntry>()).next_multiple_of(ALIGNMENT)
}

/// Bytes of a batch whose entries store so much each.
pub fn batch_size(stored_sizes: impl ExactSizeIterator<Item = usize>) -> usize {
    let start = header_size(stored_sizes.len());
    stored_sizes.fold(start, |at, size| place(at, size).1).next_multiple_of(ALIGNMENT)
}

/// Where `size` stored bytes go when the last ones ended at `at`, and where they end.
fn place(at: usize, size: usize) -> (usize, usize) {
    // Blocks of data start at a boundary for direct I/O; anything smaller only shares a sector with nobody.
    let start = if size >= ALIGNMENT { at.next_multiple_of(ALIGNMENT) } else { at.next_multiple_of(512) };
    (start, start + size)
}

/// The bytes of a batch. At least one entry; at most [`BATCH_ENTRY_COUNT_MAX`] and [`BATCH_SIZE_MAX`].
pub fn encode(header: BatchHeader, group: GroupId, entries: &[BatchEntry]) -> EncodedBatch {
    assert!(!entries.is_empty() && entries.len() <= BATCH_ENTRY_COUNT_MAX);
    let size = batch_size(entries.iter().map(|entry| entry.stored.len()));
    let mut head = vec![0; header_size(entries.len())];
    for (raw, entry) in head[size_of::<RawHeader>()..].chunks_exact_mut(size_of::<RawEntry>()).zip(entries) {
        let last = match entry.placement {
            Placement::Inline => entry.fork.0,
            Placement::Redirected => crc32c::crc32c(&entry.stored).into(),
        };
        let values = RawEntry {
            record: entry.record.encode(group),
            stored_size: (entry.stored.len() as u32).into(),
            placement: (entry.placement == Placement::Redirected).into(),
            reserved: [0; 3],
            fork_order: last.into(),
        };
        raw.copy_from_slice(values.as_bytes());
    }
    let raw = RawHeader {
        magic: MAGIC.into(),
        version: VERSION.into(),
        reserved0: 0.into(),
        checksum: 0.into(),
        entry_count: (entries.len() as u32).into(),
        batch_size: (size as u64).into(),
        position: header.position.into(),
        group: group.0,
        previous_checksum: header.previous_checksum.into(),
        reserved1: 0.into(),
        first_order: header.first_order.0.into(),
        durable_order: header.durable_order.0.into(),
        reserved2: [0; 56],
    };
    head[..size_of::<RawHeader>()].copy_from_slice(raw.as_bytes());
    let checksum = checksum_without(&head, CHECKSUM_AT);
    head[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());

    let mut builder = AlignedBuilder::new(size);
    builder.push(&head);
    let mut stored_at = Vec::with_capacity(entries.len());
    for entry in entries {
        let (start, _) = place(builder.filled(), entry.stored.len());
        builder.pad_to(start);
        builder.push(&entry.stored);
        stored_at.push(start as u32);
    }
    builder.pad_to(size);
    EncodedBatch { bytes: builder.freeze(), checksum, stored_at }
}

/// Size in bytes of the header area of the batch that starts with `first`, the first 4,096 bytes of it.
pub fn parse_header_size(first: &[u8], group: GroupId) -> Result<usize, FormatError> {
    let (raw, _) = prefix::<RawHeader>(first, WHAT)?;
    if raw.magic.get() != MAGIC || raw.group != group.0 {
        return Err(FormatError::Absent(WHAT));
    }
    if !(1..=VERSION).contains(&raw.version.get()) {
        return Err(FormatError::Version { what: WHAT, found: raw.version.get(), newest: VERSION });
    }
    let count = raw.entry_count.get() as usize;
    require((1..=BATCH_ENTRY_COUNT_MAX).contains(&count), WHAT, "entry count")?;
    Ok(header_size(count))
}

/// Reads a header area of exactly [`parse_header_size`] bytes.
pub fn parse(area: &[u8], group: GroupId) -> Result<ParsedBatch, FormatError> {
    let size = parse_header_size(area, group)?;
    let area = area.get(..size).ok_or(FormatError::Short(WHAT))?;
    let (raw, rest) = prefix::<RawHeader>(area, WHAT)?;
    let (found, expected) = (checksum_without(area, CHECKSUM_AT), raw.checksum.get());
    if found != expected {
        return Err(FormatError::Checksum { what: WHAT, found, expected });
    }
    let reserved = raw.reserved0.get() == 0 && raw.reserved1.get() == 0 && raw.reserved2.iter().all(|b| *b == 0);
    require(reserved, WHAT, "reserved field")?;
    let count = raw.entry_count.get() as usize;
    let mut entries = Vec::with_capacity(count);
    let mut end = size;
    let mut rest = rest;
    for _ in 0..count {
        let (entry, after) = prefix::<RawEntry>(rest, WHAT)?;
        rest = after;
        let stored_size = entry.stored_size.get();
        require(stored_size <= RECORD_PAYLOAD_SIZE_MAX, WHAT, "stored size")?;
        let (start, next) = place(end, stored_size as usize);
        end = next;
        let placement = match entry.placement {
            0 => Placement::Inline,
            1 => Placement::Redirected,
            _ => {
                return Err(FormatError::Field { what: WHAT, field: "placement" });
            }
        };
        require(entry.reserved == [0; 3], WHAT, "reserved field")?;
        let record = Record::parse(&entry.record, group)?;
        require(record.kind.is_journalled(), WHAT, "kind")?;
        let has_data = matches!(record.kind, Kind::Write | Kind::Copy);
        require(placement == Placement::Inline || has_data, WHAT, "placement")?;
        require(placement == Placement::Redirected || record.payload_size == stored_size, WHAT, "stored size")?;
        let (mut fork, mut list_checksum) = (Order(0), None);
        match (placement, raw.version.get()) {
            (Placement::Inline, _) => fork = Order(entry.fork_order.get()),
            (Placement::Redirected, 1) => {}
            (Placement::Redirected, _) => {
                let checksum = u32::try_from(entry.fork_order.get()).ok();
                require(checksum.is_some(), WHAT, "list's checksum")?;
                list_checksum = checksum;
            }
        }
        require(fork.0 < u64::MAX / 2, WHAT, "order")?;
        entries.push(ParsedEntry { record, placement, fork, stored_at: start as u32, stored_size, list_checksum });
    }
    let size = raw.batch_size.get();
    require(size == end.next_multiple_of(ALIGNMENT) as u64 && size <= BATCH_SIZE_MAX as u64, WHAT, "size")?;
    require(raw.first_order.get() > 0 && raw.first_order.get() < u64::MAX / 2, WHAT, "order")?;
    let header = BatchHeader {
        position: raw.position.get(),
        previous_checksum: raw.previous_checksum.get(),
        first_order: Order(raw.first_order.get()),
        durable_order: Order(raw.durable_order.get()),
    };
    Ok(ParsedBatch { header, checksum: found, size, entries })
}

/// The physical blocks listed in what is stored for a redirected record.
pub fn parse_blocks(stored: &[u8]) -> Result<Vec<u32>, FormatError> {
    require(stored.len().is_multiple_of(4), WHAT, "block list")?;
    let number = |raw: &[u8]| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
    let blocks: Vec<u32> = stored.chunks_exact(4).map(number).collect();
    // They are numbered from 1.
    require(!blocks.contains(&0), WHAT, "block list")?;
    Ok(blocks)
}
