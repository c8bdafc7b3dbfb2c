//! All short histories of a tiny pair: what chance may miss because it is only wrong when three things happen in one order.
//!
//! A history is a row of events with the same short time between them, so that what an event began is under way when the next
//! one comes. Each is played to its end, where the pair has to come to rest ([`World::converge`]). A history whose last event
//! finds nothing to do, such as a cut of what is cut, is the same as the one before it; neither it nor what begins with it counts.

use crate::{
    Outcome,
    client::{Inquiry, filled},
    config::Config,
    crowd,
    operator::Wanted,
    outside::Asked,
    play_out,
    trace::Trace,
    world::World,
};

use holdfast::{
    command::{Command, PromoteTarget},
    pair::{ApplyPolicy, Role},
    request::{Access, Durability, Operation},
};
use link_model::Random;
use std::{cell::Cell, collections::BTreeMap, fmt, str::FromStr};

/// After so many times the time between two events a node that lost power is started again.
const STARTED_AFTER: u64 = 3;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A client writes 4 KiB.
    WriteA,
    /// A client writes 512 bytes in the midst of them.
    WriteB,
    /// A client flushes what was written since the last time.
    Flush,
    /// The application declares that it can restart.
    RestartPoint,
    /// The primary loses power.
    CrashPrimary,
    /// The standby loses power.
    CrashStandby,
    /// The line is cut.
    Cut,
    /// The line carries again.
    Heal,
    /// The standby is promoted.
    Promote,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 9] = {
        use Event::*;
        [WriteA, WriteB, Flush, RestartPoint, CrashPrimary, CrashStandby, Cut, Heal, Promote]
    };

    fn name(self) -> &'static str {
        match self {
            Self::WriteA => "write-a",
            Self::WriteB => "write-b",
            Self::Flush => "flush",
            Self::RestartPoint => "restart-point",
            Self::CrashPrimary => "crash-primary",
            Self::CrashStandby => "crash-standby",
            Self::Cut => "cut",
            Self::Heal => "heal",
            Self::Promote => "promote",
        }
    }
}

/// A pair in which all histories are played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// When the standby applies what it receives.
    pub policy: ApplyPolicy,
    /// To what it is promoted.
    pub target: Target,
    /// The time between two events.
    pub pace: Pace,
}

/// To what a standby is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The last restart point.
    Point,
    /// All that was received.
    Latest,
}

/// How fast one event follows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Before the line has carried the answer to what the last one began.
    Fast,
    /// When all that follows from the last one has happened: a cut has been noticed, a daemon is started again.
    Slow,
}

impl Pace {
    fn micros(self) -> u64 {
        match self {
            Self::Fast => 1_500,
            Self::Slow => 4_000_000,
        }
    }
}

impl Setting {
    /// Those that differ in what they can find.
    pub const ALL: [Self; 4] = [
        Self { policy: ApplyPolicy::Snapshot, target: Target::Point, pace: Pace::Fast },
        Self { policy: ApplyPolicy::Delayed, target: Target::Latest, pace: Pace::Fast },
        Self { policy: ApplyPolicy::Snapshot, target: Target::Latest, pace: Pace::Slow },
        Self { policy: ApplyPolicy::Delayed, target: Target::Point, pace: Pace::Slow },
    ];
}

