//! Payloads of the frames that are not data: restart points, epoch changes, the start of a copy, greetings.
//!
//! ```text
//!  restart point: label (64)
//!  history:   0 count  4 0  8: (epoch 8, first seq 8) each
//!  greeting:  0 role  1 copying  2 has restart point  3 ranges known  4 generation  8 head (16)
//!             24 restart point's generation  28 0  32 restart point (16)  48 volume digest  52 a primary's lease in milliseconds  56: history
//!  digests:   0 unit in bytes (0: the range holds nothing)  4 count  8: BLAKE3 digest, first 16 bytes, each
//!  lease:     0 number  8 milliseconds  12 0
//!  ranges:    0 count  4 others (0 may differ, 1 are the same, 2 follow)  8: (volume 2, 0 6, offset 8, size 8) each
//! ```

use super::{
    parts::{FormatError, RawPosition, U16, U32, U64, prefix, require, require_sent},
    text::Name,
};
use crate::{
    pair::Role,
    stream_state::{EPOCH_HISTORY_MAX, EpochStart},
    units::{Epoch, Generation, Position, Seq, VolumeId},
};
use alloc::vec::Vec;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most digests in one message.
pub const DIGEST_COUNT_MAX: usize = 64;
/// Longest lease in milliseconds.
pub const LEASE_MILLIS_MAX: u32 = 3_600_000;
/// Most ranges in one message.
pub const RANGE_COUNT_MAX: usize = 16_384;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawGreeting {
    role: u8,
    copying: u8,
    has_restart_point: u8,
    leaves_behind: u8,
    generation: U32,
    head: RawPosition,
    restart_generation: U32,
    reserved1: U32,
    restart_at: RawPosition,
    volumes: U32,
    lease_millis: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawCount {
    count: U32,
    flag: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDigests {
    unit: U32,
    count: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRange {
    volume: U16,
    reserved: [u8; 6],
    offset: U64,
    size: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLease {
    number: U64,
    millis: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RawGreeting>() == 56 && size_of::<RawRange>() == 24);

/// What each node tells the other first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The role there.
    pub role: Role,
    /// The volumes there are between two states.
    pub copying: bool,
    /// A primary sends nothing, but notes what changes, until it begins a copy.
    pub leaves_behind: bool,
    /// The open interval.
    pub generation: Generation,
    /// The last record that is durable there (on a primary: that was made).
    pub head: Position,
    /// The last restart point there.
    pub restart_point: Option<(Generation, Position)>,
    /// A digest of the volumes' numbers and sizes.
    pub volumes: u32,
    /// How long the lease is that a primary needs; 0: none.
    pub lease_millis: u32,
    /// The epochs.
    pub epochs: Vec<EpochStart>,
}

/// A range of a volume in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Range {
    /// The volume.
    pub volume: VolumeId,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
}

/// A lease that a primary asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which one, counted from 1 by who asks; 0: who asked relies on none any more.
    pub number: u64,
    /// How long it lasts; with number 0: how long others will.
    pub millis: u32,
}

impl Lease {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let raw = RawLease { number: self.number.into(), millis: self.millis.into(), reserved: 0.into() };
        Bytes::copy_from_slice(raw.as_bytes())
    }

    /// Reads it.
    pub fn parse(payload: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "lease";
        let (raw, rest) = prefix::<RawLease>(payload, WHAT)?;
        require(rest.is_empty() && raw.reserved.get() == 0, WHAT, "reserved field")?;
        require(raw.millis.get() <= LEASE_MILLIS_MAX, WHAT, "duration")?;
        Ok(Self { number: raw.number.get(), millis: raw.millis.get() })
    }
}

/// A restart point's payload.
pub fn encode_label(label: Name) -> Bytes {
    Bytes::copy_from_slice(label.as_bytes())
}

/// Reads a restart point's payload.
pub fn parse_label(payload: &[u8]) -> Result<Name, FormatError> {
    const WHAT: &str = "restart point";
    let (name, rest) = prefix::<Name>(payload, WHAT)?;
    require(rest.is_empty() && name.check().is_ok(), WHAT, "label")?;
    Ok(*name)
}

