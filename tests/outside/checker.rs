//! Whether a history was possible. It knows nothing of journals, epochs or packets: only what was sent, answered and read.
//!
//! Each sector is a register. What happened to it was possible if every request can be given one instant between its sending and
//! its answer (a change that nobody answered: at any later instant until its daemon died, or never) so that each read returns what
//! was there. Sectors are independent (linearizability is local), so each is decided by itself, by carrying all that may be true
//! from event to event.
//!
//! A state that was read as a whole (a standby, a generation, a promoted node) must be that of *one* instant for all sectors. What a
//! sector may have held at each instant is known from the above; the instants at which no sector objects are those that the
//! state can be of. That one exists is the promise "a prefix of the order"; where it has to lie is what a restart point, the level
//! `remote` and a hand-over promise.

use super::history::{Action, Operation, Outcome, Record, Tick, Value, View};
use anyhow::{Context, bail, ensure};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A sector in which more than this may be true at once is not decided, and that is said.
const WORLDS_MAX: usize = 50_000;

/// The errors that a host may be answered with (docs/faults.md): not allowed, input or output, no room, read-only, shutting down.
const ERRORS: [u32; 5] = [1, 5, 28, 30, 108];

/// From an instant on, until the next one, a sector may hold any of these.
type Timeline = Vec<(Tick, Vec<Value>)>;

/// What may be true of a sector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    /// What it holds.
    value: Value,
    /// Requests under way that have happened and will be answered.
    done: BTreeSet<usize>,
    /// Those that have happened, though nobody will say so.
    unsaid: BTreeSet<usize>,
}

/// A request under way, as far as one sector is concerned.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    is_read: bool,
    value: Value,
    is_answered: bool,
}

/// What was decided.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decided {
    /// Requests that were answered well.
    pub answered: usize,
    /// Requests that were refused.
    pub refused: usize,
    /// Requests that nobody answered.
    pub open: usize,
    /// States that were read as a whole.
    pub views: usize,
    /// How often another node became the primary, and once more.
    pub reigns: usize,
}

/// Decides the whole record.
///
/// # Errors
/// Why it was not possible.
pub fn check(record: &Record) -> anyhow::Result<Decided> {
    let mut decided = Decided { views: record.views.len(), reigns: record.reigns.len(), ..Decided::default() };
    for operation in &record.operations {
        match operation.outcome {
            Outcome::Open => decided.open += 1,
            Outcome::Done(_) => decided.answered += 1,
            Outcome::Refused(code, _) => {
                ensure!(ERRORS.contains(&code), "an error that no page documents: {code}, to {operation:?}");
                decided.refused += 1;
            }
        }
    }
    one_at_a_time(record)?;
    same_names(record)?;
    for reign in 0..record.reigns.len() {
        let timelines = timelines(record, reign)?;
        let mut received: Option<(Tick, &str)> = None;
        for view in record.views.iter().filter(|view| view.reign == reign) {
            let (earliest, latest) = instants(record, &timelines, view)
                .with_context(|| format!("{} shows no state of reign {reign}", view.label))?;
            if !view.received {
                continue;
            }
            if let Some((before, label)) = received {
                ensure!(latest >= before, "{} shows instant {latest} at most, {label} had shown {before}", view.label);
            }
            received = Some((earliest, &view.label));
        }
    }
    Ok(decided)
}

/// Nobody answers after he was told not to.
fn one_at_a_time(record: &Record) -> anyhow::Result<()> {
    for operation in &record.operations {
        let closed = record.reigns[operation.reign].closed;
        let late = closed.is_some_and(|closed| operation.sent > closed);
        let answered = matches!(operation.outcome, Outcome::Done(_));
        ensure!(!(late && answered), "reign {} was over at {closed:?} and answered {operation:?}", operation.reign);
    }
    Ok(())
}

fn same_names(record: &Record) -> anyhow::Result<()> {
    let mut first: BTreeMap<&str, &View> = BTreeMap::new();
    for view in &record.views {
        let Some(name) = &view.name else { continue };
        let other = *first.entry(name).or_insert(view);
        let differing =
            places(record, view).find(|&(volume, sector)| view.state[volume][sector] != other.state[volume][sector]);
        if let Some((volume, sector)) = differing {
            let (one, two) = (other.state[volume][sector], view.state[volume][sector]);
            bail!("volume {volume}, sector {sector}: {} shows {one:?}, {} shows {two:?}", other.label, view.label);
        }
    }
    Ok(())
}

fn places<'a>(record: &'a Record, view: &'a View) -> impl Iterator<Item = (usize, usize)> + 'a {
    let base = &record.reigns[view.reign].base;
    base.iter().enumerate().flat_map(|(volume, sectors)| (0..sectors.len()).map(move |sector| (volume, sector)))
}

