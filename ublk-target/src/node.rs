//! The node on the disk thread: its groups, its peers, and what operators ask of it.

mod devices;
mod generations;
mod groups;
mod pairs;
mod resize;
mod switch;

use crate::{
    actor::{GroupActor, open_media},
    api::{ApiError, Request},
    busy_poll::BusyPoll,
    config::Config,
    events::{self, EVENT},
    exports::Exports,
    legacy,
    lock::Patience,
    media::{GroupMedia, MediaOptions},
    nbd::{ListenError, Server},
    peer::Peer,
    presence::Presence,
};
use anyhow::{anyhow, ensure};
use bytes::Bytes;
use holdfast::{
    command::{Command, CommandError, CommandReply, PromoteTarget},
    format::text::Name,
    group::JournalLabel,
    pair::{Role, Takeover},
    units::NodeKey,
};
use replicator::{
    ChannelId, LinkState,
    io::{Event, PeerKey},
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

type Answer = Result<Value, ApiError>;

/// After at most so many seconds of silence a node promotes itself.
const TAKEOVER_SECONDS_MAX: u32 = 86_400;
/// A heartbeat says so long that a peer lives.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Node {
    config: Config,
    key: PeerKey,
    groups: RefCell<BTreeMap<String, Rc<GroupActor>>>,
    /// Groups that could not be opened, and why.
    unopened: RefCell<BTreeMap<String, String>>,
    peers: Vec<Rc<Peer>>,
    questions: pairs::Questions,
    devices: devices::Devices,
    busy_poll: Rc<BusyPoll>,
}

/// A request from the control socket, and where its answer goes.
pub type Asked = (Request, oneshot::Sender<Answer>);

impl Node {
    /// A node with its groups open. A group that cannot be opened is reported and left alone; the others are served.
    pub fn open(config: Config, key: PeerKey, peers: Vec<Rc<Peer>>) -> io::Result<Rc<Self>> {
        let groups = config.groups_path();
        fs::create_dir_all(&groups)?;
        let node = Rc::new(Self {
            busy_poll: BusyPoll::start(config.node.busy_poll()),
            config,
            key,
            groups: RefCell::default(),
            unopened: RefCell::default(),
            peers,
            questions: pairs::Questions::default(),
            devices: devices::Devices::default(),
        });
        let mut folders: Vec<PathBuf> = fs::read_dir(&groups)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        for folder in &folders {
            let journal = folder.join("journal");
            // A link that leads nowhere is there too: it may not be yet.
            if !is_there(&journal) {
                if let Some((group, reason)) = groups::lacks_journal(folder) {
                    node.tell_unopened(&group, reason);
                }
                continue;
            }
            let media = open_media(&journal, node.options(), Patience::Start, is_called_so(folder));
            match media.and_then(|media| node.run_group(&journal, media)) {
                Ok(actor) => node.insert(actor),
                Err(reason) => {
                    let group = folder.file_name().unwrap_or_default().to_string_lossy();
                    node.tell_unopened(&group, reason.to_string());
                }
            }
        }
        Ok(node)
    }

    fn options(&self) -> MediaOptions {
        MediaOptions { buffered: self.config.media.buffered, cached_journal: self.config.media.cached_journal }
    }

    fn run_group(&self, journal: &Path, media: GroupMedia) -> anyhow::Result<Rc<GroupActor>> {
        let actor = GroupActor::open(media, self.busy_poll.clone(), Path::new(legacy::FOLDER));
        actor.map_err(|error| anyhow!("{}: {error}", journal.display()))
    }

    fn insert(&self, actor: Rc<GroupActor>) {
        let name = actor.label().name.to_string();
        self.unopened.borrow_mut().remove(&name);
        self.groups.borrow_mut().insert(name, actor);
    }

    /// Remembers why a group is not there, for who asks for it.
    fn tell_unopened(&self, group: &str, reason: String) {
        error!(target: EVENT, group, reason, "Group not opened");
        self.unopened.borrow_mut().insert(group.to_owned(), reason);
    }