/// A copy's first frame: the epochs.
pub fn encode_history(epochs: &[EpochStart]) -> Bytes {
    let mut bytes = Vec::new();
    push_history(&mut bytes, epochs);
    bytes.into()
}

/// Reads [`encode_history`]'s payload.
pub fn parse_history(payload: &[u8]) -> Result<Vec<EpochStart>, FormatError> {
    const WHAT: &str = "epoch history";
    let (raw, mut rest) = prefix::<RawCount>(payload, WHAT)?;
    let count = raw.count.get() as usize;
    require((1..=EPOCH_HISTORY_MAX).contains(&count) && raw.flag.get() == 0, WHAT, "count")?;
    let mut epochs = Vec::with_capacity(count);
    for _ in 0..count {
        let (raw, after) = prefix::<RawPosition>(rest, WHAT)?;
        rest = after;
        epochs.push(EpochStart { epoch: Epoch(raw.epoch.get()), first: Seq(raw.seq.get()) });
    }
    require(rest.is_empty(), WHAT, "size")?;
    require(epochs.is_sorted_by(|a, b| a.epoch < b.epoch && a.first <= b.first), WHAT, "order")?;
    for start in &epochs {
        require_sent(Position { epoch: start.epoch, seq: start.first }, Generation::default(), WHAT)?;
    }
    Ok(epochs)
}

fn push_history(bytes: &mut Vec<u8>, epochs: &[EpochStart]) {
    let count = RawCount { count: (epochs.len() as u32).into(), flag: 0.into() };
    bytes.extend_from_slice(count.as_bytes());
    for start in epochs {
        let raw: RawPosition = Position { epoch: start.epoch, seq: start.first }.into();
        bytes.extend_from_slice(raw.as_bytes());
    }
}

impl Greeting {
    /// Its payload.
    pub fn encode(&self) -> Bytes {
        let (generation, at) = self.restart_point.unwrap_or_default();
        let raw = RawGreeting {
            role: self.role as u8,
            copying: self.copying.into(),
            has_restart_point: self.restart_point.is_some().into(),
            leaves_behind: self.leaves_behind.into(),
            generation: self.generation.0.into(),
            head: self.head.into(),
            restart_generation: generation.0.into(),
            reserved1: 0.into(),
            restart_at: at.into(),
            volumes: self.volumes.into(),
            lease_millis: self.lease_millis.into(),
        };
        let mut bytes = raw.as_bytes().to_vec();
        push_history(&mut bytes, &self.epochs);
        bytes.into()
    }

    /// Reads a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "greeting";
        let (raw, rest) = prefix::<RawGreeting>(payload, WHAT)?;
        require(raw.copying <= 1 && raw.has_restart_point <= 1 && raw.leaves_behind <= 1, WHAT, "flag")?;
        require(raw.reserved1.get() == 0, WHAT, "reserved field")?;
        require(raw.lease_millis.get() <= LEASE_MILLIS_MAX, WHAT, "lease")?;
        require_sent(raw.head.into(), Generation(raw.generation.get()), WHAT)?;
        require_sent(raw.restart_at.into(), Generation(raw.restart_generation.get()), WHAT)?;
        Ok(Self {
            role: match raw.role {
                0 => Role::Primary,
                1 => Role::Secondary,
                2 => Role::Fenced,
                _ => {
                    return Err(FormatError::Field { what: WHAT, field: "role" });
                }
            },
            copying: raw.copying == 1,
            leaves_behind: raw.leaves_behind == 1,
            generation: Generation(raw.generation.get()),
            head: raw.head.into(),
            restart_point: (raw.has_restart_point == 1)
                .then_some((Generation(raw.restart_generation.get()), raw.restart_at.into())),
            volumes: raw.volumes.get(),
            lease_millis: raw.lease_millis.get(),
            epochs: parse_history(rest)?,
        })
    }
}

