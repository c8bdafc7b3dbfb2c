//! A node's configuration: one TOML file. State is never in it.

mod checks;

use crate::nbd::ListenAddress;
use replicator::{
    Mode,
    io::{KeyTextError, LinkOptions, PeerKey},
};
use serde::Deserialize;
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Spanned;

/// Where the configuration is if nothing else is said.
pub const CONFIG_PATH: &str = "/etc/holdfast/holdfast.toml";

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// The other nodes.
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerConfig>,
    /// The NBD server.
    #[serde(default)]
    pub nbd: NbdConfig,
    /// Kernel block devices.
    #[serde(default)]
    pub ublk: UblkConfig,
    /// Media.
    #[serde(default)]
    pub media: MediaConfig,
    /// What happens when something changes.
    #[serde(default)]
    pub events: EventsConfig,
}

/// `[events]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsConfig {
    /// A program that is run for each event, one after the other.
    pub hook: Option<Spanned<PathBuf>>,
}

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// For people.
    pub name: Spanned<String>,
    /// Key, groups and, unless they are elsewhere, media.
    #[serde(default = "default_directory")]
    pub directory: PathBuf,
    /// The control socket; `directory/control.sock` if absent.
    pub control: Option<Spanned<PathBuf>>,
    /// The key file; `directory/key` if absent.
    pub key: Option<Spanned<PathBuf>>,
    /// For so many microseconds after a request the disk thread looks for work instead of sleeping: 0 (never) to 10,000.
    pub busy_poll_micros: Option<Spanned<u16>>,
}

impl NodeConfig {
    /// How long the disk thread polls after a request.
    pub fn busy_poll(&self) -> Duration {
        Duration::from_micros(self.busy_poll_micros.as_ref().map_or(0, |micros| (*micros.get_ref()).into()))
    }
}

/// `[[peer]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// How this node calls it.
    pub name: Spanned<String>,
    /// Its key, as `ublk-admin key` shows it there.
    pub key: Spanned<String>,
    /// One or two.
    #[serde(rename = "link")]
    pub links: Vec<LinkConfig>,
    /// How blocks are spread over the links.
    #[serde(default)]
    pub mode: Mode,
    /// A third path, on which the nodes only tell each other that they live.
    pub heartbeat: Option<HeartbeatConfig>,
}

/// `[peer.heartbeat]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// Where this node sends from and listens: address and UDP port.
    pub local: Spanned<SocketAddr>,
    /// Where the peer does.
    pub remote: Spanned<SocketAddr>,
}

/// `[[peer.link]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// For people.
    pub name: Option<Spanned<String>>,
    /// Where this node sends from and listens: address and UDP port.
    pub local: Spanned<SocketAddr>,
    /// Where the peer does.
    pub remote: Spanned<SocketAddr>,
}

/// `[nbd]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdConfig {
    /// A unix socket to listen on.
    pub unix: Option<Spanned<PathBuf>>,
    /// A TCP address to listen on.
    pub tcp: Option<Spanned<SocketAddr>>,
    /// The TCP address may be other than loopback. NBD is neither encrypted nor authenticated.
    #[serde(default)]
    pub public: bool,
}

/// What becomes of the requests under way on a device whose daemon dies; what comes later waits for the next daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// The next daemon gets them again.
    #[default]
    Reissue,
    /// They get an I/O error.
    Fail,
}

/// `[ublk]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UblkConfig {
    /// Hardware queues of a device: 1 to 64.
    pub queues: Spanned<u16>,
    /// Requests in flight on a queue: 1 to 1024.
    pub depth: Spanned<u16>,
    /// What becomes of the requests under way when the daemon dies. Holds for devices that are made from now on.
    pub recovery: Recovery,
}

impl Default for UblkConfig {
    fn default() -> Self {
        Self { queues: Spanned::new(0..0, 1), depth: Spanned::new(0..0, 128), recovery: Recovery::default() }
    }
}

/// `[media]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediaConfig {
    /// Go through the page cache instead of direct I/O.
    #[serde(default)]
    pub buffered: bool,
    /// Write small batches of journals through the page cache.
    #[serde(default)]
    pub cached_journal: bool,
}

/// Why a configuration was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("Cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is not as it should be; names line, column and key.
    #[error("{path}: {text}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        text: String,
    },
    /// A value cannot be.
    #[error("{path}: line {line}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

