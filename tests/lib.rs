//! Whole-system tests: real daemons, real UDP through the link emulator, and a model of what the client was told that
//! shares no code with the engine.
#![forbid(unsafe_code)]

pub mod client;
pub mod sites;
