//! The media of one group on one node: what was written, what of it was synced, and what is left after a loss of power.
//!
//! A completed write survives the daemon. At a loss of power each 512-byte sector holds what it held at the last completed
//! sync, or any later write.

use bytes::Bytes;
use holdfast::{
    buffer::{ALIGNMENT, AlignedBuffer},
    disk::{DiskAction, DiskError, DiskOutcome, MediumId, Storage},
};
use link_model::Random;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = ALIGNMENT as u64;
const SECTOR: usize = 512;

/// What a page held, and which write made it so.
#[derive(Clone)]
struct Version {
    number: u64,
    data: Bytes,
}

/// One medium.
#[derive(Clone, Default)]
struct Medium {
    size: u64,
    /// The durable version, then the later ones.
    pages: BTreeMap<u64, Vec<Version>>,
    /// Pages with more than one version.
    unsynced: BTreeSet<u64>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Media {
    media: BTreeMap<MediumId, Medium>,
    writes: u64,
}

/// A part of a medium whose damage the formats promise to notice. The journal's ring is none: its end is where a batch is not
/// whole, and nothing tells one that was lost from one that was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The pages of a pool's table.
    Table,
    /// One slot of a superblock, of the journal or of a pool.
    Superblock,
}

/// What a region is in bytes of its medium. The places are those of docs/formats.md.
fn bounds(region: Region, medium: MediumId) -> Option<(u64, u64)> {
    const HEAD: u64 = 128 << 10;
    match (region, medium) {
        (Region::Table, MediumId::Pool(_)) => Some((HEAD, HEAD + 2 * PAGE)),
        (Region::Superblock, _) => Some((0, HEAD)),
        _ => None,
    }
}

impl Media {
    /// Makes a medium, or makes it larger.
    pub fn set_size(&mut self, medium: MediumId, size: u64) {
        let medium = self.media.entry(medium).or_default();
        medium.size = medium.size.max(size);
    }

