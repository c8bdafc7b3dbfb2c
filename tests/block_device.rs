//! `/dev/ublkbN` under a real kernel: the tests are in `tests/vm/suite`, and run inside a guest.

use std::process::Command;
use system_tests::sites::programs;

/// Runs tests of the suite in one guest; all of them if none is named.
fn in_guest(back: &str, seconds: u32, tests: &str) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/vm");
    let output = Command::new(format!("{folder}/run"))
        .args(["--back", back, "--timeout", &seconds.to_string(), "--"])
        .arg(format!("{folder}/suite {} {tests}", programs().display()))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    assert!(said.contains(" tests, 0 failed"), "{said}");
    println!("{said}");
}

#[test]
fn under_user_mode_linux() {
    in_guest("uml", 600, "");
}

#[test]
fn the_core_of_it_under_debians_kernel() {
    let core = "parameters_are_truthful file_systems_keep_a_tree detached_under_load \
                a_mounted_file_system_notices_only_a_pause rot_is_found_by_checksums_below_the_pool_and_mended \
                the_standby_serves_the_file_system_of_the_restart_point";
    in_guest("qemu", 600, core);
}

#[test]
fn what_a_newer_driver_can_do() {
    in_guest(
        "qemu-new",
        600,
        "a_file_system_grows_with_its_volume a_daemon_replaced_in_good_order_is_missed_by_nobody \
         what_is_under_way_is_issued_again_or_fails",
    );
}
