//! Making pairs, and what nodes ask of each other outside any group.

use super::{
    Answer, Node, command,
    groups::{Found, random},
    name,
};
use crate::{
    actor::GroupActor,
    api::ApiError,
    media::Allocation,
    peer::Peer,
    provision::{Message, ProvisionVolume},
};
use holdfast::{
    command::Command,
    group::GroupSpec,
    pair::Role,
    units::{GroupId, MediumUuid, NodeKey},
};
use replicator::{LinkState, io::PeerKey};
use serde_json::json;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// How long a peer may take to make a group.
const PROVISION: Duration = Duration::from_secs(30);
/// How long a command waits for a session to the peer.
const SESSION: Duration = Duration::from_secs(10);
/// How long a peer may take to say what it is, and when it is asked again meanwhile.
const ROLE: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How often it is looked whether the peer is still heard meanwhile.
const SILENCE_STEP: Duration = Duration::from_millis(20);
/// Longest message between nodes in bytes.
const MESSAGE_SIZE_MAX: usize = 256 << 10;
/// What a journal needs beside its ring, generously.
const JOURNAL_EXTRA: u64 = 256 << 10;

/// What this node has asked of its peers and has no answer to.
#[derive(Default)]
pub(super) struct Questions {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, (PeerKey, oneshot::Sender<Message>)>>,
}

impl Questions {
    /// Asks `peer` what `message` makes of the question's number.
    pub(super) async fn ask(&self, peer: &Peer, message: impl FnOnce(u64) -> Message) -> Option<Message> {
        let number = self.next.get() + 1;
        self.next.set(number);
        let (sender, receiver) = oneshot::channel();
        self.open.borrow_mut().insert(number, (peer.key, sender));
        let _forget = Forget { questions: self, number };
        peer.send_message(message(number).encode());
        receiver.await.ok()
    }

    /// Nobody answers for another.
    fn answered(&self, peer: &Peer, number: u64, message: Message) {
        let mut open = self.open.borrow_mut();
        if open.get(&number).is_some_and(|(asked, _)| *asked == peer.key)
            && let Some((_, sender)) = open.remove(&number)
        {
            // Whoever asked may have given up.
            let _ = sender.send(message);
        }
    }
}

/// Forgets a question when nobody waits for its answer any more.
struct Forget<'a> {
    questions: &'a Questions,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.questions.open.borrow_mut().remove(&self.number);
    }
}

impl Node {
    /// Whether the group's peer is there and says that it is primary. When nothing is heard of it any more, or it is
    /// something else, it does not stand in the way of a promotion; when it is heard but does not answer, it does.
    pub(super) async fn primary_lives(&self, actor: &GroupActor) -> bool {
        let peer = actor.label().peer;
        let Some(peer) = self.peers.iter().find(|known| Some(NodeKey(known.key.0)) == peer) else {
            return false;
        };
        let answer = timeout(ROLE, async {
            loop {
                let group = actor.id().to_string();
                let question = self.questions.ask(peer, |number| Message::WhichRole { number, group });
                // A session that ends takes what was asked in it along.
                if let Ok(Some(Message::Role { role, .. })) = timeout(ASK_AGAIN, question).await {
                    return role;
                }
            }
        });
        tokio::select! {
            biased;
            () = silence(peer) => false,
            role = answer => role.is_err() || role == Ok(Some(Role::Primary)),
        }
    }

    pub(super) async fn create_pair(&self, group: &str, peer: &str) -> Answer {
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
        if label.role != Role::Primary {
            return Err(ApiError::new(format!(
                "Group {group} is {} on this node; create the pair on the primary",
                label.role
            )));
        }
        let (name, journal_size) = (label.name.to_string(), actor.status().journal_size);
        let (group_id, volumes) = (label.group.to_string(), label.volumes.iter().map(ProvisionVolume::from).collect());
        let question = self.questions.ask(peer, |number| Message::Provision {
            number,
            group: group_id,
            name,
            journal_size,
            volumes,
        });
        match timeout(PROVISION, question).await {
            Ok(Some(Message::Provisioned { error: None, .. })) => {}
            Ok(Some(Message::Provisioned { error: Some(error), .. })) => {
                return Err(ApiError::new(format!("{} refuses: {error}", peer.name)));
            }
            _ => return Err(ApiError::new(format!("{} did not answer in time; try again", peer.name))),
        }
        command(&actor, Command::CreatePair { peer: NodeKey(peer.key.0) }).await?;
        // Both ends greet each other in a new session.
        peer.clone().restart_soon();
        Ok(json!({ "done": format!("Group {group} is a pair with {}; what is stored is being copied", peer.name) }))
    }

