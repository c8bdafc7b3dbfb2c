//! What requests take of the processor: groups on media in memory, and two of them joined by a carrier's session, without a
//! disk, a socket, a thread or encryption. For micro-benchmarks and for counting instructions.

use anyhow::{Context, bail};
use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    command::{Command, CommandId, VolumeSpec},
    disk::{DiskAction, DiskError, DiskOutcome, MediumId, OperationId, Storage},
    group::{Group, GroupSpec, format_journal, format_pool, pool_size_for},
    output::Output,
    pair::Role,
    request::{Access, Durability, Operation, Reply, Request, RequestId},
    units::{FrameCount, GroupId, MediumUuid, Monotonic, NodeKey, Now, VolumeId, WallClock},
};
use replicator::{
    ChannelId, Frame,
    session::{Full, Session, SessionEvent, SessionOptions},
};
use std::collections::{BTreeMap, VecDeque};

/// Bytes of a request.
pub const BLOCK_SIZE: u64 = 4096;
/// Bytes of the volume.
pub const VOLUME_SIZE: u64 = 64 << 20;

const GROUP: GroupId = GroupId([7; 16]);
const CHANNEL: ChannelId = ChannelId([7; 16]);
const VOLUME: VolumeId = VolumeId(1);
const JOURNAL_SIZE: u64 = 64 << 20;
const TABLE_BLOCK_SIZE: u32 = 64 << 10;
/// Bytes of frames that a group may hand out ahead.
const CREDIT: u64 = 4 << 20;
/// Time that passes with each batch, in microseconds.
const STEP_MICROS: u64 = 500;
/// A pair that is not in step after so many steps never will be.
const STEP_COUNT_MAX: u32 = 100_000;

#[derive(Default)]
struct Media(BTreeMap<MediumId, Vec<u8>>);

impl Media {
    fn part(&mut self, medium: MediumId, offset: u64, size: u64) -> Result<&mut [u8], DiskError> {
        let medium = self.0.get_mut(&medium).ok_or(DiskError::NoSpace)?;
        medium.get_mut(offset as usize..(offset + size) as usize).ok_or(DiskError::NoSpace)
    }

    fn carry_out(&mut self, medium: MediumId, action: DiskAction) -> DiskOutcome {
        match action {
            DiskAction::Read { offset, size } => self.read(medium, offset, size),
            DiskAction::Write { mut offset, pieces } => {
                for piece in pieces {
                    let size = piece.len() as u64;
                    self.write(medium, offset, piece)?;
                    offset += size;
                }
                Ok(Bytes::new())
            }
            DiskAction::Sync | DiskAction::Release { .. } => Ok(Bytes::new()),
        }
    }
}

impl Storage for Media {
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError> {
        self.0.get(&medium).map(|medium| medium.len() as u64).ok_or(DiskError::NoSpace)
    }

    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError> {
        Ok(AlignedBuffer::copy_of(self.part(medium, offset, size.into())?).freeze())
    }

    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        self.part(medium, offset, data.len() as u64)?.copy_from_slice(&data);
        Ok(())
    }

    fn sync(&mut self, _: MediumId) -> Result<(), DiskError> {
        Ok(())
    }
}

/// A group whose media are memory.
pub struct Node {
    group: Group,
    media: Media,
    now: Now,
    data: Bytes,
    random: u64,
    next: u64,
    answered: u64,
    ended: Vec<(OperationId, DiskOutcome)>,
    outbox: VecDeque<Frame>,
    durable: Option<u64>,
    consumed: u64,
}

impl Node {
    /// A new group without a peer, with one volume of [`VOLUME_SIZE`] bytes.
    pub fn new() -> anyhow::Result<Self> {
        Self::create(1, Role::Primary)
    }

    fn create(number: u8, role: Role) -> anyhow::Result<Self> {
        let mut media = Media::default();
        media.0.insert(MediumId::Journal, vec![0; JOURNAL_SIZE as usize]);
        media.0.insert(MediumId::Pool(VOLUME), vec![0; pool_size_for(VOLUME_SIZE, TABLE_BLOCK_SIZE) as usize]);
        let peer = (role == Role::Secondary).then_some(NodeKey([1; 32]));
        let spec = GroupSpec { id: GROUP, name: "g".parse()?, journal: MediumUuid([number; 16]), role, peer };
        format_journal(&mut media, &spec)?;
        let volume = VolumeSpec {
            id: VOLUME,
            name: "v".parse()?,
            size: VOLUME_SIZE,
            logical_block_size: 512,
            table_block_size: TABLE_BLOCK_SIZE,
            pool: MediumUuid([number + 10; 16]),
            pool_path: String::new(),
        };
        format_pool(&mut media, GROUP, &volume)?;
        let now = Now { monotonic: Monotonic(1), wall: WallClock(1) };
        let mut group = Group::open(&mut media, now)?.0;
        group.handle_add_volume(now, CommandId(0), &mut media, volume);
        let data = AlignedBuffer::copy_of(&[0x5a; BLOCK_SIZE as usize]).freeze();
        let (ended, outbox) = (Vec::new(), VecDeque::new());
        let mut node = Self {
            group,
            media,
            now,
            data,
            random: 1,
            next: 1,
            answered: 0,
            ended,
            outbox,
            durable: None,
            consumed: 0,
        };
        node.run();
        Ok(node)
    }

