//! Whether what is sent over a link arrives.
//!
//! That something is heard over a link does not say so: a link may be cut in one direction. What the peer says over it does: each
//! acknowledgement repeats the time of a datagram that came over the same link. As acknowledgements go over both links at once, one
//! over which something comes that is nothing new, while there is news over the other, is in doubt long before it counts as dead.

use std::collections::VecDeque;

/// What was sent over the other link so much later has arrived, and the last news over this one is so old: then it is in doubt. In
/// microseconds.
const DOUBT_MICROS: u64 = 40_000;
/// So many datagrams were sent meanwhile, each so much later than the one before, in microseconds: as many may be lost at random, or
/// what the peer said of them.
const DOUBT_COUNT: usize = 3;
const STEP_MICROS: u64 = 4_000;
/// If nothing at all comes over this link, what the peer says over it may be lost: not so many times in a row.
const DOUBT_NEWS: u32 = 4;
/// So many such times are remembered: those of a second.
const UNSEEN_COUNT_MAX: usize = 250;

/// See the module.
#[derive(Default)]
pub(crate) struct Proof {
    /// When the newest datagram was sent that has arrived, by our clock, and when the peer's word of it came.
    arrived: Option<(u64, u64)>,
    /// When later ones were sent: the first of each step.
    unseen: VecDeque<u64>,
    /// How often there was news over the other link since there was over this one.
    others: u32,
    /// Something came over this link meanwhile, and it was no news, though there was some over the other.
    is_stale: bool,
    in_doubt: bool,
}

impl Proof {
    /// A datagram is sent.
    pub fn sent(&mut self, now: u64) {
        let is_next = self.unseen.back().is_none_or(|last| now >= last + STEP_MICROS);
        if is_next && self.unseen.len() < UNSEEN_COUNT_MAX {
            self.unseen.push_back(now);
        }
    }

    /// The peer says over this link that the last one that came over it was sent at this time. Whether that ends a doubt. What it says
    /// over the `other` link, which is nearer by `farther` microseconds, is compared with that.
    pub fn arrived(&mut self, now: u64, sent: u64, other: &mut Self, farther: u64) -> bool {
        if self.arrived.is_some_and(|(newest, _)| sent <= newest) {
            let overtaken = other.arrived.map_or(0, |(newest, _)| newest.saturating_sub(farther));
            self.is_stale |= self.unseen.front().is_some_and(|first| *first < overtaken);
            return false;
        }
        self.arrived = Some((sent, now));
        while self.unseen.pop_front_if(|unseen| *unseen <= sent).is_some() {}
        (self.others, self.is_stale) = (0, false);
        other.others = other.others.saturating_add(1);
        std::mem::take(&mut self.in_doubt)
    }

    /// The link was silent and is heard again: of what was lost meanwhile nothing follows.
    pub fn renew(&mut self, now: u64) {
        self.unseen.clear();
        (self.others, self.is_stale) = (0, false);
        self.arrived = self.arrived.map(|(newest, _)| (newest, now));
    }

    /// Whether what the peer says over the `other` link, which is nearer by `farther` microseconds, puts this one in doubt.
    pub fn is_doubtful(&self, other: &Self, farther: u64) -> bool {
        let (Some((_, told)), Some((newest, other_told))) = (self.arrived, other.arrived) else { return false };
        let overtaken = newest.saturating_sub(farther);
        let Some(first) = self.unseen.front() else { return false };
        let is_long = overtaken >= first + DOUBT_MICROS && other_told >= told + DOUBT_MICROS;
        let is_told = self.is_stale || self.others >= DOUBT_NEWS;
        is_long
            && is_told
            && !self.in_doubt
            && self.unseen.iter().take_while(|sent| **sent <= overtaken).count() >= DOUBT_COUNT
    }

