//! What the application has made durable, by channel, and which of it an acknowledgement tells next.
//!
//! An acknowledgement has room for a few channels. Those that were marked since they were told go first, in the order in which they
//! were marked, then those that were told once, as that may have been lost; these have some of the room in any case. What is left of
//! it goes round all channels, so that each mark is told again and again.

use crate::{ChannelId, packet::MARK_COUNT_MAX};
use std::collections::{BTreeMap, VecDeque};

/// So many that were told once are told again, however many are new.
const AGAIN_COUNT: usize = MARK_COUNT_MAX / 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Marks {
    marks: BTreeMap<ChannelId, u64>,
    /// Those that were not told yet, and those that were told once.
    new: VecDeque<ChannelId>,
    again: VecDeque<ChannelId>,
    /// Which of all channels the rest of the room begins with.
    turn: usize,
}

impl Marks {
    /// Something is durable.
    pub fn set(&mut self, channel: ChannelId, value: u64) {
        self.marks.insert(channel, value);
        if !self.new.contains(&channel) {
            self.again.retain(|other| *other != channel);
            self.new.push_back(channel);
        }
    }

    /// What the next acknowledgement tells.
    pub fn tell(&mut self) -> Vec<(ChannelId, u64)> {
        let reserved = self.again.len().min(AGAIN_COUNT);
        let new = self.new.len().min(MARK_COUNT_MAX - reserved);
        let again = self.again.len().min(MARK_COUNT_MAX - new);
        let mut told: Vec<ChannelId> = self.again.drain(..again).collect();
        told.extend(self.new.iter().take(new));
        self.again.extend(self.new.drain(..new));
        let (count, turn) = (self.marks.len(), self.turn % self.marks.len().max(1));
        for channel in self.marks.keys().cycle().skip(turn).take(count) {
            if told.len() == count.min(MARK_COUNT_MAX) {
                break;
            }
            self.turn = self.turn.wrapping_add(1);
            if !told.contains(channel) {
                told.push(*channel);
            }
        }
        told.into_iter().filter_map(|channel| Some((channel, *self.marks.get(&channel)?))).collect()
    }

    /// These were told by an acknowledgement that was not sent.
    pub fn untold(&mut self, told: &[(ChannelId, u64)]) {
        for (channel, value) in told {
            self.set(*channel, self.marks.get(channel).map_or(*value, |later| *later));
        }
    }

    /// Whether more is new than the last acknowledgement had room for.
    pub fn has_more(&self) -> bool {
        !self.new.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(number: u8) -> ChannelId {
        ChannelId([number; 16])
    }

    fn channels(told: &[(ChannelId, u64)]) -> Vec<u8> {
        told.iter().map(|(channel, _)| channel.0[0]).collect()
    }

    #[test]
    fn what_is_new_goes_first_and_then_again_and_the_rest_by_turns() {
        let mut marks = Marks::default();
        (0..64).for_each(|number| marks.set(channel(number), 1));
        marks.tell();
        // Much is to be told for the second time, and more for the first.
        assert!(marks.has_more());
        (0..10).for_each(|_| drop(marks.tell()));
        assert!(!marks.has_more());
        marks.set(channel(63), 2);
        for _ in 0..2 {
            let told = marks.tell();
            assert_eq!((told.len(), told[0]), (MARK_COUNT_MAX, (channel(63), 2)));
        }
        // All of them in so many as have room for all.
        let mut told: Vec<u8> = (0..5).flat_map(|_| channels(&marks.tell())).collect();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told.len(), 64);
    }

    #[test]
    fn no_channel_waits_for_those_that_are_marked_all_the_time() {
        let mut marks = Marks::default();
        let mut told = 0;
        marks.set(channel(99), 1);
        for round in 0..20 {
            (0..64).for_each(|number| marks.set(channel(number), round));
            told += channels(&marks.tell()).iter().filter(|number| **number == 99).count();
        }
        assert!(told >= 2, "{told}");
    }

    #[test]
    fn what_was_not_sent_is_as_new_as_before() {
        let mut marks = Marks::default();
        (0..20).for_each(|number| marks.set(channel(number), 1));
        let unsent = marks.tell();
        assert!(marks.has_more());
        marks.untold(&unsent);
        let mut told = channels(&[marks.tell(), marks.tell()].concat());
        told.sort_unstable();
        told.dedup();
        assert_eq!(told.len(), 20);
    }
}
