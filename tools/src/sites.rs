//! Two nodes and the emulated links between them: what the tests and the benchmark stand on.

use crate::{
    admin::Client,
    demo::{
        node::{LinkEnd, Node, free_port},
        processes::Workplace,
    },
    emulator::{Emulator, EmulatorSettings, LineSettings},
    nbd_client::NbdClient,
};
use anyhow::{Context, bail};
use holdfast::command::Lag;
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use ublk_target::api::Request;

/// The group of both nodes.
pub const GROUP: &str = "g";
/// Its only volume's export.
pub const EXPORT: &str = "g/v";

/// How long anything may take; far more than it does.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the sites are like.
pub struct SiteOptions {
    /// The folder's name begins with this.
    pub prefix: &'static str,
    /// Where `holdfastd` and `ublk-admin` are.
    pub programs: PathBuf,
    /// What each of the two links does, both ways; without it the nodes reach each other's sockets.
    pub line: Option<LineSettings>,
    /// Decides what the links lose.
    pub seed: u64,
    /// The volume's size, as `ublk-admin` takes it.
    pub size: String,
    /// The journal's size, as `ublk-admin` takes it.
    pub journal_size: String,
}

/// See the module.
pub struct Sites {
    /// The folder and the daemons.
    pub workplace: Workplace,
    /// The nodes; the first is the primary at the start.
    pub nodes: [Node; 2],
    /// The links; none where there is nothing between the nodes, or somebody else's line.
    pub links: Vec<Emulator>,
    size: String,
    journal_size: String,
}

impl Sites {
    /// Two nodes that are not running.
    ///
    /// # Errors
    /// When the programs, the folder, ports or keys cannot be had.
    pub fn new(options: &SiteOptions) -> anyhow::Result<Self> {
        let mut ends = [Vec::new(), Vec::new()];
        let mut links = Vec::new();
        for (name, seed) in ["one", "two"].into_iter().zip(options.seed..) {
            let (a, b) = (free_port()?, free_port()?);
            let (mut beyond_a, mut beyond_b) = (b, a);
            if let Some(line) = options.line.clone() {
                let mut settings = EmulatorSettings::local(line, seed);
                (settings.a, settings.b) = (Some(a), Some(b));
                let emulator = Emulator::start(settings)?;
                (beyond_a, beyond_b) = (emulator.a_side(), emulator.b_side());
                links.push(emulator);
            }
            ends[0].push(LinkEnd { name: name.into(), local: a, remote: beyond_a });
            ends[1].push(LinkEnd { name: name.into(), local: b, remote: beyond_b });
        }
        Ok(Self { links, ..Self::apart(options, &ends, [None, None])? })
    }

    /// Two nodes that are not running, each in a network namespace that reaches the other's address; one link.
    ///
    /// # Errors
    /// When the programs, the folder or keys cannot be had.
    pub fn in_namespaces(options: &SiteOptions, namespaces: [(&str, IpAddr); 2]) -> anyhow::Result<Self> {
        // Nobody else is there to have taken it.
        let [near, far] = namespaces.map(|(_, address)| SocketAddr::new(address, 7001));
        let end = |local, remote| vec![LinkEnd { name: "one".into(), local, remote }];
        Self::apart(options, &[end(near, far), end(far, near)], namespaces.map(|(name, _)| Some(name)))
    }

    /// Two nodes that know these ends of links.
    fn apart(options: &SiteOptions, ends: &[Vec<LinkEnd>; 2], namespaces: [Option<&str>; 2]) -> anyhow::Result<Self> {
        let workplace = Workplace::new(options.prefix)?;
        let node = |name| Node::new(name, workplace.folder(), &options.programs);
        let mut nodes = [node("north")?, node("south")?];
        for (node, namespace) in nodes.iter_mut().zip(namespaces) {
            node.namespace = namespace.map(str::to_owned);
        }
        nodes.iter().try_for_each(Node::configure_alone)?;
        let keys = [nodes[0].key()?, nodes[1].key()?];
        nodes[0].configure("south", &keys[1], &ends[0])?;
        nodes[1].configure("north", &keys[0], &ends[1])?;
        let (size, journal_size) = (options.size.clone(), options.journal_size.clone());
        Ok(Self { workplace, nodes, links: Vec::new(), size, journal_size })
    }

