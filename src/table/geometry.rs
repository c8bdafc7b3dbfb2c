//! How a volume is cut into table blocks, granules and pages, and where they lie in the pool.
//!
//! The table's pages lie before the blocks when a pool is made. A volume that grows may need more pages than fit there: then
//! they move among the blocks, which keep their places and numbers.

use super::slots::PAGE_PAIR_SIZE;
use crate::format::{pool_superblock::TABLE_OFFSET, table_page::TABLE_PAGE_ENTRY_COUNT};

/// Smallest granule in bytes: the unit in which a block is known to be in the latest or the snapshot block.
const GRANULE_SIZE_MIN: u32 = 4096;

/// The blocks begin at a multiple of so many bytes.
const BLOCKS_ALIGNMENT: u64 = 1 << 20;

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Of the volume.
    pub volume_size: u64,
    /// Of a table block.
    pub block_size: u32,
    /// Physical blocks in the pool.
    pub block_count: u32,
    /// Where physical block 1 begins.
    pub blocks_offset: u64,
    /// Where the table's pages begin.
    pub pages_offset: u64,
}

impl Geometry {
    /// The layout of a pool of `medium_size` bytes; `None` if it cannot hold the whole volume once.
    pub fn fit(volume_size: u64, block_size: u32, medium_size: u64) -> Option<Self> {
        let blocks_offset = blocks_offset(volume_size, block_size);
        let room = medium_size.checked_sub(blocks_offset)? / u64::from(block_size);
        let block_count = room.min(u64::from(u32::MAX - 1)) as u32;
        (u64::from(block_count) >= volume_size.div_ceil(u64::from(block_size))).then_some(Self {
            volume_size,
            block_size,
            block_count,
            blocks_offset,
            pages_offset: TABLE_OFFSET,
        })
    }

    /// Whether a superblock's layout is possible on a medium of `medium_size` bytes: everything in its place, nothing
    /// overlapping.
    pub fn is_sound(&self, medium_size: u64) -> bool {
        let block_size = u64::from(self.block_size);
        let end =
            u64::from(self.block_count).checked_mul(block_size).and_then(|size| size.checked_add(self.blocks_offset));
        let fits = end.is_some_and(|end| end <= medium_size) && self.block_count < u32::MAX;
        let pages_end = self.pages_offset.checked_add(self.pages_size());
        let before = pages_end.is_some_and(|end| end <= self.blocks_offset) && self.pages_offset == TABLE_OFFSET;
        let among = self.pages_offset.checked_sub(self.blocks_offset).is_some_and(|at| at.is_multiple_of(block_size))
            && pages_end.is_some_and(|pages_end| end.is_some_and(|end| pages_end <= end));
        // Nothing lies over the superblocks.
        let in_place = self.blocks_offset > TABLE_OFFSET && self.blocks_offset.is_multiple_of(BLOCKS_ALIGNMENT);
        if !(fits && in_place && (before || among)) {
            return false;
        }
        // Room for the volume once, beside the pages.
        let needed = self.volume_size.div_ceil(block_size) + u64::from(self.page_blocks().1);
        u64::from(self.block_count) >= needed
    }

    /// The blocks that the table's pages lie in: the first, and how many. They are among the blocks, or before them.
    pub fn page_blocks(&self) -> (u32, u32) {
        match self.pages_offset.checked_sub(self.blocks_offset) {
            Some(at) => {
                let block_size = u64::from(self.block_size);
                ((at / block_size) as u32 + 1, self.pages_size().div_ceil(block_size) as u32)
            }
            None => (1, 0),
        }
    }

    /// The same pool with a larger volume on a medium of `medium_size` bytes, the pages where they are. The second: the pages
    /// do not fit there any more.
    pub fn grown(&self, volume_size: u64, medium_size: u64) -> (Self, bool) {
        let room = medium_size.saturating_sub(self.blocks_offset) / u64::from(self.block_size);
        let block_count = (room.min(u64::from(u32::MAX - 1)) as u32).max(self.block_count);
        let grown = Self { volume_size, block_count, ..*self };
        let crowded = if self.pages_offset < self.blocks_offset {
            self.pages_offset + grown.pages_size() > self.blocks_offset
        } else {
            grown.page_blocks() != self.page_blocks()
        };
        (grown, crowded)
    }

    /// Bytes of the table's pages, both slots.
    pub fn pages_size(&self) -> u64 {
        u64::from(self.page_count()) * PAGE_PAIR_SIZE
    }

