//! The benchmark: this program beside what users would take instead, in one run. Only ratios of one run count: machines
//! are shared and noisy, so every figure is the median of interleaved rounds, with its spread.

pub mod balance;
pub mod beside;
pub mod bursts;
pub mod echo;
pub mod fio;
pub mod hot_path;
pub mod html;
pub mod instructions;
pub mod lines;
pub mod load;
pub mod machine;
pub mod mirror;
pub mod network;
pub mod pair;
pub mod peers;
pub mod report;
pub mod scenarios;
pub mod tcp;
pub mod wan;
pub mod wan_options;
pub mod write;

use std::time::{Duration, Instant};

/// Would one more round, as long as those before, end in time? The first is always begun.
fn has_time(limit: Option<Duration>, start: Instant, rounds: u32) -> bool {
    let Some(limit) = limit else { return true };
    let took = start.elapsed();
    rounds == 0 || took + took / rounds < limit
}
