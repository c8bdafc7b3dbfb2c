//! Making a group's media, and reading who they belong to.

use crate::{
    command::VolumeSpec,
    disk::{DiskError, MediumId, Storage},
    format::{
        FormatError as BytesError,
        journal_superblock::{
            JOURNAL_SUPERBLOCK_SIZE, JournalSuperblock, PairRecord, SLOTS, first_position, ring_size_of,
        },
        text::Name,
    },
    occupant::{self, Occupant},
    pair::{ApplyPolicy, Level, PairState, Role, WithoutPeer},
    stream_state::StreamState,
    table::{self, LoadError},
    units::{Epoch, GroupId, JOURNAL_SIZE_MIN, MediumUuid, NodeKey, Order, Position},
};
use alloc::vec::Vec;

/// What a new group is.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Its id, random.
    pub id: GroupId,
    /// Its name.
    pub name: Name,
    /// The journal's id, random.
    pub journal: MediumUuid,
    /// The role on this node.
    pub role: Role,
    /// The peer, for a secondary.
    pub peer: Option<NodeKey>,
}

/// Who a journal belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalLabel {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub name: Name,
    /// The role on this node.
    pub role: Role,
    /// The peer.
    pub peer: Option<NodeKey>,
    /// The volumes.
    pub volumes: Vec<VolumeSpec>,
}

/// Why a medium was not formatted, or not recognised.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The medium failed.
    #[error("Cannot read or write the medium")]
    Disk(#[from] DiskError),
    /// It holds something already.
    #[error("The medium already holds {0}; {way_out}", way_out = .0.way_out())]
    InUse(Occupant),
    /// Too small.
    #[error("The journal's medium has {size} bytes; at least {JOURNAL_SIZE_MIN} are needed")]
    Small {
        /// Its size in bytes.
        size: u64,
    },
    /// Nothing of ours, damaged, or of another version.
    #[error("The journal cannot be used: {0}")]
    Format(#[from] BytesError),
    /// A pool was not accepted.
    #[error(transparent)]
    Pool(#[from] LoadError),
}

/// Erases what says that a medium is somebody's, so that it can be formatted; not a journal or a pool.
///
/// # Errors
/// When it is one, or cannot be read or written.
pub fn erase_other(storage: &mut dyn Storage, medium: MediumId) -> Result<(), FormatError> {
    match Occupant::find(storage, medium)? {
        None => Ok(()),
        Some(Occupant::Other { .. }) => Ok(occupant::erase(storage, medium)?),
        Some(ours) => Err(FormatError::InUse(ours)),
    }
}

/// Formats a journal for a new group, on a medium that is blank.
pub fn format_journal(storage: &mut dyn Storage, spec: &GroupSpec) -> Result<(), FormatError> {
    let size = storage.size(MediumId::Journal)?;
    if size < JOURNAL_SIZE_MIN {
        return Err(FormatError::Small { size });
    }
    if let Some(occupant) = Occupant::find(storage, MediumId::Journal)? {
        return Err(FormatError::InUse(occupant));
    }
    let ring_size = ring_size_of(size);
    let mut superblock = JournalSuperblock {
        write_count: 0,
        group: spec.id,
        medium: spec.journal,
        name: spec.name,
        ring_size,
        tail_position: first_position(spec.journal, ring_size),
        tail_order: Order(0),
        tail_previous_checksum: 0,
        clean: Some(Order(0)),
        stream: StreamState::new(),
        pair: PairRecord {
            role: spec.role,
            state: if spec.peer.is_some() { PairState::InitialCopy } else { PairState::Simplex },
            level: Level::Local,
            without_peer: WithoutPeer::Continue,
            policy: ApplyPolicy::Snapshot,
            lease_millis: 0,
            keep_count: 1,
            keep_seconds: 0,
            takeover: None,
            fenced_epoch: Epoch::default(),
            former_epoch: Epoch::default(),
            left_behind: false,
            peer: spec.peer,
            synced: Position::default(),
            peer_epoch: Epoch::default(),
            fork: Position::default(),
        },
        volumes: Vec::new(),
    };
    for write_count in 0..2 {
        superblock.write_count = write_count;
        storage.write(MediumId::Journal, superblock.slot(), superblock.encode())?;
    }
    Ok(storage.sync(MediumId::Journal)?)
}

/// Formats a volume's pool, on a medium that is blank.
pub fn format_pool(storage: &mut dyn Storage, group: GroupId, spec: &VolumeSpec) -> Result<(), FormatError> {
    Ok(table::format_pool(storage, group, spec)?)
}

/// Reads who a journal belongs to.
pub fn read_label(storage: &mut dyn Storage) -> Result<JournalLabel, FormatError> {
    let superblock = read_superblock(storage)?;
    Ok(JournalLabel {
        group: superblock.group,
        name: superblock.name,
        role: superblock.pair.role,
        peer: superblock.pair.peer,
        volumes: superblock.volumes,
    })
}

/// The superblock that counts.
pub(super) fn read_superblock(storage: &mut dyn Storage) -> Result<JournalSuperblock, FormatError> {
    let mut best: Result<JournalSuperblock, FormatError> = Err(BytesError::Absent("journal").into());
    for slot in SLOTS {
        let bytes = storage.read(MediumId::Journal, slot, JOURNAL_SUPERBLOCK_SIZE as u32)?;
        match JournalSuperblock::parse(&bytes) {
            Ok(found) if best.as_ref().is_ok_and(|best| best.write_count >= found.write_count) => {}
            Ok(found) => best = Ok(found),
            // A newer program has been here: the older slot must not be taken for the truth.
            Err(error @ BytesError::Version { .. }) => return Err(error.into()),
            Err(BytesError::Absent(_)) => {}
            Err(error) if best.is_err() => best = Err(error.into()),
            Err(_) => {}
        }
    }
    best
}
