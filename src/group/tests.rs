//! One group on simulated media against a plain array: whatever order disk operations end in, and whenever the daemon
//! dies, a read gives the newest completed write.

use super::*;
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError, CommandId, CommandReply},
    disk::{DiskError, Storage},
    pair::Role,
    request::{Access, Busy, Durability, Operation, Request, Space},
    units::{NodeKey, VOLUME_SIZE_MIN, WallClock},
};
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRng};
extern crate std;
use alloc::{string::String, vec};
use core::ops::Range;
use std::collections::HashMap;

const SIZE: u64 = VOLUME_SIZE_MIN;
const SECTOR: usize = 512;

/// What a page held, and which write made it so.
#[derive(Clone)]
struct Version {
    number: u64,
    data: Vec<u8>,
}

/// Media under the fault model: a completed write survives the daemon; at power loss each 512-byte sector holds what it
/// held at the last sync or any later write.
#[derive(Default, Clone)]
pub(super) struct Disks {
    /// The durable version, then the later ones.
    pages: HashMap<(MediumId, u64), Vec<Version>>,
    sizes: HashMap<MediumId, u64>,
    writes: u64,
}

impl Disks {
    pub(super) fn set_size(&mut self, medium: MediumId, size: u64) {
        self.sizes.insert(medium, size);
    }

    /// Ends an operation that was asked for when `asked` writes had ended.
    pub(super) fn carry_out(&mut self, medium: MediumId, action: DiskAction, asked: u64) -> DiskOutcome {
        match action {
            DiskAction::Read { offset, size } => self.read(medium, offset, size),
            DiskAction::Write { offset, pieces } => {
                let mut at = offset;
                for piece in pieces {
                    assert!((piece.as_ptr() as usize).is_multiple_of(4096), "unaligned piece");
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
                self.write(medium, offset, AlignedBuffer::new(size as usize).freeze())?;
                Ok(Bytes::new())
            }
        }
    }

    /// How many writes have ended.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// A sync promises nothing about writes that ended after it was asked for.
    fn sync_until(&mut self, medium: MediumId, asked: u64) {
        for ((_, _), versions) in self.pages.iter_mut().filter(|((on, _), _)| *on == medium) {
            let durable = versions.iter().rposition(|version| version.number <= asked).unwrap_or(0);
            versions.drain(..durable);
        }
    }

    fn lose_power(&mut self, rng: &mut TestRng) {
        let mut keys: Vec<_> = self.pages.keys().copied().collect();
        keys.sort();
        for key in keys {
            let Some(versions) = self.pages.get_mut(&key).filter(|versions| versions.len() > 1) else {
                continue;
            };
            let mut data = versions[0].data.clone();
            for (index, sector) in data.chunks_mut(SECTOR).enumerate() {
                let survivor = &versions[pick(rng, versions.len() as u64) as usize].data;
                sector.copy_from_slice(&survivor[index * SECTOR..][..SECTOR]);
            }
            *versions = vec![Version { number: 0, data }];
        }
    }
}

impl Storage for Disks {
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError> {
        Ok(self.sizes[&medium])
    }

    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError> {
        assert!(offset + u64::from(size) <= self.sizes[&medium], "read beyond {medium:?}");
        let mut buffer = AlignedBuffer::new(size as usize);
        for (page, out) in (offset / 4096..).zip(buffer.as_mut_slice().chunks_mut(4096)) {
            if let Some(version) = self.pages.get(&(medium, page)).and_then(|v| v.last()) {
                out.copy_from_slice(&version.data[..out.len()]);
            }
        }
        Ok(buffer.freeze())
    }

    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        assert!(offset + data.len() as u64 <= self.sizes[&medium], "write beyond {medium:?}");
        assert!(data.len().is_multiple_of(4096) && offset.is_multiple_of(4096));
        self.writes += 1;
        for (page, part) in (offset / 4096..).zip(data.chunks(4096)) {
            let version = Version { number: self.writes, data: part.to_vec() };
            let zero = || vec![Version { number: 0, data: vec![0; 4096] }];
            self.pages.entry((medium, page)).or_insert_with(zero).push(version);
        }
        Ok(())
    }

