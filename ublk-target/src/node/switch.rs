//! Turning a pair round in good order: this node lets the standby have everything and steps down, then the standby is promoted.

use super::{Answer, Node, command, pairs::silence};
use crate::{api::ApiError, peer::Peer, provision::Message};
use holdfast::{
    command::{Command, PromoteTarget},
    pair::Role,
    units::NodeKey,
};
use serde_json::json;
use std::{
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tracing::info;

/// How long the standby may take to say that it is there.
const PRESENT: Duration = Duration::from_secs(3);
/// How long the standby may take to become the primary.
const TAKE_OVER: Duration = Duration::from_secs(30);

impl Node {
    pub(super) async fn switch_pair(self: &Rc<Self>, group: &str) -> Answer {
        let actor = self.group(group)?;
        let key = actor.label().peer;
        if actor.label().role == Role::Secondary {
            return Err(ApiError::new(format!("Group {group} is secondary on this node; switch it on the primary")));
        }
        self.nothing_writable_is_attached(group)?;
        let peer = self.peers.iter().find(|peer| Some(NodeKey(peer.key.0)) == key);
        let lost =
            || ApiError::new(format!("Group {group}: its standby cannot be reached; look at `ublk-admin node status`"));
        let peer = peer.filter(|peer| peer.is_up()).ok_or_else(lost)?;
        let id = actor.id().to_string();
        // One that has just died must not cost the service: it answers before this node steps down.
        let there = self.questions.ask(peer, |number| Message::WhichRole { number, group: id.clone() });
        match timeout(PRESENT, there).await {
            Ok(Some(Message::Role { role: Some(Role::Secondary), .. })) => {}
            Ok(Some(_)) => return Err(ApiError::new(format!("Group {group}: {} is no standby of it", peer.name))),
            _ => return Err(lost()),
        }
        let start = Instant::now();
        command(&actor, Command::HandOver).await?;
        let question = self.questions.ask(peer, |number| Message::TakeOver { number, group: id.clone() });
        let answer = tokio::select! {
            biased;
            answer = timeout(TAKE_OVER, question) => answer.ok().flatten(),
            () = silence(peer) => None,
        };
        let name = &peer.name;
        match answer {
            Some(Message::Provisioned { error: None, .. }) => {
                let micros = start.elapsed().as_micros() as u64;
                info!(group, peer = name, micros, "Pair switched");
                Ok(json!({
                    "done": format!("{name} is the primary of group {group} now, and this node its standby"),
                    "micros": micros,
                }))
            }
            Some(Message::Provisioned { error: Some(error), .. }) => {
                // Nobody else is primary, and nobody has anything newer.
                command(&actor, Command::Promote { target: PromoteTarget::Latest, force: true }).await?;
                Err(ApiError::new(format!("Group {group}: {name} refuses: {error}; this node is the primary again")))
            }
            _ => Err(ApiError::new(format!(
                "Group {group}: {name} got everything but did not answer. This node is a standby now; if `ublk-admin status \
                 {group}` does not say primary there, say `ublk-admin promote {group} --latest` there, or here if {name} is \
                 surely dead: with fencing by lease this node then answers nothing before `ublk-admin fence {group} none --force`"
            ))),
        }
    }

    /// On the standby: the primary has stepped down.
    pub(super) async fn take_over_as_told(&self, peer: &Peer, group: &str) -> Result<(), ApiError> {
        let actor = self.of_peer(peer).find(|actor| actor.id().to_string() == group);
        let actor = actor.ok_or_else(|| ApiError::new("there is no such group"))?;
        command(&actor, Command::Promote { target: PromoteTarget::Latest, force: false }).await.map(drop)
    }
}
