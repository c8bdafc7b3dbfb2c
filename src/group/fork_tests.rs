//! What of a former primary is compared when it comes back.

use super::pair_bench::Pair;
use crate::{
    command::{Command, PromoteTarget},
    output::Event,
    pair::{PairState, Role},
    request::Operation,
    stream_state::KeptPoint,
    units::{Order, VolumeId},
};
use alloc::{collections::BTreeSet, vec::Vec};

const BLOCK: u64 = 64 << 10;

/// With a restart point after writes to so many blocks.
fn at_point(blocks: u64) -> (Pair, KeptPoint) {
    let mut pair = Pair::in_step();
    (0..blocks).for_each(|block| pair.write_at(block * BLOCK, 8192));
    pair.settle();
    pair.restart_point();
    pair.settle();
    let point = pair.nodes[0].group.stream.restart_point.clone().unwrap();
    (pair, point)
}

fn changed(pair: &Pair, node: usize, order: Order) -> BTreeSet<u32> {
    pair.nodes[node].group.volumes[&VolumeId(1)].table.changed_since(order).unwrap().collect()
}

/// Also when it was started anew, in an epoch of its own.
#[test]
fn a_former_primary_knows_what_it_wrote_after_the_restart_point_when_its_journal_does_not() {
    for is_killed in [false, true] {
        let (mut pair, point) = at_point(12);
        for block in [3, 7, 14] {
            pair.write_at(block * BLOCK + 4096, 4096);
        }
        pair.settle();
        pair.retire(0);
        assert!(!pair.nodes[0].group.covers(point.info.at.seq), "the journal still has it");
        // This one is in no table.
        pair.write_at(9 * BLOCK, 4096);
        let listed = pair.nodes[0].group.written_after(point.info.at).unwrap();
        let blocks: BTreeSet<u64> = listed.iter().map(|range| range.offset / BLOCK).collect();
        assert_eq!(blocks, BTreeSet::from([3, 7, 9, 14]));
        assert!(pair.promote(PromoteTarget::RestartPoint));
        assert_eq!(changed(&pair, 0, point.order), BTreeSet::from([3, 7, 14]));
        if is_killed {
            pair.reopen(0);
        }
        pair.write_at(5 * BLOCK, 4096);
        pair.settle();
        pair.connect();
        pair.settle();
        assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
        pair.command(0, Command::Demote { discard_fork: true }).unwrap();
        pair.nodes[1].events.clear();
        pair.finish();
        assert_eq!(states(&pair, 1), [PairState::DuplexPending, PairState::Duplex], "everything was compared");
    }
}

/// A hole that was written and discarded since leaves no trace in the tables, and the last common record may be the write.
#[test]
fn what_is_a_hole_again_is_not_taken_for_unchanged() {
    let (mut pair, _) = at_point(4);
    pair.write_at(9 * BLOCK, 4096);
    let written = pair.nodes[0].group.stream.last;
    while pair.nodes[1].group.durable < pair.nodes[1].group.journal.last() || pair.nodes[1].group.stream.last < written
    {
        assert!(pair.step());
    }
    pair.cut();
    // Both in one cycle of destaging.
    pair.request(0, Operation::Discard { offset: 9 * BLOCK, size: BLOCK });
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.retire(0);
    assert!(pair.promote(PromoteTarget::Latest));
    let fork = pair.nodes[1].group.position_of(pair.nodes[1].group.journal.order_of(written.seq));
    assert_eq!(fork, written);
    pair.reopen(0);
    let former = &pair.nodes[0].group;
    assert!(!former.covers(written.seq), "the journal still has it");
    assert_eq!(former.volumes[&VolumeId(1)].table.entry(9).stamp, 0, "it has left a trace");
    pair.finish();
}

/// Records that the standby has and the primary, whose machine lost power, has not: the new primary's bitmap gets them from its
/// journal, and may be lost with its daemon before it is durable.
#[test]
fn what_a_former_primary_has_lost_is_not_forgotten_when_the_new_one_dies() {
    for steps in 0..80 {
        let mut pair = Pair::in_step();
        (0..4).for_each(|block| pair.write_at(block * BLOCK, 8192));
        pair.settle();
        let before = pair.nodes[0].disks.clone();
        (2..8).for_each(|block| pair.write_at(block * BLOCK, 4096));
        pair.settle();
        pair.nodes[0].disks = before;
        pair.reopen(0);
        assert!(pair.nodes[0].group.stream.last.seq < pair.nodes[1].group.stream.last.seq, "nothing was lost");
        assert!(pair.promote(PromoteTarget::Latest));
        pair.settle();
        pair.idle();
        pair.settle();
        pair.nodes[1].group.checkpoint.wanted = true;
        pair.settle();
        pair.connect();
        pair.settle();
        pair.command(0, Command::Demote { discard_fork: true }).unwrap();
        pair.connect();
        while pair.nodes[1].group.pair.state != PairState::DuplexPending {
            assert!(pair.step(), "everything is compared: {:?}", pair.nodes[1].group.pair.state);
        }
        let group = &mut pair.nodes[1].group;
        let limit = group.applied_durable().min(group.acknowledged_limit());
        group.retire_up_to(limit, |_| true);
        for _ in 0..steps {
            pair.step();
        }
        pair.reopen(1);
        pair.finish();
    }
}

fn states(pair: &Pair, node: usize) -> Vec<PairState> {
    let change = |event: &Event| if let Event::PairChanged { state } = event { Some(*state) } else { None };
    pair.nodes[node].events.iter().filter_map(change).collect()
}

#[test]
fn a_standby_lists_what_its_primary_has_lost() {
    let mut pair = Pair::in_step();
    (0..4).for_each(|block| pair.write_at(block * BLOCK, 8192));
    pair.settle();
    let (disks, state) = (pair.nodes[0].disks.clone(), pair.state.clone());
    (2..8).for_each(|block| pair.write_at(block * BLOCK, 4096));
    pair.settle();
    (pair.nodes[0].disks, pair.state) = (disks, state);
    pair.reopen(0);
    pair.finish();
    assert_eq!(states(&pair, 0), [PairState::DuplexPending, PairState::Duplex], "everything was compared");
}

/// The other node may have a former volume of this size and number.
#[test]
fn a_restart_point_says_nothing_of_a_volume_that_may_have_been_made_since() {
    for older in [0, 1] {
        let (mut pair, point) = at_point(older);
        (3..9).for_each(|block| pair.write_at(block * BLOCK, 4096));
        pair.settle();
        pair.retire(0);
        assert!(!pair.nodes[0].group.covers(point.info.at.seq), "the journal still has it");
        assert_eq!(pair.nodes[0].group.written_after(point.info.at).is_some(), older > 0);
    }
}
