//! What the core asks of its media: operations in flight, and plain calls while a group is created or opened.
//!
//! Faults tolerated: an operation may fail with an error; a write that was not followed by a completed sync may be
//! lost or torn at 512 bytes at power loss; completed operations of a daemon that dies are kept by the kernel.

use crate::units::VolumeId;
use alloc::vec::Vec;
use bytes::Bytes;

/// One of a group's media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MediumId {
    /// The group's journal.
    Journal,
    /// A volume's pool.
    Pool(VolumeId),
}

/// Chosen by the core; comes back with the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

/// An operation for the shell to carry out. Offsets, sizes and addresses are multiples of
/// [`ALIGNMENT`](crate::buffer::ALIGNMENT). Operations in flight may be carried out in any order.
#[derive(Clone, Debug)]
pub struct DiskOperation {
    /// Comes back with the outcome.
    pub id: OperationId,
    /// Where.
    pub medium: MediumId,
    /// What.
    pub action: DiskAction,
}

/// What to do on a medium.
#[derive(Clone, Debug)]
pub enum DiskAction {
    /// Read `size` bytes.
    Read {
        /// First byte on the medium.
        offset: u64,
        /// How many.
        size: u32,
    },
    /// Write the pieces one after the other.
    Write {
        /// First byte on the medium.
        offset: u64,
        /// Each starts at an aligned address and has an aligned size.
        pieces: Vec<Bytes>,
    },
    /// Make all completed writes durable (fdatasync).
    Sync,
    /// The bytes are of no more use (hole punch). A hint: failure is no error.
    Release {
        /// First byte on the medium.
        offset: u64,
        /// How many.
        size: u64,
    },
}

/// How an operation ended: the data of a read, else empty.
pub type DiskOutcome = Result<Bytes, DiskError>;

/// Why a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The medium reported an error (EIO and all that is not named below).
    #[error("The medium reported an error (errno {errno})")]
    Failed {
        /// The operating system's number.
        errno: i32,
    },
    /// Fewer bytes were read or written than asked for, and asking again did not help.
    #[error("The medium moved {moved} of {expected} bytes")]
    Short {
        /// Bytes moved.
        moved: u32,
        /// Bytes asked for.
        expected: u32,
    },
    /// The file system that holds the medium is full.
    #[error("The file system that holds the medium is full")]
    NoSpace,
}

/// Plain, blocking access to a group's media, used only while a group is created or opened, before it serves anyone.
///
/// All offsets and sizes are multiples of [`ALIGNMENT`](crate::buffer::ALIGNMENT).
pub trait Storage {
    /// Size of a medium in bytes.
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError>;
    /// Reads `size` bytes at `offset`.
    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError>;
    /// Writes `data`, whose address is aligned, at `offset`.
    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError>;
    /// Makes completed writes durable.
    fn sync(&mut self, medium: MediumId) -> Result<(), DiskError>;
}
