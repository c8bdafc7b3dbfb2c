//! The fuzz target `open`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("open");
