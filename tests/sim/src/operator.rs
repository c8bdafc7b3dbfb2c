//! Operators: what they order, and what its answer promises.

use crate::{
    checks::Todo,
    client::{Inquiry, filled},
    history::{Content, Place, Point},
    machine::key,
    outside::{Asked, Expect, Pending, Serving},
    script::Errand,
    world::{What, World},
};
use holdfast::{
    command::{Command, CommandError, CommandId, CommandReply, GenerationId, GenerationKind, PromoteTarget},
    disk::MediumId,
    group::grown_pool_size,
    pair::{ApplyPolicy, Level, Role, Takeover, WithoutPeer},
    request::{Access, Durability, Operation},
    units::{Generation, VolumeId},
};
use link_model::Random;
use std::collections::BTreeMap;

/// How often somebody asks again for a promotion that is refused for the moment, and after how many microseconds.
pub const INSISTENCE: u32 = 1_000;
const INSIST_MICROS: u64 = 10_000;

/// What operators wait for.
#[derive(Default)]
pub struct Errands(BTreeMap<CommandId, Open>);

/// A command that waits for its answer.
struct Open {
    node: usize,
    group: usize,
    wanted: Wanted,
    name: String,
}

/// Why somebody waits for an answer.
pub enum Wanted {
    /// A restart point, on this branch after at least so many operations.
    Point(usize, usize),
    /// A promotion; of a switch: the node that stepped down; how often it is to be asked for again.
    Promotion(Option<usize>, u32),
    /// A step down in good order, from this branch.
    HandOver(usize),
    /// A former primary's step down; what it held, if that must be kept as the fork of this name.
    Demotion(Option<(Content, String)>),
    /// This level.
    Level(Level),
    /// This choice.
    WithoutPeer(WithoutPeer),
    /// A standby's larger volume; the primary's is next.
    Growth(VolumeId, u64, u64),
    /// Everything is compared.
    Verification,
    /// A pair.
    Pair,
    /// The end of a pair.
    NoPair,
    /// A trial.
    Trial,
    /// An end in good order.
    Stop,
    /// The answer does not matter.
    Nothing,
}

impl Errands {
    /// Whether a promotion waits for its answer.
    pub fn promotes(&self, node: usize, group: usize) -> bool {
        let mut of_it = self.0.values().filter(|open| (open.node, open.group) == (node, group));
        of_it.any(|open| matches!(open.wanted, Wanted::Promotion(..)))
    }

    /// Whether a command to a group waits for its answer.
    pub fn is_open(&self, group: usize) -> bool {
        self.0.values().any(|open| open.group == group)
    }

    /// The restart points that are asked for, with their branch and least count: the standby may have one before it is answered.
    pub fn points(&self, group: usize) -> Vec<(usize, usize)> {
        let of_it = self.0.values().filter(|open| open.group == group);
        of_it
            .filter_map(
                |open| if let Wanted::Point(branch, count) = open.wanted { Some((branch, count)) } else { None },
            )
            .collect()
    }

    /// Nobody answers any more: the restart points that were asked for, with their group, branch and least count.
    pub fn forget(&mut self, node: usize) -> Vec<(usize, usize, usize)> {
        let gone = self.0.extract_if(.., |_, open| open.node == node);
        gone.filter_map(|(_, open)| match open.wanted {
            Wanted::Point(branch, count) => Some((open.group, branch, count)),
            _ => None,
        })
        .collect()
    }

    /// What waits, for a message.
    pub fn names(&self) -> Vec<String> {
        self.0.values().map(|open| format!("{} at node {} group {}", open.name, open.node, open.group)).collect()
    }
}

