//! The fuzz target `journal_superblock`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("journal_superblock");
