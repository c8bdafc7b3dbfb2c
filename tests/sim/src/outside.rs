//! A group as its clients know it: what they asked, what they were told, and what that promises.

use crate::{
    config::Config,
    history::{Content, History, Place},
};
use holdfast::{
    command::PromoteTarget,
    pair::Role,
    request::{RequestError, RequestId},
    units::{Epoch, Order},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

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
    /// A node must not answer in an epoch before this one: the other was promoted in it while this one was fenced.
    pub ended: [u64; 2],
    /// Nodes that were promoted without force out of an epoch whose nodes were fenced, and have not met the other one since; and whether
    /// they have answered. Of two such only one does.
    pub alone: [Option<bool>; 2],
    /// Whether a node that died had a lease or gave one, and its role.
    pub had_lease: [(bool, Role); 2],
    /// To what a node was asked to be promoted, and whether by force.
    pub hint: [Option<(PromoteTarget, bool)>; 2],
    /// To which restart point it says that it was.
    pub told_generation: [Option<u32>; 2],
    /// What a node was promised to have because the other one handed over.
    pub handed_over: [Option<Place>; 2],
    /// What a node was promised to have counts no more: it was promoted, and has not been heard as a standby since.
    pub spent: [bool; 2],
    /// Forks that somebody dropped.
    pub dropped: BTreeSet<(usize, String)>,
    /// What each node held when it stepped down with something that nobody else had, by the fork's name.
    pub forks: [BTreeMap<String, Content>; 2],
    /// The trial that clients use.
    pub trial: Option<Tried>,
    /// What somebody holds on each node to read it again later.
    pub held: [Option<Held>; 2],
    /// How many sectors of each volume are used.
    pub sector_count: usize,
    /// How many volumes there are.
    pub volume_count: usize,
}

/// A trial as its clients know it.
pub struct Tried {
    /// Where it is.
    pub node: usize,
    /// What the first volume's sectors hold, as far as that is known.
    pub content: Vec<Option<u64>>,
}

/// A generation that somebody holds.
pub struct Held {
    /// Which.
    pub order: Order,
    /// The node's epoch then.
    pub epoch: Epoch,
    /// What it was.
    pub content: Content,
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
        /// The last restart point that was answered.
        declared: u32,
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
    /// What was asked.
    pub asked: Asked,
}

