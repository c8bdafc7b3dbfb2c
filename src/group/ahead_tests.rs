//! What is read ahead to be sent.

use super::{super::pair_bench::Pair, COUNT_MAX};
use crate::units::Order;

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
