//! The benchmark as a program: what it measures, writes and refuses. No figure is judged.

use serde_json::Value;
use std::{collections::BTreeSet, fs, process::Command};
use system_tests::sites::programs;

fn bench(arguments: &[&str]) -> (bool, String) {
    let output =
        Command::new(programs().join("bench")).args(arguments).output().expect("bench, built before the tests");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), text)
}

/// One round with everything that is installed here; what is not must be named.
#[test]
fn every_cell_of_a_round_is_in_the_json_the_page_and_the_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let (json, html) = (folder.path().join("bench.json"), folder.path().join("bench.html"));
    let (json_name, html_name) = (json.to_str().expect("text"), html.to_str().expect("text"));
    let size = ["--size", "16", "--seconds", "0.05", "--rounds", "1", "--job", "write-4k-qd1,flush-4k-qd1"];
    let (done, text) = bench(&[&["write", "--json", json_name, "--html", html_name], &size[..]].concat());
    assert!(done, "{text}");

    let results: Value = serde_json::from_str(&fs::read_to_string(json).expect("a file")).expect("JSON");
    assert_eq!(results["benchmark"], "write");
    assert_eq!(results["conditions"]["rounds"], "1");
    let requests = &results["reports"][0];
    let names = |list: &Value| -> BTreeSet<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (rows, columns, notes) = (names(&requests["rows"]), names(&requests["columns"]), names(&results["notes"]));
    assert_eq!(rows.len(), 2, "{requests:#}");
    let ours = ["holdfast alone", "asynchronous standby", "synchronous standby"];
    for column in ours {
        assert!(columns.contains(column), "{requests:#}");
    }
    for peer in tools::bench::peers::Peer::ALL {
        let is_left_out = notes.iter().any(|note| note.starts_with(&format!("{} is left out: ", peer.name())));
        assert!(columns.contains(peer.name()) != is_left_out, "{}: {notes:#?}", peer.name());
    }
    let cells = requests["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), rows.len() * columns.len());
    for cell in cells {
        assert_eq!(cell["rounds"].as_array().map(Vec::len), Some(1), "{cell}");
        assert!(cell["median"].as_f64().is_some_and(|figure| figure > 0.0), "{cell}");
    }

    let page = fs::read_to_string(html).expect("a page");
    for name in rows.iter().chain(&columns) {
        assert!(page.contains(name), "the page lacks {name}");
        assert!(text.contains(name), "the table lacks {name}");
    }
}

#[test]
fn a_refusal_names_the_thing_before_anything_is_measured() {
    for (arguments, words) in [
        (&["write", "--job", "write-3k"][..], "write-3k"),
        (&["write", "--rounds", "0"][..], "--rounds"),
        (&["write", "--seconds", "none"][..], "'none' is not a number of seconds"),
        (&["write", "--json", "/nowhere/bench.json"][..], "Cannot write /nowhere/bench.json; is its folder there?"),
        (&["wan", "--line", "delay 1ms"][..], "has no rate: add one"),
        (&["wan", "--line", "loss often, rate 1mbit"][..], "'often' is not a probability"),
        (&["wan", "--measure", "weather"][..], "possible values: stream, tcp, shared, mirror, writes"),
        (&["wan", "--no-tcp", "--measure", "tcp,shared"][..], "--no-tcp leaves out all that --measure names"),
        (&["pair", "--html", "/tmp"][..], "/tmp is a folder; name a file"),
    ] {
        let (done, text) = bench(arguments);
        assert!(!done && text.contains(words), "{arguments:?}: {text}");
    }
}

/// What runs over TCP needs root, iperf3 and qemu; without them it must be left out by name.
#[test]
fn a_line_of_the_users_own_is_measured_with_others_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("bench.json");
    let line = ["--line", "delay 2ms, rate 20mbit, loss 1%", "--seconds", "1", "--rounds", "1"];
    let (done, text) = bench(&[&["wan", "--json", json.to_str().expect("text")], &line[..]].concat());
    assert!(done, "{text}");
    let results: Value = serde_json::from_str(&fs::read_to_string(json).expect("a file")).expect("JSON");
    let reports = results["reports"].as_array().expect("reports");
    let columns: BTreeSet<&str> = reports
        .iter()
        .flat_map(|report| report["columns"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    for column in ["holdfast", "a backlog", "70 % load", "p50", "oldest", "200 ms, 1 % loss"] {
        assert!(columns.contains(column), "{column}: {columns:?}");
    }
    let notes = results["notes"].to_string();
    for (column, part) in [
        ("TCP CUBIC", "TCP"),
        ("holdfast beside TCP CUBIC", "TCP beside Holdfast"),
        ("qemu's mirror, TCP CUBIC", "qemu's mirror"),
    ] {
        assert!(columns.contains(column) != notes.contains(&format!("{part} is left out from")), "{part}: {notes}");
    }
    for report in reports {
        assert!(report["cells"].as_array().is_some_and(|cells| !cells.is_empty()), "{report:#}");
    }
}
