//! What everybody was told: each request with the instants at which it was sent and answered, each state that was seen as a whole.
//!
//! One counter, behind the same lock as the list, gives the order of all that happens outside of the daemons. Two instants in it
//! say more than two clocks: what was answered at 7 and what was sent at 9 are ordered for whoever saw both.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of the smallest thing that is whole or not there.
pub const SECTOR: usize = 512;

/// An instant in the order of what was seen from the outside.
pub type Tick = u64;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Nothing but zeroes: never written, discarded, or zeroed.
    Zero,
    /// What the write with this tag put there, whole and in its place.
    Tag(u64),
    /// Anything else, which is always wrong.
    Torn,
}

/// All sectors that are looked at, volume by volume.
pub type State = Vec<Vec<Value>>;

/// What was asked.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write these sectors with a tag that no other write has.
    Write(u64),
    /// Zero or discard them.
    Zero,
    /// Read them: what was read, once it is answered.
    Read(Vec<Value>),
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody answered.
    Open,
    /// It was answered well.
    Done(Tick),
    /// It was refused with this error number at this instant. Whether it happened is not known.
    Refused(u32, Tick),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Operation {
    /// To the node that served this reign.
    pub reign: usize,
    /// To which volume.
    pub volume: usize,
    /// From which sector.
    pub first: usize,
    /// How many sectors.
    pub count: usize,
    /// What.
    pub action: Action,
    /// When it was sent.
    pub sent: Tick,
    /// How it went.
    pub outcome: Outcome,
}

/// The time in which one node was the primary, through as many deaths of its daemon as there were.
#[derive(Clone, Debug)]
pub struct Reign {
    /// Which node.
    pub node: usize,
    /// What was there when it began.
    pub base: State,
    /// From then on nothing that is sent to it may be answered well.
    pub closed: Option<Tick>,
}

/// A state that was read as a whole while it could not change.
#[derive(Clone, Debug)]
pub struct View {
    /// For people.
    pub label: String,
    /// Whose state it is.
    pub reign: usize,
    /// The state is that of one instant, not before this one.
    pub from: Tick,
    /// And not after this one.
    pub to: Tick,
    /// It is what the standby had received, which never goes back.
    pub received: bool,
    /// States of the same name are the same.
    pub name: Option<String>,
    /// What was read.
    pub state: State,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The counter.
    pub now: Tick,
    /// In the order in which they were sent.
    pub operations: Vec<Operation>,
    /// In the order in which they began.
    pub reigns: Vec<Reign>,
    /// In the order in which they were read.
    pub views: Vec<View>,
    /// Daemons that were gone at an instant: what they had not answered happened before it, or never will.
    pub deaths: Vec<(usize, Tick)>,
    tags: u64,
}

impl Record {
    /// The next instant.
    pub fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// The last answer to a change that was sent to this reign after an instant.
    pub fn last_answer(&self, reign: usize, since: Tick) -> Option<Tick> {
        let changes = self.operations.iter().filter(|it| it.reign == reign && it.sent > since);
        let answers = changes.filter_map(|it| match (&it.action, it.outcome) {
            (Action::Read(_), _) => None,
            (_, Outcome::Done(at)) => Some(at),
            _ => None,
        });
        answers.max()
    }
}

/// A record that several threads write.
#[derive(Debug, Default)]
pub struct History(Mutex<Record>);

impl History {
    /// The record, for as long as it is held.
    pub fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instant between what was and what comes.
    pub fn tick(&self) -> Tick {
        self.lock().tick()
    }

    /// A tag that no write has.
    pub fn new_tag(&self) -> u64 {
        let mut record = self.lock();
        record.tags += 1;
        record.tags
    }

    /// Notes a request that is about to be sent; its number.
    pub fn send(&self, reign: usize, volume: usize, sectors: (usize, usize), action: Action) -> usize {
        let mut record = self.lock();
        let sent = record.tick();
        let (first, count) = sectors;
        let outcome = Outcome::Open;
        record.operations.push(Operation { reign, volume, first, count, action, sent, outcome });
        record.operations.len() - 1
    }

    /// Notes that it was answered well, with what was read if it was a read.
    pub fn answer(&self, number: usize, read: &[u8]) {
        let mut record = self.lock();
        let at = record.tick();
        let operation = &mut record.operations[number];
        operation.outcome = Outcome::Done(at);
        let (volume, first) = (operation.volume, operation.first);
        if let Action::Read(values) = &mut operation.action {
            *values = decode(read, volume, first);
        }
    }

    /// Notes that it was refused.
    pub fn refuse(&self, number: usize, code: u32) {
        let mut record = self.lock();
        let at = record.tick();
        record.operations[number].outcome = Outcome::Refused(code, at);
    }
}

/// A word of a sector's content, each of which depends on all that makes the sector what it is.
fn word(tag: u64, volume: usize, sector: usize, index: u64) -> u64 {
    let mixed = tag ^ ((volume as u64) << 56) ^ ((sector as u64) << 32) ^ (index << 24);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(17) | 1
}

/// The bytes of a write.
pub fn encode(tag: u64, volume: usize, first: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * SECTOR);
    for sector in first..first + count {
        bytes.extend(tag.to_le_bytes());
        (1..SECTOR as u64 / 8).for_each(|index| bytes.extend(word(tag, volume, sector, index).to_le_bytes()));
    }
    bytes
}

/// What each sector of these bytes holds.
pub fn decode(bytes: &[u8], volume: usize, first: usize) -> Vec<Value> {
    let value = |(index, sector): (usize, &[u8])| {
        if sector.iter().all(|byte| *byte == 0) {
            return Value::Zero;
        }
        let tag = sector.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        if sector == encode(tag, volume, first + index, 1) { Value::Tag(tag) } else { Value::Torn }
    };
    bytes.chunks(SECTOR).enumerate().map(value).collect()
}
