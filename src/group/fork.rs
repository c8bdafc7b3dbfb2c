//! What a former primary has that is no part of the primary's history: it lists where, so that only that is compared and copied.
//!
//! The list may name more than differs, never less. It comes from the journal, if that has everything since the last common record.
//! It need not: what the other node had acknowledged is not kept for it. If that record is a restart point whose state the tables
//! have, they tell what is not as it was then; what is again need not be listed, because it was the same at the other node, which
//! lists what it has changed since itself. From an older restart point the tables tell too little: of a hole that was written and
//! discarded nothing is left, and the last common record may lie between the two.

use super::{Group, stream::merge};
use crate::{
    format::{
        message::{Others, RANGE_COUNT_MAX, Range, encode_ranges},
        record::Kind,
    },
    pair::PairState,
    stream_state::Origin,
    testing::{Plant, planted},
    units::{Order, Position},
};
use alloc::{format, string::String, vec::Vec};

/// Most ranges that are listed: where there are more, some of what lies between them is listed too.
const LISTED_COUNT_MAX: usize = 16 * RANGE_COUNT_MAX;
/// The first such step, in bytes.
const COARSE_SIZE: u64 = 64 << 10;

/// Ranges, of which there are not too many.
#[derive(Default)]
struct List {
    ranges: Vec<Range>,
    /// They begin and end at multiples of this; 0: anywhere.
    unit: u64,
}

impl List {
    fn add(&mut self, range: Range) {
        let range = widened(range, self.unit);
        match self.ranges.last_mut() {
            // A volume that was written from its start to its end is one range, not millions.
            Some(last) if last.volume == range.volume && last.offset.saturating_add(last.size) == range.offset => {
                last.size = last.size.saturating_add(range.size);
            }
            _ => self.ranges.push(range),
        }
        if self.ranges.len() >= 2 * LISTED_COUNT_MAX {
            self.condense();
        }
    }

    fn condense(&mut self) {
        merge(&mut self.ranges);
        while self.ranges.len() > LISTED_COUNT_MAX {
            self.unit = (2 * self.unit).max(COARSE_SIZE);
            self.ranges.iter_mut().for_each(|range| *range = widened(*range, self.unit));
            merge(&mut self.ranges);
        }
    }
}

fn widened(range: Range, unit: u64) -> Range {
    if unit == 0 {
        return range;
    }
    let (first, end) = (range.offset / unit, range.offset.saturating_add(range.size).div_ceil(unit));
    Range { offset: first * unit, size: (end - first).saturating_mul(unit), ..range }
}

impl Group {
    /// On the secondary: tells the primary what it has that is not part of the primary's history.
    /// After its own greeting, because the primary must know of the fork first.
    pub(super) fn tell_fork(&mut self) {
        if self.peer.greeting_due {
            return;
        }
        let Some(greeting) = self.peer.unanswered.take().filter(|_| !self.peer.has_listed) else {
            return;
        };
        // The primary knows as well what both have, and waits for the list.
        let fork = self.common(&greeting);
        if fork == Position::default() || self.stream.last.seq <= fork.seq {
            return;
        }
        self.peer.has_listed = true;
        let Some(listed) = self.written_after(fork) else {
            return self.send_message(Kind::ForkRanges, encode_ranges(&[], Others::Any));
        };
        let mut left = listed.as_slice();
        while left.len() > RANGE_COUNT_MAX {
            let (now, later) = left.split_at(RANGE_COUNT_MAX);
            self.send_message(Kind::ForkRanges, encode_ranges(now, Others::Follow));
            left = later;
        }
        self.send_message(Kind::ForkRanges, encode_ranges(left, Others::Same));
    }

    /// Where this node may not be as it was at the last common record; `None` if it is not known.
    pub(super) fn written_after(&self, fork: Position) -> Option<Vec<Range>> {
        if self.stream.copying {
            return None;
        }
        let mut list = List::default();
        let from = if self.covers(fork.seq) {
            self.journal.order_of(fork.seq)
        } else {
            let point = self.restart_point_at(fork)?;
            for (id, volume) in &self.volumes {
                let size = u64::from(volume.table.geometry().block_size);
                let blocks = volume.table.changed_since(point)?.filter(|_| !planted(Plant::ForkListedShort));
                blocks.for_each(|block| list.add(Range { volume: *id, offset: u64::from(block) * size, size }));
            }
            // What is not in the tables yet is in the journal.
            self.applied
        };
        self.changes_after(from).for_each(|range| list.add(range));
        // What a verification has found, and was to be copied: maybe this node is the one that has it right.
        for (id, volume) in &self.volumes {
            let size = u64::from(volume.table.geometry().block_size);
            let mut next = volume.table.next_dirty(0);
            while let Some((block, _)) = next {
                list.add(Range { volume: *id, offset: u64::from(block) * size, size });
                next = volume.table.next_dirty(block + 1);
            }
        }
        list.condense();
        for range in &mut list.ranges {
            let size = self.volumes.get(&range.volume).map_or(0, |volume| volume.spec.size);
            range.offset = range.offset.min(size);
            range.size = range.size.min(size - range.offset);
        }
        Some(list.ranges)
    }

