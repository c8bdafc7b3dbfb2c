//! The fuzz target `session`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("session");