impl World {
    /// Orders something.
    pub(crate) fn order(&mut self, node: usize, group: usize, command: Command, wanted: Wanted) {
        if !self.is_awake(node) {
            return;
        }
        let id = CommandId(self.number());
        let now = self.nodes[node].clock.now(self.now);
        self.trace.note(self.now, || format!("node {node} group {group}: {command:?}"));
        self.trace.mark(&format!("command: {}", first_word(&command)));
        if matches!(command, Command::SetLease { millis: 0, force: true }) {
            // Whoever says so knows that nobody else serves.
            self.outside[group].forget_fences();
        }
        if let Command::Promote { target, force } = command
            && !self.errands.promotes(node, group)
        {
            self.outside[group].hint[node] = Some((target, force));
        }
        if let Command::DropGeneration(name @ GenerationId::Fork(_)) = command {
            self.outside[group].dropped.insert((node, name.to_string()));
        }
        let Some(core) = self.group(node, group) else { return };
        let name = first_word(&command);
        core.handle_command(now, id, command);
        self.errands.0.insert(id, Open { node, group, wanted, name });
        self.pump(node);
    }

    /// A node of this role that runs.
    pub(crate) fn with_role(&mut self, group: usize, role: Role) -> Option<usize> {
        (0..2).find(|node| {
            self.is_awake(*node)
                && self.slot(*node, group).is_some_and(|slot| slot.group.is_some() && slot.view.role == role)
        })
    }

    pub(crate) fn restart_point(&mut self, salt: u64) {
        let mut chance = Random::new(salt);
        let group = chance.below(self.config.group_count as u64) as usize;
        let Some((node, branch)) = self.serving(group, &mut chance) else { return };
        let count = self.outside[group].history.branches[branch].answered;
        let Ok(label) = "point".parse() else { return };
        self.order(node, group, Command::RestartPoint { label }, Wanted::Point(branch, count));
    }

    pub(crate) fn promote(&mut self, salt: u64) {
        let mut chance = Random::new(salt);
        let group = chance.below(self.config.group_count as u64) as usize;
        let Some(node) = self.with_role(group, Role::Secondary) else { return };
        // Nobody takes one for a standby that is still being made.
        let volume_count = self.outside[group].volume_count;
        if self.group(node, group).is_none_or(|core| core.label().volumes.len() < volume_count) {
            return;
        }
        let target = match chance.below(5) {
            0 | 1 => PromoteTarget::Latest,
            2 | 3 => PromoteTarget::RestartPoint,
            _ => {
                let now = self.nodes[node].clock.now(self.now);
                let Some(core) = self.group(node, group) else { return };
                let kept = core.status(now).generations;
                let number = kept.iter().find_map(|kept| match kept.name {
                    GenerationId::Number(number) if kept.kind == GenerationKind::RestartPoint => Some(number),
                    _ => None,
                });
                PromoteTarget::Generation(number.unwrap_or(Generation(chance.below(9) as u32)))
            }
        };
        let force = chance.below(3) == 0;
        let insistence = if chance.below(2) == 0 { INSISTENCE } else { 0 };
        self.order(node, group, Command::Promote { target, force }, Wanted::Promotion(None, insistence));
    }

    /// Promotes a standby that was not to be promoted a moment ago.
    pub(crate) fn insist(&mut self, node: usize, group: usize, left: u32) {
        let Some((target, force)) = self.outside[group].hint[node] else { return };
        if self.slot(node, group).is_some_and(|slot| slot.view.role == Role::Secondary) {
            self.order(node, group, Command::Promote { target, force }, Wanted::Promotion(None, left));
        }
    }

    pub(crate) fn promote_to(
        &mut self,
        node: usize,
        group: usize,
        target: PromoteTarget,
        force: bool,
        former: Option<usize>,
    ) {
        self.order(node, group, Command::Promote { target, force }, Wanted::Promotion(former, 0));
    }

    pub(crate) fn demote(&mut self, salt: u64) {
        let group = salt as usize % self.config.group_count;
        let Some(node) = self.with_role(group, Role::Fenced) else { return };
        self.settle(node, group);
        let now = self.nodes[node].clock.now(self.now);
        let found = self.read_all(node, group, Access::ReadOnly);
        let Some(core) = self.group(node, group) else { return };
        let fork = core.status(now).fork.filter(|fork| fork.record_count > 0);
        let discard_fork = salt.is_multiple_of(3);
        let kept = match (found, fork) {
            (Some(Ok(content)), Some(fork)) if !discard_fork => Some((content, fork.name)),
            _ => None,
        };
        self.order(node, group, Command::Demote { discard_fork }, Wanted::Demotion(kept));
    }

