//! Mending: what this primary cannot read, its peer still has.
//!
//! A host's read that fails waits while the whole block is asked for. Writes to the block wait too, from then until the answer,
//! and the question goes into the stream behind all that the block contains; so the answer is the block as it is. It is
//! written as any host's write would be, to a new place, and the read is tried again.

use super::{
    Group,
    read::{Asked, Reader, join},
};
use crate::{
    command::CommandError,
    format::record::{Kind, Record},
    output::{Event, Output},
    pair::Role,
    request::{RequestError, RequestId},
    table::ReadCount,
    units::{Generation, Order, RECORD_PAYLOAD_SIZE_MAX, VolumeId},
};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use bytes::Bytes;

/// Blocks that are asked for at once.
const ASKED_MAX: usize = 16;

/// A block that cannot be read.
struct Block {
    /// The last entry that it may contain.
    newest: Order,
    /// The question's number in this session.
    asked: Option<Generation>,
    waiting: Vec<Asked>,
}

/// The state of it.
#[derive(Default)]
pub(super) struct Mending {
    /// On the primary: by volume and offset.
    blocks: BTreeMap<(VolumeId, u64), (u64, Block)>,
    /// On the secondary: what is being read to be answered.
    answering: BTreeMap<ReadCount, Record>,
    number: Generation,
}

impl Mending {
    /// Whether a write has to wait.
    pub(super) fn holds(&self, volume: VolumeId, from: u64, to: u64) -> bool {
        let mut blocks = self.blocks.iter();
        blocks.any(|((id, offset), (size, _))| *id == volume && from < offset + size && *offset < to)
    }
}

