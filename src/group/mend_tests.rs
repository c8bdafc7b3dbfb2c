//! A bad block on the primary is mended from its standby, while writes go on.

use super::{pair_bench::Pair, tests::pick, *};
use crate::{
    buffer::AlignedBuffer,
    command::Command,
    disk::{DiskAction, DiskError, DiskOperation},
    output::Event,
    request::{Access, Durability, Operation},
};
use proptest::prelude::*;

const VOLUME: VolumeId = VolumeId(1);

impl Pair {
    /// Begins a host's read, of which every disk operation fails.
    fn read_badly(&mut self, offset: u64, size: u32) -> RequestId {
        self.idle();
        self.settle();
        let id = self.request(0, Operation::Read { offset, size });
        assert!(self.fail_reads(0) > 0, "nothing is read from the pool");
        id
    }

    fn data(&mut self, id: RequestId) -> Result<Vec<u64>, RequestError> {
        self.settle();
        let Reply::Data(parts) = self.nodes[0].answers.remove(&id).expect("answered")? else { panic!("no data") };
        Ok(parts.concat().chunks(512).map(|sector| u64::from_le_bytes(sector[..8].try_into().unwrap())).collect())
    }

    fn sectors(&self, offset: u64, size: u64) -> Vec<u64> {
        self.state[(offset / 512) as usize..((offset + size) / 512) as usize].to_vec()
    }
}

#[test]
fn a_read_that_fails_is_answered_with_what_the_peer_has() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 256 << 10);
    pair.write_at(4096, 512);
    let id = pair.read_badly(0, 192 << 10);
    // It takes three blocks, one after the other; a write to the first waits, one elsewhere does not.
    let data = AlignedBuffer::new(4096).freeze();
    let write = Operation::Write { offset: 8192, data: data.clone(), durability: Durability::Completed };
    pair.request(0, write);
    assert_eq!(pair.nodes[0].group.held.len(), 1);
    pair.request(0, Operation::Write { offset: 512 << 10, data, durability: Durability::Completed });
    assert_eq!(pair.nodes[0].group.held.len(), 1);
    let mut expected = pair.sectors(0, 192 << 10);
    let found = pair.data(id).unwrap();
    assert!(found == expected);
    pair.state[16..24].fill(0);
    pair.state[1024..1032].fill(0);
    let mended =
        |pair: &Pair| pair.nodes[0].events.iter().filter(|event| matches!(event, Event::Mended { .. })).count();
    assert_eq!(mended(&pair), 1);
    // What is on the disk now is another place.
    expected[16..24].fill(0);
    pair.reopen(0);
    pair.connect();
    pair.settle();
    assert!(pair.content(0)[..384] == expected);
    pair.finish();
}

#[test]
fn nobody_has_a_block() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 64 << 10);
    let id = pair.read_badly(0, 4096);
    while pair.nodes[1].operations.is_empty() {
        let before = pair.nodes[1].group.reads.next();
        pair.step();
        if pair.nodes[1].group.reads.next() > before {
            break;
        }
    }
    assert!(pair.fail_reads(1) > 0);
    assert_eq!(pair.data(id), Err(RequestError::Io));
    assert!(pair.nodes[0].events.contains(&Event::NotMended { volume: VOLUME, offset: 0 }));
    // Without a peer it is as it always was.
    let id = pair.read_badly(0, 4096);
    pair.cut();
    assert_eq!(pair.data(id), Err(RequestError::Io));
    let id = pair.read_badly(0, 4096);
    assert_eq!(pair.data(id), Err(RequestError::Io));
    assert!(pair.nodes[0].group.held.is_empty());
    pair.finish();
}

impl Pair {
    /// Until the standby has begun to read what it is asked for.
    fn until_it_reads(&mut self) {
        let number = self.nodes[1].group.reads.next();
        while self.nodes[1].group.reads.next() == number {
            assert!(self.step());
        }
        self.nodes[1].drain();
    }

    /// A write of the primary to its disk fails.
    fn fail_write(&mut self) {
        let data = AlignedBuffer::new(4096).freeze();
        self.request(0, Operation::Write { offset: 512 << 10, data, durability: Durability::Completed });
        let node = &mut self.nodes[0];
        let is_write = |(operation, _): &(DiskOperation, u64)| matches!(operation.action, DiskAction::Write { .. });
        let index = node.operations.iter().position(is_write).expect("something is written");
        let (operation, _) = node.operations.swap_remove(index);
        node.group.handle_disk(self.now, operation.id, Err(DiskError::Failed { errno: 5 }));
        node.drain();
    }

