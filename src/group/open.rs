//! Opening a group: the superblocks, the tables, then the journal from its tail to the first batch that is not whole.
//! What lies behind it is only asked whether the medium has lost data ([`durable_behind`]).
//!
//! A batch counts if its header is whole, in its place, chained to the one before, and every payload and list of blocks in it
//! matches its checksum; what is redirected into the pool is looked at then ([`verify_redirected`]). Recovery
//! writes nothing but a new epoch (on a primary that was not stopped in good order) and the superblock; done twice it
//! gives the same.

use super::{
    FormatError, Group, JournalLabel, Volume, batch::Memory, behind::durable_behind, create::read_superblock,
    greeting::Confirmation, lease::Leasing, redirected::verify_redirected, stream::Peer, superblock::SuperblockWriter,
    takeover::Silence,
};
use crate::{
    disk::{DiskError, MediumId, Storage},
    format::{
        batch::{self, BatchEntry, BatchHeader, ParsedBatch, ParsedEntry, Placement},
        journal_superblock::JournalSuperblock,
        message,
        record::Kind,
    },
    journal::{Journal, LiveBatch, LiveEntry, Place},
    overlay::Overlay,
    pair::{PairState, Role},
    stream_state::Note,
    table::{self, LoadError},
    testing::{Plant, planted},
    units::{Epoch, GroupId, Now, Order, Position, VolumeId},
};
use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Why a group was not opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The journal was not accepted.
    #[error(transparent)]
    Journal(#[from] FormatError),
    /// A pool was not accepted.
    #[error("Volume {volume}: {source}")]
    Pool {
        /// The volume's number in the group.
        volume: VolumeId,
        /// Why.
        source: LoadError,
    },
    /// The medium failed.
    #[error("Cannot read or write the journal")]
    Disk(#[from] DiskError),
    /// The journal was stopped in good order, but its last entries are gone.
    #[error(
        "The journal ends at entry {found}, but the group was stopped in good order at entry {expected}; the medium has lost data"
    )]
    Lost {
        /// The last entry.
        found: Order,
        /// The last entry that was there.
        expected: Order,
    },
    /// A pool holds what the journal does not know.
    #[error(
        "Volume {volume}: its pool holds entry {applied}, but the journal ends at entry {last}; the journal's medium has lost data"
    )]
    Ahead {
        /// The volume's number in the group.
        volume: VolumeId,
        /// The last entry in the pool.
        applied: Order,
        /// The last entry in the journal.
        last: Order,
    },
    /// The journal ends within what was durable.
    #[error(
        "The journal ends at entry {found}, but a batch behind its end says that entry {expected} was durable; the medium has lost data; promote the peer if it is the standby, and make this node's group anew from there"
    )]
    Hole {
        /// The last entry before what is lost.
        found: Order,
        /// An entry that was durable.
        expected: Order,
    },
    /// Two entries, or an entry and a table, name one block.
    #[error(
        "Volume {volume}: entry {order} of the journal has its data in block {block} of the pool, which holds other data; a medium has lost data; promote the peer if it is the standby, and make this node's group anew from there"
    )]
    Shared {
        /// The volume's number in the group.
        volume: VolumeId,
        /// The entry.
        order: Order,
        /// The block.
        block: u32,
    },
    /// A promotion cannot be repeated.
    #[error(
        "Volume {volume}: the group was promoted to the state at entry {order}, which the pool does not keep; the medium has lost data"
    )]
    Generation {
        /// The volume's number in the group.
        volume: VolumeId,
        /// The generation's entry.
        order: Order,
    },
}

/// What recovery found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The group had been stopped in good order.
    pub was_clean: bool,
    /// Entries between the journal's tail and its head.
    pub entry_count: u64,
    /// Of these, the ones that the tables lack.
    pub replay_count: u64,
    /// The last record.
    pub last: Position,
}

/// How much of a group's journal hosts may have answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// The epoch in which the group was.
    pub epoch: Epoch,
    /// The last entry.
    pub order: Order,
}

struct Found {
    journal: Journal,
    /// The entries up to here are known to have been durable.
    durable: Order,
}

