//! Values that a configuration can be read with, but that no node can run with.

use super::{Config, ConfigError, PeerConfig, chosen};
use nix::unistd::{AccessFlags, access};
use std::{
    env, io,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::Spanned;

/// A value that cannot be.
pub(super) struct Wrong {
    span: Range<usize>,
    key: String,
    reason: String,
}

impl Wrong {
    fn new<T>(value: &Spanned<T>, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { span: value.span(), key: key.into(), reason: reason.into() }
    }

    /// With the line of the text in which it is.
    pub(super) fn explain(self, text: &str, path: &Path) -> ConfigError {
        let line = 1 + text.bytes().take(self.span.start).filter(|byte| *byte == b'\n').count();
        ConfigError::Value { path: path.into(), line, key: self.key, reason: self.reason }
    }
}

/// Looks at everything that can be told from the text alone.
pub(super) fn check(config: &Config) -> Result<(), Wrong> {
    let name = &config.node.name;
    if name.get_ref().is_empty() || name.get_ref().len() > 63 {
        return Err(Wrong::new(name, "node.name", "a name has 1 to 63 bytes"));
    }
    for (index, peer) in config.peers.iter().enumerate() {
        check_peer(peer, &config.peers[..index])?;
    }
    check_places(config)?;
    check_listener(config)?;
    let bounded = [
        ("ublk.queues", Some(&config.ublk.queues), 1..=64),
        ("ublk.depth", Some(&config.ublk.depth), 1..=1024),
        ("node.busy_poll_micros", config.node.busy_poll_micros.as_ref(), 0..=10_000),
    ];
    for (key, number, range) in bounded {
        if let Some(number) = number.filter(|number| !range.contains(number.get_ref())) {
            let reason = format!("{} is not between {} and {}", number.get_ref(), range.start(), range.end());
            return Err(Wrong::new(number, key, reason));
        }
    }
    Ok(())
}

/// Looks whether the program that events are handed to can be run.
pub(super) fn check_hook(config: &Config) -> Result<(), Wrong> {
    let Some(hook) = &config.events.hook else {
        return Ok(());
    };
    find_program(hook.get_ref()).map_err(|error| {
        Wrong::new(hook, "events.hook", format!("{} cannot be run: {error}", hook.get_ref().display()))
    })
}

/// As it will be run: a name without a slash is looked for as a shell does it.
fn find_program(name: &Path) -> io::Result<()> {
    let can_be_run = |path: &PathBuf| {
        access(path, AccessFlags::X_OK)?;
        if path.is_file() { Ok(()) } else { Err(io::Error::other("it is no file")) }
    };
    if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        return can_be_run(&name.to_owned());
    }
    let found =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| can_be_run(&folder.join(name)).is_ok());
    if found { Ok(()) } else { Err(io::Error::other("it is in no folder of PATH; give its whole path")) }
}

fn check_peer(peer: &PeerConfig, others: &[PeerConfig]) -> Result<(), Wrong> {
    let name = peer.name.get_ref();
    let field = |field: &str| format!("peer \"{name}\": {field}");
    if name.is_empty() {
        return Err(Wrong::new(&peer.name, field("name"), "a name has at least one character"));
    }
    if !(1..=2).contains(&peer.links.len()) {
        let reason = format!("a peer has one or two links, not {}", peer.links.len());
        return Err(Wrong::new(&peer.name, field("link"), reason));
    }
    let key = peer.key().map_err(|error| Wrong::new(&peer.key, field("key"), error.to_string()))?;
    if others.iter().any(|other| other.name.get_ref() == name) {
        return Err(Wrong::new(&peer.name, field("name"), "two peers have this name"));
    }
    if let Some(other) = others.iter().find(|other| other.key().is_ok_and(|other| other == key)) {
        let reason = format!("{key} is also the key of peer \"{}\"; each node has its own", other.name.get_ref());
        return Err(Wrong::new(&peer.key, field("key"), reason));
    }
    let mut before: Option<(String, SocketAddr)> = None;
    for (link, options) in peer.links.iter().zip(peer.link_options()) {
        check_path(&link.local, &link.remote, field(&format!("link \"{}\"", options.name)))?;
        if let Some((before, remote)) = before.replace((options.name.clone(), options.remote)) {
            if before == options.name {
                let reason = format!("the peer has two links with the name \"{before}\"");
                let span = link.name.as_ref().map_or_else(|| link.local.span(), Spanned::span);
                return Err(Wrong { span, key: field("link.name"), reason });
            }
            if remote == options.remote {
                let reason = format!("{remote} is also that of link \"{before}\"; give each link its own");
                return Err(Wrong::new(&link.remote, field(&format!("link \"{}\": remote", options.name)), reason));
            }
        }
    }
    match &peer.heartbeat {
        Some(path) => check_path(&path.local, &path.remote, field("heartbeat")),
        None => Ok(()),
    }
}

