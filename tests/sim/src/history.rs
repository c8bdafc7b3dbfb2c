//! What a group's clients were told, and what the volumes may hold therefore. It knows nothing of records, epochs or journals:
//! only which requests were made in which order, and how they were answered.
//!
//! Whoever is primary adds to a branch. A crash or a promotion begins another one with a prefix of it. Each sector written
//! carries a value of its own, so that what is read tells which prefixes of which branch it can be.

// One range of numbers is meant, not the numbers in it.
#![allow(clippy::single_range_in_vec_init)]

use std::ops::Range;

/// What a volume's sectors hold: 0 for a hole.
pub type Content = Vec<Vec<u64>>;

/// A branch and how many of its operations are done: a state that the volumes may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The branch's number.
    pub branch: usize,
    /// So many of its operations are part of the state.
    pub count: usize,
}

/// A line of history.
#[derive(Clone)]
pub struct Branch {
    /// Where it left another one.
    pub parent: Option<Place>,
    /// So many operations there are.
    pub count: usize,
    /// Of each volume's sectors: from which operation on it holds what.
    versions: Vec<Vec<Vec<(u32, u64)>>>,
    /// The operations up to here were answered, or another one after them was.
    pub answered: usize,
    /// These survive a loss of power.
    pub durable: usize,
    /// These were promised to be at the standby.
    pub remote: usize,
    /// What the standby was said to have restart points of.
    pub remote_generation: u32,
    /// The last restart point that was answered.
    pub declared: u32,
}

/// A restart point: its state is one of those between the command and its answer.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its number.
    pub generation: u32,
    /// Which it is of all that were answered; a branch that inherits it has the same one.
    pub origin: usize,
    /// On which branch.
    pub branch: usize,
    /// How many operations may be part of it.
    pub counts: Range<usize>,
}

/// See the module.
pub struct History {
    /// All that ever were; the last one is not always the one that goes on.
    pub branches: Vec<Branch>,
    /// All restart points that were answered.
    pub points: Vec<Point>,
    /// Those that were not: they may be there, under any number.
    unknown: Vec<(usize, Range<usize>)>,
    next_value: u64,
}

impl History {
    /// Volumes with so many sectors each, all zero.
    pub fn new(sector_counts: &[usize]) -> Self {
        let versions = sector_counts.iter().map(|count| vec![vec![(0, 0)]; *count]).collect();
        let (answered, durable, remote, remote_generation, declared) = (0, 0, 0, 0, 0);
        let branch =
            Branch { parent: None, count: 0, versions, answered, durable, remote, remote_generation, declared };
        Self { branches: vec![branch], points: Vec::new(), unknown: Vec::new(), next_value: 1 }
    }

    /// A value that was never written.
    pub fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value - 1
    }

    /// An operation was handed in; its number on the branch.
    pub fn add(&mut self, branch: usize, volume: usize, sectors: Range<usize>, value: u64) -> usize {
        let branch = &mut self.branches[branch];
        branch.count += 1;
        for sector in &mut branch.versions[volume][sectors] {
            sector.push((branch.count as u32, value));
        }
        branch.count
    }

    /// An operation was refused and changed nothing.
    pub fn remove(&mut self, branch: usize, number: usize) {
        for sector in self.branches[branch].versions.iter_mut().flatten() {
            sector.retain(|(count, _)| *count as usize != number);
        }
    }

    /// Another branch, which begins with this state.
    pub fn fork(&mut self, at: Place) -> usize {
        let former = &self.branches[at.branch];
        let mut branch = former.clone();
        branch.parent = Some(at);
        branch.count = at.count;
        branch.answered = at.count;
        branch.durable = former.durable.min(at.count);
        branch.remote = former.remote.min(at.count);
        for sector in branch.versions.iter_mut().flatten() {
            while sector.last().is_some_and(|(count, _)| *count as usize > at.count) {
                sector.pop();
            }
        }
        let number = self.branches.len();
        let inherited: Vec<Point> = self
            .points
            .iter()
            .filter(|point| point.branch == at.branch && point.counts.end <= at.count + 1)
            .map(|point| Point { branch: number, ..point.clone() })
            .collect();
        self.points.extend(inherited);
        self.branches.push(branch);
        number
    }

    /// A restart point was asked for and not answered.
    pub fn point_is_unknown(&mut self, branch: usize, count: usize) {
        self.unknown.push((branch, count..self.branches[branch].count + 1));
    }

    /// Which state it is if it is that of a restart point that was not answered.
    pub fn at_unknown(&self, content: &Content) -> Option<Place> {
        self.unknown.iter().find_map(|(branch, counts)| {
            let found = self.counts(*branch, content);
            let both = |found: &Range<usize>| found.start.max(counts.start)..found.end.min(counts.end);
            let both = found.iter().map(both).find(|both| !both.is_empty())?;
            Some(Place { branch: *branch, count: both.end - 1 })
        })
    }

    /// Whether it may be a state of a branch after at least so many operations.
    pub fn may_be(&self, branch: usize, count: usize, content: &Content) -> bool {
        self.counts(branch, content).iter().any(|found| found.end > count)
    }

    /// How many operations of a branch may be done if the volumes hold this.
    pub fn counts(&self, branch: usize, content: &Content) -> Vec<Range<usize>> {
        let branch = &self.branches[branch];
        let mut possible = vec![0..branch.count + 1];
        for (volume, sectors) in content.iter().enumerate() {
            for (sector, value) in sectors.iter().enumerate() {
                let versions = &branch.versions[volume][sector];
                if versions.len() == 1 {
                    if versions[0].1 != *value {
                        return Vec::new();
                    }
                    continue;
                }
                possible = intersect(&possible, versions, *value, branch.count);
                if possible.is_empty() {
                    return possible;
                }
            }
        }
        possible
    }

    /// The states that the volumes may be in if they hold this, the newest branch first.
    pub fn places(&self, content: &Content) -> impl Iterator<Item = (usize, Range<usize>)> {
        let branches = (0..self.branches.len()).rev();
        branches.flat_map(|branch| self.counts(branch, content).into_iter().rev().map(move |range| (branch, range)))
    }

    /// What sectors may hold from an operation on.
    pub fn may_hold(&self, branch: usize, from: usize, volume: usize, sector: usize, value: u64) -> bool {
        let versions = &self.branches[branch].versions[volume][sector];
        let first = versions.partition_point(|(count, _)| *count as usize <= from).saturating_sub(1);
        versions[first..].iter().any(|(_, held)| *held == value)
    }

    /// Whether one state is part of what led to another.
    pub fn leads_to(&self, from: Place, to: Place) -> bool {
        let line = self.line(to);
        // What both share may be older than where either left the other.
        self.line(from)
            .iter()
            .take_while(|place| place.count == from.count)
            .any(|place| line.iter().any(|other| other.branch == place.branch && place.count <= other.count))
    }

    /// A state, and the last one of each branch that led to it.
    fn line(&self, place: Place) -> Vec<Place> {
        let parent = |at: &Place| {
            let parent = self.branches[at.branch].parent?;
            Some(Place { count: parent.count.min(at.count), ..parent })
        };
        std::iter::successors(Some(place), parent).collect()
    }

    /// The first sector that no prefix of a branch explains, for a message.
    pub fn explain(&self, branch: usize, content: &Content) -> String {
        let line = &self.branches[branch];
        let mut possible = vec![0..line.count + 1];
        // Which sector left so few.
        let mut by = String::new();
        for (volume, sectors) in content.iter().enumerate() {
            for (sector, value) in sectors.iter().enumerate() {
                let versions = &line.versions[volume][sector];
                let next = intersect(&possible, versions, *value, line.count);
                if next.is_empty() {
                    return format!(
                        "volume {volume} sector {sector} holds {value}, written by {versions:?}; all before it allow {possible:?} of \
                         {} operations of branch {branch}{by}",
                        line.count
                    );
                }
                if next.last().map(|range| range.end) != possible.last().map(|range| range.end) {
                    by = format!(", because volume {volume} sector {sector} holds {value}, written by {versions:?}");
                }
                possible = next;
            }
        }
        format!("it is branch {branch} after {possible:?} operations of {}", line.count)
    }
}

