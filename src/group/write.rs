//! Requests that change a volume: cut into records, numbered, staged, and answered in order.

use super::{Group, Purpose, pace::Held, trial::Trial};
use crate::{
    buffer::aligned,
    disk::{DiskAction, MediumId},
    format::record::{Kind, Record},
    journal::{LiveEntry, Place},
    pair::{Cause, Level, PairState, Role, WithoutPeer},
    request::{Access, Busy, Durability, Operation, Reply, Request, RequestError, RequestId, Space},
    stream_state::Note,
    testing::{Plant, planted},
    units::{Monotonic, Now, Order, Position, RECORD_PAYLOAD_SIZE_MAX, VolumeId, ZEROES_SIZE_MAX},
};
use alloc::{collections::VecDeque, vec::Vec};
use bytes::Bytes;

/// Writes of at least so many bytes, aligned to the table block, go once, straight into the pool.
const REDIRECT_SIZE_MIN: u64 = 64 << 10;
/// More staged or held than this makes the engine [`Busy`].
const STAGED_COUNT_MAX: u64 = 4096;
/// The same in bytes of data in memory that is not yet written.
const STAGED_SIZE_MAX: u64 = 64 << 20;
/// Longest read or write in bytes.
const REQUEST_SIZE_MAX: u64 = 32 << 20;

/// A request that waits for its last entry to come far enough.
#[derive(Clone, Copy)]
pub(super) struct Waiter {
    id: RequestId,
    order: Order,
    needs_durable: bool,
}

/// Requests in the order of their last entries, by what they wait for.
#[derive(Default)]
pub(super) struct Waiting {
    completed: VecDeque<Waiter>,
    durable: VecDeque<Waiter>,
    remote: VecDeque<Waiter>,
}

impl Waiting {
    /// All of them; they will not be answered otherwise.
    pub(super) fn take_all(&mut self) -> Vec<RequestId> {
        let Self { completed, durable, remote } = core::mem::take(self);
        completed.into_iter().chain(durable).chain(remote).map(|waiter| waiter.id).collect()
    }

    /// Whether somebody waits for a sync.
    pub(super) fn wants_sync(&self) -> bool {
        !self.durable.is_empty()
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.completed.is_empty() && self.durable.is_empty() && self.remote.is_empty()
    }
}

