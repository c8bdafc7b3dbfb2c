//! The fuzz target `identity`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("identity");
