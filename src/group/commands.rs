//! Operators' commands. Each is carried out when the state allows it and answered when what it promises is durable.

use super::{Group, Purpose, greeting::Confirmation};
use crate::{
    command::{Command, CommandError, CommandId, CommandReply, GenerationId, PromoteTarget, RestartPointInfo},
    format::{message::encode_label, record::Kind, text::Name},
    journal::Place,
    output::{Event, Output},
    pair::{Cause, PairState, Role},
    stream_state::{Note, StreamState},
    testing::{Plant, planted},
    units::{Epoch, Generation, NodeKey, Now, Order, Position, VolumeId},
};
use alloc::vec::Vec;
use bytes::Bytes;

/// What a command waits for.
pub(super) enum WaitsFor {
    /// An entry of its own to be durable.
    Durable(Order),
    /// A checkpoint.
    Checkpoint(u64),
    /// A superblock.
    Superblock(u64),
}

/// A promotion on its way.
enum Promotion {
    /// Everything received is being settled.
    Settling { id: CommandId, target: Target },
    /// The epoch change is being made durable; `former` is the epoch of the last record that was there.
    Opening { id: CommandId, order: Order, former: Epoch, reply: CommandReply },
}

/// The state to which a node is promoted.
#[derive(Clone, Copy)]
enum Target {
    /// All that was received.
    Latest,
    /// The last restart point, whichever that is when everything is settled.
    RestartPoint,
    /// An older one.
    Older { order: Order, info: RestartPointInfo },
}

/// The commands that are under way.
#[derive(Default)]
pub(super) struct Commands {
    waiting: Vec<(CommandId, WaitsFor, CommandReply)>,
    promotion: Option<Promotion>,
    /// A former primary becomes a secondary when this entry, which keeps what it wrote, is durable.
    demotion: Option<(CommandId, Order)>,
    /// The group is being stopped.
    pub(super) stopping: Option<CommandId>,
}

impl Commands {
    /// Whether one waits for an entry that is not durable: a sync may have begun before that was written.
    pub(super) fn want_sync(&self, durable: Order) -> bool {
        let opening = matches!(self.promotion, Some(Promotion::Opening { order, .. }) if order > durable);
        let waits = |waits_for: &WaitsFor| matches!(waits_for, WaitsFor::Durable(order) if *order > durable);
        let demoting = self.demotion.is_some_and(|(_, order)| order > durable);
        opening || demoting || self.waiting.iter().any(|(_, waits_for, _)| waits(waits_for))
    }
}

impl Group {
    /// An operator's command; it is answered by an [`Output::CommandAnswer`].
    pub fn handle_command(&mut self, now: Now, id: CommandId, command: Command) {
        self.now = now;
        // What comes behind a stop may not be on the medium when the daemon ends, though it was sent: its number would be given anew.
        let is_late = self.is_stopping() && !matches!(command, Command::Stop);
        let result =
            if is_late || self.stopped.is_some() { Err(CommandError::Stopped) } else { self.begin(id, command) };
        match result {
            Ok(Some((waits_for, reply))) => self.commands.waiting.push((id, waits_for, reply)),
            Ok(None) => {}
            Err(error) => self.outputs.push_back(Output::CommandAnswer { id, result: Err(error) }),
        }
    }