impl Group {
    /// A host's request. It is answered by an [`Output::Answer`](crate::output::Output), also if it is refused.
    pub fn handle_request(&mut self, now: Now, request: Request) -> Result<(), Busy> {
        self.now = now;
        if let Err(error) = self.check(&request) {
            self.answer(request.id, Err(error));
            return Ok(());
        }
        if matches!(request.access, Access::Generation(_) | Access::Trial) {
            self.start_aside(request);
            return Ok(());
        }
        let staged = self.journal.last().0 - self.completed.0;
        if staged >= STAGED_COUNT_MAX
            || self.held.len() >= STAGED_COUNT_MAX as usize
            || self.memory.unwritten_size() >= STAGED_SIZE_MAX
        {
            return Err(Busy(request));
        }
        if self.must_hold(&request, now.monotonic) {
            self.held.push_back(Held { request, since: now.monotonic });
        } else {
            self.start(request);
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        if self.stopped.is_some() || self.is_stopping() {
            return Err(RequestError::Stopped);
        }
        let volume = self.volumes.get(&request.volume).ok_or(RequestError::Invalid)?;
        let block = u64::from(volume.spec.logical_block_size);
        let within = |offset: u64, size: u64| {
            let end = offset.checked_add(size).ok_or(RequestError::Invalid)?;
            let fits = end <= volume.spec.size && size > 0 && (offset | size).is_multiple_of(block);
            if fits { Ok(()) } else { Err(RequestError::Invalid) }
        };
        let bounded = |size: u64| {
            if size <= REQUEST_SIZE_MAX { Ok(()) } else { Err(RequestError::Invalid) }
        };
        let writes = match &request.operation {
            Operation::Read { offset, size } => {
                within(*offset, u64::from(*size))?;
                bounded(u64::from(*size))?;
                false
            }
            Operation::Extents { offset, size } => within(*offset, *size).map(|()| false)?,
            Operation::Flush => false,
            Operation::Write { offset, data, .. } => {
                within(*offset, data.len() as u64)?;
                bounded(data.len() as u64)?;
                true
            }
            Operation::Discard { offset, size } | Operation::WriteZeroes { offset, size, .. } => {
                within(*offset, *size).map(|()| true)?
            }
        };
        match request.access {
            // Only what is held cannot be let go of while it is being read.
            Access::Generation(order) if !(self.holds.has(order) && volume.table.keeps(order)) => {
                return Err(RequestError::NotKept);
            }
            Access::Generation(_) => return if writes { Err(RequestError::ReadOnly) } else { Ok(()) },
            Access::Trial if !self.trial.as_ref().is_some_and(Trial::is_open) => return Err(RequestError::NotKept),
            Access::Trial => return Ok(()),
            Access::ReadWrite | Access::ReadOnly => {}
        }
        match (self.pair.role, writes) {
            (Role::Primary, true) if self.is_pool_full() && self.is_journal_full() => Err(RequestError::NoSpace),
            (Role::Primary, _) => Ok(()),
            // Who could write on the primary that this node was does not take what it reads here for the newest.
            (Role::Secondary | Role::Fenced, false) if request.access == Access::ReadOnly => Ok(()),
            (Role::Secondary | Role::Fenced, _) => Err(RequestError::NotPrimary),
        }
    }

    /// A write to a range that is being read for a copy waits, so that the copy is not older than its place in the
    /// stream; and nothing is served while it is not known whether this node is still the primary.
    fn must_hold(&self, request: &Request, since: Monotonic) -> bool {
        if self.is_paced(request, since)
            || !self.is_confirmed()
            || !self.is_leased()
            || self.waits_for_hand_over(request)
        {
            return true;
        }
        let (offset, size) = match &request.operation {
            Operation::Write { offset, data, .. } => (*offset, data.len() as u64),
            Operation::Discard { offset, size } | Operation::WriteZeroes { offset, size, .. } => (*offset, *size),
            _ => return false,
        };
        let verifies =
            self.verifier.as_ref().is_some_and(|verifier| verifier.holds(request.volume, offset, offset + size));
        let mends = self.mending.holds(request.volume, offset, offset + size) && !planted(Plant::MendedWithStale);
        let copies = self.copy.is_reading(request.volume, offset, offset + size) && !planted(Plant::CopyRacesWrite);
        verifies || mends || copies
    }

    /// Starts what was held and need not wait any more.
    pub(super) fn release_held(&mut self) {
        for _ in 0..self.held.len() {
            let Some(Held { request, since }) = self.held.pop_front() else {
                return;
            };
            if let Err(error) = self.check(&request) {
                self.answer(request.id, Err(error));
            } else if self.must_hold(&request, since) {
                self.held.push_back(Held { request, since });
            } else {
                self.start(request);
            }
        }
    }

    /// A request that has nothing to do with the latest state.
    fn start_aside(&mut self, request: Request) {
        let Request { id, volume, access, ref operation } = request;
        match *operation {
            Operation::Read { offset, size } => self.start_view(id, access, volume, offset, size),
            Operation::Extents { offset, size } => self.answer_extents(id, access, volume, offset, size),
            _ if access == Access::Trial => self.try_out(request),
            _ => self.answer(id, Ok(Reply::Done)),
        }
    }

    fn start(&mut self, request: Request) {
        let Request { id, volume, access, operation } = request;
        #[cfg(feature = "testing")]
        self.started.push(id);
        let durability = match operation {
            Operation::Read { offset, size } => return self.start_read(id, volume, offset, size),
            Operation::Extents { offset, size } => {
                return self.answer_extents(id, access, volume, offset, size);
            }
            Operation::Flush => Durability::Durable,
            Operation::Write { offset, data, durability } => {
                self.stage_write(volume, offset, data);
                durability
            }
            Operation::Discard { offset, size } => {
                self.stage_zeroes(Kind::Discard, volume, offset, size, false);
                Durability::Completed
            }
            Operation::WriteZeroes { offset, size, space, durability } => {
                self.stage_zeroes(Kind::WriteZeroes, volume, offset, size, space == Space::Keep);
                durability
            }
        };
        let waiter = Waiter { id, order: self.journal.last(), needs_durable: durability == Durability::Durable };
        self.waiting.completed.push_back(waiter);
        self.answer_waiting();
    }

    /// Stages the records of a write: whole blocks are redirected where that pays, the rest goes inline.
    pub(super) fn stage_write(&mut self, volume: VolumeId, offset: u64, data: Bytes) {
        let Some(spec) = self.volumes.get(&volume).map(|volume| &volume.spec) else {
            return;
        };
        let block = u64::from(spec.table_block_size);
        let least = REDIRECT_SIZE_MIN.max(block);
        let most = u64::from(RECORD_PAYLOAD_SIZE_MAX);
        let mut at = 0;
        while at < data.len() as u64 {
            let (place, left) = (offset + at, data.len() as u64 - at);
            let to_block = place.next_multiple_of(block) - place;
            let size = if to_block == 0 && left >= least {
                (left - left % block).min(most)
            } else if to_block > 0 && left >= to_block + least {
                to_block
            } else {
                left.min(most)
            };
            let payload = data.slice(at as usize..(at + size) as usize);
            let mut record = self.new_record(Kind::Write);
            (record.volume, record.offset, record.size) = (volume, place, size);
            self.stage_data(record, payload, to_block == 0 && size >= least);
            at += size;
        }
    }

    pub(super) fn stage_zeroes(&mut self, kind: Kind, volume: VolumeId, offset: u64, size: u64, keep: bool) {
        let mut at = 0;
        while at < size {
            let step = (size - at).min(ZEROES_SIZE_MAX);
            let mut record = self.new_record(kind);
            (record.volume, record.offset, record.size, record.keeps) = (volume, offset + at, step, keep);
            self.stage(record, Bytes::new(), Note::None);
            at += step;
        }
    }

    /// The next record in the order.
    pub(super) fn new_record(&self, kind: Kind) -> Record {
        Record {
            kind,
            at: Position { epoch: self.stream.last.epoch, seq: self.stream.last.seq.next() },
            generation: self.stream.generation,
            volume: VolumeId(0),
            offset: 0,
            size: 0,
            payload_size: 0,
            payload_checksum: 0,
            keeps: false,
            time: self.now.wall,
        }
    }

    /// Stages a record with data, redirected if asked for and possible.
    pub(super) fn stage_data(&mut self, record: Record, payload: Bytes, redirect: bool) -> Order {
        let blocks = if redirect { self.allocate_blocks(record.volume, record.size) } else { None };
        let Some(blocks) = blocks else { return self.stage(record, payload, Note::None) };
        let order = self.stage_at(Place::Redirected(blocks.clone()), record, payload.clone(), Note::None);
        let Some(volume) = self.volumes.get_mut(&record.volume) else {
            return order;
        };
        let (geometry, mut writes) = (*volume.table.geometry(), 0);
        blocks.iter().for_each(|block| volume.table.blocks.redirect(*block, order));
        volume.unsynced = true;
        let payload = aligned(payload);
        let block_size = geometry.block_size as usize;
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let from = writes;
            writes += run.len();
            let piece = payload.slice(from * block_size..writes * block_size);
            let action = DiskAction::Write { offset: geometry.offset_of(run[0]), pieces: alloc::vec![piece] };
            self.disk(MediumId::Pool(record.volume), action, Purpose::Redirect { order });
            *self.redirects_in_flight.entry(order).or_default() += 1;
        }
        order
    }