/// What every sector may have held when, in one reign.
fn timelines(record: &Record, reign: usize) -> anyhow::Result<Vec<Vec<Timeline>>> {
    let base = &record.reigns[reign].base;
    let mut touching: Vec<Vec<Vec<usize>>> = base.iter().map(|sectors| vec![Vec::new(); sectors.len()]).collect();
    for (number, operation) in record.operations.iter().enumerate().filter(|(_, it)| it.reign == reign) {
        let sectors = &mut touching[operation.volume][operation.first..operation.first + operation.count];
        sectors.iter_mut().for_each(|sector| sector.push(number));
    }
    let mut timelines = Vec::new();
    for (volume, sectors) in touching.iter().enumerate() {
        let mut of_volume = Vec::new();
        for (sector, numbers) in sectors.iter().enumerate() {
            of_volume.push(register(record, (volume, sector), reign, numbers)?);
        }
        timelines.push(of_volume);
    }
    Ok(timelines)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Sent,
    Answered,
    /// The daemon that did not answer is gone.
    Decided,
}

/// What a read shows of a change that is under way, and then comes to nothing, is no promise: it was answered from memory.
fn shows_what_came_to_nothing(record: &Record, read: &Operation, sector: usize, numbers: &[usize]) -> bool {
    let (Action::Read(values), Outcome::Done(answered)) = (&read.action, read.outcome) else { return false };
    let shown = values[sector - read.first];
    let node = record.reigns[read.reign].node;
    numbers.iter().map(|number| &record.operations[*number]).any(|change| {
        let written = match change.action {
            Action::Write(tag) => Value::Tag(tag),
            Action::Zero => Value::Zero,
            Action::Read(_) => return false,
        };
        let end = match change.outcome {
            Outcome::Done(_) => return false,
            Outcome::Refused(_, at) => Some(at),
            Outcome::Open => record.deaths.iter().find(|&&(dead, at)| dead == node && at > change.sent).map(|it| it.1),
        };
        written == shown && change.sent < answered && end.is_none_or(|end| read.sent < end)
    })
}

fn register(record: &Record, place: (usize, usize), reign: usize, numbers: &[usize]) -> anyhow::Result<Timeline> {
    let mut steps = Vec::new();
    for &number in numbers {
        let operation = &record.operations[number];
        let is_read = matches!(operation.action, Action::Read(_));
        if shows_what_came_to_nothing(record, operation, place.1, numbers) {
            continue;
        }
        match operation.outcome {
            Outcome::Done(at) => steps.push((at, Step::Answered, number)),
            _ if is_read => continue,
            Outcome::Open | Outcome::Refused(..) => {
                let node = record.reigns[operation.reign].node;
                let death = record.deaths.iter().find(|&&(dead, at)| dead == node && at > operation.sent);
                steps.extend(death.map(|&(_, at)| (at, Step::Decided, number)));
            }
        }
        steps.push((operation.sent, Step::Sent, number));
    }
    steps.sort_unstable();
    let alone = |number: usize| {
        let operation = &record.operations[number];
        let (is_read, value) = match &operation.action {
            Action::Write(tag) => (false, Value::Tag(*tag)),
            Action::Zero => (false, Value::Zero),
            Action::Read(values) => (true, values[place.1 - operation.first]),
        };
        UnderWay { is_read, value, is_answered: matches!(operation.outcome, Outcome::Done(_)) }
    };
    let base = record.reigns[reign].base[place.0][place.1];
    let mut worlds: BTreeSet<World> = [World { value: base, done: BTreeSet::new(), unsaid: BTreeSet::new() }].into();
    let mut under_way: BTreeMap<usize, UnderWay> = BTreeMap::new();
    let mut timeline = vec![(0, vec![base])];
    for (at, step, number) in steps {
        if step == Step::Sent {
            under_way.insert(number, alone(number));
            worlds = all_that_may_happen(worlds, &under_way)?;
        } else {
            under_way.remove(&number);
            let forget = |mut world: World| {
                world.unsaid.remove(&number);
                let happened = world.done.remove(&number);
                (step == Step::Decided || happened).then_some(world)
            };
            worlds = worlds.into_iter().filter_map(forget).collect();
            let operation = &record.operations[number];
            ensure!(
                !worlds.is_empty(),
                "no order explains the answer at {at} to: {}\n{}",
                operation.action.brief(place.1 - operation.first),
                told(record, place, numbers, reign, at)
            );
        }
        let mut values: Vec<Value> = worlds.iter().map(|world| world.value).collect();
        values.dedup();
        timeline.push((at, values));
    }
    Ok(timeline)
}

