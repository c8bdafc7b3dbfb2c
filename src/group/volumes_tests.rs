//! Generations of groups with several volumes, whose pools a crash may leave at different times; and pools that are large, long in
//! use, or nearly full.

use super::{
    pair_bench::{Pair, State},
    tests::Disks,
    *,
};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandReply, GenerationId, GenerationKind, PromoteTarget},
    pair::Role,
    request::{Access, Busy, Durability, Operation, Request},
    table::Entry,
    units::{Epoch, Generation, VOLUME_SIZE_MIN, WallClock},
};
extern crate std;
use alloc::{format, string::String, vec};

const GROUP: GroupId = GroupId([7; 16]);
const POINT: PromoteTarget = PromoteTarget::RestartPoint;

fn number(number: u32) -> GenerationId {
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
    next: u64,
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
    fn apply(&mut self) {
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
fn is_superblock_of(volume: u16) -> impl Fn(&DiskOperation) -> bool {
    move |operation| {
        let writes = matches!(operation.action, DiskAction::Write { offset, .. } if offset < 128 << 10);
        operation.medium == MediumId::Pool(VolumeId(volume)) && writes
    }
}

/// The daemon dies when one pool's checkpoint counts and the other's does not.
#[test]
fn one_pool_may_be_ahead_of_the_other() {
    for ahead in [1, 2] {
        for target in [POINT, PromoteTarget::Generation(Generation(1)), PromoteTarget::Generation(Generation(2))] {
            let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 2);
            group.command(keep(3)).unwrap();
            for round in 1..=3 {
                (1..=2).for_each(|volume| group.write(volume, 0, 4096, round));
                group.restart_point();
                if round == 1 {
                    group.settle();
                }
            }
            (1..=2).for_each(|volume| group.write(volume, 0, 4096, 4));
            group.die_with_one_ahead(ahead);
            // At once, and when everything was done again.
            if target == POINT {
                group.settle();
            }
            group.promote(target).unwrap();
            let expected = if let PromoteTarget::Generation(name) = target { name.0 as u8 } else { 3 };
            assert_eq!([group.first(1), group.first(2)], [expected; 2]);
            group.reopen();
            group.settle();
            assert_eq!([group.first(1), group.first(2)], [expected; 2]);
            let mut disks = group.disks.clone();
            assert!(Group::open(&mut disks, group.now).is_ok());
        }
    }
}

/// What a table has already is taken back by the table, whatever the other one lacks.
#[test]
fn a_block_of_a_pool_that_is_ahead_is_freed_once() {
    for ahead in [1, 2] {
        let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 2);
        (1..=2).for_each(|volume| group.write(volume, 0, 4096, 1));
        group.restart_point();
        group.settle();
        // Large enough for blocks of their own.
        (1..=2).for_each(|volume| group.write(volume, 128 << 10, 128 << 10, 2));
        group.die_with_one_ahead(ahead);
        group.promote(POINT).unwrap();
        group.settle();
        for _ in 0..2 {
            let tables = group.group.volumes.values().map(|volume| &volume.table);
            let used: Vec<u32> = tables.map(|table| table.blocks.used_count() - table.extent_blocks()).collect();
            assert_eq!(used, [1; 2], "volume {ahead} is ahead");
            group.reopen();
            group.settle();
        }
        assert_eq!([group.first(1), group.first(2)], [1; 2]);
    }
}

/// The superblock names a new volume whose pool knows of no generation yet.
#[test]
fn a_volume_is_added_and_the_daemon_dies() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    group.write(1, 0, 4096, 1);
    group.restart_point();
    group.settle();
    group.write(1, 0, 4096, 2);
    group.settle();
    group.add(2, 64 << 10, VOLUME_SIZE_MIN);
    while !group.replies.contains_key(&CommandId(90_002)) {
        assert!(group.step_where(|operation| operation.medium == MediumId::Journal));
    }
    group.reopen();
    group.write(2, 0, 4096, 3);
    group.settle();
    group.promote(POINT).unwrap();
    assert_eq!([group.first(1), group.first(2)], [1, 0]);
}

