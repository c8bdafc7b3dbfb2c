//! What goes wrong by hand, and what is said then: which thing, why, and the way out.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::{
        fs::{FileExt, symlink},
        net::UnixStream,
    },
    process::Command,
    time::{Duration, Instant},
};
use system_tests::sites::{self, GROUP, Sites, programs};
use tools::{
    demo::node::{LinkEnd, free_port},
    emulator::LineSettings,
};

fn alone() -> Sites {
    let sites = sites::new(LineSettings::default(), 1).unwrap();
    sites.start(0).unwrap();
    sites
}

/// What a daemon says that does not start.
fn last_words(sites: &Sites, node: usize) -> String {
    let output = Command::new(programs().join("holdfastd"))
        .arg("--config")
        .arg(sites.nodes[node].config_path())
        .output()
        .unwrap();
    assert!(!output.status.success(), "the daemon started");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn state(sites: &Sites, file: &str) -> std::path::PathBuf {
    sites.workplace.folder().join("north/state/groups/g").join(file)
}

/// Stops the node, damages its journal, and tells what the node says when it starts.
fn after(sites: &Sites, file: &str, damage: impl FnOnce(&fs::File)) -> String {
    sites.kill(0).unwrap();
    damage(&OpenOptions::new().write(true).open(state(sites, file)).unwrap());
    sites.start(0).unwrap();
    sites.workplace.log_tail("north")
}

#[track_caller]
fn says(text: &str, wanted: &str) {
    assert!(text.contains(wanted), "{text}\ndoes not say: {wanted}");
}

#[test]
fn a_volume_larger_than_its_medium() {
    let sites = alone();
    sites.ask(0, &["group", "create", GROUP, "--journal-size", "64MiB"]).unwrap();
    let small = sites.workplace.folder().join("small");
    fs::File::create(&small).unwrap().set_len(32 << 20).unwrap();
    let small = small.display().to_string();
    let refusal = sites.refusal(0, &["volume", "create", GROUP, "v", "--size", "1GiB", "--pool", &small]);
    says(&refusal, "A volume of 1073741824 bytes needs a pool of at least");
    says(&refusal, "choose a smaller volume or a larger medium");
    says(&sites.refusal(0, &["volume", "create", GROUP, "v", "--size", "1MiB"]), "not between 16 MiB and 16 TiB");
}

#[test]
fn a_medium_that_belongs_to_another_group() {
    let sites = alone();
    sites.create_volume().unwrap();
    sites.ask(0, &["group", "create", "other", "--journal-size", "64MiB"]).unwrap();
    let pool = state(&sites, "v.pool").display().to_string();
    sites.kill(0).unwrap();
    sites.start(0).unwrap();
    let journal = state(&sites, "journal").display().to_string();
    let refusal = sites.refusal(0, &["group", "create", "third", "--journal", &journal]);
    says(&refusal, "is in use by");
    let refusal = sites.refusal(0, &["volume", "create", "other", "w", "--size", "64MiB", "--pool", &pool]);
    says(&refusal, "is in use by");
    sites.ask(0, &["group", "delete", GROUP, "--yes"]).unwrap();
    let kept = fs::read_dir(sites.workplace.folder().join("north/state/deleted")).unwrap();
    let kept = kept.map(|entry| entry.unwrap().path()).next().unwrap();
    let journal = kept.join("journal").display().to_string();
    let refusal = sites.refusal(0, &["group", "create", "third", "--journal", &journal]);
    says(&refusal, "already holds the journal of group g");
}

/// The media of a group that was deleted are held by nobody.
#[test]
fn a_medium_that_was_something_else() {
    let sites = alone();
    sites.create_volume().unwrap();
    sites.ask(0, &["group", "create", "other", "--journal-size", "64MiB"]).unwrap();
    sites.ask(0, &["group", "delete", GROUP, "--yes"]).unwrap();
    let kept = fs::read_dir(sites.workplace.folder().join("north/state/deleted")).unwrap();
    let kept = kept.map(|entry| entry.unwrap().path()).next().unwrap();
    let [journal, pool] = ["journal", "v.pool"].map(|file| kept.join(file).display().to_string());
    let refusal = sites.refusal(0, &["group", "create", "third", "--journal", &pool]);
    says(&refusal, "The medium already holds the pool of group");
    let refusal = sites.refusal(0, &["volume", "create", "other", "w", "--size", "16MiB", "--pool", &journal]);
    says(&refusal, "The medium already holds the journal of group g");
    // Put back where it was the group is there again.
    sites.kill(0).unwrap();
    fs::rename(kept, sites.workplace.folder().join("north/state/groups/g")).unwrap();
    sites.start(0).unwrap();
    sites.client(0).unwrap();
}

/// An image whose file system is whole afterwards, and what becomes of it when it is to be overwritten.
#[test]
fn a_medium_that_is_somebody_elses() {
    let sites = alone();
    sites.ask(0, &["group", "create", GROUP, "--journal-size", "64MiB"]).unwrap();
    let image = sites.workplace.folder().join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |command: &mut Command| assert!(command.arg(&image).output().unwrap().status.success(), "{command:?}");
    run(Command::new("mke2fs").args(["-q", "-t", "ext4"]));
    let place = image.display().to_string();
    let group = ["group", "create", "other", "--journal", &place];
    let volume = ["volume", "create", GROUP, "v", "--size", "16MiB", "--pool", &place];
    for create in [&group[..], &volume[..]] {
        let refusal = sites.refusal(0, create);
        says(&refusal, &format!("{place}: The medium already holds something that is not Holdfast's: its byte 10"));
        says(&refusal, "erase its first and last MiB if that is no longer wanted, or say --overwrite");
        run(Command::new("e2fsck").arg("-fn"));
    }
    sites.ask(0, &[&volume[..], &["--overwrite"]].concat()).unwrap();
    sites.client(0).unwrap();
    // What it is now is not overwritten even so.
    sites.ask(0, &["volume", "delete", GROUP, "v", "--yes"]).unwrap();
    for create in [&group[..], &volume[..]] {
        let refusal = sites.refusal(0, &[create, &["--overwrite"]].concat());
        says(&refusal, "The medium already holds the pool of group");
        says(&refusal, "erase its first and last MiB if that is no longer wanted");
    }
}

#[test]
fn a_group_that_cannot_be_moved_to_those_deleted() {
    // Another file system than that of the node's directory.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let sites = alone();
    let north = sites.workplace.folder().join("north/state");
    let delete = ["group", "delete", GROUP, "--yes"];
    // Into itself nothing can be moved, whoever does it.
    sites.create_volume().unwrap();
    fs::create_dir(north.join("groups/g/inside")).unwrap();
    symlink(north.join("groups/g/inside"), north.join("deleted")).unwrap();
    says(&sites.refusal(0, &delete), "group g is not deleted");
    sites.client(0).unwrap().write(0, &[7; 4096]).unwrap();
    fs::remove_file(north.join("deleted")).unwrap();
    sites.ask(0, &delete).unwrap();

    sites.kill(0).unwrap();
    fs::rename(north.join("groups"), north.join("former")).unwrap();
    symlink(elsewhere.path(), north.join("groups")).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    let refusal = sites.refusal(0, &delete);
    says(&refusal, "which is on another file system; remove it with: ublk-admin group delete g --yes --erase");
    sites.client(0).unwrap().write(0, &[7; 4096]).unwrap();
    let erase = ["group", "delete", GROUP, "--yes", "--erase"];
    let erased = sites.ask(0, &erase).unwrap();
    assert!(!erased["done"].as_str().unwrap().contains("untouched"), "{erased}");
    assert!(fs::read_dir(elsewhere.path()).unwrap().next().is_none(), "something is left");
}

#[test]
fn a_folder_that_is_not_called_as_its_group() {
    let sites = alone();
    sites.create_volume().unwrap();
    sites.ask(0, &["group", "create", "other", "--journal-size", "64MiB"]).unwrap();
    sites.kill(0).unwrap();
    let groups = sites.workplace.folder().join("north/state/groups");
    // As if it had been put back beside one that was made since.
    fs::rename(groups.join(GROUP), groups.join("h")).unwrap();
    sites.start(0).unwrap();
    let words = sites.workplace.log_tail("north");
    says(&words, "Group not opened");
    says(&words, "it is the journal of group g, and the folder is not called so");
    says(&sites.refusal(0, &["status", GROUP]), "There is no group g on this node");
    sites.ask(0, &["status", "other"]).unwrap();
}

#[test]
fn a_journal_that_is_not_there_yet() {
    let sites = alone();
    let folder = sites.workplace.folder();
    let [journal, elsewhere] = ["j", "elsewhere"].map(|name| folder.join(name));
    let place = journal.display().to_string();
    sites.ask(0, &["group", "create", GROUP, "--journal-size", "64MiB", "--journal", &place]).unwrap();
    sites.kill(0).unwrap();
    fs::rename(&journal, &elsewhere).unwrap();
    sites.start(0).unwrap();
    let words = sites.workplace.log_tail("north");
    says(&words, "Group not opened");
    says(&words, "groups/g/journal: No such file");
    sites.kill(0).unwrap();
    fs::rename(&elsewhere, &journal).unwrap();
    sites.start(0).unwrap();
    sites.ask(0, &["status", GROUP]).unwrap();
}

/// All that asks for it says why, and it is opened without a restart, which would stop the other groups.
#[test]
fn a_pool_that_is_not_there_yet() {
    let sites = sites::paired(LineSettings::default(), 4).unwrap();
    sites.ask(0, &["group", "create", "other", "--journal-size", "64MiB"]).unwrap();
    let (pool, elsewhere) = (state(&sites, "v.pool"), sites.workplace.folder().join("elsewhere"));
    sites.kill(0).unwrap();
    fs::rename(&pool, &elsewhere).unwrap();
    sites.start(0).unwrap();
    let why = format!("{}: No such file", pool.display());
    let tells = |answer: &serde_json::Value, why: &str| {
        let unopened = answer.as_array().unwrap().iter().find(|group| group["group"] == GROUP).unwrap();
        says(unopened["not_opened"].as_str().unwrap(), why);
    };
    let all = sites.ask(0, &["status"]).unwrap();
    tells(&all, &why);
    assert!(
        all.as_array().unwrap().iter().any(|group| group["group"] == "other" && group["role"] == "primary"),
        "{all}"
    );
    tells(&sites.ask(0, &["node", "status"]).unwrap()["not_opened"], &why);
    for question in [&["status"][..], &["node", "status"]] {
        says(&sites.nodes[0].words(question).unwrap(), &format!("g: NOT OPENED: Cannot open {}", pool.display()));
    }
    for command in [&["status", GROUP][..], &["promote", GROUP], &["volume", "list", GROUP]] {
        let refusal = sites.refusal(0, command);
        says(&refusal, &format!("Group g is NOT OPENED: Cannot open {}", pool.display()));
        says(&refusal, "mend that, then: ublk-admin group reopen g");
    }
    let events = sites.ask(0, &["events", GROUP]).unwrap();
    let event = events.as_array().unwrap().iter().find(|event| event["event"] == "Group not opened").unwrap();
    says(event["reason"].as_str().unwrap(), &why);

    says(
        &sites.refusal(0, &["group", "reopen", GROUP]),
        &format!("Group g is not opened: Cannot open {}", pool.display()),
    );
    fs::rename(&elsewhere, &pool).unwrap();
    sites.ask(0, &["group", "reopen", GROUP]).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.client(0).unwrap().write(0, &[7; 4096]).unwrap();
    sites.wait_in_step(0).unwrap();
    assert_eq!(sites.ask(0, &["node", "status"]).unwrap()["not_opened"], serde_json::json!([]));

    // One whose file system is not mounted is missed, and none is made in its place.
    let (folder, away) = (pool.parent().unwrap(), sites.workplace.folder().join("away"));
    sites.kill(0).unwrap();
    fs::rename(folder, &away).unwrap();
    fs::create_dir(folder).unwrap();
    sites.start(0).unwrap();
    let why = format!("{} has no journal: mount", folder.display());
    tells(&sites.ask(0, &["node", "status"]).unwrap()["not_opened"], &why);
    says(&sites.refusal(0, &["group", "create", GROUP, "--journal-size", "64MiB"]), &why);
    says(&sites.refusal(0, &["group", "reopen", GROUP]), &why);
    fs::remove_dir(folder).unwrap();
    fs::rename(&away, folder).unwrap();
    sites.ask(0, &["group", "reopen", GROUP]).unwrap();
    sites.wait_in_step(0).unwrap();

    // One that was moved away is not.
    sites.kill(0).unwrap();
    fs::rename(&pool, &elsewhere).unwrap();
    sites.start(0).unwrap();
    fs::rename(folder, away).unwrap();
    says(&sites.refusal(0, &["group", "reopen", GROUP]), "There is no group g on this node");
    assert_eq!(sites.ask(0, &["node", "status"]).unwrap()["not_opened"], serde_json::json!([]));
}

#[test]
fn a_superblock_of_a_newer_version() {
    let sites = alone();
    sites.create_volume().unwrap();
    let words = after(&sites, "journal", |file| file.write_all_at(&[6, 0], (64 << 10) + 12).unwrap());
    says(&words, "The journal superblock has format version 6, but this program reads versions up to 5");
}

#[test]
fn both_superblocks_torn() {
    let sites = alone();
    sites.create_volume().unwrap();
    let words = after(&sites, "journal", |file| {
        [0, 64 << 10].iter().for_each(|slot| file.write_all_at(&[0xff; 512], slot + 1024).unwrap());
    });
    says(&words, "The journal superblock has checksum");
}

#[test]
fn one_superblock_torn_is_no_harm() {
    let sites = alone();
    sites.create_volume().unwrap();
    let status = sites.ask(0, &["status", GROUP]).unwrap();
    let words = after(&sites, "v.pool", |file| file.write_all_at(&[0xff; 512], 1024).unwrap());
    says(&words, "Group opened");
    assert_eq!(sites.ask(0, &["status", GROUP]).unwrap()["id"], status["id"]);
}

#[test]
fn a_link_whose_peer_has_another_key() {
    let sites = sites::new(LineSettings::default(), 5).unwrap();
    // The south is there and knows the north, but the north expects somebody else at that address.
    let stranger = format!("holdfast-ed25519:{}", "ab".repeat(32));
    let path = sites.nodes[0].config_path();
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace(&sites.nodes[1].key().unwrap(), &stranger)).unwrap();
    sites.start(1).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    says(&sites.refusal(0, &["pair", "create", GROUP, "--peer", "south"]), "There is no session to south");
    says(&sites.refusal(0, &["pair", "create", GROUP, "--peer", "west"]), "There is no peer west in the configuration");
    // Whichever of the two dials, one of them says why.
    let logs = || ["north", "south"].map(|node| sites.workplace.log_tail(node)).concat();
    let end = Instant::now() + Duration::from_secs(60);
    while !logs().contains("Link not connected") {
        assert!(Instant::now() < end, "nobody says why:\n{}", logs());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    for node in 0..2 {
        let status = sites.ask(node, &["node", "status"]).unwrap();
        assert_eq!(status["peers"][0]["session"]["up"], false, "{status}");
    }
}

#[test]
fn a_restart_point_that_the_standby_cannot_keep() {
    let sites = sites::paired(LineSettings::default(), 9).unwrap();
    sites.ask(0, &["pair", "suspend", GROUP]).unwrap();
    let before = sites.ask(0, &["status", GROUP]).unwrap()["restart_point"].clone();
    let refusal = sites.refusal(0, &["restart-point", GROUP, "--wait"]);
    says(&refusal, "The pair of group g is suspended (command): its standby gets no restart point");
    assert_eq!(sites.ask(0, &["status", GROUP]).unwrap()["restart_point"], before, "nothing was declared");
    sites.ask(0, &["restart-point", GROUP]).unwrap();
    // Resumed, but its standby is away: that will pass, and the point is declared when it has.
    sites.kill(1).unwrap();
    sites.ask(0, &["pair", "resume", GROUP]).unwrap();
    says(
        &sites.refusal(0, &["restart-point", GROUP, "--wait", "--timeout", "0"]),
        "Waited 0 s for the standby to have the restart point; the pair is suspended",
    );
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| sites.ask(0, &["restart-point", GROUP, "--wait"]));
        sites.start(1).unwrap();
        let generation = waits.join().unwrap().unwrap()["restart-point"]["generation"].clone();
        assert_eq!(sites.ask(1, &["status", GROUP]).unwrap()["restart_point"]["generation"], generation);
    });
}

