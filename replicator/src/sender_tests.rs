//! What a sender makes of its queue, over which link it goes, and what it sends again.

use super::*;
use crate::{ChannelId, receiver::Receiver};

fn frame(size: usize) -> Frame {
    let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
    Frame { channel: ChannelId([3; 16]), header: Bytes::from_static(&[0; 8]), payload: payload.into() }
}

/// A sender whose queue holds so many bytes, and what its peer makes of what it sends.
fn sending(size: usize) -> (Sender, Receiver) {
    let mut sender = Sender::new();
    sender.push(frame(size));
    (sender, Receiver::new())
}

#[test]
fn what_the_only_repair_symbol_does_not_repair_is_sent_again_and_nothing_else() {
    let (mut sender, mut receiver) = sending(30_000);
    let (rtt, both, path) = (20_000, [true; 2], Path::default());
    let poll = |sender: &mut Sender, now| sender.poll(now, 0, both, Mode::Stripe, path);
    let mut index = 0;
    while let Some(symbol) = poll(&mut sender, 1) {
        assert_eq!(symbol.shape.code, Code::Xor, "the test is about another code");
        if ![3, 17, 20].contains(&index) {
            receiver.handle(10_000, symbol, rtt).unwrap();
        }
        index += 1;
    }
    let mut ack = Acknowledgement::default();
    receiver.tell(20_000, rtt, &mut ack);
    sender.acknowledged(30_000, &ack, [rtt; 2], [0, 0]);
    let again: Vec<_> = std::iter::from_fn(|| poll(&mut sender, 30_000)).collect();
    assert_eq!(again.len(), 2, "two and the repair symbol are enough");
    for symbol in again {
        assert!([3, 17, 20].contains(&symbol.index), "it has {}", symbol.index);
        receiver.handle(40_000, symbol, rtt).unwrap();
    }
    assert!(receiver.pop().is_some());
}

#[test]
fn what_is_on_its_way_over_the_farther_link_is_not_sent_again() {
    let (mut sender, mut receiver) = sending(2_000);
    let (rtts, both, path) = ([20_000, 80_000], [true; 2], Path::default());
    let near = sender.poll(1_000_000, 0, both, Mode::Stripe, path).unwrap();
    assert!(sender.poll(1_000_000, 1, both, Mode::Stripe, path).is_some());
    while sender.poll(1_000_000, 0, both, Mode::Stripe, path).is_some() {}
    receiver.handle(1_010_000, near, 80_000).unwrap();
    for (now, is_late) in [(1_040_000, false), (1_100_000, true)] {
        let mut ack = Acknowledgement::default();
        receiver.tell(now, 0, &mut ack);
        assert_eq!(ack.lacking.len(), 1);
        sender.acknowledged(now, &ack, rtts, [0, 1]);
        assert_eq!(sender.poll(now, 0, both, Mode::Stripe, path).is_some(), is_late, "{now}");
    }
}

#[test]
fn little_goes_over_the_nearer_link_alone_and_much_over_both() {
    let (near, far) = (Path::default(), Path { is_farther: true, ..Path::default() });
    let (mut sender, _) = sending(4_000);
    assert!(sender.poll(1, 1, [true; 2], Mode::Auto, far).is_none());
    assert!(sender.poll(1, 0, [true; 2], Mode::Auto, near).is_some());
    // Not even what the nearer one has still to send.
    assert!(sender.poll(1, 1, [true; 2], Mode::Auto, far).is_none());
    let (mut sender, _) = sending(500_000);
    assert!(sender.poll(1, 1, [true; 2], Mode::Auto, far).is_some());
    // Alone it carries everything.
    let (mut sender, _) = sending(4_000);
    assert!(sender.poll(1, 1, [false, true], Mode::Auto, far).is_some());
}

