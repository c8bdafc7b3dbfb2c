//! Fencing by lease.

use super::pair_bench::Pair;
use crate::{
    command::{Command, CommandError, CommandId, CommandReply, PromoteTarget},
    output::Event,
    pair::{PairState, Role},
    request::{Operation, Reply, RequestError, RequestId},
};
use alloc::vec::Vec;
use proptest::prelude::*;

pub(super) const MILLIS: u32 = 3_000;
pub(super) const LEASE: u64 = MILLIS as u64 * 1000;
/// What the peer waits at most: a sixteenth longer, and a moment.
pub(super) const PROMISE: u64 = LEASE + LEASE / 16 + 50_000;
const PROMOTE: Command = Command::Promote { target: PromoteTarget::Latest, force: false };

impl Pair {
    pub(super) fn leased(seed: [u8; 32], rates: [u64; 2]) -> Self {
        let mut pair = Self::in_step_with(seed);
        pair.rates = rates;
        pair.command(0, Command::SetLease { millis: MILLIS, force: false }).unwrap();
        pair.run_for(10_000);
        assert!(pair.left(0) > 0, "no lease was granted");
        pair
    }

    /// Everything that happens within so many microseconds.
    pub(super) fn run_for(&mut self, micros: u64) {
        let end = self.now.monotonic.after(micros);
        loop {
            while self.step() {}
            let next = self.next_timeout().filter(|at| *at < end);
            self.pass_to(next.unwrap_or(end));
            if next.is_none() {
                while self.step() {}
                return;
            }
        }
    }

    /// The first node hands over to the second.
    fn switch(&mut self) {
        self.command(0, Command::HandOver).unwrap();
        self.run_for(1_000);
        self.command(1, PROMOTE).unwrap();
        self.run_for(1_000_000);
        self.connect();
        self.run_for(1_000_000);
    }

    /// Frames arrive, and no disk operation ends.
    fn carry(&mut self) {
        while (0..2).any(|node| self.turn(node, 1) || self.turn(node, 2)) {}
    }

    /// Lets something happen; what is asked of the primary is noted.
    pub(super) fn act(&mut self, act: &Act, asked: &mut Vec<RequestId>) {
        match *act {
            Act::Cut => self.cut(),
            Act::Connect => self.connect(),
            Act::Pass(micros) => self.run_for(micros),
            Act::Stall(micros) => self.pass_to(self.now.monotonic.after(micros)),
            Act::Step(count) => {
                for _ in 0..count {
                    self.step();
                }
            }
            Act::Write => asked.push(self.write_to(0)),
            Act::Restart(node) => drop(self.reopen(node)),
            Act::Set(millis) => {
                let id = CommandId(self.next);
                self.next += 1;
                let now = self.clock(0);
                self.nodes[0].group.handle_command(now, id, Command::SetLease { millis, force: false });
            }
        }
    }

    fn left(&self, node: usize) -> u64 {
        let group = &self.nodes[node].group;
        group.lease_status(group.now).map_or(0, |status| status.left_millis)
    }

    pub(super) fn write_to(&mut self, node: usize) -> RequestId {
        self.primary = node;
        let id = RequestId(self.next);
        self.write_at(0, 4096);
        id
    }

    pub(super) fn is_answered(&self, node: usize, id: RequestId) -> bool {
        self.nodes[node].answers.get(&id) == Some(&Ok(Reply::Done))
    }

    /// The former primary answers nothing of what it was asked and has not answered, nor what it is asked now; the read among that.
    pub(super) fn answers_no_more(&mut self, mut asked: Vec<RequestId>) -> RequestId {
        asked.retain(|id| !self.is_answered(0, *id));
        asked.push(self.write_to(0));
        let read = self.request(0, Operation::Read { offset: 0, size: 4096 });
        self.run_for(20_000_000);
        for id in asked {
            assert!(!self.is_answered(0, id), "answered after the promotion");
        }
        assert!(!matches!(self.nodes[0].answers.get(&read), Some(Ok(_))), "read after the promotion");
        read
    }
}

