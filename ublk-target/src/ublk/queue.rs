//! One queue of a device: its thread, and what goes between it and the disk thread.

use bytes::Bytes;
use holdfast::{
    buffer::AlignedBuffer,
    request::{Durability, Operation, Reply, RequestError, Space},
};
use io_uring::{IoUring, opcode, types};
use libublk::{
    BufDesc, UblkError, UblkIORes, UblkUringData,
    io::{BufDescList, UblkDev, UblkIOCtx, UblkQueue, ublk_init_task_ring},
    sys,
};
use nix::{
    libc,
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    cell::RefCell,
    fs::File,
    mem::ManuallyDrop,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

/// What the disk thread said to a request; an error if it has stopped.
pub type Answer = Result<Reply, RequestError>;

/// A request of a queue, and where its answer goes.
pub struct QueueRequest {
    /// What to do.
    pub operation: Operation,
    tag: u16,
    replies: Arc<Replies>,
}

impl QueueRequest {
    /// What to do, and who waits for the answer.
    pub fn split(self) -> (Operation, Asker) {
        (self.operation, Asker { tag: self.tag, replies: self.replies })
    }
}

/// Who waits for an answer.
pub struct Asker {
    tag: u16,
    replies: Arc<Replies>,
}

impl Asker {
    /// Puts the answer down. If it is the first one there, the queue's thread must be woken with what is returned; one call will
    /// do for all answers until then.
    pub fn answer(self, answer: Answer) -> Option<Sleeper> {
        self.replies.put(self.tag, answer).then_some(Sleeper(self.replies))
    }
}

/// A queue's thread that has answers to take.
pub struct Sleeper(Arc<Replies>);

impl Sleeper {
    /// Wakes it.
    pub fn wake(self) {
        // A counter that is full is readable already.
        let _ = self.0.event.write(1);
    }
}

/// Answers on their way to a queue's thread.
pub(super) struct Replies {
    waiting: Mutex<Vec<(u16, Answer)>>,
    event: EventFd,
}

impl Replies {
    pub(super) fn new() -> nix::Result<Arc<Self>> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Self { waiting: Mutex::default(), event }))
    }

    /// `true` if it is the only one.
    fn put(&self, tag: u16, answer: Answer) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push((tag, answer));
        waiting.len() == 1
    }

    fn take(&self) -> Vec<(u16, Answer)> {
        let _ = self.event.read();
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves a queue until its device is stopped.
pub(super) fn serve(index: u16, device: &UblkDev, requests: &UnboundedSender<QueueRequest>, replies: &Arc<Replies>) {
    if let Err(error) = run(index, device, requests, replies) {
        error!(device = device.dev_info.dev_id, queue = index, %error, "ublk queue not served");
    }
}

fn run(
    index: u16,
    device: &UblkDev,
    requests: &UnboundedSender<QueueRequest>,
    replies: &Arc<Replies>,
) -> Result<(), UblkError> {
    let depth = u32::from(device.dev_info.queue_depth);
    // libublk would make a ring without these two: nobody else submits to it, and completions wait for their reader.
    ublk_init_task_ring(|cell| {
        let ring = IoUring::builder()
            .setup_cqsize(2 * depth + 2)
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(depth + 1)?;
        cell.set(RefCell::new(ring)).map_err(|_| UblkError::OtherError(-libc::EEXIST))
    })?;
    let queue = UblkQueue::new(index, device)?.submit_fetch_commands_unified(BufDescList::Slices(None))?;
    await_replies(&queue, replies)?;
    let data = Data::of(device, index);
    queue.wait_and_handle_io(|queue, tag, event| {
        if event.is_tgt_io() {
            for (tag, answer) in replies.take() {
                let result = data.answer(queue.get_iod(tag), tag, answer);
                complete(queue, tag, result);
            }
            // Only a ring that is broken refuses; then no request comes either.
            let _ = await_replies(queue, replies);
            return;
        }
        match data.operation(queue.get_iod(tag), tag) {
            Ok(operation) => {
                let request = QueueRequest { operation, tag, replies: replies.clone() };
                // Nobody is there: the daemon is going down, and the next one gets the request again.
                let _ = requests.send(request);
            }
            Err(errno) => complete(queue, tag, -errno),
        }
    });
    Ok(())
}

fn await_replies(queue: &UblkQueue<'_>, replies: &Replies) -> Result<(), UblkError> {
    let poll = opcode::PollAdd::new(types::Fd(replies.event.as_raw_fd()), libc::POLLIN as u32).build();
    queue.ublk_submit_sqe_sync(poll.user_data(UblkUringData::Target as u64))
}

fn complete(queue: &UblkQueue<'_>, tag: u16, result: i32) {
    if let Err(error) = queue.complete_io_cmd_unified(tag, BufDesc::Slice(&[]), Ok(UblkIORes::Result(result))) {
        error!(tag, %error, "ublk request not completed");
    }
}

/// The requests' data, which the kernel shows as a file.
struct Data {
    file: ManuallyDrop<File>,
    queue: u16,
}

impl Data {
    fn of(device: &UblkDev, queue: u16) -> Self {
        // SAFETY: the descriptor belongs to `device`, which outlives the queue's thread; ManuallyDrop never closes it.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(device.tgt.fds[0]) });
        Self { file, queue }
    }

    /// A request in the core's words; an errno if there is no such request.
    fn operation(&self, request: &sys::ublksrv_io_desc, tag: u16) -> Result<Operation, i32> {
        let offset = request.start_sector << 9;
        let size = u64::from(request.nr_sectors) << 9;
        let durable = request.op_flags & sys::UBLK_IO_F_FUA != 0;
        let durability = if durable { Durability::Durable } else { Durability::Completed };
        match request.op_flags & 0xff {
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
                let keep = request.op_flags & sys::UBLK_IO_F_NOUNMAP != 0;
                let space = if keep { Space::Keep } else { Space::Release };
                Ok(Operation::WriteZeroes { offset, size, space, durability })
            }
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    /// The kernel's word for an answer: how many bytes, or which error.
    fn answer(&self, request: &sys::ublksrv_io_desc, tag: u16, answer: Answer) -> i32 {
        match answer {
            Ok(Reply::Done) if request.op_flags & 0xff == sys::UBLK_IO_OP_WRITE => (request.nr_sectors << 9) as i32,
            Ok(Reply::Done | Reply::Extents(_)) => 0,
            Ok(Reply::Data(pieces)) => self.give(tag, &pieces),
            Err(RequestError::Invalid) => -libc::EINVAL,
            Err(RequestError::NoSpace) => -libc::ENOSPC,
            Err(RequestError::Io | RequestError::NotPrimary | RequestError::Stopped) => -libc::EIO,
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
        UblkIOCtx::ublk_user_copy_pos(self.queue, tag, 0)
    }
}
