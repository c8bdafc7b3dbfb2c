//! Small requests over NBD: this program alone, with an asynchronous and with a synchronous standby on the same machine,
//! beside nbdkit's file plugin and qemu-nbd on a file of the same file system. fio's nbd engine drives them all.

use super::report::Report;
use crate::{
    demo::processes::Workplace,
    emulator::LineSettings,
    sites::{EXPORT, GROUP, SiteOptions, Sites},
};
use anyhow::{Context, bail};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What is measured: a name, and fio's options.
const JOBS: [(&str, &[&str]); 6] = [
    ("4 KiB random write, QD 1", &["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("4 KiB random write, QD 32", &["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("4 KiB write + flush, QD 1", &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"]),
    ("4 KiB random read, QD 1", &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("4 KiB random read, QD 32", &["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("1 MiB write, QD 4", &["--rw=write", "--bs=1m", "--iodepth=4"]),
];
/// The size of every volume and file.
const SIZE: u64 = 1 << 30;
/// A server that does not listen by then has a fault.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);

/// How to measure.
#[derive(Debug)]
pub struct WriteOptions {
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
    /// How long each job runs in each round, in seconds.
    pub seconds: u32,
    /// Rounds.
    pub rounds: u32,
}

struct Target {
    name: &'static str,
    uri: String,
    prepare: Box<dyn Fn() -> anyhow::Result<()>>,
}

/// Measures, telling on stderr what is being done.
///
/// # Errors
/// When fio is missing or fails, or a server does not start.
pub fn run(options: &WriteOptions) -> anyhow::Result<Report> {
    let sites = |prefix| SiteOptions {
        prefix,
        programs: options.programs.clone(),
        line: LineSettings::default(),
        seed: 1,
        size: "1GiB",
        journal_size: "1GiB",
    };
    let alone = Sites::new(&sites("holdfast-bench-alone"))?;
    alone.start(0)?;
    alone.create_volume()?;
    let pair = std::rc::Rc::new(Sites::paired(&sites("holdfast-bench-pair"))?);
    let others = Workplace::new("holdfast-bench-others")?;
    let uri = |socket: &Path, export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());
    let mut targets = vec![Target {
        name: "holdfast alone",
        uri: uri(&alone.nodes[0].nbd_path(), EXPORT),
        prepare: Box::new(|| Ok(())),
    }];
    for (name, level) in [("asynchronous standby", "local"), ("synchronous standby", "remote")] {
        let of = pair.clone();
        targets.push(Target {
            name,
            uri: uri(&pair.nodes[0].nbd_path(), EXPORT),
            prepare: Box::new(move || {
                of.wait_in_step(0)?;
                of.ask(0, &["level", GROUP, level]).map(drop)
            }),
        });
    }
    for (name, program, arguments) in [
        ("nbdkit file", "nbdkit", &["-f", "-U", "SOCKET", "file", "IMAGE"][..]),
        (
            "qemu-nbd",
            "qemu-nbd",
            &["-t", "-e", "8", "-f", "raw", "--cache=none", "--aio=io_uring", "-k", "SOCKET", "IMAGE"][..],
        ),
    ] {
        if !is_there(program) {
            eprintln!("{program} is not installed and is left out");
            continue;
        }
        let (image, socket) = (others.folder().join(program), others.folder().join(format!("{program}.sock")));
        File::create(&image)?.set_len(SIZE)?;
        let mut command = Command::new(program);
        for argument in arguments {
            match *argument {
                "SOCKET" => command.arg(&socket),
                "IMAGE" => command.arg(&image),
                other => command.arg(other),
            };
        }
        others.launch(program, &mut command)?;
        wait_for(&socket)?;
        targets.push(Target { name, uri: uri(&socket, ""), prepare: Box::new(|| Ok(())) });
    }
    for target in &targets {
        eprintln!("Filling: {}", target.name);
        (target.prepare)()?;
        // Everything is written once, so that nobody reads holes or pays for the file system's allocation.
        fio(&target.uri, &["--rw=write", "--bs=1m", "--iodepth=4"], None, others.folder())?;
    }
    let mut report = Report::new("Requests over NBD", "requests a second");
    for round in 1..=options.rounds {
        for (job, arguments) in JOBS {
            for target in &targets {
                eprintln!("Round {round}: {job}: {}", target.name);
                (target.prepare)()?;
                let figure = fio(&target.uri, arguments, Some(options.seconds), others.folder())?;
                report.add(job, target.name, figure);
            }
        }
    }
    Ok(report)
}

fn is_there(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

fn wait_for(socket: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + LISTEN_LIMIT;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        if Instant::now() > end {
            bail!("Nothing listens on {}", socket.display());
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}

/// Requests a second, reads and writes together.
fn fio(uri: &str, arguments: &[&str], seconds: Option<u32>, folder: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new("fio");
    command.args(["--name=job", "--ioengine=nbd", "--thread", "--norandommap", "--randrepeat=0"]);
    command.args(["--output-format=terse", "--terse-version=3"]).arg(format!("--uri={uri}")).args(arguments);
    command.arg(format!("--size={SIZE}")).current_dir(folder);
    if let Some(seconds) = seconds {
        command.arg(format!("--runtime={seconds}")).arg("--time_based");
    }
    let output = command.output().context("Cannot run fio; install it with: tools/install-packages test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("3;")).filter(|_| output.status.success());
    let Some(line) = line else {
        bail!("fio on {uri} failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    };
    // The eighth field is read requests a second, the forty-ninth write requests a second (fio's manual, TERSE OUTPUT).
    let field = |index| line.split(';').nth(index).and_then(|text| text.parse::<f64>().ok());
    Ok(field(7).unwrap_or_default() + field(48).unwrap_or_default())
}
