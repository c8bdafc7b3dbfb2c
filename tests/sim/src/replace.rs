//! What an administrator does about a node that is lost, or whose media cannot be trusted: a new standby takes its place.

use crate::{machine::key, operator::Wanted, outside::Serving, world::World};
use holdfast::{
    command::{Command, PromoteTarget},
    pair::{PairState, Role},
};

impl World {
    /// Makes a standby for a primary, or a new one in place of a node that is lost.
    pub(crate) fn replace(&mut self) {
        for node in 0..2 {
            let is_rotten = self.nodes[node].ills.rotten && !self.nodes[node].retired;
            if is_rotten && (0..self.config.group_count).all(|group| self.stands_in(1 - node, group)) {
                self.retire(node);
            }
        }
        for group in 0..self.config.group_count {
            for node in 0..2 {
                if self.is_awake(node) && self.is_awake(1 - node) && !self.errands.is_open(group) {
                    self.replace_at(node, group);
                }
            }
        }
        for node in 0..2 {
            let whole = self.nodes[node]
                .daemon
                .as_ref()
                .is_some_and(|daemon| daemon.slots.iter().all(|slot| slot.group.is_some()));
            if whole && self.nodes[node].retired {
                (self.nodes[node].retired, self.nodes[node].ills.rotten) = (false, false);
            }
        }
    }

    fn replace_at(&mut self, node: usize, group: usize) {
        let other = 1 - node;
        let now = self.nodes[other].clock.now(self.now);
        let Some(core) = self.group(other, group) else { return };
        let (status, label) = (core.status(now), core.label());
        if status.stopped.is_some() {
            return;
        }
        // One that was lost while it was being made is not whole.
        let volume_count = self.outside[group].volume_count;
        let is_lost = self.group(node, group).is_none_or(|core| core.label().volumes.len() < volume_count);
        let sizes: Vec<u64> = label.volumes.iter().map(|spec| spec.size).collect();
        match status.role {
            Role::Primary if status.pair == PairState::Simplex => {
                self.settle(other, group);
                if matches!(self.outside[group].serving[other], Serving::Branch(_)) {
                    self.make_group(node, group, Role::Secondary, &sizes);
                    self.order(other, group, Command::CreatePair { peer: key(node) }, Wanted::Pair);
                }
            }
            Role::Primary if is_lost => {
                self.make_group(node, group, Role::Secondary, &sizes);
                // Both ends greet each other in a new session.
                let shown = self.nodes[other].clock.at(self.now);
                if let Some(daemon) = &mut self.nodes[other].daemon {
                    daemon.restart_soon(shown);
                }
            }
            Role::Secondary if is_lost => {
                let target =
                    if status.restart_point.is_some() { PromoteTarget::RestartPoint } else { PromoteTarget::Latest };
                self.promote_to(other, group, target, true, None);
            }
            Role::Fenced if is_lost => {
                self.order(other, group, Command::Demote { discard_fork: true }, Wanted::Nothing);
            }
            _ => {}
        }
    }

    /// Whether a node has what the other one may lose.
    fn stands_in(&mut self, node: usize, group: usize) -> bool {
        let now = self.nodes[node].clock.now(self.now);
        if !self.is_awake(node) || !self.is_awake(1 - node) || self.errands.is_open(group) {
            return false;
        }
        let Some(status) = self.group(node, group).map(|core| core.status(now)) else { return false };
        let holds = status.role == Role::Secondary && !status.copying && status.head.seq.0 > 0;
        status.stopped.is_none() && (status.role == Role::Primary || holds)
    }

    /// A node whose media cannot be trusted is given up.
    fn retire(&mut self, node: usize) {
        self.trace.note(self.now, || format!("node {node}: given up"));
        self.kill(node);
        for group in 0..self.config.group_count {
            self.nodes[node].media[group].clear();
            self.outside[group].serving[node] = Serving::Nothing;
            self.outside[group].forget_promises();
        }
        self.nodes[node].retired = true;
        self.start(node);
    }
}
