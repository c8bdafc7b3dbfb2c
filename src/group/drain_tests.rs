//! Suspending a pair in good order, under load, on a carrier that may fail.

use super::{CommandId, pair_bench::Pair, tests::pick};
use crate::{
    command::{Command, CommandError, CommandReply},
    pair::{Cause, PairState},
    units::NodeKey,
};
use proptest::{prelude::*, test_runner::TestRng};

const SUSPEND: Command = Command::SuspendPair { now: false };

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_standby_keeps_the_state_of_the_command(seed in any::<[u8; 32]>()) {
        let mut pair = Pair::in_step_with(seed);
        for _ in 0..4 {
            for _ in 0..pick(&mut pair.rng, 40) {
                pair.write();
                pair.step();
            }
            let id = CommandId(u64::MAX);
            let (last, state) = (pair.nodes[0].group.stream.last, pair.state.clone());
            pair.nodes[0].group.handle_command(pair.now, id, SUSPEND);
            let cut = pick(&mut pair.rng, 4) == 0;
            for round in 0..pick(&mut pair.rng, 40) {
                pair.write();
                pair.step();
                if cut && round == 10 {
                    pair.cut();
                }
            }
            pair.settle();
            prop_assert_eq!(pair.nodes[0].replies.remove(&id), Some(Ok(CommandReply::Done)));
            prop_assert_eq!(pair.nodes[0].group.pair.state, PairState::Suspended(Cause::Command));
            let has = pair.nodes[1].group.stream.last;
            prop_assert!(has == last || (cut && has < last), "the standby is at {}, not {}", has, last);
            if has == last {
                prop_assert!(pair.content(1) == state, "the standby has another state than that of the command");
            }
            // A command forbids what a session would else bring about.
            pair.connect();
            pair.settle();
            prop_assert_eq!(pair.nodes[0].group.pair.state, PairState::Suspended(Cause::Command));
            pair.command(0, Command::ResumePair { compare: true }).unwrap();
            pair.connect();
            pair.settle();
            prop_assert_eq!(pair.nodes[0].group.pair.state, PairState::Duplex);
        }
        pair.finish();
    }
}

#[test]
fn in_a_copy_there_is_nothing_to_wait_for() {
    let mut pair = Pair::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha));
    pair.write();
    pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
    let refused = pair.command(0, SUSPEND);
    assert!(matches!(refused, Err(CommandError::WrongPairState { state: PairState::InitialCopy, .. })), "{refused:?}");
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    assert_eq!(pair.nodes[0].group.pair.state, PairState::Suspended(Cause::Command));
    pair.command(0, Command::ResumePair { compare: true }).unwrap();
    pair.finish();
}

#[test]
fn a_daemon_that_dies_while_it_waits_is_in_duplex_again() {
    let mut pair = Pair::in_step();
    pair.write();
    pair.cut();
    pair.connect();
    pair.settle();
    pair.write();
    pair.nodes[0].group.handle_command(pair.now, CommandId(u64::MAX), SUSPEND);
    pair.nodes[0].drain();
    assert_eq!(pair.nodes[0].group.pair.state, PairState::Suspending);
    // Until everything is written here; nothing is carried.
    let rng = &mut pair.rng;
    while pair.nodes[0].step(pair.now, rng) {}
    pair.reopen(0);
    assert_eq!(pair.nodes[0].group.pair.state, PairState::Duplex);
    pair.finish();
}
