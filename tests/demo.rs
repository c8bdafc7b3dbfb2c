//! The demo's story with real daemons, as a test: write over two bad links, cut one, declare a restart point, go on
//! writing, kill the primary, promote the standby, compare byte for byte.

use std::path::PathBuf;

use tools::demo::story::{self, DemoOptions};

/// Where cargo puts programs: one folder above the tests.
fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
    folder.to_owned()
}

#[test]
fn standby_serves_exactly_the_restart_point_after_the_primary_died() {
    // The story itself fails when a promise is broken; here is checked that the lines were bad and the coding worked.
    let options = DemoOptions { keep: false, content_bytes_max: 4 << 20, seed: 3, programs: programs() };
    let outcome = story::run(&options).expect("every promise is kept");
    let [first, second] = outcome.lines;
    assert!(first.a_to_b.lost_random > 0, "{first:?}");
    assert!(second.a_to_b.lost_random > 0 && second.a_to_b.lost_cut > 0, "{second:?}");
    assert!(outcome.stream.source_symbols > 0 && outcome.stream.repaired_symbols > 0, "{:?}", outcome.stream);
    assert!(outcome.taken_back_count > 0);
}
