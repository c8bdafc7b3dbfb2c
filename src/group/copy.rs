//! Copying what the bitmap names, while new writes go on.
//!
//! A copied range is read at one instant and goes into the stream when the read ends. Writes to the range wait
//! meanwhile, so its content is never older than its place in the stream; it may be newer, which the records that follow
//! make good. Unless an operator wants otherwise, digests of a range go first, and only what differs is copied.
//!
//! Between the first frame of a copy and its last the secondary's latest state is not a state of the primary, and it keeps
//! its restart point, or the state before the copy.

use super::{
    Group,
    read::{Reader, join},
    stream::Sent,
};
use crate::{
    format::{
        message::{Digests, Range, encode_history},
        record::{Kind, Record},
    },
    output::Event,
    pair::{Cause, PairState},
    table::ReadCount,
    testing::{Plant, planted},
    units::{Order, VolumeId, ZEROES_SIZE_MAX},
};
use alloc::{collections::BTreeMap, vec::Vec};
use bytes::Bytes;

/// Copies that are sent and not acknowledged, at most.
const UNACKNOWLEDGED_MAX: usize = 1024;
/// Ranges that are read at once.
const READING_MAX: usize = 16;
/// Bytes by which records or copies are ahead of the other at most, while both wait for the line.
const SHARE: i64 = 1 << 20;
/// A row of blocks that hold nothing is voided at the peer by one frame if it is so long, else compared.
const HOLE_COUNT_MIN: u32 = 64;

/// What becomes of a range that is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Compare,
    Copy,
}

struct Reading {
    what: What,
    volume: VolumeId,
    block: u32,
    bits: u16,
    offset: u64,
    end: u64,
    /// The last entry that it may contain.
    newest: Order,
}

/// The state of the copy.
#[derive(Default)]
pub(super) struct Copier {
    /// A copy is to begin; whether anew.
    prepared: Option<bool>,
    /// It begins when this write of the superblock is durable.
    after_superblock: u64,
    /// What the peer may hold where nothing is stored here, and is to be voided: offset and size.
    voids: Vec<(VolumeId, u64, u64)>,
    running: bool,
    /// Only what differs is sent.
    compares: bool,
    /// The ranges that are being read.
    readings: BTreeMap<ReadCount, Reading>,
    /// Where to look for the next.
    cursor: (VolumeId, u32),
    /// Parts of blocks whose digests were sent and not answered.
    asked: BTreeMap<(VolumeId, u32), u16>,
    /// Parts of blocks that are known to differ and not yet sent.
    differing: BTreeMap<(VolumeId, u32), u16>,
    /// Parts of blocks that were sent and are not acknowledged.
    unacknowledged: BTreeMap<(VolumeId, u32), u16>,
    /// Parts of blocks that the peer has durably, and the last entry that they may contain: dirty until that is durable here.
    pub(super) copied: Vec<(Order, (VolumeId, u32), u16)>,
    /// The last entry that a copied range may contain.
    newest: Order,
    end_sent: bool,
    bytes: u64,
    equal_bytes: u64,
    /// Nothing can be read for it now.
    idle: bool,
    /// How many bytes more than its half of the line the records have had since it began.
    lead: i64,
}

impl Copier {
    /// Whether a copy is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Whether the records have had so much of the line that it is the copy's turn.
    pub(super) fn is_starved(&self) -> bool {
        // Questions take next to nothing of the line.
        let copies = || self.readings.values().any(|reading| reading.what == What::Copy);
        let has_data = !self.compares || !self.differing.is_empty() || copies();
        self.running && !self.end_sent && !self.idle && self.lead > SHARE && has_data
    }

    /// A record of so many bytes was sent.
    pub(super) fn record_sent(&mut self, size: u64) {
        self.lead = (self.lead + size as i64).min(2 * SHARE);
    }

    /// Whether one is to begin or is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.running || self.prepared.is_some()
    }

    /// Whether a range is being read for the copy.
    pub(super) fn is_reading(&self, volume: VolumeId, from: u64, to: u64) -> bool {
        let mut copied = self.readings.values().filter(|reading| reading.what == What::Copy);
        copied.any(|reading| reading.volume == volume && from < reading.end && reading.offset < to)
    }

    /// Ends it without an end; the bitmap still has what was not acknowledged.
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }
}

