//! What a pair shows, and whether it is what it promised.

use super::pair_bench::{AREA, Pair, SECTOR, State};
use super::*;
use crate::{
    buffer::AlignedBuffer,
    command::GenerationKind,
    pair::Role,
    request::{Access, Durability, Operation},
    units::Seq,
};
use alloc::collections::BTreeSet;
extern crate std;

impl Pair {
    pub(super) fn content(&mut self, index: usize) -> State {
        self.content_as(index, Access::ReadOnly)
    }

    /// What a generation was.
    pub(super) fn content_of(&mut self, index: usize, order: Order) -> State {
        self.nodes[index].group.hold_generation(order);
        let found = self.content_as(index, Access::Generation(order));
        self.nodes[index].group.release_generation(order);
        found
    }

    pub(super) fn content_as(&mut self, index: usize, access: Access) -> State {
        let id = self.request_as(index, access, Operation::Read { offset: 0, size: AREA as u32 });
        for _ in 0..10_000 {
            if self.nodes[index].answers.contains_key(&id) {
                break;
            }
            let now = self.clock(index);
            self.nodes[index].step(now, &mut self.rng);
        }
        let Some(Ok(Reply::Data(parts))) = self.nodes[index].answers.remove(&id) else { panic!("read failed") };
        let data: Vec<u8> = parts.concat();
        data.chunks(SECTOR as usize)
            .map(|sector| {
                let word = u64::from_le_bytes(sector[..8].try_into().unwrap());
                assert!(sector.chunks(8).all(|other| other == &sector[..8]), "a sector is torn");
                word
            })
            .collect()
    }

    /// The standby shows a state that the primary went through.
    pub(super) fn check_standby(&mut self) {
        let standby = 1 - self.primary;
        let (last, copying) = (self.nodes[standby].group.stream.last, self.nodes[standby].group.stream.copying);
        if self.nodes[standby].group.pair.role != Role::Secondary || copying || last.seq == Seq(0) {
            return;
        }
        if let Some(expected) = self.states.get(&last).cloned() {
            let found = self.content(standby);
            assert!(found == expected, "the standby at {last} shows another state");
        }
    }

    /// Whatever a node says it keeps is what it was.
    pub(super) fn check_generations(&mut self, index: usize) {
        let now = self.clock(index);
        for kept in self.nodes[index].group.status(now).generations {
            let order = self.nodes[index].group.find_generation(kept.name);
            // Two forks of one epoch have one name.
            let Some(order) = order.filter(|_| kept.kind != GenerationKind::Fork) else { continue };
            let declared = kept.kind != GenerationKind::BeforeCopy;
            let expected = if declared { self.points.get(&kept.at) } else { self.states.get(&kept.at) };
            let Some(expected) = expected.cloned() else { continue };
            // Of two with one number the other one may be meant.
            if self.nodes[index].group.generation_at(order) == Some(kept.at) {
                let found = self.content_of(index, order);
                assert!(found == expected, "generation {} at {} shows another state", kept.name, kept.at);
                self.check_changes(index, order);
                self.checked_generations += 1;
            }
        }
        let forks: Vec<_> = self.nodes[index].group.forks();
        for (order, at) in forks {
            if let Some(expected) = self.states.get(&at).cloned() {
                let found = self.content_of(index, order);
                assert!(found == expected, "the fork at {at} shows another state");
                self.checked_forks += 1;
            }
        }
    }

    /// Each block that is not what it was in a generation is among those that may have changed since.
    fn check_changes(&self, index: usize, order: Order) {
        for volume in self.nodes[index].group.volumes.values() {
            let (table, blocks) = (&volume.table, (AREA / u64::from(volume.spec.table_block_size)) as u32);
            let Some(changed) = table.changed_since(order) else { continue };
            let changed: BTreeSet<u32> = changed.collect();
            let mut differing = (0..blocks).filter(|block| table.entry_in(order, *block) != Some(table.entry(*block)));
            assert!(differing.all(|block| changed.contains(&block)), "a block has changed unseen");
        }
    }

    /// Only a primary takes writes, and never two in one epoch.
    pub(super) fn check_fence(&mut self) {
        let roles = [0, 1].map(|index| self.nodes[index].group.pair.role);
        for index in (0..2).filter(|index| roles[*index] != Role::Primary) {
            let data = AlignedBuffer::new(4096).freeze();
            let write = Operation::Write { offset: 0, data, durability: Durability::Completed };
            let id = self.request(index, write);
            assert_eq!(self.nodes[index].answers.remove(&id), Some(Err(RequestError::NotPrimary)));
            // Only for who knows that it is not the newest.
            let id = self.request(index, Operation::Read { offset: 0, size: 4096 });
            assert_eq!(self.nodes[index].answers.remove(&id), Some(Err(RequestError::NotPrimary)));
            if roles[index] == Role::Fenced {
                self.content(index);
            }
        }
        if roles == [Role::Primary, Role::Primary] {
            assert_ne!(self.nodes[0].group.epoch(), self.nodes[1].group.epoch());
        }
    }

    pub(super) fn content_after_confirm(&mut self, index: usize) -> State {
        self.pass_to(self.now.monotonic.after(10_000_000));
        self.content(index)
    }
}
