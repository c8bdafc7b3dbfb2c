//! Reads: each byte from its newest place, which is memory, the journal, a redirected block, or the table's block.

use super::{Group, Purpose, trial::Tried};
use crate::{
    disk::{DiskAction, DiskOutcome, MediumId},
    format::{
        message::Range,
        record::{Kind, Record},
    },
    journal::Place,
    request::{Access, Extent, ExtentKind, Reply, RequestError, RequestId},
    table::ReadCount,
    testing::{Plant, planted},
    units::{Order, VolumeId},
};
use alloc::{collections::BTreeMap, vec::Vec};
use bytes::Bytes;

/// Zeroes for holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Neighbouring pieces on a medium are read together up to this many bytes.
const READ_SIZE_MAX: u64 = 1 << 20;

/// A host's read.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) id: RequestId,
    pub(super) volume: VolumeId,
    pub(super) offset: u64,
    pub(super) size: u32,
    /// How many blocks were mended for it.
    pub(super) mended: u32,
}

/// For whom a read is.
#[derive(Clone, Copy)]
pub(super) enum Reader {
    Host(Asked),
    /// Reads of an earlier session may end late: the read's number tells.
    Copy(ReadCount),
    /// An entry that is to be sent and is no longer in memory.
    Resend(ReadCount),
    /// A range whose digests the peer sent.
    Compare(ReadCount),
    /// A range whose digests the peer is to get.
    Verify(ReadCount),
    /// A host's, of a generation or a trial.
    View(RequestId),
    /// What surrounds a write to a block of the trial.
    Trial(VolumeId, u32),
    /// A range that the peer cannot read.
    Fetch(ReadCount),
}

/// Where bytes are.
#[derive(Clone)]
enum Source {
    Zeroes,
    Memory(Bytes),
    /// On a medium, unchecked.
    Medium(MediumId, u64),
    /// In the journal: this entry's payload from this byte on.
    Journal(Order, u32),
}

struct Piece {
    source: Source,
    size: u64,
}

enum Part {
    Ready(Bytes),
    /// What is read begins `lead` bytes early for alignment; of the piece, `size` bytes from `from` on are wanted. For
    /// journal data also the record that vouches for it.
    Pending {
        lead: usize,
        from: usize,
        size: usize,
        record: Option<Record>,
    },
}

struct Job {
    reader: Reader,
    parts: Vec<Part>,
    pending: usize,
    failed: bool,
    /// The oldest entry whose place in the journal is being read.
    oldest: Option<Order>,
}

/// The reads in flight, by number.
#[derive(Default)]
pub(super) struct Reads {
    next: ReadCount,
    jobs: BTreeMap<ReadCount, Job>,
}

impl Reads {
    /// The number that the next read will have.
    pub(super) fn next(&self) -> ReadCount {
        self.next
    }

    /// Whether nothing is being read.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The number of the oldest read in flight, or of the next.
    pub(super) fn oldest(&self) -> ReadCount {
        self.jobs.keys().next().copied().unwrap_or(self.next)
    }

    /// The oldest entry whose place in the journal is being read.
    pub(super) fn oldest_entry(&self) -> Option<Order> {
        self.jobs.values().filter_map(|job| job.oldest).min()
    }
}

impl Group {
    /// Starts a host's read.
    pub(super) fn start_read(&mut self, id: RequestId, volume: VolumeId, offset: u64, size: u32) {
        self.read(Reader::Host(Asked { id, volume, offset, size, mended: 0 }), volume, offset, u64::from(size));
    }

    /// Starts a host's read of a generation or of the trial.
    pub(super) fn start_view(&mut self, id: RequestId, access: Access, volume: VolumeId, offset: u64, size: u32) {
        let pieces = self.locate(access, volume, offset, u64::from(size));
        self.read_pieces(Reader::View(id), pieces);
    }

    /// Reads what the trial holds.
    pub(super) fn read_trial(&mut self, reader: Reader, volume: VolumeId, offset: u64, size: u64) {
        let pieces = self.locate(Access::Trial, volume, offset, size);
        self.read_pieces(reader, pieces);
    }

    /// Starts a read; its end goes to [`Group::answer`] or [`Group::copy_read`].
    pub(super) fn read(&mut self, reader: Reader, volume: VolumeId, offset: u64, size: u64) {
        let pieces = self.locate(Access::ReadOnly, volume, offset, size);
        self.read_pieces(reader, pieces);
    }

    /// Reads what an entry carries, from where it is kept.
    pub(super) fn read_entry(&mut self, reader: Reader, order: Order) {
        let Some(entry) = self.journal.entry(order) else {
            return;
        };
        let (record, mut pieces) = (entry.record, Vec::new());
        if record.kind == Kind::Write {
            self.locate_in_entry(order, record.offset, record.end(), &mut pieces);
        } else if record.payload_size > 0 {
            push(&mut pieces, Source::Journal(order, 0), u64::from(record.payload_size));
        }
        self.read_pieces(reader, pieces);
    }

