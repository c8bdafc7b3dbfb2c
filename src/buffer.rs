//! Buffers whose memory starts at a page boundary, as direct I/O demands.
//!
//! A buffer is filled once and then frozen into [`Bytes`], which is shared without copying between the journal, the
//! overlay, the stream and the host's reply.

use alloc::{vec, vec::Vec};
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Alignment in bytes of a buffer's address and capacity, and of every disk operation the core asks for.
pub const ALIGNMENT: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

/// Zero-filled memory at a 4,096-byte boundary, until it is frozen owned by one place.
pub struct AlignedBuffer {
    pages: Vec<Page>,
    size: usize,
}

impl AlignedBuffer {
    /// A buffer of `size` bytes, all zero; its capacity is `size` rounded up to [`ALIGNMENT`].
    pub fn new(size: usize) -> Self {
        let count = size.div_ceil(ALIGNMENT);
        Self { pages: vec![Page([0; ALIGNMENT]); count], size }
    }

    /// A copy of `data` in aligned memory.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buffer = Self::new(data.len());
        buffer.as_mut_slice().copy_from_slice(data);
        buffer
    }

    /// The bytes, to fill.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.size]
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.size]
    }

    /// Gives up writing: the bytes can now be shared.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Memory at a 4,096-byte boundary that is filled from its start to its end, and so need not be cleared first.
pub struct AlignedBuilder {
    bytes: Vec<u8>,
    start: usize,
    size: usize,
}

impl AlignedBuilder {
    /// Nothing yet of `size` bytes.
    pub fn new(size: usize) -> Self {
        let mut bytes = Vec::with_capacity(size + ALIGNMENT - 1);
        // What lies before the boundary is passed over.
        let start = (bytes.as_ptr() as usize).wrapping_neg() % ALIGNMENT;
        bytes.resize(start, 0);
        Self { bytes, start, size }
    }

    /// How many bytes there are.
    pub fn filled(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Adds bytes, as many as were announced at most.
    pub fn push(&mut self, bytes: &[u8]) {
        // With more it would move, to where there is no boundary.
        assert!(self.filled() + bytes.len() <= self.size);
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds zeroes until there are `size` bytes.
    pub fn pad_to(&mut self, size: usize) {
        assert!((self.filled()..=self.size).contains(&size));
        self.bytes.resize(self.start + size, 0);
    }

    /// Gives up writing: the bytes can now be shared.
    pub fn freeze(self) -> Bytes {
        Bytes::from(self.bytes).slice(self.start..)
    }
}

/// What [`zeroes`] are.
static ZEROES: [Page; 16] = [const { Page([0; ALIGNMENT]) }; 16];

/// Zeroes at a 4,096-byte boundary, in pieces that share their memory with all others.
pub fn zeroes(size: usize) -> impl Iterator<Item = Bytes> {
    let all = Bytes::from_static(ZEROES.as_bytes());
    (0..size).step_by(all.len()).map(move |at| all.slice(..all.len().min(size - at)))
}

/// Whether bytes can be written with direct I/O where they are.
pub fn is_aligned(data: &[u8]) -> bool {
    (data.as_ptr() as usize).is_multiple_of(ALIGNMENT) && data.len().is_multiple_of(ALIGNMENT)
}

/// `data` itself if it starts at a boundary, else a copy that does.
pub fn aligned(data: Bytes) -> Bytes {
    if (data.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
        return data;
    }
    let mut copy = AlignedBuilder::new(data.len());
    copy.push(&data);
    copy.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_buffer_keeps_its_alignment_and_bytes() {
        let mut buffer = AlignedBuffer::new(5000);
        buffer.as_mut_slice()[4999] = 7;
        let bytes = buffer.freeze();
        assert_eq!((bytes.as_ptr() as usize) % ALIGNMENT, 0);
        assert_eq!((bytes.len(), bytes[4999], bytes[0]), (5000, 7, 0));
        let unaligned = bytes.slice(1..);
        assert_eq!((aligned(unaligned.clone()).as_ptr() as usize) % ALIGNMENT, 0);
        assert_eq!(aligned(unaligned.clone()), unaligned);
    }

    #[test]
    fn what_is_built_lies_at_a_boundary() {
        for size in [1, 4095, 4096, 4097, 140_000] {
            let mut builder = AlignedBuilder::new(size);
            builder.push(&[7]);
            builder.pad_to(size);
            assert_eq!(builder.filled(), size);
            let bytes = builder.freeze();
            assert_eq!((bytes.as_ptr() as usize) % ALIGNMENT, 0);
            assert_eq!((bytes.len(), bytes[0]), (size, 7));
            assert!(bytes[1..].iter().all(|byte| *byte == 0));
            assert_eq!(is_aligned(&bytes), size == 4096);
        }
    }

    #[test]
    fn zeroes_take_no_memory() {
        for size in [0, 1, 4096, 65_536, 65_537, 1 << 20] {
            let pieces: Vec<Bytes> = zeroes(size).collect();
            assert!(pieces.iter().all(|piece| piece.as_ptr() == ZEROES.as_bytes().as_ptr()));
            assert!(pieces.concat() == vec![0; size]);
        }
        assert_eq!(ZEROES.as_ptr() as usize % ALIGNMENT, 0);
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn no_more_is_built_than_was_announced() {
        AlignedBuilder::new(10).push(&[0; 11]);
    }
}