impl Group {
    /// Opens a group and recovers what its journal holds. All pools of [`read_label`](super::read_label) must be
    /// reachable through `storage`.
    pub fn open(storage: &mut dyn Storage, now: Now) -> Result<(Self, RecoveryReport), OpenError> {
        let superblock = read_superblock(storage)?;
        let mut volumes = BTreeMap::new();
        for spec in &superblock.volumes {
            let table = table::load(storage, superblock.group, spec)
                .map_err(|source| OpenError::Pool { volume: spec.id, source })?;
            let applied_before = table.applied_durable();
            let volume =
                Volume { spec: spec.clone(), table, overlay: Overlay::default(), unsynced: false, applied_before };
            volumes.insert(spec.id, volume);
        }
        let found = scan(storage, &superblock, &mut volumes)?;
        let last = found.journal.last();
        if let Some(expected) = superblock.clean.filter(|clean| last < *clean) {
            return Err(OpenError::Lost { found: last, expected });
        }
        // Only what is durable in the journal goes to a pool. Entries with these numbers would never be applied.
        for (id, volume) in &mut volumes {
            let applied = volume.table.applied_durable();
            if applied > last {
                return Err(OpenError::Ahead { volume: *id, applied, last });
            }
            volume.applied_before = volume.applied_before.min(last);
        }
        // What was stopped in good order ends where it says.
        if superblock.clean != Some(last) {
            let expected = durable_behind(storage, &superblock, &found.journal);
            if expected > last {
                return Err(OpenError::Hole { found: last, expected });
            }
        }
        let was_clean = superblock.clean.is_some();
        let mut group = Self::assemble(superblock, volumes, found.journal, now);
        group.replay()?;
        if group.pair.role == Role::Primary && !was_clean && !planted(Plant::EpochKeptInCrash) {
            group.open_epoch(storage)?;
        }
        group.store(storage)?;
        let report = RecoveryReport {
            was_clean,
            entry_count: group.journal.entry_count() as u64,
            replay_count: group.journal.last().0 - group.applied.0,
            last: group.stream.last,
        };
        Ok((group, report))
    }

    /// What hosts may have answers to.
    pub fn answered(&self) -> Answered {
        // A secondary answers no host, and gets again what it loses.
        let order = if self.pair.role == Role::Secondary { Order(0) } else { self.completed };
        Answered { epoch: self.epoch(), order }
    }

    /// How many records that were answered before the group was opened are gone.
    pub fn lost_since(&self, answered: Answered) -> u64 {
        // Each opening that has failed since may have left its epoch's change.
        let is_newer = |order| self.journal.entry(order).is_some_and(|entry| entry.record.at.epoch > answered.epoch);
        let mut found = self.found;
        while is_newer(found) {
            found.0 -= 1;
        }
        answered.order.0.saturating_sub(found.0)
    }

    /// Who the group is.
    pub fn label(&self) -> JournalLabel {
        JournalLabel {
            group: self.id,
            name: self.name,
            role: self.pair.role,
            peer: self.pair.peer,
            volumes: self.volumes.values().map(|volume| volume.spec.clone()).collect(),
        }
    }

    fn assemble(
        superblock: JournalSuperblock,
        volumes: BTreeMap<VolumeId, Volume>,
        journal: Journal,
        now: Now,
    ) -> Self {
        let last = journal.last();
        let tail = journal.tail_order;
        let applied = volumes.values().map(|volume| volume.applied_before).min().unwrap_or(last);
        let mut pair = superblock.pair;
        if pair.state == PairState::Suspending {
            pair.state = PairState::Duplex;
        }
        let serves = pair.role == Role::Primary && pair.peer.is_some();
        Self {
            id: superblock.group,
            name: superblock.name,
            medium: superblock.medium,
            volumes,
            stream: journal.tail_stream.clone(),
            journal,
            pair,
            now,
            found: last,
            sealed: last,
            completed: last,
            durable: last,
            applied: applied.clamp(tail, last),
            in_flight: VecDeque::new(),
            redirects_in_flight: BTreeMap::new(),
            memory: Memory::starting_at(last),
            waiting: Default::default(),
            held: VecDeque::new(),
            sync: Default::default(),
            reads: Default::default(),
            destage: Default::default(),
            delay: Default::default(),
            checkpoint: Default::default(),
            superblock: SuperblockWriter::after(superblock.write_count),
            peer: Peer::starting_at(tail, pair.state == PairState::Duplex),
            confirmation: if serves { Confirmation::waiting(now.monotonic) } else { Confirmation::default() },
            copy: Default::default(),
            comparisons: Default::default(),
            verifier: None,
            leasing: Leasing::after_restart(pair.role, pair.lease_millis, now.monotonic),
            mending: Default::default(),
            silence: Silence::beginning(now.monotonic),
            heard: None,
            holds: Default::default(),
            trial: None,
            commands: Default::default(),
            growth: None,
            journal_growth: None,
            handing_over: None,
            draining: None,
            operations: BTreeMap::new(),
            next_operation: 0,
            outputs: VecDeque::new(),
            again: false,
            stopped: None,
            #[cfg(feature = "testing")]
            started: Vec::new(),
        }
    }

