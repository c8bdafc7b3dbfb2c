//! The generations that this node keeps beside the latest state: which, for how long, and until when.
//!
//! The list of what was declared is a function of the journal; whether a generation is kept is what the tables say. The last
//! restart point is always kept. Older ones are kept as long as the rule of the group wants them, forks until an operator drops
//! them, and whatever is being read until that ends.

use super::{Group, commands::WaitsFor};
use crate::{
    command::{CommandError, CommandReply, GenerationId, GenerationKind, GenerationStatus, RestartPointInfo},
    format::{
        pool_superblock::KEPT_COUNT_MAX,
        record::{Kind, Record},
    },
    output::Event,
    stream_state::{Note, OLDER_COUNT_MAX, OlderPoint, Origin, StreamState},
    testing::{Plant, planted},
    units::{Generation, Order},
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use bytes::Bytes;

/// How often each generation is being read from outside.
#[derive(Default)]
pub(super) struct Holds {
    counts: BTreeMap<Order, usize>,
    /// Who reads from before the group was opened has been named.
    are_known: bool,
}

impl Holds {
    pub(super) fn add(&mut self, order: Order) {
        *self.counts.entry(order).or_default() += 1;
    }

    pub(super) fn has(&self, order: Order) -> bool {
        self.counts.contains_key(&order)
    }

    pub(super) fn remove(&mut self, order: Order) {
        if let Some(count) = self.counts.get_mut(&order) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&order);
            }
        }
    }
}

impl Group {
    /// The entry that names a generation, if all volumes keep it. Of two with one number the one of the group's history counts.
    pub fn find_generation(&self, id: GenerationId) -> Option<Order> {
        self.find_where(id, |order| self.is_kept(order))
    }

    fn find_where(&self, id: GenerationId, which: impl Fn(Order) -> bool) -> Option<Order> {
        let stream = &self.destage.stream;
        let last = stream.restart_point.as_ref().map(|point| (point.order, point.info, Origin::RestartPoint));
        let older = stream.older.iter().map(|point| (point.order, point.info, point.origin));
        let named = |(_, info, origin): &(Order, RestartPointInfo, Origin)| match id {
            GenerationId::Number(number) => *origin != Origin::Fork && info.generation == number,
            GenerationId::Fork(epoch) => *origin == Origin::Fork && info.at.epoch == epoch,
        };
        let mut found: Vec<_> = older.chain(last).filter(named).filter(|(order, ..)| which(*order)).collect();
        found.sort_by_key(|(order, _, origin)| (*origin == Origin::RestartPoint, *order));
        found.last().map(|(order, ..)| *order)
    }

    /// Keeps a generation as long as it is being read, whatever the rule says; it can be read only then.
    pub fn hold_generation(&mut self, order: Order) {
        self.holds.add(order);
    }

    /// Who read a generation before the group was opened anew reads it still; its trial and its promotion are no more. To be called
    /// before anything else.
    pub fn inherit(&mut self, former: &mut Self) {
        self.holds.counts = core::mem::take(&mut former.holds.counts);
    }

    /// Lets go of what nobody wants of the generations that were found when the group was opened, once it is known who reads them.
    pub(super) fn let_go_of_found(&mut self) {
        if !core::mem::replace(&mut self.holds.are_known, true) {
            self.let_go_of_generations();
        }
    }

    /// What must stay while it is being used: by readers, the trial, a promotion.
    fn held_generations(&self) -> impl Iterator<Item = Order> {
        let trial = self.trial.as_ref().map(|trial| trial.base());
        let held = self.holds.counts.keys().copied().chain(trial).chain(self.promotion_to_older());
        held.filter(|_| !planted(Plant::HeldDropped))
    }

    fn is_held(&self, order: Order) -> bool {
        self.held_generations().any(|held| held == order)
    }

    /// The reader has gone.
    pub fn release_generation(&mut self, order: Order) {
        self.holds.remove(order);
        self.let_go_of_generations();
    }

    /// Whether a volume keeps it, even if not all do.
    fn is_kept_in_part(&self, order: Order) -> bool {
        self.volumes.values().any(|volume| volume.table.keeps(order))
    }

    fn is_kept(&self, order: Order) -> bool {
        !self.volumes.is_empty() && self.volumes.values().all(|volume| volume.table.keeps(order))
    }

