//! The core's state machine: a pair of groups whose disks, carrier, hosts and operators do what the input says. Frames between them
//! come as they were sent, altered under valid checksums, or from nowhere; media are altered the same way.

use crate::{
    input::{Input, padded},
    media::Media,
    node::{GROUP, Node, VOLUME},
};
use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    command::{Command, CommandId},
    format::record::{Kind, RECORD_HEADER_SIZE, Record},
    pair::Role,
    request::{Access, Durability, Operation, Request, RequestId},
    units::{Epoch, FrameCount, Generation, Monotonic, NodeKey, Now, Position, Seq, VolumeId, WallClock},
};
use std::sync::OnceLock;

/// Events of one input.
const EVENT_COUNT_MAX: usize = 400;
/// Steps of a phase in which nothing is hostile.
const CALM_STEP_COUNT: usize = 400;
/// How often time passes in it.
const CALM_PAUSE_COUNT: usize = 40;
const FRAME_SIZE_MAX: usize = 64 << 10;

const KINDS: [Kind; 18] = [
    Kind::Write,
    Kind::Discard,
    Kind::WriteZeroes,
    Kind::RestartPoint,
    Kind::EpochChange,
    Kind::Copy,
    Kind::CopyZeroes,
    Kind::CopyBegin,
    Kind::CopyEnd,
    Kind::Fork,
    Kind::Greeting,
    Kind::ForkRanges,
    Kind::Refusal,
    Kind::Compare,
    Kind::Differs,
    Kind::LeaseAsk,
    Kind::Fetch,
    Kind::Fetched,
];

/// Two nodes and the line between them.
struct World {
    nodes: [Node; 2],
    now: Now,
    up: bool,
}

/// The target `group`.
pub fn group(data: &[u8]) {
    let mut input = Input::new(data);
    let [north, south] = prepared(input.pick(SCENARIO_COUNT)).clone();
    let now = start();
    let open = |media| Node::open(media, now).expect("nothing is wrong with it");
    let mut world = World { nodes: [open(north), open(south)], now, up: false };
    if input.flag() {
        world.connect();
        world.calm();
    }
    for _ in 0..EVENT_COUNT_MAX {
        if input.is_empty() || !world.event(&mut input) {
            return;
        }
    }
}

/// The target `open`: media are altered under valid checksums, and what still opens is used.
pub fn open(data: &[u8]) {
    let mut input = Input::new(data);
    let scenario = prepared(input.pick(SCENARIO_COUNT));
    let mut media = scenario[input.pick(2)].clone();
    for _ in 0..1 + input.pick(4) {
        media.alter(GROUP, &mut input);
    }
    let now = start();
    let Some(mut node) = Node::open(media, now) else { return };
    node.drain();
    node.peer_up(now);
    let mut world = World { nodes: [node, Node::create(9, Role::Secondary, now)], now, up: false };
    world.calm();
    for access in [Access::ReadOnly, Access::ReadWrite, Access::Trial] {
        let operation = Operation::Read { offset: 0, size: 8 << 20 };
        world.request(0, access, operation);
    }
    world.write(0, 4096, 1);
    world.calm();
    while !input.is_empty() {
        let now = world.now;
        world.nodes[0].command(now, &mut input);
        world.calm();
    }
    let _ = world.nodes[0].group.status(world.now);
}

fn start() -> Now {
    Now { monotonic: Monotonic(1 << 40), wall: WallClock(1 << 50) }
}

const SCENARIO_COUNT: usize = 4;

/// The media of both nodes: of a group without a peer, before a copy, of a pair in step, and of one with a fork.
fn prepared(scenario: usize) -> &'static [Media; 2] {
    static PREPARED: [OnceLock<[Media; 2]>; SCENARIO_COUNT] = [const { OnceLock::new() }; SCENARIO_COUNT];
    PREPARED[scenario].get_or_init(|| {
        let now = start();
        let nodes = [Node::create(1, Role::Primary, now), Node::create(2, Role::Secondary, now)];
        let mut world = World { nodes, now, up: false };
        world.calm();
        for at in 0..6 {
            world.write(0, at * 8192, 12_288);
            world.command(0, Command::RestartPoint { label: "p".parse().expect("a short name") });
        }
        world.write(0, 0, 256 << 10);
        world.calm();
        if scenario > 0 {
            world.command(0, Command::KeepGenerations { count: 4, seconds: 0 });
            world.command(0, Command::CreatePair { peer: NodeKey([2; 32]) });
        }
        if scenario > 1 {
            world.connect();
            world.calm();
            world.write(0, 4096, 128 << 10);
            world.command(0, Command::RestartPoint { label: "q".parse().expect("a short name") });
            world.write(0, 1 << 20, 65_536);
            world.calm();
        }
        if scenario > 2 {
            world.cut();
            world.write(0, 8192, 65_536);
            world.calm();
            let target = holdfast::command::PromoteTarget::RestartPoint;
            world.command(1, Command::Promote { target, force: true });
            world.write(1, 12_288, 4096);
            world.calm();
        }
        world.nodes.map(|node| node.media)
    })
}