impl Group {
    /// Wants a copy. It begins when all that is noted now, and the pair's state, is durable, because from its first frame
    /// on the peer cannot tell any more what it lacks. `anew`: the peer's content is worth nothing.
    pub(super) fn prepare_copy(&mut self, anew: bool) {
        // A peer that holds nothing need not be asked what it holds.
        let knows_the_answer = anew && self.peer.is_blank;
        let compares = !(self.peer.sends_all || knows_the_answer);
        self.copy.stop();
        for (id, volume) in self.volumes.iter_mut().filter(|_| anew) {
            if compares {
                // An interrupted resize may have left a table that is larger than the volume.
                let holes = volume.table.mark_all_dirty_but_holes(volume.spec.size, HOLE_COUNT_MIN);
                self.copy.voids.extend(holes.into_iter().map(|(offset, size)| (*id, offset, size)));
            } else {
                volume.table.mark_stored_dirty();
                self.copy.voids.push((*id, 0, volume.spec.size));
            }
        }
        self.lose_anchor();
        self.peer.unvoided = u64::from(anew);
        self.copy.compares = compares;
        self.copy.prepared = Some(anew);
        self.checkpoint.marked = true;
        self.checkpoint.wanted = true;
        // A copy from nothing is begun again from nothing if it is interrupted by a crash.
        let state = if anew { PairState::InitialCopy } else { self.pair.state };
        self.set_pair_state(if state == PairState::InitialCopy { state } else { PairState::DuplexPending });
        self.copy.after_superblock = self.superblock.request();
    }

    /// Begins the copy that was prepared: the stream goes on after the last entry, and the bitmap's blocks are sent
    /// beside it.
    pub(super) fn begin_copy(&mut self) {
        let ready = self.peer.greeted && self.peer.is_tracking_durable() && self.peer.credit > 0;
        let ready = ready && self.superblock.is_durable(self.copy.after_superblock);
        let Some(anew) = self.copy.prepared.filter(|_| ready) else {
            return;
        };
        let last = self.journal.last();
        // What is not in the tables yet is noted too: the stream does not bring it. The journal keeps it meanwhile.
        self.mark_live_dirty(self.applied);
        let (voids, compares) = (core::mem::take(&mut self.copy.voids), self.copy.compares);
        self.copy = Copier { running: true, compares, newest: last, ..Copier::default() };
        self.peer.stream_after(last);
        self.peer.owe(last);
        let payload = encode_history(&self.stream.epochs);
        let record = Record { keeps: true, ..self.copy_record(Kind::CopyBegin) }.carrying(&payload);
        self.send_frame(&record, payload, Some(Sent::CopyBegin));
        if anew {
            self.send_zeroes(&voids);
        }
        self.checkpoint.marked = true;
    }

    /// Voids what the peer holds there.
    fn send_zeroes(&mut self, voids: &[(VolumeId, u64, u64)]) {
        for (id, start, total) in voids {
            for at in (0..*total).step_by(ZEROES_SIZE_MAX as usize) {
                let mut record = self.copy_record(Kind::CopyZeroes);
                (record.volume, record.offset) = (*id, start + at);
                record.size = ZEROES_SIZE_MAX.min(total - at);
                self.send_frame(&record, Bytes::new(), Some(Sent::Zeroes));
            }
        }
        self.peer.unvoided = self.peer.unacknowledged_zeroes();
    }

    /// Goes on with a copy that the peer has begun already.
    pub(super) fn continue_copy(&mut self, after: Order) {
        let (compares, newest) = (!self.peer.sends_all, self.journal.last());
        self.copy = Copier { running: true, compares, newest, ..Copier::default() };
        self.peer.stream_after(after);
        self.peer.owe(after);
    }

    /// A frame outside the order.
    fn copy_record(&self, kind: Kind) -> Record {
        Record { at: self.stream.last, ..self.new_record(kind) }
    }

