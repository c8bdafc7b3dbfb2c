//! What machines do and suffer: operations of their media, daemons that start, stop, die and stand still, power that is lost.

use crate::{
    ambush::Moment,
    config::Feature,
    media::{Media, Region},
    node::{Daemon, Slot, View},
    outside::Serving,
    world::{What, World, group_id},
};
use holdfast::{
    command::VolumeSpec,
    disk::{DiskAction, DiskError, DiskOperation, DiskOutcome, MediumId},
    group::{Group, GroupSpec, OpenError, format_journal, format_pool, pool_size_for, smallest_pool_size},
    pair::{PairState, Role},
    request::RequestId,
    units::{JOURNAL_SIZE_MIN, MediumUuid, NodeKey, VOLUME_SIZE_MIN, VolumeId},
};

const EIO: i32 = 5;

/// A node's key.
pub fn key(node: usize) -> NodeKey {
    NodeKey([node as u8 + 1; 32])
}

impl World {
    pub(crate) fn begin_operation(&mut self, node: usize, group: usize, operation: DiskOperation) {
        let usual = self.config.disk_micros * if self.nodes[node].ills.slow { 20 } else { 1 };
        // One of fifty takes ten times as long.
        let factor = if self.chance.below(50) == 0 { 10 } else { 1 };
        let mut at = self.now + 1 + self.chance.below(2 * usual * factor);
        // A read may last longer than everything that could be done to what it reads.
        if self.nodes[node].ills.slow
            && matches!(operation.action, DiskAction::Read { .. })
            && self.chance.below(8) == 0
        {
            at += self.chance.below(4_000_000);
        }
        at += match operation.action {
            DiskAction::Read { .. } => self.nodes[node].ills.read_micros,
            DiskAction::Write { .. } => self.nodes[node].ills.write_micros,
            _ => 0,
        };
        let number = self.number();
        let life = self.nodes[node].life;
        let asked = self.nodes[node].media[group].writes();
        let Some(slot) = self.slot(node, group) else { return };
        slot.operations.insert(number, (operation, asked));
        let slot_life = slot.life;
        self.plan(at, What::Disk(node, life, group, slot_life, number));
    }

    /// Carries out an operation and tells the group, with what follows. It may have ended already, for somebody who looked.
    pub(crate) fn end_operation(&mut self, node: usize, group: usize, number: u64) {
        let Some(slot) = self.slot(node, group) else { return };
        let Some((operation, asked)) = slot.operations.remove(&number) else { return };
        let id = operation.id;
        let moment = Moment::of(operation.medium, &operation.action);
        let outcome = self.operate(node, group, operation, asked);
        let now = self.nodes[node].clock.now(self.now);
        if let Some(core) = self.group(node, group) {
            core.handle_disk(now, id, outcome);
        }
        if let Some(moment) = moment {
            self.meet(node, moment);
        }
        self.pump(node);
    }

    fn operate(&mut self, node: usize, group: usize, operation: DiskOperation, asked: u64) -> DiskOutcome {
        let DiskOperation { medium, action, .. } = operation;
        let may_lose = self.nodes[node].ills.lost_writes > 0 && self.may_rot(node);
        let (ills, media) = (&mut self.nodes[node].ills, &mut self.nodes[node].media[group]);
        let is_pool = matches!(medium, MediumId::Pool(_));
        let may_fail = !ills.only_reads || matches!(action, DiskAction::Read { .. });
        if ills.errors > 0 && may_fail && self.chance.below(ills.errors) == 0 {
            ills.has_failed = true;
            if let DiskAction::Write { offset, pieces } = &action {
                // Of a write that fails any part may be there.
                let count = self.chance.below(pieces.len() as u64 + 1) as usize;
                let action = DiskAction::Write { offset: *offset, pieces: pieces[..count].to_vec() };
                media.carry_out(medium, &action, asked)?;
            }
            return Err(DiskError::Failed { errno: EIO });
        }
        if ills.full && is_pool && matches!(action, DiskAction::Write { .. }) {
            ills.has_failed = true;
            return Err(DiskError::NoSpace);
        }
        if may_lose
            && let DiskAction::Write { offset, pieces } = &action
            && Media::is_guarded(medium, *offset)
        {
            ills.lost_writes -= 1;
            ills.rotten = true;
            self.nodes[node].was_rotten = true;
            if self.chance.below(2) == 0 {
                self.trace.mark("medium: a write goes nowhere");
                self.trace
                    .note(self.now, || format!("node {node} group {group}: {medium:?} loses a write at {offset}"));
                return Ok(Default::default());
            }
            let elsewhere = Media::elsewhere(*offset);
            self.trace.mark("medium: a write goes elsewhere");
            self.trace.note(self.now, || {
                format!("node {node} group {group}: {medium:?} writes at {elsewhere} what belongs at {offset}")
            });
            let action = DiskAction::Write { offset: elsewhere, pieces: pieces.clone() };
            return media.carry_out(medium, &action, asked);
        }
        media.carry_out(medium, &action, asked)
    }