impl World {
    /// One thing that the input says; `false` if the world has ended.
    fn event(&mut self, input: &mut Input<'_>) -> bool {
        let what = input.byte();
        let at = usize::from(what >> 7);
        let now = self.now;
        match what & 31 {
            0..=3 => drop(self.nodes[at].step(now, input.pick(256))),
            4 => self.nodes[at].fail(now, input),
            5 | 6 => self.carry(at, |frame| frame),
            7 | 8 => self.carry(at, |frame| altered(&frame, input)),
            9 => {
                let frame = forged(input, self.nodes[at].group.status(now).head);
                self.nodes[at].group.handle_frame(now, frame);
            }
            10 => {
                let size = input.pick(200);
                self.nodes[at].group.handle_frame(now, Bytes::copy_from_slice(input.bytes(size)));
            }
            11..=13 => self.nodes[at].request(now, input),
            14..=17 => self.nodes[at].command(now, input),
            18 => self.pass(self.nodes[at].group.poll_timeout()),
            19 => self.pass(Some(now.monotonic.after(input.number(1 << 20) & 0xFFFF_FFFF))),
            20 => self.cut(),
            21 => self.connect(),
            22 => self.nodes[at].group.handle_durable(now, FrameCount(input.number(8))),
            23 => self.nodes[at].group.handle_lease_mark(now, input.number(1)),
            24 => self.nodes[at].group.handle_heartbeat(now),
            25 => self.tell(at),
            26 => self.calm(),
            27 => self.nodes[at].hold(input),
            28 => return self.kill(at, None),
            29 => return self.kill(at, Some(input)),
            30 => self.nodes[at].group.handle_stream_credit(now, input.number(1 << 20) & 0xFF_FFFF),
            _ => {
                // Another node than the one with which the session was begins anew.
                self.nodes[at].peer_down(now);
                self.nodes[at].peer_up(now);
            }
        }
        self.nodes[at].drain();
        let _ = self.nodes[at].group.status(now);
        true
    }

    /// The next frame to a node arrives.
    fn carry(&mut self, to: usize, change: impl FnOnce(Bytes) -> Bytes) {
        let Some(frame) = self.nodes[1 - to].outbox.pop_front() else { return };
        let (now, size) = (self.now, frame.len() as u64);
        self.nodes[1 - to].group.handle_stream_credit(now, size);
        self.nodes[1 - to].drain();
        self.nodes[to].group.handle_frame(now, change(frame));
        self.nodes[to].drain();
    }

    /// What the other node has made durable arrives.
    fn tell(&mut self, to: usize) {
        let (count, number) = (self.nodes[1 - to].durable.take(), self.nodes[1 - to].lease_mark.take());
        if let Some(count) = count {
            self.nodes[to].group.handle_durable(self.now, count);
        }
        if let Some(number) = number {
            self.nodes[to].group.handle_lease_mark(self.now, number);
        }
        self.nodes[to].drain();
    }

    fn pass(&mut self, at: Option<Monotonic>) {
        let Some(at) = at else { return };
        self.now.monotonic = self.now.monotonic.max(at);
        for node in &mut self.nodes {
            node.group.handle_timeout(self.now);
            node.drain();
        }
    }

    fn cut(&mut self) {
        self.up = false;
        for node in &mut self.nodes {
            node.peer_down(self.now);
        }
    }

    fn connect(&mut self) {
        self.cut();
        self.up = true;
        for node in &mut self.nodes {
            node.peer_up(self.now);
        }
    }

    /// A daemon dies, its media may be altered, and it is started again.
    fn kill(&mut self, at: usize, alter: Option<&mut Input<'_>>) -> bool {
        self.cut();
        let fresh = Node::create(9, Role::Secondary, self.now);
        let mut dead = std::mem::replace(&mut self.nodes[at], fresh);
        if let Some(input) = alter {
            dead.media.alter(GROUP, input);
        }
        let Some(node) = dead.reborn(self.now) else { return false };
        self.nodes[at] = node;
        true
    }

