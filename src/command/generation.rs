//! Generations as people name and see them.

use super::RestartPointInfo;
use crate::{
    format::text::Name,
    stream_state::Origin,
    units::{Epoch, Generation, Position, WallClock},
};
use alloc::string::String;
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

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
    pub time: WallClock,
    /// For people.
    pub label: Name,
    /// Bytes of blocks that neither a newer generation nor the latest state has, as far as that is known already.
    pub own_bytes: u64,
    /// The volumes have come so far: it can be read.
    pub applied: bool,
    /// It is being read, or tried out.
    pub in_use: bool,
}
