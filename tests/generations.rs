//! Generations on real daemons: kept, read over NBD, tried out, dropped; and what a former primary wrote.

use system_tests::{
    client::Model,
    sites::{self, GROUP, Sites},
};
use tools::{emulator::LineSettings, nbd_client::NbdClient};

const AREA: u64 = 1024;

fn names(sites: &Sites, node: usize) -> Vec<String> {
    let list = sites.ask(node, &["generation", "list", GROUP]).unwrap();
    list.as_array().unwrap().iter().map(|kept| kept["name"].as_str().unwrap().to_owned()).collect()
}

fn client(sites: &Sites, node: usize, name: &str) -> Result<NbdClient, String> {
    NbdClient::connect_unix(&sites.nodes[node].nbd_path(), &format!("{GROUP}/v@{name}"))
        .map_err(|error| error.to_string())
}

/// Waits until the newest can be read.
fn applied(sites: &Sites, node: usize) {
    sites.wait(node, "generations to be applied", |status| status["generations"][0]["applied"] == true).unwrap();
}

/// Writes and restart points; what the volume was at each.
fn intervals(sites: &Sites, model: &mut Model, count: usize) -> Vec<Model> {
    let mut client = sites.client(0).unwrap();
    (0..count)
        .map(|_| {
            model.write(&mut client, 150, AREA).unwrap();
            sites.ask(0, &["restart-point", GROUP, "--wait"]).unwrap();
            model.clone()
        })
        .collect()
}

#[test]
fn generations_are_kept_read_and_dropped() {
    let sites = sites::paired(LineSettings::default(), 31).unwrap();
    sites.ask(1, &["generation", "keep", GROUP, "--count", "3"]).unwrap();
    let mut model = Model::new(31);
    let kept = intervals(&sites, &mut model, 5);
    // Until then there is more: what was applied stays until the next one takes its place.
    applied(&sites, 1);
    assert_eq!(names(&sites, 1), ["5", "4", "3"]);
    applied(&sites, 0);
    assert_eq!(names(&sites, 0), ["5"]);
    // As private as the volume.
    assert!(client(&sites, 1, "4").is_err());
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    // Through the daemon's death.
    sites.kill(1).unwrap();
    sites.start(1).unwrap();
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    applied(&sites, 1);
    for (name, state) in [("3", &kept[2]), ("4", &kept[3]), ("5", &kept[4])] {
        let mut client = client(&sites, 1, name).unwrap();
        state.check_exactly(&mut client, AREA).unwrap();
        assert!(client.write(0, &[1; 4096]).is_err(), "a generation was written");
    }
    // One that is read stays.
    let mut reader = client(&sites, 1, "3").unwrap();
    let refusal = sites.refusal(1, &["generation", "drop", GROUP, "3"]);
    assert!(refusal.contains("Group g: Generation 3 is in use"), "{refusal}");
    sites.ask(1, &["generation", "keep", GROUP, "--count", "1"]).unwrap();
    kept[2].check_exactly(&mut reader, AREA).unwrap();
    assert_eq!(names(&sites, 1), ["5", "3"]);
    drop(reader);
    sites.wait(1, "it to go with its reader", |status| status["generations"].as_array().unwrap().len() == 1).unwrap();
    let refusal = sites.refusal(1, &["generation", "drop", GROUP, "4"]);
    assert!(refusal.contains("Group g: Generation 4 is not kept on this node; what is kept is 5"), "{refusal}");
    let refusal = sites.refusal(1, &["generation", "drop", GROUP, "5"]);
    assert!(refusal.contains("Generation 5 is the last restart point, which is always kept"), "{refusal}");
    let refusal = sites.refusal(1, &["generation", "drop", GROUP, "newest"]);
    assert!(refusal.contains("\"newest\" names no generation"), "{refusal}");
}

#[test]
fn what_a_rule_does_not_name_stays_as_it_was() {
    let sites = sites::new(LineSettings::default(), 36).unwrap();
    sites.start(0).unwrap();
    sites.create_volume().unwrap();
    let rule = |asked: &[&str]| {
        let said = sites.ask(0, &[&["generation", "keep", GROUP], asked].concat()).unwrap();
        let status = sites.ask(0, &["status", GROUP]).unwrap();
        for name in ["keep_count", "keep_seconds"] {
            assert_eq!(said[name], status[name], "{said}");
        }
        (said["keep_count"].as_u64().unwrap(), said["keep_seconds"].as_u64().unwrap())
    };
    assert_eq!(rule(&[]), (1, 0));
    assert_eq!(rule(&["--for", "30d"]), (1, 30 * 86_400));
    assert_eq!(rule(&["--count", "8"]), (8, 30 * 86_400));
    for _ in 0..3 {
        sites.ask(0, &["restart-point", GROUP]).unwrap();
    }
    assert_eq!(rule(&[]), (8, 30 * 86_400));
    applied(&sites, 0);
    assert_eq!(names(&sites, 0), ["3", "2", "1"]);
    assert_eq!(rule(&["--for", "0s"]), (8, 0));
}

