//! What simulated histories found, each as a small story of its own.

use super::{
    pair_bench::{Node, Pair},
    *,
};
use crate::{
    command::{Command, CommandError, CommandId, CommandReply, PromoteTarget},
    disk::{DiskAction, DiskOperation},
    format::{
        journal_superblock::RING_OFFSET,
        message::LEASE_MILLIS_MAX,
        record::{Kind, Record},
    },
    pair::{ApplyPolicy, Level, Role, WithoutPeer},
    units::VOLUME_SIZE_MIN,
};
use bytes::Bytes;
extern crate std;

const LATEST: Command = Command::Promote { target: PromoteTarget::Latest, force: true };

/// Seed 2. The peer's greeting may be taken before anything was sent in a session: a lease must not be asked for before this
/// node has greeted, or the peer ends the session, again and again.
#[test]
fn the_greeting_is_the_first_frame_also_when_the_peers_has_come_already() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SetLease { millis: 1_000, force: false }).unwrap();
    pair.cut();
    let now = pair.now;
    for node in &mut pair.nodes {
        node.group.handle_peer_up(now);
        node.group.handle_stream_credit(now, 1 << 20);
    }
    pair.nodes[1].drain();
    let greeting = pair.nodes[1].outbox.pop_front().unwrap();
    let body = [greeting.header, greeting.payload].concat();
    pair.nodes[0].group.handle_frame(now, body.into());
    pair.nodes[0].drain();
    let first = Record::parse(&pair.nodes[0].outbox[0].header, pair.nodes[0].group.id).unwrap();
    assert_eq!(first.kind, Kind::Greeting);
}

/// Seed 26. What no superblock may hold must not get into one: the group could not be opened any more.
#[test]
fn a_lease_of_impossible_length_is_refused() {
    let mut pair = Pair::in_step();
    let millis = LEASE_MILLIS_MAX + 1;
    let refused = pair.command(0, Command::SetLease { millis, force: false });
    assert_eq!(refused, Err(CommandError::LeaseLength(millis)));
    pair.reopen(0);
}

/// Seed 13. A fork is younger than the restart point that is the last one still; when that becomes an older one, the generations
/// must stay in order, or the group could not be opened any more.
#[test]
fn a_restart_point_before_a_fork_becomes_an_older_one() {
    let mut pair = Pair::in_step();
    for node in 0..2 {
        pair.command(node, Command::KeepGenerations { count: 4, seconds: 0 }).unwrap();
    }
    pair.write();
    pair.restart_point();
    pair.settle();
    pair.cut();
    pair.write();
    assert!(pair.promote(PromoteTarget::Latest));
    pair.connect();
    pair.settle();
    pair.command(0, Command::Demote { discard_fork: false }).unwrap();
    pair.connect();
    pair.settle();
    pair.write();
    for _ in 0..3 {
        pair.restart_point();
        pair.settle();
    }
    assert_eq!(pair.nodes[0].group.forks().len(), 1);
    // In this order they go into the superblock, which refuses any other when it is read.
    assert!(pair.nodes[0].group.stream.older.is_sorted_by(|a, b| a.order < b.order));
    pair.finish();
}

impl Pair {
    /// Ends what a node's journal is asked for; its pools do nothing.
    fn journal_only(&mut self, node: usize) {
        let now = self.now;
        self.nodes[node].drain();
        let Node { disks, group, operations, durable, .. } = &mut self.nodes[node];
        while let Some(index) = operations.iter().position(|(operation, _)| operation.medium == MediumId::Journal) {
            let (operation, asked) = operations.swap_remove(index);
            let outcome = disks.carry_out(operation.medium, operation.action, asked);
            group.handle_disk(now, operation.id, outcome);
            while let Some(output) = group.poll_output() {
                match output {
                    Output::Disk(operation) => operations.push((operation, disks.writes())),
                    Output::Durable(count) => *durable = Some(count),
                    _ => {}
                }
            }
        }
    }

    /// A pair whose standby holds back an interval of so many writes of 48 KiB, none of which goes straight to the pool; and the
    /// frame with the restart point that follows it.
    fn holding_back(count: usize) -> (Self, Bytes) {
        let mut pair = Self::in_step();
        pair.command(1, Command::SetPolicy(ApplyPolicy::Delayed)).unwrap();
        for _ in 0..count {
            pair.write_at_unchecked(0, 48 << 10);
            while pair.turn(0, 0) || pair.turn(0, 1) {}
            pair.journal_only(1);
            pair.turn(1, 2);
        }
        let label = "p".parse().unwrap();
        pair.nodes[0].group.handle_command(pair.now, CommandId(1 << 40), Command::RestartPoint { label });
        while pair.turn(0, 0) {}
        let frame = pair.nodes[0].outbox.pop_front().unwrap();
        (pair, [frame.header, frame.payload].concat().into())
    }
}

