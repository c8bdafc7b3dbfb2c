//! A group of one or more volumes without a peer, and how it dies.

use super::{tests::Disks, *};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandReply, GenerationId, PromoteTarget},
    pair::Role,
    request::{Access, Busy, Durability, Operation, Request},
    units::{Generation, VOLUME_SIZE_MIN, WallClock},
};
extern crate std;
use alloc::{format, string::String, vec};

pub(super) const GROUP: GroupId = GroupId([7; 16]);

pub(super) fn number(number: u32) -> GenerationId {
    GenerationId::Number(Generation(number))
}

pub(super) fn keep(count: u16) -> Command {
    Command::KeepGenerations { count, seconds: 0 }
}

pub(super) fn spec(id: u16, block: u32, size: u64) -> VolumeSpec {
    VolumeSpec {
        id: VolumeId(id),
        name: format!("v{id}").parse().unwrap(),
        size,
        logical_block_size: 512,
        table_block_size: block,
        pool: MediumUuid([id as u8 + 10; 16]),
        pool_path: String::new(),
    }
}

/// A group without a peer, whose disk operations end in order.
pub(super) struct Alone {
    pub(super) disks: Disks,
    pub(super) group: Group,
    pub(super) now: Now,
    pub(super) operations: Vec<(DiskOperation, u64)>,
    pub(super) replies: BTreeMap<CommandId, Result<CommandReply, CommandError>>,
    pub(super) answers: BTreeMap<RequestId, Result<Reply, RequestError>>,
    pub(super) next: u64,
}

impl Alone {
    pub(super) fn new(block: u32, size: u64, count: u16) -> Self {
        let mut disks = Disks::default();
        disks.set_size(MediumId::Journal, 64 << 20);
        let (name, journal) = ("g".parse().unwrap(), MediumUuid([1; 16]));
        let group = GroupSpec { id: GROUP, name, journal, role: Role::Primary, peer: None };
        format_journal(&mut disks, &group).unwrap();
        let now = Now { monotonic: Monotonic(1), wall: WallClock(1) };
        let (group, _) = Group::open(&mut disks, now).unwrap();
        let (operations, replies, answers, next) = (vec![], BTreeMap::new(), BTreeMap::new(), 1);
        let mut alone = Self { disks, group, now, operations, replies, answers, next };
        for id in 1..=count {
            alone.add(id, block, size);
            alone.settle();
        }
        alone
    }

    pub(super) fn add(&mut self, id: u16, block: u32, size: u64) {
        self.disks.set_size(MediumId::Pool(VolumeId(id)), pool_size_for(size, block));
        let spec = spec(id, block, size);
        format_pool(&mut self.disks, GROUP, &spec).unwrap();
        self.group.handle_add_volume(self.now, CommandId(90_000 + u64::from(id)), &mut self.disks, spec);
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.group.poll_output() {
            match output {
                Output::Disk(operation) => self.operations.push((operation, self.disks.writes())),
                Output::CommandAnswer { id, result } => drop(self.replies.insert(id, result)),
                Output::Answer { id, result } => drop(self.answers.insert(id, result)),
                _ => {}
            }
        }
    }

    /// Ends the first operation that is wanted.
    pub(super) fn step_where(&mut self, wanted: impl Fn(&DiskOperation) -> bool) -> bool {
        self.drain();
        let Some(index) = self.operations.iter().position(|(operation, _)| wanted(operation)) else { return false };
        let (operation, asked) = self.operations.remove(index);
        let outcome = self.disks.carry_out(operation.medium, operation.action, asked);
        self.group.handle_disk(self.now, operation.id, outcome);
        self.drain();
        true
    }