    fn sync(&mut self, medium: MediumId) -> Result<(), DiskError> {
        self.sync_until(medium, self.writes);
        Ok(())
    }
}

/// Which operations fail, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) medium: MediumId,
    pub(super) fails: fn(&DiskAction) -> bool,
    pub(super) error: DiskError,
}

pub(super) struct Bench {
    pub(super) disks: Disks,
    pub(super) group: Group,
    pub(super) now: Now,
    pub(super) fault: Option<Fault>,
    /// Each with the number of writes that had ended when it was asked for.
    pub(super) operations: Vec<(DiskOperation, u64)>,
    pub(super) answers: HashMap<RequestId, Result<Reply, RequestError>>,
    pub(super) replies: BTreeMap<CommandId, Result<CommandReply, CommandError>>,
    pub(super) events: Vec<Event>,
    pub(super) rng: TestRng,
    /// What each sector holds.
    pub(super) model: Vec<u64>,
    /// What each sector may hold after a loss of power: the value of the last flush, and all later ones.
    possible: Vec<Vec<u64>>,
    next: u64,
}

pub(super) fn pick(rng: &mut TestRng, limit: u64) -> u64 {
    rng.next_u64() % limit
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Bench {
    pub(super) fn new(rng: TestRng) -> Self {
        Self::with_journal(rng, 16 << 20)
    }

    pub(super) fn with_journal(mut rng: TestRng, journal_size: u64) -> Self {
        let mut disks = Disks::default();
        let pool = MediumId::Pool(VolumeId(1));
        let block = [16 << 10, 64 << 10, 256 << 10][pick(&mut rng, 3) as usize];
        disks.sizes.insert(MediumId::Journal, journal_size);
        disks.sizes.insert(pool, pool_size_for(SIZE, block));
        let id = GroupId([7; 16]);
        let spec = GroupSpec { id, name: name("g"), journal: MediumUuid([1; 16]), role: Role::Primary, peer: None };
        format_journal(&mut disks, &spec).unwrap();
        let volume = VolumeSpec {
            id: VolumeId(1),
            name: name("v"),
            size: SIZE,
            logical_block_size: 512,
            table_block_size: block,
            pool: MediumUuid([2; 16]),
            pool_path: String::new(),
        };
        format_pool(&mut disks, id, &volume).unwrap();
        let now = Now { monotonic: Monotonic(1), wall: WallClock(1) };
        let (mut group, _) = Group::open(&mut disks, now).unwrap();
        group.handle_add_volume(now, CommandId(0), &mut disks, volume);
        let model = vec![0; SIZE as usize / SECTOR];
        let possible = vec![vec![0]; SIZE as usize / SECTOR];
        let mut bench = Self {
            disks,
            group,
            now,
            fault: None,
            operations: vec![],
            answers: HashMap::new(),
            replies: BTreeMap::new(),
            events: vec![],
            rng,
            model,
            possible,
            next: 1,
        };
        bench.settle();
        bench
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.group.poll_output() {
            match output {
                Output::CommandAnswer { id, result } => drop(self.replies.insert(id, result)),
                Output::Disk(operation) => {
                    self.operations.push((operation, self.disks.writes()));
                }
                Output::Answer { id, result } => {
                    self.answers.insert(id, result);
                }
                Output::Event(event) => self.events.push(event),
                _ => {}
            }
        }
    }

    /// What may happen to a group at any time; `false` if `choice`, of 0 to 23, is something else.
    pub(super) fn befalls(&mut self, choice: u64) -> bool {
        match choice {
            0 => self.kill(),
            1 => self.lose_power(),
            2 => self.settle(),
            3..6 => self.check(),
            6..12 => drop(self.step()),
            12 | 13 => self.hasten(),
            _ => return false,
        }
        true
    }

    /// Ends one operation in flight, any of them.
    pub(super) fn step(&mut self) -> bool {
        self.drain();
        if self.operations.is_empty() {
            return false;
        }
        let index = pick(&mut self.rng, self.operations.len() as u64) as usize;
        let (operation, asked) = self.operations.swap_remove(index);
        let fails = |fault: &Fault| fault.medium == operation.medium && (fault.fails)(&operation.action);
        let outcome = match self.fault.filter(fails) {
            Some(fault) => Err(fault.error),
            None => self.disks.carry_out(operation.medium, operation.action, asked),
        };
        self.group.handle_disk(self.now, operation.id, outcome);
        true
    }

    /// One operation is carried out that is not for what is `left`.
    pub(super) fn step_but(&mut self, left: fn(&Purpose) -> bool) -> bool {
        self.drain();
        let purposes = &self.group.operations;
        let is_other = |id: &OperationId| purposes.get(id).is_some_and(|purpose| !left(purpose));
        let Some(index) = self.operations.iter().position(|(operation, _)| is_other(&operation.id)) else {
            return false;
        };
        let (operation, asked) = self.operations.remove(index);
        let outcome = self.disks.carry_out(operation.medium, operation.action, asked);
        self.group.handle_disk(self.now, operation.id, outcome);
        self.drain();
        true
    }

    /// Lets time pass until nothing happens any more.
    pub(super) fn settle(&mut self) {
        loop {
            while self.step() {}
            let Some(at) = self.group.poll_timeout() else {
                return;
            };
            self.now.monotonic = self.now.monotonic.max(at);
            self.group.handle_timeout(self.now);
        }
    }

    pub(super) fn request(&mut self, operation: Operation) -> RequestId {
        self.request_as(Access::ReadWrite, operation)
    }

    pub(super) fn request_as(&mut self, access: Access, operation: Operation) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let mut request = Request { id, volume: VolumeId(1), access, operation };
        while let Err(Busy(again)) = self.group.handle_request(self.now, request) {
            request = again;
            assert!(self.step(), "busy for ever");
        }
        id
    }

    /// A command, and all that follows from it.
    pub(super) fn command(&mut self, command: Command) {
        self.group.handle_command(self.now, CommandId(7), command);
        self.settle();
        self.replies.remove(&CommandId(7)).expect("answered").expect("done");
    }

    /// A request that nobody carries out yet.
    pub(super) fn ask(&mut self, operation: Operation) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let request = Request { id, volume: VolumeId(1), access: Access::ReadWrite, operation };
        let _ = self.group.handle_request(self.now, request);
        id
    }

    pub(super) fn wait(&mut self, id: RequestId) {
        self.drain();
        while !self.answers.contains_key(&id) {
            assert!(self.step() || self.answers.contains_key(&id), "{id:?} never answered");
        }
    }

    pub(super) fn range(&mut self) -> (u64, u64) {
        let big = pick(&mut self.rng, 4) == 0;
        let unit = if big { 64 << 10 } else { [512, 4096][pick(&mut self.rng, 2) as usize] };
        // A small area, so that writes overlap.
        let area = 4 << 20;
        let size = (1 + pick(&mut self.rng, 9)) * unit;
        let offset = pick(&mut self.rng, (area - size) / unit) * unit;
        (offset, size)
    }

    pub(super) fn mutate(&mut self) {
        let (operation, sectors, value) = self.mutation();
        self.request(operation);
        self.model[sectors.clone()].fill(value);
        self.possible[sectors].iter_mut().for_each(|possible| possible.push(value));
    }

    /// A change, the sectors that it is about, and what they hold afterwards.
    pub(super) fn mutation(&mut self) -> (Operation, Range<usize>, u64) {
        let (offset, size) = self.range();
        let value = self.next;
        let sectors = offset as usize / SECTOR..(offset + size) as usize / SECTOR;
        let operation = match pick(&mut self.rng, 8) {
            0 => Operation::Discard { offset, size },
            1 => Operation::WriteZeroes {
                offset,
                size,
                space: if pick(&mut self.rng, 2) == 0 { Space::Keep } else { Space::Release },
                durability: Durability::Completed,
            },
            _ => {
                let mut buffer = AlignedBuffer::new(size as usize);
                for sector in buffer.as_mut_slice().chunks_mut(SECTOR) {
                    sector.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
                }
                let durability = [Durability::Completed, Durability::Durable][pick(&mut self.rng, 2) as usize];
                Operation::Write { offset, data: buffer.freeze(), durability }
            }
        };
        let is_write = matches!(operation, Operation::Write { .. });
        (operation, sectors, if is_write { value } else { 0 })
    }

    pub(super) fn check(&mut self) {
        let (offset, size) = self.range();
        let id = self.request(Operation::Read { offset, size: size as u32 });
        let expected = self.model[offset as usize / SECTOR..(offset + size) as usize / SECTOR].to_vec();
        // Writes that come after the read was taken must not show in the expectation, so wait for it first.
        self.wait(id);
        self.compare(id, offset, &expected);
    }

    fn compare(&mut self, id: RequestId, offset: u64, expected: &[u64]) {
        let Some(Ok(Reply::Data(parts))) = self.answers.remove(&id) else { panic!("read failed") };
        let data: Vec<u8> = parts.concat();
        assert_eq!(data.len(), expected.len() * SECTOR);
        for (index, (sector, value)) in data.chunks(SECTOR).zip(expected).enumerate() {
            for word in sector.chunks(8) {
                let found = u64::from_le_bytes(word.try_into().unwrap());
                assert_eq!(found, *value, "sector {} of {offset}", index + offset as usize / SECTOR);
            }
        }
    }

    /// A read whose disk operations take long, while blocks are freed and used again. It may show later writes, but never
    /// another sector's.
    fn check_slowly(&mut self) {
        let (offset, size) = self.range();
        let sectors = offset as usize / SECTOR..(offset + size) as usize / SECTOR;
        self.flush();
        self.drain();
        let others = core::mem::take(&mut self.operations);
        let id = self.request(Operation::Read { offset, size: size as u32 });
        self.drain();
        let reading = core::mem::replace(&mut self.operations, others);
        let mut allowed: Vec<Vec<u64>> = self.model[sectors.clone()].iter().map(|value| vec![*value]).collect();
        for _ in 0..20 {
            self.mutate();
            for (allowed, value) in allowed.iter_mut().zip(&self.model[sectors.clone()]) {
                allowed.push(*value);
            }
            self.hasten();
            while pick(&mut self.rng, 40) > 0 && self.step() {}
        }
        self.operations.extend(reading);
        self.wait(id);
        let Some(Ok(Reply::Data(parts))) = self.answers.remove(&id) else { panic!("read failed") };
        for (allowed, sector) in allowed.iter().zip(parts.concat().chunks(SECTOR)) {
            for word in sector.chunks(8) {
                let found = u64::from_le_bytes(word.try_into().unwrap());
                assert!(allowed.contains(&found), "{found} read at {offset}, not one of {allowed:?}");
            }
        }
    }

    /// Destaging and a checkpoint begin now, and blocks that are released are used again at once.
    pub(super) fn hasten(&mut self) {
        self.group.destage.hurry = pick(&mut self.rng, 2) == 0;
        self.group.checkpoint.wanted = true;
        self.group.volumes.values_mut().for_each(|volume| volume.table.blocks.rewind());
    }

    pub(super) fn check_all(&mut self) {
        for offset in (0..4 << 20).step_by(1 << 20) {
            let id = self.request(Operation::Read { offset, size: 1 << 20 });
            self.wait(id);
            let from = offset as usize / SECTOR;
            let expected = self.model[from..from + (1 << 20) / SECTOR].to_vec();
            self.compare(id, offset, &expected);
        }
    }

    pub(super) fn flush(&mut self) {
        let id = self.request(Operation::Flush);
        self.wait(id);
        for (possible, value) in self.possible.iter_mut().zip(&self.model) {
            *possible = vec![*value];
        }
    }

    /// The machine loses power at any instant.
    pub(super) fn lose_power(&mut self) {
        for _ in 0..pick(&mut self.rng, 20) {
            self.step();
        }
        self.operations.clear();
        self.answers.clear();
        self.disks.lose_power(&mut self.rng);
        let twice = self.disks.clone();
        self.reopen();
        let found = self.read_area();
        for (sector, value) in found.iter().enumerate() {
            assert!(
                self.possible[sector].contains(value),
                "sector {sector} holds {value}, not one of {:?}",
                self.possible[sector]
            );
        }
        self.model[..found.len()].copy_from_slice(&found);
        for (possible, value) in self.possible.iter_mut().zip(&self.model) {
            *possible = vec![*value];
        }
        // Power fails again during recovery: it finds the same.
        if pick(&mut self.rng, 3) == 0 {
            self.operations.clear();
            self.disks = twice;
            self.reopen();
            assert!(found == self.read_area(), "recovery is not repeatable");
        }
    }

    pub(super) fn read_area(&mut self) -> Vec<u64> {
        self.read_area_as(Access::ReadWrite)
    }

    pub(super) fn read_area_as(&mut self, access: Access) -> Vec<u64> {
        let id = self.request_as(access, Operation::Read { offset: 0, size: 4 << 20 });
        self.wait(id);
        let Some(Ok(Reply::Data(parts))) = self.answers.remove(&id) else { panic!("read failed") };
        let word = |sector: &[u8]| {
            let first = &sector[..8];
            assert!(sector.chunks(8).all(|word| word == first), "a sector is torn");
            u64::from_le_bytes(first.try_into().unwrap())
        };
        parts.concat().chunks(SECTOR).map(word).collect()
    }

    pub(super) fn reopen(&mut self) {
        self.now.monotonic = self.now.monotonic.after(1);
        let (group, _) = Group::open(&mut self.disks, self.now).unwrap();
        self.group = group;
    }

    /// The daemon dies after everything was completed, and is started again.
    pub(super) fn kill(&mut self) {
        self.flush();
        // Some of what is in flight happens, some does not.
        for _ in 0..pick(&mut self.rng, 20) {
            self.step();
        }
        self.operations.clear();
        self.reopen();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn reads_give_the_newest_write_through_destaging_and_death(seed in any::<[u8; 32]>()) {
        let rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
        let mut bench = Bench::new(rng);
        for _ in 0..300 {
            match pick(&mut bench.rng, 40) {
                0 => bench.kill(),
                39 => bench.lose_power(),
                38 => bench.flush(),
                1 => bench.settle(),
                2 => {
                    let label = name("point");
                    bench.group.handle_command(bench.now, CommandId(1), Command::RestartPoint { label });
                }
                3..10 => bench.check(),
                10..20 => {
                    bench.step();
                }
                20 => bench.check_slowly(),
                21..23 => bench.hasten(),
                _ => bench.mutate(),
            }
        }
        bench.check_all();
        bench.settle();
        bench.check_all();
        bench.kill();
        bench.check_all();
    }
}

#[test]
fn a_group_with_a_peer_answers_again_after_it_was_opened_without_one() {
    let rng = TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
    let mut bench = Bench::new(rng);
    bench.group.handle_command(bench.now, CommandId(1), Command::CreatePair { peer: NodeKey([9; 32]) });
    bench.settle();
    bench.kill();
    bench.settle();
    bench.check_all();
}
