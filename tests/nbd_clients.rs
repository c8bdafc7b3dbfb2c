//! The NBD server against clients that others wrote: libnbd's tools, qemu's, fio. Each is in a Debian package that
//! tools/install-packages installs.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use system_tests::sites::{self, EXPORT, GROUP, Sites};
use tools::emulator::LineSettings;

/// How long something may take that takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);

fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    // fio leaves a file where it runs.
    let output = Command::new(program).args(arguments).current_dir(std::env::temp_dir()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; it is in Debian's package {package}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {told}{error}");
    told
}

fn alone() -> Sites {
    let sites = sites::new(LineSettings::default(), 1).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    sites
}

fn uri(sites: &Sites) -> String {
    format!("nbd+unix:///{EXPORT}?socket={}", sites.nodes[0].nbd_path().display())
}

fn pattern(path: &Path) {
    let bytes: Vec<u8> =
        (0..64u32 << 20).map(|at| if at >> 20 & 3 == 2 { 0 } else { (at >> 9) as u8 ^ at as u8 }).collect();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn libnbd_reads_the_size_copies_and_sees_the_holes() {
    let sites = alone();
    let (uri, folder) = (uri(&sites), sites.workplace.folder().to_owned());
    let told = run("nbdinfo", "libnbd-bin", &[&uri]);
    for fact in ["export-size: 67108864", "can_multi_conn: true", "can_fua: true", "block_size_minimum: 4096"] {
        assert!(told.contains(fact), "{told}");
    }
    let (image, copy) = (folder.join("image"), folder.join("copy"));
    pattern(&image);
    let (image, copy) = (image.display().to_string(), copy.display().to_string());
    run("nbdcopy", "libnbd-bin", &[&image, &uri]);
    run("nbdcopy", "libnbd-bin", &["--connections=4", &uri, &copy]);
    run("cmp", "diffutils", &[&image, &copy]);
    let map = run("nbdinfo", "libnbd-bin", &["--map", &uri]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    // More than one answer tells.
    sites.ask(0, &["volume", "create", GROUP, "large", "--size", "160MiB"]).unwrap();
    let large = uri.replace(EXPORT, &format!("{GROUP}/large"));
    let totals = run("nbdinfo", "libnbd-bin", &["--map", "--totals", &large]);
    assert!(totals.contains("167772160 100.0%"), "{totals}");
    let listed = run("nbdinfo", "libnbd-bin", &["--list", &uri]);
    assert!(listed.contains(EXPORT), "{listed}");
}

#[test]
fn nbdsh_gets_the_protocols_errors_and_the_server_goes_on() {
    let sites = alone();
    let script = r#"
import errno
def refused(f, number):
    try:
        f()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("accepted")
h.set_strict_mode(0)
refused(lambda: h.pread(512, 1), errno.EINVAL)
refused(lambda: h.pread(4096, h.get_size()), errno.EINVAL)
refused(lambda: h.pwrite(b"x" * 4096, h.get_size()), errno.ENOSPC)
refused(lambda: h.cache(4096, 0), errno.EINVAL)
h.pwrite(b"y" * 8192, 4096, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 12288, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 16384)
h.trim(4096, 20480, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(8192, 4096) == b"\0" * 4096 + b"y" * 4096
"#;
    // As /usr/bin/nbdsh does, but with Debian's Python, where Debian's module is.
    run("/usr/bin/python3", "python3-libnbd", &["-m", "nbd", "-u", &uri(&sites), "-c", script]);
}

#[test]
fn qemu_writes_verifies_and_compares() {
    let sites = alone();
    let uri = uri(&sites);
    let commands =
        ["write -P 0xab 1M 3M", "write -z 2M 64k", "discard 3M 64k", "flush", "read -P 0xab 1M 1M", "read -P 0 2M 64k"];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(&uri);
    let told = run("qemu-io", "qemu-utils", &arguments);
    assert!(!told.contains("failed"), "{told}");
    let image = sites.workplace.folder().join("image").display().to_string();
    pattern(Path::new(&image));
    run("qemu-img", "qemu-utils", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]);
    let told = run("qemu-img", "qemu-utils", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    assert!(told.contains("Images are identical"), "{told}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let sites = alone();
    let uri = format!("--uri={}", uri(&sites));
    let common = ["--name=v", "--ioengine=nbd", &uri, "--verify=crc32c", "--verify_fatal=1", "--output-format=terse"];
    for job in [
        ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m"],
        ["--rw=write", "--bs=1m", "--iodepth=4", "--size=64m"],
    ] {
        run("fio", "fio", &[&common[..], &job].concat());
    }
}

/// For want of a descriptor, say: the listener goes on all the same.
#[test]
fn a_client_that_could_not_be_let_in_is_let_in_later() {
    let sites = alone();
    let stat = sites.workplace.proc_file("north", "stat").unwrap();
    let id = stat.split(' ').next().unwrap();
    let limit = |count: &str| drop(run("prlimit", "util-linux", &["--pid", id, &format!("--nofile={count}:")]));
    // Its standard streams are three; it has more open already.
    limit("3");
    let mut early = UnixStream::connect(sites.nodes[0].nbd_path()).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = Instant::now() + PATIENCE;
    while !sites.workplace.log_tail("north").contains("An NBD client could not be let in") {
        assert!(Instant::now() < end, "nobody says so");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    limit("1024");
    let mut greeting = [0; 8];
    early.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");
}

/// It is told by the end of its connection; who is there already notices nothing.
#[test]
fn so_many_clients_are_let_in_and_no_more_until_one_goes() {
    let sites = alone();
    let greeted = || {
        let mut client = UnixStream::connect(sites.nodes[0].nbd_path()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = Vec::new();
        client.by_ref().take(8).read_to_end(&mut greeting).unwrap();
        (greeting == b"NBDMAGIC").then_some(client)
    };
    let mut works = sites.client(0).unwrap();
    let mut crowd: Vec<UnixStream> = std::iter::from_fn(greeted).collect();
    assert_eq!(crowd.len(), 255);
    assert!(sites.workplace.log_tail("north").contains("No more NBD clients are let in until one goes"));
    works.write(0, &[1; 4096]).unwrap();
    crowd.pop();
    let end = Instant::now() + PATIENCE;
    while greeted().is_none() {
        assert!(Instant::now() < end, "nobody is let in any more");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
