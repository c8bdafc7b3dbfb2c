//! What a medium holds already: one that held a journal or a pool is not taken for another until somebody has erased it.

use crate::{
    disk::{DiskError, MediumId, Storage},
    format::{
        MAGIC,
        journal_superblock::{JOURNAL_SUPERBLOCK_SIZE, JournalSuperblock, SLOTS},
        pool_superblock::PoolSuperblock,
        text::Name,
    },
    units::GroupId,
};

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
}

impl Occupant {
    /// What is on a medium; nothing on one that holds no superblock of Holdfast.
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
        Ok(found)
    }
}
