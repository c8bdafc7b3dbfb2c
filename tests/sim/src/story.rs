//! Stories with a surprise at every moment: what chance meets too seldom, because it is only wrong when something happens
//! between two events of one short history.
//!
//! A story is played once for every event of its course, such as a packet that arrives or an operation of a medium that ends:
//! right after that event the surprise comes. Some have a second surprise, which comes so many events later. Then the pair has
//! to come to rest, as always ([`World::converge`]).

use crate::{
    Outcome,
    client::{Inquiry, filled},
    config::Config,
    crowd,
    node::Ills,
    operator::{INSISTENCE, Wanted},
    outside::Asked,
    play_out,
    trace::Trace,
    world::World,
};
use holdfast::{
    command::{Command, PromoteTarget},
    pair::{Level, Role, WithoutPeer},
    request::{Access, Durability, Operation},
};
use link_model::{LineSettings, Random};
use replicator::Mode;
use std::{cell::Cell, collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// Bytes of a block of the table.
const BLOCK: u64 = 256 << 10;
/// A story has no more events than this; one that does never ends.
const EVENTS_MAX: u64 = 100_000;

/// What is done in a story.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    /// So many microseconds go by.
    Wait(u64),
    /// A client writes so many bytes from this offset on.
    Write(u64, u64),
    /// A client writes so many blocks of 32 KiB, one after the other, at places that repeat.
    Fill(u64),
    /// A client writes 4 KiB in each of so many blocks of the table, but for the first.
    Scatter(u64),
    /// A client reads so many bytes from this offset on.
    Read(u64, u64),
    /// Writes are answered when the standby has them.
    Remote,
    /// Without the standby no write is answered.
    Freeze,
    /// The application declares that it can restart.
    RestartPoint,
    /// The pair is suspended.
    Suspend,
    /// It is resumed.
    Resume,
    /// A machine loses power and is started again at once.
    Crash(Role),
    /// The line is cut.
    Cut,
    /// It carries again.
    Heal,
    /// The standby is promoted to all that it has, as soon as it lets itself be.
    Promote,
    /// The primary's daemon begins another session.
    Reconnect,
    /// The media of a machine are slow from now on.
    Slow(Role),
    /// Reads of the primary take so many microseconds longer from now on.
    LongReads(u64),
    /// The same for writes.
    LongWrites(u64),
    /// Reads of the primary fail from now on, or not any more.
    FailReads(bool),
}

/// A short history, and what surprises it.
#[derive(Debug)]
pub struct Story {
    /// What it is called.
    pub name: &'static str,
    /// How many pairs it is played in; each has its own chances.
    pair_count: u64,
    /// So many blocks of the table are used.
    block_count: u64,
    /// What is done before.
    before: &'static [Deed],
    /// Its course.
    course: &'static [Deed],
    /// What comes at each moment of it, if anything does.
    surprise: &'static [Deed],
    /// After how many events there is such a moment.
    every: u64,
    /// What comes later than that.
    then: Option<Then>,
    /// What is done in the end.
    after: &'static [Deed],
    /// What must not be reached by then.
    never: Option<&'static str>,
}

/// A second surprise.
#[derive(Clone, Copy, Debug)]
struct Then {
    deeds: &'static [Deed],
    /// At so many moments.
    count: u64,
    /// So many events are between two of them.
    every: u64,
}

/// A story without anything.
const PLAIN: Story = Story {
    name: "",
    pair_count: 1,
    block_count: 4,
    before: &[],
    course: &[],
    surprise: &[],
    every: 1,
    then: None,
    after: &[],
    never: None,
};

/// One playing of a story. Its text is that of the command line: `acknowledged:2:17`, or with the second surprise
/// `copied:1:30:4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// The story's place in [`Story::ALL`].
    pub story: usize,
    /// The pair's chances.
    pub pair: u64,
    /// After so many events the surprise comes.
    pub moment: u64,
    /// After so many more the second one.
    pub later: u64,
}

use Deed::*;