/// One history, which is played in one pair. Its text is that of the command line: `delayed:latest:fast:write-a,promote`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The pair.
    pub setting: Setting,
    /// What befalls it.
    pub events: Vec<Event>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = if self.setting.policy == ApplyPolicy::Delayed { "delayed" } else { "snapshot" };
        let target = if self.setting.target == Target::Latest { "latest" } else { "point" };
        let pace = if self.setting.pace == Pace::Slow { "slow" } else { "fast" };
        let events: Vec<&str> = self.events.iter().map(|event| event.name()).collect();
        write!(f, "{policy}:{target}:{pace}:{}", events.join(","))
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [policy, target, pace, events] = parts[..] else {
            return Err("a history is POLICY:TARGET:PACE:EVENT,EVENT,...".into());
        };
        let policy = match policy {
            "snapshot" => ApplyPolicy::Snapshot,
            "delayed" => ApplyPolicy::Delayed,
            _ => return Err(format!("\"{policy}\" is neither snapshot nor delayed")),
        };
        let target = match target {
            "point" => Target::Point,
            "latest" => Target::Latest,
            _ => return Err(format!("\"{target}\" is neither point nor latest")),
        };
        let pace = match pace {
            "fast" => Pace::Fast,
            "slow" => Pace::Slow,
            _ => return Err(format!("\"{pace}\" is neither fast nor slow")),
        };
        let names = || Event::ALL.map(Event::name).join(", ");
        let event = |name: &str| {
            let found = Event::ALL.into_iter().find(|event| event.name() == name);
            found.ok_or_else(|| format!("\"{name}\" is no event; there are {}", names()))
        };
        let events = events.split(',').filter(|name| !name.is_empty()).map(event).collect::<Result<_, _>>()?;
        Ok(Self { setting: Setting { policy, target, pace }, events })
    }
}

/// What came of one history.
#[derive(Clone, Debug)]
pub struct Played {
    /// How it ended.
    pub outcome: Outcome,
    /// Its last event found nothing to do.
    pub is_vain: bool,
}

/// What came of many.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// How many were played that are not the same as a shorter one.
    pub history_count: u64,
    /// True time that went by in them, in microseconds.
    pub micros: u64,
    /// Those that failed, with what was wrong.
    pub failures: BTreeMap<String, String>,
    /// What was reached, how often.
    pub marks: BTreeMap<String, u64>,
    /// The survey was ended before all were played.
    pub is_cut_short: bool,
}

/// Plays all histories of up to so many events in these pairs. `goes_on` is asked now and then, with what there is so far.
pub fn survey(
    settings: &[Setting],
    events_max: usize,
    jobs: usize,
    goes_on: impl Fn() -> bool + Sync,
    mut progress: impl FnMut(&Survey),
) -> Survey {
    let mut survey = Survey::default();
    let mut cases: Vec<Case> = settings.iter().map(|setting| Case { setting: *setting, events: Vec::new() }).collect();
    for size in 0..=events_max {
        // One length after the other: which histories are played does not depend on which thread is faster.
        let mut longer = Vec::new();
        let asked = cases.len();
        let mut played_count = 0;
        let items = cases.into_iter().take_while(|_| goes_on());
        crowd::each(
            jobs,
            items,
            |case| case.play(Trace::default()),
            |case, played| {
                played_count += 1;
                if played.is_vain {
                    return;
                }
                survey.count(&case, &played.outcome);
                // What follows a failure would fail as well.
                if played.outcome.failure.is_none() && size < events_max {
                    longer.extend(case.followers());
                }
                progress(&survey);
            },
        );
        survey.is_cut_short |= played_count < asked;
        longer.sort_by_key(Case::to_string);
        cases = longer;
    }
    survey
}

impl Survey {
    fn count(&mut self, case: &Case, outcome: &Outcome) {
        self.history_count += 1;
        self.micros += outcome.micros;
        for (name, count) in &outcome.marks {
            *self.marks.entry(name.clone()).or_default() += count;
        }
        if let Some(message) = &outcome.failure {
            self.failures.insert(case.to_string(), message.clone());
        }
    }
}

impl Case {
    /// Those that are longer by one event.
    fn followers(&self) -> impl Iterator<Item = Self> {
        Event::ALL.into_iter().map(|event| {
            let events = self.events.iter().copied().chain([event]).collect();
            Self { setting: self.setting, events }
        })
    }

