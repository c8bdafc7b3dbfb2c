//! A look from the outside: real daemons, bad lines, faults and operators from a seed, and a judge that knows only what clients and
//! operators were told (`outside/checker.rs`). It uses NBD and `ublk-admin --json`, and shares no code with the engine.
//!
//! Each round has a seed, which decides what happens and in which order. Real processes and lines are not deterministic: the same
//! seed gives the same faults at other instants, so that a failure may need several tries to come again.

#[path = "outside/checker.rs"]
mod checker;
#[path = "outside/client.rs"]
mod client;
#[path = "outside/faults.rs"]
mod faults;
#[path = "outside/history.rs"]
mod history;
#[path = "outside/operator.rs"]
mod operator;
#[path = "outside/story.rs"]
mod story;

use checker::Decided;
use std::{env, fs, time::Instant};
use story::Story;

/// As many as there are episodes: each seed begins with another one.
const ROUNDS: u64 = story::EPISODES.len() as u64;
const EPISODES_A_ROUND: usize = 7;
/// Of what was done, so much is shown when something is wrong.
const EVENTS_SHOWN: usize = 60;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn round(seed: u64) -> Result<Decided, String> {
    let mut story = Story::begin(seed).map_err(|error| format!("{error:#}"))?;
    let lived = story.live(seed, EPISODES_A_ROUND).and_then(|()| story.end());
    let decided = checker::check(&story.history.lock());
    let logs =
        || ["north", "south"].map(|name| format!("log of {name}:\n{}\n", story.world.sites.workplace.log_tail(name)));
    let text = match (lived, decided) {
        (Ok(()), Ok(decided)) => return Ok(decided),
        // What is impossible says more than what did not come about.
        (_, Err(error)) => format!("this history is not possible: {error:#}"),
        (Err(error), _) => format!("{error:#}"),
    };
    let events = story.events.join("\n");
    let shown = story.events[story.events.len().saturating_sub(EVENTS_SHOWN)..].join("\n");
    if let Some(folder) = env::var_os("HOLDFAST_OUTSIDE_KEEP") {
        let folder = std::path::Path::new(&folder);
        let logs = ["north", "south"]
            .map(|name| fs::read_to_string(story.world.sites.workplace.folder().join(format!("{name}.log"))));
        let logs = logs.map(Result::unwrap_or_default).join("\n=== the other node\n");
        let kept = fs::write(folder.join(format!("outside-{seed}.txt")), format!("{text}\n{events}\n{logs}"));
        kept.unwrap_or_else(|error| println!("{}: {error}", folder.display()));
    }
    Err(format!("{shown}\n{}\n{text}", logs().concat()))
}

#[test]
fn what_clients_and_operators_are_told_is_true() {
    let (first, rounds) = (number("HOLDFAST_OUTSIDE_SEED", 1), number("HOLDFAST_OUTSIDE_ROUNDS", ROUNDS));
    let begun = Instant::now();
    for seed in first..first + rounds {
        let start = Instant::now();
        match round(seed) {
            Ok(decided) => {
                println!("seed {seed}: {decided:?} in {:.1} s", start.elapsed().as_secs_f64());
                assert!(
                    decided.answered > 100 && decided.views > 1 && decided.reigns > 0,
                    "seed {seed} shows nothing: {decided:?}"
                );
            }
            Err(text) => panic!(
                "seed {seed}:\n{text}\n\nTry it again (it may need several tries, because processes are not deterministic):\n  \
                 HOLDFAST_OUTSIDE_SEED={seed} HOLDFAST_OUTSIDE_ROUNDS=1 cargo test -p system-tests --test outside -- --nocapture"
            ),
        }
    }
    println!("{rounds} rounds in {:.0} s", begun.elapsed().as_secs_f64());
}
