//! A consistency group on one node: the object that a shell drives.
//!
//! Call order: `handle_*` with an event, then [`Group::poll_output`] until `None`, then [`Group::poll_timeout`] for
//! the time of the next [`Group::handle_timeout`].
//!
//! The life of an entry, each step behind the one before:
//! `staged` (has its number) → `sealed` (in a batch that is being written) → `completed` (written) → `durable` (synced)
//! → `applied` (in the tables) → retired (the journal's tail has passed it). Beside that it is sent to the peer as soon
//! as it is sealed, and acknowledged when it is durable there.

mod add_volume;
mod ahead;
mod assembly;
mod batch;
mod behind;
mod checkpoint;
mod commands;
mod compare;
mod copy;
mod create;
mod cycle;
mod delay;
mod destage;
mod drain;
mod fault;
mod fork;
mod generations;
mod greeting;
mod grow;
mod hand_over;
mod journal_growth;
mod lease;
mod mend;
mod open;
mod pace;
mod plan;
mod read;
mod receive;
mod redirected;
mod room;
mod status;
mod stop;
mod stream;
mod superblock;
mod sync;
mod takeover;
mod trial;
mod verify;
mod width;
mod write;

#[cfg(test)]
mod add_volume_tests;
#[cfg(test)]
mod alone_bench;
#[cfg(test)]
mod assembly_tests;
#[cfg(test)]
mod busy_host_tests;
#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod create_tests;
#[cfg(test)]
mod delay_tests;
#[cfg(test)]
mod demotion_tests;
#[cfg(test)]
mod drain_tests;
#[cfg(test)]
mod every_step_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod fork_tests;
#[cfg(test)]
mod generations_tests;
#[cfg(test)]
mod grow_tests;
#[cfg(test)]
mod hand_over_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod journal_growth_tests;
#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod lost_tests;
#[cfg(test)]
mod mend_tests;
#[cfg(test)]
mod open_tests;
#[cfg(test)]
mod pace_tests;
#[cfg(test)]
mod pair_bench;
#[cfg(test)]
mod pair_checks;
#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod promotion_tests;
#[cfg(test)]
mod redirected_tests;
#[cfg(test)]
mod simulated_tests;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trial_tests;
#[cfg(test)]
mod volumes_tests;

pub use crate::table::{LoadError, grown_pool_size, pool_size_for, smallest_pool_size};
pub use create::{FormatError, GroupSpec, JournalLabel, erase_other, format_journal, format_pool, read_label};
pub use open::{Answered, OpenError, RecoveryReport};

use crate::{
    command::{CommandId, VolumeSpec},
    disk::{DiskAction, DiskOperation, DiskOutcome, MediumId, OperationId},
    format::{journal_superblock::PairRecord, text::Name},
    journal::Journal,
    output::{Event, Output},
    overlay::Overlay,
    request::{Reply, RequestError, RequestId},
    stream_state::StreamState,
    table::{ReadCount, Table},
    units::{GroupId, MediumUuid, Monotonic, Now, Order, VolumeId},
};
use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

/// A volume of the group.
struct Volume {
    spec: VolumeSpec,
    table: Table,
    overlay: Overlay,
    /// Redirected data was written to the pool since its last sync began.
    unsynced: bool,
    /// Entries up to here were in the table when the group was opened.
    applied_before: Order,
}

/// What a disk operation in flight is for.
enum Purpose {
    Batch { first: Order },
    Redirect { order: Order },
    Sync,
    Read { read: ReadCount, piece: usize },
    Destage { slot: usize, since: Monotonic },
    Checkpoint,
    Superblock,
    Release { volume: VolumeId, first: u32, count: u32 },
    Trial { place: (VolumeId, u32) },
}

/// See the module.
pub struct Group {
    id: GroupId,
    name: Name,
    medium: MediumUuid,
    volumes: BTreeMap<VolumeId, Volume>,
    journal: Journal,
    stream: StreamState,
    pair: PairRecord,
    now: Now,

