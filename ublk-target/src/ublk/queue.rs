//! One queue of a device, served on the disk thread by a ring of its own: the engine answers where a request comes in, and
//! nothing goes from thread to thread.
//!
//! The kernel's side (see its Documentation/block/ublk.rst): a command per tag waits in the kernel until a request with that tag
//! comes; the next command of the tag carries the answer, and waits again. What a request is stands in memory that the kernel
//! shares; its data is read and written as the device's file.

use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    request::{Durability, Operation, Reply, RequestError, Space},
};
use io_uring::{IoUring, opcode, types};
use libublk::{io::UblkIOCtx, sys};
use nix::{
    libc,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};
use std::{
    cell::{Cell, RefCell},
    ffi::c_void,
    fs::File,
    io,
    mem::ManuallyDrop,
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    ptr::NonNull,
    rc::Rc,
    sync::mpsc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};
use tracing::error;

/// What the engine said to a request; an error if it has stopped.
pub type Answer = Result<Reply, RequestError>;

/// A queue that waits to be served.
pub struct NewQueue {
    /// The device's file.
    pub(super) file: File,
    pub(super) index: u16,
    pub(super) depth: u16,
    /// Is told when it is served, or why not.
    pub(super) told: mpsc::Sender<io::Result<()>>,
}

/// A queue that is served.
pub struct Queue {
    /// Tells when the ring has something.
    watch: AsyncFd<OwnedFd>,
    ring: ManuallyDrop<RefCell<IoUring>>,
    requests: Requests,
    file: File,
    index: u16,
    depth: u16,
    /// Commands that wait in the kernel, and requests that wait for their answers.
    waiting: Cell<u32>,
    asked: Cell<u32>,
    answered: Notify,
    told: mpsc::Sender<io::Result<()>>,
}

/// A request that is not answered yet.
pub struct Asker {
    queue: Rc<Queue>,
    tag: u16,
}

impl Asker {
    /// Gives the kernel the answer, together with others of the same turn.
    pub fn answer(self, answer: Answer) {
        let result = self.queue.result(self.tag, answer);
        self.queue.complete(self.tag, result);
    }
}

impl Queue {
    /// Prepares to serve a queue on this thread, within a tokio runtime. `None` if there are not enough descriptors or memory for
    /// the ring; whoever made the queue is told.
    pub fn new(new: NewQueue) -> Option<Rc<Self>> {
        let told = new.told.clone();
        // A device whose maker is gone is stopped.
        Self::open(new).map_err(|error| told.send(Err(error))).ok()
    }

    fn open(new: NewQueue) -> io::Result<Rc<Self>> {
        let depth = u32::from(new.depth);
        // Nobody else submits to it, and it need not interrupt. Deferred task work is not for a ring that is polled: who sleeps
        // in epoll is not always told of it.
        let ring =
            IoUring::builder().setup_cqsize(2 * depth).setup_coop_taskrun().setup_single_issuer().build(depth)?;
        // SAFETY: the ring is open.
        let watched = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: it owns its descriptor until it is dropped itself, and always names the same one.
        let watch = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?;
        Ok(Rc::new(Self {
            watch,
            ring: ManuallyDrop::new(RefCell::new(ring)),
            requests: Requests::of(&new.file, new.index, new.depth)?,
            file: new.file,
            index: new.index,
            depth: new.depth,
            waiting: Cell::new(0),
            asked: Cell::new(0),
            answered: Notify::new(),
            told: new.told,
        }))
    }

