//! What the formats share: integers, checksums and the errors of a parser.

use crate::units::{Generation, Position};
pub use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of every format in this crate that does not name one of its own. A reader refuses newer ones.
pub const VERSION: u16 = 1;

/// Why bytes were not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Nothing of ours is there.
    #[error("There is no Holdfast {0} here")]
    Absent(&'static str),
    /// Made by another version of Holdfast.
    #[error(
        "The {what} has format version {found}, but this program reads versions up to {newest}; use the version of Holdfast that wrote it"
    )]
    Version {
        /// Which structure.
        what: &'static str,
        /// Its version.
        found: u16,
        /// The newest that this program knows.
        newest: u16,
    },
    /// Damaged.
    #[error("The {what} has checksum {found:#010x}, not {expected:#010x}")]
    Checksum {
        /// Which structure.
        what: &'static str,
        /// What the bytes give.
        found: u32,
        /// What they say.
        expected: u32,
    },
    /// A field is out of range though the checksum holds.
    #[error("The {what} has an impossible {field}")]
    Field {
        /// Which structure.
        what: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// Too few bytes.
    #[error("The {0} is cut short")]
    Short(&'static str),
}

/// What each superblock begins with.
pub const MAGIC: [u8; 8] = *b"HOLDFAST";

/// Numbers of 64 bits on a medium are below this: the core counts on from them, and must not come to their end.
const STORED_LIMIT: u64 = 1 << 63;
/// A peer's are below this, so that what follows from them can be stored.
const SENT_LIMIT: u64 = 1 << 62;
/// The same for generations and stamps, which have 32 bits.
const STORED_LIMIT_32: u32 = 3 << 30;
const SENT_LIMIT_32: u32 = 1 << 31;

/// Requires that one can count on from numbers that a medium holds.
pub(super) fn require_stored(numbers: &[u64], what: &'static str) -> Result<(), FormatError> {
    require(numbers.iter().all(|number| *number < STORED_LIMIT), what, "number")
}

/// The same of numbers that have 32 bits.
pub(super) fn require_stored_32(number: u32, what: &'static str) -> Result<(), FormatError> {
    require(number < STORED_LIMIT_32, what, "number")
}

/// Requires that one can count on from the place and the generation that a peer names.
pub(super) fn require_sent(at: Position, generation: Generation, what: &'static str) -> Result<(), FormatError> {
    let holds = at.epoch.0 < SENT_LIMIT && at.seq.0 < SENT_LIMIT && generation.0 < SENT_LIMIT_32;
    require(holds, what, "number")
}

/// CRC32C of `bytes` as if the four at `at` were zero.
pub(super) fn checksum_without(bytes: &[u8], at: usize) -> u32 {
    let (before, rest) = bytes.split_at(at.min(bytes.len()));
    let (_, after) = rest.split_at(4.min(rest.len()));
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(crc, after)
}

/// The first `T` of `bytes`.
pub(super) fn prefix<'a, T>(bytes: &'a [u8], what: &'static str) -> Result<(&'a T, &'a [u8]), FormatError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    T::ref_from_prefix(bytes).map_err(|_| FormatError::Short(what))
}

/// Requires what must hold of a field.
pub(super) fn require(holds: bool, what: &'static str, field: &'static str) -> Result<(), FormatError> {
    if holds { Ok(()) } else { Err(FormatError::Field { what, field }) }
}

/// A record's place, in a format.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawPosition {
    /// Epoch.
    pub epoch: U64,
    /// Seq.
    pub seq: U64,
}

impl From<Position> for RawPosition {
    fn from(position: Position) -> Self {
        Self { epoch: position.epoch.0.into(), seq: position.seq.0.into() }
    }
}

impl From<RawPosition> for Position {
    fn from(raw: RawPosition) -> Self {
        Self { epoch: crate::units::Epoch(raw.epoch.get()), seq: crate::units::Seq(raw.seq.get()) }
    }
}