/// Seed 45. What is up to the last restart point is not held back: with half of the journal full of it there is nothing to give
/// up, least of all again and again without end.
#[test]
fn nothing_is_given_up_when_the_journal_ends_with_a_restart_point() {
    let (mut pair, point) = Pair::holding_back(200);
    let (now, standby) = (pair.now, &mut pair.nodes[1].group);
    assert!(standby.journal.live_size() > standby.journal.ring_size() / 2, "the test needs more");
    standby.handle_frame(now, point);
    assert_eq!(standby.stream.restart_point.as_ref().map(|point| point.order), Some(standby.journal.last()));
    let ends = (0..100_000).any(|_| standby.poll_output().is_none());
    assert!(ends, "the standby never comes to rest");
}

/// Seed 128. Who meets a higher epoch serves no more, also if its volumes are not as large as the other's.
#[test]
fn a_primary_whose_volumes_differ_is_fenced() {
    let mut pair = Pair::in_step();
    let size = VOLUME_SIZE_MIN + (1 << 20);
    let pool_size = grown_pool_size(size, 64 << 10);
    pair.nodes[1].disks.set_size(MediumId::Pool(VolumeId(1)), pool_size);
    pair.command(1, Command::GrowVolume { volume: VolumeId(1), size, pool_size }).unwrap();
    assert!(pair.promote(PromoteTarget::Latest));
    pair.connect();
    pair.settle();
    assert_eq!(pair.nodes[0].group.pair.role, Role::Fenced);
    assert_eq!(pair.nodes[1].group.pair.role, Role::Primary);
}

/// Seed 756. Where the volumes differ, the nodes are in no session that would tell them: each change makes them greet anew.
#[test]
fn a_promotion_is_heard_where_the_volumes_differ() {
    let mut pair = Pair::in_step();
    let size = VOLUME_SIZE_MIN + (1 << 20);
    let pool_size = grown_pool_size(size, 64 << 10);
    pair.nodes[1].disks.set_size(MediumId::Pool(VolumeId(1)), pool_size);
    pair.command(1, Command::GrowVolume { volume: VolumeId(1), size, pool_size }).unwrap();
    pair.connect();
    pair.settle();
    assert!(pair.up && !pair.nodes[1].group.peer.connected, "the volumes are the same");
    pair.command(1, LATEST).unwrap();
    pair.step();
    assert!(!pair.up, "nobody hears of it");
}

/// Seed 182. A standby that was never connected does not know which epochs there were.
#[test]
fn a_standby_that_has_never_heard_of_its_primary_is_not_promoted() {
    let mut pair =
        Pair::new(proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha));
    assert_eq!(pair.command(1, LATEST), Err(CommandError::NothingReceived));
}

/// Seed 225. Two operators promote both nodes at once.
#[test]
fn two_nodes_never_open_the_same_epoch() {
    let mut pair = Pair::in_step();
    for round in 0..4 {
        pair.write();
        pair.settle();
        pair.command(pair.primary, Command::HandOver).unwrap();
        pair.cut();
        let opened = [0, 1].map(|node| match pair.command(node, LATEST) {
            Ok(CommandReply::Promoted { epoch, .. }) => epoch,
            other => panic!("{other:?}"),
        });
        assert_ne!(opened[0], opened[1], "round {round}");
        pair.primary = usize::from(opened[1] > opened[0]);
        pair.rejoin();
        pair.settle();
        pair.connect();
        pair.settle();
    }
}

/// Seed 1116. Whoever ordered that fencing ends is told that the node stepped down meanwhile.
#[test]
fn the_command_that_ends_fencing_is_answered_by_who_steps_down() {
    let mut pair = Pair::leased([7; 32], [100, 100]);
    let (now, id) = (pair.now, CommandId(1 << 40));
    pair.nodes[0].group.handle_command(now, id, Command::SetLease { millis: 0, force: false });
    pair.nodes[0].group.handle_command(now, CommandId(2 << 40), Command::HandOver);
    pair.run_for(1_000_000);
    assert!(pair.nodes[0].replies.contains_key(&id), "never answered");
}