impl Story {
    /// All of them.
    pub const ALL: &[Self] = &[
        // Who says that something is durable loses power right after it, and has to answer for it.
        Self {
            name: "acknowledged",
            pair_count: 3,
            before: &[Remote, Write(0, 4096), Wait(1_000_000), Slow(Role::Secondary)],
            course: &[Write(0, 4096), Wait(1_000), Write(512, 512), Wait(1_000), Write(1024, 512), Wait(30_000)],
            surprise: &[Cut, Crash(Role::Secondary), Promote],
            ..PLAIN
        },
        // The same, where a greeting says it, while a slow medium has it only half.
        Self {
            name: "greeted",
            pair_count: 4,
            before: &[Remote, Freeze, Write(0, 4096), Wait(1_000_000), Slow(Role::Secondary)],
            course: &[Write(0, 4096), Wait(1_500), Reconnect, Wait(60_000)],
            surprise: &[Cut, Crash(Role::Secondary), Promote],
            ..PLAIN
        },
        // A block is fetched from the standby because it cannot be read here, and a client writes to it.
        Self {
            name: "mended",
            before: &[Write(0, 16 << 10), Wait(3_000_000), FailReads(true)],
            course: &[Read(0, 16 << 10), Wait(20_000)],
            surprise: &[Write(4096, 512)],
            after: &[FailReads(false)],
            ..PLAIN
        },
        // A copy runs, clients write to what is copied and beside it, and the standby is promoted before its end or right after.
        Self {
            name: "copied",
            block_count: 26,
            before: &[
                Scatter(20),
                Wait(3_000_000),
                Suspend,
                Wait(500_000),
                Scatter(20),
                Wait(2_000_000),
                Resume,
                Wait(104_000),
            ],
            course: &[Wait(1_000)],
            // Of these the last three are together in one batch, which waits for the two before it.
            surprise: &[
                LongWrites(20_000),
                Write(25 * BLOCK, 512),
                Write(24 * BLOCK, 512),
                Write(23 * BLOCK, 512),
                Write(22 * BLOCK, 512),
                Write(20 * BLOCK, 512),
            ],
            then: Some(Then { deeds: &[Cut, Promote], count: 40, every: 20 }),
            after: &[Wait(20_000), LongWrites(0)],
            ..PLAIN
        },
        // The journal is full, and its primary loses power.
        Self {
            name: "full",
            before: &[Cut, Wait(3_000_000)],
            course: &[Fill(700), Wait(300_000)],
            surprise: &[Crash(Role::Primary)],
            ..PLAIN
        },
        // A large write was overwritten and its block could be used again, but its record is still to be sent from there.
        Self {
            name: "overwritten",
            block_count: 61,
            before: &[Cut, Write(0, BLOCK), Write(0, BLOCK), Wait(3_000_000)],
            course: &[
                Scatter(60),
                RestartPoint,
                Wait(3_000_000),
                Scatter(60),
                RestartPoint,
                Wait(3_000_000),
                Scatter(60),
                Wait(3_000_000),
                Crash(Role::Primary),
                Heal,
            ],
            never: Some("pair: duplex to suspended"),
            ..PLAIN
        },
        // A read takes so long that the block it reads is freed and used for something else.
        Self {
            name: "long-read",
            block_count: 61,
            before: &[Write(0, BLOCK), Wait(3_000_000)],
            course: &[
                LongReads(20_000_000),
                Read(0, 4096),
                LongReads(0),
                Write(0, BLOCK),
                Wait(3_000_000),
                Scatter(60),
                RestartPoint,
                Wait(3_000_000),
                Scatter(60),
                RestartPoint,
                Wait(3_000_000),
                Scatter(60),
                Wait(12_000_000),
            ],
            ..PLAIN
        },
    ];

    /// How many events its course has in this pair.
    pub fn event_count(story: usize, pair: u64) -> u64 {
        let count = Cell::new(0);
        play_out(&Trace::default(), |_| {
            let telling = Telling { story, pair, moment: EVENTS_MAX, later: 0 };
            let mut teller = Teller::new(&telling, Trace::default());
            teller.all(Self::ALL[story].course);
            count.set(teller.world.event_count - teller.begun);
        });
        count.get()
    }

    /// All its tellings.
    pub fn tellings(story: usize) -> impl Iterator<Item = Telling> {
        let Self { pair_count, surprise, every, then, .. } = &Self::ALL[story];
        let (count, apart) = then.map_or((1, 1), |then| (then.count, then.every));
        let laters = move || (0..count).map(move |index| index * apart);
        (1..=*pair_count).flat_map(move |pair| {
            // Without a surprise there is nothing to tell twice.
            let count = if surprise.is_empty() { 0 } else { Self::event_count(story, pair) };
            (0..=count)
                .step_by(*every as usize)
                .flat_map(move |moment| laters().map(move |later| Telling { story, pair, moment, later }))
        })
    }
}

impl fmt::Display for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { story, pair, moment, later } = self;
        write!(f, "{}:{pair}:{moment}:{later}", Story::ALL[*story].name)
    }
}