    /// Starts the NBD server.
    pub fn serve_nbd(self: &Rc<Self>) -> Result<Server, ListenError> {
        Server::start(&self.config.nbd_addresses(), Rc::new(Exports(self.clone())))
    }

    /// Handles what comes from a peer's session for ever.
    pub async fn follow(self: Rc<Self>, peer: Rc<Peer>, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut refused = String::new();
        while let Some(event) = events.recv().await {
            self.watch(&peer, &event);
            match event {
                Event::Up { session } => {
                    info!(target: EVENT, peer = peer.name, session = session.0, "Session up");
                    refused.clear();
                    peer.clear();
                    peer.set_up(session);
                    self.of_peer(&peer).for_each(|group| group.peer_up(peer.clone()));
                }
                Event::Down { reason } => {
                    info!(target: EVENT, peer = peer.name, reason, "Session down");
                    self.of_peer(&peer).for_each(|group| group.peer_down());
                    peer.set_down();
                    peer.clear();
                }
                Event::Frame(frame) if frame.channel == ChannelId::default() => {
                    peer.consumed(frame.body.len() as u64);
                    self.clone().message(&peer, &frame.body);
                }
                Event::Frame(frame) => self.frame(&peer, frame.channel, frame.body),
                Event::Durable { channel, value } => {
                    // A group's own channel says what is durable, the opposite one is about leases.
                    if let Some(group) = self.paired(&peer, channel) {
                        group.durable(value);
                    } else if let Some(group) = self.paired(&peer, ChannelId(channel.0.map(|byte| !byte))) {
                        group.lease_mark(value);
                    }
                }
                Event::Link { link, state } => {
                    info!(target: EVENT, peer = peer.name, link, ?state, "Link changed")
                }
                Event::Writable => peer.flush(),
                Event::Refused { link, reason } => {
                    // The same again and again is said once.
                    if refused != reason {
                        warn!(peer = peer.name, link, reason, "Link not connected");
                        refused = reason;
                    }
                }
            }
        }
    }

    /// Tells when a peer is heard no more, or again.
    fn watch(&self, peer: &Peer, event: &Event) {
        let now = events::now();
        let changed = match event {
            Event::Up { .. } => peer.monitor.borrow_mut().session(now, true),
            Event::Down { .. } => peer.monitor.borrow_mut().session(now, false),
            Event::Link { link, state } => peer.monitor.borrow_mut().link(now, link.clone(), *state == LinkState::Up),
            _ => None,
        };
        tell_presence(peer, changed);
    }

    /// Handles signs of life on a peer's third path for ever.
    pub async fn follow_heartbeat(self: Rc<Self>, peer: Rc<Peer>, mut beats: mpsc::Receiver<()>) {
        loop {
            let beat = tokio::time::timeout(HEARTBEAT_PATIENCE, beats.recv()).await;
            let heard = matches!(beat, Ok(Some(())));
            let changed = peer.monitor.borrow_mut().heartbeat(events::now(), heard);
            tell_presence(&peer, changed);
            match beat {
                Ok(Some(())) => self.of_peer(&peer).for_each(|group| group.heartbeat()),
                Ok(None) => return,
                Err(_) => {}
            }
        }
    }

    fn frame(&self, peer: &Rc<Peer>, channel: ChannelId, body: Bytes) {
        match self.paired(peer, channel) {
            Some(group) => group.frame(body),
            None => {
                peer.consumed(body.len() as u64);
                warn!(peer = peer.name, "A frame came for a group that is not paired with this peer");
            }
        }
    }

    fn of_peer(&self, peer: &Peer) -> impl Iterator<Item = Rc<GroupActor>> + use<> {
        let groups: Vec<_> =
            self.groups.borrow().values().filter(|group| group.is_paired_with(peer)).cloned().collect();
        groups.into_iter()
    }

