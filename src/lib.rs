//! The core of Holdfast: a virtual disk that survives the loss of its site.
//!
//! Everything here is a pure function of the events handed in: there is no clock, random source, thread, socket or
//! file. A shell ([`group::Group`]'s caller) carries out what the core asks for and reports how it went, so that the
//! same code runs on a real machine and in a simulator, and every fault can be replayed.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`format`] | every byte on a medium or in a frame |
//! | `journal` | the ring of batches, and what is in it |
//! | `table` | logical block → physical block, for the latest state and the snapshot |
//! | `overlay` | where the newest data is that the table does not know yet |
//! | [`pair`] | roles, pair states, what is allowed in each |
//! | [`group`] | the state machine that joins them |
//! | [`testing`] | faults planted on purpose, to see that the simulator finds them |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod buffer;
pub mod command;
pub mod disk;
pub mod format;
pub mod group;
mod journal;
mod occupant;
pub mod output;
mod overlay;
pub mod pair;
pub mod request;
pub mod stream_state;
mod table;
pub mod testing;
pub mod units;
