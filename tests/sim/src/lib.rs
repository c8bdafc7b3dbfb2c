//! Whole pairs of the real state machines in one thread, in virtual time, from a seed; and a checker that knows only what
//! clients asked and were told.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`config`] | what a seed is about |
//! | [`script`] | what befalls the pair, written down beforehand |
//! | [`world`], `carrier`, `machine`, `steps` | the machines, the lines, and one queue of what happens next |
//! | [`media`], [`node`] | what a machine has |
//! | `ambush` | power that is lost at the worst moments |
//! | `client`, `operator`, `replace` | who asks, and what every answer promises |
//! | [`outside`], [`history`] | what may be there, as far as anybody was told |
//! | [`checks`], `converge` | what must hold, meanwhile and at the end |
//! | [`trace`], [`marks`] | what happened |
//! | [`exhaustive`] | all short histories, without chance |
//! | [`story`], `teller` | stories with a surprise at every moment |
//! | [`shrink`] | a failing seed's history, shortened |
//! | [`crowd`] | many histories on all cores |
#![forbid(unsafe_code)]

mod ambush;
mod carrier;
pub mod checks;
mod client;
pub mod config;
mod converge;
pub mod crowd;
pub mod exhaustive;
pub mod history;
mod machine;
pub mod marks;
pub mod media;
pub mod node;
mod operator;
pub mod outside;
mod replace;
pub mod script;
pub mod shrink;
mod steps;
pub mod story;
mod teller;
pub mod trace;
pub mod world;

use config::Config;
use holdfast::pair::Role;
use script::Step;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};
use trace::Trace;
use world::World;

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What went wrong, and where.
    pub failure: Option<String>,
    /// True time that went by, in microseconds.
    pub micros: u64,
    /// What was reached, how often.
    pub marks: BTreeMap<String, u64>,
    /// The last things that happened, if they were kept.
    pub last: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_CAUGHT: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps what a simulated panic says instead of printing it.
fn catch_messages() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IS_CAUGHT.with_borrow(|caught| *caught) {
                PANIC.with_borrow_mut(|kept| *kept = Some(info.to_string()));
            } else {
                former(info);
            }
        }));
    });
}

/// Plays a seed: its steps, or those given.
pub fn play(seed: u64, config: &Config, steps: &[Step], trace: Trace) -> Outcome {
    play_out(&trace, |now| {
        let mut world = World::new(seed, config.clone(), trace.clone());
        world.begin();
        for step in steps {
            world.plan_step(*step);
        }
        let end = steps.last().map_or(0, |step| step.at) + 1_000_000;
        while world.now < end {
            world.run_until((world.now + 1_000_000).min(end));
            now.set(world.now);
        }
        world.converge();
        now.set(world.now);
    })
}

/// Plays a history to its end or its failure; it tells the time that it has come to.
fn play_out(trace: &Trace, history: impl FnOnce(&Cell<u64>)) -> Outcome {
    catch_messages();
    IS_CAUGHT.with_borrow_mut(|caught| *caught = true);
    let now = Cell::new(0);
    let played = catch_unwind(AssertUnwindSafe(|| history(&now)));
    IS_CAUGHT.with_borrow_mut(|caught| *caught = false);
    let failure = played.err().map(|_| PANIC.with_borrow_mut(Option::take).unwrap_or_default());
    Outcome { failure, micros: now.get(), marks: trace.marks(), last: trace.last(400) }
}

/// Plays a seed as it is.
pub fn play_seed(seed: u64, trace: Trace) -> Outcome {
    let config = Config::new(seed);
    let steps = script::steps(seed, &config);
    play(seed, &config, &steps, trace)
}

impl World {
    /// Starts both machines with a pair of each group.
    fn begin(&mut self) {
        for node in 0..2 {
            self.start(node);
        }
        for group in 0..self.config.group_count {
            // The second group has its primary on the other node.
            let primary = group % 2;
            self.make_group(primary, group, Role::Primary, &[]);
            self.outside[group].serving[primary] = outside::Serving::Branch(0);
        }
        self.run_until(500_000);
        self.replace();
    }
}
