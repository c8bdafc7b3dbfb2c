//! Journals whose medium has lost, or damaged, what it said was durable: the group is not opened. What a crash leaves is opened.

use super::tests::{Bench, Disks};
use super::*;
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandId},
    disk::{DiskError, Storage},
    format::{
        batch::{self, BatchEntry, BatchHeader, Placement},
        journal_superblock::{JournalSuperblock, RING_OFFSET},
        record::Kind,
    },
    journal::Place,
    pair::Role,
    request::{Durability, Operation, RequestId},
};
use alloc::{string::ToString, vec};
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRng};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Where a batch of one entry lies, and the entry.
#[derive(Clone, Copy)]
struct Written {
    position: u64,
    size: u64,
    order: Order,
}

fn bench() -> Bench {
    Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha))
}

impl Bench {
    fn begin_write(&mut self, size: u64, durability: Durability) -> RequestId {
        let data = AlignedBuffer::copy_of(&vec![self.rng.next_u64() as u8 | 1; size as usize]).freeze();
        self.request(Operation::Write { offset: 0, data, durability })
    }

    /// A write that is durable and lies in a batch of its own.
    fn write_durably(&mut self, size: u64) -> Written {
        let id = self.begin_write(size, Durability::Durable);
        self.wait(id);
        assert_eq!(self.answers.remove(&id), Some(Ok(Reply::Done)));
        self.last_written()
    }

    fn last_written(&self) -> Written {
        let journal = &self.group.journal;
        let entry = journal.entry(journal.last()).expect("it is live");
        let Place::Inline(at) = entry.place else { panic!("{:?} is not in the journal", entry.place) };
        let size = PAGE + u64::from(entry.record.payload_size).next_multiple_of(PAGE);
        Written { position: at - PAGE, size, order: journal.last() }
    }

    /// The daemon dies, and bytes from a position of the journal on are zeroes.
    fn dies_and_loses(&mut self, position: u64, size: u64) -> Result<(), OpenError> {
        self.operations.clear();
        let offset = self.group.journal.offset(position);
        erase(&mut self.disks, offset, size);
        self.open()
    }

    pub(super) fn open(&mut self) -> Result<(), OpenError> {
        let (group, _) = Group::open(&mut self.disks, self.now)?;
        self.group = group;
        Ok(())
    }

    /// A group that has stopped is opened again; what it was.
    fn open_in_place(&mut self) -> Group {
        self.operations.clear();
        let (group, _) = Group::open(&mut self.disks, self.now).expect("it is whole");
        core::mem::replace(&mut self.group, group)
    }

    /// Puts a batch of one entry where nothing has been written, as if those before it had been lost.
    fn forge(&mut self, position: u64, first_order: Order, durable_order: Order) {
        let stored = Bytes::from(vec![0; 64]);
        let record = self.group.new_record(Kind::RestartPoint).carrying(&stored);
        let entry = BatchEntry { record, placement: Placement::Inline, fork: Order(0), stored };
        let header = BatchHeader { position, previous_checksum: 1, first_order, durable_order };
        let encoded = batch::encode(header, self.group.id, &[entry]);
        self.disks.write(MediumId::Journal, self.group.journal.offset(position), encoded.bytes).expect("a page");
    }
}

fn erase(disks: &mut Disks, offset: u64, size: u64) {
    disks.write(MediumId::Journal, offset, AlignedBuffer::new(size as usize).freeze()).expect("it is there");
}

fn hole(found: Order, expected: Order) -> Result<(), OpenError> {
    Err(OpenError::Hole { found, expected })
}

fn before(order: Order) -> Order {
    Order(order.0 - 1)
}

