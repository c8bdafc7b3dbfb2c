//! Histories of a pair: whatever happens, the standby shows a state that the primary went through.

use super::{CommandId, pair_bench::Pair, tests::pick};
use crate::{
    command::{Command, CommandError, GenerationId, GenerationKind, PromoteTarget},
    pair::{ApplyPolicy, Cause, Level, PairState, Role},
    request::Operation,
    units::{NodeKey, Position, VOLUME_SIZE_MIN},
};
use alloc::vec::Vec;
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRng};

/// `calm`: how seldom a standby is promoted.
fn history(seed: [u8; 32], steps: usize, calm: u64) -> Pair {
    let mut pair = Pair::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed));
    for _ in 0..pick(&mut pair.rng, 20) {
        pair.write();
    }
    for node in 0..2 {
        let count = 1 + pick(&mut pair.rng, 5) as u16;
        pair.command(node, Command::KeepGenerations { count, seconds: 0 }).unwrap();
    }
    pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
    pair.connect();
    for _ in 0..steps {
        if pick(&mut pair.rng, 40) == 0 {
            let (node, policy) = (pick(&mut pair.rng, 2) as usize, pick(&mut pair.rng, 2) as usize);
            let policy = [ApplyPolicy::Snapshot, ApplyPolicy::Delayed][policy];
            pair.command(node, Command::SetPolicy(policy)).unwrap();
            pair.idle();
        }
        match pick(&mut pair.rng, 60) {
            0 => pair.cut(),
            1 | 2 => pair.connect(),
            3 => pair.kill(pair.primary),
            4 => pair.kill(1 - pair.primary),
            5 => pair.settle(),
            6 | 35 => {
                pair.restart_point();
                if pick(&mut pair.rng, 2) == 0 {
                    pair.settle();
                }
            }
            7 => {
                pair.check_standby();
                pair.check_fence();
                (0..2).for_each(|node| pair.check_generations(node));
            }
            8 => {
                let (primary, chance) = (pair.primary, pick(&mut pair.rng, 4));
                let _ = pair.command(
                    primary,
                    [Command::SuspendPair { now: chance == 2 }, Command::ResumePair { compare: true }]
                        [chance as usize % 2]
                        .clone(),
                );
            }
            9 if pick(&mut pair.rng, calm) == 0 => {
                let (now, standby) = (pair.now, 1 - pair.primary);
                let kept = pair.nodes[standby].group.status(now).generations;
                let points = kept.iter().filter(|kept| kept.kind == GenerationKind::RestartPoint);
                let mut targets: Vec<PromoteTarget> = points
                    .filter_map(|kept| match kept.name {
                        GenerationId::Number(number) => Some(PromoteTarget::Generation(number)),
                        GenerationId::Fork(_) => None,
                    })
                    .collect();
                if targets.is_empty() || pick(&mut pair.rng, 2) == 0 {
                    targets = [PromoteTarget::Latest, PromoteTarget::RestartPoint].into();
                }
                let target = targets[pick(&mut pair.rng, targets.len() as u64) as usize];
                if pair.promote(target) && pick(&mut pair.rng, 2) == 0 {
                    pair.rejoin();
                }
            }
            10..35 => {
                pair.step();
            }
            _ => {
                if pair.nodes[pair.primary].group.pair.role == Role::Primary {
                    pair.write();
                }
            }
        }
    }
    if pair.nodes[pair.primary].group.pair.state == PairState::Suspended(Cause::Command) {
        pair.command(pair.primary, Command::ResumePair { compare: true }).unwrap();
    }
    pair.finish();
    pair.idle();
    pair.settle();
    (0..2).for_each(|node| pair.check_generations(node));
    pair
}

/// The histories do what they are to check.
#[test]
fn histories_keep_generations_and_forks() {
    let (mut generations, mut forks, mut older) = (0, 0, 0);
    for seed in 0..24 {
        let pair = history([seed; 32], 600, 1);
        generations += pair.checked_generations;
        forks += pair.checked_forks;
        older += pair.promoted_to_older;
    }
    assert!(generations > 200 && forks > 5 && older > 2, "{generations} generations, {forks} forks, {older} older");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_standby_follows_whatever_happens(seed in any::<[u8; 32]>()) {
        history(seed, 400, 4);
    }

    #[test]
    fn the_standby_follows_through_many_promotions(seed in any::<[u8; 32]>()) {
        history(seed, 600, 1);
    }
}

