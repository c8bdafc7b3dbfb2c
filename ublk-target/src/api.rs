//! What operators ask of a daemon: the bodies of `POST /v1/request` on the control socket, and the answers.

use holdfast::{
    command::GenerationId,
    pair::{ApplyPolicy, Level, WithoutPeer},
    units::Generation,
};
use serde::{Deserialize, Serialize};

/// A request. A field that its command does not have is refused: a misspelt one would be missed where it limits what is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The node, its peers and links.
    // With braces, for serde takes any fields of a variant that has none.
    NodeStatus {},
    /// Makes a group on this node.
    GroupCreate {
        /// Its name.
        group: String,
        /// Size of the journal in bytes.
        journal_size: u64,
        /// The journal's place, if it is not a file below the node's directory.
        journal: Option<String>,
        /// What the journal's place holds is erased, unless it is a journal or a pool.
        #[serde(default)]
        overwrite: bool,
    },
    /// Forgets a group; its media stay.
    GroupDelete {
        /// Its name.
        group: String,
        /// Media in the node's directory are removed.
        erase: bool,
    },
    /// Opens a group again that a failed medium has stopped, or that could not be opened when the daemon started.
    GroupReopen {
        /// Its name.
        group: String,
    },
    /// Makes a group's journal larger on this node.
    GroupResize {
        /// Its name.
        group: String,
        /// Size of the journal in bytes.
        journal_size: u64,
    },
    /// Makes a volume.
    VolumeCreate {
        /// The group.
        group: String,
        /// Its name in the group.
        volume: String,
        /// Bytes.
        size: u64,
        /// 512 or 4096 bytes.
        logical_block_size: u32,
        /// Bytes.
        table_block_size: u32,
        /// The pool's place, if it is not a file below the node's directory.
        pool: Option<String>,
        /// The pool's file gets all its space at once.
        preallocate: bool,
        /// What the pool's place holds is erased, unless it is a journal or a pool.
        #[serde(default)]
        overwrite: bool,
    },
    /// Makes a volume larger.
    VolumeResize {
        /// The group.
        group: String,
        /// Its name in the group.
        volume: String,
        /// Bytes.
        size: u64,
    },
    /// Forgets a volume; its pool stays.
    VolumeDelete {
        /// The group.
        group: String,
        /// Its name in the group.
        volume: String,
    },
    /// Serves a standby's volumes, read-only, or stops that.
    VolumeExport {
        /// The group.
        group: String,
        /// Serve them.
        read_only: bool,
    },
    /// Makes a volume a kernel block device of this node.
    VolumeAttach {
        /// The group.
        group: String,
        /// Its name in the group.
        volume: String,
        /// Writes are refused; needed on a standby.
        read_only: bool,
        /// No block device: say where NBD serves it.
        #[serde(default)]
        nbd: bool,
    },
    /// Takes the kernel block device away.
    VolumeDetach {
        /// The group.
        group: String,
        /// Its name in the group.
        volume: String,
    },
    /// Which volume a kernel block device belongs to.
    VolumeName {
        /// Such as `/dev/ublkb0`.
        device: String,
    },
    /// Makes the group a pair with another node.
    PairCreate {
        /// The group.
        group: String,
        /// The peer's name in the configuration.
        peer: String,
    },
    /// Ends the pair.
    PairDelete {
        /// The group.
        group: String,
    },
    /// Stops sending.
    PairSuspend {
        /// The group.
        group: String,
        /// At once; else the standby gets first what was written before.
        #[serde(default)]
        now: bool,
    },
    /// Sends again.
    PairResume {
        /// The group.
        group: String,
        /// Copies all that is noted, without asking first what differs.
        #[serde(default)]
        no_compare: bool,
    },
    /// Compares everything that both nodes hold. Answered when that is done.
    PairVerify {
        /// The group.
        group: String,
        /// Copies what differs.
        mend: bool,
    },
    /// Turns the pair round: the standby becomes the primary, with everything.
    PairSwitch {
        /// The group.
        group: String,
    },
    /// Declares a restart point.
    RestartPoint {
        /// The group.
        group: String,
        /// For people.
        label: String,
    },
    /// Sets which restart points this node keeps beside the last one, and tells the rule. What is absent stays as it is.
    GenerationKeep {
        /// The group.
        group: String,
        /// How many at least, the last one included.
        count: Option<u16>,
        /// Those that are at most so much older than the last one, in seconds.
        seconds: Option<u32>,
    },
    /// Lets go of a generation on this node.
    GenerationDrop {
        /// The group.
        group: String,
        /// Its name: a number or `fork-EPOCH`.
        generation: GenerationId,
    },
    /// Opens a writable copy of a generation, as NBD export `GROUP/VOLUME@trial`.
    TrialBegin {
        /// The group.
        group: String,
        /// Which; the last restart point if absent.
        generation: Option<GenerationId>,
    },
    /// Throws that copy away.
    TrialEnd {
        /// The group.
        group: String,
    },
    /// Makes this node the primary.
    Promote {
        /// The group.
        group: String,
        /// To all that was received, instead of the last restart point.
        latest: bool,
        /// To the restart point of this number.
        #[serde(default)]
        generation: Option<Generation>,
        /// Although the peer is there.
        force: bool,
    },
    /// Makes this node a standby.
    Demote {
        /// The group.
        group: String,
        /// Give up what only this node has; else a former primary keeps it as a generation.
        discard_fork: bool,
    },
    /// Sets when a host's write is answered.
    SetLevel {
        /// The group.
        group: String,
        /// The level.
        level: Level,
        /// What happens without the peer.
        without_peer: Option<WithoutPeer>,
    },
    /// Sets when this node, as a standby, applies what it receives.
    SetPolicy {
        /// The group.
        group: String,
        /// The policy.
        policy: ApplyPolicy,
    },
    /// Sets whether a primary needs its peer's promises.
    SetFence {
        /// The group.
        group: String,
        /// How long a promise lasts, 1 to 3600; 0: it needs none.
        lease_seconds: u32,
        /// Although the standby cannot be told.
        #[serde(default)]
        force: bool,
    },
    /// Sets whether this node, as a standby, promotes itself.
    SetTakeover {
        /// The group.
        group: String,
        /// After so long a silence; 0: never.
        after_seconds: u32,
        /// To all that was received, instead of the last restart point.
        latest: bool,
    },
    /// What changed, oldest first.
    Events {
        /// Of one group.
        group: Option<String>,
        /// The last so many.
        count: usize,
    },
    /// One group, or all.
    Status {
        /// The group.
        group: Option<String>,
    },
}

