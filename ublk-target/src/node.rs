//! The node on the disk thread: its groups, its peers, and what operators ask of it.

use crate::{
    actor::{GroupActor, VolumeExport, open_media},
    api::{ApiError, Request},
    config::Config,
    media::{Allocation, GroupMedia, MediaOptions, Medium},
    nbd::{Export, ExportCatalog, ExportInfo, ListenError, Server},
    peer::Peer,
    provision::{Message, ProvisionVolume},
};
use bytes::Bytes;
use holdfast::{
    command::{Command, CommandError, CommandReply, PromoteTarget, VolumeSpec},
    disk::MediumId,
    format::text::Name,
    group::{GroupSpec, format_journal, format_pool, pool_size_for},
    pair::Role,
    units::{GroupId, MediumUuid, NodeKey, VolumeId},
};
use replicator::{
    ChannelId, LinkState,
    io::{Event, PeerKey},
};
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{error, info, warn};

/// How long a peer may take to make a group.
const PROVISION: Duration = Duration::from_secs(30);
/// How long a command waits for a session to the peer.
const SESSION: Duration = Duration::from_secs(10);
/// How often, and how far apart, a promotion looks whether the primary is still heard.
const SILENCE_LOOKS: u32 = 50;
const SILENCE_STEP: Duration = Duration::from_millis(20);
/// Longest message between nodes in bytes.
const MESSAGE_SIZE_MAX: usize = 256 << 10;

type Answer = Result<Value, ApiError>;

/// See the module.
pub struct Node {
    config: Config,
    key: PeerKey,
    groups: RefCell<BTreeMap<String, Rc<GroupActor>>>,
    peers: Vec<Rc<Peer>>,
    provisions: RefCell<BTreeMap<u64, oneshot::Sender<Option<String>>>>,
    next: Cell<u64>,
}

/// A request from the control socket, and where its answer goes.
pub type Asked = (Request, oneshot::Sender<Answer>);

impl Node {
    /// A node with its groups open. A group that cannot be opened is reported and left alone; the others are served.
    pub fn open(config: Config, key: PeerKey, peers: Vec<Rc<Peer>>) -> io::Result<Rc<Self>> {
        let groups = config.groups_path();
        fs::create_dir_all(&groups)?;
        let node = Rc::new(Self {
            config,
            key,
            groups: RefCell::default(),
            peers,
            provisions: RefCell::default(),
            next: Cell::new(1),
        });
        let mut folders: Vec<PathBuf> = fs::read_dir(&groups)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        for journal in folders.iter().map(|folder| folder.join("journal")).filter(|path| path.exists()) {
            match node.open_group(&journal) {
                Ok(actor) => {
                    node.groups.borrow_mut().insert(actor.label().name.to_string(), actor);
                }
                Err(reason) => error!(journal = %journal.display(), reason, "Group not opened"),
            }
        }
        Ok(node)
    }

    fn options(&self) -> MediaOptions {
        MediaOptions { buffered: self.config.media.buffered }
    }

    fn open_group(&self, journal: &Path) -> Result<Rc<GroupActor>, String> {
        let media = open_media(journal, self.options()).map_err(|error| error.to_string())?;
        GroupActor::open(media).map_err(|error| format!("{}: {error}", journal.display()))
    }

    /// Starts the NBD server.
    pub fn serve_nbd(self: &Rc<Self>) -> Result<Server, ListenError> {
        Server::start(&self.config.nbd_addresses(), Rc::new(Exports(self.clone())))
    }

