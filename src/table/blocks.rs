//! The unused-block list of a pool.
//!
//! A freed block can be handed out again only when three things hold: a checkpoint has made durable a table that does
//! not need it; no read that began before it was freed is still running; and the journal's durable tail has passed the
//! record that was redirected into it, because recovery and the stream may still read the record's data there.

use crate::testing::{Plant, planted};
use crate::units::Order;
use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use bitvec::{order::Lsb0, vec::BitVec};

/// Numbers the reads of a group, so that a freed block can wait for those that began earlier.
pub type ReadCount = u64;

/// A block that nothing new needs.
#[derive(Clone, Copy)]
struct Freed {
    block: u32,
    /// The host has discarded what was in it: its space goes back to the medium.
    give_back: bool,
}

struct Quarantined {
    freed: Freed,
    reads: ReadCount,
    until: Order,
}

/// See the module. Blocks are numbered from 1.
pub struct Blocks {
    used: BitVec<usize, Lsb0>,
    used_count: u32,
    cursor: usize,
    freed: Vec<Freed>,
    committing: Vec<Freed>,
    quarantined: VecDeque<Quarantined>,
    /// Not needed by anything any more; to be given back before they are used again.
    leaving: BTreeSet<u32>,
    /// Being given back.
    leaving_count: u32,
    /// Blocks that hold the data of a journalled record.
    redirected: BTreeMap<u32, Order>,
}

impl Blocks {
    /// All unused.
    pub fn new(count: u32) -> Self {
        Self {
            used: BitVec::repeat(false, count as usize),
            used_count: 0,
            cursor: 0,
            freed: Vec::new(),
            committing: Vec::new(),
            quarantined: VecDeque::new(),
            leaving: BTreeSet::new(),
            leaving_count: 0,
            redirected: BTreeMap::new(),
        }
    }

    /// Blocks that are used; those that only wait to be unused do not count.
    pub fn used_count(&self) -> u32 {
        let waiting = self.freed.len() + self.committing.len() + self.quarantined.len() + self.leaving.len();
        self.used_count - self.leaving_count - waiting as u32
    }

    /// Notes that a block is used; `false` if it was already.
    pub fn claim(&mut self, block: u32) -> bool {
        let Some(index) = (block as usize).checked_sub(1).filter(|index| *index < self.used.len()) else {
            return false;
        };
        let fresh = !self.used.replace(index, true);
        self.used_count += u32::from(fresh);
        fresh
    }

    /// Whether a block is used.
    pub fn is_used(&self, block: u32) -> bool {
        (block as usize).checked_sub(1).and_then(|index| self.used.get(index)).is_some_and(|used| *used)
    }

    /// An unused block, now used.
    pub fn allocate(&mut self) -> Option<u32> {
        if self.used_count as usize == self.used.len() {
            return None;
        }
        // Next fit: neighbours in time become neighbours on the medium.
        let ahead = self.used[self.cursor..].first_zero().map(|index| self.cursor + index);
        let index = ahead.or_else(|| self.used[..self.cursor].first_zero())?;
        self.cursor = (index + 1) % self.used.len();
        self.used.set(index, true);
        self.used_count += 1;
        Some(index as u32 + 1)
    }

    /// There are `count` blocks now, no fewer than before.
    pub fn extend(&mut self, count: u32) {
        self.used.resize((count as usize).max(self.used.len()), false);
    }

    /// The first of `count` unused blocks in a row, as far to the end as possible; all are used now.
    pub fn allocate_run(&mut self, count: u32) -> Option<u32> {
        let (count, mut end) = (count as usize, self.used.len());
        let first = loop {
            let start = end.checked_sub(count)?;
            match self.used[start..end].last_one() {
                None => break start,
                // The run must end before a block that is used.
                Some(index) => end = start + index,
            }
        };
        self.used[first..first + count].fill(true);
        self.used_count += count as u32;
        Some(first as u32 + 1)
    }

    /// Notes that the table has no more need of a block. 0 is no block.
    pub fn free(&mut self, block: u32) {
        if block != 0 && planted(Plant::FreedUsedAtOnce) {
            self.unallocate(block);
        } else if block != 0 {
            self.freed.push(Freed { block, give_back: false });
        }
    }

    /// The same for a block whose content the host has discarded.
    pub fn give_back(&mut self, block: u32) {
        if block != 0 {
            self.freed.push(Freed { block, give_back: true });
        }
    }

