//! What a line between two nodes does to packets, as a pure model in virtual time: the link emulator and the simulator
//! share it.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`settings`] | what a line does, and how a person writes it |
//! | [`model`] | one direction of a line |
//! | [`codel`] | a queue that keeps itself short |
//! | [`random`] | the seeded chances |
#![forbid(unsafe_code)]

pub mod codel;
pub mod model;
pub mod random;
pub mod settings;

pub use codel::{Codel, Ecn};
pub use model::{Line, LineCounters, Packet};
pub use random::Random;
pub use settings::{BurstLoss, LineSettings, Probability, QueueLimit, SettingError};