    /// A daemon dies; what it had asked of its media is done or not.
    pub(crate) fn kill(&mut self, node: usize) {
        let now = self.nodes[node].clock.now(self.now);
        let Some(mut daemon) = self.nodes[node].daemon.take() else { return };
        self.trace.note(self.now, || format!("node {node}: the daemon dies"));
        for (group, slot) in daemon.slots.iter_mut().enumerate() {
            self.abandon_operations(node, group, slot);
            self.outside[group].forget_requests(node);
            self.outside[group].forget_readers(node);
            self.outside[group].crashed(node, false);
            let status = slot.group.as_ref().map(|core| core.status(now));
            let lease = status.map_or((false, Role::Secondary), |status| (status.lease.is_some(), status.role));
            self.outside[group].had_lease[node] = lease;
        }
        self.nodes[node].life += 1;
        self.nodes[node].inbox.clear();
        self.nodes[node].ambush = None;
        self.nodes[node].stalled_until = 0;
        for (group, branch, count) in self.errands.forget(node) {
            self.outside[group].history.point_is_unknown(branch, count);
        }
    }

    /// What was asked for is done or not, in any order.
    fn abandon_operations(&mut self, node: usize, group: usize, slot: &mut Slot) {
        while let Some(number) = {
            let at = self.chance.below(slot.operations.len().max(1) as u64) as usize;
            slot.operations.keys().nth(at).copied()
        } {
            let Some((operation, asked)) = slot.operations.remove(&number) else { break };
            if self.chance.below(2) == 0 {
                let _ = self.nodes[node].media[group].carry_out(operation.medium, &operation.action, asked);
            }
        }
        slot.life += 1;
    }

    /// Power is lost, with whatever was not synced.
    pub(crate) fn lose_power(&mut self, node: usize) {
        self.kill(node);
        self.trace.note(self.now, || format!("node {node}: power is lost"));
        for group in 0..self.config.group_count {
            self.nodes[node].media[group].lose_power(&mut self.chance);
            self.outside[group].crashed(node, true);
        }
    }

