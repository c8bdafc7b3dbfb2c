//! What a connection has to say, in order: small replies side by side in one buffer, large data as it lies in memory.

use super::room::Taken;
use crate::buffers::drop_front;
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
};
use tokio::sync::Notify;

/// Data of at least so many bytes is written from where it is; less is copied beside its header.
const LENT_SIZE_MIN: usize = 16 << 10;
/// More pieces are not lent at once, as a small one may keep all of a large buffer in memory.
const LENT_COUNT_MAX: usize = 32;
/// What is kept for the next replies; a large answer must not keep its memory for ever.
const KEPT_SIZE_MAX: usize = 1 << 20;
/// One call of the kernel takes no more pieces (IOV_MAX).
const PIECE_COUNT_MAX: usize = 1024;

/// Where replies go.
pub trait Sink {
    /// Writes all of a buffer, and gives it back.
    fn write_all(&self, bytes: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)>;
    /// Writes some of the pieces, at most [`PIECE_COUNT_MAX`]; how many bytes.
    fn write_some(&self, pieces: Vec<Bytes>) -> impl Future<Output = (io::Result<usize>, Vec<Bytes>)>;
}

/// Replies that are not written yet.
#[derive(Default)]
pub struct Replies {
    pieces: Vec<Bytes>,
    /// Behind the pieces.
    open: Vec<u8>,
    size: usize,
    /// Is given back when they are written.
    memory: Vec<Taken>,
}

impl Replies {
    /// Adds what `reply` puts at the end of the buffer.
    pub fn put(&mut self, reply: impl FnOnce(&mut Vec<u8>)) {
        let before = self.open.len();
        reply(&mut self.open);
        self.size += self.open.len() - before;
    }

    /// Adds data.
    pub fn lend(&mut self, data: Bytes) {
        self.size += data.len();
        if data.len() < LENT_SIZE_MIN || self.pieces.len() >= LENT_COUNT_MAX {
            return self.open.extend_from_slice(&data);
        }
        self.close();
        self.pieces.push(data);
    }

    /// Keeps the memory of a request as long as its reply.
    pub fn keep(&mut self, memory: Taken) {
        self.memory.push(memory);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.pieces.push(std::mem::take(&mut self.open).into());
        }
    }
}

/// Replies, and who waits for them.
#[derive(Default)]
pub struct Outbox {
    replies: RefCell<Replies>,
    ready: Notify,
    closed: Cell<bool>,
}

impl Outbox {
    /// Adds a reply, unless nothing can be written any more.
    pub fn add(&self, reply: impl FnOnce(&mut Replies)) {
        if self.is_closed() {
            return;
        }
        reply(&mut self.replies.borrow_mut());
        self.ready.notify_one();
    }

    /// Whether nothing is written any more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Nothing more will be added.
    pub fn close(&self) {
        self.closed.set(true);
        self.ready.notify_one();
    }

    /// Writes what is added until it is closed.
    ///
    /// # Errors
    /// When the sink takes nothing more; nothing is kept then.
    pub async fn write_to(&self, sink: &impl Sink) -> io::Result<()> {
        let mut spare = Vec::new();
        loop {
            let replies = std::mem::replace(
                &mut *self.replies.borrow_mut(),
                Replies { open: std::mem::take(&mut spare), ..Replies::default() },
            );
            if replies.size == 0 {
                spare = replies.open;
                if self.closed.get() {
                    return Ok(());
                }
                self.ready.notified().await;
                continue;
            }
            let written = write(sink, replies, &mut spare).await;
            if written.is_err() {
                self.closed.set(true);
                self.replies.take();
                return written;
            }
        }
    }
}

async fn write(sink: &impl Sink, mut replies: Replies, spare: &mut Vec<u8>) -> io::Result<()> {
    if replies.pieces.is_empty() {
        let (result, mut bytes) = sink.write_all(replies.open).await;
        if bytes.capacity() <= KEPT_SIZE_MAX {
            bytes.clear();
            *spare = bytes;
        }
        return result;
    }
    replies.close();
    let mut later = replies.pieces;
    let mut now = Vec::new();
    loop {
        if now.is_empty() {
            let rest = later.split_off(later.len().min(PIECE_COUNT_MAX));
            now = std::mem::replace(&mut later, rest);
            if now.is_empty() {
                return Ok(());
            }
        }
        let (result, tried) = sink.write_some(now).await;
        now = tried;
        match result? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            moved => drop_front(&mut now, moved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time.
    #[derive(Default)]
    struct Slow(RefCell<Vec<u8>>);

    impl Sink for Slow {
        async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
            self.0.borrow_mut().extend_from_slice(&bytes);
            (Ok(()), bytes)
        }

        async fn write_some(&self, pieces: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
            assert!(pieces.len() <= PIECE_COUNT_MAX);
            let all = pieces.concat();
            let taken = all.len().min(50_001);
            self.0.borrow_mut().extend_from_slice(&all[..taken]);
            (Ok(taken), pieces)
        }
    }

    /// Takes nothing.
    struct Broken;

    impl Sink for Broken {
        async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
            (Err(io::ErrorKind::BrokenPipe.into()), bytes)
        }

        async fn write_some(&self, pieces: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
            (Err(io::ErrorKind::BrokenPipe.into()), pieces)
        }
    }

    #[tokio::test]
    async fn what_nobody_takes_is_not_kept() {
        let outbox = Outbox::default();
        let fill = |replies: &mut Replies| (0..4).for_each(|_| replies.lend(Bytes::from(vec![0; 1 << 20])));
        outbox.add(fill);
        assert!(outbox.write_to(&Broken).await.is_err());
        (0..100).for_each(|_| outbox.add(fill));
        assert!(outbox.is_closed() && outbox.replies.borrow().size == 0, "replies pile up");
    }

    #[tokio::test]
    async fn replies_are_written_in_their_order_whatever_their_size() {
        let (outbox, sink, mut expected) = (Outbox::default(), Slow::default(), Vec::new());
        for index in 0..3000_u32 {
            let size = if index % 2 == 0 { LENT_SIZE_MIN } else { 5 };
            let data = Bytes::from(vec![index as u8; size]);
            outbox.add(|replies| {
                replies.put(|bytes| bytes.extend_from_slice(&index.to_be_bytes()));
                replies.lend(data.clone());
            });
            expected.extend_from_slice(&index.to_be_bytes());
            expected.extend_from_slice(&data);
        }
        outbox.close();
        outbox.write_to(&sink).await.unwrap();
        assert!(*sink.0.borrow() == expected);
    }
}
