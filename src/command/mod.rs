//! What an operator asks of a group, and how it is answered.

mod error;
mod generation;
mod status;

pub use error::CommandError;
pub use generation::{GenerationId, GenerationKind, GenerationStatus, NoGeneration};
pub use status::{
    Fork, Lag, LeaseStatus, Progress, RestartPointInfo, Status, TakeoverStatus, TrialStatus, VolumeStatus,
};

use crate::{
    format::{message::Range, text::Name},
    pair::{ApplyPolicy, Level, Takeover, WithoutPeer},
    units::{Epoch, Generation, MediumUuid, NodeKey, Position, VolumeId},
};
use alloc::{string::String, vec::Vec};
use serde::Serialize;

/// Chosen by the shell; comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its number in the group.
    pub id: VolumeId,
    /// Its name in the group.
    pub name: Name,
    /// Size in bytes.
    pub size: u64,
    /// 512 or 4096 bytes.
    pub logical_block_size: u32,
    /// Size of a table block in bytes.
    pub table_block_size: u32,
    /// Names the pool medium.
    pub pool: MediumUuid,
    /// Where the shell finds the pool: at most 255 bytes. Means nothing to the core.
    pub pool_path: String,
}

/// An operator's command. A command that the state does not allow changes nothing.
#[derive(Clone, Debug)]
pub enum Command {
    /// Forgets a volume.
    RemoveVolume(VolumeId),
    /// Makes a volume larger.
    GrowVolume {
        /// Which.
        volume: VolumeId,
        /// Its new size in bytes.
        size: u64,
        /// The size of its pool's medium in bytes; see [`grown_pool_size`](crate::group::grown_pool_size).
        pool_size: u64,
    },
    /// Makes the journal's ring as large as its medium allows; writes wait for a moment.
    GrowJournal {
        /// The size of the journal's medium in bytes.
        size: u64,
    },
    /// Makes the group a pair with the node that has this key; what is stored is copied to it.
    CreatePair {
        /// The peer.
        peer: NodeKey,
    },
    /// Ends the pair; the group is simplex afterwards. A secondary becomes a read-only orphan that can be promoted.
    DeletePair,
    /// Stops sending; writes are noted in the bitmap.
    SuspendPair {
        /// At once; else the peer gets what was written before the command. Answered when nothing is sent any more.
        now: bool,
    },
    /// Sends again: from the journal if it holds the gap, else by bitmap.
    ResumePair {
        /// Copies send only what differs, by digests. Holds until the next resumption or start.
        compare: bool,
    },
    /// Compares everything that both nodes hold, while writes go on.
    VerifyPair {
        /// Copies what differs afterwards.
        mend: bool,
    },
    /// Sets when a host's write is answered.
    SetLevel(Level),
    /// Sets what a synchronous group does without its peer.
    SetWithoutPeer(WithoutPeer),
    /// Sets when this node, as a secondary, applies what it receives.
    SetPolicy(ApplyPolicy),
    /// From now on this primary answers only as long as its peer has promised not to be promoted.
    SetLease {
        /// How long a promise lasts, at most [`LEASE_MILLIS_MAX`](crate::format::message::LEASE_MILLIS_MAX); 0: it answers
        /// without, as soon as the peer has been told.
        millis: u32,
        /// Without telling the peer, which may promote itself then.
        force: bool,
    },
    /// Sets whether this node, as a secondary, promotes itself.
    SetTakeover(Option<Takeover>),
    /// Declares that the application can restart from the present state.
    RestartPoint {
        /// For people.
        label: Name,
    },
    /// Sets which restart points are kept on this node beside the last one: a number of them, and all that are at most so much
    /// older than the last one.
    KeepGenerations {
        /// How many at least, the last one included: 1 to 64.
        count: u16,
        /// How much older, in seconds.
        seconds: u32,
    },
    /// Lets go of a generation. Answered when it will not come back.
    DropGeneration(GenerationId),
    /// Opens a trial: a writable copy of a generation, thrown away later.
    BeginTrial {
        /// Which; the newest if absent.
        generation: Option<GenerationId>,
    },
    /// Throws the trial away.
    EndTrial,
    /// Makes a secondary the primary.
    Promote {
        /// To what.
        target: PromoteTarget,
        /// Although this node knows that it lacks records.
        force: bool,
    },
    /// Makes a primary (or a fenced former primary) a secondary.
    Demote {
        /// Give up what this node wrote that its peer never got.
        discard_fork: bool,
    },
    /// The primary of a pair in step lets its peer have everything, and becomes a secondary. Writes wait meanwhile.
    HandOver,
    /// Stop cleanly: everything durable, marked clean; nothing is served afterwards.
    Stop,
}

/// To which state a secondary is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromoteTarget {
    /// The last restart point that arrived; in a copy to a node that has none, the state before it.
    RestartPoint,
    /// The restart point of this number, the last one or an older one that is kept.
    Generation(Generation),
    /// All that was received.
    Latest,
}

/// The answer to a command that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandReply {
    /// It is done (or was already so).
    Done,
    /// A restart point was declared and is durable on this node.
    RestartPoint {
        /// Its number.
        generation: Generation,
        /// Its record.
        at: Position,
    },
    /// A trial is open.
    Trial {
        /// Of which generation.
        generation: GenerationId,
        /// The last record that is part of it.
        at: Position,
    },
    /// The node is primary now.
    Promoted {
        /// The new epoch.
        epoch: Epoch,
        /// The restart point whose state is served, if that was the target.
        generation: Option<Generation>,
        /// The last record that is part of the state.
        at: Position,
        /// Records that had arrived and are not part of the state.
        dropped_record_count: u64,
    },
    /// Everything was compared.
    Verified {
        /// How much.
        compared_bytes: u64,
        /// How much of it differs.
        differing_bytes: u64,
        /// Where, the first 16,384 ranges.
        differing: Vec<Range>,
        /// What differs is being copied.
        mending: bool,
    },
}
