//! Making and deleting groups and volumes: their media, and where these are.

use super::{Answer, Node, command, is_called_so, is_there, missing, name};
use crate::{
    actor::{GroupActor, open_media},
    api::ApiError,
    events::EVENT,
    lock::Patience,
    media::{Allocation, GroupMedia, Medium},
    ublk,
};
use anyhow::ensure;
use holdfast::{
    command::{Command, CommandError, VolumeSpec},
    disk::MediumId,
    format::{journal_superblock::RING_OFFSET, volume_entry::check_geometry},
    group::{GroupSpec, JournalLabel, erase_other, format_journal, format_pool, pool_size_for},
    pair::Role,
    units::{GroupId, MediumUuid, VolumeId},
};
use serde_json::json;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tracing::{info, warn};

/// How often, and how long after each other, media are opened that something may still hold.
const REOPEN_TRIES: u32 = 20;
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// What an operator wants of a new volume.
pub(super) struct NewVolume {
    pub(super) volume: String,
    pub(super) size: u64,
    pub(super) logical_block_size: u32,
    pub(super) table_block_size: u32,
    pub(super) pool: Option<String>,
    pub(super) preallocate: bool,
    pub(super) found: Found,
}

/// What becomes of what a medium holds that is not Holdfast's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The medium is refused.
    Kept,
    /// It is erased.
    Erased,
}

impl Found {
    pub(super) fn of(overwrite: bool) -> Self {
        if overwrite { Self::Erased } else { Self::Kept }
    }
}

impl Node {
    fn folder(&self, group: &str) -> PathBuf {
        self.config.groups_path().join(group)
    }

    /// Where the pool of a volume is if nobody says otherwise.
    pub(super) fn pool_path(&self, group: &str, volume: &str) -> String {
        self.folder(group).join(format!("{volume}.pool")).display().to_string()
    }

    pub(super) fn create_group(&self, group: &str, journal_size: u64, journal: Option<String>, found: Found) -> Answer {
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
        self.make_group(&spec, journal_size, journal, found)?;
        Ok(json!({ "done": format!("Group {group} created"), "id": spec.id.to_string() }))
    }

    /// Makes a group with a journal of `size` bytes, in the node's directory or at `journal`.
    pub(super) fn make_group(
        &self,
        spec: &GroupSpec,
        size: u64,
        journal: Option<String>,
        found: Found,
    ) -> Result<Rc<GroupActor>, ApiError> {
        let folder = self.folder(spec.name.as_str());
        let link = folder.join("journal");
        // A second group of the name would be made behind what is to be mounted there.
        let is_missed = |group: &str| self.unopened.borrow().contains_key(group);
        if let Some((group, reason)) = lacks_journal(&folder).filter(|(group, _)| is_missed(group)) {
            return Err(ApiError::new(format!("Group {group} is not created: {reason}")));
        }
        if is_there(&link) {
            return Err(ApiError::new(format!(
                "{} exists already, but its group is not open: `ublk-admin group reopen {}` says why; move {} away if \
                 it is no longer wanted",
                link.display(),
                spec.name,
                folder.display()
            )));
        }
        let path = journal.as_ref().map_or_else(|| link.clone(), PathBuf::from);
        absolute(&path)?;
        fs::create_dir_all(&folder).map_err(|error| at(&folder, error))?;
        // A link to what is not there is the operator's as well.
        let existed = path.symlink_metadata().is_ok();
        let made = Medium::create(&path, size, Allocation::Full, self.options()).map_err(ApiError::new);
        let opened = made.and_then(|medium| {
            let mut media = GroupMedia::default();
            media.insert_journal(medium, self.options()).map_err(ApiError::new)?;
            if found == Found::Erased {
                erase_other(&mut media, MediumId::Journal).map_err(|error| at(&path, error))?;
            }
            format_journal(&mut media, spec).map_err(|error| at(&path, error))?;
            if journal.is_some() {
                symlink(&path, &link).map_err(|error| at(&link, error))?;
            }
            // Before anything that is written to it is promised to be there.
            for made in [&path, &link, &folder, &self.config.groups_path()] {
                make_durable(made).map_err(|error| at(made, error))?;
            }
            self.run_group(&path, media).map_err(ApiError::new)
        });
        match opened {
            Ok(actor) => {
                // A file that was there has been written, or is somebody else's to prepare.
                if !existed && !self.options().buffered {
                    actor.prepare_journal(RING_OFFSET..size);
                }
                self.insert(actor.clone());
                Ok(actor)
            }
            Err(error) => {
                // What was made for a group that did not come to be is not left behind.
                if !existed {
                    let _ = fs::remove_file(&path);
                }
                let _ = fs::remove_file(&link);
                let _ = fs::remove_dir(&folder);
                Err(error)
            }
        }
    }