    fn begin(&mut self, id: CommandId, command: Command) -> Result<Option<(WaitsFor, CommandReply)>, CommandError> {
        match command {
            Command::RemoveVolume(volume) => self.remove_volume(volume)?,
            Command::GrowVolume { volume, size, pool_size } => {
                if !self.grow(id, volume, size, pool_size)? {
                    return Ok(None);
                }
            }
            Command::GrowJournal { size } => {
                if !self.grow_journal(id, size)? {
                    return Ok(None);
                }
            }
            Command::CreatePair { peer } => self.create_pair(peer)?,
            Command::DeletePair if self.needs_lease() => return Err(CommandError::Fenced),
            Command::DeletePair => self.delete_pair()?,
            Command::SuspendPair { now } => {
                if !now && self.drain(id)? {
                    return Ok(None);
                }
                self.require_primary_pair()?;
                self.suspend(Cause::Command);
            }
            Command::ResumePair { compare } => {
                self.require_primary_pair()?;
                self.peer.sends_all = !compare;
                if let PairState::Suspended(_) = self.pair.state {
                    self.set_pair_state(PairState::Suspended(Cause::Peer));
                    self.greet_again();
                }
            }
            Command::SetLevel(level) => {
                self.pair.level = level;
                self.answer_waiting();
            }
            Command::SetWithoutPeer(policy) => {
                self.pair.without_peer = policy;
                self.answer_waiting();
            }
            Command::SetPolicy(policy) => {
                self.pair.policy = policy;
                self.again = true;
            }
            Command::SetLease { millis, force } => {
                if !self.set_lease(id, millis, force)? {
                    return Ok(None);
                }
            }
            Command::SetTakeover(takeover) => self.set_takeover(takeover)?,
            Command::KeepGenerations { count, seconds } => self.set_keep(count, seconds)?,
            Command::DropGeneration(generation) => return self.drop_generation(generation).map(Some),
            Command::BeginTrial { generation } => {
                let result = self.begin_trial(generation);
                self.outputs.push_back(Output::CommandAnswer { id, result });
                return Ok(None);
            }
            Command::EndTrial => {
                if !self.end_trial(Some(id))? {
                    return Ok(None);
                }
            }
            Command::RestartPoint { label } => return self.restart_point(label).map(Some),
            Command::Promote { target, force } => return self.promote(id, target, force).map(|()| None),
            Command::Demote { discard_fork } => {
                if !self.demote(id, discard_fork)? {
                    return Ok(None);
                }
            }
            Command::VerifyPair { mend } => return self.verify(id, mend).map(|()| None),
            Command::HandOver => return self.hand_over(id).map(|()| None),
            Command::Stop => {
                if self.is_stopping() {
                    return Err(CommandError::InProgress("stop"));
                }
                self.commands.stopping = Some(id);
                self.sync.wanted = true;
                return Ok(None);
            }
        }
        Ok(Some((WaitsFor::Superblock(self.superblock.request()), CommandReply::Done)))
    }

    pub(super) fn require_primary_pair(&self) -> Result<(), CommandError> {
        if self.pair.role != Role::Primary {
            return Err(CommandError::WrongRole { role: self.pair.role, hint: "use the command on the primary" });
        }
        if self.pair.peer.is_none() {
            return Err(CommandError::WrongPairState { state: self.pair.state, hint: "create a pair first" });
        }
        Ok(())
    }

    fn remove_volume(&mut self, id: VolumeId) -> Result<(), CommandError> {
        if self.pair.peer.is_some() {
            return Err(CommandError::WrongPairState { state: self.pair.state, hint: "delete the pair first" });
        }
        // Space that is being given back may be that of the next volume with this number.
        let is_release = |purpose: &Purpose| matches!(purpose, Purpose::Release { volume, .. } if *volume == id);
        let writes = self.destage.is_running() || self.checkpoint.is_running() || self.growth.is_some();
        if writes || self.operations.values().any(is_release) {
            return Err(CommandError::InProgress("write to the pool"));
        }
        if self.trial.is_some() {
            return Err(CommandError::InProgress("trial"));
        }
        self.volumes.remove(&id);
        Ok(())
    }

    fn create_pair(&mut self, peer: NodeKey) -> Result<(), CommandError> {
        if self.pair.role != Role::Primary {
            return Err(CommandError::WrongRole { role: self.pair.role, hint: "create the pair on the primary" });
        }
        match self.pair.peer {
            Some(known) if known == peer => return Ok(()),
            Some(_) => {
                let hint = "it has another peer; delete that pair first";
                return Err(CommandError::WrongPairState { state: self.pair.state, hint });
            }
            None => {}
        }
        self.pair.peer = Some(peer);
        self.pair.synced = Position::default();
        self.lose_anchor();
        self.set_pair_state(PairState::InitialCopy);
        Ok(())
    }