/// What was asked.
#[derive(Debug)]
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
    /// A write to a trial's first volume.
    TrialWrite {
        /// To these sectors.
        sectors: Range<usize>,
        /// This.
        value: u64,
    },
    /// A read of a trial's first volume.
    TrialRead {
        /// These sectors.
        sectors: Range<usize>,
    },
    /// What nobody can have.
    Nonsense,
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
            ended: [0; 2],
            alone: [None; 2],
            had_lease: [(false, Role::Secondary); 2],
            hint: [None; 2],
            told_generation: [None; 2],
            handed_over: [None; 2],
            spent: [false; 2],
            dropped: BTreeSet::new(),
            forks: [BTreeMap::new(), BTreeMap::new()],
            trial: None,
            held: [None, None],
            sector_count,
            volume_count,
        }
    }

    /// A request has got its place in the order. Those that are in flight together have none before.
    pub fn started(&mut self, node: usize, id: RequestId) {
        let Serving::Branch(branch) = self.serving[node] else { return };
        let Some(Pending { asked: Asked::Change { volume, sectors, value, place, .. }, .. }) =
            self.pending.get_mut(&id)
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

    /// Whoever read or tried generations of a node is gone.
    pub fn forget_readers(&mut self, node: usize) {
        self.held[node] = None;
        self.forget_trial(node);
    }

    /// A node's trial is over.
    pub fn forget_trial(&mut self, node: usize) {
        self.trial.take_if(|trial| trial.node == node);
    }

    /// A node's daemon died, or lost its power.
    pub fn crashed(&mut self, node: usize, power: bool) {
        let bound = |history: &History, branch: usize| {
            let branch = &history.branches[branch];
            if power { branch.durable } else { branch.answered }
        };
        self.serving[node] = match self.serving[node] {
            Serving::Branch(branch) => {
                let declared = self.history.branches[branch].declared;
                Serving::Unsettled(Expect::Crash { branch, bound: bound(&self.history, branch), declared })
            }
            Serving::Unsettled(Expect::Crash { branch, bound: known, declared }) => {
                let bound = known.min(bound(&self.history, branch));
                Serving::Unsettled(Expect::Crash { branch, bound, declared })
            }
            other => other,
        };
    }

    /// A node opened the group.
    pub fn opened(&mut self, node: usize, role: Role) {
        match (role, self.serving[node]) {
            (Role::Secondary, _) => (self.serving[node], self.alone[node]) = (Serving::Nothing, None),
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

    /// Nobody is fenced any more: somebody says so who knows that only one node serves.
    pub fn forget_fences(&mut self) {
        (self.ended, self.alone) = ([0; 2], [None; 2]);
    }

    /// What a standby was promised to have of what its primary serves.
    pub fn promised(&self, standby: usize) -> (Option<Place>, u32) {
        let branch = self.branch(1 - standby).filter(|_| !self.spent[standby]);
        let place = branch.map(|branch| Place { branch, count: self.history.branches[branch].remote });
        let generation = branch.map_or(0, |branch| self.history.branches[branch].remote_generation);
        (place.filter(|place| place.count > 0), generation)
    }

    /// A primary begins to bring its standby to what it has itself. If it has lost its power, that may be less than the standby has.
    pub fn copy_begins(&mut self, primary: usize) {
        if let Serving::Unsettled(Expect::Crash { branch, bound, declared }) = self.serving[primary] {
            let line = &mut self.history.branches[branch];
            line.remote = line.remote.min(bound);
            line.remote_generation = line.remote_generation.min(declared);
        }
    }

    /// A standby is heard by its primary: what it is promised to have counts from now on.
    pub fn standby_greets(&mut self, standby: usize) {
        if std::mem::take(&mut self.spent[standby])
            && let Some(branch) = self.branch(1 - standby)
        {
            let line = &mut self.history.branches[branch];
            (line.remote, line.remote_generation) = (0, 0);
        }
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

    /// Finds what a primary holds, whose last restart point is this one, and goes on from there. An error says what is wrong.
    pub fn settle(
        &mut self,
        node: usize,
        expect: Expect,
        content: &Content,
        generation: u32,
        rotten: bool,
    ) -> Result<usize, String> {
        match expect {
            Expect::Crash { branch, bound, declared } => {
                let bound = if rotten { 0 } else { bound };
                if generation < declared && !rotten {
                    return Err(format!("I1: restart point {declared} was answered; {generation} is the last one now"));
                }
                let counts = self.history.counts(branch, content);
                let found = counts.iter().rev().find(|counts| counts.end > bound);
                let Some(counts) = found else {
                    let why = self.history.explain(branch, content);
                    return Err(format!("I1: {bound} operations were promised to survive; {why}"));
                };
                let place = Place { branch, count: counts.end - 1 };
                let found = self.go_on_from(node, place);
                if found != branch {
                    self.history.branches[found].declared = declared;
                }
                Ok(found)
            }
            Expect::Promotion { target, generation, remote, remote_generation } => {
                let place = self.promoted_to(target, generation, remote, remote_generation, content, rotten)?;
                let branch = self.go_on_from(node, place);
                // The other node was promised nothing by this one, and restart points may have been taken back.
                let line = &mut self.history.branches[branch];
                (line.remote, line.remote_generation, line.declared) = (0, 0, 0);
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
        let (mut why, mut found) = (Vec::new(), Vec::new());
        for index in of_number.iter().rev() {
            let point = &self.history.points[*index];
            let within = |counts: &Range<usize>| counts.start.max(point.counts.start)..counts.end.min(point.counts.end);
            let counts = self.history.counts(point.branch, content);
            match counts.iter().rev().map(within).find(|both| !both.is_empty()) {
                Some(both) => found.push((*index, Place { branch: point.branch, count: both.end - 1 }, both)),
                None => why.push(format!("{point:?}: {}", self.history.explain(point.branch, content))),
            }
        }
        if let Some((first, place, both)) = found.first() {
            // It is this state for ever, on all branches that have inherited it. Other branches may have points of this number: then
            // it may be either's, or that of one that was not answered.
            let origin = |index: usize| self.history.points[index].origin;
            let is_certain = found.iter().all(|(index, ..)| origin(*index) == origin(*first));
            if is_certain && self.history.at_unknown(content).is_none() {
                found.iter().for_each(|(index, ..)| self.history.points[*index].counts = both.clone());
            }
            return Ok(Some(*place));
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
