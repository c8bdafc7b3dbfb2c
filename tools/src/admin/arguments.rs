//! The command line.

use super::ClientError;
use crate::units::{block_bytes, bytes, seconds};
use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast::{command::GenerationId, pair};
use std::path::PathBuf;
use ublk_target::config::{CONFIG_PATH, Config};

/// Drives a Holdfast node.
///
/// Examples:
///   ublk-admin key
///   ublk-admin group create db
///   ublk-admin volume create db data --size 100GiB
///   ublk-admin pair create db --peer berlin --wait
///   ublk-admin restart-point db --label nightly --wait
///   ublk-admin status db --watch
///   ublk-admin promote db
///
/// Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the daemon cannot be reached.
#[derive(Clone, Debug, Parser)]
#[command(name = "ublk-admin", version, verbatim_doc_comment)]
pub struct Arguments {
    /// The daemon's control socket; from the configuration if absent.
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
    /// Answers as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// The control socket.
    ///
    /// # Errors
    /// When it is neither given nor in a readable configuration.
    pub fn socket(&self) -> Result<PathBuf, ClientError> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        let config = Config::read(CONFIG_PATH.as_ref())
            .map_err(|error| ClientError::Refused(format!("{error}; or name the socket with --socket")))?;
        Ok(config.control_path())
    }
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Shows this node's key, one line to hand to the peer's administrator; makes it if there is none.
    Key(KeyOptions),
    /// This node, its peers and links.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Consistency groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Volumes of a group.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// The pair of a group and its standby.
    #[command(subcommand)]
    Pair(PairCommand),
    /// Declares that the application can restart from the present state.
    #[command(verbatim_doc_comment)]
    RestartPoint(RestartPointOptions),
    /// Generations that this node keeps: restart points, and what a former primary wrote that no other node has.
    #[command(subcommand)]
    Generation(GenerationCommand),
    /// Tries a failover out beside the running pair: a writable copy of a generation, thrown away afterwards.
    ///
    /// It is served by NBD as GROUP/VOLUME@trial. Nothing of it is kept: not by a flush, not when the daemon is started anew.
    /// The real thing is `ublk-admin promote`.
    ///
    /// Examples:
    ///   ublk-admin failover db --test
    ///   ublk-admin failover db --test --generation 7
    ///   ublk-admin failover db --end
    #[command(verbatim_doc_comment)]
    Failover {
        /// The group.
        group: String,
        /// Opens the copy.
        #[arg(long, required_unless_present = "end")]
        test: bool,
        /// Of this generation instead of the last restart point.
        #[arg(long, value_name = "NAME")]
        generation: Option<GenerationId>,
        /// Throws it away.
        #[arg(long, conflicts_with_all = ["test", "generation"])]
        end: bool,
    },
    /// Makes this node the primary: at the last restart point, or with --latest at all that was received.
    Promote {
        /// The group.
        group: String,
        /// To all that was received; else to the last restart point, and what came since is given up.
        #[arg(long, conflicts_with = "generation")]
        latest: bool,
        /// To the restart point of this number, and to no other.
        #[arg(long, value_name = "N")]
        generation: Option<u32>,
        /// Although the primary is alive, or this node knows that it lacks some of its records.
        #[arg(long)]
        force: bool,
    },
    /// Makes this node the standby.
    Demote {
        /// The group.
        group: String,
        /// Give up what only this node has; else a former primary keeps it as generation fork-EPOCH.
        #[arg(long)]
        discard_fork: bool,
    },
    /// Sets when a host's write is answered while this node is the primary; on each node for itself.
    Level {
        /// The group.
        group: String,
        /// When.
        level: Level,
        /// At level remote: what happens while the peer is away.
        #[arg(long)]
        without_peer: Option<WithoutPeer>,
    },
    /// Sets when this node, as a standby, applies what it receives; may be changed at any time, on each node for itself.
    Policy {
        /// The group.
        group: String,
        /// When.
        policy: Policy,
    },
    /// Sets, on the primary, whether it answers its hosts only while the standby promises not to be promoted.
    ///
    /// A primary that has no such promise answers nothing until it has one again, and a standby that gave one is not promoted
    /// before it is over: never do both serve. With `none` the primary goes on alone, and it is up to you that only one serves.
    ///
    /// Example: ublk-admin fence db lease --seconds 10
    #[command(verbatim_doc_comment)]
    Fence {
        /// The group.
        group: String,
        /// By what.
        by: Fence,
        /// How long a promise lasts: the primary freezes at most so long after it has lost its standby.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
        seconds: u32,
        /// With `none`: although the standby cannot be told, and may promote itself.
        #[arg(long)]
        force: bool,
    },
    /// Sets, on this node, whether it promotes itself when it is the standby and its primary is silent. Off unless set.
    ///
    /// It wants fencing by lease, so that the silent primary does not serve, and is a promotion without force.
    ///
    /// Examples:
    ///   ublk-admin auto-promote db on --after 30s
    ///   ublk-admin auto-promote db off
    #[command(verbatim_doc_comment)]
    AutoPromote {
        /// The group.
        group: String,
        /// Whether.
        switch: Switch,
        /// How long the primary has to be silent, on every link and on the heartbeat path: 1s to 1d.
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = seconds)]
        after: u32,
        /// To all that was received, instead of the last restart point.
        #[arg(long)]
        latest: bool,
    },
    /// What changed: roles, pairs, sessions, links, media. Oldest first.
    Events {
        /// Of one group only.
        group: Option<String>,
        /// The last so many.
        #[arg(long, default_value_t = 50)]
        count: usize,
    },
    /// Groups as they are: role, pair, lag, links.
    Status(StatusOptions),
}