#[test]
fn a_primary_answers_only_while_its_peer_promises() {
    let mut pair = Pair::leased([1; 32], [100; 2]);
    pair.run_for(10 * LEASE);
    let id = pair.write_to(0);
    pair.run_for(1_000);
    assert!(pair.is_answered(0, id));
    pair.cut();
    pair.run_for(LEASE / 2);
    let id = pair.write_to(0);
    pair.run_for(1_000);
    assert!(pair.is_answered(0, id), "the lease is not over");
    assert!(matches!(pair.command(1, PROMOTE), Err(CommandError::Leased { seconds: 1..=2 })));
    pair.run_for(LEASE / 2);
    let late = pair.write_to(0);
    pair.run_for(60_000_000);
    assert!(!pair.is_answered(0, late), "answered without a lease");
    // The peer is back: it goes on where it was.
    pair.connect();
    pair.run_for(1_000_000);
    assert!(pair.is_answered(0, late));
    pair.command(0, Command::SetLease { millis: 0, force: false }).unwrap();
    pair.cut();
    pair.run_for(10 * LEASE);
    let id = pair.write_to(0);
    pair.run_for(1_000);
    assert!(pair.is_answered(0, id), "without fencing it goes on alone");
    pair.finish();
}

#[test]
fn a_promotion_waits_for_what_was_promised() {
    let mut pair = Pair::leased([2; 32], [100; 2]);
    pair.cut();
    // Its daemon is started anew and knows no time; it counts from now.
    pair.run_for(LEASE);
    pair.reopen(1);
    assert!(matches!(pair.command(1, PROMOTE), Err(CommandError::Leased { seconds: 4 })));
    pair.run_for(PROMISE + 1);
    let CommandReply::Promoted { .. } = pair.command(1, PROMOTE).unwrap() else { panic!() };
    // It serves alone; nobody could grant it a lease.
    let id = pair.write_to(1);
    pair.run_for(1_000);
    assert!(pair.is_answered(1, id));
    // The former primary, started anew, answers nothing until it hears of the promotion.
    pair.reopen(0);
    let id = pair.write_to(0);
    pair.run_for(60_000_000);
    assert!(!pair.nodes[0].answers.contains_key(&id));
    pair.connect();
    pair.run_for(1_000_000);
    assert_eq!(pair.nodes[0].answers.get(&id), Some(&Err(RequestError::NotPrimary)));
    assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
}

#[test]
fn a_primary_that_steps_down_releases_its_peer() {
    let mut pair = Pair::leased([3; 32], [100; 2]);
    pair.switch();
    // Both are there: the new primary has the old one's promise now.
    let id = pair.write_to(1);
    pair.run_for(1_000);
    assert!(pair.is_answered(1, id) && pair.left(1) > 0);
    assert_eq!(pair.nodes[1].group.pair.state, PairState::Duplex);
    assert!(matches!(pair.command(0, PROMOTE), Err(CommandError::Leased { .. })));
}

#[test]
fn what_is_promised_is_durable_first() {
    let mut pair = Pair::in_step_with([6; 32]);
    let id = CommandId(pair.next);
    pair.next += 1;
    pair.nodes[0].group.handle_command(pair.now, id, Command::SetLease { millis: MILLIS, force: false });
    // The standby hears of it again and again over a link that flaps, and its disk does nothing meanwhile.
    for _ in 0..20 {
        pair.pass_to(pair.now.monotonic.after(LEASE / 2));
        pair.connect();
        for _ in 0..100 {
            pair.nodes.iter_mut().for_each(|node| node.drain());
            while pair.turn(0, 0) {}
            pair.carry();
        }
    }
    assert!(pair.nodes[1].group.pair.lease_millis == MILLIS && pair.left(0) == 0, "granted before it was durable");
    pair.run_for(LEASE);
    assert!(pair.left(0) > 0);
}

#[test]
fn a_lease_that_was_given_up_is_worth_nothing() {
    let mut pair = Pair::leased([7; 32], [100; 2]);
    pair.command(0, Command::SetLease { millis: 0, force: false }).unwrap();
    pair.run_for(1_000);
    // Asked for anew, and cut off before it is granted.
    let id = CommandId(pair.next);
    pair.next += 1;
    pair.nodes[0].group.handle_command(pair.now, id, Command::SetLease { millis: MILLIS, force: false });
    pair.cut();
    pair.run_for(1_000);
    pair.command(1, PROMOTE).unwrap();
    let id = pair.write_to(0);
    pair.run_for(LEASE);
    assert!(!pair.is_answered(0, id), "answered under a promise that was released");
}

