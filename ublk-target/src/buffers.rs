//! Aligned memory that io_uring reads into.

use bytes::Bytes;
use holdfast::buffer::ALIGNMENT;
use std::mem::MaybeUninit;
use tokio_uring::buf::{IoBuf, IoBufMut};

/// Takes the first `count` bytes, which have been written, away from the pieces.
pub fn drop_front(pieces: &mut Vec<Bytes>, count: usize) {
    let mut left = count;
    pieces.retain_mut(|piece| {
        let done = piece.split_to(left.min(piece.len()));
        left -= done.len();
        !piece.is_empty()
    });
}

#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

/// A buffer that starts at a 4,096-byte boundary, and how much of it is filled. It is not cleared first: whoever reads much would
/// pay for every byte twice.
pub struct Filling {
    memory: Box<[MaybeUninit<Page>]>,
    size: usize,
    filled: usize,
}

impl Filling {
    /// An empty buffer of `size` bytes.
    pub fn new(size: usize) -> Self {
        Self { memory: Box::new_uninit_slice(size.div_ceil(ALIGNMENT)), size, filled: 0 }
    }

    /// How many bytes are filled.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Fills in what has come by another way.
    pub fn push(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(self.size - self.filled);
        // SAFETY: `filled + count` bytes lie within the memory, which nobody else has.
        unsafe {
            let place = self.memory.as_mut_ptr().cast::<u8>().add(self.filled);
            place.copy_from_nonoverlapping(bytes.as_ptr(), count);
        }
        self.filled += count;
    }

    /// The bytes that are filled.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Filling {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes have been written, and lie within the memory.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.filled) }
    }
}

// SAFETY: the memory belongs to the box's heap allocation, which does not move when this value does and is not reallocated;
// `filled` bytes of it are initialised.
unsafe impl IoBuf for Filling {
    fn stable_ptr(&self) -> *const u8 {
        self.memory.as_ptr().cast()
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
        self.memory.as_mut_ptr().cast()
    }

    unsafe fn set_init(&mut self, position: usize) {
        self.filled = self.filled.max(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_filled_in_is_seen() {
        let mut filling = Filling::new(5000);
        filling.push(&[7; 4999]);
        assert_eq!((filling.filled(), filling.as_ref().len()), (4999, 4999));
        filling.push(&[8, 9]);
        let bytes = filling.freeze();
        assert_eq!((bytes.as_ptr() as usize) % ALIGNMENT, 0);
        assert_eq!((bytes.len(), &bytes[4998..]), (5000, &[7, 8][..]));
    }
}