    /// An older restart point of the group's history to which the volumes can be taken back.
    pub(super) fn older_restart_point(&self, number: Generation) -> Option<&OlderPoint> {
        let mut points = self.stream.older.iter().rev();
        points.find(|point| {
            point.origin == Origin::RestartPoint && point.info.generation == number && self.can_be_had(point.order)
        })
    }

    /// Whether each volume can be taken back to a generation, or is not that far yet. After a crash one may be ahead of the others.
    pub(super) fn can_be_had(&self, order: Order) -> bool {
        let applied = self.applied;
        self.volumes.values().all(|volume| order > applied.max(volume.applied_before) || volume.table.keeps(order))
    }

    /// The newest fork that is kept and was written after an entry.
    pub(super) fn fork_after(&self, order: Order) -> Option<&OlderPoint> {
        let mut points = self.stream.older.iter().rev();
        points.find(|point| {
            let is_there = point.order > self.applied || self.is_kept_in_part(point.order);
            point.origin == Origin::Fork && point.order > order && is_there
        })
    }

    /// All that is kept, newest first, with what has arrived and will be.
    pub(super) fn generations(&self) -> Vec<GenerationStatus> {
        let stream = &self.stream;
        let wanted = self.wanted_generations(stream);
        let last = stream.restart_point.as_ref().map(|point| {
            let kind =
                if point.info.is_declared() { GenerationKind::LastRestartPoint } else { GenerationKind::BeforeCopy };
            (point.order, point.info, kind)
        });
        let older = stream.older.iter().rev().map(|point| (point.order, point.info, point.origin.into()));
        let comes = |order| wanted.contains(&order) && self.can_be_had(order);
        let is_there = |order| if order > self.applied { comes(order) } else { self.is_kept(order) };
        let mut found: Vec<_> = last.into_iter().chain(older).filter(|(order, ..)| is_there(*order)).collect();
        found.sort_by_key(|(order, ..)| core::cmp::Reverse(*order));
        let bytes = |order| self.volumes.values().map(|volume| volume.table.bytes_kept_for(order)).sum();
        found
            .into_iter()
            .map(|(order, info, kind)| GenerationStatus {
                name: GenerationId::of(&info, kind),
                kind,
                at: info.at,
                time: info.time,
                label: info.label,
                own_bytes: bytes(order),
                applied: order <= self.applied,
                in_use: self.is_held(order),
            })
            .collect()
    }

    /// What the rule, forks and readers want to be kept.
    fn wanted_generations(&self, stream: &StreamState) -> BTreeSet<Order> {
        let newest = stream.restart_point.as_ref();
        let since =
            newest.map_or(0, |point| point.info.time.0.saturating_sub(u64::from(self.pair.keep_seconds) * 1_000_000));
        let declared = stream.older.iter().rev().filter(|point| point.origin != Origin::Fork);
        let by_rule = declared.enumerate().filter(|(index, point)| {
            index + 1 < usize::from(self.pair.keep_count) || (self.pair.keep_seconds > 0 && point.info.time.0 >= since)
        });
        let forks = stream.older.iter().filter(|point| point.origin == Origin::Fork);
        let mut wanted: BTreeSet<Order> = by_rule.map(|(_, point)| point.order).collect();
        wanted.extend(forks.map(|point| point.order));
        wanted.extend(newest.map(|point| point.order));
        // A promotion has made it that already, though it is not applied.
        wanted.extend(self.stream.restart_point.as_ref().map(|point| point.order));
        wanted.extend(self.held_generations());
        // More may be held than a pool can list; the oldest go.
        while wanted.len() > KEPT_COUNT_MAX - 2 {
            wanted.pop_first();
        }
        wanted
    }

    /// Lets go of what nobody wants to be kept any more.
    pub(super) fn let_go_of_generations(&mut self) {
        let wanted = self.wanted_generations(&self.destage.stream);
        // After a crash a table may be ahead of the others, and keep what the group comes to later.
        let applied = self.applied;
        self.retain_generations(|order| order > applied || wanted.contains(&order));
    }

