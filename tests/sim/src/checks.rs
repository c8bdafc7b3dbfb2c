//! What must hold: looked at after the events that could break it.

use crate::{
    ambush::Moment,
    client::Inquiry,
    history::Content,
    outside::{Asked, Expect, Held, Serving, Tried},
    world::{World, group_id},
};
use bytes::Bytes;
use holdfast::{
    command::{GenerationId, GenerationKind, PromoteTarget},
    disk::DiskAction,
    format::record::{Kind, Record},
    output::Event,
    pair::{PairState, Role},
    request::{Access, Operation, RequestError},
    units::Order,
};

/// What is to be looked at when the present event is over.
pub enum Todo {
    /// A node has become the primary of a group.
    Settle(usize, usize),
    /// A former primary has stepped down, and keeps this content under this name.
    Fork(usize, usize, Box<(Content, String)>),
    /// A trial has begun.
    Trial(usize, usize),
}

impl World {
    /// Looks at what an event left to be looked at.
    pub(crate) fn look_after(&mut self) {
        while let Some(todo) = self.todo.pop_front() {
            match todo {
                Todo::Settle(node, group) => self.settle(node, group),
                Todo::Fork(node, group, kept) => self.check_fork(node, group, kept.0, kept.1),
                Todo::Trial(node, group) => self.enter_trial(node, group),
            }
        }
    }

    /// Looks at what the present event has had to do with.
    pub(crate) fn watch(&mut self) {
        for node in 0..2 {
            if std::mem::take(&mut self.touched[node]) {
                (0..self.config.group_count).for_each(|group| self.look(node, group));
            }
        }
        self.touched = [false; 2];
    }

    /// Reads all that clients use of all volumes of a node's group, as they are at this instant. `None` when the group does not
    /// answer now.
    pub(crate) fn read_all(
        &mut self,
        node: usize,
        group: usize,
        access: Access,
    ) -> Option<Result<Content, RequestError>> {
        self.group(node, group)?;
        let size = self.config.area as u32;
        let inquiry = |volume| {
            let operation = Operation::Read { offset: 0, size };
            Inquiry { node, group, volume, access, operation, asked: Asked::Look }
        };
        let ids: Vec<_> = (0..self.outside[group].volume_count).map(|volume| self.hand_in(inquiry(volume))).collect();
        self.pump(node);
        for _ in 0..10_000 {
            if ids.iter().all(|id| self.outside[group].looked.contains_key(id)) {
                break;
            }
            // These reads first: nothing else is to happen meanwhile.
            let operations = &self.slot(node, group)?.operations;
            let reads = |operation: &holdfast::disk::DiskOperation| matches!(operation.action, DiskAction::Read { .. });
            let Some(number) =
                operations.iter().rev().find(|(_, (operation, _))| reads(operation)).map(|(number, _)| *number)
            else {
                break;
            };
            self.end_operation(node, group, number);
        }
        let outside = &mut self.outside[group];
        let found: Vec<_> = ids.iter().map(|id| outside.looked.remove(id)).collect();
        outside.pending.retain(|id, _| !ids.contains(id));
        found.into_iter().collect::<Option<Vec<_>>>().map(|volumes| volumes.into_iter().collect())
    }

    /// Looks at a primary that was opened or promoted, once it answers.
    pub(crate) fn settle(&mut self, node: usize, group: usize) {
        let Serving::Unsettled(expect) = self.outside[group].serving[node] else { return };
        let Some(role) = self.slot(node, group).map(|slot| slot.view.role) else { return };
        let access = if role == Role::Fenced { Access::ReadOnly } else { Access::ReadWrite };
        // How a command to promote it was answered tells what it must be.
        if !self.is_awake(node) || role == Role::Secondary || self.errands.promotes(node, group) {
            return;
        }
        let now = self.nodes[node].clock.now(self.now);
        let Some(core) = self.group(node, group) else { return };
        let generation = core.status(now).restart_point.map_or(0, |point| point.generation.0);
        let Some(Ok(content)) = self.read_all(node, group, access) else { return };
        // What happened meanwhile may have changed its role.
        let Serving::Unsettled(_) = self.outside[group].serving[node] else { return };
        let rotten = self.nodes.iter().any(|node| node.ills.rotten);
        let settled = self.outside[group].settle(node, expect, &content, generation, rotten);
        match settled {
            Ok(branch) => self.trace.note(self.now, || {
                let count = self.outside[group].history.branches[branch].count;
                format!("node {node} group {group}: {expect:?} is branch {branch} after {count} operations")
            }),
            Err(why) => panic!("node {node} group {group}: {why}"),
        }
    }

