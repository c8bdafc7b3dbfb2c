//! Media that fail: each fault has the effect that docs/faults.md names, and nothing that was answered is lost.

use super::{
    tests::{Bench, Fault, pick},
    *,
};
use crate::{
    buffer::AlignedBuffer,
    command::{Command, CommandError},
    disk::DiskError,
    request::{Durability, Operation},
};
use proptest::{prelude::*, test_runner::TestRng};
extern crate std;
use std::collections::HashMap;

const POOL: MediumId = MediumId::Pool(VolumeId(1));
const SECTOR: u64 = 512;
const EIO: DiskError = DiskError::Failed { errno: 5 };
const SHORT: DiskError = DiskError::Short { moved: 512, expected: 4096 };

fn is_write(action: &DiskAction) -> bool {
    matches!(action, DiskAction::Write { .. })
}

fn is_read(action: &DiskAction) -> bool {
    matches!(action, DiskAction::Read { .. })
}

fn is_sync(action: &DiskAction) -> bool {
    matches!(action, DiskAction::Sync)
}

fn bench(seed: &[u8; 32]) -> Bench {
    Bench::new(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, seed))
}

/// What a client wrote to each sector, oldest first.
#[derive(Default)]
struct Client {
    writes: HashMap<u64, Vec<(RequestId, u64)>>,
    next: u64,
}

impl Client {
    fn write(&mut self, bench: &mut Bench, offset: u64, size: u64) -> RequestId {
        self.next += 1;
        let value = self.next;
        let mut buffer = AlignedBuffer::new(size as usize);
        buffer.as_mut_slice().chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
        let durability = if pick(&mut bench.rng, 4) == 0 { Durability::Durable } else { Durability::Completed };
        let id = bench.request(Operation::Write { offset, data: buffer.freeze(), durability });
        for sector in offset / SECTOR..(offset + size) / SECTOR {
            self.writes.entry(sector).or_default().push((id, value));
        }
        id
    }

    /// Each sector holds the last write that was answered, or one that was asked for after it.
    fn check(&self, bench: &mut Bench, answers: &HashMap<RequestId, Result<Reply, RequestError>>) {
        let found = bench.read_area();
        for (sector, writes) in &self.writes {
            let answered = writes.iter().rposition(|(id, _)| matches!(answers.get(id), Some(Ok(_))));
            let value = found[*sector as usize];
            let allowed = writes[answered.unwrap_or(0)..].iter().any(|(_, write)| *write == value)
                || (answered.is_none() && value == 0);
            assert!(allowed, "sector {sector} holds {value}; written were {writes:?}, the last answered {answered:?}");
        }
    }
}