    /// The restart point at a place, if the tables still have its state.
    fn restart_point_at(&self, at: Position) -> Option<Order> {
        let last = self.stream.restart_point.iter().map(|point| (point.order, point.info));
        let older = self.stream.older.iter().filter(|point| point.origin == Origin::RestartPoint);
        let mut points = older.map(|point| (point.order, point.info)).chain(last);
        let (order, _) = points.find(|(_, info)| info.is_declared() && info.at == at)?;
        // Of a volume that was made since, in the place of one that is gone, the tables know nothing from before; what the other node
        // has there may be the former one.
        self.volumes.values().all(|volume| volume.table.has_from_before(order)).then_some(order)
    }

    /// On the primary: what the peer has that is not part of the history must be copied over.
    pub(super) fn take_ranges(&mut self, ranges: Vec<Range>, others: Others) -> Result<(), String> {
        let Some(fork) = self.peer.fork else {
            return Ok(());
        };
        let known = if self.is_tracking() { fork.seq >= self.pair.synced.seq } else { self.covers(fork.seq) };
        if others == Others::Any || !known || self.pair.state == PairState::InitialCopy {
            self.peer.fork = None;
            self.prepare_copy(true);
            return Ok(());
        }
        for Range { volume: id, offset, size } in &ranges {
            if let Some(volume) = self.volumes.get(id)
                && offset.saturating_add(*size) > volume.spec.size
            {
                return Err(format!(
                    "The peer has written {size} bytes at {offset} of volume {id}, behind its end; if a resize was \
                     interrupted, repeat it, else delete the pair and create it anew"
                ));
            }
        }
        self.mark_dirty(ranges);
        if others == Others::Follow {
            self.peer.list_count += 1;
            let is_possible = self.peer.list_count as usize <= LISTED_COUNT_MAX / RANGE_COUNT_MAX;
            return if is_possible { Ok(()) } else { Err("The peer's list of ranges has no end".into()) };
        }
        self.peer.fork = None;
        if !self.is_tracking() {
            self.note_lacking(fork);
        }
        self.prepare_copy(false);
        Ok(())
    }

    /// On the primary: whether what the peer has beside the history is still to be heard, so that nothing is sent to it.
    pub fn waits_for_list(&self) -> bool {
        self.peer.fork.is_some()
    }

    /// On the primary, which has all in the journal: the peer lacks what comes after this record.
    pub(super) fn note_lacking(&mut self, after: Position) {
        let order = self.journal.order_of(after.seq);
        // Until the bitmap is durable the journal keeps all that is to be in it: a crash leads back there.
        self.peer.lacks_after(order);
        self.pair.synced = after;
        self.mark_live_dirty(order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VolumeId;

    #[test]
    fn what_is_too_much_is_listed_more_coarsely_and_wholly() {
        for (count, step) in [(1_000, 1 << 20), (700_000, 128 << 10), (700_000, 17 << 20)] {
            let mut list = List::default();
            // In no order, and in two volumes.
            let places = |number: u64| {
                let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (2 * count);
                (VolumeId((place % 2) as u16), place / 2 * step)
            };
            let all = || (0..count).map(places).map(|(volume, offset)| Range { volume, offset, size: 4096 });
            all().for_each(|range| list.add(range));
            list.condense();
            assert!(list.ranges.len() <= LISTED_COUNT_MAX, "{} ranges", list.ranges.len());
            assert_eq!(list.unit == 0, count == 1_000);
            let is_listed = |one: Range| {
                let at = list.ranges.partition_point(|range| (range.volume, range.offset) <= (one.volume, one.offset));
                let found = at.checked_sub(1).map(|at| list.ranges[at]);
                found.is_some_and(|found| {
                    found.volume == one.volume && found.offset + found.size >= one.offset + one.size
                })
            };
            assert!(all().all(is_listed), "{count} ranges, {step} bytes apart");
        }
    }
}