    /// The same, running, with a volume that is paired and in step.
    ///
    /// # Errors
    /// As [`Sites::new`], and when the nodes refuse something.
    pub fn paired(options: &SiteOptions) -> anyhow::Result<Self> {
        let sites = Self::new(options)?;
        sites.start_paired()?;
        Ok(sites)
    }

    /// Starts both nodes, and pairs a volume of the first with the second.
    ///
    /// # Errors
    /// When the nodes do not start or refuse something.
    pub fn start_paired(&self) -> anyhow::Result<()> {
        self.start(1)?;
        self.start(0)?;
        self.create_volume()?;
        self.pair()
    }

    /// Makes the group and its volume on the first node.
    ///
    /// # Errors
    /// When the node refuses.
    pub fn create_volume(&self) -> anyhow::Result<()> {
        self.ask(0, &["group", "create", GROUP, "--journal-size", &self.journal_size])?;
        self.ask(0, &["volume", "create", GROUP, "v", "--size", &self.size])?;
        Ok(())
    }

    /// Pairs the group with the second node, and waits for the initial copy.
    ///
    /// # Errors
    /// When a node refuses, or the copy does not end.
    pub fn pair(&self) -> anyhow::Result<()> {
        self.ask(0, &["pair", "create", GROUP, "--peer", "south", "--wait", "--timeout", "120"]).map(drop)
    }

    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(&self, node: usize) -> anyhow::Result<()> {
        self.nodes[node].start(&self.workplace)
    }

    /// Kills a node without warning.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill(&self, node: usize) -> anyhow::Result<()> {
        self.workplace.kill(&self.nodes[node].name)
    }

    /// An operator's command.
    ///
    /// # Errors
    /// When it is refused; with what was said.
    pub fn ask(&self, node: usize, arguments: &[&str]) -> anyhow::Result<Value> {
        self.nodes[node].ask(arguments)
    }

    /// How far a node's peer is behind, asked without a process, for who asks often.
    ///
    /// # Errors
    /// When the node does not tell.
    pub fn lag(&self, node: usize) -> anyhow::Result<Lag> {
        let client = Client::new(self.nodes[node].control_path());
        let status = client.ask(&Request::Status { group: Some(GROUP.to_owned()) })?;
        let figure = |name: &str| status["lag"][name].as_u64().with_context(|| format!("The status has no {name}"));
        Ok(Lag { micros: figure("micros")?, records: figure("records")?, bytes: figure("bytes")? })
    }

    /// What a refused command says.
    pub fn refusal(&self, node: usize, arguments: &[&str]) -> String {
        self.ask(node, arguments).map_or_else(|error| format!("{error:#}"), |answer| format!("accepted: {answer}"))
    }

    /// A client of the volume on a node.
    ///
    /// # Errors
    /// When the node does not serve it.
    pub fn client(&self, node: usize) -> anyhow::Result<NbdClient> {
        Ok(NbdClient::connect_unix(&self.nodes[node].nbd_path(), EXPORT)?)
    }

    /// Waits until the group's status on a node is as wanted.
    ///
    /// # Errors
    /// When that does not come about; with the status and the end of the node's log.
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

    /// Waits until the journals of these nodes were written with zeroes, which keeps their disks busy.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn wait_prepared(&self, nodes: &[usize]) -> anyhow::Result<()> {
        nodes.iter().try_for_each(|node| {
            self.wait(*node, "a journal that is prepared", |status| status["journal_unprepared"] == 0).map(drop)
        })
    }

    /// Waits until the standby has everything.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn wait_in_step(&self, primary: usize) -> anyhow::Result<()> {
        self.wait(primary, "a pair in step", |status| {
            status["pair"]["state"] == "duplex" && status["connected"] == true && status["lag"]["records"] == 0
        })
        .map(drop)
        .context("waiting for the standby")
    }
}
