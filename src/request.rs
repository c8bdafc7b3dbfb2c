//! What a host asks of a volume, and how it is answered.

use crate::units::{Order, VolumeId};
use alloc::vec::Vec;
use bytes::Bytes;

/// Chosen by the front end; comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// When a write may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the write would survive the death of the daemon.
    Completed,
    /// When it would survive loss of power (FUA).
    Durable,
}

/// What becomes of the space that a write-zeroes covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// It may be given back.
    Release,
    /// It stays allocated (NBD's NO_HOLE).
    Keep,
}

/// One command. Offsets and sizes in bytes, multiples of the volume's logical block, inside the volume.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Give the newest completed data.
    Read {
        /// First byte.
        offset: u64,
        /// At most 32 MiB.
        size: u32,
    },
    /// Replace data.
    Write {
        /// First byte.
        offset: u64,
        /// At most 32 MiB. Is written without a copy if it starts at a 4,096-byte boundary of memory.
        data: Bytes,
        /// When to answer.
        durability: Durability,
    },
    /// Make all completed writes of the group durable.
    Flush,
    /// The data is of no more use; reads give zeroes afterwards.
    Discard {
        /// First byte.
        offset: u64,
        /// Any size within the volume.
        size: u64,
    },
    /// Reads give zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Any size within the volume.
        size: u64,
        /// What becomes of the space.
        space: Space,
        /// When to answer.
        durability: Durability,
    },
    /// Tell which parts hold data.
    Extents {
        /// First byte.
        offset: u64,
        /// Any size within the volume.
        size: u64,
    },
}

/// How a client opened a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It takes what it reads for the present state, and gets errors when this node is no longer the primary.
    ReadWrite,
    /// It knows that it looks at what this node holds: on a fenced node, what no other node has.
    ReadOnly,
    /// It looks at a generation, which [`Group::hold_generation`](crate::group::Group::hold_generation) holds for it.
    Generation(Order),
    /// It reads and writes the trial that is open.
    Trial,
}

/// A host's request to one volume.
#[derive(Clone, Debug)]
pub struct Request {
    /// Comes back with the answer; must not be that of a request still in flight.
    pub id: RequestId,
    /// The volume.
    pub volume: VolumeId,
    /// How it was opened.
    pub access: Access,
    /// What to do.
    pub operation: Operation,
}

/// The answer to a request that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// The data, in order; together as long as asked for.
    Data(Vec<Bytes>),
    /// The parts, in order; together as long as asked for.
    Extents(Vec<Extent>),
}

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Size in bytes.
    pub size: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What a part of a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data.
    Allocated,
    /// Nothing; reads as zeroes.
    Hole,
}

/// Why a request failed. The volume is unchanged unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not within the volume, not aligned, or longer than allowed.
    #[error("The request is outside the volume or not aligned to its logical block")]
    Invalid,
    /// A medium failed. For a write: whether it took effect is unknown until recovery.
    #[error("A medium failed")]
    Io,
    /// Journal and pool are full.
    #[error("The pool is full")]
    NoSpace,
    /// This node does not serve writes of this group.
    #[error("This node is not the primary of the group")]
    NotPrimary,
    /// What the client keeps in memory may be out of date: shells say so, no group does.
    #[error("The volume may have changed since the client came; it must come anew")]
    Outdated,
    /// A generation cannot be written.
    #[error("A generation cannot be written")]
    ReadOnly,
    /// The generation was let go of, or the trial has ended.
    #[error("The generation is kept no more, or the trial has ended")]
    NotKept,
    /// The group has stopped.
    #[error("The group has stopped")]
    Stopped,
}

/// The engine has no room for the request now; offer it again after the next completion.
#[derive(Debug)]
pub struct Busy(pub Request);