    /// Takes the journal's entries into account, as if they had just been written.
    fn replay(&mut self) -> Result<(), OpenError> {
        self.name_snapshots();
        let kept = self.kept_before(self.journal.tail_order);
        for volume in self.volumes.values_mut().filter(|volume| volume.table.is_new()) {
            volume.table.keep_nothing_as(&kept);
        }
        if !planted(Plant::ForkNotVoided) {
            self.void_forks()?;
        }
        self.destage.stream = self.journal.tail_stream.clone();
        self.claim_unapplied();
        for (order, entry) in self.journal.after(self.journal.tail_order) {
            if matches!(entry.note, Note::Fork(_)) {
                // It died before its role was stored: the epoch is its own all the same.
                self.pair.former_epoch = self.pair.former_epoch.max(entry.record.at.epoch);
            }
            if !entry.is_void {
                self.stream.apply(order, &entry.record, &entry.note);
                if order <= self.applied {
                    self.destage.stream.apply(order, &entry.record, &entry.note);
                }
            }
            if order > self.applied {
                self.destage.staged(self.now.monotonic, entry);
            }
            let Some(volume) = self.volumes.get_mut(&entry.record.volume) else {
                continue;
            };
            if let Place::Redirected(blocks) = &entry.place {
                for block in blocks {
                    volume.table.blocks.redirect(*block, order);
                    // A block that no table names was overwritten or is void: it waits for the tail.
                    let is_new = volume.table.blocks.claim(*block);
                    if is_new && (entry.is_void || order <= volume.applied_before) {
                        volume.table.blocks.free(*block);
                    }
                }
            }
            if entry.record.kind.changes_data() && !entry.is_void && order > volume.applied_before {
                volume.overlay.insert(entry.record.offset, entry.record.end(), order);
            }
        }
        // The bitmap on the medium may be older than the journal; noting too much is harmless.
        if self.is_tracking() && !planted(Plant::DirtyForgottenInCrash) {
            self.mark_live_dirty(self.journal.tail_order);
            self.checkpoint.marked = true;
        }
        Ok(())
    }

    /// Notes which blocks are used by what is still to be applied, before those are freed that no table names: a former volume of the
    /// same number may have had its data in the same ones.
    fn claim_unapplied(&mut self) {
        for (order, entry) in self.journal.after(self.journal.tail_order).filter(|(_, entry)| !entry.is_void) {
            if let (Place::Redirected(blocks), Some(volume)) =
                (&entry.place, self.volumes.get_mut(&entry.record.volume))
                && order > volume.applied_before
            {
                for block in blocks {
                    volume.table.blocks.claim(*block);
                }
            }
        }
    }

    /// What volumes keep of the time up to an entry, with the restart point that was the last one then.
    pub(super) fn kept_before(&self, order: Order) -> BTreeSet<Order> {
        let known = self.volumes.values().filter(|volume| !volume.table.is_new());
        let kept = known.flat_map(|volume| volume.table.kept_generations());
        let last = self.journal.tail_stream.restart_point.as_ref().map(|point| point.order);
        kept.chain(last).filter(|kept| *kept <= order).collect()
    }

    /// Tells tables of a former format which generation their snapshot is.
    fn name_snapshots(&mut self) {
        for volume in self.volumes.values_mut() {
            let mut stream = self.journal.tail_stream.clone();
            for (order, entry) in self.journal.after(self.journal.tail_order) {
                if order <= volume.applied_before {
                    stream.apply(order, &entry.record, &entry.note);
                }
            }
            if let Some(point) = &stream.restart_point {
                volume.table.name_snapshot(point.order);
            }
        }
    }

    /// Takes back what the epoch changes in the journal say was never part of the history.
    fn void_forks(&mut self) -> Result<(), OpenError> {
        let changes: Vec<(Order, Order)> = self
            .journal
            .after(self.journal.tail_order)
            .map(|(order, entry)| (order, entry.note.fork()))
            .filter(|(order, fork)| fork.0 != 0 && fork.0 + 1 < order.0)
            .collect();
        for (at, fork) in changes {
            self.void_between(fork, at);
            for volume in self.volumes.values_mut() {
                // A table that is at the change or past it was taken back before it was written.
                let is_between = volume.applied_before > fork && volume.applied_before < at;
                if is_between && !volume.table.roll_back(fork) {
                    return Err(OpenError::Generation { volume: volume.spec.id, order: fork });
                }
            }
        }
        Ok(())
    }

