//! Goal: what chance throws at a pair breaks no promise, and chance reaches what it is meant to reach. Method: a fixed budget of
//! seeds, each a history of its own; what they have reached is compared with what such a budget must reach.

use simulator::{config::Config, crowd, marks, play_seed, script, trace::Trace};
use std::collections::{BTreeMap, BTreeSet};

/// What takes a minute on two cores without much optimisation; by hand, longer: `simulate --for 8h`.
const SEEDS: u64 = 40;

#[test]
fn no_seed_breaks_a_promise_and_everything_is_reached() {
    let (mut failures, mut reached, mut micros) = (BTreeMap::new(), BTreeMap::<String, u64>::new(), 0);
    let start = std::time::Instant::now();
    crowd::each(
        crowd::jobs(),
        1..=SEEDS,
        |seed| play_seed(*seed, Trace::default()),
        |seed, outcome| {
            micros += outcome.micros;
            outcome.marks.into_iter().for_each(|(name, count)| *reached.entry(name).or_default() += count);
            failures.extend(outcome.failure.map(|message| (seed, message.replace('\n', " "))));
        },
    );
    println!("{SEEDS} seeds in {:?}, {} s simulated", start.elapsed(), micros / 1_000_000);
    let failed: Vec<String> = failures
        .iter()
        .map(|(seed, message)| {
            format!("seed {seed}: {message}\n    cargo run --release -p tools --bin simulate -- --seed {seed} --trace")
        })
        .collect();
    assert!(failed.is_empty(), "{} of {SEEDS} seeds fail:\n{}", failed.len(), failed.join("\n"));
    let missing: Vec<_> = marks::EXPECTED.iter().filter(|name| !reached.contains_key(**name)).collect();
    assert!(missing.is_empty(), "{SEEDS} seeds have not reached {missing:?}");
}

#[test]
fn every_mark_is_listed_once() {
    let all: Vec<&str> = marks::EXPECTED.iter().chain(marks::RARE).copied().collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert!(marks::EXPECTED.is_sorted() && marks::RARE.is_sorted());
}

#[test]
fn a_seed_is_one_history() {
    let config = Config::new(3);
    assert_eq!(script::steps(3, &config), script::steps(3, &config));
    let play = || play_seed(3, Trace::kept(false));
    let (one, other) = (play(), play());
    assert_eq!((one.micros, one.last, one.marks), (other.micros, other.last, other.marks));
}
