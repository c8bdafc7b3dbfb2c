//! The end of a history: faults stop, operators do what the manual says, and the pair must come to rest: in step, equal, with
//! everything answered (liveness).

use crate::{operator::Wanted, outside::Serving, world::World};
use holdfast::{
    command::{Command, PromoteTarget},
    pair::{Cause, PairState, Role},
    request::Access,
};
use link_model::LineSettings;
use std::time::Duration;

/// In so many microseconds of true time a pair without faults is in step.
const PATIENCE_MICROS: u64 = 400_000_000;
/// How often an operator looks.
const TEND_MICROS: u64 = 500_000;

impl World {
    /// Lets the pair come to rest, and looks at all of it.
    pub fn converge(&mut self) {
        self.trace.note(self.now, || "== faults stop".into());
        self.stop_faults();
        let end = self.now + PATIENCE_MICROS;
        while !(0..self.config.group_count).all(|group| self.is_at_rest(group)) {
            if self.now >= end {
                self.complain();
            }
            self.tend();
            self.run_until(self.now + TEND_MICROS);
        }
        for group in 0..self.config.group_count {
            self.check_at_rest(group);
        }
    }

    fn stop_faults(&mut self) {
        for line in self.lines.iter_mut().flatten() {
            let delay = line.settings().delay.min(Duration::from_millis(50));
            line.change_settings(LineSettings { delay, ..LineSettings::default() });
        }
        self.heartbeat = true;
        self.forget_plans();
        for node in 0..2 {
            self.nodes[node].ambush = None;
            self.nodes[node].stalled_until = 0;
            self.resume(node);
            let ills = &mut self.nodes[node].ills;
            (ills.slow, ills.errors) = (false, 0);
            (ills.read_micros, ills.write_micros) = (0, 0);
            (ills.full, ills.lost_writes) = (false, 0);
            self.start(node);
        }
    }

    /// What an administrator does about what `status` says.
    fn tend(&mut self) {
        for node in 0..2 {
            if self.is_stopped(node) {
                self.kill(node);
                self.start(node);
            }
            self.reopen(node);
        }
        self.replace();
        for group in 0..self.config.group_count {
            if self.errands.is_open(group) {
                continue;
            }
            self.tend_group(group);
        }
    }

    fn tend_group(&mut self, group: usize) {
        let nows = self.nodes.each_ref().map(|node| node.clock.now(self.now));
        let statuses = [0, 1].map(|node| self.group(node, group).map(|core| core.status(nows[node])));
        let [Some(a), Some(b)] = &statuses else { return };
        let roles = [a.role, b.role];
        if let Some(node) = (0..2).find(|node| roles[*node] == Role::Fenced) {
            // It knows the other one to be primary.
            return self.demote(if node == 0 { 2 } else { 4 } * self.config.group_count as u64 + group as u64);
        }
        let Some(primary) = (0..2).find(|node| roles[*node] == Role::Primary) else {
            let heads = [a.head, b.head];
            let node = usize::from(!a.copying && b.copying || a.copying == b.copying && heads[1] > heads[0]);
            let node = if a.copying != b.copying { usize::from(a.copying) } else { node };
            return self.promote_to(node, group, PromoteTarget::Latest, true, None);
        };
        let status = if primary == 0 { a } else { b };
        if matches!(status.pair, PairState::Suspended(Cause::Command | Cause::MediumError)) {
            return self.order(primary, group, Command::ResumePair { compare: false }, Wanted::Nothing);
        }
        // A resize that was interrupted is repeated.
        for (ours, theirs) in a.volumes.iter().zip(&b.volumes) {
            if ours.size != theirs.size {
                let size = ours.size.max(theirs.size);
                return self.grow_to(primary, group, ours.id, ours.table_block_size, size, true);
            }
        }
    }

    fn is_stopped(&self, node: usize) -> bool {
        self.nodes[node].daemon.as_ref().is_some_and(|daemon| daemon.is_stopped())
    }

    fn is_at_rest(&mut self, group: usize) -> bool {
        if (0..2).any(|node| self.is_stopped(node)) {
            return false;
        }
        let nows = self.nodes.each_ref().map(|node| node.clock.now(self.now));
        let statuses = [0, 1].map(|node| self.group(node, group).map(|core| core.status(nows[node])));
        let [Some(a), Some(b)] = &statuses else { return false };
        let (primary, standby, node) = if a.role == Role::Primary { (a, b, 0) } else { (b, a, 1) };
        let in_step = primary.role == Role::Primary
            && standby.role == Role::Secondary
            && primary.pair == PairState::Duplex
            && primary.connected
            && standby.connected
            && !standby.copying
            && primary.stopped.is_none()
            && standby.stopped.is_none()
            && primary.lease.is_none_or(|lease| lease.left_millis > 0)
            && primary.lag.records == 0
            && primary.head == standby.head
            && !self.nodes.iter().any(|node| node.retired);
        if !in_step {
            return false;
        }
        self.settle(node, group);
        let is_settled = matches!(self.outside[group].serving[node], Serving::Branch(_));
        is_settled
            && !self.outside[group].pending.values().any(|pending| pending.node == node)
            && !self.errands.is_open(group)
    }

    fn check_at_rest(&mut self, group: usize) {
        let Some(primary) = self.with_role(group, Role::Primary) else { panic!("no primary at the end") };
        self.look(primary, group);
        let Some(Ok(here)) = self.read_all(primary, group, Access::ReadWrite) else {
            panic!("a primary that cannot be read")
        };
        let Some(Ok(there)) = self.read_all(1 - primary, group, Access::ReadOnly) else {
            panic!("a standby that cannot be read");
        };
        assert!(here == there, "I2: the nodes of group {group} differ at the end");
        for node in 0..2 {
            self.let_go(node, group);
            self.look_back(node, group);
        }
        self.order(primary, group, Command::VerifyPair { mend: false }, Wanted::Verification);
        self.run_until(self.now + 20_000_000);
        assert!(!self.errands.is_open(group), "liveness: a verification without faults never ends");
    }

    fn complain(&mut self) {
        let nows = self.nodes.each_ref().map(|node| node.clock.now(self.now));
        for group in 0..self.config.group_count {
            for (node, now) in nows.into_iter().enumerate() {
                let status = self.group(node, group).map(|core| core.status(now));
                self.trace.note(self.now, || format!("node {node} group {group}: {status:?}"));
            }
            let (outside, open) = (&self.outside[group], self.errands.names());
            self.trace.note(self.now, || {
                let asked = outside.pending.values().map(|pending| (pending.node, &pending.asked));
                let asked: Vec<_> = asked.collect();
                format!("group {group}: serving {:?}, asked {asked:?}, commands open: {open:?}", outside.serving)
            });
        }
        for node in 0..2 {
            for slot in self.nodes[node].daemon.iter().flat_map(|daemon| &daemon.slots) {
                let doing: Vec<String> = slot
                    .operations
                    .values()
                    .map(|(operation, _)| {
                        format!("{:?} {}", operation.medium, crate::operator::first_word(&operation.action))
                    })
                    .collect();
                self.trace.note(self.now, || format!("node {node}: media do {doing:?}; {} wait", slot.waiting.len()));
            }
            let session = self.nodes[node].daemon.as_ref().map(|daemon| daemon.session.status(&[]));
            self.trace.note(self.now, || format!("node {node}: {session:?}"));
        }
        self.trace.note(self.now, || format!("connections: {:?}", self.connections));
        panic!("liveness: without faults the pair is not in step after {} s", PATIENCE_MICROS / 1_000_000);
    }
}
