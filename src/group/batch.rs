//! Group commit: what was staged while one batch was being written goes into the next.

use super::{Group, Purpose};
use crate::{
    disk::{DiskAction, DiskOutcome, MediumId},
    format::batch::{self, BATCH_ENTRY_COUNT_MAX, BATCH_SIZE_MAX, BatchEntry, BatchHeader, Placement},
    journal::{LiveBatch, Place},
    units::Order,
};
use alloc::{vec, vec::Vec};
use bytes::Bytes;

/// Batches in flight at once. Two keep the medium busy while the next one fills.
const IN_FLIGHT_MAX: usize = 2;
/// Payloads of written entries kept in memory, in bytes: for reads, for destaging and for the stream.
pub(super) const KEPT_SIZE_MAX: u64 = 32 << 20;
/// Bytes of the ring that only this node's own records may use.
const RESERVE: u64 = 256 << 10;

/// A batch that is being written.
pub(super) struct InFlight {
    first: Order,
    last: Order,
    is_written: bool,
}

/// How much payload is in memory.
#[derive(Default)]
pub(super) struct Memory {
    unwritten: u64,
    kept: u64,
    /// Payloads of entries up to here have been let go of.
    floor: Order,
}

impl Memory {
    /// Payloads of entries up to `order` are on the medium only.
    pub(super) fn starting_at(order: Order) -> Self {
        Self { floor: order, ..Self::default() }
    }

    /// A payload came in.
    pub(super) fn stage(&mut self, size: usize) {
        self.unwritten += size as u64;
    }

    /// Bytes that are in memory only.
    pub(super) fn unwritten_size(&self) -> u64 {
        self.unwritten
    }
}

impl Group {
    /// Puts what is staged into batches, as far as the ring and the number in flight allow.
    pub(super) fn seal(&mut self) {
        let may_go_on = !self.is_emptying_journal() && self.superblock.allows_batches();
        while may_go_on && self.in_flight.len() < IN_FLIGHT_MAX && self.sealed < self.journal.last() {
            if !self.seal_one() {
                return;
            }
        }
    }

    fn seal_one(&mut self) -> bool {
        let (mut entries, mut size): (Vec<BatchEntry>, usize) = (Vec::new(), 0);
        for (_, live) in self.journal.after(self.sealed).take(BATCH_ENTRY_COUNT_MAX) {
            let (placement, stored) = match &live.place {
                Place::Redirected(blocks) => {
                    let list: Vec<u8> = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
                    (Placement::Redirected, Bytes::from(list))
                }
                Place::Memory | Place::Inline(_) => (Placement::Inline, live.payload.clone().unwrap_or_default()),
            };
            let padded = stored.len().next_multiple_of(crate::buffer::ALIGNMENT);
            if !entries.is_empty() && size + padded > BATCH_SIZE_MAX / 2 {
                break;
            }
            size += padded;
            entries.push(BatchEntry { record: live.record, placement, fork: live.note.fork(), stored });
        }
        let Some(position) = self.find_room(&mut entries) else {
            return false;
        };
        let size = batch::batch_size(entries.iter().map(|entry| entry.stored.len())) as u64;
        let header = BatchHeader {
            position,
            previous_checksum: self.journal.head_checksum,
            first_order: self.sealed.next(),
            durable_order: self.durable,
        };
        let encoded = batch::encode(header, self.id, &entries);
        let first = self.sealed.next();
        let last = Order(self.sealed.0 + entries.len() as u64);
        for (order, stored_at) in (first.0..).map(Order).zip(&encoded.stored_at) {
            let Some(live) = self.journal.entry_mut(order) else {
                continue;
            };
            if live.place == Place::Memory {
                let at = *stored_at as usize;
                live.place = Place::Inline(position + u64::from(*stored_at));
                // The host's buffer is let go of; the batch's own bytes serve from now on.
                live.payload = live.payload.as_ref().map(|old| encoded.bytes.slice(at..at + old.len()));
            }
        }
        self.journal.push_batch(LiveBatch { position, size, last, checksum: encoded.checksum });
        let offset = self.journal.offset(position);
        let action = DiskAction::Write { offset, pieces: vec![encoded.bytes] };
        self.disk(MediumId::Journal, action, Purpose::Batch { first });
        self.in_flight.push_back(InFlight { first, last, is_written: false });
        self.sealed = last;
        true
    }

