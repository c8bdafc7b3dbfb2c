//! Lists of blocks of large writes: a medium that gives back another one must not make two logical blocks one.

use super::{alone_bench::Alone, tests::Bench, *};
use crate::{
    buffer::AlignedBuffer,
    command::Command,
    disk::Storage,
    format::{
        batch::{self, BatchEntry, BatchHeader, Placement},
        record::{Kind, Record},
    },
    journal::Place,
    request::{Access, Durability, Operation},
    units::VOLUME_SIZE_MIN,
};
use alloc::{collections::BTreeSet, string::ToString, vec};
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRng};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const VOLUME: VolumeId = VolumeId(1);
const POOL: MediumId = MediumId::Pool(VOLUME);

fn bench() -> Bench {
    Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha))
}

fn constant(value: u8) -> Bytes {
    let mut buffer = AlignedBuffer::new(MIB as usize);
    buffer.as_mut_slice().fill(value);
    buffer.freeze()
}

/// A large write in a batch of its own.
struct Large {
    order: Order,
    blocks: Vec<u32>,
    /// Where its batch lies on the medium.
    batch: u64,
}

impl Large {
    fn list(&self) -> Vec<u8> {
        self.blocks.iter().flat_map(|block| block.to_le_bytes()).collect()
    }
}

impl Bench {
    fn write_large(&mut self, offset: u64, value: u8, durability: Durability) -> Large {
        self.drain();
        assert!(self.operations.is_empty(), "no other batch is under way");
        let batch = self.group.journal.offset(self.group.journal.room(PAGE, 0).expect("there is room"));
        let id = self.request(Operation::Write { offset, data: constant(value), durability });
        self.wait(id);
        let order = self.group.journal.last();
        let entry = self.group.journal.entry(order).expect("it is live");
        let Place::Redirected(blocks) = entry.place.clone() else { panic!("{:?} is no list", entry.place) };
        Large { order, blocks, batch }
    }

    fn write_small(&mut self, offset: u64, value: u8) {
        let data = constant(value).slice(..PAGE as usize);
        let id = self.request(Operation::Write { offset, data, durability: Durability::Durable });
        self.wait(id);
    }

    /// Whether a MiB holds nothing but one value.
    fn holds(&mut self, offset: u64, value: u8) -> bool {
        let id = self.request(Operation::Read { offset, size: MIB as u32 });
        self.wait(id);
        let Some(Ok(Reply::Data(parts))) = self.answers.remove(&id) else { panic!("read failed") };
        parts.concat() == constant(value)
    }

    /// The daemon dies, and a batch has another list of blocks.
    fn dies_and_finds(&mut self, large: &Large, list: &[u8]) -> Result<(), OpenError> {
        self.operations.clear();
        let page = self.disks.read(MediumId::Journal, large.batch + PAGE, PAGE as u32).expect("it is there");
        assert!(page.starts_with(&large.list()), "the list is there");
        let mut page = AlignedBuffer::copy_of(&page);
        page.as_mut_slice()[..list.len()].copy_from_slice(list);
        self.disks.write(MediumId::Journal, large.batch + PAGE, page.freeze()).expect("it is there");
        self.open()
    }

    /// Every physical block is named once.
    fn shares_nothing(&mut self) {
        self.settle();
        let table = &self.group.volumes[&VOLUME].table;
        let entries = (0..(VOLUME_SIZE_MIN / PAGE) as u32).map(|block| table.entry(block));
        let named = entries.flat_map(|entry| [entry.latest, entry.snapshot]).filter(|block| *block != 0);
        let mut seen = BTreeSet::new();
        assert!(named.into_iter().all(|block| seen.insert(block)), "two logical blocks are in one physical block");
    }

    /// Puts a batch with one redirected entry behind the journal's last one.
    fn forge_list(&mut self, blocks: &[u32], value: u8, version: u16, is_durable: bool) -> Order {
        self.forge_list_at(4 * MIB, blocks, value, version, is_durable)
    }

