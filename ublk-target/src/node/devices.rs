//! Volumes as kernel block devices: attaching, detaching, and taking over what an earlier daemon left.
//!
//! What is attached is kept in the group's folder (`attached.json`), so that it is attached again at the next start.

use super::{Answer, Node, missing};
use crate::{
    actor::GroupActor,
    api::ApiError,
    client::Client,
    legacy::{self, Legacy},
    nbd::ListenAddress,
    ublk::{self, DeviceInfo, NewQueue, Queue, Shape, device_path},
};
use holdfast::{
    command::VolumeSpec,
    pair::Role,
    request::{Access, RequestError},
    units::MediumUuid,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tracing::{info, warn};

/// Where devices have names: `/dev/holdfast/GROUP/VOLUME`.
const NAMES: &str = "/dev/holdfast";
/// The first 16 bits of every mark.
const MARK: u64 = 0x4844 << 48;

/// How long a daemon that ends waits for what is under way on a device.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);
/// The driver itself may take longer, and is waited for no longer than so: groups are to be stopped in good order.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// A volume that is to be attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    volume: String,
    read_only: bool,
}

#[derive(Clone)]
struct Attached {
    wish: Wish,
    /// `None` while it is being made.
    number: Option<u32>,
    client: Weak<Client>,
}

/// The devices of the node.
#[derive(Default)]
pub(super) struct Devices {
    attached: RefCell<BTreeMap<(String, String), Attached>>,
    memory_is_locked: Cell<bool>,
    /// The daemon is going down: what it cannot answer any more waits in the kernel for the next one.
    leaving: Rc<Cell<bool>>,
}

/// How the driver's records name a volume's device on this node: by its pool, which no other node has.
fn mark(pool: MediumUuid) -> u64 {
    pool.0.iter().take(6).fold(0, |mark, byte| mark << 8 | u64::from(*byte)) | MARK
}

impl Node {
    pub(super) async fn attach_volume(self: &Rc<Self>, group: &str, volume: &str, read_only: bool) -> Answer {
        let wish = Wish { volume: volume.to_owned(), read_only };
        let (number, taken_over) = self.attach(group, &wish).await?;
        self.keep_wish(group, volume, Some(&wish))?;
        let path = device_path(number).display().to_string();
        let name = name_of(group, volume).display().to_string();
        let how = if taken_over { "taken over" } else { "attached" };
        Ok(json!({ "done": format!("Volume {group}/{volume} {how} as {path} ({name})"), "device": path, "name": name }))
    }

    /// The other way to a volume: where the NBD server has it.
    pub(super) fn serve_by_nbd(&self, group: &str, volume: &str, read_only: bool) -> Answer {
        let (actor, _) = self.volume(group, volume)?;
        let role = actor.label().role;
        match (role, read_only) {
            (Role::Primary, false) => {}
            (Role::Secondary | Role::Fenced, true) => actor.exported.set(true),
            (Role::Primary, true) => {
                return Err(ApiError::new("NBD serves a primary's volumes writable; leave out --read-only"));
            }
            _ => {
                return Err(ApiError::new(format!(
                    "Volume {group}/{volume}: the group is {role} on this node; a standby's volumes can be read with \
                     --read-only"
                )));
            }
        }
        let Some((uri, device)) = self.nbd_place(&format!("{group}/{volume}")) else {
            return Err(ApiError::new(
                "NBD has no address on this node: add [nbd] unix = \"/run/holdfast.nbd\" to the configuration and restart",
            ));
        };
        Ok(
            json!({ "done": format!("Volume {group}/{volume} is served at {uri}; as a block device: {device}"), "uri": uri }),
        )
    }

    /// Where NBD serves an export, and the command that makes it a block device.
    pub(super) fn nbd_place(&self, export: &str) -> Option<(String, String)> {
        let (uri, reach) = match self.config.nbd_addresses().first()? {
            ListenAddress::Unix(path) => {
                let path = path.display();
                (format!("nbd+unix:///{export}?socket={path}"), format!("-unix {path}"))
            }
            ListenAddress::Tcp(address) => {
                (format!("nbd://{address}/{export}"), format!("{} {}", address.ip(), address.port()))
            }
        };
        Some((uri, format!("nbd-client {reach} /dev/nbd0 -name {export}")))
    }