    fn delete_pair(&mut self) -> Result<(), CommandError> {
        // It would go on sending, and wait for what is not acknowledged any more; and this node could be promoted beside it.
        if self.pair.role == Role::Secondary && self.peer.greeted && !self.pair.left_behind {
            let hint = "its primary is connected; delete the pair there";
            return Err(CommandError::WrongRole { role: self.pair.role, hint });
        }
        self.leave_behind();
        self.pair.peer = None;
        // A standby remembers what it has promised.
        if self.pair.role == Role::Primary {
            self.pair.lease_millis = 0;
            self.leasing.renounce();
        }
        self.lose_anchor();
        self.peer.forget_session();
        self.copy.stop();
        self.confirmation = Confirmation::default();
        self.volumes.values_mut().for_each(|volume| volume.table.clear_all_dirty());
        self.checkpoint.marked = true;
        self.set_pair_state(PairState::Simplex);
        self.answer_waiting();
        Ok(())
    }

    fn restart_point(&mut self, label: Name) -> Result<(WaitsFor, CommandReply), CommandError> {
        if self.pair.role != Role::Primary || !self.is_confirmed() {
            let hint = "declare restart points on the primary";
            return Err(CommandError::WrongRole { role: self.pair.role, hint });
        }
        let record = self.new_record(Kind::RestartPoint);
        let order = self.stage(record, encode_label(label), Note::Label(label));
        self.sync.wanted = true;
        let reply = CommandReply::RestartPoint { generation: record.generation, at: record.at };
        Ok((WaitsFor::Durable(order), reply))
    }

    /// `true` if it is done.
    fn demote(&mut self, id: CommandId, discard_fork: bool) -> Result<bool, CommandError> {
        // One that waits for its fork to be kept, perhaps for want of room, need not wait if that is given up.
        if let Some((waiting, _)) = self.commands.demotion.take_if(|_| discard_fork) {
            let count = self.superblock.request();
            self.answer_when_stored(waiting, count, CommandReply::Done);
        } else if self.commands.demotion.is_some() {
            return Err(CommandError::InProgress("demotion"));
        }
        let (fork, record_count) = match self.pair.role {
            Role::Secondary => return Ok(true),
            Role::Fenced => {
                if !discard_fork && self.stream.last.seq > self.pair.fork.seq && !planted(Plant::ForkNotKept) {
                    // It steps down when the fork is kept durably.
                    self.commands.demotion = Some((id, self.keep_fork()));
                    self.sync.wanted = true;
                    return Ok(false);
                }
                (self.pair.fork, 0)
            }
            Role::Primary => {
                if self.pair.peer.is_none() {
                    let hint = "a group without a peer has no other node to be primary";
                    return Err(CommandError::WrongPairState { state: self.pair.state, hint });
                }
                if !discard_fork && !self.peer_is_a_prefix() {
                    let hint = "what its standby lacks is not known: connect it and wait until the pair is \
                                duplex, or give up what only this node has with --discard-fork";
                    return Err(CommandError::WrongPairState { state: self.pair.state, hint });
                }
                let fork = self.position_of(self.peer.acknowledged());
                (fork, self.stream.last.seq.0.saturating_sub(fork.seq.0))
            }
        };
        if record_count > 0 && !discard_fork {
            return Err(CommandError::ForkWouldBeLost { fork, record_count });
        }
        self.step_down();
        self.greet_again();
        Ok(true)
    }

    fn continue_demotion(&mut self) {
        if let Some((id, _)) = self.commands.demotion.take_if(|(_, order)| *order <= self.durable) {
            self.step_down();
            self.greet_again();
            let count = self.superblock.request();
            self.answer_when_stored(id, count, CommandReply::Done);
        }
    }

