//! Tables on media that say, under valid checksums, what no correct program says; and what an unfinished checkpoint left.

use super::{
    dirty_tests::{Pages, spec},
    *,
};
use crate::{
    disk::{MediumId, Storage},
    format::{
        FormatError,
        kept_page::{self, KeptRecord},
    },
    units::VOLUME_SIZE_MIN,
};

const GROUP: GroupId = GroupId([7; 16]);
const BLOCK_SIZE: u32 = 16 << 10;
const BLOCK_COUNT: u32 = (VOLUME_SIZE_MIN / BLOCK_SIZE as u64) as u32;

enum Superblock {
    Written,
    Lost,
}

/// The table that is loaded after a checkpoint of one that has an entry for a block.
fn loaded(block: u32, superblock: Superblock, entry: impl Fn(&Geometry) -> Entry) -> Result<Table, LoadError> {
    let (mut pages, spec) = (Pages::default(), spec(VOLUME_SIZE_MIN, BLOCK_SIZE));
    format_pool(&mut pages, GROUP, &spec)?;
    let mut table = load(&mut pages, GROUP, &spec)?;
    let entry = entry(table.geometry());
    table.set_entry(block, entry);
    let mut checkpoint = table.begin_checkpoint(Order(1));
    let mut write = |(offset, bytes)| pages.write(MediumId::Pool(spec.id), offset, bytes);
    while let Some(page) = table.next_page() {
        write(page)?;
    }
    if matches!(superblock, Superblock::Written) {
        write(table.superblock(&mut checkpoint))?;
    }
    load(&mut pages, GROUP, &spec)
}

#[test]
fn an_entry_that_cannot_be_is_refused() {
    let empty = Entry::default();
    let possible = [
        Entry { latest: 1, mask: 1, stamp: 1, ..empty },
        Entry { latest: 1, snapshot: 2, mask: 0b111, dirty: 0xf, ..empty },
        Entry { mask: 0xf, ..empty },
        Entry { snapshot: 2, mask: 0xf, stamp: 1, ..empty },
    ];
    for entry in possible {
        let table = loaded(BLOCK_COUNT - 1, Superblock::Written, |_| entry).expect("it can be");
        assert_eq!(table.entry(BLOCK_COUNT - 1), entry);
    }
    let impossible = [
        (Entry { mask: 1, ..empty }, "mask"),
        (Entry { snapshot: 2, mask: 0b1110, ..empty }, "mask"),
        (Entry { latest: 1, mask: 0x1f, ..empty }, "mask"),
        (Entry { latest: 1, mask: 1, stamp: 2, ..empty }, "stamp"),
        (Entry { dirty: 0x10, ..empty }, "set of dirty parts"),
        (Entry { latest: 1, snapshot: 1, mask: 1, ..empty }, "physical block"),
        (Entry { latest: u32::MAX, mask: 1, ..empty }, "physical block"),
    ];
    for (entry, field) in impossible {
        let refused = loaded(3, Superblock::Written, |_| entry).map(|_| ());
        assert_eq!(refused, Err(LoadError::Entry { block: 3, field }), "{entry:?}");
    }
    let behind = loaded(BLOCK_COUNT, Superblock::Written, |_| Entry { dirty: 1, ..empty }).map(|_| ());
    assert_eq!(behind, Err(LoadError::Entry { block: u64::from(BLOCK_COUNT), field: "place" }));
}

/// A checkpoint after the medium has grown may name blocks that the superblock before it does not know. The next one has its number.
#[test]
fn a_page_of_an_unfinished_checkpoint_is_written_over() {
    let beyond = |geometry: &Geometry| Entry { latest: geometry.block_count + 1, mask: 1, ..Entry::default() };
    let table = loaded(3, Superblock::Lost, beyond).expect("the table before it is whole");
    assert_eq!(table.entry(3), Entry::default());
    assert!(table.is_changed(), "the next checkpoint leaves that page where it is");
}

#[test]
fn a_record_of_a_boundary_that_is_still_to_come_is_refused() {
    let (mut pages, spec) = (Pages::default(), spec(VOLUME_SIZE_MIN, BLOCK_SIZE));
    format_pool(&mut pages, GROUP, &spec).expect("it fits");
    let mut table = load(&mut pages, GROUP, &spec).expect("it is whole");
    table.keep_snapshot(Some(Order(1)));
    table.keep_snapshot(Some(Order(2)));
    assert!(table.reserve_records(1));
    let mut checkpoint = table.begin_checkpoint(Order(2));
    let records = [KeptRecord { boundary: table.stamp() + 1, block: 0, physical: 0 }];
    while let Some((offset, bytes)) = table.next_page() {
        let is_first = kept_page::parse(&bytes, spec.pool, 0).is_ok();
        let forged = kept_page::encode(spec.pool, 0, 1, &records).0;
        pages.write(MediumId::Pool(spec.id), offset, if is_first { forged } else { bytes }).expect("it fits");
    }
    let (offset, bytes) = table.superblock(&mut checkpoint);
    pages.write(MediumId::Pool(spec.id), offset, bytes).expect("it fits");
    let refused = FormatError::Field { what: "page of kept blocks", field: "record" };
    assert_eq!(load(&mut pages, GROUP, &spec).map(|_| ()), Err(LoadError::Format(refused)));
}