#[test]
fn a_port_in_use() {
    let sites = sites::new(LineSettings::default(), 6).unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let local = taken.local_addr().unwrap();
    let key = sites.nodes[1].key().unwrap();
    sites.nodes[0]
        .configure("south", &key, &[LinkEnd { name: "one".into(), local, remote: free_port().unwrap() }])
        .unwrap();
    says(&last_words(&sites, 0), &format!("Link one: cannot use the local address {local}"));
}

/// A machine that has just started may not have it yet.
#[test]
fn an_address_that_is_not_there() {
    let sites = sites::new(LineSettings::default(), 12).unwrap();
    let key = sites.nodes[1].key().unwrap();
    let local = "192.0.2.1:7001".parse().unwrap();
    sites.nodes[0]
        .configure("south", &key, &[LinkEnd { name: "one".into(), local, remote: free_port().unwrap() }])
        .unwrap();
    let path = sites.nodes[0].config_path();
    let third = "[peer.heartbeat]\nlocal = \"192.0.2.1:7002\"\nremote = \"192.0.2.2:7002\"\n";
    fs::write(&path, fs::read_to_string(&path).unwrap() + third).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    sites.client(0).unwrap().write(0, &[7; 4096]).unwrap();
    for words in
        ["Link one: cannot use the local address 192.0.2.1:7001", "No heartbeats until this machine has the address"]
    {
        sites.wait(0, words, |_| sites.workplace.log_tail("north").contains(words)).unwrap();
    }
}