    fn forge_list_at(&mut self, offset: u64, blocks: &[u32], value: u8, version: u16, is_durable: bool) -> Order {
        let journal = &self.group.journal;
        let payload = constant(value);
        let record = Record { volume: VOLUME, offset, size: MIB, ..self.group.new_record(Kind::Write) };
        let stored: Vec<u8> = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
        let entry = BatchEntry {
            record: record.carrying(&payload),
            placement: Placement::Redirected,
            fork: Order(0),
            stored: Bytes::from(stored),
        };
        let (last, order) = (journal.last(), journal.last().next());
        let position = journal.room(2 * PAGE, 0).expect("there is room");
        let header = BatchHeader {
            position,
            previous_checksum: journal.head_checksum,
            first_order: order,
            durable_order: if is_durable { order } else { last },
        };
        let encoded = batch::encode(header, self.group.id, &[entry]);
        let mut bytes = AlignedBuffer::copy_of(&encoded.bytes);
        if version == 1 {
            as_version_1(&mut bytes.as_mut_slice()[..PAGE as usize]);
        }
        self.disks.write(MediumId::Journal, journal.offset(position), bytes.freeze()).expect("it fits");
        self.operations.clear();
        order
    }
}

/// Makes the header area of a batch of one entry what an older program wrote.
fn as_version_1(area: &mut [u8]) {
    area[4] = 1;
    area[200..208].fill(0);
    area[8..12].fill(0);
    let checksum = crc32c::crc32c(area);
    area[8..12].copy_from_slice(&checksum.to_le_bytes());
}

/// Power fails before a batch is flushed: its header is there, its list is that of a batch one lap ago, and the data is the same.
#[test]
fn a_list_of_an_earlier_lap_is_not_taken_for_the_present_one() {
    let mut bench = bench();
    let first = bench.write_large(0, 7, Durability::Durable);
    bench.settle();
    let second = bench.write_large(4 * MIB, 7, Durability::Completed);
    assert_eq!(bench.dies_and_finds(&second, &first.list()), Ok(()));
    assert!(bench.holds(0, 7));
    assert!(bench.holds(4 * MIB, 0), "it was never flushed");
    bench.shares_nothing();
    (0..MIB / PAGE).for_each(|page| bench.write_small(4 * MIB + page * PAGE, 9));
    bench.settle();
    assert!(bench.holds(0, 7), "what is written to one block shows in another");
}

#[test]
fn a_list_that_has_rotted_is_missed() {
    let mut bench = bench();
    let large = bench.write_large(0, 7, Durability::Durable);
    bench.write_small(4 * MIB, 8);
    let disks = bench.disks.clone();
    for bit in (0..large.list().len() * 8).step_by(7) {
        bench.disks = disks.clone();
        let mut list = large.list();
        list[bit / 8] ^= 1 << (bit % 8);
        let missed = OpenError::Hole { found: Order(large.order.0 - 1), expected: large.order };
        assert_eq!(bench.dies_and_finds(&large, &list), Err(missed), "bit {bit}");
    }
}

#[test]
fn a_block_of_a_table_is_no_other_entrys() {
    for version in [1, 2] {
        let mut bench = bench();
        let first = bench.write_large(0, 7, Durability::Durable);
        bench.settle();
        let (disks, last) = (bench.disks.clone(), bench.group.journal.last());
        let order = bench.forge_list(&first.blocks, 7, version, false);
        assert_eq!(bench.open(), Ok(()));
        assert_eq!(bench.group.journal.last(), last.next(), "there is the new epoch in its place");
        bench.shares_nothing();
        bench.disks = disks;
        bench.open().expect("it is well");
        let order = Order(order.0 + 1);
        assert_eq!(bench.forge_list(&first.blocks, 7, version, true), order);
        let refused = OpenError::Shared { volume: VOLUME, order, block: first.blocks[0] };
        assert_eq!(bench.open(), Err(refused));
        let said = bench.open().expect_err("it was refused").to_string();
        assert!(said.contains("lost data") && said.contains("peer"), "{said}");
    }
}

#[test]
fn a_block_is_named_once_in_what_is_still_to_be_applied() {
    for version in [1, 2] {
        let mut bench = bench();
        let first = bench.write_large(0, 7, Durability::Durable);
        let last = bench.group.journal.last();
        bench.forge_list(&first.blocks, 7, version, false);
        assert_eq!(bench.open(), Ok(()));
        assert_eq!(bench.group.journal.last(), last.next(), "there is the new epoch in its place");
        bench.shares_nothing();
        assert!(bench.holds(0, 7));
        // Within one list.
        let second = bench.write_large(0, 7, Durability::Durable);
        bench.settle();
        let twice = vec![second.blocks[0]; second.blocks.len()];
        bench.forge_list(&twice, 7, version, false);
        assert_eq!(bench.open(), Ok(()));
        bench.shares_nothing();
    }
}

