//! fio, which drives every server and the medium itself in the same way.

use crate::demo::processes::Workplace;
use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What is measured.
#[derive(Debug)]
pub struct Job {
    /// As the tables have it.
    pub name: &'static str,
    /// As the command line has it.
    pub id: &'static str,
    /// Is it measured also when there is little time?
    pub is_quick: bool,
    /// Is each write followed by a flush?
    pub flushes: bool,
    pattern: &'static str,
    block: &'static str,
    depth: &'static str,
}

const fn job(id: &'static str, name: &'static str, [pattern, block, depth]: [&'static str; 3]) -> Job {
    Job { name, id, is_quick: true, flushes: false, pattern, block, depth }
}

const fn not_quick(job: Job) -> Job {
    Job { is_quick: false, ..job }
}

const fn with_flush(job: Job) -> Job {
    Job { flushes: true, ..job }
}

/// All that can be measured.
pub const JOBS: [Job; 11] = [
    job("write-4k-qd1", "4 KiB random write, QD 1", ["randwrite", "4k", "1"]),
    not_quick(job("write-4k-qd8", "4 KiB random write, QD 8", ["randwrite", "4k", "8"])),
    job("write-4k-qd32", "4 KiB random write, QD 32", ["randwrite", "4k", "32"]),
    with_flush(job("flush-4k-qd1", "4 KiB write + flush, QD 1", ["randwrite", "4k", "1"])),
    not_quick(job("read-4k-qd1", "4 KiB random read, QD 1", ["randread", "4k", "1"])),
    not_quick(job("read-4k-qd8", "4 KiB random read, QD 8", ["randread", "4k", "8"])),
    job("read-4k-qd32", "4 KiB random read, QD 32", ["randread", "4k", "32"]),
    job("mixed-4k-qd8", "4 KiB random, 70 % reads, QD 8", ["randrw", "4k", "8"]),
    job("write-64k-qd8", "64 KiB random write, QD 8", ["randwrite", "64k", "8"]),
    job("write-1m-qd4", "1 MiB write, QD 4", ["write", "1m", "4"]),
    job("read-1m-qd4", "1 MiB read, QD 4", ["read", "1m", "4"]),
];

/// On what is measured.
#[derive(Debug)]
pub enum Disk {
    /// An export, by its URI.
    Nbd(String),
    /// A file, past the page cache.
    File(PathBuf),
}

impl Disk {
    /// An export on a unix socket.
    pub fn on_socket(socket: &Path, export: &str) -> Self {
        Self::Nbd(format!("nbd+unix:///{export}?socket={}", socket.display()))
    }
}

/// What a job came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Requests a second, reads and writes together.
    pub requests: f64,
    /// 99 of 100 requests took no longer, in microseconds; of reads and writes the worse. Flushes are not in it.
    pub p99_micros: f64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// Says what is missing, if fio is, before anything else takes time.
///
/// # Errors
/// When fio is not there, or cannot speak NBD.
pub fn check(place: &Workplace) -> anyhow::Result<()> {
    const WAY_OUT: &str = "install it with: tools/install-packages bench";
    let engines = place
        .run("fio", Command::new("fio").arg("--enghelp"), Duration::from_secs(20))
        .with_context(|| format!("Cannot use fio; {WAY_OUT}"))?;
    if !engines.lines().any(|line| line.trim() == "nbd") {
        bail!("This fio was built without its nbd engine; use Debian's: {WAY_OUT}");
    }
    Ok(())
}

/// Writes everything once, so that nobody reads holes or pays for the file system's allocation.
///
/// # Errors
/// When fio fails.
pub fn fill(place: &Workplace, disk: &Disk, size: u64) -> anyhow::Result<()> {
    const JOB: Job = job("fill", "fill", ["write", "1m", "4"]);
    run(place, disk, &JOB, size, None).map(drop)
}

/// Runs a job for so long.
///
/// # Errors
/// When fio fails; with what it said.
pub fn measure(place: &Workplace, disk: &Disk, job: &Job, size: u64, took: Duration) -> anyhow::Result<Outcome> {
    run(place, disk, job, size, Some(took))
}

fn run(place: &Workplace, disk: &Disk, job: &Job, size: u64, took: Option<Duration>) -> anyhow::Result<Outcome> {
    let answer_path = place.folder().join("fio.json");
    let _ = fs::remove_file(&answer_path);
    let mut command = Command::new("fio");
    command.args(["--name=job", "--thread", "--norandommap", "--randrepeat=0", "--rwmixread=70", "--eta=never"]);
    command.arg("--output-format=json").arg(format!("--output={}", answer_path.display()));
    command.args([format!("--rw={}", job.pattern), format!("--bs={}", job.block), format!("--iodepth={}", job.depth)]);
    command.arg(format!("--size={size}")).current_dir(place.folder());
    match disk {
        Disk::Nbd(uri) => command.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
        Disk::File(path) => command
            .args(["--ioengine=io_uring", "--direct=1", "--fallocate=none"])
            .arg(format!("--filename={}", path.display())),
    };
    if job.flushes {
        command.arg(match disk {
            Disk::Nbd(_) => "--fsync=1",
            Disk::File(_) => "--fdatasync=1",
        });
    }
    if let Some(took) = took {
        command.arg(format!("--runtime={}ms", took.as_millis())).arg("--time_based");
    }
    // A server that hangs must not hang the benchmark; filling takes as long as the medium does.
    let limit = took.unwrap_or(Duration::from_secs(600)) + Duration::from_secs(120);
    place.run("fio", &mut command, limit).with_context(|| format!("{} on {disk:?}", job.name))?;
    let text = fs::read_to_string(&answer_path).with_context(|| format!("Cannot read {}", answer_path.display()))?;
    outcome(&text).with_context(|| format!("fio answered: {text}"))
}

fn outcome(text: &str) -> anyhow::Result<Outcome> {
    // Warnings come before the object.
    let json = text.get(text.find('{').unwrap_or_default()..).unwrap_or_default();
    let answer: Value = serde_json::from_str(json)?;
    let job = &answer["jobs"][0];
    if job["error"] != 0 {
        bail!("The job ended with error {}", job["error"]);
    }
    let ways = ["read", "write"].map(|way| &job[way]);
    let requests: f64 = ways.iter().filter_map(|way| way["iops"].as_f64()).sum();
    if requests == 0.0 {
        return Err(anyhow!("The job completed no request"));
    }
    let p99 = ways.iter().filter_map(|way| way["clat_ns"]["percentile"]["99.000000"].as_f64());
    let written_bytes = job["write"]["io_bytes"].as_u64().unwrap_or_default();
    Ok(Outcome { requests, p99_micros: p99.fold(0.0, f64::max) / 1e3, written_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_added_and_the_worse_latency_counts() {
        let text = r#"fio: a warning
{"jobs": [{"error": 0,
  "read": {"iops": 700.5, "clat_ns": {"percentile": {"99.000000": 2000}}},
  "write": {"iops": 300.0, "io_bytes": 8192, "clat_ns": {"percentile": {"99.000000": 9000}}}}]}"#;
        let expected = Outcome { requests: 1000.5, p99_micros: 9.0, written_bytes: 8192 };
        assert_eq!(outcome(text).expect("an outcome"), expected);
    }

    #[test]
    fn a_failed_or_empty_job_is_no_figure() {
        for text in ["", "{}", r#"{"jobs": [{"error": 5}]}"#, r#"{"jobs": [{"error": 0, "read": {"iops": 0.0}}]}"#] {
            assert!(outcome(text).is_err(), "{text}");
        }
    }

    #[test]
    fn jobs_are_told_apart() {
        for (index, job) in JOBS.iter().enumerate() {
            assert!(
                JOBS.iter().skip(index + 1).all(|other| other.id != job.id && other.name != job.name),
                "{}",
                job.id
            );
        }
    }
}