#[test]
fn a_new_volume_hides_no_fork() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 4096);
    pair.restart_point();
    pair.settle();
    pair.cut();
    pair.fill(0, 8192);
    assert!(pair.promote(POINT));
    pair.connect();
    pair.settle();
    pair.command(0, Command::Demote { discard_fork: false }).unwrap();
    pair.finish();
    let fork = GenerationId::Fork(Epoch::FIRST);
    let kept = |pair: &Pair| pair.nodes[0].group.status(pair.now).generations.iter().any(|kept| kept.name == fork);
    assert!(kept(&pair));
    let node = &mut pair.nodes[0];
    node.disks.set_size(MediumId::Pool(VolumeId(2)), pool_size_for(VOLUME_SIZE_MIN, 64 << 10));
    format_pool(&mut node.disks, GROUP, &spec(2, 64 << 10, VOLUME_SIZE_MIN)).unwrap();
    let mut disks = node.disks.clone();
    node.group.handle_add_volume(pair.now, CommandId(70_000), &mut disks, spec(2, 64 << 10, VOLUME_SIZE_MIN));
    pair.settle();
    assert!(kept(&pair));
    pair.command(0, Command::DropGeneration(fork)).unwrap();
    assert!(!kept(&pair));
}

/// One record may touch more blocks than a cycle should.
#[test]
fn a_large_discard_of_small_blocks_leaves_generations_as_they_were() {
    let (block, most) = (16u64 << 10, 66_000u64);
    let mut group = Alone::new(block as u32, 2 << 30, 1);
    group.command(keep(4)).unwrap();
    group.restart_point();
    group.settle();
    // Every fourth of them holds something.
    for (count, index) in (0..most).step_by(4).enumerate() {
        group.write(1, index * block, 4096, 1);
        if count % 1024 == 0 {
            while group.step_where(|_| true) {}
        }
    }
    group.settle();
    group.restart_point();
    for (offset, size) in [(0u64, 7u64 << 20), (7 << 20, 1 << 30)] {
        group.request(1, Access::ReadWrite, Operation::Discard { offset, size });
    }
    group.settle();
    for offset in (0..most * block).step_by(1 << 20) {
        assert!(group.generation(1, 1, offset, 1 << 20).iter().all(|byte| *byte == 0), "generation 1 at {offset}");
        let found = group.generation(2, 1, offset, 1 << 20);
        let written = found.chunks(block as usize).step_by(4).filter(|block| block[0] == 1).count();
        assert!(written == 16 || offset + (1 << 20) > most * block, "generation 2 at {offset}");
    }
}

#[test]
fn a_pool_with_holes_has_room_for_generations() {
    let mut group = Alone::new(16 << 10, 64 << 20, 1);
    group.command(keep(4)).unwrap();
    // What a pool looks like that was long in use: no two neighbours are unused.
    let table = &mut group.group.volumes.get_mut(&VolumeId(1)).unwrap().table;
    for block in (1..=table.geometry().block_count).step_by(2) {
        table.blocks.claim(block);
    }
    for round in 1..=3 {
        for block in 0..600 {
            group.write(1, block * (16 << 10), 4096, round);
        }
        group.restart_point();
        group.settle();
    }
    assert_eq!(group.group.status(group.now).generations.len(), 3);
    for round in 1..=3 {
        assert_eq!(group.generation(round.into(), 1, 599 * (16 << 10), 4096)[0], round);
    }
    group.promote(PromoteTarget::Generation(Generation(2))).unwrap();
    group.write(1, 0, 4096, 9);
    group.settle();
    assert_eq!(group.group.applied, group.group.journal.last(), "nothing is destaged");
    group.reopen();
    assert_eq!(group.generation(1, 1, 599 * (16 << 10), 4096)[0], 1);
}

