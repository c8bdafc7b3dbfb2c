//! Batches that are whole and cannot be: the journal ends before them.

use super::tests::Bench;
use super::*;
use crate::{
    disk::Storage,
    format::{
        batch::{self, BatchEntry, BatchHeader, Placement},
        record::{Kind, Record},
    },
    journal::{LiveEntry, Place},
    units::{Seq, VOLUME_SIZE_MIN},
};
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRng};

fn bench() -> Bench {
    Bench::new(TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha))
}

/// Puts a batch with one entry behind the journal's last one, as a program that is wrong would, and opens the group.
fn opened_with(mut bench: Bench, change: impl FnOnce(&mut BatchEntry)) -> Bench {
    bench.mutate();
    bench.settle();
    let journal = &bench.group.journal;
    let mut record = Record { offset: 0, size: 512, volume: VolumeId(1), ..bench.group.new_record(Kind::Discard) };
    record.at.seq = record.at.seq.max(Seq(1));
    let mut entry = BatchEntry { record, placement: Placement::Inline, fork: Order(0), stored: Bytes::new() };
    change(&mut entry);
    let size = batch::batch_size([entry.stored.len()].into_iter()) as u64;
    let position = journal.room(size, 0).unwrap();
    let header = BatchHeader {
        position,
        previous_checksum: journal.head_checksum,
        first_order: journal.last().next(),
        durable_order: journal.last().next(),
    };
    let encoded = batch::encode(header, bench.group.id, &[entry]);
    bench.disks.write(MediumId::Journal, journal.offset(position), encoded.bytes).unwrap();
    bench.reopen();
    bench
}

#[test]
fn a_batch_about_what_is_not_in_the_volume_ends_the_journal() {
    let beyond = opened_with(bench(), |entry| entry.record.offset = VOLUME_SIZE_MIN);
    beyond_is_ignored(beyond);
    for block in [0u32, 1 << 30] {
        let redirected = opened_with(bench(), |entry| {
            entry.placement = Placement::Redirected;
            entry.record.kind = Kind::Write;
            (entry.record.size, entry.record.payload_size) = (256 << 10, 256 << 10);
            entry.stored = Bytes::copy_from_slice(&[block.to_le_bytes(); 16].concat());
        });
        beyond_is_ignored(redirected);
    }
}

/// The daemon goes on as if the batch was not there.
fn beyond_is_ignored(mut bench: Bench) {
    let is_wrong = |entry: &LiveEntry| {
        entry.record.offset >= VOLUME_SIZE_MIN || matches!(&entry.place, Place::Redirected(list) if list.len() == 16)
    };
    assert!(!bench.group.journal.after(Order(0)).any(|(_, entry)| is_wrong(entry)));
    (0..10).for_each(|_| bench.mutate());
    bench.settle();
    bench.check_all();
}
