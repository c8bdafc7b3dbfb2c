//! Fuzzing: whatever comes from a disk, a peer, a client or a file, nothing panics, nothing runs for ever and nothing takes memory
//! without bound.
//!
//! Each target is a plain function of an input's bytes. libFuzzer drives it through `fuzz_targets/`; an ordinary test
//! (`tests/smoke.rs`) runs it over its corpus and over mutations of it.
#![forbid(unsafe_code)]

pub mod carrier;
pub mod formats;
pub mod group;
pub mod input;
pub mod media;
pub mod mutator;
pub mod node;
pub mod session;
pub mod shell;

use std::{env, fs};

/// Something that takes hostile bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its file in `fuzz_targets/` and of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics if the bytes do harm.
    pub run: fn(&[u8]),
    /// How many mutations the smoke run tries.
    pub mutation_count: u32,
}

const fn target(name: &'static str, run: fn(&[u8]), mutation_count: u32) -> Target {
    Target { name, run, mutation_count }
}

/// All targets.
pub const TARGETS: [Target; 19] = [
    target("record", formats::record, 20_000),
    target("batch", formats::batch, 4_000),
    target("journal_superblock", formats::journal_superblock, 2_000),
    target("pool_superblock", formats::pool_superblock, 8_000),
    target("table_page", formats::table_page, 8_000),
    target("kept_page", formats::kept_page, 8_000),
    target("messages", formats::messages, 20_000),
    target("packet", carrier::packet, 20_000),
    target("heartbeat", carrier::heartbeat, 10_000),
    target("stream", carrier::stream, 4_000),
    target("nbd_handshake", shell::nbd_handshake, 20_000),
    target("nbd_request", shell::nbd_request, 20_000),
    target("node_message", shell::node_message, 20_000),
    target("api_request", shell::api_request, 20_000),
    target("config", shell::config, 4_000),
    target("identity", shell::identity, 10_000),
    target("session", session::session, 6_000),
    target("open", group::open, 6_000),
    target("group", group::group, 6_000),
];

/// The target of this name.
pub fn find(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target is called {name}"))
}

/// Runs a target over the files that the command line names: what a fuzzer found is looked at without one.
pub fn replay(name: &str) {
    let target = find(name);
    for path in env::args().skip(1) {
        let data = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        println!("{path}");
        (target.run)(&data);
    }
}

/// The main function of a target's program: libFuzzer's under `cargo fuzz`, else [`replay`].
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| ($crate::find($name).run)(data));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::replay($name);
        }
    };
}
