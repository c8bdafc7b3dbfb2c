//! The journal's superblock: what a group is, and where its journal begins. Two slots of 64 KiB, written in turn; the
//! valid one with the higher write count counts. The ring follows at 128 KiB.
//!
//! ```text
//!  slot: 0 magic "HOLDFAST"  8 kind "JRNL"  12 version  14 0  16 checksum (of all 45,056 bytes)  20 volume count
//!  24 write count  32 group  48 medium  64 name  128 ring size  136 tail position  144 tail order
//!  152 tail previous checksum  156 clean  160 stream state at the tail (1,168)  1328 pair (80)  1408 clean order
//!  1416 how many epochs led to the restart point  1420 lease in milliseconds
//!  1424 how many restart points are kept (2)  1426 count of older generations (2)  1428 for how many seconds they are kept
//!  1432 those epochs (64 × 16)  2456 automatic promotion: milliseconds (4), to the latest state (1), 0 (3)
//!  2464 the last epoch in which a lease was granted  2472 the last epoch that this node opened or stepped down in  2480 0 … 4096
//!  4096: 64 volumes of 512 bytes
//!  36864: 64 older generations of 128 bytes: place (16), time (8), journal entry (8), number (4), origin (1), 0 (27), label (64)
//! ```
//! Versions 1 to 4 have no older generations and end at 36,864; versions 1 to 3 lack the lease, versions 1 and 2 the pair's
//! apply policy, version 1 the epochs that led to the restart point, which are then taken for unknown.

use super::{
    message::LEASE_MILLIS_MAX,
    parts::{
        FormatError, MAGIC, RawPosition, U16, U32, U64, checksum_without, prefix, require, require_stored,
        require_stored_32,
    },
    text::Name,
    volume_entry::{self, RawVolume},
};
use crate::{
    buffer::{ALIGNMENT, AlignedBuffer},
    command::{RestartPointInfo, VolumeSpec},
    pair::{ApplyPolicy, Cause, Level, PairState, Role, Takeover, WithoutPeer},
    stream_state::{EPOCH_HISTORY_MAX, EpochStart, KeptPoint, OLDER_COUNT_MAX, OlderPoint, Origin, StreamState},
    units::{
        Epoch, Generation, GroupId, MediumUuid, NAME_SIZE_MAX, NodeKey, Order, Position, Seq, VOLUME_COUNT_MAX,
        WallClock,
    },
};
use alloc::vec::Vec;
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the two slots begin on the medium.
pub const SLOTS: [u64; 2] = [0, 64 << 10];
/// Bytes of a slot that are used.
pub const JOURNAL_SUPERBLOCK_SIZE: usize = OLDER_AT + OLDER_COUNT_MAX * 128;
/// Where the older generations begin in a slot; before version 5 the end.
const OLDER_AT: usize = 4096 + VOLUME_COUNT_MAX * 512;
/// Where the ring begins on the medium.
pub const RING_OFFSET: u64 = 128 << 10;
/// Bytes of the ring on a medium of this size.
pub fn ring_size_of(medium_size: u64) -> u64 {
    medium_size.saturating_sub(RING_OFFSET) & !0xFFFF
}

/// Where the positions of a new journal begin: a lap that the medium's random id chooses, below 2⁶⁰. So what a former life of
/// the medium, of the same group perhaps, has left in the ring lies where this one's positions are not. `ring_size`: not 0.
pub fn first_position(medium: MediumUuid, ring_size: u64) -> u64 {
    let random = (u128::from_le_bytes(medium.0) as u64) >> 4;
    random - random % ring_size
}

