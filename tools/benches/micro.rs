//! Times of the parts: `cargo bench -p tools`. What is measured is set against the run before; only a quiet machine says something.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make functions")]

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast::{
    buffer::AlignedBuffer,
    format::{
        batch::{self, BatchEntry, BatchHeader, Placement},
        record::{Kind, Record},
    },
    units::{Epoch, Generation, GroupId, Order, Position, Seq, VolumeId, WallClock},
};
use replicator::{
    coder::{Code, Coder},
    packet::SYMBOL_SIZE,
};
use tools::bench::hot_path::{BLOCK_SIZE, Node, Pair};

fn source(count: usize) -> Vec<Bytes> {
    (0..count).map(|index| Bytes::from(vec![index as u8; SYMBOL_SIZE])).collect()
}

fn code(criterion: &mut Criterion) {
    let (mut group, mut coder) = (criterion.benchmark_group("code"), Coder::new());
    for (count, repair) in [(8, 2), (16, 4), (32, 8)] {
        let (source, code) = (source(count), Code::choose(count, repair));
        group.throughput(Throughput::Bytes((count * SYMBOL_SIZE) as u64));
        group.bench_function(format!("encode {count}+{repair}"), |bencher| {
            bencher.iter(|| coder.encode(code, &source));
        });
        let made = coder.encode(code, &source);
        let mut symbols: Vec<Option<Bytes>> = source.iter().chain(&made).cloned().map(Some).collect();
        symbols.iter_mut().take(repair).for_each(|symbol| *symbol = None);
        group.bench_function(format!("decode {count}+{repair}, {repair} lost"), |bencher| {
            bencher.iter_batched_ref(
                || symbols.clone(),
                |symbols| assert!(coder.decode(code, count, symbols)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn record() -> Record {
    Record {
        kind: Kind::Write,
        at: Position { epoch: Epoch(1), seq: Seq(1) },
        generation: Generation(1),
        volume: VolumeId(1),
        offset: 0,
        size: BLOCK_SIZE,
        payload_size: 0,
        payload_checksum: 0,
        keeps: false,
        time: WallClock(1),
    }
}

fn journal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    for count in [1u64, 32] {
        let payload = AlignedBuffer::new(BLOCK_SIZE as usize).freeze();
        let entry = BatchEntry {
            record: record().carrying(&payload),
            placement: Placement::Inline,
            fork: Order(0),
            stored: payload,
        };
        let entries = vec![entry; count as usize];
        let (first_order, durable_order) = (Order(1), Order(0));
        let header = BatchHeader { position: 0, previous_checksum: 0, first_order, durable_order };
        group.throughput(Throughput::Bytes(count * BLOCK_SIZE));
        group.bench_function(format!("batch of {count}"), |bencher| {
            bencher.iter(|| batch::encode(header, GroupId([7; 16]), &entries));
        });
    }
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("requests of 4 KiB");
    for count in [1u32, 32] {
        group.throughput(Throughput::Elements(count.into()));
        let mut node = Node::new().expect("a group in memory");
        // Reads are of what was written.
        (0..1024).for_each(|_| node.write(32));
        group.bench_function(format!("write, {count} at once"), |bencher| bencher.iter(|| node.write(count)));
        group.bench_function(format!("read, {count} at once"), |bencher| bencher.iter(|| node.read(count)));
        assert_eq!(node.answered(), node.requested());
        let mut pair = Pair::new().expect("a pair in memory");
        group.bench_function(format!("write of a pair, {count} at once"), |bencher| bencher.iter(|| pair.write(count)));
        pair.settle().expect("the standby has everything");
    }
    group.finish();
}

criterion_group!(micro, code, journal, requests);
criterion_main!(micro);
