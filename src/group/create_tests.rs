//! Media that hold something already are not formatted.

use super::{alone_bench::spec, create::FormatError, tests::Disks, *};
use crate::{
    buffer::AlignedBuffer, disk::Storage, format::journal_superblock::SLOTS, occupant::Occupant, pair::Role,
    table::LoadError, units::VOLUME_SIZE_MIN,
};

const POOL: MediumId = MediumId::Pool(VolumeId(1));
const SIZE: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

fn group() -> GroupSpec {
    let (id, name, journal) = (GroupId([7; 16]), "g".parse().unwrap(), MediumUuid([1; 16]));
    GroupSpec { id, name, journal, role: Role::Primary, peer: None }
}

fn volume() -> VolumeSpec {
    spec(1, 64 << 10, VOLUME_SIZE_MIN)
}

fn blank() -> Disks {
    let mut disks = Disks::default();
    [MediumId::Journal, POOL].iter().for_each(|medium| disks.set_size(*medium, SIZE));
    disks
}

/// A medium that is a journal or a pool, under both names, and what it is.
fn occupied(by: MediumId) -> (Disks, Occupant) {
    let mut disks = blank();
    let occupant = if by == MediumId::Journal {
        format_journal(&mut disks, &group()).unwrap();
        Occupant::Journal { group: GroupId([7; 16]), name: "g".parse().unwrap() }
    } else {
        format_pool(&mut disks, GroupId([7; 16]), &volume()).unwrap();
        Occupant::Pool { group: GroupId([7; 16]) }
    };
    let other = if by == POOL { MediumId::Journal } else { POOL };
    let bytes = disks.read(by, 0, 1 << 20).unwrap();
    disks.write(other, 0, bytes).unwrap();
    (disks, occupant)
}

#[track_caller]
fn refuses(disks: &mut Disks, occupant: Occupant) {
    let before = disks.writes();
    assert_eq!(format_journal(disks, &group()), Err(FormatError::InUse(occupant.clone())));
    let pool = format_pool(disks, GroupId([8; 16]), &volume());
    assert_eq!(pool, Err(FormatError::Pool(LoadError::InUse(occupant))));
    assert_eq!(disks.writes(), before, "something was written");
}

/// Writes into an aligned block of both media.
fn damage(disks: &mut Disks, slot: u64, at: u64, bytes: &[u8]) {
    for medium in [MediumId::Journal, POOL] {
        let mut buffer = AlignedBuffer::copy_of(&disks.read(medium, slot, 4096).unwrap());
        buffer.as_mut_slice()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        disks.write(medium, slot, buffer.freeze()).unwrap();
    }
}

#[test]
fn a_medium_that_holds_a_journal_or_a_pool_becomes_neither() {
    for by in [MediumId::Journal, POOL] {
        let (mut disks, occupant) = occupied(by);
        refuses(&mut disks, occupant);
    }
}

#[test]
fn nor_does_one_that_is_damaged() {
    for by in [MediumId::Journal, POOL] {
        let (mut disks, occupant) = occupied(by);
        damage(&mut disks, SLOTS[1], 1024, &[0xff]);
        refuses(&mut disks, occupant);
        damage(&mut disks, SLOTS[0], 1024, &[0xff]);
        refuses(&mut disks, Occupant::Unreadable);
        // Of one slot there is nothing left at all.
        damage(&mut disks, SLOTS[0], 0, &[0; 4096]);
        refuses(&mut disks, Occupant::Unreadable);
    }
}

#[test]
fn nor_does_one_of_a_newer_version() {
    for by in [MediumId::Journal, POOL] {
        let (mut disks, _) = occupied(by);
        SLOTS.iter().for_each(|slot| damage(&mut disks, *slot, 12, &[99, 0]));
        refuses(&mut disks, Occupant::Unreadable);
    }
}

#[test]
fn one_that_was_erased_becomes_what_is_wanted() {
    for by in [MediumId::Journal, POOL] {
        let (mut disks, _) = occupied(by);
        SLOTS.iter().for_each(|slot| damage(&mut disks, *slot, 0, &[0; 4096]));
        assert_eq!(format_journal(&mut disks, &group()), Ok(()));
        assert_eq!(format_pool(&mut disks, GroupId([8; 16]), &volume()), Ok(()));
    }
}

/// Where an ext4 and a btrfs superblock, an end of a boot loader, and a copy of a partition table begin, among others.
#[test]
fn nor_does_one_that_holds_something_of_a_stranger() {
    for at in [0, 1080, (64 << 10) + 64, MIB - 1, SIZE - MIB, SIZE - 512] {
        let mut disks = blank();
        damage(&mut disks, at - at % 4096, at % 4096, &[0x53]);
        refuses(&mut disks, Occupant::Other { at });
    }
}

#[test]
fn what_lies_between_the_first_and_the_last_mib_says_nothing() {
    let mut disks = blank();
    [MIB, SIZE - MIB - 4096].iter().for_each(|at| damage(&mut disks, *at, 0, &[0x53; 4096]));
    // Nor does a last sector that no aligned read reaches.
    [MediumId::Journal, POOL].iter().for_each(|medium| disks.set_size(*medium, SIZE + 512));
    assert_eq!(format_journal(&mut disks, &group()), Ok(()));
    assert_eq!(format_pool(&mut disks, GroupId([8; 16]), &volume()), Ok(()));
}

#[test]
fn what_a_stranger_has_written_can_be_erased() {
    let mut disks = blank();
    [0, SIZE - 4096].iter().for_each(|at| damage(&mut disks, *at, 0, &[0x53; 4096]));
    assert_eq!(erase_other(&mut disks, MediumId::Journal), Ok(()));
    assert_eq!(erase_other(&mut disks, POOL), Ok(()));
    assert_eq!(format_journal(&mut disks, &group()), Ok(()));
    assert_eq!(format_pool(&mut disks, GroupId([8; 16]), &volume()), Ok(()));
}

#[test]
fn what_is_ours_cannot() {
    for by in [MediumId::Journal, POOL] {
        let (mut disks, occupant) = occupied(by);
        let before = disks.writes();
        for medium in [MediumId::Journal, POOL] {
            assert_eq!(erase_other(&mut disks, medium), Err(FormatError::InUse(occupant.clone())));
        }
        damage(&mut disks, SLOTS[0], 1024, &[0xff]);
        damage(&mut disks, SLOTS[1], 1024, &[0xff]);
        assert_eq!(erase_other(&mut disks, by), Err(FormatError::InUse(Occupant::Unreadable)));
        assert_eq!(disks.writes(), before + 4, "something was erased");
    }
}
