//! What the peer lacks, against a plain set of the parts of blocks: marked, cleared, found, and kept through checkpoints.

use super::*;
use crate::{
    buffer::AlignedBuffer,
    command::VolumeSpec,
    disk::{DiskError, MediumId, Storage},
    units::VOLUME_SIZE_MIN,
};
use alloc::{collections::BTreeMap, string::String, vec};
use bytes::Bytes;
use proptest::prelude::*;

/// A medium in memory that never fails.
#[derive(Default)]
pub(super) struct Pages(BTreeMap<u64, Bytes>);

impl Storage for Pages {
    fn size(&mut self, _: MediumId) -> Result<u64, DiskError> {
        Ok(1 << 40)
    }

    fn read(&mut self, _: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError> {
        let mut buffer = AlignedBuffer::new(size as usize);
        for (at, out) in (offset..).step_by(4096).zip(buffer.as_mut_slice().chunks_mut(4096)) {
            if let Some(page) = self.0.get(&at) {
                out.copy_from_slice(page);
            }
        }
        Ok(buffer.freeze())
    }

    fn write(&mut self, _: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        (offset..).step_by(4096).zip(data.chunks(4096)).for_each(|(at, part)| {
            self.0.insert(at, Bytes::copy_from_slice(part));
        });
        Ok(())
    }

    fn sync(&mut self, _: MediumId) -> Result<(), DiskError> {
        Ok(())
    }
}

pub(super) fn spec(size: u64, table_block_size: u32) -> VolumeSpec {
    VolumeSpec {
        id: VolumeId(1),
        name: "v".parse().unwrap(),
        size,
        logical_block_size: 512,
        table_block_size,
        pool: MediumUuid([2; 16]),
        pool_path: String::new(),
    }
}

/// The table of a checkpoint, after `count` pages of which all marks went.
fn checkpointed(table: &mut Table, pages: &mut Pages, spec: &VolumeSpec, count: u32) -> Table {
    let medium = MediumId::Pool(spec.id);
    let mut checkpoint = table.begin_checkpoint(Order(1));
    for index in 0.. {
        if index == count {
            table.clear_all_dirty();
        }
        let Some((offset, bytes)) = table.next_page() else { break };
        pages.write(medium, offset, bytes).unwrap();
    }
    let (offset, bytes) = table.superblock(&mut checkpoint);
    pages.write(medium, offset, bytes).unwrap();
    load(pages, GroupId([7; 16]), spec).unwrap()
}

proptest! {
    #[test]
    fn dirty_parts_equal_a_set(
        block_size in (14u32..=20).prop_map(|bits| 1 << bits), tail_pages in 0u64..5,
        steps in prop::collection::vec((0u8..8, any::<u32>(), 1u64..600, any::<u16>()), 1..60),
    ) {
        let size = VOLUME_SIZE_MIN + tail_pages * 4096;
        let spec = spec(size, block_size);
        let mut pages = Pages::default();
        format_pool(&mut pages, GroupId([7; 16]), &spec).unwrap();
        let mut table = load(&mut pages, GroupId([7; 16]), &spec).unwrap();
        let unit = u64::from(block_size / 16).max(4096);
        let units = u64::from(block_size) / unit;
        let mut model = vec![false; (size.div_ceil(u64::from(block_size)) * units) as usize];
        for (what, place, sectors, bits) in steps {
            let (offset, block) = (u64::from(place) % (size / 512) * 512, place % (model.len() as u64 / units) as u32);
            let length = (sectors * 512).min(size - offset);
            match what {
                0..4 => {
                    table.mark_dirty(offset, length);
                    model[(offset / unit) as usize..(offset + length).div_ceil(unit) as usize].fill(true);
                }
                4 | 5 => {
                    table.clear_dirty(block, bits);
                    for bit in (0..units).filter(|bit| bits >> bit & 1 == 1) {
                        model[(u64::from(block) * units + bit) as usize] = false;
                    }
                }
                6 => table = checkpointed(&mut table, &mut pages, &spec, u32::from(bits) % 4),
                _ if place % 8 == 0 => {
                    table.clear_all_dirty();
                    model.fill(false);
                }
                _ => {}
            }
            let mut found = vec![false; model.len()];
            let mut from = 0;
            while let Some((block, bits)) = table.next_dirty(from) {
                prop_assert!(bits != 0);
                (0..units).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| {
                    found[(u64::from(block) * units + bit) as usize] = true;
                });
                from = block + 1;
            }
            prop_assert_eq!(&found, &model);
            prop_assert_eq!(table.dirty_bytes(), model.iter().filter(|dirty| **dirty).count() as u64 * unit);
        }
    }
}
