//! TCP over the same line model: iperf3 between two network namespaces whose only way to each other is the line.
//!
//! Namespaces and devices are gone when the line is dropped, and when a signal ends the program.

use super::peers::is_there;
use crate::{
    demo::processes::Workplace,
    emulator::{LineSettings, tun::TunLine},
};
use anyhow::{Context, anyhow};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const CLIENT: usize = 0;
const SERVER: usize = 1;
const ADDRESSES: [&str; 2] = ["10.66.0.1/24", "10.66.0.2/24"];
const SERVER_ADDRESS: &str = "10.66.0.2";
/// For a command that changes a namespace.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// The congestion controls that are measured, of those that the kernel has.
pub fn algorithms() -> Vec<&'static str> {
    let known = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    ["cubic", "bbr"].into_iter().filter(|name| known.split_whitespace().any(|word| word == *name)).collect()
}

/// Two namespaces with a line between them.
pub struct TcpLine {
    // Dropped first: it ends the processes and the namespaces, which lets go of the devices.
    place: Workplace,
    line: TunLine,
    names: [String; 2],
}

impl TcpLine {
    /// Makes them.
    ///
    /// # Errors
    /// When a program is missing, or this user may not; with what to do about it.
    pub fn start(settings: &LineSettings, seed: u64) -> anyhow::Result<Self> {
        for program in ["ip", "iperf3"] {
            if !is_there(program) {
                return Err(anyhow!("{program} is not installed; install it with: tools/install-packages bench"));
            }
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed) % 1000;
        let names = ["a", "b"].map(|end| format!("hf{}-{number}{end}", process::id()));
        let line = TunLine::start([&names[0], &names[1]], settings, seed)
            .context("Cannot make TUN devices; start the benchmark as root, on a kernel with /dev/net/tun")?;
        let line = Self { place: Workplace::new("holdfast-bench-tcp")?, line, names };
        for (name, address) in line.names.iter().zip(ADDRESSES) {
            line.connect(name, address).with_context(|| format!("Cannot make the network namespace {name}"))?;
        }
        Ok(line)
    }

    fn connect(&self, name: &str, address: &str) -> anyhow::Result<()> {
        let ip = |words: &[&str]| self.place.run("ip", Command::new("ip").args(words), COMMAND_LIMIT);
        ip(&["netns", "add", name])?;
        let mut undoing = Command::new("ip");
        undoing.args(["netns", "del", name]);
        self.place.undo_at_the_end(undoing);
        ip(&["link", "set", "dev", name, "netns", name])?;
        ip(&["-n", name, "addr", "add", address, "dev", name])?;
        // What waits for our thread must wait, not be lost: losing is the model's task.
        ip(&["-n", name, "link", "set", "dev", name, "mtu", "1500", "txqueuelen", "10000", "up"])?;
        // The kernel's own limits are too small for a long fat line, as every administrator of one knows.
        for buffer in ["tcp_rmem", "tcp_wmem"] {
            let setting = format!("echo 4096 262144 134217728 >/proc/sys/net/ipv4/{buffer}");
            ip(&["netns", "exec", name, "sh", "-c", &setting])?;
        }
        Ok(())
    }

    /// Cuts the line.
    pub fn cut(&self) {
        self.line.change(|line| line.cut = true);
    }

    /// Ends a cut.
    pub fn heal(&self) {
        self.line.change(|line| line.cut = false);
    }

    /// What one connection brings to the other side in so long, after a warm-up, in Mbit/s. Both in whole seconds.
    ///
    /// # Errors
    /// When iperf3 fails; with what it said.
    pub fn goodput(&self, algorithm: &str, warm_up: Duration, took: Duration) -> anyhow::Result<f64> {
        let inside = |end: usize| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.names[end], "iperf3"]);
            command
        };
        let log = self.place.folder().join("iperf3-server.log");
        let _ = fs::remove_file(&log);
        self.place.launch("iperf3-server", inside(SERVER).args(["--server", "--one-off", "--forceflush"]))?;
        let outcome = self.listening(&log).and_then(|()| {
            let (omitted, seconds) = (warm_up.as_secs().to_string(), took.as_secs().max(1).to_string());
            let mut client = inside(CLIENT);
            client.args([
                "--client",
                SERVER_ADDRESS,
                "--omit",
                &omitted,
                "--time",
                &seconds,
                "--congestion",
                algorithm,
                "--json",
            ]);
            // Over a bad line the greeting and the farewell take their time as well.
            self.place.run("iperf3", &mut client, warm_up + took + Duration::from_secs(60))
        });
        // One that has served its connection has ended.
        let _ = self.place.kill("iperf3-server");
        let text = outcome?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 answered: {text}"))?;
        let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.with_context(|| format!("iperf3 answered: {text}"))? / 1e6)
    }

    fn listening(&self, log: &Path) -> anyhow::Result<()> {
        for _ in 0..500 {
            if fs::read_to_string(log).unwrap_or_default().contains("Server listening") {
                return Ok(());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Err(anyhow!("iperf3 does not listen: {}", self.place.log_tail("iperf3-server")))
    }
}
