//! What happens to a group, in words.

use crate::events::EVENT;
use holdfast::output::Event;
use std::fmt::Display;
use tracing::{error, info, warn};

/// Logs what has happened to a group.
pub fn tell(group: impl Display, event: Event) {
    match event {
        Event::RoleChanged { role, epoch } => info!(target: EVENT, %group, %role, %epoch, "Role changed"),
        Event::PairChanged { state } => info!(target: EVENT, %group, %state, "Pair state changed"),
        Event::PeerGreeted { head } => info!(target: EVENT, %group, %head, "Peer greeted"),
        Event::PeerRefused { reason } => warn!(target: EVENT, %group, reason, "Peer refused"),
        Event::RestartPoint { generation, at } => {
            info!(target: EVENT, %group, %generation, %at, "Restart point")
        }
        Event::CopyEnded { bytes, equal_bytes } => info!(target: EVENT, %group, bytes, equal_bytes, "Copy ended"),
        Event::MediumFailed { reason } => {
            error!(target: EVENT, %group, reason, "Medium failed; the group has stopped")
        }
        Event::DelayGivenUp => {
            warn!(target: EVENT, %group, "Half of the journal waits for a restart point; what waits is applied without one");
        }
        Event::LeaseHeld => info!(target: EVENT, %group, "Lease held"),
        Event::LeaseDropped => {
            warn!(target: EVENT, %group, "Promoted; fencing by lease is off until it is set again")
        }
        Event::LeaseLost => {
            warn!(target: EVENT, %group, "Lease lost; nothing is answered until the peer grants another")
        }
        Event::Mended { volume, offset, size } => {
            warn!(target: EVENT, %group, %volume, offset, size, "A block could not be read; it was mended from the peer")
        }
        Event::NotMended { volume, offset } => {
            error!(target: EVENT, %group, %volume, offset, "A block can be read on neither node")
        }
        Event::TakingOver => {
            warn!(target: EVENT, %group, "The primary has been silent for too long; this node promotes itself")
        }
        Event::TakeoverRefused { reason } => {
            error!(target: EVENT, %group, reason, "The primary is silent, but this node does not promote itself")
        }
        Event::GenerationDropped { name } => {
            warn!(target: EVENT, %group, generation = %name, "Pool full; the oldest generation was dropped")
        }
        Event::TrialDropped => warn!(target: EVENT, %group, "Pool full; the trial was ended"),
        Event::PoolFull => warn!(target: EVENT, %group, "Pool full; destaging waits"),
    }
}
