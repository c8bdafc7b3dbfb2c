//! What a host that is busy notices of what goes on behind it.

use super::{
    alone_bench::Alone,
    pair_bench::Pair,
    tests::{Bench, pick},
    *,
};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandId},
    format::record::Kind,
    request::{Durability, Operation},
    units::VOLUME_SIZE_MIN,
};
use proptest::test_runner::{RngAlgorithm, TestRng};

fn bench() -> Bench {
    Bench::new(TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

impl Bench {
    fn write(&mut self, offset: u64, size: usize) {
        let data = AlignedBuffer::new(size).freeze();
        let id = self.request(Operation::Write { offset, data, durability: Durability::Completed });
        self.wait(id);
    }

    /// Goes on until everything is in the pool.
    fn settle_without_checkpoint(&mut self) {
        while self.group.applied < self.group.journal.last() {
            if !self.step() {
                let at = self.group.poll_timeout().expect("destaged at last");
                self.now.monotonic = self.now.monotonic.max(at);
                self.group.handle_timeout(self.now);
            }
        }
        while self.step() {}
    }

    /// One operation is carried out that is none of a checkpoint's, if there is one.
    fn step_but_checkpoint(&mut self) -> bool {
        self.step_but(|purpose| matches!(purpose, Purpose::Checkpoint))
    }

    fn pool_operations(&self) -> usize {
        self.operations.iter().filter(|(operation, _)| operation.medium != MediumId::Journal).count()
    }
}

#[test]
fn a_host_never_has_more_than_a_part_of_a_cycle_before_it() {
    let mut bench = bench();
    let mut most = 0;
    for index in 0..6000_u64 {
        // Apart from each other, so that nothing is joined.
        bench.write((index * 7919 % 2048) * 8192, 4096);
        most = most.max(bench.pool_operations());
        while pick(&mut bench.rng, 3) > 0 && bench.step() {
            most = most.max(bench.pool_operations());
        }
    }
    assert!(bench.group.applied > Order(2000), "nothing was destaged");
    assert!(most <= 64, "{most} operations on the pool at once");
}

#[test]
fn a_stop_does_not_wait_for_all_that_is_to_be_applied() {
    let mut bench = bench();
    let write = |index: u64| Operation::Write {
        offset: index % 2048 * 8192,
        data: AlignedBuffer::new(512).freeze(),
        durability: Durability::Completed,
    };
    // More than three cycles take.
    let ids: Vec<_> = (0..7000).map(|index| bench.request(write(index))).collect();
    ids.into_iter().for_each(|id| bench.wait(id));
    bench.group.handle_command(bench.now, CommandId(7), Command::Stop);
    bench.settle();
    assert!(bench.replies.remove(&CommandId(7)).is_some_and(|reply| reply.is_ok()));
    let (applied, last) = (bench.group.applied, bench.group.journal.last());
    assert!(applied < last, "all of it was applied before");
    bench.reopen();
    assert_eq!(bench.group.journal.last(), last);
}

#[test]
fn a_stop_waits_for_no_checkpoint_but_the_one_that_runs() {
    let mut bench = bench();
    bench.write(0, 4096);
    bench.settle_without_checkpoint();
    bench.group.begin_checkpoint();
    (bench.group.checkpoint.wanted, bench.group.checkpoint.marked) = (true, true);
    let begun = bench.group.checkpoint.begun();
    bench.group.handle_command(bench.now, CommandId(7), Command::Stop);
    bench.settle();
    assert!(bench.replies.remove(&CommandId(7)).is_some_and(|reply| reply.is_ok()));
    assert_eq!(bench.group.checkpoint.begun(), begun);
}

#[test]
fn no_write_is_refused_while_a_checkpoint_runs_and_a_generation_can_go() {
    let mut bench = bench();
    let geometry = *bench.group.volumes[&VolumeId(1)].table.geometry();
    let (block, count) = (geometry.block_size as usize, geometry.volume_size / u64::from(geometry.block_size));
    bench.command(Command::KeepGenerations { count: 8, seconds: 0 });
    // Nearly all of the pool is used.
    for lacking in [0, 24] {
        (0..count - lacking).for_each(|index| bench.write(index * block as u64, block));
        bench.command(Command::RestartPoint { label: "p".parse().unwrap() });
    }
    let kept = bench.group.generations().len();
    bench.group.begin_checkpoint();
    let mut waiting = 0;
    for index in 0..6_000 {
        let (offset, data) = (index % (count / 2) * block as u64 + 8192, AlignedBuffer::new(4096).freeze());
        let id = bench.ask(Operation::Write { offset, data, durability: Durability::Completed });
        for _ in 0..3 {
            while !bench.answers.contains_key(&id) && bench.step_but_checkpoint() {}
            if !bench.answers.contains_key(&id)
                && let Some(at) = bench.group.poll_timeout()
            {
                bench.now.monotonic = bench.now.monotonic.max(at);
                bench.group.handle_timeout(bench.now);
            }
        }
        assert!(!matches!(bench.answers.get(&id), Some(Err(_))), "write {index} is refused");
        waiting += u32::from(!bench.answers.contains_key(&id));
        if waiting == 16 {
            break;
        }
    }
    assert!(bench.group.is_journal_full() && bench.group.checkpoint.is_running(), "there was room enough");
    bench.settle();
    assert!(bench.group.generations().len() < kept, "no generation went");
    assert_eq!(bench.group.applied, bench.group.journal.last());
}

#[test]
fn a_host_never_has_more_than_a_part_of_a_checkpoint_before_it() {
    let mut bench = bench();
    let volume = VolumeId(1);
    let (size, block) = (16 << 30, bench.group.volumes[&volume].spec.table_block_size);
    let pool_size = grown_pool_size(size, block);
    bench.disks.set_size(MediumId::Pool(volume), pool_size);
    bench.group.handle_command(bench.now, CommandId(7), Command::GrowVolume { volume, size, pool_size });
    bench.settle();
    assert!(bench.replies.remove(&CommandId(7)).is_some_and(|reply| reply.is_ok()));
    // Each in a page of the table of its own.
    for index in 0..200 {
        bench.write(index * (64 << 20), 4096);
    }
    bench.settle_without_checkpoint();
    let before = bench.group.checkpoint.begun();
    bench.group.begin_checkpoint();
    let (mut most, mut count) = (0, 0);
    while bench.group.checkpoint.ended() <= before {
        bench.drain();
        most = most.max(bench.pool_operations());
        count += 1;
        assert!(bench.step(), "the checkpoint does not end");
    }
    assert!(count >= 200, "{count} operations");
    assert!(most <= 64, "{most} operations on the pool at once");
}

#[test]
fn the_journal_lets_go_of_large_writes_that_make_small_ones_large() {
    // A checkpoint that the ring wants comes after 4,000 writes of 4 KiB; one cycle of destaging takes 1,000.
    let mut bench = Bench::with_journal(TestRng::deterministic_rng(RngAlgorithm::ChaCha), 256 << 20);
    for index in 0..64 {
        bench.write(index * (256 << 10), 256 << 10);
    }
    let redirected = |bench: &Bench| bench.group.volumes.values().any(|volume| volume.table.blocks.has_redirected());
    assert!(redirected(&bench), "large writes go through the journal");
    // Never a pause, in which a checkpoint would be made anyway.
    for index in 0..3000_u64 {
        bench.write((index * 7919 % 4096) * 4096, 4096);
        if !redirected(&bench) {
            return;
        }
        while pick(&mut bench.rng, 3) > 0 && bench.step() {}
    }
    panic!("each small write still copies a block");
}

#[test]
fn what_follows_a_restart_point_is_kept_for_a_peer_that_is_promoted_to_it() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::RestartPoint { label: "nightly".parse().unwrap() }).unwrap();
    pair.write_at_unchecked(0, 1 << 20);
    pair.settle();
    let group = &pair.nodes[0].group;
    assert!(
        group.volumes.values().any(|volume| volume.table.blocks.has_redirected()),
        "a fork would be copied as a whole"
    );
}