    /// Handles what comes from a peer's session for ever.
    pub async fn follow(self: Rc<Self>, peer: Rc<Peer>, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut refused = String::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Up { session } => {
                    info!(peer = peer.name, session, "Session up");
                    refused.clear();
                    peer.clear();
                    peer.set_up();
                    self.of_peer(&peer).for_each(|group| group.peer_up(peer.clone()));
                }
                Event::Down { reason } => {
                    info!(peer = peer.name, reason, "Session down");
                    peer.up.set(false);
                    peer.clear();
                    self.of_peer(&peer).for_each(|group| group.peer_down());
                }
                Event::Frame(frame) if frame.channel == ChannelId::default() => {
                    peer.consumed(frame.body.len() as u64);
                    self.clone().message(&peer, &frame.body);
                }
                Event::Frame(frame) => self.frame(&peer, frame.channel, frame.body),
                Event::Durable { channel, value } => {
                    if let Some(group) = self.by_id(channel) {
                        group.durable(value);
                    }
                }
                Event::Link { link, state } => {
                    info!(peer = peer.name, link, ?state, "Link changed")
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

    fn frame(&self, peer: &Rc<Peer>, channel: ChannelId, body: Bytes) {
        let group = self.by_id(channel).filter(|group| group.label().peer == Some(NodeKey(peer.key.0)));
        match group {
            Some(group) => group.frame(body),
            None => {
                peer.consumed(body.len() as u64);
                warn!(peer = peer.name, "A frame came for a group that is not paired with this peer");
            }
        }
    }

    fn of_peer(&self, peer: &Peer) -> impl Iterator<Item = Rc<GroupActor>> + use<> {
        let key = Some(NodeKey(peer.key.0));
        let groups: Vec<_> = self.groups.borrow().values().filter(|group| group.label().peer == key).cloned().collect();
        groups.into_iter()
    }

    fn by_id(&self, channel: ChannelId) -> Option<Rc<GroupActor>> {
        self.groups.borrow().values().find(|group| group.id().0 == channel.0).cloned()
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
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for group in groups {
            let name = group.label().name;
            match group.command(Command::Stop).await {
                Ok(_) => info!(group = %name, "Group stopped"),
                Err(error) => warn!(group = %name, %error, "Group not stopped in good order"),
            }
        }
    }

    async fn carry_out(&self, request: Request) -> Answer {
        match request {
            Request::NodeStatus => Ok(self.status()),
            Request::GroupCreate { group, journal_size, journal } => self.create_group(&group, journal_size, journal),
            Request::GroupDelete { group, erase } => self.delete_group(&group, erase),
            Request::VolumeCreate { group, volume, size, logical_block_size, table_block_size, pool, preallocate } => {
                let actor = self.group(&group)?;
                let used: Vec<VolumeId> = actor.label().volumes.iter().map(|spec| spec.id).collect();
                let id = (1..).map(VolumeId).find(|id| !used.contains(id)).unwrap_or_default();
                let spec = VolumeSpec {
                    id,
                    name: name(&volume)?,
                    size,
                    logical_block_size,
                    table_block_size,
                    pool: MediumUuid(random()?),
                    pool_path: self.pool_path(&group, &volume, pool),
                };
                let allocation = if preallocate { Allocation::Full } else { Allocation::Sparse };
                self.create_volume(&actor, spec, allocation).await?;
                Ok(json!({ "done": format!("Volume {group}/{volume} of {size} bytes created and exported") }))
            }
            Request::VolumeDelete { group, volume } => {
                let actor = self.group(&group)?;
                let label = actor.label();
                let spec = label.volumes.iter().find(|spec| spec.name.as_str() == volume);
                let spec = spec.ok_or_else(|| missing("volume", &format!("{group}/{volume}")))?;
                command(&actor, Command::RemoveVolume(spec.id)).await?;
                Ok(
                    json!({ "done": format!("Volume {group}/{volume} forgotten; its pool is still at {}", spec.pool_path) }),
                )
            }
            Request::VolumeExport { group, read_only } => {
                self.group(&group)?.exported.set(read_only);
                let what = if read_only { "can be read on this node" } else { "are served on the primary only" };
                Ok(json!({ "done": format!("The volumes of {group} {what}") }))
            }
            Request::PairCreate { group, peer } => self.create_pair(&group, &peer).await,
            Request::PairDelete { group } => self.simple(&group, Command::DeletePair, "The pair is deleted").await,
            Request::PairSuspend { group } => {
                self.simple(&group, Command::SuspendPair, "The pair is suspended; changes are noted").await
            }
            Request::PairResume { group } => self.simple(&group, Command::ResumePair, "The pair is resumed").await,
            Request::RestartPoint { group, label } => {
                let actor = self.group(&group)?;
                command(&actor, Command::RestartPoint { label: name(&label)? }).await
            }
            Request::Promote { group, latest, force } => {
                let actor = self.group(&group)?;
                if !force && !self.primary_is_silent(&actor).await {
                    return Err(ApiError::new(format!(
                        "The primary of group {group} is alive and connected; demote it first, or use --force, which fences it"
                    )));
                }
                let target = if latest { PromoteTarget::Latest } else { PromoteTarget::RestartPoint };
                command(&actor, Command::Promote(target)).await
            }
            Request::Demote { group, discard_fork } => {
                self.simple(&group, Command::Demote { discard_fork }, "This node is a standby now").await
            }
            Request::SetLevel { group, level, without_peer } => {
                let actor = self.group(&group)?;
                if let Some(policy) = without_peer {
                    command(&actor, Command::SetWithoutPeer(policy)).await?;
                }
                self.simple(&group, Command::SetLevel(level), "The acknowledgement level is set").await
            }
            Request::Status { group } => match group {
                Some(group) => self.group_status(&self.group(&group)?),
                None => {
                    let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
                    groups.iter().map(|group| self.group_status(group)).collect::<Result<Vec<_>, _>>().map(Value::from)
                }
            },
        }
    }

    /// Whether nothing is heard of the group's primary. A link that has just died takes a moment to be noticed.
    async fn primary_is_silent(&self, actor: &GroupActor) -> bool {
        let peer = actor.label().peer;
        let Some(peer) = self.peers.iter().find(|known| Some(NodeKey(known.key.0)) == peer) else {
            return true;
        };
        for _ in 0..SILENCE_LOOKS {
            let heard = peer.status().links.iter().any(|link| link.state == LinkState::Up);
            if !actor.status().connected || !heard {
                return true;
            }
            sleep(SILENCE_STEP).await;
        }
        false
    }

    async fn simple(&self, group: &str, asked: Command, done: &str) -> Answer {
        let actor = self.group(group)?;
        command(&actor, asked).await?;
        Ok(json!({ "done": format!("{done} ({group})") }))
    }

    fn group(&self, name: &str) -> Result<Rc<GroupActor>, ApiError> {
        self.groups.borrow().get(name).cloned().ok_or_else(|| missing("group", name))
    }

    fn status(&self) -> Value {
        let peers: Vec<Value> = self
            .peers
            .iter()
            .map(|peer| json!({ "name": peer.name, "key": peer.key.to_string(), "session": peer.status() }))
            .collect();
        let groups: Vec<String> = self.groups.borrow().keys().cloned().collect();
        json!({ "name": self.config.node.name, "key": self.key.to_string(), "groups": groups, "peers": peers })
    }

    fn group_status(&self, group: &Rc<GroupActor>) -> Answer {
        let label = group.label();
        let mut value = serde_json::to_value(group.status()).map_err(ApiError::new)?;
        let peer = self.peers.iter().find(|peer| Some(NodeKey(peer.key.0)) == label.peer);
        if let Value::Object(fields) = &mut value {
            fields.insert("group".into(), label.name.as_str().into());
            fields.insert("id".into(), label.group.to_string().into());
            fields.insert("peer_name".into(), peer.map(|peer| peer.name.clone()).into());
            let session = peer.map(|peer| serde_json::to_value(peer.status())).transpose();
            fields.insert("session".into(), session.map_err(ApiError::new)?.into());
        }
        Ok(value)
    }

    fn folder(&self, group: &str) -> PathBuf {
        self.config.groups_path().join(group)
    }

    fn pool_path(&self, group: &str, volume: &str, given: Option<String>) -> String {
        given.unwrap_or_else(|| self.folder(group).join(format!("{volume}.pool")).display().to_string())
    }

    fn create_group(&self, group: &str, journal_size: u64, journal: Option<String>) -> Answer {
        if self.groups.borrow().contains_key(group) {
            return Err(ApiError::new(format!("Group {group} exists already")));
        }
        let spec = GroupSpec {
            id: GroupId(random()?),
            name: name(group)?,
            journal: MediumUuid(random()?),
            role: Role::Primary,
            peer: None,
        };
        self.make_group(&spec, journal_size, journal)?;
        Ok(json!({ "done": format!("Group {group} created"), "id": spec.id.to_string() }))
    }

    fn make_group(&self, spec: &GroupSpec, size: u64, journal: Option<String>) -> Result<Rc<GroupActor>, ApiError> {
        let folder = self.folder(spec.name.as_str());
        let link = folder.join("journal");
        if link.symlink_metadata().is_ok() {
            return Err(ApiError::new(format!("{} exists already; a group of that name was here", link.display())));
        }
        fs::create_dir_all(&folder).map_err(|error| ApiError::new(format!("{}: {error}", folder.display())))?;
        let path = journal.clone().map_or_else(|| link.clone(), PathBuf::from);
        let existed = path.exists();
        let made = Medium::create(&path, size, Allocation::Full, self.options()).map_err(ApiError::new);
        let opened = made.and_then(|medium| {
            let mut media = GroupMedia::default();
            media.0.insert(MediumId::Journal, medium);
            format_journal(&mut media, spec).map_err(|error| ApiError::new(format!("{}: {error}", path.display())))?;
            if journal.is_some() {
                symlink(&path, &link).map_err(|error| ApiError::new(format!("{}: {error}", link.display())))?;
            }
            GroupActor::open(media).map_err(ApiError::new)
        });
        match opened {
            Ok(actor) => {
                self.groups.borrow_mut().insert(spec.name.to_string(), actor.clone());
                Ok(actor)
            }
            Err(error) => {
                // What was made for a group that did not come to be is not left behind.
                if !existed {
                    let _ = fs::remove_file(&path);
                }
                let _ = fs::remove_dir(&folder);
                Err(error)
            }
        }
    }

    async fn create_volume(
        &self,
        actor: &Rc<GroupActor>,
        spec: VolumeSpec,
        allocation: Allocation,
    ) -> Result<(), ApiError> {
        let label = actor.label();
        let title = format!("{}/{}", label.name, spec.name);
        if label.volumes.iter().any(|other| other.name == spec.name) {
            return Err(ApiError::new(format!("Volume {title} exists already")));
        }
        holdfast::format::journal_superblock::check_geometry(&spec)
            .map_err(|reason| ApiError::new(format!("Volume {title}: {reason}")))?;
        let path = PathBuf::from(&spec.pool_path);
        let existed = path.exists();
        let size = pool_size_for(spec.size, spec.table_block_size);
        let medium = Medium::create(&path, size, allocation, self.options()).map_err(ApiError::new)?;
        let mut media = GroupMedia::default();
        media.0.insert(MediumId::Pool(spec.id), medium);
        let formatted = format_pool(&mut media, label.group, &spec);
        let medium = media.0.remove(&MediumId::Pool(spec.id));
        let added = match (formatted, medium) {
            (Ok(()), Some(medium)) => actor.add_volume(spec, medium).await.map(|_| ()).map_err(ApiError::new),
            (Err(error), _) => Err(ApiError::new(format!("{}: {error}", path.display()))),
            (Ok(()), None) => Err(ApiError::new("The pool is gone")),
        };
        if added.is_err() && !existed {
            let _ = fs::remove_file(&path);
        }
        added
    }

    fn delete_group(&self, group: &str, erase: bool) -> Answer {
        let actor = self.group(group)?;
        let label = actor.label();
        if label.peer.is_some() {
            return Err(ApiError::new(format!("Group {group} has a peer; delete the pair first")));
        }
        actor.close();
        self.groups.borrow_mut().remove(group);
        let folder = self.folder(group);
        let gone = if erase {
            fs::remove_dir_all(&folder)
        } else {
            fs::rename(&folder, folder.with_extension(format!("deleted-{}", label.group)))
        };
        gone.map_err(|error| ApiError::new(format!("{}: {error}", folder.display())))?;
        let what = if erase { "and its media in the node's directory are removed" } else { "its media are kept" };
        Ok(json!({ "done": format!("Group {group} deleted, {what}") }))
    }

    async fn create_pair(&self, group: &str, peer: &str) -> Answer {
        let actor = self.group(group)?;
        let peer = self.peers.iter().find(|known| known.name == peer).ok_or_else(|| {
            ApiError::new(format!(
                "There is no peer {peer} in the configuration; add [[peer]] name = \"{peer}\" and restart"
            ))
        })?;
        // Links that were just started take a moment.
        if timeout(SESSION, peer.wait_up()).await.is_err() {
            return Err(ApiError::new(format!(
                "There is no session to {}; look at `ublk-admin node status` for its links",
                peer.name
            )));
        }
        let label = actor.label();
        let number = self.next.get();
        self.next.set(number + 1);
        let message = Message::Provision {
            number,
            group: label.group.to_string(),
            name: label.name.to_string(),
            journal_size: actor.status().journal_size,
            volumes: label.volumes.iter().map(ProvisionVolume::from).collect(),
        };
        let (sender, receiver) = oneshot::channel();
        self.provisions.borrow_mut().insert(number, sender);
        peer.send_message(message.encode());
        let answer = timeout(PROVISION, receiver).await;
        self.provisions.borrow_mut().remove(&number);
        match answer {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(error))) => {
                return Err(ApiError::new(format!("{} refuses: {error}", peer.name)));
            }
            _ => {
                return Err(ApiError::new(format!("{} did not answer in time; try again", peer.name)));
            }
        }
        command(&actor, Command::CreatePair { peer: NodeKey(peer.key.0) }).await?;
        // Both ends greet each other in a new session.
        peer.clone().restart_soon();
        Ok(json!({ "done": format!("Group {group} is a pair with {}; what is stored is being copied", peer.name) }))
    }

