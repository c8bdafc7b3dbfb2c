//! Clients: what they ask, and what every answer promises.

use crate::{
    history::Place,
    outside::{Asked, Outside, Pending, Serving},
    world::World,
};
use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    pair::Role,
    request::{Access, Busy, Durability, Operation, Reply, Request, RequestError, RequestId, Space},
    units::{Order, VolumeId},
};
use link_model::Random;

const SECTOR: u64 = 512;
/// Requests that one group's clients have in flight.
const IN_FLIGHT_MAX: usize = 64;

/// A change that a client wants.
struct Change {
    volume: usize,
    offset: u64,
    size: u64,
    durability: Durability,
    kind: u64,
}

/// A request, and what its answer will promise.
pub(crate) struct Inquiry {
    pub(crate) node: usize,
    pub(crate) group: usize,
    pub(crate) volume: usize,
    pub(crate) access: Access,
    pub(crate) operation: Operation,
    pub(crate) asked: Asked,
}

/// Sectors that all carry a value.
pub(crate) fn filled(value: u64, size: u64) -> Bytes {
    let mut buffer = AlignedBuffer::new(size as usize);
    buffer.as_mut_slice().chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
    buffer.freeze()
}

impl World {
    /// A node that serves a group to clients now.
    pub(crate) fn serving(&mut self, group: usize, chance: &mut Random) -> Option<(usize, usize)> {
        let first = chance.below(2) as usize;
        [first, 1 - first].into_iter().find_map(|node| {
            let is_primary = self.slot(node, group)?.view.role == Role::Primary;
            if !is_primary || !self.is_awake(node) {
                return None;
            }
            self.settle(node, group);
            match self.outside[group].serving[node] {
                Serving::Branch(branch) => Some((node, branch)),
                _ => None,
            }
        })
    }

    /// A client asks for something.
    pub(crate) fn ask(&mut self, salt: u64) {
        let mut chance = Random::new(salt);
        let group = chance.below(self.config.group_count as u64) as usize;
        let Some((node, branch)) = self.serving(group, &mut chance) else { return };
        if self.outside[group].pending.len() >= IN_FLIGHT_MAX {
            return;
        }
        match chance.below(10) {
            0 => self.flush_as_client(node, group, branch),
            1 | 2 => self.read_as_client(node, group, branch, &mut chance),
            _ => {
                let unit = [SECTOR, SECTOR, 4096, 64 << 10][chance.below(4) as usize].min(self.config.area / 4);
                let size = (1 + chance.below(3)) * unit;
                let offset = chance.below((self.config.area - size) / unit + 1) * unit;
                let durability = if chance.below(5) == 0 { Durability::Durable } else { Durability::Completed };
                let volume = chance.below(self.outside[group].volume_count as u64) as usize;
                self.change(node, group, Change { volume, offset, size, durability, kind: chance.below(8) });
            }
        }
    }

    /// A client writes a lot at once.
    pub(crate) fn burst(&mut self, salt: u64) {
        let mut chance = Random::new(salt);
        let group = chance.below(self.config.group_count as u64) as usize;
        let Some((node, _)) = self.serving(group, &mut chance) else { return };
        let size = self.config.area;
        // Many that are just too small to go straight to the pool fill the journal.
        let (unit, count) = [(4096, 60), (32 << 10, 700), (64 << 10, 60), (size, 60)][chance.below(4) as usize];
        let unit = unit.min(size);
        for _ in 0..chance.below(count) {
            let volume = chance.below(self.outside[group].volume_count as u64) as usize;
            let offset = chance.below(size / unit) * unit;
            let change = Change { volume, offset, size: unit, durability: Durability::Completed, kind: 7 };
            self.change(node, group, change);
        }
    }