/// Looks at the two ends of a path that is to lead from this node to the peer.
fn check_path(local: &Spanned<SocketAddr>, remote: &Spanned<SocketAddr>, path: String) -> Result<(), Wrong> {
    let (here, there) = (local.get_ref(), remote.get_ref());
    let kind = |address: &SocketAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let reason = if there.port() == 0 {
        format!("{there} has port 0; give the UDP port of the peer's end")
    } else if there.ip().is_unspecified() {
        format!("{there} names no machine; give the address of the peer's end")
    } else if here.is_ipv4() != there.is_ipv4() {
        format!("{there} is {}, but local, {here}, is {}; give two of one kind", kind(there), kind(here))
    } else if here == there {
        format!("{there} is also local; give the address and port of the peer's end")
    } else {
        return Ok(());
    };
    Err(Wrong::new(remote, format!("{path}: remote"), reason))
}

/// No two files or sockets in one place: the later would take the place of the former.
fn check_places(config: &Config) -> Result<(), Wrong> {
    let places = [
        ("node.key", config.node.key.as_ref(), Some(config.key_path())),
        ("node.control", config.node.control.as_ref(), Some(config.control_path())),
        ("nbd.unix", config.nbd.unix.as_ref(), chosen(&config.nbd.unix)),
    ];
    for (index, (key, given, place)) in places.iter().enumerate() {
        for (other_key, other_given, _) in
            places[..index].iter().filter(|(.., other)| place.is_some() && other == place)
        {
            let (value, key, other_key) = match (given, other_given) {
                (Some(value), _) => (value, key, other_key),
                (None, Some(value)) => (value, other_key, key),
                // No two defaults are one.
                (None, None) => continue,
            };
            let reason = format!("{} is also {other_key}; give each its own", value.get_ref().display());
            return Err(Wrong::new(value, *key, reason));
        }
    }
    Ok(())
}

