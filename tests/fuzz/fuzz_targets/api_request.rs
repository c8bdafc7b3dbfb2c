//! The fuzz target `api_request`.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!("api_request");