    /// The group of a channel. Only its own peer has a say in it: a former one, whose session goes on for other groups, may still
    /// make durable what it was sent.
    fn paired(&self, peer: &Peer, channel: ChannelId) -> Option<Rc<GroupActor>> {
        let groups = self.groups.borrow();
        groups.values().find(|group| group.id().0 == channel.0 && group.is_paired_with(peer)).cloned()
    }

    /// Answers requests for ever.
    pub async fn answer(self: Rc<Self>, mut asked: mpsc::Receiver<Asked>) {
        while let Some((request, sender)) = asked.recv().await {
            let node = self.clone();
            tokio_uring::spawn(async move {
                // Whoever asked may be gone.
                let _ = sender.send(node.carry_out(request).await);
            });
        }
    }

    /// Stops all groups in good order.
    pub async fn stop(&self) {
        self.leave_devices().await;
        for group in self.groups() {
            let name = group.label().name;
            // A medium may fail while it stops, and nobody be left to hear of it.
            group.keep_answered();
            match group.command(Command::Stop).await {
                Ok(_) => info!(group = %name, "Group stopped"),
                Err(error) => warn!(group = %name, %error, "Group not stopped in good order"),
            }
        }
    }

    async fn carry_out(self: &Rc<Self>, request: Request) -> Answer {
        match request {
            Request::NodeStatus {} => Ok(self.status()),
            Request::GroupCreate { group, journal_size, journal, overwrite } => {
                groups::not_on_own_device(journal.as_ref()).await?;
                self.create_group(&group, journal_size, journal, groups::Found::of(overwrite))
            }
            Request::GroupReopen { group } => self.reopen_group(&group).await,
            Request::GroupDelete { group, erase } => self.delete_group(&group, erase).await,
            Request::VolumeCreate {
                group,
                volume,
                size,
                logical_block_size,
                table_block_size,
                pool,
                preallocate,
                overwrite,
            } => {
                groups::not_on_own_device(pool.as_ref()).await?;
                let found = groups::Found::of(overwrite);
                let asked =
                    groups::NewVolume { volume, size, logical_block_size, table_block_size, pool, preallocate, found };
                self.add_volume(&group, asked).await
            }
            Request::GroupResize { group, journal_size } => self.resize_journal(&group, journal_size).await,
            Request::VolumeResize { group, volume, size } => self.resize_volume(&group, &volume, size).await,
            Request::VolumeDelete { group, volume } => self.delete_volume(&group, &volume).await,
            Request::VolumeExport { group, read_only } => {
                self.group(&group)?.exported.set(read_only);
                let what = if read_only { "can be read on this node" } else { "are served on the primary only" };
                Ok(json!({ "done": format!("The volumes of {group} {what}") }))
            }
            Request::VolumeAttach { group, volume, read_only, nbd: false } => {
                self.attach_volume(&group, &volume, read_only).await
            }
            Request::VolumeAttach { group, volume, read_only, nbd: true } => {
                self.serve_by_nbd(&group, &volume, read_only)
            }
            Request::VolumeDetach { group, volume } => self.detach_volume(&group, &volume).await,
            Request::VolumeName { device } => self.name_device(&device).await,
            Request::PairCreate { group, peer } => self.create_pair(&group, &peer).await,
            Request::PairDelete { group } => self.simple(&group, Command::DeletePair, "The pair is deleted").await,
            Request::PairSuspend { group, now } => {
                self.simple(&group, Command::SuspendPair { now }, "The pair is suspended; changes are noted").await
            }
            Request::PairResume { group, no_compare } => {
                self.simple(&group, Command::ResumePair { compare: !no_compare }, "The pair is resumed").await
            }
            Request::PairVerify { group, mend } => command(&self.group(&group)?, Command::VerifyPair { mend }).await,
            Request::PairSwitch { group } => self.switch_pair(&group).await,
            Request::RestartPoint { group, label } => {
                let label = label.parse().map_err(ApiError::new)?;
                command(&self.group(&group)?, Command::RestartPoint { label }).await
            }
            Request::GenerationKeep { group, count, seconds } => self.keep_generations(&group, count, seconds).await,
            Request::GenerationDrop { group, generation } => self.drop_generation(&group, generation).await,
            Request::TrialBegin { group, generation } => self.begin_trial(&group, generation).await,
            Request::TrialEnd { group } => self.end_trial(&group).await,
            Request::Promote { group, latest, generation, force } => {
                let actor = self.group(&group)?;
                // A node that is no standby is refused by the core, whoever else is alive.
                let standby = actor.label().role == Role::Secondary;
                let target = match generation {
                    Some(generation) => PromoteTarget::Generation(generation),
                    None if latest => PromoteTarget::Latest,
                    None => PromoteTarget::RestartPoint,
                };
                if standby && !force && self.primary_lives(&actor).await {
                    let others = actor.promotion_dangers(target);
                    let others = others.map(|others| format!(", and overrides more: {others}")).unwrap_or_default();
                    return Err(ApiError::new(format!(
                        "The primary of group {group} is alive and connected; demote it first, or use --force, which \
                         fences it{others}"
                    )));
                }
                command(&actor, Command::Promote { target, force }).await
            }
            Request::Demote { group, discard_fork } => {
                self.nothing_writable_is_attached(&group)?;
                self.simple(&group, Command::Demote { discard_fork }, "This node is a standby now").await
            }
            Request::SetLevel { group, level, without_peer } => {
                let actor = self.group(&group)?;
                if let Some(policy) = without_peer {
                    command(&actor, Command::SetWithoutPeer(policy)).await?;
                }
                self.simple(&group, Command::SetLevel(level), "The acknowledgement level is set").await
            }
            Request::SetFence { group, lease_seconds, .. } if lease_seconds > 3600 => {
                Err(ApiError::new(format!("Group {group}: a lease of {lease_seconds} s is not between 1 and 3600 s")))
            }
            Request::SetFence { group, lease_seconds, force } => {
                let millis = lease_seconds * 1000;
                self.simple(&group, Command::SetLease { millis, force }, "Fencing is set").await
            }
            Request::SetTakeover { group, after_seconds, .. } if after_seconds > TAKEOVER_SECONDS_MAX => {
                Err(ApiError::new(format!(
                    "Group {group}: a silence of {after_seconds} s is not between 1 and {TAKEOVER_SECONDS_MAX} s (a day)"
                )))
            }
            Request::SetTakeover { group, after_seconds, latest } => {
                let takeover =
                    (after_seconds > 0).then_some(Takeover { after_millis: after_seconds * 1000, to_latest: latest });
                self.simple(&group, Command::SetTakeover(takeover), "Automatic promotion of this node is set").await
            }
            Request::SetPolicy { group, policy } => {
                self.simple(&group, Command::SetPolicy(policy), "The apply policy of this node is set").await
            }
            Request::Events { group, count } => {
                if let Some(group) = group.as_ref().filter(|group| !self.unopened.borrow().contains_key(*group)) {
                    self.group(group)?;
                }
                Ok(events::last(&self.config.node.directory, group.as_deref(), count).into())
            }
            Request::Status { group } => match group {
                Some(group) => self.group_status(&self.group(&group)?),
                None => {
                    let groups = self.groups();
                    let opened = groups.iter().map(|group| self.group_status(group));
                    let unopened = self.unopened();
                    opened.chain(unopened.into_iter().map(Ok)).collect::<Result<Vec<_>, _>>().map(Value::from)
                }
            },
        }
    }

