//! Two nodes and two emulated links between them.

use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tools::{
    demo::{
        node::{LinkEnd, Node, free_port},
        processes::Workplace,
    },
    emulator::{Emulator, EmulatorSettings, LineSettings},
    nbd_client::NbdClient,
};

/// The group of the tests.
pub const GROUP: &str = "g";
/// Its only volume's export.
pub const EXPORT: &str = "g/v";
/// The volume's size in bytes.
pub const SIZE: u64 = 64 << 20;

/// How long anything may take; far more than it does.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
pub struct Sites {
    /// The folder and the daemons.
    pub workplace: Workplace,
    /// The nodes; the first is the primary at the start.
    pub nodes: [Node; 2],
    /// The links.
    pub links: [Emulator; 2],
}

/// Where cargo put the programs.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    test.ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

impl Sites {
    /// Two nodes that are not running, with lines as given.
    pub fn new(line: LineSettings, seed: u64) -> anyhow::Result<Self> {
        let workplace = Workplace::new("holdfast-test")?;
        let programs = programs();
        let nodes =
            [Node::new("north", workplace.folder(), &programs)?, Node::new("south", workplace.folder(), &programs)?];
        let mut ends = [Vec::new(), Vec::new()];
        let mut link = |name: &str, seed| -> anyhow::Result<Emulator> {
            let (a, b) = (free_port()?, free_port()?);
            let mut settings = EmulatorSettings::local(line.clone(), seed);
            (settings.a, settings.b) = (Some(a), Some(b));
            let emulator = Emulator::start(settings)?;
            ends[0].push(LinkEnd { name: name.into(), local: a, remote: emulator.a_side() });
            ends[1].push(LinkEnd { name: name.into(), local: b, remote: emulator.b_side() });
            Ok(emulator)
        };
        let links = [link("one", seed)?, link("two", seed + 1)?];
        nodes.iter().try_for_each(Node::configure_alone)?;
        let keys = [nodes[0].key()?, nodes[1].key()?];
        nodes[0].configure("south", &keys[1], &ends[0])?;
        nodes[1].configure("north", &keys[0], &ends[1])?;
        Ok(Self { workplace, nodes, links })
    }

    /// The same, running, with a volume that is paired and in step.
    pub fn paired(line: LineSettings, seed: u64) -> anyhow::Result<Self> {
        let sites = Self::new(line, seed)?;
        sites.start(1)?;
        sites.start(0)?;
        sites.create_volume()?;
        sites.ask(0, &["pair", "create", GROUP, "--peer", "south", "--wait", "--timeout", "120"])?;
        Ok(sites)
    }

    /// Makes the group and its volume on the first node.
    pub fn create_volume(&self) -> anyhow::Result<()> {
        self.ask(0, &["group", "create", GROUP, "--journal-size", "64MiB"])?;
        self.ask(0, &["volume", "create", GROUP, "v", "--size", "64MiB"])?;
        Ok(())
    }

    /// Starts a node and waits until it is ready.
    pub fn start(&self, node: usize) -> anyhow::Result<()> {
        self.nodes[node].start(&self.workplace)
    }

    /// Kills a node without warning.
    pub fn kill(&self, node: usize) -> anyhow::Result<()> {
        self.workplace.kill(&self.nodes[node].name)
    }

    /// An operator's command.
    pub fn ask(&self, node: usize, arguments: &[&str]) -> anyhow::Result<Value> {
        self.nodes[node].ask(arguments)
    }

    /// What a refused command says.
    pub fn refusal(&self, node: usize, arguments: &[&str]) -> String {
        self.ask(node, arguments).map_or_else(|error| format!("{error:#}"), |answer| format!("accepted: {answer}"))
    }

    /// A client of the volume on a node.
    pub fn client(&self, node: usize) -> anyhow::Result<NbdClient> {
        Ok(NbdClient::connect_unix(&self.nodes[node].nbd_path(), EXPORT)?)
    }

    /// Waits until the group's status on a node is as wanted.
    pub fn wait(&self, node: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.ask(node, &["status", GROUP])?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > end {
                let log = self.workplace.log_tail(&self.nodes[node].name);
                bail!("{what} did not come about; the status is {status:#}\n{log}");
            }
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Waits until the standby has everything.
    pub fn wait_in_step(&self, primary: usize) -> anyhow::Result<()> {
        self.wait(primary, "a pair in step", |status| {
            status["pair"]["state"] == "duplex" && status["connected"] == true && status["lag"]["records"] == 0
        })
        .map(drop)
        .context("waiting for the standby")
    }
}
