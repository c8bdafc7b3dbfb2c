//! A volume in the journal's superblock: what it is, and where its pool lies.

use super::{
    journal_superblock::WHAT,
    parts::{FormatError, U16, U32, U64, require},
    text::Name,
};
use crate::{
    command::VolumeSpec,
    units::{MediumUuid, TABLE_BLOCK_SIZE_MAX, TABLE_BLOCK_SIZE_MIN, VOLUME_SIZE_MAX, VOLUME_SIZE_MIN, VolumeId},
};
use alloc::borrow::ToOwned;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest path of a pool in bytes.
pub const POOL_PATH_SIZE_MAX: usize = 255;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RawVolume {
    id: U16,
    path_size: u8,
    reserved0: u8,
    logical_block_size: U32,
    size: U64,
    table_block_size: U32,
    reserved1: U32,
    pool: [u8; 16],
    name: Name,
    path: [u8; POOL_PATH_SIZE_MAX],
    reserved2: [u8; 153],
}

const _: () = assert!(size_of::<RawVolume>() == 512);

/// Its bytes.
pub(super) fn encode(spec: &VolumeSpec) -> RawVolume {
    let mut path = [0; POOL_PATH_SIZE_MAX];
    let size = spec.pool_path.len().min(POOL_PATH_SIZE_MAX);
    path[..size].copy_from_slice(&spec.pool_path.as_bytes()[..size]);
    RawVolume {
        id: spec.id.0.into(),
        path_size: size as u8,
        reserved0: 0,
        logical_block_size: spec.logical_block_size.into(),
        size: spec.size.into(),
        table_block_size: spec.table_block_size.into(),
        reserved1: 0.into(),
        pool: spec.pool.0,
        name: spec.name,
        path,
        reserved2: [0; 153],
    }
}

/// Reads it.
pub(super) fn parse(raw: &RawVolume) -> Result<VolumeSpec, FormatError> {
    let path = raw.path.get(..usize::from(raw.path_size)).and_then(|path| core::str::from_utf8(path).ok());
    require(raw.name.check().is_ok() && raw.id.get() != 0, WHAT, "volume")?;
    let spec = VolumeSpec {
        id: VolumeId(raw.id.get()),
        name: raw.name,
        size: raw.size.get(),
        logical_block_size: raw.logical_block_size.get(),
        table_block_size: raw.table_block_size.get(),
        pool: MediumUuid(raw.pool),
        pool_path: path.ok_or(FormatError::Field { what: WHAT, field: "pool path" })?.to_owned(),
    };
    require(check_geometry(&spec).is_ok(), WHAT, "volume geometry")?;
    Ok(spec)
}

/// Whether the sizes of a volume are within what the formats can hold; else what is wrong.
pub fn check_geometry(spec: &VolumeSpec) -> Result<(), &'static str> {
    if !matches!(spec.logical_block_size, 512 | 4096) {
        return Err("its logical block is neither 512 nor 4096 bytes");
    }
    if !(VOLUME_SIZE_MIN..=VOLUME_SIZE_MAX).contains(&spec.size) {
        return Err("its size is not between 16 MiB and 16 TiB");
    }
    if !spec.size.is_multiple_of(4096) {
        return Err("its size is no multiple of 4096 bytes");
    }
    let block = spec.table_block_size;
    if !(TABLE_BLOCK_SIZE_MIN..=TABLE_BLOCK_SIZE_MAX).contains(&block) || !block.is_power_of_two() {
        return Err("its table block is no power of two between 16 KiB and 1 MiB");
    }
    if spec.pool_path.len() > POOL_PATH_SIZE_MAX {
        return Err("the path of its pool is longer than 255 bytes");
    }
    Ok(())
}
