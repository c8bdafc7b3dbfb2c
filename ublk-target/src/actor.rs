//! One group on the disk thread: hands events to the core and carries out what it asks for.
//!
//! Requests that come while a turn is waiting to run are handed in together, and the outputs are drained once: that is
//! what makes group commit work.

use crate::{
    busy_poll::BusyPoll,
    client::{Clients, Era},
    events::{self, EVENT},
    group_events,
    legacy::Legacy,
    lock::Patience,
    media::{GroupMedia, MediaOptions, Medium, carry_out},
    peer::Peer,
};
use bytes::Bytes;
use holdfast::{
    command::{Command, CommandError, CommandId, CommandReply, GenerationId, PromoteTarget, Status, VolumeSpec},
    disk::{DiskError, DiskOperation, DiskOutcome, MediumId, OperationId},
    group::{Group, JournalLabel, OpenError},
    output::{Event, Output},
    request::{Access, Busy, Operation, Reply, Request, RequestError, RequestId},
    units::{FrameCount, GroupId, Monotonic, NodeKey, Now, Order, VolumeId, WallClock},
};
use nix::time::{ClockId, clock_gettime};
use replicator::{ChannelId, Frame};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};
use tracing::{info, warn};

/// Bytes of frames handed out ahead of what the carrier has taken.
const STREAM_CREDIT: u64 = 4 << 20;

/// The group's timer does not fire more often.
const TIMER_STEP: Duration = Duration::from_millis(1);

type RequestResult = Result<Reply, RequestError>;
type CommandResult = Result<CommandReply, CommandError>;

struct State {
    group: Group,
    media: GroupMedia,
    /// Raised when the group is opened anew: what was asked of the media before is nobody's.
    life: u64,
    requests: BTreeMap<RequestId, oneshot::Sender<RequestResult>>,
    commands: BTreeMap<CommandId, oneshot::Sender<CommandResult>>,
    finished: Vec<(OperationId, DiskOutcome)>,
    waiting: VecDeque<Request>,
    next: u64,
    peer: Option<Rc<Peer>>,
}

/// See the module.
pub struct GroupActor {
    label: RefCell<JournalLabel>,
    state: RefCell<State>,
    wake: Notify,
    busy_poll: Rc<BusyPoll>,
    /// A standby's volumes are served read-only.
    pub exported: Cell<bool>,
    /// Who uses its volumes.
    pub clients: Clients,
    closed: Cell<bool>,
    /// Whether the group's hosts were last seen to wait for an absent peer.
    writes_wait: Cell<bool>,
    era: Cell<Era>,
    legacies: PathBuf,
}

impl GroupActor {
    /// Opens a group whose media are open, and lets it run.
    pub fn open(mut media: GroupMedia, busy_poll: Rc<BusyPoll>, legacies: &Path) -> Result<Rc<Self>, OpenError> {
        let (group, report) = Group::open(&mut media, now())?;
        let label = group.label();
        Legacy::all(legacies, &label).iter().for_each(|it| it.settle(|answered| group.lost_since(answered)));
        info!(group = %label.name, role = %label.role, entries = report.entry_count, replayed = report.replay_count,
            last = %report.last, clean = report.was_clean, "Group opened");
        let state = State {
            group,
            media,
            life: 0,
            requests: BTreeMap::new(),
            commands: BTreeMap::new(),
            finished: Vec::new(),
            waiting: VecDeque::new(),
            next: 1,
            peer: None,
        };
        let actor = Rc::new(Self {
            label: RefCell::new(label),
            state: RefCell::new(state),
            wake: Notify::new(),
            busy_poll,
            exported: Cell::new(false),
            clients: Clients::default(),
            closed: Cell::new(false),
            writes_wait: Cell::new(false),
            era: Cell::default(),
            legacies: legacies.to_owned(),
        });
        tokio_uring::spawn(actor.clone().run());
        Ok(actor)
    }

