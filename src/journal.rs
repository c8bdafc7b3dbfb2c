//! The journal in memory: the ring's two ends and the entries between them.
//!
//! Invariants: entries are numbered without gaps from `tail_order + 1`; a batch lies in one piece in the ring; the
//! space of a batch is used again only after a superblock with a later tail is durable.

use crate::{
    format::{journal_superblock::RING_OFFSET, record::Record},
    stream_state::{Note, StreamState},
    testing::{Plant, planted},
    units::{Order, Seq},
};
use alloc::{collections::VecDeque, vec::Vec};
use bytes::Bytes;

/// In memory there is room for so many entries at least, and for one for each sector of the ring. Discards are much shorter there.
const ENTRY_COUNT_MIN: u64 = 131_072;
const SECTOR: u64 = 4096;

/// Where an entry's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not in a batch yet: only in memory.
    Memory,
    /// In the journal, from this position on.
    Inline(u64),
    /// In these physical blocks of the volume's pool.
    Redirected(Vec<u32>),
}

/// An entry that is still in the journal (or about to be).
#[derive(Clone, Debug)]
pub struct LiveEntry {
    /// The record.
    pub record: Record,
    /// Where its data is.
    pub place: Place,
    /// Its data, while it is in memory.
    pub payload: Option<Bytes>,
    /// What of the payload the stream's state needs.
    pub note: Note,
    /// An epoch change has made it void.
    pub is_void: bool,
}

/// A batch between the ring's ends.
#[derive(Clone, Copy, Debug)]
pub struct LiveBatch {
    /// Where it begins.
    pub position: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its last entry.
    pub last: Order,
    /// Its header checksum.
    pub checksum: u32,
}

/// See the module.
pub struct Journal {
    ring_size: u64,
    /// Where the next batch goes at the earliest.
    pub head: u64,
    /// Header checksum of the last batch.
    pub head_checksum: u32,
    /// What the durable superblock says.
    pub durable_tail: u64,
    /// The last entry before the durable tail.
    pub durable_tail_order: Order,
    /// The last entry that was let go of.
    pub tail_order: Order,
    /// Where the first live batch begins.
    pub tail: u64,
    /// Header checksum of the batch before it.
    pub tail_checksum: u32,
    /// What the entries that were let go of amount to.
    pub tail_stream: StreamState,
    entries: VecDeque<LiveEntry>,
    batches: VecDeque<LiveBatch>,
}

impl Journal {
    /// The journal as a superblock describes it, with nothing in it.
    pub fn new(ring_size: u64, tail: u64, tail_order: Order, tail_checksum: u32, tail_stream: StreamState) -> Self {
        Self {
            ring_size,
            head: tail,
            head_checksum: tail_checksum,
            durable_tail: tail,
            durable_tail_order: tail_order,
            tail_order,
            tail,
            tail_checksum,
            tail_stream,
            entries: VecDeque::new(),
            batches: VecDeque::new(),
        }
    }

    /// The last entry.
    pub fn last(&self) -> Order {
        Order(self.tail_order.0 + self.entries.len() as u64)
    }

    /// Takes an entry in; its number.
    pub fn push(&mut self, entry: LiveEntry) -> Order {
        self.entries.push_back(entry);
        self.last()
    }

    /// An entry, if it is live.
    pub fn entry(&self, order: Order) -> Option<&LiveEntry> {
        self.entries.get(self.index(order)?)
    }

    /// An entry, if it is live.
    pub fn entry_mut(&mut self, order: Order) -> Option<&mut LiveEntry> {
        let index = self.index(order)?;
        self.entries.get_mut(index)
    }

    /// The live entries after `order`, with their numbers.
    pub fn after(&self, order: Order) -> impl Iterator<Item = (Order, &LiveEntry)> {
        let skip = order.0.saturating_sub(self.tail_order.0) as usize;
        let first = self.tail_order.0 + skip as u64 + 1;
        (first..).map(Order).zip(self.entries.iter().skip(skip))
    }