    /// Looks at what a node holds.
    pub(crate) fn look(&mut self, node: usize, group: usize) {
        if !self.is_awake(node) {
            return;
        }
        let now = self.nodes[node].clock.now(self.now);
        let Some(core) = self.group(node, group) else { return };
        let status = core.status(now);
        if status.stopped.is_some() || status.copying {
            return;
        }
        if status.role != Role::Secondary {
            return self.look_at_primary(node, group, status.role);
        }
        let Some(Ok(content)) = self.read_all(node, group, Access::ReadOnly) else { return };
        let history = &self.outside[group].history;
        if history.places(&content).next().is_none() {
            let branches = (0..history.branches.len()).rev().take(4);
            let why: Vec<String> = branches.map(|branch| history.explain(branch, &content)).collect();
            panic!("I2: node {node} group {group} at {} shows what never was: {}", status.head, why.join("; "));
        }
        self.trace.mark("look: a standby");
    }

    fn look_at_primary(&mut self, node: usize, group: usize, role: Role) {
        self.settle(node, group);
        let Serving::Branch(branch) = self.outside[group].serving[node] else { return };
        let now = self.nodes[node].clock.now(self.now);
        let Some(core) = self.group(node, group) else { return };
        if let Some(generation) = core.status(now).restart_point_acknowledged {
            let line = &mut self.outside[group].history.branches[branch];
            line.remote_generation = line.remote_generation.max(generation.0);
        }
        let Some(Ok(content)) = self.read_all(node, group, Access::ReadOnly) else { return };
        let history = &self.outside[group].history;
        let bound = history.branches[branch].answered;
        if !history.counts(branch, &content).iter().any(|counts| counts.end > bound) {
            let why = history.explain(branch, &content);
            panic!("I3: {role} node {node} group {group} has not the {bound} operations it answered: {why}");
        }
        self.trace.mark(if role == Role::Fenced { "look: a fenced node" } else { "look: a primary" });
    }

    /// Looks at all that a node keeps.
    pub(crate) fn look_back(&mut self, node: usize, group: usize) {
        if !self.is_awake(node) {
            return;
        }
        let now = self.nodes[node].clock.now(self.now);
        let Some(core) = self.group(node, group) else { return };
        for kept in core.status(now).generations {
            let Some(core) = self.group(node, group) else { return };
            let Some(order) = core.find_generation(kept.name) else { continue };
            core.hold_generation(order);
            let found = self.read_all(node, group, Access::Generation(order));
            self.release(node, group, order);
            if let Some(Ok(content)) = found {
                self.check_generation(node, group, kept.name, kept.kind, &content);
            }
        }
    }

    /// Somebody begins to read a generation slowly.
    pub(crate) fn hold(&mut self, node: usize, group: usize, salt: u64) {
        if !self.is_awake(node) || self.outside[group].held[node].is_some() {
            return;
        }
        let now = self.nodes[node].clock.now(self.now);
        let Some(core) = self.group(node, group) else { return };
        let kept = core.status(now).generations;
        let Some(kept) = kept.get(salt as usize % kept.len().max(1)) else { return };
        let Some(order) = core.find_generation(kept.name) else { return };
        core.hold_generation(order);
        let epoch = core.epoch();
        match self.read_all(node, group, Access::Generation(order)) {
            Some(Ok(content)) => self.outside[group].held[node] = Some(Held { order, epoch, content }),
            _ => self.release(node, group, order),
        }
    }

    /// Somebody has read a generation to its end: it was there all the time, and always the same.
    pub(crate) fn let_go(&mut self, node: usize, group: usize) {
        if !self.is_awake(node) {
            return;
        }
        let Some(Held { order, epoch, content }) = self.outside[group].held[node].take() else { return };
        let found = self.read_all(node, group, Access::Generation(order));
        let is_same_epoch = self.group(node, group).is_some_and(|core| core.epoch() == epoch);
        match found {
            Some(Ok(found)) => {
                assert!(found == content, "I4: what node {node} group {group} keeps at {order} has changed");
                self.trace.mark("look: a generation again");
            }
            Some(Err(RequestError::NotKept)) => {
                assert!(!is_same_epoch, "I4: node {node} group {group} has let go of {order} while it was being read");
            }
            _ => {}
        }
        self.release(node, group, order);
    }