    async fn attach(self: &Rc<Self>, group: &str, wish: &Wish) -> Result<(u32, bool), ApiError> {
        let (actor, spec) = self.volume(group, &wish.volume)?;
        let title = format!("{group}/{}", wish.volume);
        let (role, read_only) = (actor.label().role, wish.read_only);
        let served = role == Role::Primary || read_only;
        // A device that is there already is better answered with errors than not at all: its file system can be unmounted.
        let is_there = Self::is_there(&spec).await?;
        if !served && !is_there {
            return Err(ApiError::new(format!(
                "Volume {title}: the group is {role} on this node; a standby's volumes can be attached with --read-only"
            )));
        }
        let key = (group.to_owned(), wish.volume.clone());
        if let Some(attached) = self.devices.attached.borrow().get(&key) {
            return match attached.number {
                Some(number) if attached.client.upgrade().is_some_and(|client| client.is_outdated()) => {
                    Err(ApiError::new(format!(
                        "Volume {title}: {} has had errors since the group changed its role or lost records, for what its host \
                         keeps in memory may be out of date; unmount it, then: ublk-admin volume detach {group} {}, and attach \
                         it again",
                        device_path(number).display(),
                        wish.volume
                    )))
                }
                Some(number) if attached.wish == *wish => Ok((number, false)),
                Some(number) => Err(ApiError::new(format!(
                    "Volume {title} is attached already as {}, {}; detach it first",
                    device_path(number).display(),
                    if read_only { "writable" } else { "read-only" }
                ))),
                None => Err(ApiError::new(format!("Volume {title} is being attached at this moment"))),
            };
        }
        self.lock_memory();
        let shape = Shape {
            mark: mark(spec.pool),
            size: spec.size,
            logical_block_size: spec.logical_block_size,
            read_only,
            queues: *self.config.ublk.queues.get_ref(),
            depth: *self.config.ublk.depth.get_ref(),
            recovery: self.config.ublk.recovery,
        };
        let is_outdated = legacy_of(&spec).begin(!is_there).map_err(|error| {
            ApiError::new(format!(
                "Volume {title}: what a later daemon has to know of a device cannot be kept in {}: {error}",
                legacy::FOLDER
            ))
        })?;
        let (sender, queues) = mpsc::unbounded_channel();
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let client = Rc::new(Client::device(actor, spec.id, access, is_outdated));
        if client.is_outdated() {
            warn!(
                group,
                volume = wish.volume,
                "The device has errors until it is unmounted, detached and attached again"
            );
        }
        let attached = Attached { wish: wish.clone(), number: None, client: Rc::downgrade(&client) };
        self.devices.attached.borrow_mut().insert(key.clone(), attached);
        tokio_uring::spawn(serve(title.clone(), client, queues, self.devices.leaving.clone()));
        let made = tokio::task::spawn_blocking(move || ublk::attach(shape, &sender)).await;
        match made
            .map_err(ApiError::new)
            .and_then(|made| made.map_err(|error| ApiError::new(format!("{title}: {error}"))))
        {
            Ok(device) => {
                if let Some(attached) = self.devices.attached.borrow_mut().get_mut(&key) {
                    attached.number = Some(device.number);
                }
                info!(group, volume = wish.volume, device = device.number, taken_over = device.taken_over, "Attached");
                if let Err(error) = give_name(group, &wish.volume, device.number) {
                    warn!(group, volume = wish.volume, %error, "The device has no name in {NAMES}");
                }
                Ok((device.number, device.taken_over))
            }
            Err(error) => {
                self.devices.attached.borrow_mut().remove(&key);
                Err(error)
            }
        }
    }

    async fn is_there(spec: &VolumeSpec) -> Result<bool, ApiError> {
        let mark = mark(spec.pool);
        let look = move || ublk::attached().iter().any(|device| device.mark == mark && !device.is_dead);
        tokio::task::spawn_blocking(look).await.map_err(ApiError::new)
    }

    pub(super) async fn detach_volume(&self, group: &str, volume: &str) -> Answer {
        let (_, spec) = self.volume(group, volume)?;
        let title = format!("{group}/{volume}");
        let key = (group.to_owned(), volume.to_owned());
        // One that an earlier daemon left counts too.
        let found = tokio::task::spawn_blocking(ublk::attached).await.map_err(ApiError::new)?;
        let number = found.iter().find(|device| device.mark == mark(spec.pool)).map(|device| device.number);
        let attached = self.devices.attached.borrow().get(&key).map(|attached| attached.number);
        if attached == Some(None) {
            return Err(ApiError::new(format!("Volume {title} is being attached at this moment; try again")));
        }
        let known = attached.is_some();
        let Some(number) = number else {
            legacy_of(&spec).end();
            self.devices.attached.borrow_mut().remove(&key);
            self.keep_wish(group, volume, None)?;
            let done = if known { "is detached" } else { "was not attached" };
            return Ok(json!({ "done": format!("Volume {title} {done}") }));
        };
        let ended = tokio::task::spawn_blocking(move || ublk::detach(number)).await.map_err(ApiError::new)?;
        ended.map_err(|error| ApiError::new(format!("{title}: {error}")))?;
        legacy_of(&spec).end();
        self.devices.attached.borrow_mut().remove(&key);
        let _ = fs::remove_file(name_of(group, volume));
        self.keep_wish(group, volume, None)?;
        Ok(json!({ "done": format!("Volume {title} detached from {}", device_path(number).display()) }))
    }

