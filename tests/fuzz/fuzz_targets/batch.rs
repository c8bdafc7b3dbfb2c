//! The fuzz target `batch`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("batch");
