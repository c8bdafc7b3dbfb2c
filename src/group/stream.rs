//! The primary's side of the stream: entries are sent in order as soon as they are sealed, from memory where they still
//! are, else read again from their place; acknowledgements move the journal's tail.
//!
//! The stream is *anchored* when the journal (with the bitmap's help) holds everything that the peer lacks. While it is
//! not, every change is noted in the bitmap and the journal does not wait for the peer.

use super::{Group, ahead::ReadAhead};
use crate::{
    format::{
        message::{Greeting, Range},
        record::{Kind, Record},
    },
    output::{Event, Frame, Output},
    pair::{Cause, PairState, Role},
    testing::{Plant, planted},
    units::{FrameCount, Now, Order, Position, Seq, VolumeId},
};
use alloc::{collections::VecDeque, vec::Vec};
use bytes::Bytes;

/// No peer has this record: whoever comes is copied anew.
const UNKNOWN: Position = Position { epoch: crate::units::Epoch(u64::MAX), seq: Seq(u64::MAX) };

/// Bytes of journalled frames that the peer has not said to be durable, at most; one frame may go beyond. A peer whose pool and journal
/// are full holds them in memory. Five round trips of a line of 1 Gbit/s and 100 ms.
const SENT_SIZE_MAX: u64 = 64 << 20;

/// A journalled frame that was sent in this session and is not acknowledged.
pub(super) enum Sent {
    Record(Order),
    Copy { volume: VolumeId, block: u32, bits: u16, newest: Order },
    CopyBegin,
    Zeroes,
    CopyEnd,
}

/// What is known of the peer.
#[derive(Default)]
pub(super) struct Peer {
    /// A session is up.
    pub(super) connected: bool,
    /// The peer's greeting of this session was understood.
    pub(super) greeted: bool,
    /// Records are being sent.
    streaming: bool,
    /// See the module.
    pub(super) anchored: bool,
    /// What a copy brings instead of records: entries up to here are not there before it has ended. None in duplex.
    owed: Order,
    /// A checkpoint has made durable what was dirty when tracking began.
    tracking_durable: bool,
    /// Bytes that the carrier can take.
    pub(super) credit: u64,
    /// The last entry that was sent.
    cursor: Order,
    /// Entries that are being read to be sent.
    pub(super) ahead: ReadAhead,
    /// Journalled frames that are not acknowledged, each with its size, and their size together.
    sent: VecDeque<(Sent, u64)>,
    sent_size: u64,
    acknowledged_count: u64,
    /// The last entry that is durable at the peer.
    acknowledged: Order,
    /// The last entry that this peer itself has said to be durable there; 0: none yet.
    confirmed: Order,
    /// Journalled frames received in this session, and where the unacknowledged ones are.
    received: u64,
    received_marks: VecDeque<(Order, u64)>,
    /// On the secondary: the last record that the primary had when it greeted.
    pub(super) primary_head: Position,
    /// The last restart point that is durable at the peer.
    pub(super) restart_point: Option<crate::units::Generation>,
    /// The primary waits for the peer's list of what it has after this record, which is not part of the history.
    pub(super) fork: Option<Position>,
    /// So many messages of that list have come that do not end it.
    pub(super) list_count: u32,
    /// On the secondary: the list of this session was sent.
    pub(super) has_listed: bool,
    /// How many of the frames that void the peer's old content are not acknowledged; a copy that is interrupted
    /// before it is 0 begins anew.
    pub(super) unvoided: u64,
    /// The peer said that it never held anything.
    pub(super) is_blank: bool,
    /// Copies do not ask first what differs.
    pub(super) sends_all: bool,
    /// The greeting of this session is still to be sent.
    pub(super) greeting_due: bool,
    /// The primary's greeting, until it is answered with what this node has beyond it.
    pub(super) unanswered: Option<Greeting>,
}

impl Peer {
    /// When a group is opened: nothing after `order` is known to be at the peer.
    pub(super) fn starting_at(order: Order, anchored: bool) -> Self {
        Self { acknowledged: order, cursor: order, anchored, ..Self::default() }
    }

    /// The last entry that is durable at the peer.
    pub(super) fn acknowledged(&self) -> Order {
        self.acknowledged
    }

    /// Whether an entry is durable at the peer.
    pub(super) fn has(&self, order: Order) -> bool {
        order <= self.acknowledged && order > self.owed
    }

