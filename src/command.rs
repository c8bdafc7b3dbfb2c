//! What an operator asks of a group, and how it is answered.

use crate::{
    format::{message::Range, text::Name},
    pair::{ApplyPolicy, Level, PairState, Role, Takeover, WithoutPeer},
    stream_state::Origin,
    units::{Epoch, Generation, MediumUuid, NodeKey, Position, Seq, VolumeId},
};
use alloc::{string::String, vec::Vec};
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

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
    /// No restart point has arrived.
    #[error(
        "No restart point has arrived; promote to the latest state instead, if the application can start from any instant"
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
    /// Nothing would keep two nodes from serving.
    #[error("Fencing by lease is off, and without it a node must not promote itself; turn it on first, on the primary")]
    NotFenced,
    /// The peer counts on this primary's lease.
    #[error(
        "The standby cannot be told, and may promote itself; connect it first, or make sure that it does not and use --force"
    )]
    CannotTell,
    /// The group has to be unfenced first.
    #[error("The standby counts on this primary's lease; end fencing first")]
    Fenced,
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

fn list(kept: &[GenerationId]) -> String {
    if kept.is_empty() {
        return "none is".into();
    }
    let names: Vec<String> = kept.iter().map(|name| alloc::format!("{name}")).collect();
    alloc::format!("what is kept is {}", names.join(", "))
}

/// How a generation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationId {
    /// A restart point: its number. 0 is the state before a copy.
    Number(Generation),
    /// What a former primary wrote last in this epoch, past the last record that it shares with its peer.
    Fork(Epoch),
}

impl GenerationId {
    /// The name of a generation of which this is known.
    pub(crate) fn of(info: &RestartPointInfo, kind: GenerationKind) -> Self {
        if kind == GenerationKind::Fork { Self::Fork(info.at.epoch) } else { Self::Number(info.generation) }
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Fork(epoch) => write!(f, "fork-{epoch}"),
        }
    }
}

/// A text is no generation's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" names no generation: use a restart point's number, such as 7, or fork-EPOCH, such as fork-2.0")]
pub struct NoGeneration(String);

impl FromStr for GenerationId {
    type Err = NoGeneration;

    fn from_str(text: &str) -> Result<Self, NoGeneration> {
        let fork = |epoch: &str| {
            let (promotions, restarts) = epoch.split_once('.')?;
            let (promotions, restarts) = (promotions.parse::<u32>().ok()?, restarts.parse::<u32>().ok()?);
            Some(Self::Fork(Epoch(u64::from(promotions) << 32 | u64::from(restarts))))
        };
        let found = match text.strip_prefix("fork-") {
            Some(epoch) => fork(epoch),
            None => text.parse().ok().map(|number| Self::Number(Generation(number))),
        };
        found.ok_or_else(|| NoGeneration(text.into()))
    }
}

impl Serialize for GenerationId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GenerationId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GenerationKind {
    /// The last restart point.
    LastRestartPoint,
    /// An older one.
    RestartPoint,
    /// One that is no part of the group's history any more, because another node was promoted to a state before it.
    FormerRestartPoint,
    /// What a former primary wrote that no other node has.
    Fork,
    /// The state before the copy that is under way.
    BeforeCopy,
}

impl From<Origin> for GenerationKind {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::RestartPoint => Self::RestartPoint,
            Origin::FormerRestartPoint => Self::FormerRestartPoint,
            Origin::Fork => Self::Fork,
        }
    }
}

/// A generation as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationStatus {
    /// Its name.
    pub name: GenerationId,
    /// What it is.
    pub kind: GenerationKind,
    /// The last record that is part of it.
    pub at: Position,
    /// When it came to be, microseconds since 1970.
    pub time: crate::units::WallClock,
    /// For people.
    pub label: Name,
    /// Bytes of blocks that neither a newer generation nor the latest state has, as far as that is known already.
    pub own_bytes: u64,
    /// The volumes have come so far: it can be read.
    pub applied: bool,
    /// It is being read, or tried out.
    pub in_use: bool,
}

/// A trial as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrialStatus {
    /// The generation of which it is a copy.
    pub generation: GenerationId,
    /// The last record that is part of that.
    pub at: Position,
    /// Bytes of blocks that were written.
    pub written_bytes: u64,
}

/// A restart point as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RestartPointInfo {
    /// Its number.
    pub generation: Generation,
    /// Its record.
    pub at: Position,
    /// When it was declared, microseconds since 1970.
    pub time: crate::units::WallClock,
    /// For people.
    pub label: Name,
}

