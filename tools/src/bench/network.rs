//! Two network namespaces whose only way to each other is an emulated line: what runs in them needs to know nothing of it.
//!
//! Namespaces and devices are gone when the network is dropped, and when a signal ends the program.

use super::peers::is_there;
use crate::{
    demo::processes::Workplace,
    emulator::{LineCounters, LineSettings, tun::TunLine},
};
use anyhow::{Context, anyhow};
use std::{
    net::IpAddr,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const SUBNET: &str = "10.66.0.0/24";
/// For a command that changes a namespace.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// One of the two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where data comes from.
    Near,
    /// Where data goes.
    Far,
}

impl End {
    /// Its address.
    pub fn address(self) -> IpAddr {
        IpAddr::from(match self {
            Self::Near => [10, 66, 0, 1],
            Self::Far => [10, 66, 0, 2],
        })
    }
}

/// See the module.
pub struct Network {
    // Dropped first: it ends the processes and the namespaces, which lets go of the devices.
    place: Workplace,
    line: TunLine,
    names: [String; 2],
}

impl Network {
    /// Makes the namespaces and the line.
    ///
    /// # Errors
    /// When a program is missing, or this user may not; with what to do about it.
    pub fn start(settings: &LineSettings, seed: u64) -> anyhow::Result<Self> {
        if !is_there("ip") {
            return Err(anyhow!("ip is not installed; install it with: tools/install-packages bench"));
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed) % 1000;
        let names = ["a", "b"].map(|end| format!("hf{}-{number}{end}", process::id()));
        let line = TunLine::start([&names[0], &names[1]], settings, seed)
            .context("Cannot make TUN devices; start the benchmark as root, on a kernel with /dev/net/tun")?;
        let network = Self { place: Workplace::new("holdfast-bench-network")?, line, names };
        for end in [End::Near, End::Far] {
            network.connect(end).with_context(|| format!("Cannot make the network namespace {}", network.name(end)))?;
        }
        Ok(network)
    }

    fn connect(&self, end: End) -> anyhow::Result<()> {
        let (name, address) = (self.name(end), format!("{}/24", end.address()));
        self.ip(&["netns", "add", name])?;
        let mut undoing = Command::new("ip");
        undoing.args(["netns", "del", name]);
        self.place.undo_at_the_end(undoing);
        self.ip(&["link", "set", "dev", name, "netns", name])?;
        self.ip(&["-n", name, "addr", "add", &address, "dev", name])?;
        // What waits for our thread must wait, not be lost: losing is the model's task.
        self.ip(&["-n", name, "link", "set", "dev", name, "mtu", "1500", "txqueuelen", "10000", "up"])?;
        // The kernel's own limits are too small for a long fat line, as every administrator of one knows. And it takes part in congestion
        // marks only if its caller does, so that nobody would.
        let buffers = "4096 262144 134217728";
        for (name, value) in [("tcp_rmem", buffers), ("tcp_wmem", buffers), ("tcp_ecn", "1")] {
            let setting = format!("echo {value} >/proc/sys/net/ipv4/{name}");
            self.place.run("sh", self.inside(end, "sh").args(["-c", &setting]), COMMAND_LIMIT)?;
        }
        Ok(())
    }

    /// Has all TCP connections from now on use this congestion control.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn use_algorithm(&self, algorithm: &str) -> anyhow::Result<()> {
        // By the route: a namespace's own default can only be what the administrator allows to everybody.
        for end in [End::Near, End::Far] {
            let name = self.name(end);
            self.ip(&["-n", name, "route", "replace", SUBNET, "dev", name, "congctl", algorithm])?;
        }
        Ok(())
    }

    fn ip(&self, words: &[&str]) -> anyhow::Result<String> {
        self.place.run("ip", Command::new("ip").args(words), COMMAND_LIMIT)
    }

    /// A program that will run in one of the namespaces.
    pub fn inside(&self, end: End, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(end), program]);
        command
    }

    /// The namespace's name.
    pub fn name(&self, end: End) -> &str {
        &self.names[end as usize]
    }

    /// What runs in the namespaces belongs here, so that it ends before they do.
    pub fn place(&self) -> &Workplace {
        &self.place
    }

    /// What came from the near end so far.
    pub fn counters(&self) -> LineCounters {
        self.line.counters()[End::Near as usize]
    }

    /// Cuts the line.
    pub fn cut(&self) {
        self.line.change(|line| line.cut = true);
    }

    /// Ends a cut.
    pub fn heal(&self) {
        self.line.change(|line| line.cut = false);
    }
}