    /// A copy brings what there is up to here.
    pub(super) fn owe(&mut self, order: Order) {
        self.owed = self.owed.max(order);
    }

    /// Whether records are being sent.
    pub(super) fn is_streaming(&self) -> bool {
        self.streaming
    }

    /// Whether everything that is dirty is durably so.
    pub(super) fn is_tracking_durable(&self) -> bool {
        self.tracking_durable
    }

    /// A checkpoint that began while changes were noted is durable.
    pub(super) fn tracking_is_durable(&mut self) {
        self.tracking_durable = true;
    }

    /// How many frames that void the peer's content are on their way.
    pub(super) fn unacknowledged_zeroes(&self) -> u64 {
        self.sent.iter().filter(|(sent, _)| matches!(sent, Sent::Zeroes)).count() as u64
    }

    /// The last entry that was sent.
    pub(super) fn cursor(&self) -> Order {
        self.cursor
    }

    /// A journalled frame came in and is the entry `order`.
    pub(super) fn received(&mut self, order: Order) {
        self.received += 1;
        self.received_marks.push_back((order, self.received));
    }

    /// How many received frames are durable now, if there are more than before.
    pub(super) fn frames_durable(&mut self, durable: Order) -> Option<FrameCount> {
        let mut count = None;
        while let Some((_, number)) = self.received_marks.pop_front_if(|(order, _)| *order <= durable) {
            count = Some(FrameCount(number));
        }
        count
    }

    fn forget_sent(&mut self) {
        self.sent.clear();
        self.sent_size = 0;
    }

    /// The session is over.
    pub(super) fn forget_session(&mut self) {
        self.connected = false;
        self.greeted = false;
        self.streaming = false;
        self.credit = 0;
        self.ahead.clear();
        self.forget_sent();
        self.acknowledged_count = 0;
        self.received = 0;
        self.received_marks.clear();
        self.fork = None;
        (self.list_count, self.has_listed) = (0, false);
        self.greeting_due = false;
        self.unanswered = None;
    }

    /// Starts sending after `order`.
    pub(super) fn stream_after(&mut self, order: Order) {
        self.cursor = order;
        self.acknowledged = order;
        self.confirmed = self.confirmed.min(order);
        self.streaming = true;
        self.anchored = true;
        self.ahead.clear();
    }

    /// It has turned out to lack what comes after `order`.
    pub(super) fn lacks_after(&mut self, order: Order) {
        self.acknowledged = self.acknowledged.min(order);
    }

    /// Of a peer in a new epoch nothing is known before it has said something.
    pub(super) fn forget_confirmed(&mut self) {
        self.confirmed = Order(0);
    }

    /// Nothing is sent until the peer has greeted again; the anchor stays.
    pub(super) fn stop_streaming(&mut self) {
        self.streaming = false;
    }

    /// Nothing is sent any more; changes are noted instead.
    pub(super) fn lose_anchor(&mut self) {
        self.fork = None;
        self.streaming = false;
        self.ahead.clear();
        self.anchored = false;
        self.tracking_durable = false;
        self.forget_sent();
    }
}

impl Group {
    /// Whether changes are noted in the bitmap.
    pub(super) fn is_tracking(&self) -> bool {
        self.pair.peer.is_some() && self.pair.role == Role::Primary && !self.peer.anchored
    }

    /// The last entry that the journal may let go of for the peer's sake.
    pub(super) fn acknowledged_limit(&self) -> Order {
        let bound = self.pair.peer.is_some()
            && self.pair.role == Role::Primary
            && (self.peer.anchored || !self.peer.tracking_durable);
        if bound { self.peer.acknowledged } else { Order(u64::MAX) }
    }

    /// Entries up to here no peer will ever ask for: there is none, or it has them, and what it would lack if it were promoted to the
    /// last restart point comes later.
    pub(super) fn unneeded_limit(&self) -> Order {
        let point = self.stream.restart_point.as_ref().filter(|point| point.info.is_declared());
        match (self.pair.peer, self.pair.role) {
            (None, _) => Order(u64::MAX),
            (Some(_), Role::Primary) => point.map_or(self.peer.confirmed, |point| self.peer.confirmed.min(point.order)),
            (Some(_), _) => Order(0),
        }
    }