/// `key`
#[derive(Clone, Debug, Args)]
pub struct KeyOptions {
    /// The node's configuration.
    #[arg(long)]
    pub config: Option<PathBuf>,
}

/// `node`
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// The node, its peers and links.
    Status,
}

/// `group`
#[derive(Clone, Debug, Subcommand)]
pub enum GroupCommand {
    /// Makes a group; this node is its primary.
    Create {
        /// Its name.
        group: String,
        /// Size of its journal, such as 256MiB.
        #[arg(long, default_value = "1GiB", value_parser = bytes)]
        journal_size: u64,
        /// A file or block device for the journal. One that exists must be blank.
        #[arg(long)]
        journal: Option<String>,
        /// Erase what is there, whatever it is; not a journal or pool of Holdfast.
        #[arg(long, requires = "journal")]
        overwrite: bool,
    },
    /// Lists the groups of this node.
    List,
    /// Shows one group.
    Show {
        /// Its name.
        group: String,
    },
    /// Opens a group again that a failed medium has stopped, when the medium is back; its clients and devices go on. Also one that
    /// could not be opened when the daemon started.
    Reopen {
        /// Its name.
        group: String,
    },
    /// Makes a group's journal larger on this node, while it is used; writes wait for a moment.
    ///
    /// Example: ublk-admin group resize db --journal-size 8GiB
    #[command(verbatim_doc_comment)]
    Resize {
        /// Its name.
        group: String,
        /// Its new size, such as 8GiB.
        #[arg(long, value_parser = bytes)]
        journal_size: u64,
    },
    /// Forgets a group on this node.
    Delete {
        /// Its name.
        group: String,
        /// Yes, really.
        #[arg(long)]
        yes: bool,
        /// Remove its media in the node's directory.
        #[arg(long)]
        erase: bool,
    },
}

