//! How fast a link may be sent over: a model of the path by its delivery rate and its shortest round trip.
//!
//! After BBR (Cardwell and others, 2016; draft-ietf-ccwg-bbr): the rate is the highest that was delivered lately, the
//! window twice what the path holds. Loss does not slow it, because on the lines this is for loss is not congestion;
//! a queue does, because it delays: the rate is lowered while round trips are much longer than the shortest.

/// Rounds over which the highest delivery rate counts.
const RATE_ROUNDS: usize = 10;
/// The shortest round trip counts for so long, in microseconds.
const RTT_WINDOW_MICROS: u64 = 10_000_000;
/// Before anything is known: a window of so many bytes.
const INITIAL_WINDOW: u64 = 64 << 10;
/// Never less than this.
const WINDOW_MIN: u64 = 32 << 10;
/// How much more is sent than was delivered, by phase, in hundredths: a probe, its drain, then steady.
const PHASES: [u64; 8] = [125, 75, 100, 100, 100, 100, 100, 100];
/// While the path's capacity is unknown the rate grows so much a round, in hundredths.
const STARTUP: u64 = 277;

/// See the module. Times in microseconds, rates in bytes a second.
#[derive(Clone, Debug)]
pub struct RateModel {
    rates: [u64; RATE_ROUNDS],
    round: usize,
    round_start: u64,
    round_delivered: u64,
    round_limited: bool,
    rtt_min: Option<(u64, u64)>,
    rtt: u64,
    /// The best rate when it last grew by a quarter, and rounds since.
    plateau: (u64, u32),
    is_starting: bool,
}

impl RateModel {
    /// Nothing known.
    pub fn new() -> Self {
        Self {
            rates: [0; RATE_ROUNDS],
            round: 0,
            round_start: 0,
            round_delivered: 0,
            round_limited: false,
            rtt_min: None,
            rtt: 0,
            plateau: (0, 0),
            is_starting: true,
        }
    }

    /// `bytes` were delivered; their round trip took `rtt`. `limited`: the sender had no more to send.
    pub fn acknowledged(&mut self, now: u64, bytes: u64, rtt: u64, limited: bool) {
        self.rtt = if self.rtt == 0 { rtt } else { (7 * self.rtt + rtt) / 8 };
        match self.rtt_min {
            Some((shortest, at)) if rtt > shortest && now < at + RTT_WINDOW_MICROS => {}
            _ => self.rtt_min = Some((rtt.max(1), now)),
        }
        if self.round_start == 0 {
            self.round_start = now;
            return;
        }
        self.round_delivered += bytes;
        self.round_limited |= limited;
        let elapsed = now - self.round_start;
        if elapsed < self.rtt.max(1_000) {
            return;
        }
        let rate = self.round_delivered * 1_000_000 / elapsed;
        // A sender without work says nothing of the path, unless it was faster all the same.
        if !self.round_limited || rate > self.best() {
            self.round = (self.round + 1) % RATE_ROUNDS;
            self.rates[self.round] = rate;
            // Rounds without work are no plateau: the search for the path's rate goes on when there is work.
            if !self.round_limited {
                self.check_plateau();
            }
        }
        (self.round_start, self.round_delivered, self.round_limited) = (now, 0, false);
    }

    fn check_plateau(&mut self) {
        let best = self.best();
        if best * 4 >= self.plateau.0 * 5 {
            self.plateau = (best, 0);
        } else {
            self.plateau.1 += 1;
        }
        if self.plateau.1 >= 3 || self.queue_hundredths() > 150 {
            self.is_starting = false;
        }
    }

    fn best(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }

    /// How long round trips are, in hundredths of the shortest.
    fn queue_hundredths(&self) -> u64 {
        let shortest = self.rtt_min.map_or(1, |(shortest, _)| shortest);
        // A few milliseconds are scheduling, not a queue.
        self.rtt.saturating_sub(5_000).max(1) * 100 / shortest
    }

    /// Bytes a second to send at; `None` before anything is known.
    pub fn pacing_rate(&self) -> Option<u64> {
        let best = self.best();
        if best == 0 {
            return None;
        }
        let gain = if self.is_starting { STARTUP } else { PHASES[self.round % PHASES.len()] };
        let queue = self.queue_hundredths();
        // A standing queue is drained before anything else is tried.
        let gain = if !self.is_starting && queue > 150 { gain.min(80) } else { gain };
        Some((best * gain / 100).max(64 << 10))
    }

    /// Bytes that may be on their way.
    pub fn window(&self) -> u64 {
        let Some((shortest, _)) = self.rtt_min.filter(|_| self.best() > 0) else {
            return INITIAL_WINDOW;
        };
        let path = self.best() * (shortest + 5_000) / 1_000_000;
        let gain = if self.is_starting { 3 } else { 2 };
        (path * gain).max(if self.is_starting { INITIAL_WINDOW } else { WINDOW_MIN })
    }
}

impl Default for RateModel {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A line of fixed rate with a drop-tail queue: how much of it the model uses, and the longest queue in the second
    /// half, in microseconds.
    fn run(rate: u64, delay: u64, loss_percent: u64) -> (f64, u64) {
        const PACKET: u64 = 1_200;
        let (mut model, mut now) = (RateModel::new(), 1u64);
        let (mut busy_until, mut next_send, mut flying) = (0u64, 0u64, 0u64);
        let mut arrivals: VecDeque<(u64, u64, bool)> = VecDeque::new();
        let (mut delivered, mut longest, mut random) = (0u64, 0u64, 7u64);
        let end = 20_000_000;
        while now < end {
            while let Some((_, sent, lost)) = arrivals.pop_front_if(|(at, ..)| *at <= now) {
                flying -= PACKET;
                if !lost {
                    model.acknowledged(now, PACKET, now - sent, false);
                    delivered += PACKET * u64::from(now > end / 2);
                }
            }
            while now >= next_send && flying + PACKET <= model.window() {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let queue = busy_until.saturating_sub(now);
                let full = queue > 200_000;
                let lost = (random >> 33) % 100 < loss_percent || full;
                if !full {
                    busy_until = busy_until.max(now) + PACKET * 1_000_000 / rate;
                }
                if now > end / 2 {
                    longest = longest.max(queue);
                }
                arrivals.push_back((busy_until.max(now) + 2 * delay, now, lost));
                flying += PACKET;
                let pace = model.pacing_rate().unwrap_or(10 << 20);
                next_send = next_send.max(now.saturating_sub(1_000)) + PACKET * 1_000_000 / pace;
            }
            now += 50;
        }
        (delivered as f64 / (rate as f64 * 10.0), longest)
    }

    #[test]
    fn random_loss_does_not_slow_it_and_the_queue_stays_bounded() {
        for (rate, delay) in [(12_500_000, 10_000), (12_500_000, 50_000), (2_500_000, 25_000)] {
            for loss in [0, 1, 5, 10] {
                let (used, queue) = run(rate, delay, loss);
                let left = 1.0 - loss as f64 / 100.0;
                assert!(used > 0.8 * left, "{rate} B/s, {delay} us, {loss} %: {used}");
                assert!(queue <= 3 * delay + 30_000, "{rate} B/s, {delay} us, {loss} %: a queue of {queue} us");
            }
        }
    }
}
