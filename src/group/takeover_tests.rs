//! Automatic promotion: in time, never too early, never where the silent primary may serve.

use super::{
    lease_tests::{Act, LEASE, MILLIS, PROMISE, act},
    pair_bench::{Node, Pair},
};
use crate::{
    command::{Command, CommandError, PromoteTarget},
    disk::MediumId,
    pair::{Role, Takeover},
    units::Now,
};
use alloc::vec::Vec;
use proptest::prelude::*;

const AFTER: u64 = 10_000_000;

fn takeover(after: u64) -> Command {
    Command::SetTakeover(Some(Takeover { after_millis: (after / 1000) as u32, to_latest: true }))
}

impl Node {
    /// Carries out what is asked of the journal, and nothing else.
    pub(super) fn only_journal(&mut self, now: Now) {
        self.drain();
        while let Some(index) = self.operations.iter().position(|(operation, _)| operation.medium == MediumId::Journal)
        {
            let (operation, asked) = self.operations.remove(index);
            let outcome = self.disks.carry_out(operation.medium, operation.action, asked);
            self.group.handle_disk(now, operation.id, outcome);
            self.drain();
        }
    }
}

impl Pair {
    fn taking_over(seed: [u8; 32], rates: [u64; 2], after: u64) -> Self {
        let mut pair = Self::leased(seed, rates);
        (0..2).for_each(|node| drop(pair.command(node, takeover(after)).unwrap()));
        pair.run_for(LEASE);
        pair
    }

    pub(super) fn role(&self, node: usize) -> Role {
        self.nodes[node].group.pair.role
    }

    fn is_armed(&self, node: usize) -> bool {
        self.nodes[node].group.takeover_status().is_some_and(|status| status.is_armed)
    }
}

#[test]
fn a_standby_takes_over_when_its_primary_is_silent_for_long() {
    for restarted in [false, true] {
        let mut pair = Pair::taking_over([1; 32], [100; 2], AFTER);
        let id = pair.write_to(0);
        pair.run_for(1_000);
        assert!(pair.is_answered(0, id) && pair.is_armed(1) && !pair.is_armed(0));
        pair.cut();
        if restarted {
            pair.reopen(1);
        }
        pair.run_for(AFTER - 1_000);
        assert_eq!(pair.role(1), Role::Secondary);
        let late = pair.write_to(0);
        pair.run_for(500_000);
        assert_eq!((pair.role(0), pair.role(1)), (Role::Primary, Role::Primary));
        let id = pair.write_to(1);
        pair.run_for(AFTER);
        assert!(pair.is_answered(1, id) && !pair.is_answered(0, late));
        pair.finish();
    }
}

#[test]
fn it_waits_for_what_was_promised() {
    let mut pair = Pair::taking_over([2; 32], [100; 2], 1_000_000);
    pair.cut();
    pair.run_for(PROMISE - LEASE / 3 - 1_000);
    assert_eq!(pair.role(1), Role::Secondary);
    pair.run_for(LEASE);
    assert_eq!(pair.role(1), Role::Primary);
}

#[test]
fn a_primary_that_is_heard_elsewhere_is_left_alone() {
    // A heartbeat counts for longer than this one waits.
    let mut pair = Pair::taking_over([3; 32], [100; 2], 2_000_000);
    pair.cut();
    for _ in 0..10 {
        pair.run_for(1_000_000);
        let now = pair.clock(1);
        pair.nodes[1].group.handle_heartbeat(now);
    }
    assert_eq!(pair.role(1), Role::Secondary);
    let promote = |force| Command::Promote { target: PromoteTarget::Latest, force };
    assert!(matches!(pair.command(1, promote(false)), Err(CommandError::PrimaryHeard { .. })));
    pair.run_for(4_999_000);
    assert_eq!(pair.role(1), Role::Secondary);
    pair.run_for(10_000);
    assert_eq!(pair.role(1), Role::Primary);
}

#[test]
fn it_wants_fencing() {
    let mut pair = Pair::in_step();
    for node in 0..2 {
        assert_eq!(pair.command(node, takeover(AFTER)), Err(CommandError::NotFenced));
        pair.command(node, Command::SetTakeover(None)).unwrap();
    }
    // Fencing ends: the standby knows it before the primary goes on without.
    let mut pair = Pair::taking_over([4; 32], [100; 2], AFTER);
    assert_eq!(pair.command(0, Command::DeletePair), Err(CommandError::Fenced));
    pair.command(0, Command::SetLease { millis: 0, force: false }).unwrap();
    assert!(!pair.is_armed(1));
    pair.cut();
    pair.run_for(4 * AFTER);
    assert_eq!(pair.role(1), Role::Secondary);
    // And on again.
    pair.connect();
    pair.run_for(1_000_000);
    pair.command(0, Command::SetLease { millis: MILLIS, force: false }).unwrap();
    pair.run_for(1_000_000);
    assert!(pair.is_armed(1));
    pair.command(1, Command::SetTakeover(None)).unwrap();
    pair.cut();
    pair.run_for(4 * AFTER);
    assert_eq!(pair.role(1), Role::Secondary);
}

/// The primary was told to go on alone, and the peer is lost before it knows.
#[test]
fn fencing_does_not_end_before_the_standby_knows() {
    let mut pair = Pair::taking_over([5; 32], [100; 2], AFTER);
    let id = crate::command::CommandId(1 << 40);
    pair.nodes[0].group.handle_command(pair.now, id, Command::SetLease { millis: 0, force: false });
    pair.cut();
    assert_eq!(pair.nodes[0].replies.remove(&id), Some(Err(CommandError::PeerLost)));
    pair.run_for(AFTER + LEASE);
    assert_eq!(pair.role(1), Role::Primary);
    let late = pair.write_to(0);
    pair.run_for(AFTER);
    assert!(!pair.is_answered(0, late));
}