    fn bad_read(&mut self) -> RequestId {
        self.write_at(0, 256 << 10);
        self.read_badly(0, 4096)
    }
}

/// The answer to a question that was given up comes late, and is not taken for that to a later one.
#[test]
fn a_late_answer_brings_nothing_back() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 256 << 10);
    pair.idle();
    pair.settle();
    // Something else differs on the standby, so that a mending verification ends what is under way.
    assert!(pair.damage(40));
    let first = pair.read_badly(0, 4096);
    pair.until_it_reads();
    let is_read = |operation: &DiskOperation| matches!(operation.action, DiskAction::Read { .. });
    let slow: Vec<_> = pair.nodes[1].operations.extract_if(.., |(operation, _)| is_read(operation)).collect();
    assert_eq!(slow.len(), 1);
    pair.verify(true, 1000, |_| {}).unwrap();
    pair.settle();
    assert!(pair.nodes[0].answers.contains_key(&first));
    // What is to be mended is copied in another session.
    pair.connect();
    pair.settle();
    pair.write_at(0, 4096);
    let new = pair.state[0];
    let second = pair.request(0, Operation::Read { offset: 8192, size: 4096 });
    assert!(pair.fail_reads(0) > 0);
    pair.until_it_reads();
    for (operation, asked) in slow {
        let outcome = pair.nodes[1].disks.carry_out(operation.medium, operation.action, asked);
        pair.nodes[1].group.handle_disk(pair.now, operation.id, outcome);
    }
    while pair.turn(1, 1) {}
    pair.settle();
    assert!(pair.nodes[0].answers.contains_key(&second));
    assert_eq!(pair.content(0)[0], new, "an older write is back");
}

#[test]
fn whoever_waits_for_a_block_is_answered_whatever_stops() {
    // This node's medium fails.
    let mut pair = Pair::in_step();
    let id = pair.bad_read();
    pair.fail_write();
    assert_eq!(pair.nodes[0].answers.get(&id), Some(&Err(RequestError::Io)));
    // The standby's does.
    let mut pair = Pair::in_step();
    pair.write_at(0, 256 << 10);
    pair.idle();
    pair.settle();
    pair.nodes[1].group.fail(MediumId::Journal, DiskError::Failed { errno: 5 });
    let id = pair.read_badly(0, 4096);
    pair.settle();
    assert_eq!(pair.nodes[0].answers.get(&id), Some(&Err(RequestError::Io)));
    // The session is replaced before anybody looks.
    let mut pair = Pair::in_step();
    let id = pair.bad_read();
    pair.nodes[0].drain();
    pair.nodes[0].outbox.clear();
    pair.nodes[1].group.handle_peer_down(pair.now);
    pair.nodes[1].group.handle_peer_up(pair.now);
    pair.nodes[1].group.handle_stream_credit(pair.now, 4 << 20);
    while pair.turn(1, 0) {}
    pair.nodes[1].drain();
    let greeting = pair.nodes[1].outbox.pop_front().expect("a greeting");
    pair.nodes[0].group.handle_peer_down(pair.now);
    pair.nodes[0].group.handle_peer_up(pair.now);
    pair.nodes[0].group.handle_stream_credit(pair.now, 4 << 20);
    pair.nodes[0].group.handle_frame(pair.now, [greeting.header, greeting.payload].concat().into());
    pair.settle();
    assert!(matches!(pair.nodes[0].answers.get(&id), Some(Ok(_))));
}

/// What was to be kept of a block lies in a bad sector: then it is an error for who reads it, and no more.
#[test]
fn one_bad_sector_does_not_stop_the_group() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 64 << 10);
    for _ in 0..2 {
        pair.restart_point();
        pair.idle();
        pair.settle();
        pair.write_at(0, 4096);
        pair.idle();
        pair.settle();
    }
    pair.restart_point();
    pair.idle();
    pair.settle();
    let id = pair.read_badly(8192, 4096);
    assert_eq!(pair.data(id), Err(RequestError::Io));
    assert_eq!(pair.nodes[0].group.stopped, None);
}

impl Pair {
    /// A block of which a part was written since the last restart point, all of it applied.
    fn partly_written(&mut self) {
        self.write_at(0, 64 << 10);
        self.restart_point();
        self.idle();
        self.settle();
        self.write_at(0, 4096);
        self.idle();
        self.settle();
    }

    fn is_mended(&self) -> bool {
        self.nodes[0].events.iter().any(|event| matches!(event, Event::Mended { .. }))
    }