    pub(super) fn promote(&mut self, id: CommandId, target: PromoteTarget, force: bool) -> Result<(), CommandError> {
        if self.commands.promotion.is_some() {
            return Err(CommandError::InProgress("promotion"));
        }
        match self.pair.role {
            Role::Secondary => {}
            Role::Primary => {
                let hint = "there is nothing to promote";
                return Err(CommandError::WrongRole { role: Role::Primary, hint });
            }
            Role::Fenced => {
                let hint = "another node is primary; demote this one first";
                return Err(CommandError::WrongRole { role: Role::Fenced, hint });
            }
        }
        if self.nothing_can_be_written() {
            return Err(CommandError::Full);
        }
        if self.stream.last == StreamState::new().last && self.pair.peer_epoch == Epoch::default() {
            // Its epoch would be one that others have had.
            return Err(CommandError::NothingReceived);
        }
        let target = self.target_of(target)?;
        let (order, at) = self.state_of(target);
        if !matches!(target, Target::Latest) && !self.can_be_had(order) {
            let point = self.stream.restart_point.as_ref();
            let name = point.map_or(Generation::UNDECLARED, |point| point.info.generation);
            return Err(self.not_kept(GenerationId::Number(name)));
        }
        if !force {
            self.check_dangers(order, at)?;
        }
        // Nothing more is taken from the peer.
        self.peer.greeted = false;
        self.sync.wanted = true;
        self.commands.promotion = Some(Promotion::Settling { id, target });
        Ok(())
    }

    /// What a promotion that is asked for now would override by force; `None` also if there is no such state.
    pub fn promotion_dangers(&self, target: PromoteTarget) -> Option<CommandError> {
        let (order, at) = self.state_of(self.target_of(target).ok()?);
        self.check_dangers(order, at).err()
    }

    fn target_of(&self, asked: PromoteTarget) -> Result<Target, CommandError> {
        let point = self.stream.restart_point.as_ref();
        match asked {
            PromoteTarget::Latest if self.stream.copying => Err(CommandError::CopyInProgress),
            PromoteTarget::Latest => Ok(Target::Latest),
            PromoteTarget::RestartPoint if point.is_none() => Err(CommandError::NoRestartPoint),
            PromoteTarget::RestartPoint => Ok(Target::RestartPoint),
            PromoteTarget::Generation(asked) if point.is_some_and(|point| point.info.generation == asked) => {
                Ok(Target::RestartPoint)
            }
            PromoteTarget::Generation(asked) => match self.older_restart_point(asked) {
                Some(older) => Ok(Target::Older { order: older.order, info: older.info }),
                None => Err(self.not_kept(GenerationId::Number(asked))),
            },
        }
    }

    fn state_of(&self, target: Target) -> (Order, Position) {
        match (target, &self.stream.restart_point) {
            (Target::Older { order, info }, _) => (order, info.at),
            (Target::RestartPoint, Some(point)) => (point.order, point.info.at),
            _ => (self.journal.last(), self.stream.last),
        }
    }

    /// Whether this node is on its way to be the primary.
    pub(super) fn is_promoting(&self) -> bool {
        self.commands.promotion.is_some()
    }

    /// Whether a promotion or a stop waits for nothing but the end of a cycle of destaging. The next one would keep it waiting, and so
    /// would all of those that follow, if much waits to be applied.
    pub(super) fn waits_for_cycle(&self) -> bool {
        let promotes = matches!(self.commands.promotion, Some(Promotion::Settling { .. }));
        (promotes || self.is_stopping()) && self.durable == self.journal.last()
    }

    /// Whether the group does not wait for a checkpoint before it stops.
    pub(super) fn stops_without_checkpoint(&self) -> bool {
        let is_awaited = |(_, what, _): &(CommandId, WaitsFor, CommandReply)| matches!(what, WaitsFor::Checkpoint(_));
        let is_needed = self.growth.is_some() || self.commands.waiting.iter().any(is_awaited);
        self.is_stopping() && self.waits_for_cycle() && !is_needed
    }