    fn change(&mut self, node: usize, group: usize, change: Change) {
        let Change { volume, offset, size, durability, kind } = change;
        let outside = &mut self.outside[group];
        let value = if kind < 2 { 0 } else { outside.history.new_value() };
        let operation = match kind {
            0 => Operation::Discard { offset, size },
            1 => {
                let space = if value % 2 == 0 { Space::Keep } else { Space::Release };
                Operation::WriteZeroes { offset, size, space, durability }
            }
            _ => Operation::Write { offset, data: filled(value, size), durability },
        };
        let sectors = (offset / SECTOR) as usize..((offset + size) / SECTOR) as usize;
        self.trace.note(self.now, || {
            let what = if kind == 0 {
                "discards"
            } else if kind == 1 {
                "zeroes"
            } else {
                "writes"
            };
            format!("node {node} group {group}: client {what} volume {volume} {offset}+{size}: {value}")
        });
        // A discard says nothing about durability.
        let durable = durability == Durability::Durable && kind != 0;
        let asked = Asked::Change { volume, sectors, value, place: None, durable };
        self.submit(Inquiry { node, group, volume, access: Access::ReadWrite, operation, asked });
    }

    fn flush_as_client(&mut self, node: usize, group: usize, branch: usize) {
        let bound = self.outside[group].history.branches[branch].answered;
        let asked = Asked::Flush { branch, bound };
        self.submit(Inquiry { node, group, volume: 0, access: Access::ReadWrite, operation: Operation::Flush, asked });
    }

    fn read_as_client(&mut self, node: usize, group: usize, branch: usize, chance: &mut Random) {
        let outside = &self.outside[group];
        let bound = outside.history.branches[branch].answered;
        let count = 1 + chance.below(64).min(outside.sector_count as u64 - 1);
        let sector = chance.below(outside.sector_count as u64 - count + 1);
        let volume = chance.below(outside.volume_count as u64) as usize;
        let (offset, size) = (sector * SECTOR, (count * SECTOR) as u32);
        let (operation, asked) = if chance.below(8) == 0 {
            (Operation::Extents { offset, size: size.into() }, Asked::Nothing)
        } else {
            (Operation::Read { offset, size }, Asked::Read { branch, bound, volume, sector: sector as usize })
        };
        self.submit(Inquiry { node, group, volume, access: Access::ReadWrite, operation, asked });
        // Somebody may write there while it is being read.
        if chance.below(4) == 0 {
            let unit = 512 * (1 + chance.below(count));
            let change =
                Change { volume, offset, size: unit, durability: Durability::Completed, kind: chance.below(8) };
            self.change(node, group, change);
        }
    }

    /// A client asks for what nobody can have.
    pub(crate) fn ask_nonsense(&mut self, node: usize, group: usize, chance: &mut Random) {
        let now = self.nodes[node].clock.now(self.now);
        let Some(core) = self.group(node, group) else { return };
        let kept = core.status(now).generations.first().and_then(|kept| core.find_generation(kept.name));
        let kept = Access::Generation(kept.unwrap_or(Order(1)));
        let read = |offset| Operation::Read { offset, size: 4096 };
        let (volume, access, operation) = match chance.below(4) {
            0 => (0, Access::ReadWrite, read(u64::MAX - chance.below(8192))),
            1 => (8, Access::ReadOnly, read(0)),
            2 => {
                let durability = Durability::Completed;
                (0, kept, Operation::Write { offset: 0, data: filled(1, 4096), durability })
            }
            _ => (0, Access::Generation(Order(u64::MAX / 4)), read(0)),
        };
        if self.is_awake(node) {
            self.submit(Inquiry { node, group, volume, access, operation, asked: Asked::Nonsense });
        }
    }

    /// Hands a request to a node's group.
    pub(crate) fn submit(&mut self, inquiry: Inquiry) {
        let node = inquiry.node;
        self.hand_in(inquiry);
        self.pump(node);
    }

    /// The same, without carrying out what follows.
    pub(crate) fn hand_in(&mut self, inquiry: Inquiry) -> RequestId {
        let Inquiry { node, group, volume, access, operation, asked } = inquiry;
        let id = RequestId(self.number());
        let now = self.nodes[node].clock.now(self.now);
        self.outside[group].pending.insert(id, Pending { node, asked });
        let request = Request { id, volume: VolumeId(volume as u16 + 1), access, operation };
        let Some(slot) = self.slot(node, group) else { return id };
        let Some(core) = &mut slot.group else { return id };
        if !slot.waiting.is_empty() {
            slot.waiting.push_back(request);
        } else if let Err(Busy(request)) = core.handle_request(now, request) {
            slot.waiting.push_back(request);
        }
        id
    }