    /// The carrier can take so many more bytes.
    pub fn handle_stream_credit(&mut self, now: Now, bytes: u64) {
        self.now = now;
        self.peer.credit = self.peer.credit.saturating_add(bytes);
    }

    /// So many of the journalled frames of this session are durable at the peer.
    pub fn handle_durable(&mut self, now: Now, count: FrameCount) {
        self.now = now;
        let mut copied = Vec::new();
        while self.peer.acknowledged_count < count.0 {
            let Some((sent, size)) = self.peer.sent.pop_front() else {
                break;
            };
            self.peer.acknowledged_count += 1;
            self.peer.sent_size -= size;
            match sent {
                Sent::Record(order) => {
                    (self.peer.acknowledged, self.peer.confirmed) = (order, order);
                    if let Some(entry) = self.journal.entry(order)
                        && entry.record.kind == Kind::RestartPoint
                        && !self.copy.is_running()
                    {
                        self.peer.restart_point = Some(entry.record.generation);
                    }
                }
                Sent::Copy { volume, block, bits, newest } => copied.push((newest, volume, block, bits)),
                Sent::CopyBegin => {}
                Sent::Zeroes => self.peer.unvoided -= 1,
                Sent::CopyEnd => self.copy_ended(),
            }
        }
        for (newest, volume, block, bits) in copied {
            self.copy_acknowledged(newest, volume, block, bits);
        }
        self.answer_waiting();
    }

    /// Up to where entries may be sent.
    pub(super) fn send_limit(&self) -> Order {
        self.sealed.min(self.drain_limit())
    }

    /// Sends what the carrier can take.
    pub(super) fn send(&mut self) {
        while self.peer.streaming
            && self.peer.credit > 0
            && self.peer.sent_size < SENT_SIZE_MAX
            && self.peer.cursor < self.send_limit()
            && !self.copy.is_starved()
        {
            let order = self.peer.cursor.next();
            let Some(entry) = self.journal.entry(order) else {
                return;
            };
            if !Self::is_for_peer(entry) {
                self.peer.cursor = order;
                continue;
            }
            let record = entry.record;
            if let Some(payload) = entry.payload.clone() {
                self.send_record(order, &record, payload);
                continue;
            }
            self.read_ahead(order);
            match self.peer.ahead.take() {
                Some(Some(payload)) => self.send_record(order, &record, payload),
                // The medium no longer has what it promised: the peer gets the present content instead.
                Some(None) => return self.suspend(Cause::Peer),
                // It is being read.
                None => return,
            }
        }
    }

    fn send_record(&mut self, order: Order, record: &Record, payload: Bytes) {
        self.peer.cursor = order;
        self.copy.record_sent(payload.len() as u64);
        self.send_frame(record, payload, Some(Sent::Record(order)));
    }

    /// Hands a frame over, and remembers what its acknowledgement will mean.
    pub(super) fn send_frame(&mut self, record: &Record, payload: Bytes, sent: Option<Sent>) {
        let header = Bytes::copy_from_slice(&record.encode(self.id));
        let size = (header.len() + payload.len()) as u64;
        self.peer.credit = self.peer.credit.saturating_sub(size);
        if let Some(sent) = sent {
            self.peer.sent.push_back((sent, size));
            self.peer.sent_size += size;
        }
        self.outputs.push_back(Output::Send(Frame { header, payload }));
    }

    /// Suspends the pair before the journal is full, so that service goes on.
    pub(super) fn suspend_when_nearly_full(&mut self) {
        let nearly = self.journal.holds_more_than(6);
        let bound = self.pair.peer.is_some() && self.pair.role == Role::Primary && self.peer.anchored;
        if nearly && bound && self.peer.acknowledged < self.applied_durable() {
            self.suspend(Cause::JournalFull);
        }
    }

