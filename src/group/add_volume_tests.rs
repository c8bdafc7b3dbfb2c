//! A volume that is made after another one with its number was forgotten.

use super::tests::Bench;
use super::*;
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandReply},
    disk::Storage,
    format::journal_superblock::SLOTS,
    request::{Durability, Operation},
    units::VOLUME_SIZE_MIN,
};
use alloc::string::String;
use proptest::{prelude::*, test_runner::TestRng};

/// Asks for a volume with the number of the one that was forgotten.
fn make_anew(bench: &mut Bench) {
    let pool = MediumId::Pool(VolumeId(1));
    for at in [SLOTS[0], SLOTS[1]] {
        bench.disks.write(pool, at, AlignedBuffer::new(4096).freeze()).unwrap();
    }
    erase_other(&mut bench.disks, pool).unwrap();
    let spec = VolumeSpec {
        id: VolumeId(1),
        name: "w".parse().unwrap(),
        size: VOLUME_SIZE_MIN,
        logical_block_size: 512,
        table_block_size: 64 << 10,
        pool: MediumUuid([3; 16]),
        pool_path: String::new(),
    };
    format_pool(&mut bench.disks, bench.group.id, &spec).unwrap();
    bench.group.handle_add_volume(bench.now, CommandId(2), &mut bench.disks, spec);
}

fn filled(offset: u64, size: usize, value: u8) -> Operation {
    let mut data = AlignedBuffer::new(size);
    data.as_mut_slice().fill(value);
    Operation::Write { offset, data: data.freeze(), durability: Durability::Durable }
}

fn write(bench: &mut Bench, offset: u64, size: usize, value: u8) {
    let id = bench.request(filled(offset, size, value));
    bench.wait(id);
}

fn used(bench: &mut Bench) -> u32 {
    bench.group.checkpoint.wanted = true;
    bench.settle();
    bench.group.status(bench.now).volumes[0].pool_used_count
}

impl Bench {
    /// Until nothing else is left to do, however long that takes.
    fn settle_but(&mut self, left: fn(&Purpose) -> bool) {
        loop {
            while self.step_but(left) {}
            let Some(at) = self.group.poll_timeout() else { return };
            self.now.monotonic = self.now.monotonic.max(at);
            self.group.handle_timeout(self.now);
        }
    }
}

/// The journal still has what a former volume was given, and a new one was given the same blocks.
#[test]
fn a_block_of_a_former_volume_is_not_freed_under_a_new_one() {
    let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &[1; 32]));
    let (size, is_superblock) = (1 << 20, |purpose: &Purpose| matches!(purpose, Purpose::Superblock));
    write(&mut bench, 0, size, 1);
    while bench.group.applied < bench.group.journal.last() {
        if !bench.step_but(|purpose| matches!(purpose, Purpose::Checkpoint)) {
            let at = bench.group.poll_timeout().expect("it is applied");
            bench.now.monotonic = bench.now.monotonic.max(at);
            bench.group.handle_timeout(bench.now);
        }
    }
    bench.group.handle_command(bench.now, CommandId(1), Command::RemoveVolume(VolumeId(1)));
    while bench.step() {}
    make_anew(&mut bench);
    while bench.step() {}
    let replies = [1, 2].map(|id| bench.replies.remove(&CommandId(id)));
    assert_eq!(replies, [Some(Ok(CommandReply::Done)), Some(Ok(CommandReply::Done))]);
    assert_eq!(bench.group.journal.tail_order, Order(0), "the journal has let go of it");
    // Written by the time that the daemon dies; that the journal needs the former one no more is not.
    let id = bench.request(filled(0, size, 2));
    while !bench.answers.contains_key(&id) {
        assert!(bench.step_but(is_superblock), "never answered");
    }
    bench.operations.clear();
    bench.reopen();
    let found = used(&mut bench);
    bench.operations.clear();
    bench.reopen();
    assert_eq!(found, used(&mut bench));
    // What comes now comes to another place.
    bench.group.volumes.values_mut().for_each(|volume| volume.table.blocks.rewind());
    write(&mut bench, 2 << 20, size, 3);
    let area = bench.read_area();
    assert!(area[..size / 512].iter().all(|word| *word == u64::from_le_bytes([2; 8])), "it was written over");
}

/// A hole punch that is still under way would strike the pool that comes to its place.
#[test]
fn a_volume_is_not_forgotten_while_its_space_is_being_given_back() {
    let is_release = |purpose: &Purpose| matches!(purpose, Purpose::Release { .. });
    let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &[2; 32]));
    write(&mut bench, 0, 1 << 20, 1);
    bench.settle();
    let id = bench.request(Operation::Discard { offset: 0, size: 1 << 20 });
    bench.wait(id);
    bench.settle_but(is_release);
    assert!(!bench.operations.is_empty(), "no space is given back");
    bench.group.handle_command(bench.now, CommandId(1), Command::RemoveVolume(VolumeId(1)));
    bench.drain();
    let reply = bench.replies.remove(&CommandId(1));
    assert_eq!(reply, Some(Err(CommandError::InProgress("write to the pool"))));
    bench.settle();
    bench.command(Command::RemoveVolume(VolumeId(1)));
}

#[test]
fn much_space_is_given_back_a_little_at_a_time() {
    const BLOCK: u64 = 64 << 10;
    let is_release = |purpose: &Purpose| matches!(purpose, Purpose::Release { .. });
    let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &[2; 32]));
    bench.settle();
    bench.command(Command::RemoveVolume(VolumeId(1)));
    make_anew(&mut bench);
    bench.settle();
    (0..15).for_each(|number| write(&mut bench, number << 20, 1 << 20, 1));
    bench.settle();
    for number in (0..240).step_by(2) {
        bench.request(Operation::Discard { offset: number * BLOCK, size: BLOCK });
    }
    bench.settle_but(is_release);
    assert_eq!(bench.operations.len(), 64);
    bench.settle();
    let blocks = &bench.group.volumes[&VolumeId(1)].table.blocks;
    assert_eq!((blocks.used_count(), blocks.is_waiting()), (120, false));
}

#[test]
fn a_volume_holds_nothing_of_a_former_one_with_its_number() {
    (0..20).for_each(forget_and_make_anew);
}

fn forget_and_make_anew(seed: u8) {
    let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &[seed; 32]));
    (0..20).for_each(|_| bench.mutate());
    bench.settle();
    bench.group.handle_command(bench.now, CommandId(1), Command::RemoveVolume(VolumeId(1)));
    bench.settle();
    make_anew(&mut bench);
    // The daemon dies as soon as the operator was told, before or after the new table's first checkpoint.
    while !bench.replies.contains_key(&CommandId(2)) {
        assert!(bench.step() || bench.replies.contains_key(&CommandId(2)), "never answered");
    }
    bench.operations.clear();
    bench.reopen();
    bench.model.fill(0);
    bench.check_all();
    bench.settle();
    bench.check_all();
}
