//! What a group asks of its shell.

use crate::{
    command::{CommandError, CommandId, CommandReply, GenerationId},
    disk::DiskOperation,
    pair::{PairState, Role},
    request::{Reply, RequestError, RequestId},
    units::{Epoch, FrameCount, Generation, Position, VolumeId},
};
use alloc::string::String;
use bytes::Bytes;

/// One thing to do. Outputs are to be carried out in the order in which they are polled.
#[derive(Debug)]
pub enum Output {
    /// Carry out a disk operation and report its outcome.
    Disk(DiskOperation),
    /// Answer a host.
    Answer {
        /// The request.
        id: RequestId,
        /// How it ended.
        result: Result<Reply, RequestError>,
    },
    /// Answer an operator.
    CommandAnswer {
        /// The command.
        id: CommandId,
        /// How it ended.
        result: Result<CommandReply, CommandError>,
    },
    /// Hand a frame to the carrier, to the peer, on the group's channel; in order.
    Send(Frame),
    /// Tell the peer, through the carrier's acknowledgements, that this many journalled frames of the session are
    /// durable here.
    Durable(FrameCount),
    /// Tell the peer this number, through the carrier's acknowledgements: at once, before whatever waits to be sent. It rises; of
    /// several only the last counts.
    LeaseMark(u64),
    /// The group has taken this many bytes of frames out of memory: the carrier may let the peer send as many more.
    Consumed(u64),
    /// The peer broke the protocol, or must greet again: end the session to it and let it come up anew.
    Reconnect,
    /// For the log and the metrics.
    Event(Event),
}

/// A frame's body: the header, then the payload (which may be empty).
#[derive(Clone, Debug)]
pub struct Frame {
    /// A record header as it is on disk.
    pub header: Bytes,
    /// What follows it.
    pub payload: Bytes,
}

/// A rare change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The role changed.
    RoleChanged {
        /// The new role.
        role: Role,
        /// The epoch.
        epoch: Epoch,
    },
    /// The pair state changed.
    PairChanged {
        /// The new state.
        state: PairState,
    },
    /// The peer's greeting was understood.
    PeerGreeted {
        /// Last record there.
        head: Position,
    },
    /// The peer was refused.
    PeerRefused {
        /// Why.
        reason: String,
    },
    /// A restart point is durable here.
    RestartPoint {
        /// Its number.
        generation: Generation,
        /// Its record.
        at: Position,
    },
    /// A copy (initial or by bitmap) ended.
    CopyEnded {
        /// Bytes copied.
        bytes: u64,
        /// Bytes that were equal, and not copied.
        equal_bytes: u64,
    },
    /// A medium failed; the group has stopped.
    MediumFailed {
        /// Which, and how.
        reason: String,
    },
    /// Under the policy `delayed`: half of the journal waits for a restart point, and is applied without one.
    DelayGivenUp,
    /// This primary may answer its hosts.
    LeaseHeld,
    /// This node was promoted without the other one's consent, and serves without a lease from now on.
    LeaseDropped,
    /// The peer's promise is over: this primary answers nothing until it has another.
    LeaseLost,
    /// A block that could not be read here was brought from the peer, and is written anew.
    Mended {
        /// Of this volume.
        volume: VolumeId,
        /// Its first byte.
        offset: u64,
        /// How many bytes.
        size: u64,
    },
    /// The peer cannot read it either, or what it has could not be applied without reading the block here.
    NotMended {
        /// Of this volume.
        volume: VolumeId,
        /// The block's first byte.
        offset: u64,
    },
    /// The primary has been silent for too long; this node promotes itself.
    TakingOver,
    /// It would, and cannot.
    TakeoverRefused {
        /// Why.
        reason: String,
    },
    /// A pool has no room: the oldest generation that could be done without is let go of.
    GenerationDropped {
        /// Its name.
        name: GenerationId,
    },
    /// The same, and nothing but the trial could be done without.
    TrialDropped,
    /// The pool has no free block; destaging waits.
    PoolFull,
}
