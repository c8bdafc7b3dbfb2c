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
use std::{cell::RefCell, future::Future, rc::Rc, time::Duration};
use tokio::{sync::Notify, time::timeout};

/// How long a client may take from its farewell until it is gone.
const FAREWELL: Duration = Duration::from_secs(3);

/// A time in which what hosts keep in memory of a group's volumes stays true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era(u64);

impl Era {
    /// The one that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Those that use a group's volumes now.
#[derive(Default)]
pub struct Clients {
    present: RefCell<Vec<(VolumeId, Access)>>,
    left: Notify,
}

impl Clients {
    /// How many there are of some.
    pub fn count(&self, of: impl Fn(VolumeId, Access) -> bool) -> usize {
        self.present.borrow().iter().filter(|(volume, access)| of(*volume, *access)).count()
    }

    /// How many there are of some when those have gone that are about to.
    ///
    /// A client has ended its connection when its user goes on, but the server hears of that in its own time: maybe after what the
    /// user asks for next.
    pub async fn count_staying(&self, of: impl Fn(VolumeId, Access) -> bool) -> usize {
        let gone = async {
            while self.count(&of) > 0 {
                self.left.notified().await;
            }
        };
        // The count says it.
        let _ = timeout(FAREWELL, gone).await;
        self.count(of)
    }

    fn add(&self, volume: VolumeId, access: Access) {
        self.present.borrow_mut().push((volume, access));
    }

    fn remove(&self, volume: VolumeId, access: Access) {
        let mut present = self.present.borrow_mut();
        if let Some(place) = present.iter().position(|it| *it == (volume, access)) {
            present.swap_remove(place);
        }
        self.left.notify_waiters();
    }
}

/// See the module.
pub struct Client {
    actor: Rc<GroupActor>,
    volume: VolumeId,
    access: Access,
    /// None of one that came before, and has to come anew.
    era: Option<Era>,
}

impl Client {
    /// One that comes now.
    pub fn new(actor: Rc<GroupActor>, volume: VolumeId, access: Access) -> Self {
        actor.clients.add(volume, access);
        let era = Some(actor.era());
        Self { actor, volume, access, era }
    }

    /// A device; it may be an earlier daemon's, and its host outdated.
    pub fn device(actor: Rc<GroupActor>, volume: VolumeId, access: Access, is_outdated: bool) -> Self {
        let mut client = Self::new(actor, volume, access);
        if is_outdated {
            client.era = None;
        }
        client
    }

    /// Whether it must come anew to be served.
    pub fn is_outdated(&self) -> bool {
        // Whoever cannot write does no harm with what it keeps.
        self.access == Access::ReadWrite && self.era != Some(self.actor.era())
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
        self.actor.clients.remove(self.volume, self.access);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actor::open_media,
        busy_poll::BusyPoll,
        legacy::Legacy,
        lock::Patience,
        media::{Allocation, GroupMedia, MediaOptions, Medium},
    };
    use holdfast::{
        buffer::AlignedBuffer,
        command::VolumeSpec,
        disk::MediumId,
        group::{GroupSpec, format_journal, format_pool, pool_size_for},
        pair::Role,
        request::Durability,
        units::{GroupId, JOURNAL_SIZE_MIN, MediumUuid, VOLUME_SIZE_MIN},
    };
    use std::{fs, path::Path, time::Duration};

    const OPTIONS: MediaOptions = MediaOptions { buffered: false, cached_journal: false };

    /// A group with a volume in a folder.
    async fn group(folder: &Path) -> Rc<GroupActor> {
        let journal = Medium::create(&folder.join("journal"), JOURNAL_SIZE_MIN, Allocation::Full, OPTIONS).unwrap();
        let mut media = GroupMedia::default();
        media.insert_journal(journal, OPTIONS).unwrap();
        let (id, uuid) = (GroupId([1; 16]), MediumUuid([1; 16]));
        let spec = GroupSpec { id, name: "g".parse().unwrap(), journal: uuid, role: Role::Primary, peer: None };
        format_journal(&mut media, &spec).unwrap();
        let actor = GroupActor::open(media, BusyPoll::start(Duration::ZERO), folder).unwrap();
        let path = folder.join("pool");
        let spec = VolumeSpec {
            id: VolumeId(1),
            name: "v".parse().unwrap(),
            size: VOLUME_SIZE_MIN,
            logical_block_size: 4096,
            table_block_size: 16 << 10,
            pool: MediumUuid([2; 16]),
            pool_path: path.display().to_string(),
        };
        let size = pool_size_for(spec.size, spec.table_block_size);
        let (mut media, pool) = (GroupMedia::default(), MediumId::Pool(spec.id));
        media.0.insert(pool, Medium::create(&path, size, Allocation::Sparse, OPTIONS).unwrap());
        format_pool(&mut media, id, &spec).unwrap();
        actor.add_volume(spec, media.0.remove(&pool).unwrap()).await.unwrap();
        actor
    }

