//! Two groups joined by a carrier that may fail at any instant, and the states that the primary went through.

use super::tests::{Disks, pick};
use super::*;
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandId, CommandReply, PromoteTarget},
    format::record::Kind,
    output::Frame,
    pair::{PairState, Role},
    request::{Access, Durability, Operation, Request},
    units::{FrameCount, NodeKey, Position, VOLUME_SIZE_MIN, WallClock},
};
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRng};
extern crate std;
use alloc::collections::BTreeMap;
use alloc::{string::String, vec};

pub(super) const SECTOR: u64 = 512;
/// Only the start of the volume is used, so that writes overlap.
pub(super) const AREA: u64 = 1 << 20;

pub(super) type State = Vec<u64>;

pub(super) struct Node {
    pub(super) disks: Disks,
    pub(super) group: Group,
    pub(super) operations: Vec<(DiskOperation, u64)>,
    pub(super) answers: BTreeMap<RequestId, Result<Reply, RequestError>>,
    pub(super) replies: BTreeMap<CommandId, Result<CommandReply, CommandError>>,
    pub(super) outbox: VecDeque<Frame>,
    pub(super) durable: Option<FrameCount>,
    pub(super) lease_mark: Option<u64>,
    pub(super) wants_reconnect: bool,
    pub(super) events: Vec<Event>,
    /// Bytes written to the pool.
    pub(super) pool_written: u64,
}

pub(super) struct Pair {
    pub(super) nodes: [Node; 2],
    pub(super) up: bool,
    pub(super) now: Now,
    pub(super) rng: TestRng,
    pub(super) next: u64,
    /// The primary, as the operator knows it.
    pub(super) primary: usize,
    pub(super) state: State,
    /// The state after each record, as the client made it.
    pub(super) states: BTreeMap<Position, State>,
    /// The states at restart points, by their record.
    pub(super) points: BTreeMap<Position, State>,
    /// Bytes of copied ranges that arrived.
    pub(super) copied: u64,
    /// How fast the nodes' clocks run, in hundredths.
    pub(super) rates: [u64; 2],
    /// After so many steps this node's daemon dies.
    pub(super) dies: Option<(u64, usize)>,
    /// Bytes that a slow line can carry now.
    pub(super) room: usize,
    /// How many generations and forks were looked at.
    pub(super) checked_generations: usize,
    pub(super) checked_forks: usize,
    /// How often a node was promoted to a generation before the last restart point.
    pub(super) promoted_to_older: usize,
}

/// What a clock shows that runs so fast.
fn at_rate(now: Now, hundredths: u64) -> Now {
    Now { monotonic: Monotonic(now.monotonic.0 * hundredths / 100), ..now }
}

fn open(disks: &mut Disks, now: Now) -> Node {
    let (group, _) = Group::open(disks, now).unwrap();
    Node {
        disks: disks.clone(),
        group,
        operations: vec![],
        answers: BTreeMap::new(),
        replies: BTreeMap::new(),
        outbox: VecDeque::new(),
        durable: None,
        lease_mark: None,
        wants_reconnect: false,
        events: vec![],
        pool_written: 0,
    }
}

fn create(node: u8, role: Role, peer: Option<NodeKey>, journal_size: u64, now: Now) -> Node {
    let mut disks = Disks::default();
    disks.set_size(MediumId::Journal, journal_size);
    disks.set_size(MediumId::Pool(VolumeId(1)), pool_size_for(VOLUME_SIZE_MIN, 64 << 10));
    let id = GroupId([7; 16]);
    let spec = GroupSpec { id, name: "g".parse().unwrap(), journal: MediumUuid([node; 16]), role, peer };
    format_journal(&mut disks, &spec).unwrap();
    let volume = VolumeSpec {
        id: VolumeId(1),
        name: "v".parse().unwrap(),
        size: VOLUME_SIZE_MIN,
        logical_block_size: 512,
        table_block_size: 64 << 10,
        pool: MediumUuid([node + 10; 16]),
        pool_path: String::new(),
    };
    format_pool(&mut disks, id, &volume).unwrap();
    let mut node = open(&mut disks, now);
    node.group.handle_add_volume(now, CommandId(0), &mut disks, volume);
    node.disks = disks;
    node
}

fn filled(value: u64, size: usize) -> Bytes {
    let mut buffer = AlignedBuffer::new(size);
    buffer.as_mut_slice().chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
    buffer.freeze()
}