/// Random writes, then a fault, then more writes; the group stops, and opened again it has all that was answered.
fn stops_and_keeps(seed: &[u8; 32], fault: Fault) {
    let mut bench = bench(seed);
    let mut client = Client::default();
    let mut write = |bench: &mut Bench| {
        let (offset, size) = bench.range();
        client.write(bench, offset, size);
        for _ in 0..pick(&mut bench.rng, 4) {
            bench.step();
        }
    };
    for _ in 0..50 {
        write(&mut bench);
    }
    bench.fault = Some(fault);
    for _ in 0..200 {
        write(&mut bench);
    }
    let flush = bench.request(Operation::Flush);
    bench.settle();
    assert!(bench.group.status(bench.now).stopped.is_some(), "{fault:?} stops nothing");
    let answer = bench.answers.get(&flush);
    assert!(matches!(answer, Some(Err(RequestError::Io | RequestError::Stopped))), "{answer:?}");
    let answers = core::mem::take(&mut bench.answers);
    let asked = client.writes.values().flatten().map(|(id, _)| id);
    assert!(asked.clone().all(|id| answers.contains_key(id)), "a request was never answered");
    bench.operations.clear();
    bench.fault = None;
    bench.reopen();
    client.check(&mut bench, &answers);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_that_cannot_be_written_stops_the_group(seed in any::<[u8; 32]>(), short: bool, full: bool) {
        let error = if full { DiskError::NoSpace } else if short { SHORT } else { EIO };
        stops_and_keeps(&seed, Fault { medium: MediumId::Journal, fails: is_write, error });
    }

    #[test]
    fn a_journal_that_cannot_be_synced_stops_the_group(seed in any::<[u8; 32]>()) {
        stops_and_keeps(&seed, Fault { medium: MediumId::Journal, fails: is_sync, error: EIO });
    }

    #[test]
    fn a_pool_that_cannot_be_written_stops_the_group(seed in any::<[u8; 32]>(), short: bool) {
        stops_and_keeps(&seed, Fault { medium: POOL, fails: is_write, error: if short { SHORT } else { EIO } });
    }

    #[test]
    fn a_pool_that_cannot_be_synced_stops_the_group(seed in any::<[u8; 32]>()) {
        stops_and_keeps(&seed, Fault { medium: POOL, fails: is_sync, error: EIO });
    }

    /// A checkpoint, say, that was under way when a sync failed.
    #[test]
    fn a_group_that_has_stopped_writes_nothing_more(seed in any::<[u8; 32]>()) {
        let mut bench = bench(&seed);
        let mut client = Client::default();
        let healthy = 400 + pick(&mut bench.rng, 400);
        for round in 0.. {
            let (offset, size) = bench.range();
            client.write(&mut bench, offset, size);
            (0..3).for_each(|_| _ = bench.step());
            bench.now.monotonic = bench.now.monotonic.after(20_000);
            bench.group.handle_timeout(bench.now);
            if round == healthy {
                bench.fault = Some(Fault { medium: MediumId::Journal, fails: is_sync, error: EIO });
            }
            if bench.group.status(bench.now).stopped.is_some() {
                break;
            }
        }
        bench.fault = None;
        bench.drain();
        let mut left = bench.operations.len();
        while bench.step() {
            bench.drain();
            left -= 1;
            prop_assert_eq!(bench.operations.len(), left, "something was asked for");
        }
    }

    #[test]
    fn a_full_pool_delays_and_then_refuses_writes_and_loses_none(seed in any::<[u8; 32]>()) {
        let mut bench = bench(&seed);
        let mut client = Client::default();
        bench.fault = Some(Fault { medium: POOL, fails: is_write, error: DiskError::NoSpace });
        // Small writes go through the journal until it is full too.
        let mut refused = None;
        for _ in 0..20_000 {
            let offset = pick(&mut bench.rng, 2 << 10) * 2048;
            let id = client.write(&mut bench, offset, 2048);
            for _ in 0..4 {
                bench.step();
            }
            bench.now.monotonic = bench.now.monotonic.after(1_000);
            bench.group.handle_timeout(bench.now);
            if bench.answers.get(&id) == Some(&Err(RequestError::NoSpace)) {
                refused = Some(id);
                break;
            }
        }
        prop_assert!(refused.is_some(), "the journal never filled");
        prop_assert!(bench.group.status(bench.now).stopped.is_none());
        bench.fault = None;
        let answers = bench.answers.clone();
        bench.settle();
        client.check(&mut bench, &answers);
        let offset = 4096;
        let id = client.write(&mut bench, offset, 2048);
        bench.wait(id);
        prop_assert_eq!(bench.answers.get(&id), Some(&Ok(Reply::Done)));
        prop_assert!(bench.group.status(bench.now).journal_used < 16 << 20);
    }

    /// With large writes what is left of the ring may be as much as many small ones need.
    #[test]
    fn a_group_whose_pool_and_journal_are_full_can_be_stopped(seed in any::<[u8; 32]>(), large: bool) {
        let block = 256u64 << 10;
        let has_large_blocks = |bench: &Bench| u64::from(bench.group.volumes[&VolumeId(1)].table.geometry().block_size) == block;
        let benches = (0..=255).map(|first| bench(&core::array::from_fn(|at| if at == 0 { first } else { seed[at] })));
        let mut bench = benches.into_iter().find(has_large_blocks).expect("one of three");
        let mut client = Client::default();
        bench.fault = Some(Fault { medium: POOL, fails: is_write, error: DiskError::NoSpace });
        // Less than a block, so that it does not go straight to the pool.
        let size = if large { 200 << 10 } else { 2048 };
        let mut is_refused = false;
        for _ in 0..20_000 {
            let offset = pick(&mut bench.rng, 12) * block + 4096;
            let id = client.write(&mut bench, offset, size);
            for _ in 0..4 {
                bench.step();
            }
            bench.now.monotonic = bench.now.monotonic.after(1_000);
            bench.group.handle_timeout(bench.now);
            is_refused = bench.answers.get(&id) == Some(&Err(RequestError::NoSpace));
            if is_refused {
                break;
            }
        }
        prop_assert!(is_refused, "the journal never filled");
        bench.group.handle_command(bench.now, CommandId(9), Command::Stop);
        for _ in 0..1000 {
            while bench.step() {}
            bench.now.monotonic = bench.now.monotonic.after(10_000);
            bench.group.handle_timeout(bench.now);
            bench.drain();
        }
        prop_assert_eq!(bench.replies.remove(&CommandId(9)), Some(Err(CommandError::Full)));
        let answers = core::mem::take(&mut bench.answers);
        let mut asked = client.writes.values().flatten().map(|(id, _)| id);
        prop_assert!(asked.all(|id| answers.contains_key(id)), "a request was never answered");
        bench.operations.clear();
        bench.fault = None;
        bench.reopen();
        client.check(&mut bench, &answers);
    }

    #[test]
    fn a_pool_with_room_for_a_snapshot_refuses_nothing(seed in any::<[u8; 32]>()) {
        let mut bench = bench(&seed);
        let mut client = Client::default();
        for _ in 0..400 {
            let offset = pick(&mut bench.rng, 15) << 20;
            let size = [4096, 1 << 20][pick(&mut bench.rng, 8).min(1) as usize];
            let id = client.write(&mut bench, offset, size);
            for _ in 0..pick(&mut bench.rng, 12) {
                bench.step();
            }
            bench.now.monotonic = bench.now.monotonic.after(100);
            bench.group.handle_timeout(bench.now);
            prop_assert_ne!(bench.answers.get(&id), Some(&Err(RequestError::NoSpace)));
            if pick(&mut bench.rng, 50) == 0 {
                bench.settle();
            }
        }
        prop_assert!(bench.answers.values().all(|answer| *answer != Err(RequestError::NoSpace)));
    }

    #[test]
    fn a_read_that_fails_is_answered_with_an_error_and_stops_nothing(seed in any::<[u8; 32]>()) {
        let mut bench = bench(&seed);
        let mut client = Client::default();
        for offset in (0..4 << 20).step_by(1 << 20) {
            client.write(&mut bench, offset, 1 << 20);
        }
        bench.settle();
        bench.fault = Some(Fault { medium: POOL, fails: is_read, error: EIO });
        let id = bench.request(Operation::Read { offset: 0, size: 4096 });
        bench.wait(id);
        prop_assert_eq!(bench.answers.get(&id), Some(&Err(RequestError::Io)));
        prop_assert!(bench.group.status(bench.now).stopped.is_none());
        bench.fault = None;
        let answers = bench.answers.clone();
        client.check(&mut bench, &answers);
    }
}