    fn retain_generations(&mut self, wanted: impl Fn(Order) -> bool) {
        for volume in self.volumes.values_mut() {
            self.checkpoint.marked |= volume.table.retain_generations(&wanted);
        }
    }

    /// A pool has no room: if none comes by itself, the oldest generation that can be done without goes, then the trial. `false`: there is
    /// neither.
    pub(super) fn drop_oldest_generation(&mut self) -> bool {
        // What was let go of before may be on its way back.
        if self.has_room_coming() {
            return true;
        }
        let mut older = self.destage.stream.older.iter().filter(|point| point.origin != Origin::Fork);
        let target = self.stream.restart_point.as_ref().map(|point| point.order);
        let is_free = |order| self.is_kept_in_part(order) && !self.is_held(order) && target != Some(order);
        let Some(point) = older.find(|point| is_free(point.order)).copied() else {
            return self.drop_trial();
        };
        self.retain_generations(|order| order != point.order);
        self.event(Event::GenerationDropped { name: GenerationId::of(&point.info, point.origin.into()) });
        true
    }

    /// A trial must not be in the group's way.
    fn drop_trial(&mut self) -> bool {
        if self.trial.as_ref().is_none_or(|trial| !trial.is_open()) {
            return false;
        }
        self.event(Event::TrialDropped);
        let _ = self.end_trial(None);
        true
    }

    /// An operator's rule.
    pub(super) fn set_keep(&mut self, count: u16, seconds: u32) -> Result<(), CommandError> {
        if !(1..=OLDER_COUNT_MAX).contains(&usize::from(count)) {
            return Err(CommandError::KeepCount(count));
        }
        (self.pair.keep_count, self.pair.keep_seconds) = (count, seconds);
        self.let_go_of_generations();
        self.again = true;
        Ok(())
    }

    /// An operator needs a generation no more.
    pub(super) fn drop_generation(&mut self, id: GenerationId) -> Result<(WaitsFor, CommandReply), CommandError> {
        let order = self.find_where(id, |order| self.is_kept_in_part(order)).ok_or_else(|| self.not_kept(id))?;
        if self.stream.restart_point.as_ref().is_some_and(|point| point.order == order)
            || self.destage.stream.restart_point.as_ref().is_some_and(|point| point.order == order)
        {
            return Err(CommandError::LastRestartPoint(id));
        }
        if self.is_held(order) {
            return Err(CommandError::GenerationInUse(id));
        }
        self.retain_generations(|kept| kept != order);
        // The answer means that it does not come back.
        self.checkpoint.marked = true;
        self.checkpoint.wanted = true;
        Ok((WaitsFor::Checkpoint(self.checkpoint.begun() + 1), CommandReply::Done))
    }

    /// Keeps what a former primary wrote past the last common record, once; the entry that does.
    pub(super) fn keep_fork(&mut self) -> Order {
        let last = self.stream.last;
        let known = self.stream.older.iter().rev().find(|point| point.origin == Origin::Fork && point.info.at == last);
        known.map(|point| point.order).unwrap_or_else(|| {
            let record = Record { at: last, ..self.new_record(Kind::Fork) };
            self.stage(record, Bytes::new(), Note::None)
        })
    }

    /// Why a generation cannot be had.
    pub(super) fn not_kept(&self, asked: GenerationId) -> CommandError {
        let kept = self.generations();
        if kept.iter().any(|kept| kept.name == asked && !kept.applied) {
            return CommandError::NotApplied(asked);
        }
        CommandError::NotKept { asked, kept: kept.into_iter().map(|kept| kept.name).collect() }
    }
}

#[cfg(test)]
impl Group {
    /// Where a generation is in the order.
    pub(super) fn generation_at(&self, order: Order) -> Option<crate::units::Position> {
        let stream = &self.destage.stream;
        let last = stream.restart_point.as_ref().filter(|point| point.order == order).map(|point| point.info.at);
        last.or_else(|| stream.older.iter().find(|point| point.order == order).map(|point| point.info.at))
    }

    /// The forks that are kept.
    pub(super) fn forks(&self) -> Vec<(Order, crate::units::Position)> {
        let forks = self.destage.stream.older.iter().filter(|point| point.origin == Origin::Fork);
        forks.filter(|point| self.is_kept(point.order)).map(|point| (point.order, point.info.at)).collect()
    }
}