/// The first half of a BLAKE3 hash: data that differs has another one, whoever chose the data.
pub type Digest = [u8; 16];

/// Digests of a range, one for each unit of it; the last unit may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Bytes of a unit; 0 if the range holds nothing, and no digest follows.
    pub unit: u32,
    /// In order.
    pub digests: Vec<Digest>,
}

impl Digests {
    /// Of a range that holds nothing.
    pub fn of_hole() -> Self {
        Self { unit: 0, digests: Vec::new() }
    }

    /// Of a range with this content.
    pub fn of(data: &[u8], unit: u32) -> Self {
        let digest = |part: &[u8]| {
            let mut digest = Digest::default();
            digest.copy_from_slice(&blake3::hash(part).as_bytes()[..16]);
            digest
        };
        Self { unit, digests: data.chunks(unit as usize).map(digest).collect() }
    }

    /// The payload.
    pub fn encode(&self) -> Bytes {
        let head = RawDigests { unit: self.unit.into(), count: (self.digests.len() as u32).into() };
        let mut bytes = head.as_bytes().to_vec();
        self.digests.iter().for_each(|digest| bytes.extend_from_slice(digest));
        bytes.into()
    }

    /// Reads the payload that is about a range of `size` bytes.
    pub fn parse(payload: &[u8], size: u64) -> Result<Self, FormatError> {
        const WHAT: &str = "digests";
        let (raw, rest) = prefix::<RawDigests>(payload, WHAT)?;
        let (unit, count) = (raw.unit.get(), raw.count.get() as usize);
        require(count <= DIGEST_COUNT_MAX && (unit == 0) == (count == 0), WHAT, "count")?;
        require(
            unit == 0 || (unit.is_multiple_of(512) && size.div_ceil(u64::from(unit)) == count as u64),
            WHAT,
            "unit",
        )?;
        let (digests, rest) = rest.as_chunks::<16>();
        require(digests.len() == count && rest.is_empty(), WHAT, "size")?;
        Ok(Self { unit, digests: digests.to_vec() })
    }
}

/// What a list of ranges says of what it does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Any of it may differ; nothing is named.
    Any = 0,
    /// It is the same.
    Same = 1,
    /// The list goes on in the next message.
    Follow = 2,
}

/// A list of ranges, [`RANGE_COUNT_MAX`] at most.
pub fn encode_ranges(ranges: &[Range], others: Others) -> Bytes {
    let count = RawCount { count: (ranges.len() as u32).into(), flag: (others as u32).into() };
    let mut bytes = count.as_bytes().to_vec();
    for range in ranges {
        let raw = RawRange {
            volume: range.volume.0.into(),
            reserved: [0; 6],
            offset: range.offset.into(),
            size: range.size.into(),
        };
        bytes.extend_from_slice(raw.as_bytes());
    }
    bytes.into()
}

/// Reads [`encode_ranges`]'s payload.
pub fn parse_ranges(payload: &[u8]) -> Result<(Vec<Range>, Others), FormatError> {
    const WHAT: &str = "list of ranges";
    let (raw, mut rest) = prefix::<RawCount>(payload, WHAT)?;
    let count = raw.count.get() as usize;
    let others = [Others::Any, Others::Same, Others::Follow].into_iter().find(|one| *one as u32 == raw.flag.get());
    require(count <= RANGE_COUNT_MAX && (count == 0 || others != Some(Others::Any)), WHAT, "count")?;
    let others = others.ok_or(FormatError::Field { what: WHAT, field: "flag" })?;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let (raw, after) = prefix::<RawRange>(rest, WHAT)?;
        rest = after;
        require(raw.reserved == [0; 6], WHAT, "reserved field")?;
        let (offset, size) = (raw.offset.get(), raw.size.get());
        require(offset.checked_add(size).is_some(), WHAT, "range")?;
        ranges.push(Range { volume: VolumeId(raw.volume.get()), offset, size });
    }
    require(rest.is_empty(), WHAT, "size")?;
    Ok((ranges, others))
}