impl Node {
    pub(super) fn drain(&mut self) {
        while let Some(output) = self.group.poll_output() {
            match output {
                Output::Disk(operation) => {
                    self.operations.push((operation, self.disks.writes()));
                }
                Output::Answer { id, result } => drop(self.answers.insert(id, result)),
                Output::CommandAnswer { id, result } => drop(self.replies.insert(id, result)),
                Output::Send(frame) => self.outbox.push_back(frame),
                Output::Durable(count) => self.durable = Some(count),
                Output::LeaseMark(number) => self.lease_mark = Some(number),
                Output::Reconnect => self.wants_reconnect = true,
                Output::Event(event) => self.events.push(event),
                Output::Consumed(_) => {}
            }
        }
    }

    pub(super) fn step(&mut self, now: Now, rng: &mut TestRng) -> bool {
        self.drain();
        if self.operations.is_empty() {
            return false;
        }
        let index = pick(rng, self.operations.len() as u64) as usize;
        let (operation, asked) = self.operations.swap_remove(index);
        if let (MediumId::Pool(_), DiskAction::Write { pieces, .. }) = (operation.medium, &operation.action) {
            self.pool_written += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        }
        let outcome = self.disks.carry_out(operation.medium, operation.action, asked);
        self.group.handle_disk(now, operation.id, outcome);
        self.drain();
        true
    }
}

impl Pair {
    pub(super) fn new(rng: TestRng) -> Self {
        Self::with_journals_of(16 << 20, rng)
    }

    fn with_journals_of(size: u64, rng: TestRng) -> Self {
        let now = Now { monotonic: Monotonic(1), wall: WallClock(1) };
        let nodes = [(1, Role::Primary, None), (2, Role::Secondary, Some(NodeKey([1; 32])))]
            .map(|(number, role, peer)| create(number, role, peer, size, now));
        let state = vec![0; (AREA / SECTOR) as usize];
        let states = BTreeMap::new();
        let (points, next, primary) = (BTreeMap::new(), 1, 0);
        let mut pair = Self {
            nodes,
            up: false,
            now,
            rng,
            next,
            primary,
            state,
            states,
            points,
            copied: 0,
            rates: [100; 2],
            dies: None,
            room: 0,
            checked_generations: 0,
            checked_forks: 0,
            promoted_to_older: 0,
        };
        pair.settle();
        pair
    }

    /// A pair whose copy has ended.
    pub(super) fn in_step() -> Self {
        Self::in_step_on(16 << 20)
    }

    /// The same with journals of this size.
    pub(super) fn in_step_on(journal_size: u64) -> Self {
        let rng = TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
        let mut pair = Self::with_journals_of(journal_size, rng);
        pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
        pair.connect();
        pair.settle();
        pair
    }

    /// The same; `seed` decides what happens next.
    pub(super) fn in_step_with(seed: [u8; 32]) -> Self {
        let mut pair = Self::in_step();
        pair.rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
        pair
    }

    /// Ends one operation, or carries one frame.
    pub(super) fn step(&mut self) -> bool {
        if let Some((left, node)) = &mut self.dies {
            if *left == 0 {
                let node = *node;
                self.dies = None;
                self.kill(node);
                return true;
            }
            *left -= 1;
        }
        for node in &mut self.nodes {
            node.drain();
            if core::mem::take(&mut node.wants_reconnect) {
                self.up = false;
            }
        }
        if !self.up && self.nodes.iter().any(|node| node.group.peer.connected || !node.outbox.is_empty()) {
            self.cut();
        }
        let start = pick(&mut self.rng, 2) as usize;
        for turn in 0..6 {
            let (index, what) = ((start + turn) % 2, (start + turn / 2 + self.next as usize) % 3);
            if self.turn(index, what) {
                return true;
            }
        }
        false
    }

    pub(super) fn turn(&mut self, index: usize, what: usize) -> bool {
        let [from_now, to_now] = [index, 1 - index].map(|index| self.clock(index));
        let [a, b] = &mut self.nodes;
        let (from, to) = if index == 0 { (a, b) } else { (b, a) };
        match what {
            0 => from.step(from_now, &mut self.rng),
            1 if self.up => {
                let Some(frame) = from.outbox.pop_front() else {
                    return false;
                };
                let body = [frame.header.clone(), frame.payload.clone()].concat();
                if body[5] == Kind::Copy as u8 {
                    self.copied += frame.payload.len() as u64;
                }
                from.group.handle_stream_credit(from_now, body.len() as u64);
                to.group.handle_frame(to_now, Bytes::from(body));
                true
            }
            2 if self.up => {
                let (count, number) = (from.durable.take(), from.lease_mark.take());
                if let Some(count) = count {
                    to.group.handle_durable(to_now, count);
                }
                if let Some(number) = number {
                    to.group.handle_lease_mark(to_now, number);
                }
                count.is_some() || number.is_some()
            }
            _ => false,
        }
    }

    pub(super) fn cut(&mut self) {
        self.up = false;
        for (node, rate) in self.nodes.iter_mut().zip(self.rates) {
            node.group.handle_peer_down(at_rate(self.now, rate));
            node.drain();
            node.outbox.clear();
            (node.durable, node.lease_mark) = (None, None);
            node.wants_reconnect = false;
        }
    }

