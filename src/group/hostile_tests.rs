//! Media and peers that say what no correct program says, under valid checksums: refused, never a panic, never a loop.

use super::tests::{Bench, Disks};
use super::*;
use crate::{disk::Storage, format::journal_superblock::SLOTS};
use proptest::{prelude::*, test_runner::TestRng};

fn bench() -> Bench {
    Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha))
}

/// Makes the superblock and the ring what they were: a medium that lost what was synced.
fn restore_journal(disks: &mut Disks, earlier: &mut Disks) {
    for offset in [SLOTS[0], SLOTS[1], 128 << 10, 256 << 10] {
        let bytes = earlier.read(MediumId::Journal, offset, 64 << 10).unwrap();
        disks.write(MediumId::Journal, offset, bytes).unwrap();
    }
}

#[test]
fn a_pool_that_is_ahead_of_its_journal_is_refused() {
    let mut bench = bench();
    let mut earlier = bench.disks.clone();
    (0..10).for_each(|_| bench.mutate());
    bench.settle();
    restore_journal(&mut bench.disks, &mut earlier);
    let opened = Group::open(&mut bench.disks, bench.now).map(|_| ());
    assert!(matches!(opened, Err(OpenError::Ahead { .. })), "{opened:?}");
}
