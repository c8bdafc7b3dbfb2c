//! The benchmark: this program beside what users would take instead, in one run. Only ratios of one run count: machines
//! are shared and noisy, so every figure is the median of interleaved rounds, with its spread.

pub mod life;
pub mod report;
pub mod wan;
pub mod write;