    /// A daemon is started and opens what groups it has.
    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].daemon.is_some() {
            return;
        }
        self.trace.note(self.now, || format!("node {node}: started"));
        self.nodes[node].life += 1;
        let name = self.chance.next_u64() | 1;
        self.nodes[node].daemon = Some(Daemon::new(self.config.mode, name, self.config.link_count));
        for group in 0..self.config.group_count {
            let slot = self.open(node, group);
            if let Some(daemon) = &mut self.nodes[node].daemon {
                daemon.slots.push(slot);
            }
        }
        self.pump(node);
    }

    fn open(&mut self, node: usize, group: usize) -> Slot {
        let now = self.nodes[node].clock.now(self.now);
        let media = &mut self.nodes[node].media[group];
        let opened = if media.is_empty() { None } else { Some(Group::open(media, now)) };
        let mut slot = Slot::default();
        match opened {
            Some(Ok((core, report))) => {
                let status = core.status(now);
                slot.view = View {
                    role: status.role,
                    pair: status.pair,
                    level: status.level,
                    without_peer: status.without_peer,
                    ..View::default()
                };
                self.trace
                    .note(self.now, || format!("node {node} group {group}: opened as {}, {report:?}", status.role));
                slot.group = Some(core);
                self.outside[group].opened(node, status.role);
            }
            Some(Err(error)) => {
                let is_excused = self.nodes[node].ills.rotten && !matches!(error, OpenError::Disk(_));
                assert!(is_excused, "I1: node {node} cannot open group {group}: {error} {error:?}");
                self.trace.note(self.now, || format!("node {node} group {group}: not opened, {error}"));
                self.outside[group].serving[node] = Serving::Nothing;
            }
            None => {}
        }
        slot
    }

    /// Opens a group that has stopped again, in the running daemon.
    pub(crate) fn reopen(&mut self, node: usize) {
        self.nodes[node].ills.errors = 0;
        let shown = self.nodes[node].clock.at(self.now);
        for group in 0..self.config.group_count {
            let Some(slot) = self.slot(node, group) else { return };
            if !slot.view.stopped {
                continue;
            }
            let mut former = std::mem::take(slot);
            self.abandon_operations(node, group, &mut former);
            self.outside[group].crashed(node, false);
            self.outside[group].forget_trial(node);
            let mut slot = self.open(node, group);
            if let (Some(core), Some(old)) = (&mut slot.group, &mut former.group) {
                core.inherit(old);
            }
            (slot.life, slot.waiting) = (former.life + 1, former.waiting);
            // Whoever waits for a medium that is gone is told so.
            let waits = |id: &RequestId| slot.waiting.iter().any(|request| request.id == *id);
            self.outside[group].pending.retain(|id, pending| pending.node != node || waits(id));
            if let Some(daemon) = &mut self.nodes[node].daemon {
                daemon.slots[group] = slot;
                daemon.restart_soon(shown);
            }
        }
        self.pump(node);
    }

    /// Something that was written is changed.
    pub(crate) fn rot(&mut self, node: usize, salt: u64) {
        let region = [Region::Table, Region::Superblock][(salt / 2 % 2) as usize];
        let group = (salt / 4) as usize % self.config.group_count;
        if self.nodes[node].media[group].rot(region, &mut self.chance) {
            (self.nodes[node].ills.rotten, self.nodes[node].was_rotten) = (true, true);
        }
    }

    /// What a volume is.
    fn volume_spec(&self, node: usize, index: usize) -> VolumeSpec {
        let id = VolumeId(index as u16 + 1);
        VolumeSpec {
            id,
            name: ["a", "b", "c"][index].parse().unwrap_or_else(|_| unreachable!("a short name")),
            size: VOLUME_SIZE_MIN,
            logical_block_size: 512,
            table_block_size: self.config.table_blocks[index],
            pool: MediumUuid([(10 * (node + 1) + index) as u8; 16]),
            pool_path: String::new(),
        }
    }

    /// Makes a group on a node whose daemon runs, in place of what was there.
    pub(crate) fn make_group(&mut self, node: usize, group: usize, role: Role, sizes: &[u64]) {
        let now = self.nodes[node].clock.now(self.now);
        self.trace.note(self.now, || format!("node {node} group {group}: made anew as {role}"));
        let peer = (role == Role::Secondary).then(|| key(1 - node));
        let name = ["g", "h"][group].parse().unwrap_or_else(|_| unreachable!("a short name"));
        let spec = GroupSpec { id: group_id(group), name, journal: MediumUuid([node as u8 + 1; 16]), role, peer };
        let specs: Vec<VolumeSpec> = (0..self.config.table_blocks.len())
            .map(|index| VolumeSpec {
                size: sizes.get(index).copied().unwrap_or(VOLUME_SIZE_MIN),
                ..self.volume_spec(node, index)
            })
            .collect();
        let media = &mut self.nodes[node].media[group];
        media.clear();
        media.set_size(MediumId::Journal, JOURNAL_SIZE_MIN);
        let made = format_journal(media, &spec);
        assert!(made.is_ok(), "a journal cannot be made: {made:?}");
        let opened = Group::open(media, now);
        let Ok((mut core, _)) = opened else { panic!("a new group cannot be opened") };
        for spec in specs {
            let fit = if self.config.small_pools { smallest_pool_size } else { pool_size_for };
            let media = &mut self.nodes[node].media[group];
            media.set_size(MediumId::Pool(spec.id), fit(spec.size, spec.table_block_size));
            let made = format_pool(media, group_id(group), &spec);
            assert!(made.is_ok(), "a pool cannot be made: {made:?}");
            let id = self.number();
            let media = &mut self.nodes[node].media[group];
            core.handle_add_volume(now, holdfast::command::CommandId(id), media, spec);
        }
        let view = View { role, pair: core.status(now).pair, ..View::default() };
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        let life = daemon.slots[group].life + 1;
        daemon.slots[group] = Slot { group: Some(core), view, life, ..Slot::default() };
        self.outside[group].forget_requests(node);
        self.outside[group].forget_readers(node);
        self.outside[group].forget_promises();
        self.outside[group].forks[node].clear();
        // Whoever made it has given up what was here, and the epochs that were opened here.
        self.outside[group].forget_fences();
        self.outside[group].serving[node] = Serving::Nothing;
        self.pump(node);
        self.tell_up(node, group);
    }

    /// A node stands still for a while.
    pub(crate) fn stall(&mut self, node: usize, salt: u64) {
        let micros = [50_000, 1_000_000, 6_000_000, 15_000_000][(salt % 4) as usize];
        self.nodes[node].stalled_until = self.now + micros;
        self.plan(self.now + micros, What::Resume(node));
    }

    /// Whether damage may come over this node: only over one of a pair.
    pub(crate) fn may_rot(&self, node: usize) -> bool {
        let slots = |node: usize| self.nodes[node].daemon.iter().flat_map(|daemon| &daemon.slots);
        let is_whole = |node: usize| {
            let volume_count = self.config.table_blocks.len();
            let has_all = |core: &Group| core.label().volumes.len() == volume_count;
            let has_all =
                slots(node).filter(|slot| !slot.view.stopped && slot.group.as_ref().is_some_and(has_all)).count();
            has_all == self.config.group_count && !self.nodes[node].retired
        };
        let is_in_step = |(a, b): (&Slot, &Slot)| {
            let (primary, standby) = if a.view.role == Role::Primary { (a.view, b.view) } else { (b.view, a.view) };
            let roles = (primary.role, standby.role) == (Role::Primary, Role::Secondary);
            roles && primary.pair == PairState::Duplex && primary.greeted
        };
        let is_known = self.config.has(Feature::Rot) && !self.nodes[1 - node].ills.rotten;
        is_known && is_whole(0) && is_whole(1) && slots(0).zip(slots(1)).all(is_in_step)
    }
}
