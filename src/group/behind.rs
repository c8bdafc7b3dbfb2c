//! What lies behind the journal's end.
//!
//! A medium that has lost or damaged a batch ends the journal before it, though what follows is whole. Each batch says what was
//! durable when it was made, so one behind the end that names more than the journal has tells that the medium has lost what it
//! had promised to keep.
//!
//! Nothing says so by mistake. A batch counts only where its own position says that it lies: what an earlier lap or a smaller ring
//! left has a lower one, what a former life of the medium left an unrelated one ([`first_position`]), and who writes data to a
//! volume can guess none. What was in flight at a crash names no more than was durable then, which every recovery has kept
//! and made durable before it wrote anything: numbers of entries never go back.
//!
//! Not found is what nothing behind it knows of: the last batch, if it is lost, and one behind more damage than is looked through.

use super::open::read_header;
use crate::{
    buffer::ALIGNMENT,
    disk::{MediumId, Storage},
    format::{
        batch::{self, BATCH_SIZE_MAX},
        journal_superblock::{JournalSuperblock, first_position},
    },
    journal::Journal,
    units::Order,
};

/// So many bytes behind the end, and behind each batch that is found there, are looked through: the lost batch may be as large as
/// one can be, and the next one have left as much free at the ring's end. The bytes are page by page, and few pages are batches.
const REACH: u64 = 2 * BATCH_SIZE_MAX as u64;
/// Bytes read at once.
const READ_SIZE: u64 = 64 << 10;

/// The last entry that a batch behind the journal's end names as durable, or the journal's last one.
pub(super) fn durable_behind(storage: &mut dyn Storage, superblock: &JournalSuperblock, journal: &Journal) -> Order {
    let mut durable = journal.last();
    // A program that knew nothing of this began each life of a medium at the same position.
    if superblock.tail_position < first_position(superblock.medium, superblock.ring_size) {
        return durable;
    }
    let end = superblock.tail_position + superblock.ring_size;
    let mut position = journal.head;
    let mut limit = end.min(position + REACH);
    while position < limit {
        let size = READ_SIZE.min(limit - position).min(journal.next_lap(position) - position);
        // What cannot be read proves nothing; it is free.
        let bytes = storage.read(MediumId::Journal, journal.offset(position), size as u32).unwrap_or_default();
        for (at, page) in (position..).step_by(ALIGNMENT).zip(bytes.chunks(ALIGNMENT)) {
            if batch::parse_header_size(page, superblock.group).is_err() {
                continue;
            }
            let Ok(Some(batch)) = read_header(storage, superblock.group, journal, at) else { continue };
            limit = end.min(at + REACH);
            // A batch that knows of its own end was made by no correct program.
            if batch.header.durable_order < batch.header.first_order {
                durable = durable.max(batch.header.durable_order);
            }
        }
        position += size;
    }
    durable
}
