//! Stories with a surprise at every moment: what chance meets too seldom, because it is only wrong when something happens
//! between two events of one short history.
//!
//! A story is played once for every event of its course, such as a packet that arrives or an operation of a medium that ends:
//! right after that event the surprise comes. Some have a second surprise, which comes so many events later. Then the pair has
//! to come to rest, as always (`converge.rs`).

use crate::{
    crowd,
    script::{Action, Errand},
    trace::Trace,
};
use holdfast::pair::Role;
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Bytes of a block of the table.
pub(crate) const BLOCK: u64 = 256 << 10;

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
    /// Every block of the pool that is free is used, one after the other, and what was freed before is used again.
    Churn,
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
    /// A step of a script is taken; the pair's number decides what it leaves open.
    Take(Action),
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
    pub(crate) block_count: u64,
    /// What is done before.
    pub(crate) before: &'static [Deed],
    /// Its course.
    pub(crate) course: &'static [Deed],
    /// What may come, each at every moment of it.
    pub(crate) surprises: &'static [&'static [Deed]],
    /// After how many events there is such a moment.
    every: u64,
    /// What comes later than that.
    pub(crate) then: Option<Then>,
    /// What is done in the end.
    pub(crate) after: &'static [Deed],
    /// What must not be reached by then.
    pub(crate) never: Option<&'static str>,
}

/// A second surprise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Then {
    pub(crate) deeds: &'static [Deed],
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
    surprises: &[],
    every: 1,
    then: None,
    after: &[],
    never: None,
};

/// One playing of a story. Its text is that of the command line: `acknowledged:3:0:32:0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// The story's place in [`Story::ALL`].
    pub story: usize,
    /// The pair's chances.
    pub pair: u64,
    /// Which of its surprises comes.
    pub surprise: usize,
    /// After so many events it does.
    pub moment: u64,
    /// After so many more the second one.
    pub later: u64,
}

use Deed::*;

/// What may come at any time.
const ANYTHING: &[&[Deed]] = &[
    &[Crash(Role::Primary)],
    &[Crash(Role::Secondary)],
    &[Crash(Role::Primary), Crash(Role::Secondary)],
    &[Cut],
    &[Take(Action::HalfCut(2, 0))],
    &[Take(Action::HalfCut(2, 1))],
    &[Take(Action::Stall(0))],
    &[Take(Action::Stall(1))],
    &[Reconnect],
    &[Cut, Promote],
    &[Promote],
    &[Cut, Crash(Role::Secondary), Promote],
];

/// The story of an order, while clients write and the application declares that it can restart.
macro_rules! ordered {
    ($name:literal, $action:expr) => {
        Self {
            name: $name,
            pair_count: 1,
            before: &[Write(0, 4096), RestartPoint, Wait(1_500_000)],
            course: &[
                Write(0, 4096),
                Take($action),
                Write(512, 512),
                Wait(1_200),
                Write(0, 1024),
                RestartPoint,
                Write(1024, 512),
                Wait(6_000),
            ],
            surprises: ANYTHING,
            ..PLAIN
        }
    };
}

