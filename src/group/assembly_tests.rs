//! What destaging holds in memory: little, however much is zeroed, folded or relocated at once.

use super::{alone_bench::Alone, destage::ROUND_SIZE_MAX, *};
use crate::{
    disk::Storage,
    request::{Access, Durability, Operation, Space},
    units::{VOLUME_SIZE_MIN, ZEROES_SIZE_MAX},
};
use bytes::Bytes;

const MIB: u64 = 1 << 20;
const VOLUME: VolumeId = VolumeId(1);
const POOL: MediumId = MediumId::Pool(VOLUME);

impl Alone {
    fn zero(&mut self, offset: u64, size: u64, space: Space) {
        let operation = Operation::WriteZeroes { offset, size, space, durability: Durability::Completed };
        self.request(VOLUME.0, Access::ReadWrite, operation);
    }

    /// Everything happens, and zeroes that are written where there are zeroes take no room on the media. What was written.
    fn settle_sparsely(&mut self) -> Vec<Bytes> {
        let mut written = Vec::new();
        loop {
            self.drain();
            if self.operations.is_empty() {
                if !self.wake() {
                    return written;
                }
                continue;
            }
            let (operation, asked) = self.operations.remove(0);
            let mut is_needless = false;
            if let (POOL, DiskAction::Write { offset, pieces }) = (operation.medium, &operation.action) {
                let size = pieces.iter().map(Bytes::len).sum::<usize>() as u32;
                let before = self.disks.read(POOL, *offset, size).expect("it is there");
                is_needless = pieces.iter().flatten().chain(&before).all(|byte| *byte == 0);
                written.extend(pieces.iter().cloned());
            }
            let outcome = if is_needless {
                Ok(Bytes::new())
            } else {
                self.disks.carry_out(operation.medium, operation.action, asked)
            };
            self.group.handle_disk(self.now, operation.id, outcome);
        }
    }

    fn is_all(&mut self, offset: u64, size: u64, value: u8) -> bool {
        size == 0 || self.read(VOLUME.0, Access::ReadOnly, offset, size as u32).iter().all(|byte| *byte == value)
    }
}

/// Bytes of memory that pieces are in.
fn distinct(pieces: &[Bytes]) -> usize {
    let memory: BTreeMap<usize, usize> = pieces.iter().map(|piece| (piece.as_ptr() as usize, piece.len())).collect();
    memory.values().sum()
}

#[test]
fn zeroes_that_keep_their_space_take_no_memory() {
    for (lead, most) in [(0, MIB), (512, 3 * MIB)] {
        let mut group = Alone::new(MIB as u32, ZEROES_SIZE_MAX, 1);
        group.write(1, 0, MIB as usize, 7);
        group.write(1, 5 * MIB, MIB as usize, 7);
        group.write(1, 9 * MIB + 512, 4096, 7);
        group.write(1, ZEROES_SIZE_MAX - MIB, MIB as usize, 7);
        group.settle();
        group.zero(lead, ZEROES_SIZE_MAX - 2 * lead, Space::Keep);
        let written = group.settle_sparsely();
        let size = written.iter().map(|piece| piece.len() as u64).sum::<u64>();
        assert!(size > ZEROES_SIZE_MAX - 4 * MIB, "{size} bytes are written");
        assert!(distinct(&written) as u64 <= most, "they take {} bytes of memory", distinct(&written));
        for at in [1, 5, 9, 700, 1022] {
            assert!(group.is_all(at * MIB, MIB, 0), "MiB {at}");
        }
        assert!(group.is_all(0, lead, 7) && group.is_all(lead, MIB - lead, 0));
        let end = ZEROES_SIZE_MAX - lead;
        assert!(group.is_all(end - MIB / 2, MIB / 2, 0) && group.is_all(end, lead, 7));
        let table = &group.group.volumes[&VOLUME].table;
        assert!((0..1024).all(|block| table.entry(block).latest != 0), "the space is kept");
    }
}

/// Each block has its content in two places, so that it is folded before anything new is in it.
#[test]
fn what_is_folded_at_once_takes_little_memory() {
    const BLOCK: u64 = 64 << 10;
    const NEW: usize = 40 << 10;
    for space in [Space::Keep, Space::Release] {
        let mut group = Alone::new(BLOCK as u32, VOLUME_SIZE_MIN, 1);
        (0..64).for_each(|block| group.write(1, block * BLOCK, BLOCK as usize, 1));
        group.restart_point();
        group.settle();
        (0..64).for_each(|block| group.write(1, block * BLOCK, NEW, 2));
        group.restart_point();
        group.settle();
        group.zero(0, 64 * BLOCK, space);
        let (mut size, mut largest, mut total) = (0, 0, 0);
        while group.group.applied < group.group.journal.last() {
            group.drain();
            let Some((operation, _)) = group.operations.first() else {
                group.wake();
                continue;
            };
            match (operation.medium, &operation.action) {
                (POOL, DiskAction::Read { size: read, .. }) => {
                    size += u64::from(*read);
                    total += u64::from(*read);
                }
                (POOL, DiskAction::Write { .. }) => size = 0,
                _ => {}
            }
            largest = size.max(largest);
            group.step_where(|_| true);
        }
        assert!(largest <= ROUND_SIZE_MAX, "{largest} bytes are read before the first write");
        assert!(total > ROUND_SIZE_MAX, "there was more to fold");
        group.settle();
        assert!(group.is_all(0, 64 * BLOCK, 0));
        let folded = group.generation(2, 1, 0, 64 * BLOCK as u32);
        for block in folded.chunks(BLOCK as usize) {
            assert!(block[..NEW].iter().all(|byte| *byte == 2) && block[NEW..].iter().all(|byte| *byte == 1));
        }
    }
}
