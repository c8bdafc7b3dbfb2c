//! The fuzz target `table_page`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("table_page");