/// Seed 2550. A node that dies between opening an epoch and storing that it is the primary has opened it all the same.
#[test]
fn an_epoch_belongs_to_who_opened_it_though_it_died_then() {
    let mut pair = Pair::in_step();
    pair.write();
    pair.settle();
    pair.cut();
    let now = pair.now;
    pair.nodes[1].group.handle_command(now, CommandId(1 << 40), LATEST);
    // Its journal has the epoch; its superblock is not written.
    let before = pair.nodes[1].group.stream.last.epoch;
    while pair.nodes[1].group.stream.last.epoch == before
        || pair.nodes[1].group.durable < pair.nodes[1].group.journal.last()
    {
        let Pair { nodes, rng, .. } = &mut pair;
        assert!(nodes[1].step(now, rng), "nothing is left to do");
    }
    pair.reopen(1);
    let (role, opened) = (pair.nodes[1].group.pair.role, pair.nodes[1].group.epoch());
    assert_eq!((role, opened > before), (Role::Secondary, true), "the test is too late");
    assert_eq!(pair.nodes[1].group.pair.former_epoch, opened);
}

/// Seed 2014. What came by a copy is in no journal: a standby that is behind it is not sent what came after.
#[test]
fn a_gap_in_the_journal_is_not_streamed_over() {
    let mut pair = Pair::in_step();
    pair.write();
    pair.settle();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    for _ in 0..5 {
        pair.write();
    }
    pair.settle();
    let behind = pair.nodes[1].group.stream.last.seq;
    pair.command(0, Command::ResumePair { compare: false }).unwrap();
    pair.connect();
    pair.settle();
    pair.write();
    pair.settle();
    // The standby's journal has the records up to `behind`, and the one after the copy.
    let standby = &pair.nodes[1].group;
    assert!(standby.stream.last.seq > behind.next());
    let has = standby.journal.after(standby.journal.tail_order).any(|(_, entry)| entry.record.at.seq == behind);
    assert!(has, "the journal's tail has passed it; the test needs more");
    assert!(!standby.covers(behind), "it would send what does not follow");
    assert!(standby.covers(standby.stream.last.seq));
}

/// Seed 100493. What is free of a small ring lies at its end and its start: a batch that fits into neither is made smaller, because
/// nothing moves the tail as long as the peer is away and the ring is not nearly full.
#[test]
fn no_batch_is_too_large_for_what_is_free_in_pieces() {
    for before in 0..12 {
        let mut pair = Pair::in_step();
        let write = |pair: &mut Pair, count: usize| {
            for _ in 0..count {
                pair.write_at_unchecked(0, 48 << 10);
            }
            pair.settle();
            let waits = pair.nodes[0].group.journal.last().0 - pair.nodes[0].group.completed.0;
            assert_eq!(waits, 0, "writes that nothing will ever complete");
        };
        // The ring's head and tail are somewhere else each time.
        for _ in 0..before {
            write(&mut pair, 30);
        }
        pair.idle();
        pair.settle();
        pair.cut();
        for _ in 0..4 {
            write(&mut pair, 100);
        }
    }
}

/// Seed 38. Whoever asks for the end a second time is told that it has begun, and the first one is answered.
#[test]
fn a_second_stop_takes_no_answer_from_the_first() {
    let mut pair = Pair::in_step();
    pair.write();
    let (first, now) = (CommandId(1 << 40), pair.now);
    pair.nodes[0].group.handle_command(now, first, Command::Stop);
    assert_eq!(pair.command(0, Command::Stop), Err(CommandError::InProgress("stop")));
    pair.settle();
    assert_eq!(pair.nodes[0].replies.get(&first), Some(&Ok(CommandReply::Done)));
}

/// The daemon ends when its last group has stopped; what one that has stopped before would still send has a number that is given
/// to something else at the next start.
#[test]
fn nothing_is_declared_behind_a_stop() {
    let mut pair = Pair::in_step();
    pair.write();
    pair.command(0, Command::Stop).unwrap();
    let last = pair.nodes[0].group.journal.last();
    let late = pair.command(0, Command::RestartPoint { label: "p".parse().unwrap() });
    assert_eq!(late, Err(CommandError::Stopped));
    assert_eq!(pair.nodes[0].group.journal.last(), last);
}

impl Pair {
    /// Lets a node's media do nothing, and everything else go on.
    fn go_on_without_media_of(&mut self, node: usize) {
        loop {
            self.nodes[node].drain();
            let other = 1 - node;
            if ![(other, 0), (other, 1), (node, 1)].into_iter().any(|(index, what)| self.turn(index, what)) {
                break;
            }
        }
    }
}

