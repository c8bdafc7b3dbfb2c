//! Requests over NBD: this program alone, with an asynchronous and with a synchronous standby on the same machine, beside
//! what users would take instead on files of the same file system.

use super::{
    fio::{self, Disk, JOBS, Job},
    has_time, machine,
    peers::{Peer, Target},
    report::{Better, Report, Results},
};
use crate::{
    demo::{node::Tuning, processes::Workplace},
    sites::{EXPORT, GROUP, SiteOptions, Sites},
};
use std::{
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

/// How to measure.
#[derive(Debug)]
pub struct WriteOptions {
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
    /// How long each job runs in each round.
    pub took: Duration,
    /// Rounds.
    pub rounds: u32,
    /// The size of every volume and file, in MiB.
    pub size_mib: u32,
    /// Which jobs, by their ids; all when empty.
    pub jobs: Vec<String>,
    /// No round begins that would not end by then, but for the first.
    pub limit: Option<Duration>,
}

/// Our own columns; ratios are made to the first.
const OURS: [&str; 4] = ["holdfast alone", "alone, for latency", "asynchronous standby", "synchronous standby"];

/// Measures, telling on stderr what is being done.
///
/// # Errors
/// When fio is missing or fails on us, or our daemons do not start. A peer that is missing or fails is left out, which the
/// results say.
pub fn run(options: &WriteOptions) -> anyhow::Result<Results> {
    let start = Instant::now();
    let place = Workplace::new("holdfast-bench")?;
    fio::check(&place)?;
    let mut conditions = machine::conditions(&std::env::temp_dir());
    let size = u64::from(options.size_mib) << 20;
    let jobs: Vec<&Job> =
        JOBS.iter().filter(|job| options.jobs.is_empty() || options.jobs.iter().any(|id| id == job.id)).collect();
    let mut notes = Vec::new();
    let mut targets = ours(options)?;
    for target in &targets {
        eprintln!("Filling: {}", target.name);
        (target.prepare)()?;
        fio::fill(&place, &target.disk, size)?;
    }
    targets.extend(peers(&place, size, &mut notes));
    let mut figures = Figures {
        requests: Report::new("Requests over NBD", "requests a second", Better::Higher),
        latency: Report::new("Latency: 99 of 100 requests took no longer", "µs", Better::Lower),
        written: Report::new("Written to media, all nodes together", "× what the client wrote", Better::Lower),
    };
    let (mut rounds, mut failure) = (0, None);
    while failure.is_none() && rounds < options.rounds && has_time(options.limit, start, rounds) {
        // Whoever follows a neighbour that leaves work behind must not be the same in each round.
        if rounds > 0 && !targets.is_empty() {
            targets.rotate_left(1);
        }
        rounds += 1;
        for job in &jobs {
            eprintln!("Round {rounds}: {}", job.name);
            for (name, error) in figures.measure(&place, &targets, job, size, options.took) {
                if OURS.contains(&name) {
                    failure.get_or_insert(format!("{name}: {error:#}"));
                } else {
                    leave_out(&mut notes, name, &format!("it failed: {error:#}"));
                }
                targets.retain(|target| target.name != name);
            }
        }
    }
    if rounds < options.rounds {
        notes.push(format!("The time was enough for {rounds} of {} rounds", options.rounds));
    }
    let order: Vec<&str> = OURS.into_iter().chain(Peer::ALL.map(Peer::name)).collect();
    targets.sort_by_key(|target| order.iter().position(|name| *name == target.name));
    notes.extend(targets.iter().map(|target| format!("{}: {}", target.name, target.about)));
    let Figures { mut requests, mut latency, mut written } = figures;
    requests.order_columns(&order);
    latency.order_columns(&order);
    written.order_columns(&order);
    notes.push("Written to media: while a job runs; what waits in the journal at its end is not in it".into());
    conditions.push(("rounds", rounds.to_string()));
    conditions.push(("each job in each round", format!("{:?}", options.took)));
    conditions.push(("volume", format!("{} MiB", options.size_mib)));
    let ratios = requests.relative_to(OURS[0]);
    Ok(Results { name: "write", conditions, notes, failure, reports: vec![requests, ratios, latency, written] })
}

struct Figures {
    requests: Report,
    latency: Report,
    written: Report,
}

impl Figures {
    /// Measures each target once; those that failed.
    fn measure(
        &mut self,
        place: &Workplace,
        targets: &[Target],
        job: &Job,
        size: u64,
        took: Duration,
    ) -> Vec<(&'static str, anyhow::Error)> {
        let mut failed = Vec::new();
        for target in targets {
            match measure(place, target, job, size, took) {
                Ok((outcome, written)) => {
                    if let Some(written) = written.filter(|_| outcome.written_bytes > 0) {
                        self.written.add(job.name, target.name, written as f64 / outcome.written_bytes as f64);
                    }
                    self.requests.add(job.name, target.name, outcome.requests);
                    // fio counts flushes apart from the writes before them: the half would mislead.
                    if !job.flushes {
                        self.latency.add(job.name, target.name, outcome.p99_micros);
                    }
                }
                Err(error) => failed.push((target.name, error)),
            }
        }
        failed
    }
}

fn ours(options: &WriteOptions) -> anyhow::Result<Vec<Target>> {
    let sites = |prefix, seed| SiteOptions {
        prefix,
        programs: options.programs.clone(),
        line: None,
        seed,
        size: format!("{}MiB", options.size_mib),
        journal_size: format!("{}MiB", options.size_mib.max(64)),
    };
    let written = |of: &Rc<Sites>| -> Box<dyn Fn() -> Option<u64>> {
        let of = Rc::clone(of);
        Box::new(move || of.workplace.written_bytes())
    };
    let disk = |of: &Sites| Disk::on_socket(&of.nodes[0].nbd_path(), EXPORT);
    let alone = |name, about, seed, tuning| -> anyhow::Result<Target> {
        let mut alone = Sites::new(&sites("holdfast-bench-alone", seed))?;
        alone.nodes[0].tuning = tuning;
        alone.nodes[0].configure_alone()?;
        alone.start(0)?;
        alone.create_volume()?;
        alone.wait_prepared(&[0])?;
        let alone = Rc::new(alone);
        let (disk, written) = (disk(&alone), written(&alone));
        // It runs for as long as its column is there.
        Ok(Target { name, about, disk, written, prepare: Box::new(move || alone.ask(0, &["status", GROUP]).map(drop)) })
    };
    let mut targets = vec![
        alone(OURS[0], "each write goes to the journal, later to the pool; direct I/O", 1, Tuning::None)?,
        alone(
            OURS[1],
            "cached_journal: small batches are written through the page cache, as nbdkit's file is, and only a flush waits \
             for the disk; busy_poll_micros = 200: takes a processor while there are requests",
            3,
            Tuning::Latency,
        )?,
    ];
    let pair = Rc::new(Sites::paired(&sites("holdfast-bench-pair", 2))?);
    pair.wait_prepared(&[0, 1])?;
    let about = [
        "level local: answered from the own journal; both nodes on this machine and its disk, nothing between them",
        "level remote: answered when the standby has it durable; both nodes on this machine and its disk",
    ];
    for ((name, about), level) in OURS.into_iter().skip(2).zip(about).zip(["local", "remote"]) {
        let of = Rc::clone(&pair);
        let prepare = move || {
            of.wait_in_step(0)?;
            of.ask(0, &["level", GROUP, level]).map(drop)
        };
        targets.push(Target { name, about, disk: disk(&pair), written: written(&pair), prepare: Box::new(prepare) });
    }
    Ok(targets)
}

/// Those that are there and can be filled.
fn peers(place: &Workplace, size: u64, notes: &mut Vec<String>) -> Vec<Target> {
    let mut targets = Vec::new();
    for peer in Peer::ALL {
        if let Some(program) = peer.missing_program() {
            let way_out = "tools/install-packages bench";
            leave_out(notes, peer.name(), &format!("{program} is not installed; install it with: {way_out}"));
            continue;
        }
        eprintln!("Filling: {}", peer.name());
        let filled = peer.start(place, size).and_then(|target| {
            fio::fill(place, &target.disk, size)?;
            Ok(target)
        });
        match filled {
            Ok(target) => targets.push(target),
            Err(error) => leave_out(notes, peer.name(), &format!("it failed: {error:#}")),
        }
    }
    targets
}

fn leave_out(notes: &mut Vec<String>, name: &str, cause: &str) {
    let note = format!("{name} is left out: {cause}");
    eprintln!("{note}");
    notes.push(note);
}

/// What came of it, and the bytes that were written to media meanwhile, if that is known.
fn measure(
    place: &Workplace,
    target: &Target,
    job: &Job,
    size: u64,
    took: Duration,
) -> anyhow::Result<(fio::Outcome, Option<u64>)> {
    (target.prepare)()?;
    // What the one before left in the page cache would be written at this one's cost.
    nix::unistd::sync();
    let before = (target.written)();
    let outcome = fio::measure(place, &target.disk, job, size, took)?;
    let written = (target.written)().zip(before).map(|(after, before)| after.saturating_sub(before));
    Ok((outcome, written))
}