    /// Where the next batch goes, with as many of the entries as there is room for in one piece. What is free of a small ring may
    /// lie at its end and its start, and stay so: the tail moves only when the peer has more, or the ring is nearly full.
    fn find_room(&self, entries: &mut Vec<BatchEntry>) -> Option<u64> {
        loop {
            let size = batch::batch_size(entries.iter().map(|entry| entry.stored.len())) as u64;
            // Nothing sets room free before a promotion's record is there.
            let reserve = if self.is_opening() { 0 } else { RESERVE };
            let position = self.journal.room(size, reserve);
            if position.is_some() || entries.len() == 1 || !self.in_flight.is_empty() {
                return position;
            }
            entries.truncate(entries.len() / 2);
        }
    }

    /// A batch is on the medium.
    pub(super) fn batch_written(&mut self, first: Order, outcome: DiskOutcome) {
        if let Err(error) = outcome {
            return self.fail(MediumId::Journal, error);
        }
        if let Some(batch) = self.in_flight.iter_mut().find(|batch| batch.first == first) {
            batch.is_written = true;
        }
        self.complete();
    }

    /// A part of a redirected record is in the pool.
    pub(super) fn redirect_written(&mut self, order: Order, outcome: DiskOutcome) {
        if let Err(error) = outcome {
            let volume = self.journal.entry(order).map_or_else(Default::default, |entry| entry.record.volume);
            return self.fail(MediumId::Pool(volume), error);
        }
        if let Some(count) = self.redirects_in_flight.get_mut(&order) {
            *count -= 1;
            if *count == 0 {
                self.redirects_in_flight.remove(&order);
            }
        }
        self.complete();
    }

    /// Completes batches in their order.
    fn complete(&mut self) {
        while let Some(batch) = self.in_flight.front() {
            let redirecting = self.redirects_in_flight.range(..=batch.last).next().is_some();
            if !batch.is_written || redirecting || self.stopped.is_some() {
                break;
            }
            let (from, last) = (self.completed, batch.last);
            self.in_flight.pop_front();
            self.completed = last;
            let entries = self.journal.after(from).take((last.0 - from.0) as usize);
            let size: u64 = entries.map(|(_, entry)| u64::from(entry.record.payload_size)).sum();
            self.memory.unwritten -= size;
            self.memory.kept += size;
        }
        self.forget_payloads();
        self.answer_waiting();
    }

    /// Lets go of the oldest payloads that are on the medium.
    fn forget_payloads(&mut self) {
        while self.memory.kept > KEPT_SIZE_MAX && self.memory.floor < self.completed {
            let order = self.memory.floor.next();
            self.memory.floor = order;
            if let Some(entry) = self.journal.entry_mut(order) {
                self.memory.kept -= u64::from(entry.record.payload_size).min(self.memory.kept);
                entry.payload = None;
            }
        }
    }

    /// An entry leaves the journal.
    pub(super) fn forget_entry(&mut self, order: Order, payload_size: u32) {
        if order > self.memory.floor {
            self.memory.floor = order;
            self.memory.kept -= u64::from(payload_size).min(self.memory.kept);
        }
    }

    /// Whether not even the next entry alone fits into the ring.
    pub(super) fn is_journal_full(&self) -> bool {
        let next = self.journal.after(self.sealed).next();
        next.is_some_and(|(_, entry)| {
            let stored = match &entry.place {
                Place::Redirected(blocks) => size_of_val(blocks.as_slice()),
                Place::Memory | Place::Inline(_) => entry.record.payload_size as usize,
            };
            let size = batch::batch_size([stored].into_iter()) as u64;
            self.in_flight.is_empty() && self.journal.room(size, RESERVE).is_none()
        })
    }
}
