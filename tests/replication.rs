//! The pair on real daemons: what the standby serves after the primary's death is what the client was told, whatever the
//! links do.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};
use system_tests::{
    client::Model,
    sites::{self, GROUP, Sites},
};
use tools::{
    emulator::{LineSettings, Probability, QueueLimit, Statistics},
    nbd_client::NbdClient,
};

const AREA: u64 = 4096;

fn line(loss_percent: u32) -> LineSettings {
    LineSettings {
        delay: Duration::from_millis(5),
        loss: Probability::from_percent(loss_percent as _),
        ..LineSettings::default()
    }
}

/// Writes, a restart point, more writes, the primary's death, promotion: the standby holds the restart point.
fn story(sites: &Sites, seed: u64, disturb: impl FnOnce(&Sites)) {
    let mut model = Model::new(seed);
    let mut client = sites.client(0).unwrap();
    model.write(&mut client, 600, AREA).unwrap();
    disturb(sites);
    model.write(&mut client, 600, AREA).unwrap();
    sites.ask(0, &["restart-point", GROUP, "--label", "kept", "--wait"]).unwrap();
    let kept = model.clone();
    model.write(&mut client, 300, AREA).unwrap();
    sites.kill(0).unwrap();
    let promoted = sites.ask(1, &["promote", GROUP]).unwrap();
    assert_eq!(promoted["promoted"]["generation"], 1, "{promoted}");
    kept.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}

#[test]
fn the_standby_holds_the_restart_point_without_loss() {
    story(&sites::paired(line(0), 1).unwrap(), 1, |_| {});
}

#[test]
fn the_standby_holds_the_restart_point_at_1_percent_loss() {
    story(&sites::paired(line(1), 2).unwrap(), 2, |_| {});
}

#[test]
fn the_standby_holds_the_restart_point_at_5_percent_loss() {
    story(&sites::paired(line(5), 3).unwrap(), 3, |_| {});
}

#[test]
fn the_standby_holds_the_restart_point_at_10_percent_loss() {
    story(&sites::paired(line(10), 4).unwrap(), 4, |_| {});
}

#[test]
fn a_delayed_standby_holds_the_restart_point() {
    let sites = sites::paired(line(1), 14).unwrap();
    sites.ask(1, &["policy", GROUP, "delayed"]).unwrap();
    let mut model = Model::new(14);
    model.write(&mut sites.client(0).unwrap(), 600, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    let status = sites.ask(1, &["status", GROUP]).unwrap();
    assert_eq!((&status["policy"], &status["applied"]), (&"delayed".into(), &0.into()), "{status}");
    // What waits can be read like everything else, and outlives the daemon.
    sites.kill(1).unwrap();
    sites.start(1).unwrap();
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    sites.wait(1, "a session", |status| status["connected"] == true).unwrap();
    story(&sites, 15, |_| {});
}

/// One writer goes round the volumes; whatever the restart point holds is a beginning of what it wrote.
#[test]
fn a_restart_point_spans_sixteen_volumes() {
    const COUNT: u64 = 16;
    let sites = sites::new(line(1), 16).unwrap();
    (0..2).for_each(|node| sites.start(node).unwrap());
    sites.ask(0, &["group", "create", GROUP, "--journal-size", "64MiB"]).unwrap();
    let names: Vec<String> = (0..COUNT).map(|number| format!("v{number}")).collect();
    for name in &names {
        sites.ask(0, &["volume", "create", GROUP, name, "--size", "16MiB"]).unwrap();
    }
    sites.pair().unwrap();
    // So that the writer does not run away from the line.
    sites.ask(0, &["level", GROUP, "remote"]).unwrap();
    let clients = |node: usize| -> Vec<NbdClient> {
        let path = sites.nodes[node].nbd_path();
        names.iter().map(|name| NbdClient::connect_unix(&path, &format!("{GROUP}/{name}")).unwrap()).collect()
    };
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (before, after) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut clients = clients(0);
            for number in 1.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let place = number % (COUNT * 64) / COUNT * 4096;
                clients[(number % COUNT) as usize].write(place, &number.to_le_bytes().repeat(512)).unwrap();
                answered.store(number, Ordering::SeqCst);
            }
        });
        let reached = |count| {
            while answered.load(Ordering::SeqCst) < count {
                thread::yield_now()
            }
        };
        reached(100);
        let before = answered.load(Ordering::SeqCst);
        sites.ask(0, &["restart-point", GROUP, "--wait"]).unwrap();
        let after = answered.load(Ordering::SeqCst);
        reached(after + 100);
        stop.store(true, Ordering::SeqCst);
        (before, after)
    });
    sites.kill(0).unwrap();
    sites.ask(1, &["promote", GROUP, "--force"]).unwrap();
    let mut found: Vec<u64> = Vec::new();
    for client in &mut clients(1) {
        let data = client.read(0, 64 * 4096).unwrap();
        found.extend(data.chunks(4096).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())));
    }
    let last = found.iter().copied().max().unwrap();
    assert!(
        (before..=after + 1).contains(&last),
        "the point holds write {last}, declared between {before} and {after}"
    );
    for (volume, blocks) in (0u64..).zip(found.chunks(64)) {
        for (place, value) in (0u64..).zip(blocks) {
            // The newest number up to the last that goes to this place.
            let at = place * COUNT + volume;
            let expected = if last < at { 0 } else { last - (last - at) % (COUNT * 64) };
            assert_eq!(*value, expected, "volume {volume}, block {place}, up to write {last}");
        }
    }
}

