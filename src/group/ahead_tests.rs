//! What is read ahead to be sent.

use super::{
    super::{
        Purpose,
        pair_bench::{Node, Pair},
    },
    COUNT_MAX,
};
use crate::{
    disk::DiskError,
    output::Event,
    pair::{Cause, PairState},
    units::Order,
};
use alloc::vec::Vec;
use proptest::prelude::*;

fn pending(pair: &Pair) -> usize {
    pair.nodes[0].group.peer.ahead.entries.iter().filter(|entry| entry.payload.is_none()).count()
}

/// A primary whose standby is away, with so many records that are in memory no longer.
fn behind(count: u64) -> Pair {
    let mut pair = Pair::in_step();
    pair.cut();
    (0..count).for_each(|number| pair.write_at(number * 8192, 4096));
    pair.settle();
    drop(pair.reopen(0));
    pair.connect();
    pair
}

#[test]
fn many_are_read_at_once_and_sent_in_order() {
    let mut pair = behind(60);
    let (mut most, mut peer_had) = (0, Order(0));
    loop {
        most = most.max(pending(&pair));
        let peer_has = pair.nodes[0].group.peer.acknowledged();
        assert!(peer_has >= peer_had, "{peer_has:?} after {peer_had:?}");
        peer_had = peer_has;
        if !pair.step() {
            let Some(at) = pair.next_timeout() else { break };
            pair.pass_to(at);
        }
    }
    assert_eq!(most, COUNT_MAX);
    assert_eq!(pair.nodes[0].group.peer.ahead.size, 0);
    pair.finish();
}

/// What was read for a session that is over is not sent in the next.
#[test]
fn a_session_that_ends_in_the_midst_of_it_is_made_good() {
    for moment in 0..60 {
        let mut pair = behind(40);
        while pending(&pair) == 0 {
            assert!(pair.step(), "nothing is read");
        }
        for _ in 0..moment {
            pair.step();
        }
        pair.cut();
        assert_eq!(pair.nodes[0].group.peer.ahead.entries.len(), 0);
        pair.connect();
        pair.settle();
        pair.finish();
    }
}

/// The reads of entries that are under way at the primary: nobody else reads there.
fn reads(pair: &Pair) -> Vec<usize> {
    let Node { group, operations, .. } = &pair.nodes[0];
    let is_read = |id| matches!(group.operations.get(id), Some(Purpose::Read { .. }));
    (0..operations.len()).filter(|at| is_read(&operations[*at].0.id)).collect()
}

proptest! {
    /// Small and large ones, of which the data is in the pool, those of parts of a block, and discards.
    #[test]
    fn they_are_sent_whatever_they_are(seed in any::<[u8; 32]>()) {
        let mut pair = Pair::in_step_with(seed);
        pair.cut();
        for _ in 0..40 {
            pair.write();
        }
        pair.settle();
        drop(pair.reopen(0));
        pair.connect();
        pair.settle();
        pair.finish();
    }

    /// Whether it is the turn of one that cannot be read or not: nothing is left out, and the copy makes it good.
    #[test]
    fn one_that_cannot_be_read_is_made_good(seed in any::<[u8; 32]>(), which in 0usize..COUNT_MAX) {
        let mut pair = Pair::in_step_with(seed);
        pair.cut();
        (0..40).for_each(|number| pair.write_at(number * 8192, 4096));
        pair.settle();
        drop(pair.reopen(0));
        pair.connect();
        while reads(&pair).is_empty() {
            prop_assert!(pair.step(), "nothing is read");
        }
        let under_way = reads(&pair);
        let (failing, now) = (under_way[which % under_way.len()], pair.clock(0));
        let (operation, _) = pair.nodes[0].operations.swap_remove(failing);
        pair.nodes[0].group.handle_disk(now, operation.id, Err(DiskError::Failed { errno: 5 }));
        pair.settle();
        let is_suspended =
            |event: &Event| matches!(event, Event::PairChanged { state: PairState::Suspended(Cause::Peer), .. });
        prop_assert!(pair.nodes[0].events.iter().any(is_suspended), "{:?}", pair.nodes[0].events);
        pair.finish();
    }
}
