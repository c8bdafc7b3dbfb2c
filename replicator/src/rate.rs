//! How fast a link may be sent over: a model of the path by its delivery rate and its shortest round trip.
//!
//! After BBR (Cardwell and others, 2016; draft-ietf-ccwg-bbr): the rate is the highest that was delivered lately, the
//! window twice what the path holds. Loss does not slow it, because on the lines this is for loss is not congestion;
//! a queue does, because it delays: the rate is lowered while round trips are much longer than the shortest. While nobody knows
//! what the path has, the rate doubles each round, until a queue begins, or a line that keeps none loses what it cannot carry;
//! when a probe finds that there is more by now, it does so again. Delay that lowering the rate does not shorten is no queue of
//! ours, but others' traffic, another way, or a busy machine: then it is the path's from now on. Whoever yielded to it would be
//! left with nothing.

/// Rounds over which the highest delivery rate counts.
const RATE_ROUNDS: usize = 10;
/// The shortest round trip counts for so long, in microseconds.
const RTT_WINDOW_MICROS: u64 = 10_000_000;
/// Before anything is known: a window of so many bytes.
const INITIAL_WINDOW: u64 = 64 << 10;
/// Never less than this.
const WINDOW_MIN: u64 = 32 << 10;
/// How much more is sent than was delivered, by phase, in hundredths: a probe, its drain, then steady.
const PHASES: [u64; RATE_ROUNDS] = [125, 75, 100, 100, 100, 100, 100, 100, 100, 100];
/// While there is a standing queue.
const DRAIN: u64 = 70;
/// A queue of ours is shorter after so many rounds of sending less than it delivers.
const DRAIN_ROUNDS: u32 = 6;
/// While the path's capacity is unknown the window grows by what is delivered, and is sent so much faster than a round takes, in
/// hundredths: the first one, and those after it.
const FIRST: u64 = 277;
const STARTUP: u64 = 150;
/// A round in which a sender without work sent no more than this part of what was delivered says something of the path.
const LIMITED_PART: u64 = 4;
/// A queue is ours if so much was delivered in the round, in bytes: who sends little makes none.
const OURS_MIN: u64 = 16 << 10;

/// So long a queue ends the search, in microseconds; or a quarter of the round trip, if that is less.
const SEARCH_QUEUE: u64 = 20_000;
/// A line that loses so much of what is sent in a round, in hundredths, and so many bytes, has no room for it.
const OVERFLOW: u64 = 20;
const OVERFLOW_MIN: u64 = 32 << 10;
/// A round that delivers so much of what the path was thought to have, in hundredths, has found that there is more.
const FOUND_MORE: u64 = 118;