/// Seed 851. Whoever is being promoted takes nothing from anybody: on a slow medium a whole session can begin before the record of
/// its epoch is durable, and a copy in it would take the node back into the epoch of the primary.
#[test]
fn nobody_copies_to_a_node_that_is_being_promoted() {
    let mut pair = Pair::in_step();
    // Its medium is in the midst of something else when it is told.
    let is_busy = |standby: &Group| standby.durable == standby.journal.last() && standby.destage.is_running();
    while !is_busy(&pair.nodes[1].group) {
        if pair.step() {
            continue;
        }
        match pair.next_timeout() {
            Some(at) => pair.pass_to(at),
            None => drop(pair.write()),
        }
    }
    let (id, now) = (CommandId(1 << 40), pair.now);
    pair.nodes[1].group.handle_command(now, id, LATEST);
    pair.cut();
    for change in [Command::SuspendPair { now: true }, Command::ResumePair { compare: true }] {
        pair.nodes[0].group.handle_command(now, id, change);
        while pair.turn(0, 0) {}
    }
    pair.connect();
    // Whoever greets does; then it has settled what it had, and opens its epoch.
    pair.nodes.iter_mut().for_each(Node::drain);
    assert!(pair.turn(0, 1));
    let _ = pair.turn(1, 1);
    let is_open = |standby: &Group| standby.journal.last() > standby.durable;
    while !is_open(&pair.nodes[1].group) {
        assert!(pair.turn(1, 0));
    }
    pair.go_on_without_media_of(1);
    assert!(pair.nodes[1].group.is_promoting(), "the test is too late");
    let before = pair.nodes[0].group.epoch();
    pair.settle();
    assert_eq!(pair.nodes[1].group.pair.role, Role::Primary);
    assert!(pair.nodes[1].group.epoch() > before, "both are primary in {before}");
}

/// Seeds 844 and 795. What a peer sends is in the journal only when the superblock says whose secondary this node is and which
/// epoch that one has opened: found by a node that does not know it, it would be taken for its own, or its epoch be opened twice.
#[test]
fn nothing_is_journalled_before_the_epoch_of_its_sender_is_known_for_good() {
    let mut pair = Pair::in_step();
    // The primary opens another epoch.
    pair.reopen(0);
    pair.connect();
    pair.go_on_without_media_of(1);
    pair.idle();
    pair.write();
    pair.go_on_without_media_of(1);
    let standby = &pair.nodes[1];
    assert!(standby.group.journal.last() > standby.group.sealed, "nothing has come; the test needs more");
    assert!(!standby.group.superblock.allows_batches(), "the test is too late");
    let is_batch = |operation: &DiskOperation| {
        let offset = if let DiskAction::Write { offset, .. } = operation.action { offset } else { 0 };
        operation.medium == MediumId::Journal && offset >= RING_OFFSET
    };
    assert!(!standby.operations.iter().any(|(operation, _)| is_batch(operation)));
    pair.settle();
    assert!(pair.nodes[1].group.durable == pair.nodes[1].group.journal.last());
    // The same for one who steps down.
    pair.nodes[0].group.step_down();
    assert!(!pair.nodes[0].group.superblock.allows_batches());
}

/// The story "greeted". A session may end after the standby has a write and before it says so: the next greeting says so then.
#[test]
fn a_write_that_a_greeting_acknowledges_is_answered() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SetLevel(Level::Remote)).unwrap();
    pair.command(0, Command::SetWithoutPeer(WithoutPeer::Freeze)).unwrap();
    let id = pair.write();
    while pair.nodes[1].durable.is_none() {
        assert!([(0, 0), (0, 1), (1, 0)].into_iter().any(|(node, what)| pair.turn(node, what)));
        pair.nodes[1].drain();
    }
    pair.connect();
    assert!(!pair.nodes[0].answers.contains_key(&id), "the test is too late");
    while pair.step() {}
    assert!(pair.nodes[0].answers.contains_key(&id), "the standby has it, and nobody hears of it");
}

/// Seed 7000098. A former primary keeps what it wrote past the fork, and a copy brings as many records as that was: the journal has
/// no gap in its numbers, but does not have what the copy brought.
#[test]
fn what_was_written_past_a_fork_does_not_stand_for_what_a_copy_brought() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 4096);
    pair.settle();
    let common = pair.nodes[0].group.stream.last.seq;
    pair.cut();
    (1..=2).for_each(|number| pair.write_at(number * 8192, 4096));
    pair.settle();
    // The record of the promotion is one of them.
    assert!(pair.promote(PromoteTarget::Latest));
    pair.write_at(3 * 8192, 4096);
    pair.settle();
    pair.connect();
    pair.settle();
    pair.command(0, Command::Demote { discard_fork: false }).unwrap();
    pair.connect();
    pair.settle();
    let [former, primary] = [0, 1].map(|node| &pair.nodes[node].group);
    assert_eq!((former.pair.role, former.stream.last), (Role::Secondary, primary.stream.last));
    assert_eq!(former.stream.last.seq.0, common.0 + 2);
    assert!(!former.covers(common), "it would send what it wrote past the fork");
    assert!(former.covers(former.stream.last.seq) && primary.covers(common));
}