    pub(crate) fn switch(&mut self, salt: u64) {
        let mut chance = Random::new(salt);
        let group = chance.below(self.config.group_count as u64) as usize;
        let Some((node, branch)) = self.serving(group, &mut chance) else { return };
        if self.with_role(group, Role::Secondary).is_some() {
            self.order(node, group, Command::HandOver, Wanted::HandOver(branch));
        }
    }

    pub(crate) fn command(&mut self, errand: Errand, salt: u64) {
        let mut chance = Random::new(salt);
        let group = chance.below(self.config.group_count as u64) as usize;
        let any = chance.below(2) as usize;
        let primary = self.with_role(group, Role::Primary);
        let standby = self.with_role(group, Role::Secondary);
        let coin = chance.below(2) == 0;
        let (node, command, wanted) = match errand {
            Errand::Suspend => (primary, Command::SuspendPair { now: coin }, Wanted::Nothing),
            Errand::Resume => (primary, Command::ResumePair { compare: coin }, Wanted::Nothing),
            Errand::Verify => (primary, Command::VerifyPair { mend: coin }, Wanted::Verification),
            Errand::Level if coin => {
                let level = [Level::Local, Level::Remote, Level::Remote][chance.below(3) as usize];
                // Until it is answered nobody may count on either.
                if let Some(slot) = primary.and_then(|node| self.slot(node, group)) {
                    slot.view.level = Level::Local;
                }
                (primary, Command::SetLevel(level), Wanted::Level(level))
            }
            Errand::Level => {
                let choice = [WithoutPeer::Continue, WithoutPeer::Freeze][chance.below(2) as usize];
                if let Some(slot) = primary.and_then(|node| self.slot(node, group)) {
                    slot.view.without_peer = WithoutPeer::Continue;
                }
                (primary, Command::SetWithoutPeer(choice), Wanted::WithoutPeer(choice))
            }
            Errand::Policy => {
                let policy = if coin { ApplyPolicy::Delayed } else { ApplyPolicy::Snapshot };
                (Some(any), Command::SetPolicy(policy), Wanted::Nothing)
            }
            Errand::Lease => {
                let millis = [0, 500, 2_000, 6_000][chance.below(4) as usize];
                (primary, Command::SetLease { millis, force: chance.below(6) == 0 }, Wanted::Nothing)
            }
            Errand::Takeover => {
                let after_millis = 1_000 + chance.below(5_000) as u32;
                let takeover = (chance.below(4) != 0).then_some(Takeover { after_millis, to_latest: coin });
                (Some(any), Command::SetTakeover(takeover), Wanted::Nothing)
            }
            Errand::Keep => {
                let (count, seconds) = (1 + chance.below(6) as u16, chance.below(30) as u32);
                (Some(any), Command::KeepGenerations { count, seconds }, Wanted::Nothing)
            }
            Errand::Drop => {
                let now = self.nodes[any].clock.now(self.now);
                let Some(core) = self.group(any, group) else { return };
                let kept = core.status(now).generations;
                let Some(kept) = kept.get(chance.below(kept.len().max(1) as u64) as usize) else { return };
                (Some(any), Command::DropGeneration(kept.name), Wanted::Nothing)
            }
            Errand::BeginTrial => (standby, Command::BeginTrial { generation: None }, Wanted::Trial),
            Errand::TryOut => return self.try_out(group, &mut chance),
            Errand::EndTrial => {
                self.outside[group].trial = None;
                (Some(any), Command::EndTrial, Wanted::Nothing)
            }
            Errand::GrowVolume => return self.grow_volume(group, &mut chance),
            Errand::GrowJournal => {
                let size = (16 + chance.below(8)) << 20;
                self.nodes[any].media[group].set_size_if_there(MediumId::Journal, size);
                (Some(any), Command::GrowJournal { size }, Wanted::Nothing)
            }
            Errand::DeletePair => (primary, Command::DeletePair, Wanted::NoPair),
            Errand::Nonsense if coin => return self.ask_nonsense(any, group, &mut chance),
            Errand::Nonsense => (Some(any), nonsense(&mut chance), Wanted::Nothing),
        };
        if let Some(node) = node {
            self.order(node, group, command, wanted);
        }
    }