/// See the module. Times in microseconds, rates in bytes a second.
#[derive(Clone, Debug)]
pub struct RateModel {
    rates: [u64; RATE_ROUNDS],
    round: usize,
    round_start: u64,
    /// When the last packet of the round before was sent.
    round_sent: u64,
    round_delivered: u64,
    /// What was delivered of a sender that had no more to send.
    round_limited: u64,
    rtt_min: Option<(u64, u64)>,
    rtt: u64,
    round_lost: u64,
    /// The best rate when it last grew by a quarter, and rounds since.
    plateau: (u64, u32),
    is_starting: bool,
    /// The window while the path's capacity is unknown.
    opening: u64,
    /// Rounds since there was a queue.
    calm: usize,
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
            round_sent: 0,
            round_delivered: 0,
            round_limited: 0,
            round_lost: 0,
            rtt_min: None,
            rtt: 0,
            plateau: (0, 0),
            is_starting: true,
            opening: INITIAL_WINDOW,
            calm: 0,
            drained: (0, 0, 0),
        }
    }

    /// `bytes` that were sent at `sent` were delivered; round trips take `rtt` now. `limited`: the sender had no more to send.
    pub fn acknowledged(&mut self, now: u64, sent: u64, bytes: u64, rtt: u64, limited: bool) {
        self.rtt = if self.rtt == 0 { rtt } else { (7 * self.rtt + rtt) / 8 };
        match self.rtt_min {
            Some((shortest, at)) if rtt > shortest && now < at + RTT_WINDOW_MICROS => {}
            _ => self.rtt_min = Some((rtt.max(1), now)),
        }
        if self.round_start == 0 {
            (self.round_start, self.round_sent) = (now, sent);
            return;
        }
        self.round_delivered += bytes;
        if limited {
            self.round_limited += bytes;
        } else {
            self.opening += bytes;
        }
        self.check_overshoot();
        let elapsed = now - self.round_start;
        if elapsed < self.rtt.max(1_000) {
            return;
        }
        // Acknowledgements that were held up come at once; nothing is delivered faster than it was sent.
        let rate = self.round_delivered * 1_000_000 / elapsed.max(sent.saturating_sub(self.round_sent));
        // A sender without work says nothing of the path, unless it was faster all the same.
        let best = self.best();
        if !self.is_limited() || rate > best {
            self.round = (self.round + 1) % RATE_ROUNDS;
            self.rates[self.round] = rate;
            // Rounds without work are no plateau: the search for the path's rate goes on when there is work.
            if !self.is_limited() {
                self.check_plateau();
            }
            self.calm = if self.has_queue() { 0 } else { self.calm + 1 };
            // Of what is delivered after a queue was drained nothing follows.
            let is_calm = self.calm > RATE_ROUNDS && !self.overflows();
            let is_more = is_calm && rate * 100 >= best * FOUND_MORE * self.arrived_hundredths() / 100;
            if !self.is_starting && is_more {
                (self.is_starting, self.plateau, self.opening) = (true, (rate, 0), self.window());
            }
            self.check_drain(now, rate);
        }
        if self.is_starting || !self.has_queue() {
            self.drained = (0, 0, 0);
        }
        // What a round has delivered opens the window for twice as much.
        self.opening = self.opening.min(2 * self.path()).max(INITIAL_WINDOW);
        (self.round_start, self.round_sent, self.round_delivered) = (now, sent, 0);
        (self.round_limited, self.round_lost) = (0, 0);
    }

    /// `bytes` were lost.
    pub fn lost(&mut self, bytes: u64) {
        self.round_lost += bytes;
        self.check_overshoot();
    }

    /// The search for the path's rate ends where a queue begins, or where more is lost than a bad line loses.
    fn check_overshoot(&mut self) {
        // Who has not always something to send makes queues too, but those of others are more of what it sees.
        let longest = if self.is_limited() { self.shortest() / 2 } else { (self.shortest() / 4).min(SEARCH_QUEUE) };
        if self.overflows() || self.round_delivered >= OURS_MIN && self.queue() > longest {
            self.is_starting = false;
        }
    }

    fn is_limited(&self) -> bool {
        self.round_limited * LIMITED_PART > self.round_delivered
    }

    /// Which part of what was sent has arrived; at least what a bad line leaves.
    fn arrived_hundredths(&self) -> u64 {
        let sent = self.round_delivered + self.round_lost;
        (self.round_delivered * 100 / sent.max(1)).max(100 - OVERFLOW)
    }

    fn overflows(&self) -> bool {
        let sent = self.round_delivered + self.round_lost;
        self.round_lost > OVERFLOW_MIN && self.round_lost * 100 > sent * OVERFLOW
    }

    fn check_plateau(&mut self) {
        let best = self.best();
        if best * 4 >= self.plateau.0 * 5 {
            self.plateau = (best, 0);
        } else {
            self.plateau.1 += 1;
        }
        if self.plateau.1 >= 3 {
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
            // The round in which the queue began may have been half before it.
            (1, before, through) => self.drained = (2, before, through.min(rate)),
            (rounds, before, through) => self.drained = (rounds + 1, before, through),
        }
    }

    fn best(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }

    fn shortest(&self) -> u64 {
        self.rtt_min.map_or(1, |(shortest, _)| shortest)
    }

    /// How much longer than the shortest round trips are, in microseconds.
    fn queue(&self) -> u64 {
        // A few milliseconds are scheduling, not a queue.
        self.rtt.saturating_sub(self.shortest() + 5_000)
    }

    fn has_queue(&self) -> bool {
        self.queue() > self.shortest() / 2
    }

    /// Bytes a second to send at; `None` before anything is known.
    pub fn pacing_rate(&self) -> Option<u64> {
        let best = self.best();
        let (shortest, _) = self.rtt_min.filter(|_| best > 0)?;
        let (rate, gain) = match (self.is_starting, self.has_queue(), self.drained) {
            // What a sender with little to do has delivered says nothing of what the path could.
            (true, ..) => ((FIRST * INITIAL_WINDOW).max(STARTUP * self.opening) * 10_000 / (shortest + 5_000), 100),
            // A standing queue is drained before anything else is tried.
            (false, true, (1.., _, through)) => (best.min(through), DRAIN),
            (false, true, _) => (best, DRAIN),
            (false, false, _) => (best, PHASES[self.round]),
        };
        Some((rate * gain / 100).max(64 << 10))
    }

    /// Bytes that the path holds, as far as it is known.
    fn path(&self) -> u64 {
        self.rtt_min.map_or(0, |(shortest, _)| self.best() * (shortest + 5_000) / 1_000_000)
    }

    /// Bytes that may be on their way.
    pub fn window(&self) -> u64 {
        (2 * self.path()).max(if self.is_starting { self.opening } else { WINDOW_MIN })
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

    /// A line with a drop-tail queue. What it is may change at a time.
    #[derive(Clone, Copy)]
    struct Line {
        rate: u64,
        delay: u64,
        loss_percent: u64,
        /// The longest, in microseconds.
        queue: u64,
        /// What there is to send, in bytes a second; `None`: always more.
        offer: Option<u64>,
        /// Acknowledgements come together, once in so many microseconds.
        clump: u64,
    }

    const PLAIN: Line =
        Line { rate: 12_500_000, delay: 10_000, loss_percent: 0, queue: 200_000, offer: None, clump: 1 };

    /// What came of it.
    struct Ran {
        /// How much of the line was used after `from`.
        used: f64,
        /// The longest queue then, in microseconds.
        queue: u64,
        /// The most bytes that waited to be sent then.
        waiting: u64,
        /// Bytes that the line had no room for, from the beginning.
        overflow: u64,
        /// What the model thought the line has, at most, then.
        best: u64,
    }

    fn run(before: Line, change_at: u64, after: Line, from: u64) -> Ran {
        const PACKET: u64 = 1_200;
        let (mut model, mut now) = (RateModel::new(), 1u64);
        let (mut busy_until, mut next_send, mut flying) = (0u64, 0u64, 0u64);
        let mut arrivals: VecDeque<(u64, u64, bool)> = VecDeque::new();
        let (mut delivered, mut random) = (0u64, 7u64);
        let (mut sent, mut limited) = (0u64, false);
        let mut ran = Ran { used: 0.0, queue: 0, waiting: 0, overflow: 0, best: 0 };
        let end = 20 * SECOND;
        while now < end {
            let line = if now < change_at { before } else { after };
            let heard = now - now % line.clump;
            while let Some((_, sent, lost)) = arrivals.pop_front_if(|(at, ..)| *at <= heard) {
                flying -= PACKET;
                if lost {
                    model.lost(PACKET);
                } else {
                    model.acknowledged(now, sent, PACKET, now - sent, limited);
                    delivered += PACKET * u64::from(now > from);
                }
            }
            let waiting = line.offer.map(|offer| (offer * now / SECOND).saturating_sub(sent));
            if now > from {
                ran.waiting = ran.waiting.max(waiting.unwrap_or_default());
                ran.best = ran.best.max(model.best());
            }
            limited = waiting.is_some_and(|waiting| waiting < PACKET);
            while now >= next_send && flying + PACKET <= model.window() {
                if line.offer.is_some_and(|offer| offer * now / SECOND < sent + PACKET) {
                    break;
                }
                sent += PACKET;
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let queue = busy_until.saturating_sub(now);
                let full = queue > line.queue;
                let lost = (random >> 33) % 100 < line.loss_percent || full;
                if !full {
                    busy_until = busy_until.max(now) + PACKET * SECOND / line.rate;
                }
                ran.overflow += PACKET * u64::from(full);
                if now > from {
                    ran.queue = ran.queue.max(queue);
                }
                arrivals.push_back((busy_until.max(now) + 2 * line.delay, now, lost));
                flying += PACKET;
                let pace = model.pacing_rate().unwrap_or(10 << 20);
                next_send = next_send.max(now.saturating_sub(1_000)) + PACKET * SECOND / pace;
            }
            now += 50;
        }
        ran.used = delivered as f64 / (after.rate as f64 * (end - from) as f64 / SECOND as f64);
        ran
    }

    #[test]
    fn random_loss_does_not_slow_it_and_the_queue_stays_bounded() {
        for (rate, delay) in [(12_500_000, 10_000), (12_500_000, 50_000), (2_500_000, 25_000)] {
            for loss in [0, 1, 5, 10] {
                let line = Line { rate, delay, loss_percent: loss, ..PLAIN };
                let Ran { used, queue, .. } = run(line, 0, line, 10 * SECOND);
                let left = 1.0 - loss as f64 / 100.0;
                assert!(used > 0.8 * left, "{rate} B/s, {delay} us, {loss} %: {used}");
                assert!(queue <= 3 * delay + 30_000, "{rate} B/s, {delay} us, {loss} %: a queue of {queue} us");
            }
        }
    }

    #[test]
    fn delay_that_is_no_queue_of_ours_does_not_slow_it() {
        let line = Line { loss_percent: 1, ..PLAIN };
        for delay in [15_000, 20_000, 50_000, 150_000] {
            let Ran { used, .. } = run(line, 5 * SECOND, Line { delay, ..line }, 7 * SECOND);
            assert!(used > 0.8, "{delay} us: {used}");
        }
    }

    #[test]
    fn a_line_that_becomes_slower_has_no_standing_queue() {
        for rate in [10_000_000, 8_000_000, 6_250_000, 5_000_000, 4_000_000, 2_500_000, 1_800_000, 1_250_000] {
            let Ran { used, queue, .. } = run(PLAIN, 5 * SECOND, Line { rate, ..PLAIN }, 8 * SECOND);
            assert!(used > 0.8, "{rate} B/s: {used}");
            assert!(queue <= 60_000, "{rate} B/s: a queue of {queue} us");
        }
    }

    #[test]
    fn a_line_that_becomes_faster_is_soon_used() {
        for (delay, loss_percent, after) in [(25_000, 1, 2), (75_000, 1, 4), (75_000, 15, 4)] {
            let slow = Line { rate: 1_250_000, delay, loss_percent, ..PLAIN };
            let Ran { used, .. } = run(slow, 5 * SECOND, Line { rate: 12_500_000, ..slow }, (5 + after) * SECOND);
            let left = 1.0 - loss_percent as f64 / 100.0;
            assert!(used > 0.8 * left, "{delay} us, {loss_percent} %: {used}");
        }
    }

    #[test]
    fn a_lone_write_is_not_spread_over_the_time_that_small_ones_took() {
        let mut model = RateModel::new();
        for round in 0..100 {
            model.acknowledged(20_001 + round * 20_000, 1 + round * 20_000, 100, 20_000, true);
        }
        let pace = model.pacing_rate();
        assert!(pace.is_some_and(|pace| 6_000 * SECOND / pace < 2_000), "{pace:?} bytes a second");
    }

    #[test]
    fn acknowledgements_that_come_together_do_not_make_the_line_faster() {
        for clump in [7_000, 13_000, 29_000] {
            for loss_percent in [0, 5] {
                let line = Line { loss_percent, clump, ..PLAIN };
                let Ran { used, best, .. } = run(line, 0, line, 10 * SECOND);
                assert!(best < line.rate * 13 / 10, "{clump} us, {loss_percent} %: {best}");
                assert!(used > 0.75, "{clump} us, {loss_percent} %: {used}");
            }
        }
    }

    #[test]
    fn a_handshake_that_took_long_is_no_queue() {
        let mut model = RateModel::new();
        for (now, rtt) in [(1, 101_000), (180_000, 400_000), (360_000, 400_000), (480_000, 400_000)] {
            model.acknowledged(now, 0, 1_200, rtt, false);
        }
        assert!(model.window() >= INITIAL_WINDOW && model.pacing_rate() > Some(1_000_000), "the search has ended");
    }

    #[test]
    fn what_is_less_than_the_line_carries_does_not_wait() {
        for delay in [500, 10_000, 50_000, 150_000] {
            for loss_percent in [0, 5] {
                let line = Line { delay, loss_percent, queue: 50_000, offer: Some(5_000_000), ..PLAIN };
                // When there was time to get to know the line, and to catch up.
                let Ran { waiting, .. } = run(line, 0, line, 100_000 + 18 * delay);
                let most = 5_000_000 / 20 + 2 * 5_000_000 * delay / SECOND;
                assert!(waiting < most, "{delay} us, {loss_percent} %: {waiting} bytes wait");
            }
        }
    }

    #[test]
    fn the_search_for_the_rate_does_not_flood_a_short_queue() {
        for delay in [10_000, 50_000, 150_000] {
            for loss_percent in [0, 1, 10] {
                for offer in [None, Some(5_000_000)] {
                    let line = Line { delay, loss_percent, queue: 50_000, offer, ..PLAIN };
                    let Ran { overflow, used, .. } = run(line, 0, line, 5 * SECOND);
                    // A round at twice what the line carries, and a little for each probe.
                    let round = line.rate * 2 * (delay + 25_000) / SECOND;
                    assert!(overflow < 2 * round, "{delay} us, {loss_percent} %, {offer:?}: {overflow} of {round}");
                    let left = 1.0 - loss_percent as f64 / 100.0;
                    assert!(offer.is_some() || used > 0.8 * left, "{delay} us, {loss_percent} %: {used}");
                }
            }
        }
    }
}