impl FromStr for Telling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [name, pair, moment, later] = parts[..] else {
            return Err("a story is told as NAME:PAIR:EVENTS:EVENTS, such as acknowledged:1:20:0".into());
        };
        let names = || Story::ALL.iter().map(|story| story.name).collect::<Vec<_>>().join(", ");
        let story = Story::ALL.iter().position(|story| story.name == name);
        let story = story.ok_or_else(|| format!("\"{name}\" is no story; there are {}", names()))?;
        let number = |text: &str| text.parse().map_err(|_| format!("\"{text}\" is no number"));
        Ok(Self { story, pair: number(pair)?, moment: number(moment)?, later: number(later)? })
    }
}

/// What came of the stories.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// How many tellings were played.
    pub played: u64,
    /// True time that went by in them, in microseconds.
    pub micros: u64,
    /// Those that failed, with what was wrong.
    pub failures: BTreeMap<String, String>,
    /// What was reached, how often.
    pub marks: BTreeMap<String, u64>,
}

/// Plays all stories at all their moments. `goes_on` is asked before each, `progress` is told after it.
pub fn survey(jobs: usize, goes_on: impl Fn() -> bool + Sync, mut progress: impl FnMut(&Survey)) -> Survey {
    let mut survey = Survey::default();
    let tellings: Vec<Telling> = (0..Story::ALL.len()).flat_map(Story::tellings).collect();
    crowd::each(
        jobs,
        tellings.into_iter().take_while(|_| goes_on()),
        |telling| telling.play(Trace::default()),
        |telling, outcome| {
            survey.played += 1;
            survey.micros += outcome.micros;
            for (name, count) in outcome.marks {
                *survey.marks.entry(name).or_default() += count;
            }
            if let Some(message) = outcome.failure {
                survey.failures.insert(telling.to_string(), message);
            }
            progress(&survey);
        },
    );
    survey
}

impl Telling {
    /// Plays it to its end.
    pub fn play(&self, trace: Trace) -> Outcome {
        play_out(&trace, |now| {
            let mut teller = Teller::new(self, trace.clone());
            let Story { course, after, .. } = &Story::ALL[self.story];
            teller.all(course);
            now.set(teller.world.now);
            teller.all(after);
            teller.surprises.clear();
            teller.deed(Wait(2_500_000));
            teller.world.look(0, 0);
            teller.world.look(1, 0);
            now.set(teller.world.now);
            if let Some(mark) = Story::ALL[self.story].never {
                assert!(!trace.marks().contains_key(mark), "{mark}, though nothing is wrong");
            }
            teller.world.converge();
            now.set(teller.world.now);
        })
    }
}

/// A pair that a story is told of.
struct Teller {
    world: World,
    /// When the course began.
    begun: u64,
    /// What comes after how many events, the last one first.
    surprises: Vec<(u64, &'static [Deed])>,
}

impl Teller {
    fn new(telling: &Telling, trace: Trace) -> Self {
        let story = &Story::ALL[telling.story];
        let mut world = World::new(telling.pair, config(story), trace);
        world.begin();
        // The copy that a pair begins with, with some room.
        world.run_until(world.now + 3_000_000);
        let mut teller = Self { world, begun: 0, surprises: Vec::new() };
        teller.all(story.before);
        teller.begun = teller.world.event_count;
        let first = teller.begun + telling.moment;
        teller.surprises.extend(story.then.map(|then| (first + telling.later, then.deeds)));
        teller.surprises.push((first, story.surprise));
        teller
    }

    fn all(&mut self, deeds: &[Deed]) {
        deeds.iter().for_each(|deed| self.deed(*deed));
    }

    fn deed(&mut self, deed: Deed) {
        let now = self.world.now;
        self.world.trace.note(now, || format!("== {deed:?}"));
        self.carry_out(deed);
    }