    /// Makes the entries between two void.
    pub(super) fn void_between(&mut self, fork: Order, at: Order) {
        for order in (fork.0.max(self.journal.tail_order.0) + 1..at.0).map(Order) {
            if let Some(entry) = self.journal.entry_mut(order) {
                entry.is_void = true;
            }
        }
    }

    /// A primary that was not stopped in good order may have lost records that its peer has: it never uses their
    /// numbers again. The new epoch is durable before anything else happens.
    fn open_epoch(&mut self, storage: &mut dyn Storage) -> Result<(), OpenError> {
        let mut record = self.new_record(Kind::EpochChange);
        record.at.epoch = self.epoch().max(self.stream.last.epoch).restarted();
        let entry =
            BatchEntry { record, placement: Placement::Inline, fork: self.journal.last(), stored: Bytes::new() };
        let size = batch::batch_size([0].into_iter()) as u64;
        // The ring always has room for this: ordinary batches leave a reserve.
        let Some(position) = self.journal.room(size, 0) else {
            return Err(DiskError::NoSpace.into());
        };
        let header = BatchHeader {
            position,
            previous_checksum: self.journal.head_checksum,
            first_order: self.journal.last().next(),
            durable_order: self.journal.last(),
        };
        let encoded = batch::encode(header, self.id, &[entry]);
        // What recovery accepted must be durable before a batch says so.
        storage.sync(MediumId::Journal)?;
        for id in self.pools() {
            storage.sync(MediumId::Pool(id))?;
        }
        storage.write(MediumId::Journal, self.journal.offset(position), encoded.bytes)?;
        storage.sync(MediumId::Journal)?;
        let fork = self.journal.last();
        let place = Place::Inline(position + u64::from(encoded.stored_at[0]));
        let payload = Some(Bytes::new());
        self.stage_entry(LiveEntry { record, place, payload, note: Note::Fork(fork), is_void: false });
        let last = self.journal.last();
        self.journal.push_batch(LiveBatch { position, size, last, checksum: encoded.checksum });
        (self.sealed, self.completed, self.durable) = (last, last, last);
        self.memory = Memory::starting_at(last);
        Ok(())
    }

    /// Writes the superblock, so that it no longer says "stopped in good order".
    fn store(&mut self, storage: &mut dyn Storage) -> Result<(), OpenError> {
        storage.sync(MediumId::Journal)?;
        for id in self.pools() {
            storage.sync(MediumId::Pool(id))?;
        }
        let count = self.superblock.next_count();
        let superblock = self.superblock_now(count);
        storage.write(MediumId::Journal, superblock.slot(), superblock.encode())?;
        storage.sync(MediumId::Journal)?;
        Ok(())
    }
}

/// Reads the journal from its tail.
fn scan(
    storage: &mut dyn Storage,
    superblock: &JournalSuperblock,
    volumes: &mut BTreeMap<VolumeId, Volume>,
) -> Result<Found, OpenError> {
    let journal = Journal::new(
        superblock.ring_size,
        superblock.tail_position,
        superblock.tail_order,
        superblock.tail_previous_checksum,
        superblock.stream.clone(),
    );
    let mut found = Found { journal, durable: superblock.tail_order };
    let end = superblock.tail_position + superblock.ring_size;
    loop {
        let here = found.journal.head;
        let mut next = None;
        for position in [here, found.journal.next_lap(here)] {
            if position < end && next.is_none() {
                next = read_batch(storage, superblock, &found.journal, position)?;
            }
        }
        let Some((batch, bytes)) = next else { break };
        let position = batch.header.position;
        let mut live = |(entry, order): (&ParsedEntry, u64)| {
            live_entry(entry, position, &bytes).filter(|live| takes(live, Order(order), volumes))
        };
        // All of it counts or nothing: what lies behind the last batch is written over.
        let entries: Option<Vec<LiveEntry>> =
            batch.entries.iter().zip(batch.header.first_order.0..).map(&mut live).collect();
        let Some(entries) = entries else { break };
        found.durable = found.durable.max(batch.header.durable_order);
        for entry in entries {
            found.journal.push(entry);
        }
        let (size, last, checksum) = (batch.size, found.journal.last(), batch.checksum);
        found.journal.push_batch(LiveBatch { position, size, last, checksum });
    }
    verify_redirected(storage, &mut found.journal, found.durable, volumes)?;
    Ok(found)
}

