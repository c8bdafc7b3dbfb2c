//! Comparing what the two nodes hold by digests, so that what is equal need not be sent.
//!
//! The primary sends the digests of a range at a place in the stream; the secondary compares them with what it holds there
//! and tells which parts differ. The digests may be of newer content than their place, by records that follow. If they say
//! "equal" all the same, the secondary holds already what those records bring, and holds it after them too. If they say
//! "differs", the range is copied without need, or asked about again.

use super::{
    Group,
    read::{Reader, join},
};
use crate::{
    format::{
        message::{Digests, Others, RANGE_COUNT_MAX, Range, encode_ranges, parse_ranges},
        record::{Kind, Record},
    },
    pair::Role,
    table::ReadCount,
    testing::{Plant, planted},
    units::VolumeId,
};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use bytes::Bytes;

/// Questions that are not answered, at most, and the bytes that they are about: each node reads those into memory.
const ASKED_COUNT_MAX: usize = 1024;
const ASKED_SIZE_MAX: u64 = 64 << 20;
/// Bytes that one question is about at most: with digests, and where the primary holds nothing.
const SIZE_MAX: u64 = 4 << 20;
pub(super) const HOLE_SIZE_MAX: u64 = 64 << 20;

/// On the secondary: the ranges that are being read to be compared.
#[derive(Default)]
pub(super) struct Comparisons(BTreeMap<ReadCount, (Record, Digests)>);

impl Comparisons {
    /// Nobody waits for their outcome any more.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Group {
    /// How many questions about a block each may wait for an answer.
    pub(super) fn asked_max(&self) -> usize {
        let sizes = self.volumes.values().map(|volume| u64::from(volume.table.geometry().block_size));
        ((ASKED_SIZE_MAX / sizes.max().unwrap_or(1)) as usize).min(ASKED_COUNT_MAX)
    }

    /// On the primary: asks which parts of a range differ.
    pub(super) fn ask(&mut self, volume: VolumeId, offset: u64, size: u64, digests: &Digests) {
        self.send_about(Kind::Compare, Range { volume, offset, size }, digests.encode());
    }

    /// On the secondary: the primary asks.
    pub(super) fn compare(&mut self, record: Record, payload: &Bytes) -> Result<(), String> {
        if self.pair.role != Role::Secondary || !self.peer.greeted {
            return Err(format!("A comparison came, but this node is {} and sent no invitation", self.pair.role));
        }
        let digests = Digests::parse(payload, record.size).map_err(|error| format!("{error}"))?;
        let most = if digests.unit == 0 { HOLE_SIZE_MAX } else { SIZE_MAX };
        let comparisons = &self.comparisons.0;
        let asked_size: u64 = comparisons.values().map(|(record, _)| record.size).sum();
        let too_many = comparisons.len() >= ASKED_COUNT_MAX || asked_size > ASKED_SIZE_MAX;
        if record.size == 0 || record.size > most || too_many {
            return Err(format!("A comparison of {} bytes came, or too many at once", record.size));
        }
        self.check_range(&record)?;
        let (volume, offset, size) = (record.volume, record.offset, record.size);
        if digests.unit == 0 {
            let held = self.held_ranges(volume, offset, size);
            self.tell_differing(&record, &held);
            return Ok(());
        }
        let number = self.reads.next();
        self.comparisons.0.insert(number, (record, digests));
        self.read(Reader::Compare(number), volume, offset, size);
        Ok(())
    }

    /// The range was read (`None`: it could not be).
    pub(super) fn compare_read(&mut self, number: ReadCount, data: Option<Vec<Bytes>>) {
        let Some((record, theirs)) = self.comparisons.0.remove(&number) else {
            return;
        };
        let unit = u64::from(theirs.unit);
        let ours = data.map(|parts| Digests::of(&join(&parts), theirs.unit).digests);
        let mut ranges: Vec<Range> = Vec::new();
        for (index, digest) in (0u64..).zip(&theirs.digests) {
            // What this node cannot read it does not have.
            let is_equal = ours.as_ref().and_then(|ours| ours.get(index as usize)) == Some(digest);
            if is_equal || planted(Plant::DifferenceNotSeen) {
                continue;
            }
            let offset = record.offset + index * unit;
            let size = unit.min(record.end() - offset);
            match ranges.last_mut() {
                Some(last) if last.offset + last.size == offset => last.size += size,
                _ => ranges.push(Range { volume: record.volume, offset, size }),
            }
        }
        self.tell_differing(&record, &ranges);
    }

    fn tell_differing(&mut self, asked: &Record, ranges: &[Range]) {
        let (listed, others) =
            if ranges.len() <= RANGE_COUNT_MAX { (ranges, Others::Same) } else { (&[][..], Others::Any) };
        let range = Range { volume: asked.volume, offset: asked.offset, size: asked.size };
        self.send_about(Kind::Differs, range, encode_ranges(listed, others));
    }

    /// On the primary: the answer. One that nobody waits for is left alone.
    pub(super) fn take_answer(&mut self, record: &Record, payload: &Bytes) -> Result<(), String> {
        let whole = Range { volume: record.volume, offset: record.offset, size: record.size };
        let ranges = match parse_ranges(payload).map_err(|error| format!("{error}"))? {
            (ranges, Others::Same) => ranges,
            _ => alloc::vec![whole],
        };
        let within = |range: &Range| {
            range.volume == whole.volume && range.offset >= whole.offset && range.offset + range.size <= record.end()
        };
        if !ranges.iter().all(within) {
            return Err(format!("The answer about {} bytes at {} is about something else", whole.size, whole.offset));
        }
        if !self.copy_compared(record.volume, record.offset, &ranges) {
            self.verify_compared(&whole, &ranges);
        }
        Ok(())
    }
}