    fn read_pieces(&mut self, reader: Reader, pieces: Vec<Piece>) {
        let number = self.reads.next;
        self.reads.next += 1;
        let mut job = Job { reader, parts: Vec::with_capacity(pieces.len()), pending: 0, failed: false, oldest: None };
        let mut operations = Vec::new();
        for Piece { source, size } in pieces {
            let (medium, offset, from, record) = match source {
                Source::Zeroes => {
                    let mut left = size as usize;
                    while left > 0 {
                        let step = left.min(ZEROES.len());
                        job.parts.push(Part::Ready(Bytes::from_static(&ZEROES[..step])));
                        left -= step;
                    }
                    continue;
                }
                Source::Memory(bytes) => {
                    job.parts.push(Part::Ready(bytes));
                    continue;
                }
                Source::Medium(medium, offset) => (medium, offset, 0, None),
                Source::Journal(order, from) => {
                    let Some(entry) = self.journal.entry(order) else {
                        continue;
                    };
                    let Place::Inline(position) = entry.place else {
                        continue;
                    };
                    job.oldest = Some(job.oldest.map_or(order, |oldest| oldest.min(order)));
                    (MediumId::Journal, self.journal.offset(position), from as usize, Some(entry.record))
                }
            };
            // A journalled payload is read whole, because only the whole has a checksum.
            let whole = record.map_or(size, |record| u64::from(record.payload_size));
            let start = offset & !4095;
            let end = (offset + whole).next_multiple_of(4096);
            let lead = (offset - start) as usize;
            operations.push((medium, start, (end - start) as u32, job.parts.len()));
            job.parts.push(Part::Pending { lead, from, size: size as usize, record });
        }
        job.pending = operations.len();
        if operations.is_empty() {
            return self.finish_read(job);
        }
        self.reads.jobs.insert(number, job);
        for (medium, offset, size, piece) in operations {
            self.disk(medium, DiskAction::Read { offset, size }, Purpose::Read { read: number, piece });
        }
    }

    /// A piece was read.
    pub(super) fn read_done(&mut self, read: ReadCount, piece: usize, outcome: DiskOutcome) {
        let Some(job) = self.reads.jobs.get_mut(&read) else {
            return;
        };
        if let Some(part) = job.parts.get_mut(piece) {
            match outcome.ok().and_then(|bytes| cut(&bytes, part)) {
                Some(bytes) => *part = Part::Ready(bytes),
                None => job.failed = true,
            }
        }
        job.pending -= 1;
        if job.pending == 0
            && let Some(job) = self.reads.jobs.remove(&read)
        {
            self.finish_read(job);
        }
    }

    fn finish_read(&mut self, job: Job) {
        if let (Reader::Host(asked), true) = (job.reader, job.failed) {
            let size = |part: &Part| match part {
                Part::Ready(bytes) => Some(bytes.len() as u64),
                Part::Pending { .. } => None,
            };
            let before: u64 = job.parts.iter().map_while(size).sum();
            return self.read_failed(asked, asked.offset + before);
        }
        let ready = |part| {
            if let Part::Ready(bytes) = part { Some(bytes) } else { None }
        };
        let data: Option<Vec<Bytes>> = job.parts.into_iter().map(ready).collect();
        let result = data.filter(|_| !job.failed).ok_or(RequestError::Io);
        match job.reader {
            Reader::Host(asked) => self.read_ended(asked.id, result.map(Reply::Data)),
            Reader::Fetch(number) => self.fetch_read(number, result.ok()),
            Reader::Copy(number) => self.copy_read(number, result.ok()),
            Reader::Resend(number) => self.resend_read(number, result.ok()),
            Reader::Compare(number) => self.compare_read(number, result.ok()),
            Reader::Verify(number) => self.verify_read_done(number, result.ok()),
            Reader::View(id) => self.answer(id, result.map(Reply::Data)),
            Reader::Trial(volume, block) => self.edit_read((volume, block), result.ok()),
        }
    }

    /// Finds the place of each byte, and joins neighbours on a medium.
    fn locate(&self, access: Access, id: VolumeId, offset: u64, size: u64) -> Vec<Piece> {
        let Some(volume) = self.volumes.get(&id) else {
            return Vec::new();
        };
        let mut pieces = Vec::new();
        if matches!(access, Access::Generation(_) | Access::Trial) {
            self.locate_in_table(access, id, offset, offset + size, &mut pieces);
            return pieces;
        }
        let (mut at, end) = (offset, offset + size);
        let passed = if planted(Plant::NewestNotRead) { self.journal.last() } else { Order(0) };
        for newer in volume.overlay.pieces(offset, end).filter(|piece| piece.order != passed) {
            self.locate_in_table(access, id, at, newer.offset, &mut pieces);
            self.locate_in_entry(newer.order, newer.offset, newer.end, &mut pieces);
            at = newer.end;
        }
        self.locate_in_table(access, id, at, end, &mut pieces);
        pieces
    }

