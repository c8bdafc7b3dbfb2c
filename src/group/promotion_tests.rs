//! What a promotion waits for, and what must not be ahead of it on the media.

use super::{
    alone_bench::{Alone, keep},
    pair_bench::Pair,
    *,
};
use crate::{
    command::{Command, CommandError, CommandId, GenerationId, PromoteTarget},
    pair::Role,
    units::Generation,
};
use alloc::vec;

/// The checkpoint of a large volume takes seconds. What it makes durable is the state before the promotion; whatever happens then, it is
/// not served.
#[test]
fn a_promotion_does_not_wait_for_a_checkpoint() {
    for seed in 0..60 {
        let mut pair = Pair::in_step_with([seed; 32]);
        (0..5).for_each(|_| {
            pair.write();
        });
        pair.restart_point();
        let expected = pair.state.clone();
        (0..5).for_each(|_| {
            pair.write();
        });
        while !pair.nodes[1].group.checkpoint.is_running() || pair.nodes[1].group.applied < Order(8) {
            if !pair.step() {
                pair.pass_to(pair.next_timeout().expect("there is no checkpoint"));
            }
        }
        pair.cut();
        let (now, id) = (pair.clock(1), CommandId(1 << 40));
        let command = Command::Promote { target: PromoteTarget::RestartPoint, force: true };
        pair.nodes[1].group.handle_command(now, id, command);
        pair.nodes[1].only_journal(now);
        assert_eq!(pair.role(1), Role::Primary);
        assert!(pair.nodes[1].group.checkpoint.is_running() && pair.nodes[1].replies.contains_key(&id));
        (pair.primary, pair.state) = (1, expected.clone());
        if seed % 3 == 0 {
            pair.kill(1);
            assert!(pair.content_after_confirm(1) == expected, "another state after a crash");
        }
        assert!(pair.content(1) == expected, "another state is served");
        (0..5).for_each(|_| {
            pair.write();
        });
        if seed % 3 == 1 {
            pair.kill(1);
        }
        pair.finish();
    }
}

#[test]
fn a_promotion_does_not_wait_for_all_that_is_to_be_applied() {
    let mut pair = Pair::in_step();
    pair.restart_point();
    for index in 0..3000 {
        pair.write_at_unchecked(index % 2048 * 8192, 512);
        if index % 64 > 0 {
            continue;
        }
        // The standby's pool is slow.
        let turn = |pair: &mut Pair| (0..3).any(|what| pair.turn(0, what)) || (1..3).any(|what| pair.turn(1, what));
        while turn(&mut pair) {
            while turn(&mut pair) {}
            let now = pair.clock(1);
            pair.nodes[1].only_journal(now);
        }
    }
    pair.cut();
    let (now, id) = (pair.clock(1), CommandId(1 << 40));
    let last = pair.nodes[1].group.journal.last();
    let command = Command::Promote { target: PromoteTarget::RestartPoint, force: true };
    pair.nodes[1].group.handle_command(now, id, command);
    while pair.role(1) == Role::Secondary {
        assert!(pair.nodes[1].step(now, &mut pair.rng), "it does not come about");
    }
    // What a cycle that was running had still to write, not all that had come.
    let written = pair.nodes[1].pool_written;
    assert!(written < 1 << 20, "{written} bytes of {last:?} entries");
}

/// What the standby's media do while its pool is slow.
fn of_journal(purpose: &Purpose, medium: MediumId) -> bool {
    medium == MediumId::Journal && !matches!(purpose, Purpose::Destage { .. })
}

impl Pair {
    /// Something is written, and both nodes hold the restart point behind it.
    fn at_restart_point() -> Self {
        let mut pair = Self::in_step();
        for index in 0..16 {
            pair.write_at(index * (64 << 10), 4096);
        }
        pair.restart_point();
        pair.idle();
        pair
    }

    /// The primary is gone, and the standby is to be promoted to the restart point.
    fn begin_promotion(&mut self) {
        self.cut();
        let (now, command) = (self.clock(1), Command::Promote { target: PromoteTarget::RestartPoint, force: true });
        self.nodes[1].group.handle_command(now, CommandId(77), command);
    }

    /// Goes on until only what is not `allowed` of the standby's media is left to do.
    fn go_on_with(&mut self, allowed: impl Fn(&Purpose, MediumId) -> bool) {
        loop {
            let mut goes_on = (0..3).any(|what| self.turn(0, what)) | (1..3).any(|what| self.turn(1, what));
            let now = self.clock(1);
            let node = &mut self.nodes[1];
            node.drain();
            let purposes = &node.group.operations;
            let is_allowed = |operation: &DiskOperation| {
                purposes.get(&operation.id).is_some_and(|purpose| allowed(purpose, operation.medium))
            };
            if let Some(index) = node.operations.iter().position(|(operation, _)| is_allowed(operation)) {
                let (operation, asked) = node.operations.remove(index);
                let outcome = node.disks.carry_out(operation.medium, operation.action, asked);
                node.group.handle_disk(now, operation.id, outcome);
                node.drain();
                goes_on = true;
            }
            if !goes_on {
                return;
            }
        }
    }
}

