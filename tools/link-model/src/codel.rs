//! A queue that keeps itself short: CoDel (RFC 8289), as routers have it in fq_codel and CAKE.
//!
//! When everything has waited for longer than a target for a whole interval, the queue stands, and a sender has to be told: by a mark
//! on a packet, if its sender takes part in explicit congestion notification (RFC 3168), else by a loss. As long as that does not
//! help, it is told more and more often.

use std::time::Duration;

/// Longer than any round trip of interest; RFC 8289, section 4.3.
const INTERVAL: Duration = Duration::from_millis(100);
/// Who begins again so soon begins as often as it ended.
const MEMORY: u32 = 16;

/// What a packet's IP header says of congestion: the two bits of RFC 3168.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ecn {
    /// Its sender takes no part in it.
    #[default]
    Absent = 0b00,
    /// Its sender does: ECT(1).
    Capable1 = 0b01,
    /// Its sender does: ECT(0).
    Capable0 = 0b10,
    /// It met congestion.
    Experienced = 0b11,
}

impl Ecn {
    /// From the lowest two bits.
    pub fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0b00 => Self::Absent,
            0b01 => Self::Capable1,
            0b10 => Self::Capable0,
            _ => Self::Experienced,
        }
    }
}

/// See the module. Times are since any fixed origin.
#[derive(Debug, Default)]
pub struct Codel {
    /// When everything will have waited too long for an interval.
    standing_at: Option<Duration>,
    /// When a sender is told next, while the queue stands.
    next: Option<Duration>,
    /// How often one was told since the queue stands, and how often when that began.
    count: u32,
    first_count: u32,
    /// When a sender was to be told next, when the queue stood last.
    last: Duration,
}

impl Codel {
    /// A packet leaves the queue at `at`, where it waited for so long. Whether its sender is told.
    pub fn tells(&mut self, at: Duration, waited: Duration, target: Duration) -> bool {
        if waited <= target {
            (self.standing_at, self.next) = (None, None);
            return false;
        }
        if at < *self.standing_at.get_or_insert(at + INTERVAL) {
            return false;
        }
        match self.next {
            Some(next) if at < next => return false,
            Some(next) => {
                self.count += 1;
                self.schedule(next);
            }
            None => {
                let is_again = at < self.last + MEMORY * INTERVAL;
                let more = self.count.saturating_sub(self.first_count);
                self.count = if is_again { more.max(1) } else { 1 };
                self.first_count = self.count;
                self.schedule(at);
            }
        }
        true
    }

    fn schedule(&mut self, from: Duration) {
        self.last = from + INTERVAL.div_f64(f64::from(self.count).sqrt());
        self.next = Some(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const TARGET: Duration = Duration::from_millis(5);

    /// When senders were told, of packets each millisecond, which all waited for so long.
    fn told(codel: &mut Codel, milliseconds: std::ops::Range<u32>, waited: Duration) -> Vec<u32> {
        milliseconds.filter(|at| codel.tells(*at * MILLISECOND, waited, TARGET)).collect()
    }

    /// The times are the sum of 100 ms over the square roots of one, two, three and so on.
    #[test]
    fn a_standing_queue_is_told_more_and_more_often() {
        let mut codel = Codel::default();
        assert_eq!(told(&mut codel, 0..600, 2 * TARGET), [100, 200, 271, 329, 379, 424, 464, 502, 538, 571]);
    }

    #[test]
    fn who_begins_again_soon_begins_as_often_as_before_and_later_anew() {
        let mut codel = Codel::default();
        assert_eq!(told(&mut codel, 0..600, 2 * TARGET).len(), 10);
        assert!(told(&mut codel, 600..700, TARGET).is_empty());
        // Nine more than the first.
        assert_eq!(told(&mut codel, 700..870, 2 * TARGET), [800, 834, 865]);
        assert!(told(&mut codel, 870..871, Duration::ZERO).is_empty());
        assert_eq!(told(&mut codel, 5_000..5_250, 2 * TARGET), [5_100, 5_200]);
    }

    #[test]
    fn a_queue_that_comes_and_goes_is_no_reason() {
        let mut codel = Codel::default();
        for _ in 0..10 {
            assert!(told(&mut codel, 0..99, 10 * TARGET).is_empty());
            assert!(told(&mut codel, 99..100, Duration::ZERO).is_empty());
        }
    }

    #[test]
    fn the_bits_are_those_of_the_header() {
        for bits in 0..8 {
            assert_eq!(Ecn::from_bits(bits) as u8, bits & 3);
        }
    }
}
