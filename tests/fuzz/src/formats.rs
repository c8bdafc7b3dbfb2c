//! Every decoder of the core's formats. A checksum would keep nearly all inputs out, so each format is read twice: as the bytes are,
//! and with its checksums mended. What is accepted must be the same after it was written and read again.

use crate::{
    input::{Input, padded},
    media::mend,
};
use bytes::Bytes;
use holdfast::{
    format::{
        batch::{self, BatchEntry, ParsedEntry, header_size},
        journal_superblock::{JOURNAL_SUPERBLOCK_SIZE, JournalSuperblock, SLOTS},
        kept_page,
        message::{self, Digests, Greeting, Lease},
        page::PAGE_SIZE,
        pool_superblock::PoolSuperblock,
        record::{RECORD_HEADER_SIZE, Record},
        table_page,
        text::Name,
        volume_entry::check_geometry,
    },
    units::{GroupId, MediumUuid},
};

/// The group of the golden vectors, from which the seeds are made.
const GROUP: GroupId = GroupId([0x11; 16]);
/// Their pool.
const POOL: MediumUuid = MediumUuid([0x22; 16]);
/// The place of the page in the vectors.
const PAGE_INDEX: u32 = 3;
/// Bytes of a slot of versions 1 to 4 of the journal's superblock.
const OLD_SUPERBLOCK_SIZE: usize = 36_864;
const BATCH_HEAD_SIZE: usize = 128;
const BATCH_ENTRY_SIZE: usize = 80;

/// A record's header and payload.
pub fn record(data: &[u8]) {
    let _ = Record::parse_frame(&Bytes::copy_from_slice(data), GROUP);
    let mut bytes = padded(data, data.len().max(RECORD_HEADER_SIZE));
    mend_record(&mut bytes);
    if let Ok(record) = Record::parse(&bytes, GROUP) {
        assert_eq!(record.encode(GROUP), bytes[..RECORD_HEADER_SIZE]);
        assert!(record.end() >= record.offset);
    }
    let (header, payload) = bytes.split_at_mut(RECORD_HEADER_SIZE);
    header[40..44].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    header[44..48].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    mend_record(header);
    if let Ok((record, payload)) = Record::parse_frame(&bytes.into(), GROUP) {
        assert_eq!(record.carrying(&payload), record);
    }
}

fn mend_record(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&GROUP.0), &bytes[4..RECORD_HEADER_SIZE]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// A batch's header area, and the list of blocks of a redirected record.
pub fn batch(data: &[u8]) {
    let _ = batch::parse_header_size(data, GROUP);
    let _ = batch::parse(data, GROUP);
    if let Ok(blocks) = batch::parse_blocks(data) {
        assert_eq!(blocks.len() * 4, data.len());
    }
    let count = data.get(12).map_or(0, |count| usize::from(*count));
    let mut bytes = padded(data, header_size(count));
    for entry in 0..count {
        mend_record(&mut bytes[BATCH_HEAD_SIZE + entry * BATCH_ENTRY_SIZE..]);
    }
    mend(&mut bytes, 8);
    let Ok(parsed) = batch::parse(&bytes, GROUP) else { return };
    let entries: Vec<BatchEntry> = parsed
        .entries
        .iter()
        .map(|entry| BatchEntry {
            record: entry.record,
            placement: entry.placement,
            fork: entry.fork,
            stored: vec![0; entry.stored_size as usize].into(),
        })
        .collect();
    let encoded = batch::encode(parsed.header, GROUP, &entries);
    let again = batch::parse(&encoded.bytes, GROUP).expect("what was accepted can be written and read again");
    let unlisted = |entries: &[ParsedEntry]| -> Vec<ParsedEntry> {
        entries.iter().map(|entry| ParsedEntry { list_checksum: None, ..*entry }).collect()
    };
    assert_eq!((again.header, again.size), (parsed.header, parsed.size));
    assert_eq!(unlisted(&again.entries), unlisted(&parsed.entries));
    let lists = again.entries.iter().filter(|entry| entry.list_checksum.is_some());
    for entry in lists {
        assert_eq!(entry.check_stored(&vec![0; entry.stored_size as usize]), Ok(()));
    }
}

