//! The rate model and flows like TCP's in one queue, in virtual time: who gets how much of the line.
//!
//! The rivals are simplified but honest. `Cubic` has RFC 9438's window, its region of Reno's speed, fast convergence and one
//! reduction a round, is clocked by acknowledgements and never loses a packet but in the queue. `Bbr` has version one's search,
//! drain, cycle of eight phases, window of twice the path, and visits to the shortest round trip (draft-cardwell-iccrg-bbr-00).

use super::*;
use link_model::Codel;
use std::{collections::VecDeque, time::Duration};

const SECOND: u64 = 1_000_000;
const PACKET: u64 = 1_200;

/// A packet, as its sender knew it.
#[derive(Clone, Copy)]
struct Packet {
    flow: usize,
    sent: u64,
    /// What had been delivered to its sender then, and when the last of that was.
    delivered: u64,
    delivered_at: u64,
    is_lost: bool,
    is_marked: bool,
}

trait Flow {
    fn window(&self) -> u64;
    /// Bytes a second; `None`: whatever fits into the window.
    fn pace(&self) -> Option<u64>;
    fn acknowledged(&mut self, now: u64, packet: Packet, flying: u64, delivered: u64);
    fn lost(&mut self, now: u64, packet: Packet);
    /// It arrived with a mark.
    fn marked(&mut self, now: u64, packet: Packet) {
        self.lost(now, packet);
    }
}

impl Flow for RateModel {
    fn window(&self) -> u64 {
        self.window()
    }

    fn pace(&self) -> Option<u64> {
        Some(self.pacing_rate().unwrap_or(10 << 20))
    }

    fn acknowledged(&mut self, now: u64, packet: Packet, _: u64, _: u64) {
        self.acknowledged(now, packet.sent, PACKET, now - packet.sent, false);
    }

    fn lost(&mut self, _: u64, _: Packet) {
        self.lost(PACKET);
    }

    fn marked(&mut self, _: u64, _: Packet) {
        self.marked();
    }
}

/// Windows in packets, times in seconds, as in RFC 9438.
struct Cubic {
    window: f64,
    threshold: f64,
    window_max: f64,
    estimate: f64,
    epoch: Option<(u64, f64, f64)>,
    recovering_from: u64,
    rtt: f64,
}

impl Cubic {
    const C: f64 = 0.4;
    const BETA: f64 = 0.7;

    fn new() -> Self {
        let threshold = f64::MAX;
        Self { window: 10.0, threshold, window_max: 0.0, estimate: 0.0, epoch: None, recovering_from: 0, rtt: 0.0 }
    }
}

impl Flow for Cubic {
    fn window(&self) -> u64 {
        self.window as u64 * PACKET
    }

    fn pace(&self) -> Option<u64> {
        None
    }

    fn acknowledged(&mut self, now: u64, packet: Packet, _: u64, _: u64) {
        let rtt = (now - packet.sent) as f64 / SECOND as f64;
        self.rtt = if self.rtt == 0.0 { rtt } else { 0.875 * self.rtt + 0.125 * rtt };
        if packet.sent < self.recovering_from {
            return;
        }
        if self.window < self.threshold {
            self.window += 1.0;
            return;
        }
        let window = self.window;
        let window_max = self.window_max;
        let (start, k, _) = *self.epoch.get_or_insert_with(|| {
            self.estimate = window;
            (now, ((window_max - window).max(0.0) / Self::C).cbrt(), window)
        });
        let elapsed = (now - start) as f64 / SECOND as f64;
        let top = self.window_max.max(self.epoch.map_or(0.0, |(_, _, first)| first));
        let cubic = |t: f64| Self::C * (t - k).powi(3) + top;
        let alpha = if self.estimate < self.window_max { 3.0 * (1.0 - Self::BETA) / (1.0 + Self::BETA) } else { 1.0 };
        self.estimate += alpha / self.window;
        if cubic(elapsed) < self.estimate {
            self.window = self.window.max(self.estimate);
        } else {
            let target = cubic(elapsed + self.rtt).clamp(self.window, 1.5 * self.window);
            self.window += (target - self.window) / self.window;
        }
    }