impl RestartPointInfo {
    /// Whether an application declared it; else it is the state before a copy.
    pub fn is_declared(&self) -> bool {
        self.generation != Generation::UNDECLARED
    }
}

/// A group as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The role on this node.
    pub role: Role,
    /// The pair's state.
    pub pair: PairState,
    /// The peer, if there is a pair.
    pub peer: Option<NodeKey>,
    /// Whether a session to the peer is up and its greeting was understood.
    pub connected: bool,
    /// When a host's write is answered.
    pub level: Level,
    /// What happens without the peer at level remote.
    pub without_peer: WithoutPeer,
    /// When this node, as a secondary, applies what it receives.
    pub policy: ApplyPolicy,
    /// Fencing by lease, if it is on.
    pub lease: Option<LeaseStatus>,
    /// Automatic promotion, if it is on.
    pub takeover: Option<TakeoverStatus>,
    /// Under the policy `delayed`: the journal cannot hold the open interval, which is therefore applied.
    pub delay_given_up: bool,
    /// The epoch.
    pub epoch: Epoch,
    /// Last record made or received.
    pub head: Position,
    /// On a secondary: a copy is under way, and what the volumes hold is no state of the primary.
    pub copying: bool,
    /// Last record durable here.
    pub durable: Seq,
    /// Last record applied to the tables.
    pub applied: Seq,
    /// Last record that the peer has made durable (primary only).
    pub acknowledged: Seq,
    /// How far the peer is behind.
    pub lag: Lag,
    /// Last restart point here.
    pub restart_point: Option<RestartPointInfo>,
    /// All generations that this node keeps, newest first.
    pub generations: Vec<GenerationStatus>,
    /// The trial that is open.
    pub trial: Option<TrialStatus>,
    /// How many restart points are kept at least.
    pub keep_count: u16,
    /// Those that are at most so much older than the last one are kept too, in seconds.
    pub keep_seconds: u32,
    /// Generation of the last restart point that the peer has made durable.
    pub restart_point_acknowledged: Option<Generation>,
    /// A verification under way.
    pub verifying: Option<Progress>,
    /// Blocks that still have to be copied to the peer, in bytes.
    pub dirty_bytes: u64,
    /// Journal's size and use in bytes.
    pub journal_size: u64,
    /// Bytes of the journal that cannot be reused yet.
    pub journal_used: u64,
    /// The volumes.
    pub volumes: Vec<VolumeStatus>,
    /// What only this node has (a fenced former primary).
    pub fork: Option<Fork>,
    /// Why the group has stopped, if it has.
    pub stopped: Option<&'static str>,
}

/// Fencing by lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseStatus {
    /// How long a lease lasts.
    pub millis: u32,
    /// On a primary: how long it may still answer its hosts. Else: how long this node must not be promoted.
    pub left_millis: u64,
}

/// Automatic promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TakeoverStatus {
    /// The primary has to be silent for so long.
    pub after_millis: u32,
    /// To all that was received, instead of the last restart point.
    pub to_latest: bool,
    /// This node would do it now: it is a secondary, and has granted its primary a lease.
    pub is_armed: bool,
}

/// What a former primary wrote that is no part of the present primary's history. It is kept, and can be read, until an
/// operator gives it up.
#[derive(Clone, Debug, Serialize)]
pub struct Fork {
    /// `fork-EPOCH`.
    pub name: String,
    /// The last common record.
    pub after: Position,
    /// The last record of the fork.
    pub last: Position,
    /// How many records are between.
    pub record_count: u64,
}

/// How far the peer is behind: what it has not made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Age of the oldest record it lacks, in microseconds.
    pub micros: u64,
    /// Number of records it lacks.
    pub records: u64,
    /// Their payload in bytes.
    pub bytes: u64,
}

/// How far a verification is, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Progress {
    /// Compared.
    pub done: u64,
    /// To be compared in all.
    pub total: u64,
    /// Found to differ.
    pub differing: u64,
}

/// A volume as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// Its number in the group.
    pub id: VolumeId,
    /// Its name in the group.
    pub name: Name,
    /// Size in bytes.
    pub size: u64,
    /// 512 or 4096.
    pub logical_block_size: u32,
    /// Size of a table block in bytes.
    pub table_block_size: u32,
    /// Where the pool is.
    pub pool_path: String,
    /// Physical blocks in the pool.
    pub pool_block_count: u32,
    /// Physical blocks in use.
    pub pool_used_count: u32,
}