    /// Carries out what the group asks for until it asks for nothing.
    fn run(&mut self) {
        loop {
            while let Some(output) = self.group.poll_output() {
                match output {
                    Output::Disk(operation) => {
                        let outcome = self.media.carry_out(operation.medium, operation.action);
                        self.ended.push((operation.id, outcome));
                    }
                    Output::Answer { result, .. } => {
                        self.answered += u64::from(matches!(result, Ok(Reply::Done | Reply::Data(_))));
                    }
                    Output::Send(frame) => {
                        self.outbox.push_back(Frame { channel: CHANNEL, header: frame.header, payload: frame.payload })
                    }
                    Output::Durable(count) => self.durable = Some(count.0),
                    Output::Consumed(bytes) => self.consumed += bytes,
                    Output::CommandAnswer { .. } | Output::LeaseMark(_) | Output::Reconnect | Output::Event(_) => {}
                }
            }
            if self.ended.is_empty() {
                return;
            }
            for (id, outcome) in std::mem::take(&mut self.ended) {
                self.group.handle_disk(self.now, id, outcome);
            }
        }
    }

    fn pass(&mut self) {
        self.now.monotonic.0 += STEP_MICROS;
        if self.group.poll_timeout().is_some_and(|at| at <= self.now.monotonic) {
            self.group.handle_timeout(self.now);
        }
    }

    fn request(&mut self, operation: Operation) {
        let request = Request { id: RequestId(self.next), volume: VOLUME, access: Access::ReadWrite, operation };
        self.next += 1;
        // One that finds no room is not answered, which is seen at the end.
        let _ = self.group.handle_request(self.now, request);
    }

    /// The offset of a block of the volume, at random.
    fn offset(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % (VOLUME_SIZE / BLOCK_SIZE) * BLOCK_SIZE
    }

    fn begin_writes(&mut self, count: u32) {
        for _ in 0..count {
            let offset = self.offset();
            self.request(Operation::Write { offset, data: self.data.clone(), durability: Durability::Completed });
        }
    }

    /// Writes so many blocks at random, handed in together.
    pub fn write(&mut self, count: u32) {
        self.begin_writes(count);
        self.run();
        self.pass();
        self.run();
    }

    /// Reads so many blocks at random, handed in together.
    pub fn read(&mut self, count: u32) {
        for _ in 0..count {
            let offset = self.offset();
            self.request(Operation::Read { offset, size: BLOCK_SIZE as u32 });
        }
        self.run();
    }

    /// How many requests were carried out.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// How many requests were made.
    pub fn requested(&self) -> u64 {
        self.next - 1
    }
}

/// Two nodes and the session between them, whose two links lose nothing.
pub struct Pair {
    nodes: [Node; 2],
    sessions: [Session; 2],
}

impl Pair {
    /// A pair in step.
    pub fn new() -> anyhow::Result<Self> {
        let nodes = [Node::create(1, Role::Primary)?, Node::create(2, Role::Secondary)?];
        let mut sessions = [1, 2].map(|name| Session::new(SessionOptions::default(), name, 2));
        for session in &mut sessions {
            (0..2).for_each(|link| session.handle_link(1, link, true));
        }
        let mut pair = Self { nodes, sessions };
        let primary = &mut pair.nodes[0];
        primary.group.handle_command(primary.now, CommandId(1), Command::CreatePair { peer: NodeKey([2; 32]) });
        for _ in 0..STEP_COUNT_MAX {
            pair.step();
            if pair.nodes[0].group.status(pair.nodes[0].now).pair == holdfast::pair::PairState::Duplex {
                return Ok(pair);
            }
        }
        bail!("The pair does not come in step")
    }

    /// Writes so many blocks at random on the primary, handed in together, and brings them to the standby.
    pub fn write(&mut self, count: u32) {
        self.nodes[0].begin_writes(count);
        self.step();
    }