#[test]
fn a_daemon_without_a_lease_can_be_stopped() {
    let mut pair = Pair::leased([8; 32], [100; 2]);
    let late = pair.write_to(0);
    pair.cut();
    pair.pass_to(pair.now.monotonic.after(2 * LEASE));
    pair.run_for(1_000);
    assert!(!pair.is_answered(0, late));
    pair.command(0, Command::Stop).unwrap();
    assert_eq!(pair.nodes[0].answers.get(&late), Some(&Err(RequestError::Stopped)));
}

#[test]
fn a_read_that_ends_too_late_is_answered_with_the_next_lease() {
    let mut pair = Pair::leased([9; 32], [100; 2]);
    pair.write_to(0);
    pair.run_for(2_000_000);
    let read = pair.request(0, Operation::Read { offset: 0, size: 4096 });
    assert!(!pair.nodes[0].answers.contains_key(&read), "it needs no disk");
    pair.cut();
    pair.pass_to(pair.now.monotonic.after(2 * LEASE));
    pair.run_for(1_000);
    assert!(!pair.nodes[0].answers.contains_key(&read));
    pair.connect();
    pair.run_for(1_000);
    assert!(matches!(pair.nodes[0].answers.get(&read), Some(Ok(Reply::Data(_)))));
}

#[test]
fn a_read_that_ends_too_late_is_answered_though_the_group_has_stopped() {
    let mut pair = Pair::leased([11; 32], [100; 2]);
    pair.write_to(0);
    pair.run_for(2_000_000);
    let read = pair.request(0, Operation::Read { offset: 0, size: 4096 });
    pair.cut();
    pair.pass_to(pair.now.monotonic.after(2 * LEASE));
    pair.nodes[0].group.fail(super::MediumId::Journal, crate::disk::DiskError::Failed { errno: 5 });
    pair.run_for(LEASE);
    assert!(pair.nodes[0].answers.contains_key(&read));
}

#[test]
fn an_operator_lets_a_frozen_primary_go_on() {
    let mut pair = Pair::leased([10; 32], [100; 2]);
    pair.write_to(0);
    pair.run_for(2_000_000);
    // From the disk, and before the write is there.
    let read = pair.request(0, Operation::Read { offset: 0, size: 4096 });
    let write = pair.write_to(0);
    pair.cut();
    pair.pass_to(pair.now.monotonic.after(2 * LEASE));
    pair.run_for(1_000);
    assert!([write, read].iter().all(|id| !pair.nodes[0].answers.contains_key(id)));
    let refused = pair.command(0, Command::SetLease { millis: 0, force: false });
    assert_eq!(refused, Err(CommandError::CannotTell));
    pair.command(0, Command::SetLease { millis: 0, force: true }).unwrap();
    pair.run_for(1_000);
    assert!(pair.is_answered(0, write));
    assert!(matches!(pair.nodes[0].answers.get(&read), Some(Ok(Reply::Data(_)))));
}

#[test]
fn a_lease_wants_a_peer_that_is_there() {
    let mut pair = Pair::in_step();
    pair.cut();
    let refused = pair.command(0, Command::SetLease { millis: MILLIS, force: false });
    assert!(matches!(refused, Err(CommandError::WrongPairState { .. })), "{refused:?}");
    let refused = pair.command(1, Command::SetLease { millis: MILLIS, force: false });
    assert!(matches!(refused, Err(CommandError::WrongRole { .. })), "{refused:?}");
}

/// Both are standbys, because the primary was demoted by hand, and cannot hear each other: whoever is promoted, to what and in which
/// order, and whichever starts anew before, only one of them answers, and that is not who was the primary.
#[test]
fn of_two_standbys_that_are_promoted_only_one_answers() {
    let point = Command::Promote { target: PromoteTarget::RestartPoint, force: false };
    for case in 0..32u8 {
        let is = |bit: u8| case >> bit & 1 == 1;
        let mut pair = Pair::leased([case; 32], [100; 2]);
        // The restart point is of an epoch before the last.
        pair.command(0, Command::RestartPoint { label: "early".parse().unwrap() }).unwrap();
        pair.run_for(1_000_000);
        pair.switch();
        let id = pair.write_to(1);
        pair.run_for(1_000_000);
        assert!(pair.is_answered(1, id), "case {case}");
        pair.command(1, Command::Demote { discard_fork: false }).unwrap();
        pair.cut();
        pair.nodes[1].events.clear();
        for node in [0, 1] {
            if is(3 + node as u8) {
                drop(pair.reopen(node));
            }
        }
        pair.run_for(PROMISE);
        let order = if is(0) { [0, 1] } else { [1, 0] };
        for node in order {
            let target = if is(1 + node as u8) { point.clone() } else { PROMOTE };
            pair.command(node, target).unwrap();
        }
        let asked = order.map(|node| (node, pair.write_to(node)));
        pair.run_for(20_000_000);
        // Who answers nothing says so.
        let events = &pair.nodes[1].events;
        assert!(events.contains(&Event::LeaseLost), "case {case}: {events:?}");
        let answering: Vec<_> = asked.into_iter().filter(|(node, id)| pair.is_answered(*node, *id)).collect();
        assert!(matches!(answering[..], [(0, _)]), "case {case}: {answering:?} answer");
    }
}

