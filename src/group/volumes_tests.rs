//! Generations of groups with several volumes, whose pools a crash may leave at different times; and pools that are large, long in
//! use, or nearly full.

use super::{
    alone_bench::{Alone, GROUP, is_superblock_of, keep, number, spec},
    pair_bench::{Pair, State},
    *,
};
use crate::{
    command::{Command, GenerationId, GenerationKind, PromoteTarget},
    request::{Access, Operation},
    table::Entry,
    units::{Epoch, Generation, VOLUME_SIZE_MIN},
};
extern crate std;
use alloc::vec;

const POINT: PromoteTarget = PromoteTarget::RestartPoint;

/// The daemon dies when one pool's checkpoint counts and the other's does not.
#[test]
fn one_pool_may_be_ahead_of_the_other() {
    for ahead in [1, 2] {
        for target in [POINT, PromoteTarget::Generation(Generation(1)), PromoteTarget::Generation(Generation(2))] {
            let mut group = Alone::with_one_ahead(ahead, keep(3));
            // At once, and when everything was done again.
            if target == POINT {
                group.settle();
            }
            group.promote(target).unwrap();
            let expected = if let PromoteTarget::Generation(name) = target { name.0 as u8 } else { 3 };
            assert_eq!([group.first(1), group.first(2)], [expected; 2]);
            group.reopen();
            group.settle();
            assert_eq!([group.first(1), group.first(2)], [expected; 2]);
            let mut disks = group.disks.clone();
            assert!(Group::open(&mut disks, group.now).is_ok());
        }
    }
}

/// What a table has already is taken back by the table, whatever the other one lacks.
#[test]
fn a_block_of_a_pool_that_is_ahead_is_freed_once() {
    for ahead in [1, 2] {
        let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 2);
        (1..=2).for_each(|volume| group.write(volume, 0, 4096, 1));
        group.restart_point();
        group.settle();
        // Large enough for blocks of their own.
        (1..=2).for_each(|volume| group.write(volume, 128 << 10, 128 << 10, 2));
        group.die_with_one_ahead(ahead);
        group.promote(POINT).unwrap();
        group.settle();
        for _ in 0..2 {
            let tables = group.group.volumes.values().map(|volume| &volume.table);
            let used: Vec<u32> = tables.map(|table| table.blocks.used_count() - table.extent_blocks()).collect();
            assert_eq!(used, [1; 2], "volume {ahead} is ahead");
            group.reopen();
            group.settle();
        }
        assert_eq!([group.first(1), group.first(2)], [1; 2]);
    }
}

/// The superblock names a new volume whose pool knows of no generation yet.
#[test]
fn a_volume_is_added_and_the_daemon_dies() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    group.write(1, 0, 4096, 1);
    group.restart_point();
    group.settle();
    group.write(1, 0, 4096, 2);
    group.settle();
    group.add(2, 64 << 10, VOLUME_SIZE_MIN);
    while !group.replies.contains_key(&CommandId(90_002)) {
        assert!(group.step_where(|operation| operation.medium == MediumId::Journal));
    }
    group.reopen();
    group.write(2, 0, 4096, 3);
    group.settle();
    group.promote(POINT).unwrap();
    assert_eq!([group.first(1), group.first(2)], [1, 0]);
}

#[test]
fn a_new_volume_hides_no_fork() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 4096);
    pair.restart_point();
    pair.settle();
    pair.cut();
    pair.fill(0, 8192);
    assert!(pair.promote(POINT));
    pair.connect();
    pair.settle();
    pair.command(0, Command::Demote { discard_fork: false }).unwrap();
    pair.finish();
    let fork = GenerationId::Fork(Epoch::FIRST);
    let kept = |pair: &Pair| pair.nodes[0].group.status(pair.now).generations.iter().any(|kept| kept.name == fork);
    assert!(kept(&pair));
    let node = &mut pair.nodes[0];
    node.disks.set_size(MediumId::Pool(VolumeId(2)), pool_size_for(VOLUME_SIZE_MIN, 64 << 10));
    format_pool(&mut node.disks, GROUP, &spec(2, 64 << 10, VOLUME_SIZE_MIN)).unwrap();
    let mut disks = node.disks.clone();
    node.group.handle_add_volume(pair.now, CommandId(70_000), &mut disks, spec(2, 64 << 10, VOLUME_SIZE_MIN));
    pair.settle();
    assert!(kept(&pair));
    pair.command(0, Command::DropGeneration(fork)).unwrap();
    assert!(!kept(&pair));
}

