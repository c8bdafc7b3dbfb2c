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
    format::{
        message::Range,
        record::{Kind, Record},
    },
    output::Event,
    pair::Role,
    request::RequestError,
    table::ReadCount,
    units::{Order, RECORD_PAYLOAD_SIZE_MAX, VolumeId},
};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use bytes::Bytes;

/// Blocks that are asked for at once.
const ASKED_MAX: usize = 16;

/// A block that cannot be read.
struct Block {
    /// The last entry that it may contain.
    newest: Order,
    is_asked: bool,
    waiting: Vec<Asked>,
}

/// The state of it.
#[derive(Default)]
pub(super) struct Mending {
    /// On the primary: by volume and offset.
    blocks: BTreeMap<(VolumeId, u64), (u64, Block)>,
    /// On the secondary: what is being read to be answered.
    answering: BTreeMap<ReadCount, Record>,
}

impl Mending {
    /// Whether a write has to wait.
    pub(super) fn holds(&self, volume: VolumeId, from: u64, to: u64) -> bool {
        let mut blocks = self.blocks.iter();
        blocks.any(|((id, offset), (size, _))| *id == volume && from < offset + size && *offset < to)
    }

    /// Nobody waits for the answers any more.
    pub(super) fn forget_questions(&mut self) {
        self.answering.clear();
    }
}

impl Group {
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
        let size = block_size.min(geometry.volume_size - offset);
        let block = || Block { newest: self.journal.last(), is_asked: false, waiting: Vec::new() };
        let (_, block) = self.mending.blocks.entry((asked.volume, offset)).or_insert_with(|| (size, block()));
        block.waiting.push(asked);
        self.again = true;
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
        let asked = self.mending.blocks.values().filter(|(_, block)| block.is_asked).count();
        let ready = self.mending.blocks.iter_mut().filter(|(_, (_, block))| !block.is_asked && block.newest <= cursor);
        let mut ranges = Vec::new();
        for ((volume, offset), (size, block)) in ready.take(ASKED_MAX.saturating_sub(asked)) {
            block.is_asked = true;
            ranges.push(Range { volume: *volume, offset: *offset, size: *size });
        }
        ranges.into_iter().for_each(|range| self.send_about(Kind::Fetch, range, Bytes::new()));
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
        let mut record = Record { at: self.stream.last, ..self.new_record(Kind::Fetched) };
        (record.volume, record.offset, record.size, record.keeps) =
            (asked.volume, asked.offset, asked.size, data.is_none());
        self.send_frame(&record.carrying(&payload), payload, None);
    }

    /// On the primary: the answer. One that nobody waits for is left alone.
    pub(super) fn fetched(&mut self, record: &Record, payload: Bytes) -> Result<(), String> {
        let (volume, offset, size) = (record.volume, record.offset, record.size);
        let Some((_, block)) = self.mending.blocks.remove(&(volume, offset)).filter(|(asked, _)| *asked == size) else {
            return Ok(());
        };
        if !block.is_asked || (!payload.is_empty() && payload.len() as u64 != size) {
            return Err(format!("An answer of {} bytes at {offset} is about something else", payload.len()));
        }
        self.again = true;
        self.event(if record.keeps {
            Event::NotMended { volume, offset }
        } else {
            Event::Mended { volume, offset, size }
        });
        if record.keeps {
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