#[test]
fn a_second_daemon_on_the_same_media() {
    let sites = alone();
    says(&last_words(&sites, 0), "stop it if it is a second holdfastd");
    // With a directory and sockets of its own it gets as far as the media.
    sites.create_volume().unwrap();
    let folder = sites.workplace.folder().join("south/state/groups/g");
    fs::create_dir_all(&folder).unwrap();
    let journal = folder.join("journal");
    symlink(state(&sites, "journal"), &journal).unwrap();
    sites.start(1).unwrap();
    says(&sites.workplace.log_tail("south"), &format!("{} is in use by ", journal.display()));
    says(&sites.refusal(1, &["status", GROUP]), &format!("Group g is NOT OPENED: {} is in use by", journal.display()));
}

#[test]
fn a_promotion_that_makes_no_sense() {
    let sites = sites::paired(LineSettings::default(), 7).unwrap();
    says(
        &sites.refusal(0, &["promote", GROUP, "--force"]),
        "Group g: The group is primary on this node; there is nothing to promote",
    );
    says(&sites.refusal(1, &["promote", GROUP]), "is alive and connected; demote it first, or use --force");
    says(&sites.refusal(1, &["promote", GROUP, "--force"]), "No restart point of the group's history has arrived");
    says(
        &sites.refusal(1, &["promote", GROUP, "--force", "--generation", "7"]),
        "Generation 7 is not kept on this node; none is",
    );
    says(&sites.refusal(1, &["restart-point", GROUP]), "declare restart points on the primary");
    says(&sites.refusal(1, &["status", "nothing"]), "There is no group nothing on this node");
}

