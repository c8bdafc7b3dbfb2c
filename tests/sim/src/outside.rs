//! A group as its clients know it: what they asked, what they were told, and what that promises.

use crate::{
    config::Config,
    history::{Content, History, Place},
};
use holdfast::{
    command::PromoteTarget,
    pair::Role,
    request::{RequestError, RequestId},
};
use std::{collections::BTreeMap, ops::Range};

const SECTOR: u64 = 512;

/// See the module.
pub struct Outside {
    /// What the volumes may hold.
    pub history: History,
    /// What each node serves.
    pub serving: [Serving; 2],
    /// What was asked and not answered.
    pub pending: BTreeMap<RequestId, Pending>,
    /// What somebody who looks at a whole volume has read.
    pub looked: BTreeMap<RequestId, Result<Vec<u64>, RequestError>>,
    /// Which node served in which epoch.
    pub epochs: BTreeMap<u64, usize>,
    /// When each node answered last.
    pub answered_at: [u64; 2],
    /// A node must not answer in an epoch before this one: the other was promoted in it while this one was fenced.
    pub ended: [u64; 2],
    /// Whether a node that died counted on a lease.
    pub had_lease: [bool; 2],
    /// To what a node was asked to be promoted, and whether by force.
    pub hint: [Option<(PromoteTarget, bool)>; 2],
    /// To which restart point it says that it was.
    pub told_generation: [Option<u32>; 2],
    /// What a node was promised to have because the other one handed over.
    pub handed_over: [Option<Place>; 2],
    /// What each node held when it stepped down with something that nobody else had, by the fork's name.
    pub forks: [BTreeMap<String, Content>; 2],
    /// What a trial's client wrote: sector and value of the first volume.
    pub tried: BTreeMap<usize, u64>,
    /// How many sectors of each volume are used.
    pub sector_count: usize,
    /// How many volumes there are.
    pub volume_count: usize,
}

/// What a node serves to clients.
#[derive(Clone, Copy, Debug)]
pub enum Serving {
    /// It is no primary, as far as is known.
    Nothing,
    /// It is one, and nobody has looked since.
    Unsettled(Expect),
    /// It adds to this branch.
    Branch(usize),
}

/// What a look at a primary must find.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It was started again: so many operations at least.
    Crash {
        /// On this branch.
        branch: usize,
        /// So many.
        bound: usize,
    },
    /// It was promoted.
    Promotion {
        /// To what, if that was heard.
        target: Option<PromoteTarget>,
        /// To which restart point, if that was heard.
        generation: Option<u32>,
        /// What was promised to be there.
        remote: Option<Place>,
        /// The restart point that was promised to be there.
        remote_generation: u32,
    },
}

/// A request that waits for its answer.
pub struct Pending {
    /// To which node.
    pub node: usize,
    /// What it is.
    pub what: Asked,
}

/// What was asked.
pub enum Asked {
    /// A change: its place in the order, once it has one, and whether it must be durable.
    Change {
        /// Of this volume.
        volume: usize,
        /// These sectors.
        sectors: Range<usize>,
        /// To this value.
        value: u64,
        /// On this branch as this operation.
        place: Option<Place>,
        /// The answer says that it is durable.
        durable: bool,
    },
    /// What was answered before must be durable.
    Flush {
        /// On this branch.
        branch: usize,
        /// So many operations.
        bound: usize,
    },
    /// A few sectors.
    Read {
        /// On this branch.
        branch: usize,
        /// So many operations were answered before.
        bound: usize,
        /// Of this volume.
        volume: usize,
        /// From this sector on.
        sector: usize,
    },
    /// A whole volume, by somebody who looks.
    Look,
    /// Something of a trial: whether it reads, from which sector on, and what it writes.
    Trial {
        /// It reads from this sector on.
        read: Option<usize>,
    },
    /// The answer does not matter.
    Nothing,
}

