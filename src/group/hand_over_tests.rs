//! A primary that steps down in good order, under load, on a carrier that may fail.

use super::{pair_bench::Pair, tests::pick, *};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandReply, PromoteTarget},
    pair::{PairState, Role},
    request::{Durability, Operation},
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_peer_goes_on_with_everything(seed in any::<[u8; 32]>()) {
        let mut pair = Pair::in_step_with(seed);
        for _ in 0..10 {
            for _ in 0..pick(&mut pair.rng, 30) {
                pair.write();
                for _ in 0..pick(&mut pair.rng, 6) {
                    pair.step();
                }
            }
            let (from, to) = (pair.primary, 1 - pair.primary);
            let id = CommandId(u64::MAX);
            pair.nodes[from].group.handle_command(pair.now, id, Command::HandOver);
            // What a host sends now waits, and is answered in the end.
            let data = AlignedBuffer::new(4096).freeze();
            let late = Operation::Write { offset: 2 << 20, data, durability: Durability::Completed };
            let late = pair.request(from, late);
            let cut = pick(&mut pair.rng, 3) == 0;
            for _ in 0..pick(&mut pair.rng, 40) {
                pair.step();
            }
            if cut {
                pair.cut();
            }
            pair.settle();
            let reply = pair.nodes[from].replies.remove(&id).expect("answered");
            match reply {
                Ok(reply) => {
                    prop_assert_eq!(reply, CommandReply::Done);
                    prop_assert_eq!(pair.nodes[from].group.pair.role, Role::Secondary);
                    prop_assert_eq!(pair.nodes[from].answers.remove(&late), Some(Err(RequestError::NotPrimary)));
                    let last = pair.nodes[from].group.stream.last;
                    let have = &pair.nodes[to].group;
                    prop_assert_eq!((have.stream.last, have.durable), (last, have.journal.last()));
                    // Without force: it knows that it lacks nothing.
                    let command = Command::Promote { target: PromoteTarget::Latest, force: false };
                    pair.command(to, command).expect("promoted");
                    pair.primary = to;
                    let (expected, found) = (pair.state.clone(), pair.content(to));
                    prop_assert!(found == expected, "something was lost");
                }
                Err(error) => {
                    prop_assert!(cut);
                    // Either it began and the peer was lost, or the session was gone already.
                    let refused = matches!(error, CommandError::PeerLost | CommandError::WrongPairState { .. });
                    prop_assert!(refused, "{}", error);
                    prop_assert_eq!(pair.nodes[from].group.pair.role, Role::Primary);
                    prop_assert_eq!(pair.nodes[from].answers.remove(&late), Some(Ok(Reply::Done)));
                }
            }
            pair.connect();
            pair.settle();
            prop_assert_eq!(pair.nodes[pair.primary].group.pair.state, PairState::Duplex);
        }
        pair.finish();
    }
}
