//! Media and peers that say what no correct program says, under valid checksums: refused, never a panic, never a loop.

use super::*;
use super::{
    pair_bench::Pair,
    tests::{Bench, Disks},
};
use crate::{
    disk::Storage,
    format::{
        journal_superblock::SLOTS,
        message::{Greeting, Others, Range, encode_history},
        record::{Kind, Record},
    },
    units::{Generation, Seq},
};
use proptest::{prelude::*, test_runner::TestRng};

fn bench() -> Bench {
    Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha))
}

/// Makes the superblock and the ring what they were: a medium that lost what was synced.
fn restore_journal(disks: &mut Disks, earlier: &mut Disks) {
    for offset in [SLOTS[0], SLOTS[1], 128 << 10, 256 << 10] {
        let bytes = earlier.read(MediumId::Journal, offset, 64 << 10).unwrap();
        disks.write(MediumId::Journal, offset, bytes).unwrap();
    }
}

#[test]
fn a_pool_that_is_ahead_of_its_journal_is_refused() {
    let mut bench = bench();
    let mut earlier = bench.disks.clone();
    (0..10).for_each(|_| bench.mutate());
    bench.settle();
    restore_journal(&mut bench.disks, &mut earlier);
    let opened = Group::open(&mut bench.disks, bench.now).map(|_| ());
    assert!(matches!(opened, Err(OpenError::Ahead { .. })), "{opened:?}");
}

/// A frame of a peer that is wrong; its answer is the end of the session.
fn refused(change: impl Fn(&mut Record)) {
    let mut pair = Pair::in_step();
    let (now, standby) = (pair.now, &mut pair.nodes[1]);
    let payload = encode_history(&standby.group.stream.epochs);
    let mut record = Record { at: standby.group.stream.last, ..standby.group.new_record(Kind::CopyBegin) };
    change(&mut record);
    let body = [&record.carrying(&payload).encode(standby.group.id)[..], &payload].concat();
    standby.group.handle_frame(now, body.into());
    standby.drain();
    assert!(core::mem::take(&mut standby.wants_reconnect), "{record:?} was accepted");
    pair.connect();
    pair.write_at(0, 4096);
    pair.settle();
    assert_eq!(pair.nodes[0].group.stream.last, pair.nodes[1].group.stream.last);
}

#[test]
fn a_peer_cannot_exhaust_the_numbers() {
    refused(|record| record.at.seq = Seq(u64::MAX));
    refused(|record| record.at.seq = Seq(1 << 62));
    refused(|record| record.at.epoch.0 = u64::MAX);
    refused(|record| record.generation = Generation(u32::MAX));
    let pair = Pair::in_step();
    let group = &pair.nodes[0].group;
    let mut greeting = Greeting {
        leaves_behind: false,
        role: crate::pair::Role::Secondary,
        copying: false,
        generation: Generation(1),
        head: group.stream.last,
        restart_point: None,
        volumes: 0,
        lease_millis: 0,
        epochs: group.stream.epochs.clone(),
    };
    assert!(Greeting::parse(&greeting.encode()).is_ok());
    greeting.head.seq = Seq(u64::MAX);
    assert!(Greeting::parse(&greeting.encode()).is_err());
}

#[test]
fn a_peer_cannot_have_written_behind_the_end_of_a_volume() {
    let mut pair = Pair::in_step();
    let group = &mut pair.nodes[0].group;
    let size = group.volumes[&VolumeId(1)].spec.size;
    for (offset, size, is_taken) in [(0, size, true), (size - 4096, 8192, false), (u64::MAX - 1, 1, false)] {
        group.peer.fork = Some(group.stream.last);
        let ranges = alloc::vec![Range { volume: VolumeId(1), offset, size }];
        let taken = group.take_ranges(ranges, Others::Same);
        assert_eq!(taken.is_ok(), is_taken, "{size} bytes at {offset}: {taken:?}");
    }
}

#[test]
fn a_peers_list_has_an_end_and_so_has_its_greeting() {
    let mut pair = Pair::in_step();
    let group = &mut pair.nodes[0].group;
    group.peer.fork = Some(group.stream.last);
    let mut taken = (0..1_000).map(|_| group.take_ranges(Vec::new(), Others::Follow).is_ok());
    assert!(taken.next().unwrap() && !taken.all(|is_taken| is_taken));
    pair.connect();
    pair.nodes[1].drain();
    let greeting = pair.nodes[1].outbox.front().unwrap().clone();
    assert_eq!(greeting.header[5], Kind::Greeting as u8);
    pair.settle();
    pair.nodes[0].events.clear();
    pair.nodes[1].outbox.push_back(greeting);
    pair.settle();
    let refusal = |event: &Event| matches!(event, Event::PeerRefused { reason } if reason.contains("greets once"));
    assert!(pair.nodes[0].events.iter().any(refusal), "{:?}", pair.nodes[0].events);
}
