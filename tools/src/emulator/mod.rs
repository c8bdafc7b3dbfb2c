//! The link emulator: what the internet does to packets, on one machine, from a seed.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`settings`] | what a line does, and how a person writes it |
//! | [`model`] | one direction of a line, pure and in virtual time |
//! | [`proxy`] | two UDP sockets with a line each way between them, on a thread of its own |
//! | [`control`] | the commands of a running emulator |
//! | [`random`] | the seeded chances |

pub mod control;
pub mod model;
pub mod proxy;
pub mod random;
pub mod settings;

pub use model::{Line, LineCounters};
pub use proxy::{Emulator, EmulatorError, EmulatorSettings, Side, Statistics};
pub use settings::{BurstLoss, LineSettings, Probability, QueueLimit, SettingError};
