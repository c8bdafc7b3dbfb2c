//! What a medium holds already: nothing is formatted that holds anything, be it a journal, a pool or a stranger's data, until
//! somebody has erased it.
//!
//! Only its first and last MiB are looked at, and erased: that is where file systems, partition tables, volume managers and
//! we ourselves write first what tells that a medium is theirs.

use crate::{
    buffer::{ALIGNMENT, AlignedBuffer},
    disk::{DiskError, MediumId, Storage},
    format::{
        MAGIC,
        journal_superblock::{JOURNAL_SUPERBLOCK_SIZE, JournalSuperblock, SLOTS},
        pool_superblock::PoolSuperblock,
        text::Name,
    },
    units::GroupId,
};
use core::ops::Range;

/// So much is looked at, at either end.
const END_SIZE: u64 = 1 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Occupant {
    /// A group's journal.
    #[error("the journal of group {name} ({group})")]
    Journal {
        /// Whose.
        group: GroupId,
        /// Its name.
        name: Name,
    },
    /// A volume's pool.
    #[error("the pool of group {group}")]
    Pool {
        /// Whose.
        group: GroupId,
    },
    /// One of the two, but damaged or of another version.
    #[error("a journal or pool of Holdfast that is damaged or of another version")]
    Unreadable,
    /// Not one of ours.
    #[error("something that is not Holdfast's: its byte {at} is not zero")]
    Other {
        /// The first byte that says so.
        at: u64,
    },
}

impl Occupant {
    /// What is on a medium; nothing if its first and last MiB are zeroes.
    ///
    /// # Errors
    /// When the medium cannot be read.
    pub fn find(storage: &mut dyn Storage, medium: MediumId) -> Result<Option<Self>, DiskError> {
        let mut found = None;
        for slot in SLOTS {
            let bytes = storage.read(medium, slot, JOURNAL_SUPERBLOCK_SIZE as u32)?;
            if !bytes.starts_with(&MAGIC) {
                continue;
            }
            // Of a torn slot the other one may tell more.
            if let Ok(journal) = JournalSuperblock::parse(&bytes) {
                return Ok(Some(Self::Journal { group: journal.group, name: journal.name }));
            }
            if let Ok(pool) = PoolSuperblock::parse(&bytes) {
                return Ok(Some(Self::Pool { group: pool.group }));
            }
            found = Some(Self::Unreadable);
        }
        if found.is_some() {
            return Ok(found);
        }
        for end in ends(storage, medium)? {
            let bytes = storage.read(medium, end.start, (end.end - end.start) as u32)?;
            let written = bytes.chunks(ALIGNMENT).position(|chunk| *chunk != [0; ALIGNMENT][..chunk.len()]);
            if let Some(page) = written {
                let before = bytes.iter().skip(page * ALIGNMENT).take_while(|byte| **byte == 0).count();
                return Ok(Some(Self::Other { at: end.start + (page * ALIGNMENT + before) as u64 }));
            }
        }
        Ok(None)
    }

    /// What to do if it is no longer wanted. What is ours may be a group that was forgotten, so no option makes short work of it.
    pub(crate) fn way_out(&self) -> &'static str {
        match self {
            Self::Other { .. } => "erase its first and last MiB if that is no longer wanted, or say --overwrite",
            Self::Journal { .. } | Self::Pool { .. } | Self::Unreadable => {
                "erase its first and last MiB if that is no longer wanted"
            }
        }
    }
}

/// Writes zeroes over what is looked at.
///
/// # Errors
/// When the medium cannot be written.
pub(crate) fn erase(storage: &mut dyn Storage, medium: MediumId) -> Result<(), DiskError> {
    for end in ends(storage, medium)? {
        storage.write(medium, end.start, AlignedBuffer::new((end.end - end.start) as usize).freeze())?;
    }
    storage.sync(medium)
}

/// The first and the last MiB. A device may end with a part of an aligned block, which no read reaches.
fn ends(storage: &mut dyn Storage, medium: MediumId) -> Result<[Range<u64>; 2], DiskError> {
    let size = storage.size(medium)?;
    let size = size - size % ALIGNMENT as u64;
    Ok([0..size.min(END_SIZE), size.saturating_sub(END_SIZE)..size])
}