impl Story {
    /// All of them.
    pub const ALL: &[Self] = &[
        // Who says that something is durable loses power right after it, and has to answer for it.
        Self {
            name: "acknowledged",
            pair_count: 3,
            before: &[Remote, Write(0, 4096), Wait(1_000_000), Slow(Role::Secondary)],
            course: &[Write(0, 4096), Wait(1_000), Write(512, 512), Wait(1_000), Write(1024, 512), Wait(30_000)],
            surprises: &[&[Cut, Crash(Role::Secondary), Promote]],
            ..PLAIN
        },
        // The same, where a greeting says it, while a slow medium has it only half.
        Self {
            name: "greeted",
            pair_count: 4,
            before: &[Remote, Freeze, Write(0, 4096), Wait(1_000_000), Slow(Role::Secondary)],
            course: &[Write(0, 4096), Wait(1_500), Reconnect, Wait(60_000)],
            surprises: &[&[Cut, Crash(Role::Secondary), Promote]],
            ..PLAIN
        },
        // A block is fetched from the standby because it cannot be read here, and a client writes to it.
        Self {
            name: "mended",
            before: &[Write(0, 16 << 10), Wait(3_000_000), FailReads(true)],
            course: &[Read(0, 16 << 10), Wait(20_000)],
            surprises: &[&[Write(4096, 512)]],
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
            surprises: &[&[
                LongWrites(20_000),
                Write(25 * BLOCK, 512),
                Write(24 * BLOCK, 512),
                Write(23 * BLOCK, 512),
                Write(22 * BLOCK, 512),
                Write(20 * BLOCK, 512),
            ]],
            then: Some(Then { deeds: &[Cut, Promote], count: 40, every: 20 }),
            after: &[Wait(20_000), LongWrites(0)],
            ..PLAIN
        },
        // The journal is full, and its primary loses power.
        Self {
            name: "full",
            before: &[Cut, Wait(3_000_000)],
            course: &[Fill(700), Wait(300_000)],
            surprises: &[&[Crash(Role::Primary)]],
            ..PLAIN
        },
        // A large write was overwritten and its block could be used again, but its record is still to be sent from there.
        Self {
            name: "overwritten",
            block_count: 61,
            before: &[Cut, Write(0, BLOCK), Write(0, BLOCK), Wait(3_000_000)],
            course: &[Churn, Wait(3_000_000), Crash(Role::Primary), Heal],
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
                Churn,
                Wait(12_000_000),
            ],
            ..PLAIN
        },
        // A former primary, which wrote what the other one has not, becomes the standby.
        Self {
            name: "demoted",
            pair_count: 2,
            before: &[
                Write(0, 4096),
                RestartPoint,
                Wait(1_500_000),
                Cut,
                Write(512, 512),
                Wait(10_000),
                Promote,
                Wait(1_000_000),
                Write(0, 512),
                Heal,
                Wait(1_500_000),
            ],
            course: &[Take(Action::Demote), Wait(130_000)],
            surprises: ANYTHING,
            ..PLAIN
        },
        // What both lack of each other is copied.
        Self {
            name: "resumed",
            pair_count: 2,
            before: &[
                Write(0, 4096),
                Wait(1_500_000),
                Suspend,
                Wait(500_000),
                Write(0, 512),
                RestartPoint,
                Write(BLOCK, 512),
                Wait(500_000),
                Resume,
                Wait(103_000),
            ],
            course: &[Wait(2_000), Write(0, 512), Write(BLOCK, 4096), RestartPoint, Wait(8_000)],
            surprises: ANYTHING,
            ..PLAIN
        },
        // Nothing is answered before the standby has it, nor without it.
        Self {
            name: "frozen",
            pair_count: 2,
            before: &[Remote, Freeze, Write(0, 4096), Wait(1_500_000)],
            course: &[Write(0, 512), Wait(700), Write(512, 512), RestartPoint, Wait(700), Write(0, 4096), Wait(5_000)],
            surprises: ANYTHING,
            ..PLAIN
        },
        // The primary answers with its standby's promise only, and is to be replaced.
        Self {
            name: "fenced",
            pair_count: 4,
            before: &[Take(Action::Command(Errand::Lease)), Write(0, 4096), Wait(1_500_000)],
            course: &[Write(0, 512), Wait(700), RestartPoint, Take(Action::Promote), Write(512, 512), Wait(5_000)],
            surprises: ANYTHING,
            ..PLAIN
        },
        ordered!("switched", Action::Switch),
        ordered!("stopped", Action::Stop(0)),
        ordered!("suspended", Action::Command(Errand::Suspend)),
        ordered!("verified", Action::Command(Errand::Verify)),
        ordered!("levelled", Action::Command(Errand::Level)),
        ordered!("policed", Action::Command(Errand::Policy)),
        ordered!("leased", Action::Command(Errand::Lease)),
        ordered!("taken-over", Action::Command(Errand::Takeover)),
        ordered!("kept", Action::Command(Errand::Keep)),
        ordered!("dropped", Action::Command(Errand::Drop)),
        ordered!("tried", Action::Command(Errand::BeginTrial)),
        ordered!("grown", Action::Command(Errand::GrowVolume)),
        ordered!("grown-journal", Action::Command(Errand::GrowJournal)),
        ordered!("deleted", Action::Command(Errand::DeletePair)),
    ];

    /// All its tellings.
    pub fn tellings(story: usize) -> impl Iterator<Item = Telling> {
        let Self { pair_count, surprises, every, then, .. } = &Self::ALL[story];
        let (later_count, apart) = then.map_or((1, 1), |then| (then.count, then.every));
        (1..=*pair_count).flat_map(move |pair| {
            // Without a surprise there is nothing to tell twice.
            let event_count = if surprises.is_empty() { 0 } else { Self::event_count(story, pair) };
            (0..surprises.len().max(1)).flat_map(move |surprise| {
                (0..=event_count).step_by(*every as usize).flat_map(move |moment| {
                    let telling = move |index| Telling { story, pair, surprise, moment, later: index * apart };
                    (0..later_count).map(telling)
                })
            })
        })
    }
}

impl fmt::Display for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { story, pair, surprise, moment, later } = self;
        write!(f, "{}:{pair}:{surprise}:{moment}:{later}", Story::ALL[*story].name)
    }
}

impl FromStr for Telling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [name, pair, surprise, moment, later] = parts[..] else {
            return Err("a story is told as NAME:PAIR:SURPRISE:EVENTS:EVENTS, such as acknowledged:3:0:32:0".into());
        };
        let names = || Story::ALL.iter().map(|story| story.name).collect::<Vec<_>>().join(", ");
        let story = Story::ALL.iter().position(|story| story.name == name);
        let story = story.ok_or_else(|| format!("\"{name}\" is no story; there are {}", names()))?;
        let number = |text: &str| text.parse().map_err(|_| format!("\"{text}\" is no number"));
        Ok(Self {
            story,
            pair: number(pair)?,
            surprise: number(surprise)? as usize,
            moment: number(moment)?,
            later: number(later)?,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_telling_is_what_it_is_written_as() {
        let telling: Telling = "copied:1:0:30:4".parse().unwrap();
        assert_eq!((telling.pair, telling.moment, telling.later), (1, 30, 4));
        assert_eq!(telling.to_string(), "copied:1:0:30:4");
        assert!("flown:1:0:1:1".parse::<Telling>().unwrap_err().contains("acknowledged, greeted"));
        assert!("copied:1:0:x:4".parse::<Telling>().unwrap_err().contains("\"x\""));
        assert!("copied:1".parse::<Telling>().is_err());
    }
}
