//! The fuzz target `node_message`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("node_message");