    /// Nothing but what ends the doubt is sent over the link from now on.
    pub fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// Whether it is.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Datagrams over both links, of which the peer tells a round trip later; over the second no more after `cut`. When that is in
    /// doubt.
    fn doubted_at(every: u64, rtts: [u64; 2], cut: u64) -> Option<u64> {
        let [mut near, mut far] = [Proof::default(), Proof::default()];
        (1..3_000_000).step_by(100).find(|now| {
            if now % every < 100 {
                near.sent(*now);
                far.sent(*now);
            }
            let sent = |rtt: u64| now.checked_sub(rtt).filter(|sent| sent % every < 100);
            sent(rtts[0]).map(|sent| near.arrived(*now, sent, &mut far, 0));
            // What it says over the second comes, and says nothing new.
            sent(rtts[1]).map(|sent| far.arrived(*now, sent.min(cut), &mut near, rtts[1] - rtts[0]));
            far.is_doubtful(&near, rtts[1] - rtts[0])
        })
    }

    #[test]
    fn a_link_is_in_doubt_a_round_trip_and_40_ms_after_it_brings_nothing() {
        for (every, rtts) in [(1_000, [20_000, 20_000]), (1_000, [20_000, 200_000]), (5_000, [100_000, 100_000])] {
            let at = doubted_at(every, rtts, 1_000_000).unwrap();
            let least = 1_000_000 + rtts[1] + DOUBT_MICROS;
            assert!((least - every..least + STEP_MICROS + every).contains(&at), "{every} {rtts:?}: {at}");
        }
        // Where there is little to send, the three take longer.
        let at = doubted_at(40_000, [20_000, 20_000], 1_000_000).unwrap();
        assert!((1_100_000..=1_150_000).contains(&at), "{at}");
    }

    #[test]
    fn a_link_that_brings_what_is_sent_is_not_in_doubt_however_far_and_idle_it_is() {
        for every in [1_000, 5_000, 40_000, 300_000] {
            for far in [20_000, 60_000, 200_000] {
                assert_eq!(doubted_at(every, [20_000, far], u64::MAX), None, "{every} {far}");
            }
        }
        // All over the near link, and a keepalive now and then over the far one, of which one is lost.
        let [mut near, mut idle] = [Proof::default(), Proof::default()];
        for now in (1..2_000_000).step_by(1_000) {
            near.sent(now);
            if now % 40_000 == 1 {
                idle.sent(now);
            }
            if let Some(sent) = now.checked_sub(20_000) {
                near.arrived(now, sent, &mut idle, 0);
                if sent % 40_000 == 1 && sent / 40_000 % 8 != 3 {
                    idle.arrived(now, sent, &mut near, 0);
                }
            }
            assert!(!idle.is_doubtful(&near, 0), "{now}");
        }
    }

    #[test]
    fn what_arrives_late_ends_the_doubt_and_a_silence_is_no_reason_for_one() {
        let [mut near, mut far] = [Proof::default(), Proof::default()];
        assert!(!near.arrived(20_000, 1, &mut far, 0) && !far.arrived(20_000, 1, &mut near, 0));
        for now in (20_000..100_000).step_by(1_000) {
            near.sent(now);
            far.sent(now);
            near.arrived(now, now - 19_000, &mut far, 0);
        }
        assert!(far.is_doubtful(&near, 0) && !near.is_doubtful(&far, 0));
        far.doubt();
        assert!(far.in_doubt() && !far.is_doubtful(&near, 0));
        assert!(!far.arrived(100_000, 1, &mut near, 0), "that is no news");
        assert!(far.arrived(100_000, 30_000, &mut near, 0) && !far.in_doubt());
        assert!(!far.is_doubtful(&near, 0));
        near.arrived(150_000, 100_000, &mut far, 0);
        assert!(!far.is_doubtful(&near, 0), "what the peer said over it may be lost");
        far.arrived(150_000, 30_000, &mut near, 0);
        assert!(far.is_doubtful(&near, 0));
        far.renew(150_000);
        assert!(!far.is_doubtful(&near, 0));
    }
}
