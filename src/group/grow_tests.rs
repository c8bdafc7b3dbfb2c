//! Volumes that grow while they are written to, through death and loss of power at any instant.

use super::*;
use super::{
    pair_bench::Pair,
    tests::{Bench, pick},
};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandId, CommandReply},
    disk::Storage,
    format::table_page,
    request::{Durability, Operation},
    units::{NodeKey, VOLUME_SIZE_MIN},
};
use proptest::{prelude::*, test_runner::TestRng};
extern crate std;
use alloc::string::ToString;

const POOL: MediumId = MediumId::Pool(VolumeId(1));

impl Bench {
    fn spec(&self) -> &VolumeSpec {
        &self.group.volumes[&VolumeId(1)].spec
    }

    pub(super) fn begin_to_grow(&mut self, size: u64, pool_size: u64) -> CommandId {
        let id = CommandId(pick(&mut self.rng, u64::MAX));
        self.disks.set_size(POOL, pool_size);
        let command = Command::GrowVolume { volume: VolumeId(1), size, pool_size };
        self.group.handle_command(self.now, id, command);
        id
    }

    pub(super) fn enlarge_pool(&self, size: u64) -> u64 {
        let now = self.disks.clone().size(POOL).expect("a pool");
        grown_pool_size(size, self.spec().table_block_size).max(now)
    }

    fn grow(&mut self, size: u64) -> Result<CommandReply, CommandError> {
        let pool_size = self.enlarge_pool(size);
        let id = self.begin_to_grow(size, pool_size);
        self.settle();
        self.replies.remove(&id).expect("answered")
    }

    /// The last bytes of the volume can be written and read.
    fn check_end(&mut self) {
        let (size, value) = (self.spec().size, self.rng.next_u64());
        let mut buffer = AlignedBuffer::new(4096);
        buffer.as_mut_slice().chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
        let data = buffer.freeze();
        let write = Operation::Write { offset: size - 4096, data: data.clone(), durability: Durability::Durable };
        let id = self.request(write);
        self.wait(id);
        assert_eq!(self.answers.remove(&id), Some(Ok(Reply::Done)));
        self.settle();
        let id = self.request(Operation::Read { offset: size - 4096, size: 4096 });
        self.wait(id);
        let Some(Ok(Reply::Data(parts))) = self.answers.remove(&id) else { panic!("read failed") };
        assert!(parts.concat() == data, "the end of the volume holds something else");
        let id = self.request(Operation::Read { offset: size, size: 4096 });
        self.wait(id);
        assert_eq!(self.answers.remove(&id), Some(Err(RequestError::Invalid)));
    }
}

fn deterministic() -> Bench {
    Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_volume_grows_under_load_through_death_and_loss_of_power(seed in any::<[u8; 32]>()) {
        let mut bench = Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed));
        let mut wanted = bench.spec().size;
        for _ in 0..250 {
            match pick(&mut bench.rng, 24) {
                choice if bench.befalls(choice) => {}
                14 if bench.group.growth.is_none() => {
                    // Small steps leave the table where it is; large ones make it move, again and again.
                    let step = [1 << 20, 100 << 20, 400 << 20][pick(&mut bench.rng, 3) as usize];
                    // What death has interrupted is often tried again at once.
                    if wanted == bench.spec().size || pick(&mut bench.rng, 4) == 0 {
                        wanted = bench.spec().size + step;
                    }
                    let pool_size = bench.enlarge_pool(wanted);
                    bench.begin_to_grow(wanted, pool_size);
                }
                _ => bench.mutate(),
            }
        }
        bench.settle();
        // What was interrupted is done by the same command.
        prop_assert_eq!(bench.grow(wanted), Ok(CommandReply::Done));
        prop_assert_eq!(bench.spec().size, wanted);
        bench.check_all();
        bench.check_end();
        bench.kill();
        prop_assert_eq!(bench.spec().size, wanted);
        bench.check_all();
        bench.check_end();
    }
}

