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
use serde::Serialize;

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

/// Most generations beside the last restart point that are remembered.
pub const OLDER_COUNT_MAX: usize = 64;

/// What an older generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A restart point of the history that the group has.
    RestartPoint,
    /// A restart point that is no part of that history any more: another node was promoted to a state before it.
    FormerRestartPoint,
    /// What this node wrote, or received, past the last record that it shares with that history.
    Fork,
}

/// A generation before the last restart point. The volumes may keep it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderPoint {
    /// What is told of it.
    pub info: RestartPointInfo,
    /// Its entry.
    pub order: Order,
    /// What it is.
    pub origin: Origin,
}

/// What an entry means for the volumes' snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// Nothing.
    Same,
    /// What the volumes hold at this entry is kept as a generation; the entry is its name.
    Kept,
    /// What they hold becomes nobody's snapshot, so that the old one is let go of.
    Nameless,
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
    /// The generations before it, oldest first.
    pub older: Vec<OlderPoint>,
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
            older: Vec::new(),
            epochs: alloc::vec![EpochStart { epoch: Epoch::FIRST, first: Seq(1) }],
        }
    }

    /// Takes the next entry into account.
    ///
    /// A copy takes a secondary through states that are none of the primary's. One that has no restart point keeps the state
    /// before the copy instead, under the number 0, until the copy has ended. Nor does a restart point of a history that was given up
    /// count as the last one any longer then: nobody is to be taken back to it unasked.
    pub fn apply(&mut self, order: Order, record: &Record, note: &Note) -> Snapshot {
        let mut snapshot = Snapshot::Same;
        match (record.kind, note) {
            (Kind::CopyBegin, Note::History(epochs)) => {
                // Copies of former versions do not ask for it.
                if record.keeps && !self.copying && self.restart_point.is_none() && self.last.seq > Seq(0) {
                    let (generation, label) = (Generation::UNDECLARED, Name::default());
                    let info = RestartPointInfo { generation, at: self.last, time: record.time, label };
                    self.restart_point = Some(KeptPoint { info, order, epochs: self.epochs.clone() });
                    snapshot = Snapshot::Kept;
                }
                self.copying = true;
                let former = core::mem::replace(&mut self.epochs, epochs.clone());
                self.last = record.at;
                let strays: Vec<bool> = self.older.iter().map(|point| !self.shares(point.info.at, &former)).collect();
                let declared = self.older.iter_mut().zip(strays).filter(|(point, _)| point.origin != Origin::Fork);
                declared.filter(|(_, strays)| *strays).for_each(|(point, _)| point.origin = Origin::FormerRestartPoint);
                self.generation = record.generation;
            }
            (Kind::CopyEnd, _) => {
                self.copying = false;
                snapshot = self.release_undeclared();
                let point = self.restart_point.as_ref();
                if point.is_some_and(|point| !self.shares(point.info.at, &point.epochs))
                    && let Some(KeptPoint { info, order, .. }) = self.restart_point.take()
                {
                    self.push_older(OlderPoint { info, order, origin: Origin::FormerRestartPoint });
                    snapshot = Snapshot::Nameless;
                }
            }
            (Kind::EpochChange, note) => {
                if let Note::Fork(fork) = note {
                    self.take_back(*fork);
                    // This node is the primary from here on. A primary that only starts anew ends no copy.
                    self.copying = false;
                    snapshot = self.release_undeclared();
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
                    let before = self.restart_point.replace(KeptPoint { info, order, epochs: self.epochs.clone() });
                    if let Some(before) = before.filter(|before| before.info.is_declared()) {
                        let is_here = self.shares(before.info.at, &before.epochs);
                        let origin = if is_here { Origin::RestartPoint } else { Origin::FormerRestartPoint };
                        self.push_older(OlderPoint { info: before.info, order: before.order, origin });
                    }
                    snapshot = Snapshot::Kept;
                }
            }
            (Kind::Fork, _) => {
                let (generation, label) = (Generation::UNDECLARED, Name::default());
                let info = RestartPointInfo { generation, at: record.at, time: record.time, label };
                self.push_older(OlderPoint { info, order, origin: Origin::Fork });
                snapshot = Snapshot::Kept;
            }
            _ => {}
        }
        self.last = record.at;
        snapshot
    }

    /// The volumes were taken back to what they held at `fork`.
    fn take_back(&mut self, fork: Order) {
        if self.restart_point.as_ref().is_some_and(|point| point.order > fork) {
            self.restart_point = None;
            self.older.retain(|point| point.order <= fork);
            if let Some(point) = self.older.pop_if(|point| point.order == fork && point.origin == Origin::RestartPoint)
            {
                // The epochs after it are cut off by the change of epoch.
                self.restart_point = Some(KeptPoint { info: point.info, order: fork, epochs: self.epochs.clone() });
            }
        } else if let Some(point) = self.restart_point.as_ref().filter(|point| point.order == fork) {
            self.epochs.clone_from(&point.epochs);
            self.older.retain(|point| point.order <= fork);
        }
    }

    fn release_undeclared(&mut self) -> Snapshot {
        match self.restart_point.take_if(|point| !point.info.is_declared()) {
            Some(_) => Snapshot::Nameless,
            None => Snapshot::Same,
        }
    }

    fn push_older(&mut self, point: OlderPoint) {
        if self.older.len() == OLDER_COUNT_MAX {
            let oldest = self.older.iter().position(|point| point.origin != Origin::Fork).unwrap_or(0);
            self.older.remove(oldest);
        }
        // A fork comes after the restart point that is the last one still, and becomes an older one only later.
        let at = self.older.partition_point(|other| other.order < point.order);
        self.older.insert(at, point);
    }

    /// Whether a record of another history is one of this history too.
    fn shares(&self, at: Position, theirs: &[EpochStart]) -> bool {
        let start = theirs.iter().find(|start| start.epoch == at.epoch);
        start.is_some_and(|start| self.epochs.contains(start)) && self.end_of(at.epoch).is_some_and(|end| at.seq <= end)
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
