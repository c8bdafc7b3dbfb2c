//! Where the newest data is that the table does not know yet: ranges of a volume, each with the journal entry that
//! wrote it last.

use crate::units::Order;
use alloc::{collections::BTreeMap, vec::Vec};

/// A range whose newest data is an entry's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte in the volume.
    pub offset: u64,
    /// First byte after it.
    pub end: u64,
    /// The entry.
    pub order: Order,
}

/// See the module. Ranges do not overlap.
#[derive(Default)]
pub struct Overlay {
    pieces: BTreeMap<u64, (u64, Order)>,
}

impl Overlay {
    /// A range was written by `order`, which is newer than all before.
    pub fn insert(&mut self, offset: u64, end: u64, order: Order) {
        self.cut(offset, end, |_| true);
        self.pieces.insert(offset, (end, order));
    }

    /// Forgets what entries up to `order` wrote in a range: the table has it now.
    pub fn remove_applied(&mut self, offset: u64, end: u64, order: Order) {
        self.cut(offset, end, |found| found <= order);
    }

    /// The pieces in a range, cut to it, in order of their offset.
    pub fn pieces(&self, offset: u64, end: u64) -> impl Iterator<Item = Piece> + '_ {
        let before = self.pieces.range(..offset).next_back().filter(move |(_, (stop, _))| *stop > offset);
        let within = self.pieces.range(offset..end.max(offset));
        before.into_iter().chain(within).map(move |(start, (stop, order))| Piece {
            offset: (*start).max(offset),
            end: (*stop).min(end),
            order: *order,
        })
    }

    /// Everything.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }

    fn cut(&mut self, offset: u64, end: u64, which: impl Fn(Order) -> bool) {
        let found: Vec<Piece> = self.pieces(offset, end).filter(|piece| which(piece.order)).collect();
        for piece in found {
            // The stored piece may reach beyond the cut on either side.
            let (start, (stop, order)) = match self.pieces.range(..=piece.offset).next_back() {
                Some((start, value)) => (*start, *value),
                None => continue,
            };
            self.pieces.remove(&start);
            if start < piece.offset {
                self.pieces.insert(start, (piece.offset, order));
            }
            if stop > piece.end {
                self.pieces.insert(piece.end, (stop, order));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain array of the newest entry of each byte.
        #[test]
        fn overlay_equals_an_array(steps in prop::collection::vec((0u64..64, 1u64..32, any::<bool>()), 1..60)) {
            let (mut overlay, mut model) = (Overlay::default(), [0u64; 96]);
            for (index, (offset, size, insert)) in steps.into_iter().enumerate() {
                let (order, end) = (index as u64 + 1, offset + size);
                if insert {
                    overlay.insert(offset, end, Order(order));
                    model[offset as usize..end as usize].fill(order);
                } else {
                    let limit = order / 2;
                    overlay.remove_applied(offset, end, Order(limit));
                    model[offset as usize..end as usize].iter_mut().filter(|o| **o <= limit).for_each(|o| *o = 0);
                }
                let mut seen = [0u64; 96];
                for piece in overlay.pieces(3, 90) {
                    for byte in piece.offset..piece.end {
                        prop_assert_eq!(core::mem::replace(&mut seen[byte as usize], piece.order.0), 0);
                    }
                }
                prop_assert_eq!(&seen[3..90], &model[3..90]);
            }
        }
    }
}
