//! The link emulator: what the internet does to packets, on one machine, from a seed.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`link_model`] | one direction of a line, pure and in virtual time |
//! | [`proxy`] | two UDP sockets with a line each way between them, on a thread of its own |
//! | [`tun`] | the same for IP packets, between two TUN devices |
//! | [`control`] | the commands of a running emulator |

pub mod control;
mod ip;
pub mod proxy;
pub mod tun;

pub use link_model::{BurstLoss, Line, LineCounters, LineSettings, Probability, QueueLimit, Random, SettingError};
pub use proxy::{Emulator, EmulatorError, EmulatorSettings, Side, Statistics};
