//! Copies: they send only what differs, and the standby can be promoted meanwhile. The verification of a pair in step.

use super::{pair_bench::Pair, tests::pick, *};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandReply, PromoteTarget},
    disk::{DiskAction, DiskError, DiskOperation},
    format::message::{Digests, Range},
    pair::{Cause, Level, PairState, WithoutPeer},
    request::{Durability, Operation},
    units::NodeKey,
};
use alloc::vec::Vec;
use proptest::prelude::*;

const VOLUME: VolumeId = VolumeId(1);
const UNIT: u64 = 4096;

impl Pair {
    /// Changes a unit of the standby's pool behind its back; `false` if nothing is stored there.
    pub(super) fn damage(&mut self, unit: u64) -> bool {
        let node = &mut self.nodes[1 - self.primary];
        let table = &node.group.volumes[&VOLUME].table;
        let entry = table.entry((unit / 16) as u32);
        let block = if entry.mask >> (unit % 16) & 1 == 1 { entry.latest } else { entry.snapshot };
        if block == 0 {
            return false;
        }
        let offset = table.geometry().offset_of(block) + unit % 16 * UNIT;
        let mut rotten = AlignedBuffer::new(UNIT as usize);
        rotten.as_mut_slice().fill(0xee);
        let action = DiskAction::Write { offset, pieces: alloc::vec![rotten.freeze()] };
        node.disks.carry_out(MediumId::Pool(VOLUME), action, 0).unwrap();
        true
    }

    /// Reads of a node's pool that are under way fail, but for those of destaging; how many.
    pub(super) fn fail_reads(&mut self, node: usize) -> usize {
        let node = &mut self.nodes[node];
        node.drain();
        let asked = &node.group.operations;
        let is_read = |operation: &DiskOperation| {
            operation.medium == MediumId::Pool(VOLUME) && matches!(asked.get(&operation.id), Some(Purpose::Read { .. }))
        };
        let failing: Vec<_> = node.operations.extract_if(.., |(operation, _)| is_read(operation)).collect();
        for (operation, _) in &failing {
            node.group.handle_disk(self.now, operation.id, Err(DiskError::Failed { errno: 5 }));
        }
        failing.len()
    }

