//! Which pages a checkpoint has to write: they are encoded one after the other while it is running, and one that changes before
//! its turn is put aside as it was.

use alloc::collections::{BTreeMap, BTreeSet};

/// Pages that changed. `P` is what a page holds.
pub struct Changes<P> {
    /// Since the last checkpoint began.
    changed: BTreeSet<u32>,
    /// What the running checkpoint has to write as it is.
    due: BTreeSet<u32>,
    /// What the running checkpoint has to write as it was.
    before: BTreeMap<u32, P>,
}

impl<P> Default for Changes<P> {
    fn default() -> Self {
        Self { changed: BTreeSet::new(), due: BTreeSet::new(), before: BTreeMap::new() }
    }
}

impl<P> Changes<P> {
    /// A page is about to change; `page` is what it holds until then.
    pub fn note(&mut self, index: u32, page: impl FnOnce() -> P) {
        if self.due.remove(&index) {
            self.before.insert(index, page());
        }
        self.changed.insert(index);
    }

    /// Pages that the running checkpoint does not write, because there is none or they are new, are to be written.
    pub fn add(&mut self, indices: impl IntoIterator<Item = u32>) {
        self.changed.extend(indices);
    }

    /// Whether a checkpoint that began now would write a page.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// A checkpoint begins. The one before has taken all of its pages.
    pub fn begin(&mut self) {
        debug_assert!(self.due.is_empty() && self.before.is_empty(), "one checkpoint at a time");
        self.due = core::mem::take(&mut self.changed);
    }

    /// The next page that the running checkpoint writes, and what it held then if that is not what it holds now.
    pub fn take(&mut self) -> Option<(u32, Option<P>)> {
        let aside = self.before.pop_first().map(|(index, page)| (index, Some(page)));
        aside.or_else(|| self.due.pop_first().map(|index| (index, None)))
    }
}
