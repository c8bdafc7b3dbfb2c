//! Every format's bytes, kept: what this program writes is what it wrote, what it reads is what it read, and nothing else is
//! accepted. `HOLDFAST_WRITE_VECTORS=1` writes the vectors anew, which only a new format version may need.

use bytes::Bytes;
use holdfast::{
    command::{RestartPointInfo, VolumeSpec},
    format::{
        FormatError,
        batch::{self, BatchEntry, BatchHeader, ParsedEntry, Placement},
        journal_superblock::{JournalSuperblock, PairRecord},
        kept_page::{self, KEPT_PAGE_RECORD_COUNT, KeptRecord},
        message::{self, Digests, Greeting, LEASE_MILLIS_MAX, Lease, Others, Range},
        page::Page,
        pool_superblock::{Extent, PoolSuperblock},
        record::{Kind, Record},
        table_page::{self, Entry, TABLE_PAGE_ENTRY_COUNT},
        text::Name,
    },
    pair::{ApplyPolicy, Cause, Level, PairState, Role, Takeover, WithoutPeer},
    stream_state::{EpochStart, KeptPoint, OlderPoint, Origin, StreamState},
    units::{Epoch, Generation, GroupId, MediumUuid, NodeKey, Order, Position, Seq, VolumeId, WallClock},
};
use proptest::prelude::*;
use std::{fs, path::PathBuf};

const GROUP: GroupId = GroupId([0x11; 16]);
const POOL: MediumUuid = MediumUuid([0x22; 16]);

/// Compares bytes with those in tests/vectors. Trailing zeroes are not kept there.
#[track_caller]
fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{name}.hex"));
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut text = format!("{} bytes\n", bytes.len());
    for line in bytes[..used].chunks(32) {
        line.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
        text.push('\n');
    }
    if std::env::var_os("HOLDFAST_WRITE_VECTORS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{name} has other bytes than {}:\n{text}", path.display());
}

fn at(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch << 32), seq: Seq(seq) }
}

fn record() -> Record {
    Record {
        kind: Kind::Write,
        at: at(3, 77),
        generation: Generation(5),
        volume: VolumeId(2),
        offset: 0x1_0000_0000,
        size: 4,
        payload_size: 4,
        payload_checksum: crc32c_of(b"data"),
        keeps: false,
        time: WallClock(1_700_000_000_000_000),
    }
}

