//! What a sequence of records amounts to: the same function gives the state at the journal's tail, at its head, and
//! after recovery.

use crate::{
    command::RestartPointInfo,
    format::{
        record::{Kind, Record},
        text::Name,
    },
    units::{Epoch, Generation, Order, Position, Seq},
};
use alloc::vec::Vec;

/// Most epochs that are remembered; a peer that knows only older ones is copied anew.
pub const EPOCH_HISTORY_MAX: usize = 64;

/// Where an epoch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first record.
    pub first: Seq,
}

/// A restart point, and what taking the volumes back to it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPoint {
    /// What is told of it.
    pub info: RestartPointInfo,
    /// Its entry.
    pub order: Order,
    /// The epochs that led to it: a copy that came later has replaced the stream's own.
    pub epochs: Vec<EpochStart>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// The last record.
    pub last: Position,
    /// The interval that is open: the number that the next restart point will have.
    pub generation: Generation,
    /// Between [`Kind::CopyBegin`] and [`Kind::CopyEnd`]: what the volumes hold now is no state of the primary.
    pub copying: bool,
    /// The last restart point to which the volumes can be taken back.
    pub restart_point: Option<KeptPoint>,
    /// The epochs, oldest first.
    pub epochs: Vec<EpochStart>,
}

impl StreamState {
    /// The state of a new group.
    pub fn new() -> Self {
        Self {
            last: Position { epoch: Epoch::FIRST, seq: Seq(0) },
            generation: Generation(1),
            copying: false,
            restart_point: None,
            epochs: alloc::vec![EpochStart { epoch: Epoch::FIRST, first: Seq(1) }],
        }
    }

    /// Takes the next entry into account. `true`: what the volumes hold at this entry is to be kept as their snapshot.
    ///
    /// A copy takes a secondary through states that are none of the primary's. One that has no restart point keeps the state
    /// before the copy instead, under the number 0, until the copy has ended.
    pub fn apply(&mut self, order: Order, record: &Record, note: &Note) -> bool {
        let mut keeps = false;
        match (record.kind, note) {
            (Kind::CopyBegin, Note::History(epochs)) => {
                // Copies of former versions do not ask for it.
                if record.keeps && !self.copying && self.restart_point.is_none() && self.last.seq > Seq(0) {
                    let (generation, label) = (Generation::UNDECLARED, Name::default());
                    let info = RestartPointInfo { generation, at: self.last, time: record.time, label };
                    self.restart_point = Some(KeptPoint { info, order, epochs: self.epochs.clone() });
                    keeps = true;
                }
                self.copying = true;
                self.epochs.clone_from(epochs);
                self.generation = record.generation;
            }
            (Kind::CopyEnd, _) => {
                self.copying = false;
                // The new snapshot is nobody's; it only lets go of the old one.
                keeps = self.restart_point.take_if(|point| !point.info.is_declared()).is_some();
            }
            (Kind::EpochChange, note) => {
                if let Note::Fork(fork) = note {
                    if let Some(point) = self.restart_point.as_ref().filter(|point| point.order == *fork) {
                        self.epochs.clone_from(&point.epochs);
                    }
                    // This node is the primary from here on. A primary that only starts anew ends no copy.
                    self.copying = false;
                    keeps = self.restart_point.take_if(|point| !point.info.is_declared()).is_some();
                }
                // What the new epoch's first record displaces is no part of the history.
                self.epochs.retain(|start| start.epoch < record.at.epoch && start.first < record.at.seq);
                self.epochs.push(EpochStart { epoch: record.at.epoch, first: record.at.seq });
                if self.epochs.len() > EPOCH_HISTORY_MAX {
                    self.epochs.remove(0);
                }
                self.generation = record.generation;
            }
            (Kind::RestartPoint, note) => {
                self.generation = record.generation.next();
                if !self.copying {
                    let label = if let Note::Label(label) = note { *label } else { Name::default() };
                    let info =
                        RestartPointInfo { generation: record.generation, at: record.at, time: record.time, label };
                    self.restart_point = Some(KeptPoint { info, order, epochs: self.epochs.clone() });
                    keeps = true;
                }
            }
            _ => {}
        }
        self.last = record.at;
        keeps
    }

    /// The last record of `epoch` in this history, if the epoch is in it.
    pub fn end_of(&self, epoch: Epoch) -> Option<Seq> {
        let index = self.epochs.iter().position(|start| start.epoch == epoch)?;
        let next = self.epochs.get(index + 1).map(|start| Seq(start.first.0.saturating_sub(1)));
        Some(next.unwrap_or(self.last.seq))
    }

    /// The same, if the epoch began with the same record in the peer's history.
    pub fn shared_end_of(&self, epoch: Epoch, theirs: &[EpochStart]) -> Option<Seq> {
        let known = theirs.iter().find(|start| start.epoch == epoch);
        self.end_of(epoch).filter(|_| known.is_none_or(|start| self.epochs.contains(start)))
    }
}

impl Default for StreamState {
    fn default() -> Self {
        Self::new()
    }
}

/// What of a payload the stream's state needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    #[default]
    None,
    /// A restart point's label.
    Label(Name),
    /// The epochs that a copy brings.
    History(Vec<EpochStart>),
    /// For an epoch change of this node's own: the last entry before it that is still valid.
    Fork(Order),
}

impl Note {
    /// The last valid entry before an epoch change of this node's own; 0 for every other entry.
    pub fn fork(&self) -> Order {
        if let Self::Fork(order) = self { *order } else { Order(0) }
    }
}