    /// Goes on for a while; the primary can read nothing of its pool.
    fn go_on_badly(&mut self) {
        let deadline = self.now.monotonic.after(5_000_000);
        loop {
            loop {
                self.nodes[0].drain();
                let is_read = |(operation, _): &(DiskOperation, u64)| {
                    operation.medium == MediumId::Pool(VOLUME) && matches!(operation.action, DiskAction::Read { .. })
                };
                let failing: Vec<_> = self.nodes[0].operations.extract_if(.., |operation| is_read(operation)).collect();
                for (operation, _) in failing {
                    self.nodes[0].group.handle_disk(self.now, operation.id, Err(DiskError::Failed { errno: 5 }));
                }
                if !self.step() {
                    break;
                }
            }
            let Some(at) = self.next_timeout().filter(|at| *at <= deadline) else { return };
            self.pass_to(at);
        }
    }
}

/// The restart point after which the rest would have to be read is declared, but not applied.
#[test]
fn a_restart_point_that_is_not_applied_counts_too() {
    for comes_late in [false, true] {
        let mut pair = Pair::in_step();
        pair.partly_written();
        if !comes_late {
            pair.restart_point();
        }
        let id = pair.request(0, Operation::Read { offset: 8192, size: 4096 });
        assert!(pair.fail_reads(0) > 0, "nothing is read from the pool");
        if comes_late {
            // While the standby is asked.
            pair.until_it_reads();
            let label = "late".parse().unwrap();
            pair.nodes[0].group.handle_command(pair.now, CommandId(1 << 40), Command::RestartPoint { label });
        }
        pair.go_on_badly();
        assert_eq!(pair.nodes[0].group.stopped, None, "late: {comes_late}");
        assert_eq!(pair.nodes[0].answers.remove(&id), Some(Err(RequestError::Io)), "late: {comes_late}");
        assert!(!pair.is_mended());
    }
}

/// Nor is the part that was written.
#[test]
fn a_part_that_is_not_applied_counts_too() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 64 << 10);
    pair.restart_point();
    pair.idle();
    pair.settle();
    pair.write_at(0, 4096);
    pair.restart_point();
    let id = pair.request(0, Operation::Read { offset: 8192, size: 4096 });
    assert!(pair.fail_reads(0) > 0, "nothing is read from the pool");
    pair.go_on_badly();
    assert_eq!(pair.nodes[0].group.stopped, None);
    assert_eq!(pair.nodes[0].answers.remove(&id), Some(Err(RequestError::Io)));
}

/// A block that nothing has to be kept of is mended, whatever is declared.
#[test]
fn a_whole_block_is_mended_before_a_restart_point() {
    let mut pair = Pair::in_step();
    pair.write_at(0, 64 << 10);
    pair.idle();
    pair.settle();
    pair.restart_point();
    let id = pair.request(0, Operation::Read { offset: 8192, size: 4096 });
    assert!(pair.fail_reads(0) > 0, "nothing is read from the pool");
    pair.go_on_badly();
    assert_eq!(pair.nodes[0].group.stopped, None);
    assert!(pair.is_mended() && matches!(pair.nodes[0].answers.get(&id), Some(Ok(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Reads fail at any time; each is answered with an error or with what was written.
    #[test]
    fn a_bad_block_never_shows(seed: [u8; 32]) {
        let mut pair = Pair::in_step_with(seed);
        for _ in 0..20 {
            pair.write();
        }
        for _ in 0..150 {
            match pick(&mut pair.rng, 40) {
                0 => pair.cut(),
                1..4 => pair.connect(),
                4 => pair.kill(1),
                5 => pair.settle(),
                6..9 => drop(pair.fail_reads(0)),
                9 => drop(pair.fail_reads(1)),
                10..14 => {
                    let offset = pick(&mut pair.rng, 12) * (64 << 10);
                    let expected = pair.sectors(offset, 192 << 10);
                    let id = pair.request(0, Operation::Read { offset, size: 192 << 10 });
                    for _ in 0..pick(&mut pair.rng, 3) {
                        pair.fail_reads(0);
                        pair.step();
                    }
                    if let Ok(found) = pair.data(id) {
                        prop_assert!(found == expected, "something else was read");
                    }
                }
                14..30 => {
                    pair.step();
                }
                _ => drop(pair.write()),
            }
        }
        let request = Operation::Read { offset: 0, size: 1 << 20 };
        pair.settle();
        let id = pair.request_as(0, Access::ReadWrite, request);
        let expected = pair.state.clone();
        prop_assert!(pair.data(id) == Ok(expected));
        pair.finish();
    }
}