fn full() -> Option<Fault> {
    Some(Fault { medium: POOL, fails: is_write, error: DiskError::NoSpace })
}

/// Lets so much time pass, with whatever is due.
fn pass(bench: &mut Bench, micros: u64) {
    let until = bench.now.monotonic.after(micros);
    loop {
        while bench.step() {}
        let Some(at) = bench.group.poll_timeout().filter(|at| *at <= until) else { break };
        bench.now.monotonic = bench.now.monotonic.max(at);
        bench.group.handle_timeout(bench.now);
    }
    bench.now.monotonic = until;
}

/// What is given up for room in a pool helps nobody whose file system has none.
#[test]
fn a_full_file_system_costs_no_generation_and_no_trial() {
    for seed in 0..8 {
        let mut bench = bench(&[seed; 32]);
        bench.command(Command::KeepGenerations { count: 4, seconds: 0 });
        let mut client = Client::default();
        for round in 0..4 {
            for block in 0..16 {
                client.write(&mut bench, block * (64 << 10), 4096 << (round % 2));
            }
            bench.command(Command::RestartPoint { label: Name::default() });
        }
        bench.group.handle_command(bench.now, CommandId(9), Command::BeginTrial { generation: None });
        bench.settle();
        let kept = |bench: &Bench| -> Vec<_> {
            let kept = bench.group.status(bench.now).generations;
            kept.into_iter().map(|kept| (kept.name, kept.own_bytes)).collect()
        };
        let (before, begun) = (kept(&bench), bench.group.checkpoint.begun());
        assert_eq!(before.len(), 4);
        bench.fault = full();
        bench.events.clear();
        for block in 0..100 {
            client.write(&mut bench, block * 8192, 2048);
        }
        pass(&mut bench, 10_000_000);
        assert_eq!((kept(&bench), bench.group.checkpoint.begun()), (before, begun));
        assert_eq!(bench.events, [Event::PoolFull]);
        let status = bench.group.status(bench.now);
        assert!(status.trial.is_some() && status.stopped.is_none());
        bench.fault = None;
        bench.settle();
        assert_eq!(bench.group.applied, bench.group.journal.last());
        let answers = bench.answers.clone();
        client.check(&mut bench, &answers);
    }
}