#[test]
fn either_link_alone_suffices() {
    let sites = sites::paired(line(1), 5).unwrap();
    sites.links[0].cut();
    story(&sites, 5, |sites| {
        sites.links[0].heal();
        sites.links[1].cut();
    });
}

#[test]
fn both_links_come_back() {
    story(&sites::paired(line(1), 6).unwrap(), 6, |sites| {
        sites.links.iter().for_each(|link| link.cut());
        let silent = |status: &serde_json::Value| {
            status["session"]["links"].as_array().is_some_and(|links| links.iter().all(|link| link["state"] == "down"))
        };
        sites.wait(0, "two dead links", silent).unwrap();
        sites.links.iter().for_each(|link| link.heal());
    });
}

#[test]
fn doubled_and_reordered_packets_change_nothing() {
    let settings = LineSettings {
        duplicate: Probability::from_percent(30 as _),
        reorder: Probability::from_percent(30 as _),
        reorder_by: Duration::from_millis(8),
        corrupt: Probability::from_percent(1 as _),
        ..line(1)
    };
    story(&sites::paired(settings, 7).unwrap(), 7, |_| {});
}

/// A queue that marks loses what takes no part in that.
#[test]
fn queues_that_mark_need_not_lose_anything() {
    let settings = LineSettings {
        rate_bits: Some(10_000_000),
        queue: QueueLimit::Time(Duration::from_secs(5)),
        codel: Some(Duration::from_millis(1)),
        ..LineSettings::default()
    };
    story(&sites::paired(settings, 16).unwrap(), 16, |sites| {
        for link in &sites.links {
            let is_marked = |way: &Statistics| way.a_to_b.marked > 0;
            assert!(link.wait_until(Duration::from_secs(60), is_marked), "{:?}", link.statistics());
            assert_eq!(link.statistics().a_to_b.lost(), 0);
        }
    });
}