    /// For a while everything works.
    fn calm(&mut self) {
        let mut pauses = 0;
        for turn in 0..CALM_STEP_COUNT {
            for at in [0, 1] {
                self.nodes[at].drain();
                if std::mem::take(&mut self.nodes[at].wants_reconnect) && self.up {
                    self.connect();
                }
                self.nodes[at].step(self.now, turn);
                if self.up {
                    self.carry(at, |frame| frame);
                    self.tell(at);
                }
            }
            let busy =
                self.nodes.iter().any(|node| !node.operations.is_empty() || (self.up && !node.outbox.is_empty()));
            if !busy {
                let next = self.nodes.iter().filter_map(|node| node.group.poll_timeout()).min();
                pauses += 1;
                if next.is_none() || pauses > CALM_PAUSE_COUNT {
                    return;
                }
                self.pass(next);
            }
        }
    }

    fn request(&mut self, at: usize, access: Access, operation: Operation) {
        let request = Request { id: RequestId(u64::MAX), volume: VOLUME, access, operation };
        drop(self.nodes[at].group.handle_request(self.now, request));
        self.nodes[at].drain();
    }

    fn write(&mut self, at: usize, offset: u64, size: usize) {
        let mut buffer = AlignedBuffer::new(size);
        buffer.as_mut_slice().fill(offset as u8 | 1);
        let operation = Operation::Write { offset, data: buffer.freeze(), durability: Durability::Completed };
        self.request(at, Access::ReadWrite, operation);
    }

    fn command(&mut self, at: usize, command: Command) {
        self.nodes[at].group.handle_command(self.now, CommandId(u64::MAX), command);
        self.calm();
    }
}

/// A frame with another field or payload, and right checksums.
fn altered(frame: &Bytes, input: &mut Input<'_>) -> Bytes {
    let Ok((mut record, payload)) = Record::parse_frame(frame, GROUP) else { return frame.clone() };
    let mut payload = payload.to_vec();
    for _ in 0..1 + input.pick(3) {
        match input.pick(12) {
            0 => record.kind = input.choose(&KINDS),
            1 => record.at.epoch = Epoch(input.number(record.at.epoch.0)),
            2 => record.at.seq = Seq(input.number(record.at.seq.0)),
            3 => record.generation = Generation(input.number(record.generation.0.into()) as u32),
            4 => record.volume = VolumeId(input.u16()),
            5 => record.offset = input.number(record.offset),
            6 => record.size = input.number(record.size),
            7 => record.keeps = !record.keeps,
            8 => payload.truncate(usize::from(input.u16()) % (payload.len() + 1)),
            _ if payload.len() >= 8 => {
                let at = (usize::from(input.u16()) * 4 % (payload.len() - 4)).min(payload.len() - 8);
                let width = input.choose(&[1, 2, 4, 8]);
                let mut now = [0; 8];
                now[..width].copy_from_slice(&payload[at..at + width]);
                let number = input.number(u64::from_le_bytes(now));
                payload[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            _ => payload = input.bytes(16).to_vec(),
        }
    }
    if matches!(record.kind, Kind::Write | Kind::Copy) && input.flag() {
        record.size = payload.len() as u64;
    }
    framed(record, &payload)
}

/// A frame of any kind that fits where the group is, or nearly.
fn forged(input: &mut Input<'_>, head: Position) -> Bytes {
    let kind = input.choose(&KINDS);
    let epoch = Epoch(if input.pick(4) == 0 { input.number(head.epoch.0) } else { head.epoch.0 });
    let follows = u64::from(kind.is_sequenced());
    let seq = Seq(if input.pick(4) == 0 { input.number(head.seq.0) } else { head.seq.0.saturating_add(follows) });
    let unit = input.choose(&[512, 4096, 65_536]);
    let offset = if input.pick(8) == 0 { input.number(1 << 24) } else { u64::from(input.byte()) * unit };
    let size = usize::from(input.byte()) * if input.flag() { 512 } else { 1 };
    let payload = padded(input.bytes(size.min(64)), size.min(FRAME_SIZE_MAX));
    let record = Record {
        kind,
        at: Position { epoch, seq },
        generation: Generation(input.number(1) as u32),
        volume: if input.pick(8) == 0 { VolumeId(input.u16()) } else { VOLUME },
        offset,
        size: if input.pick(4) == 0 { input.number(unit) } else { payload.len() as u64 },
        payload_size: 0,
        payload_checksum: 0,
        keeps: input.flag(),
        time: WallClock(input.number(0)),
    };
    let payload = if kind.zeroes() { Vec::new() } else { payload };
    framed(record, &payload)
}

fn framed(record: Record, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(RECORD_HEADER_SIZE + payload.len());
    frame.extend_from_slice(&record.carrying(payload).encode(GROUP));
    frame.extend_from_slice(payload);
    frame.into()
}