/// One record may touch more blocks than a cycle should.
#[test]
fn a_large_discard_of_small_blocks_leaves_generations_as_they_were() {
    let (block, most) = (16u64 << 10, 66_000u64);
    let mut group = Alone::new(block as u32, 2 << 30, 1);
    group.command(keep(4)).unwrap();
    group.restart_point();
    group.settle();
    // Every fourth of them holds something.
    for (count, index) in (0..most).step_by(4).enumerate() {
        group.write(1, index * block, 4096, 1);
        if count % 1024 == 0 {
            while group.step_where(|_| true) {}
        }
    }
    group.settle();
    group.restart_point();
    for (offset, size) in [(0u64, 7u64 << 20), (7 << 20, 1 << 30)] {
        group.request(1, Access::ReadWrite, Operation::Discard { offset, size });
    }
    group.settle();
    for offset in (0..most * block).step_by(1 << 20) {
        assert!(group.generation(1, 1, offset, 1 << 20).iter().all(|byte| *byte == 0), "generation 1 at {offset}");
        let found = group.generation(2, 1, offset, 1 << 20);
        let written = found.chunks(block as usize).step_by(4).filter(|block| block[0] == 1).count();
        assert!(written == 16 || offset + (1 << 20) > most * block, "generation 2 at {offset}");
    }
}

#[test]
fn a_pool_with_holes_has_room_for_generations() {
    let mut group = Alone::new(16 << 10, 64 << 20, 1);
    group.command(keep(4)).unwrap();
    // What a pool looks like that was long in use: no two neighbours are unused.
    let table = &mut group.group.volumes.get_mut(&VolumeId(1)).unwrap().table;
    for block in (1..=table.geometry().block_count).step_by(2) {
        table.blocks.claim(block);
    }
    for round in 1..=3 {
        for block in 0..600 {
            group.write(1, block * (16 << 10), 4096, round);
        }
        group.restart_point();
        group.settle();
    }
    assert_eq!(group.group.status(group.now).generations.len(), 3);
    for round in 1..=3 {
        assert_eq!(group.generation(round.into(), 1, 599 * (16 << 10), 4096)[0], round);
    }
    group.promote(PromoteTarget::Generation(Generation(2))).unwrap();
    group.write(1, 0, 4096, 9);
    group.settle();
    assert_eq!(group.group.applied, group.group.journal.last(), "nothing is destaged");
    group.reopen();
    assert_eq!(group.generation(1, 1, 599 * (16 << 10), 4096)[0], 1);
}