    /// Lets both nodes and the carrier do what they can, and time pass.
    fn step(&mut self) {
        let mut is_busy = true;
        while is_busy {
            is_busy = false;
            for end in 0..2 {
                self.nodes[end].run();
                self.hand_over(end);
                is_busy |= self.carry(end);
                self.take_events(end);
            }
        }
        for (node, session) in self.nodes.iter_mut().zip(&mut self.sessions) {
            node.pass();
            session.handle_timeout(node.now.monotonic.0);
        }
    }

    fn hand_over(&mut self, end: usize) {
        let (node, session) = (&mut self.nodes[end], &mut self.sessions[end]);
        while let Some(frame) = node.outbox.pop_front() {
            let size = (frame.header.len() + frame.payload.len()) as u64;
            if let Err(Full(frame)) = session.send(frame) {
                node.outbox.push_front(frame);
                break;
            }
            node.group.handle_stream_credit(node.now, size);
        }
        session.consumed(std::mem::take(&mut node.consumed));
        if let Some(count) = node.durable.take() {
            session.mark_durable(node.now.monotonic.0, CHANNEL, count);
        }
    }

    fn carry(&mut self, from: usize) -> bool {
        let (mut is_busy, now) = (false, self.nodes[from].now.monotonic.0);
        for link in 0..2 {
            while let Some(datagram) = self.sessions[from].poll_transmit(now, link) {
                is_busy = true;
                // What is refused is missed, which is seen at the end.
                let _ = self.sessions[1 - from].handle_datagram(now, link, &datagram);
            }
        }
        is_busy
    }

    fn take_events(&mut self, end: usize) {
        let node = &mut self.nodes[end];
        while let Some(event) = self.sessions[end].poll_event() {
            match event {
                SessionEvent::Up { .. } => {
                    node.group.handle_peer_up(node.now);
                    node.group.handle_stream_credit(node.now, CREDIT);
                }
                SessionEvent::Frame(frame) => node.group.handle_frame(node.now, frame.body),
                SessionEvent::Durable { value, .. } => node.group.handle_durable(node.now, FrameCount(value)),
                SessionEvent::Down { .. } => node.group.handle_peer_down(node.now),
                SessionEvent::Link { .. } | SessionEvent::Writable => {}
            }
        }
    }

    /// Waits until the standby has made everything durable; how many writes that are.
    pub fn settle(&mut self) -> anyhow::Result<u64> {
        for _ in 0..STEP_COUNT_MAX {
            self.step();
            if self.nodes[0].group.status(self.nodes[0].now).lag.records == 0 {
                return Ok(self.nodes[0].answered);
            }
        }
        bail!("The standby lacks something for ever")
    }
}

/// A course of requests, as [`run`] takes it. A pair's are those of the primary, the session with its code, and the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Course {
    /// 4 KiB write, QD 1
    Write,
    /// 4 KiB write, QD 32
    WriteQd32,
    /// 4 KiB read, QD 32
    ReadQd32,
    /// 4 KiB write of a pair, QD 1
    PairWrite,
    /// 4 KiB write of a pair, QD 32
    PairWriteQd32,
}

/// Carries out so many requests of a course.
pub fn run(course: Course, count: u32) -> anyhow::Result<()> {
    let at_once = if matches!(course, Course::Write | Course::PairWrite) { 1 } else { 32 };
    let batches = count.div_ceil(at_once);
    if matches!(course, Course::PairWrite | Course::PairWriteQd32) {
        let mut pair = Pair::new()?;
        (0..batches).for_each(|_| pair.write(at_once));
        let answered = pair.settle()?;
        return check(answered, pair.nodes[0].requested());
    }
    let mut node = Node::new()?;
    match course {
        Course::ReadQd32 => {
            node.write(1024);
            (0..batches).for_each(|_| node.read(at_once));
        }
        _ => (0..batches).for_each(|_| node.write(at_once)),
    }
    check(node.answered(), node.requested())
}

fn check(answered: u64, requested: u64) -> anyhow::Result<()> {
    (answered == requested)
        .then_some(())
        .with_context(|| format!("{answered} of {requested} requests were carried out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_course_ends_with_all_its_requests_carried_out() {
        for course in Course::value_variants() {
            run(*course, 100).unwrap_or_else(|error| panic!("{course:?}: {error:#}"));
        }
    }

    #[test]
    fn a_request_that_is_not_carried_out_is_told() {
        let mut node = Node::new().expect("a group in memory");
        node.request(Operation::Read { offset: VOLUME_SIZE, size: BLOCK_SIZE as u32 });
        node.run();
        let told = check(node.answered(), node.requested()).expect_err("it lies beyond the volume").to_string();
        assert_eq!(told, "0 of 1 requests were carried out");
    }
}
