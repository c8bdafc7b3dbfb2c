//! Why a command is refused.

use super::GenerationId;
use crate::{
    format::{message::LEASE_MILLIS_MAX, text::Name},
    pair::{PairState, Role},
    units::{Position, VolumeId},
};
use alloc::{string::String, vec::Vec};

/// Why a command was refused or failed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The role does not allow it.
    #[error("The group is {role} on this node; {hint}")]
    WrongRole {
        /// The role it has.
        role: Role,
        /// What to do first.
        hint: &'static str,
    },
    /// The pair state does not allow it.
    #[error("The pair is {state}; {hint}")]
    WrongPairState {
        /// The state it has.
        state: PairState,
        /// What to do first.
        hint: &'static str,
    },
    /// A standby that has never been connected to its primary.
    #[error(
        "This node has never heard of its primary and holds nothing of the group; connect it first, or make a new group"
    )]
    NothingReceived,
    /// No restart point has arrived.
    #[error(
        "No restart point of the group's history has arrived; promote to the latest state instead (`--latest`), if the application \
         can start from any instant"
    )]
    NoRestartPoint,
    /// Other generations are kept, or none.
    #[error("Generation {asked} is not kept on this node; {}", list(.kept))]
    NotKept {
        /// What was asked for.
        asked: GenerationId,
        /// What there is, newest first.
        kept: Vec<GenerationId>,
    },
    /// It has arrived, and the volumes are not that far yet.
    #[error("Generation {0} has arrived and is not applied yet; try again in a moment")]
    NotApplied(GenerationId),
    /// The last restart point stays.
    #[error("Generation {0} is the last restart point, which is always kept")]
    LastRestartPoint(GenerationId),
    /// Somebody reads it.
    #[error("Generation {0} is in use; disconnect its clients, or end the trial, first")]
    GenerationInUse(GenerationId),
    /// A promotion would lose what a former primary wrote.
    #[error("Generation {0} is newer than that and would be lost; drop it first, or use --force")]
    ForkInTheWay(GenerationId),
    /// Not a possible number.
    #[error("{0} restart points cannot be kept: 1 to 64 can")]
    KeepCount(u16),
    /// The secondary's state is between two states while it is being copied.
    #[error(
        "The latest state is being copied and is not consistent; promote to the restart point, or wait for the copy"
    )]
    CopyInProgress,
    /// The primary has what this node lacks.
    #[error(
        "This node would go on from record {have}, but the primary was seen with {peer}; connect the primary first, or use --force to give up what is between"
    )]
    Behind {
        /// Last record that would be served.
        have: Position,
        /// Last record seen there.
        peer: Position,
    },
    /// The primary was suspended, or forgot this node.
    #[error(
        "The primary has stopped sending and goes on without this node; resume the pair there first, or use --force to give up what it has written since"
    )]
    LeftBehind,
    /// The session ended.
    #[error("The peer was lost in the meantime; nothing has changed, repeat the command when it is back")]
    PeerLost,
    /// What was to be compared could not be read.
    #[error("A part of a volume cannot be read; the log says which medium failed")]
    Unreadable,
    /// The primary may still answer its hosts.
    #[error(
        "The primary has this node's promise for {seconds} s more and may still answer its hosts; wait, or use --force if it is surely dead"
    )]
    Leased {
        /// How long.
        seconds: u64,
    },
    /// No possible duration.
    #[error("A lease of {0} ms is too long: at most {LEASE_MILLIS_MAX} ms are possible")]
    LeaseLength(u32),
    /// Nothing would keep two nodes from serving.
    #[error("Fencing by lease is off, and without it a node must not promote itself; turn it on first, on the primary")]
    NotFenced,
    /// The peer counts on this primary's lease.
    #[error(
        "The standby cannot be told, and may promote itself; connect it first, or see to it that it does not (ublk-admin auto-promote GROUP off, there) and use --force"
    )]
    CannotTell,
    /// The group has to be unfenced first.
    #[error("The standby counts on this primary's lease; end fencing first")]
    Fenced,
    /// Each of them alone.
    #[error("There is more than one reason against it: {}", numbered(.0))]
    Several(Vec<Self>),
    /// The primary was heard a moment ago.
    #[error(
        "The primary's node was heard {seconds} s ago on the heartbeat path, though no link is up; use --force if it serves no more"
    )]
    PrimaryHeard {
        /// When.
        seconds: u64,
    },
    /// The journal cannot be made larger.
    #[error("The journal: {0}")]
    Journal(&'static str),
    /// What has come cannot be written.
    #[error(
        "A pool and the journal are full, and what has come cannot be written; make room where the pool is, or drop a generation, and try again"
    )]
    Full,
    /// There are records that only this node has.
    #[error("{record_count} records since {fork} exist only on this node; give them up with --discard-fork")]
    ForkWouldBeLost {
        /// The last common record.
        fork: Position,
        /// How many were written after it.
        record_count: u64,
    },
    /// The group has no volume of this number.
    #[error("The group has no volume {0}")]
    NoVolume(VolumeId),
    /// A volume cannot be made, or not be made larger.
    #[error("Volume {name}: {reason}")]
    Volume {
        /// Its name.
        name: Name,
        /// Why not.
        reason: &'static str,
    },
    /// A medium failed.
    #[error("A medium failed; the group has stopped to protect its data")]
    Io,
    /// The group has stopped.
    #[error("The group has stopped")]
    Stopped,
    /// Another command of this kind is in progress.
    #[error("A {0} is in progress; wait until it ends")]
    InProgress(&'static str),
}

fn numbered(reasons: &[CommandError]) -> String {
    let reasons: Vec<String> =
        (1..).zip(reasons).map(|(number, reason)| alloc::format!("({number}) {reason}")).collect();
    reasons.join("; ")
}

fn list(kept: &[GenerationId]) -> String {
    if kept.is_empty() {
        return "none is".into();
    }
    let names: Vec<String> = kept.iter().map(|name| alloc::format!("{name}")).collect();
    alloc::format!("what is kept is {}", names.join(", "))
}
