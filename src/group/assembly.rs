//! What destaging writes for one block: zeroes and payloads as they lie in memory where that is possible, else put together.

use super::{
    Group,
    cycle::Cycle,
    plan::{News, Plan, runs},
};
use crate::{
    buffer::{ALIGNMENT, AlignedBuffer, is_aligned, zeroes},
    overlay::Piece,
    units::VolumeId,
};
use alloc::vec::Vec;
use bytes::Bytes;

impl Group {
    /// How many bytes a plan takes in memory at most while it is carried out. Zeroes take none.
    pub(super) fn held_size(&self, plan: &Plan) -> u64 {
        let size = |mask: u64| u64::from(mask.count_ones()) * u64::from(plan.granule_size);
        let folded = plan.fold.filter(|fold| fold.from != 0).map_or(0, |fold| size(fold.mask));
        let News::Pieces(pieces) = &plan.news else { return folded };
        let is_aligned = |piece: &Piece| (piece.offset | piece.end).is_multiple_of(ALIGNMENT as u64);
        let zeroes = |piece: &Piece| self.journal.entry(piece.order).is_some_and(|entry| entry.record.kind.zeroes());
        let is_lent = plan.base_mask == 0 && pieces.iter().all(|piece| zeroes(piece) && is_aligned(piece));
        let put_together = if is_lent { 0 } else { 2 * size(plan.write_mask) };
        folded + size(plan.base_mask) + put_together
    }

    /// Adds what a plan writes to its pool: offset and bytes.
    pub(super) fn plan_writes(&self, plan: &Plan, cycle: &Cycle, writes: &mut Vec<(VolumeId, u64, Bytes)>) {
        let Some(volume) = self.volumes.get(&plan.volume) else {
            return;
        };
        let geometry = volume.table.geometry();
        let granule = geometry.granule_size() as usize;
        let at = |block: u32, first: u32| geometry.offset_of(block) + u64::from(first) * granule as u64;
        if let Some(fold) = &plan.fold {
            for (first, count) in runs(fold.mask) {
                let place = at(fold.to, first);
                match plan.folded.get(&first) {
                    Some(bytes) => writes.push((plan.volume, place, bytes.clone())),
                    None => writes.extend(with_places(place, zeroes(count as usize * granule), plan.volume)),
                }
            }
        }
        let News::Pieces(pieces) = &plan.news else {
            return;
        };
        let start = u64::from(plan.block) * u64::from(geometry.block_size);
        for (first, count) in runs(plan.write_mask) {
            let (place, size) = (at(plan.after.latest, first), count as usize * granule);
            let run_start = start + u64::from(first) * granule as u64;
            if let Some(lent) = self.lent_pieces(pieces, run_start, size, cycle) {
                writes.extend(with_places(place, lent.into_iter(), plan.volume));
                continue;
            }
            let mut buffer = AlignedBuffer::new(size);
            let bytes = buffer.as_mut_slice();
            for index in first..first + count {
                if let Some(base) = plan.base.get(&index) {
                    let from = (index - first) as usize * granule;
                    bytes[from..from + granule].copy_from_slice(base);
                }
            }
            let run_end = run_start + bytes.len() as u64;
            for piece in pieces {
                let (from, to) = (piece.offset.max(run_start), piece.end.min(run_end));
                if from >= to {
                    continue;
                }
                let target = &mut bytes[(from - run_start) as usize..(to - run_start) as usize];
                self.fill(piece, from, target, plan.volume, cycle);
            }
            writes.push((plan.volume, place, buffer.freeze()));
        }
    }

    /// The payloads and zeroes of a run as they lie in memory, one behind the other; `None` if the run has anything else, or
    /// something that direct I/O does not take as it is.
    fn lent_pieces(&self, pieces: &[Piece], start: u64, size: usize, cycle: &Cycle) -> Option<Vec<Bytes>> {
        let (end, mut at, mut lent) = (start + size as u64, start, Vec::new());
        for piece in pieces.iter().filter(|piece| piece.end > start && piece.offset < end) {
            let (from, to) = (piece.offset.max(start), piece.end.min(end));
            let record = &self.journal.entry(piece.order)?.record;
            if from != at || !(to - from).is_multiple_of(ALIGNMENT as u64) {
                return None;
            }
            at = to;
            if record.kind.zeroes() {
                lent.extend(zeroes((to - from) as usize));
                continue;
            }
            let payload = cycle.payloads.get(&piece.order)?;
            let bytes = payload.slice((from - record.offset) as usize..(to - record.offset) as usize);
            if !is_aligned(&bytes) {
                return None;
            }
            lent.push(bytes);
        }
        (at == end).then_some(lent)
    }

    /// Puts an entry's data from `from` on into `target`.
    fn fill(&self, piece: &Piece, from: u64, target: &mut [u8], volume: VolumeId, cycle: &Cycle) {
        let Some(entry) = self.journal.entry(piece.order) else {
            return;
        };
        if entry.record.kind.zeroes() {
            return target.fill(0);
        }
        let start = (from - entry.record.offset) as usize;
        if let Some(payload) = cycle.payloads.get(&piece.order) {
            target.copy_from_slice(&payload[start..start + target.len()]);
        } else if let Some(part) = cycle.parts.get(&(volume, piece.offset)) {
            let start = (from - piece.offset) as usize;
            target.copy_from_slice(&part[start..start + target.len()]);
        } else {
            // read_cycle has held or read every payload and part of the cycle.
            unreachable!("entry {} of a cycle has no data", piece.order);
        }
    }
}

/// Pieces that lie one behind the other in a pool, each with its offset.
fn with_places(
    place: u64,
    pieces: impl Iterator<Item = Bytes>,
    volume: VolumeId,
) -> impl Iterator<Item = (VolumeId, u64, Bytes)> {
    pieces.scan(place, move |at, bytes| {
        let offset = *at;
        *at += bytes.len() as u64;
        Some((volume, offset, bytes))
    })
}