    /// Attaches again what was attached when the daemon ended.
    pub async fn attach_again(self: Rc<Self>) {
        let (mut marks, mut attaching) = (Vec::new(), Vec::new());
        for actor in self.groups() {
            let label = actor.label();
            marks.extend(label.volumes.iter().map(|spec| mark(spec.pool)));
            attaching.extend(self.attach_wishes(label.name.as_str()));
        }
        for attached in attaching {
            // One that panicked has not attached anything; it is looked at below.
            let _ = attached.await;
        }
        let Ok(found) = tokio::task::spawn_blocking(ublk::attached).await else {
            return;
        };
        for device in found.iter().filter(|device| is_left_over(device)) {
            let path = device_path(device.number).display().to_string();
            if marks.contains(&device.mark) {
                warn!(device = path, "A device of this node is not served; `ublk-admin volume detach` removes it");
            } else {
                warn!(device = path, "A device of another node or of a volume that is gone is not served");
            }
        }
    }

    /// Attaches what was attached of a group when the daemon ended. Side by side: a device is looked at by the kernel before it is
    /// there, and one whose group answers nothing for the moment must not keep the others waiting.
    pub(super) fn attach_wishes(self: &Rc<Self>, group: &str) -> Vec<JoinHandle<()>> {
        let attach = |wish: Wish| {
            let (node, group) = (self.clone(), group.to_owned());
            tokio_uring::spawn(async move {
                if let Err(error) = node.attach(&group, &wish).await {
                    warn!(group, volume = wish.volume, error = error.error, "Not attached again");
                }
            })
        };
        self.read_wishes(group).into_iter().map(attach).collect()
    }

    /// From now on devices are left to the next daemon. Where the driver can, what is under way is answered first.
    pub(super) async fn leave_devices(&self) {
        let numbers: Vec<u32> =
            self.devices.attached.borrow().values().filter_map(|attached| attached.number).collect();
        // All at once: what one waits for may never come, and a service manager's patience ends.
        let quiesce = |number| tokio::task::spawn_blocking(move || ublk::quiesce(number, HAND_OVER_PATIENCE));
        let waiting: Vec<_> = numbers.into_iter().map(quiesce).collect();
        let mut count = 0;
        let all = async {
            for quiet in waiting {
                count += usize::from(quiet.await.unwrap_or(false));
            }
        };
        if timeout(LEAVE_PATIENCE, all).await.is_err() {
            warn!("The driver does not say that a device is quiet; the groups are stopped all the same");
        }
        if count > 0 {
            info!(count, "Devices left with nothing under way");
        }
        self.devices.leaving.set(true);
    }

    /// Refuses to take the writes away from under a file system.
    pub(super) fn nothing_writable_is_attached(&self, group: &str) -> Result<(), ApiError> {
        let devices = self.devices.attached.borrow();
        match devices.iter().find(|((of, _), attached)| of == group && !attached.wish.read_only) {
            Some(((_, volume), _)) => Err(ApiError::new(format!(
                "Volume {group}/{volume} is attached to this machine: ublk-admin volume detach {group} {volume}"
            ))),
            None => Ok(()),
        }
    }

    /// Which volume a device belongs to: what a udev rule asks, also while the device is being made.
    pub(super) async fn name_device(&self, device: &str) -> Answer {
        let refuse = || ApiError::new(format!("{device} is no device of this node; see: ublk-admin status"));
        let name = device.strip_prefix("/dev/").unwrap_or(device);
        let number: u32 = name.strip_prefix("ublkb").and_then(|number| number.parse().ok()).ok_or_else(refuse)?;
        let found = tokio::task::spawn_blocking(move || ublk::device_info(number)).await.map_err(ApiError::new)?;
        let found = found.ok_or_else(refuse)?;
        let mut volumes = self.groups().into_iter().flat_map(|actor| {
            let label = actor.label();
            label.volumes.into_iter().map(move |spec| (label.name, spec))
        });
        let (group, spec) = volumes.find(|(_, spec)| mark(spec.pool) == found.mark).ok_or_else(refuse)?;
        Ok(json!({ "done": format!("{group}/{}", spec.name), "group": group.as_str(), "volume": spec.name.as_str() }))
    }

    /// The device of a volume, if it has one.
    pub(super) fn device_of(&self, group: &str, volume: &str) -> Option<Value> {
        let devices = self.devices.attached.borrow();
        let attached = devices.get(&(group.to_owned(), volume.to_owned()))?;
        let path = device_path(attached.number?).display().to_string();
        Some(json!({ "device": path, "name": name_of(group, volume), "read_only": attached.wish.read_only }))
    }

