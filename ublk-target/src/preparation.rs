//! Writes the space of a new journal once, before the journal comes to it.
//!
//! Space that a file was given but that nobody has written reads as zeroes: the file system notes for each part of it whether it was
//! written, and a sync waits until the notes of what it covers are durable too. On ext4 with its usual journal a write and a sync of it
//! take three times as long as in space that was written before. So a file of our own is written with zeroes, in the background and in
//! small pieces, from one end to the other, but nowhere where the group has written.

use holdfast::buffer::AlignedBuffer;
use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::{Rc, Weak},
};
use tokio::sync::Notify;
use tokio_uring::fs::File;

/// What is written at once: little, as a request of the host may wait for it.
const PIECE_SIZE: u64 = 256 << 10;

/// See the module.
#[derive(Default)]
pub struct Preparation {
    /// What is still to be written.
    left: RefCell<Range<u64>>,
    /// What is being written.
    piece: RefCell<Option<Range<u64>>>,
    piece_ended: Notify,
    is_running: Cell<bool>,
}

impl Preparation {
    /// Writes `range` too, but nothing before what somebody has written through [`Preparation::give_way`], for as long as somebody
    /// else has the file open. Must be called inside a tokio-uring runtime.
    pub fn add(self: &Rc<Self>, file: &Rc<File>, range: Range<u64>) {
        let mut left = self.left.borrow_mut();
        // Its start goes forwards only, whoever asks: whatever lies before it may have been written.
        *left =
            if left.is_empty() { left.start.max(range.start)..range.end } else { left.start..left.end.max(range.end) };
        if !self.is_running.replace(true) {
            tokio_uring::spawn(self.clone().run(Rc::downgrade(file)));
        }
    }

    /// Bytes that are still to be written.
    pub fn left_bytes(&self) -> u64 {
        let left = self.left.borrow();
        // What could not be written is not waited for.
        if self.is_running.get() { left.end.saturating_sub(left.start) } else { 0 }
    }

    async fn run(self: Rc<Self>, file: Weak<File>) {
        let zeroes = AlignedBuffer::new(PIECE_SIZE as usize).freeze();
        while let Some(file) = file.upgrade()
            && let Some(piece) = self.begin_piece()
        {
            let size = (piece.end - piece.start) as usize;
            let written = file.write_all_at(zeroes.slice(..size), piece.start).await.0;
            self.end_piece();
            if written.is_err() {
                // Who needs the space will find out why.
                break;
            }
        }
        self.is_running.set(false);
    }

    fn begin_piece(&self) -> Option<Range<u64>> {
        let mut left = self.left.borrow_mut();
        let piece = left.start..left.end.min(left.start.saturating_add(PIECE_SIZE));
        if piece.is_empty() {
            return None;
        }
        left.start = piece.end;
        *self.piece.borrow_mut() = Some(piece.clone());
        Some(piece)
    }

    fn end_piece(&self) {
        *self.piece.borrow_mut() = None;
        self.piece_ended.notify_waiters();
    }

    /// Somebody is about to write `range`: it is left alone from now on, with what lies before it. Waits for what is on its way there.
    pub async fn give_way(&self, range: Range<u64>) {
        {
            let mut left = self.left.borrow_mut();
            left.start = left.start.max(range.end);
        }
        while self.is_writing(&range) {
            self.piece_ended.notified().await;
        }
    }

    fn is_writing(&self, range: &Range<u64>) -> bool {
        self.piece.borrow().as_ref().is_some_and(|piece| piece.start < range.end && range.start < piece.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{Whence, lseek};
    use std::{
        fs::OpenOptions,
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    fn is_ready(future: &mut (impl Future + Unpin)) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn preparation(range: Range<u64>) -> Preparation {
        Preparation { left: RefCell::new(range), ..Preparation::default() }
    }

    #[test]
    fn who_writes_where_a_piece_is_on_its_way_waits_for_it() {
        let preparation = preparation(0..4 * PIECE_SIZE);
        assert_eq!(preparation.begin_piece(), Some(0..PIECE_SIZE));
        let mut inside = Box::pin(preparation.give_way(4096..8192));
        assert!(!is_ready(&mut inside));
        assert!(is_ready(&mut Box::pin(preparation.give_way(PIECE_SIZE..PIECE_SIZE + 4096))), "behind the piece");
        preparation.end_piece();
        assert!(is_ready(&mut inside));
    }

    #[test]
    fn nothing_is_written_where_somebody_has_written() {
        let preparation = preparation(0..4 * PIECE_SIZE);
        assert!(is_ready(&mut Box::pin(preparation.give_way(4096..PIECE_SIZE + 4096))));
        assert_eq!(preparation.begin_piece(), Some(PIECE_SIZE + 4096..2 * PIECE_SIZE + 4096));
        assert!(is_ready(&mut Box::pin(preparation.give_way(0..4096))), "before it");
        preparation.end_piece();
        assert_eq!(preparation.begin_piece(), Some(2 * PIECE_SIZE + 4096..3 * PIECE_SIZE + 4096));
        preparation.end_piece();
        assert_eq!(preparation.begin_piece(), Some(3 * PIECE_SIZE + 4096..4 * PIECE_SIZE));
        preparation.end_piece();
        assert!(is_ready(&mut Box::pin(preparation.give_way(0..8 * PIECE_SIZE))));
        assert_eq!(preparation.begin_piece(), None);
    }

    #[test]
    fn who_asks_late_gets_nothing_zeroed_that_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = Rc::new(File::from_std(std::fs::File::create_new(folder.path().join("file")).unwrap()));
        tokio_uring::start(async {
            let preparation = Rc::new(preparation(0..0));
            preparation.give_way(0..2 * PIECE_SIZE).await;
            preparation.add(&file, 0..3 * PIECE_SIZE);
            assert_eq!(*preparation.left.borrow(), 2 * PIECE_SIZE..3 * PIECE_SIZE);
            preparation.add(&file, 0..PIECE_SIZE);
            assert_eq!(*preparation.left.borrow(), 2 * PIECE_SIZE..3 * PIECE_SIZE);
        });
    }

    #[test]
    fn all_of_a_file_is_written_also_what_it_gains_later() {
        let folder = tempfile::tempdir().unwrap();
        let (first, size) = (3 * PIECE_SIZE + 4096, 5 * PIECE_SIZE);
        let file = OpenOptions::new().write(true).create_new(true).open(folder.path().join("file")).unwrap();
        file.set_len(size).unwrap();
        let file = Rc::new(File::from_std(file));
        tokio_uring::start(async {
            let preparation = Rc::new(Preparation::default());
            preparation.add(&file, 0..first);
            preparation.add(&file, first..size);
            assert_eq!(preparation.left_bytes(), size);
            while preparation.left_bytes() > 0 {
                tokio_uring::no_op().await.unwrap();
            }
            while preparation.is_running.get() {
                tokio_uring::no_op().await.unwrap();
            }
        });
        let file = OpenOptions::new().read(true).open(folder.path().join("file")).unwrap();
        assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(size as i64));
    }
}