    /// Opens a group again that a failed medium has stopped, or that is not open. Clients and devices of one that has stopped stay; if
    /// records are lost, with errors.
    pub(super) async fn reopen_group(self: &Rc<Self>, group: &str) -> Answer {
        let folder = self.folder(name(group)?.as_str());
        let journal = folder.join("journal");
        let known = self.groups.borrow().get(group).cloned();
        let Some(actor) = known else {
            return self.open_unopened(group, &folder, &journal).await;
        };
        if actor.status().stopped.is_none() {
            return Ok(json!({ "done": format!("Group {group} has not stopped; nothing to do") }));
        }
        actor.drop_media();
        let failed = |error: String| {
            ApiError::new(format!("Group {group} stays stopped: {error}; mend that and give the same command again"))
        };
        // The names of devices change.
        let is_same = |label: &JournalLabel| {
            ensure!(label.group == actor.id(), "it is the journal of group {} ({})", label.name, label.group);
            Ok(())
        };
        let media = self.open_media_soon(&journal, is_same).await.map_err(|error| failed(error.to_string()))?;
        let lost = actor.reopen(media).map_err(|error| failed(error.to_string()))?;
        let mut done = format!("Group {group} is open again");
        if lost > 0 {
            done += &format!(
                "; its media have lost the last {lost} record(s), of writes that were answered and not flushed. Who was there before \
                 and may write has errors until it comes anew: connect NBD clients again, unmount, detach and attach devices"
            );
        }
        Ok(json!({ "done": done, "lost_records": lost }))
    }

    /// Opens a group that could not be opened when the daemon started, or whose folder was put there since.
    async fn open_unopened(self: &Rc<Self>, group: &str, folder: &Path, journal: &Path) -> Answer {
        if let Some((group, reason)) = lacks_journal(folder) {
            return Err(ApiError::new(format!("Group {group} is not opened: {reason}")));
        }
        if !is_there(journal) {
            self.unopened.borrow_mut().remove(group);
            return Err(missing("group", group));
        }
        let media = self.open_media_soon(journal, is_called_so(folder)).await;
        if self.groups.borrow().contains_key(group) {
            return Ok(json!({ "done": format!("Group {group} was opened meanwhile") }));
        }
        let opened = media.and_then(|media| self.run_group(journal, media));
        let actor = opened.map_err(|reason| {
            self.tell_unopened(group, reason.to_string());
            ApiError::new(format!("Group {group} is not opened: {reason}; mend that and give the same command again"))
        })?;
        info!(target: EVENT, group, "Group opened at last");
        self.insert(actor.clone());
        // Both ends greet in a session that knows of the group.
        if let Some(peer) = self.peers.iter().find(|peer| actor.is_paired_with(peer)) {
            peer.clone().restart_soon();
        }
        // Not waited for: its devices may have to wait for the peer.
        drop(self.attach_wishes(group));
        Ok(json!({ "done": format!("Group {group} is open") }))
    }