#[test]
fn no_checkpoint_is_ahead_of_a_promotion_that_is_not_durable() {
    let mut pair = Pair::at_restart_point();
    // Most of what comes waits. When a promotion has made it void, it counts as applied at once.
    for index in 0..800_u64 {
        pair.write_at(index * 7 % 256 * 4096, 4096);
        pair.go_on_with(of_journal);
    }
    let (latest, last) = (pair.state.clone(), pair.nodes[1].group.stream.last);
    assert_eq!(last, pair.nodes[0].group.stream.last);
    pair.begin_promotion();
    // Now the journal is slow, and the daemon dies before the promotion's record is there.
    pair.go_on_with(|purpose, medium| {
        medium != MediumId::Journal || matches!(purpose, Purpose::Destage { .. } | Purpose::Sync)
    });
    assert!(pair.nodes[1].group.journal.last() > pair.nodes[1].group.durable, "the record is there");
    pair.nodes[1].operations.clear();
    pair.reopen(1);
    assert_eq!(pair.nodes[1].group.stream.last, last);
    assert!(pair.content(1) == latest, "another state than that of {last}");
}

#[test]
fn a_promotion_needs_no_room_in_a_full_journal() {
    let mut pair = Pair::in_step();
    pair.restart_point();
    pair.idle();
    // Each is a batch of its own.
    while pair.nodes[1].group.journal.room(8192, 256 << 10).is_some() {
        pair.write_at_unchecked(0, 4096);
        pair.go_on_with(of_journal);
    }
    assert_eq!(pair.nodes[1].group.durable, pair.nodes[1].group.journal.last());
    pair.begin_promotion();
    // No checkpoint sets any free meanwhile.
    pair.go_on_with(|purpose, _| !matches!(purpose, Purpose::Checkpoint));
    assert_eq!(pair.role(1), Role::Primary);
}

/// A checkpoint that was running when the volumes were taken back ends before the promotion's record is there.
#[test]
fn the_tail_waits_for_a_promotion_that_is_not_durable() {
    let mut pair = Pair::at_restart_point();
    let mut index = 0;
    while pair.nodes[1].group.journal.room(8192, 256 << 10).is_some() {
        pair.write_at(index * 7 % 256 * 4096, 4096);
        pair.go_on_with(of_journal);
        index += 1;
    }
    let (latest, last) = (pair.state.clone(), pair.nodes[1].group.stream.last);
    // It begins when the cycle ends that is running, before the promotion goes on.
    pair.nodes[1].group.checkpoint.wanted = true;
    pair.begin_promotion();
    let (ended, tail) = (pair.nodes[1].group.checkpoint.ended(), pair.nodes[1].group.journal.tail_order);
    pair.go_on_with(|purpose, _| !matches!(purpose, Purpose::Batch { .. }));
    let group = &pair.nodes[1].group;
    assert!(group.is_opening() && group.checkpoint.ended() > ended, "no checkpoint ended meanwhile");
    assert_eq!(group.journal.tail_order, tail);
    pair.nodes[1].operations.clear();
    pair.reopen(1);
    assert_eq!(pair.nodes[1].group.stream.last, last);
    assert!(pair.content(1) == latest, "another state than that of {last}");
}

#[test]
fn what_is_marked_while_a_checkpoint_runs_is_not_taken_for_durable() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.settle();
    let group = &mut pair.nodes[0].group;
    assert!(group.peer.is_tracking_durable());
    group.begin_checkpoint();
    group.lose_anchor();
    let ended = group.checkpoint.ended();
    while pair.nodes[0].group.checkpoint.ended() == ended {
        assert!(pair.step(), "the checkpoint does not end");
    }
    assert!(!pair.nodes[0].group.peer.is_tracking_durable());
}

/// After a crash one pool is behind a generation that the other one has passed and let go of.
#[test]
fn all_volumes_are_taken_back_or_none() {
    for ahead in [1, 2] {
        let mut group = Alone::with_one_ahead(ahead, keep(1));
        let lost = Generation(2);
        let refused = group.promote(PromoteTarget::Generation(lost));
        let kept = vec![GenerationId::Number(Generation(3))];
        assert_eq!(refused, Err(CommandError::NotKept { asked: GenerationId::Number(lost), kept }));
        group.promote(PromoteTarget::RestartPoint).unwrap();
        assert_eq!([group.first(1), group.first(2)], [3; 2], "volume {ahead} is ahead");
    }
}