impl Group {
    /// Another session: what was asked in the one before is not answered any more.
    pub(super) fn ask_anew(&mut self) {
        self.mending.answering.clear();
        self.mending.blocks.values_mut().for_each(|(_, block)| block.asked = None);
        if let Some(verifier) = self.verifier.take() {
            let id = verifier.command();
            self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::PeerLost) });
        }
    }

    /// The reads that wait; they will not be answered otherwise.
    pub(super) fn take_unread(&mut self) -> Vec<RequestId> {
        let blocks = core::mem::take(&mut self.mending.blocks).into_values();
        blocks.flat_map(|(_, block)| block.waiting).map(|asked| asked.id).collect()
    }

    /// A host's read has failed at a byte of the volume.
    pub(super) fn read_failed(&mut self, asked: Asked, at: u64) {
        let geometry = self.volumes.get(&asked.volume).map(|volume| *volume.table.geometry());
        let Some(geometry) = geometry.filter(|_| self.peer_follows()) else {
            return self.read_ended(asked.id, Err(RequestError::Io));
        };
        let block_size = u64::from(geometry.block_size);
        // Each block is mended once for a read.
        if u64::from(asked.mended) > u64::from(asked.size) / block_size + 1 {
            return self.read_ended(asked.id, Err(RequestError::Io));
        }
        let offset = at - at % block_size;
        if self.must_be_read(asked.volume, offset) {
            return self.read_ended(asked.id, Err(RequestError::Io));
        }
        let size = block_size.min(geometry.volume_size - offset);
        let block = || Block { newest: self.journal.last(), asked: None, waiting: Vec::new() };
        let (_, block) = self.mending.blocks.entry((asked.volume, offset)).or_insert_with(|| (size, block()));
        block.waiting.push(asked);
        self.again = true;
    }

    /// Whether what is written to a block now cannot be applied without reading it: where only a part of it was written since a
    /// restart point, the rest is needed to keep the state at the next one, which may wait to be applied, as that part may.
    fn must_be_read(&self, volume: VolumeId, offset: u64) -> bool {
        let Some(volume) = self.volumes.get(&volume) else { return false };
        let geometry = volume.table.geometry();
        let block_size = u64::from(geometry.block_size);
        let entry = volume.table.entry((offset / block_size) as u32);
        let is_partial = entry.mask != 0 && entry.mask != geometry.full_mask();
        let will_be = is_partial || volume.overlay.pieces(offset, offset + block_size).next().is_some();
        let mut unapplied = self.journal.after(self.applied);
        let is_passed = is_partial && entry.stamp < volume.table.stamp();
        is_passed || (will_be && unapplied.any(|(_, entry)| entry.record.kind.is_boundary() && !entry.is_void))
    }

    /// Asks for what can be asked for; gives up when the peer is lost.
    pub(super) fn mend_next(&mut self) {
        if self.mending.blocks.is_empty() {
            return;
        }
        if !self.peer_follows() {
            self.again = true;
            for (_, (_, block)) in core::mem::take(&mut self.mending.blocks) {
                block.waiting.into_iter().for_each(|asked| self.read_ended(asked.id, Err(RequestError::Io)));
            }
            return;
        }
        let cursor = self.peer.cursor();
        let asked = self.mending.blocks.values().filter(|(_, block)| block.asked.is_some()).count();
        let ready =
            self.mending.blocks.iter_mut().filter(|(_, (_, block))| block.asked.is_none() && block.newest <= cursor);
        let mut questions = Vec::new();
        for ((volume, offset), (size, block)) in ready.take(ASKED_MAX.saturating_sub(asked)) {
            self.mending.number.0 = self.mending.number.0.wrapping_add(1);
            block.asked = Some(self.mending.number);
            questions.push((*volume, *offset, *size, self.mending.number));
        }
        for (volume, offset, size, number) in questions {
            let mut record = Record { at: self.stream.last, generation: number, ..self.new_record(Kind::Fetch) };
            (record.volume, record.offset, record.size) = (volume, offset, size);
            self.send_frame(&record, Bytes::new(), None);
        }
    }

    /// On the secondary: the primary asks for a range.
    pub(super) fn fetch(&mut self, record: Record) -> Result<(), String> {
        if self.pair.role != Role::Secondary || !self.peer.greeted {
            return Err(format!("A range was asked for, but this node is {} and sent no invitation", self.pair.role));
        }
        self.check_range(&record)?;
        let is_possible = (1..=u64::from(RECORD_PAYLOAD_SIZE_MAX)).contains(&record.size);
        if !is_possible || self.mending.answering.len() >= ASKED_MAX {
            return Err(format!(
                "{} bytes were asked for, {} questions wait",
                record.size,
                self.mending.answering.len()
            ));
        }
        let number = self.reads.next();
        self.mending.answering.insert(number, record);
        self.read(Reader::Fetch(number), record.volume, record.offset, record.size);
        Ok(())
    }

    /// On the secondary: the range was read (`None`: it could not be).
    pub(super) fn fetch_read(&mut self, number: ReadCount, data: Option<Vec<Bytes>>) {
        let Some(asked) = self.mending.answering.remove(&number) else { return };
        let payload = data.as_ref().map(|parts| join(parts)).unwrap_or_default();
        let is_zero = payload.iter().all(|byte| *byte == 0);
        let payload = if is_zero { Bytes::new() } else { payload };
        let mut record =
            Record { at: self.stream.last, generation: asked.generation, ..self.new_record(Kind::Fetched) };
        (record.volume, record.offset, record.size, record.keeps) =
            (asked.volume, asked.offset, asked.size, data.is_none());
        self.send_frame(&record.carrying(&payload), payload, None);
    }

    /// On the primary: the answer. One that nobody waits for is left alone.
    pub(super) fn fetched(&mut self, record: &Record, payload: Bytes) -> Result<(), String> {
        let (volume, offset, size) = (record.volume, record.offset, record.size);
        // An answer to an earlier question may be older than what was written since.
        let is_meant = |(_, block): &(u64, Block)| block.asked == Some(record.generation);
        if !self.mending.blocks.get(&(volume, offset)).is_some_and(is_meant) {
            return Ok(());
        }
        let Some((asked, block)) = self.mending.blocks.remove(&(volume, offset)) else { return Ok(()) };
        if asked != size || (!payload.is_empty() && payload.len() as u64 != size) {
            return Err(format!("An answer of {} bytes at {offset} is about something else", payload.len()));
        }
        self.again = true;
        let is_lost = record.keeps || self.must_be_read(volume, offset);
        self.event(if is_lost { Event::NotMended { volume, offset } } else { Event::Mended { volume, offset, size } });
        if is_lost {
            block.waiting.into_iter().for_each(|asked| self.read_ended(asked.id, Err(RequestError::Io)));
            return Ok(());
        }
        if payload.is_empty() {
            self.stage_zeroes(Kind::WriteZeroes, volume, offset, size, false);
        } else {
            self.stage_write(volume, offset, payload);
        }
        for asked in block.waiting {
            let again = Asked { mended: asked.mended + 1, ..asked };
            self.read(Reader::Host(again), asked.volume, asked.offset, u64::from(asked.size));
        }
        Ok(())
    }
}
