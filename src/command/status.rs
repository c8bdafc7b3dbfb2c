//! A group as people see it.

use super::{GenerationId, GenerationStatus};
use crate::{
    format::text::Name,
    pair::{ApplyPolicy, Level, PairState, Role, WithoutPeer},
    units::{Epoch, Generation, NodeKey, Position, Seq, VolumeId, WallClock},
};
use alloc::{string::String, vec::Vec};
use serde::Serialize;

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
    pub time: WallClock,
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
    /// Writes are not answered now, because the peer is not there.
    pub writes_wait: bool,
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