#[test]
fn volumes_are_taken_back_again_and_again() {
    for crash in 0..4 {
        let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
        group.command(keep(20)).unwrap();
        let mut states = vec![];
        for round in 0..8u64 {
            for block in (0..16u64).filter(|block| (round + block) % 3 != 0) {
                let offset = block * (64 << 10) + (round % 4) * 8192;
                group.write(1, offset, 16384, (round * 16 + block) as u8 + 1);
            }
            group.settle();
            states.push(group.read(1, Access::ReadWrite, 0, 1 << 20));
            group.restart_point();
            group.settle();
        }
        for (step, target) in [6u32, 4, 2].into_iter().enumerate() {
            group.promote(PromoteTarget::Generation(Generation(target))).unwrap();
            if crash & 1 << (step % 2) != 0 {
                group.reopen();
            }
            assert!(group.read(1, Access::ReadOnly, 0, 1 << 20) == states[target as usize - 1], "{crash} {target}");
            group.write(1, 3 << 16, 4096, 250);
            // Before anything is swept: the next one is what the volume is now.
            group.apply();
            let now = group.read(1, Access::ReadOnly, 0, 1 << 20);
            group.restart_point();
            group.apply();
            let newest = group.group.status(group.now).generations[0].name;
            let GenerationId::Number(Generation(newest)) = newest else { panic!("{newest}") };
            assert!(group.generation(newest, 1, 0, 1 << 20) == now, "{crash} {target}: the new one");
            for name in 1..=target {
                assert!(group.generation(name, 1, 0, 1 << 20) == states[name as usize - 1], "{crash} {target} {name}");
            }
        }
        group.settle();
        group.reopen();
        group.settle();
        for name in 1..=2 {
            assert!(group.generation(name, 1, 0, 1 << 20) == states[name as usize - 1]);
        }
    }
}

/// A volume is taken back, and before anything was swept further back.
#[test]
fn a_volume_is_taken_back_twice_at_once() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    group.command(keep(20)).unwrap();
    for round in 0..6u64 {
        (0..16u64).filter(|block| (round + block) % 3 != 0).for_each(|block| {
            group.write(1, block << 16, 64 << 10, (round * 16 + block) as u8);
        });
        group.restart_point();
        group.settle();
    }
    let orders = [5, 4, 2].map(|name| group.group.find_generation(number(name)).unwrap());
    let table = &mut group.group.volumes.get_mut(&VolumeId(1)).unwrap().table;
    let expected: Vec<u32> = (0..16).map(|block| table.entry_in(orders[2], block).unwrap().latest).collect();
    assert!(orders.into_iter().all(|order| table.roll_back(order)));
    let found: Vec<u32> = (0..16).map(|block| table.entry(block).latest).collect();
    assert_eq!(found, expected);
    table.sweep_pages(u32::MAX);
    let found: Vec<u32> = (0..16).map(|block| table.entry(block).latest).collect();
    assert_eq!(found, expected);
}

/// More often than a list of void stamps can name, and nothing is swept between.
#[test]
fn a_volume_is_taken_back_very_often() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    (0..40).for_each(|block| group.write(1, block << 16, 64 << 10, 1));
    group.restart_point();
    group.settle();
    let table = &mut group.group.volumes.get_mut(&VolumeId(1)).unwrap().table;
    let expected: Vec<u32> = (0..40).map(|block| table.entry(block).latest).collect();
    for block in 0..40 {
        let order = Order(1000 + u64::from(block));
        table.keep_snapshot(Some(order));
        // A write after it.
        let before = table.settle(block);
        let latest = table.blocks.allocate().unwrap();
        let mask = table.geometry().full_mask();
        table.set_entry(block, Entry { latest, snapshot: before.latest, mask, stamp: table.stamp(), dirty: 0 });
        assert!(table.roll_back(order));
    }
    let found: Vec<u32> = (0..40).map(|block| table.entry(block).latest).collect();
    assert_eq!(found, expected);
}

/// A crash leads back to a table from before a restart point; what was folded since must not show in it.
#[test]
fn what_is_folded_does_not_show_in_a_generation_that_a_crash_brings_back() {
    // The last checkpoint is from before or from after the restart point.
    for after in [false, true] {
        let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
        // Small enough to go through the journal.
        group.write(1, 0, 60 << 10, 1);
        group.settle();
        group.restart_point();
        if after {
            group.settle();
        } else {
            group.apply();
        }
        // A small part is new, and then, two restart points later, folded into the block from before.
        group.write(1, 0, 4096, 2);
        group.restart_point();
        group.write(1, 8192, 4096, 3);
        group.apply();
        group.reopen();
        group.command(keep(9)).unwrap();
        group.settle();
        for (name, expected) in [(1, [1, 1]), (2, [2, 1])] {
            if group.group.find_generation(number(name)).is_some() {
                let found = group.generation(name, 1, 0, 60 << 10);
                assert_eq!([found[0], found[8192]], expected, "generation {name}, checkpoint after it: {after}");
            }
        }
        assert!(group.group.find_generation(number(2)).is_some());
    }
}