    /// Time passes until the group wants to be called; `false` if it never does.
    pub(super) fn wake(&mut self) -> bool {
        let Some(at) = self.group.poll_timeout() else { return false };
        self.now.monotonic = self.now.monotonic.max(at);
        self.group.handle_timeout(self.now);
        true
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            while self.step_where(|_| true) {}
            if !self.wake() {
                return;
            }
        }
        panic!("never settles");
    }

    /// Everything is in the tables, and no checkpoint has been made for it.
    pub(super) fn apply(&mut self) {
        while self.group.applied < self.group.journal.last() {
            if !self.step_where(|_| true) {
                self.wake();
            }
        }
    }

    pub(super) fn request(&mut self, volume: u16, access: Access, operation: Operation) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let mut request = Request { id, volume: VolumeId(volume), access, operation };
        while let Err(Busy(again)) = self.group.handle_request(self.now, request) {
            request = again;
            assert!(self.step_where(|_| true));
        }
        self.drain();
        id
    }

    pub(super) fn write(&mut self, volume: u16, offset: u64, size: usize, value: u8) {
        let mut data = AlignedBuffer::new(size);
        data.as_mut_slice().fill(value);
        let operation = Operation::Write { offset, data: data.freeze(), durability: Durability::Completed };
        self.request(volume, Access::ReadWrite, operation);
    }

    pub(super) fn command(&mut self, command: Command) -> Result<CommandReply, CommandError> {
        let id = CommandId(self.next + 1_000_000);
        self.next += 1;
        self.group.handle_command(self.now, id, command);
        loop {
            self.drain();
            if let Some(reply) = self.replies.remove(&id) {
                return reply;
            }
            if !self.step_where(|_| true) {
                assert!(self.wake(), "never answered");
            }
        }
    }

    pub(super) fn restart_point(&mut self) {
        self.command(Command::RestartPoint { label: Name::default() }).unwrap();
    }

    /// As if it had been a standby.
    pub(super) fn promote(&mut self, target: PromoteTarget) -> Result<CommandReply, CommandError> {
        self.group.pair.role = Role::Secondary;
        self.command(Command::Promote { target, force: true })
    }

    pub(super) fn read(&mut self, volume: u16, access: Access, offset: u64, size: u32) -> Vec<u8> {
        let id = self.request(volume, access, Operation::Read { offset, size });
        while !self.answers.contains_key(&id) {
            assert!(self.step_where(|_| true));
        }
        let Some(Ok(Reply::Data(parts))) = self.answers.remove(&id) else { panic!("read failed") };
        parts.concat()
    }

    /// What the first byte of a volume is.
    pub(super) fn first(&mut self, volume: u16) -> u8 {
        self.read(volume, Access::ReadOnly, 0, 4096)[0]
    }

    pub(super) fn generation(&mut self, name: u32, volume: u16, offset: u64, size: u32) -> Vec<u8> {
        let order = self.group.find_generation(number(name)).expect("it is kept");
        self.group.hold_generation(order);
        let found = self.read(volume, Access::Generation(order), offset, size);
        self.group.release_generation(order);
        found
    }

    /// Two volumes with a restart point after each of three writes, of which the first is in both pools, and one write more; then the
    /// daemon has died with one pool ahead of the other.
    pub(super) fn with_one_ahead(ahead: u16, rule: Command) -> Self {
        let mut group = Self::new(64 << 10, VOLUME_SIZE_MIN, 2);
        group.command(rule).unwrap();
        for round in 1..=3 {
            (1..=2).for_each(|volume| group.write(volume, 0, 4096, round));
            group.restart_point();
            if round == 1 {
                group.settle();
            }
        }
        (1..=2).for_each(|volume| group.write(volume, 0, 4096, 4));
        group.die_with_one_ahead(ahead);
        group
    }

    /// Dies when the checkpoint of the pool `ahead`, of two, counts and the other's does not.
    pub(super) fn die_with_one_ahead(&mut self, ahead: u16) {
        self.apply();
        self.group.checkpoint.wanted = true;
        let behind = is_superblock_of(3 - ahead);
        for _ in 0..1000 {
            if !self.step_where(|operation| !behind(operation)) {
                self.group.handle_timeout(self.now);
            }
        }
        assert!(self.operations.iter().any(|(operation, _)| behind(operation)), "it waits for that superblock");
        self.reopen();
    }

    pub(super) fn reopen(&mut self) {
        self.operations.clear();
        self.now.monotonic = self.now.monotonic.after(1);
        self.group = Group::open(&mut self.disks, self.now).unwrap().0;
    }
}

/// A pool's superblock is at offset 0 or 64 KiB.
pub(super) fn is_superblock_of(volume: u16) -> impl Fn(&DiskOperation) -> bool {
    move |operation| {
        let writes = matches!(operation.action, DiskAction::Write { offset, .. } if offset < 128 << 10);
        operation.medium == MediumId::Pool(VolumeId(volume)) && writes
    }
}
