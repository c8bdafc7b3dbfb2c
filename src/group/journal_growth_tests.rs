//! Journals that grow while they are used, through death and loss of power at any instant.

use super::*;
use super::{
    pair_bench::Pair,
    tests::{Bench, pick},
};
use crate::{
    command::{Command, CommandError, CommandId, CommandReply},
    disk::Storage,
    format::journal_superblock::{RING_OFFSET, ring_size_of},
    pair::PairState,
    request::Operation,
};
use alloc::string::ToString;
use proptest::{prelude::*, test_runner::TestRng};

const MIB: u64 = 1 << 20;

impl Bench {
    fn begin_to_grow_journal(&mut self, size: u64) -> CommandId {
        let id = CommandId(pick(&mut self.rng, u64::MAX));
        self.disks.set_size(MediumId::Journal, size);
        self.group.handle_command(self.now, id, Command::GrowJournal { size });
        id
    }

    fn journal_size(&self) -> u64 {
        self.disks.clone().size(MediumId::Journal).expect("a journal")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_journal_grows_under_load_through_death_and_loss_of_power(seed in any::<[u8; 32]>()) {
        let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed));
        for _ in 0..300 {
            match pick(&mut bench.rng, 24) {
                choice if bench.befalls(choice) => {}
                14 if bench.group.journal_growth.is_none() => {
                    // The same again, if it was interrupted.
                    let grown = bench.group.journal.ring_size() == ring_size_of(bench.journal_size());
                    let size = bench.journal_size() + if grown { (1 + pick(&mut bench.rng, 40)) << 16 } else { 0 };
                    bench.begin_to_grow_journal(size);
                }
                _ => bench.mutate(),
            }
        }
        bench.settle();
        let size = bench.journal_size() + MIB;
        let id = bench.begin_to_grow_journal(size);
        bench.settle();
        prop_assert_eq!(bench.replies.remove(&id), Some(Ok(CommandReply::Done)));
        prop_assert_eq!(bench.group.journal.ring_size(), ring_size_of(size));
        bench.check_all();
        (0..40).for_each(|_| bench.mutate());
        bench.kill();
        prop_assert_eq!(bench.group.journal.ring_size(), ring_size_of(size));
        bench.check_all();
    }
}

#[test]
fn a_stop_ends_whatever_grows() {
    for steps in 0..120 {
        for volume in [false, true] {
            let mut bench = Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha));
            (0..60).for_each(|_| bench.mutate());
            let id = if volume {
                bench.flush();
                // The one that it waits for is the next.
                while bench.group.destage.is_running() || bench.group.checkpoint.is_running() {
                    bench.step();
                }
                bench.group.begin_checkpoint();
                let pool_size = bench.enlarge_pool(8 << 30);
                bench.begin_to_grow(8 << 30, pool_size)
            } else {
                bench.begin_to_grow_journal(bench.journal_size() + MIB)
            };
            for _ in 0..steps {
                bench.step();
            }
            bench.group.handle_command(bench.now, CommandId(7), Command::Stop);
            bench.settle();
            assert_eq!(bench.replies.remove(&CommandId(7)), Some(Ok(CommandReply::Done)), "after {steps} steps");
            assert!(bench.replies.contains_key(&id), "after {steps} steps");
            bench.reopen();
            bench.check_all();
        }
    }
}

#[test]
fn no_batch_begins_before_the_new_ring_is_durable() {
    let mut bench = Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha));
    (0..20).for_each(|_| bench.mutate());
    bench.begin_to_grow_journal(bench.journal_size() + MIB);
    let wanted = ring_size_of(bench.journal_size());
    while bench.group.journal.ring_size() != wanted {
        assert!(bench.step(), "it never becomes empty");
    }
    // A power failure now would bring the old superblock back, which knows nothing of what lies in the new ring.
    (0..10).for_each(|_| bench.mutate());
    loop {
        bench.drain();
        if !bench.group.is_emptying_journal() {
            break;
        }
        let is_batch = |operation: &DiskOperation| {
            let DiskAction::Write { offset, .. } = operation.action else { return false };
            operation.medium == MediumId::Journal && offset >= RING_OFFSET
        };
        assert!(!bench.operations.iter().any(|(operation, _)| is_batch(operation)), "a batch was written");
        assert!(bench.step(), "it never becomes durable");
    }
    bench.settle();
    bench.check_all();
}