/// `volume`
#[derive(Clone, Debug, Subcommand)]
pub enum VolumeCommand {
    /// Makes a volume; it is exported as GROUP/VOLUME.
    Create {
        /// The group.
        group: String,
        /// Its name in the group.
        volume: String,
        /// 16 MiB to 16 TiB, such as 10GiB.
        #[arg(long, value_parser = bytes)]
        size: u64,
        /// 512 or 4096 bytes.
        #[arg(long, default_value_t = 4096)]
        logical_block: u32,
        /// 16KiB to 1MiB.
        #[arg(long, default_value = "64KiB", value_parser = block_bytes)]
        table_block: u32,
        /// A file or block device for the pool. One that exists must be blank.
        #[arg(long)]
        pool: Option<String>,
        /// Erase what is there, whatever it is; not a journal or pool of Holdfast.
        #[arg(long, requires = "pool")]
        overwrite: bool,
        /// Give the pool's file all its space at once.
        #[arg(long)]
        preallocate: bool,
    },
    /// Makes a volume larger, on the standby too. Its file system is grown afterwards, with resize2fs or xfs_growfs.
    Resize {
        /// The group.
        group: String,
        /// The volume.
        volume: String,
        /// The new size, such as 20GiB; not less than it has.
        #[arg(long, value_parser = bytes)]
        size: u64,
    },
    /// Lists the volumes of a group.
    List {
        /// The group.
        group: String,
    },
    /// Forgets a volume; its pool stays.
    Delete {
        /// The group.
        group: String,
        /// The volume.
        volume: String,
        /// Yes, really.
        #[arg(long)]
        yes: bool,
    },
    /// Makes a volume a block device of this machine: /dev/ublkbN, with the name /dev/holdfast/GROUP/VOLUME.
    ///
    /// It stays until it is detached: when the daemon is started again, it takes the device over. Without the kernel's
    /// ublk driver use NBD, which serves every volume of a primary without being asked.
    Attach {
        /// The group.
        group: String,
        /// The volume.
        volume: String,
        /// Writes are refused; needed on a standby.
        #[arg(long)]
        read_only: bool,
        /// As a block device of the kernel's ublk driver (the default).
        #[arg(long, conflicts_with = "nbd")]
        ublk: bool,
        /// No block device here: shows where NBD serves the volume.
        #[arg(long)]
        nbd: bool,
    },
    /// Takes the block device away; refused while it is mounted or in use.
    Detach {
        /// The group.
        group: String,
        /// The volume.
        volume: String,
    },
    /// Says which volume a block device belongs to, as GROUP/VOLUME; for a udev rule.
    Name {
        /// Such as /dev/ublkb0.
        device: String,
    },
    /// Lets a standby's volumes be read.
    Export {
        /// The group.
        group: String,
        /// Needed on a standby.
        #[arg(long)]
        read_only: bool,
    },
    /// Takes that back.
    Unexport {
        /// The group.
        group: String,
    },
}

/// `pair`
#[derive(Clone, Debug, Subcommand)]
pub enum PairCommand {
    /// Makes a standby of the group on a peer and copies what is stored.
    Create {
        /// The group.
        group: String,
        /// The peer's name in the configuration.
        #[arg(long)]
        peer: String,
        /// Until the copy has ended.
        #[arg(long)]
        wait: bool,
        /// How long to wait, in seconds.
        #[arg(long, default_value_t = 86_400)]
        timeout: u64,
    },
    /// Ends the pair.
    Delete {
        /// The group.
        group: String,
    },
    /// Stops sending, after the standby has everything that was written before; changes are noted.
    Suspend {
        /// The group.
        group: String,
        /// At once.
        #[arg(long)]
        now: bool,
    },
    /// Makes the standby the primary and this node the standby, with nothing lost; on the primary. Writes wait meanwhile.
    Switch {
        /// The group.
        group: String,
    },
    /// Sends again: from the journal if it holds what the standby lacks, else what the bitmap names and differs.
    Resume {
        /// The group.
        group: String,
        /// Copy all that the bitmap names, without comparing digests first: quicker where nearly all differs.
        #[arg(long)]
        no_compare: bool,
    },
    /// Compares everything that both nodes hold, while writes go on; fails if something differs. `status` shows how far it is.
    Verify {
        /// The group.
        group: String,
        /// Copy what differs to the standby.
        #[arg(long)]
        mend: bool,
    },
}

