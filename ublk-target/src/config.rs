//! A node's configuration: one TOML file. State is never in it.

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
};

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
    /// Media.
    #[serde(default)]
    pub media: MediaConfig,
}

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// For people.
    pub name: String,
    /// Key, groups and, unless they are elsewhere, media.
    #[serde(default = "default_directory")]
    pub directory: PathBuf,
    /// The control socket; `directory/control.sock` if absent.
    pub control: Option<PathBuf>,
    /// The key file; `directory/key` if absent.
    pub key: Option<PathBuf>,
}

/// `[[peer]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// How this node calls it.
    pub name: String,
    /// Its key, as `ublk-admin key` shows it there.
    pub key: String,
    /// One or two.
    #[serde(rename = "link")]
    pub links: Vec<LinkConfig>,
    /// How blocks are spread over the links.
    #[serde(default)]
    pub mode: Mode,
}

/// `[[peer.link]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// For people.
    pub name: Option<String>,
    /// Where this node sends from and listens: address and UDP port.
    pub local: SocketAddr,
    /// Where the peer does.
    pub remote: SocketAddr,
}

/// `[nbd]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdConfig {
    /// A unix socket to listen on.
    pub unix: Option<PathBuf>,
    /// A TCP address to listen on.
    pub tcp: Option<SocketAddr>,
    /// The TCP address may be other than loopback. NBD is neither encrypted nor authenticated.
    #[serde(default)]
    pub public: bool,
}

/// `[media]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediaConfig {
    /// Go through the page cache instead of direct I/O.
    #[serde(default)]
    pub buffered: bool,
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
    #[error("{path}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

fn default_directory() -> PathBuf {
    "/var/lib/holdfast".into()
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::Parse { path: path.into(), text: error.to_string() })?;
        let value = |key: String, reason: String| ConfigError::Value { path: path.into(), key, reason };
        if config.node.name.is_empty() || config.node.name.len() > 63 {
            return Err(value("node.name".into(), "a name has 1 to 63 bytes".into()));
        }
        for peer in &config.peers {
            let key = |field: &str| format!("peer \"{}\": {field}", peer.name);
            if !(1..=2).contains(&peer.links.len()) {
                return Err(value(key("link"), format!("a peer has one or two links, not {}", peer.links.len())));
            }
            peer.key().map_err(|error| value(key("key"), error.to_string()))?;
            if config.peers.iter().filter(|other| other.name == peer.name).count() > 1 {
                return Err(value(key("name"), "two peers have this name".into()));
            }
        }
        if let Some(address) = config.nbd.tcp.filter(|address| !address.ip().is_loopback() && !config.nbd.public) {
            let reason =
                format!("{address} is not a loopback address; NBD is not encrypted: set public = true if you mean it");
            return Err(value("nbd.tcp".into(), reason));
        }
        Ok(config)
    }

    /// The control socket.
    pub fn control_path(&self) -> PathBuf {
        self.node.control.clone().unwrap_or_else(|| self.node.directory.join("control.sock"))
    }

    /// The key file.
    pub fn key_path(&self) -> PathBuf {
        self.node.key.clone().unwrap_or_else(|| self.node.directory.join("key"))
    }

    /// Where groups have their folders.
    pub fn groups_path(&self) -> PathBuf {
        self.node.directory.join("groups")
    }

    /// Where the NBD server listens.
    pub fn nbd_addresses(&self) -> Vec<ListenAddress> {
        let unix = self.nbd.unix.clone().map(ListenAddress::Unix);
        unix.into_iter().chain(self.nbd.tcp.map(ListenAddress::Tcp)).collect()
    }
}

impl PeerConfig {
    /// The key, parsed.
    pub fn key(&self) -> Result<PeerKey, KeyTextError> {
        self.key.parse()
    }

    /// The links, named.
    pub fn link_options(&self) -> Vec<LinkOptions> {
        let named = self.links.iter().enumerate();
        named
            .map(|(index, link)| LinkOptions {
                name: link.name.clone().unwrap_or_else(|| format!("link{}", index + 1)),
                local: link.local,
                remote: link.remote,
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
        let message = error("[node]\nname = \"a\"\ndirectry = \"/x\"\n");
        assert!(message.starts_with("holdfast.toml: ") && message.contains("line 3"), "{message}");
        assert!(message.contains("directry"), "{message}");
    }

    #[test]
    fn impossible_values_are_named_with_the_way_out() {
        let message = error("[node]\nname = \"a\"\n[nbd]\ntcp = \"10.0.0.1:10809\"\n");
        assert!(message.contains("nbd.tcp: 10.0.0.1:10809 is not a loopback address"), "{message}");
        let peer =
            "[[peer]]\nname = \"b\"\nkey = \"12\"\n[[peer.link]]\nlocal = \"127.0.0.1:1\"\nremote = \"127.0.0.1:2\"\n";
        let message = error(&format!("[node]\nname = \"a\"\n{peer}"));
        assert!(message.contains("peer \"b\": key: \"12\" is no node key"), "{message}");
    }
}
