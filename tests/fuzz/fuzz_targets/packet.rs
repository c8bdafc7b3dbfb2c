//! The fuzz target `packet`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("packet");