    /// The last live entry that is not after `seq` in the order, or the tail.
    pub fn order_of(&self, seq: Seq) -> Order {
        // Void entries keep the place they had, so the search is over the valid ones, from the newest.
        let back = self.entries.iter().rev().position(|entry| !entry.is_void && entry.record.at.seq <= seq);
        back.map_or(self.tail_order, |back| Order(self.last().0 - back as u64))
    }

    /// Number of live entries.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Recovery only: the journal ends before the batch that holds `order`.
    pub fn cut_before(&mut self, order: Order) {
        while let Some(batch) = self.batches.pop_back_if(|batch| batch.last >= order) {
            self.head = batch.position;
        }
        let end = self.batches.back();
        self.head_checksum = end.map_or(self.tail_checksum, |batch| batch.checksum);
        let last = end.map_or(self.tail_order, |batch| batch.last);
        self.entries.truncate((last.0 - self.tail_order.0) as usize);
    }

    fn index(&self, order: Order) -> Option<usize> {
        order.0.checked_sub(self.tail_order.0 + 1).map(|index| index as usize)
    }

    /// How many entries may be in memory.
    pub fn entry_count_max(&self) -> u64 {
        (self.ring_size / SECTOR).max(ENTRY_COUNT_MIN)
    }

    /// Whether more than so many eighths of what the journal can hold are live: bytes of the ring, or entries.
    pub fn holds_more_than(&self, eighths: u64) -> bool {
        self.live_size() > self.ring_size / 8 * eighths
            || self.entries.len() as u64 > self.entry_count_max() / 8 * eighths
    }

    /// Where a batch of `size` bytes can go, if there is room and `reserve` bytes stay free.
    pub fn room(&self, size: u64, reserve: u64) -> Option<u64> {
        let last = self.batches.back().map_or(self.tail_order, |batch| batch.last);
        if reserve > 0 && last.0 - self.tail_order.0 >= self.entry_count_max() {
            return None;
        }
        let position = self.fit(self.head, size);
        let tail = if planted(Plant::RingOverrun) { self.tail } else { self.durable_tail };
        (position + size + reserve <= tail + self.ring_size).then_some(position)
    }

    fn fit(&self, position: u64, size: u64) -> u64 {
        let left = self.ring_size - position % self.ring_size;
        if size <= left { position } else { position + left }
    }

    /// The next place where a batch can begin if there is none at `position`: the start of the next lap.
    pub fn next_lap(&self, position: u64) -> u64 {
        (position / self.ring_size + 1) * self.ring_size
    }

    /// Where a position lies on the medium.
    pub fn offset(&self, position: u64) -> u64 {
        RING_OFFSET + position % self.ring_size
    }

    /// A batch was made (or found).
    pub fn push_batch(&mut self, batch: LiveBatch) {
        self.head = batch.position + batch.size;
        self.head_checksum = batch.checksum;
        self.batches.push_back(batch);
    }

    /// The last entry of the first batch.
    pub fn first_batch_end(&self) -> Option<Order> {
        self.batches.front().map(|batch| batch.last)
    }

    /// How far the tail can move while nothing after `order` is applied: batches go as a whole.
    pub fn tail_limit(&self, order: Order) -> Order {
        let count = self.batches.partition_point(|batch| batch.last <= order);
        let last = count.checked_sub(1).and_then(|last| self.batches.get(last));
        last.map_or(self.tail_order, |batch| batch.last)
    }

    /// Bytes of the batches that end after `from` and not after `to`.
    pub fn size_between(&self, from: Order, to: Order) -> u64 {
        let first = self.batches.partition_point(|batch| batch.last <= from);
        let end = self.batches.partition_point(|batch| batch.last <= to);
        let start = self.batches.get(first).map_or(self.head, |batch| batch.position);
        let stop = end.checked_sub(1).and_then(|last| self.batches.get(last)).map_or(0, |b| b.position + b.size);
        stop.saturating_sub(start)
    }