/// A checkpoint of pages of kept blocks that was not finished leaves nothing that counts.
#[test]
fn an_unfinished_checkpoint_of_kept_blocks_does_not_count() {
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 1);
    group.command(keep(9)).unwrap();
    for round in 1..=3 {
        (0..20).for_each(|block| group.write(1, block << 16, 4096, round));
        group.restart_point();
        group.settle();
    }
    let last = |group: &Alone| group.group.volumes[&VolumeId(1)].table.applied_durable();
    for round in 4..=9 {
        (0..20).for_each(|block| group.write(1, block << 16, 4096, round));
        group.restart_point();
        group.apply();
        group.write(1, 0, 4096, round);
        group.apply();
        let before = last(&group);
        group.group.checkpoint.wanted = true;
        let superblock = is_superblock_of(1);
        for _ in 0..300 {
            if !group.step_where(|operation| !superblock(operation)) {
                group.group.handle_timeout(group.now);
            }
        }
        assert!(group.operations.iter().any(|(operation, _)| superblock(operation)), "it is at the superblock");
        group.reopen();
        assert_eq!(last(&group), before);
        // Something else this time, under the same number.
        group.command(Command::DropGeneration(number(round as u32 - 3))).unwrap();
        group.settle();
        group.reopen();
        for name in round - 2..=round {
            assert_eq!(group.generation(name.into(), 1, 19 << 16, 4096)[0], name, "round {round}");
        }
    }
}

#[test]
fn readers_hold_no_more_than_a_pool_can_list() {
    let mut pair = Pair::in_step();
    pair.command(1, keep(64)).unwrap();
    let interval = |pair: &mut Pair, round: u64| -> State {
        pair.write_at(round % 16 * (64 << 10), 4096);
        pair.restart_point();
        pair.idle();
        pair.settle();
        pair.state.clone()
    };
    (0..20).for_each(|round| drop(interval(&mut pair, round)));
    for name in 1..=20 {
        let order = pair.nodes[1].group.find_generation(number(name)).unwrap();
        pair.nodes[1].group.hold_generation(order);
    }
    (20..90).for_each(|round| drop(interval(&mut pair, round)));
    pair.pass_to(pair.now.monotonic.after(2_000_000));
    pair.settle();
    pair.reopen(1);
    pair.finish();
}

#[test]
fn what_a_promotion_makes_the_restart_point_stays() {
    let mut pair = Pair::in_step();
    pair.fill(0, 4096);
    pair.restart_point();
    pair.idle();
    pair.settle();
    let first = pair.state.clone();
    let order = pair.nodes[1].group.find_generation(number(1)).unwrap();
    pair.nodes[1].group.hold_generation(order);
    for round in 1..8 {
        for part in 0..24 {
            pair.write_at_unchecked((4 << 20) + part * (60 << 10), 60 << 10);
            pair.settle();
        }
        pair.fill(round * 8192, 8192);
        pair.restart_point();
        pair.pass_to(pair.now.monotonic.after(2_000_000));
        pair.settle();
    }
    assert!(pair.nodes[1].group.journal.tail_order > order, "its entry is gone from the journal");
    assert!(pair.promote(PromoteTarget::Generation(Generation(1))));
    assert!(pair.state == first);
    pair.reopen(1);
    pair.pass_to(pair.now.monotonic.after(10_000_000));
    pair.settle();
    let kept = pair.nodes[1].group.status(pair.now).generations;
    assert_eq!(
        kept.iter().map(|kept| (kept.name, kept.kind)).collect::<Vec<_>>(),
        [(number(1), GenerationKind::LastRestartPoint)]
    );
    pair.finish();
}