    /// Bytes in a granule.
    pub fn granule_size(&self) -> u32 {
        (self.block_size / 64).max(GRANULE_SIZE_MIN)
    }

    /// Granules in a block: 4 to 64.
    pub fn granule_count(&self) -> u32 {
        self.block_size / self.granule_size()
    }

    /// The mask of a block that is wholly in one place.
    pub fn full_mask(&self) -> u64 {
        u64::MAX >> (64 - self.granule_count())
    }

    /// Bytes behind one dirty bit.
    pub fn dirty_unit(&self) -> u32 {
        (self.block_size / 16).max(GRANULE_SIZE_MIN)
    }

    /// All dirty bits of a block.
    pub fn dirty_full(&self) -> u16 {
        (u32::from(u16::MAX) >> (16 - self.block_size / self.dirty_unit())) as u16
    }

    /// Pages of the table.
    pub fn page_count(&self) -> u32 {
        page_count(self.volume_size, self.block_size)
    }

    /// Where the first slot of a page begins on the medium.
    pub fn page_offset(&self, index: u32) -> u64 {
        self.pages_offset + u64::from(index) * PAGE_PAIR_SIZE
    }

    /// Where a physical block begins on the medium.
    pub fn offset_of(&self, block: u32) -> u64 {
        self.blocks_offset + u64::from(block - 1) * u64::from(self.block_size)
    }
}

fn page_count(volume_size: u64, block_size: u32) -> u32 {
    volume_size.div_ceil(u64::from(block_size)).div_ceil(TABLE_PAGE_ENTRY_COUNT as u64) as u32
}

fn blocks_offset(volume_size: u64, block_size: u32) -> u64 {
    let table = u64::from(page_count(volume_size, block_size)) * PAGE_PAIR_SIZE;
    (TABLE_OFFSET + table).next_multiple_of(BLOCKS_ALIGNMENT)
}

/// Size in bytes of a pool with room for a volume and a whole snapshot of it.
pub fn pool_size_for(volume_size: u64, block_size: u32) -> u64 {
    let blocks = volume_size.div_ceil(u64::from(block_size)) * u64::from(block_size);
    blocks_offset(volume_size, block_size) + 2 * blocks
}

/// Size in bytes of a pool that holds a volume once, and a table that had to move.
pub fn smallest_pool_size(volume_size: u64, block_size: u32) -> u64 {
    grown_pool_size(volume_size, block_size) - volume_size.div_ceil(u64::from(block_size)) * u64::from(block_size)
}

/// Size in bytes of a pool with room for a volume that grew, a whole snapshot of it, and a table that had to move.
pub fn grown_pool_size(volume_size: u64, block_size: u32) -> u64 {
    let table = u64::from(page_count(volume_size, block_size)) * PAGE_PAIR_SIZE;
    pool_size_for(volume_size, block_size) + table.next_multiple_of(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIUM: u64 = 64 << 20;

    fn sound() -> Geometry {
        let made = Geometry::fit(16 << 20, 64 << 10, MEDIUM).expect("it fits");
        assert!(made.is_sound(MEDIUM));
        made
    }

    #[test]
    fn an_impossible_layout_is_not_sound() {
        let made = sound();
        let mut moved = made;
        moved.pages_offset = made.offset_of(made.block_count);
        assert!(moved.is_sound(MEDIUM), "pages among the blocks");
        let bad = [
            Geometry { block_count: made.block_count + 1, ..made },
            Geometry { block_count: 255, ..made },
            Geometry { volume_size: MEDIUM, ..made },
            Geometry { blocks_offset: 4096, ..made },
            Geometry { blocks_offset: 0, pages_offset: 128 << 10, ..made },
            Geometry { blocks_offset: made.blocks_offset + 4096, block_count: 300, ..made },
            Geometry { blocks_offset: !0xf_ffff, ..made },
            Geometry { pages_offset: made.pages_offset + 4096, ..made },
            Geometry { pages_offset: moved.pages_offset + 4096, ..made },
            Geometry { pages_offset: moved.pages_offset + 65_536, ..made },
            Geometry { pages_offset: !0xffff, ..made },
            Geometry { pages_offset: made.blocks_offset + (u64::from(u32::MAX) << 16), ..made },
            Geometry { block_count: 256, ..moved },
        ];
        for (index, layout) in bad.iter().enumerate() {
            assert!(!layout.is_sound(MEDIUM), "{index}: {layout:?}");
        }
        assert!(!made.is_sound(MEDIUM - 4096), "the medium has shrunk");
    }
}