    /// What a promotion that is asked for now would override by force.
    pub fn promotion_dangers(&self, target: PromoteTarget) -> Option<CommandError> {
        self.state.borrow().group.promotion_dangers(target)
    }

    /// Leaves the next daemon word of how much hosts of devices may have answers to.
    pub fn keep_answered(&self) {
        let answered = self.state.borrow().group.answered();
        self.legacies().for_each(|it| it.keep_answered(answered));
    }

    /// What is left to the next daemon about the volumes' devices.
    fn legacies(&self) -> impl Iterator<Item = Legacy> {
        Legacy::all(&self.legacies, &self.label.borrow()).into_iter()
    }

    /// Who it is.
    pub fn label(&self) -> JournalLabel {
        self.label.borrow().clone()
    }

    /// Its id.
    pub fn id(&self) -> GroupId {
        self.label.borrow().group
    }

    /// Whether it is a pair with this peer.
    pub fn is_paired_with(&self, peer: &Peer) -> bool {
        self.label.borrow().peer == Some(NodeKey(peer.key.0))
    }

    /// As it is now.
    pub fn status(&self) -> Status {
        self.state.borrow().group.status(now())
    }

    /// Holds a generation for a reader, if it is kept.
    pub fn hold_generation(&self, generation: GenerationId) -> Option<Order> {
        let mut state = self.state.borrow_mut();
        let order = state.group.find_generation(generation)?;
        state.group.hold_generation(order);
        Some(order)
    }

    /// The reader has gone.
    pub fn release_generation(&self, order: Order) {
        self.state.borrow_mut().group.release_generation(order);
        self.wake.notify_one();
    }

    /// Lets go of the media of a group that has stopped, so that they can be opened again.
    pub fn drop_media(&self) {
        let mut state = self.state.borrow_mut();
        state.media.0.clear();
        state.finished.clear();
        state.life += 1;
        state.answer_what_is_left();
    }

    /// Opens a group that has stopped again; its clients and devices go on, unless records are gone that they may have an answer to.
    /// How many.
    pub fn reopen(&self, mut media: GroupMedia) -> Result<u64, OpenError> {
        let (mut group, report) = Group::open(&mut media, now())?;
        let label = group.label();
        info!(target: EVENT, group = %label.name, replayed = report.replay_count, last = %report.last, "Group opened again");
        let mut state = self.state.borrow_mut();
        state.life += 1;
        let lost = group.lost_since(state.group.answered());
        if lost > 0 {
            warn!(target: EVENT, group = %label.name, records = lost, "Records lost");
            self.begin_era(&mut state);
        }
        self.legacies().for_each(|it| it.settle(|answered| group.lost_since(answered)));
        // What the group that has stopped was asked since.
        state.answer_what_is_left();
        group.inherit(&mut state.group);
        (state.group, state.media) = (group, media);
        let peer = state.peer.take();
        drop(state);
        *self.label.borrow_mut() = label;
        // Both ends greet anew.
        if let Some(peer) = peer {
            peer.restart_soon();
        }
        self.wake.notify_one();
        Ok(lost)
    }

    /// Ends its life on this node; its media are closed when what is in flight has ended.
    pub fn close(&self) {
        self.closed.set(true);
        self.wake.notify_one();
    }

    /// See [`crate::client`].
    pub fn era(&self) -> Era {
        self.era.get()
    }

    /// Carries out a host's request.
    pub fn request(&self, volume: VolumeId, access: Access, operation: Operation) -> oneshot::Receiver<RequestResult> {
        let (sender, receiver) = oneshot::channel();
        if self.closed.get() {
            // Nobody is left to answer.
            return receiver;
        }
        let mut state = self.state.borrow_mut();
        let id = RequestId(state.next);
        state.next += 1;
        state.requests.insert(id, sender);
        let request = Request { id, volume, access, operation };
        if state.waiting.is_empty() {
            if let Err(Busy(request)) = state.group.handle_request(now(), request) {
                state.waiting.push_back(request);
            }
        } else {
            state.waiting.push_back(request);
        }
        drop(state);
        self.wake.notify_one();
        receiver
    }