impl Outside {
    /// Volumes that nobody has used.
    pub fn new(config: &Config) -> Self {
        let sector_count = (config.area / SECTOR) as usize;
        let volume_count = config.table_blocks.len();
        Self {
            history: History::new(&vec![sector_count; volume_count]),
            serving: [Serving::Nothing; 2],
            pending: BTreeMap::new(),
            looked: BTreeMap::new(),
            epochs: BTreeMap::new(),
            answered_at: [0; 2],
            ended: [0; 2],
            had_lease: [false; 2],
            hint: [None; 2],
            told_generation: [None; 2],
            handed_over: [None; 2],
            forks: [BTreeMap::new(), BTreeMap::new()],
            tried: BTreeMap::new(),
            sector_count,
            volume_count,
        }
    }

    /// A request has got its place in the order. Those that are in flight together have none before.
    pub fn started(&mut self, node: usize, id: RequestId) {
        let Serving::Branch(branch) = self.serving[node] else { return };
        let Some(Pending { what: Asked::Change { volume, sectors, value, place, .. }, .. }) = self.pending.get_mut(&id)
        else {
            return;
        };
        let count = self.history.add(branch, *volume, sectors.clone(), *value);
        *place = Some(Place { branch, count });
    }

    /// A daemon is gone, and with it whoever was connected to it.
    pub fn forget_requests(&mut self, node: usize) {
        self.pending.retain(|_, pending| pending.node != node);
    }

    /// A node's daemon died, or lost its power.
    pub fn crashed(&mut self, node: usize, power: bool) {
        let bound = |history: &History, branch: usize| {
            let branch = &history.branches[branch];
            if power { branch.durable } else { branch.answered }
        };
        self.serving[node] = match self.serving[node] {
            Serving::Branch(branch) => {
                Serving::Unsettled(Expect::Crash { branch, bound: bound(&self.history, branch) })
            }
            Serving::Unsettled(Expect::Crash { branch, bound: known }) => {
                Serving::Unsettled(Expect::Crash { branch, bound: known.min(bound(&self.history, branch)) })
            }
            other => other,
        };
    }

    /// A node opened the group.
    pub fn opened(&mut self, node: usize, role: Role) {
        match (role, self.serving[node]) {
            (Role::Secondary, _) => self.serving[node] = Serving::Nothing,
            (_, Serving::Nothing) => self.serving[node] = Serving::Unsettled(Expect::unknown()),
            _ => {}
        }
    }

    /// The branch of the node that serves, if one does.
    pub fn branch(&self, node: usize) -> Option<usize> {
        match self.serving[node] {
            Serving::Branch(branch) | Serving::Unsettled(Expect::Crash { branch, .. }) => Some(branch),
            _ => None,
        }
    }

    /// A standby is made anew: nothing was promised to be there.
    pub fn forget_promises(&mut self) {
        self.history.branches.iter_mut().for_each(|branch| (branch.remote, branch.remote_generation) = (0, 0));
        self.handed_over = [None; 2];
    }

    /// What a standby was promised to have of what its primary serves.
    pub fn promised(&self, standby: usize) -> (Option<Place>, u32) {
        let branch = self.branch(1 - standby);
        let place = branch.map(|branch| Place { branch, count: self.history.branches[branch].remote });
        let generation = branch.map_or(0, |branch| self.history.branches[branch].remote_generation);
        (place.filter(|place| place.count > 0), generation)
    }

    /// What can be read into the values of sectors; `None` if a sector is torn.
    pub fn sectors(data: &[u8]) -> Option<Vec<u64>> {
        data.chunks(SECTOR as usize)
            .map(|sector| {
                let first: [u8; 8] = *sector.first_chunk()?;
                sector.chunks(8).all(|word| word == first).then(|| u64::from_le_bytes(first))
            })
            .collect()
    }