    async fn write(client: &Client) {
        let data = AlignedBuffer::copy_of(&[1; 4096]).freeze();
        let write = Operation::Write { offset: 0, data, durability: Durability::Completed };
        assert_eq!(client.request(write).await, Ok(Reply::Done));
    }

    /// Fails a group by taking its media away, and opens it again as its journal is then. How many records are lost.
    async fn fail_and_reopen(actor: &GroupActor, client: &Client, journal: &Path, change: impl FnOnce()) -> u64 {
        actor.drop_media();
        assert_eq!(client.request(Operation::Flush).await, Err(RequestError::Io));
        change();
        actor.reopen(open_media(journal, OPTIONS, Patience::Start, |_| Ok(())).unwrap()).unwrap()
    }

    #[test]
    fn one_that_is_about_to_go_is_waited_for() {
        let clients = Clients::default();
        let [first, second] = [(VolumeId(1), Access::ReadWrite), (VolumeId(2), Access::Trial)];
        for (volume, access) in [first, second] {
            clients.add(volume, access);
        }
        tokio_uring::start(async move {
            let goes = async { clients.remove(first.0, first.1) };
            let (staying, ()) = tokio::join!(clients.count_staying(|volume, _| volume == first.0), goes);
            assert_eq!(staying, 0);
            assert_eq!(clients.count(|_, access| access == Access::Trial), 1);
        });
    }

    /// What a daemon does with its device, from its start to its end.
    fn life(folder: &Path, is_new: bool, does: impl AsyncFnOnce(Rc<GroupActor>, Client)) {
        let run = folder.join("run");
        tokio_uring::start(async {
            let media = open_media(&folder.join("journal"), OPTIONS, Patience::Start, |_| Ok(())).unwrap();
            let actor = GroupActor::open(media, BusyPoll::start(Duration::ZERO), &run).unwrap();
            let is_outdated = Legacy::new(&run, MediumUuid([2; 16])).begin(is_new).unwrap();
            let client = Client::device(actor.clone(), VolumeId(1), Access::ReadWrite, is_outdated);
            does(actor, client).await;
        });
    }

    /// A device is there when the daemon is not, and so is what its host keeps in memory.
    #[test]
    fn the_next_daemon_knows_which_devices_hosts_must_come_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, journal) = (folder.path(), folder.path().join("journal"));
        // What one is answered, and what becomes of the media then.
        let write_and_fail = async |actor: Rc<GroupActor>, client: Client| {
            write(&client).await;
            actor.drop_media();
            assert_eq!(client.request(Operation::Flush).await, Err(RequestError::Io));
        };
        tokio_uring::start(async { drop(group(folder).await) });
        life(folder, true, write_and_fail);
        life(folder, false, async |_, client| {
            assert_eq!(client.request(Operation::Flush).await, Ok(Reply::Done), "nothing was lost");
        });
        let before = fs::read(&journal).unwrap();
        life(folder, false, write_and_fail);
        fs::write(&journal, before).unwrap();
        for _ in 0..2 {
            life(folder, false, async |_, client| {
                assert_eq!(client.request(Operation::Flush).await, Err(RequestError::Outdated));
            });
        }
        life(folder, true, async |_, client| {
            write(&client).await;
            assert_eq!(client.request(Operation::Flush).await, Ok(Reply::Done));
        });
    }

    /// Not even if a flush that comes later makes all durable that there is.
    #[test]
    fn no_flush_succeeds_for_a_client_whose_writes_were_lost() {
        let folder = tempfile::tempdir().unwrap();
        tokio_uring::start(async move {
            let journal = folder.path().join("journal");
            let actor = group(folder.path()).await;
            let client = |access| Client::new(actor.clone(), VolumeId(1), access);
            let [stays, reads] = [Access::ReadWrite, Access::ReadOnly].map(client);
            write(&stays).await;
            assert_eq!(fail_and_reopen(&actor, &stays, &journal, || {}).await, 0);
            assert_eq!(stays.request(Operation::Flush).await, Ok(Reply::Done), "nothing was lost");
            let before = fs::read(&journal).unwrap();
            write(&stays).await;
            let lose = || fs::write(&journal, before).unwrap();
            assert_eq!(fail_and_reopen(&actor, &stays, &journal, lose).await, 1);
            assert_eq!(stays.request(Operation::Flush).await, Err(RequestError::Outdated));
            assert!(reads.request(Operation::Read { offset: 0, size: 4096 }).await.is_ok());
            let comes = client(Access::ReadWrite);
            write(&comes).await;
            assert_eq!(comes.request(Operation::Flush).await, Ok(Reply::Done));
        });
    }
}