    /// Plays it; not to its end, if its last event finds nothing to do.
    pub fn play(&self, trace: Trace) -> Played {
        let is_vain = Cell::new(false);
        let outcome = play_out(&trace, |now| {
            let mut tiny = Tiny::new(self.setting, trace.clone());
            for event in &self.events {
                is_vain.set(!tiny.take(*event));
                now.set(tiny.world.now);
            }
            if is_vain.get() {
                return;
            }
            tiny.end();
            now.set(tiny.world.now);
        });
        Played { outcome, is_vain: is_vain.get() }
    }
}

/// The pair.
struct Tiny {
    world: World,
    setting: Setting,
    start_at: [Option<u64>; 2],
    is_cut: bool,
    is_written: bool,
}

impl Tiny {
    fn new(setting: Setting, trace: Trace) -> Self {
        let mut world = World::new(1, Config { watched: true, ..Config::quiet(16 << 10, 16 << 10) }, trace);
        world.begin();
        // The copy that a pair begins with, with some room.
        world.run_until(world.now + 1_500_000);
        for node in 0..2 {
            world.order(node, 0, Command::SetPolicy(setting.policy), Wanted::Nothing);
        }
        world.run_until(world.now + 500_000);
        Self { world, setting, start_at: [None; 2], is_cut: false, is_written: false }
    }

    /// Lets an event happen, and the time after it go by; whether there was anything to do.
    fn take(&mut self, event: Event) -> bool {
        let now = self.world.now;
        self.world.trace.note(now, || format!("== {}", event.name()));
        self.world.trace.mark(&format!("step: {event:?}"));
        let is_done = self.carry_out(event);
        let end = self.world.now + self.setting.pace.micros();
        self.run_until(end);
        is_done
    }

    fn carry_out(&mut self, event: Event) -> bool {
        match event {
            Event::WriteA => self.write(0, 4096),
            Event::WriteB => self.write(512, 512),
            Event::Flush => self.flush(),
            Event::RestartPoint => {
                let is_served = self.serving().is_some();
                self.world.restart_point(0);
                is_served
            }
            Event::CrashPrimary => self.crash(Role::Primary),
            Event::CrashStandby => self.crash(Role::Secondary),
            Event::Cut | Event::Heal => {
                let is_cut = event == Event::Cut;
                if is_cut {
                    self.world.cut_all();
                } else {
                    self.world.heal();
                }
                std::mem::replace(&mut self.is_cut, is_cut) != is_cut
            }
            Event::Promote => {
                let Some(standby) = self.world.with_role(0, Role::Secondary) else { return false };
                let target = match self.setting.target {
                    Target::Point => PromoteTarget::RestartPoint,
                    Target::Latest => PromoteTarget::Latest,
                };
                self.world.promote_to(standby, 0, target, true, None);
                true
            }
        }
    }

    fn serving(&mut self) -> Option<(usize, usize)> {
        // Which node is asked first matters only when both serve: the newer one, as clients would.
        let epochs = [0, 1].map(|node| self.world.group(node, 0).map(|core| core.epoch()));
        let salt_for = |wanted: u64| (0..64).find(|salt| Random::new(*salt).below(2) == wanted).unwrap_or(0);
        let mut chance = Random::new(salt_for(u64::from(epochs[1] > epochs[0])));
        self.world.serving(0, &mut chance)
    }

    fn write(&mut self, offset: u64, size: u64) -> bool {
        let Some((node, _)) = self.serving() else { return false };
        let value = self.world.outside[0].history.new_value();
        let sectors = (offset / 512) as usize..((offset + size) / 512) as usize;
        let asked = Asked::Change { volume: 0, sectors, value, place: None, durable: false };
        let operation = Operation::Write { offset, data: filled(value, size), durability: Durability::Completed };
        self.world.submit(Inquiry { node, group: 0, volume: 0, access: Access::ReadWrite, operation, asked });
        self.is_written = true;
        true
    }