    fn allocate_blocks(&mut self, volume: VolumeId, size: u64) -> Option<Vec<u32>> {
        let table = &mut self.volumes.get_mut(&volume)?.table;
        let count = size / u64::from(table.geometry().block_size);
        // Destaging must not be starved by redirection: it alone frees the journal.
        if u64::from(table.blocks.free_count()) < count + 64 {
            return None;
        }
        let blocks: Vec<u32> = (0..count).map_while(|_| table.blocks.allocate()).collect();
        // Recovery takes no record that names a block which the table on the medium does not know of yet.
        if blocks.iter().any(|block| *block > table.block_count_durable()) {
            blocks.into_iter().for_each(|block| table.blocks.unallocate(block));
            return None;
        }
        Some(blocks)
    }

    /// Gives a record its entry.
    pub(super) fn stage(&mut self, record: Record, payload: Bytes, note: Note) -> Order {
        self.stage_at(Place::Memory, record, payload, note)
    }

    fn stage_at(&mut self, place: Place, record: Record, payload: Bytes, note: Note) -> Order {
        let record = record.carrying(&payload);
        self.memory.stage(payload.len());
        self.stage_entry(LiveEntry { record, place, payload: Some(payload), note, is_void: false })
    }

    /// Takes an entry in as it is.
    pub(super) fn stage_entry(&mut self, entry: LiveEntry) -> Order {
        let record = entry.record;
        let order = self.journal.last().next();
        self.stream.apply(order, &record, &entry.note);
        self.destage.staged(self.now.monotonic, &entry);
        self.journal.push(entry);
        self.again = true;
        if record.kind.changes_data()
            && let Some(volume) = self.volumes.get_mut(&record.volume)
        {
            volume.overlay.insert(record.offset, record.end(), order);
        }
        order
    }

