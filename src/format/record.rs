//! A record: one journalled command. Its header is the same on disk and on the wire, so that a secondary journals what
//! it received as it is.
//!
//! ```text
//!  0        4  5    6      8         16        24        32        40        44        48    50   52       56     64
//!  checksum v  kind flags  epoch     seq       offset    size      payload   payload   vol-  0    gene-    time
//!                                                                  checksum  size      ume        ration
//! ```
//! Flags: bit 0 keeps: of a write-zeroes the space, of the start of a copy the state before it.
//! The checksum is a CRC32C over the group's id and bytes 4..64: a record of another group is no record.

use super::parts::{
    FormatError, U16, U32, U64, VERSION, prefix, require, require_sent, require_stored, require_stored_32,
};
use crate::units::{
    Epoch, Generation, GroupId, Position, RECORD_PAYLOAD_SIZE_MAX, Seq, VolumeId, WallClock, ZEROES_SIZE_MAX,
};
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a record header in bytes.
pub const RECORD_HEADER_SIZE: usize = 64;

/// What a record or frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Data replaces data.
    Write = 1,
    /// A range is unmapped and reads as zeroes.
    Discard = 2,
    /// A range reads as zeroes.
    WriteZeroes = 3,
    /// The application can restart from the state before this record.
    RestartPoint = 4,
    /// An epoch begins with this record.
    EpochChange = 5,
    /// Not in the order: what a range held when the record `seq` was the last.
    Copy = 6,
    /// Not in the order: a range held zeroes when the record `seq` was the last.
    CopyZeroes = 7,
    /// Not in the order: from here until [`Kind::CopyEnd`] the state is between two states.
    CopyBegin = 8,
    /// Not in the order: the state is that of the record `seq` again.
    CopyEnd = 9,
    /// Not in the order, never sent: what this node holds here is no part of the primary's history, and is kept.
    Fork = 10,
    /// Not journalled: the first frame of a session in each direction.
    Greeting = 128,
    /// Not journalled: which ranges the sender has that the other does not know.
    ForkRanges = 129,
    /// Not journalled: the sender will have nothing to do with the other, and why.
    Refusal = 130,
    /// Not journalled: digests of what a range holds at this place in the stream.
    Compare = 131,
    /// Not journalled: the answer to [`Kind::Compare`], the parts of the range that differ.
    Differs = 132,
    /// Not journalled: a primary asks for a lease.
    LeaseAsk = 133,
    /// Not journalled: a primary cannot read a range, and asks for what it holds at this place in the stream.
    Fetch = 134,
    /// Not journalled: the answer to [`Kind::Fetch`]. No payload: zeroes, or with `keeps` that it cannot be read there either.
    Fetched = 135,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        use Kind::*;
        [Write, Discard, WriteZeroes, RestartPoint, EpochChange, Copy, CopyZeroes, CopyBegin, CopyEnd, Fork]
            .into_iter()
            .chain([Greeting, ForkRanges, Refusal, Compare, Differs, LeaseAsk, Fetch, Fetched])
            .find(|kind| *kind as u8 == byte)
    }

    /// Whether it takes a seq of its own.
    pub fn is_sequenced(self) -> bool {
        (self as u8) <= Self::EpochChange as u8
    }

    /// Whether it goes into the journal.
    pub fn is_journalled(self) -> bool {
        (self as u8) < Self::Greeting as u8
    }

    /// Whether the volumes' state at it may be kept.
    pub fn is_boundary(self) -> bool {
        matches!(self, Self::RestartPoint | Self::EpochChange | Self::CopyBegin | Self::CopyEnd | Self::Fork)
    }

    /// Whether it changes what a range of a volume reads as.
    pub fn changes_data(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes | Self::Copy | Self::CopyZeroes)
    }

    /// Whether the range reads as zeroes afterwards.
    pub fn zeroes(self) -> bool {
        matches!(self, Self::Discard | Self::WriteZeroes | Self::CopyZeroes)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    checksum: U32,
    version: u8,
    kind: u8,
    flags: U16,
    epoch: U64,
    seq: U64,
    offset: U64,
    size: U64,
    payload_checksum: U32,
    payload_size: U32,
    volume: U16,
    reserved: U16,
    generation: U32,
    time: U64,
}

const _: () = assert!(size_of::<Raw>() == RECORD_HEADER_SIZE);

const KEEPS: u16 = 1;
const WHAT: &str = "record";

/// A record's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Its place; for what is not in the order, that of the last record before it.
    pub at: Position,
    /// The interval in which it was made: the number of the restart point that ends it. Of [`Kind::Fetch`] and its answer: the
    /// question's number.
    pub generation: Generation,
    /// The volume, 0 where it means none.
    pub volume: VolumeId,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes in the range.
    pub size: u64,
    /// Bytes that follow the header.
    pub payload_size: u32,
    /// Their CRC32C.
    pub payload_checksum: u32,
    /// For [`Kind::WriteZeroes`]: the space stays allocated. For [`Kind::CopyBegin`]: the state before it is kept. For
    /// [`Kind::Fetched`]: the range could not be read.
    pub keeps: bool,
    /// When it was made.
    pub time: WallClock,
}

