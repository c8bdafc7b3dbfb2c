//! The fuzz target `nbd_handshake`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("nbd_handshake");