#[test]
fn what_the_standby_has_makes_no_small_write_large_on_the_primary() {
    let mut pair = Pair::in_step();
    pair.write_at_unchecked(0, 1 << 20);
    pair.settle();
    let volumes = &pair.nodes[0].group.volumes;
    assert!(!volumes.values().any(|volume| volume.table.blocks.has_redirected()), "nobody will ask for it again");
}

#[test]
fn a_host_waits_for_no_more_than_a_cycle_of_discards() {
    let mut alone = Alone::new(64 << 10, 64 << 30, 1);
    (0..64).for_each(|index| alone.group.stage_zeroes(Kind::Discard, VolumeId(1), index << 30, 1 << 30, false));
    let mut turns = 0;
    while alone.group.applied < alone.group.journal.last() {
        let before = alone.group.applied;
        if !alone.step_where(|_| true) {
            assert!(alone.wake());
            alone.drain();
        }
        let count = alone.group.applied.0 - before.0;
        assert!(count <= 1, "{count} GiB in one turn");
        turns += 1;
    }
    assert!(turns >= 64);
}

/// Time does not pass between short entries that take next to nothing of the ring.
#[test]
fn short_entries_wait_for_a_checkpoint_by_count() {
    let mut alone = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    let most = alone.group.journal.entry_count_max() / 8 + 4096;
    for round in 0..40 {
        (0..1000).for_each(|_| alone.group.stage_zeroes(Kind::Discard, VolumeId(1), 0, 4096, false));
        while alone.step_where(|_| true) {}
        let waiting = alone.group.applied.0 - alone.group.applied_durable().0;
        assert!(waiting <= most, "{waiting} entries wait for a checkpoint in round {round}");
    }
}