#[test]
fn volumes_are_taken_back_again_and_again() {
    for crash in 0..4 {
        let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
        group.command(keep(20)).unwrap();
        let mut states = vec![];
        for round in 0..8u64 {
            for block in (0..16u64).filter(|block| (round + block) % 3 != 0) {
                let offset = block * (64 << 10) + (round % 4) * 8192;
                group.write(1, offset, 16384, (round * 16 + block) as u8 + 1);
            }
            group.settle();
            states.push(group.read(1, Access::ReadWrite, 0, 1 << 20));
            group.restart_point();
            group.settle();
        }
        for (step, target) in [6u32, 4, 2].into_iter().enumerate() {
            group.promote(PromoteTarget::Generation(Generation(target))).unwrap();
            if crash & 1 << (step % 2) != 0 {
                group.reopen();
            }
            assert!(group.read(1, Access::ReadOnly, 0, 1 << 20) == states[target as usize - 1], "{crash} {target}");
            group.write(1, 3 << 16, 4096, 250);
            // Before anything is swept: the next one is what the volume is now.
            group.apply();
            let now = group.read(1, Access::ReadOnly, 0, 1 << 20);
            group.restart_point();
            group.apply();
            let newest = group.group.status(group.now).generations[0].name;
            let GenerationId::Number(Generation(newest)) = newest else { panic!("{newest}") };
            assert!(group.generation(newest, 1, 0, 1 << 20) == now, "{crash} {target}: the new one");
            for name in 1..=target {
                assert!(group.generation(name, 1, 0, 1 << 20) == states[name as usize - 1], "{crash} {target} {name}");
            }
        }
        group.settle();
        group.reopen();
        group.settle();
        for name in 1..=2 {
            assert!(group.generation(name, 1, 0, 1 << 20) == states[name as usize - 1]);
        }
    }
}

/// A volume is taken back, and before anything was swept further back.
#[test]
fn a_volume_is_taken_back_twice_at_once() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    group.command(keep(20)).unwrap();
    for round in 0..6u64 {
        (0..16u64).filter(|block| (round + block) % 3 != 0).for_each(|block| {
            group.write(1, block << 16, 64 << 10, (round * 16 + block) as u8);
        });
        group.restart_point();
        group.settle();
    }
    let orders = [5, 4, 2].map(|name| group.group.find_generation(number(name)).unwrap());
    let table = &mut group.group.volumes.get_mut(&VolumeId(1)).unwrap().table;
    let expected: Vec<u32> = (0..16).map(|block| table.entry_in(orders[2], block).unwrap().latest).collect();
    assert!(orders.into_iter().all(|order| table.roll_back(order)));
    let found: Vec<u32> = (0..16).map(|block| table.entry(block).latest).collect();
    assert_eq!(found, expected);
    table.sweep_pages(u32::MAX);
    let found: Vec<u32> = (0..16).map(|block| table.entry(block).latest).collect();
    assert_eq!(found, expected);
}

/// More often than a list of void stamps can name, and nothing is swept between.
#[test]
fn a_volume_is_taken_back_very_often() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    (0..40).for_each(|block| group.write(1, block << 16, 64 << 10, 1));
    group.restart_point();
    group.settle();
    let table = &mut group.group.volumes.get_mut(&VolumeId(1)).unwrap().table;
    let expected: Vec<u32> = (0..40).map(|block| table.entry(block).latest).collect();
    for block in 0..40 {
        let order = Order(1000 + u64::from(block));
        table.keep_snapshot(Some(order));
        // A write after it.
        let before = table.settle(block);
        let latest = table.blocks.allocate().unwrap();
        let mask = table.geometry().full_mask();
        table.set_entry(block, Entry { latest, snapshot: before.latest, mask, stamp: table.stamp(), dirty: 0 });
        assert!(table.roll_back(order));
    }
    let found: Vec<u32> = (0..40).map(|block| table.entry(block).latest).collect();
    assert_eq!(found, expected);
}