    /// A client of a trial, which knows what it has written there.
    fn try_out(&mut self, group: usize, chance: &mut Random) {
        let outside = &mut self.outside[group];
        let Some(node) = outside.trial.as_ref().map(|trial| trial.node) else { return };
        let is_busy = |pending: &Pending| matches!(pending.asked, Asked::TrialWrite { .. } | Asked::TrialRead { .. });
        if outside.pending.values().any(is_busy) {
            return;
        }
        let sector = chance.below(outside.sector_count as u64 - 8) as usize;
        let (offset, sectors) = (sector as u64 * 512, sector..sector + 8);
        let (operation, asked) = if chance.below(2) == 0 {
            let value = outside.history.new_value();
            let data = filled(value, 4096);
            let operation = Operation::Write { offset, data, durability: Durability::Completed };
            (operation, Asked::TrialWrite { sectors, value })
        } else {
            (Operation::Read { offset, size: 4096 }, Asked::TrialRead { sectors })
        };
        if self.is_awake(node) {
            self.submit(Inquiry { node, group, volume: 0, access: Access::Trial, operation, asked });
        }
    }

    /// As the shell does it: both pools, then the standby's volume, then the primary's.
    pub(crate) fn grow_volume(&mut self, group: usize, chance: &mut Random) {
        let Some(primary) = self.with_role(group, Role::Primary) else { return };
        let index = chance.below(self.outside[group].volume_count as u64) as usize;
        let Some(core) = self.group(primary, group) else { return };
        let label = core.label();
        let Some(spec) = label.volumes.get(index).cloned() else { return };
        let size = spec.size + ((1 + chance.below(3)) << 20);
        self.grow_to(primary, group, spec.id, spec.table_block_size, size, label.peer.is_some());
    }

    pub(crate) fn grow_to(
        &mut self,
        primary: usize,
        group: usize,
        volume: VolumeId,
        block: u32,
        size: u64,
        paired: bool,
    ) {
        let pool_size = grown_pool_size(size, block);
        for node in 0..2 {
            self.nodes[node].media[group].set_size_if_there(MediumId::Pool(volume), pool_size);
        }
        let command = Command::GrowVolume { volume, size, pool_size };
        if !paired {
            return self.order(primary, group, command, Wanted::Nothing);
        }
        if self.slot(1 - primary, group).is_some_and(|slot| slot.view.role == Role::Secondary && slot.has_peer) {
            self.order(1 - primary, group, command, Wanted::Growth(volume, size, pool_size));
        }
    }