    /// Reads and sends the next ranges, or ends the copy.
    pub(super) fn copy_next(&mut self) {
        self.copy.idle = false;
        while self.copy.running && !self.copy.end_sent && self.peer.is_streaming() && self.peer.credit > 0 {
            if self.copy.readings.len() >= READING_MAX || self.copy.unacknowledged.len() >= UNACKNOWLEDGED_MAX {
                self.copy.idle = self.copy.readings.is_empty();
                return;
            }
            // The records' turn.
            if self.copy.lead < -SHARE && self.peer.cursor() < self.sealed.min(self.drain_limit()) {
                return;
            }
            let Some((volume, block, bits, what)) = self.next_to_copy() else {
                self.copy.idle = self.copy.readings.is_empty();
                return self.end_copy();
            };
            self.copy_read_begin(volume, block, bits, what);
        }
    }

    fn end_copy(&mut self) {
        let everything = self.volumes.values().all(|volume| volume.table.dirty_bytes() == 0);
        // The last record that a copied range may contain must be before the end.
        let all_copied = everything && self.copy.unacknowledged.is_empty() || planted(Plant::CopyEndsEarly);
        let all_sent = self.peer.cursor() >= self.copy.newest || planted(Plant::CopyEndsBeforeRecords);
        if all_copied && all_sent {
            self.copy.end_sent = true;
            let mut record = self.copy_record(Kind::CopyEnd);
            record.at = self.position_of(self.peer.cursor());
            self.send_frame(&record, Bytes::new(), Some(Sent::CopyEnd));
        }
    }

    fn next_to_copy(&mut self) -> Option<(VolumeId, u32, u16, What)> {
        let asked_max = self.asked_max();
        let copy = &mut self.copy;
        if let Some(((id, block), bits)) = copy.differing.first_key_value() {
            return Some((*id, *block, first_run(*bits), What::Copy));
        }
        if copy.asked.len() >= asked_max {
            return None;
        }
        // From where the last one was, then once more from the start.
        for _ in 0..2 {
            let (first, mut block) = copy.cursor;
            for (id, volume) in self.volumes.range(first..) {
                while let Some((found, dirty)) = volume.table.next_dirty(block) {
                    let on_the_way = [&copy.asked, &copy.unacknowledged].map(|map| map.get(&(*id, found)).copied());
                    let bits = on_the_way.into_iter().flatten().fold(dirty, |bits, taken| bits & !taken);
                    copy.cursor = (*id, found);
                    if bits != 0 && copy.compares {
                        return Some((*id, found, bits, What::Compare));
                    }
                    if bits != 0 {
                        return Some((*id, found, first_run(bits), What::Copy));
                    }
                    block = found + 1;
                }
                block = 0;
            }
            copy.cursor = (VolumeId(0), 0);
        }
        None
    }

    fn copy_read_begin(&mut self, id: VolumeId, block: u32, bits: u16, what: What) {
        let Some(volume) = self.volumes.get(&id) else {
            return;
        };
        let geometry = *volume.table.geometry();
        let unit = u64::from(geometry.dirty_unit());
        let start = u64::from(block) * u64::from(geometry.block_size);
        let (first, last) = (u64::from(bits.trailing_zeros()), u64::from(15 - bits.leading_zeros()));
        let offset = start + first * unit;
        let end = (start + (last + 1) * unit).min(geometry.volume_size);
        take_bits(&mut self.copy.differing, (id, block), bits);
        if offset >= end {
            return self.copy_acknowledged(Order(0), id, block, bits);
        }
        let on_the_way = if what == What::Compare { &mut self.copy.asked } else { &mut self.copy.unacknowledged };
        *on_the_way.entry((id, block)).or_default() |= bits;
        let newest = self.journal.last();
        self.copy.newest = newest;
        let number = self.reads.next();
        self.copy.readings.insert(number, Reading { what, volume: id, block, bits, offset, end, newest });
        self.read(Reader::Copy(number), id, offset, end - offset);
    }