/// The medium has gained blocks of which the table on it does not know yet, and there is a crash: the growth goes on, or the medium
/// was too small for it all the same.
#[test]
fn what_is_flushed_while_a_volume_grows_survives() {
    for has_room in [true, false] {
        let mut bench = deterministic();
        let write = |bench: &mut Bench, size: usize, value: u8| {
            let mut buffer = AlignedBuffer::new(size);
            buffer.as_mut_slice().fill(value);
            let (data, durability) = (buffer.freeze(), Durability::Durable);
            bench.request(Operation::Write { offset: 0, data, durability })
        };
        let count = |bench: &Bench| bench.group.volumes[&VolumeId(1)].table.geometry().block_count;
        // New blocks are looked for behind the last one that was taken.
        let (before, block) = (count(&bench), bench.spec().table_block_size);
        for _ in 0..u64::from(before) * u64::from(block) / (1 << 20) - 1 {
            let id = write(&mut bench, 1 << 20, 1);
            bench.wait(id);
            bench.settle();
        }
        let size = 2 * VOLUME_SIZE_MIN;
        let pool_size = bench.enlarge_pool(size);
        let grown = bench.begin_to_grow(if has_room { size } else { 8 * size }, pool_size);
        while count(&bench) == before {
            assert!(bench.step_but(|_| false), "it never grows");
        }
        assert_eq!(bench.replies.contains_key(&grown), !has_room);
        let id = write(&mut bench, 4 << 20, 2);
        while bench.step_but(|purpose| matches!(purpose, Purpose::Checkpoint)) {}
        assert_eq!(bench.answers.remove(&id), Some(Ok(Reply::Done)));
        bench.operations.clear();
        bench.reopen();
        assert_eq!(count(&bench), before, "the superblock was not written");
        let id = bench.request(Operation::Read { offset: 0, size: 4 << 20 });
        bench.wait(id);
        let Some(Ok(Reply::Data(parts))) = bench.answers.remove(&id) else { panic!("read failed") };
        assert!(parts.concat().iter().all(|byte| *byte == 2), "what was flushed is lost");
    }
}

#[test]
fn a_table_that_moved_is_used_and_its_old_place_is_free_again() {
    let mut bench = deterministic();
    let mut moves = 0;
    for round in 1..8 {
        let before = *bench.group.volumes[&VolumeId(1)].table.geometry();
        assert_eq!(bench.grow(VOLUME_SIZE_MIN + (round << 30)), Ok(CommandReply::Done));
        bench.check_end();
        let table = &bench.group.volumes[&VolumeId(1)].table;
        let (first, count) = table.geometry().page_blocks();
        moves += u32::from(table.geometry().pages_offset != before.pages_offset);
        // This test writes one block in each round.
        assert!(table.blocks.used_count() <= count + round as u32, "the old place is lost");
        bench.kill();
        let table = &mut bench.group.volumes.get_mut(&VolumeId(1)).expect("a volume").table;
        assert!((first..first + count).all(|block| !table.blocks.claim(block)), "the table's place is free for data");
    }
    assert!(moves >= 3, "the table moved {moves} times");
}

#[test]
fn pages_that_lay_where_the_table_moves_do_not_count() {
    let mut bench = deterministic();
    let untouched = bench.disks.clone();
    bench.grow(8 << 30).expect("grown");
    let geometry = *bench.group.volumes[&VolumeId(1)].table.geometry();
    assert!(geometry.page_blocks().1 > 0, "the table did not move");
    // The same once more, with a page of an earlier attempt where none will be written.
    bench.disks = untouched;
    bench.reopen();
    let mut entries = alloc::boxed::Box::new([table_page::Entry::default(); table_page::TABLE_PAGE_ENTRY_COUNT]);
    entries[0].latest = 7;
    let (page, _) = table_page::encode(bench.spec().pool, 100, 1, &entries);
    let pool_size = bench.enlarge_pool(8 << 30);
    bench.disks.set_size(POOL, pool_size);
    bench.disks.write(POOL, geometry.page_offset(100) + page.len() as u64, page).expect("written");
    bench.grow(8 << 30).expect("grown");
    assert_eq!(bench.group.volumes[&VolumeId(1)].table.geometry().pages_offset, geometry.pages_offset);
    bench.kill();
    bench.check_end();
}

