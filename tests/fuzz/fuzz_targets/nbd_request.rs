//! The fuzz target `nbd_request`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("nbd_request");