#[test]
fn a_list_of_blocks_begins_where_a_block_does() {
    let mut bench = bench();
    let first = bench.write_large(0, 7, Durability::Durable);
    let last = bench.group.journal.last();
    let free: Vec<u32> = {
        let blocks = &bench.group.volumes[&VOLUME].table.blocks;
        (1..).filter(|block| !blocks.is_used(*block)).take(first.blocks.len()).collect()
    };
    bench.forge_list_at(4 * MIB + PAGE, &free, 0, 2, false);
    assert_eq!(bench.open(), Ok(()));
    assert_eq!(bench.group.journal.last(), last.next(), "there is the new epoch in its place");
}

/// What an older program has written is served.
#[test]
fn lists_of_version_1_are_taken() {
    let mut bench = bench();
    let first = bench.write_large(0, 7, Durability::Durable);
    bench.settle();
    let free: Vec<u32> = {
        let blocks = &bench.group.volumes[&VOLUME].table.blocks;
        (1..).filter(|block| !blocks.is_used(*block)).take(first.blocks.len()).collect()
    };
    let geometry = *bench.group.volumes[&VOLUME].table.geometry();
    for block in &free {
        let data = constant(9).slice(..geometry.block_size as usize);
        bench.disks.write(POOL, geometry.offset_of(*block), data).expect("it is there");
    }
    bench.forge_list(&free, 9, 1, false);
    assert_eq!(bench.open(), Ok(()));
    assert!(bench.holds(4 * MIB, 9));
    bench.shares_nothing();
    assert!(bench.holds(4 * MIB, 9));
}

/// The journal still has entries of a volume whose number another one has now, and the blocks of both are numbered from 1.
#[test]
fn blocks_of_a_former_volume_are_not_freed_under_the_new_one() {
    const SIZE: usize = 256 << 10;
    let mut group = Alone::new(64 << 10, VOLUME_SIZE_MIN, 2);
    let answered = |group: &mut Alone, volume: u16, size: usize, value: u8| {
        group.write(volume, 0, size, value);
        let id = group.request(volume, Access::ReadWrite, Operation::Flush);
        while !group.answers.contains_key(&id) {
            assert!(group.step_where(|_| true), "never answered");
        }
        group.group.journal.last()
    };
    let blocks = |group: &Alone, order| match group.group.journal.entry(order).map(|entry| entry.place.clone()) {
        Some(Place::Redirected(blocks)) => blocks,
        other => panic!("{other:?} is no list"),
    };
    // This one keeps the journal's tail where it is.
    answered(&mut group, 2, 512, 1);
    let former = answered(&mut group, 1, SIZE, 7);
    let listed = blocks(&group, former);
    group.group.handle_command(group.now, CommandId(7), Command::RemoveVolume(VOLUME));
    while !group.replies.contains_key(&CommandId(7)) {
        assert!(group.step_where(|_| true), "never answered");
    }
    group.disks.write(POOL, 0, constant(0)).expect("it is there");
    group.add(1, 64 << 10, VOLUME_SIZE_MIN);
    while group.step_where(|_| true) {}
    let new = answered(&mut group, 1, SIZE, 9);
    assert_eq!(blocks(&group, new), listed, "it begins at the front too");
    group.reopen();
    assert_eq!((blocks(&group, former), blocks(&group, new)), (listed.clone(), listed.clone()));
    group.settle();
    // The tail passes both, and a checkpoint is made.
    answered(&mut group, 2, 512, 2);
    group.group.checkpoint.wanted = true;
    group.settle();
    let table = &group.group.volumes[&VOLUME].table;
    let named: Vec<u32> = (0..4).map(|block| table.entry(block).latest).collect();
    assert_eq!(named, listed);
    assert!(named.iter().all(|block| table.blocks.is_used(*block)), "others may be given them");
}