    /// Begins a verification, and lets the pair go on until it is answered; `meanwhile` is called `every` so many steps.
    pub(super) fn verify(
        &mut self,
        mend: bool,
        every: usize,
        mut meanwhile: impl FnMut(&mut Self),
    ) -> Result<CommandReply, CommandError> {
        let id = CommandId(u64::MAX);
        let primary = self.primary;
        self.nodes[primary].group.handle_command(self.now, id, Command::VerifyPair { mend });
        for round in 0..100_000 {
            if let Some(reply) = self.nodes[primary].replies.remove(&id) {
                return reply;
            }
            if round % every == 0 {
                meanwhile(self);
            }
            if !self.step() {
                let at = self.nodes.iter().filter_map(|node| node.group.poll_timeout()).min();
                self.now.monotonic = self.now.monotonic.max(at.unwrap_or_default());
                self.nodes.iter_mut().for_each(|node| node.group.handle_timeout(self.now));
            }
        }
        panic!("never verified");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_copy_sends_only_what_differs(seed in any::<[u8; 32]>(), forks in any::<bool>()) {
        let mut pair = Pair::in_step_with(seed);
        for _ in 0..40 {
            pair.write();
            pair.step();
        }
        pair.settle();
        let before = pair.state.clone();
        if forks {
            // Both nodes go on for themselves; then the former standby is the one that counts.
            pair.cut();
            let standby = 1 - pair.primary;
            let target = PromoteTarget::Latest;
            pair.command(standby, Command::Promote { target, force: true }).unwrap();
            for _ in 0..3 {
                let unit = pick(&mut pair.rng, 256);
                pair.write_at(unit * UNIT, UNIT as usize);
                pair.settle();
            }
            (pair.primary, pair.state) = (standby, before.clone());
        } else {
            // The standby is a stranger afterwards: all of it counts for nothing until it was compared.
            pair.command(pair.primary, Command::DeletePair).unwrap();
            pair.cut();
        }
        let mut differing = alloc::collections::BTreeSet::new();
        for _ in 0..4 {
            let unit = pick(&mut pair.rng, 256);
            pair.write_at(unit * UNIT, UNIT as usize);
            differing.insert(unit);
            pair.settle();
        }
        // Written with what is there already: noted, but no different.
        let (same, place) = (before[0], 0);
        if same != 0 && before[..8].iter().all(|sector| *sector == same) && !differing.contains(&0) {
            let next = core::mem::replace(&mut pair.next, same);
            pair.write_at(place, UNIT as usize);
            pair.next = next + 1;
        }
        pair.copied = 0;
        if !forks {
            pair.command(pair.primary, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
        }
        pair.finish();
        let forked = if forks { 3 } else { 0 };
        let most = (differing.len() as u64 + forked) * UNIT;
        prop_assert!(pair.copied <= most, "{} bytes were copied, {} differ", pair.copied, most);
        prop_assert!(forks || pair.copied == most, "{} bytes were copied, {} differ", pair.copied, most);
    }

    #[test]
    fn a_verification_finds_what_differs_and_nothing_else(seed in any::<[u8; 32]>(), mend in any::<bool>()) {
        let mut pair = Pair::in_step_with(seed);
        for _ in 0..60 {
            pair.write();
            pair.step();
        }
        pair.settle();
        let mut damaged: Vec<u64> = (0..pick(&mut pair.rng, 5)).map(|_| 128 + pick(&mut pair.rng, 128)).collect();
        damaged.sort_unstable();
        damaged.dedup();
        damaged.retain(|unit| pair.damage(*unit));
        // Writes go on where nothing is damaged, into the same blocks again and again.
        let reply = pair.verify(mend, 4, |pair| {
            let unit = pick(&mut pair.rng, 40);
            pair.write_at(unit * UNIT, UNIT as usize);
        });
        let Ok(CommandReply::Verified { compared_bytes, differing_bytes, differing, mending }) = reply else {
            panic!("{reply:?}");
        };
        let found: Vec<u64> = differing.iter().flat_map(|Range { offset, size, .. }| (*offset..offset + size).step_by(4096))
            .map(|offset| offset / UNIT).collect();
        prop_assert_eq!(&found, &damaged);
        prop_assert_eq!(differing_bytes, damaged.len() as u64 * UNIT);
        prop_assert_eq!(compared_bytes, pair.nodes[0].group.volumes[&VOLUME].spec.size);
        prop_assert_eq!(mending, mend && !damaged.is_empty());
        if mend {
            pair.finish();
        } else {
            prop_assert_eq!(pair.nodes[0].group.pair.state, PairState::Duplex);
        }
    }
}

#[test]
fn what_a_verification_has_found_is_mended_though_the_primary_dies() {
    let mut pair = Pair::in_step();
    pair.write_at(128 * UNIT, UNIT as usize);
    pair.settle();
    // What the journal still has is noted anew by whoever opens it.
    let primary = &mut pair.nodes[0].group;
    primary.retire_up_to(primary.applied_durable(), |_| true);
    assert_eq!(primary.journal.entry_count(), 0);
    pair.settle();
    assert!(pair.damage(128), "the standby does not have it");
    let reply = pair.verify(true, 4, |_| ());
    assert!(matches!(reply, Ok(CommandReply::Verified { mending: true, .. })), "{reply:?}");
    pair.reopen(0);
    pair.finish();
}

/// What waited for the standby is in the bitmap only; the standby has it when the copy has ended, and not before.
#[test]
fn who_waits_for_the_standby_waits_for_the_end_of_the_copy() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SetLevel(Level::Remote)).unwrap();
    pair.command(0, Command::SetWithoutPeer(WithoutPeer::Freeze)).unwrap();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.cut();
    pair.command(0, Command::ResumePair { compare: true }).unwrap();
    (0..20).for_each(|_| _ = pair.write());
    let id = RequestId(pair.next);
    pair.write_at(0, UNIT as usize);
    pair.settle();
    for interrupted in [true, false] {
        pair.connect();
        let mut has_begun = false;
        while pair.nodes[0].group.pair.state != PairState::Duplex {
            assert!(!pair.nodes[0].answers.contains_key(&id), "it was answered");
            has_begun |= pair.nodes[1].group.stream.copying;
            if interrupted && has_begun {
                break;
            }
            if !pair.step() {
                let at = pair.next_timeout().expect("the copy never ends");
                pair.pass_to(at);
            }
        }
        assert!(has_begun);
        if interrupted {
            pair.cut();
            pair.settle();
        }
    }
    pair.settle();
    assert_eq!(pair.nodes[0].answers.get(&id), Some(&Ok(Reply::Done)));
}

