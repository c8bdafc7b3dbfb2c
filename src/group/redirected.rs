//! Recovery: whether what is redirected into a pool is whole. The journal only names the blocks that hold the data.
//!
//! What was known to be durable is believed, of the rest the data is read. But whatever matches its checksum: a block that an entry
//! names which is still to be applied is its own. No table names it and no other such entry, or what is written to one of two logical
//! blocks would show in the other. Equal data in both would hide that from a checksum.
//!
//! Blocks of entries that the table has may be named again: a former volume's, or ones that are free.

use super::{Volume, open::OpenError};
use crate::{
    disk::{DiskError, MediumId, Storage},
    format::record::Record,
    journal::{Journal, Place},
    testing::{Plant, planted},
    units::{Order, VolumeId},
};
use alloc::collections::{BTreeMap, BTreeSet};

/// Cuts the journal at the first redirected entry that is not whole. One that was known to be durable is refused.
pub(super) fn verify_redirected(
    storage: &mut dyn Storage,
    journal: &mut Journal,
    durable: Order,
    volumes: &BTreeMap<VolumeId, Volume>,
) -> Result<(), OpenError> {
    let mut named = BTreeSet::new();
    let mut end = None;
    for (order, entry) in journal.after(journal.tail_order) {
        let (Place::Redirected(blocks), id) = (&entry.place, entry.record.volume) else { continue };
        // A volume that was removed needs nothing. What a table has was durable, and may be about a former volume of its number.
        let volume = volumes.get(&id).filter(|volume| order > volume.applied_before);
        let Some(volume) = volume else { continue };
        let mut shared = blocks.iter().copied();
        let shared = shared.find(|block| volume.table.blocks.is_used(*block) || !named.insert((id, *block)));
        if let Some(block) = shared.filter(|_| order <= durable) {
            return Err(OpenError::Shared { volume: id, order, block });
        }
        let is_whole = shared.is_none() && (order <= durable || holds(storage, volume, &entry.record, blocks)?);
        if !is_whole {
            end = Some(order);
            break;
        }
    }
    if let Some(order) = end {
        journal.cut_before(order);
    }
    Ok(())
}

/// Whether blocks hold a record's data.
fn holds(storage: &mut dyn Storage, volume: &Volume, record: &Record, blocks: &[u32]) -> Result<bool, DiskError> {
    let geometry = volume.table.geometry();
    let is_block = |block: &u32| (1..=geometry.block_count).contains(block);
    if blocks.len() as u64 * u64::from(geometry.block_size) != record.size || !blocks.iter().all(is_block) {
        return Ok(false);
    }
    let mut crc = 0;
    for block in blocks {
        let offset = geometry.offset_of(*block);
        let bytes = storage.read(MediumId::Pool(record.volume), offset, geometry.block_size)?;
        crc = crc32c::crc32c_append(crc, &bytes);
    }
    Ok(crc == record.payload_checksum || planted(Plant::TornRedirectTaken))
}