#[test]
fn a_durable_batch_that_is_lost_or_rots_in_the_middle_is_missed() {
    let mut bench = bench();
    let [_, second, third, fourth] = [(); 4].map(|()| bench.write_durably(PAGE));
    let (disks, missed) = (bench.disks.clone(), hole(before(second.order), third.order));
    assert_eq!(bench.dies_and_loses(second.position, second.size), missed);
    // The same again: nothing was written.
    assert_eq!(bench.open(), missed);
    bench.disks = disks.clone();
    assert_eq!(bench.dies_and_loses(second.position + PAGE, PAGE), missed, "its payload rots");
    bench.disks = disks.clone();
    let lost = bench.dies_and_loses(third.position, third.size);
    assert_eq!(lost, hole(second.order, third.order), "what is lost is all that was known to be durable");
    bench.disks = disks.clone();
    assert_eq!(bench.dies_and_loses(second.position, 2 * second.size), missed, "two are lost");
    let said = bench.open().expect_err("it was refused").to_string();
    assert!(said.contains("lost data") && said.contains("peer"), "{said}");
    // Nothing behind the last one knows of it.
    bench.disks = disks;
    assert_eq!(bench.dies_and_loses(fourth.position, fourth.size), Ok(()));
    assert_eq!(bench.group.journal.last(), fourth.order, "the third, and the new epoch");
}

#[test]
fn what_was_in_flight_at_crashes_is_no_loss() {
    let mut bench = bench();
    for round in 0..6 {
        let kept = bench.write_durably(PAGE);
        bench.drain();
        let others = bench.operations.len();
        // Of two batches in flight only the second is written, later over what the last crash has left.
        for size in [PAGE, (1 + round % 3) * PAGE] {
            bench.begin_write(size, Durability::Durable);
            bench.drain();
        }
        let in_flight = bench.operations.split_off(others);
        assert_eq!(in_flight.len(), 2, "two batches at once");
        for (operation, asked) in in_flight.into_iter().skip(1) {
            bench.disks.carry_out(operation.medium, operation.action, asked).expect("it is well");
        }
        bench.operations.clear();
        assert_eq!(bench.open(), Ok(()));
        assert_eq!(bench.group.journal.last(), kept.order.next(), "what was durable, and the new epoch");
    }
    // What is lost after all that is missed nevertheless.
    let [first, second, _] = [(); 3].map(|()| bench.write_durably(PAGE));
    assert_eq!(bench.dies_and_loses(first.position, first.size), hole(before(first.order), second.order));
}

#[test]
fn a_loss_is_missed_wherever_it_is_in_the_ring() {
    const SIZE: u64 = 36 << 10;
    let mut bench = bench();
    let (mut wraps, mut ends) = (0, 0);
    while wraps < 3 {
        let [first, second, _] = [(); 3].map(|()| bench.write_durably(SIZE));
        let ring = bench.group.journal.ring_size();
        let wrapped = first.position / ring < second.position / ring;
        ends += u64::from(wrapped && first.position + first.size < second.position);
        wraps += u64::from(wrapped);
        if wrapped || bench.rng.next_u64().is_multiple_of(50) {
            let mut disks = bench.disks.clone();
            erase(&mut disks, bench.group.journal.offset(first.position), first.size);
            let opened = Group::open(&mut disks, bench.now).map(|_| ());
            assert_eq!(opened, hole(before(first.order), second.order), "at {}", first.position);
        }
        bench.settle();
        if wrapped {
            bench.kill();
        }
    }
    assert!(ends > 0, "never was something left free at the ring's end");
}

#[test]
fn a_loss_is_missed_when_only_what_was_written_much_later_knows_of_it() {
    let mut bench = bench();
    let size = 64 * MIB;
    bench.disks.set_size(MediumId::Journal, size);
    bench.group.handle_command(bench.now, CommandId(1), Command::GrowJournal { size });
    bench.settle();
    let last = bench.write_durably(PAGE);
    let end = last.position + last.size;
    // Nothing was flushed for long.
    for (at, order) in [(8, 10), (23, 20)] {
        bench.forge(end + at * MIB, Order(last.order.0 + order), last.order);
    }
    let disks = bench.disks.clone();
    bench.operations.clear();
    assert_eq!(bench.open(), Ok(()), "nothing says that it was durable");
    bench.disks = disks;
    let known = Order(last.order.0 + 15);
    bench.forge(end + 38 * MIB, Order(last.order.0 + 30), known);
    assert_eq!(bench.open(), hole(last.order, known));
    // Where it lies it is not what it says that it is.
    bench.forge(end + 38 * MIB, Order(last.order.0 + 30), Order(last.order.0 + 30));
    assert_eq!(bench.open(), Ok(()), "no batch knows of its own end");
}