impl Alone {
    /// A host that always has 32 writes in flight, all over 1 GiB, on a medium that ends one operation after the other, each of which
    /// takes so long. `looks` is called before each ends.
    fn write_small(&mut self, count: u64, micros: u64, mut looks: impl FnMut(&Self)) {
        let (blocks, mut asked) = ((1 << 30) / 4096, 0);
        while asked < count {
            for _ in asked - self.answers.len() as u64..32 {
                self.write(1, asked * 7919 % blocks * 4096, 4096, 1);
                asked += 1;
            }
            looks(self);
            self.now.monotonic = self.now.monotonic.after(micros);
            assert!(self.step_where(|_| true));
        }
    }
}

#[test]
fn what_is_applied_under_load_is_still_in_memory() {
    let (mut alone, mut from_journal) = (Alone::new(64 << 10, 1 << 30, 1), 0);
    alone.write_small(30_000, 10, |alone| {
        let next = alone.operations.first().map(|(operation, _)| (operation.medium, &operation.action));
        from_journal += u32::from(matches!(next, Some((MediumId::Journal, DiskAction::Read { .. }))));
    });
    assert!(alone.group.applied > Order(20_000), "{:?} is applied", alone.group.applied);
    assert_eq!(from_journal, 0, "reads of the journal");
}

#[test]
fn a_host_waits_for_no_more_than_a_slow_medium_does_in_a_moment() {
    for (micros, expected) in [(10, 32..=64), (400, 8..=10), (10_000, 8..=8)] {
        let (mut alone, mut most) = (Alone::new(64 << 10, 1 << 30, 1), 0);
        alone.write_small(8_000, micros, |alone| {
            // Later the journal is nearly full, at first nothing is known of the medium.
            if (12 << 20..30 << 20).contains(&alone.group.destage.backlog) && alone.group.applied > Order(0) {
                let pool = |(operation, _): &&(DiskOperation, u64)| operation.medium != MediumId::Journal;
                most = most.max(alone.operations.iter().filter(pool).count());
            }
        });
        assert!(expected.contains(&most), "{most} operations in flight at {micros} µs each");
    }
}

impl Alone {
    /// Writes of 1 MiB, one behind the other, around a volume of so many bytes; four are always in flight.
    fn write_large(&mut self, size: u64, count: u64) -> LargeWrites {
        let (mut asked, mut found) = (0, LargeWrites::default());
        while asked < count {
            for _ in asked - self.answers.len() as u64..4 {
                self.write(1, (asked % (size >> 20)) << 20, 1 << 20, 1);
                asked += 1;
            }
            let (operation, _) = self.operations.first().expect("answers come from the media");
            match (&operation.action, operation.medium) {
                (DiskAction::Sync, _) => found.syncs += 1,
                (DiskAction::Write { pieces, .. }, MediumId::Journal) => {
                    found.journalled += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
                }
                _ => {}
            }
            self.step_where(|_| true);
        }
        found
    }
}

/// What large writes did on the media.
#[derive(Default)]
struct LargeWrites {
    syncs: u64,
    /// Bytes written to the journal.
    journalled: u64,
}

#[test]
fn large_writes_want_no_sync_every_few_of_them() {
    let size = 256 << 20;
    let found = Alone::new(64 << 10, size, 1).write_large(size, 200);
    assert!(found.syncs <= 20, "{} syncs", found.syncs);
}

/// Room comes from what was overwritten, which is free when that is durable.
#[test]
fn large_writes_find_room_outside_the_journal_however_many_they_are() {
    let (size, count) = (256 << 20, 1500);
    let journalled = Alone::new(64 << 10, size, 1).write_large(size, count).journalled >> 20;
    assert!(journalled <= count / 20, "{journalled} of {count} MiB went through the journal");
}
