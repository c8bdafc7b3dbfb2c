//! The fuzz target `record`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("record");