/// The batch at a position, if a whole one that continues the journal is there.
fn read_batch(
    storage: &mut dyn Storage,
    superblock: &JournalSuperblock,
    journal: &Journal,
    position: u64,
) -> Result<Option<(ParsedBatch, Bytes)>, OpenError> {
    let Some(parsed) = read_header(storage, superblock.group, journal, position)? else {
        return Ok(None);
    };
    let header = &parsed.header;
    let continues = (header.previous_checksum == journal.head_checksum || planted(Plant::ChainNotChecked))
        && header.first_order == journal.last().next();
    if !continues {
        return Ok(None);
    }
    let bytes = storage.read(MediumId::Journal, journal.offset(position), parsed.size as u32)?;
    let is_whole = |entry| stored(entry, &bytes).is_some_and(|stored| entry.check_stored(&stored).is_ok());
    let whole = parsed.entries.iter().all(is_whole);
    Ok((whole || planted(Plant::TornBatchTaken)).then_some((parsed, bytes)))
}

/// What the batch at a position says, if it belongs there. Its payloads are not looked at.
pub(super) fn read_header(
    storage: &mut dyn Storage,
    group: GroupId,
    journal: &Journal,
    position: u64,
) -> Result<Option<ParsedBatch>, OpenError> {
    let room = journal.next_lap(position) - position;
    let first = storage.read(MediumId::Journal, journal.offset(position), 4096)?;
    let size = match batch::parse_header_size(&first, group) {
        Ok(size) if size as u64 <= room => size,
        Ok(_) => return Ok(None),
        Err(error @ crate::format::FormatError::Version { .. }) => {
            return Err(FormatError::from(error).into());
        }
        Err(_) => return Ok(None),
    };
    let area = storage.read(MediumId::Journal, journal.offset(position), size as u32)?;
    let parsed = batch::parse(&area, group).ok();
    Ok(parsed.filter(|batch| batch.header.position == position && batch.size <= room))
}

fn stored(entry: &ParsedEntry, bytes: &Bytes) -> Option<Bytes> {
    let (from, size) = (entry.stored_at as usize, entry.stored_size as usize);
    (from + size <= bytes.len()).then(|| bytes.slice(from..from + size))
}

fn live_entry(entry: &ParsedEntry, position: u64, bytes: &Bytes) -> Option<LiveEntry> {
    let stored = stored(entry, bytes)?;
    let place = match entry.placement {
        Placement::Inline => Place::Inline(position + u64::from(entry.stored_at)),
        Placement::Redirected => Place::Redirected(batch::parse_blocks(&stored).ok()?),
    };
    let note = match entry.record.kind {
        Kind::RestartPoint => Note::Label(message::parse_label(&stored).ok()?),
        Kind::CopyBegin => Note::History(message::parse_history(&stored).ok()?),
        Kind::EpochChange if entry.fork.0 != 0 => Note::Fork(entry.fork),
        _ => Note::None,
    };
    Some(LiveEntry { record: entry.record, place, payload: None, note, is_void: false })
}

/// Whether what an entry changes is there. Lists of a former program have no checksum, and a medium may say anything.
fn takes(entry: &LiveEntry, order: Order, volumes: &mut BTreeMap<VolumeId, Volume>) -> bool {
    let record = &entry.record;
    let volume = volumes.get_mut(&record.volume).filter(|volume| order > volume.applied_before);
    let Some(volume) = volume.filter(|_| record.kind.changes_data()) else {
        return true;
    };
    let fits = fits(entry, volume);
    if !fits && volume.table.is_new() {
        // A former volume had this number; what came before was about that one too.
        volume.applied_before = order;
        return true;
    }
    fits
}

fn fits(entry: &LiveEntry, volume: &Volume) -> bool {
    let geometry = volume.table.geometry();
    let lists = match &entry.place {
        Place::Redirected(blocks) => {
            let size = blocks.len() as u64 * u64::from(geometry.block_size);
            let is_aligned = entry.record.offset.is_multiple_of(u64::from(geometry.block_size));
            let is_there = |block: &u32| (1..=geometry.block_count).contains(block);
            is_aligned && size == entry.record.size && blocks.iter().all(is_there)
        }
        Place::Inline(_) | Place::Memory => true,
    };
    lists && entry.record.end() <= geometry.volume_size
}