    /// Bytes that cannot be used again yet.
    pub fn used(&self) -> u64 {
        self.head - self.durable_tail
    }

    /// Bytes between the head and the first live batch.
    pub fn live_size(&self) -> u64 {
        self.head - self.tail
    }

    /// Bytes in the ring.
    pub fn ring_size(&self) -> u64 {
        self.ring_size
    }

    /// Lets go of the oldest batch if all its entries are up to `limit`; its entries go to `each`.
    pub fn retire(&mut self, limit: Order, mut each: impl FnMut(Order, LiveEntry)) -> bool {
        let Some(batch) = self.batches.front().copied().filter(|batch| batch.last <= limit) else {
            return false;
        };
        self.batches.pop_front();
        while self.tail_order < batch.last {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.tail_order = self.tail_order.next();
            if !entry.is_void {
                self.tail_stream.apply(self.tail_order, &entry.record, &entry.note);
            }
            each(self.tail_order, entry);
        }
        self.tail = self.batches.front().map_or(self.head, |next| next.position);
        self.tail_checksum = batch.checksum;
        true
    }

    /// Begins anew, empty, in a larger ring; no batch must be live. Positions go on rising, so that nothing that an earlier lap
    /// left is taken for part of this one.
    pub fn restart_with(&mut self, ring_size: u64) {
        debug_assert!(self.batches.is_empty() && ring_size >= self.ring_size, "what is live lies elsewhere then");
        self.ring_size = ring_size;
        self.head = self.next_lap(self.head);
        self.tail = self.head;
    }

    /// A superblock with this tail is durable.
    pub fn tail_is_durable(&mut self, tail: u64, order: Order) {
        self.durable_tail = tail;
        self.durable_tail_order = order;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::record::Kind,
        units::{Epoch, Generation, Position, VolumeId, WallClock},
    };
    use alloc::vec;
    use proptest::prelude::*;

    const RING: u64 = 64 << 10;
    const START: u64 = 3 * RING + 8192;
    const ORDER: u64 = 40;

    /// What was written: the batch, and the seqs of its entries.
    type Written = (LiveBatch, Vec<u64>);

    fn entry(seq: u64, is_void: bool) -> LiveEntry {
        let at = Position { epoch: Epoch::FIRST, seq: Seq(seq) };
        let record = Record {
            kind: Kind::Discard,
            at,
            generation: Generation(1),
            volume: VolumeId(1),
            offset: 0,
            size: 512,
            payload_size: 0,
            payload_checksum: 0,
            keeps: false,
            time: WallClock(0),
        };
        LiveEntry { record, place: Place::Memory, payload: None, note: Note::None, is_void }
    }

    /// The parts of the ring that hold batches from `tail` on.
    fn covered(written: &[Written], tail: u64) -> Vec<u8> {
        let mut pages = vec![0; (RING / 4096) as usize];
        for (batch, _) in written.iter().filter(|(batch, _)| batch.position >= tail) {
            let first = (batch.position % RING / 4096) as usize;
            pages[first..first + (batch.size / 4096) as usize].iter_mut().for_each(|page| *page += 1);
        }
        pages
    }