    fn release(&mut self, node: usize, group: usize, order: Order) {
        if let Some(core) = self.group(node, group) {
            core.release_generation(order);
        }
        self.pump(node);
    }

    /// What a trial holds before its clients change it.
    fn enter_trial(&mut self, node: usize, group: usize) {
        let now = self.nodes[node].clock.now(self.now);
        let Some(trial) = self.group(node, group).and_then(|core| core.status(now).trial) else { return };
        let Some(Ok(content)) = self.read_all(node, group, Access::Trial) else { return };
        if trial.written_bytes == 0 {
            self.check_generation(node, group, trial.generation, GenerationKind::RestartPoint, &content);
        }
        let first = content.into_iter().next().unwrap_or_default();
        self.outside[group].trial = Some(Tried { node, content: first.into_iter().map(Some).collect() });
    }

    fn check_generation(
        &mut self,
        node: usize,
        group: usize,
        name: GenerationId,
        kind: GenerationKind,
        content: &Content,
    ) {
        let asked = self.errands.points(group);
        let outside = &mut self.outside[group];
        if let (GenerationId::Number(number), true) = (name, kind != GenerationKind::BeforeCopy)
            && number.0 != 0
        {
            match outside.at_point(number.0, content) {
                Ok(Some(_)) => return self.trace.mark("look: a generation"),
                // A restart point that was never answered.
                Ok(None) => {}
                // Nor was this one yet, and another branch had one of its number.
                Err(_)
                    if asked.iter().any(|(branch, count)| {
                        let is_next = number.0 > outside.history.branches[*branch].declared;
                        is_next && outside.history.may_be(*branch, *count, content)
                    }) =>
                {
                    return;
                }
                Err(why) => panic!("node {node} group {group}: {why}"),
            }
        }
        if let Some(fork) = outside.forks[node].get(&name.to_string()) {
            assert!(fork == content, "I5: {name} of node {node} group {group} is not what the former primary held");
            return self.trace.mark("look: a fork that a former primary left");
        }
        if outside.history.places(content).next().is_none() {
            let last = outside.history.branches.len() - 1;
            panic!(
                "I4: node {node} group {group}: {name} ({kind:?}) never was: {}",
                outside.history.explain(last, content)
            );
        }
        self.trace.mark(if kind == GenerationKind::Fork { "look: a fork" } else { "look: before a copy" });
    }

    /// What a former primary wrote past the fork is kept as it was (I5).
    fn check_fork(&mut self, node: usize, group: usize, content: Content, name: String) {
        let now = self.nodes[node].clock.now(self.now);
        // A promotion by force gives it up.
        if self.errands.promotes(node, group) {
            return;
        }
        let Some(core) = self.group(node, group) else { return };
        let listed = core.status(now).generations.iter().any(|kept| kept.name.to_string() == name);
        let is_dropped = self.outside[group].dropped.contains(&(node, name.clone()));
        assert!(listed || is_dropped, "I5: node {node} group {group} was demoted and keeps no {name}");
        self.outside[group].forks[node].insert(name, content);
    }

    /// Who answers is the primary of its epoch, and of no epoch that another one has ended (I5).
    pub(crate) fn check_serves(&mut self, node: usize, group: usize) {
        let Some(core) = self.group(node, group) else { return };
        let epoch = core.epoch().0;
        let outside = &mut self.outside[group];
        let owner = *outside.epochs.entry(epoch).or_insert(node);
        assert!(owner == node, "I5: both nodes answer in epoch {epoch:#x} of group {group}");
        if let Some(has_answered) = &mut outside.alone[node] {
            *has_answered = true;
            let other = outside.alone[1 - node] == Some(true);
            assert!(!other, "I5: both nodes of group {group} were promoted out of a fenced epoch, and both answer");
        }
        let ended = outside.ended[node];
        assert!(
            epoch >= ended,
            "I5: node {node} answers in epoch {epoch:#x} of group {group}, though fenced, and the other is primary in {ended:#x}"
        );
    }