    /// Finds what a primary holds, and goes on from there. An error says what is wrong.
    pub fn settle(&mut self, node: usize, expect: Expect, content: &Content, rotten: bool) -> Result<usize, String> {
        match expect {
            Expect::Crash { branch, bound } => {
                let bound = if rotten { 0 } else { bound };
                let counts = self.history.counts(branch, content);
                let found = counts.iter().rev().find(|counts| counts.end > bound);
                let Some(counts) = found else {
                    let why = self.history.explain(branch, content);
                    return Err(format!("I1: {bound} operations were promised to survive; {why}"));
                };
                let place = Place { branch, count: counts.end - 1 };
                Ok(self.go_on_from(node, place))
            }
            Expect::Promotion { target, generation, remote, remote_generation } => {
                let place = self.promoted_to(target, generation, remote, remote_generation, content, rotten)?;
                let branch = self.go_on_from(node, place);
                // The other node was promised nothing by this one.
                (self.history.branches[branch].remote, self.history.branches[branch].remote_generation) = (0, 0);
                Ok(branch)
            }
        }
    }

    fn go_on_from(&mut self, node: usize, place: Place) -> usize {
        let is_used = matches!(self.serving[1 - node], Serving::Branch(branch) if branch == place.branch);
        let branch = if place.count < self.history.branches[place.branch].count || is_used {
            self.history.fork(place)
        } else {
            place.branch
        };
        let line = &mut self.history.branches[branch];
        line.answered = line.answered.max(place.count);
        self.serving[node] = Serving::Branch(branch);
        branch
    }

    fn promoted_to(
        &mut self,
        target: Option<PromoteTarget>,
        generation: Option<u32>,
        remote: Option<Place>,
        remote_generation: u32,
        content: &Content,
        rotten: bool,
    ) -> Result<Place, String> {
        let last = |(branch, counts): (usize, Range<usize>)| Place { branch, count: counts.end - 1 };
        if let Some(generation) = generation.filter(|generation| *generation != 0)
            && let Some(place) = self.at_point(generation, content)?
        {
            if target == Some(PromoteTarget::RestartPoint) && generation < remote_generation && !rotten {
                return Err(format!(
                    "I4: promoted to restart point {generation}, though the standby was said to have {remote_generation}"
                ));
            }
            return Ok(place);
        }
        let found = self.history.places(content).next().map(last);
        let Some(place) = found else {
            let explained =
                (0..self.history.branches.len()).rev().take(3).map(|branch| self.history.explain(branch, content));
            let why: Vec<String> = explained.collect();
            return Err(format!("I2: a promotion to {target:?} shows what never was: {}", why.join("; ")));
        };
        if target == Some(PromoteTarget::Latest)
            && let Some(remote) = remote
            && !rotten
            && !self.history.places(content).any(|found| self.history.leads_to(remote, last(found)))
        {
            return Err(format!("I5: {remote:?} was promised to be at the standby, which was promoted to {place:?}"));
        }
        Ok(place)
    }

    /// Which state a restart point is, if it was ever answered; an error if it is none of those that it may be.
    pub fn at_point(&mut self, generation: u32, content: &Content) -> Result<Option<Place>, String> {
        let of_number: Vec<usize> = (0..self.history.points.len())
            .filter(|index| self.history.points[*index].generation == generation)
            .collect();
        let mut why = Vec::new();
        for index in of_number.iter().rev() {
            let point = self.history.points[*index].clone();
            for counts in self.history.counts(point.branch, content).iter().rev() {
                let both = counts.start.max(point.counts.start)..counts.end.min(point.counts.end);
                if !both.is_empty() {
                    let place = Place { branch: point.branch, count: both.end - 1 };
                    // It is this state for ever.
                    self.history.points[*index].counts = both;
                    return Ok(Some(place));
                }
            }
            why.push(format!("{:?}: {}", point, self.history.explain(point.branch, content)));
        }
        if let Some(place) = self.history.at_unknown(content) {
            return Ok(Some(place));
        }
        if of_number.is_empty() {
            Ok(None)
        } else {
            Err(format!("I4: generation {generation} is not what it was: {why:?}"))
        }
    }
}

impl Expect {
    /// Nothing was heard of how it came to be the primary.
    pub fn unknown() -> Self {
        Self::Promotion { target: None, generation: None, remote: None, remote_generation: 0 }
    }
}