    /// Stops sending: what the peer lacks is noted in the bitmap from now on.
    pub(super) fn suspend(&mut self, cause: Cause) {
        let acknowledged = self.peer.acknowledged;
        if self.pair.state == PairState::InitialCopy {
            // The peer's content was being voided or made anew: the bitmap says nothing of it.
            self.pair.synced = UNKNOWN;
        } else if self.peer.anchored {
            self.pair.synced = self.position_of(acknowledged);
        }
        if self.peer.anchored && !planted(Plant::LiveNotDirty) {
            self.mark_live_dirty(acknowledged);
        }
        self.leave_behind();
        self.lose_anchor();
        self.copy.stop();
        self.checkpoint.marked = true;
        self.checkpoint.wanted = true;
        self.set_pair_state(PairState::Suspended(cause));
        self.answer_waiting();
        // Unless an operator wants silence, the copy begins as soon as the peer can take it.
        if !matches!(cause, Cause::Command | Cause::MediumError) && self.peer.connected {
            self.outputs.push_back(Output::Reconnect);
        }
    }

    /// What the peer lacks is about to be noted, or is not known any more.
    pub(super) fn lose_anchor(&mut self) {
        self.peer.lose_anchor();
        self.checkpoint.does_not_cover_tracking();
    }

    /// Notes everything after `order` that is still in the journal in the bitmap.
    pub(super) fn mark_live_dirty(&mut self, order: Order) {
        let ranges = self.changes_after(order).collect();
        self.mark_dirty(ranges);
    }

    /// What the journal's entries after `order` have changed.
    pub(super) fn changes_after(&self, order: Order) -> impl Iterator<Item = Range> {
        let live = self.journal.after(order).map(|(_, entry)| entry);
        let changes = live.filter(|entry| entry.record.kind.changes_data() && !entry.is_void);
        let range =
            |Record { volume, offset, size, .. }: &Record| Range { volume: *volume, offset: *offset, size: *size };
        changes.map(move |entry| range(&entry.record))
    }

    /// Notes ranges in the bitmap.
    pub(super) fn mark_dirty(&mut self, mut ranges: Vec<Range>) {
        merge(&mut ranges);
        for Range { volume, offset, size } in ranges {
            if let Some(volume) = self.volumes.get_mut(&volume) {
                volume.table.mark_dirty(offset, size);
            }
        }
    }

    /// Whether the peer has everything up to the last entry that it has acknowledged. During a copy, and when changes are noted, it
    /// lacks blocks that may be older.
    pub(super) fn peer_is_a_prefix(&self) -> bool {
        self.peer.anchored
            && !self.copy.is_under_way()
            && self.volumes.values().all(|volume| volume.table.dirty_bytes() == 0)
    }

    /// The place of an entry in the order: of a void one that of the last before it that is not.
    pub(super) fn position_of(&self, order: Order) -> Position {
        let mut order = order;
        while let Some(entry) = self.journal.entry(order) {
            if !entry.is_void {
                return entry.record.at;
            }
            order.0 -= 1;
        }
        self.journal.tail_stream.last
    }

    pub(super) fn set_pair_state(&mut self, state: PairState) {
        if self.pair.state != state {
            debug_assert!(self.pair.state.leads_to(state), "no way from {} to {state}", self.pair.state);
            self.pair.state = state;
            self.event(Event::PairChanged { state });
        }
        if matches!(state, PairState::Duplex | PairState::Simplex) {
            self.peer.owed = Order(0);
        }
        self.superblock.wanted = true;
    }
}

/// Makes one of ranges that touch. Thousands may be about a whole volume each, and marking that takes seconds.
pub(super) fn merge(ranges: &mut Vec<Range>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let (end, last_end) = (next.offset.saturating_add(next.size), last.offset.saturating_add(last.size));
        let touches = next.volume == last.volume && next.offset <= last_end;
        if touches {
            last.size = end.max(last_end) - last.offset;
        }
        touches
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merged_ranges_cover_the_same_and_nothing_twice(
            ranges in prop::collection::vec((0u16..3, 0u64..200, 0u64..40), 0..30),
        ) {
            let range = |(volume, offset, size): &(u16, u64, u64)| {
                Range { volume: VolumeId(*volume), offset: *offset, size: *size }
            };
            let mut merged: Vec<Range> = ranges.iter().map(range).collect();
            let bytes = |ranges: &[Range]| -> Vec<(VolumeId, u64)> {
                let all = ranges.iter().flat_map(|range| {
                    (range.offset..range.offset + range.size).map(|byte| (range.volume, byte))
                });
                all.collect()
            };
            let mut expected = bytes(&merged);
            expected.sort_unstable();
            expected.dedup();
            merge(&mut merged);
            prop_assert_eq!(bytes(&merged), expected);
        }
    }
}
