//! A primary steps down only if its standby has everything, or if that is given up; and to what a standby is promoted then.

use super::pair_bench::Pair;
use crate::{
    command::{Command, CommandError, GenerationId, GenerationKind, PromoteTarget},
    disk::MediumId,
    pair::Role,
};

const DEMOTE: Command = Command::Demote { discard_fork: false };

fn is_refused(pair: &mut Pair, node: usize) -> bool {
    let reply = pair.command(node, DEMOTE);
    match reply {
        Err(CommandError::ForkWouldBeLost { .. } | CommandError::WrongPairState { .. }) => true,
        Ok(_) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn in_step_it_does() {
    let mut pair = Pair::in_step();
    pair.write();
    pair.settle();
    assert!(!is_refused(&mut pair, 0));
}

/// What a promotion has made void does not count as something that the former primary has.
#[test]
fn not_with_fewer_records_than_its_promotion_gave_up() {
    let mut pair = Pair::in_step();
    pair.restart_point();
    (0..20).for_each(|_| _ = pair.write());
    pair.settle();
    pair.cut();
    assert!(pair.promote(PromoteTarget::RestartPoint));
    pair.write();
    pair.settle();
    let primary = pair.primary;
    assert!(is_refused(&mut pair, primary));
}

#[test]
fn not_in_the_midst_of_a_copy() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    (0..20).for_each(|_| _ = pair.write());
    pair.settle();
    pair.command(0, Command::ResumePair { compare: true }).unwrap();
    pair.connect();
    while !pair.nodes[1].group.stream.copying {
        pair.step();
    }
    assert!(is_refused(&mut pair, 0));
    // Nor when it has ended before its end.
    pair.cut();
    assert!(is_refused(&mut pair, 0));
}

#[test]
fn not_while_changes_are_noted_only() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.write();
    pair.settle();
    // To grow, the journal lets go of everything.
    let size = 128 << 20;
    pair.nodes[0].disks.set_size(MediumId::Journal, size);
    pair.command(0, Command::GrowJournal { size }).unwrap();
    assert_eq!(pair.nodes[0].group.journal.tail_order, pair.nodes[0].group.journal.last());
    assert!(is_refused(&mut pair, 0));
}

#[test]
fn not_with_what_its_standby_has_not_acknowledged() {
    let mut pair = Pair::in_step();
    pair.cut();
    pair.write();
    pair.settle();
    assert!(is_refused(&mut pair, 0));
    pair.command(0, Command::Demote { discard_fork: true }).unwrap();
}

/// The restart point that only the former primary had leads to what was given up.
#[test]
fn it_is_not_promoted_to_what_it_gave_up() {
    for discard_fork in [true, false] {
        let mut pair = Pair::in_step();
        pair.restart_point();
        pair.settle();
        pair.cut();
        pair.write();
        pair.restart_point();
        assert!(pair.promote(PromoteTarget::RestartPoint));
        pair.connect();
        pair.settle();
        assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
        let given_up = pair.nodes[0].group.stream.restart_point.clone().unwrap().info;
        pair.command(0, Command::KeepGenerations { count: 8, seconds: 0 }).unwrap();
        pair.command(0, Command::Demote { discard_fork }).unwrap();
        pair.connect();
        pair.write();
        pair.settle();
        pair.cut();
        let promote = Command::Promote { target: PromoteTarget::RestartPoint, force: true };
        assert_eq!(pair.command(0, promote), Err(CommandError::NoRestartPoint));
        // Who knows it by name can look at it.
        let status = pair.nodes[0].group.status(pair.now);
        let kept = status.generations.iter().find(|kept| kept.at == given_up.at && kept.kind != GenerationKind::Fork);
        let kept = kept.unwrap();
        assert_eq!(
            (kept.name, kept.kind),
            (GenerationId::Number(given_up.generation), GenerationKind::FormerRestartPoint)
        );
        pair.check_generations(0);
        // The next one counts.
        pair.connect();
        pair.settle();
        pair.write();
        pair.restart_point();
        pair.settle();
        assert!(pair.promote(PromoteTarget::RestartPoint));
    }
}

/// As docs/operating.md has it.
#[test]
fn a_fenced_node_can_be_gone_on_from_instead() {
    for discard_fork in [false, true] {
        let mut pair = Pair::in_step();
        (0..4).for_each(|block| pair.write_at(block << 16, 8192));
        pair.settle();
        pair.restart_point();
        pair.settle();
        pair.cut();
        pair.write_at(2 << 16, 4096);
        pair.settle();
        let wanted = pair.state.clone();
        assert!(pair.promote(PromoteTarget::Latest));
        (1..6).for_each(|block| pair.write_at(block << 16, 4096));
        pair.settle();
        pair.connect();
        pair.settle();
        assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
        pair.command(1, Command::Demote { discard_fork: true }).unwrap();
        pair.command(0, Command::Demote { discard_fork }).unwrap();
        pair.settle();
        pair.command(0, Command::Promote { target: PromoteTarget::Latest, force: true }).unwrap();
        (pair.primary, pair.state) = (0, wanted);
        pair.finish();
    }
}
