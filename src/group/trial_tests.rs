//! Trials: a copy of a generation that takes writes, of which nobody else sees anything, and which leaves nothing behind.

use super::{
    pair_bench::Pair,
    tests::{Bench, pick},
    *,
};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandReply, GenerationId},
    disk::DiskError,
    request::{Access, Durability, Operation, Request, Space},
    units::Generation,
};
use proptest::{prelude::*, test_runner::TestRng};

const BEGIN: Command = Command::BeginTrial { generation: None };
const POOL: MediumId = MediumId::Pool(VolumeId(1));

fn ask(bench: &mut Bench, command: Command) -> Result<CommandReply, CommandError> {
    let id = CommandId(1 << 50);
    bench.group.handle_command(bench.now, id, command);
    loop {
        bench.drain();
        if let Some(reply) = bench.replies.remove(&id) {
            return reply;
        }
        assert!(bench.step(), "never answered");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_trial_is_written_beside_the_group_and_leaves_nothing(seed in any::<[u8; 32]>()) {
        let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed));
        (0..60).for_each(|_| bench.mutate());
        bench.settle();
        let kept = bench.model.clone();
        ask(&mut bench, Command::RestartPoint { label: Name::default() }).unwrap();
        bench.settle();
        ask(&mut bench, BEGIN).unwrap();
        let mut tried = kept.clone();
        for _ in 0..200 {
            match pick(&mut bench.rng, 24) {
                14..18 => {
                    let (operation, sectors, value) = bench.mutation();
                    // A discard changes nothing here.
                    let discards = matches!(operation, Operation::Discard { .. });
                    bench.request_as(Access::Trial, operation);
                    if !discards {
                        tried[sectors].fill(value);
                    }
                }
                18 => {
                    let id = bench.request_as(Access::Trial, Operation::Flush);
                    bench.wait(id);
                    let found = bench.read_area_as(Access::Trial);
                    prop_assert!(found == tried[..found.len()], "the trial shows something else");
                }
                19 => bench.check_all(),
                0 | 1 => {}
                choice if bench.befalls(choice) => {}
                _ => bench.mutate(),
            }
        }
        bench.check_all();
        prop_assert!(bench.answers.values().all(|answer| answer.is_ok()));
        let name = bench.group.status(bench.now).trial.map(|trial| trial.generation);
        prop_assert_eq!(name, Some(GenerationId::Number(Generation(1))));
        if pick(&mut bench.rng, 2) == 0 {
            ask(&mut bench, Command::EndTrial).unwrap();
        } else {
            bench.kill();
        }
        prop_assert!(bench.group.status(bench.now).trial.is_none());
        bench.check_all();
        let order = bench.group.find_generation(GenerationId::Number(Generation(1))).unwrap();
        bench.group.hold_generation(order);
        let found = bench.read_area_as(Access::Generation(order));
        prop_assert!(found == kept[..found.len()], "the generation has changed");
        bench.group.release_generation(order);
        // What it took is unused again: as much is used as is after the daemon was started anew, which knows nothing of a trial.
        bench.settle();
        let left = bench.group.status(bench.now).volumes[0].pool_used_count;
        bench.kill();
        bench.settle();
        prop_assert_eq!(left, bench.group.status(bench.now).volumes[0].pool_used_count);
    }
}

/// Fills the pool as far as a trial may; how many writes of 1 MiB there was room for.
fn fill(bench: &mut Bench) -> usize {
    let size = bench.group.status(bench.now).volumes[0].size;
    let ids: Vec<_> = (0..size)
        .step_by(1 << 20)
        .map(|offset| {
            let data = AlignedBuffer::new(1 << 20).freeze();
            bench.request_as(Access::Trial, Operation::Write { offset, data, durability: Durability::Completed })
        })
        .collect();
    ids.iter().for_each(|id| bench.wait(*id));
    ids.iter().filter(|id| bench.answers.remove(id) == Some(Ok(Reply::Done))).count()
}

/// Nothing else is written that would bring a checkpoint.
#[test]
fn a_trial_in_an_idle_group_has_the_room_of_the_one_before() {
    let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &[3; 32]));
    // The pool has room for the volume and a snapshot of it: three quarters of that are taken.
    let size = bench.group.status(bench.now).volumes[0].size;
    for round in 0..2 {
        for offset in (0..size >> round).step_by(1 << 20) {
            let data = AlignedBuffer::new(1 << 20).freeze();
            bench.request(Operation::Write { offset, data, durability: Durability::Completed });
        }
        bench.settle();
        ask(&mut bench, Command::RestartPoint { label: Name::default() }).unwrap();
        bench.settle();
    }
    ask(&mut bench, BEGIN).unwrap();
    let first = fill(&mut bench);
    for _ in 0..3 {
        // Zeroes give back what was there, for what is written elsewhere.
        let zeroes =
            Operation::WriteZeroes { offset: 0, size, space: Space::Release, durability: Durability::Completed };
        let id = bench.request_as(Access::Trial, zeroes);
        bench.wait(id);
        fill(&mut bench);
        bench.settle();
        let again = fill(&mut bench);
        assert!(first > 0 && again >= first, "{again} instead of {first}");
    }
    for _ in 0..3 {
        ask(&mut bench, Command::EndTrial).unwrap();
        bench.settle();
        ask(&mut bench, BEGIN).unwrap();
        assert_eq!(fill(&mut bench), first);
    }
}