    /// The number of a volume's device, if it has one.
    pub(super) fn device_number(&self, group: &str, volume: &str) -> Option<u32> {
        self.devices.attached.borrow().get(&(group.to_owned(), volume.to_owned()))?.number
    }

    pub(super) fn volume(&self, group: &str, volume: &str) -> Result<(Rc<GroupActor>, VolumeSpec), ApiError> {
        let actor = self.group(group)?;
        let spec = actor.label().volumes.into_iter().find(|spec| spec.name.as_str() == volume);
        Ok((actor, spec.ok_or_else(|| missing("volume", &format!("{group}/{volume}")))?))
    }

    /// The kernel may write to a device in order to free memory: nothing on the way may then wait for memory.
    fn lock_memory(&self) {
        use nix::{libc::MCL_ONFAULT, sys::mman};
        if self.devices.memory_is_locked.replace(true) {
            return;
        }
        let how = mman::MlockAllFlags::MCL_CURRENT | mman::MlockAllFlags::MCL_FUTURE;
        let how = how | mman::MlockAllFlags::from_bits_retain(MCL_ONFAULT);
        if let Err(error) = mman::mlockall(how) {
            warn!(%error, "Memory not locked; set LimitMEMLOCK=infinity");
        }
    }

    fn wishes_path(&self, group: &str) -> PathBuf {
        self.config.groups_path().join(group).join("attached.json")
    }

    fn read_wishes(&self, group: &str) -> Vec<Wish> {
        let path = self.wishes_path(group);
        let read = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            read => read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)),
        };
        read.unwrap_or_else(|error| {
            warn!(path = %path.display(), %error, "Not read; attach the group's volumes by hand");
            Vec::new()
        })
    }

    /// Keeps whether, and how, a volume is to be attached. What is kept of others stays, whether they could be attached or not.
    pub(super) fn keep_wish(&self, group: &str, volume: &str, wish: Option<&Wish>) -> Result<(), ApiError> {
        let before = self.read_wishes(group);
        let others = before.iter().filter(|kept| kept.volume != volume);
        let wishes: Vec<&Wish> = others.chain(wish).collect();
        if wish.is_none() && wishes.len() == before.len() {
            return Ok(());
        }
        let path = self.wishes_path(group);
        let new = path.with_extension("new");
        let bytes = serde_json::to_vec_pretty(&wishes).map_err(ApiError::new)?;
        let write = || {
            fs::write(&new, bytes)?;
            fs::File::open(&new)?.sync_all()?;
            fs::rename(&new, &path)
        };
        let kept = write();
        kept.map_err(|error| ApiError::new(format!("{}: {error}", path.display())))
    }
}

fn legacy_of(spec: &VolumeSpec) -> Legacy {
    Legacy::new(Path::new(legacy::FOLDER), spec.pool)
}

/// Serves a device's queues until the device is gone.
async fn serve(
    volume: String,
    client: Rc<Client>,
    mut queues: mpsc::UnboundedReceiver<NewQueue>,
    leaving: Rc<Cell<bool>>,
) {
    let mut served = Vec::new();
    while let Some(new) = queues.recv().await {
        let Some(queue) = Queue::new(new) else { continue };
        let (client, leaving) = (client.clone(), leaving.clone());
        served.push(tokio_uring::spawn(queue.serve(move |operation, asker| {
            let (answer, leaving) = (client.request(operation), leaving.clone());
            tokio_uring::spawn(async move {
                let answer = answer.await;
                // What cannot be answered any more is for the next daemon.
                if answer != Err(RequestError::Stopped) || !leaving.get() {
                    asker.answer(answer);
                }
            });
        })));
    }
    for queue in served {
        // One that has panicked is served no more than one that has ended.
        let _ = queue.await;
    }
    info!(volume, "Device not served any more");
}

/// Whether it is ours and the process that served it is gone.
fn is_left_over(device: &DeviceInfo) -> bool {
    device.mark >> 48 == MARK >> 48 && !Path::new(&format!("/proc/{}", device.process)).exists()
}

fn name_of(group: &str, volume: &str) -> PathBuf {
    Path::new(NAMES).join(group).join(volume)
}

/// Makes the device's stable name. It is replaced whatever it was: numbers change when the machine starts.
fn give_name(group: &str, volume: &str, number: u32) -> io::Result<()> {
    let name = name_of(group, volume);
    // Where a udev rule gives names, it may have been first.
    if fs::canonicalize(&name).is_ok_and(|found| found == device_path(number)) {
        return Ok(());
    }
    fs::create_dir_all(Path::new(NAMES).join(group))?;
    // No volume's name begins with a dot.
    let new = name.with_file_name(format!(".{volume}.new"));
    let _ = fs::remove_file(&new);
    symlink(device_path(number), &new)?;
    fs::rename(&new, &name)
}