    async fn simple(&self, group: &str, asked: Command, done: &str) -> Answer {
        let actor = self.group(group)?;
        command(&actor, asked).await?;
        Ok(json!({ "done": format!("{done} ({group})") }))
    }

    /// All groups of this node.
    pub fn groups(&self) -> Vec<Rc<GroupActor>> {
        self.groups.borrow().values().cloned().collect()
    }

    fn group(&self, name: &str) -> Result<Rc<GroupActor>, ApiError> {
        let opened = self.groups.borrow().get(name).cloned();
        opened.ok_or_else(|| match self.unopened.borrow().get(name) {
            Some(reason) => ApiError::new(format!(
                "Group {name} is NOT OPENED: {reason}; mend that, then: ublk-admin group reopen {name}"
            )),
            None => missing("group", name),
        })
    }

    /// The groups that could not be opened, as a list of groups shows them.
    fn unopened(&self) -> Vec<Value> {
        let unopened = self.unopened.borrow();
        unopened.iter().map(|(group, reason)| json!({ "group": group, "not_opened": reason })).collect()
    }

    fn status(&self) -> Value {
        let peers: Vec<Value> = self
            .peers
            .iter()
            .map(|peer| {
                let (presence, since) = peer.monitor.borrow().presence();
                let (key, session) = (peer.key.to_string(), peer.status());
                json!({ "name": peer.name, "key": key, "presence": presence, "since": since, "session": session })
            })
            .collect();
        let groups: Vec<String> = self.groups.borrow().keys().cloned().collect();
        json!({
            "name": self.config.node.name.get_ref(),
            "key": self.key.to_string(),
            "groups": groups,
            "not_opened": self.unopened(),
            "peers": peers,
        })
    }