    /// One number is one record for ever (I8).
    pub(crate) fn check_record(&mut self, node: usize, group: usize, header: &Bytes, payload: &Bytes) {
        let Ok(record) = Record::parse(header, group_id(group)) else { panic!("node {node} sends what is no record") };
        self.trace.note(self.now, || {
            let (kind, at, volume, offset, size) = (record.kind, record.at, record.volume, record.offset, record.size);
            format!("node {node} group {group}: sends {at} {kind:?} volume {volume} {offset}+{size}")
        });
        if record.kind == Kind::CopyBegin {
            self.outside[group].copy_begins(node);
        }
        if !record.kind.is_sequenced() {
            return;
        }
        let digest = crc32c::crc32c_append(crc32c::crc32c(header), payload);
        let key = (group, record.at.epoch.0, record.at.seq.0);
        let known = *self.records.entry(key).or_insert(digest);
        // A medium that loses what was durable loses epochs too.
        assert!(
            known == digest || self.nodes.iter().any(|node| node.was_rotten),
            "I8: {} of group {group} names two records: node {node} sends {record:?}",
            record.at
        );
    }

    /// A group tells of a change.
    pub(crate) fn event(&mut self, node: usize, group: usize, event: Event) {
        self.mark_event(node, group, &event);
        self.trace.note(self.now, || format!("node {node} group {group}: {event:?}"));
        let has_standby = self.slot(1 - node, group).is_some_and(|slot| slot.view.role == Role::Secondary);
        let now = self.nodes[node].clock.now(self.now);
        let Some(slot) = self.slot(node, group) else { return };
        match event {
            Event::RoleChanged { role, epoch } => {
                slot.view.role = role;
                // A promotion begins with a state of its own.
                slot.view.pair = slot.group.as_ref().map_or(slot.view.pair, |core| core.status(now).pair);
                match role {
                    Role::Primary => self.became_primary(node, group, epoch.0),
                    Role::Secondary => {
                        self.outside[group].serving[node] = Serving::Nothing;
                        self.outside[group].alone[node] = None;
                    }
                    // It holds what it held; nobody adds to it.
                    Role::Fenced => {}
                }
            }
            Event::PairChanged { state } => {
                slot.view.pair = state;
                // In step by a copy, after its list.
                slot.view.greeted |= has_standby && state == PairState::Duplex && slot.view.role == Role::Primary;
                self.meet(node, Moment::Pair);
            }
            Event::TrialDropped => self.outside[group].forget_trial(node),
            Event::PeerGreeted { .. } => {
                // One whose list is waited for is brought into step by a copy, and is not relied on before.
                let is_sent_to = slot.group.as_ref().is_some_and(|core| !core.waits_for_list());
                slot.view.greeted = has_standby && is_sent_to;
                let is_primary = slot.view.role == Role::Primary;
                self.outside[group].alone = [None; 2];
                if is_primary && has_standby {
                    self.outside[group].standby_greets(1 - node);
                }
            }
            Event::MediumFailed { .. } => {
                slot.view.stopped = true;
                let ills = self.nodes[node].ills;
                let excuse = ills.has_failed || ills.rotten;
                assert!(excuse, "I7: node {node} group {group} stops, and nothing is wrong: {event:?}");
            }
            Event::TakingOver => {
                let Some(core) = self.group(node, group) else { return };
                let latest = core.status(now).takeover.is_some_and(|takeover| takeover.to_latest);
                let target = if latest { PromoteTarget::Latest } else { PromoteTarget::RestartPoint };
                self.outside[group].hint[node] = Some((target, false));
            }
            _ => {}
        }
    }

    fn became_primary(&mut self, node: usize, group: usize, epoch: u64) {
        let other = 1 - node;
        let hint = self.outside[group].hint[node];
        let is_forced = hint.is_none_or(|(_, force)| force);
        let now = self.nodes[other].clock.now(self.now);
        let status = self.group(other, group).map(|core| core.status(now));
        let outside = &mut self.outside[group];
        let (has_lease, role) = status.map_or(outside.had_lease[other], |status| (status.lease.is_some(), status.role));
        // What a promotion by force has broken, a later one does not mend.
        let is_fenced = (has_lease || outside.alone[other].is_some()) && !is_forced && !outside.spent[node];
        outside.alone[node] = is_fenced.then_some(false);
        if is_fenced && has_lease && role != Role::Secondary {
            outside.ended[other] = outside.ended[other].max(epoch);
        }
        let (remote, remote_generation) = outside.promised(node);
        let remote = outside.handed_over[node].take().or(remote);
        outside.spent[node] = true;
        let (target, generation) = (hint.map(|(target, _)| target), outside.told_generation[node].take());
        let expect = Expect::Promotion { target, generation, remote, remote_generation };
        self.outside[group].serving[node] = Serving::Unsettled(expect);
        self.todo.push_back(Todo::Settle(node, group));
    }
}