    /// The next blocks in a row whose space goes back to the medium, and how many; they are unused once [`Blocks::gone`] says so.
    pub fn take_leaving(&mut self) -> Option<(u32, u32)> {
        let first = self.leaving.pop_first()?;
        let count = (first + 1..).take_while(|block| self.leaving.remove(block)).count() as u32 + 1;
        self.leaving_count += count;
        Some((first, count))
    }

    /// The space of `count` blocks from `first` on is given back.
    pub fn gone(&mut self, first: u32, count: u32) {
        self.leaving_count -= count;
        (first..first + count).for_each(|block| self.unallocate(block));
    }

    /// Gives back a block that no table and no journalled record ever named.
    pub fn unallocate(&mut self, block: u32) {
        self.used.set(block as usize - 1, false);
        self.used_count -= 1;
    }

    /// Notes that a journalled record's data is in a block.
    pub fn redirect(&mut self, block: u32, order: Order) {
        self.redirected.insert(block, order);
    }

    /// Whether a block holds the data of a journalled record, and so must not be written in place.
    pub fn is_redirected(&self, block: u32) -> bool {
        self.redirected.contains_key(&block)
    }

    /// Whether some block holds the data of a journalled record.
    pub fn has_redirected(&self) -> bool {
        !self.redirected.is_empty()
    }

    /// A checkpoint begins: what was freed until now will be unused once it is durable.
    pub fn begin_checkpoint(&mut self) {
        self.committing.append(&mut self.freed);
    }

    /// The checkpoint is durable. `reads` is the number of the next read.
    pub fn commit_checkpoint(&mut self, reads: ReadCount) {
        for freed in self.committing.drain(..) {
            let until = self.redirected.get(&freed.block).copied().unwrap_or_default();
            self.quarantined.push_back(Quarantined { freed, reads, until });
        }
    }

    /// Releases what nothing needs any more: reads before `oldest_read` have ended, entries up to `tail` are no longer
    /// in the journal. `true` if there was something.
    pub fn release(&mut self, oldest_read: ReadCount, tail: Order) -> bool {
        self.redirected.retain(|_, order| *order > tail);
        let (used, leaving, mut released) = (&mut self.used, &mut self.leaving, 0);
        self.quarantined.retain(|waiting| {
            let is_unread = waiting.reads <= oldest_read || planted(Plant::FreedUsedUnderRead);
            let free = is_unread && (waiting.until <= tail || planted(Plant::RedirectedUsedEarly));
            if free && waiting.freed.give_back {
                leaving.insert(waiting.freed.block);
            } else if free {
                used.set(waiting.freed.block as usize - 1, false);
                released += 1;
            }
            !free
        });
        self.used_count -= released;
        released > 0
    }

    /// Whether freed blocks wait for a checkpoint or for the journal's tail.
    pub fn is_waiting(&self) -> bool {
        !self.freed.is_empty() || !self.committing.is_empty() || !self.quarantined.is_empty()
    }

    /// Whether some will be unused if the journal's tail moves no further than to `limit`: they wait for it or for a checkpoint, or are
    /// given back.
    pub fn is_coming(&self, limit: Order) -> bool {
        let is_passed = |freed: &Freed| self.redirected.get(&freed.block).is_none_or(|order| *order <= limit);
        self.freed.iter().chain(&self.committing).any(is_passed)
            || self.quarantined.iter().any(|waiting| waiting.until <= limit)
            || !self.leaving.is_empty()
            || self.leaving_count > 0
    }

    /// The next search begins at the front, so that a block that was just released is soon used again.
    #[cfg(test)]
    pub fn rewind(&mut self) {
        self.cursor = 0;
    }

    /// Whether few blocks can be handed out now, but some would be if the journal's tail moved.
    pub fn is_short(&self) -> bool {
        self.is_waiting() && (self.free_count() as usize) < self.used.len() / 8
    }

    /// Whether few blocks can be handed out now, but a good part more once a checkpoint is made.
    pub fn gains_by_checkpoint(&self) -> bool {
        (self.free_count() as usize) < self.used.len() / 8 && self.freed.len() >= self.used.len() / 16
    }

    /// Blocks that can be handed out now.
    pub fn free_count(&self) -> u32 {
        self.used.len() as u32 - self.used_count
    }
}
