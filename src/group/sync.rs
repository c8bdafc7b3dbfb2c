//! Durability: one round of syncs at a time, of the journal and of the pools with redirected data, for all who wait.

use super::{Group, Purpose};
use crate::{
    disk::{DiskAction, DiskOutcome, MediumId},
    output::{Event, Output},
    pair::Role,
    stream_state::KeptPoint,
    testing::{Plant, planted},
    units::Order,
};

/// The round that is running.
#[derive(Default)]
pub(super) struct Sync {
    target: Option<Order>,
    pending: usize,
    /// Destaging or a command wants everything completed to be durable.
    pub(super) wanted: bool,
}

impl Sync {
    /// Whether a round is running.
    pub(super) fn is_running(&self) -> bool {
        self.target.is_some()
    }
}

impl Group {
    /// Starts a round if somebody waits and none is running.
    pub(super) fn start_sync(&mut self) {
        if self.sync.target.is_some() || self.durable == self.completed {
            return;
        }
        // A secondary acknowledges what is durable, so it syncs all the time.
        let waited_for = self.waiting.wants_sync() || self.commands.want_sync(self.durable);
        let wanted = self.sync.wanted || waited_for || self.pair.role == Role::Secondary;
        if !wanted {
            return;
        }
        self.sync.wanted = false;
        self.sync.target = Some(self.completed);
        self.sync.pending = 1;
        self.disk(MediumId::Journal, DiskAction::Sync, Purpose::Sync);
        for id in self.pools() {
            let Some(volume) = self.volumes.get_mut(&id) else {
                continue;
            };
            // Data redirected for entries that are not completed yet may be missed; it is marked again below.
            if core::mem::take(&mut volume.unsynced) && !planted(Plant::PoolNotSynced) {
                self.sync.pending += 1;
                self.disk(MediumId::Pool(id), DiskAction::Sync, Purpose::Sync);
            }
        }
        if !self.redirects_in_flight.is_empty() {
            self.volumes.values_mut().for_each(|volume| volume.unsynced = true);
        }
    }

    /// A medium is synced.
    pub(super) fn sync_done(&mut self, outcome: DiskOutcome) {
        if let Err(error) = outcome {
            return self.fail(MediumId::Journal, error);
        }
        self.sync.pending -= 1;
        if self.sync.pending > 0 {
            return;
        }
        let Some(target) = self.sync.target.take() else {
            return;
        };
        let before = self.durable;
        self.durable = target;
        self.tell_durable(before);
        self.answer_waiting();
    }

    /// Tells the peer and the log what has become durable.
    fn tell_durable(&mut self, before: Order) {
        let told = if planted(Plant::AcknowledgedUndurable) { self.journal.last() } else { self.durable };
        if let Some(count) = self.peer.frames_durable(told) {
            self.outputs.push_back(Output::Durable(count));
        }
        if let Some(KeptPoint { info: point, order, .. }) = &self.stream.restart_point
            && point.is_declared()
            && (before.next()..=self.durable).contains(order)
        {
            self.event(Event::RestartPoint { generation: point.generation, at: point.at });
        }
    }
}