#[test]
fn a_standby_is_promoted_to_an_older_generation() {
    let sites = sites::paired(LineSettings::default(), 32).unwrap();
    sites.ask(1, &["generation", "keep", GROUP, "--for", "1d"]).unwrap();
    let mut model = Model::new(32);
    let kept = intervals(&sites, &mut model, 4);
    model.write(&mut sites.client(0).unwrap(), 100, AREA).unwrap();
    sites.wait_in_step(0).unwrap();
    sites.kill(0).unwrap();
    let refusal = sites.refusal(1, &["promote", GROUP, "--generation", "9"]);
    assert!(refusal.contains("Generation 9 is not kept on this node; what is kept is 4, 3, 2, 1"), "{refusal}");
    let promoted = sites.ask(1, &["promote", GROUP, "--generation", "2"]).unwrap();
    assert_eq!(promoted["promoted"]["generation"], 2, "{promoted}");
    let mut model = kept[1].clone();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    assert_eq!(names(&sites, 1), ["2", "1"]);
    model.write(&mut sites.client(1).unwrap(), 100, AREA).unwrap();
    // The former primary has gone further; it keeps that, and follows.
    sites.start(0).unwrap();
    sites.wait(0, "the fence", |status| status["role"] == "fenced").unwrap();
    sites.ask(0, &["demote", GROUP]).unwrap();
    sites.wait_in_step(1).unwrap();
    sites.ask(0, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
}

#[test]
fn what_a_former_primary_wrote_is_kept_until_it_is_dropped() {
    let sites = sites::paired(LineSettings::default(), 33).unwrap();
    let mut model = Model::new(33);
    let kept = intervals(&sites, &mut model, 1);
    sites.links.iter().for_each(|link| link.cut());
    model.write(&mut sites.client(0).unwrap(), 200, AREA).unwrap();
    sites.ask(1, &["promote", GROUP, "--force"]).unwrap();
    let mut other = kept[0].clone();
    other.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    other.write(&mut sites.client(1).unwrap(), 200, AREA).unwrap();
    sites.links.iter().for_each(|link| link.heal());
    let status = sites.wait(0, "the fence", |status| status["role"] == "fenced").unwrap();
    assert_eq!(status["fork"]["name"], "fork-1.0", "{status}");
    sites.ask(0, &["demote", GROUP]).unwrap();
    sites.wait_in_step(1).unwrap();
    sites.ask(0, &["volume", "export", GROUP, "--read-only"]).unwrap();
    other.check_exactly(&mut sites.client(0).unwrap(), AREA).unwrap();
    applied(&sites, 0);
    assert_eq!(names(&sites, 0), ["fork-1.0", "1"]);
    model.check_exactly(&mut client(&sites, 0, "fork-1.0").unwrap(), AREA).unwrap();
    let dropped = || sites.ask(0, &["generation", "drop", GROUP, "fork-1.0"]);
    sites.wait(0, "the reader to be gone", |_| dropped().is_ok()).unwrap();
    assert_eq!(names(&sites, 0), ["1"]);
}

#[test]
fn a_failover_is_tried_out_beside_the_pair() {
    let sites = sites::paired(LineSettings::default(), 34).unwrap();
    let refusal = sites.refusal(1, &["failover", GROUP, "--test"]);
    assert!(refusal.contains("Group g: No restart point of the group's history has arrived"), "{refusal}");
    let mut model = Model::new(34);
    let kept = intervals(&sites, &mut model, 1);
    applied(&sites, 1);
    let begun = sites.ask(1, &["failover", GROUP, "--test"]).unwrap();
    assert_eq!(begun["exports"][0], "g/v@trial", "{begun}");
    let mut tried = kept[0].clone();
    let mut trial = client(&sites, 1, "trial").unwrap();
    tried.check_exactly(&mut trial, AREA).unwrap();
    // Both are written at once.
    for _ in 0..4 {
        tried.write(&mut trial, 150, AREA).unwrap();
        intervals(&sites, &mut model, 1);
    }
    trial.flush().unwrap();
    tried.check_exactly(&mut trial, AREA).unwrap();
    let status = sites.ask(1, &["status", GROUP]).unwrap();
    assert_eq!((&status["role"], &status["trial"]["generation"]), (&"secondary".into(), &"1".into()), "{status}");
    let refusal = sites.refusal(1, &["failover", GROUP, "--end"]);
    assert!(refusal.contains("The trial of group g is in use by 1 NBD client(s)"), "{refusal}");
    drop(trial);
    sites.ask(1, &["failover", GROUP, "--end"]).unwrap();
    assert!(client(&sites, 1, "trial").is_err());
    sites.wait_in_step(0).unwrap();
    sites.ask(1, &["volume", "export", GROUP, "--read-only"]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
    // The real thing, while another trial is open.
    applied(&sites, 1);
    sites.ask(1, &["failover", GROUP, "--test", "--generation", "5"]).unwrap();
    sites.kill(0).unwrap();
    sites.ask(1, &["promote", GROUP]).unwrap();
    model.check_exactly(&mut sites.client(1).unwrap(), AREA).unwrap();
}
