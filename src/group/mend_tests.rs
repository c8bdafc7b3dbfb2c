//! A bad block on the primary is mended from its standby, while writes go on.

use super::{pair_bench::Pair, tests::pick, *};
use crate::{
    buffer::AlignedBuffer,
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
