//! What is to be sent and is no longer in memory: several entries are read at once, before their turn comes, as a disk carries out many
//! reads in little more than the time of one.

use super::{
    Group,
    read::{Reader, join},
};
use crate::{
    format::record::Kind,
    journal::LiveEntry,
    table::ReadCount,
    testing::{Plant, planted},
    units::Order,
};
use alloc::{collections::VecDeque, vec::Vec};
use bytes::Bytes;

/// Entries that are read ahead, at most: hosts want the disk too.
const COUNT_MAX: usize = 16;
/// Bytes of them, at most; one entry may go beyond.
const SIZE_MAX: u64 = 4 << 20;
/// What lies between them is not sent; so far it is looked at.
const REACH: u64 = 1024;

struct Ahead {
    number: ReadCount,
    order: Order,
    size: u64,
    /// What was read, when it was; `None` in it: it could not be.
    payload: Option<Option<Bytes>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct ReadAhead {
    entries: VecDeque<Ahead>,
    size: u64,
}

impl ReadAhead {
    /// What is being read is not sent.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// It is this entry's turn: what was read for those before it is not needed.
    fn skip_to(&mut self, order: Order) {
        while self.entries.front().is_some_and(|first| first.order < order) {
            self.pop();
        }
        if self.entries.front().is_some_and(|first| first.order > order) {
            self.clear();
        }
    }

    /// What was read of the entry whose turn it is, when it was: `None` in it, if it could not be.
    pub(super) fn take(&mut self) -> Option<Option<Bytes>> {
        self.entries.front()?.payload.as_ref()?;
        self.pop()?.payload
    }

    fn pop(&mut self) -> Option<Ahead> {
        let first = self.entries.pop_front()?;
        self.size -= first.size;
        Some(first)
    }

    fn has_room(&self) -> bool {
        self.entries.len() < COUNT_MAX && self.size < SIZE_MAX
    }
}

impl Group {
    /// Whether an entry is sent: not a void one, nor one that a former life as secondary left; the peer has no use for them.
    pub(super) fn is_for_peer(entry: &LiveEntry) -> bool {
        let is_forgotten = entry.record.kind == Kind::Discard && planted(Plant::DiscardNotSent)
            || entry.payload.is_none() && planted(Plant::GapTaken);
        !entry.is_void && entry.record.kind.is_sequenced() && !is_forgotten
    }

    /// Reads an entry whose turn it is, and what comes after it until something is in memory.
    pub(super) fn read_ahead(&mut self, first: Order) {
        self.peer.ahead.skip_to(first);
        let limit = self.send_limit().0.min(first.0 + REACH);
        let next = self.peer.ahead.entries.back().map_or(first, |last| last.order.next());
        for order in (next.0..=limit).map(Order) {
            let Some(entry) = self.journal.entry(order).filter(|_| self.peer.ahead.has_room()) else { return };
            if !Self::is_for_peer(entry) {
                continue;
            }
            if entry.payload.is_some() {
                return;
            }
            let (number, size) = (self.reads.next(), u64::from(entry.record.payload_size));
            self.peer.ahead.entries.push_back(Ahead { number, order, size, payload: None });
            self.peer.ahead.size += size;
            self.read_entry(Reader::Resend(number), order);
        }
    }

    /// An entry's data was read again (`None`: it could not be).
    pub(super) fn resend_read(&mut self, number: ReadCount, data: Option<Vec<Bytes>>) {
        let Some(ahead) = self.peer.ahead.entries.iter_mut().find(|ahead| ahead.number == number) else { return };
        let record = self.journal.entry(ahead.order).map(|entry| entry.record);
        let payload = data.map(|parts| join(&parts)).zip(record);
        let checked = payload.filter(|(payload, record)| record.check_payload(payload).is_ok());
        ahead.payload = Some(checked.map(|(payload, _)| payload));
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
