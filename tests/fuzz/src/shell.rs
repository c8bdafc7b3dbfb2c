//! What faces hosts, operators and files: NBD, messages between nodes, the control API, the configuration, the key file.

use crate::input::Input;
use holdfast::units::MediumUuid;
use replicator::io::{Identity, PeerKey};
use std::path::Path;
use ublk_target::{
    api,
    config::Config,
    nbd::{
        ExportInfo,
        handshake::{Catalog, Handshake, Step},
        protocol::{Command, REQUEST_HEADER_SIZE, Request},
    },
    provision::{Message, ProvisionVolume},
};

/// More than any answer to so short an input: a client must not make the server write without end.
const ANSWER_SIZE_MAX: usize = 4 << 20;

struct Exports;

impl Catalog for Exports {
    fn list(&self) -> Vec<ExportInfo> {
        vec![export(false), ExportInfo { name: "g/w".into(), ..export(true) }]
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.list().into_iter().find(|info| info.name == name)
    }
}

fn export(read_only: bool) -> ExportInfo {
    ExportInfo {
        name: "v".into(),
        description: "a volume".into(),
        size: 1 << 20,
        logical_block_size: 512,
        preferred_block_size: 4096,
        read_only,
    }
}

/// A negotiation: it gives the same however the client's bytes are cut into pieces.
pub fn nbd_handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let piece = 1 + input.pick(40);
    let sent = input.rest();
    let (mut whole, mut answer) = (Handshake::default(), Vec::new());
    let step = whole.advance(&mut sent.to_vec(), &Exports, &mut answer);
    assert!(answer.len() <= ANSWER_SIZE_MAX);
    let (mut by_pieces, mut pending, mut answer_to_pieces) = (Handshake::default(), Vec::new(), Vec::new());
    let mut last = Step::More;
    for part in sent.chunks(piece) {
        pending.extend_from_slice(part);
        last = by_pieces.advance(&mut pending, &Exports, &mut answer_to_pieces);
        if last != Step::More {
            break;
        }
    }
    assert_eq!((last, answer_to_pieces), (step, answer));
}

/// Headers of requests, one after the other.
pub fn nbd_request(data: &[u8]) {
    for header in data.chunks(REQUEST_HEADER_SIZE) {
        let Ok(header) = header.try_into() else { return };
        let Ok(request) = Request::parse(header) else { continue };
        for read_only in [false, true] {
            let info = export(read_only);
            let moves_nothing = matches!(request.command, Command::Flush | Command::Disconnect);
            if request.check(&info).is_ok() && !moves_nothing {
                let end = request.offset.checked_add(request.size.into());
                assert!(end.is_some_and(|end| end <= info.size) && request.size > 0);
                assert!((request.offset | u64::from(request.size)).is_multiple_of(512));
                assert!(!read_only || matches!(request.command, Command::Read | Command::BlockStatus { .. }));
            }
        }
    }
}

/// A message of a peer's node.
pub fn node_message(data: &[u8]) {
    let Some(message) = Message::parse(data) else { return };
    if let Message::Provision { volumes, .. } = &message {
        let spec = |volume: &ProvisionVolume| volume.spec(MediumUuid([1; 16]), String::new());
        for spec in volumes.iter().filter_map(|volume| spec(volume).ok()) {
            let _ = holdfast::format::volume_entry::check_geometry(&spec);
        }
    }
    assert_eq!(Message::parse(&message.encode()), Some(message));
}

/// The body of a request on the control socket.
pub fn api_request(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<api::Request>(data) else { return };
    let text = serde_json::to_string(&request).expect("what was read can be written");
    let again: api::Request = serde_json::from_str(&text).expect("and read again");
    assert_eq!(serde_json::to_string(&again).ok(), Some(text));
}

/// The configuration file.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Config::parse(&text, Path::new("holdfast.toml")) {
        Ok(config) => {
            assert!(config.peers.iter().all(|peer| peer.key().is_ok() && !peer.link_options().is_empty()));
            let _ = (config.control_path(), config.key_path(), config.groups_path(), config.nbd_addresses());
        }
        Err(error) => assert!(error.to_string().starts_with("holdfast.toml: ")),
    }
}

/// The key file, and a peer's key as text.
pub fn identity(data: &[u8]) {
    if let Ok(identity) = Identity::from_bytes(data) {
        assert_eq!(identity.to_bytes(), data);
    }
    if let Ok(key) = String::from_utf8_lossy(data).parse::<PeerKey>() {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
}