/// A write that the primary can still lose is copied with its block, long before its record is sent.
#[test]
fn what_was_copied_is_noted_until_it_is_durable_here() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    pair.write_at(0, UNIT as usize);
    pair.settle();
    pair.command(0, Command::ResumePair { compare: false }).unwrap();
    pair.write_at(0, UNIT as usize);
    let newest = pair.nodes[0].group.journal.last();
    let dirty = |pair: &Pair| pair.nodes[0].group.volumes[&VOLUME].table.dirty_bytes();
    let mut is_copied = false;
    pair.connect();
    // All goes on but that no record becomes durable.
    for _ in 0..1000 {
        let node = &mut pair.nodes[0];
        node.drain();
        let asked = &node.group.operations;
        let is_sync = |id: &OperationId| matches!(asked.get(id), Some(Purpose::Sync));
        let held: Vec<_> = node.operations.extract_if(.., |(operation, _)| is_sync(&operation.id)).collect();
        let goes_on = pair.step();
        pair.nodes[0].operations.extend(held);
        is_copied |= !pair.nodes[0].group.copy.copied.is_empty();
        if !goes_on {
            let Some(at) = pair.next_timeout().filter(|_| !is_copied) else { break };
            pair.pass_to(at);
        }
    }
    assert!(is_copied && pair.nodes[0].group.durable < newest, "the test is too late");
    assert!(dirty(&pair) > 0);
    pair.settle();
    assert_eq!(dirty(&pair), 0);
    pair.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Records that are applied here, and have not arrived there.
    #[test]
    fn what_is_under_way_when_mending_begins_is_not_forgotten(seed in any::<[u8; 32]>(), dies in any::<bool>()) {
        let mut pair = Pair::in_step_with(seed);
        (0..60).for_each(|_| _ = pair.write());
        pair.settle();
        let damaged = (128..256).any(|unit| pair.damage(unit));
        let reply = pair.verify(true, 1, |pair| {
            pair.nodes[0].drain();
            if pair.nodes[0].replies.contains_key(&CommandId(u64::MAX)) {
                return;
            }
            if pair.nodes[0].outbox.len() < 8 {
                let unit = pick(&mut pair.rng, 40);
                pair.write_at(unit * UNIT, UNIT as usize);
            }
            // The primary is ahead in everything.
            while pair.nodes[0].step(pair.now, &mut pair.rng) {}
            pair.now.monotonic = pair.now.monotonic.after(50_000);
            pair.nodes[0].group.handle_timeout(pair.now);
            while pair.nodes[0].step(pair.now, &mut pair.rng) {}
        });
        let mends = matches!(reply, Ok(CommandReply::Verified { mending: true, .. }));
        prop_assert_eq!(mends, damaged, "{:?}", reply);
        for _ in 0..pick(&mut pair.rng, 10) {
            pair.step();
        }
        if dies {
            pair.kill(1);
        }
        pair.connect();
        pair.finish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// With and without a declared point, whatever kind of copy, and whatever died in it.
    #[test]
    fn a_standby_can_be_promoted_at_every_instant_of_a_copy(seed in any::<[u8; 32]>()) {
        let mut pair = Pair::in_step_with(seed);
        let declares = pick(&mut pair.rng, 2) == 0;
        for round in 0..20 {
            pair.write();
            if declares && round == 10 {
                pair.restart_point();
            }
        }
        pair.settle();
        pair.cut();
        if pick(&mut pair.rng, 2) == 0 {
            // The bitmap decides, or nothing that the standby holds counts.
            pair.command(0, Command::SuspendPair { now: true }).unwrap();
        } else {
            pair.command(0, Command::DeletePair).unwrap();
        }
        for _ in 0..30 {
            pair.write();
            pair.step();
        }
        if pair.nodes[0].group.pair.peer.is_some() {
            pair.command(0, Command::ResumePair { compare: true }).unwrap();
        } else {
            pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
        }
        pair.connect();
        while !pair.nodes[1].group.stream.copying {
            pair.step();
        }
        for _ in 0..pick(&mut pair.rng, 400) {
            match pick(&mut pair.rng, 60) {
                0 => pair.kill(1),
                1 => pair.connect(),
                2 => drop(pair.write()),
                3 => pair.idle(),
                _ => drop(pair.step()),
            }
        }
        let copying = pair.nodes[1].group.stream.copying;
        let target = if copying || declares { PromoteTarget::RestartPoint } else { PromoteTarget::Latest };
        prop_assert!(pair.promote(target), "not promoted, copying: {}", copying);
        let point = &pair.nodes[1].group.stream.restart_point;
        prop_assert!(point.as_ref().is_none_or(|point| point.info.is_declared()), "the state before a copy is kept for ever");
        pair.finish();
    }
}

