//! Which of a session's links can be used, and what they are like.

use super::Session;
use crate::sender::Path;

/// What counts as a round trip before one was measured.
const INITIAL_RTT_MICROS: u64 = 100_000;
/// While so many datagrams came over the other link for so long, in microseconds, one that is silent is not used.
const OVERTAKEN_COUNT: u32 = 3;
const OVERTAKEN_MICROS: u64 = 40_000;
/// A link that is silent for three round trips and this is dead.
const SILENCE_MICROS: u64 = 100_000;
/// Where less is lost little blocks are not sent twice.
const SPARE_LOSS_MIN: f64 = 0.001;
/// A round trip that is longer by less than this, or by less than a quarter, is no longer one, in microseconds.
const FARTHER_MICROS: u64 = 2_000;

impl Session {
    /// Whether so much was heard over the other link that this one is likely to be gone: acknowledgements go over both, so this
    /// shows long before it counts as dead.
    pub(super) fn is_overtaken(&self, link: usize) -> bool {
        let [line, other] = [self.links[link], self.links[1 - link]];
        let farther = self.farther(link);
        let (count, since) = line.overtaken;
        let is_long = count >= OVERTAKEN_COUNT && other.heard >= since + OVERTAKEN_MICROS + farther;
        is_long && line.alive && line.open && !line.is_silent
    }

    /// Whether nothing that is sent over this link seems to arrive, though something is heard over it.
    pub(super) fn is_doubtful(&self, link: usize) -> bool {
        self.live() == [true; 2] && self.proofs[link].is_doubtful(&self.proofs[1 - link], self.farther(link))
    }

    /// How much longer this link's round trip is than the other's.
    pub(super) fn farther(&self, link: usize) -> u64 {
        let [this, other] = [link, 1 - link].map(|link| self.links[link].rtt.unwrap_or_default());
        this.saturating_sub(other)
    }

    /// The links over which something is heard: acknowledgements go over them.
    pub(super) fn are_heard(&self) -> [bool; 2] {
        [0, 1].map(|link| {
            let line = &self.links[link];
            link < self.link_count && line.open && line.alive && !line.is_silent
        })
    }

    /// Those of them over which what is sent arrives: symbols go over these only.
    pub(super) fn live(&self) -> [bool; 2] {
        let heard = self.are_heard();
        [0, 1].map(|link| heard[link] && !self.proofs[link].in_doubt())
    }

    /// What the sender is to know of a link.
    pub(super) fn path(&self, now: u64, link: usize) -> Path {
        let line = &self.links[link];
        let (is_farther, hold) = (self.is_farther(link), line.hold(now));
        let has_spare_room = line.loss >= SPARE_LOSS_MIN && self.have_room(now);
        Path { loss: line.loss, is_farther, hold, has_spare_room, under_way: self.under_way() }
    }

    /// Whether both links are there, are about as far, and are not busy.
    fn have_room(&self, now: u64) -> bool {
        self.live() == [true; 2] && (0..2).all(|link| !self.links[link].is_busy(now) && !self.is_farther(link))
    }

    /// Bytes that the live links together carry in a round trip, if that is known.
    fn under_way(&self) -> Option<u64> {
        let live = self.live();
        let rates = (0..2).filter(|link| live[*link]).map(|link| self.links[link].rate);
        let rate = rates.sum::<Option<u64>>()?;
        Some((u128::from(rate) * u128::from(self.rtt()) / 1_000_000) as u64)
    }

    /// Whether a link's round trip is much longer than the other's.
    pub(super) fn is_farther(&self, link: usize) -> bool {
        // The shortest round trips: what waits for a busy link is no distance.
        let shortest = [link, 1 - link].map(|link| self.links[link].shortest.map(|(shortest, _)| shortest));
        matches!(shortest, [Some(this), Some(other)] if this > other + (other / 4).max(FARTHER_MICROS))
    }

    /// The live link with the shortest round trip.
    pub(super) fn best_link(&self) -> Option<usize> {
        let live = self.live();
        (0..2).filter(|link| live[*link]).min_by_key(|link| self.rtt_of(*link))
    }

    /// The same, and the other if it is live: what is sent again goes over the one, then the other.
    pub(super) fn links_in_turn(&self) -> Option<[usize; 2]> {
        let link = self.best_link()?;
        Some([link, if self.live()[1 - link] { 1 - link } else { link }])
    }

    /// A link's round trip, also before one was measured.
    pub(super) fn rtt_of(&self, link: usize) -> u64 {
        self.links[link].rtt.unwrap_or(INITIAL_RTT_MICROS)
    }

    /// The longest round trip of the live links: what is asked for may take the slower one.
    pub(super) fn rtt(&self) -> u64 {
        let live = self.live();
        let rtt = (0..2).filter(|link| live[*link]).filter_map(|link| self.links[link].rtt).max();
        rtt.unwrap_or(INITIAL_RTT_MICROS)
    }

    /// A link that is silent for so long is dead.
    pub(super) fn silence(&self, link: usize) -> u64 {
        3 * self.links[link].shortest.map_or(INITIAL_RTT_MICROS, |(shortest, _)| shortest) + SILENCE_MICROS
    }
}
