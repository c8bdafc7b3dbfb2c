//! Copying what the bitmap names, while new writes go on.
//!
//! A copied range is read at one instant and goes into the stream when the read ends. Writes to the range wait
//! meanwhile, so its content is never older than its place in the stream; it may be newer, which the records that follow
//! make good. Between the first frame of a copy and its last the secondary's latest state is not a state of the
//! primary, and it keeps its restart point.

use super::{Group, read::Reader, stream::Sent};
use crate::{
    format::{
        message::encode_history,
        record::{Kind, Record},
    },
    output::Event,
    pair::PairState,
    table::ReadCount,
    units::{Order, VolumeId, ZEROES_SIZE_MAX},
};
use alloc::{collections::BTreeSet, vec::Vec};
use bytes::{Bytes, BytesMut};

/// Copies that are sent and not acknowledged, at most.
const UNACKNOWLEDGED_MAX: usize = 256;

struct Reading {
    number: ReadCount,
    volume: VolumeId,
    block: u32,
    bits: u16,
    offset: u64,
    end: u64,
}

/// The state of the copy.
#[derive(Default)]
pub(super) struct Copier {
    /// A copy is to begin; whether anew.
    prepared: Option<bool>,
    /// It begins when this write of the superblock is durable.
    after_superblock: u64,
    running: bool,
    /// The range that is being read.
    reading: Option<Reading>,
    /// Where to look for the next.
    cursor: (VolumeId, u32),
    unacknowledged: BTreeSet<(VolumeId, u32)>,
    /// The last entry that a copied range may contain.
    newest: Order,
    end_sent: bool,
    bytes: u64,
}

impl Copier {
    /// Whether a copy is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Whether a range is being read for the copy.
    pub(super) fn is_reading(&self, volume: VolumeId, from: u64, to: u64) -> bool {
        self.reading
            .as_ref()
            .is_some_and(|reading| reading.volume == volume && from < reading.end && reading.offset < to)
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
        if anew {
            self.volumes.values_mut().for_each(|volume| volume.table.mark_stored_dirty());
        }
        self.peer.lose_anchor();
        self.peer.unvoided = u64::from(anew);
        self.copy.stop();
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
        self.copy.stop();
        self.copy.running = true;
        self.copy.newest = last;
        self.peer.stream_after(last);
        let mut record = self.copy_record(Kind::CopyBegin);
        let payload = encode_history(&self.stream.epochs);
        record.payload_size = payload.len() as u32;
        record.payload_checksum = crc32c::crc32c(&payload);
        self.send_frame(&record, payload, Some(Sent::CopyBegin));
        if anew {
            self.send_zeroes();
        }
        self.checkpoint.marked = true;
    }

    /// Voids what the peer holds.
    fn send_zeroes(&mut self) {
        let sizes: Vec<_> = self.volumes.values().map(|volume| (volume.spec.id, volume.spec.size)).collect();
        for (id, size) in sizes {
            for offset in (0..size).step_by(ZEROES_SIZE_MAX as usize) {
                let mut record = self.copy_record(Kind::CopyZeroes);
                (record.volume, record.offset) = (id, offset);
                record.size = ZEROES_SIZE_MAX.min(size - offset);
                self.send_frame(&record, Bytes::new(), Some(Sent::Zeroes));
            }
        }
        self.peer.unvoided = self.peer.unacknowledged_zeroes();
    }

    /// Goes on with a copy that the peer has begun already.
    pub(super) fn continue_copy(&mut self, after: Order) {
        self.copy.stop();
        self.copy.running = true;
        self.copy.newest = self.journal.last();
        self.peer.stream_after(after);
    }

    /// A frame outside the order.
    fn copy_record(&self, kind: Kind) -> Record {
        Record { at: self.stream.last, ..self.new_record(kind) }
    }

    /// Reads and sends the next range, one at a time, or ends the copy.
    pub(super) fn copy_next(&mut self) {
        let (copy, peer) = (&self.copy, &self.peer);
        let wanted = copy.running && copy.reading.is_none() && !copy.end_sent && peer.is_streaming();
        if !wanted || peer.credit == 0 || copy.unacknowledged.len() >= UNACKNOWLEDGED_MAX {
            return;
        }
        if let Some((volume, block, bits)) = self.find_dirty() {
            return self.copy_read_begin(volume, block, bits);
        }
        let everything = self.volumes.values().all(|volume| volume.table.dirty_bytes() == 0);
        // The last record that a copied range may contain must be before the end.
        if everything && self.copy.unacknowledged.is_empty() && self.peer.cursor() >= self.copy.newest {
            self.copy.end_sent = true;
            let mut record = self.copy_record(Kind::CopyEnd);
            record.at = self.position_of(self.peer.cursor());
            self.send_frame(&record, Bytes::new(), Some(Sent::CopyEnd));
        }
    }