fn grow(pair: &mut Pair, node: usize, size: u64) -> Result<CommandReply, CommandError> {
    pair.nodes[node].disks.set_size(MediumId::Journal, size);
    pair.command(node, Command::GrowJournal { size })
}

#[test]
fn both_journals_of_a_pair_grow_while_it_is_used() {
    let mut pair = Pair::in_step_with([4; 32]);
    for round in 1..6 {
        for _ in 0..30 {
            pair.write();
        }
        pair.restart_point();
        for node in 0..2 {
            assert_eq!(grow(&mut pair, node, (16 + 3 * round) * MIB), Ok(CommandReply::Done));
            assert_eq!(pair.nodes[node].group.journal.ring_size(), ring_size_of((16 + 3 * round) * MIB));
        }
        pair.kill((round % 2) as usize);
        pair.connect();
        pair.settle();
    }
    pair.finish();
    assert_eq!(grow(&mut pair, 0, 31 * MIB), Ok(CommandReply::Done), "it has this size");
}

#[test]
fn a_journal_that_is_needed_is_not_touched() {
    let mut pair = Pair::in_step_with([5; 32]);
    let says = |result: Result<CommandReply, CommandError>| result.expect_err("refused").to_string();
    assert_eq!(says(grow(&mut pair, 0, 8 * MIB)), "The journal: it can be made larger, not smaller");
    pair.cut();
    pair.write();
    assert!(says(grow(&mut pair, 0, 32 * MIB)).contains("it holds what the peer lacks; connect the peer"));
    // Suspended, it holds nothing for the peer.
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.settle();
    assert_eq!(grow(&mut pair, 0, 32 * MIB), Ok(CommandReply::Done));
    pair.command(0, Command::ResumePair { compare: true }).unwrap();
    pair.connect();
    pair.settle();
    assert_eq!(pair.nodes[0].group.pair.state, PairState::Duplex);
    // A peer that is there and acknowledges nothing does not keep hosts waiting for long.
    let id = CommandId(pair.next);
    pair.next += 1;
    pair.nodes[0].disks.set_size(MediumId::Journal, 48 * MIB);
    pair.write();
    pair.nodes[0].group.handle_command(pair.now, id, Command::GrowJournal { size: 48 * MIB });
    pair.nodes[0].drain();
    let waits = pair.request(0, Operation::Flush);
    for _ in 0..100 {
        while pair.turn(0, 0) {}
        let at = pair.nodes[0].group.poll_timeout().unwrap_or(pair.now.monotonic);
        pair.now.monotonic = pair.now.monotonic.max(at);
        pair.nodes[0].group.handle_timeout(pair.now);
    }
    while pair.turn(0, 0) {}
    let refused = pair.nodes[0].replies.remove(&id).expect("answered");
    assert!(says(refused).contains("it was not empty after 5 s"));
    assert!(pair.nodes[0].answers.contains_key(&waits));
    pair.settle();
    // A peer that is lost in the midst of it ends it, and service goes on.
    pair.write();
    let id = CommandId(pair.next);
    pair.next += 1;
    pair.nodes[0].disks.set_size(MediumId::Journal, 48 * MIB);
    pair.nodes[0].group.handle_command(pair.now, id, Command::GrowJournal { size: 48 * MIB });
    pair.nodes[0].drain();
    assert!(pair.nodes[0].group.is_emptying_journal());
    pair.write_at(0, 4096);
    pair.cut();
    pair.settle();
    assert_eq!(pair.nodes[0].replies.remove(&id), Some(Err(CommandError::PeerLost)));
    assert_eq!(pair.nodes[0].group.journal.ring_size(), ring_size_of(32 * MIB));
    assert_eq!(pair.nodes[0].group.durable, pair.nodes[0].group.journal.last());
    pair.finish();
}
