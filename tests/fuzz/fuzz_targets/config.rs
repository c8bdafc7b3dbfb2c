//! The fuzz target `config`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("config");
