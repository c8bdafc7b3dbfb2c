//! The fuzz target `group`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("group");