    fn locate_in_entry(&self, order: Order, from: u64, to: u64, pieces: &mut Vec<Piece>) {
        let Some(entry) = self.journal.entry(order) else {
            return;
        };
        let size = to - from;
        if entry.record.kind.zeroes() {
            return push(pieces, Source::Zeroes, size);
        }
        let start = from - entry.record.offset;
        if let Some(payload) = &entry.payload {
            return push(pieces, Source::Memory(payload.slice(start as usize..(start + size) as usize)), size);
        }
        let Place::Redirected(blocks) = &entry.place else {
            return push(pieces, Source::Journal(order, start as u32), size);
        };
        let Some(volume) = self.volumes.get(&entry.record.volume) else {
            return;
        };
        let geometry = volume.table.geometry();
        let block_size = u64::from(geometry.block_size);
        let mut at = start;
        while at < start + size {
            let within = at % block_size;
            let step = (block_size - within).min(start + size - at);
            let Some(block) = blocks.get((at / block_size) as usize) else {
                return;
            };
            let medium = MediumId::Pool(entry.record.volume);
            push(pieces, Source::Medium(medium, geometry.offset_of(*block) + within), step);
            at += step;
        }
    }

    fn locate_in_table(&self, access: Access, id: VolumeId, from: u64, to: u64, pieces: &mut Vec<Piece>) {
        let Some(volume) = self.volumes.get(&id) else {
            return;
        };
        let geometry = volume.table.geometry();
        let (block_size, granule) = (u64::from(geometry.block_size), u64::from(geometry.granule_size()));
        let mut at = from;
        while at < to {
            let (block, within) = ((at / block_size) as u32, at % block_size);
            let (entry, tried) = match (access, &self.trial) {
                (Access::Generation(order), _) => (volume.table.entry_in(order, block), Tried::default()),
                (Access::Trial, Some(trial)) => (volume.table.entry_in(trial.base(), block), trial.tried(id, block)),
                _ => (Some(volume.table.entry(block)), Tried::default()),
            };
            let entry = entry.unwrap_or_default();
            let place = |at: u64| match at / granule {
                granule if tried.mask >> granule & 1 == 1 => tried.physical,
                granule if entry.mask >> granule & 1 == 1 => entry.latest,
                _ => entry.snapshot,
            };
            let stop = (block_size - within).min(to - at) + within;
            let (mut end, physical) = (within, place(within));
            while end < stop && place(end) == physical {
                end = ((end / granule + 1) * granule).min(stop);
            }
            let source = if physical == 0 {
                Source::Zeroes
            } else {
                Source::Medium(MediumId::Pool(id), geometry.offset_of(physical) + within)
            };
            push(pieces, source, end - within);
            at += end - within;
        }
    }

    /// The parts of a range that are not holes.
    pub(super) fn held_ranges(&self, volume: VolumeId, offset: u64, size: u64) -> Vec<Range> {
        let (mut at, mut ranges) = (offset, Vec::new());
        for piece in self.locate(Access::ReadOnly, volume, offset, size) {
            if !matches!(piece.source, Source::Zeroes) {
                ranges.push(Range { volume, offset: at, size: piece.size });
            }
            at += piece.size;
        }
        ranges
    }

    /// Tells which parts of a range hold data.
    pub(super) fn answer_extents(&mut self, id: RequestId, access: Access, volume: VolumeId, offset: u64, size: u64) {
        let mut extents: Vec<Extent> = Vec::new();
        for piece in self.locate(access, volume, offset, size) {
            let kind = if matches!(piece.source, Source::Zeroes) { ExtentKind::Hole } else { ExtentKind::Allocated };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.size += piece.size,
                _ => extents.push(Extent { size: piece.size, kind }),
            }
        }
        self.answer(id, Ok(Reply::Extents(extents)));
    }
}

/// The parts in one piece.
pub(super) fn join(parts: &[Bytes]) -> Bytes {
    if let [whole] = parts {
        return whole.clone();
    }
    parts.concat().into()
}

fn push(pieces: &mut Vec<Piece>, source: Source, size: u64) {
    if size == 0 {
        return;
    }
    if let Some(last) = pieces.last_mut() {
        let joins = match (&last.source, &source) {
            (Source::Zeroes, Source::Zeroes) => true,
            (Source::Medium(a, at), Source::Medium(b, offset)) => {
                a == b && at + last.size == *offset && last.size + size <= READ_SIZE_MAX
            }
            _ => false,
        };
        if joins {
            last.size += size;
            return;
        }
    }
    pieces.push(Piece { source, size });
}

fn cut(bytes: &Bytes, part: &Part) -> Option<Bytes> {
    let Part::Pending { lead, from, size, record } = part else {
        return None;
    };
    let Some(record) = record else {
        return slice(bytes, *lead, *size);
    };
    let payload = slice(bytes, *lead, record.payload_size as usize)?;
    record.check_payload(&payload).ok()?;
    slice(&payload, *from, *size)
}

fn slice(bytes: &Bytes, from: usize, size: usize) -> Option<Bytes> {
    (from + size <= bytes.len()).then(|| bytes.slice(from..from + size))
}
