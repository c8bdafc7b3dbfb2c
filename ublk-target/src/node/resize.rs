//! Making a volume larger: its pools on both nodes first, then the volume on the standby, then here, then its block device. And
//! making a journal larger, on each node for itself.
//!
//! A volume's standby goes first because it may be the larger one, never the smaller. Whatever is interrupted is done again by
//! the same command.

use super::{Answer, Node, command, pairs::silence};
use crate::{
    actor::GroupActor,
    api::ApiError,
    media::{Allocation, enlarge},
    peer::Peer,
    provision::Message,
    ublk::{self, device_path},
};
use holdfast::{
    command::{Command, VolumeSpec},
    disk::MediumId,
    format::journal_superblock::RING_OFFSET,
    group::{grown_pool_size, smallest_pool_size},
    pair::Role,
    units::{NodeKey, VolumeId},
};
use serde_json::json;
use std::{
    io::{Seek, SeekFrom},
    rc::Rc,
    time::Duration,
};
use tokio::time::timeout;
use tracing::info;

/// How long a standby may take to grow.
const GROW: Duration = Duration::from_secs(600);

impl Node {
    pub(super) async fn resize_volume(self: &Rc<Self>, group: &str, volume: &str, size: u64) -> Answer {
        let (actor, spec) = self.volume(group, volume)?;
        let title = format!("{group}/{volume}");
        let label = actor.label();
        if label.role != Role::Primary {
            return Err(ApiError::new(format!(
                "Volume {title}: the group is {} on this node; resize it on the primary",
                label.role
            )));
        }
        let pool_size = enlarge_pool(&actor, &spec, size).await?;
        if let Some(key) = label.peer {
            let peer = self.peers.iter().find(|peer| NodeKey(peer.key.0) == key);
            let peer =
                peer.ok_or_else(|| ApiError::new(format!("Volume {title}: the pair's peer is not configured")))?;
            self.grow_at(peer, &label.group.to_string(), &title, &spec, size).await?;
        }
        command(&actor, Command::GrowVolume { volume: spec.id, size, pool_size }).await?;
        let mut done = format!("Volume {title} has {size} bytes now");
        if let Some(number) = self.device_number(group, volume) {
            let grown = tokio::task::spawn_blocking(move || ublk::resize(number, size)).await.map_err(ApiError::new)?;
            let path = device_path(number).display().to_string();
            done += &match grown {
                Ok(true) => format!("; {path} too"),
                Ok(false) => format!(
                    "; {path} has the old size until it is detached and attached again: this kernel cannot change it \
                     (Linux 6.16 can)"
                ),
                Err(error) => format!("; {path} has the old size until it is detached and attached again: {error}"),
            };
        }
        done += "; NBD clients see it when they connect again";
        Ok(json!({ "done": done, "size": size }))
    }

    pub(super) async fn resize_journal(&self, group: &str, size: u64) -> Answer {
        let actor = self.group(group)?;
        let at = |error: &dyn std::fmt::Display| ApiError::new(format!("The journal of group {group}: {error}"));
        let mut journal = actor.medium_file(MediumId::Journal).map_err(|error| at(&error))?;
        let had = journal.seek(SeekFrom::End(0)).map_err(|error| at(&error))?;
        // All of it at once, as when it was made.
        let grow = move || enlarge(&journal, size, Allocation::Full);
        let has = tokio::task::spawn_blocking(grow).await.map_err(ApiError::new)?.map_err(|error| at(&error))?;
        if has < size {
            return Err(at(&format!("its device has {has} bytes; enlarge it first")));
        }
        if !self.options().buffered {
            // Another command may have come between, and the ring may have what it has made.
            let used = RING_OFFSET + actor.status().journal_size;
            actor.prepare_journal(had.max(used).next_multiple_of(4096)..has);
        }
        command(&actor, Command::GrowJournal { size }).await?;
        Ok(json!({ "done": format!("The journal of group {group} has {size} bytes now on this node"), "size": size }))
    }

    async fn grow_at(
        &self,
        peer: &Rc<Peer>,
        group: &str,
        title: &str,
        spec: &VolumeSpec,
        size: u64,
    ) -> Result<(), ApiError> {
        let failed = |reason: &str| {
            ApiError::new(format!("Volume {title}: the standby {} {reason}; nothing was changed here", peer.name))
        };
        if !peer.is_up() {
            return Err(failed("cannot be reached, and must grow too"));
        }
        let (group, volume) = (group.to_owned(), spec.id.0);
        let question = self.questions.ask(peer, |number| Message::Grow { number, group, volume, size });
        let answer = tokio::select! {
            biased;
            answer = timeout(GROW, question) => answer,
            () = silence(peer) => return Err(failed("cannot be reached, and must grow too")),
        };
        match answer {
            Ok(Some(Message::Provisioned { error: None, .. })) => Ok(()),
            Ok(Some(Message::Provisioned { error: Some(error), .. })) => Err(failed(&format!("refuses: {error}"))),
            _ => Err(failed("did not answer in time; try again")),
        }
    }

    /// On the standby: the primary is about to grow a volume.
    pub(super) async fn grow_as_told(&self, peer: &Peer, group: &str, volume: u16, size: u64) -> Result<(), ApiError> {
        let actor = self.of_peer(peer).find(|actor| actor.id().to_string() == group);
        let actor = actor.ok_or_else(|| ApiError::new("there is no such group"))?;
        let label = actor.label();
        if label.role != Role::Secondary {
            return Err(ApiError::new(format!("the group is {} there", label.role)));
        }
        let spec = label.volumes.iter().find(|spec| spec.id == VolumeId(volume));
        let spec = spec.ok_or_else(|| ApiError::new("there is no such volume"))?;
        let pool_size = enlarge_pool(&actor, spec, size).await?;
        command(&actor, Command::GrowVolume { volume: spec.id, size, pool_size }).await?;
        info!(group = %label.name, volume = %spec.name, size, "Volume grown for the primary");
        Ok(())
    }
}

/// Gives a pool the room that a volume of `size` bytes needs, if it is a file; its size then.
async fn enlarge_pool(actor: &Rc<GroupActor>, spec: &VolumeSpec, size: u64) -> Result<u64, ApiError> {
    let wanted = grown_pool_size(size, spec.table_block_size);
    let at = |error: &dyn std::fmt::Display| ApiError::new(format!("{}: {error}", spec.pool_path));
    let pool = actor.medium_file(MediumId::Pool(spec.id)).map_err(|error| at(&error))?;
    let grow = move || enlarge(&pool, wanted, Allocation::Sparse);
    let has = tokio::task::spawn_blocking(grow).await.map_err(ApiError::new)?.map_err(|error| at(&error))?;
    let needed = smallest_pool_size(size, spec.table_block_size);
    if has < needed {
        return Err(at(&format!(
            "a volume of {size} bytes needs a pool of at least {needed} bytes, but this device has {has}; enlarge it first"
        )));
    }
    Ok(has)
}