    /// Answers whoever has waited long enough.
    pub(super) fn answer_waiting(&mut self) {
        while let Some(waiter) = self
            .waiting
            .completed
            .pop_front_if(|waiter| waiter.order <= self.completed || planted(Plant::AnswerUnwritten))
        {
            if waiter.needs_durable && !planted(Plant::NoSyncBeforeAnswer) {
                self.waiting.durable.push_back(waiter);
            } else {
                self.waiting.remote.push_back(waiter);
            }
        }
        while let Some(waiter) = self.waiting.durable.pop_front_if(|waiter| waiter.order <= self.durable) {
            self.waiting.remote.push_back(waiter);
        }
        if !self.is_leased() {
            return;
        }
        if self.waits_for_peer() && !planted(Plant::RemoteNotAwaited) {
            let (done, waiting) = self.waiting.remote.drain(..).partition(|waiter| self.peer.has(waiter.order));
            self.waiting.remote = waiting;
            let done: VecDeque<Waiter> = done;
            done.iter().for_each(|waiter| self.answer(waiter.id, Ok(Reply::Done)));
        } else {
            for waiter in core::mem::take(&mut self.waiting.remote) {
                self.answer(waiter.id, Ok(Reply::Done));
            }
        }
    }

    /// Whether answers wait for a peer that is not there.
    pub fn waits_for_absent_peer(&self) -> bool {
        self.waits_for_peer() && !self.peer.is_streaming() && self.stopped.is_none()
    }

    /// Whether answers wait for the peer's acknowledgement now.
    fn waits_for_peer(&self) -> bool {
        self.pair.level == Level::Remote
            && self.pair.peer.is_some()
            && self.pair.role == Role::Primary
            && (self.peer.is_streaming()
                || (self.pair.without_peer == WithoutPeer::Freeze
                    && self.pair.state != PairState::Suspended(Cause::Command)))
    }
}