fn check_listener(config: &Config) -> Result<(), Wrong> {
    let Some(tcp) = config.nbd.tcp.as_ref().filter(|tcp| !tcp.get_ref().ip().is_loopback() && !config.nbd.public)
    else {
        return Ok(());
    };
    let reason =
        format!("{} is not a loopback address; NBD is not encrypted: set public = true if you mean it", tcp.get_ref());
    Err(Wrong::new(tcp, "nbd.tcp", reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use replicator::io::PeerKey;

    const NODE: &str = "[node]\nname = \"a\"\n";

    #[track_caller]
    fn refuses(text: &str, message: &str) {
        let error = Config::parse(text, Path::new("holdfast.toml")).unwrap_err().to_string();
        assert_eq!(error, format!("holdfast.toml: {message}"), "{text}");
    }

    fn key(number: u8) -> String {
        PeerKey([number; 32]).to_string()
    }

    /// Four lines.
    fn link(name: &str, local: &str, remote: &str) -> String {
        format!("[[peer.link]]\nname = \"{name}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n")
    }

    /// A node with a peer, in lines 3 to 5, and what follows from line 6 on.
    fn with_peer(name: &str, key: &str, links: &str) -> String {
        format!("{NODE}[[peer]]\nname = \"{name}\"\nkey = \"{key}\"\n{links}")
    }

    fn good() -> String {
        link("one", "192.0.2.1:1", "192.0.2.2:1")
    }

    #[test]
    fn a_name_has_characters() {
        refuses("[node]\nname = \"\"\n", "line 2: node.name: a name has 1 to 63 bytes");
        refuses(&with_peer("", &key(7), &good()), "line 4: peer \"\": name: a name has at least one character");
    }

    #[test]
    fn numbers_have_bounds() {
        refuses(&format!("{NODE}[ublk]\nqueues = 65\n"), "line 4: ublk.queues: 65 is not between 1 and 64");
        let micros = format!("{NODE}busy_poll_micros = 10001\n");
        refuses(&micros, "line 3: node.busy_poll_micros: 10001 is not between 0 and 10000");
    }

    #[test]
    fn nbd_is_for_this_machine() {
        refuses(
            &format!("{NODE}[nbd]\ntcp = \"10.0.0.1:10809\"\n"),
            "line 4: nbd.tcp: 10.0.0.1:10809 is not a loopback address; NBD is not encrypted: set public = true if you \
             mean it",
        );
    }

    #[test]
    fn a_peer_has_a_key_and_one_or_two_links() {
        refuses(
            &with_peer("b", "12", &good()),
            "line 5: peer \"b\": key: \"12\" is no node key; a key is one line as `ublk-admin key` shows it: \
             holdfast-ed25519: and 64 hexadecimal digits",
        );
        let three = with_peer("b", &key(7), &good().repeat(3));
        refuses(&three, "line 4: peer \"b\": link: a peer has one or two links, not 3");
    }

    #[test]
    fn no_two_peers_have_one_name_or_key() {
        let peers =
            |name, number| with_peer("b", &key(7), &good()) + &with_peer(name, &key(number), &good())[NODE.len()..];
        refuses(&peers("b", 8), "line 11: peer \"b\": name: two peers have this name");
        let message =
            format!("line 12: peer \"c\": key: {} is also the key of peer \"b\"; each node has its own", key(7));
        refuses(&peers("c", 7), &message);
        assert!(Config::parse(&peers("c", 8), Path::new("holdfast.toml")).is_ok());
    }

    #[test]
    fn a_path_leads_from_here_to_another_place() {
        let cases = [
            ("192.0.2.1:1", "192.0.2.2:0", "192.0.2.2:0 has port 0; give the UDP port of the peer's end"),
            ("192.0.2.1:1", "0.0.0.0:1", "0.0.0.0:1 names no machine; give the address of the peer's end"),
            ("[2001:db8::1]:1", "[::]:1", "[::]:1 names no machine; give the address of the peer's end"),
            (
                "192.0.2.1:1",
                "[2001:db8::1]:1",
                "[2001:db8::1]:1 is IPv6, but local, 192.0.2.1:1, is IPv4; give two of one kind",
            ),
            (
                "[2001:db8::1]:1",
                "192.0.2.1:1",
                "192.0.2.1:1 is IPv4, but local, [2001:db8::1]:1, is IPv6; give two of one kind",
            ),
            ("192.0.2.1:1", "192.0.2.1:1", "192.0.2.1:1 is also local; give the address and port of the peer's end"),
        ];
        for (local, remote, reason) in cases {
            let links = good() + &link("two", local, remote);
            refuses(&with_peer("b", &key(7), &links), &format!("line 13: peer \"b\": link \"two\": remote: {reason}"));
            let beats = format!("{}[peer.heartbeat]\nlocal = \"{local}\"\nremote = \"{remote}\"\n", good());
            refuses(&with_peer("b", &key(7), &beats), &format!("line 12: peer \"b\": heartbeat: remote: {reason}"));
        }
    }

    #[test]
    fn two_links_differ_in_name_and_remote() {
        let second = |name, remote| with_peer("b", &key(7), &(good() + &link(name, "192.0.2.1:2", remote)));
        let message = "line 11: peer \"b\": link.name: the peer has two links with the name \"one\"";
        refuses(&second("one", "192.0.2.2:2"), message);
        let message = "line 13: peer \"b\": link \"two\": remote: 192.0.2.2:1 is also that of link \"one\"; give each link its own";
        refuses(&second("two", "192.0.2.2:1"), message);
        // One without a name has one all the same.
        let unnamed = "[[peer.link]]\nlocal = \"192.0.2.1:2\"\nremote = \"192.0.2.2:2\"\n";
        let links = link("link2", "192.0.2.1:1", "192.0.2.2:1") + unnamed;
        let message = "line 11: peer \"b\": link.name: the peer has two links with the name \"link2\"";
        refuses(&with_peer("b", &key(7), &links), message);
    }

    #[test]
    fn sockets_and_the_key_have_places_of_their_own() {
        let node = |rest: &str| format!("{NODE}directory = \"/d\"\n{rest}");
        let cases = [
            (
                "control = \"/s\"\n[nbd]\nunix = \"/s\"\n",
                "line 6: nbd.unix: /s is also node.control; give each its own",
            ),
            ("[nbd]\nunix = \"/d/key\"\n", "line 5: nbd.unix: /d/key is also node.key; give each its own"),
            ("control = \"/d//key\"\n", "line 4: node.control: /d//key is also node.key; give each its own"),
            (
                "key = \"/d/control.sock\"\n",
                "line 4: node.key: /d/control.sock is also node.control; give each its own",
            ),
        ];
        cases.iter().for_each(|(rest, message)| refuses(&node(rest), message));
    }

    #[test]
    fn a_hook_is_a_program_that_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holdfast.toml");
        let read = |hook: &str| {
            std::fs::write(&path, format!("{NODE}[events]\nhook = \"{hook}\"\n")).unwrap();
            // Commands do not need it.
            Config::read(&path).unwrap();
            Config::read_to_serve(&path).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(read("/bin/sh"), Ok(()));
        assert_eq!(read("sh"), Ok(()));
        let place = |file: &str| folder.path().join(file).display().to_string();
        std::fs::write(place("text"), "").unwrap();
        let cases = [
            (place("none"), "No such file or directory (os error 2)"),
            (place("text"), "Permission denied (os error 13)"),
            (place(""), "it is no file"),
            ("no-such-program".into(), "it is in no folder of PATH; give its whole path"),
        ];
        for (hook, reason) in cases {
            let message = format!("{}: line 4: events.hook: {hook} cannot be run: {reason}", path.display());
            assert_eq!(read(&hook), Err(message));
        }
    }
}