    /// Up to here the journal was found when the group was opened.
    found: Order,
    sealed: Order,
    completed: Order,
    durable: Order,
    applied: Order,
    in_flight: VecDeque<batch::InFlight>,
    redirects_in_flight: BTreeMap<Order, u32>,
    memory: batch::Memory,
    waiting: write::Waiting,
    held: VecDeque<pace::Held>,
    sync: sync::Sync,
    reads: read::Reads,
    destage: destage::Destage,
    delay: delay::Delay,
    checkpoint: checkpoint::Checkpoint,
    superblock: superblock::SuperblockWriter,
    peer: stream::Peer,
    confirmation: greeting::Confirmation,
    copy: copy::Copier,
    comparisons: compare::Comparisons,
    verifier: Option<verify::Verifier>,
    leasing: lease::Leasing,
    mending: mend::Mending,
    silence: takeover::Silence,
    /// When the peer's node was last heard on a path that carries no session.
    heard: Option<Monotonic>,
    holds: generations::Holds,
    trial: Option<trial::Trial>,
    commands: commands::Commands,
    growth: Option<grow::Growth>,
    journal_growth: Option<journal_growth::JournalGrowth>,
    /// The command for which this primary steps down as soon as the peer has everything.
    handing_over: Option<CommandId>,

    draining: Option<drain::Draining>,

    operations: BTreeMap<OperationId, Purpose>,
    next_operation: u64,
    outputs: VecDeque<Output>,
    /// Something happened that lets more be started, though nothing was put out.
    again: bool,
    stopped: Option<&'static str>,
    #[cfg(feature = "testing")]
    started: Vec<RequestId>,
}

impl Group {
    /// The requests that got their place in the order since the last call, in that order. Those in flight have none before.
    #[cfg(feature = "testing")]
    pub fn take_started(&mut self) -> Vec<RequestId> {
        core::mem::take(&mut self.started)
    }

    /// The outcome of a disk operation.
    pub fn handle_disk(&mut self, now: Now, id: OperationId, outcome: DiskOutcome) {
        self.now = now;
        let Some(purpose) = self.operations.remove(&id) else {
            return;
        };
        // Who reads is still answered, but nothing may become durable on top of what failed: after a sync that has failed once the
        // next one may well succeed.
        if self.stopped.is_some() && !matches!(purpose, Purpose::Read { .. }) {
            return;
        }
        match purpose {
            Purpose::Batch { first } => self.batch_written(first, outcome),
            Purpose::Redirect { order } => self.redirect_written(order, outcome),
            Purpose::Sync => self.sync_done(outcome),
            Purpose::Read { read, piece } => self.read_done(read, piece, outcome),
            Purpose::Destage { slot, since } => self.destage_done(slot, since, outcome),
            Purpose::Checkpoint => self.checkpoint_done(id, outcome),
            Purpose::Superblock => self.superblock_done(outcome),
            // Space that cannot be given back is kept; it is used again all the same.
            Purpose::Release { volume, first, count } => self.released(volume, first, count),
            Purpose::Trial { place } => self.edit_written(place, outcome),
        }
    }

    /// The time that [`Group::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
    }

    /// The next thing to do, `None` when there is nothing until the next event.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.again |= self.outputs.is_empty();
        while self.outputs.is_empty() && core::mem::take(&mut self.again) {
            self.advance();
        }
        self.outputs.pop_front()
    }

    /// When to call [`Group::handle_timeout`] if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        if self.stopped.is_some() {
            return None;
        }
        let times = [
            self.destage_timeout(),
            self.checkpoint_timeout(),
            self.confirm_timeout(),
            self.lease_timeout(),
            self.takeover_timeout(),
            self.pace_timeout(),
            self.journal_growth_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// Starts whatever can be started now.
    fn advance(&mut self) {
        if self.stopped.is_some() {
            return;
        }
        self.let_go_of_found();
        self.confirm();
        // Before whatever else is sent in a session.
        self.greet();
        self.keep_lease();
        self.take_over();
        self.release_held();
        self.seal();
        self.clear_copied();
        self.start_sync();
        self.check_delay();
        // Before the next cycle, for which it would have to wait otherwise.
        self.start_checkpoint();
        self.start_destage();
        self.retire();
        self.suspend_when_nearly_full();
        self.start_superblock();
        self.begin_copy();
        self.send();
        self.copy_next();
        self.verify_next();
        self.mend_next();
        self.continue_trial();
        self.continue_commands();
    }

    fn disk(&mut self, medium: MediumId, action: DiskAction, purpose: Purpose) {
        let id = OperationId(self.next_operation);
        self.next_operation += 1;
        self.operations.insert(id, purpose);
        self.outputs.push_back(Output::Disk(DiskOperation { id, medium, action }));
    }

    fn answer(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        self.outputs.push_back(Output::Answer { id, result });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn pools(&self) -> Vec<VolumeId> {
        self.volumes.keys().copied().collect()
    }

    /// What the tables of all volumes contain durably.
    fn applied_durable(&self) -> Order {
        self.volumes.values().map(|volume| volume.table.applied_durable()).min().unwrap_or(self.applied)
    }
}