/// How many repair symbols are sent with full blocks, the first of them and the last, of a queue of so many bytes.
fn repair_counts(queue: usize, path: Path) -> [usize; 2] {
    let (mut sender, _) = sending(queue);
    let symbols: Vec<_> = std::iter::from_fn(|| sender.poll(1, 0, [true; 2], Mode::Auto, path)).collect();
    let full: Vec<u64> =
        symbols.iter().filter(|symbol| symbol.shape.source_count == 32).map(|symbol| symbol.block).collect();
    let count = |block: u64| symbols.iter().filter(|symbol| symbol.block == block).count();
    [full.iter().min(), full.iter().max()].map(|block| count(*block.unwrap()) - 32)
}

/// What waits behind a block takes longer than it takes to ask for what it lacks; behind the last of them nothing waits.
#[test]
fn a_deep_backlog_has_few_repair_symbols_and_its_end_all() {
    let path = Path { loss: 0.05, under_way: Some(400_000), ..Path::default() };
    assert_eq!(repair_counts(1 << 20, path), [3, 11]);
    assert_eq!(repair_counts(16 << 20, Path { under_way: Some(5_000_000), ..path }), [3, 11]);
    let many = repair_count(32, 0.05, RESIDUAL_BACKLOG);
    // Less waits than it takes; nothing is known.
    for (queue, under_way) in [(700_000, Some(400_000)), (1 << 20, None)] {
        let path = Path { under_way, ..path };
        assert_eq!(repair_counts(queue, path), [many, 11], "{queue} bytes, {under_way:?} under way");
    }
}

#[test]
fn a_burst_of_loss_hits_each_block_of_a_backlog_a_little() {
    let (mut sender, _) = sending(1 << 20);
    let symbols = std::iter::from_fn(|| sender.poll(1, 0, [true; 2], Mode::Auto, Path::default()));
    let blocks: Vec<u64> = symbols.map(|symbol| symbol.block).collect();
    // At the end there is no backlog any more.
    for burst in blocks[..400].chunks_exact(8) {
        let most = burst.iter().map(|block| burst.iter().filter(|other| *other == block).count()).max();
        assert!(most <= Some(2), "{burst:?}");
    }
    let (mut sender, _) = sending(100_000);
    assert_eq!(sender.poll(1, 0, [true; 2], Mode::Auto, Path::default()).map(|symbol| symbol.block), Some(0));
    assert_eq!(sender.poll(1, 0, [true; 2], Mode::Auto, Path::default()).map(|symbol| symbol.block), Some(0));
}

#[test]
fn a_block_of_which_nothing_is_heard_is_asked_about_over_both_links() {
    let (mut sender, _) = sending(2_000);
    let (both, path, rtt) = ([true; 2], Path::default(), 20_000);
    while sender.poll(1, 0, both, Mode::Auto, path).is_some() {}
    let mut now = 1;
    for _ in 0..3 {
        now = sender.timeout([rtt; 2]).unwrap();
        sender.probe(now, [rtt; 2], [0, 1]);
        for link in [0, 1] {
            // In this mode no link takes what another one has in line.
            let asked = std::iter::from_fn(|| sender.poll(now, link, both, Mode::Mirror, path)).count();
            assert_eq!(asked, 2, "the block has two symbols");
        }
    }
    assert!(now < 300_000, "only after {now} us");
}

/// The other link may be far away: what goes over this one need not wait as long.
#[test]
fn a_block_is_asked_about_by_the_round_trip_of_the_link_that_it_went_over() {
    for (link, rtt) in [(0, 20_000), (1, 300_000)] {
        let (mut sender, _) = sending(2_000);
        while sender.poll(1, link, [true; 2], Mode::Stripe, Path::default()).is_some() {}
        assert_eq!(sender.timeout([20_000, 300_000]), Some(1 + rtt * 3 / 2 + PROBE_MICROS));
    }
}

