//! The two slots of a page on the medium: which counts, and which is written next.

use crate::format::{
    FormatError,
    page::{PAGE_SIZE, Page},
};

/// Bytes of both slots of a page.
pub const PAGE_PAIR_SIZE: u64 = 2 * PAGE_SIZE as u64;

/// Which slot of a page counts.
#[derive(Clone, Copy)]
pub struct PageMeta {
    /// The checkpoint that wrote it.
    checkpoint: u64,
    /// Its checksum.
    checksum: u32,
    /// The slot.
    slot: u8,
}

impl PageMeta {
    /// A page's part in the digest: depends on where it is, when it was written and what it holds.
    pub fn weight(&self, index: u32) -> u64 {
        let crc = crc32c::crc32c_append(self.checksum, &self.checkpoint.to_le_bytes());
        (u64::from(crc) << 32 | u64::from(self.checksum)).wrapping_mul(2 * u64::from(index) + 1)
    }

    /// A checkpoint writes the page into the slot that does not count; where that begins behind the first, and what it adds to
    /// the digest.
    pub fn write(meta: &mut Option<Self>, index: u32, checkpoint: u64, checksum: u32) -> (u64, u64) {
        let slot = meta.map_or(0, |old| 1 - old.slot);
        let new = Self { checkpoint, checksum, slot };
        let gone = meta.replace(new).map_or(0, |old| old.weight(index));
        (u64::from(slot) * PAGE_SIZE as u64, new.weight(index).wrapping_sub(gone))
    }
}

/// What the slots of a page hold.
pub struct Slots<T> {
    /// The page as the last checkpoint knew it; `None`: none of them wrote it.
    pub newest: Option<(T, PageMeta)>,
    /// A checkpoint that did not end has left something. The next one has the same number: it must write over that.
    pub unfinished: bool,
}

impl<T> Slots<T> {
    /// Reads both slots. Checkpoints from `since` to `last` count. A page that is torn does not; the digest tells if one is
    /// missing that should be there.
    pub fn read(bytes: &[u8], since: u64, last: u64, parse: impl Fn(&[u8]) -> Result<Page<T>, FormatError>) -> Self {
        let mut slots = Self { newest: None, unfinished: false };
        for (slot, raw) in (0..).zip(bytes.chunks_exact(PAGE_SIZE)) {
            let Some(page) = parse(raw).ok().filter(|page| page.checkpoint >= since) else { continue };
            if page.checkpoint > last {
                slots.unfinished = true;
            } else if slots.newest.as_ref().is_none_or(|(_, newest)| newest.checkpoint < page.checkpoint) {
                let meta = PageMeta { checkpoint: page.checkpoint, checksum: page.checksum, slot };
                slots.newest = Some((page.content, meta));
            }
        }
        slots
    }
}