#[test]
fn nothing_acknowledged_at_remote_is_lost_by_promotion() {
    let mut pair = Pair::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha));
    pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
    pair.command(0, Command::SetLevel(Level::Remote)).unwrap();
    pair.connect();
    pair.settle();
    let mut last = None;
    for _ in 0..200 {
        let id = pair.write();
        let state = pair.state.clone();
        for _ in 0..pick(&mut pair.rng, 40) {
            pair.step();
            if pair.nodes[0].answers.contains_key(&id) {
                last = Some((pair.nodes[0].group.stream.last, state));
                break;
            }
        }
    }
    let (acknowledged, _) = last.expect("something was acknowledged");
    pair.cut();
    assert!(pair.nodes[1].group.stream.last >= acknowledged);
    assert!(pair.promote(PromoteTarget::Latest));
}

/// A standby whose pool and journal are full says nothing and holds in memory what it gets.
#[test]
fn a_peer_that_makes_nothing_durable_gets_little() {
    const MIB: u64 = 1 << 20;
    let mut pair = Pair::in_step_on(256 * MIB);
    let sent = |pair: &mut Pair, writes: u64| {
        let mut sent = 0;
        for number in 0..writes {
            pair.write_at_unchecked(number % 15 * MIB, MIB as usize);
            let rng = &mut pair.rng;
            while pair.nodes[0].step(pair.now, rng) {}
            while let Some(frame) = pair.nodes[0].outbox.pop_front() {
                let body = [frame.header, frame.payload].concat();
                sent += body.len() as u64;
                pair.nodes[0].group.handle_stream_credit(pair.now, body.len() as u64);
                pair.nodes[1].group.handle_frame(pair.now, Bytes::from(body));
            }
        }
        sent
    };
    let (first, more) = (sent(&mut pair, 100), sent(&mut pair, 20));
    assert!((64 * MIB..66 * MIB).contains(&first), "{first} bytes");
    assert_eq!(more, 0);
    // When it can, it gets the rest.
    pair.settle();
    assert_eq!(pair.nodes[0].group.stream.last, pair.nodes[1].group.stream.last);
    pair.finish();
}

#[test]
fn a_record_that_does_not_follow_is_refused() {
    let mut pair = Pair::in_step();
    let have = pair.nodes[1].group.stream.last;
    pair.write();
    pair.write();
    while pair.nodes[0].outbox.len() < 2 {
        let rng = &mut pair.rng;
        assert!(pair.nodes[0].step(pair.now, rng), "the writes are not sent");
    }
    pair.nodes[0].outbox.pop_front();
    let frame = pair.nodes[0].outbox.pop_front().unwrap();
    let body = [frame.header.clone(), frame.payload.clone()].concat();
    pair.nodes[1].group.handle_frame(pair.now, Bytes::from(body));
    pair.nodes[1].drain();
    assert!(pair.nodes[1].wants_reconnect, "the gap went unnoticed");
    assert_eq!(pair.nodes[1].group.stream.last, have);
    pair.finish();
}

#[test]
fn a_standby_that_knows_it_is_behind_is_promoted_only_by_force() {
    let mut pair = Pair::in_step();
    pair.restart_point();
    pair.settle();
    let have = pair.nodes[1].group.stream.last;
    pair.cut();
    for _ in 0..20 {
        pair.write();
        pair.step();
    }
    pair.settle();
    // The standby hears how far the primary is, and nothing more.
    pair.connect();
    while pair.nodes[1].group.peer.primary_head <= have {
        pair.step();
    }
    pair.cut();
    assert_eq!(pair.nodes[1].group.stream.last, have, "records came; the test needs another seed");
    for target in [PromoteTarget::RestartPoint, PromoteTarget::Latest] {
        let refused = pair.command(1, Command::Promote { target, force: false });
        let peer = pair.nodes[0].group.stream.last;
        assert_eq!(refused, Err(CommandError::Behind { have, peer }));
    }
    assert!(pair.promote(PromoteTarget::RestartPoint));
}