/// A crash leads back to a table from before a restart point; what was folded since must not show in it.
#[test]
fn what_is_folded_does_not_show_in_a_generation_that_a_crash_brings_back() {
    // The last checkpoint is from before or from after the restart point.
    for after in [false, true] {
        let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
        // Small enough to go through the journal.
        group.write(1, 0, 60 << 10, 1);
        group.settle();
        group.restart_point();
        if after {
            group.settle();
        } else {
            group.apply();
        }
        // A small part is new, and then, two restart points later, folded into the block from before.
        group.write(1, 0, 4096, 2);
        group.restart_point();
        group.write(1, 8192, 4096, 3);
        group.apply();
        group.reopen();
        group.command(keep(9)).unwrap();
        group.settle();
        for (name, expected) in [(1, [1, 1]), (2, [2, 1])] {
            if group.group.find_generation(number(name)).is_some() {
                let found = group.generation(name, 1, 0, 60 << 10);
                assert_eq!([found[0], found[8192]], expected, "generation {name}, checkpoint after it: {after}");
            }
        }
        assert!(group.group.find_generation(number(2)).is_some());
    }
}

/// A checkpoint of pages of kept blocks that was not finished leaves nothing that counts.
#[test]
fn an_unfinished_checkpoint_of_kept_blocks_does_not_count() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    group.command(keep(9)).unwrap();
    for round in 1..=3 {
        (0..20).for_each(|block| group.write(1, block << 16, 4096, round));
        group.restart_point();
        group.settle();
    }
    let last = |group: &Alone| group.group.volumes[&VolumeId(1)].table.applied_durable();
    for round in 4..=9 {
        (0..20).for_each(|block| group.write(1, block << 16, 4096, round));
        group.restart_point();
        group.apply();
        group.write(1, 0, 4096, round);
        group.apply();
        let before = last(&group);
        group.group.checkpoint.wanted = true;
        let superblock = is_superblock_of(1);
        for _ in 0..300 {
            if !group.step_where(|operation| !superblock(operation)) {
                group.group.handle_timeout(group.now);
            }
        }
        assert!(group.operations.iter().any(|(operation, _)| superblock(operation)), "it is at the superblock");
        group.reopen();
        assert_eq!(last(&group), before);
        // Something else this time, under the same number.
        group.command(Command::DropGeneration(number(round as u32 - 3))).unwrap();
        group.settle();
        group.reopen();
        for name in round - 2..=round {
            assert_eq!(group.generation(name.into(), 1, 19 << 16, 4096)[0], name, "round {round}");
        }
    }
}

#[test]
fn readers_hold_no_more_than_a_pool_can_list() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(64)).unwrap();
    let interval = |pair: &mut Pair, round: u64| -> State {
        pair.write_at(round % 16 * (64 << 10), 4096);
        pair.restart_point();
        pair.idle();
        pair.settle();
        pair.state.clone()
    };
    (0..20).for_each(|round| drop(interval(&mut pair, round)));
    for name in 1..=20 {
        let order = pair.nodes[1].group.find_generation(number(name)).unwrap();
        pair.nodes[1].group.hold_generation(order);
    }
    (20..90).for_each(|round| drop(interval(&mut pair, round)));
    pair.pass_to(pair.now.monotonic.after(2_000_000));
    pair.settle();
    pair.reopen(1);
    pair.finish();
}

#[test]
fn what_a_promotion_makes_the_restart_point_stays() {
    let mut pair = Pair::in_step();
    pair.fill(0, 4096);
    pair.restart_point();
    pair.idle();
    pair.settle();
    let first = pair.state.clone();
    let order = pair.nodes[1].group.find_generation(number(1)).unwrap();
    pair.nodes[1].group.hold_generation(order);
    for round in 1..8 {
        for part in 0..24 {
            pair.write_at_unchecked((4 << 20) + part * (60 << 10), 60 << 10);
            pair.settle();
        }
        pair.fill(round * 8192, 8192);
        pair.restart_point();
        pair.pass_to(pair.now.monotonic.after(2_000_000));
        pair.settle();
    }
    assert!(pair.nodes[1].group.journal.tail_order > order, "its entry is gone from the journal");
    assert!(pair.promote(PromoteTarget::Generation(Generation(1))));
    assert!(pair.state == first);
    pair.reopen(1);
    pair.pass_to(pair.now.monotonic.after(10_000_000));
    pair.settle();
    let kept = pair.nodes[1].group.status(pair.now).generations;
    assert_eq!(
        kept.iter().map(|kept| (kept.name, kept.kind)).collect::<Vec<_>>(),
        [(number(1), GenerationKind::LastRestartPoint)]
    );
    pair.finish();
}