#[test]
fn a_trial_changes_nothing_for_the_pair() {
    let mut pair = Pair::in_step();
    assert_eq!(pair.command(1, BEGIN), Err(CommandError::NoRestartPoint));
    pair.fill(0, 64 << 10);
    pair.restart_point();
    pair.idle();
    pair.settle();
    let kept = pair.state.clone();
    let reply = pair.command(1, BEGIN);
    assert!(matches!(reply, Ok(CommandReply::Trial { .. })), "{reply:?}");
    assert_eq!(pair.command(1, BEGIN), reply, "asked twice");
    let write = |pair: &mut Pair, offset| {
        let data = AlignedBuffer::new(4096).freeze();
        let request = Request {
            id: RequestId(1 << 40 | offset),
            volume: VolumeId(1),
            access: Access::Trial,
            operation: Operation::Write { offset, data, durability: Durability::Completed },
        };
        pair.nodes[1].group.handle_request(pair.now, request).unwrap();
        pair.settle();
        pair.nodes[1].answers[&RequestId(1 << 40 | offset)].clone()
    };
    assert_eq!(write(&mut pair, 0), Ok(Reply::Done));
    // The pair goes on, and the generation stays though the rule would let go of it.
    for round in 0..3 {
        pair.fill(round * 4096, 4096);
        pair.restart_point();
        pair.idle();
        pair.settle();
    }
    let mut tried = kept.clone();
    tried[..8].fill(0);
    assert!(pair.content_as(1, Access::Trial) == tried);
    // The standby's promotion is not in its way, unless it goes back further.
    assert!(pair.promote(crate::command::PromoteTarget::RestartPoint));
    assert!(pair.content_as(1, Access::Trial) == tried);
    pair.command(1, Command::EndTrial).unwrap();
    pair.command(1, Command::EndTrial).unwrap();
    assert_eq!(write(&mut pair, 4096), Err(RequestError::NotKept));
    pair.finish();
}

#[test]
fn a_trial_ends_when_its_generation_is_taken_back() {
    let mut pair = Pair::in_step();
    pair.command(1, Command::KeepGenerations { count: 4, seconds: 0 }).unwrap();
    for round in 0..3 {
        pair.fill(round * 4096, 4096);
        pair.restart_point();
        pair.idle();
        pair.settle();
    }
    pair.command(1, BEGIN).unwrap();
    let oldest = crate::command::PromoteTarget::Generation(Generation(1));
    assert!(pair.promote(oldest));
    pair.settle();
    assert!(pair.nodes[1].group.status(pair.now).trial.is_none());
    pair.finish();
}

#[test]
fn a_trial_that_cannot_be_written_harms_nobody() {
    let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &[5; 32]));
    (0..20).for_each(|_| bench.mutate());
    ask(&mut bench, Command::RestartPoint { label: Name::default() }).unwrap();
    bench.settle();
    ask(&mut bench, BEGIN).unwrap();
    let is_write = |action: &DiskAction| matches!(action, DiskAction::Write { .. });
    bench.fault = Some(super::tests::Fault { medium: POOL, fails: is_write, error: DiskError::Failed { errno: 5 } });
    let data = AlignedBuffer::new(8192).freeze();
    let write = Operation::Write { offset: 512, data, durability: Durability::Completed };
    let id = bench.request_as(Access::Trial, write);
    bench.wait(id);
    assert_eq!(bench.answers[&id], Err(RequestError::Io));
    bench.fault = None;
    assert!(bench.group.status(bench.now).stopped.is_none());
    // As much as there is room for, and no more; the group has its part.
    let mut refused = 0;
    let size = bench.group.status(bench.now).volumes[0].size;
    for round in 0..3 {
        for offset in (0..size).step_by(1 << 20) {
            let data = AlignedBuffer::new(1 << 20).freeze();
            let write = Operation::Write { offset, data, durability: Durability::Completed };
            let id = bench.request_as(Access::Trial, write);
            bench.wait(id);
            refused += usize::from(bench.answers.remove(&id) == Some(Err(RequestError::NoSpace)));
        }
        // The group's own writes take what is left.
        (0..100 * round).for_each(|_| bench.mutate());
        bench.check_all();
    }
    bench.settle();
    bench.check_all();
    assert!(bench.answers.values().all(|answer| *answer != Err(RequestError::NoSpace)), "{refused} refused");
}