fn default_directory() -> PathBuf {
    "/var/lib/holdfast".into()
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })
}

fn chosen(path: &Option<Spanned<PathBuf>>) -> Option<PathBuf> {
    path.as_ref().map(|path| path.get_ref().clone())
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, path)
    }

    /// Reads a file for the daemon: what it is to run must be there too. Commands do not ask for that, for they must not fail with it.
    pub fn read_to_serve(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        let config = Self::parse(&text, path)?;
        checks::check_hook(&config).map_err(|wrong| wrong.explain(&text, path))?;
        Ok(config)
    }

    /// Checks a text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::Parse { path: path.into(), text: error.to_string() })?;
        checks::check(&config).map_err(|wrong| wrong.explain(text, path))?;
        Ok(config)
    }

    /// The control socket.
    pub fn control_path(&self) -> PathBuf {
        chosen(&self.node.control).unwrap_or_else(|| self.node.directory.join("control.sock"))
    }

    /// The key file.
    pub fn key_path(&self) -> PathBuf {
        chosen(&self.node.key).unwrap_or_else(|| self.node.directory.join("key"))
    }

    /// Where groups have their folders.
    pub fn groups_path(&self) -> PathBuf {
        self.node.directory.join("groups")
    }

    /// Where the NBD server listens.
    pub fn nbd_addresses(&self) -> Vec<ListenAddress> {
        let unix = chosen(&self.nbd.unix).map(ListenAddress::Unix);
        unix.into_iter().chain(self.nbd.tcp.iter().map(|tcp| ListenAddress::Tcp(*tcp.get_ref()))).collect()
    }
}

impl PeerConfig {
    /// The key, parsed.
    pub fn key(&self) -> Result<PeerKey, KeyTextError> {
        self.key.get_ref().parse()
    }

    /// The links, named.
    pub fn link_options(&self) -> Vec<LinkOptions> {
        let named = self.links.iter().enumerate();
        named
            .map(|(index, link)| LinkOptions {
                name: link.name.as_ref().map_or_else(|| format!("link{}", index + 1), |name| name.get_ref().clone()),
                local: *link.local.get_ref(),
                remote: *link.remote.get_ref(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("holdfast.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        assert_eq!(
            error("[node]\nname = \"a\"\ndirectry = \"/x\"\n"),
            "holdfast.toml: TOML parse error at line 3, column 1\n  |\n3 | directry = \"/x\"\n  | ^^^^^^^^\n\
             unknown field `directry`, expected one of `name`, `directory`, `control`, `key`, `busy_poll_micros`\n"
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_file_and_line() {
        let message = error("[node]\nname = \"a\"\n\n[nbd]\ntcp = \"localhost\"\n");
        assert!(message.starts_with("holdfast.toml: TOML parse error at line 5, column 7\n"), "{message}");
        assert!(message.ends_with("invalid socket address syntax\n"), "{message}");
    }

    #[test]
    fn a_whole_file_is_understood() {
        let text = format!(
            "[node]\nname = \"a\"\ndirectory = \"/d\"\nbusy_poll_micros = 50\n[nbd]\ntcp = \"0.0.0.0:10809\"\npublic = true\n[media]\n\
             buffered = true\ncached_journal = true\n[[peer]]\n\
             name = \"b\"\nkey = \"{}\"\nmode = \"split\"\n[[peer.link]]\nlocal = \"127.0.0.1:1\"\nremote = \"127.0.0.1:2\"\n\
             [[peer.link]]\nlocal = \"127.0.0.1:3\"\nremote = \"127.0.0.1:4\"\n",
            PeerKey([7; 32])
        );
        let config = Config::parse(&text, Path::new("holdfast.toml")).unwrap();
        assert_eq!(config.control_path(), Path::new("/d/control.sock"));
        assert_eq!(config.key_path(), Path::new("/d/key"));
        assert_eq!(config.node.busy_poll(), Duration::from_micros(50));
        assert_eq!(config.nbd_addresses(), [ListenAddress::Tcp("0.0.0.0:10809".parse().unwrap())]);
        assert!(config.media.buffered && config.media.cached_journal);
        assert_eq!(config.peers[0].mode, Mode::Split);
        let names: Vec<String> = config.peers[0].link_options().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["link1", "link2"]);
    }
}