/// Which of `possible` allow that a sector with these versions holds `value`.
fn intersect(possible: &[Range<usize>], versions: &[(u32, u64)], value: u64, count: usize) -> Vec<Range<usize>> {
    let span = |index: usize| {
        let end = versions.get(index + 1).map_or(count + 1, |(next, _)| *next as usize);
        versions[index].0 as usize..end
    };
    let cut = |spans: &mut dyn Iterator<Item = Range<usize>>| {
        let mut cut = Vec::new();
        for span in spans {
            for range in possible {
                let both = range.start.max(span.start)..range.end.min(span.end);
                if !both.is_empty() {
                    cut.push(both);
                }
            }
        }
        cut
    };
    if value == 0 {
        return cut(&mut (0..versions.len()).filter(|index| versions[*index].1 == 0).map(span));
    }
    match versions.iter().rposition(|(_, held)| *held == value) {
        Some(index) => cut(&mut std::iter::once(span(index))),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_found_where_it_was_and_nowhere_else() {
        let mut history = History::new(&[4]);
        assert_eq!(history.add(0, 0, 0..2, 7), 1);
        assert_eq!(history.add(0, 0, 1..3, 8), 2);
        assert_eq!(history.add(0, 0, 0..4, 0), 3);
        let at = |content: [u64; 4]| history.counts(0, &vec![content.to_vec()]);
        assert_eq!(at([7, 7, 0, 0]), [1..2]);
        assert_eq!(at([7, 8, 8, 0]), [2..3]);
        assert_eq!(at([0; 4]), [0..1, 3..4]);
        assert_eq!(at([0, 8, 8, 0]), []);
        assert_eq!(at([7, 8, 0, 0]), []);
    }

    #[test]
    fn a_branch_is_a_prefix_with_something_else_after_it() {
        let mut history = History::new(&[2]);
        history.add(0, 0, 0..1, 7);
        history.add(0, 0, 1..2, 8);
        let other = history.fork(Place { branch: 0, count: 1 });
        history.add(other, 0, 1..2, 9);
        let places = |content: [u64; 2]| history.places(&vec![content.to_vec()]).collect::<Vec<_>>();
        assert_eq!(places([7, 8]), [(0, 2..3)]);
        assert_eq!(places([7, 9]), [(other, 2..3)]);
        assert_eq!(places([7, 0]), [(other, 1..2), (0, 1..2)]);
        let place = |branch, count| Place { branch, count };
        assert!(history.leads_to(place(0, 1), place(other, 2)));
        assert!(!history.leads_to(place(0, 2), place(other, 2)));
        assert!(history.leads_to(place(other, 1), place(0, 2)));
    }

    #[test]
    fn a_refused_operation_was_never_there() {
        let mut history = History::new(&[2]);
        let number = history.add(0, 0, 0..2, 7);
        history.add(0, 0, 1..2, 8);
        history.remove(0, number);
        assert_eq!(history.counts(0, &vec![vec![0, 8]]), [2..3]);
        assert_eq!(history.counts(0, &vec![vec![7, 8]]), []);
    }
}
