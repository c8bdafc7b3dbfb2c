//! Automatic promotion on real daemons, with and without a third path for heartbeats.

use std::fs;
use system_tests::{
    client::Model,
    sites::{self, GROUP, Sites},
};
use tools::{demo::node::free_port, emulator::LineSettings};

const AREA: u64 = 512;

/// Both nodes fenced by a lease of a second, and ready to take over.
fn ready(sites: &Sites) {
    for node in 0..2 {
        let refusal = sites.refusal(node, &["auto-promote", GROUP, "on"]);
        assert!(refusal.contains("Group g: Fencing by lease is off"), "{refusal}");
        let refusal = sites.refusal(node, &["auto-promote", GROUP, "on", "--after", "2d"]);
        assert!(refusal.contains("Group g: a silence of 172800 s is not between 1 and 86400 s"), "{refusal}");
    }
    sites.ask(0, &["fence", GROUP, "lease", "--seconds", "1"]).unwrap();
    sites.wait(0, "a lease", |status| status["lease"]["left_millis"].as_u64() > Some(0)).unwrap();
    for node in 0..2 {
        sites.ask(node, &["auto-promote", GROUP, "on", "--after", "2s", "--latest"]).unwrap();
    }
    sites.wait(1, "the standby to be armed", |status| status["takeover"]["is_armed"] == true).unwrap();
}

#[test]
fn a_standby_takes_over_and_the_other_serves_no_more() {
    let sites = sites::paired(LineSettings::default(), 41).unwrap();
    ready(&sites);
    let mut model = Model::new(41);
    model.write(&mut sites.client(0).unwrap(), 200, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.links.iter().for_each(|link| link.cut());
    // Nobody says anything.
    sites.wait(1, "the takeover", |status| status["role"] == "primary").unwrap();
    let mut client = sites.client(0).unwrap();
    let frozen = std::thread::spawn(move || client.write(0, &[9; 4096]));
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    model.write(&mut sites.client(1).unwrap(), 200, AREA).unwrap();
    assert!(!frozen.is_finished(), "the former primary has answered");
    sites.links.iter().for_each(|link| link.heal());
    sites.wait(0, "the fence", |status| status["role"] == "fenced").unwrap();
    assert!(frozen.join().unwrap().is_err(), "the former primary took a write");
    sites.ask(0, &["demote", GROUP]).unwrap();
    sites.wait_in_step(1).unwrap();
    let events = sites.ask(1, &["events", GROUP]).unwrap().to_string();
    assert!(events.contains("this node promotes itself"), "{events}");
    // The new primary has no lease: nobody takes over from it.
    assert_eq!(sites.ask(0, &["status", GROUP]).unwrap()["takeover"]["is_armed"], false);
}

#[test]
fn a_primary_that_is_heard_on_the_third_path_is_left_alone() {
    let sites = sites::new(LineSettings::default(), 42).unwrap();
    let ports = [(); 2].map(|()| free_port().unwrap().port());
    for (node, (own, other)) in [(ports[0], ports[1]), (ports[1], ports[0])].into_iter().enumerate() {
        let path = sites.nodes[node].config_path();
        let beat = format!("[peer.heartbeat]\nlocal = \"127.0.0.1:{own}\"\nremote = \"127.0.0.1:{other}\"\n");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &beat).unwrap();
        sites.start(node).unwrap();
    }
    sites.create_volume().unwrap();
    sites.pair().unwrap();
    ready(&sites);
    let mut model = Model::new(42);
    model.write(&mut sites.client(0).unwrap(), 200, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.links.iter().for_each(|link| link.cut());
    let presence = || sites.ask(1, &["node", "status"]).unwrap()["peers"][0]["presence"].clone();
    sites.wait(1, "the session to end", |status| status["connected"] == false).unwrap();
    assert_eq!(presence(), "suspect", "heard, and without a session");
    sites.wait(1, "the promise to be over", |status| status["lease"]["left_millis"] == 0).unwrap();
    let refusal = sites.refusal(1, &["promote", GROUP, "--latest"]);
    assert!(refusal.contains("was heard") && refusal.contains("on the heartbeat path"), "{refusal}");
    assert_eq!(sites.ask(1, &["status", GROUP]).unwrap()["role"], "secondary");
    sites.kill(0).unwrap();
    sites.wait(1, "the takeover", |status| status["role"] == "primary").unwrap();
    sites.wait(1, "the silence", |_| presence() == "dead").unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}
