//! House rules as tests: what a reviewer would otherwise have to repeat. A failure names file, line and rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

/// Spelled so that this file does not break the rules it checks.
const UNFINISHED: [&str; 6] = [
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("TO", "DO"),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("#[ign", "ore"),
];

/// What would make logic depend on anything but the events handed to it.
const IMPURE: [&str; 11] = [
    "HashMap",
    "HashSet",
    "Instant::now",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::net",
    "tokio::",
    "rand::",
    "async fn",
    "unsafe ",
];

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    fn is_logic(&self) -> bool {
        let line_model = self.path.starts_with("tools/link-model/");
        let pure_carrier = self.path.starts_with("replicator/src/") && !self.path.starts_with("replicator/src/io");
        (self.path.starts_with("src/") || pure_carrier || line_model) && !self.is_test_file()
    }

    fn is_test_file(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.starts_with("tests/") || self.path.contains("/tests/")
    }

    /// Numbered lines without comments; the tests at the end of a file belong to it only if `with_tests`.
    fn code(&self, with_tests: bool) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(move |(_, line)| with_tests || !line.starts_with("#[cfg(test)]"))
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    /// Numbered lines of tests, without comments.
    fn tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let all = self.is_test_file();
        self.code(true).skip_while(move |(_, line)| !all && !line.starts_with("#[cfg(test)]"))
    }
}

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package is in the repository").to_owned()
}

fn files(suffix: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    for folder in ["src", "replicator", "ublk-target", "tools", "tests", "docs", "fuzz"] {
        walk(&root.join(folder), suffix, &mut found);
    }
    let read = |path: &PathBuf| Source {
        path: path.strip_prefix(&root).expect("found below the root").to_str().expect("our names are text").to_owned(),
        text: fs::read_to_string(path).expect("a readable file"),
    };
    found.iter().map(read).collect()
}

fn walk(folder: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            // Build output may lie in a package of its own, such as the fuzz targets.
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, suffix, found);
            }
        } else if path.to_str().is_some_and(|name| name.ends_with(suffix)) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let sources = files(".rs");
    assert!(sources.len() > 20, "the sources were not found below {}", root().display());
    sources
}

fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn files_stay_short() {
    let broken: Vec<String> = sources()
        .iter()
        .map(|source| (source, source.text.lines().count()))
        .filter(|&(_, lines)| lines >= LINES_MAX)
        .map(|(source, lines)| format!("{}: {lines} lines", source.path))
        .collect();
    assert_none("A file has one idea and under 600 lines", &broken);
}

#[test]
fn files_say_what_they_are_for() {
    let broken: Vec<String> =
        sources().into_iter().filter(|source| !source.text.starts_with("//!")).map(|source| source.path).collect();
    assert_none("A file opens with its purpose (//!)", &broken);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut broken = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            for word in UNFINISHED.iter().filter(|&&word| line.contains(word)) {
                broken.push(format!("{}:{}: {word}", source.path, index + 1));
            }
        }
    }
    assert_none("Unfinished or switched off", &broken);
}