/// What its superblock would name is not all there.
#[test]
fn a_checkpoint_of_which_a_page_failed_does_not_count() {
    for seed in 0..24 {
        let mut bench = bench(&[seed; 32]);
        let mut client = Client::default();
        for block in 0..200 {
            client.write(&mut bench, block * 20480 % (4 << 20), 2048);
            // For more pages than one; nobody reads it.
            Client::default().write(&mut bench, (12 << 20) + block * 16_384, 2048);
        }
        while bench.group.applied < bench.group.journal.last() {
            pass(&mut bench, 100_000);
        }
        bench.group.checkpoint.wanted = true;
        bench.drain();
        let is_page = |bench: &Bench, at: usize| bench.operations[at].0.medium == POOL;
        let Some(at) = (0..bench.operations.len()).find(|at| is_page(&bench, *at)) else { continue };
        let (operation, _) = bench.operations.swap_remove(at);
        bench.group.handle_disk(bench.now, operation.id, Err(EIO));
        // The others are written all the same.
        while bench.step() {}
        assert!(bench.group.stopped.is_some());
        let answers = bench.answers.clone();
        bench.reopen();
        client.check(&mut bench, &answers);
    }
}

/// What waits in a checkpoint is written when there is room, and counts only then.
#[test]
fn a_checkpoint_waits_for_room_in_the_file_system() {
    let mut delayed = 0;
    for seed in 0..24 {
        let mut bench = bench(&[seed; 32]);
        let mut client = Client::default();
        for block in 0..200 {
            client.write(&mut bench, block * 20480 % (4 << 20), 2048);
        }
        while bench.group.applied < bench.group.journal.last() {
            pass(&mut bench, 100_000);
        }
        bench.group.checkpoint.wanted = true;
        // Its pages, or its superblock.
        for _ in 0..pick(&mut bench.rng, 4) {
            bench.step();
        }
        (bench.fault, bench.events) = (full(), alloc::vec![]);
        let tail = bench.group.journal.tail_order;
        pass(&mut bench, 5_000_000);
        if !bench.group.checkpoint.is_running() {
            continue;
        }
        delayed += 1;
        assert_eq!((bench.group.stopped, bench.group.journal.tail_order), (None, tail));
        assert_eq!(bench.events, [Event::PoolFull]);
        assert!(bench.group.checkpoint.is_running() && bench.group.is_pool_full());
        if seed % 3 == 0 {
            // Who wants to stop does not wait for what may never come.
            bench.group.handle_command(bench.now, CommandId(9), Command::Stop);
            pass(&mut bench, 0);
            assert_eq!(bench.replies.remove(&CommandId(9)), Some(Err(CommandError::Io)));
            bench.operations.clear();
            bench.reopen();
        }
        bench.fault = None;
        bench.settle();
        let answers = bench.answers.clone();
        client.check(&mut bench, &answers);
        assert_eq!(bench.group.applied_durable(), bench.group.journal.last(), "the checkpoint did not come about");
        bench.reopen();
        client.check(&mut bench, &answers);
    }
    assert!(delayed > 12, "{delayed} were delayed");
}
