//! Media: files and block devices, locked, read and written with direct I/O.

use crate::{
    buffers::{Filling, drop_front},
    lock::{Holder, LockError, Patience, lock},
    preparation::Preparation,
};
use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    disk::{DiskAction, DiskError, DiskOutcome, MediumId, Storage},
};
use nix::{fcntl::FallocateFlags, libc};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync,
};
use tokio::sync::Mutex;
use tokio_uring::buf::BoundedBuf;

/// A write of at most so many bytes goes through the page cache where that is allowed: a lone request waits for it. A larger one has
/// gathered many requests, and the disk takes it in one piece; a copy of it would cost more than it saves.
const CACHED_SIZE_MAX: usize = 32 << 10;

/// How media are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MediaOptions {
    /// Go through the page cache.
    pub buffered: bool,
    /// Write small batches of journals through the page cache.
    pub cached_journal: bool,
}

/// How a new file gets its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// When it is written.
    Sparse,
    /// At once.
    Full,
}

/// Why a medium cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// It cannot be opened.
    #[error("Cannot open {path}: {source}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system does not do direct I/O.
    #[error("{path}: its file system does not do direct I/O; put it elsewhere, or set buffered = true in [media]")]
    Direct {
        /// The path.
        path: PathBuf,
    },
    /// Somebody has it.
    #[error("{path} is in use by {holder}")]
    InUse {
        /// The path.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// A name below `/dev` that is no device's.
    #[error(
        "There is no device {path}, and a file there would be gone when the machine stops; is it misspelt, or not set up yet?"
    )]
    NoDevice {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be created.
    #[error("Cannot create {path} with {size} bytes: {source}")]
    Create {
        /// The path.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Why.
        source: io::Error,
    },
}

/// An open medium; nobody else has it as long as this lives.
pub struct Medium {
    path: PathBuf,
    file: File,
    ring: Ring,
}

/// A medium's file for operations in flight.
#[derive(Clone)]
pub struct Ring {
    file: Rc<tokio_uring::fs::File>,
    /// The file once more, for what is written through the page cache.
    cached: Option<Rc<File>>,
    preparation: Rc<Preparation>,
    syncs: Rc<Syncs>,
}

/// The syncs of a medium, one after the other. The kernel tells once that cached data could not be written: to whoever syncs first.
/// So after one that has failed none succeeds any more until the medium is opened again.
#[derive(Default)]
struct Syncs(Mutex<bool>);