const VERSION: u16 = 5;
const KIND: [u8; 4] = *b"JRNL";
pub(super) const WHAT: &str = "journal superblock";
const CHECKSUM_AT: usize = 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawStream {
    last: RawPosition,
    generation: U32,
    copying: u8,
    has_restart_point: u8,
    reserved: [u8; 2],
    restart_at: RawPosition,
    restart_time: U64,
    restart_generation: U32,
    epoch_count: U32,
    restart_label: Name,
    restart_order: U64,
    epochs: [RawPosition; EPOCH_HISTORY_MAX],
    reserved2: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPair {
    role: u8,
    state: u8,
    cause: u8,
    level: u8,
    without_peer: u8,
    has_peer: u8,
    policy: u8,
    left_behind: u8,
    peer: [u8; 32],
    synced: RawPosition,
    peer_epoch: U64,
    fork: RawPosition,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHead {
    magic: [u8; 8],
    kind: [u8; 4],
    version: U16,
    reserved0: U16,
    checksum: U32,
    volume_count: U32,
    write_count: U64,
    group: [u8; 16],
    medium: [u8; 16],
    name: Name,
    ring_size: U64,
    tail_position: U64,
    tail_order: U64,
    tail_previous_checksum: U32,
    clean: u8,
    reserved1: [u8; 3],
    stream: RawStream,
    pair: RawPair,
    clean_order: U64,
    restart_epoch_count: U32,
    lease_millis: U32,
    keep_count: U16,
    older_count: U16,
    keep_seconds: U32,
    restart_epochs: [RawPosition; EPOCH_HISTORY_MAX],
    takeover_millis: U32,
    takeover_to_latest: u8,
    reserved2: [u8; 3],
    fenced_epoch: U64,
    former_epoch: U64,
    reserved3: [u8; 1616],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawOlder {
    at: RawPosition,
    time: U64,
    order: U64,
    generation: U32,
    origin: u8,
    reserved: [u8; 27],
    label: Name,
}

const _: () = assert!(size_of::<RawOlder>() == 128);
const _: () = assert!(size_of::<RawStream>() == 1168 && size_of::<RawPair>() == 80 && NAME_SIZE_MAX == 63);
const _: () = assert!(size_of::<RawHead>() == 4096);

/// What the node remembers of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairRecord {
    /// The role on this node.
    pub role: Role,
    /// The pair's state.
    pub state: PairState,
    /// When a host's write is answered.
    pub level: Level,
    /// What happens without the peer at level remote.
    pub without_peer: WithoutPeer,
    /// When this node applies what it receives.
    pub policy: ApplyPolicy,
    /// How long a lease is that a primary needs in order to answer, or that this node has promised one; 0: none.
    pub lease_millis: u32,
    /// How many restart points are kept at least, the last one included.
    pub keep_count: u16,
    /// Restart points that are at most so much older than the last one are kept too, in seconds.
    pub keep_seconds: u32,
    /// When this node, as a secondary, promotes itself.
    pub takeover: Option<Takeover>,
    /// The last epoch in which this node granted a lease.
    pub fenced_epoch: Epoch,
    /// The last epoch that this node opened, or, as its primary, stepped down in.
    pub former_epoch: Epoch,
    /// Secondary: the primary has said that it sends nothing, and has brought nothing since.
    pub left_behind: bool,
    /// The peer.
    pub peer: Option<NodeKey>,
    /// The last record that both nodes are known to have.
    pub synced: Position,
    /// The highest epoch that the peer was seen with.
    pub peer_epoch: Epoch,
    /// For a fenced node: the last record that is part of the peer's history.
    pub fork: Position,
}

/// The superblock, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSuperblock {
    /// Raised at each write; its parity is the slot.
    pub write_count: u64,
    /// The group.
    pub group: GroupId,
    /// The medium.
    pub medium: MediumUuid,
    /// The group's name.
    pub name: Name,
    /// Size of the ring in bytes.
    pub ring_size: u64,
    /// Where the first batch that is still needed begins, in bytes from the start of the journal's life.
    pub tail_position: u64,
    /// The number of the last entry before it.
    pub tail_order: Order,
    /// The header checksum of the batch before it.
    pub tail_previous_checksum: u32,
    /// The group was stopped in good order after this entry: nothing that was ever accepted can be missing.
    pub clean: Option<Order>,
    /// What the entries before the tail amount to.
    pub stream: StreamState,
    /// The pair.
    pub pair: PairRecord,
    /// The volumes.
    pub volumes: Vec<VolumeSpec>,
}

impl JournalSuperblock {
    /// Where it is to be written.
    pub fn slot(&self) -> u64 {
        SLOTS[(self.write_count % 2) as usize]
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let (state, cause) = encode_state(self.pair.state);
        let restart_epochs = self.stream.restart_point.as_ref().map_or([].as_slice(), |point| &point.epochs);
        let head = RawHead {
            magic: MAGIC,
            kind: KIND,
            version: VERSION.into(),
            reserved0: 0.into(),
            checksum: 0.into(),
            volume_count: (self.volumes.len() as u32).into(),
            write_count: self.write_count.into(),
            group: self.group.0,
            medium: self.medium.0,
            name: self.name,
            ring_size: self.ring_size.into(),
            tail_position: self.tail_position.into(),
            tail_order: self.tail_order.0.into(),
            tail_previous_checksum: self.tail_previous_checksum.into(),
            clean: self.clean.is_some().into(),
            reserved1: [0; 3],
            stream: encode_stream(&self.stream),
            pair: RawPair {
                role: self.pair.role as u8,
                state,
                cause,
                level: self.pair.level as u8,
                without_peer: self.pair.without_peer as u8,
                has_peer: self.pair.peer.is_some().into(),
                policy: self.pair.policy as u8,
                left_behind: self.pair.left_behind.into(),
                peer: self.pair.peer.unwrap_or_default().0,
                synced: self.pair.synced.into(),
                peer_epoch: self.pair.peer_epoch.0.into(),
                fork: self.pair.fork.into(),
            },
            clean_order: self.clean.unwrap_or_default().0.into(),
            restart_epoch_count: (restart_epochs.len() as u32).into(),
            lease_millis: self.pair.lease_millis.into(),
            keep_count: self.pair.keep_count.into(),
            older_count: (self.stream.older.len() as u16).into(),
            keep_seconds: self.pair.keep_seconds.into(),
            restart_epochs: encode_epochs(restart_epochs),
            takeover_millis: self.pair.takeover.map_or(0, |takeover| takeover.after_millis).into(),
            takeover_to_latest: self.pair.takeover.is_some_and(|takeover| takeover.to_latest).into(),
            reserved2: [0; 3],
            fenced_epoch: self.pair.fenced_epoch.0.into(),
            former_epoch: self.pair.former_epoch.0.into(),
            reserved3: [0; 1616],
        };
        let mut buffer = AlignedBuffer::new(JOURNAL_SUPERBLOCK_SIZE);
        let bytes = buffer.as_mut_slice();
        bytes[..4096].copy_from_slice(head.as_bytes());
        for (spec, slot) in self.volumes.iter().zip(bytes[4096..OLDER_AT].chunks_exact_mut(512)) {
            slot.copy_from_slice(volume_entry::encode(spec).as_bytes());
        }
        for (point, slot) in self.stream.older.iter().zip(bytes[OLDER_AT..].chunks_exact_mut(128)) {
            slot.copy_from_slice(encode_older(point).as_bytes());
        }
        let checksum = checksum_without(bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        buffer.freeze()
    }

    /// Reads one slot.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let (raw, _) = prefix::<RawHead>(bytes, WHAT)?;
        if raw.magic != MAGIC || raw.kind != KIND {
            return Err(FormatError::Absent(WHAT));
        }
        // The version comes before the checksum: a newer one may be computed differently.
        if !(1..=VERSION).contains(&raw.version.get()) {
            return Err(FormatError::Version { what: WHAT, found: raw.version.get(), newest: VERSION });
        }
        let size = if raw.version.get() < 5 { OLDER_AT } else { JOURNAL_SUPERBLOCK_SIZE };
        let bytes = bytes.get(..size).ok_or(FormatError::Short(WHAT))?;
        let (found, expected) = (checksum_without(bytes, CHECKSUM_AT), raw.checksum.get());
        if found != expected {
            return Err(FormatError::Checksum { what: WHAT, found, expected });
        }
        let count = raw.volume_count.get() as usize;
        require(count <= VOLUME_COUNT_MAX, WHAT, "volume count")?;
        require(raw.name.check().is_ok(), WHAT, "name")?;
        let ring_size = raw.ring_size.get();
        // So large at most that one can count on for a lap from any position.
        require(ring_size.is_multiple_of(ALIGNMENT as u64) && (1..1 << 62).contains(&ring_size), WHAT, "ring size")?;
        require(raw.tail_position.get().is_multiple_of(ALIGNMENT as u64), WHAT, "tail position")?;
        require(raw.clean <= 1 && raw.reserved1 == [0; 3] && raw.reserved0.get() == 0, WHAT, "reserved field")?;
        require(raw.reserved3.iter().all(|byte| *byte == 0), WHAT, "reserved field")?;
        require(raw.lease_millis.get() <= LEASE_MILLIS_MAX, WHAT, "lease")?;
        let orders = [raw.tail_order, raw.clean_order, raw.stream.restart_order];
        let counters = [raw.write_count, raw.tail_position, raw.pair.peer_epoch, raw.fenced_epoch, raw.former_epoch];
        require_stored(&orders.map(U64::get), WHAT)?;
        require_stored(&counters.map(U64::get), WHAT)?;
        // The pair's synced place is only compared; all ones there say that it is not known.
        for at in [raw.stream.last, raw.stream.restart_at, raw.pair.fork] {
            require_stored(&[at.epoch.get(), at.seq.get()], WHAT)?;
        }
        require_stored_32(raw.stream.generation.get(), WHAT)?;
        require_stored_32(raw.stream.restart_generation.get(), WHAT)?;
        let mut volumes = Vec::with_capacity(count);
        let (_, mut rest) = bytes.split_at(size_of::<RawHead>());
        for _ in 0..count {
            let (volume, after) = prefix::<RawVolume>(rest, WHAT)?;
            rest = after;
            volumes.push(volume_entry::parse(volume)?);
        }
        let (_, mut rest) = bytes.split_at(OLDER_AT);
        let older_count = usize::from(raw.older_count.get());
        require(older_count <= OLDER_COUNT_MAX, WHAT, "count of older generations")?;
        let mut older = Vec::with_capacity(older_count);
        for _ in 0..older_count {
            let (point, after) = prefix::<RawOlder>(rest, WHAT)?;
            rest = after;
            older.push(parse_older(point)?);
        }
        require(older.is_sorted_by(|a, b| a.order < b.order), WHAT, "order of generations")?;
        let mut stream = parse_stream(&raw.stream, parse_epochs(&raw.restart_epochs, raw.restart_epoch_count)?)?;
        stream.older = older;
        let mut pair = parse_pair(&raw.pair, raw.lease_millis.get())?;
        // What an earlier version kept.
        (pair.keep_count, pair.keep_seconds) = (raw.keep_count.get().max(1), raw.keep_seconds.get());
        require(raw.takeover_to_latest <= 1 && raw.reserved2 == [0; 3], WHAT, "automatic promotion")?;
        let (after_millis, to_latest) = (raw.takeover_millis.get(), raw.takeover_to_latest == 1);
        pair.takeover = (after_millis > 0).then_some(Takeover { after_millis, to_latest });
        (pair.fenced_epoch, pair.former_epoch) = (Epoch(raw.fenced_epoch.get()), Epoch(raw.former_epoch.get()));
        require(usize::from(pair.keep_count) <= OLDER_COUNT_MAX, WHAT, "count of generations to keep")?;
        Ok(Self {
            write_count: raw.write_count.get(),
            group: GroupId(raw.group),
            medium: MediumUuid(raw.medium),
            name: raw.name,
            ring_size,
            tail_position: raw.tail_position.get(),
            tail_order: Order(raw.tail_order.get()),
            tail_previous_checksum: raw.tail_previous_checksum.get(),
            clean: (raw.clean == 1).then_some(Order(raw.clean_order.get())),
            stream,
            pair,
            volumes,
        })
    }
}

fn encode_state(state: PairState) -> (u8, u8) {
    match state {
        PairState::Simplex => (0, 0),
        PairState::InitialCopy => (1, 0),
        PairState::Duplex => (2, 0),
        PairState::Suspended(cause) => (3, cause as u8),
        PairState::DuplexPending => (4, 0),
        PairState::Suspending => (5, 0),
    }
}

fn parse_pair(raw: &RawPair, lease_millis: u32) -> Result<PairRecord, FormatError> {
    let bad = |field| FormatError::Field { what: WHAT, field };
    let state = match (raw.state, raw.cause) {
        (0, 0) => PairState::Simplex,
        (1, 0) => PairState::InitialCopy,
        (2, 0) => PairState::Duplex,
        (3, 0) => PairState::Suspended(Cause::Command),
        (3, 1) => PairState::Suspended(Cause::JournalFull),
        (3, 2) => PairState::Suspended(Cause::Peer),
        (3, 3) => PairState::Suspended(Cause::MediumError),
        (4, 0) => PairState::DuplexPending,
        (5, 0) => PairState::Suspending,
        _ => return Err(bad("pair state")),
    };
    require(raw.left_behind <= 1, WHAT, "flag")?;
    Ok(PairRecord {
        left_behind: raw.left_behind == 1,
        lease_millis,
        keep_count: 1,
        keep_seconds: 0,
        takeover: None,
        fenced_epoch: Epoch::default(),
        former_epoch: Epoch::default(),
        policy: match raw.policy {
            0 => ApplyPolicy::Snapshot,
            1 => ApplyPolicy::Delayed,
            _ => return Err(bad("apply policy")),
        },
        role: match raw.role {
            0 => Role::Primary,
            1 => Role::Secondary,
            2 => Role::Fenced,
            _ => return Err(bad("role")),
        },
        state,
        level: match raw.level {
            0 => Level::Local,
            1 => Level::Remote,
            _ => return Err(bad("acknowledgement level")),
        },
        without_peer: match raw.without_peer {
            0 => WithoutPeer::Continue,
            1 => WithoutPeer::Freeze,
            _ => return Err(bad("policy")),
        },
        peer: match raw.has_peer {
            0 => None,
            1 => Some(NodeKey(raw.peer)),
            _ => return Err(bad("peer")),
        },
        synced: raw.synced.into(),
        peer_epoch: Epoch(raw.peer_epoch.get()),
        fork: raw.fork.into(),
    })
}

fn encode_stream(state: &StreamState) -> RawStream {
    let point = state.restart_point.as_ref();
    let info = point.map(|point| point.info);
    RawStream {
        last: state.last.into(),
        generation: state.generation.0.into(),
        copying: state.copying.into(),
        has_restart_point: point.is_some().into(),
        reserved: [0; 2],
        restart_at: info.map(|info| info.at).unwrap_or_default().into(),
        restart_time: info.map(|info| info.time.0).unwrap_or_default().into(),
        restart_generation: info.map(|info| info.generation.0).unwrap_or_default().into(),
        epoch_count: (state.epochs.len() as u32).into(),
        restart_label: info.map(|info| info.label).unwrap_or_default(),
        restart_order: point.map(|point| point.order.0).unwrap_or_default().into(),
        epochs: encode_epochs(&state.epochs),
        reserved2: [0; 16],
    }
}

fn encode_epochs(epochs: &[EpochStart]) -> [RawPosition; EPOCH_HISTORY_MAX] {
    let mut encoded = [RawPosition::default(); EPOCH_HISTORY_MAX];
    for (raw, start) in encoded.iter_mut().zip(epochs) {
        *raw = Position { epoch: start.epoch, seq: start.first }.into();
    }
    encoded
}

fn parse_epochs(raw: &[RawPosition; EPOCH_HISTORY_MAX], count: U32) -> Result<Vec<EpochStart>, FormatError> {
    let used = raw.get(..count.get() as usize).ok_or(FormatError::Field { what: WHAT, field: "epoch count" })?;
    let start = |raw: &RawPosition| EpochStart { epoch: Epoch(raw.epoch.get()), first: Seq(raw.seq.get()) };
    let epochs: Vec<_> = used.iter().map(start).collect();
    require(epochs.is_sorted_by(|a, b| a.epoch < b.epoch && a.first <= b.first), WHAT, "epoch history")?;
    // The last is the highest.
    require_stored(&epochs.last().map_or([0; 2], |start| [start.epoch.0, start.first.0]), WHAT)?;
    Ok(epochs)
}

fn parse_stream(raw: &RawStream, restart_epochs: Vec<EpochStart>) -> Result<StreamState, FormatError> {
    require(raw.copying <= 1 && raw.has_restart_point <= 1, WHAT, "flag")?;
    require(raw.reserved == [0; 2] && raw.reserved2 == [0; 16], WHAT, "reserved field")?;
    require(raw.restart_label.check().is_ok(), WHAT, "label")?;
    let info = RestartPointInfo {
        generation: Generation(raw.restart_generation.get()),
        at: raw.restart_at.into(),
        time: WallClock(raw.restart_time.get()),
        label: raw.restart_label,
    };
    let point = KeptPoint { info, order: Order(raw.restart_order.get()), epochs: restart_epochs };
    Ok(StreamState {
        last: raw.last.into(),
        generation: Generation(raw.generation.get()),
        copying: raw.copying == 1,
        restart_point: (raw.has_restart_point == 1).then_some(point),
        older: Vec::new(),
        epochs: parse_epochs(&raw.epochs, raw.epoch_count)?,
    })
}

fn encode_older(point: &OlderPoint) -> RawOlder {
    RawOlder {
        at: point.info.at.into(),
        time: point.info.time.0.into(),
        order: point.order.0.into(),
        generation: point.info.generation.0.into(),
        origin: point.origin as u8,
        reserved: [0; 27],
        label: point.info.label,
    }
}

fn parse_older(raw: &RawOlder) -> Result<OlderPoint, FormatError> {
    require(raw.label.check().is_ok(), WHAT, "label")?;
    require(raw.reserved == [0; 27], WHAT, "reserved field")?;
    require_stored(&[raw.at.epoch.get(), raw.at.seq.get(), raw.order.get()], WHAT)?;
    require_stored_32(raw.generation.get(), WHAT)?;
    let info = RestartPointInfo {
        generation: Generation(raw.generation.get()),
        at: raw.at.into(),
        time: WallClock(raw.time.get()),
        label: raw.label,
    };
    let origin = match raw.origin {
        0 => Origin::RestartPoint,
        1 => Origin::FormerRestartPoint,
        2 => Origin::Fork,
        _ => return Err(FormatError::Field { what: WHAT, field: "origin of a generation" }),
    };
    Ok(OlderPoint { info, order: Order(raw.order.get()), origin })
}
