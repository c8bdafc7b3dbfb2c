//! How fast a link may be sent over: a model of the path by its delivery rate and its shortest round trip.
//!
//! After BBR (Cardwell and others, 2016; draft-ietf-ccwg-bbr): the rate is the highest that was delivered lately, the
//! window twice what the path holds. Loss does not slow it, because on the lines this is for loss is not congestion;
//! a queue does, because it delays: the rate is lowered while round trips are much longer than the shortest. While nobody knows
//! what the path has, the rate doubles each round, until a queue begins, or a line that keeps none loses what it cannot carry;
//! when a probe finds that there is more by now, it does so again. Delay that lowering the rate does not shorten is no queue of
//! ours, but others' traffic, another way, or a busy machine: then it is the path's from now on. Whoever yielded to it would be
//! left with nothing. Whoever never yielded to others would leave them nothing: see `contest`.

use crate::contest::Contest;

/// Rounds over which the highest delivery rate counts.
const RATE_ROUNDS: usize = 10;
/// The shortest round trip counts for so long, in microseconds.
const RTT_WINDOW_MICROS: u64 = 10_000_000;
/// Before anything is known: a window of so many bytes.
const INITIAL_WINDOW: u64 = 64 << 10;
/// Never less than this: a window in bytes, a rate in bytes a second.
const WINDOW_MIN: u64 = 32 << 10;
const RATE_MIN: u64 = 64 << 10;
/// How much more is sent than was delivered, by phase, in hundredths: a probe, its drain, then steady.
const PHASES: [u64; RATE_ROUNDS] = [125, 75, 100, 100, 100, 100, 100, 100, 100, 100];
/// The phase of the probe, and that of its drain. What is sent in it arrives a round trip later, in the next one, and shows what is lost at random; what
/// arrives in the drain itself was sent in the probe, and shows how short the queue is.
const PHASE_PROBE: usize = 0;
const PHASE_DRAIN: usize = 1;
/// When this phase begins, what arrived in the one after the drain is known.
const PHASE_MEASURED: usize = (PHASE_DRAIN + 2) % RATE_ROUNDS;
/// Bytes of a packet.
pub(crate) const PACKET_SIZE: u64 = 1_200;
/// A round lasts until so many bytes were delivered, but no longer than this in microseconds: a packet or two show no rate.
const ROUND_SIZE_MIN: u64 = 4 * PACKET_SIZE;
const ROUND_MICROS_MAX: u64 = 100_000;
/// A probe sends so many bytes more than was delivered, at least, in a round trip and the time for which an acknowledgement may be
/// kept back, in microseconds: a part of a packet nobody would see.
const PROBE_MIN: u64 = 2 * PACKET_SIZE;
const ACKNOWLEDGE_MICROS: u64 = 25_000;
/// The drain of a queue that is shorter than a standing one and is there for longer than a probe: else nobody would ever see the
/// shortest round trip again.
const DRAIN_LONG: u64 = 55;
/// More is not made good, in hundredths.
const RANDOM_MAX: u64 = 40;
/// Who loses more at random, in thousandths, has no loss of which something follows.
const RANDOM_MIN: u64 = 2;
/// So many bytes show what a sender that has no more to send loses.
const AT_MOST_SIZE: u64 = 1 << 20;
/// Of the highest rate before a contest so much is believed after it, in hundredths.
const CONTESTED: u64 = 80;
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
pub(crate) const OURS_MIN: u64 = 16 << 10;