#[test]
fn what_was_there_before_the_pair_is_copied_while_writes_go_on() {
    let sites = sites::new(line(1), 8).unwrap();
    sites.start(1).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    let mut model = Model::new(8);
    let mut client = sites.client(0).unwrap();
    model.write(&mut client, 2000, AREA).unwrap();
    sites.ask(0, &["pair", "create", GROUP, "--peer", "south"]).unwrap();
    model.write(&mut client, 2000, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    let mut standby = sites.client(1).unwrap();
    assert!(standby.is_read_only());
    model.check_exactly(&mut standby, AREA).unwrap();
    assert!(standby.write(0, &[1; 4096]).is_err());
}

#[test]
fn a_group_that_freezes_without_its_peer_says_so() {
    let sites = sites::paired(LineSettings::default(), 15).unwrap();
    sites.ask(0, &["level", GROUP, "remote", "--without-peer", "freeze"]).unwrap();
    let mut client = sites.client(0).unwrap();
    client.write(0, &[1; 4096]).unwrap();
    let status = sites.ask(0, &["status", GROUP]).unwrap();
    assert_eq!((&status["without_peer"], &status["writes_wait"]), (&"freeze".into(), &false.into()), "{status}");
    sites.kill(1).unwrap();
    sites.wait(0, "a freeze", |status| status["writes_wait"] == true).unwrap();
    let frozen = std::thread::spawn(move || client.write(0, &[2; 4096]));
    let text = sites.nodes[0].words(&["status", GROUP]).unwrap();
    assert!(text.contains("level       remote, without the peer: freeze\n"), "{text}");
    assert!(text.contains("WRITES WAIT for the peer; to go on without it: ublk-admin level g remote"), "{text}");
    let told = |what: &str| sites.ask(0, &["events", GROUP]).unwrap().to_string().contains(what);
    sites.wait(0, "an event", |_| told("The peer is not there; writes wait for it")).unwrap();
    sites.start(1).unwrap();
    frozen.join().unwrap().unwrap();
    sites.wait(0, "an end", |status| status["writes_wait"] == false).unwrap();
    sites.wait(0, "an event", |_| told("Writes do not wait for an absent peer any more")).unwrap();
}

#[test]
fn nothing_answered_at_level_remote_is_lost_by_promotion() {
    let sites = sites::paired(line(1), 9).unwrap();
    sites.ask(0, &["level", GROUP, "remote"]).unwrap();
    let mut model = Model::new(9);
    model.write(&mut sites.client(0).unwrap(), 400, AREA).unwrap();
    sites.kill(0).unwrap();
    sites.ask(1, &["promote", GROUP, "--latest"]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}

#[test]
fn a_former_primary_that_comes_back_serves_nothing_and_becomes_a_standby_on_command() {
    let sites = sites::paired(line(1), 10).unwrap();
    let mut model = Model::new(10);
    model.write(&mut sites.client(0).unwrap(), 300, AREA).unwrap();
    sites.ask(0, &["restart-point", GROUP, "--wait"]).unwrap();
    let mut kept = model.clone();
    model.write(&mut sites.client(0).unwrap(), 300, AREA).unwrap();
    sites.kill(0).unwrap();
    sites.ask(1, &["promote", GROUP]).unwrap();
    kept.write(&mut sites.client(1).unwrap(), 300, AREA).unwrap();
    sites.start(0).unwrap();
    sites.wait(0, "a fenced former primary", |status| status["role"] == "fenced").unwrap();
    assert!(sites.client(0).is_err(), "a fenced node exports nothing");
    // What it wrote past the fork is kept, and can be looked at.
    let fork = sites.ask(0, &["status", GROUP]).unwrap()["fork"].clone();
    assert!(fork["name"].as_str().unwrap().starts_with("fork-1."), "{fork}");
    sites.ask(0, &["volume", "export", GROUP, "--read-only"]).unwrap();
    let mut client = sites.client(0).unwrap();
    assert!(client.is_read_only());
    model.check_exactly(&mut client, AREA).unwrap();
    drop(client);
    sites.ask(0, &["demote", GROUP, "--discard-fork"]).unwrap();
    sites.wait_in_step(1).unwrap();
    sites.ask(0, &["volume", "export", GROUP, "--read-only"]).unwrap();
    kept.check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
    kept.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}

#[test]
fn a_full_journal_suspends_the_pair_and_the_bitmap_brings_it_back() {
    let sites = sites::paired(line(1), 11).unwrap();
    sites.kill(1).unwrap();
    let mut model = Model::new(11);
    let mut client = sites.client(0).unwrap();
    // The journal has 64 MiB; much more is written, and service goes on.
    for _ in 0..6 {
        model.write(&mut client, 4096, AREA).unwrap();
    }
    sites.wait(0, "a suspended pair", |status| status["pair"]["cause"] == "journal-full").unwrap();
    sites.start(1).unwrap();
    model.write(&mut client, 500, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}
