//! Either daemon dies after each single step of what an operator asks for: nothing is lost, nothing is mixed, and the same
//! command leads on.

use super::{CommandId, pair_bench::Pair};
use crate::{
    command::{Command, GenerationId, PromoteTarget},
    pair::{Cause, PairState, Role},
    units::Epoch,
};

/// Some writes, a restart point, and writes after it, all of them at the standby.
fn prepared() -> Pair {
    let mut pair = Pair::in_step();
    for round in 0..12 {
        pair.write();
        if round == 6 {
            pair.restart_point();
        }
    }
    pair.settle();
    pair
}

/// Runs `story` again and again; each time another daemon dies, or one dies a step later, until none does any more.
fn at_every_step(mut story: impl FnMut(&mut Pair)) {
    for node in 0..2 {
        for step in 0.. {
            let mut pair = prepared();
            pair.dies = Some((step, node));
            story(&mut pair);
            let is_over = pair.dies.take().is_some();
            pair.finish();
            if is_over {
                assert!(step > 10, "the story has {step} steps only");
                break;
            }
        }
    }
}

/// Asks without waiting; the daemon may die before it answers.
fn ask(pair: &mut Pair, node: usize, command: Command) {
    pair.next += 1;
    let id = CommandId(pair.next);
    pair.nodes[node].group.handle_command(pair.now, id, command);
    pair.settle();
}

/// If the first time was not answered.
fn resume(pair: &mut Pair) {
    if pair.nodes[0].group.pair.state == PairState::Suspended(Cause::Command) {
        pair.command(0, Command::ResumePair { compare: true }).unwrap();
    }
}

#[test]
fn of_a_resync() {
    at_every_step(|pair| {
        ask(pair, 0, Command::SuspendPair { now: true });
        for _ in 0..5 {
            pair.write();
        }
        ask(pair, 0, Command::ResumePair { compare: true });
        pair.connect();
        pair.settle();
        resume(pair);
    });
}

#[test]
fn of_a_suspension_in_good_order() {
    at_every_step(|pair| {
        pair.write();
        ask(pair, 0, Command::SuspendPair { now: false });
        let state = pair.nodes[0].group.pair.state;
        assert!([PairState::Suspended(Cause::Command), PairState::Duplex].contains(&state), "{state}");
        ask(pair, 0, Command::ResumePair { compare: true });
        resume(pair);
    });
}

#[test]
fn of_a_restart_point() {
    at_every_step(|pair| {
        pair.write();
        pair.settle();
        let (state, last) = (pair.state.clone(), pair.nodes[0].group.stream.last);
        ask(pair, 0, Command::RestartPoint { label: "late".parse().unwrap() });
        for node in 0..2 {
            let point = pair.nodes[node].group.stream.restart_point.as_ref().map(|point| point.info.at);
            if let Some(at) = point.filter(|at| *at > last) {
                pair.points.insert(at, state.clone());
            }
        }
        // Whether it came to be or not: the standby is at a restart point that is one.
        if pair.dies.is_none() {
            assert!(pair.promote(PromoteTarget::RestartPoint));
        }
    });
}

#[test]
fn of_a_promotion() {
    for target in [PromoteTarget::RestartPoint, PromoteTarget::Latest] {
        at_every_step(|pair| {
            pair.cut();
            let latest = pair.nodes[1].group.stream.last;
            let point = pair.nodes[1].group.stream.restart_point.as_ref().unwrap().info.at;
            let state = match target {
                PromoteTarget::Latest => pair.states[&latest].clone(),
                _ => pair.points[&point].clone(),
            };
            ask(pair, 1, Command::Promote { target, force: true });
            if pair.nodes[1].group.pair.role != Role::Primary {
                pair.command(1, Command::Promote { target, force: true }).unwrap();
            }
            (pair.primary, pair.state) = (1, state);
        });
    }
}

#[test]
fn of_a_switch() {
    at_every_step(|pair| {
        pair.write();
        pair.settle();
        let state = pair.state.clone();
        ask(pair, 0, Command::HandOver);
        if pair.nodes[0].group.pair.role == Role::Secondary {
            // The other has everything.
            ask(pair, 1, Command::Promote { target: PromoteTarget::Latest, force: false });
            if pair.nodes[1].group.pair.role != Role::Primary {
                pair.command(1, Command::Promote { target: PromoteTarget::Latest, force: false }).unwrap();
            }
            pair.primary = 1;
        }
        pair.state = state;
    });
}

#[test]
fn of_a_demotion_that_keeps_a_fork() {
    at_every_step(|pair| {
        let dies = pair.dies.take();
        pair.cut();
        pair.write_at(0, 12_288);
        pair.write_at(192 << 10, 64 << 10);
        pair.settle();
        let fork = pair.state.clone();
        assert!(pair.promote(PromoteTarget::RestartPoint));
        pair.write_at(4096, 4096);
        pair.connect();
        pair.settle();
        assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
        pair.dies = dies;
        ask(pair, 0, Command::Demote { discard_fork: false });
        if pair.nodes[0].group.pair.role == Role::Fenced {
            pair.command(0, Command::Demote { discard_fork: false }).unwrap();
        }
        pair.connect();
        pair.settle();
        pair.idle();
        pair.settle();
        let name = GenerationId::Fork(Epoch::FIRST);
        let order = pair.nodes[0].group.find_generation(name).expect("the fork is kept");
        assert!(pair.content_of(0, order) == fork, "the fork is another one");
    });
}

/// It lists what it has written since by its journal, or where that does not go back so far by its tables.
#[test]
fn of_a_former_primarys_return() {
    for is_retired in [false, true] {
        at_every_step(|pair| {
            let dies = pair.dies.take();
            if is_retired {
                pair.retire(0);
            }
            assert!(pair.promote(PromoteTarget::RestartPoint));
            pair.reopen(0);
            pair.write_at(4096, 4096);
            pair.write_at(192 << 10, 64 << 10);
            pair.retire(1);
            pair.connect();
            pair.settle();
            pair.command(0, Command::Demote { discard_fork: true }).unwrap();
            let fork = pair.nodes[0].group.pair.fork;
            assert_eq!(pair.nodes[0].group.covers(fork.seq), !is_retired);
            pair.dies = dies;
            pair.connect();
            pair.settle();
            pair.connect();
            pair.settle();
        });
    }
}

#[test]
fn of_a_promotion_to_an_older_generation() {
    at_every_step(|pair| {
        let dies = pair.dies.take();
        pair.command(1, Command::KeepGenerations { count: 4, seconds: 0 }).unwrap();
        let point = pair.nodes[1].group.stream.restart_point.as_ref().unwrap().info;
        let state = pair.points[&point.at].clone();
        pair.write();
        pair.restart_point();
        pair.idle();
        pair.settle();
        pair.cut();
        pair.dies = dies;
        let target = PromoteTarget::Generation(point.generation);
        ask(pair, 1, Command::Promote { target, force: true });
        if pair.nodes[1].group.pair.role != Role::Primary {
            pair.command(1, Command::Promote { target, force: true }).unwrap();
        }
        (pair.primary, pair.state) = (1, state);
    });
}

#[test]
fn of_a_verification_that_mends() {
    at_every_step(|pair| {
        ask(pair, 0, Command::VerifyPair { mend: true });
        pair.connect();
        pair.settle();
    });
}