    /// Makes a medium larger, if there is one.
    pub fn set_size_if_there(&mut self, medium: MediumId, size: u64) {
        if self.media.contains_key(&medium) {
            self.set_size(medium, size);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.media.clear();
    }

    /// Whether nothing was made here.
    pub fn is_empty(&self) -> bool {
        self.media.is_empty()
    }

    /// How many writes have ended.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Ends an operation that was asked for when `asked` writes had ended.
    pub fn carry_out(&mut self, medium: MediumId, action: &DiskAction, asked: u64) -> DiskOutcome {
        match action {
            DiskAction::Read { offset, size } => self.read(medium, *offset, *size),
            DiskAction::Write { offset, pieces } => {
                let mut at = *offset;
                for piece in pieces {
                    assert!((piece.as_ptr() as usize).is_multiple_of(ALIGNMENT), "a piece of memory is not aligned");
                    self.write(medium, at, piece.clone())?;
                    at += piece.len() as u64;
                }
                Ok(Bytes::new())
            }
            DiskAction::Sync => {
                self.sync_until(medium, asked);
                Ok(Bytes::new())
            }
            DiskAction::Release { offset, size } => {
                self.write(medium, *offset, AlignedBuffer::new(*size as usize).freeze())?;
                Ok(Bytes::new())
            }
        }
    }

    fn medium(&mut self, medium: MediumId) -> Result<&mut Medium, DiskError> {
        self.media.get_mut(&medium).ok_or(DiskError::Failed { errno: 6 })
    }

    /// A sync promises nothing about writes that ended after it was asked for.
    fn sync_until(&mut self, medium: MediumId, asked: u64) {
        let Some(medium) = self.media.get_mut(&medium) else { return };
        let Medium { pages, unsynced, .. } = medium;
        unsynced.retain(|page| {
            let Some(versions) = pages.get_mut(page) else { return false };
            let durable = versions.iter().rposition(|version| version.number <= asked).unwrap_or(0);
            versions.drain(..durable);
            versions.len() > 1
        });
    }

    /// Power is lost.
    pub fn lose_power(&mut self, chance: &mut Random) {
        for medium in self.media.values_mut() {
            for page in std::mem::take(&mut medium.unsynced) {
                let Some(versions) = medium.pages.get_mut(&page) else { continue };
                let mut data = AlignedBuffer::copy_of(&versions[0].data);
                for (index, sector) in data.as_mut_slice().chunks_mut(SECTOR).enumerate() {
                    let survivor = &versions[chance.below(versions.len() as u64) as usize].data;
                    sector.copy_from_slice(&survivor[index * SECTOR..][..SECTOR]);
                }
                *versions = vec![Version { number: 0, data: data.freeze() }];
            }
        }
    }

    /// Whether damage to what an operation writes would be noticed.
    pub fn is_guarded(medium: MediumId, offset: u64) -> bool {
        bounds(Region::Table, medium).is_some_and(|(from, to)| (from..to).contains(&offset))
    }

    /// Where a guarded write may go by mistake.
    pub fn elsewhere(offset: u64) -> u64 {
        offset ^ PAGE
    }

    /// Changes a byte of a page that was written; whether there was one.
    pub fn rot(&mut self, region: Region, chance: &mut Random) -> bool {
        let mut places = Vec::new();
        for (id, medium) in &self.media {
            let Some((from, to)) = bounds(region, *id) else { continue };
            // Of a superblock's two slots only the first, so that the other one counts.
            let to = if region == Region::Superblock { to / 2 } else { to };
            places.extend(medium.pages.range(from / PAGE..to.div_ceil(PAGE)).map(|(page, _)| (*id, *page)));
        }
        if places.is_empty() {
            return false;
        }
        let (id, page) = places[chance.below(places.len() as u64) as usize];
        let versions = self.media.get_mut(&id).and_then(|medium| medium.pages.get_mut(&page));
        for version in versions.into_iter().flatten() {
            let mut data = AlignedBuffer::copy_of(&version.data);
            let at = chance.below(PAGE) as usize;
            data.as_mut_slice()[at] ^= 1 + chance.below(255) as u8;
            version.data = data.freeze();
        }
        true
    }
}

impl Storage for Media {
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError> {
        Ok(self.medium(medium)?.size)
    }

    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError> {
        let medium = self.medium(medium)?;
        assert!(offset + u64::from(size) <= medium.size, "a read goes beyond the medium");
        let mut buffer = AlignedBuffer::new(size as usize);
        let first = offset / PAGE;
        let last = (offset + u64::from(size)).div_ceil(PAGE);
        for (page, versions) in medium.pages.range(first..last) {
            let Some(version) = versions.last() else { continue };
            let at = ((page - first) * PAGE) as usize;
            let out = &mut buffer.as_mut_slice()[at..];
            let size = out.len().min(ALIGNMENT);
            out[..size].copy_from_slice(&version.data[..size]);
        }
        Ok(buffer.freeze())
    }

    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        self.writes += 1;
        let number = self.writes;
        let medium = self.medium(medium)?;
        assert!(offset + data.len() as u64 <= medium.size, "a write goes beyond the medium");
        assert!(data.len().is_multiple_of(ALIGNMENT) && offset.is_multiple_of(PAGE), "a write is not aligned");
        for (index, page) in (offset / PAGE..(offset + data.len() as u64) / PAGE).enumerate() {
            let version = Version { number, data: data.slice(index * ALIGNMENT..(index + 1) * ALIGNMENT) };
            let zero = || vec![Version { number: 0, data: Bytes::from_static(&[0; ALIGNMENT]) }];
            medium.pages.entry(page).or_insert_with(zero).push(version);
            medium.unsynced.insert(page);
        }
        Ok(())
    }

    fn sync(&mut self, medium: MediumId) -> Result<(), DiskError> {
        self.sync_until(medium, self.writes);
        Ok(())
    }
}