/// One that had none yet says so too, but not before the peer could have granted one.
#[test]
fn a_primary_that_gets_no_lease_says_so_once() {
    let lost = |pair: &Pair, node: usize| {
        pair.nodes[node].events.iter().filter(|event| matches!(event, Event::LeaseLost)).count()
    };
    // The peer is lost right after a promotion that keeps the lease.
    let mut pair = Pair::leased([1; 32], [100; 2]);
    pair.command(0, Command::HandOver).unwrap();
    pair.run_for(1_000);
    pair.command(1, PROMOTE).unwrap();
    pair.cut();
    pair.run_for(LEASE / 2);
    assert_eq!(lost(&pair, 1), 0);
    pair.run_for(20_000_000);
    assert_eq!(lost(&pair, 1), 1);
    // A switch in good order has nothing to say.
    let mut pair = Pair::leased([2; 32], [100; 2]);
    pair.switch();
    pair.run_for(20_000_000);
    assert_eq!((lost(&pair, 0), lost(&pair, 1)), (0, 0));
    assert!(pair.nodes[1].events.contains(&Event::LeaseHeld));
    // Nobody is there when a primary is started again.
    drop(pair.reopen(1));
    pair.nodes[1].events.clear();
    pair.run_for(20_000_000);
    assert_eq!(lost(&pair, 1), 1);
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Cut,
    Connect,
    /// Time passes, and whatever is to happen meanwhile does.
    Pass(u64),
    /// Time passes, and neither a disk nor a link does anything.
    Stall(u64),
    /// So many disk operations end or frames arrive.
    Step(u64),
    Write,
    Restart(usize),
    /// The operator wants leases of so many milliseconds, or none.
    Set(u32),
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::Cut),
        2 => Just(Act::Connect),
        2 => (1u64..5_000_000).prop_map(Act::Pass),
        4 => (1u64..2_000_000).prop_map(Act::Stall),
        4 => (1u64..12).prop_map(Act::Step),
        2 => Just(Act::Write),
        1 => (0usize..2).prop_map(Act::Restart),
        1 => prop_oneof![Just(0u32), Just(1_000), Just(MILLIS), Just(2 * MILLIS)].prop_map(Act::Set),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever the disks, links and daemons do, and with clocks that run 5 % apart: once the peer is primary without force, the
    /// former primary answers nothing.
    #[test]
    fn two_nodes_never_answer_at_once(
        seed: [u8; 32], slow in 95u64..=100, which in 0usize..2, acts in prop::collection::vec(act(), 1..30),
    ) {
        let mut rates = [100; 2];
        rates[which] = slow;
        let mut pair = Pair::leased(seed, rates);
        let mut asked = Vec::new();
        for act in acts {
            pair.act(&act, &mut asked);
        }
        // Without fencing it is the operator who decides.
        if pair.nodes[0].group.pair.lease_millis == 0 {
            return Ok(());
        }
        asked.push(pair.write_to(0));
        pair.cut();
        // The first instant at which the peer may be promoted.
        let mut tries = 0;
        while let Err(error) = pair.command(1, PROMOTE) {
            // Else the peer knows that it lacks something, and is not promoted without force at all.
            if !matches!(error, CommandError::Leased { .. }) {
                return Ok(());
            }
            tries += 1;
            prop_assert!(tries < 2_000, "never promoted");
            pair.pass_to(pair.now.monotonic.after(5_000));
        }
        let read = pair.answers_no_more(asked);
        prop_assert!(!pair.nodes[0].answers.contains_key(&read), "the read was refused after the promotion");
    }
}
