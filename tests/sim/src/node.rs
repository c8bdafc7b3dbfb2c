//! One machine: its media, its clocks, and the daemon that runs on it. The daemon does what the real shell does between the
//! core and the carrier (`ublk-target/src/actor.rs`, `peer.rs`), without its sockets, files and threads.

use crate::{ambush::Ambush, media::Media};
use bytes::Bytes;
use holdfast::{
    disk::DiskOperation,
    group::Group,
    pair::{Level, PairState, Role, WithoutPeer},
    request::Request,
    units::{GroupId, Monotonic, Now, WallClock},
};
use replicator::{
    ChannelId, Frame, Mode,
    session::{Session, SessionOptions},
};
use std::collections::{BTreeMap, VecDeque};

/// A machine.
pub struct Node {
    /// Of each group.
    pub media: Vec<Media>,
    /// What is wrong with them.
    pub ills: Ills,
    /// Its clocks.
    pub clock: Clock,
    /// Raised whenever a daemon is started.
    pub life: u64,
    /// It stands still until then.
    pub stalled_until: u64,
    /// What came meanwhile: over which link, in which of its connections.
    pub inbox: VecDeque<Arrival>,
    /// Its media lied once.
    pub was_rotten: bool,
    /// Its media were given up, and not all are made anew.
    pub retired: bool,
    /// Somebody waits for a moment to take its power.
    pub ambush: Option<Ambush>,
    /// The daemon, if it runs.
    pub daemon: Option<Daemon>,
}

/// What a stalled daemon finds when it goes on.
pub enum Arrival {
    /// A datagram over a link.
    Datagram(usize, Bytes),
    /// The end of an operation of a group.
    Disk(usize, u64),
}

/// What is wrong with a node's media.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ills {
    /// Operations take twenty times as long.
    pub slow: bool,
    /// One of so many operations fails; 0: none.
    pub errors: u64,
    /// Of these only reads.
    pub only_reads: bool,
    /// Reads take so many microseconds longer.
    pub read_micros: u64,
    /// Writes take so many microseconds longer.
    pub write_micros: u64,
    /// An operation has failed; what comes of it may come later.
    pub has_failed: bool,
    /// Pools cannot be written for want of space.
    pub full: bool,
    /// So many guarded writes go elsewhere or nowhere.
    pub lost_writes: u32,
    /// Something has been damaged since the media were formatted.
    pub rotten: bool,
}

/// What a machine takes for the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// How fast it runs, in millionths.
    pub rate: u64,
    /// How far ahead the time of day is, in microseconds.
    pub wall: u64,
}

impl Clock {
    /// What it shows at a true time.
    pub fn at(&self, true_micros: u64) -> u64 {
        (u128::from(true_micros) * u128::from(self.rate) / 1_000_000) as u64 + 1
    }

    /// The first true time when it shows this.
    pub fn when(&self, shown: u64) -> u64 {
        (u128::from(shown.saturating_sub(1)) * 1_000_000).div_ceil(u128::from(self.rate)) as u64
    }

    /// Both clocks, for the core.
    pub fn now(&self, true_micros: u64) -> Now {
        let wall = WallClock(1_700_000_000_000_000 + true_micros + self.wall);
        Now { monotonic: Monotonic(self.at(true_micros)), wall }
    }
}

/// A running daemon.
pub struct Daemon {
    /// The carrier.
    pub session: Session,
    /// Its groups, as far as they could be opened.
    pub slots: Vec<Slot>,
    /// Frames that the carrier has not taken, and whose they are.
    pub outbox: VecDeque<(usize, Frame)>,
    /// When it begins another session, by its own clock.
    pub restart_at: Option<u64>,
    /// A session is up.
    pub up: bool,
}

impl Daemon {
    /// One without groups.
    pub fn new(mode: Mode, name: u64, link_count: usize) -> Self {
        let session = Session::new(SessionOptions { mode, ..SessionOptions::default() }, name, link_count);
        Self { session, slots: Vec::new(), outbox: VecDeque::new(), restart_at: None, up: false }
    }

    /// Whether a group was stopped in good order: the rest follows.
    pub fn is_stopped(&self) -> bool {
        self.slots.iter().any(|slot| slot.view.closed)
    }

    /// Begins another session shortly.
    pub fn restart_soon(&mut self, shown: u64) {
        self.restart_at.get_or_insert(shown + 100_000);
    }
}

/// A group in a daemon.
#[derive(Default)]
pub struct Slot {
    /// The core, if it could be opened.
    pub group: Option<Group>,
    /// Raised when the group is opened anew.
    pub life: u64,
    /// What it was too busy for.
    pub waiting: VecDeque<Request>,
    /// What its media are doing, with the number of writes that had ended when it was asked for.
    pub operations: BTreeMap<u64, (DiskOperation, u64)>,
    /// It was told of the session.
    pub has_peer: bool,
    /// Its timer does not fire before this true time.
    pub timer_after: u64,
    /// What it has told about itself.
    pub view: View,
}

/// What a group has told about itself.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Its role.
    pub role: Role,
    /// The pair's state.
    pub pair: PairState,
    /// Whether its peer has greeted in this session, as a standby.
    pub greeted: bool,
    /// When writes are answered.
    pub level: Level,
    /// What happens without the peer.
    pub without_peer: WithoutPeer,
    /// A medium has failed.
    pub stopped: bool,
    /// It was stopped in good order.
    pub closed: bool,
}

impl Default for View {
    fn default() -> Self {
        Self {
            role: Role::Secondary,
            pair: PairState::Simplex,
            greeted: false,
            level: Level::Local,
            without_peer: WithoutPeer::Continue,
            stopped: false,
            closed: false,
        }
    }
}

impl View {
    /// Whether a write that is answered now was promised to be at the standby.
    pub fn promises_remote(&self) -> bool {
        let streams = self.pair == PairState::Duplex && self.greeted;
        let freezes = self.without_peer == WithoutPeer::Freeze
            && !matches!(self.pair, PairState::Simplex | PairState::Suspended(holdfast::pair::Cause::Command));
        self.role == Role::Primary && self.level == Level::Remote && (streams || freezes)
    }
}

/// The channel of a group's frames.
pub fn channel(group: GroupId) -> ChannelId {
    ChannelId(group.0)
}

/// The channel of a group's marks about leases.
pub fn lease_channel(group: GroupId) -> ChannelId {
    ChannelId(group.0.map(|byte| !byte))
}