#[test]
fn what_cannot_be_is_refused() {
    let mut bench = deterministic();
    let disk = bench.disks.clone().size(POOL).expect("a pool");
    let says = |result: Result<CommandReply, CommandError>| result.expect_err("refused").to_string();
    let smaller = bench.grow(VOLUME_SIZE_MIN / 2);
    assert_eq!(says(smaller), "Volume v: a volume can be made larger, not smaller");
    assert!(says(bench.grow(VOLUME_SIZE_MIN + 512)).contains("no multiple of 4096 bytes"));
    assert!(says(bench.grow(32 << 40)).contains("not between 16 MiB and 16 TiB"));
    assert_eq!(bench.grow(VOLUME_SIZE_MIN), Ok(CommandReply::Done), "it has this size");
    let id = bench.begin_to_grow(1 << 30, disk);
    bench.settle();
    let refused = bench.replies.remove(&id).expect("answered");
    assert!(says(refused).contains("its pool's medium has not enough room"));
    assert_eq!(bench.spec().size, VOLUME_SIZE_MIN);
    bench.check_end();
}

#[test]
fn a_resize_that_was_interrupted_half_way_can_be_repeated() {
    let mut pair = Pair::in_step();
    let (size, pool_size) = (2 * VOLUME_SIZE_MIN, grown_pool_size(2 * VOLUME_SIZE_MIN, 64 << 10));
    let grow = || Command::GrowVolume { volume: VolumeId(1), size, pool_size };
    pair.nodes.iter_mut().for_each(|node| node.disks.set_size(MediumId::Pool(VolumeId(1)), pool_size));
    pair.command(1, grow()).unwrap();
    pair.connect();
    pair.write();
    pair.settle();
    assert!(pair.up, "there is no session through which the other volume could grow");
    assert!(pair.nodes.iter().all(|node| !node.group.peer.greeted), "volumes of two sizes are a pair");
    pair.command(0, grow()).unwrap();
    pair.settle();
    assert!(!pair.up, "they do not greet each other again");
    pair.finish();
}

#[test]
fn what_an_interrupted_resize_left_in_the_table_is_not_copied_or_compared() {
    let mut pair = Pair::in_step();
    pair.write();
    pair.settle();
    pair.command(0, Command::DeletePair).unwrap();
    pair.cut();
    let (size, pool_size) = (2 * VOLUME_SIZE_MIN, grown_pool_size(2 * VOLUME_SIZE_MIN, 64 << 10));
    pair.nodes[0].disks.set_size(POOL, pool_size);
    let (id, now) = (CommandId(u64::MAX), pair.clock(0));
    pair.nodes[0].group.handle_command(now, id, Command::GrowVolume { volume: VolumeId(1), size, pool_size });
    let sizes = |group: &Group| {
        let volume = &group.volumes[&VolumeId(1)];
        (volume.table.geometry().volume_size, volume.spec.size)
    };
    // Its table has grown, and nothing says yet that the volume has.
    while Group::open(&mut pair.nodes[0].disks.clone(), now).is_ok_and(|(group, _)| sizes(&group).0 < size) {
        pair.nodes[0].drain();
        assert!(pair.nodes[0].step(now, &mut pair.rng), "it never grows");
    }
    pair.reopen(0);
    assert_eq!(sizes(&pair.nodes[0].group), (size, VOLUME_SIZE_MIN));
    pair.command(0, Command::CreatePair { peer: NodeKey([2; 32]) }).unwrap();
    pair.finish();
    let Ok(CommandReply::Verified { compared_bytes, differing_bytes, .. }) = pair.verify(false, 4, |_| ()) else {
        panic!("it was not verified");
    };
    assert_eq!((compared_bytes, differing_bytes), (VOLUME_SIZE_MIN, 0));
}

#[test]
fn a_table_that_moves_is_whole_beside_the_list_of_kept_blocks() {
    let mut bench = deterministic();
    bench.command(Command::KeepGenerations { count: 4, seconds: 0 });
    for _ in 0..4 {
        let data = AlignedBuffer::new(4096).freeze();
        let id = bench.request(Operation::Write { offset: 0, data, durability: Durability::Durable });
        bench.wait(id);
        bench.command(Command::RestartPoint { label: "p".parse().unwrap() });
    }
    let table = |bench: &Bench| bench.group.volumes[&VolumeId(1)].table.geometry().pages_offset;
    assert!(bench.group.volumes[&VolumeId(1)].table.extent_blocks() > 0, "nothing is kept");
    let before = table(&bench);
    // What does not change from here on is in no later checkpoint.
    bench.reopen();
    assert_eq!(bench.grow(8 << 30), Ok(CommandReply::Done));
    assert_ne!(table(&bench), before, "the table did not move");
    bench.reopen();
}
