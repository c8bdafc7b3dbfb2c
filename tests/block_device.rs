//! `/dev/ublkbN` under a real kernel: the tests are in `tests/vm/suite`, and run inside a guest.

use std::fs;
use std::process::{Command, Output};
use system_tests::sites::programs;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vm");

fn vm(program: &str, arguments: &[&str]) -> Output {
    Command::new(format!("{FOLDER}/{program}")).args(arguments).output().unwrap()
}

/// Runs tests of the suite in one guest; all of them if none is named.
fn in_guest(back: &str, seconds: u32, tests: &str) {
    let command = format!("{FOLDER}/suite {} {tests}", programs().display());
    let output = vm("run", &["--back", back, "--timeout", &seconds.to_string(), "--", &command]);
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

/// The first guest asks the second over the second wire; what the command says and its status come back.
#[test]
fn two_guests_are_joined_by_wires() {
    let command = "exec 9<>/dev/tcp/10.0.1.2/9; echo 'ip -br address show vec0; exit' >&9; cat <&9; exit 7";
    let output = vm("pair", &["--timeout", "60", "--", command]);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("10.0.0.2/24"), "{said}");
}

/// User Mode Linux has processes of its own, which would go on when only the first of them is ended.
#[test]
fn nothing_is_left_of_a_guest_that_takes_too_long() {
    let share = tempfile::tempdir().unwrap();
    let place = share.path().to_str().unwrap();
    let output = vm("run", &["--timeout", "3", "--share", place, "--", "exec tail -f /dev/null"]);
    assert_eq!(output.status.code(), Some(124), "{}", String::from_utf8_lossy(&output.stderr));
    let commands =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    let left = commands.filter(|command| String::from_utf8_lossy(command).contains(place)).count();
    assert_eq!(left, 0, "processes of the guest are left");
    assert_eq!(fs::read_dir(place).unwrap().count(), 0, "files of the guest are left");
}
