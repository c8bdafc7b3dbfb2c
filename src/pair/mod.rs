//! The two nodes of a group: roles, pair states, and what is allowed in each.

pub mod transitions;

use crate::command::PromoteTarget;
use core::fmt;
use serde::{Deserialize, Serialize};

/// What a node is for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Serves reads and writes.
    Primary,
    /// Receives the stream.
    Secondary,
    /// Was primary and has met a higher epoch: serves nothing until it is demoted.
    Fenced,
}

/// The pair's state, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "cause")]
pub enum PairState {
    /// No peer.
    Simplex,
    /// What was stored before the pair was made is being copied.
    InitialCopy,
    /// Every record is sent as it is made.
    Duplex,
    /// What was written before an operator's command is still sent; the rest is not.
    Suspending,
    /// Nothing is sent; what changes is noted in the bitmap.
    Suspended(Cause),
    /// After a suspension: the bitmap's blocks are being copied.
    DuplexPending,
}

/// Why a pair is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// An operator asked for it.
    Command,
    /// The peer was away until the journal was nearly full.
    JournalFull,
    /// It is resumed, and the peer is not there yet.
    Peer,
    /// Something that was to be sent could not be read here; `pair resume` tries again.
    MediumError,
}

/// When a host's write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// When it is in the journal here.
    Local,
    /// When it is durable at the secondary too.
    Remote,
}

/// What a group at level remote does without its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutPeer {
    /// Answer writes when they are in the journal here.
    Continue,
    /// Answer no write until the peer is back.
    Freeze,
}

/// When and to what a secondary promotes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The primary has been silent for so long.
    pub after_millis: u32,
    /// To all that was received, instead of the last restart point.
    pub to_latest: bool,
}

impl Takeover {
    /// To which state.
    pub fn target(self) -> PromoteTarget {
        if self.to_latest { PromoteTarget::Latest } else { PromoteTarget::RestartPoint }
    }
}

/// When a secondary applies what it has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplyPolicy {
    /// At once, beside the state of the last restart point.
    #[default]
    Snapshot,
    /// When the next restart point is there; until then it stays in the journal.
    Delayed,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
            Self::Fenced => "fenced",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "by command",
            Self::JournalFull => "journal full",
            Self::Peer => "waits for the peer",
            Self::MediumError => "medium error",
        })
    }
}

impl fmt::Display for PairState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended(cause) => write!(f, "suspended ({cause})"),
            other => f.write_str(other.name()),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}