    fn find_dirty(&mut self) -> Option<(VolumeId, u32, u16)> {
        // From where the last one was, then once more from the start.
        for _ in 0..2 {
            let (first, mut block) = self.copy.cursor;
            for (id, volume) in self.volumes.range(first..) {
                while let Some((found, bits)) = volume.table.next_dirty(block) {
                    self.copy.cursor = (*id, found + 1);
                    if !self.copy.unacknowledged.contains(&(*id, found)) {
                        return Some((*id, found, bits));
                    }
                    block = found + 1;
                }
                block = 0;
            }
            self.copy.cursor = (VolumeId(0), 0);
        }
        None
    }

    fn copy_read_begin(&mut self, id: VolumeId, block: u32, bits: u16) {
        let Some(volume) = self.volumes.get(&id) else {
            return;
        };
        let geometry = *volume.table.geometry();
        let unit = u64::from(geometry.dirty_unit());
        let start = u64::from(block) * u64::from(geometry.block_size);
        // The whole span of dirty parts in one read: a few clean ones between them cost less than another frame.
        let (first, last) = (u64::from(bits.trailing_zeros()), u64::from(15 - bits.leading_zeros()));
        let offset = start + first * unit;
        let end = (start + (last + 1) * unit).min(geometry.volume_size);
        self.copy.unacknowledged.insert((id, block));
        if offset >= end {
            self.copy_acknowledged(id, block, bits);
            return;
        }
        self.copy.newest = self.journal.last();
        let number = self.reads.next();
        self.copy.reading = Some(Reading { number, volume: id, block, bits, offset, end });
        self.read(Reader::Copy(number), id, offset, end - offset);
    }

    /// The range was read (`None`: it could not be).
    pub(super) fn copy_read(&mut self, number: ReadCount, data: Option<Vec<Bytes>>) {
        let current = self.copy.reading.take_if(|reading| reading.number == number);
        let Some(reading) = current else { return };
        if !self.copy.running || !self.peer.is_streaming() {
            return;
        }
        let Some(data) = data else {
            // The block stays dirty; the next pass tries it again.
            self.copy.unacknowledged.remove(&(reading.volume, reading.block));
            return self.suspend(crate::pair::Cause::Peer);
        };
        let mut joined = BytesMut::with_capacity((reading.end - reading.offset) as usize);
        data.iter().for_each(|part| joined.extend_from_slice(part));
        let is_zero = joined.iter().all(|byte| *byte == 0);
        let mut record = self.copy_record(if is_zero { Kind::CopyZeroes } else { Kind::Copy });
        (record.volume, record.offset, record.size) = (reading.volume, reading.offset, joined.len() as u64);
        let payload = if is_zero { Bytes::new() } else { joined.freeze() };
        record.payload_size = payload.len() as u32;
        record.payload_checksum = crc32c::crc32c(&payload);
        // The frame's place is after the last record that was sent, not after the last that was made.
        record.at = self.position_of(self.peer.cursor());
        self.copy.bytes += record.size;
        let sent = Sent::Copy { volume: reading.volume, block: reading.block, bits: reading.bits };
        self.send_frame(&record, payload, Some(sent));
    }

    /// A copied range is durable at the peer.
    pub(super) fn copy_acknowledged(&mut self, volume: VolumeId, block: u32, bits: u16) {
        self.copy.unacknowledged.remove(&(volume, block));
        if let Some(volume) = self.volumes.get_mut(&volume).filter(|_| bits != 0) {
            volume.table.clear_dirty(block, bits);
            self.checkpoint.marked = true;
        }
    }

    /// The end of the copy is durable at the peer.
    pub(super) fn copy_ended(&mut self) {
        let bytes = self.copy.bytes;
        self.copy.stop();
        self.set_pair_state(PairState::Duplex);
        self.event(Event::CopyEnded { bytes });
    }
}