fn all_that_may_happen(
    worlds: BTreeSet<World>,
    under_way: &BTreeMap<usize, UnderWay>,
) -> anyhow::Result<BTreeSet<World>> {
    // What is not answered need not happen: a world that is like another, but for more of that, has nothing that the other has not.
    let mut least: BTreeMap<(Value, BTreeSet<usize>), Vec<BTreeSet<usize>>> = BTreeMap::new();
    let mut new: VecDeque<World> = worlds.into_iter().collect();
    let mut count = 0;
    while let Some(mut world) = new.pop_front() {
        // A read changes nothing, so it may as well happen as soon as it can.
        let reads = under_way.iter().filter(|(_, it)| it.is_read && it.value == world.value);
        world.done.extend(reads.map(|(number, _)| *number));
        let like = least.entry((world.value, world.done.clone())).or_default();
        if like.iter().any(|unsaid| unsaid.is_subset(&world.unsaid)) {
            continue;
        }
        like.push(world.unsaid.clone());
        count += 1;
        ensure!(count < WORLDS_MAX, "too many requests at once to one sector: it cannot be decided");
        for (&number, it) in under_way.iter().filter(|(_, it)| !it.is_read) {
            let mut next = World { value: it.value, ..world.clone() };
            let set = if it.is_answered { &mut next.done } else { &mut next.unsaid };
            if set.insert(number) {
                new.push_back(next);
            }
        }
    }
    let worlds = least.into_iter().flat_map(|((value, done), all)| {
        all.into_iter().map(move |unsaid| World { value, done: done.clone(), unsaid })
    });
    Ok(worlds.collect())
}

/// The first and the last instant that a state can be of.
fn instants(record: &Record, timelines: &[Vec<Timeline>], view: &View) -> anyhow::Result<(Tick, Tick)> {
    // How many sectors begin and cease to object, at each instant.
    let mut changes: BTreeMap<Tick, i64> = BTreeMap::new();
    for (volume, sector) in places(record, view) {
        let (timeline, shown) = (&timelines[volume][sector], view.state[volume][sector]);
        for (index, (at, values)) in timeline.iter().enumerate() {
            let end = timeline.get(index + 1).map_or(Tick::MAX, |next| next.0);
            let (from, to) = ((*at).max(view.from), end.min(view.to + 1));
            if from < to && !values.contains(&shown) {
                *changes.entry(from).or_default() += 1;
                *changes.entry(to).or_default() -= 1;
            }
        }
    }
    let (mut from, mut objections) = (view.from, 0);
    let (mut possible, mut least): (Option<(Tick, Tick)>, (i64, Tick)) = (None, (i64::MAX, view.from));
    for (at, change) in changes.into_iter().chain([(view.to + 1, 0)]) {
        if from < at.min(view.to + 1) {
            least = least.min((objections, from));
            if objections == 0 {
                possible = Some((possible.map_or(from, |it| it.0), at - 1));
            }
        }
        (from, objections) = (at.max(from), objections + change);
    }
    let Some(possible) = possible else {
        let (count, at) = least;
        let mut text =
            format!("at every instant from {} to {} some sector objects; at {at}, {count} do:", view.from, view.to);
        let objecting = places(record, view).filter(|&(volume, sector)| {
            let values = timelines[volume][sector].iter().rev().find(|it| it.0 <= at).map(|it| &it.1);
            !values.is_some_and(|values| values.contains(&view.state[volume][sector]))
        });
        for place in objecting.take(3) {
            let touches = |number: &usize| {
                let it = &record.operations[*number];
                it.reign == view.reign && it.volume == place.0 && (it.first..it.first + it.count).contains(&place.1)
            };
            let numbers: Vec<usize> = (0..record.operations.len()).filter(touches).collect();
            text += &format!(
                "\n  it shows {:?}: {}",
                view.state[place.0][place.1],
                told(record, place, &numbers, view.reign, at)
            );
        }
        bail!("{text}");
    };
    Ok(possible)
}

/// What was told of a sector, for people: the last that happened to it before and soon after an instant.
fn told(record: &Record, place: (usize, usize), numbers: &[usize], reign: usize, at: Tick) -> String {
    let later = numbers.partition_point(|number| record.operations[*number].sent <= at);
    let numbers = &numbers[..numbers.len().min(later + 4)];
    let (volume, sector) = place;
    let base = record.reigns[reign].base[volume][sector];
    let mut text = format!("volume {volume}, sector {sector}, reign {reign}, which began with {base:?}");
    let deaths = record.deaths.iter().filter(|(node, _)| *node == record.reigns[reign].node);
    text += &format!(", its daemon died at {:?}", deaths.map(|(_, at)| *at).collect::<Vec<_>>());
    for number in &numbers[numbers.len().saturating_sub(24)..] {
        let operation = &record.operations[*number];
        let what = operation.action.brief(sector - operation.first);
        text += &format!("\n    sent {}: {what}, {:?}", operation.sent, operation.outcome);
    }
    text
}

impl Action {
    fn brief(&self, index: usize) -> String {
        match self {
            Self::Write(tag) => format!("write {tag}"),
            Self::Zero => "zero".into(),
            Self::Read(values) => format!("read {:?}", values.get(index)),
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
