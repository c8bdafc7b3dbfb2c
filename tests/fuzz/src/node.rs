//! One group and its shell in memory, driven by a fuzzer's decisions.

use crate::{input::Input, media::Media};
use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    command::{Command, CommandId, GenerationId, PromoteTarget, VolumeSpec},
    disk::{DiskAction, DiskError, DiskOperation, MediumId},
    format::text::Name,
    group::{Group, GroupSpec, LoadError, OpenError, format_journal, format_pool, grown_pool_size, pool_size_for},
    output::Output,
    pair::{ApplyPolicy, Level, Role, Takeover, WithoutPeer},
    request::{Access, Durability, Operation, Request, RequestId, Space},
    units::{Epoch, FrameCount, Generation, GroupId, MediumUuid, NodeKey, Now, Order, VOLUME_SIZE_MIN, VolumeId},
};
use std::collections::VecDeque;

/// The group of both nodes.
pub const GROUP: GroupId = GroupId([7; 16]);
/// Their volume.
pub const VOLUME: VolumeId = VolumeId(1);
/// One event never leads to more outputs than this.
const OUTPUT_COUNT_MAX: usize = 200_000;
const JOURNAL_SIZE: u64 = 16 << 20;
const BLOCK_SIZE: u32 = 64 << 10;

/// See the module.
pub struct Node {
    /// What it keeps.
    pub media: Media,
    /// The group.
    pub group: Group,
    /// Disk operations in flight.
    pub operations: Vec<DiskOperation>,
    /// Frames for the peer.
    pub outbox: VecDeque<Bytes>,
    /// What the peer is to be told.
    pub durable: Option<FrameCount>,
    /// The same.
    pub lease_mark: Option<u64>,
    /// The group wants another session.
    pub wants_reconnect: bool,
    held: Vec<Order>,
    next: u64,
}

impl Node {
    /// A new group on fresh media.
    pub fn create(number: u8, role: Role, now: Now) -> Self {
        let mut media = Media::default();
        media.enlarge(MediumId::Journal, JOURNAL_SIZE);
        media.enlarge(MediumId::Pool(VOLUME), pool_size_for(VOLUME_SIZE_MIN, BLOCK_SIZE));
        let peer = (role == Role::Secondary).then_some(NodeKey([1; 32]));
        let name = |text: &str| text.parse::<Name>().expect("a short name");
        let spec = GroupSpec { id: GROUP, name: name("g"), journal: MediumUuid([number; 16]), role, peer };
        format_journal(&mut media, &spec).expect("the medium is large enough");
        let volume = VolumeSpec {
            id: VOLUME,
            name: name("v"),
            size: VOLUME_SIZE_MIN,
            logical_block_size: 512,
            table_block_size: BLOCK_SIZE,
            pool: MediumUuid([number + 10; 16]),
            pool_path: String::new(),
        };
        format_pool(&mut media, GROUP, &volume).expect("the medium is large enough");
        let mut node = Self::open(media, now).expect("nothing is wrong with it");
        node.group.handle_add_volume(now, CommandId(0), &mut node.media, volume);
        node.drain();
        node
    }

    /// Opens what media hold. A digest that is wrong because pages were altered is made right.
    pub fn open(mut media: Media, now: Now) -> Option<Self> {
        for _ in 0..3 {
            match Group::open(&mut media, now) {
                Ok((group, _)) => return Some(Self::with(group, media)),
                Err(OpenError::Pool { volume, source: LoadError::Damaged { found, .. } }) => {
                    media.mend_digest(volume, found);
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return None;
                }
            }
        }
        None
    }

    fn with(group: Group, media: Media) -> Self {
        Self {
            media,
            group,
            operations: Vec::new(),
            outbox: VecDeque::new(),
            durable: None,
            lease_mark: None,
            wants_reconnect: false,
            held: Vec::new(),
            next: 1,
        }
    }

