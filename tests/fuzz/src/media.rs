//! Media in memory, whose content a fuzzer can alter under a valid checksum.

use crate::input::Input;
use bytes::Bytes;
use holdfast::{
    buffer::{ALIGNMENT, AlignedBuffer},
    disk::{DiskAction, DiskError, DiskOutcome, MediumId, Storage},
    format::{batch::header_size, journal_superblock::JOURNAL_SUPERBLOCK_SIZE},
    units::{GroupId, VolumeId},
};
use std::{collections::BTreeMap, sync::Arc};

/// Errno of a medium that failed.
const EIO: i32 = 5;
/// The core never moves more at once: a read's size is memory that the shell takes.
const OPERATION_SIZE_MAX: u64 = 64 << 20;
const PAGE: u64 = ALIGNMENT as u64;

type Page = [u8; ALIGNMENT];

/// Pages that were never written hold zeroes.
#[derive(Clone, Default)]
pub struct Media {
    pages: BTreeMap<(MediumId, u64), Arc<Page>>,
    sizes: BTreeMap<MediumId, u64>,
}

impl Media {
    /// Makes a medium of this size, or makes it as large if it is smaller; its size.
    pub fn enlarge(&mut self, medium: MediumId, size: u64) -> u64 {
        let known = self.sizes.entry(medium).or_default();
        *known = size.max(*known);
        *known
    }

    /// Carries out an operation as a shell does.
    pub fn carry_out(&mut self, medium: MediumId, action: DiskAction) -> DiskOutcome {
        match action {
            DiskAction::Read { offset, size } => self.read(medium, offset, size),
            DiskAction::Write { offset, pieces } => {
                let mut at = offset;
                for piece in pieces {
                    let size = piece.len() as u64;
                    self.write(medium, at, piece)?;
                    at += size;
                }
                Ok(Bytes::new())
            }
            DiskAction::Sync => Ok(Bytes::new()),
            DiskAction::Release { offset, size } => {
                self.check(medium, offset, size)?;
                for page in offset / PAGE..(offset + size) / PAGE {
                    self.pages.remove(&(medium, page));
                }
                Ok(Bytes::new())
            }
        }
    }

    fn check(&self, medium: MediumId, offset: u64, size: u64) -> Result<(), DiskError> {
        assert!((offset | size).is_multiple_of(PAGE), "{size} bytes at {offset} are not aligned");
        let end = offset.checked_add(size);
        let fits = self.sizes.get(&medium).is_some_and(|medium| end.is_some_and(|end| end <= *medium));
        if fits { Ok(()) } else { Err(DiskError::Failed { errno: EIO }) }
    }

    fn page_mut(&mut self, medium: MediumId, page: u64) -> &mut Page {
        Arc::make_mut(self.pages.entry((medium, page)).or_insert_with(|| Arc::new([0; ALIGNMENT])))
    }

