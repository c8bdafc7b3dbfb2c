//! Who uses a volume, for as long as it lasts: an NBD connection or a device.
//!
//! A host keeps in memory what it has read and written, and writes more that fits to it. What it keeps is worthless once the volume
//! may have become something else without it: another node has been the primary meanwhile, or records that it had an answer to are
//! gone. A file system that went on from there would put its old metadata over what is newer. So whoever may write is served in the
//! era in which it came, and has errors afterwards until it comes anew.

use crate::actor::GroupActor;
use holdfast::{
    request::{Access, Operation, Reply, RequestError},
    units::VolumeId,
};
use std::{future::Future, rc::Rc};

/// A time in which what hosts keep in memory of a group's volumes stays true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era(u64);

impl Era {
    /// The one that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// See the module.
pub struct Client {
    actor: Rc<GroupActor>,
    volume: VolumeId,
    access: Access,
    era: Era,
}

impl Client {
    /// One that comes now.
    pub fn new(actor: Rc<GroupActor>, volume: VolumeId, access: Access) -> Self {
        actor.add_client(volume);
        let era = actor.era();
        Self { actor, volume, access, era }
    }

    /// Whether it must come anew to be served.
    pub fn is_outdated(&self) -> bool {
        // Whoever cannot write does no harm with what it keeps.
        self.access == Access::ReadWrite && self.era != self.actor.era()
    }

    /// Carries out a request.
    pub fn request(&self, operation: Operation) -> impl Future<Output = Result<Reply, RequestError>> + use<> {
        let answer = (!self.is_outdated()).then(|| self.actor.request(self.volume, self.access, operation));
        async move {
            match answer {
                Some(answer) => answer.await.unwrap_or(Err(RequestError::Stopped)),
                None => Err(RequestError::Outdated),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.actor.remove_client(self.volume);
    }
}