    /// Serves it until the device is stopped: hands each request to `ask`.
    pub async fn serve(self: Rc<Self>, ask: impl Fn(Operation, Asker)) {
        (0..self.depth).for_each(|tag| self.command(sys::UBLK_U_IO_FETCH_REQ, tag, 0));
        // The device is not started before all of them wait; until then nothing comes.
        let begun = self.turn(&ask);
        let refused = || io::Error::other("the driver refuses a command");
        let all = begun.and_then(|()| (self.waiting.get() == u32::from(self.depth)).then_some(()).ok_or_else(refused));
        let is_served = all.is_ok();
        // A maker that is gone stops the device.
        let _ = self.told.send(all);
        if !is_served {
            return;
        }
        while self.waiting.get() > 0 || self.asked.get() > 0 {
            tokio::select! {
                biased;
                () = self.answered.notified() => {}
                ready = self.watch.readable() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(error) => return error!(queue = self.index, %error, "ublk queue not served"),
                },
            }
            if let Err(error) = self.turn(&ask) {
                return error!(queue = self.index, %error, "ublk queue not served");
            }
        }
    }

    /// Submits answers and takes the requests that have come.
    fn turn(self: &Rc<Self>, ask: &impl Fn(Operation, Asker)) -> io::Result<()> {
        if !self.ring.borrow_mut().submission().is_empty() {
            let submitted = self.ring.borrow().submit();
            let is_short =
                |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR));
            if let Err(error) = submitted
                && !is_short(&error)
            {
                return Err(error);
            }
            // The kernel is short of something for the moment: what is left is submitted next time.
            if !self.ring.borrow_mut().submission().is_empty() {
                self.answered.notify_one();
            }
        }
        loop {
            let Some(entry) = self.ring.borrow_mut().completion().next() else {
                return Ok(());
            };
            let tag = entry.user_data() as u16;
            self.waiting.set(self.waiting.get() - 1);
            // Anything else: the device is being stopped, and the command has come back.
            if entry.result() == sys::UBLK_IO_RES_OK as i32 {
                self.asked.set(self.asked.get() + 1);
                match self.operation(tag) {
                    Ok(operation) => ask(operation, Asker { queue: self.clone(), tag }),
                    Err(errno) => self.complete(tag, -errno),
                }
            }
        }
    }

    fn complete(&self, tag: u16, result: i32) {
        self.asked.set(self.asked.get() - 1);
        self.command(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result);
        self.answered.notify_one();
    }

    /// Lines a command up for the next turn.
    fn command(&self, command: u32, tag: u16, result: i32) {
        let mut payload = [0; 16];
        payload[0..2].copy_from_slice(&self.index.to_ne_bytes());
        payload[2..4].copy_from_slice(&tag.to_ne_bytes());
        payload[4..8].copy_from_slice(&result.to_ne_bytes());
        let file = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd16::new(file, command).cmd(payload).build().user_data(tag.into());
        // SAFETY: the command has no memory but the entry's own, and its file lives as long as the ring.
        let pushed = unsafe { self.ring.borrow_mut().submission().push(&entry) };
        // It has room for a command of every tag.
        if pushed.is_err() {
            return error!(queue = self.index, tag, "ublk command not submitted");
        }
        self.waiting.set(self.waiting.get() + 1);
    }

    /// A request in the core's words; an errno if there is no such request.
    fn operation(&self, tag: u16) -> Result<Operation, i32> {
        let request = self.requests.get(tag);
        let offset = request.start_sector << 9;
        let size = u64::from(request.sector_count) << 9;
        let durable = request.flags & sys::UBLK_IO_F_FUA != 0;
        let durability = if durable { Durability::Durable } else { Durability::Completed };
        match request.flags & 0xff {
            sys::UBLK_IO_OP_READ => Ok(Operation::Read { offset, size: size as u32 }),
            sys::UBLK_IO_OP_WRITE => {
                let mut buffer = AlignedBuffer::new(size as usize);
                let read = self.file.read_exact_at(buffer.as_mut_slice(), self.position(tag));
                read.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
                Ok(Operation::Write { offset, data: buffer.freeze(), durability })
            }
            sys::UBLK_IO_OP_FLUSH => Ok(Operation::Flush),
            sys::UBLK_IO_OP_DISCARD => Ok(Operation::Discard { offset, size }),
            sys::UBLK_IO_OP_WRITE_ZEROES => {
                let keep = request.flags & sys::UBLK_IO_F_NOUNMAP != 0;
                let space = if keep { Space::Keep } else { Space::Release };
                Ok(Operation::WriteZeroes { offset, size, space, durability })
            }
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    /// The kernel's word for an answer: how many bytes, or which error.
    fn result(&self, tag: u16, answer: Answer) -> i32 {
        let request = self.requests.get(tag);
        match answer {
            Ok(Reply::Done) if request.flags & 0xff == sys::UBLK_IO_OP_WRITE => (request.sector_count << 9) as i32,
            Ok(Reply::Done | Reply::Extents(_)) => 0,
            Ok(Reply::Data(pieces)) => self.give(tag, &pieces),
            Err(RequestError::Invalid) => -libc::EINVAL,
            Err(RequestError::NoSpace) => -libc::ENOSPC,
            Err(RequestError::ReadOnly) => -libc::EPERM,
            Err(
                RequestError::Io
                | RequestError::NotPrimary
                | RequestError::Outdated
                | RequestError::NotKept
                | RequestError::Stopped,
            ) => -libc::EIO,
        }
    }

    fn give(&self, tag: u16, pieces: &[Bytes]) -> i32 {
        let mut given = 0;
        for piece in pieces {
            if let Err(error) = self.file.write_all_at(piece, self.position(tag) + given) {
                return -error.raw_os_error().unwrap_or(libc::EIO);
            }
            given += piece.len() as u64;
        }
        given as i32
    }

    fn position(&self, tag: u16) -> u64 {
        UblkIOCtx::ublk_user_copy_pos(self.index, tag, 0)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A ring is closed by a living thread only when the kernel has given every command back. Drivers before Linux 6.16 look
        // for requests to hold back for the next daemon once, when the ring is closed; one that they then still hand to this thread
        // is never looked for again, and no daemon can take the device over. A thread that has ended is handed nothing: so the
        // end of the process closes the ring.
        if self.waiting.get() == 0 && self.asked.get() == 0 {
            // SAFETY: nobody uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
    }
}

/// What the kernel says of a request: `struct ublksrv_io_desc`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Description {
    flags: u32,
    sector_count: u32,
    start_sector: u64,
    _address: u64,
}

/// The descriptions of a queue's requests, in memory shared with the kernel.
struct Requests {
    memory: NonNull<c_void>,
    size: NonZeroUsize,
    count: u16,
}

impl Requests {
    fn of(file: &File, queue: u16, count: u16) -> io::Result<Self> {
        let page = 4096;
        let size_of = |count: usize| (count * size_of::<Description>()).next_multiple_of(page);
        let size = NonZeroUsize::new(size_of(count.into())).ok_or(io::ErrorKind::InvalidInput)?;
        let place =
            sys::UBLKSRV_CMD_BUF_OFFSET as usize + usize::from(queue) * size_of(sys::UBLK_MAX_QUEUE_DEPTH as usize);
        // SAFETY: a new mapping, which takes no memory's place.
        let memory =
            unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, place as libc::off_t) };
        Ok(Self { memory: memory?, size, count })
    }

    fn get(&self, tag: u16) -> Description {
        assert!(tag < self.count, "the kernel answers only tags that were asked for");
        // SAFETY: it lies within the mapping, which begins at a page and lives as long as this. The kernel does not change it
        // while the request is ours.
        unsafe { self.memory.cast::<Description>().add(tag.into()).read_volatile() }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from it.
        let _ = unsafe { munmap(self.memory, self.size.get()) };
    }
}