#[test]
fn what_is_asked_for_goes_over_both_links_and_in_a_backlog_over_the_one_then_the_other() {
    let (both, path, rtt) = ([true; 2], Path::default(), 20_000);
    let answers = |sender: &mut Sender, now| {
        let lacking = vec![Lacking { block: 0, count: 1, missing: 1 }];
        sender.acknowledged(now, &Acknowledgement { lacking, ..Acknowledgement::default() }, [rtt; 2], [0, 1]);
        // In this mode no link takes what another one has in line.
        [0, 1].map(|link| sender.poll(now, link, both, Mode::Mirror, path).filter(|symbol| symbol.block == 0).is_some())
    };
    let (mut sender, _) = sending(2_000);
    for link in [0, 1] {
        while sender.poll(1, link, both, Mode::Mirror, path).is_some() {}
    }
    assert_eq!(answers(&mut sender, 100_000), [true; 2]);
    let (mut sender, _) = sending(1 << 20);
    for link in [0, 1] {
        while !sender.lines[link].is_empty() || sender.next_block == 0 {
            sender.poll(1, link, both, Mode::Mirror, path);
        }
    }
    assert_eq!(answers(&mut sender, 100_000), [true, false]);
    assert_eq!(answers(&mut sender, 200_000), [false, true]);
    assert_eq!(answers(&mut sender, 300_000), [true, false]);
}

/// The link is slow: what was asked for stands in line when it is asked for again, and when nothing is heard for long.
#[test]
fn what_stands_in_line_is_not_sent_again() {
    let (mut sender, _) = sending(30_000);
    let (alone, path, rtt) = ([true, false], Path::default(), 20_000);
    while sender.poll(1, 0, alone, Mode::Auto, path).is_some() {}
    let ask = |sender: &mut Sender, now, count| {
        let lacking = vec![Lacking { block: 0, count, missing: 0b1111 }];
        sender.acknowledged(now, &Acknowledgement { lacking, ..Acknowledgement::default() }, [rtt; 2], [0, 0]);
    };
    for (now, count) in [(100_000, 3), (200_000, 3), (300_000, 4)] {
        ask(&mut sender, now, count);
        sender.probe(now + 50_000, [rtt; 2], [0, 0]);
        sender.link_lost(1);
    }
    let again = |sender: &mut Sender| std::iter::from_fn(|| sender.poll(400_000, 0, alone, Mode::Auto, path)).count();
    assert_eq!(again(&mut sender), 4);
    // It was lost.
    ask(&mut sender, 500_000, 4);
    assert_eq!(again(&mut sender), 4);
}

#[test]
fn what_went_over_a_link_that_is_lost_goes_over_the_other_and_nothing_else() {
    let (mut sender, mut receiver) = sending(30_000);
    let (both, path) = ([true; 2], Path::default());
    let mut lost = Vec::new();
    loop {
        let near = sender.poll(1, 0, both, Mode::Auto, path);
        let far = sender.poll(1, 1, both, Mode::Auto, path);
        lost.extend(far.as_ref().map(|symbol| symbol.index));
        let Some(symbol) = near else { break };
        receiver.handle(10_000, symbol, 20_000).unwrap();
    }
    assert!(lost.len() > 10, "both links carry the block");
    sender.link_lost(1);
    let again: Vec<_> = std::iter::from_fn(|| sender.poll(2, 0, [true, false], Mode::Auto, path)).collect();
    lost.sort_unstable();
    assert!(again.iter().map(|symbol| symbol.index).eq(lost), "something else is sent again");
    again.into_iter().for_each(|symbol| receiver.handle(20_000, symbol, 20_000).unwrap());
    assert!(receiver.pop().is_some());
}