impl Syncs {
    async fn carry_out(&self, sync: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        let mut has_failed = self.0.lock().await;
        if *has_failed {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let result = sync.await;
        *has_failed = result.is_err();
        result
    }
}

impl Ring {
    fn new(file: File) -> Self {
        let file = Rc::new(tokio_uring::fs::File::from_std(file));
        Self { file, cached: None, preparation: Rc::default(), syncs: Rc::default() }
    }
}

impl Medium {
    /// Opens and locks a medium that exists.
    pub fn open(path: &Path, options: MediaOptions, patience: Patience) -> Result<Self, MediumError> {
        let direct = if options.buffered { 0 } else { libc::O_DIRECT };
        // A block device that is mounted, or part of something that is, opens for nobody who says O_EXCL.
        let is_device = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        let exclusive = if is_device { libc::O_EXCL } else { 0 };
        let open = OpenOptions::new().read(true).write(true).custom_flags(direct | exclusive).open(path);
        let file = open.map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) if !options.buffered => MediumError::Direct { path: path.into() },
            Some(libc::EBUSY) if is_device => MediumError::InUse { path: path.into(), holder: Holder::Unknown },
            _ => MediumError::Open { path: path.into(), source },
        })?;
        lock(&file, patience).map_err(|error| match error {
            LockError::Held(holder) => MediumError::InUse { path: path.into(), holder },
            LockError::Failed(source) => MediumError::Open { path: path.into(), source },
        })?;
        let error = |source| MediumError::Open { path: path.into(), source };
        let ring = Ring::new(file.try_clone().map_err(error)?);
        Ok(Self { path: path.into(), file, ring })
    }

    /// From now on operations in flight write through the page cache. A write that has ended there outlives the daemon, and only
    /// what is synced outlives the machine, which is all that a journal promises. What is read comes from the disk all the same: after a
    /// sync that has failed the cache may hold what the disk does not.
    pub fn write_through_cache(&mut self) -> Result<(), MediumError> {
        let error = |source| MediumError::Open { path: self.path.clone(), source };
        let file = self.open_again().map_err(error)?;
        self.ring.cached = Some(Rc::new(file));
        Ok(())
    }

    /// Writes a part that nobody has written yet, in the background: [`crate::preparation`].
    pub fn prepare(&self, range: Range<u64>) {
        self.ring.preparation.add(&self.ring.file, range);
    }

    /// Bytes of that which are still to be written.
    pub fn unprepared_bytes(&self) -> u64 {
        self.ring.preparation.left_bytes()
    }

    /// Creates a file of `size` bytes and opens it. What exists is only opened.
    pub fn create(path: &Path, size: u64, allocation: Allocation, options: MediaOptions) -> Result<Self, MediumError> {
        let error = |source| MediumError::Create { path: path.into(), size, source };
        if path.exists() {
            return Self::open(path, options, Patience::None);
        }
        if is_among_devices(path) {
            return Err(MediumError::NoDevice { path: path.into() });
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
        if let Err(source) = allocate(&file, size, allocation) {
            // A file that is too short must not be found later.
            let _ = fs::remove_file(path);
            return Err(error(source));
        }
        drop(file);
        Self::open(path, options, Patience::None).inspect_err(|_| {
            let _ = fs::remove_file(path);
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, opened once more. Not a second descriptor for what is open: the kernel tells an error in writing what was
    /// cached once to each that has opened the file, and only the journal's own sync may be the one that hears of it.
    pub fn open_again(&self) -> io::Result<File> {
        // By the descriptor's path: what is locked is what is opened.
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        OpenOptions::new().read(true).write(true).open(link)
    }

    /// Its size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// The file for operations in flight.
    pub fn ring(&self) -> Ring {
        self.ring.clone()
    }
}

/// Whether a file would be where the kernel keeps its devices, which is in memory.
fn is_among_devices(path: &Path) -> bool {
    let devices = Path::new("/dev");
    let system = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.dev());
    let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
    // Another file system may be mounted below it.
    folder.is_some_and(|folder| folder.starts_with(devices) && system(&folder) == system(devices))
}

fn allocate(file: &File, size: u64, allocation: Allocation) -> io::Result<()> {
    match allocation {
        Allocation::Sparse => file.set_len(size),
        Allocation::Full => Ok(nix::fcntl::fallocate(file, FallocateFlags::empty(), 0, size as i64)?),
    }
}

/// Makes a medium at least so large if it is a file, durably; its size then. Blocks.
///
/// # Errors
/// When there is no room.
pub fn enlarge(mut file: &File, size: u64, allocation: Allocation) -> io::Result<u64> {
    // One at a time: another one for the same file could make it larger after this has looked, and it would be cut off again.
    static ENLARGING: sync::Mutex<()> = sync::Mutex::new(());
    let _enlarging = ENLARGING.lock().unwrap_or_else(sync::PoisonError::into_inner);
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() < size {
        allocate(file, size, allocation)?;
        file.sync_all()?;
    }
    file.seek(SeekFrom::End(0))
}

fn size_of_all(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

/// Carries out one operation.
pub async fn carry_out(ring: Ring, action: DiskAction) -> DiskOutcome {
    let file = &ring.file;
    match action {
        DiskAction::Read { offset, size } => read(file, offset, size).await,
        DiskAction::Write { offset, pieces } => {
            let expected = size_of_all(&pieces);
            ring.preparation.give_way(offset..offset + expected as u64).await;
            if let Some(cached) = ring.cached.filter(|_| expected <= CACHED_SIZE_MAX) {
                return write_cached(&cached, &pieces, offset).map_err(|error| disk_error(&error));
            }
            let result = match <[Bytes; 1]>::try_from(pieces) {
                Ok([piece]) => file.write_all_at(piece, offset).await.0.map(|()| expected),
                Err(pieces) => write_pieces(file, pieces, offset).await,
            };
            match result {
                Ok(moved) if moved == expected => Ok(Bytes::new()),
                Ok(moved) => Err(DiskError::Short { moved: moved as u32, expected: expected as u32 }),
                Err(error) => Err(disk_error(&error)),
            }
        }
        DiskAction::Sync => {
            let synced = ring.syncs.carry_out(file.sync_data()).await;
            synced.map(|()| Bytes::new()).map_err(|error| disk_error(&error))
        }
        DiskAction::Release { offset, size } => {
            let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // A hint: a medium that cannot do it keeps the bytes.
            let _ = file.fallocate(offset, size, flags).await;
            Ok(Bytes::new())
        }
    }
}

/// Writes into the page cache at once: a few microseconds of copying, where a ring would wake another thread to do it, as few file
/// systems write through the cache without waiting. That thread would wait no less when the kernel holds back who writes much.
fn write_cached(file: &File, pieces: &[Bytes], mut offset: u64) -> io::Result<Bytes> {
    for piece in pieces {
        file.write_all_at(piece, offset)?;
        offset += piece.len() as u64;
    }
    Ok(Bytes::new())
}

/// Writes all pieces, one behind the other; less only if the kernel takes no more. The library's own way of doing this panics when a
/// write is short, as the last one before a file system is full is.
async fn write_pieces(file: &tokio_uring::fs::File, mut pieces: Vec<Bytes>, offset: u64) -> io::Result<usize> {
    let mut written = 0;
    loop {
        let (result, tried) = file.writev_at(pieces, offset + written as u64).await;
        let moved = result?;
        written += moved;
        pieces = tried;
        drop_front(&mut pieces, moved);
        if moved == 0 || pieces.is_empty() {
            return Ok(written);
        }
    }
}

async fn read(file: &tokio_uring::fs::File, offset: u64, size: u32) -> DiskOutcome {
    let mut filling = Filling::new(size as usize);
    while filling.filled() < size as usize {
        let from = filling.filled();
        let (result, slice) = file.read_at(filling.slice(from..), offset + from as u64).await;
        filling = slice.into_inner();
        match result {
            Ok(0) => {
                return Err(DiskError::Short { moved: from as u32, expected: size });
            }
            Ok(_) => {}
            Err(error) => return Err(disk_error(&error)),
        }
    }
    Ok(filling.freeze())
}

/// The core's word for an error.
pub fn disk_error(error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::NoSpace,
        errno => DiskError::Failed { errno: errno.unwrap_or(libc::EIO) },
    }
}

/// The media of a group.
#[derive(Default)]
pub struct GroupMedia(pub BTreeMap<MediumId, Medium>);

impl GroupMedia {
    /// Takes a journal.
    ///
    /// # Errors
    /// When it cannot be opened once more for what goes through the page cache.
    pub fn insert_journal(&mut self, mut journal: Medium, options: MediaOptions) -> Result<(), MediumError> {
        if options.cached_journal {
            journal.write_through_cache()?;
        }
        self.0.insert(MediumId::Journal, journal);
        Ok(())
    }

    fn medium(&self, id: MediumId) -> Result<&Medium, DiskError> {
        self.0.get(&id).ok_or(DiskError::Failed { errno: libc::ENODEV })
    }
}

impl Storage for GroupMedia {
    fn size(&mut self, medium: MediumId) -> Result<u64, DiskError> {
        self.medium(medium)?.size().map_err(|error| disk_error(&error))
    }

    fn read(&mut self, medium: MediumId, offset: u64, size: u32) -> Result<Bytes, DiskError> {
        let mut buffer = AlignedBuffer::new(size as usize);
        let read = self.medium(medium)?.file.read_exact_at(buffer.as_mut_slice(), offset);
        read.map_err(|error| disk_error(&error))?;
        Ok(buffer.freeze())
    }

    fn write(&mut self, medium: MediumId, offset: u64, data: Bytes) -> Result<(), DiskError> {
        self.medium(medium)?.file.write_all_at(&data, offset).map_err(|error| disk_error(&error))
    }

    fn sync(&mut self, medium: MediumId) -> Result<(), DiskError> {
        self.medium(medium)?.file.sync_data().map_err(|error| disk_error(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::fd::OwnedFd};

    #[test]
    fn no_file_is_made_where_a_device_should_be() {
        let path = Path::new("/dev/holdfast-there-is-no-such-device");
        let made = Medium::create(path, 1 << 20, Allocation::Sparse, MediaOptions::default());
        assert!(matches!(made, Err(MediumError::NoDevice { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn what_a_short_write_has_left_is_written_too() {
        // A pipe holds 64 KiB, so that a write of more is short, in the midst of a piece.
        let (mut reader, writer) = io::pipe().unwrap();
        let pieces: Vec<Bytes> = (1..=9).map(|byte| Bytes::from(vec![byte; 30_001])).collect();
        let expected = pieces.concat();
        let reads = std::thread::spawn(move || {
            let mut found = Vec::new();
            reader.read_to_end(&mut found).map(|_| found)
        });
        let outcome = tokio_uring::start(async move {
            let ring = Ring::new(File::from(OwnedFd::from(writer)));
            carry_out(ring, DiskAction::Write { offset: 0, pieces }).await
        });
        assert_eq!(outcome, Ok(Bytes::new()));
        assert!(reads.join().unwrap().unwrap() == expected, "other bytes have arrived");
    }

    #[test]
    fn no_resize_takes_back_what_another_has_made() {
        for _ in 0..200 {
            let file = tempfile::tempfile().unwrap();
            let begin = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for size in [1 << 20, 2 << 20] {
                    let (file, begin) = (&file, &begin);
                    scope.spawn(move || {
                        begin.wait();
                        assert!(enlarge(file, size, Allocation::Sparse).unwrap() >= size);
                    });
                }
            });
            assert_eq!(file.metadata().unwrap().len(), 2 << 20);
        }
    }

    #[test]
    fn after_a_sync_that_failed_none_succeeds() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let syncs = Syncs::default();
            assert!(syncs.carry_out(async { Ok(()) }).await.is_ok());
            // The second is asked for while the first is under way, and the kernel has nothing to complain about any more.
            let (fails, begun) = tokio::sync::oneshot::channel::<()>();
            let first = syncs.carry_out(async {
                begun.await.unwrap();
                Err(io::Error::from_raw_os_error(libc::EIO))
            });
            let second = syncs.carry_out(async { Ok(()) });
            let begin = async { fails.send(()).unwrap() };
            let (first, second, ()) = tokio::join!(first, second, begin);
            assert!(first.is_err() && second.is_err());
            assert!(syncs.carry_out(async { Ok(()) }).await.is_err());
        });
    }

    #[test]
    fn what_goes_through_the_cache_and_what_does_not_is_one_medium() {
        let folder = tempfile::tempdir().unwrap();
        let options = MediaOptions { buffered: false, cached_journal: true };
        tokio_uring::start(async move {
            let path = folder.path().join("journal");
            let mut media = GroupMedia::default();
            let journal = Medium::create(&path, 1 << 20, Allocation::Full, options).unwrap();
            media.insert_journal(journal, options).unwrap();
            let ring = media.0[&MediumId::Journal].ring();
            let write = |offset, byte: u8, size| {
                let mut piece = AlignedBuffer::new(size);
                piece.as_mut_slice().fill(byte);
                carry_out(ring.clone(), DiskAction::Write { offset, pieces: vec![piece.freeze()] })
            };
            // Small and large ones, over each other.
            for (offset, byte, size) in [(0, 1, 8 << 10), (4 << 10, 2, 256 << 10), (8 << 10, 3, 4 << 10)] {
                assert_eq!(write(offset, byte, size).await, Ok(Bytes::new()));
            }
            assert_eq!(carry_out(ring.clone(), DiskAction::Sync).await, Ok(Bytes::new()));
            let read = carry_out(ring.clone(), DiskAction::Read { offset: 0, size: 16 << 10 }).await.unwrap();
            let pages: Vec<u8> = read.chunks(4 << 10).map(|page| page[0]).collect();
            assert_eq!(pages, [1, 2, 3, 2]);
            // As somebody reads it who opens it anew.
            drop(media);
            let mut found = vec![0; 16 << 10];
            File::open(path).unwrap().read_exact_at(&mut found, 0).unwrap();
            assert!(found == read);
        });
    }
}
