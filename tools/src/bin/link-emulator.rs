//! `link-emulator`: one bad internet line between two programs that speak UDP.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use tools::emulator::{Emulator, EmulatorSettings, LineSettings, control};

const EXAMPLES: &str = "\
Examples:
  Node A listens on port 7001 and has 127.0.0.1:9001 as its peer; node B listens on 7002 and has 127.0.0.1:9002.
  Between them 20 ms there and back, 1 % loss and 100 Mbit/s:

    link-emulator --a-side 127.0.0.1:9001 --a 127.0.0.1:7001 --b-side 127.0.0.1:9002 --b 127.0.0.1:7002 \\
        --delay 10ms --loss 1% --rate 100mbit

  Bursts of 8 packets that lose 2 % of all, packets out of order, commands on a socket:

    link-emulator --a-side 127.0.0.1:9001 --b-side 127.0.0.1:9002 --burst 2%:8 --reorder 1% --control /tmp/line

Commands, one a line, on standard input or the control socket (try: socat - /tmp/line):
  cut [a-to-b | b-to-a]                nothing comes through any more
  heal [a-to-b | b-to-a]               ends a cut
  set [a-to-b | b-to-a] loss 3%        changes a setting; the names are those of the options
  stats                                what happened so far, as JSON
  settings                             the settings both ways, as JSON";

/// Puts a line with delay, loss and limits between two programs that speak UDP.
///
/// What arrives at the A side from node A leaves the B side towards node B, and back. The same seed and the same
/// packets give the same losses. Options apply to each way; change one way alone by a command.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Where node A sends to
    #[arg(long, value_name = "ADDRESS")]
    a_side: SocketAddr,
    /// Where node B sends to
    #[arg(long, value_name = "ADDRESS")]
    b_side: SocketAddr,
    /// Node A [default: the first that sends to the A side]
    #[arg(long, value_name = "ADDRESS")]
    a: Option<SocketAddr>,
    /// Node B [default: the first that sends to the B side]
    #[arg(long, value_name = "ADDRESS")]
    b: Option<SocketAddr>,
    /// How long each packet is on its way, e.g. 10ms
    #[arg(long, value_name = "TIME")]
    delay: Option<String>,
    /// Up to so much more delay, without changing the order
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,
    /// Bits a second, e.g. 100mbit
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// What may wait for the rate, as a time or in bytes, e.g. 50ms or 64kb [default: 50ms]
    #[arg(long, value_name = "LIMIT")]
    queue: Option<String>,
    /// Where packets wait for longer all the time they are marked (ECN), or lost if their sender takes no part in that, e.g. 5ms
    #[arg(long, value_name = "TIME")]
    codel: Option<String>,
    /// Packets lost one by one, e.g. 1% or 0.01
    #[arg(long, value_name = "SHARE")]
    loss: Option<String>,
    /// Packets lost in bursts: share of all, average length, e.g. 1%:8
    #[arg(long, value_name = "SHARE:LENGTH")]
    burst: Option<String>,
    /// Packets that later ones overtake
    #[arg(long, value_name = "SHARE")]
    reorder: Option<String>,
    /// How long an overtaken packet is held back [default: 5ms]
    #[arg(long, value_name = "TIME")]
    reorder_by: Option<String>,
    /// Packets that arrive twice
    #[arg(long, value_name = "SHARE")]
    duplicate: Option<String>,
    /// Packets with changed bytes
    #[arg(long, value_name = "SHARE")]
    corrupt: Option<String>,
    /// Larger packets are lost, in bytes of UDP payload
    #[arg(long, value_name = "BYTES")]
    mtu: Option<String>,
    /// Decides all chances
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Take commands on this unix socket too
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl Arguments {
    fn line(&self) -> anyhow::Result<LineSettings> {
        let mut line = LineSettings::default();
        for (name, value) in [
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("rate", &self.rate),
            ("queue", &self.queue),
            ("codel", &self.codel),
            ("loss", &self.loss),
            ("burst", &self.burst),
            ("reorder", &self.reorder),
            ("reorder-by", &self.reorder_by),
            ("duplicate", &self.duplicate),
            ("corrupt", &self.corrupt),
            ("mtu", &self.mtu),
        ] {
            if let Some(value) = value {
                line.set(name, value).with_context(|| format!("Cannot use --{name}"))?;
            }
        }
        Ok(line)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let line = arguments.line()?;
    let emulator = Arc::new(Emulator::start(EmulatorSettings {
        a_side: arguments.a_side,
        b_side: arguments.b_side,
        a: arguments.a,
        b: arguments.b,
        a_to_b: line.clone(),
        b_to_a: line,
        seed: arguments.seed,
    })?);
    if let Some(path) = &arguments.control {
        let listener = listen(path)?;
        let on_socket = Arc::clone(&emulator);
        std::thread::spawn(move || control::serve(&on_socket, &listener));
    }
    // Said only now: whoever waits for this line can use everything at once.
    eprintln!(
        "Carrying packets between {} (A side) and {} (B side); Ctrl-C ends it",
        emulator.a_side(),
        emulator.b_side()
    );
    control::converse(&emulator, io::stdin(), io::stdout())?;
    // Started without a terminal, the input ends at once; the line stays until a signal ends the program.
    loop {
        std::thread::park();
    }
}

/// Listens on `path`; a socket that an earlier run left behind is replaced, one that answers is not.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!("{} is the control socket of another running emulator; choose another path", path.display());
    }
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()));
    if is_socket {
        std::fs::remove_file(path).with_context(|| format!("Cannot remove the old socket {}", path.display()))?;
    }
    UnixListener::bind(path).with_context(|| format!("Cannot listen on {}; is the folder there?", path.display()))
}