/// A peer may ask much, but not make this node read all its memory full.
#[test]
fn too_many_or_too_large_comparisons_end_the_session() {
    for (count, size, unit) in [(1100, 64 << 10, 4096), (1, 8 << 20, 1 << 20), (1, 0, 4096)] {
        let mut pair = Pair::in_step();
        pair.write_at(0, 64 << 10);
        pair.settle();
        let digests = Digests::of(&alloc::vec![0; size], unit);
        for _ in 0..count {
            pair.nodes[0].group.ask(VOLUME, 0, size as u64, &digests);
        }
        pair.nodes[0].drain();
        while let Some(frame) = pair.nodes[0].outbox.pop_front() {
            assert!(!pair.nodes[1].wants_reconnect || count > 1, "it took only some");
            pair.nodes[1].group.handle_frame(pair.now, [frame.header, frame.payload].concat().into());
            pair.nodes[1].drain();
        }
        assert!(pair.nodes[1].wants_reconnect, "{count} comparisons of {size} bytes were taken");
        pair.finish();
    }
}

#[test]
fn a_block_that_the_standby_cannot_read_counts_as_differing() {
    let mut pair = Pair::in_step_with([9; 32]);
    pair.write_at(64 << 10, 64 << 10);
    pair.settle();
    let reply = pair.verify(false, 1, |pair| {
        pair.fail_reads(1);
    });
    let Ok(CommandReply::Verified { differing, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!(differing, [Range { volume: VOLUME, offset: 64 << 10, size: 64 << 10 }]);
    pair.finish();
}

#[test]
fn a_block_that_cannot_be_copied_suspends_the_pair_until_an_operator_resumes_it() {
    let mut pair = Pair::in_step_with([9; 32]);
    pair.write_at(64 << 10, 64 << 10);
    pair.settle();
    pair.command(0, Command::DeletePair).unwrap();
    pair.cut();
    pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
    pair.connect();
    while pair.fail_reads(0) == 0 {
        assert!(pair.step(), "nothing is read");
    }
    pair.settle();
    pair.connect();
    pair.settle();
    assert_eq!(pair.nodes[0].group.pair.state, PairState::Suspended(Cause::MediumError));
    pair.command(0, Command::ResumePair { compare: true }).unwrap();
    pair.finish();
}

#[test]
fn what_a_stranger_holds_where_nothing_is_stored_here_is_voided() {
    let mut pair = Pair::in_step_with([3; 32]);
    let far = crate::units::VOLUME_SIZE_MIN / 2 + 64 * 1024;
    for _ in 0..20 {
        pair.write();
    }
    let data = AlignedBuffer::copy_of(&[5; 64 << 10]).freeze();
    pair.request(0, Operation::Write { offset: far, data, durability: Durability::Completed });
    pair.settle();
    pair.command(0, Command::DeletePair).unwrap();
    pair.cut();
    pair.request(0, Operation::Discard { offset: far, size: 64 << 10 });
    pair.settle();
    let hole = pair.nodes[0].group.volumes[&VOLUME].table.hole_count(20, 200);
    pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
    pair.finish();
    assert!(hole >= 64, "the row of {hole} blocks is too short to be voided by one frame");
    assert_eq!(pair.nodes[1].group.held_ranges(VOLUME, far, 64 << 10), []);
}

#[test]
fn a_verification_without_a_peer_is_refused_and_one_that_loses_it_says_so() {
    let mut pair = Pair::in_step_with([7; 32]);
    for _ in 0..20 {
        pair.write();
    }
    pair.settle();
    let lost = pair.verify(false, 4, Pair::cut);
    assert_eq!(lost, Err(CommandError::PeerLost));
    let refused = pair.verify(false, 4, |_| ());
    assert!(matches!(refused, Err(CommandError::WrongPairState { .. })), "{refused:?}");
    pair.finish();
}