#[test]
fn a_configuration_with_an_unknown_key() {
    let sites = sites::new(LineSettings::default(), 8).unwrap();
    let path = sites.nodes[0].config_path();
    fs::write(&path, "[node]\nname = \"a\"\n\n[media]\nbufered = true\n").unwrap();
    let words = last_words(&sites, 0);
    says(&words, &format!("{}: ", path.display()));
    says(&words, "line 5");
    says(&words, "unknown field `bufered`");
}

#[test]
fn a_configuration_whose_hook_is_not_there() {
    let sites = sites::new(LineSettings::default(), 12).unwrap();
    let path = sites.nodes[0].config_path();
    let text = fs::read_to_string(&path).unwrap() + "[events]\nhook = \"/no/such/program\"\n";
    fs::write(&path, text).unwrap();
    says(&last_words(&sites, 0), "events.hook: /no/such/program cannot be run: ");
}

/// As a program without `ublk-admin` asks, with no content type.
#[test]
fn a_request_that_is_none() {
    let sites = alone();
    let ask = |body: &str| {
        let mut socket = UnixStream::connect(sites.nodes[0].control_path()).unwrap();
        let head = format!("host: node\r\nconnection: close\r\ncontent-length: {}", body.len());
        socket.write_all(format!("POST /v1/request HTTP/1.1\r\n{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    says(&ask(r#"{"command":"status"}"#), "HTTP/1.1 200 ");
    let refused = [
        (r#"{"command":"status","grup":"nix"}"#, "unknown field `grup`, expected `group`"),
        (r#"{"command":"node-status","group":"g"}"#, "unknown field `group`"),
        (r#"{"command":"statsu"}"#, "unknown variant `statsu`"),
        (r#"{"command":"pair-delete"}"#, "missing field `group`"),
        ("status", "This is no request: expected value at line 1 column 1"),
    ];
    for (body, reason) in refused {
        let answer = ask(body);
        says(&answer, "HTTP/1.1 400 ");
        says(&answer, r#"{"error":"This is no request: "#);
        says(&answer, reason);
    }
}
