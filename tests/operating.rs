//! What an operator does in the life of a node, on real daemons: changing roles, deleting, asking twice.

use std::{
    fs, io,
    os::unix::{
        fs::{FileExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use system_tests::{
    client::Model,
    sites::{self, EXPORT, GROUP, Sites},
};
use tools::{
    emulator::LineSettings,
    nbd_client::{NbdClient, NbdError},
};

const AREA: u64 = 1024;
/// NBD's number for an export that is being closed.
const SHUTDOWN: u32 = 108;

fn alone() -> Sites {
    let sites = sites::new(LineSettings::default(), 1).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    sites
}

#[test]
fn data_outlives_the_daemon_without_a_peer() {
    let sites = alone();
    let mut model = Model::new(3);
    model.write(&mut sites.client(0).unwrap(), 500, AREA).unwrap();
    sites.kill(0).unwrap();
    sites.start(0).unwrap();
    model.check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
}

#[test]
fn roles_change_as_planned_without_force_and_nothing_is_lost() {
    let sites = sites::paired(LineSettings::default(), 2).unwrap();
    let mut model = Model::new(4);
    model.write(&mut sites.client(0).unwrap(), 300, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    let refusal = sites.refusal(1, &["promote", GROUP, "--latest"]);
    assert!(refusal.contains("The primary of group g is alive and connected"), "{refusal}");
    sites.ask(0, &["demote", GROUP]).unwrap();
    sites.ask(1, &["promote", GROUP, "--latest"]).unwrap();
    model.write(&mut sites.client(1).unwrap(), 300, AREA).unwrap();
    sites.wait_in_step(1).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    sites.ask(0, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
}

#[test]
fn a_pair_is_switched_again_and_again_and_nothing_is_lost() {
    let sites = sites::paired(LineSettings::default(), 8).unwrap();
    let mut model = Model::new(5);
    for round in 0..6 {
        let (from, to) = (round % 2, 1 - round % 2);
        // Not waited for: what is on the way goes over too.
        model.write(&mut sites.client(from).unwrap(), 300, AREA).unwrap();
        sites
            .wait(from, "a pair", |status| status["pair"]["state"] == "duplex" && status["connected"] == true)
            .unwrap();
        // With a lease and without.
        if round == 3 {
            sites.ask(1, &["fence", GROUP, "lease"]).unwrap();
        }
        let refusal = sites.refusal(to, &["pair", "switch", GROUP]);
        assert!(refusal.contains("Group g is secondary on this node; switch it on the primary"), "{refusal}");
        sites.ask(from, &["pair", "switch", GROUP]).unwrap();
        assert_eq!(sites.ask(to, &["status", GROUP]).unwrap()["role"], "primary");
        assert_eq!(sites.ask(from, &["status", GROUP]).unwrap()["role"], "secondary");
        model.check_exactly(&mut sites.client(to).unwrap(), AREA).unwrap();
    }
    assert_eq!(sites.ask(0, &["status", GROUP]).unwrap()["lease"]["millis"], 10_000);
    sites.ask(0, &["fence", GROUP, "none"]).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.kill(1).unwrap();
    let refusal = sites.refusal(0, &["pair", "switch", GROUP]);
    assert!(refusal.contains("Group g: its standby cannot be reached"), "{refusal}");
    model.write(&mut sites.client(0).unwrap(), 10, AREA).unwrap();
}

/// What it keeps in memory is older than what the other node has written.
#[test]
fn a_client_that_stays_while_another_node_is_primary_is_served_only_when_it_comes_anew() {
    let sites = sites::paired(LineSettings::default(), 10).unwrap();
    let mut stays = sites.client(0).unwrap();
    stays.write(0, &[1; 4096]).unwrap();
    sites.ask(0, &["pair", "switch", GROUP]).unwrap();
    sites.client(1).unwrap().write(0, &[2; 4096]).unwrap();
    sites.wait_in_step(1).unwrap();
    sites.ask(1, &["pair", "switch", GROUP]).unwrap();
    let mut comes = sites.client(0).unwrap();
    // Nothing was asked of it in between.
    for refusal in [stays.write(0, &[1; 4096]), stays.flush(), stays.read(0, 4096).map(drop)] {
        assert!(matches!(refusal, Err(NbdError::Request { code: SHUTDOWN, .. })), "{refusal:?}");
    }
    assert!(comes.read(0, 4096).unwrap() == [2; 4096]);
    comes.write(0, &[3; 4096]).unwrap();
}

#[test]
fn with_a_lease_two_nodes_never_serve_at_once() {
    let sites = sites::paired(LineSettings::default(), 9).unwrap();
    sites.ask(0, &["fence", GROUP, "lease", "--seconds", "1"]).unwrap();
    sites.wait(0, "a lease", |status| status["lease"]["left_millis"].as_u64() > Some(0)).unwrap();
    let mut model = Model::new(6);
    model.write(&mut sites.client(0).unwrap(), 100, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    // Neither node sees the other, and both are alive.
    sites.links.iter().for_each(|link| link.cut());
    sites.wait(0, "the lease to be over", |status| status["lease"]["left_millis"] == 0).unwrap();
    let mut client = sites.client(0).unwrap();
    // Not joined before it must have ended: a test that fails must not wait for a host that is frozen.
    let frozen = std::thread::spawn(move || client.write(0, &[9; 4096]));
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(refusal) = sites.ask(1, &["promote", GROUP, "--latest"]) {
        assert!(format!("{refusal:#}").contains("may still answer its hosts"), "{refusal:#}");
        assert!(Instant::now() < end, "{refusal:#}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    model.write(&mut sites.client(1).unwrap(), 100, AREA).unwrap();
    assert_eq!(sites.ask(0, &["status", GROUP]).unwrap()["role"], "primary");
    assert!(!frozen.is_finished(), "the former primary has answered");
    sites.links.iter().for_each(|link| link.heal());
    sites.wait(0, "the fence", |status| status["role"] == "fenced").unwrap();
    assert!(frozen.join().unwrap().is_err(), "the former primary took a write");
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    let refusal = sites.refusal(1, &["fence", GROUP, "lease", "--seconds", "0"]);
    assert!(refusal.contains("0 is not in 1..=3600"), "{refusal}");
}

#[test]
fn a_group_in_use_is_not_deleted_and_a_deleted_one_stays_away() {
    let sites = alone();
    let client = sites.client(0).unwrap();
    let refusal = sites.refusal(0, &["group", "delete", GROUP, "--yes"]);
    assert!(
        refusal.contains("Group g is in use by 1 client(s); disconnect NBD clients and detach devices first"),
        "{refusal}"
    );
    let refusal = sites.refusal(0, &["volume", "delete", GROUP, "v", "--yes"]);
    assert!(
        refusal.contains("Volume g/v is in use by 1 client(s); disconnect NBD clients and detach devices first"),
        "{refusal}"
    );
    drop(client);
    let deleted = sites.ask(0, &["group", "delete", GROUP, "--yes"]).unwrap();
    let done = deleted["done"].as_str().unwrap();
    let kept = done.split_once("its media are kept in ").unwrap().1;
    assert!(fs::metadata(kept).unwrap().is_dir(), "{done}");
    sites.kill(0).unwrap();
    sites.start(0).unwrap();
    assert_eq!(sites.ask(0, &["status"]).unwrap(), serde_json::json!([]));
    assert!(sites.client(0).is_err(), "a deleted group is served");
    // The name is free again.
    sites.create_volume().unwrap();
    Model::new(5).check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
    // One that is erased leaves nothing, and what was kept of another stays.
    let erase = ["group", "delete", GROUP, "--yes", "--erase"];
    let erased = sites.ask(0, &erase).unwrap();
    let folder = erased["done"].as_str().unwrap().split_once("; ").unwrap().1.split_once(" and what was").unwrap().0;
    assert!(!fs::exists(folder).unwrap(), "{erased}");
    let others: Vec<_> =
        fs::read_dir(Path::new(kept).parent().unwrap()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(others, [Path::new(kept)]);
}

#[test]
fn a_deleted_volume_gives_its_pool_back() {
    let sites = alone();
    sites.ask(0, &["volume", "create", GROUP, "w", "--size", "16MiB"]).unwrap();
    let deleted = sites.ask(0, &["volume", "delete", GROUP, "w", "--yes"]).unwrap();
    let pool = deleted["done"].as_str().unwrap().split_once("its pool is still at ").unwrap().1.to_owned();
    let create = ["volume", "create", GROUP, "w", "--size", "16MiB"];
    let refusal = sites.refusal(0, &create);
    assert!(refusal.contains("already holds the pool of group"), "{refusal}");
    fs::remove_file(pool).unwrap();
    sites.ask(0, &create).unwrap();
    let volumes = sites.ask(0, &["status", GROUP]).unwrap()["volumes"].clone();
    assert_eq!(volumes.as_array().unwrap().len(), 2);
    assert!(NbdClient::connect_unix(&sites.nodes[0].nbd_path(), EXPORT).is_ok());
}

#[test]
fn a_pair_made_anew_gets_the_volumes_that_came_in_between() {
    let sites = sites::paired(LineSettings::default(), 6).unwrap();
    let volume = ["volume", "create", GROUP, "w", "--size", "16MiB"];
    let refusal = sites.refusal(0, &volume);
    assert!(refusal.contains("delete the pair, add the volume, create the pair again"), "{refusal}");
    sites.ask(0, &["pair", "delete", GROUP]).unwrap();
    sites.ask(0, &volume).unwrap();
    let mut model = Model::new(7);
    model.write(&mut sites.client(0).unwrap(), 300, AREA).unwrap();
    sites.ask(0, &["pair", "create", GROUP, "--peer", "south", "--wait"]).unwrap();
    sites.wait_in_step(0).unwrap();
    assert_eq!(sites.ask(1, &["status", GROUP]).unwrap()["volumes"].as_array().unwrap().len(), 2);
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}

#[test]
fn another_group_of_the_same_name_is_not_overwritten() {
    let sites = sites::new(LineSettings::default(), 8).unwrap();
    sites.start(0).unwrap();
    sites.start(1).unwrap();
    sites.create_volume().unwrap();
    sites.ask(1, &["group", "create", GROUP, "--journal-size", "64MiB"]).unwrap();
    let refusal = sites.refusal(0, &["pair", "create", GROUP, "--peer", "south"]);
    assert!(refusal.contains("south refuses: it has another group g, with id "), "{refusal}");
    let refusal = sites.refusal(0, &["group", "create", ".."]);
    assert!(refusal.contains("a name has at least one character, no slash, no @ and no dot in front"), "{refusal}");
}

#[test]
fn an_application_is_held_while_a_restart_point_is_declared() {
    let sites = alone();
    let said = sites.workplace.folder().join("said");
    let say = |word: &str| format!("echo {word} >> '{}'", said.display());
    let heard = || fs::read_to_string(&said).unwrap_or_default();
    let point = || sites.ask(0, &["status", GROUP]).unwrap()["restart_point"]["generation"].clone();
    let (before, after) = (say("before"), say("after"));
    let hold = ["restart-point", GROUP, "--exec-before", &before, "--exec-after", &after];
    sites.ask(0, &hold).unwrap();
    assert_eq!(heard(), "before\nafter\n");
    let declared = point();

    let part = format!("{before}; exit 3");
    let refusal = sites.refusal(0, &["restart-point", GROUP, "--exec-before", &part, "--exec-after", &after]);
    assert!(refusal.contains("exit status 3; no restart point was declared"), "{refusal}");
    assert_eq!(heard(), "before\nafter\n".repeat(2), "what failed half-way is ended too");

    let endless = format!("{before}; tail -f /dev/null");
    let hold = ["restart-point", GROUP, "--hold-for", "1", "--exec-before", &endless, "--exec-after", &after];
    let refusal = sites.refusal(0, &hold);
    assert!(refusal.contains("not done after 1 s (--hold-for); no restart point was declared"), "{refusal}");
    assert_eq!(heard(), "before\nafter\n".repeat(3));

    let refusal = sites.refusal(0, &["restart-point", GROUP, "--freeze", "/there/is no 'such' place"]);
    assert!(refusal.contains("no restart point was declared"), "{refusal}");
    assert_eq!(point(), declared);
}

#[test]
fn a_volume_is_found_by_nbd_where_there_is_no_block_device() {
    let sites = sites::paired(LineSettings::default(), 7).unwrap();
    let attach = ["volume", "attach", GROUP, "v", "--nbd"];
    let uri = |answer: serde_json::Value| answer["uri"].as_str().unwrap().to_owned();
    let found = uri(sites.ask(0, &attach).unwrap());
    assert_eq!(found, format!("nbd+unix:///{EXPORT}?socket={}", sites.nodes[0].nbd_path().display()));
    let info = |uri: &str| Command::new("nbdinfo").args(["--size", uri]).output().unwrap();
    assert_eq!(info(&found).stdout, format!("{}\n", sites::SIZE).as_bytes());
    let refusal = sites.refusal(1, &attach);
    assert!(refusal.contains("a standby's volumes can be read with --read-only"), "{refusal}");
    let found = uri(sites.ask(1, &["volume", "attach", GROUP, "v", "--nbd", "--read-only"]).unwrap());
    assert!(info(&found).status.success());
}

#[test]
fn a_volume_grows_on_both_nodes_while_it_is_used() {
    const LARGER: u64 = 96 << 20;
    let sites = sites::paired(LineSettings::default(), 6).unwrap();
    let (mut model, mut client) = (Model::new(9), sites.client(0).unwrap());
    model.write(&mut client, 300, AREA).unwrap();
    let resize = |size: &'static str| ["volume", "resize", GROUP, "v", "--size", size];
    let refusal = sites.refusal(1, &resize("96MiB"));
    assert!(refusal.contains("the group is secondary on this node; resize it on the primary"), "{refusal}");
    let refusal = sites.refusal(0, &resize("32MiB"));
    assert!(refusal.contains("a volume can be made larger, not smaller"), "{refusal}");
    let done = sites.ask(0, &resize("96MiB")).unwrap();
    assert_eq!(done["size"], LARGER);
    sites.ask(0, &resize("96MiB")).unwrap();
    // Who was connected goes on with the size that it knows.
    model.write(&mut client, 300, AREA).unwrap();
    let mut other = sites.client(0).unwrap();
    assert_eq!(other.size(), LARGER);
    other.write(LARGER - 4096, &[7; 4096]).unwrap();
    // The pair meets again, and agrees.
    sites.wait_in_step(0).unwrap();
    sites.kill(1).unwrap();
    let refusal = sites.refusal(0, &resize("128MiB"));
    assert!(refusal.contains("the standby south cannot be reached, and must grow too; nothing was changed here"));
    sites.start(1).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.kill(0).unwrap();
    sites.ask(1, &["promote", GROUP, "--latest", "--force"]).unwrap();
    let mut other = sites.client(1).unwrap();
    assert_eq!(other.size(), LARGER);
    assert_eq!(other.read(LARGER - 4096, 4096).unwrap(), [7; 4096]);
    model.check_exactly(&mut other, AREA).unwrap();
}

#[test]
fn a_hold_ends_when_its_program_is_killed() {
    let folder = tools::demo::processes::Workplace::new("holdfast-test").unwrap();
    let (socket, said) = (folder.folder().join("socket"), folder.folder().join("said"));
    // A daemon that never answers.
    let _listener = UnixListener::bind(&socket).unwrap();
    let say = |word: &str| format!("echo {word} >> '{}'", said.display());
    let heard = |text: &str| {
        while fs::read_to_string(&said).unwrap_or_default() != text {
            std::thread::yield_now();
        }
    };
    let mut admin = Command::new(sites::programs().join("ublk-admin"))
        .arg("--socket")
        .arg(&socket)
        .args(["restart-point", GROUP, "--hold-for", "3600"])
        .args(["--exec-before", &say("before"), "--exec-after", &say("after")])
        .spawn()
        .unwrap();
    heard("before\n");
    admin.kill().unwrap();
    admin.wait().unwrap();
    heard("before\nafter\n");
}

#[test]
fn a_verification_finds_rot_on_the_standby_and_mends_it() {
    let sites = sites::paired(LineSettings::default(), 9).unwrap();
    let mut model = Model::new(6);
    let mut client = sites.client(0).unwrap();
    model.write(&mut client, 600, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    let verified = sites.ask(0, &["pair", "verify", GROUP]).unwrap();
    assert_eq!(verified["verified"]["differing_bytes"], 0, "{verified}");
    let refusal = sites.refusal(1, &["pair", "verify", GROUP]);
    assert!(
        refusal.contains("Group g: The group is secondary on this node; use the command on the primary"),
        "{refusal}"
    );
    // A block rots in the standby's pool.
    let place = (0..AREA).map(|block| block * 4096).find(|at| client.read(*at, 4096).unwrap()[..8] != [0; 8]).unwrap();
    let content = client.read(place, 4096).unwrap();
    sites.wait(1, "everything to be in the pool", |status| status["applied"] == status["head"]["seq"]).unwrap();
    let path = sites.ask(1, &["status", GROUP]).unwrap()["volumes"][0]["pool_path"].as_str().unwrap().to_owned();
    let pool = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut page = [0; 4096];
    for at in (0..pool.metadata().unwrap().len()).step_by(4096) {
        pool.read_exact_at(&mut page, at).unwrap();
        if page[..] == content[..] {
            pool.write_all_at(b"rotten", at).unwrap();
        }
    }
    let refusal = sites.refusal(0, &["pair", "verify", GROUP]);
    assert!(refusal.contains("The nodes of group g differ"), "{refusal}");
    let mended = sites.ask(0, &["pair", "verify", GROUP, "--mend"]).unwrap();
    let range = serde_json::json!([{ "volume": 1, "offset": place, "size": 4096 }]);
    assert_eq!((&mended["verified"]["differing"], &mended["verified"]["mending"]), (&range, &true.into()), "{mended}");
    sites.wait_in_step(0).unwrap();
    let verified = sites.ask(0, &["pair", "verify", GROUP]).unwrap();
    assert_eq!(verified["verified"]["differing_bytes"], 0, "{verified}");
}

/// Begins a pair whose first node runs these shell commands for each event.
fn pair_with_hook(sites: &Sites, commands: &str) {
    let (hook, config) = (sites.workplace.folder().join("hook"), sites.nodes[0].config_path());
    fs::write(&hook, format!("#!/bin/sh\n{commands}\n")).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let text = fs::read_to_string(&config).unwrap() + &format!("[events]\nhook = \"{}\"\n", hook.display());
    fs::write(&config, text).unwrap();
    (0..2).for_each(|node| sites.start(node).unwrap());
    sites.create_volume().unwrap();
    sites.pair().unwrap();
}

#[test]
fn events_are_kept_and_handed_to_a_program() {
    let sites = sites::new(LineSettings::default(), 11).unwrap();
    let told = sites.workplace.folder().join("told");
    pair_with_hook(&sites, &format!("echo \"$1: $HOLDFAST_EVENT\" >>{}", told.display()));
    let has = |text: &str| text.contains("Pair state changed") && text.contains("duplex");
    sites.wait(0, "the hook to be run", |_| fs::read_to_string(&told).is_ok_and(|text| has(&text))).unwrap();
    let events = sites.ask(0, &["events", GROUP]).unwrap();
    assert!(has(&events.to_string()) && !events.to_string().contains("Session up"), "{events}");
    // They outlive the daemon.
    sites.kill(0).unwrap();
    sites.start(0).unwrap();
    let events = sites.ask(0, &["events", "--count", "1000"]).unwrap();
    assert!(has(&events.to_string()) && events.to_string().contains("Session up"), "{events}");
    let refusal = sites.refusal(0, &["events", "nothing"]);
    assert!(refusal.contains("There is no group nothing on this node"), "{refusal}");
}

#[test]
fn events_are_kept_while_the_program_for_them_hangs() {
    let sites = sites::new(LineSettings::default(), 14).unwrap();
    // It ends with the folder.
    pair_with_hook(&sites, "while [ -e \"$0\" ]; do sleep 0.1; done");
    let is_kept = |text: &str| text.contains("Pair state changed") && text.contains("duplex");
    let events = || sites.ask(0, &["events", GROUP]).unwrap().to_string();
    sites.wait(0, "the events to be kept", |_| is_kept(&events())).unwrap();
}

#[test]
fn journals_grow_while_they_are_used() {
    let sites = sites::paired(LineSettings::default(), 13).unwrap();
    let mut model = Model::new(7);
    for round in 1..4 {
        model.write(&mut sites.client(0).unwrap(), 200, AREA).unwrap();
        let size = format!("{}MiB", 64 + 32 * round);
        for node in 0..2 {
            sites.ask(node, &["group", "resize", GROUP, "--journal-size", &size]).unwrap();
            let status = sites.ask(node, &["status", GROUP]).unwrap();
            assert_eq!(status["journal_size"], ((64 + 32 * round) << 20) - (128 << 10), "{status}");
        }
    }
    model.write(&mut sites.client(0).unwrap(), 200, AREA).unwrap();
    sites.kill(0).unwrap();
    sites.start(0).unwrap();
    model.check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    let refusal = sites.refusal(0, &["group", "resize", GROUP, "--journal-size", "64MiB"]);
    assert!(refusal.contains("Group g: The journal: it can be made larger, not smaller"), "{refusal}");
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}

#[test]
fn a_peer_is_alive_suspect_or_dead() {
    let sites = sites::paired(LineSettings::default(), 12).unwrap();
    let becomes = |presence: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = sites.ask(0, &["node", "status"]).unwrap();
            if status["peers"][0]["presence"] == presence {
                return;
            }
            assert!(Instant::now() < end, "never {presence}: {status}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    becomes("alive");
    sites.links.iter().for_each(|link| link.cut());
    becomes("suspect");
    becomes("dead");
    sites.links.iter().for_each(|link| link.heal());
    becomes("alive");
    let events = sites.ask(0, &["events", "--count", "1000"]).unwrap();
    let seen = events.as_array().unwrap().iter().filter_map(|event| event["presence"].as_str());
    let seen: Vec<&str> = seen.skip_while(|presence| *presence != "suspect").take(2).collect();
    assert_eq!(seen, ["suspect", "dead"], "{events}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let sites = alone();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(sites::programs().join("ublk-admin"));
    command.arg("--socket").arg(sites.nodes[0].control_path()).args(["status", GROUP]);
    let ended = command.stdout(writer).output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}

/// Also where nothing can be attached for the moment, as without the kernel's driver.
#[test]
fn what_is_to_be_attached_outlives_the_detaching_of_another_volume() {
    let sites = alone();
    for volume in ["w", "x"] {
        sites.ask(0, &["volume", "create", GROUP, volume, "--size", "16MiB"]).unwrap();
    }
    let path = sites.workplace.folder().join("north/state/groups/g/attached.json");
    let wish = |volume: &str| serde_json::json!({ "volume": volume, "read_only": false });
    fs::write(&path, serde_json::json!([wish("v"), wish("w"), wish("x")]).to_string()).unwrap();
    let kept = || serde_json::from_slice::<serde_json::Value>(&fs::read(&path).unwrap()).unwrap();
    sites.ask(0, &["volume", "detach", GROUP, "w"]).unwrap();
    assert_eq!(kept(), serde_json::json!([wish("v"), wish("x")]));
    sites.ask(0, &["volume", "delete", GROUP, "x", "--yes"]).unwrap();
    assert_eq!(kept(), serde_json::json!([wish("v")]));
}
