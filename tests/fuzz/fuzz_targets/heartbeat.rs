//! The fuzz target `heartbeat`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("heartbeat");