/// It has all that was sent, and the session may be up: only the primary knows that it goes on alone.
#[test]
fn a_standby_that_was_left_behind_is_promoted_only_by_force() {
    for command in [Command::SuspendPair { now: true }, Command::DeletePair] {
        let mut pair = Pair::in_step();
        pair.restart_point();
        pair.settle();
        let is_duplex = |pair: &Pair| pair.nodes[1].group.status(pair.now).pair == PairState::Duplex;
        assert!(is_duplex(&pair));
        pair.command(0, command.clone()).unwrap();
        pair.settle();
        assert!(!is_duplex(&pair));
        pair.write();
        pair.settle();
        pair.cut();
        for target in [PromoteTarget::RestartPoint, PromoteTarget::Latest] {
            let refused = pair.command(1, Command::Promote { target, force: false });
            assert_eq!(refused, Err(CommandError::LeftBehind));
            // Whoever overrides one reason is told of the others.
            let standby = &mut pair.nodes[1].group;
            let have = standby.stream.last;
            let farther = Position { seq: have.seq.next(), ..have };
            let seen = core::mem::replace(&mut standby.peer.primary_head, farther);
            let refused = pair.command(1, Command::Promote { target, force: false });
            pair.nodes[1].group.peer.primary_head = seen;
            let Err(CommandError::Several(reasons)) = refused else { panic!("{refused:?}") };
            assert!(matches!(reasons[..], [CommandError::Behind { .. }, CommandError::LeftBehind]), "{reasons:?}");
            // Also after a restart.
            pair.reopen(1);
        }
        let again = match command {
            Command::DeletePair => Command::CreatePair { peer: NodeKey([2; 32]) },
            _ => Command::ResumePair { compare: true },
        };
        pair.command(0, again).unwrap();
        pair.connect();
        pair.settle();
        assert!(is_duplex(&pair));
        pair.cut();
        pair.command(1, Command::Promote { target: PromoteTarget::Latest, force: false }).unwrap();
    }
}

/// It would wait for what is not acknowledged any more, and this node could be promoted beside it unasked.
#[test]
fn a_standby_deletes_no_pair_whose_primary_is_connected() {
    let mut pair = Pair::in_step();
    let refused = pair.command(1, Command::DeletePair);
    assert!(matches!(refused, Err(CommandError::WrongRole { role: Role::Secondary, .. })), "{refused:?}");
    pair.write();
    pair.settle();
    assert!(pair.nodes[0].group.peer.acknowledged() == pair.nodes[0].group.journal.last(), "the pair goes on");
    // Nor is there a way out but by the primary, or without it.
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.settle();
    pair.command(1, Command::DeletePair).unwrap();
    let mut pair = Pair::in_step();
    pair.cut();
    pair.command(1, Command::DeletePair).unwrap();
}

/// A sync that began before the point was written says nothing of it: another one must follow at once.
#[test]
fn a_restart_point_waits_for_no_timer() {
    let mut pair = Pair::in_step();
    pair.cut();
    for round in 0..20 {
        pair.write();
        for _ in 0..round % 5 {
            let rng = &mut pair.rng;
            pair.nodes[0].step(pair.now, rng);
        }
        let id = CommandId(1000 + round);
        let label = "point".parse().unwrap();
        pair.nodes[0].group.handle_command(pair.now, id, Command::RestartPoint { label });
        let rng = &mut pair.rng;
        while pair.nodes[0].step(pair.now, rng) {}
        assert!(pair.nodes[0].replies.remove(&id).is_some(), "not answered, though nothing is left to be done");
    }
}

/// An entry in memory may take more than it does in the ring.
#[test]
fn the_journal_is_nearly_full_of_short_entries_too() {
    let mut pair = Pair::in_step_on(64 << 20);
    pair.cut();
    for round in 0.. {
        for _ in 0..1000 {
            pair.request(0, Operation::Discard { offset: VOLUME_SIZE_MIN - 4096, size: 4096 });
        }
        pair.settle();
        let group = &pair.nodes[0].group;
        assert!(group.journal.entry_count() as u64 <= group.journal.entry_count_max() / 8 * 7, "round {round}");
        if group.pair.state == PairState::Suspended(Cause::JournalFull) {
            assert!(round > 50 && group.journal.live_size() < group.journal.ring_size() / 2, "round {round}");
            break;
        }
    }
    pair.finish();
}