    /// A group answers an operator.
    pub(crate) fn command_answered(
        &mut self,
        node: usize,
        group: usize,
        id: CommandId,
        result: Result<CommandReply, CommandError>,
    ) {
        let Some(Open { wanted, .. }) = self.errands.0.remove(&id) else { return };
        self.trace.note(self.now, || format!("node {node} group {group}: answer {result:?}"));
        if let Err(error) = &result {
            self.trace.mark(&format!("refused: {}", first_word(error)));
        }
        let shown = self.nodes[node].clock.at(self.now);
        match (wanted, result) {
            (Wanted::Point(branch, count), Ok(CommandReply::RestartPoint { generation, .. })) => {
                let history = &mut self.outside[group].history;
                let line = &mut history.branches[branch];
                line.durable = line.durable.max(count);
                line.declared = line.declared.max(generation.0);
                let counts = count..line.count + 1;
                let origin = history.points.len();
                history.points.push(Point { generation: generation.0, origin, branch, counts });
            }
            (Wanted::Point(branch, count), Err(_)) => self.outside[group].history.point_is_unknown(branch, count),
            (Wanted::Promotion(..), Ok(CommandReply::Promoted { generation, .. })) => {
                let generation = generation.map(|generation| generation.0);
                let outside = &mut self.outside[group];
                if let Serving::Unsettled(Expect::Promotion { generation: told, .. }) = &mut outside.serving[node] {
                    *told = generation;
                } else {
                    outside.told_generation[node] = generation;
                }
                self.todo.push_back(Todo::Settle(node, group));
            }
            (Wanted::Promotion(None, left), Err(CommandError::Leased { .. } | CommandError::PrimaryHeard { .. }))
                if left > 0 =>
            {
                self.plan(self.now + INSIST_MICROS, What::Insist(node, group, left - 1));
            }
            (Wanted::Promotion(Some(former), _), Err(_)) => {
                // Nobody else is primary, and nobody has anything newer.
                self.promote_to(former, group, PromoteTarget::Latest, true, None);
            }
            (Wanted::HandOver(branch), Ok(_)) => {
                let outside = &mut self.outside[group];
                let count = outside.history.branches[branch].answered;
                outside.handed_over[1 - node] = Some(Place { branch, count });
                self.promote_to(1 - node, group, PromoteTarget::Latest, false, Some(node));
            }
            (Wanted::Demotion(Some((content, name))), Ok(_)) => {
                self.todo.push_back(Todo::Fork(node, group, Box::new((content, name))))
            }
            (Wanted::Level(level), Ok(_)) => {
                if let Some(slot) = self.slot(node, group) {
                    slot.view.level = level;
                }
            }
            (Wanted::WithoutPeer(choice), Ok(_)) => {
                if let Some(slot) = self.slot(node, group) {
                    slot.view.without_peer = choice;
                }
            }
            (Wanted::Growth(volume, size, pool_size), Ok(_)) => {
                let command = Command::GrowVolume { volume, size, pool_size };
                self.order(1 - node, group, command, Wanted::Nothing);
            }
            (Wanted::Verification, Ok(CommandReply::Verified { differing_bytes, differing, .. })) => {
                // What cannot be read counts as different.
                let is_excused = self.nodes.iter().any(|node| node.ills.rotten || node.ills.has_failed);
                assert!(differing_bytes == 0 || is_excused, "I2: the nodes of group {group} differ: {differing:?}");
            }
            (Wanted::Pair, Ok(_)) => {
                if let Some(daemon) = &mut self.nodes[node].daemon {
                    daemon.restart_soon(shown);
                }
            }
            (Wanted::NoPair, Ok(_)) => self.outside[group].forget_promises(),
            // Without room it is stopped too, but out of order.
            (Wanted::Stop, result @ (Ok(_) | Err(CommandError::Full))) => {
                // All that was answered is durable from now on.
                if result.is_ok()
                    && let Serving::Branch(branch) = self.outside[group].serving[node]
                {
                    let line = &mut self.outside[group].history.branches[branch];
                    line.durable = line.answered;
                }
                if let Some(slot) = self.slot(node, group) {
                    slot.view.closed = true;
                }
            }
            (Wanted::Trial, Ok(_)) => self.todo.push_back(Todo::Trial(node, group)),
            _ => {}
        }
    }
}

/// What a command or an error is called.
pub(crate) fn first_word(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}");
    text.chars().take_while(|letter| letter.is_alphanumeric()).collect()
}

fn nonsense(chance: &mut Random) -> Command {
    let volume = VolumeId(chance.below(5) as u16 + 7);
    match chance.below(14) {
        0 => Command::RemoveVolume(volume),
        1 => Command::GrowVolume { volume, size: chance.next_u64(), pool_size: chance.next_u64() },
        2 => Command::GrowVolume { volume: VolumeId(1), size: chance.next_u64(), pool_size: chance.below(16 << 20) },
        3 => Command::GrowJournal { size: chance.below(16 << 20) },
        4 => Command::CreatePair { peer: key(chance.below(2) as usize) },
        5 => Command::KeepGenerations { count: chance.next_u64() as u16, seconds: 0 },
        6 => Command::DropGeneration(GenerationId::Number(Generation(chance.below(20) as u32))),
        7 => Command::BeginTrial { generation: Some(GenerationId::Number(Generation(chance.below(9) as u32))) },
        8 => Command::EndTrial,
        9 => Command::Promote { target: PromoteTarget::Generation(Generation(chance.below(9) as u32)), force: false },
        10 => Command::Demote { discard_fork: false },
        11 => Command::SetLease { millis: u32::MAX, force: false },
        12 => Command::ResumePair { compare: true },
        _ => Command::VerifyPair { mend: false },
    }
}