/// A request that was refused or failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// Which thing, why, and what to do.
    pub error: String,
}

impl ApiError {
    /// From anything that explains itself.
    pub fn new(error: impl ToString) -> Self {
        Self { error: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn error(text: &str) -> String {
        serde_json::from_str::<Request>(text).unwrap_err().to_string()
    }

    fn quoted(text: &str) -> BTreeSet<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// What is expected, as serde names it when it gets something else.
    fn expected(text: &str) -> BTreeSet<String> {
        let message = error(text);
        assert!(message.starts_with("unknown ") && message.contains("`ghost`"), "{text}: {message}");
        quoted(message.split_once("expected").map_or("", |(_, expected)| expected))
    }

    #[test]
    fn every_command_refuses_a_field_that_it_does_not_have_and_is_documented_with_those_that_it_has() {
        let page = include_str!("../../docs/control.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let documented: BTreeMap<&str, BTreeSet<String>> =
            rows.map(|(command, rest)| (command, quoted(rest.split(" | ").next().unwrap()))).collect();
        let commands = expected(r#"{"command":"ghost"}"#);
        assert!(commands.contains("node-status") && commands.len() > 30, "{commands:?}");
        assert_eq!(commands.iter().map(String::as_str).collect::<Vec<_>>(), Vec::from_iter(documented.keys().copied()));
        for (command, named) in documented {
            let fields = expected(&format!(r#"{{"command":"{command}","ghost":1}}"#));
            assert!(fields.is_subset(&named), "{command} has {fields:?}, but {named:?} in docs/control.md");
        }
    }

    #[test]
    fn a_misspelt_field_is_named_with_those_that_there_are() {
        let promote = r#"{"command":"promote","group":"db","latest":false,"genration":7,"force":false}"#;
        assert!(
            error(promote)
                .starts_with("unknown field `genration`, expected one of `group`, `latest`, `generation`, `force`")
        );
        assert!(error(r#"{"command":"status","grup":"nix"}"#).starts_with("unknown field `grup`, expected `group`"));
    }

    #[test]
    fn what_the_client_writes_is_read() {
        let requests = [
            (Request::NodeStatus {}, r#"{"command":"node-status"}"#),
            (Request::Status { group: None }, r#"{"command":"status","group":null}"#),
        ];
        for (request, text) in requests {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(format!("{:?}", serde_json::from_str::<Request>(text).unwrap()), format!("{request:?}"));
        }
    }
}