/// `generation`
#[derive(Clone, Debug, Subcommand)]
pub enum GenerationCommand {
    /// Lists what is kept on this node, newest first. NBD serves each as GROUP/VOLUME@NAME, read-only.
    List {
        /// The group.
        group: String,
    },
    /// Sets which restart points this node keeps: so many, and all that are at most so much older than the last one.
    ///
    /// What is not named stays as it is, and the rule is shown. What a new one does not keep is let go of.
    ///
    /// Examples:
    ///   ublk-admin generation keep db
    ///   ublk-admin generation keep db --count 4 --for 2d
    #[command(verbatim_doc_comment)]
    Keep {
        /// The group.
        group: String,
        /// How many at least, the last one included.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
        count: Option<u16>,
        /// How much older, such as 90s, 30m, 12h, 7d; 0s: whatever their age, only so many.
        #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
        time: Option<u32>,
    },
    /// Lets go of one; its room in the pool is free again.
    Drop {
        /// The group.
        group: String,
        /// Its name, such as 7 or fork-2.0.
        generation: GenerationId,
    },
}

/// `restart-point`
///
/// Examples:
///   ublk-admin restart-point db --label nightly --wait
///   ublk-admin restart-point db --freeze /srv/db
///   ublk-admin restart-point vm --exec-before 'virsh domfsfreeze vm1' --exec-after 'virsh domfsthaw vm1'
#[derive(Clone, Debug, Args)]
pub struct RestartPointOptions {
    /// The group.
    pub group: String,
    /// For people.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Until the standby has it; if it is being copied to, the point is declared when that has ended.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
    /// Freezes the file system that is mounted there while the point is declared; may be given again.
    #[arg(long, value_name = "MOUNTPOINT")]
    pub freeze: Vec<PathBuf>,
    /// A shell command that makes the application quiet; if it fails, no point is declared.
    #[arg(long, value_name = "COMMAND")]
    pub exec_before: Option<String>,
    /// A shell command that lets it go on; run whatever happens, even if this program is killed.
    #[arg(long, value_name = "COMMAND")]
    pub exec_after: Option<String>,
    /// After so many seconds the holds end, whether the point is declared or not.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub hold_for: u64,
}

/// `status`
#[derive(Clone, Debug, Args)]
pub struct StatusOptions {
    /// One group; all if absent.
    pub group: Option<String>,
    /// Again and again.
    #[arg(long)]
    pub watch: bool,
}

/// When a host's write is answered.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Level {
    /// When it is in the journal here.
    Local,
    /// When it is durable at the standby too.
    Remote,
}

impl From<Level> for pair::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Local => Self::Local,
            Level::Remote => Self::Remote,
        }
    }
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// What keeps two nodes from serving at once.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Fence {
    /// Nothing but the operator.
    None,
    /// The standby's promises.
    Lease,
}

/// When a standby applies what it receives.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Policy {
    /// At once, beside the state of the last restart point.
    Snapshot,
    /// When the next restart point is there; until then it stays in the journal.
    Delayed,
}

impl From<Policy> for pair::ApplyPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Snapshot => Self::Snapshot,
            Policy::Delayed => Self::Delayed,
        }
    }
}

/// What happens at level remote without the peer.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WithoutPeer {
    /// Writes are answered when they are in the journal here.
    Continue,
    /// No write is answered.
    Freeze,
}

impl From<WithoutPeer> for pair::WithoutPeer {
    fn from(policy: WithoutPeer) -> Self {
        match policy {
            WithoutPeer::Continue => Self::Continue,
            WithoutPeer::Freeze => Self::Freeze,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_block_size_that_fits_no_field_is_refused() {
        let create = ["ublk-admin", "volume", "create", "db", "data", "--size", "1GiB", "--table-block"];
        let parse = |size| Arguments::try_parse_from(create.iter().copied().chain([size])).map_err(|e| e.to_string());
        assert!(parse("16KiB").is_ok());
        // It is 16 KiB when its upper half is dropped.
        let message = parse("4294983680").unwrap_err();
        assert!(message.contains("'4294983680' for '--table-block <TABLE_BLOCK>'"), "{message}");
        assert!(message.contains("\"4294983680\" is too much for a block"), "{message}");
    }
}
