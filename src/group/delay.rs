//! The apply policy `delayed`: a secondary leaves records in its journal until a restart point behind them is there durably.
//! Of several writes to one place only the last is then destaged, and a promotion to the restart point has nothing to take
//! back. The journal's room is the limit: when half of it is waiting, the interval that is open is applied as under the
//! policy `snapshot`.

use super::Group;
use crate::{
    format::record::Record,
    output::Event,
    overlay::{Overlay, Piece},
    pair::{ApplyPolicy, Role},
    units::{Order, VolumeId},
};
use alloc::{collections::BTreeMap, vec::Vec};

/// What is held back, and what of it counts.
#[derive(Default)]
pub(super) struct Delay {
    /// The journal was too full at this entry to hold the interval that it belongs to.
    overflow: Option<Order>,
    /// For the entries up to this one, that are being destaged: the newest of each place.
    newest: Option<(Order, BTreeMap<VolumeId, Overlay>)>,
}

impl Group {
    /// Whether entries are being held back for want of a restart point.
    pub(super) fn is_delaying(&self) -> bool {
        let copies = self.stream.copying || self.destage.stream.copying;
        self.pair.role == Role::Secondary
            && self.pair.policy == ApplyPolicy::Delayed
            && !copies
            && !self.hurries()
            && self.delay.overflow.is_none()
    }

    /// The last entry that may be destaged now.
    pub(super) fn destage_limit(&self) -> Order {
        if !self.is_delaying() {
            return self.journal.last();
        }
        let point = self.stream.restart_point.as_ref().map_or(Order(0), |point| point.order);
        if point <= self.durable { point.max(self.applied) } else { self.applied }
    }

    /// Gives up holding back before the journal is full; holds back again from the next restart point on.
    pub(super) fn check_delay(&mut self) {
        let newest_point = self.stream.restart_point.as_ref().map_or(Order(0), |point| point.order);
        // One that is not durable releases nothing, and in a full journal it never will be.
        let released = if newest_point <= self.durable { newest_point } else { Order(0) };
        self.delay.overflow.take_if(|order| *order <= released);
        // What is up to the restart point is not held back.
        let holds = self.is_delaying() && self.journal.last() > released;
        if holds && self.journal.holds_more_than(4) {
            self.delay.overflow = Some(self.journal.last());
            self.event(Event::DelayGivenUp);
        }
    }

    /// Whether the open interval is applied because the journal cannot hold it.
    pub(super) fn has_given_up_delay(&self) -> bool {
        self.pair.policy == ApplyPolicy::Delayed && self.delay.overflow.is_some()
    }

    /// Before a cycle of destaging up to `limit`: finds out what of it counts.
    pub(super) fn find_newest(&mut self, limit: Order) {
        if !self.is_delaying() {
            self.delay.newest = None;
            return;
        }
        // What counts at a restart point that is kept may be overwritten after it.
        let mut waiting = self.journal.after(self.applied).take_while(|(order, _)| *order <= limit);
        let limit = waiting.find(|(_, entry)| entry.record.kind.is_boundary()).map_or(limit, |(order, _)| order);
        if self.delay.newest.as_ref().is_none_or(|(until, _)| *until != limit) {
            let mut overlays: BTreeMap<VolumeId, Overlay> = BTreeMap::new();
            for (order, entry) in self.journal.after(self.applied).take_while(|(order, _)| *order <= limit) {
                if entry.record.kind.changes_data() && !entry.is_void {
                    overlays.entry(entry.record.volume).or_default().insert(
                        entry.record.offset,
                        entry.record.end(),
                        order,
                    );
                }
            }
            self.delay.newest = Some((limit, overlays));
        }
    }

    /// The parts of an entry's range that are to be destaged.
    pub(super) fn newest_parts(&self, order: Order, record: &Record) -> Vec<Piece> {
        let (offset, end) = (record.offset, record.end());
        let Some((_, overlays)) = &self.delay.newest else {
            return alloc::vec![Piece { offset, end, order }];
        };
        let newest = overlays.get(&record.volume);
        newest.map_or_else(Vec::new, |newest| newest.pieces(offset, end).filter(|piece| piece.order == order).collect())
    }

    /// A cycle is done; what is known of its interval is needed no more when all of it is.
    pub(super) fn delay_applied(&mut self) {
        let applied = self.applied;
        self.delay.newest.take_if(|(until, _)| *until <= applied);
    }
}