    /// Opens media of which something may still be under way: that keeps their locks for a moment.
    async fn open_media_soon(
        &self,
        journal: &Path,
        is_wanted: impl Fn(&JournalLabel) -> anyhow::Result<()>,
    ) -> anyhow::Result<GroupMedia> {
        let mut tries = REOPEN_TRIES;
        loop {
            match open_media(journal, self.options(), Patience::None, &is_wanted) {
                Err(_) if tries > 0 => tries -= 1,
                opened => return opened,
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    pub(super) async fn add_volume(&self, group: &str, asked: NewVolume) -> Answer {
        let actor = self.group(group)?;
        let used: Vec<VolumeId> = actor.label().volumes.iter().map(|spec| spec.id).collect();
        let (volume, size) = (asked.volume, asked.size);
        let spec = VolumeSpec {
            id: (1..).map(VolumeId).find(|id| !used.contains(id)).unwrap_or_default(),
            name: name(&volume)?,
            size,
            logical_block_size: asked.logical_block_size,
            table_block_size: asked.table_block_size,
            pool: MediumUuid(random()?),
            pool_path: asked.pool.unwrap_or_else(|| self.pool_path(group, &volume)),
        };
        let allocation = if asked.preallocate { Allocation::Full } else { Allocation::Sparse };
        let pool_path = spec.pool_path.clone();
        self.create_volume(&actor, spec, allocation, asked.found).await?;
        Ok(json!({
            "done": format!("Volume {group}/{volume} of {size} bytes created and exported; its pool is {pool_path}")
        }))
    }

    /// Makes a volume's pool and adds the volume to its group.
    pub(super) async fn create_volume(
        &self,
        actor: &Rc<GroupActor>,
        spec: VolumeSpec,
        allocation: Allocation,
        found: Found,
    ) -> Result<(), ApiError> {
        let label = actor.label();
        let title = format!("{}/{}", label.name, spec.name);
        if label.volumes.iter().any(|other| other.name == spec.name) {
            return Err(ApiError::new(format!("Volume {title} exists already")));
        }
        check_geometry(&spec).map_err(|reason| ApiError::new(format!("Volume {title}: {reason}")))?;
        let path = PathBuf::from(&spec.pool_path);
        absolute(&path)?;
        let existed = path.symlink_metadata().is_ok();
        let size = pool_size_for(spec.size, spec.table_block_size);
        let medium = Medium::create(&path, size, allocation, self.options()).map_err(ApiError::new)?;
        let mut media = GroupMedia::default();
        media.0.insert(MediumId::Pool(spec.id), medium);
        let erased = if found == Found::Erased { erase_other(&mut media, MediumId::Pool(spec.id)) } else { Ok(()) };
        let formatted = erased.and_then(|()| format_pool(&mut media, label.group, &spec));
        let formatted = formatted.map_err(|error| at(&path, error));
        let formatted = formatted.and_then(|()| make_durable(&path).map_err(|error| at(&path, error)));
        let medium = media.0.remove(&MediumId::Pool(spec.id));
        let (added, is_named) = match (formatted, medium) {
            (Ok(()), Some(medium)) => {
                let added = actor.add_volume(spec, medium).await;
                // When the group's media fail in the midst of it nobody knows whether its journal names the pool.
                let is_named = matches!(added, Err(CommandError::Io | CommandError::Stopped));
                (added.map(|_| ()).map_err(ApiError::new), is_named)
            }
            (Err(error), _) => (Err(error), false),
            (Ok(()), None) => (Err(ApiError::new("The pool is gone")), false),
        };
        if added.is_err() && !existed && !is_named {
            let _ = fs::remove_file(&path);
        }
        added
    }

    pub(super) async fn delete_volume(&self, group: &str, volume: &str) -> Answer {
        let actor = self.group(group)?;
        let label = actor.label();
        let spec = label.volumes.iter().find(|spec| spec.name.as_str() == volume);
        let spec = spec.ok_or_else(|| missing("volume", &format!("{group}/{volume}")))?;
        let clients = actor.clients.count_staying(|used, _| used == spec.id).await;
        if clients > 0 {
            return Err(in_use(&format!("Volume {group}/{volume}"), clients));
        }
        actor.remove_volume(spec.id).await.map_err(|error| ApiError::new(format!("Group {group}: {error}")))?;
        self.keep_wish(group, volume, None)?;
        Ok(json!({ "done": format!("Volume {group}/{volume} forgotten; its pool is still at {}", spec.pool_path) }))
    }

    pub(super) async fn delete_group(self: &Rc<Self>, group: &str, erase: bool) -> Answer {
        let actor = self.group(group)?;
        let folder = self.folder(group);
        let attic = self.config.node.directory.join("deleted");
        fs::create_dir_all(&attic).map_err(|error| at(&attic, error))?;
        let name = attic.join(format!("{group}-{}", actor.label().group)).display().to_string();
        let place = if erase { PathBuf::from(name + ".erasing") } else { free_place(&name) };
        if erase && place.exists() {
            // Left by one that was cut short. It takes long: what is checked is checked behind it.
            remove_aside(&place).await?;
        }
        if actor.label().peer.is_some() {
            return Err(ApiError::new(format!(
                "Group {group} has a peer; delete the pair first: ublk-admin pair delete {group}"
            )));
        }
        let clients = actor.clients.count_staying(|_, _| true).await;
        if clients > 0 {
            return Err(in_use(&format!("Group {group}"), clients));
        }
        let label = actor.label();
        // Others may have been served meanwhile.
        if label.peer.is_some() || !Rc::ptr_eq(&self.group(group)?, &actor) {
            return Err(ApiError::new(format!("Group {group} has changed meanwhile; look at it, and ask again")));
        }
        let journal = fs::canonicalize(folder.join("journal")).map_err(|error| at(&folder, error))?;
        let home = fs::canonicalize(&folder).map_err(|error| at(&folder, error))?;
        // Else it is found out when the group is served no more.
        let moves = is_on_one_file_system(&folder, &attic)?;
        if !moves && !erase {
            return Err(ApiError::new(format!(
                "Group {group}: {} cannot be moved to {}, which is on another file system; remove it with: \
                 ublk-admin group delete {group} --yes --erase",
                folder.display(),
                attic.display()
            )));
        }
        // From here on no client finds it.
        self.groups.borrow_mut().remove(group);
        if let Err(error) = command(&actor, Command::Stop).await {
            warn!(group, %error, "Group not stopped in good order");
        }
        actor.close();
        // It holds its media as long as somebody has it.
        drop(actor);
        let outside = |path: &&Path| !path.starts_with(&folder) && !path.starts_with(&home);
        let pools = label.volumes.iter().map(|spec| Path::new(&spec.pool_path));
        let kept: Vec<String> = std::iter::once(journal.as_path())
            .chain(pools)
            .filter(outside)
            .map(|path| path.display().to_string())
            .collect();
        let mut done = format!("Group {group} deleted");
        // Also what is to be erased: that may take long, and what is left of it must not be taken for a group.
        let place = if moves { place } else { folder.clone() };
        if moves && let Err(error) = fs::rename(&folder, &place) {
            // What came of it is in the status.
            let _ = self.open_unopened(group, &folder, &folder.join("journal")).await;
            return Err(at(&folder, format!("{error}; group {group} is not deleted")));
        }
        if erase {
            remove_aside(&place).await?;
            done += &format!("; {} and what was in it is removed", folder.display());
        } else {
            done += &format!("; its media are kept in {}", place.display());
        }
        if !kept.is_empty() {
            done += &format!("; untouched: {}", kept.join(", "));
        }
        Ok(json!({ "done": done }))
    }
}

/// A folder in a group's place that has no journal, and is no file system's: the group that it is called after, and what to do.
pub(super) fn lacks_journal(folder: &Path) -> Option<(String, String)> {
    let group = folder.file_name()?.to_str().filter(|group| name(group).is_ok() && *group != "lost+found")?;
    // A file is no group, a link that leads nowhere may be one.
    let is_place = is_there(folder) && (folder.is_dir() || !folder.exists());
    let is_lacking = is_place && !is_there(&folder.join("journal")) && !is_mount_point(folder);
    let reason = || {
        format!(
            "{} has no journal: mount what belongs there, or remove it if it is left of something else",
            folder.display()
        )
    };
    is_lacking.then(|| (group.to_owned(), reason()))
}

/// Whether a file system, or a part of one, is mounted at a folder, or where it leads to.
fn is_mount_point(folder: &Path) -> bool {
    let (Ok(folder), Ok(mounts)) = (fs::canonicalize(folder), fs::read_to_string("/proc/self/mountinfo")) else {
        return false;
    };
    // The fifth field of each line, with blanks and backslashes as three octal digits (proc(5)).
    let escape = |text: &str| text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    let sought = escape(&folder.to_string_lossy());
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(sought.as_str()))
}

/// Makes it durable that a file, link or folder is there.
fn make_durable(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

/// Whether a folder can be moved into another one: none is moved to another file system. One that is a link is moved as such.
fn is_on_one_file_system(folder: &Path, attic: &Path) -> Result<bool, ApiError> {
    let device =
        |path: &Path, found: io::Result<fs::Metadata>| found.map(|found| found.dev()).map_err(|error| at(path, error));
    Ok(device(folder, folder.symlink_metadata())? == device(attic, attic.metadata())?)
}

/// An error with the path that it is about.
fn at(path: &Path, error: impl std::fmt::Display) -> ApiError {
    ApiError::new(format!("{}: {error}", path.display()))
}

/// A path must mean the same at the next start.
fn absolute(path: &Path) -> Result<(), ApiError> {
    if path.is_absolute() { Ok(()) } else { Err(at(path, "give the whole path, from / on")) }
}

/// A medium must not lie on a device that this daemon serves. Looked at on another thread: to look at a file on such a
/// device may take a read that only this one can answer.
pub(super) async fn not_on_own_device(path: Option<&String>) -> Result<(), ApiError> {
    let Some(path) = path.map(PathBuf::from) else {
        return Ok(());
    };
    let look = move || {
        let number = ublk::device_below(&path)?;
        let ours = ublk::attached().into_iter().any(|it| it.number == number && it.process == std::process::id());
        ours.then(|| {
            at(&path, "it lies on a device that this daemon serves, which would wait for itself; choose another place")
        })
    };
    tokio::task::spawn_blocking(look).await.map_err(ApiError::new)?.map_or(Ok(()), Err)
}

/// The name, or the first that nothing has yet of it with a number.
fn free_place(name: &str) -> PathBuf {
    let (mut place, mut number) = (PathBuf::from(name), 1);
    while place.exists() {
        number += 1;
        place = PathBuf::from(format!("{name}-{number}"));
    }
    place
}

/// Removes a folder with what is in it. A large file in many parts takes the file system a minute; the other groups go on.
async fn remove_aside(folder: &Path) -> Result<(), ApiError> {
    let gone = folder.to_owned();
    let remove = move || match fs::remove_dir_all(&gone) {
        // Where a file system is mounted its folder stays, with nothing in it.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && fs::read_dir(&gone)?.next().is_none() => Ok(()),
        removed => removed,
    };
    let removed = tokio::task::spawn_blocking(remove).await.map_err(ApiError::new)?;
    removed.map_err(|error| at(folder, error))
}

fn in_use(what: &str, clients: usize) -> ApiError {
    ApiError::new(format!("{what} is in use by {clients} client(s); disconnect NBD clients and detach devices first"))
}

pub(super) fn random<const SIZE: usize>() -> Result<[u8; SIZE], ApiError> {
    let mut bytes = [0; SIZE];
    getrandom::fill(&mut bytes).map_err(ApiError::new)?;
    Ok(bytes)
}
