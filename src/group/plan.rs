//! What destaging does to one block: which physical blocks are written, which granules, and what the entry says
//! afterwards. Nothing here changes the table.
//!
//! Rules: a block that holds a journalled record's data, or that a kept generation needs, is never written in place; an entry
//! that did not change since the restart point gets its content into one physical block (a fold) before a new version is
//! begun.

use crate::{
    overlay::Piece,
    table::{Entry, Geometry, Table},
    testing::{Plant, planted},
    units::VolumeId,
};
use alloc::{collections::BTreeMap, vec::Vec};
use bytes::Bytes;

/// Granules of `from` that are copied to `to`, so that `to` holds all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fold {
    /// 0: zeroes.
    pub from: u32,
    pub to: u32,
    pub mask: u64,
}

/// What is new in a block.
pub(super) enum News {
    /// All of it reads as zeroes.
    Zeroes,
    /// All of it is in this physical block already.
    Redirected(u32),
    /// Pieces of data and zeroes, offsets within the volume.
    Pieces(Vec<Piece>),
}

/// See the module.
pub(super) struct Plan {
    pub volume: VolumeId,
    pub block: u32,
    /// The entry before.
    pub entry: Entry,
    pub news: News,
    pub fold: Option<Fold>,
    /// The entry after, but for the number of a new block.
    pub after: Entry,
    pub needs_new: bool,
    /// The latest block holds a journalled record's data, and so gives way to a new one.
    pub relocates: bool,
    /// Bytes of a granule.
    pub granule_size: u32,
    /// Granules that are written.
    pub write_mask: u64,
    /// Of these, which must first be read from where they are.
    pub base_mask: u64,
    /// The old latest block, if it is of no more use.
    pub freed: u32,
    /// What was read: granule → bytes.
    pub base: BTreeMap<u32, Bytes>,
    /// What was read for the fold.
    pub folded: BTreeMap<u32, Bytes>,
}

impl Plan {
    /// The plan for a block whose entry is settled.
    pub fn new(volume: VolumeId, table: &Table, block: u32, entry: Entry, news: News) -> Self {
        let (geometry, stamp) = (table.geometry(), table.stamp());
        let is_redirected = |block| table.blocks.is_redirected(block);
        let full = geometry.full_mask();
        let unchanged = entry.stamp < stamp;
        let keeps_snapshot = |entry: &Entry| {
            is_redirected(entry.snapshot) || (table.may_need(entry.stamp) && !planted(Plant::FoldIntoKept))
        };
        let fold = (unchanged && entry.mask != 0 && entry.mask != full).then(|| fold(&entry, full, keeps_snapshot));
        let before = if unchanged {
            let content = fold.map_or(if entry.mask == full { entry.latest } else { entry.snapshot }, |fold| fold.to);
            Entry { latest: 0, snapshot: content, mask: 0, ..entry }
        } else {
            entry
        };
        let mut plan = Self {
            volume,
            block,
            entry,
            news,
            fold,
            after: Entry { stamp, ..before },
            needs_new: false,
            relocates: false,
            granule_size: geometry.granule_size(),
            write_mask: 0,
            base_mask: 0,
            freed: 0,
            base: BTreeMap::new(),
            folded: BTreeMap::new(),
        };
        match &plan.news {
            News::Zeroes => {
                plan.after.latest = 0;
                plan.after.mask = if before.snapshot == 0 { 0 } else { full };
                plan.freed = before.latest;
            }
            News::Redirected(new) => {
                (plan.after.latest, plan.after.mask) = (*new, full);
                plan.freed = before.latest;
            }
            News::Pieces(pieces) => {
                let (touched, whole) = coverage(pieces, block, geometry);
                plan.relocates = before.latest != 0 && is_redirected(before.latest);
                plan.needs_new = before.latest == 0 || plan.relocates;
                let more = if planted(Plant::MaskTooWide) { touched << 1 & full } else { 0 };
                plan.after.mask = before.mask | touched | more;
                plan.write_mask = touched;
                plan.base_mask = touched & !whole;
                if plan.needs_new {
                    // The new block must hold everything that the mask says is in it.
                    plan.write_mask |= before.mask;
                    plan.base_mask |= before.mask & !whole;
                }
                if plan.relocates {
                    plan.freed = before.latest;
                }
            }
        }
        plan
    }

    /// What must be read first, in runs that lie together: physical block, first granule, count.
    pub fn base_runs(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        let granules = runs(self.base_mask).flat_map(|(first, count)| first..first + count);
        let mut granules = granules.map(|granule| (self.source(granule), granule)).peekable();
        core::iter::from_fn(move || {
            let (source, first) = granules.next()?;
            let mut count = 1;
            while granules.next_if_eq(&(source, first + count)).is_some() {
                count += 1;
            }
            Some((source, first, count))
        })
    }

    /// Where a granule is before: physical block, 0 for zeroes.
    fn source(&self, granule: u32) -> u32 {
        if self.entry.mask >> granule & 1 == 1 { self.entry.latest } else { self.entry.snapshot }
    }
}

fn fold(entry: &Entry, full: u64, keeps_snapshot: impl Fn(&Entry) -> bool) -> Fold {
    let into_snapshot =
        entry.snapshot != 0 && entry.mask.count_ones() * 2 < full.count_ones() && !keeps_snapshot(entry);
    if into_snapshot {
        Fold { from: entry.latest, to: entry.snapshot, mask: entry.mask }
    } else {
        Fold { from: entry.snapshot, to: entry.latest, mask: full & !entry.mask }
    }
}

/// Which granules the pieces touch, and which they cover wholly.
fn coverage(pieces: &[Piece], block: u32, geometry: &Geometry) -> (u64, u64) {
    let granule = u64::from(geometry.granule_size());
    let start = u64::from(block) * u64::from(geometry.block_size);
    let mut covered = [0u64; 64];
    for piece in pieces {
        let (from, to) = (piece.offset - start, piece.end - start);
        for index in from / granule..to.div_ceil(granule) {
            let part = to.min((index + 1) * granule) - from.max(index * granule);
            covered[index as usize] += part;
        }
    }
    let mask = |holds: &dyn Fn(u64) -> bool| {
        covered.iter().enumerate().fold(0, |mask, (index, bytes)| mask | u64::from(holds(*bytes)) << index)
    };
    (mask(&|bytes| bytes > 0), mask(&|bytes| bytes == granule))
}

/// Runs of set bits: first and count.
pub(super) fn runs(mask: u64) -> impl Iterator<Item = (u32, u32)> {
    let mut rest = mask;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let count = (!(rest >> first)).trailing_zeros().min(64 - first);
        let run = if count == 64 { u64::MAX } else { ((1 << count) - 1) << first };
        rest &= !run;
        Some((first, count))
    })
}