    /// Whether a promotion has taken the volumes back and the record that says so is not durable. Nothing may make the one durable
    /// before the other: a crash must lead back to where the stream goes on.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.commands.promotion, Some(Promotion::Opening { order, .. }) if order > self.durable)
    }

    /// The older restart point that a promotion needs until it has taken the volumes back.
    pub(super) fn promotion_to_older(&self) -> Option<Order> {
        match self.commands.promotion {
            Some(Promotion::Settling { target: Target::Older { order, .. }, .. }) => Some(order),
            _ => None,
        }
    }

    /// Answers a command when this superblock is durable.
    pub(super) fn answer_when_stored(&mut self, id: CommandId, count: u64, reply: CommandReply) {
        self.commands.waiting.push((id, WaitsFor::Superblock(count), reply));
    }

    /// Answers a command when the tables are durable as they are now.
    pub(super) fn answer_when_noted(&mut self, id: CommandId, reply: CommandReply) {
        self.checkpoint.marked = true;
        self.checkpoint.wanted = true;
        self.commands.waiting.push((id, WaitsFor::Checkpoint(self.checkpoint.begun() + 1), reply));
    }

    /// Goes on with whatever a command waits for.
    pub(super) fn continue_commands(&mut self) {
        let (durable, checkpoints, mut done) = (self.durable, self.checkpoint.ended(), Vec::new());
        let superblock = &self.superblock;
        self.commands.waiting.retain(|(id, waits_for, reply)| {
            let ready = match waits_for {
                WaitsFor::Durable(order) => *order <= durable || planted(Plant::CommandNotDurable),
                WaitsFor::Checkpoint(count) => checkpoints >= *count,
                WaitsFor::Superblock(count) => superblock.is_durable(*count),
            };
            if ready {
                done.push((*id, reply.clone()));
            }
            !ready
        });
        for (id, reply) in done {
            self.outputs.push_back(Output::CommandAnswer { id, result: Ok(reply) });
        }
        self.continue_promotion();
        self.continue_demotion();
        self.continue_growth();
        self.continue_journal_growth();
        self.continue_hand_over();
        self.continue_drain();
        self.continue_stop();
    }

    /// A checkpoint may be running: it makes the tables durable as they were when it began, and what a promotion changes in them counts
    /// from the next one on. That of a large volume may take seconds.
    pub(super) fn is_settled(&self) -> bool {
        self.durable == self.journal.last() && !self.destage.is_running() && self.growth.is_none()
    }

    fn continue_promotion(&mut self) {
        match self.commands.promotion {
            Some(Promotion::Settling { id, target }) if self.is_settled() => self.switch(id, target),
            Some(Promotion::Opening { id, order, former, ref reply }) if self.durable >= order => {
                let reply = reply.clone();
                self.commands.promotion = None;
                self.pair.role = Role::Primary;
                self.pair.left_behind = false;
                self.lease_after_promotion(former);
                self.pair.state = if self.pair.peer.is_some() { PairState::Duplex } else { PairState::Simplex };
                // The peer, when it comes back, has at most what was common before this epoch.
                self.peer.stream_after(Order(order.0 - 1));
                self.peer.forget_confirmed();
                self.peer.stop_streaming();
                let count = self.superblock.request();
                self.again = true;
                self.answer_when_stored(id, count, reply);
                self.event(Event::RoleChanged { role: Role::Primary, epoch: self.epoch() });
                self.greet_again();
            }
            _ => {}
        }
    }

    /// Takes the group to the state that is to be served, and opens an epoch from there. O(what was received and is not
    /// applied), whatever the volumes' sizes.
    fn switch(&mut self, id: CommandId, target: Target) {
        let last = self.journal.last();
        let before = self.stream.last;
        let (fork, at, generation) = match (target, &self.stream.restart_point) {
            (Target::RestartPoint, Some(point)) => (point.order, point.info.at, Some(point.info.generation)),
            (Target::Older { order, info }, _) => (order, info.at, Some(info.generation)),
            _ => (last, before, None),
        };
        if fork < last && !self.can_be_had(fork) {
            // Better none than one that takes only some of the volumes back.
            self.commands.promotion = None;
            self.greet_again();
            let name = GenerationId::Number(generation.unwrap_or(Generation::UNDECLARED));
            let result = Err(self.not_kept(name));
            return self.outputs.push_back(Output::CommandAnswer { id, result });
        }
        if fork < last {
            self.take_back(fork, at);
        }
        let known = self.epoch().max(self.pair.peer_epoch).max(before.epoch);
        let epoch = if planted(Plant::EpochNotRaised) { known } else { known.promoted(self.pair.former_epoch) };
        self.stream.generation = self.stream.generation.next();
        let mut record = self.new_record(Kind::EpochChange);
        record.at = Position { epoch, seq: at.seq.next() };
        let order = self.stage(record, Bytes::new(), Note::Fork(fork));
        self.sync.wanted = true;
        let dropped_record_count = before.seq.0.saturating_sub(at.seq.0);
        let reply = CommandReply::Promoted { epoch, generation, at, dropped_record_count };
        self.commands.promotion = Some(Promotion::Opening { id, order, former: before.epoch, reply });
    }

    /// Makes void what came after the restart point `fork`.
    fn take_back(&mut self, fork: Order, at: Position) {
        let last = self.journal.last();
        let valid = if planted(Plant::RollbackKeepsOne) { fork.next() } else { fork };
        let unapplied: Vec<(VolumeId, Vec<u32>)> = self
            .journal
            .after(fork.max(self.applied))
            .filter_map(|(order, entry)| {
                let Place::Redirected(blocks) = &entry.place else { return None };
                // What a table has already it takes back itself.
                let volume = self.volumes.get(&entry.record.volume).filter(|volume| order > volume.applied_before)?;
                (!entry.is_void).then(|| (volume.spec.id, blocks.clone()))
            })
            .collect();
        self.void_between(valid, last.next());
        for (id, blocks) in unapplied {
            if let Some(volume) = self.volumes.get_mut(&id) {
                blocks.into_iter().for_each(|block| volume.table.blocks.free(block));
            }
        }
        if self.trial.as_ref().is_some_and(|trial| trial.base() > fork) {
            // Its generation goes.
            let _ = self.end_trial(None);
        }
        let applied = self.applied;
        for volume in self.volumes.values_mut() {
            volume.overlay.clear();
            if applied.max(volume.applied_before) > fork {
                let is_taken_back = volume.table.roll_back(fork);
                assert!(is_taken_back, "volume {} does not keep what can be had", volume.spec.id);
            }
        }
        for (order, entry) in self.journal.after(self.applied) {
            if order > valid {
                break;
            }
            if entry.record.kind.changes_data()
                && !entry.is_void
                && let Some(volume) = self.volumes.get_mut(&entry.record.volume)
                && order > volume.applied_before
            {
                volume.overlay.insert(entry.record.offset, entry.record.end(), order);
            }
        }
        self.stream.last = at;
        self.stream.copying = false;
    }

    /// All commands under way; they will not be answered otherwise.
    pub(super) fn take_commands(&mut self) -> Vec<CommandId> {
        let commands = core::mem::take(&mut self.commands);
        let growth = self.growth.take().map(|growth| growth.command());
        let journal_growth = self.journal_growth.take().map(|growth| growth.command());
        let verification = self.verifier.take().map(|verifier| verifier.command());
        let promotion = commands.promotion.map(|promotion| match promotion {
            Promotion::Settling { id, .. } | Promotion::Opening { id, .. } => id,
        });
        commands
            .waiting
            .into_iter()
            .map(|(id, ..)| id)
            .chain(promotion)
            .chain(commands.demotion.map(|(id, _)| id))
            .chain(growth)
            .chain(journal_growth)
            .chain(verification)
            .chain(self.leasing.take_ending())
            .chain(self.draining.take().map(|draining| draining.command))
            .chain(self.handing_over.take())
            .chain(commands.stopping)
            .collect()
    }
}