    /// Takes what the group puts out.
    pub fn drain(&mut self) {
        for _ in 0..OUTPUT_COUNT_MAX {
            let Some(output) = self.group.poll_output() else { return };
            match output {
                Output::Disk(operation) => self.operations.push(operation),
                Output::Send(frame) => self.outbox.push_back([frame.header, frame.payload].concat().into()),
                Output::Durable(count) => self.durable = Some(count),
                Output::LeaseMark(number) => self.lease_mark = Some(number),
                Output::Reconnect => self.wants_reconnect = true,
                Output::Answer { .. } | Output::CommandAnswer { .. } | Output::Consumed(_) => {}
                // Events are written to the log.
                Output::Event(event) => assert!(!format!("{event:?}").is_empty()),
            }
        }
        panic!("the group puts out more without end");
    }

    /// Ends one operation in flight as it should.
    pub fn step(&mut self, now: Now, which: usize) -> bool {
        if self.operations.is_empty() {
            return false;
        }
        let operation = self.operations.swap_remove(which % self.operations.len());
        let outcome = self.media.carry_out(operation.medium, operation.action);
        self.group.handle_disk(now, operation.id, outcome);
        self.drain();
        true
    }

    /// Ends one operation in another way: an error, or a read of something else.
    pub fn fail(&mut self, now: Now, input: &mut Input<'_>) {
        if self.operations.is_empty() {
            return;
        }
        let operation = self.operations.swap_remove(input.pick(self.operations.len()));
        let outcome = match (input.pick(5), &operation.action) {
            (0, _) => Err(DiskError::NoSpace),
            (1, _) => Err(DiskError::Short { moved: 512, expected: 4096 }),
            (2, DiskAction::Read { size, .. }) => {
                let mut buffer = AlignedBuffer::new(*size as usize);
                buffer.as_mut_slice().fill(input.byte());
                Ok(buffer.freeze())
            }
            (3, DiskAction::Read { .. }) => {
                let found = self.media.carry_out(operation.medium, operation.action);
                found.map(|bytes| {
                    let mut copy = AlignedBuffer::copy_of(&bytes);
                    let at = usize::from(input.u16()) * 8 % bytes.len();
                    copy.as_mut_slice()[at] ^= 1 << input.pick(8);
                    copy.freeze()
                })
            }
            _ => Err(DiskError::Failed { errno: 5 }),
        };
        self.group.handle_disk(now, operation.id, outcome);
    }

    /// A host's request.
    pub fn request(&mut self, now: Now, input: &mut Input<'_>) {
        let access = match input.pick(8) {
            0 => Access::ReadOnly,
            1 => Access::Trial,
            2 => Access::Generation(self.held.last().copied().unwrap_or(Order(input.number(1)))),
            _ => Access::ReadWrite,
        };
        let unit = input.choose(&[512, 4096, 65_536]);
        let (offset, size) = if input.pick(8) == 0 {
            (input.number(VOLUME_SIZE_MIN), input.number(512))
        } else {
            (u64::from(input.byte()) * unit, (1 + input.pick(4) as u64) * unit)
        };
        let durability = input.choose(&[Durability::Completed, Durability::Durable]);
        let operation = match input.pick(8) {
            0 => Operation::Read { offset, size: size.min(u64::from(u32::MAX)) as u32 },
            1 => Operation::Flush,
            2 => Operation::Discard { offset, size },
            3 => {
                let space = input.choose(&[Space::Release, Space::Keep]);
                Operation::WriteZeroes { offset, size, space, durability }
            }
            4 => Operation::Extents { offset, size },
            _ => {
                let mut buffer = AlignedBuffer::new(size.min(1 << 20) as usize);
                buffer.as_mut_slice().fill(input.byte());
                Operation::Write { offset, data: buffer.freeze(), durability }
            }
        };
        let volume = if input.pick(16) == 0 { VolumeId(input.u16()) } else { VOLUME };
        let request = Request { id: RequestId(self.next), volume, access, operation };
        self.next += 1;
        // A shell would offer it again.
        drop(self.group.handle_request(now, request));
    }