#[test]
fn logic_depends_on_nothing_but_its_events() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.is_logic()) {
        for (number, line) in source.code(false) {
            for word in IMPURE.iter().filter(|&&word| line.contains(word)) {
                broken.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    assert_none("The core and the carrier's logic have no clock, chance, thread, socket, file", &broken);
}

#[test]
fn crates_forbid_what_they_do_not_need() {
    let attributes = |path: &str| {
        let text = fs::read_to_string(root().join(path)).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect::<BTreeSet<_>>()
    };
    let mut broken = Vec::new();
    let forbid = "#![forbid(unsafe_code)]";
    if !attributes("src/lib.rs").contains("#![no_std]") {
        broken.push("src/lib.rs: #![no_std]".to_owned());
    }
    let programs = sources().into_iter().map(|source| source.path).filter(|path| path.starts_with("tools/src/bin/"));
    for path in ["src/lib.rs".to_owned(), "tools/src/lib.rs".to_owned()].into_iter().chain(programs) {
        // Modules in a folder of their own are covered by their program's main file.
        let is_root = path.matches('/').count() <= 3;
        if is_root && !attributes(&path).contains(forbid) {
            broken.push(format!("{path}: {forbid}"));
        }
    }
    assert_none("Missing at the head of a crate", &broken);
}

#[test]
fn tests_wait_for_events_and_never_sleep() {
    let mut broken = Vec::new();
    for source in sources() {
        for (number, line) in source.tests() {
            // Spelled in two parts: this file is a test as well.
            let sleeps = [concat!("thread::", "sleep"), concat!("time::", "sleep(")];
            if sleeps.iter().any(|word| line.contains(word)) {
                broken.push(format!("{}:{number}", source.path));
            }
        }
    }
    assert_none("A test sleeps instead of waiting for an event", &broken);
}

#[test]
fn every_package_takes_the_common_lints() {
    let mut broken = Vec::new();
    for (path, manifest) in manifests() {
        let common = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        if common != Some(true) {
            broken.push(format!("{path}: [lints] workspace = true"));
        }
    }
    assert_none("Missing in a manifest", &broken);
}

#[test]
fn every_dependency_has_its_reason() {
    let page = fs::read_to_string(root().join("docs/dependencies.md")).expect("docs/dependencies.md");
    let explained: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    let ours = ["holdfast", "replicator", "ublk-target", "tools", "link-model", "simulator", "system-tests"];
    let mut used = BTreeMap::new();
    for (path, manifest) in manifests() {
        // Some are of one target only, or of a build with a flag.
        let targets = manifest.get("target").and_then(toml::Value::as_table);
        for parent in targets.into_iter().flat_map(|table| table.values()).chain([&manifest]) {
            for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
                let table = parent.get(section).and_then(toml::Value::as_table);
                for name in table.into_iter().flat_map(|table| table.keys()) {
                    if !ours.contains(&name.as_str()) {
                        used.insert(name.clone(), path.clone());
                    }
                }
            }
        }
    }
    let missing: Vec<String> = used
        .iter()
        .filter(|(name, _)| !explained.contains(*name))
        .map(|(name, path)| format!("{name} ({path})"))
        .collect();
    assert_none("No reason in docs/dependencies.md for", &missing);
    let stale: Vec<String> = explained.into_iter().filter(|name| !used.contains_key(name)).collect();
    assert_none("In docs/dependencies.md, but in no manifest", &stale);
}

fn manifests() -> Vec<(String, toml::Value)> {
    let root_manifest = Source {
        path: "Cargo.toml".to_owned(),
        text: fs::read_to_string(root().join("Cargo.toml")).expect("the root manifest"),
    };
    let all = files("Cargo.toml").into_iter().chain([root_manifest]);
    let parse = |source: Source| {
        let parsed = source.text.parse::<toml::Table>().expect("a manifest that cargo takes");
        (source.path, toml::Value::Table(parsed))
    };
    all.map(parse).collect()
}

#[test]
fn programs_are_run_where_the_manual_puts_them() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let readme = read("README.md");
    let (_, rest) = readme.split_once("`target/release/{holdfastd,ublk-admin}` to `").unwrap();
    let (folder, _) = rest.split_once('`').unwrap();
    for (path, run) in [
        ("docs/operating.md", format!("ExecStart={folder}/holdfastd\n")),
        ("ublk-target/udev/60-holdfast.rules", format!("PROGRAM=\"{folder}/ublk-admin ")),
    ] {
        assert!(read(path).contains(&run), "{path} does not say {run}");
    }
}

/// `HOLDFAST_WRITE_VECTORS=1` puts the table there.
#[test]
fn the_pairs_states_are_documented_as_they_are() {
    let path = root().join("docs/pair.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- transitions -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- /transitions -->").unwrap();
    let table = holdfast::pair::transitions::table();
    let expected = format!("{before}<!-- transitions -->\n{table}<!-- /transitions -->{after}");
    if std::env::var_os("HOLDFAST_WRITE_VECTORS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap() == expected,
        "{} has another table than the code:\n{table}",
        path.display()
    );
}