impl Record {
    /// The same, with this payload.
    #[must_use]
    pub fn carrying(self, payload: &[u8]) -> Self {
        Self { payload_size: payload.len() as u32, payload_checksum: crc32c::crc32c(payload), ..self }
    }

    /// The header's bytes.
    pub fn encode(&self, group: GroupId) -> [u8; RECORD_HEADER_SIZE] {
        let mut raw = Raw {
            checksum: 0.into(),
            version: VERSION as u8,
            kind: self.kind as u8,
            flags: if self.keeps { KEEPS } else { 0 }.into(),
            epoch: self.at.epoch.0.into(),
            seq: self.at.seq.0.into(),
            offset: self.offset.into(),
            size: self.size.into(),
            payload_checksum: self.payload_checksum.into(),
            payload_size: self.payload_size.into(),
            volume: self.volume.0.into(),
            reserved: 0.into(),
            generation: self.generation.0.into(),
            time: self.time.0.into(),
        };
        raw.checksum = checksum(&raw, group).into();
        zerocopy::transmute!(raw)
    }

    /// Reads a header from the front of `bytes`.
    pub fn parse(bytes: &[u8], group: GroupId) -> Result<Self, FormatError> {
        let (raw, _) = prefix::<Raw>(bytes, WHAT)?;
        let found = checksum(raw, group);
        if found != raw.checksum.get() {
            return Err(FormatError::Checksum { what: WHAT, found, expected: raw.checksum.get() });
        }
        if u16::from(raw.version) != VERSION {
            return Err(FormatError::Version { what: WHAT, found: raw.version.into(), newest: VERSION });
        }
        let kind = Kind::parse(raw.kind).ok_or(FormatError::Field { what: WHAT, field: "kind" })?;
        require(raw.flags.get() & !KEEPS == 0, WHAT, "flag")?;
        require(raw.reserved.get() == 0, WHAT, "reserved field")?;
        let record = Self {
            kind,
            at: Position { epoch: Epoch(raw.epoch.get()), seq: Seq(raw.seq.get()) },
            generation: Generation(raw.generation.get()),
            volume: VolumeId(raw.volume.get()),
            offset: raw.offset.get(),
            size: raw.size.get(),
            payload_size: raw.payload_size.get(),
            payload_checksum: raw.payload_checksum.get(),
            keeps: raw.flags.get() & KEEPS != 0,
            time: WallClock(raw.time.get()),
        };
        record.check()?;
        Ok(record)
    }

    /// Splits a frame into its header and payload, and checks both.
    pub fn parse_frame(body: &Bytes, group: GroupId) -> Result<(Self, Bytes), FormatError> {
        let record = Self::parse(body, group)?;
        // Of what is not journalled the generation may be something else.
        let generation = if record.kind.is_journalled() { record.generation } else { Generation::default() };
        require_sent(record.at, generation, WHAT)?;
        let payload = body.slice(RECORD_HEADER_SIZE..);
        record.check_payload(&payload)?;
        Ok((record, payload))
    }

    /// Whether `payload` is what the header promises.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FormatError> {
        if payload.len() != self.payload_size as usize {
            return Err(FormatError::Short("record's payload"));
        }
        let found = crc32c::crc32c(payload);
        if found == self.payload_checksum {
            return Ok(());
        }
        Err(FormatError::Checksum { what: "record's payload", found, expected: self.payload_checksum })
    }

    /// First byte after the range.
    pub fn end(&self) -> u64 {
        self.offset + self.size
    }

    fn check(&self) -> Result<(), FormatError> {
        require_stored(&[self.at.epoch.0, self.at.seq.0], WHAT)?;
        if self.kind.is_journalled() {
            require_stored_32(self.generation.0, WHAT)?;
        }
        require(self.payload_size <= RECORD_PAYLOAD_SIZE_MAX, WHAT, "payload size")?;
        require(self.offset.checked_add(self.size).is_some(), WHAT, "range")?;
        let data = matches!(self.kind, Kind::Write | Kind::Copy);
        require(!data || self.size == u64::from(self.payload_size), WHAT, "size")?;
        require(!self.kind.zeroes() || self.payload_size == 0, WHAT, "payload size")?;
        require(!self.kind.zeroes() || self.size <= ZEROES_SIZE_MAX, WHAT, "size")?;
        require(!self.kind.changes_data() || (self.size > 0 && self.volume.0 != 0), WHAT, "range")?;
        // Data is aligned to the smallest logical block; the volume's own block is checked where the volume is known.
        require(!self.kind.changes_data() || (self.offset | self.size).is_multiple_of(512), WHAT, "alignment")
    }
}

fn checksum(raw: &Raw, group: GroupId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&group.0), &raw.as_bytes()[4..])
}