    /// A group answers.
    pub(crate) fn answered(&mut self, node: usize, group: usize, id: RequestId, result: Result<Reply, RequestError>) {
        let Some(pending) = self.outside[group].pending.remove(&id) else { return };
        let Some(view) = self.slot(node, group).map(|slot| slot.view) else { return };
        self.mark_request_error(&result);
        let outside = &mut self.outside[group];
        match (pending.asked, result) {
            (Asked::Change { place: Some(Place { branch, count }), durable, .. }, Ok(_)) => {
                let line = &mut outside.history.branches[branch];
                line.answered = line.answered.max(count);
                if durable {
                    line.durable = line.durable.max(count);
                }
                if view.promises_remote() {
                    line.remote = line.remote.max(count);
                }
                self.check_serves(node, group);
            }
            (Asked::Change { place: None, .. }, Ok(_)) => {
                panic!("I3: node {node} group {group} answers a write that has no place in the order");
            }
            (Asked::Change { place, value, .. }, Err(error)) => {
                // A write that finds no room changes nothing; of others nobody knows.
                if let Some(Place { branch, count }) = place.filter(|_| error == RequestError::NoSpace) {
                    outside.history.remove(branch, count);
                }
                self.trace.note(self.now, || format!("node {node} group {group}: write {value} fails, {error}"));
            }
            (Asked::Flush { branch, bound }, Ok(_)) => {
                let line = &mut outside.history.branches[branch];
                line.durable = line.durable.max(bound);
                self.check_serves(node, group);
            }
            (Asked::Read { branch, bound, volume, sector }, Ok(Reply::Data(parts))) => {
                let values = Outside::sectors(&parts.concat());
                let Some(values) = values else { panic!("I3: node {node} group {group} gives a torn sector") };
                for (index, value) in values.into_iter().enumerate() {
                    let sector = sector + index;
                    assert!(
                        outside.history.may_hold(branch, bound, volume, sector, value),
                        "I3: node {node} group {group} volume {volume} sector {sector} reads {value} on branch {branch}, \
                         though {bound} operations were answered before"
                    );
                }
                // One that has stepped down since may still answer what was asked before.
                if view.role == Role::Primary {
                    self.check_serves(node, group);
                }
            }
            (Asked::Read { .. }, Err(RequestError::Io)) => self.check_excuse(node, group),
            (Asked::Nonsense, Ok(reply)) => panic!("I6: node {node} group {group} answers nonsense: {reply:?}"),
            (Asked::Look, result) => {
                if result == Err(RequestError::Io) {
                    self.check_excuse(node, group);
                }
                let torn = || panic!("I3: node {node} group {group} shows a torn sector");
                let outside = &mut self.outside[group];
                outside.looked.insert(
                    id,
                    match result {
                        Ok(Reply::Data(parts)) => Ok(Outside::sectors(&parts.concat()).unwrap_or_else(torn)),
                        Ok(_) => Err(RequestError::Invalid),
                        Err(error) => Err(error),
                    },
                );
            }
            (Asked::TrialWrite { sectors, value }, result) => {
                if let Some(trial) = outside.trial.as_mut().filter(|trial| trial.node == node) {
                    // Of one that fails any part may be there.
                    let known = result.is_ok().then_some(value);
                    sectors.for_each(|sector| trial.content[sector] = known);
                }
            }
            (Asked::TrialRead { sectors }, Ok(Reply::Data(parts))) => {
                let Some(trial) = outside.trial.as_ref().filter(|trial| trial.node == node) else { return };
                let values = Outside::sectors(&parts.concat());
                let Some(values) = values else {
                    panic!("I4: the trial of node {node} group {group} has a torn sector")
                };
                for (sector, value) in sectors.zip(values) {
                    let known = trial.content[sector];
                    assert!(
                        known.is_none_or(|known| known == value),
                        "I4: sector {sector} of the trial of node {node} group {group} reads {value}, not {known:?}"
                    );
                }
                self.trace.mark("look: a trial");
            }
            _ => {}
        }
    }

    /// A read fails only if something is wrong with the medium.
    fn check_excuse(&mut self, node: usize, group: usize) {
        let ills = self.nodes[node].ills;
        let stopped = self.slot(node, group).is_some_and(|slot| slot.view.stopped);
        assert!(
            stopped || ills.has_failed || ills.rotten,
            "I7: node {node} group {group} cannot read, and nothing is wrong"
        );
    }
}
