//! Locks on media: nobody else has a medium as long as this daemon does.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    thread,
    time::{Duration, Instant},
};

/// How often a locked medium is tried.
const STEP: Duration = Duration::from_millis(10);

/// How long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Once: others are served meanwhile and must not wait.
    None,
    /// For a moment: what a killed daemon had in flight keeps its locks for a while after its death.
    Start,
}

/// Who has a medium, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This daemon.
    Own,
    /// Another process.
    Process(u32),
    /// Nobody can tell.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("this daemon itself, for another group or volume; choose another medium"),
            Self::Process(id) => write!(f, "process {id} (another holdfastd?); stop that one first"),
            Self::Unknown => f.write_str("another process, or mounted; stop or unmount that first"),
        }
    }
}

/// Why a medium is not locked.
#[derive(Debug)]
pub enum LockError {
    /// Somebody has it.
    Held(Holder),
    /// It cannot be locked.
    Failed(io::Error),
}

/// Locks `file` for this process alone, until it is closed.
pub fn lock(file: &File, patience: Patience) -> Result<(), LockError> {
    let end = Instant::now() + if patience == Patience::Start { Duration::from_secs(3) } else { Duration::ZERO };
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(STEP),
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(holder(file))),
            Err(TryLockError::Error(error)) => return Err(LockError::Failed(error)),
        }
    }
}

/// Who has `file` locked.
fn holder(file: &File) -> Holder {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let Ok(metadata) = file.metadata() else {
        return Holder::Unknown;
    };
    let (device, inode) = (metadata.dev(), metadata.ino());
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    match find_holder(&locks, &format!("{major:02x}:{minor:02x}:{inode}")) {
        Some(id) if id == std::process::id() => Holder::Own,
        Some(id) => Holder::Process(id),
        None => Holder::Unknown,
    }
}

/// The process that holds a whole-file lock, from the text of /proc/locks (proc_locks(5)).
fn find_holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        // Those who wait for a lock have "->" after the number.
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, _) = (words.next()?, words.next()?, words.next()?);
        let process = words.next()?;
        (kind == "FLOCK" && words.next()? == file).then(|| process.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_the_kernels_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 fe:00:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 fe:00:8 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 44 fe:01:7 0 EOF\n";
        assert_eq!(find_holder(locks, "fe:00:7"), Some(22));
        assert_eq!(find_holder(locks, "fe:00:8"), None);
        assert_eq!(find_holder("2: FLOCK ADVISORY\n\u{0}", "fe:00:7"), None);
    }

    #[test]
    fn a_file_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("medium");
        let (first, second) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        lock(&first, Patience::None).unwrap();
        let Err(LockError::Held(holder)) = lock(&second, Patience::None) else { panic!("locked twice") };
        // Where the kernel's list names files by another device number than stat does, nobody can tell.
        assert!(matches!(holder, Holder::Own | Holder::Unknown), "{holder}");
        drop(first);
        lock(&second, Patience::Start).unwrap();
    }
}
