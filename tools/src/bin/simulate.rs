//! Plays histories of a simulated pair from seeds.
#![forbid(unsafe_code)]

use clap::Parser;
use simulator::{config::Config, play, play_seed, script, trace::Trace};
use std::{collections::BTreeMap, time::Instant};

/// Plays histories of a simulated pair: two nodes, bad lines, bad media, crashes, operators. Each follows from its seed alone.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Shows what happens.
    #[arg(long)]
    trace: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let (start, mut micros, mut failed) = (Instant::now(), 0, 0);
    let mut marks: BTreeMap<String, u64> = BTreeMap::new();
    for seed in arguments.seed..arguments.seed + arguments.count {
        let began = Instant::now();
        let trace = if arguments.trace { Trace::kept(true) } else { Trace::default() };
        let outcome = play_seed(seed, trace);
        micros += outcome.micros;
        for (name, count) in outcome.marks {
            *marks.entry(name).or_default() += count;
        }
        if let Some(failure) = outcome.failure {
            failed += 1;
            println!("seed {seed}: {} after {} s\n", failure.replace('\n', " "), outcome.micros / 1_000_000);
        }
        let took = began.elapsed();
        if took.as_secs() > 5 {
            println!("seed {seed} took {took:?} for {} s", outcome.micros / 1_000_000);
        }
    }
    let _ = (Config::new, play, script::steps);
    for (name, count) in marks {
        println!("{count:10} {name}");
    }
    let real = start.elapsed().as_secs_f64();
    println!(
        "{failed} failed; {} s simulated in {real:.1} s: {:.0} a second",
        micros / 1_000_000,
        micros as f64 / 1e6 / real
    );
}