/// A node that was promoted by an operator serves without a lease: its standby, whose own promises are older, must not take over.
#[test]
fn a_primary_that_never_had_a_lease_is_left_alone() {
    let mut pair = Pair::taking_over([6; 32], [100; 2], AFTER);
    pair.cut();
    pair.run_for(AFTER / 2);
    pair.command(1, Command::Promote { target: PromoteTarget::Latest, force: true }).unwrap();
    pair.primary = 1;
    pair.connect();
    pair.run_for(1_000_000);
    pair.command(0, Command::Demote { discard_fork: true }).unwrap();
    pair.connect();
    pair.run_for(1_000_000);
    assert_eq!((pair.role(0), pair.role(1)), (Role::Secondary, Role::Primary));
    pair.cut();
    pair.run_for(4 * AFTER);
    assert_eq!(pair.role(0), Role::Secondary);
    let id = pair.write_to(1);
    pair.run_for(1_000);
    assert!(pair.is_answered(1, id));
}

#[test]
fn a_standby_that_knows_it_is_behind_does_not_take_over() {
    let mut pair = Pair::taking_over([7; 32], [100; 2], AFTER);
    pair.cut();
    pair.nodes[1].group.peer.primary_head.seq.0 += 100;
    pair.run_for(4 * AFTER);
    assert_eq!(pair.role(1), Role::Secondary);
}

/// Both nodes are left alone for long, and asked to write: at most one does.
fn at_most_one_serves(pair: &mut Pair) {
    pair.run_for(4 * AFTER);
    let asked = [pair.write_to(0), pair.write_to(1)];
    pair.run_for(1_000_000);
    let answered = [pair.is_answered(0, asked[0]), pair.is_answered(1, asked[1])];
    assert_ne!(answered, [true; 2], "the roles are {:?}", [pair.role(0), pair.role(1)]);
}

/// A primary that has stepped down, and is promoted again before anything came of it: its standby believes it to be fenced.
#[test]
fn a_primary_that_comes_back_to_its_role_is_as_fenced_as_it_was() {
    let promote = Command::Promote { target: PromoteTarget::Latest, force: false };
    for (connected, command) in [
        (true, Command::Demote { discard_fork: false }),
        (true, Command::HandOver),
        (false, Command::Demote { discard_fork: true }),
    ] {
        let mut pair = Pair::taking_over([8; 32], [100; 2], AFTER);
        if !connected {
            pair.cut();
        }
        pair.command(0, command.clone()).unwrap();
        pair.run_for(if connected && !matches!(command, Command::HandOver) { 1_000_000 } else { 0 });
        pair.cut();
        pair.command(0, promote.clone()).unwrap();
        at_most_one_serves(&mut pair);
    }
}

/// The operator has let the primary go on alone while its standby was away; the standby hears of it when it is back.
#[test]
fn a_standby_that_was_away_learns_that_its_primary_is_not_fenced() {
    let mut pair = Pair::taking_over([9; 32], [100; 2], AFTER);
    pair.cut();
    pair.command(0, Command::SetLease { millis: 0, force: true }).unwrap();
    pair.run_for(1_000_000);
    pair.connect();
    pair.run_for(1_000_000);
    assert!(!pair.is_armed(1));
    pair.cut();
    pair.run_for(4 * AFTER);
    assert_eq!(pair.role(1), Role::Secondary);
    let id = pair.write_to(0);
    pair.run_for(1_000_000);
    assert!(pair.is_answered(0, id));
}

/// The primary forgets that it was to be fenced before that is durable: its standby must not have counted on it.
#[test]
fn nobody_counts_on_a_fence_that_is_not_durable() {
    let mut pair = Pair::taking_over([10; 32], [100; 2], AFTER);
    pair.command(0, Command::SetLease { millis: 0, force: false }).unwrap();
    pair.run_for(1_000_000);
    let id = crate::command::CommandId(1 << 41);
    pair.nodes[0].group.handle_command(pair.now, id, Command::SetLease { millis: MILLIS, force: false });
    // No disk operation of the primary ends.
    for _ in 0..1000 {
        pair.nodes[0].drain();
        pair.turn(0, 1);
        pair.turn(1, 0);
    }
    assert!(!pair.is_armed(1) && !pair.nodes[0].replies.contains_key(&id));
    pair.reopen(0);
    pair.run_for(4_000_000);
    at_most_one_serves(&mut pair);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// As for promotions by command: once the standby has taken over, the former primary answers nothing.
    #[test]
    fn two_nodes_never_answer_at_once(
        seed: [u8; 32], slow in 95u64..=100, which in 0usize..2, after in 500_000u64..6_000_000,
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let mut rates = [100; 2];
        rates[which] = slow;
        let mut pair = Pair::taking_over(seed, rates, after);
        let mut asked = Vec::new();
        for act in acts.into_iter().chain([Act::Cut, Act::Pass(20_000_000)]) {
            pair.act(&act, &mut asked);
            if pair.role(1) == Role::Primary {
                break;
            }
        }
        if pair.role(1) != Role::Primary {
            return Ok(());
        }
        pair.answers_no_more(asked);
    }
}