    proptest! {
        /// Against a list of everything that was ever written: batches, retirements and durable tails in any order.
        #[test]
        fn the_ring_equals_a_list(
            steps in prop::collection::vec((0u8..5, 1u64..7, 1u64..5, 0u64..12), 1..120),
        ) {
            let mut journal = Journal::new(RING, START, Order(ORDER), 7, StreamState::new());
            let mut written: Vec<Written> = vec![];
            let (mut retired, mut seq) = (0, 0);
            for (what, pages, count, back) in steps {
                match what {
                    0..3 => {
                        let size = pages * 4096;
                        let Some(position) = journal.room(size, 0) else {
                            // There is none: from the head on, or from the start of the next lap, something is in the way.
                            let head = written.last().map_or(START, |(batch, _)| batch.position + batch.size);
                            let lap = head.next_multiple_of(RING);
                            let position = if head % RING + size <= RING { head } else { lap };
                            prop_assert!(position + size > journal.durable_tail + RING);
                            continue;
                        };
                        let seqs: Vec<u64> = (0..count).map(|index| seq + 1 + index).collect();
                        seq += count;
                        for seq in &seqs {
                            journal.push(entry(*seq, false));
                        }
                        let batch = LiveBatch { position, size, last: journal.last(), checksum: seq as u32 };
                        journal.push_batch(batch);
                        written.push((batch, seqs));
                    }
                    3 => {
                        let limit = Order(journal.last().0.saturating_sub(back));
                        let mut gone = vec![];
                        let let_go = journal.retire(limit, |_, entry| gone.push(entry.record.at.seq.0));
                        let oldest = written.get(retired).filter(|(batch, _)| batch.last <= limit);
                        prop_assert_eq!(let_go, oldest.is_some());
                        prop_assert_eq!(Some(&gone).filter(|_| let_go), oldest.map(|(_, seqs)| seqs));
                        retired += usize::from(let_go);
                    }
                    _ => journal.tail_is_durable(journal.tail, journal.tail_order),
                }
                // Nothing that may still be needed is written over, and every batch is in one piece.
                prop_assert!(covered(&written, journal.durable_tail).iter().all(|count| *count <= 1));
                let live: Vec<u64> = written[retired..].iter().flat_map(|(_, seqs)| seqs.clone()).collect();
                let found = journal.after(journal.tail_order).map(|(order, entry)| (order, entry.record.at.seq.0));
                let numbered = (journal.tail_order.0 + 1..).map(Order).zip(live.iter().copied());
                prop_assert!(found.eq(numbered));
                prop_assert_eq!(journal.last(), Order(ORDER + seq));
                prop_assert_eq!(journal.tail_order.0 - ORDER, seq - live.len() as u64);
                prop_assert_eq!(journal.tail_stream.last.seq.0, seq - live.len() as u64);
                let middle = Order(ORDER + seq - back.min(seq));
                let expected = if middle <= journal.tail_order { journal.tail_order } else { middle };
                prop_assert_eq!(journal.order_of(Seq(middle.0 - ORDER)), expected);
                prop_assert_eq!(journal.entry(middle).is_some(), middle > journal.tail_order);
                let whole = written[retired..].iter().map(|(batch, _)| batch.last).filter(|last| *last <= middle);
                prop_assert_eq!(journal.tail_limit(middle), whole.max().unwrap_or(journal.tail_order));
            }
        }
    }

    #[test]
    fn a_journal_may_be_full_of_short_entries() {
        let mut journal = Journal::new(1 << 30, 0, Order(0), 0, StreamState::new());
        let count = journal.entry_count_max();
        assert_eq!(count, 262_144);
        for seq in 1..=count {
            assert!(!journal.holds_more_than(8) && journal.room(4096, 4096).is_some(), "it is full at {seq}");
            assert_eq!(journal.holds_more_than(6), seq > count / 8 * 6 + 1);
            journal.push(entry(seq, false));
            let (last, position) = (journal.last(), journal.head);
            // Twelve pages hold 256 of them and more.
            if seq % 256 == 0 {
                journal.push_batch(LiveBatch { position, size: 12 * 4096, last, checksum: 0 });
            }
        }
        assert!(journal.live_size() < journal.ring_size() / 16);
        assert_eq!(journal.room(4096, 4096), None);
        assert!(journal.room(4096, 0).is_some(), "there is room for a new epoch");
        assert!(journal.retire(Order(256), |_, _| ()));
        assert!(journal.room(4096, 4096).is_some());
    }
}