fn crc32c_of(bytes: &[u8]) -> u32 {
    // The polynomial bit by bit, so that the vectors do not depend on the crate that the program uses.
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

fn aligned_record() -> Record {
    Record { size: 512, payload_size: 512, payload_checksum: crc32c_of(&[7; 512]), ..record() }
}

fn batch_bytes() -> Bytes {
    let inline = BatchEntry {
        record: aligned_record(),
        placement: Placement::Inline,
        fork: Order(9),
        stored: Bytes::from(vec![7; 512]),
    };
    let redirected = BatchEntry {
        record: Record { size: 131_072, payload_size: 131_072, ..record() },
        placement: Placement::Redirected,
        fork: Order(0),
        stored: Bytes::from_static(&[3, 0, 0, 0, 4, 0, 0, 0]),
    };
    let header = BatchHeader {
        position: 65_536,
        previous_checksum: 0xdead_beef,
        first_order: Order(41),
        durable_order: Order(40),
    };
    batch::encode(header, GROUP, &[inline, redirected]).bytes
}

fn stream() -> StreamState {
    let point = RestartPointInfo {
        generation: Generation(4),
        at: at(3, 70),
        time: WallClock(9),
        label: "nightly".parse().unwrap(),
    };
    StreamState {
        last: at(3, 77),
        generation: Generation(5),
        copying: true,
        restart_point: Some(KeptPoint {
            info: point,
            order: Order(60),
            epochs: vec![EpochStart { epoch: Epoch(1 << 32), first: Seq(1) }],
        }),
        older: vec![
            OlderPoint {
                info: RestartPointInfo {
                    generation: Generation(3),
                    at: at(1, 40),
                    time: WallClock(8),
                    label: "weekly".parse().unwrap(),
                },
                order: Order(30),
                origin: Origin::FormerRestartPoint,
            },
            OlderPoint {
                info: RestartPointInfo {
                    generation: Generation(0),
                    at: at(1, 44),
                    time: WallClock(9),
                    label: Name::default(),
                },
                order: Order(35),
                origin: Origin::Fork,
            },
        ],
        epochs: vec![
            EpochStart { epoch: Epoch(1 << 32), first: Seq(1) },
            EpochStart { epoch: Epoch(3 << 32), first: Seq(50) },
        ],
    }
}

fn journal_superblock() -> JournalSuperblock {
    JournalSuperblock {
        write_count: 7,
        group: GROUP,
        medium: MediumUuid([0x33; 16]),
        name: "db".parse().unwrap(),
        ring_size: 1 << 26,
        tail_position: 8192,
        tail_order: Order(12),
        tail_previous_checksum: 0x0102_0304,
        clean: Some(Order(99)),
        stream: stream(),
        pair: PairRecord {
            left_behind: false,
            role: Role::Secondary,
            state: PairState::Suspended(Cause::JournalFull),
            level: Level::Remote,
            without_peer: WithoutPeer::Freeze,
            policy: ApplyPolicy::Delayed,
            lease_millis: 10_000,
            keep_count: 7,
            keep_seconds: 86_400,
            takeover: Some(Takeover { after_millis: 30_000, to_latest: true }),
            fenced_epoch: Epoch(3 << 32),
            former_epoch: Epoch(2 << 32),
            peer: Some(NodeKey([0x44; 32])),
            synced: at(3, 60),
            peer_epoch: Epoch(3 << 32),
            fork: at(1, 2),
        },
        volumes: vec![VolumeSpec {
            id: VolumeId(2),
            name: "data".parse().unwrap(),
            size: 1 << 30,
            logical_block_size: 512,
            table_block_size: 65_536,
            pool: POOL,
            pool_path: "/media/pool".into(),
        }],
    }
}

fn pool_superblock() -> PoolSuperblock {
    PoolSuperblock {
        write_count: 8,
        group: GROUP,
        medium: POOL,
        volume: VolumeId(2),
        volume_size: 1 << 30,
        logical_block_size: 512,
        block_size: 65_536,
        block_count: 1000,
        blocks_offset: 1 << 20,
        pages_offset: 9 << 20,
        pages_since: 4,
        checkpoint: 6,
        digest: 0x0506_0708_090a_0b0c,
        applied: Order(33),
        stamp: 4,
        void: vec![[2, 3]],
        kept: Some(vec![(Order(30), 2), (Order(35), 4)]),
        extents: vec![Extent { first: 900, count: 2, since: 5 }],
    }
}

fn greeting() -> Greeting {
    Greeting {
        leaves_behind: false,
        role: Role::Primary,
        copying: true,
        generation: Generation(5),
        head: at(3, 77),
        restart_point: Some((Generation(4), at(3, 70))),
        volumes: 0x0a0b_0c0d,
        lease_millis: 10_000,
        epochs: stream().epochs,
    }
}

#[test]
fn records_keep_their_bytes() {
    let bytes = record().encode(GROUP);
    golden("record", &bytes);
    let aligned = aligned_record();
    assert_eq!(Record::parse(&aligned.encode(GROUP), GROUP), Ok(aligned));
    assert!(matches!(Record::parse(&aligned.encode(GROUP), GroupId([9; 16])), Err(FormatError::Checksum { .. })));
}

#[test]
fn batches_keep_their_bytes() {
    let bytes = batch_bytes();
    golden("batch", &bytes);
    let parsed = batch::parse(&bytes, GROUP).unwrap();
    assert_eq!(parsed.header.first_order, Order(41));
    assert_eq!((parsed.size, parsed.entries.len()), (bytes.len() as u64, 2));
    assert_eq!((parsed.entries[0].fork, parsed.entries[0].list_checksum), (Order(9), None));
    let (entry, list) = (&parsed.entries[1], listed(&bytes));
    assert_eq!((entry.fork, entry.list_checksum), (Order(0), Some(crc32c_of(list))));
    assert_eq!(batch::parse_blocks(list), Ok(vec![3, 4]));
    assert_eq!(entry.check_stored(list), Ok(()));
    assert_eq!(parsed.entries[0].check_stored(&[7; 512]), Ok(()));
}

/// What is stored for the second entry of a batch.
fn listed(bytes: &[u8]) -> &[u8] {
    let entry = batch::parse(bytes, GROUP).unwrap().entries[1];
    &bytes[entry.stored_at as usize..(entry.stored_at + entry.stored_size) as usize]
}

#[test]
fn batches_of_version_1_are_read() {
    let (old, new) = (kept("batch_1"), batch_bytes());
    let (parsed, expected) = (batch::parse(&old, GROUP).unwrap(), batch::parse(&new, GROUP).unwrap());
    assert_eq!((parsed.header, parsed.size), (expected.header, expected.size));
    let without_checksum = |entry: &ParsedEntry| ParsedEntry { list_checksum: None, fork: Order(0), ..*entry };
    assert_eq!(parsed.entries, expected.entries.iter().map(without_checksum).collect::<Vec<_>>());
    assert_eq!(listed(&old), listed(&new));
    assert_eq!(parsed.entries[1].check_stored(listed(&old)), Ok(()));
}

#[test]
fn superblocks_keep_their_bytes() {
    let journal = journal_superblock();
    golden("journal_superblock", &journal.encode());
    assert_eq!(JournalSuperblock::parse(&journal.encode()), Ok(journal));
    let pool = pool_superblock();
    golden("pool_superblock", &pool.encode());
    assert_eq!(PoolSuperblock::parse(&pool.encode()), Ok(pool));
}

/// The bytes of a vector of an earlier version.
fn kept(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{name}.hex"));
    let text = fs::read_to_string(path).unwrap();
    let (head, lines) = text.split_once('\n').unwrap();
    let digits: Vec<u8> = lines.bytes().filter(|byte| *byte != b'\n').collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let mut bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    bytes.resize(head.strip_suffix(" bytes").unwrap().parse().unwrap(), 0);
    bytes
}

#[test]
fn journal_superblocks_of_versions_1_to_4_are_read() {
    let mut expected = journal_superblock();
    expected.stream.older.clear();
    (expected.pair.keep_count, expected.pair.keep_seconds) = (1, 0);
    (expected.pair.takeover, expected.pair.fenced_epoch) = (None, Epoch::default());
    expected.pair.former_epoch = Epoch::default();
    assert_eq!(JournalSuperblock::parse(&kept("journal_superblock_4")), Ok(expected.clone()));
    expected.pair.lease_millis = 0;
    assert_eq!(JournalSuperblock::parse(&kept("journal_superblock_3")), Ok(expected.clone()));
    expected.pair.policy = ApplyPolicy::Snapshot;
    assert_eq!(JournalSuperblock::parse(&kept("journal_superblock_2")), Ok(expected.clone()));
    let point = expected.stream.restart_point.as_mut().unwrap();
    point.epochs.clear();
    assert_eq!(JournalSuperblock::parse(&kept("journal_superblock_1")), Ok(expected));
}

#[test]
fn pool_superblocks_of_versions_1_and_2_are_read() {
    let expected = PoolSuperblock { kept: None, extents: Vec::new(), ..pool_superblock() };
    assert_eq!(PoolSuperblock::parse(&kept("pool_superblock_2")), Ok(expected.clone()));
    let expected = PoolSuperblock { pages_offset: 128 << 10, pages_since: 0, ..expected };
    assert_eq!(PoolSuperblock::parse(&kept("pool_superblock_1")), Ok(expected));
}

#[test]
fn void_stamps_rise_and_are_past() {
    let parsed = |void: &[[u32; 2]]| {
        let superblock = PoolSuperblock { void: void.to_vec(), stamp: 9, ..pool_superblock() };
        PoolSuperblock::parse(&superblock.encode()).map(|superblock| superblock.void)
    };
    for void in [&[][..], &[[1, 8]], &[[1, 1], [2, 4], [6, 8]]] {
        assert_eq!(parsed(void), Ok(void.to_vec()));
    }
    let wrong = Err(FormatError::Field { what: "pool superblock", field: "range of void stamps" });
    let impossible: [&[[u32; 2]]; 7] =
        [&[[0, u32::MAX]], &[[0, 3]], &[[3, 2]], &[[3, 9]], &[[1, 3], [3, 5]], &[[5, 6], [1, 2]], &[[1, 6], [2, 3]]];
    for void in impossible {
        assert_eq!(parsed(void), wrong, "{void:?}");
    }
}

#[test]
fn table_pages_keep_their_bytes() {
    let mut entries = Box::new([Entry::default(); TABLE_PAGE_ENTRY_COUNT]);
    entries[0] = Entry { latest: 5, snapshot: 6, mask: 0xff00, stamp: 4, dirty: 0x8001 };
    entries[167] = Entry { latest: 1000, snapshot: 0, mask: 1, stamp: 1, dirty: 0 };
    let (bytes, _) = table_page::encode(POOL, 3, 6, &entries);
    golden("table_page", &bytes);
    assert_eq!(table_page::parse(&bytes, POOL, 3).map(|page| page.content), Ok(entries));
    assert!(matches!(table_page::parse(&bytes, POOL, 4), Err(FormatError::Field { field: "page index", .. })));
    assert!(matches!(table_page::parse(&bytes, MediumUuid([1; 16]), 3), Err(FormatError::Absent(_))));
}

#[test]
fn pages_of_kept_blocks_keep_their_bytes() {
    let mut records = vec![KeptRecord::default(); KEPT_PAGE_RECORD_COUNT];
    records[0] = KeptRecord { boundary: 2, block: 9, physical: 1000 };
    records[335] = KeptRecord { boundary: 4, block: 0, physical: 0 };
    let (bytes, checksum) = kept_page::encode(POOL, 3, 6, &records);
    golden("kept_page", &bytes);
    let parse = |index| kept_page::parse(&bytes, POOL, index);
    assert_eq!(parse(3), Ok(Page { checkpoint: 6, checksum, content: records.clone() }));
    assert!(matches!(parse(4), Err(FormatError::Field { field: "page index", .. })));
    assert!(matches!(kept_page::parse(&bytes, MediumUuid([1; 16]), 3), Err(FormatError::Absent(_))));
}

#[test]
fn messages_keep_their_bytes() {
    golden("greeting", &greeting().encode());
    assert_eq!(Greeting::parse(&greeting().encode()), Ok(greeting()));
    let digests = Digests::of(&[7; 5000], 4096);
    golden("digests", &digests.encode());
    assert_eq!(Digests::parse(&digests.encode(), 5000), Ok(digests.clone()));
    assert_eq!(Digests::parse(&Digests::of_hole().encode(), 1 << 30), Ok(Digests::of_hole()));
    assert!(Digests::parse(&digests.encode(), 4096).is_err() && Digests::parse(&digests.encode(), 9000).is_err());
    let ranges = [Range { volume: VolumeId(2), offset: 4096, size: 8192 }];
    golden("ranges", &message::encode_ranges(&ranges, Others::Same));
    for others in [Others::Same, Others::Follow] {
        assert_eq!(message::parse_ranges(&message::encode_ranges(&ranges, others)), Ok((ranges.to_vec(), others)));
    }
    assert_eq!(message::parse_ranges(&message::encode_ranges(&[], Others::Any)), Ok((Vec::new(), Others::Any)));
    assert!(message::parse_ranges(&message::encode_ranges(&ranges, Others::Any)).is_err());
    let lease = Lease { number: 258, millis: 10_000 };
    golden("lease", &lease.encode());
    assert_eq!(Lease::parse(&lease.encode()), Ok(lease));
    let longest = Lease { millis: LEASE_MILLIS_MAX, ..lease };
    assert_eq!(Lease::parse(&longest.encode()), Ok(longest));
    assert!(Lease::parse(&Lease { millis: LEASE_MILLIS_MAX + 1, ..lease }.encode()).is_err());
    let label = "nightly".parse().unwrap();
    golden("label", &message::encode_label(label));
    assert_eq!(message::parse_label(&message::encode_label(label)), Ok(label));
}

#[test]
fn another_version_is_refused_with_its_number() {
    let newer = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] = 6;
        bytes
    };
    let said = |error: FormatError| error.to_string();
    let journal = said(JournalSuperblock::parse(&newer(journal_superblock().encode().to_vec(), 12)).unwrap_err());
    assert!(journal.contains("format version 6, but this program reads versions up to 5"), "{journal}");
    let pool = said(PoolSuperblock::parse(&newer(pool_superblock().encode().to_vec(), 12)).unwrap_err());
    assert!(pool.contains("pool superblock has format version 6"), "{pool}");
    let batch = said(batch::parse_header_size(&newer(batch_bytes().to_vec(), 4), GROUP).unwrap_err());
    assert!(batch.contains("journal batch has format version 6"), "{batch}");
}