    /// Alters a structure that is there, or what follows its checksum, and makes its checksum right again.
    pub fn alter(&mut self, group: GroupId, input: &mut Input<'_>) {
        let found: Vec<(MediumId, u64, Structure)> = self
            .pages
            .iter()
            .filter_map(|((medium, page), bytes)| Some((*medium, *page, Structure::of(bytes)?)))
            .collect();
        if found.is_empty() {
            return;
        }
        let (medium, first, structure) = found[usize::from(input.u16()) % found.len()];
        let count = structure.reach.div_ceil(ALIGNMENT) as u64;
        let mut bytes: Vec<u8> = (first..first + count).flat_map(|page| self.page_mut(medium, page).to_vec()).collect();
        for _ in 0..1 + input.pick(4) {
            // Most fields are near the front.
            let reach = if input.flag() { 256 } else { structure.reach };
            let at = usize::from(input.u16()) % reach.min(structure.reach);
            let width = input.choose(&[1, 2, 4, 8]).min(structure.reach - at);
            let mut now = [0; 8];
            now[..width].copy_from_slice(&bytes[at..at + width]);
            let number = input.number(u64::from_le_bytes(now));
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        structure.mend(group, &mut bytes);
        for (page, part) in (first..).zip(bytes.chunks_exact(ALIGNMENT)) {
            self.page_mut(medium, page).copy_from_slice(part);
        }
    }

    /// Makes the digest of a pool's table what its pages give.
    pub fn mend_digest(&mut self, volume: VolumeId, digest: u64) {
        for slot in [0, 16] {
            let page = self.page_mut(MediumId::Pool(volume), slot);
            page[96..104].copy_from_slice(&digest.to_le_bytes());
            mend(page, 16);
        }
    }
}

impl Storage for Media {
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError> {
        self.sizes.get(&medium).copied().ok_or(DiskError::Failed { errno: EIO })
    }

    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError> {
        assert!(u64::from(size) <= OPERATION_SIZE_MAX, "{size} bytes are read at once");
        self.check(medium, offset, size.into())?;
        let mut buffer = AlignedBuffer::new(size as usize);
        for (page, out) in (offset / PAGE..).zip(buffer.as_mut_slice().chunks_exact_mut(ALIGNMENT)) {
            if let Some(bytes) = self.pages.get(&(medium, page)) {
                out.copy_from_slice(&bytes[..]);
            }
        }
        Ok(buffer.freeze())
    }

    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        assert!((data.as_ptr() as usize).is_multiple_of(ALIGNMENT), "the data's address is not aligned");
        self.check(medium, offset, data.len() as u64)?;
        for (page, part) in (offset / PAGE..).zip(data.chunks_exact(ALIGNMENT)) {
            self.page_mut(medium, page).copy_from_slice(part);
        }
        Ok(())
    }

    fn sync(&mut self, _: MediumId) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Something with a checksum.
#[derive(Clone, Copy)]
struct Structure {
    /// What the checksum is of.
    size: usize,
    /// What can be altered.
    reach: usize,
    checksum_at: usize,
    /// Records in it, each with a checksum of its own.
    entry_count: usize,
}

impl Structure {
    /// What begins with this page.
    fn of(page: &Page) -> Option<Self> {
        let plain = |size, checksum_at| Some(Self { size, reach: size, checksum_at, entry_count: 0 });
        match (&page[..4], &page[8..12]) {
            (b"HOLD", b"JRNL") => plain(JOURNAL_SUPERBLOCK_SIZE, 16),
            (b"HOLD", b"POOL") => plain(ALIGNMENT, 16),
            (b"HFT1" | b"HFK1", _) => plain(ALIGNMENT, 8),
            (b"HFB1", _) => {
                let entry_count = usize::from(page[12]);
                let size = header_size(entry_count);
                // Lists of blocks lie near the front.
                Some(Self { size, reach: size + ALIGNMENT, checksum_at: 8, entry_count })
            }
            _ => None,
        }
    }

    fn mend(self, group: GroupId, bytes: &mut [u8]) {
        let mut end = self.size;
        for entry in 0..self.entry_count {
            let record = &mut bytes[128 + 80 * entry..][..64];
            let checksum = crc32c::crc32c_append(crc32c::crc32c(&group.0), &record[4..]);
            record[..4].copy_from_slice(&checksum.to_le_bytes());
            mend_list(bytes, entry, &mut end);
        }
        mend(&mut bytes[..self.size], self.checksum_at);
    }
}

/// Puts the checksum of an entry's list of blocks into the entry, if it has one that can be altered. What is stored for the entry
/// before ends at `end`.
fn mend_list(bytes: &mut [u8], entry: usize, end: &mut usize) {
    let at = 128 + 80 * entry;
    let size = u32::from_le_bytes([bytes[at + 64], bytes[at + 65], bytes[at + 66], bytes[at + 67]]) as usize;
    let start = end.next_multiple_of(if size >= ALIGNMENT { ALIGNMENT } else { 512 });
    *end = start.saturating_add(size);
    let (is_new, is_redirected) = (bytes[4] > 1, bytes[at + 68] == 1);
    if is_new
        && is_redirected
        && let Some(list) = bytes.get(start..*end)
    {
        let checksum = crc32c::crc32c(list);
        bytes[at + 72..at + 76].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Puts the checksum of all bytes at `at`.
pub fn mend(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let checksum = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}
