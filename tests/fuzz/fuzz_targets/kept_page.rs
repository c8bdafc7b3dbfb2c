//! The fuzz target `kept_page`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("kept_page");