proptest! {
    /// Damage is noticed (each format has a checksum), and nothing panics.
    #[test]
    fn damaged_bytes_are_refused(at in 0usize..48_000, bit in 0u8..8, cut in 0usize..48_000) {
        let damage = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            bytes
        };
        prop_assert!(JournalSuperblock::parse(&damage(&journal_superblock().encode())).is_err());
        prop_assert!(PoolSuperblock::parse(&damage(&pool_superblock().encode())).is_err());
        prop_assert!(Record::parse(&damage(&aligned_record().encode(GROUP)), GROUP).is_err());
        let batch = damage(&batch_bytes()[..4096]);
        prop_assert!(batch::parse(&batch, GROUP).is_err());
        let batch = batch_bytes();
        let entry = batch::parse(&batch, GROUP).unwrap().entries[1];
        prop_assert!(entry.check_stored(&damage(listed(&batch))).is_err());
        for bytes in [journal_superblock().encode(), pool_superblock().encode(), batch_bytes(), greeting().encode()] {
            let short = &bytes[..cut.min(bytes.len().saturating_sub(1))];
            let _ = JournalSuperblock::parse(short);
            let _ = PoolSuperblock::parse(short);
            let _ = batch::parse(short, GROUP);
            let _ = Greeting::parse(short);
        }
        let _ = Greeting::parse(&damage(&greeting().encode()));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = Record::parse_frame(&Bytes::from(bytes.clone()), GROUP);
        let _ = batch::parse(&bytes, GROUP);
        let _ = JournalSuperblock::parse(&bytes);
        let _ = PoolSuperblock::parse(&bytes);
        let _ = table_page::parse(&bytes, POOL, 0);
        let _ = kept_page::parse(&bytes, POOL, 0);
        let _ = Greeting::parse(&bytes);
        let _ = message::parse_ranges(&bytes);
        let _ = Digests::parse(&bytes, 65_536);
        let _ = Lease::parse(&bytes);
        let _ = message::parse_history(&bytes);
        let _ = message::parse_label(&bytes);
        let _ = batch::parse_blocks(&bytes);
    }
}
