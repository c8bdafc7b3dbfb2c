//! The apply policy `delayed`.

use super::{CommandId, MediumId, VolumeId, alone_bench::Alone, pair_bench::Pair};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, PromoteTarget},
    format::record::Kind,
    pair::{ApplyPolicy, PairState, Role},
    request::{Durability, Operation},
    units::VOLUME_SIZE_MIN,
};

const DELAYED: Command = Command::SetPolicy(ApplyPolicy::Delayed);

impl Pair {
    pub(super) fn fill(&mut self, offset: u64, size: usize) {
        self.write_at(offset, size);
        self.settle();
    }
}

#[test]
fn of_several_writes_between_two_restart_points_only_the_last_is_destaged() {
    let mut pair = Pair::in_step();
    pair.command(1, DELAYED).unwrap();
    pair.restart_point();
    pair.settle();
    let before = pair.nodes[1].pool_written;
    for round in 0..50 {
        pair.fill(round % 4 * 16384, 4096);
        // A redirected write that is overwritten, too: it goes to the pool once, and its blocks are used again.
        if round == 10 {
            pair.fill(256 << 10, 64 << 10);
        }
    }
    for part in 0..4 {
        pair.fill((256 << 10) + part * 16384, 16384);
    }
    let held = pair.nodes[1].pool_written - before;
    assert_eq!(held, 64 << 10, "destaged before the restart point");
    assert_eq!(pair.nodes[1].group.applied, pair.nodes[1].group.stream.restart_point.as_ref().unwrap().order);
    pair.restart_point();
    pair.settle();
    let written = pair.nodes[1].pool_written - before - held;
    // Table pages and superblocks come to that.
    let tables = 4 * 4096;
    assert!(written <= 4 * 4096 + (64 << 10) + tables, "{written} bytes destaged of 50 writes to four places");
    assert_eq!(pair.nodes[1].group.applied, pair.nodes[1].group.journal.last());
    pair.finish();
}

#[test]
fn a_promotion_discards_what_waits_for_a_restart_point() {
    let mut pair = Pair::in_step();
    pair.command(1, DELAYED).unwrap();
    pair.fill(0, 4096);
    pair.restart_point();
    pair.fill(0, 8192);
    pair.fill(64 << 10, 64 << 10);
    assert!(pair.promote(PromoteTarget::RestartPoint));
    pair.fill(4096, 4096);
    pair.finish();
}

#[test]
fn an_interval_that_the_journal_cannot_hold_is_applied_and_nothing_is_lost() {
    let mut pair = Pair::in_step();
    pair.command(1, DELAYED).unwrap();
    pair.restart_point();
    for round in 0..400 {
        pair.fill(round % 16 * 61_440, 61_440);
    }
    assert_eq!(pair.nodes[0].group.pair.state, PairState::Duplex);
    assert!(pair.nodes[1].group.status(pair.now).delay_given_up);
    assert!(pair.nodes[1].group.applied > pair.nodes[1].group.stream.restart_point.as_ref().unwrap().order);
    pair.restart_point();
    pair.settle();
    pair.fill(0, 4096);
    assert!(!pair.nodes[1].group.status(pair.now).delay_given_up, "it never holds back again");
    assert!(pair.nodes[1].group.applied < pair.nodes[1].group.journal.last());
    assert!(pair.promote(PromoteTarget::RestartPoint));
    pair.finish();
}

/// What supersedes a write must be durable before that write is left out.
#[test]
fn a_write_counts_as_long_as_its_successor_may_be_lost() {
    let mut pair = Pair::in_step();
    pair.command(1, DELAYED).unwrap();
    pair.restart_point();
    pair.fill(0, 4096);
    pair.settle();
    let last = pair.nodes[1].group.stream.last;
    let state = pair.state.clone();
    // The successor and a restart point arrive, and the standby's journal does not get to write them.
    let data = AlignedBuffer::new(4096).freeze();
    pair.request(0, Operation::Write { offset: 0, data, durability: Durability::Completed });
    let label = "late".parse().unwrap();
    pair.nodes[0].group.handle_command(pair.now, CommandId(9_999), Command::RestartPoint { label });
    while pair.nodes[1].group.stream.last.seq.0 < last.seq.0 + 2 {
        let rng = &mut pair.rng;
        pair.nodes[0].step(pair.now, rng);
        while let Some(frame) = pair.nodes[0].outbox.pop_front() {
            let body = [frame.header, frame.payload].concat();
            pair.nodes[1].group.handle_frame(pair.now, body.into());
        }
    }
    pair.nodes[1].group.checkpoint.wanted = true;
    pair.idle();
    loop {
        pair.nodes[1].drain();
        let operations = &mut pair.nodes[1].operations;
        let Some(index) = operations.iter().position(|(operation, _)| operation.medium != MediumId::Journal) else {
            break;
        };
        let (operation, asked) = operations.swap_remove(index);
        let outcome = pair.nodes[1].disks.carry_out(operation.medium, operation.action, asked);
        pair.nodes[1].group.checkpoint.wanted = true;
        pair.nodes[1].group.handle_disk(pair.now, operation.id, outcome);
    }
    pair.reopen(1);
    assert_eq!(pair.nodes[1].group.stream.last, last);
    assert!(pair.content(1) == state, "the write is gone, and so is its successor");
}

#[test]
fn a_policy_is_changed_while_records_wait() {
    let mut pair = Pair::in_step();
    pair.command(1, DELAYED).unwrap();
    pair.fill(0, 4096);
    assert!(pair.nodes[1].group.applied < pair.nodes[1].group.journal.last());
    pair.command(1, Command::SetPolicy(ApplyPolicy::Snapshot)).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[1].group.applied, pair.nodes[1].group.journal.last());
    pair.finish();
}

/// An entry in memory may take more than it does in the ring.
#[test]
fn what_waits_is_bounded_by_count_too() {
    let mut alone = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    alone.restart_point();
    alone.group.pair.role = Role::Secondary;
    alone.group.pair.policy = ApplyPolicy::Delayed;
    for round in 0.. {
        (0..1000).for_each(|_| alone.group.stage_zeroes(Kind::Discard, VolumeId(1), 0, 4096, false));
        alone.settle();
        let journal = &alone.group.journal;
        assert!(journal.entry_count() as u64 <= journal.entry_count_max() / 8 * 5, "round {round}");
        if alone.group.has_given_up_delay() {
            assert!(round > 50 && journal.live_size() < journal.ring_size() / 4, "round {round}");
            break;
        }
    }
}