    fn carry_out(&mut self, deed: Deed) {
        let world = &mut self.world;
        match deed {
            Wait(micros) => self.wait(micros),
            Write(offset, size) => self.write(offset, size),
            Fill(count) => (0..count).for_each(|index| self.write(index * (32 << 10) % (2 * BLOCK), 32 << 10)),
            Scatter(count) => (1..=count).for_each(|block| self.write(block * BLOCK, 4096)),
            Read(offset, size) => self.read(offset, size),
            Remote => {
                if let Some(node) = world.with_role(0, Role::Primary) {
                    world.order(node, 0, Command::SetLevel(Level::Remote), Wanted::Level(Level::Remote));
                }
            }
            Freeze => {
                if let Some(node) = world.with_role(0, Role::Primary) {
                    let choice = WithoutPeer::Freeze;
                    world.order(node, 0, Command::SetWithoutPeer(choice), Wanted::WithoutPeer(choice));
                }
            }
            Suspend | Resume => {
                let Some(node) = world.with_role(0, Role::Primary) else { return };
                let suspend = Command::SuspendPair { now: true };
                let resume = Command::ResumePair { compare: false };
                world.order(node, 0, if matches!(deed, Suspend) { suspend } else { resume }, Wanted::Nothing);
            }
            Crash(role) => {
                if let Some(node) = world.with_role(0, role) {
                    world.lose_power(node);
                    world.start(node);
                }
            }
            Cut => world.cut_all(),
            Heal => world.heal(),
            RestartPoint => world.restart_point(0),
            Promote => {
                if let Some(node) = world.with_role(0, Role::Secondary) {
                    let command = Command::Promote { target: PromoteTarget::Latest, force: true };
                    world.order(node, 0, command, Wanted::Promotion(None, INSISTENCE));
                }
            }
            Reconnect => {
                let Some(node) = world.with_role(0, Role::Primary) else { return };
                let shown = world.nodes[node].clock.at(world.now);
                if let Some(daemon) = &mut world.nodes[node].daemon {
                    daemon.session.restart(shown);
                }
                world.pump(node);
            }
            Slow(role) => {
                if let Some(node) = world.with_role(0, role) {
                    world.nodes[node].ills.slow = true;
                }
            }
            LongReads(micros) => world.ills_of_primary(|ills| ills.read_micros = micros),
            LongWrites(micros) => world.ills_of_primary(|ills| ills.write_micros = micros),
            FailReads(fail) => {
                world.ills_of_primary(|ills| (ills.errors, ills.only_reads) = (u64::from(fail), true));
            }
        }
    }

    /// Lets time go by; surprises come when it is their time.
    fn wait(&mut self, micros: u64) {
        let end = self.world.now + micros;
        while let Some((count, deeds)) = self.surprises.pop() {
            if !self.world.run_to(end, count) {
                self.surprises.push((count, deeds));
                break;
            }
            self.all(deeds);
        }
        self.world.run_until(end);
    }

    fn write(&mut self, offset: u64, size: u64) {
        let Some((node, _)) = self.world.serving(0, &mut Random::new(0)) else { return };
        let value = self.world.outside[0].history.new_value();
        let sectors = (offset / 512) as usize..((offset + size) / 512) as usize;
        let asked = Asked::Change { volume: 0, sectors, value, place: None, durable: false };
        let operation = Operation::Write { offset, data: filled(value, size), durability: Durability::Completed };
        self.world.submit(Inquiry { node, group: 0, volume: 0, access: Access::ReadWrite, operation, asked });
    }

    fn read(&mut self, offset: u64, size: u64) {
        let Some((node, branch)) = self.world.serving(0, &mut Random::new(0)) else { return };
        let bound = self.world.outside[0].history.branches[branch].answered;
        let asked = Asked::Read { branch, bound, volume: 0, sector: (offset / 512) as usize };
        let operation = Operation::Read { offset, size: size as u32 };
        self.world.submit(Inquiry { node, group: 0, volume: 0, access: Access::ReadWrite, operation, asked });
    }
}

impl World {
    fn ills_of_primary(&mut self, change: impl FnOnce(&mut Ills)) {
        if let Some(node) = self.with_role(0, Role::Primary) {
            change(&mut self.nodes[node].ills);
        }
    }
}

fn config(story: &Story) -> Config {
    let line = || LineSettings { delay: Duration::from_millis(1), ..LineSettings::default() };
    Config {
        features: Vec::new(),
        micros: 0,
        group_count: 1,
        table_blocks: vec![BLOCK as u32],
        area: story.block_count * BLOCK,
        small_pools: false,
        link_count: 1,
        mode: Mode::Split,
        lines: [line(), line()],
        disk_micros: 200,
        think_micros: 1_000,
        calm_micros: 1_000,
        watched: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_telling_is_what_it_is_written_as() {
        let telling: Telling = "copied:1:30:4".parse().unwrap();
        assert_eq!((telling.pair, telling.moment, telling.later), (1, 30, 4));
        assert_eq!(telling.to_string(), "copied:1:30:4");
        assert!("flown:1:1:1".parse::<Telling>().unwrap_err().contains("acknowledged, greeted"));
        assert!("copied:1:x:4".parse::<Telling>().unwrap_err().contains("\"x\""));
        assert!("copied:1".parse::<Telling>().is_err());
    }
}
