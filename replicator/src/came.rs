//! How much of what a peer sends over a link comes.

/// What came of the datagrams that a peer has counted over a link. The counts may begin anywhere and wrap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Came {
    /// The first and the highest number.
    pub numbers: Option<(u32, u32)>,
    pub received: u32,
}

impl Came {
    /// One came with this number.
    pub fn take(&mut self, sequence: u32) {
        self.received = self.received.wrapping_add(1);
        let (first, highest) = self.numbers.unwrap_or((sequence, sequence));
        let is_later = sequence.wrapping_sub(highest) < u32::MAX / 2;
        self.numbers = Some((first, if is_later { sequence } else { highest }));
    }

    /// Those that did not come, or have not yet.
    pub fn lost(&self) -> u32 {
        let Some((first, highest)) = self.numbers else { return 0 };
        let lost = highest.wrapping_sub(first).wrapping_add(1).wrapping_sub(self.received);
        // More came than were counted: the first was overtaken, or some came twice.
        if lost > u32::MAX / 2 { 0 } else { lost }
    }
}