    fn flush(&mut self) -> bool {
        let Some((node, branch)) = self.serving() else { return false };
        let bound = self.world.outside[0].history.branches[branch].answered;
        let asked = Asked::Flush { branch, bound };
        let (access, operation) = (Access::ReadWrite, Operation::Flush);
        self.world.submit(Inquiry { node, group: 0, volume: 0, access, operation, asked });
        std::mem::take(&mut self.is_written)
    }

    fn crash(&mut self, role: Role) -> bool {
        let Some(node) = self.world.with_role(0, role) else { return false };
        // Power goes too: whatever a killed daemon can lose, this can.
        self.world.lose_power(node);
        self.start_at[node] = Some(self.world.now + STARTED_AFTER * self.setting.pace.micros());
        true
    }

    fn run_until(&mut self, end: u64) {
        while let Some(at) = self.start_at.into_iter().flatten().min().filter(|at| *at <= end) {
            self.world.run_until(at);
            for node in 0..2 {
                if self.start_at[node].is_some_and(|due| due <= at) {
                    self.start_at[node] = None;
                    self.world.start(node);
                }
            }
        }
        self.world.run_until(end);
    }

    fn end(&mut self) {
        // What the last event began goes on for a while, and daemons that are down are started in their time.
        let end = self.world.now + (STARTED_AFTER + 1) * self.setting.pace.micros();
        self.run_until(end);
        self.world.look(0, 0);
        self.world.look(1, 0);
        self.world.converge();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str) -> Case {
        text.parse().unwrap()
    }

    #[test]
    fn a_history_is_what_it_is_written_as() {
        let text = "delayed:latest:slow:write-a,crash-primary,promote";
        let Case { setting, events } = case(text);
        assert_eq!(setting, Setting { policy: ApplyPolicy::Delayed, target: Target::Latest, pace: Pace::Slow });
        assert_eq!(events, [Event::WriteA, Event::CrashPrimary, Event::Promote]);
        assert_eq!(case(text).to_string(), text);
        assert_eq!(case("snapshot:point:fast:").events, []);
        assert!("snapshot:point:fast:fly".parse::<Case>().unwrap_err().contains("write-a, write-b"));
        assert!("snapshot:fast".parse::<Case>().is_err());
    }

    #[test]
    fn what_has_nothing_to_do_is_no_history_of_its_own() {
        let is_vain = |text: &str| case(text).play(Trace::default()).is_vain;
        for vain in
            ["heal", "cut,cut", "flush", "write-a,flush,flush", "crash-primary,crash-primary", "crash-primary,write-a"]
        {
            assert!(is_vain(&format!("snapshot:latest:fast:{vain}")), "{vain}");
        }
        for real in
            ["cut,heal", "write-a,flush", "crash-primary,crash-standby", "write-a,write-a", "crash-standby,write-a"]
        {
            assert!(!is_vain(&format!("snapshot:latest:fast:{real}")), "{real}");
        }
    }

    #[test]
    fn events_have_effects() {
        let played = case("snapshot:latest:slow:write-a,restart-point,crash-primary,promote").play(Trace::default());
        assert_eq!(played.outcome.failure, None);
        for mark in ["event: RestartPoint", "role: secondary to primary", "pair: initial-copy to duplex"] {
            assert!(played.outcome.marks.contains_key(mark), "{mark}: {:?}", played.outcome.marks);
        }
    }

    #[test]
    fn a_survey_plays_each_history_once_whatever_the_threads() {
        let setting = &Setting::ALL[..1];
        let one = survey(setting, 1, 1, || true, |_| {});
        let three = survey(setting, 1, 3, || true, |_| {});
        assert_eq!((one.history_count, one.micros), (three.history_count, three.micros));
        // The empty one and all but heal and flush.
        assert_eq!(one.history_count, 8);
        assert_eq!(one.marks, three.marks);
        assert!(survey(setting, 1, 1, || false, |_| {}).is_cut_short);
    }
}
