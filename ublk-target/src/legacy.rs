//! What a daemon leaves to the next about a device, which outlives both.
//!
//! The kernel keeps a device, and what its host has in memory of it, when the daemon ends. So the next daemon must know whether that
//! host has to come anew ([`crate::client`]), and, when its group has stopped, what it was answered until then: the journal may hold less.
//! It is kept where nothing outlives the machine, as the device does not either.

use holdfast::{
    group::{Answered, JournalLabel},
    units::MediumUuid,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};
use tracing::error;

/// Where it is kept; emptied when the machine starts.
pub const FOLDER: &str = "/run/holdfast";

/// Its file, as JSON, for as long as there is a device. One that is not understood says the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Left {
    /// What the host keeps in memory is true.
    Current,
    /// It is if the group still has so much, which was answered until it stopped.
    Answered(Answered),
    /// The host has to come anew.
    Outdated,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Legacy {
    path: PathBuf,
}

impl Legacy {
    /// Of the device of the volume in this pool.
    pub fn new(folder: &Path, pool: MediumUuid) -> Self {
        Self { path: folder.join(pool.to_string()) }
    }

    /// Of a group's volumes.
    pub fn all(folder: &Path, label: &JournalLabel) -> Vec<Self> {
        label.volumes.iter().map(|spec| Self::new(folder, spec.pool)).collect()
    }

    /// There is a device now, made anew or an earlier daemon's. Whether its host has to come anew.
    pub fn begin(&self, is_new: bool) -> io::Result<bool> {
        if is_new || self.read().is_none() {
            self.try_to_leave(Left::Current)?;
        }
        // One that still says how much was answered was not settled when the group was opened.
        Ok(self.read() != Some(Left::Current))
    }

    /// If there is a device, its host has to come anew.
    pub fn outdate(&self) {
        if self.read().is_some_and(|left| left != Left::Outdated) {
            self.leave(Left::Outdated);
        }
    }

    /// The group has stopped, and has answered so much.
    pub fn keep_answered(&self, answered: Answered) {
        let is_more = match self.read() {
            Some(Left::Current) => true,
            Some(Left::Answered(before)) => before.order < answered.order,
            Some(Left::Outdated) | None => false,
        };
        if is_more {
            self.leave(Left::Answered(answered));
        }
    }

    /// The group is open again and tells how many of its records are lost.
    pub fn settle(&self, lost_since: impl Fn(Answered) -> u64) {
        if let Some(Left::Answered(answered)) = self.read() {
            self.leave(if lost_since(answered) > 0 { Left::Outdated } else { Left::Current });
        }
    }

    /// The device is gone.
    pub fn end(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.tell(&error),
            _ => {}
        }
    }

    fn read(&self) -> Option<Left> {
        match fs::read(&self.path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or(Left::Outdated)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.tell(&error);
                Some(Left::Outdated)
            }
        }
    }

    fn leave(&self, left: Left) {
        if let Err(error) = self.try_to_leave(left) {
            self.tell(&error);
            // It takes no room to say the worst.
            let file = fs::OpenOptions::new().write(true).open(&self.path);
            let _ = file.and_then(|mut file| file.write_all(b"?"));
        }
    }

    fn try_to_leave(&self, left: Left) -> io::Result<()> {
        let new = self.path.with_extension("new");
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
        fs::write(&new, serde_json::to_vec(&left)?)?;
        fs::rename(&new, &self.path)
    }

    fn tell(&self, error: &io::Error) {
        error!(path = %self.path.display(), %error, "What the next daemon has to know of a device is not kept; detach it before this one ends");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast::units::{Epoch, Order};

    impl Legacy {
        fn is_outdated(&self) -> bool {
            self.read() == Some(Left::Outdated)
        }
    }

    const ANSWERED: Answered = Answered { epoch: Epoch(1 << 32), order: Order(7) };

    fn legacy(folder: &Path) -> Legacy {
        Legacy::new(&folder.join("run"), MediumUuid([1; 16]))
    }

    #[test]
    fn who_is_outdated_stays_so_until_the_device_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let legacy = legacy(folder.path());
        legacy.outdate();
        assert!(!legacy.is_outdated(), "there is no device");
        assert!(!legacy.begin(true).unwrap());
        legacy.outdate();
        legacy.keep_answered(ANSWERED);
        legacy.settle(|_| 0);
        assert!(legacy.begin(false).unwrap());
        assert!(!legacy.begin(true).unwrap());
        legacy.outdate();
        legacy.end();
        assert!(!legacy.is_outdated());
        legacy.end();
    }

    #[test]
    fn what_was_answered_is_settled_once() {
        let folder = tempfile::tempdir().unwrap();
        let legacy = legacy(folder.path());
        legacy.keep_answered(ANSWERED);
        legacy.settle(|_| 1);
        assert!(!legacy.is_outdated(), "there is no device");
        legacy.begin(false).unwrap();
        legacy.keep_answered(ANSWERED);
        assert!(!legacy.is_outdated());
        legacy.keep_answered(Answered { order: Order(6), ..ANSWERED });
        assert!(legacy.begin(false).unwrap(), "nobody has settled it");
        legacy.settle(|answered| u64::from(answered != ANSWERED));
        legacy.settle(|_| 1);
        assert!(!legacy.is_outdated(), "that was all");
        legacy.keep_answered(ANSWERED);
        legacy.settle(|_| 1);
        assert!(legacy.is_outdated());
    }

    #[test]
    fn what_is_not_understood_says_the_worst() {
        let folder = tempfile::tempdir().unwrap();
        let legacy = legacy(folder.path());
        legacy.begin(true).unwrap();
        // Nothing can be put in its place.
        fs::create_dir(legacy.path.with_extension("new")).unwrap();
        legacy.keep_answered(ANSWERED);
        assert!(legacy.is_outdated());
        fs::remove_dir(legacy.path.with_extension("new")).unwrap();
        for text in ["", "{\"answered\": {\"epoch\": 1}}", "\"later\""] {
            legacy.begin(false).unwrap();
            fs::write(&legacy.path, text).unwrap();
            assert!(legacy.is_outdated(), "{text}");
        }
    }
}