    fn group_status(&self, group: &Rc<GroupActor>) -> Answer {
        let label = group.label();
        let mut value = serde_json::to_value(group.status()).map_err(ApiError::new)?;
        let peer = self.peers.iter().find(|peer| Some(NodeKey(peer.key.0)) == label.peer);
        if let Value::Object(fields) = &mut value {
            fields.insert("group".into(), label.name.as_str().into());
            fields.insert("id".into(), label.group.to_string().into());
            fields.insert("journal_unprepared".into(), group.unprepared_bytes().into());
            fields.insert("peer_name".into(), peer.map(|peer| peer.name.clone()).into());
            let session = peer.map(|peer| serde_json::to_value(peer.status())).transpose();
            for volume in fields.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
                let device = volume["name"].as_str().and_then(|name| self.device_of(label.name.as_str(), name));
                volume["attached"] = device.into();
            }
            fields.insert("session".into(), session.map_err(ApiError::new)?.into());
        }
        Ok(value)
    }
}

/// Whether a journal is in the folder of its own group. Else one group could stand in another one's place: the folder of a deleted
/// one that was put back, or a device whose name has changed.
fn is_called_so(folder: &Path) -> impl Fn(&JournalLabel) -> anyhow::Result<()> {
    move |label| {
        let same = folder.file_name().is_some_and(|name| name == label.name.as_str());
        ensure!(
            same,
            "it is the journal of group {0}, and the folder is not called so; move it away, or call it {0} if no other is",
            label.name
        );
        Ok(())
    }
}

/// Whether there is anything of that name, be it a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn tell_presence(peer: &Peer, changed: Option<Presence>) {
    match changed {
        Some(presence @ Presence::Alive) => info!(target: EVENT, peer = peer.name, %presence, "Peer changed"),
        Some(presence) => warn!(target: EVENT, peer = peer.name, %presence, "Peer changed"),
        None => {}
    }
}

async fn command(actor: &Rc<GroupActor>, asked: Command) -> Answer {
    match actor.command(asked).await {
        Ok(CommandReply::Done) => Ok(Value::Null),
        Ok(reply) => serde_json::to_value(reply).map_err(ApiError::new),
        Err(error @ CommandError::ForkWouldBeLost { .. }) => Err(ApiError::new(error)),
        Err(error) => Err(ApiError::new(format!("Group {}: {error}", actor.label().name))),
    }
}

fn missing(what: &str, name: &str) -> ApiError {
    ApiError::new(format!("There is no {what} {name} on this node; `ublk-admin status` lists what there is"))
}

/// The name of a group or volume: it is also that of a folder or file.
fn name(text: &str) -> Result<Name, ApiError> {
    if text.is_empty() || text.starts_with('.') || text.contains(['/', '@']) {
        return Err(ApiError::new(format!(
            "\"{text}\": a name has at least one character, no slash, no @ and no dot in front"
        )));
    }
    text.parse().map_err(ApiError::new)
}