/// So long a queue ends the search, in microseconds; or a quarter of the round trip, if that is less.
const SEARCH_QUEUE: u64 = 20_000;
/// A line that loses so much of what is sent in a round beyond what it loses at random, in hundredths, and so many bytes, has no
/// room for it.
const OVERFLOW: u64 = 20;
const OVERFLOW_MIN: u64 = 32 << 10;
/// An acknowledgement that comes so much later behind the one before it than its packet was sent behind that one's, in microseconds, and
/// by so many packets' time, was kept back, and many others with it: one of the ends has stood still. A queue of ours grows packet by packet.
const STALL: u64 = 5_000;
const STALL_PACKETS: u64 = 8;
const STALL_RATE_MIN: u64 = 512 << 10;
/// For a quarter of the shortest round trip after that, and at least so long, in microseconds, round trips tell of it and of nothing
/// else. From the next one on they count for as long, whatever comes: acknowledgements may always come in clumps.
const STALL_ECHO_MIN: u64 = 10_000;
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
    /// The last round said nothing of the path.
    was_limited: bool,
    rtt_min: Option<(u64, u64)>,
    rtt: u64,
    /// When the last acknowledgement came and when its packet was sent; until when round trips tell of a stall, if there was one; and
    /// until when no stall is believed.
    last: (u64, u64),
    stalled_until: Option<u64>,
    counts_until: u64,
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
    /// What arrived and what was lost of what was sent while there was room, lately.
    random: (u64, u64),
    /// The same of what was sent by a sender that had no more.
    at_most: (u64, u64),
    contest: Contest,
    /// What was on its way in the last round, in bytes.
    flying: u64,
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
            was_limited: false,
            round_lost: 0,
            rtt_min: None,
            rtt: 0,
            last: (0, 0),
            stalled_until: None,
            counts_until: 0,
            plateau: (0, 0),
            is_starting: true,
            opening: INITIAL_WINDOW,
            calm: 0,
            drained: (0, 0, 0),
            random: (0, 0),
            at_most: (0, 0),
            contest: Contest::default(),
            flying: 0,
        }
    }

    /// `bytes` that were sent at `sent` were delivered; round trips take `rtt` now. `limited`: the sender had no more to send.
    pub fn acknowledged(&mut self, now: u64, sent: u64, bytes: u64, rtt: u64, limited: bool) {
        self.check_stall(now, sent);
        if self.stalled_until.is_none() {
            self.rtt = if self.rtt == 0 { rtt } else { (7 * self.rtt + rtt) / 8 };
        }
        match self.rtt_min {
            Some((shortest, at)) if rtt > shortest && now < at + RTT_WINDOW_MICROS => {}
            _ => self.rtt_min = Some((rtt.max(1), now)),
        }
        if self.contest.acknowledged(now, self.rtt) {
            self.leave_contest();
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
        let is_whole = self.round_delivered >= ROUND_SIZE_MIN || elapsed >= ROUND_MICROS_MAX;
        if elapsed < self.rtt.max(1_000) || !is_whole {
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
            // A probe is sent at what makes up for random loss; so what arrives of it is compared as it is. Allowing for what is
            // lost in this round would take each overflow for more.
            let is_more = is_calm && rate * 100 >= best * FOUND_MORE;
            if !self.is_starting && is_more {
                (self.is_starting, self.plateau, self.opening) = (true, (rate, 0), self.window());
            }
            self.check_drain(now, rate);
        }
        self.check_random();
        if self.is_starting || !self.has_queue() || self.contest.window().is_some() {
            self.drained = (0, 0, 0);
        }
        self.flying = rate * self.rtt / 1_000_000;
        // What a round has delivered opens the window for twice as much.
        self.opening = self.opening.min(2 * self.path()).max(INITIAL_WINDOW);
        self.was_limited = self.is_limited();
        if self.was_limited && self.contest.end() {
            self.leave_contest();
        }
        (self.round_start, self.round_sent, self.round_delivered) = (now, sent, 0);
        (self.round_limited, self.round_lost) = (0, 0);
    }

    /// Notices that one of the ends has stood still.
    fn check_stall(&mut self, now: u64, sent: u64) {
        let (last, last_sent) = core::mem::replace(&mut self.last, (now, sent));
        let late = (now - last).saturating_sub(sent.saturating_sub(last_sent));
        // As long as nothing is known, as if it were little.
        let packets = STALL_PACKETS * PACKET_SIZE * 1_000_000 / self.best().max(STALL_RATE_MIN);
        let echo = (self.shortest() / 4).max(STALL_ECHO_MIN);
        if self.stalled_until.take_if(|until| now >= *until).is_some() {
            self.counts_until = now + echo;
        }
        if late > STALL.max(packets) && last > 0 && now >= self.counts_until && self.stalled_until.is_none() {
            self.stalled_until = Some(now + echo);
        }
    }

    /// `bytes` were lost.
    pub fn lost(&mut self, bytes: u64) {
        self.round_lost += bytes;
        self.check_overshoot();
        // A queue of ours is drained first, and who has little to send fills none.
        let is_ours = self.is_starting || self.has_queue() || self.overflows() || self.is_limited();
        if !is_ours && self.random_thousandths() < RANDOM_MIN {
            self.contest.lost(self.flying);
        }
    }

    /// Something arrived with a mark (ECN): it waited for longer than whoever keeps that queue wants. Who has no more to send, or sends little,
    /// has not filled it.
    pub fn marked(&mut self) {
        let contends = self.contest.window().is_some();
        let is_ours = contends || self.flying >= OURS_MIN;
        if !is_ours || self.is_limited() || self.contest.is_blind() {
            return;
        }
        if self.is_starting && !contends {
            self.is_starting = false;
        } else if self.contest.marked(self.path()) {
            self.leave_contest();
        }
    }

    /// What there was before the contest says little of what others leave.
    fn leave_contest(&mut self) {
        let most = self.best() * CONTESTED / 100;
        self.rates.iter_mut().for_each(|rate| *rate = most.min(*rate));
        self.calm = 0;
    }

    /// Loss that is there also when less is sent than the path has is no overflow, and has to be made good by sending more. Who has no
    /// more to send sends less on the whole, but maybe in lumps: what that loses is random at most.
    fn check_random(&mut self) {
        let is_outage = self.round_lost > self.round_delivered;
        let is_empty = self.contest.has_room() && self.contest.window().is_none();
        if !is_empty || is_outage || self.is_starting {
            return;
        }
        let (arrived, lost) = (self.round_delivered, self.round_lost);
        if self.is_limited() {
            self.at_most = (self.at_most.0 + arrived, self.at_most.1 + lost);
            if self.at_most.0 >= AT_MOST_SIZE {
                let at_most = core::mem::take(&mut self.at_most);
                self.random = if lost_thousandths(at_most) < self.random_thousandths() { at_most } else { self.random };
            }
        } else if self.round == PHASE_MEASURED {
            self.random = (self.random.0 * 7 / 8 + arrived, self.random.1 * 7 / 8 + lost);
        }
    }

    fn random_thousandths(&self) -> u64 {
        lost_thousandths(self.random).min(10 * RANDOM_MAX)
    }

    /// What has to be sent that so much arrives.
    fn gross(&self, rate: u64) -> u64 {
        rate * 1_000 / (1_000 - self.random_thousandths())
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
        // What was lost is told after what has arrived, which may just have ended a round.
        if self.round_delivered == 0 {
            return self.was_limited;
        }
        self.round_limited * LIMITED_PART > self.round_delivered
    }

    fn overflows(&self) -> bool {
        let sent = self.round_delivered + self.round_lost;
        self.round_lost > OVERFLOW_MIN && self.round_lost * 100 > sent * self.overflow_hundredths()
    }

    fn overflow_hundredths(&self) -> u64 {
        OVERFLOW + self.random_thousandths() / 10
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
        if let Some(window) = self.contest.window() {
            return Some((window * 1_000_000 / self.rtt.max(1)).max(RATE_MIN));
        }
        let (rate, gain) = match (self.is_starting, self.has_queue(), self.drained) {
            // What a sender with little to do has delivered says nothing of what the path could.
            (true, ..) => ((FIRST * INITIAL_WINDOW).max(STARTUP * self.opening) * 10_000 / (shortest + 5_000), 100),
            // A standing queue is drained before anything else is tried.
            (false, true, (1.., _, through)) => (best.min(through), DRAIN),
            (false, true, _) => (best, DRAIN),
            // It need not probe for what it has no use for, and need not wait where it has a little more to send than before.
            (false, false, _) if self.was_limited => {
                let probe = best * PHASES[PHASE_PROBE] / 100;
                (if self.contest.has_room() { probe.max(self.gross(best)) } else { probe }, 100)
            }
            (false, false, _) if self.contest.has_room() => (self.gross(best), PHASES[self.round]),
            (false, false, _) if self.round == PHASE_DRAIN => (best, DRAIN_LONG),
            (false, false, _) => (best, PHASES[self.round]),
        };
        let is_probe = gain == PHASES[PHASE_PROBE] && self.calm > RATE_ROUNDS;
        let least = if is_probe { best + PROBE_MIN * 1_000_000 / (shortest + ACKNOWLEDGE_MICROS) } else { RATE_MIN };
        Some((rate * gain / 100).max(least))
    }

    /// Bytes a second that the path is thought to carry: not what is sent to find that out or to drain a queue, but for a search and a
    /// contest, where nobody knows; `None` before anything is known.
    pub fn capacity(&self) -> Option<u64> {
        let pacing_rate = self.pacing_rate()?;
        if self.is_starting || self.contest.window().is_some() {
            return Some(pacing_rate);
        }
        let carried = match self.drained {
            (1.., _, through) if self.has_queue() => self.best().min(through),
            _ => self.gross(self.best()),
        };
        Some(carried.max(RATE_MIN))
    }

    /// Bytes that the path holds, as far as it is known.
    fn path(&self) -> u64 {
        self.rtt_min.map_or(0, |(shortest, _)| self.best() * (shortest + 5_000) / 1_000_000)
    }

    /// Bytes that may be on their way.
    pub fn window(&self) -> u64 {
        if let Some(window) = self.contest.window() {
            return window.max(WINDOW_MIN);
        }
        (2 * self.path()).max(if self.is_starting { self.opening } else { WINDOW_MIN })
    }
}

fn lost_thousandths((arrived, lost): (u64, u64)) -> u64 {
    lost * 1_000 / (arrived + lost).max(1)
}

impl Default for RateModel {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "rate_sharing_tests.rs"]
mod sharing_tests;
