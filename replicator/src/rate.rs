//! How fast a link may be sent over: a model of the path by its delivery rate and its shortest round trip.
//!
//! After BBR (Cardwell and others, 2016; draft-ietf-ccwg-bbr): the rate is the highest that was delivered lately, the
//! window twice what the path holds. Loss does not slow it, because on the lines this is for loss is not congestion;
//! a queue does, because it delays: the rate is lowered while round trips are much longer than the shortest. Delay that this
//! does not shorten is no queue of ours, but others' traffic, another way, or a busy machine: then it is the path's from now
//! on. Whoever yielded to it would be left with nothing.

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
/// While there is a standing queue.
const DRAIN: u64 = 70;
/// A queue of ours is shorter after so many rounds of sending less than it delivers.
const DRAIN_ROUNDS: u32 = 6;
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
    /// Rounds since a standing queue began to be drained, the round trip then, and the rate that was delivered through it.
    drained: (u32, u64, u64),
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
            drained: (0, 0, 0),
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
            self.check_drain(now, rate);
        }
        if self.is_starting || !self.has_queue() {
            self.drained = (0, 0, 0);
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
        if self.plateau.1 >= 3 || self.has_queue() {
            self.is_starting = false;
        }
    }

    /// Finds out whether a queue becomes shorter by sending less.
    fn check_drain(&mut self, now: u64, rate: u64) {
        match self.drained {
            // What comes through a standing queue is what the path has, also if it had more before.
            (0, ..) => self.drained = (1, self.rtt, rate),
            (rounds, before, _) if rounds >= DRAIN_ROUNDS => {
                if self.rtt * 10 > before * 9 {
                    self.rtt_min = Some((self.rtt, now));
                }
                self.drained = (0, 0, 0);
            }
            (rounds, before, through) => self.drained = (rounds + 1, before, through),
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

    fn has_queue(&self) -> bool {
        self.queue_hundredths() > 150
    }

    /// Bytes a second to send at; `None` before anything is known.
    pub fn pacing_rate(&self) -> Option<u64> {
        let best = self.best();
        if best == 0 {
            return None;
        }
        let (rate, gain) = match (self.is_starting, self.has_queue(), self.drained) {
            (true, ..) => (best, STARTUP),
            // A standing queue is drained before anything else is tried.
            (false, true, (1.., _, through)) => (best.min(through), DRAIN),
            (false, true, _) => (best, DRAIN),
            (false, false, _) => (best, PHASES[self.round % PHASES.len()]),
        };
        Some((rate * gain / 100).max(64 << 10))
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

    const SECOND: u64 = 1_000_000;

    /// A line with a drop-tail queue of 200 ms. What it is may change at `change_at`.
    #[derive(Clone, Copy)]
    struct Line {
        rate: u64,
        delay: u64,
        loss_percent: u64,
    }

    /// How much of the line the model uses after `from`, and the longest queue then, in microseconds.
    fn run(before: Line, change_at: u64, after: Line, from: u64) -> (f64, u64) {
        const PACKET: u64 = 1_200;
        let (mut model, mut now) = (RateModel::new(), 1u64);
        let (mut busy_until, mut next_send, mut flying) = (0u64, 0u64, 0u64);
        let mut arrivals: VecDeque<(u64, u64, bool)> = VecDeque::new();
        let (mut delivered, mut longest, mut random) = (0u64, 0u64, 7u64);
        let end = 20 * SECOND;
        while now < end {
            let line = if now < change_at { before } else { after };
            while let Some((_, sent, lost)) = arrivals.pop_front_if(|(at, ..)| *at <= now) {
                flying -= PACKET;
                if !lost {
                    model.acknowledged(now, PACKET, now - sent, false);
                    delivered += PACKET * u64::from(now > from);
                }
            }
            while now >= next_send && flying + PACKET <= model.window() {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let queue = busy_until.saturating_sub(now);
                let full = queue > 200_000;
                let lost = (random >> 33) % 100 < line.loss_percent || full;
                if !full {
                    busy_until = busy_until.max(now) + PACKET * SECOND / line.rate;
                }
                if now > from {
                    longest = longest.max(queue);
                }
                arrivals.push_back((busy_until.max(now) + 2 * line.delay, now, lost));
                flying += PACKET;
                let pace = model.pacing_rate().unwrap_or(10 << 20);
                next_send = next_send.max(now.saturating_sub(1_000)) + PACKET * SECOND / pace;
            }
            now += 50;
        }
        (delivered as f64 / (after.rate as f64 * (end - from) as f64 / SECOND as f64), longest)
    }

    #[test]
    fn random_loss_does_not_slow_it_and_the_queue_stays_bounded() {
        for (rate, delay) in [(12_500_000, 10_000), (12_500_000, 50_000), (2_500_000, 25_000)] {
            for loss in [0, 1, 5, 10] {
                let line = Line { rate, delay, loss_percent: loss };
                let (used, queue) = run(line, 0, line, 10 * SECOND);
                let left = 1.0 - loss as f64 / 100.0;
                assert!(used > 0.8 * left, "{rate} B/s, {delay} us, {loss} %: {used}");
                assert!(queue <= 3 * delay + 30_000, "{rate} B/s, {delay} us, {loss} %: a queue of {queue} us");
            }
        }
    }

    #[test]
    fn delay_that_is_no_queue_of_ours_does_not_slow_it() {
        let line = Line { rate: 12_500_000, delay: 10_000, loss_percent: 1 };
        for delay in [15_000, 20_000, 50_000, 150_000] {
            let (used, _) = run(line, 5 * SECOND, Line { delay, ..line }, 7 * SECOND);
            assert!(used > 0.8, "{delay} us: {used}");
        }
    }

    #[test]
    fn a_line_that_becomes_slower_has_no_standing_queue() {
        let fast = Line { rate: 12_500_000, delay: 10_000, loss_percent: 0 };
        for rate in [10_000_000, 8_000_000, 6_250_000, 5_000_000, 4_000_000, 2_500_000, 1_800_000, 1_250_000] {
            let (used, queue) = run(fast, 5 * SECOND, Line { rate, ..fast }, 8 * SECOND);
            assert!(used > 0.8, "{rate} B/s: {used}");
            assert!(queue <= 60_000, "{rate} B/s: a queue of {queue} us");
        }
    }

    #[test]
    fn a_line_that_becomes_faster_is_soon_used() {
        let slow = Line { rate: 1_250_000, delay: 25_000, loss_percent: 1 };
        let (used, _) = run(slow, 5 * SECOND, Line { rate: 12_500_000, ..slow }, 6 * SECOND);
        assert!(used > 0.8, "{used}");
    }
}
