//! The fuzz target `pool_superblock`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("pool_superblock");