    pub(super) fn connect(&mut self) {
        self.cut();
        self.up = true;
        for (node, rate) in self.nodes.iter_mut().zip(self.rates) {
            node.group.handle_peer_up(at_rate(self.now, rate));
            node.group.handle_stream_credit(at_rate(self.now, rate), 4 << 20);
        }
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            while self.step() {}
            let Some(at) = self.next_timeout() else { return };
            self.pass_to(at);
        }
        panic!("never settles");
    }

    /// When the first node wants to be called.
    pub(super) fn next_timeout(&self) -> Option<Monotonic> {
        let times = self.nodes.iter().zip(self.rates);
        times.filter_map(|(node, rate)| Some(Monotonic((node.group.poll_timeout()?.0 * 100).div_ceil(rate)))).min()
    }

    /// What a node's clock shows.
    pub(super) fn clock(&self, node: usize) -> Now {
        at_rate(self.now, self.rates[node])
    }

    /// Lets the clocks go on.
    pub(super) fn pass_to(&mut self, at: Monotonic) {
        self.now.monotonic = self.now.monotonic.max(at);
        for (node, rate) in self.nodes.iter_mut().zip(self.rates) {
            node.group.handle_timeout(at_rate(self.now, rate));
        }
    }

    /// Long enough for what has come to be destaged.
    pub(super) fn idle(&mut self) {
        self.pass_to(self.now.monotonic.after(200_000));
    }

    /// All that the peer has acknowledged, and the tables have durably, leaves the journal.
    pub(super) fn retire(&mut self, node: usize) {
        self.idle();
        self.settle();
        self.nodes[node].group.checkpoint.wanted = true;
        self.idle();
        self.settle();
        let group = &mut self.nodes[node].group;
        let limit = group.applied_durable().min(group.acknowledged_limit());
        group.retire_up_to(limit, |_| true);
    }

    pub(super) fn request(&mut self, index: usize, operation: Operation) -> RequestId {
        self.request_as(index, Access::ReadWrite, operation)
    }

    pub(super) fn request_as(&mut self, index: usize, access: Access, operation: Operation) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let request = Request { id, volume: VolumeId(1), access, operation };
        self.nodes[index].group.handle_request(self.clock(index), request).expect("not busy");
        self.nodes[index].drain();
        id
    }

    pub(super) fn command(&mut self, index: usize, command: Command) -> Result<CommandReply, CommandError> {
        let id = CommandId(self.next);
        self.next += 1;
        self.nodes[index].group.handle_command(self.clock(index), id, command);
        for _ in 0..10_000 {
            self.nodes[index].drain();
            if let Some(reply) = self.nodes[index].replies.remove(&id) {
                return reply;
            }
            if !self.step() {
                let Some(at) = self.next_timeout() else {
                    break;
                };
                self.pass_to(at);
            }
        }
        panic!("command never answered");
    }

    /// Writes a number that was not written before.
    pub(super) fn write_at(&mut self, offset: u64, size: usize) {
        let (value, sectors) = (self.next, offset / SECTOR..(offset + size as u64) / SECTOR);
        self.state[sectors.start as usize..sectors.end as usize].fill(value);
        let operation = Operation::Write { offset, data: filled(value, size), durability: Durability::Completed };
        self.request(self.primary, operation);
    }

    /// Writes anywhere in the volume, outside what the states know too.
    pub(super) fn write_at_unchecked(&mut self, offset: u64, size: usize) {
        let value = self.next;
        let sectors = offset / SECTOR..(offset + size as u64) / SECTOR;
        self.state
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| sectors.contains(&(*at as u64)))
            .for_each(|(_, sector)| *sector = value);
        let operation = Operation::Write { offset, data: filled(value, size), durability: Durability::Completed };
        self.request(self.primary, operation);
    }

    pub(super) fn write(&mut self) -> RequestId {
        let unit = [SECTOR, 4096, 64 << 10][pick(&mut self.rng, 3) as usize];
        let size = (1 + pick(&mut self.rng, 3)) * unit;
        let offset = pick(&mut self.rng, (AREA - size) / unit) * unit;
        let value = self.next;
        let sectors = (offset / SECTOR) as usize..((offset + size) / SECTOR) as usize;
        let operation = if pick(&mut self.rng, 6) == 0 {
            self.state[sectors].fill(0);
            Operation::Discard { offset, size }
        } else {
            self.state[sectors].fill(value);
            Operation::Write { offset, data: filled(value, size as usize), durability: Durability::Completed }
        };
        let id = self.request(self.primary, operation);
        // A held write has no number yet; the model wants to know it.
        while !self.nodes[self.primary].group.held.is_empty() {
            if !self.step() {
                let at = self.next_timeout().expect("held for ever");
                self.pass_to(at);
            }
        }
        let last = self.nodes[self.primary].group.stream.last;
        self.states.insert(last, self.state.clone());
        id
    }

    pub(super) fn restart_point(&mut self) {
        let label = "p".parse().unwrap();
        let state = self.state.clone();
        let reply = self.command(self.primary, Command::RestartPoint { label });
        if let Ok(CommandReply::RestartPoint { at, .. }) = reply {
            self.points.insert(at, state.clone());
            self.states.insert(at, state);
        }
    }

    /// The daemon dies and is started again: what was open before.
    pub(super) fn reopen(&mut self, index: usize) -> Group {
        self.cut();
        let mut disks = self.nodes[index].disks.clone();
        let opened = open(&mut disks, self.clock(index));
        core::mem::replace(&mut self.nodes[index], Node { disks, ..opened }).group
    }

    /// The daemon dies with whatever it had begun, and is started again.
    pub(super) fn kill(&mut self, index: usize) {
        let group = &self.nodes[index].group;
        let voids = group.pair.state == PairState::InitialCopy && self.nodes[1 - index].group.stream.copying;
        self.cut();
        for _ in 0..pick(&mut self.rng, 10) {
            let now = self.clock(index);
            self.nodes[index].step(now, &mut self.rng);
        }
        let before = self.nodes[index].group.position_of(self.nodes[index].group.completed).seq;
        self.reopen(index);
        assert!(self.nodes[index].group.stream.last.seq >= before, "completed records are gone");
        assert!(!voids || self.nodes[index].group.pair.state != PairState::Duplex, "an initial copy is forgotten");
        if index == self.primary {
            // What was not completed may be gone; the client goes on from what is there.
            self.forget_uncompleted();
        }
    }

    fn forget_uncompleted(&mut self) {
        let found = self.content_after_confirm(self.primary);
        self.state = found.clone();
        let last = self.nodes[self.primary].group.stream.last;
        self.states.insert(last, found);
    }

    pub(super) fn promote(&mut self, target: PromoteTarget) -> bool {
        let standby = 1 - self.primary;
        if self.nodes[standby].group.pair.role != Role::Secondary {
            return false;
        }
        self.cut();
        let StreamState { last: latest, copying, .. } = self.nodes[standby].group.stream.clone();
        let Ok(reply) = self.command(standby, Command::Promote { target, force: true }) else {
            return false;
        };
        let CommandReply::Promoted { at, .. } = reply else { panic!("{reply:?}") };
        let found = self.content(standby);
        // Who follows the primary is not taken back to a history that was given up.
        let primary = &self.nodes[self.primary].group.stream;
        let has = |at: Position| primary.end_of(at.epoch).is_some_and(|end| at.seq <= end);
        assert!(copying || !has(latest) || has(at), "promoted to {at}, which the primary never had");
        match target {
            PromoteTarget::RestartPoint | PromoteTarget::Generation(_) => {
                // A declared point, or the state before a copy.
                if let Some(expected) = self.points.get(&at).or(self.states.get(&at)) {
                    assert!(&found == expected, "promotion to {at} shows another state");
                }
            }
            PromoteTarget::Latest => {
                assert_eq!(at, latest);
                if let Some(expected) = self.states.get(&latest) {
                    assert!(&found == expected, "promotion to the latest state shows another one");
                }
            }
        }
        self.promoted_to_older += usize::from(matches!(target, PromoteTarget::Generation(_)));
        self.primary = standby;
        self.state = found.clone();
        let last = self.nodes[standby].group.stream.last;
        self.states.insert(last, found);
        true
    }

    /// The former primary is brought back as the standby; now and then what only it has is kept.
    pub(super) fn rejoin(&mut self) {
        let former = 1 - self.primary;
        self.connect();
        self.settle();
        if self.nodes[former].group.pair.role == Role::Fenced {
            let discard_fork = pick(&mut self.rng, 2) == 0;
            self.command(former, Command::Demote { discard_fork }).unwrap();
        }
    }

    pub(super) fn finish(&mut self) {
        self.rejoin();
        for _ in 0..20 {
            self.settle();
            if self.nodes[self.primary].group.pair.state == PairState::Duplex && self.up {
                break;
            }
            self.connect();
        }
        let primary = &self.nodes[self.primary].group;
        assert_eq!(primary.pair.state, PairState::Duplex);
        let expected = self.state.clone();
        assert!(self.content(self.primary) == expected, "the primary has not what was written");
        let found = self.content(1 - self.primary);
        assert!(found == expected, "the standby differs at the end");
        let last = self.nodes[self.primary].group.stream.last;
        assert_eq!(self.nodes[1 - self.primary].group.stream.last, last);
    }
}