    /// An operator's command.
    pub fn command(&mut self, now: Now, input: &mut Input<'_>) {
        let generation = Generation(input.byte().into());
        let name = match input.pick(4) {
            0 => GenerationId::Fork(Epoch(input.number(1 << 32))),
            _ => GenerationId::Number(generation),
        };
        let command = match input.pick(24) {
            0 => Command::RemoveVolume(VOLUME),
            1 => {
                let size = VOLUME_SIZE_MIN + (u64::from(input.byte()) << 16);
                let pool_size = grown_pool_size(size, BLOCK_SIZE) - (input.pick(64) as u64 * u64::from(BLOCK_SIZE));
                let pool_size = self.media.enlarge(MediumId::Pool(VOLUME), pool_size);
                Command::GrowVolume { volume: VOLUME, size, pool_size }
            }
            2 => {
                let size = self.media.enlarge(MediumId::Journal, JOURNAL_SIZE + (u64::from(input.byte()) << 16));
                Command::GrowJournal { size }
            }
            3 => Command::CreatePair { peer: NodeKey([2; 32]) },
            4 => Command::DeletePair,
            5 => Command::SuspendPair { now: input.flag() },
            6 => Command::ResumePair { compare: input.flag() },
            7 => Command::VerifyPair { mend: input.flag() },
            8 => Command::SetLevel(input.choose(&[Level::Local, Level::Remote])),
            9 => Command::SetWithoutPeer(input.choose(&[WithoutPeer::Continue, WithoutPeer::Freeze])),
            10 => Command::SetPolicy(input.choose(&[ApplyPolicy::Snapshot, ApplyPolicy::Delayed])),
            11 => Command::SetLease { millis: input.u16().into(), force: input.flag() },
            12 => Command::SetTakeover(
                input.flag().then(|| Takeover { after_millis: 1 + u32::from(input.u16()), to_latest: input.flag() }),
            ),
            13..=15 => Command::RestartPoint { label: "p".parse().expect("a short name") },
            16 => Command::KeepGenerations { count: input.u16() % 70, seconds: input.u16().into() },
            17 => Command::DropGeneration(name),
            18 => Command::BeginTrial { generation: input.flag().then_some(name) },
            19 => Command::EndTrial,
            20 | 21 => {
                let targets =
                    [PromoteTarget::RestartPoint, PromoteTarget::Latest, PromoteTarget::Generation(generation)];
                Command::Promote { target: input.choose(&targets), force: input.flag() }
            }
            22 => Command::Demote { discard_fork: input.flag() },
            _ => match input.pick(4) {
                0 => Command::Stop,
                _ => Command::HandOver,
            },
        };
        self.group.handle_command(now, CommandId(self.next), command);
        self.next += 1;
    }

    /// A reader of a generation comes or goes.
    pub fn hold(&mut self, input: &mut Input<'_>) {
        if input.flag() {
            let name = GenerationId::Number(Generation(input.pick(8) as u32));
            if let Some(order) = self.group.find_generation(name) {
                self.group.hold_generation(order);
                self.held.push(order);
            }
        } else if let Some(order) = self.held.pop() {
            self.group.release_generation(order);
        }
    }

    /// The session to the peer begins.
    pub fn peer_up(&mut self, now: Now) {
        self.group.handle_peer_up(now);
        self.group.handle_stream_credit(now, 4 << 20);
        self.drain();
    }

    /// The session to the peer is over.
    pub fn peer_down(&mut self, now: Now) {
        self.group.handle_peer_down(now);
        self.drain();
        self.outbox.clear();
        (self.durable, self.lease_mark, self.wants_reconnect) = (None, None, false);
    }

    /// The daemon dies and is started again; `None` if the media do not let it.
    pub fn reborn(self, now: Now) -> Option<Self> {
        let mut node = Self::open(self.media, now)?;
        node.drain();
        Some(node)
    }
}