    /// Carries out an operator's command.
    pub async fn command(&self, command: Command) -> CommandResult {
        if self.closed.get() {
            // Nobody is left to answer.
            return Err(CommandError::Stopped);
        }
        let receiver = {
            let mut state = self.state.borrow_mut();
            let (id, receiver) = state.expect_command();
            state.group.handle_command(now(), id, command);
            receiver
        };
        self.wake.notify_one();
        let result = receiver.await.unwrap_or(Err(CommandError::Stopped));
        *self.label.borrow_mut() = self.state.borrow().group.label();
        result
    }

    /// The file or device of a medium.
    pub fn medium_file(&self, medium: MediumId) -> std::io::Result<std::fs::File> {
        let state = self.state.borrow();
        let medium = state.media.0.get(&medium);
        medium.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?.open_again()
    }

    /// Writes what a journal has gained, in the background: [`crate::preparation`].
    pub fn prepare_journal(&self, gained: Range<u64>) {
        if let Some(journal) = self.state.borrow().media.0.get(&MediumId::Journal) {
            journal.prepare(gained);
        }
    }

    /// Bytes of the journal that are still to be written for that.
    pub fn unprepared_bytes(&self) -> u64 {
        self.state.borrow().media.0.get(&MediumId::Journal).map_or(0, Medium::unprepared_bytes)
    }

    /// Adds a volume whose pool is formatted.
    pub async fn add_volume(&self, spec: VolumeSpec, pool: Medium) -> CommandResult {
        let receiver = {
            let mut state = self.state.borrow_mut();
            if state.media.0.contains_key(&MediumId::Pool(spec.id)) {
                let reason = "another volume is being made at this moment; try again";
                return Err(CommandError::Volume { name: spec.name, reason });
            }
            let (id, receiver) = state.expect_command();
            state.media.0.insert(MediumId::Pool(spec.id), pool);
            let State { group, media, .. } = &mut *state;
            group.handle_add_volume(now(), id, media, spec.clone());
            receiver
        };
        self.wake.notify_one();
        let result = receiver.await.unwrap_or(Err(CommandError::Stopped));
        if result.is_err() {
            // A pool that is not used is not kept locked.
            self.state.borrow_mut().media.0.remove(&MediumId::Pool(spec.id));
        }
        *self.label.borrow_mut() = self.state.borrow().group.label();
        result
    }

    /// Forgets a volume and closes its pool.
    pub async fn remove_volume(&self, volume: VolumeId) -> CommandResult {
        let result = self.command(Command::RemoveVolume(volume)).await;
        if result.is_ok() {
            self.state.borrow_mut().media.0.remove(&MediumId::Pool(volume));
        }
        result
    }

    /// Whether it knows of a session to its peer.
    pub fn has_peer(&self) -> bool {
        self.state.borrow().peer.is_some()
    }

    /// The carrier's session to the pair's peer is up.
    pub fn peer_up(&self, peer: Rc<Peer>) {
        let mut state = self.state.borrow_mut();
        state.peer = Some(peer);
        state.group.handle_peer_up(now());
        state.group.handle_stream_credit(now(), STREAM_CREDIT);
        drop(state);
        self.wake.notify_one();
    }

    /// It is over.
    pub fn peer_down(self: &Rc<Self>) {
        // What was said in this session must not wait for the next one.
        self.turn();
        let mut state = self.state.borrow_mut();
        state.peer = None;
        state.group.handle_peer_down(now());
        drop(state);
        self.wake.notify_one();
    }

    /// A frame came.
    pub fn frame(&self, body: Bytes) {
        self.state.borrow_mut().group.handle_frame(now(), body);
        self.wake.notify_one();
    }

    /// The peer has made frames durable.
    pub fn durable(&self, count: u64) {
        self.state.borrow_mut().group.handle_durable(now(), FrameCount(count));
        self.wake.notify_one();
    }

