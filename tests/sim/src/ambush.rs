//! Power that is lost at the worst moments. Chance alone seldom meets the few microseconds between two operations of a medium,
//! or those after a greeting; here somebody waits for such a moment.

use crate::{
    config::Feature,
    script::{Action, Step},
    world::{What, World},
};
use holdfast::{
    disk::{DiskAction, MediumId},
    pair::Role,
};
use link_model::Random;

/// A moment that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A superblock of the journal was written.
    JournalSuperblock,
    /// A batch was written.
    Batch,
    /// A superblock of a pool was written.
    PoolSuperblock,
    /// A medium was synced.
    Sync,
    /// A command was answered.
    Answer,
    /// The peer is told what is durable.
    Mark,
    /// The peer is promised something.
    Promise,
    /// A session has begun.
    Session,
    /// The pair's state has changed.
    Pair,
}

impl Moment {
    const ALL: [Self; 9] = [
        Self::JournalSuperblock,
        Self::Batch,
        Self::PoolSuperblock,
        Self::Sync,
        Self::Answer,
        Self::Mark,
        Self::Promise,
        Self::Session,
        Self::Pair,
    ];

    /// Which moment the end of an operation is. The places are those of docs/formats.md.
    pub fn of(medium: MediumId, action: &DiskAction) -> Option<Self> {
        const HEAD: u64 = 128 << 10;
        match (medium, action) {
            (MediumId::Journal, DiskAction::Write { offset, .. }) if *offset < HEAD => Some(Self::JournalSuperblock),
            (MediumId::Journal, DiskAction::Write { .. }) => Some(Self::Batch),
            (MediumId::Pool(_), DiskAction::Write { offset, .. }) if *offset < HEAD => Some(Self::PoolSuperblock),
            (_, DiskAction::Sync) => Some(Self::Sync),
            _ => None,
        }
    }
}

/// Who waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Ambush {
    moment: Moment,
    /// So many of them pass unharmed.
    left: u64,
    /// From the moment to the loss of power, in microseconds.
    delay: u64,
    /// What comes of it.
    salt: u64,
}

impl World {
    /// Waits for a moment of a node.
    pub(crate) fn lie_in_wait(&mut self, node: usize, salt: u64) {
        let mut chance = Random::new(salt);
        let moment = Moment::ALL[chance.below(Moment::ALL.len() as u64) as usize];
        let disk = self.config.disk_micros;
        let delay = [0, 0, disk / 2, 3 * disk, 20_000][chance.below(5) as usize];
        let left = [0, 1, 5, 40][chance.below(4) as usize];
        self.nodes[node].ambush = Some(Ambush { moment, left, delay, salt: chance.next_u64() });
    }

    /// A moment has come.
    pub(crate) fn meet(&mut self, node: usize, moment: Moment) {
        let Some(ambush) = self.nodes[node].ambush.as_mut().filter(|ambush| ambush.moment == moment) else { return };
        if ambush.left > 0 {
            ambush.left -= 1;
            return;
        }
        let Ambush { delay, salt, .. } = *ambush;
        self.nodes[node].ambush = None;
        self.trace.mark(&format!("ambush: {moment:?}"));
        self.plan(self.now + delay, What::Ambush(node, self.nodes[node].life, salt));
    }

    /// Power is lost, and comes back; sometimes nobody hears the node before it is promoted.
    pub(crate) fn spring(&mut self, node: usize, salt: u64) {
        self.lose_power(node);
        let back = [1_000, 50_000, 1_000_000][(salt / 2 % 3) as usize];
        self.plan_step(Step { at: self.now + back, action: Action::Start(node), salt });
        if salt.is_multiple_of(2) && self.config.has(Feature::Promotions) {
            self.coup(salt / 8);
        }
    }

    /// The standby is cut off, perhaps starts again, and is promoted as soon as it lets itself be.
    pub(crate) fn coup_at(&mut self, group: usize, salt: u64) {
        let Some(standby) = self.with_role(group, Role::Secondary) else { return };
        if salt.is_multiple_of(2) {
            self.kill(standby);
            self.plan_step(Step { at: self.now + 20_000, action: Action::Start(standby), salt });
        }
        self.coup(salt / 2);
    }

    /// Both are cut off from each other, and whoever is the standby is promoted.
    fn coup(&mut self, salt: u64) {
        self.cut_all();
        for after in [60_000, 1_100_000] {
            self.plan_step(Step { at: self.now + after, action: Action::Promote, salt });
        }
        self.plan_step(Step { at: self.now + 5_000_000, action: Action::Heal, salt });
        self.plan_step(Step { at: self.now + 6_000_000, action: Action::Demote, salt });
    }
}