    /// A message of a peer's node.
    pub(super) fn message(self: Rc<Self>, peer: &Rc<Peer>, body: &[u8]) {
        let message = (body.len() <= MESSAGE_SIZE_MAX).then(|| Message::parse(body)).flatten();
        match message {
            Some(answer @ (Message::Provisioned { number, .. } | Message::Role { number, .. })) => {
                self.questions.answered(peer, number, answer);
            }
            Some(Message::Provision { number, group, name, journal_size, volumes }) => {
                let peer = peer.clone();
                tokio_uring::spawn(async move {
                    let made = self.provision(&peer, &group, &name, journal_size, volumes).await;
                    let error = made.err().map(|error| error.error);
                    peer.send_message(Message::Provisioned { number, error }.encode());
                });
            }
            Some(Message::Grow { number, group, volume, size }) => {
                let peer = peer.clone();
                tokio_uring::spawn(async move {
                    let grown = self.grow_as_told(&peer, &group, volume, size).await;
                    let error = grown.err().map(|error| error.error);
                    peer.send_message(Message::Provisioned { number, error }.encode());
                });
            }
            Some(Message::TakeOver { number, group }) => {
                let peer = peer.clone();
                tokio_uring::spawn(async move {
                    let error = self.take_over_as_told(&peer, &group).await.err().map(|error| error.error);
                    peer.send_message(Message::Provisioned { number, error }.encode());
                });
            }
            Some(Message::WhichRole { number, group }) => {
                let mut of_peer = self.of_peer(peer);
                let group = of_peer.find(|actor| actor.id().to_string() == group);
                let role = group.map(|actor| actor.label().role);
                peer.send_message(Message::Role { number, role }.encode());
            }
            None => warn!(peer = peer.name, "A message came that this version does not understand"),
        }
    }

    /// Makes a standby's group as the peer asks, or what is missing of it. Asked twice, it does nothing the second time.
    async fn provision(
        &self,
        peer: &Rc<Peer>,
        id: &str,
        title: &str,
        journal_size: u64,
        volumes: Vec<ProvisionVolume>,
    ) -> Result<(), ApiError> {
        let id = parse_id(id).ok_or_else(|| ApiError::new("the group's id is damaged"))?;
        let known = self.groups.borrow().get(title).cloned();
        let actor = match known {
            Some(actor) => {
                check_standby(&actor, id, peer)?;
                actor
            }
            None => {
                let spec = GroupSpec {
                    id,
                    name: name(title)?,
                    journal: MediumUuid(random()?),
                    role: Role::Secondary,
                    peer: Some(NodeKey(peer.key.0)),
                };
                let actor = self.make_group(&spec, journal_size.saturating_add(JOURNAL_EXTRA), None, Found::Kept)?;
                info!(group = title, peer = peer.name, "Group made for the peer");
                actor
            }
        };
        let have = actor.label().volumes;
        if let Some(more) = have.iter().find(|spec| !volumes.iter().any(|volume| volume.has_number_of(spec))) {
            return Err(ApiError::new(format!(
                "its volume {title}/{} is none of the primary's; delete the pair of group {title} there, and then the group",
                more.name
            )));
        }
        for volume in &volumes {
            if let Some(same) = have.iter().find(|spec| volume.has_number_of(spec)) {
                if *volume != ProvisionVolume::from(same) {
                    return Err(ApiError::new(format!(
                        "its volume {title}/{} is not the primary's; delete the pair of group {title} there, and then the group",
                        same.name
                    )));
                }
                continue;
            }
            let path = self.pool_path(title, name(&volume.name)?.as_str());
            let spec = volume.spec(MediumUuid(random()?), path).map_err(ApiError::new)?;
            self.create_volume(&actor, spec, Allocation::Sparse, Found::Kept).await?;
        }
        if peer.is_up() && !actor.has_peer() {
            actor.peer_up(peer.clone());
        }
        Ok(())
    }
}

fn check_standby(actor: &GroupActor, id: GroupId, peer: &Peer) -> Result<(), ApiError> {
    let label = actor.label();
    if label.group != id {
        return Err(ApiError::new(format!(
            "it has another group {}, with id {}; delete that one there, or make this one anew under another name",
            label.name, label.group
        )));
    }
    if label.role != Role::Secondary {
        return Err(ApiError::new(format!("the group is {} there; demote it first", label.role)));
    }
    if label.peer != Some(NodeKey(peer.key.0)) {
        return Err(ApiError::new(format!(
            "the group {} is a standby of another node there, or of none; delete it there first",
            label.name
        )));
    }
    Ok(())
}

/// Returns when nothing is heard of a peer. A link that has just died takes a moment to be noticed.
pub(super) async fn silence(peer: &Peer) {
    while peer.status().links.iter().any(|link| link.state == LinkState::Up) {
        sleep(SILENCE_STEP).await;
    }
}

fn parse_id(text: &str) -> Option<GroupId> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
    Some(GroupId(number.to_be_bytes()))
}
