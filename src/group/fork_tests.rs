//! What of a former primary is compared when it comes back.

use super::pair_bench::Pair;
use crate::{
    command::{Command, PromoteTarget},
    output::Event,
    pair::{PairState, Role},
    units::{Order, VolumeId},
};
use alloc::{collections::BTreeSet, vec::Vec};

const BLOCK: u64 = 64 << 10;

/// All that the peer has acknowledged, and the tables have durably, leaves the journal.
fn retire(pair: &mut Pair, node: usize) {
    pair.idle();
    pair.settle();
    pair.nodes[node].group.checkpoint.wanted = true;
    pair.idle();
    pair.settle();
    let group = &mut pair.nodes[node].group;
    let limit = group.applied_durable().min(group.acknowledged_limit());
    group.retire_up_to(limit, |_| true);
}

fn changed(pair: &Pair, node: usize, order: Order) -> BTreeSet<u32> {
    pair.nodes[node].group.volumes[&VolumeId(1)].table.changed_since(order).unwrap().collect()
}

/// Also when it was started anew, in an epoch of its own.
#[test]
fn a_former_primary_knows_what_it_wrote_after_the_restart_point_when_its_journal_does_not() {
    for is_killed in [false, true] {
        let mut pair = Pair::in_step();
        (0..12).for_each(|block| pair.write_at(block * BLOCK, 8192));
        pair.settle();
        pair.restart_point();
        pair.settle();
        let point = pair.nodes[0].group.stream.restart_point.clone().unwrap();
        for block in [3, 7, 14] {
            pair.write_at(block * BLOCK + 4096, 4096);
        }
        pair.settle();
        retire(&mut pair, 0);
        assert!(!pair.nodes[0].group.covers(point.info.at.seq), "the journal still has it");
        // This one is in no table.
        pair.write_at(9 * BLOCK, 4096);
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
        let states: Vec<PairState> = pair.nodes[1]
            .events
            .iter()
            .filter_map(|event| if let Event::PairChanged { state } = event { Some(*state) } else { None })
            .collect();
        assert_eq!(states, [PairState::DuplexPending, PairState::Duplex], "everything was compared");
    }
}

/// As docs/operating.md has it.
#[test]
fn a_fenced_node_can_be_gone_on_from_instead() {
    for discard_fork in [false, true] {
        let mut pair = Pair::in_step();
        (0..4).for_each(|block| pair.write_at(block * BLOCK, 8192));
        pair.settle();
        pair.restart_point();
        pair.settle();
        pair.cut();
        pair.write_at(2 * BLOCK, 4096);
        pair.settle();
        let wanted = pair.state.clone();
        assert!(pair.promote(PromoteTarget::Latest));
        (1..6).for_each(|block| pair.write_at(block * BLOCK, 4096));
        pair.settle();
        pair.connect();
        pair.settle();
        assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
        pair.command(1, Command::Demote { discard_fork: true }).unwrap();
        pair.command(0, Command::Demote { discard_fork }).unwrap();
        pair.settle();
        pair.command(0, Command::Promote { target: PromoteTarget::Latest, force: true }).unwrap();
        (pair.primary, pair.state) = (0, wanted);
        pair.finish();
    }
}
