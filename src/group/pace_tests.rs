//! Writes that outrun the line while a copy is under way.

use super::{pair_bench::Pair, *};
use crate::{
    buffer::AlignedBuffer,
    command::Command,
    pair::{Cause, PairState},
    request::{Durability, Operation},
};

/// Writes in flight, and bytes that the line carries in a millisecond: 16 writes of 64 KiB in 100 ms are a third of that.
const DEPTH: usize = 16;
const LINE: usize = 30 << 10;

impl Pair {
    /// A millisecond of a host that always has so many writes in flight; each that is answered is told with how long it took.
    fn host_writes(&mut self, asked: &mut Vec<(RequestId, Monotonic)>, mut answered: impl FnMut(u64)) {
        asked.retain(|(id, since)| {
            let done = self.nodes[0].answers.remove(id).is_some();
            if done {
                answered(self.now.monotonic.since(*since));
            }
            !done
        });
        while asked.len() < DEPTH {
            let data = AlignedBuffer::new(64 << 10).freeze();
            let offset = self.next % 16 * (64 << 10);
            let id = self.request(0, Operation::Write { offset, data, durability: Durability::Completed });
            asked.push((id, self.now.monotonic));
        }
    }

    /// A millisecond: disks are quick, the line is not.
    fn millisecond(&mut self) {
        self.room = (self.room + LINE).min(2 << 20);
        loop {
            let (mut worked, clock, rng) = (false, self.now, &mut self.rng);
            for node in &mut self.nodes {
                worked |= node.step(clock, rng);
            }
            let size = self.nodes[0].outbox.front().map(|frame| frame.header.len() + frame.payload.len());
            let carried = size.is_some_and(|size| size <= self.room) && self.turn(0, 1);
            self.room -= size.filter(|_| carried).unwrap_or_default();
            let back = self.turn(1, 1) || self.turn(1, 2) || self.turn(0, 2);
            if !(worked || carried || back) {
                break;
            }
        }
        if self.nodes.iter_mut().any(|node| core::mem::take(&mut node.wants_reconnect)) {
            self.connect();
        }
        self.pass_to(self.now.monotonic.after(1_000));
    }
}

#[test]
fn a_resync_ends_under_writes_that_outrun_the_line() {
    let mut pair = Pair::in_step();
    pair.command(0, Command::SuspendPair { now: true }).unwrap();
    for block in 0..16 {
        pair.write_at_unchecked(block << 20, 1 << 20);
        pair.settle();
    }
    pair.command(0, Command::ResumePair { compare: false }).unwrap();
    pair.connect();
    let (mut asked, mut slowest, mut copied) = (Vec::new(), 0, false);
    for _ in 0..5_000 {
        pair.host_writes(&mut asked, |took| slowest = slowest.max(took));
        pair.millisecond();
        let state = pair.nodes[0].group.pair.state;
        assert_ne!(state, PairState::Suspended(Cause::JournalFull), "the copy has to begin again");
        if state == PairState::Duplex {
            copied = true;
            break;
        }
    }
    assert!(copied, "the copy never ends");
    assert!(slowest > 50_000, "nothing was paced: {slowest} us; the test needs a slower line");
    assert!(slowest < 110_000, "a write took {slowest} us");
}
