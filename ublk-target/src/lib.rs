//! The shell: it owns the core and carries out what it asks, and it faces hosts and operators.
//!
//! Two threads: one with an io_uring runtime for groups, media and NBD; one with an ordinary runtime for the carrier and
//! the control socket.

pub mod actor;
pub mod api;
pub mod buffers;
pub mod busy_poll;
pub mod client;
pub mod config;
pub mod control;
pub mod daemon;
pub mod events;
pub mod exports;
mod group_events;
pub mod hook;
pub mod key;
pub mod legacy;
pub mod lock;
pub mod media;
pub mod nbd;
pub mod node;
pub mod peer;
pub mod preparation;
pub mod presence;
pub mod provision;
pub mod ublk;
pub mod unix_socket;