    /// The peer's mark about leases.
    pub fn lease_mark(&self, number: u64) {
        self.state.borrow_mut().group.handle_lease_mark(now(), number);
        self.wake.notify_one();
    }

    /// The peer's node was heard on its third path.
    pub fn heartbeat(&self) {
        self.state.borrow_mut().group.handle_heartbeat(now());
        self.wake.notify_one();
    }

    /// The carrier has taken so many bytes.
    pub fn credit(&self, bytes: u64) {
        self.state.borrow_mut().group.handle_stream_credit(now(), bytes);
        self.wake.notify_one();
    }

    /// Hands the carrier what waits for it.
    pub fn flush_peer(&self) {
        let peer = self.state.borrow().peer.clone();
        if let Some(peer) = peer {
            peer.flush();
        }
    }

    async fn run(self: Rc<Self>) {
        while !self.closed.get() {
            let timeout = self.turn();
            let timer = async {
                match timeout {
                    Some(at) => {
                        let left = Duration::from_micros(at.0.saturating_sub(now().monotonic.0));
                        // The ring is looked at only when no task is ready, so this one must not be ready for ever.
                        sleep(left.max(TIMER_STEP)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = timer => self.state.borrow_mut().group.handle_timeout(now()),
            }
        }
    }

    /// Hands in what has ended and carries out what is asked for, until there is nothing more now.
    fn turn(self: &Rc<Self>) -> Option<Monotonic> {
        self.busy_poll.touch();
        let mut state = self.state.borrow_mut();
        for (id, outcome) in std::mem::take(&mut state.finished) {
            state.group.handle_disk(now(), id, outcome);
        }
        loop {
            while let Some(output) = state.group.poll_output() {
                self.carry_out(&mut state, output);
            }
            let Some(request) = state.waiting.pop_front() else {
                break;
            };
            if let Err(Busy(request)) = state.group.handle_request(now(), request) {
                state.waiting.push_front(request);
                break;
            }
        }
        self.tell_waiting(state.group.waits_for_absent_peer());
        state.group.poll_timeout()
    }

    /// Tells when hosts begin to wait for a peer that is not there, and when they do no more.
    fn tell_waiting(&self, writes_wait: bool) {
        if self.writes_wait.replace(writes_wait) == writes_wait {
            return;
        }
        let group = self.label.borrow().name;
        if writes_wait {
            warn!(target: EVENT, %group, "The peer is not there; writes wait for it");
        } else {
            info!(target: EVENT, %group, "Writes do not wait for an absent peer any more");
        }
    }

    fn carry_out(self: &Rc<Self>, state: &mut State, output: Output) {
        match output {
            Output::Disk(operation) => self.start(state, operation),
            Output::Answer { id, result } => {
                if let Some(sender) = state.requests.remove(&id) {
                    // The host may be gone.
                    let _ = sender.send(result);
                }
            }
            Output::CommandAnswer { id, result } => {
                if let Some(sender) = state.commands.remove(&id) {
                    let _ = sender.send(result);
                }
            }
            Output::Send(frame) => {
                let channel = ChannelId(self.id().0);
                if let Some(peer) = &state.peer {
                    peer.send(self, Frame { channel, header: frame.header, payload: frame.payload });
                }
            }
            Output::Durable(count) => {
                if let Some(peer) = &state.peer {
                    peer.mark_durable(ChannelId(self.id().0), count.0);
                }
            }
            Output::LeaseMark(number) => {
                if let Some(peer) = &state.peer {
                    peer.mark_durable(lease_channel(self.id()), number);
                }
            }
            Output::Consumed(bytes) => {
                if let Some(peer) = &state.peer {
                    peer.consumed(bytes);
                }
            }
            Output::Reconnect => {
                if let Some(peer) = &state.peer {
                    peer.clone().restart_soon();
                }
            }
            Output::Event(event) => {
                match event {
                    // Promoted as well: a device may have waited for that, from a time when this node was the primary before.
                    Event::RoleChanged { .. } => self.begin_era(state),
                    Event::MediumFailed { .. } => {
                        self.legacies().for_each(|it| it.keep_answered(state.group.answered()))
                    }
                    _ => {}
                }
                self.log(event);
            }
        }
    }

    /// From now on whoever came before to write has errors.
    fn begin_era(&self, state: &mut State) {
        self.era.set(self.era.get().next());
        self.legacies().for_each(|it| it.outdate());
        let (outdated, waiting) = state.waiting.drain(..).partition(|request| request.access == Access::ReadWrite);
        state.waiting = waiting;
        let outdated: VecDeque<Request> = outdated;
        for request in outdated {
            if let Some(sender) = state.requests.remove(&request.id) {
                // The host may be gone.
                let _ = sender.send(Err(RequestError::Outdated));
            }
        }
    }

    fn start(self: &Rc<Self>, state: &mut State, operation: DiskOperation) {
        let Some(file) = state.media.0.get(&operation.medium).map(Medium::ring) else {
            state.finished.push((operation.id, Err(DiskError::Failed { errno: nix::libc::ENODEV })));
            self.wake.notify_one();
            return;
        };
        let (actor, life) = (self.clone(), state.life);
        tokio_uring::spawn(async move {
            let outcome = carry_out(file, operation.action).await;
            let mut state = actor.state.borrow_mut();
            if state.life == life {
                state.finished.push((operation.id, outcome));
                actor.wake.notify_one();
            }
        });
    }

    fn log(&self, event: Event) {
        if let Event::RoleChanged { role, .. } = event {
            self.label.borrow_mut().role = role;
        }
        group_events::tell(self.label.borrow().name, event);
    }
}

impl State {
    /// Hands over the last answers of a group that has stopped. Whoever gets none learns that none will come; what no group was
    /// asked yet still will be.
    fn answer_what_is_left(&mut self) {
        while let Some(output) = self.group.poll_output() {
            match output {
                Output::Answer { id, result } => drop(self.requests.remove(&id).map(|sender| sender.send(result))),
                Output::CommandAnswer { id, result } => {
                    drop(self.commands.remove(&id).map(|sender| sender.send(result)))
                }
                _ => {}
            }
        }
        let waiting = &self.waiting;
        self.requests.retain(|id, _| waiting.iter().any(|request| request.id == *id));
        self.commands.clear();
    }

    fn expect_command(&mut self) -> (CommandId, oneshot::Receiver<CommandResult>) {
        let (sender, receiver) = oneshot::channel();
        let id = CommandId(self.next);
        self.next += 1;
        self.commands.insert(id, sender);
        (id, receiver)
    }
}

/// Where a group's marks about leases go: no group's identifier, for these are random.
fn lease_channel(group: GroupId) -> ChannelId {
    ChannelId(group.0.map(|byte| !byte))
}

/// The clocks, for the core. The first goes on while the machine sleeps: a lease does not last longer for that.
fn now() -> Now {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Now { monotonic: Monotonic(since_boot.as_micros() as u64 + 1), wall: WallClock(events::now()) }
}

/// Opens the media of a group: the journal, then the pools that it names if it `is_wanted`.
pub fn open_media(
    journal: &Path,
    options: MediaOptions,
    patience: Patience,
    is_wanted: impl Fn(&JournalLabel) -> anyhow::Result<()>,
) -> anyhow::Result<GroupMedia> {
    let mut media = GroupMedia::default();
    media.insert_journal(Medium::open(journal, options, patience)?, options)?;
    let label =
        holdfast::group::read_label(&mut media).map_err(|error| anyhow::anyhow!("{}: {error}", journal.display()))?;
    is_wanted(&label).map_err(|error| anyhow::anyhow!("{}: {error}", journal.display()))?;
    for spec in &label.volumes {
        media.0.insert(MediumId::Pool(spec.id), Medium::open(Path::new(&spec.pool_path), options, patience)?);
    }
    Ok(media)
}