/// A new journal as an older program made it.
fn begin_at_zero(disks: &mut Disks) {
    let old = super::create::read_superblock(disks).expect("it was just made");
    for write_count in [old.write_count + 1, old.write_count + 2] {
        let superblock = JournalSuperblock { tail_position: 0, write_count, ..old.clone() };
        disks.write(MediumId::Journal, superblock.slot(), superblock.encode()).expect("a slot");
    }
}

#[test]
fn a_journal_made_anew_knows_nothing_of_a_former_life() {
    let (former, new) = (MediumUuid([1; 16]), MediumUuid([0xA5; 16]));
    // Ids are drawn at random: only here does a medium have one twice.
    for (medium, is_old, is_refused) in [(new, false, false), (former, false, true), (former, true, false)] {
        let mut bench = bench();
        if is_old {
            begin_at_zero(&mut bench.disks);
            bench.reopen();
        }
        for _ in 0..80 {
            bench.write_durably(32 << 10);
        }
        bench.operations.clear();
        // As the manual says.
        let size = bench.disks.size(MediumId::Journal).expect("it is there");
        [0, size - MIB].iter().for_each(|at| erase(&mut bench.disks, *at, MIB));
        let (id, name) = (bench.group.id, bench.group.name);
        let spec = GroupSpec { id, name, journal: medium, role: Role::Primary, peer: None };
        format_journal(&mut bench.disks, &spec).expect("nothing is there");
        if is_old {
            begin_at_zero(&mut bench.disks);
        }
        assert_eq!(bench.open(), Ok(()));
        bench.group.handle_command(bench.now, CommandId(1), Command::RestartPoint { label: name });
        bench.settle();
        assert!(matches!(bench.replies.remove(&CommandId(1)), Some(Ok(_))));
        assert_eq!(bench.open().is_err(), is_refused, "{medium} {is_old}");
    }
}

/// A medium whose journal cannot be read from some byte on.
struct Unreadable<'a>(&'a mut Disks, u64);

impl Storage for Unreadable<'_> {
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError> {
        self.0.size(medium)
    }

    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> DiskOutcome {
        let fails = medium == MediumId::Journal && offset + u64::from(size) > self.1;
        if fails { Err(DiskError::Failed { errno: 5 }) } else { self.0.read(medium, offset, size) }
    }

    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        self.0.write(medium, offset, data)
    }

    fn sync(&mut self, medium: MediumId) -> Result<(), DiskError> {
        self.0.sync(medium)
    }
}

#[test]
fn bad_sectors_where_nothing_was_written_harm_nobody() {
    let mut bench = bench();
    let last = bench.write_durably(PAGE);
    let end = (last.position + last.size) % bench.group.journal.ring_size();
    let readable = (RING_OFFSET + end).next_multiple_of(PAGE) + PAGE;
    let opened = Group::open(&mut Unreadable(&mut bench.disks, readable), bench.now);
    assert_eq!(opened.map(|(_, report)| report.entry_count), Ok(last.order.0 + 1));
}

/// A sync may have failed: whoever has the answers must not hear that what is gone is durable.
#[test]
fn a_group_that_is_opened_in_place_knows_how_many_answered_records_are_gone() {
    let mut bench = bench();
    bench.write_durably(PAGE);
    let [second, third] = [(); 2].map(|()| {
        let id = bench.begin_write(PAGE, Durability::Completed);
        bench.wait(id);
        bench.last_written()
    });
    let disks = bench.disks.clone();
    let former = bench.open_in_place();
    assert_eq!(bench.group.lost_since(former.answered()), 0);
    (bench.disks, bench.group) = (disks, former);
    let offset = bench.group.journal.offset(second.position);
    erase(&mut bench.disks, offset, second.size + third.size);
    // Each time a medium may fail when the journal has the new epoch already.
    (0..3).for_each(|_| drop(Group::open(&mut bench.disks, bench.now).unwrap()));
    let former = bench.open_in_place();
    assert_eq!(bench.group.lost_since(former.answered()), 2);
    let former = bench.open_in_place();
    assert_eq!(bench.group.lost_since(former.answered()), 0, "it is told once");
}