    fn lost(&mut self, now: u64, packet: Packet) {
        if packet.sent < self.recovering_from {
            return;
        }
        let is_below = self.window < self.window_max;
        self.window_max = if is_below { self.window * (1.0 + Self::BETA) / 2.0 } else { self.window };
        self.window = (self.window * Self::BETA).max(2.0);
        self.threshold = self.window;
        (self.epoch, self.recovering_from) = (None, now);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum BbrPhase {
    Startup,
    Drain,
    Cycle(usize),
    /// Until then, if the window was that small from the first time on.
    Visit(Option<u64>),
}

struct Bbr {
    phase: BbrPhase,
    phase_start: u64,
    rates: VecDeque<(u64, u64)>,
    round: u64,
    /// What is delivered when the round is over.
    round_end: u64,
    rtt_min: (u64, u64),
    full: (u64, u32),
    flying: u64,
    lost_in_phase: bool,
}

impl Bbr {
    const CYCLE: [u64; 8] = [125, 75, 100, 100, 100, 100, 100, 100];

    fn new() -> Self {
        Self {
            phase: BbrPhase::Startup,
            phase_start: 0,
            rates: VecDeque::new(),
            round: 0,
            round_end: 0,
            rtt_min: (u64::MAX, 0),
            full: (0, 0),
            flying: 0,
            lost_in_phase: false,
        }
    }

    fn rate(&self) -> u64 {
        self.rates.iter().map(|(_, rate)| *rate).max().unwrap_or(0)
    }

    fn path(&self) -> u64 {
        if self.rtt_min.0 == u64::MAX { 10 * PACKET } else { (self.rate() * self.rtt_min.0 / SECOND).max(4 * PACKET) }
    }

    fn enter(&mut self, phase: BbrPhase, now: u64) {
        (self.phase, self.phase_start, self.lost_in_phase) = (phase, now, false);
    }

    fn check_full(&mut self) {
        let rate = self.rate();
        self.full = if rate * 4 >= self.full.0 * 5 { (rate, 0) } else { (self.full.0, self.full.1 + 1) };
    }

    fn go_on(&mut self, now: u64) {
        let has_lasted = now > self.phase_start + self.rtt_min.0;
        match self.phase {
            BbrPhase::Startup if self.full.1 >= 3 => self.enter(BbrPhase::Drain, now),
            BbrPhase::Drain if self.flying <= self.path() => self.enter(BbrPhase::Cycle(2), now),
            BbrPhase::Cycle(0) if has_lasted && (self.lost_in_phase || self.flying >= self.path() * 5 / 4) => {
                self.enter(BbrPhase::Cycle(1), now);
            }
            BbrPhase::Cycle(1) if has_lasted || self.flying <= self.path() => self.enter(BbrPhase::Cycle(2), now),
            BbrPhase::Cycle(turn @ 2..) if has_lasted => self.enter(BbrPhase::Cycle((turn + 1) % 8), now),
            BbrPhase::Visit(None) if self.flying <= 4 * PACKET => {
                self.phase = BbrPhase::Visit(Some(now + 200_000.max(self.rtt_min.0)));
            }
            BbrPhase::Visit(Some(end)) if now > end => {
                self.rtt_min.1 = now;
                self.enter(BbrPhase::Cycle(2), now);
            }
            _ => {}
        }
    }
}

impl Flow for Bbr {
    fn window(&self) -> u64 {
        match self.phase {
            BbrPhase::Visit(_) => 4 * PACKET,
            BbrPhase::Startup | BbrPhase::Drain => (self.path() * 289 / 100).max(10 * PACKET),
            BbrPhase::Cycle(_) => 2 * self.path(),
        }
    }

    fn pace(&self) -> Option<u64> {
        let rate = if self.rate() == 0 { 10 * PACKET * 1_000 } else { self.rate() };
        Some(match self.phase {
            BbrPhase::Startup => rate * 289 / 100,
            BbrPhase::Drain => rate * 100 / 289,
            BbrPhase::Cycle(turn) => rate * Self::CYCLE[turn] / 100,
            BbrPhase::Visit(_) => rate,
        })
    }

    fn acknowledged(&mut self, now: u64, packet: Packet, flying: u64, delivered: u64) {
        self.flying = flying;
        let rtt = now - packet.sent;
        let has_expired = now > self.rtt_min.1 + 10 * SECOND;
        if rtt <= self.rtt_min.0 || has_expired && matches!(self.phase, BbrPhase::Visit(_)) {
            self.rtt_min = (rtt, now);
        } else if has_expired && !matches!(self.phase, BbrPhase::Visit(_)) {
            self.enter(BbrPhase::Visit(None), now);
        }
        let is_new_round = packet.delivered >= self.round_end;
        if is_new_round {
            (self.round, self.round_end) = (self.round + 1, delivered);
        }
        if packet.delivered_at > 0 {
            let elapsed = (now - packet.delivered_at).max(1);
            let rate = (delivered - packet.delivered) * SECOND / elapsed;
            let round = self.round;
            self.rates.retain(|(at, other)| *at + 10 > round && *other > rate);
            self.rates.push_back((round, rate));
        }
        if is_new_round && self.phase == BbrPhase::Startup {
            self.check_full();
        }
        self.go_on(now);
    }

    fn lost(&mut self, _: u64, _: Packet) {
        self.lost_in_phase = true;
    }
}

/// A line with one queue.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// Bytes a second.
    rate: u64,
    /// The shortest round trip, in microseconds.
    rtt: u64,
    /// How long a queue may be, in hundredths of what the path holds.
    queue_hundredths: u64,
    loss_thousandths: u64,
    /// A queue that stands at more than so many microseconds marks packets.
    marks_at: Option<u64>,
    /// Everything is marked.
    marks_all: bool,
}

#[derive(Debug)]
struct Shares {
    /// Which part of the line each flow had.
    parts: Vec<f64>,
    /// The mean queue in microseconds.
    queue: u64,
}

/// Flows that begin at given times, and what they got from `from` on until `end`.
fn share(line: Line, mut flows: Vec<(u64, Box<dyn Flow>)>, from: u64, end: u64) -> Shares {
    let queue_max = line.rtt * line.queue_hundredths / 100;
    let (mut now, mut busy_until, mut random) = (0u64, 0u64, 11u64);
    let mut arrivals: VecDeque<(u64, Packet)> = VecDeque::new();
    let count = flows.len();
    let (mut flying, mut next) = (vec![0u64; count], vec![0u64; count]);
    let (mut delivered, mut delivered_at, mut counted) = (vec![0u64; count], vec![0u64; count], vec![0u64; count]);
    let (mut queues, mut steps, mut codel) = (0, 0, Codel::default());
    while now < end {
        while let Some((_, packet)) = arrivals.pop_front_if(|(at, _)| *at <= now) {
            let (index, flow) = (packet.flow, &mut flows[packet.flow].1);
            flying[index] -= PACKET;
            if packet.is_lost {
                flow.lost(now, packet);
                continue;
            }
            delivered[index] += PACKET;
            delivered_at[index] = now;
            counted[index] += PACKET * u64::from(now > from);
            flow.acknowledged(now, packet, flying[index], delivered[index]);
            if packet.is_marked {
                flow.marked(now, packet);
            }
        }
        if now > from {
            (queues, steps) = (queues + busy_until.saturating_sub(now), steps + 1);
        }
        // Whoever is first when there is room in the queue gets it: no flow is always first.
        let mut waiting: Vec<usize> = (0..count).filter(|index| now >= flows[*index].0).collect();
        while !waiting.is_empty() {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (random >> 33) as usize % waiting.len();
            let index = waiting[at];
            let flow = &mut flows[index].1;
            if now < next[index] || flying[index] + PACKET > flow.window() {
                waiting.swap_remove(at);
                continue;
            }
            if let Some(pace) = flow.pace() {
                next[index] = next[index].max(now.saturating_sub(1_000)) + PACKET * SECOND / pace.max(1);
            }
            let waits = busy_until.saturating_sub(now);
            let is_full = waits > queue_max;
            let mut is_marked = line.marks_all;
            let [waited, leaves] = [waits, now + waits].map(Duration::from_micros);
            if let Some(most) = line.marks_at.filter(|_| !is_full) {
                is_marked |= codel.tells(leaves, waited, Duration::from_micros(most));
            }
            let is_lost = is_full || (random >> 40) % 1_000 < line.loss_thousandths;
            if !is_full {
                busy_until = busy_until.max(now) + PACKET * SECOND / line.rate;
            }
            let (delivered, delivered_at) = (delivered[index], delivered_at[index]);
            let packet = Packet { flow: index, sent: now, delivered, delivered_at, is_lost, is_marked };
            arrivals.push_back((busy_until.max(now) + line.rtt, packet));
            flying[index] += PACKET;
        }
        now += 100;
    }
    let most = line.rate as f64 * (end - from) as f64 / SECOND as f64;
    Shares { parts: counted.iter().map(|bytes| *bytes as f64 / most).collect(), queue: queues / steps.max(1) }
}

const RATE: u64 = 5_000_000;

fn ours() -> Box<dyn Flow> {
    Box::new(RateModel::new())
}

/// What the model had of what was carried, in the mean of the two orders in which it and its rival may begin.
fn part_beside(line: Line, rival: fn() -> Box<dyn Flow>) -> f64 {
    let parts = [0, 1].map(|late| {
        let flows = vec![(2 * late * SECOND, ours()), (2 * (1 - late) * SECOND, rival())];
        let Shares { parts, .. } = share(line, flows, 10 * SECOND, 70 * SECOND);
        let all = parts[0] + parts[1];
        assert!(all > 0.93, "{line:?}: {all} of the line");
        assert!((0.2..0.8).contains(&(parts[0] / all)), "{line:?}: {parts:?}");
        parts[0] / all
    });
    (parts[0] + parts[1]) / 2.0
}

#[test]
fn flows_like_tcp_get_a_part_of_the_line_and_leave_one() {
    for rtt in [20_000, 100_000] {
        for queue_hundredths in [100, 200] {
            let line =
                Line { rate: RATE, rtt, queue_hundredths, loss_thousandths: 0, marks_at: None, marks_all: false };
            let part = part_beside(line, || Box::new(Cubic::new()));
            assert!((0.33..0.67).contains(&part), "{part} beside CUBIC, {line:?}");
            // The first version of BBR takes most of a queue that holds no more than the path, whoever is there.
            let least = if rtt > 50_000 && queue_hundredths == 100 { 0.22 } else { 0.33 };
            let part = part_beside(line, || Box::new(Bbr::new()));
            assert!((least..0.67).contains(&part), "{part} beside BBR, {line:?}");
        }
    }
}

#[test]
fn two_of_us_share() {
    for rtt in [20_000, 100_000] {
        for queue_hundredths in [50, 100, 200, 400] {
            let line =
                Line { rate: RATE, rtt, queue_hundredths, loss_thousandths: 0, marks_at: None, marks_all: false };
            let Shares { parts, .. } = share(line, vec![(0, ours()), (3 * SECOND, ours())], 10 * SECOND, 70 * SECOND);
            let all = parts[0] + parts[1];
            assert!(all > 0.9, "{line:?}: {all} of the line");
            assert!((0.3..0.7).contains(&(parts[0] / all)), "{line:?}: {parts:?}");
        }
    }
}

#[test]
fn alone_with_any_loss_it_has_nearly_all_and_keeps_no_queue() {
    for rtt in [20_000, 100_000] {
        for queue_hundredths in [50, 100, 200, 400] {
            for loss_thousandths in [0, 1, 3, 10, 50, 100, 300] {
                let line =
                    Line { rate: RATE, rtt, queue_hundredths, loss_thousandths, marks_at: None, marks_all: false };
                let Shares { parts, queue } = share(line, vec![(0, ours())], 10 * SECOND, 40 * SECOND);
                let used = parts[0] * 1_000.0 / (1_000 - loss_thousandths) as f64;
                assert!(used > 0.92, "{line:?}: {used} of what can arrive");
                assert!(queue < 15_000, "{line:?}: a queue of {queue} us");
            }
        }
    }
}

/// A mark is never random, so it is yielded to also where much is lost.
#[test]
fn a_queue_that_marks_stays_short_and_is_shared() {
    for rtt in [5_000, 20_000, 100_000] {
        for (marks_at, loss_thousandths) in [(5_000, 0), (5_000, 10), (20_000, 0), (20_000, 100)] {
            let line = Line {
                rate: RATE,
                rtt,
                queue_hundredths: 1_000,
                loss_thousandths,
                marks_at: Some(marks_at),
                marks_all: false,
            };
            let Shares { parts, queue } = share(line, vec![(0, ours())], 10 * SECOND, 40 * SECOND);
            let used = parts[0] * 1_000.0 / (1_000 - loss_thousandths) as f64;
            assert!(used > 0.92, "{line:?}: {used} of what can arrive");
            assert!(queue < marks_at, "{line:?}: a queue of {queue} us");
            let Shares { parts, .. } = share(line, vec![(0, ours()), (3 * SECOND, ours())], 10 * SECOND, 70 * SECOND);
            let part = parts[0] / (parts[0] + parts[1]);
            assert!((0.3..0.7).contains(&part), "{line:?}: {parts:?}");
            if loss_thousandths == 0 {
                let part = part_beside(line, || Box::new(Cubic::new()));
                assert!((0.33..0.67).contains(&part), "{part} beside CUBIC, {line:?}");
            }
        }
    }
}

/// As where a device on the way writes its own class into each packet.
#[test]
fn marks_that_tell_of_no_queue_mean_nothing() {
    for rtt in [1_000, 20_000, 100_000] {
        let line =
            Line { rate: RATE, rtt, queue_hundredths: 100, loss_thousandths: 0, marks_at: None, marks_all: true };
        let Shares { parts, .. } = share(line, vec![(0, ours())], 20 * SECOND, 70 * SECOND);
        assert!(parts[0] > 0.7, "{} of a line of {rtt} us", parts[0]);
    }
}

#[test]
fn a_mark_before_anything_is_known_changes_nothing() {
    let mut model = RateModel::new();
    (0..4).for_each(|_| model.marked());
    model.acknowledged(100_000, 1, PACKET, 99_000, false);
    (0..4).for_each(|_| model.marked());
    assert!(model.is_starting && model.contest.window().is_none());
    let mut contest = Contest::default();
    assert!((0..4).all(|_| !contest.marked(0)));
    assert!(contest.window().is_some_and(|window| window > 0));
}
