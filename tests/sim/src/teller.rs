//! Who tells a story: a pair of its own, its deeds one after the other, and the surprises when it is their time.

use crate::{
    Outcome,
    client::{Inquiry, filled},
    config::Config,
    node::Ills,
    operator::{INSISTENCE, Wanted},
    outside::Asked,
    play_out,
    script::Step,
    story::{
        BLOCK,
        Deed::{self, *},
        Story, Telling,
    },
    trace::Trace,
    world::World,
};
use holdfast::{
    command::{Command, PromoteTarget},
    pair::{Level, Role, WithoutPeer},
    request::{Access, Durability, Operation},
};
use link_model::Random;
use std::cell::Cell;

/// A story has no more events than this; one that does never ends.
const EVENTS_MAX: u64 = 100_000;

impl Story {
    /// How many events its course has in this pair.
    pub fn event_count(story: usize, pair: u64) -> u64 {
        let count = Cell::new(0);
        play_out(&Trace::default(), |_| {
            let telling = Telling { story, pair, surprise: 0, moment: EVENTS_MAX, later: 0 };
            let mut teller = Teller::new(&telling, Trace::default());
            teller.all(Self::ALL[story].course);
            count.set(teller.world.event_count - teller.begun);
        });
        count.get()
    }
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
    /// Decides what is left open.
    chance: Random,
    /// What comes after how many events, the last one first.
    surprises: Vec<(u64, &'static [Deed])>,
}

impl Teller {
    fn new(telling: &Telling, trace: Trace) -> Self {
        let story = &Story::ALL[telling.story];
        let mut world = World::new(telling.pair, Config::quiet(BLOCK as u32, story.block_count * BLOCK), trace);
        world.begin();
        // The copy that a pair begins with, with some room.
        world.run_until(world.now + 3_000_000);
        let mut teller = Self { world, begun: 0, chance: Random::new(telling.pair), surprises: Vec::new() };
        teller.all(story.before);
        teller.begun = teller.world.event_count;
        let first = teller.begun + telling.moment;
        teller.surprises.extend(story.then.map(|then| (first + telling.later, then.deeds)));
        teller.surprises.extend(story.surprises.get(telling.surprise).map(|deeds| (first, *deeds)));
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
        let (now, world) = (self.world.now, &mut self.world);
        match deed {
            Wait(micros) => self.wait(micros),
            Write(offset, size) => self.write(offset, size),
            Fill(count) => (0..count).for_each(|index| self.write(index * (32 << 10) % (2 * BLOCK), 32 << 10)),
            Scatter(count) => (1..=count).for_each(|block| self.write(block * BLOCK, 4096)),
            // What is written after a restart point gets a block of its own.
            Churn => self.all(&[
                Scatter(60),
                RestartPoint,
                Wait(3_000_000),
                Scatter(60),
                RestartPoint,
                Wait(3_000_000),
                Scatter(60),
            ]),
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
            Take(action) => world.take_step(Step { at: now, action, salt: self.chance.next_u64() }),
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
