//! The tools around Holdfast: the link emulator, and what the demo and `ublk-admin` share.
#![forbid(unsafe_code)]

pub mod admin;
pub mod bench;
pub mod demo;
pub mod emulator;
pub mod nbd_client;
pub mod simulate;
pub mod sites;
pub mod units;
