//! One node of the demo: its folder, configuration, daemon, and `ublk-admin` for it.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::processes::Workplace;

/// A daemon that is not ready by then has a fault.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// One end of one link.
#[derive(Clone, Debug)]
pub struct LinkEnd {
    /// The link's name in the configuration and in the status.
    pub name: String,
    /// Where this node sends from.
    pub local: SocketAddr,
    /// Where it sends to.
    pub remote: SocketAddr,
}

/// What a node's configuration is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// As it is when nothing is said.
    #[default]
    None,
    /// Lone requests: batches of the journal through the page cache, and busy polling.
    Latency,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, also that of its process.
    pub name: String,
    /// The network namespace that its daemon runs in, if not that of this program.
    pub namespace: Option<String>,
    /// Takes effect when the configuration is written.
    pub tuning: Tuning,
    folder: PathBuf,
    programs: PathBuf,
}

impl Node {
    /// A node in a folder of its own below `workplace`; `holdfastd` and `ublk-admin` are in `programs`.
    ///
    /// # Errors
    /// When the programs are not there, or the folder cannot be made.
    pub fn new(name: &str, workplace: &Path, programs: &Path) -> anyhow::Result<Self> {
        for program in ["holdfastd", "ublk-admin"] {
            if !programs.join(program).exists() {
                bail!(
                    "{} is missing; build everything with: cargo build --release --workspace --bins",
                    programs.join(program).display()
                );
            }
        }
        let folder = workplace.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
        Ok(Self { name: name.to_owned(), namespace: None, tuning: Tuning::None, folder, programs: programs.to_owned() })
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("holdfast.toml")
    }

    /// The control socket.
    pub fn control_path(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// The socket of the NBD server.
    pub fn nbd_path(&self) -> PathBuf {
        self.folder.join("nbd.sock")
    }

    /// Writes the configuration of a node without peers: enough to make its key.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure_alone(&self) -> anyhow::Result<()> {
        self.write_config("")
    }

    /// Writes the configuration of a node with one peer.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, peer: &str, key: &str, links: &[LinkEnd]) -> anyhow::Result<()> {
        let mut text = format!("\n[[peer]]\nname = {}\nkey = {}\n", quoted(peer), quoted(key));
        for link in links {
            text += &format!(
                "\n[[peer.link]]\nname = {}\nlocal = \"{}\"\nremote = \"{}\"\n",
                quoted(&link.name),
                link.local,
                link.remote
            );
        }
        self.write_config(&text)
    }

    fn write_config(&self, peers: &str) -> anyhow::Result<()> {
        let (node, media) = match self.tuning {
            Tuning::None => ("", ""),
            Tuning::Latency => ("busy_poll_micros = 200\n", "\n[media]\ncached_journal = true\n"),
        };
        let text = format!(
            "[node]\nname = {}\ndirectory = {}\ncontrol = {}\n{node}\n[nbd]\nunix = {}\n{media}{peers}",
            quoted(&self.name),
            quoted(&self.folder.join("state").display().to_string()),
            quoted(&self.control_path().display().to_string()),
            quoted(&self.nbd_path().display().to_string()),
        );
        let path = self.config_path();
        fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))
    }

    /// The node's public key in one line, made when there is none yet.
    ///
    /// # Errors
    /// When the command fails.
    pub fn key(&self) -> anyhow::Result<String> {
        let mut command = self.admin();
        command.arg("key").arg("--config").arg(self.config_path());
        let text = run(&mut command)?;
        Ok(text.trim().to_owned())
    }

    /// Starts the daemon and returns when it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(&self, workplace: &Workplace) -> anyhow::Result<()> {
        let daemon = self.programs.join("holdfastd");
        let mut command = match &self.namespace {
            None => Command::new(daemon),
            Some(namespace) => {
                // It becomes the daemon, so that there is one process to wait for and to kill.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(daemon);
                command
            }
        };
        command.arg("--config").arg(self.config_path());
        workplace.start(&self.name, &mut command, READY_LIMIT)
    }

    /// Runs `ublk-admin` for this node and returns what it answers as JSON.
    ///
    /// # Errors
    /// When the command fails; with what it said.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = self.admin();
        command.arg("--socket").arg(self.control_path()).arg("--json").args(arguments);
        let text = run(&mut command)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("ublk-admin {} answered: {text}", arguments.join(" ")))
    }

    /// Runs `ublk-admin` for this node and returns what it answers to a person.
    ///
    /// # Errors
    /// When the command fails; with what it said.
    pub fn words(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.admin();
        command.arg("--socket").arg(self.control_path()).args(arguments);
        run(&mut command)
    }

    /// How a person would give the same command.
    pub fn command_line(&self, arguments: &str) -> String {
        format!("{} --socket {} {arguments}", self.programs.join("ublk-admin").display(), self.control_path().display())
    }

    fn admin(&self) -> Command {
        let mut command = Command::new(self.programs.join("ublk-admin"));
        command.stdin(Stdio::null());
        command
    }
}

/// A UDP port of 127.0.0.1 that is free now, and that no other program of ours is given while this one runs.
///
/// # Errors
/// When none is free.
pub fn free_port() -> anyhow::Result<SocketAddr> {
    // Not one that the kernel gives to who asks for any: it may be needed again when its node was away for a while.
    const PORTS: std::ops::Range<u64> = 10_240..32_000;
    // Whoever bears a port's name may use it. The kernel takes the name back when the process ends, however it ends.
    static NAMES: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());
    let mut last = None;
    for _ in 0..100 {
        let number = RandomState::new().build_hasher().finish() % (PORTS.end - PORTS.start) + PORTS.start;
        let name = unix::SocketAddr::from_abstract_name(format!("holdfast-port-{number}"))?;
        let reserved = UnixDatagram::bind_addr(&name);
        match reserved.and_then(|name| Ok((name, UdpSocket::bind(("127.0.0.1", number as u16))?.local_addr()?))) {
            Ok((name, address)) => {
                NAMES.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                return Ok(address);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("No port is free"), anyhow::Error::from))
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("Cannot run {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    bail!(
        "ublk-admin {} failed: {}{}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A TOML string. JSON's escapes are a subset of TOML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_port_is_given_twice() {
        // Of as many by chance, eight would be among those before.
        let ports: BTreeSet<u16> = (0..600).map(|_| free_port().unwrap().port()).collect();
        assert_eq!(ports.len(), 600);
    }
}
