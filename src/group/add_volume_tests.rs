//! A volume that is made after another one with its number was forgotten.

use super::tests::Bench;
use super::*;
use crate::{
    buffer::AlignedBuffer, command::Command, disk::Storage, format::journal_superblock::SLOTS, units::VOLUME_SIZE_MIN,
};
use alloc::string::String;
use proptest::{prelude::*, test_runner::TestRng};

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
    let pool = MediumId::Pool(VolumeId(1));
    for at in [SLOTS[0], SLOTS[1]] {
        bench.disks.write(pool, at, AlignedBuffer::new(4096).freeze()).unwrap();
    }
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