#[test]
fn a_busy_link_waits_for_a_full_block_but_not_for_long() {
    let (both, busy) = ([true; 2], Path { hold: 2_500, ..Path::default() });
    let (mut sender, _) = sending(4_000);
    assert!(sender.poll(1_000, 0, both, Mode::Auto, busy).is_none());
    assert_eq!(sender.held_until(), Some(3_500));
    // The other one, which has room, does not.
    assert!(sender.poll(2_000, 1, both, Mode::Auto, Path::default()).is_some());
    assert_eq!(sender.held_until(), None);
    while sender.poll(2_000, 0, both, Mode::Auto, busy).is_some() {}
    sender.push(frame(4_000));
    assert!(sender.poll(3_000, 0, both, Mode::Auto, busy).is_none());
    assert!(sender.poll(5_499, 0, both, Mode::Auto, busy).is_none());
    // Nothing comes of it when no link can send.
    sender.release(5_500);
    assert_eq!(sender.held_until(), None);
    assert!(sender.poll(5_500, 0, both, Mode::Auto, busy).is_some());
    let (mut sender, _) = sending(100_000);
    assert!(sender.poll(1_000, 0, both, Mode::Auto, busy).is_some());
    // Other modes have as many repair symbols for little blocks as for full ones.
    for mode in [Mode::Split, Mode::Mirror] {
        let (mut sender, _) = sending(4_000);
        assert!(sender.poll(1_000, 0, both, mode, busy).is_some());
    }
}

#[test]
fn what_waits_for_the_nearer_link_does_not_go_over_the_farther() {
    let (both, near) = ([true; 2], Path { hold: 2_500, ..Path::default() });
    let far = Path { is_farther: true, ..Path::default() };
    let (mut sender, _) = sending(20_000);
    assert!(sender.poll(1_000, 1, both, Mode::Auto, near).is_none());
    sender.push(frame(20_000));
    assert!(sender.poll(1_500, 0, both, Mode::Auto, far).is_none());
    assert!(sender.poll(1_500, 1, both, Mode::Auto, near).is_some());
}

#[test]
fn the_same_request_is_answered_again_when_the_answer_is_lost_however_far_the_peer_is() {
    let (mut sender, mut receiver) = sending(30_000);
    let (rtt, both, path) = (400_000, [true; 2], Path::default());
    let first = sender.poll(1, 0, both, Mode::Auto, path).unwrap();
    while sender.poll(1, 0, both, Mode::Auto, path).is_some() {}
    receiver.handle(200_000, first, rtt).unwrap();
    for _ in 0..3 {
        let asked = receiver.timeout().unwrap();
        let mut ack = Acknowledgement::default();
        receiver.tell(asked, rtt, &mut ack);
        assert_eq!(ack.lacking.len(), 1);
        sender.acknowledged(asked + rtt / 2, &ack, [rtt; 2], [0, 1]);
        let answers = [0, 1]
            .map(|link| std::iter::from_fn(|| sender.poll(asked + rtt / 2, link, both, Mode::Mirror, path)).count());
        assert!(answers.iter().all(|count| *count > 0), "{answers:?}");
    }
}

#[test]
fn a_request_that_comes_behind_a_question_is_answered() {
    let (mut sender, mut receiver) = sending(30_000);
    let (rtt, both, path) = (20_000, [true; 2], Path::default());
    let symbols: Vec<_> = std::iter::from_fn(|| sender.poll(1, 0, both, Mode::Auto, path)).collect();
    symbols.into_iter().skip(9).for_each(|symbol| receiver.handle(10_000, symbol, rtt).unwrap());
    let asked = sender.timeout([rtt; 2]).unwrap();
    sender.probe(asked, [rtt; 2], [0, 1]);
    while sender.poll(asked, 0, both, Mode::Mirror, path).is_some() {}
    let mut ack = Acknowledgement::default();
    receiver.tell(asked, rtt, &mut ack);
    sender.acknowledged(asked + 5_000, &ack, [rtt; 2], [0, 1]);
    for symbol in std::iter::from_fn(|| sender.poll(asked + 5_000, 1, both, Mode::Mirror, path)) {
        receiver.handle(asked + 15_000, symbol, rtt).unwrap();
    }
    assert!(receiver.pop().is_some());
}
