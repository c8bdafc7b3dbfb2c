//! What an operator sees of a group.

use super::Group;
use crate::{
    command::{Fork, Lag, Status, VolumeStatus},
    pair::{Cause, PairState, Role},
    units::{Now, Seq},
};
use alloc::format;

impl Group {
    /// The group as it is now.
    pub fn status(&self, now: Now) -> Status {
        let acknowledged = self.peer.acknowledged();
        Status {
            role: self.pair.role,
            pair: self.shown_pair_state(),
            peer: self.pair.peer,
            connected: self.peer.connected && self.peer.greeted,
            level: self.pair.level,
            without_peer: self.pair.without_peer,
            writes_wait: self.waits_for_absent_peer(),
            policy: self.pair.policy,
            lease: self.lease_status(now),
            takeover: self.takeover_status(),
            delay_given_up: self.has_given_up_delay(),
            epoch: self.epoch(),
            head: self.stream.last,
            copying: self.stream.copying,
            durable: self.position_of(self.durable).seq,
            applied: self.position_of(self.applied).seq,
            acknowledged: self.position_of(acknowledged).seq,
            lag: self.lag(now),
            restart_point: self.stream.restart_point.as_ref().map(|point| point.info),
            generations: self.generations(),
            trial: self.trial_status(),
            keep_count: self.pair.keep_count,
            keep_seconds: self.pair.keep_seconds,
            restart_point_acknowledged: self.peer.restart_point,
            verifying: self.verify_progress(),
            dirty_bytes: self.volumes.values().map(|volume| volume.table.dirty_bytes()).sum(),
            journal_size: self.journal.ring_size(),
            journal_used: self.journal.used(),
            volumes: self
                .volumes
                .values()
                .map(|volume| VolumeStatus {
                    id: volume.spec.id,
                    name: volume.spec.name,
                    size: volume.spec.size,
                    logical_block_size: volume.spec.logical_block_size,
                    table_block_size: volume.spec.table_block_size,
                    pool_path: volume.spec.pool_path.clone(),
                    pool_block_count: volume.table.geometry().block_count,
                    pool_used_count: volume.table.blocks.used_count(),
                })
                .collect(),
            fork: self.fork(),
            stopped: self.stopped,
        }
    }

    fn fork(&self) -> Option<Fork> {
        let (after, last) = (self.pair.fork, self.stream.last);
        let record_count = last.seq.0.saturating_sub(after.seq.0);
        (self.pair.role == Role::Fenced && record_count > 0).then(|| Fork {
            name: format!("fork-{}", last.epoch),
            after,
            last,
            record_count,
        })
    }

    /// A secondary decides nothing, and shows what it sees.
    fn shown_pair_state(&self) -> PairState {
        match self.pair.role {
            Role::Secondary if self.stream.copying => PairState::DuplexPending,
            Role::Secondary if self.stream.last.seq == Seq(0) => PairState::InitialCopy,
            Role::Secondary if self.peer.connected && self.peer.greeted && !self.pair.left_behind => PairState::Duplex,
            Role::Secondary => PairState::Suspended(Cause::Peer),
            Role::Primary | Role::Fenced => self.pair.state,
        }
    }

    fn lag(&self, now: Now) -> Lag {
        if self.pair.role != Role::Primary || self.pair.peer.is_none() {
            return Lag::default();
        }
        let mut lag = Lag::default();
        let lacking = self.journal.after(self.peer.acknowledged()).map(|(_, entry)| entry);
        for entry in lacking.filter(|entry| !entry.is_void && entry.record.kind.is_sequenced()) {
            if lag.records == 0 {
                lag.micros = now.wall.0.saturating_sub(entry.record.time.0);
            }
            lag.records += 1;
            lag.bytes += u64::from(entry.record.payload_size);
        }
        lag
    }
}
