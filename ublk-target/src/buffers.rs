//! Aligned memory that io_uring reads into.

use bytes::Bytes;
use holdfast::buffer::AlignedBuffer;
use tokio_uring::buf::{IoBuf, IoBufMut};

/// An aligned buffer and how much of it is filled.
pub struct Filling {
    buffer: AlignedBuffer,
    size: usize,
    filled: usize,
}

impl Filling {
    /// An empty buffer of `size` bytes.
    pub fn new(size: usize) -> Self {
        Self { buffer: AlignedBuffer::new(size), size, filled: 0 }
    }

    /// How many bytes are filled.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Fills in what has come by another way.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = bytes.len().min(self.size - self.filled);
        self.buffer.as_mut_slice()[self.filled..self.filled + room].copy_from_slice(&bytes[..room]);
        self.filled += room;
    }

    /// The bytes, when the buffer is full.
    pub fn freeze(self) -> Bytes {
        self.buffer.freeze()
    }
}

// SAFETY: the memory belongs to the heap allocation inside AlignedBuffer, which does not move when this value does and
// is not reallocated; all of it is initialised (zeroed at creation).
unsafe impl IoBuf for Filling {
    fn stable_ptr(&self) -> *const u8 {
        self.buffer.as_slice().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.filled
    }

    fn bytes_total(&self) -> usize {
        self.size
    }
}

// SAFETY: as above; io_uring writes at most bytes_total bytes, and set_init is told how many.
unsafe impl IoBufMut for Filling {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buffer.as_mut_slice().as_mut_ptr()
    }

    unsafe fn set_init(&mut self, position: usize) {
        self.filled = self.filled.max(position);
    }
}