    /// The range was read (`None`: it could not be).
    pub(super) fn copy_read(&mut self, number: ReadCount, data: Option<Vec<Bytes>>) {
        let Some(reading) = self.copy.readings.remove(&number) else { return };
        if !self.copy.running || !self.peer.is_streaming() {
            return;
        }
        let Some(data) = data else {
            // The block stays dirty; the next pass tries it again.
            return self.suspend(Cause::MediumError);
        };
        let joined = join(&data);
        if reading.what == What::Compare {
            let unit = self.volumes.get(&reading.volume).map_or(0, |volume| volume.table.geometry().dirty_unit());
            let digests = Digests::of(&joined, unit.max(512));
            self.again = true;
            return self.ask(reading.volume, reading.offset, joined.len() as u64, &digests);
        }
        let is_zero = joined.iter().all(|byte| *byte == 0);
        let mut record = self.copy_record(if is_zero { Kind::CopyZeroes } else { Kind::Copy });
        (record.volume, record.offset, record.size) = (reading.volume, reading.offset, joined.len() as u64);
        let payload = if is_zero { Bytes::new() } else { joined };
        record = record.carrying(&payload);
        // The frame's place is after the last record that was sent, not after the last that was made.
        record.at = self.position_of(self.peer.cursor());
        self.copy.bytes += record.size;
        self.copy.lead = (self.copy.lead - record.size as i64).max(-2 * SHARE);
        let Reading { volume, block, bits, newest, .. } = reading;
        self.send_frame(&record, payload, Some(Sent::Copy { volume, block, bits, newest }));
        if planted(Plant::CleanBeforeAcknowledged) {
            self.copy_acknowledged(newest, volume, block, bits);
        }
    }

    /// The peer has compared what a copy asked about; `false` if none did. It differs in these ranges.
    pub(super) fn copy_compared(&mut self, volume: VolumeId, offset: u64, ranges: &[Range]) -> bool {
        let Some(table) = self.volumes.get(&volume).map(|volume| &volume.table) else {
            return false;
        };
        let block = (offset / u64::from(table.geometry().block_size)) as u32;
        let Some(asked) = self.copy.asked.remove(&(volume, block)) else {
            return false;
        };
        let differing = asked & table.dirty_bits_of(block, ranges);
        if differing != 0 {
            self.copy.differing.insert((volume, block), differing);
        }
        let equal = asked & !differing;
        self.copy.equal_bytes += u64::from(equal.count_ones()) * u64::from(table.geometry().dirty_unit());
        self.copy_acknowledged(self.copy.newest, volume, block, equal);
        self.again = true;
        true
    }

    /// The peer has a range durably, as it was after `newest` at the latest.
    pub(super) fn copy_acknowledged(&mut self, newest: Order, volume: VolumeId, block: u32, bits: u16) {
        if bits != 0 {
            *self.copy.unacknowledged.entry((volume, block)).or_default() |= bits;
            self.copy.copied.push((newest, (volume, block), bits));
            self.again = true;
        }
    }

    /// What was copied is clean as soon as it is durable here too. Before that this node may lose what the peer has of it, and
    /// nothing would tell that they differ.
    pub(super) fn clear_copied(&mut self) {
        let durable = if planted(Plant::CopyEndsBeforeRecords) { Order(u64::MAX) } else { self.durable };
        for (_, (id, block), bits) in self.copy.copied.extract_if(.., |(newest, ..)| *newest <= durable) {
            take_bits(&mut self.copy.unacknowledged, (id, block), bits);
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.table.clear_dirty(block, bits);
                self.checkpoint.marked = true;
            }
        }
        self.sync.wanted |= !self.copy.copied.is_empty();
    }

    /// The end of the copy is durable at the peer.
    pub(super) fn copy_ended(&mut self) {
        let (bytes, equal_bytes) = (self.copy.bytes, self.copy.equal_bytes);
        self.copy.stop();
        self.set_pair_state(PairState::Duplex);
        self.event(Event::CopyEnded { bytes, equal_bytes });
    }
}

/// The lowest bits that are set in a row.
fn first_run(bits: u16) -> u16 {
    let shift = bits.trailing_zeros();
    let count = (bits >> shift).trailing_ones();
    ((u32::from(u16::MAX) >> (16 - count)) << shift) as u16
}

fn take_bits(map: &mut BTreeMap<(VolumeId, u32), u16>, key: (VolumeId, u32), bits: u16) {
    if let Some(left) = map.get_mut(&key) {
        *left &= !bits;
        if *left == 0 {
            map.remove(&key);
        }
    }
}