/// The journal's superblock, of each version.
pub fn journal_superblock(data: &[u8]) {
    let _ = JournalSuperblock::parse(data);
    let is_old = data.get(12).is_some_and(|version| *version < 5);
    let size = if is_old { OLD_SUPERBLOCK_SIZE } else { JOURNAL_SUPERBLOCK_SIZE };
    let mut bytes = padded(data, size);
    mend(&mut bytes, 16);
    let Ok(superblock) = JournalSuperblock::parse(&bytes) else { return };
    assert!(SLOTS.contains(&superblock.slot()));
    assert!(superblock.volumes.iter().all(|spec| check_geometry(spec).is_ok()));
    assert_eq!(JournalSuperblock::parse(&superblock.encode()), Ok(superblock));
}

/// A pool's superblock, of each version.
pub fn pool_superblock(data: &[u8]) {
    let _ = PoolSuperblock::parse(data);
    let mut bytes = padded(data, PAGE_SIZE);
    mend(&mut bytes, 16);
    let Ok(superblock) = PoolSuperblock::parse(&bytes) else { return };
    let again = PoolSuperblock::parse(&superblock.encode()).expect("what was accepted can be written and read again");
    // The present version always says what is kept; an old one does not know.
    let expected = PoolSuperblock { kept: Some(superblock.kept.clone().unwrap_or_default()), ..superblock };
    assert_eq!(again, expected);
}

/// A page of the address table.
pub fn table_page(data: &[u8]) {
    let _ = table_page::parse(data, POOL, PAGE_INDEX);
    let mut bytes = padded(data, PAGE_SIZE);
    mend(&mut bytes, 8);
    let Ok(page) = table_page::parse(&bytes, POOL, PAGE_INDEX) else { return };
    assert_eq!(table_page::encode(POOL, PAGE_INDEX, page.checkpoint, &page.content).0, bytes);
}

/// A page of kept blocks.
pub fn kept_page(data: &[u8]) {
    let _ = kept_page::parse(data, POOL, PAGE_INDEX);
    let mut bytes = padded(data, PAGE_SIZE);
    mend(&mut bytes, 8);
    let Ok(page) = kept_page::parse(&bytes, POOL, PAGE_INDEX) else { return };
    assert_eq!(kept_page::encode(POOL, PAGE_INDEX, page.checkpoint, &page.content).0, bytes);
}

/// The payloads of frames that are no data: the first byte says which.
pub fn messages(data: &[u8]) {
    let mut input = Input::new(data);
    match input.pick(7) {
        0 => {
            let payload = input.rest();
            if let Ok(greeting) = Greeting::parse(payload) {
                assert_eq!(Greeting::parse(&greeting.encode()), Ok(greeting));
            }
        }
        1 => {
            let payload = input.rest();
            if let Ok(epochs) = message::parse_history(payload) {
                assert_eq!(message::encode_history(&epochs), payload);
            }
        }
        2 => {
            let payload = input.rest();
            if let Ok(lease) = Lease::parse(payload) {
                assert_eq!(lease.encode(), payload);
            }
        }
        3 => {
            let size = input.number(1 << 16);
            let payload = input.rest();
            if let Ok(digests) = Digests::parse(payload, size) {
                assert_eq!(digests.encode(), payload);
            }
        }
        4 => {
            let payload = input.rest();
            if let Ok((ranges, others)) = message::parse_ranges(payload) {
                assert_eq!(message::parse_ranges(&message::encode_ranges(&ranges, others)), Ok((ranges, others)));
            }
        }
        5 => {
            let payload = input.rest();
            if let Ok(label) = message::parse_label(payload) {
                assert_eq!(label.as_str().parse(), Ok(label));
                assert_eq!(message::encode_label(label), payload);
            }
        }
        _ => {
            let text = String::from_utf8_lossy(input.rest()).into_owned();
            if let Ok(name) = text.parse::<Name>() {
                assert!(name.as_str() == text && name.check().is_ok());
            }
        }
    }
}
