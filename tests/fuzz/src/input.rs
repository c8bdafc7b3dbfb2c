//! Decisions read from a fuzzer's bytes. Bytes that are used up are zeroes, so every input means something.

/// What is left of an input.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether everything is used up.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Whether the next byte is odd.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// The next bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// So many bytes, as far as there are so many.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// One of so many.
    pub fn pick(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.pick(list.len())]
    }

    /// A number of the kind at which arithmetic breaks: small, near a power of two, near the end, near `base`, or any.
    pub fn number(&mut self, base: u64) -> u64 {
        match self.byte() % 8 {
            0 | 1 => u64::from(self.byte()),
            2 => base.wrapping_add_signed(i64::from(self.byte() as i8)),
            3 => base.wrapping_add(u64::from(self.u16()) << 9),
            4 => 1u64.rotate_left(u32::from(self.byte())).wrapping_sub(u64::from(self.byte() & 1)),
            5 => u64::MAX - u64::from(self.byte()),
            6 => u64::from(self.u16()),
            _ => u64::from_le_bytes(self.array()),
        }
    }
}

/// A copy with so many bytes: zeroes follow, or the rest is left out.
pub fn padded(data: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = data[..data.len().min(size)].to_vec();
    bytes.resize(size, 0);
    bytes
}