    fn message(self: Rc<Self>, peer: &Rc<Peer>, body: &[u8]) {
        let message = (body.len() <= MESSAGE_SIZE_MAX).then(|| Message::parse(body)).flatten();
        match message {
            Some(Message::Provisioned { number, error }) => {
                if let Some(sender) = self.provisions.borrow_mut().remove(&number) {
                    let _ = sender.send(error);
                }
            }
            Some(Message::Provision { number, group, name, journal_size, volumes }) => {
                let peer = peer.clone();
                tokio_uring::spawn(async move {
                    let made = self.provision(&peer, &group, &name, journal_size, volumes).await;
                    let error = made.err().map(|error| error.error);
                    peer.send_message(Message::Provisioned { number, error }.encode());
                });
            }
            None => warn!(peer = peer.name, "A message came that this version does not understand"),
        }
    }

    /// Makes a standby's group as the peer asks, or finds that it is there.
    async fn provision(
        &self,
        peer: &Rc<Peer>,
        id: &str,
        title: &str,
        journal_size: u64,
        volumes: Vec<ProvisionVolume>,
    ) -> Result<(), ApiError> {
        let id = parse_id(id).ok_or_else(|| ApiError::new("The group's id is damaged"))?;
        if let Some(known) = self.groups.borrow().get(title) {
            let label = known.label();
            let fits = label.group == id && label.role == Role::Secondary && label.peer == Some(NodeKey(peer.key.0));
            return if fits {
                Ok(())
            } else {
                Err(ApiError::new(format!("this node has another group {title}; delete or rename one of them")))
            };
        }
        if title.contains('/') || title.starts_with('.') || title.is_empty() {
            return Err(ApiError::new("the group's name cannot be a folder's"));
        }
        let spec = GroupSpec {
            id,
            name: name(title)?,
            journal: MediumUuid(random()?),
            role: Role::Secondary,
            peer: Some(NodeKey(peer.key.0)),
        };
        let actor = self.make_group(&spec, journal_size + (256 << 10), None)?;
        for volume in volumes {
            let path = self.pool_path(title, &volume.name, None);
            let spec = volume.spec(MediumUuid(random()?), path).map_err(ApiError::new)?;
            self.create_volume(&actor, spec, Allocation::Sparse).await?;
        }
        info!(group = title, peer = peer.name, "Group made for the peer");
        if peer.up.get() {
            actor.peer_up(peer.clone());
        }
        Ok(())
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

fn name(text: &str) -> Result<Name, ApiError> {
    if text.contains('/') {
        return Err(ApiError::new(format!("\"{text}\": a name has no slash")));
    }
    text.parse().map_err(ApiError::new)
}

fn random<const SIZE: usize>() -> Result<[u8; SIZE], ApiError> {
    let mut bytes = [0; SIZE];
    getrandom::fill(&mut bytes).map_err(ApiError::new)?;
    Ok(bytes)
}

fn parse_id(text: &str) -> Option<GroupId> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
    Some(GroupId(number.to_be_bytes()))
}

struct Exports(Rc<Node>);

impl Exports {
    fn all(&self) -> Vec<VolumeExport> {
        let groups = self.0.groups.borrow();
        let served = groups.values().filter(|group| match group.label().role {
            Role::Primary => true,
            Role::Secondary => group.exported.get(),
            Role::Fenced => false,
        });
        served
            .flat_map(|actor| actor.label().volumes.into_iter().map(|spec| VolumeExport { actor: actor.clone(), spec }))
            .collect()
    }
}

impl ExportCatalog for Exports {
    type Export = VolumeExport;

    fn list(&self) -> Vec<ExportInfo> {
        self.all().iter().map(Export::info).collect()
    }

    fn find(&self, name: &str) -> Option<Rc<VolumeExport>> {
        let mut all = self.all();
        if name.is_empty() && all.len() == 1 {
            return all.pop().map(Rc::new);
        }
        all.into_iter().find(|export| export.info().name == name).map(Rc::new)
    }
}
