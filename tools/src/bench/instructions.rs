//! How many instructions a request takes, counted by callgrind: the same on a busy machine as on a quiet one.

use super::{
    hot_path::Course,
    machine,
    report::{Better, Report, Results},
};
use anyhow::{Context, bail};
use clap::ValueEnum;
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Requests of the shorter of two runs; what both have in common, such as making the volume, is in neither's difference.
const COUNT: u32 = 2_048;

/// Counts all courses. `program`: `bench` itself, which carries out a course when it is asked to.
pub fn run(program: &Path) -> anyhow::Result<Results> {
    let mut report = Report::new("Instructions for a request", "thousands", Better::Lower);
    for course in Course::value_variants() {
        let value = course.to_possible_value().context("Every course has a name")?;
        let [short, long] = [COUNT, 2 * COUNT].map(|count| count_of(program, value.get_name(), count));
        let each = long?.saturating_sub(short?) as f64 / f64::from(COUNT);
        let row = value.get_help().map_or_else(|| value.get_name().to_owned(), ToString::to_string);
        report.add(&row, "instructions", each / 1e3);
    }
    let notes = vec![
        "Counted by callgrind: two runs of each course, one twice as long as the other, and the difference of the two."
            .into(),
        "In memory: no system calls, no encryption; copies of data to and from the media are in it.".into(),
        "An instruction that moves or fills a range of bytes counts once for each byte, as callgrind has it.".into(),
    ];
    let conditions = machine::conditions(Path::new("/"));
    Ok(Results { name: "instructions", conditions, notes, failure: None, reports: vec![report] })
}

fn count_of(program: &Path, course: &str, count: u32) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["course", course, &count.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("Cannot start valgrind; tools/install-packages bench installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind ended with {}: {}", output.status, said.trim_end());
    }
    // ==1== Collected : 123456
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).map(|(_, number)| number.trim());
    let number = collected.with_context(|| format!("valgrind says no number: {}", said.trim_end()))?;
    number.parse().with_context(|| format!("valgrind says '{number}'"))
}
