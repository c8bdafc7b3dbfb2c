//! Two sessions over two lines with a rate, a queue and a delay, each sent over as its rate model says, in virtual time: what the
//! driver and QUIC do around a session, as far as it matters for speed and delay.

use crate::{
    ChannelId, Frame,
    rate::RateModel,
    session::{Session, SessionEvent, SessionOptions},
};
use bytes::Bytes;
use std::collections::VecDeque;

const SECOND: u64 = 1_000_000;
const TICK: u64 = 100;
/// What IP, UDP and QUIC add to a datagram.
const OVERHEAD: u64 = 60;
/// As in the driver: a connection takes 5 ms ahead, and is closed when nothing was heard for so long.
const AHEAD: u64 = 5_000;
const IDLE: u64 = 4 * SECOND;
const REDIAL: u64 = 200_000;
const FRAME: usize = 4_096;

/// One direction of a line and the connection that sends over it.
struct Wire {
    model: RateModel,
    rtt: u64,
    waiting: VecDeque<Bytes>,
    waiting_bytes: u64,
    in_flight: u64,
    next_send: u64,
    busy_until: u64,
    flying: VecDeque<(u64, Bytes)>,
    /// When the sender hears of a packet, when it was sent, its size, and whether it was lost.
    fates: VecDeque<(u64, u64, u64, bool)>,
    /// What was lost in a cut, of which nothing is heard until a later packet has arrived.
    gone: u64,
    probe_at: u64,
    /// Whether the last packet was one of a burst of loss.
    is_bad: bool,
    heard: u64,
    is_open: bool,
}

impl Wire {
    fn new(now: u64) -> Self {
        Self {
            model: RateModel::new(),
            rtt: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: 0,
            next_send: now,
            busy_until: 0,
            flying: VecDeque::new(),
            fates: VecDeque::new(),
            gone: 0,
            probe_at: 0,
            is_bad: false,
            heard: now,
            is_open: true,
        }
    }

    fn room(&self) -> u64 {
        let ahead = self.model.capacity().map_or(64 << 10, |rate| rate * AHEAD / SECOND);
        ahead.clamp(4 << 10, 1 << 20).saturating_sub(self.waiting_bytes)
    }

    fn hear(&mut self, now: u64) {
        while let Some((_, sent, size, is_lost)) = self.fates.pop_front_if(|(at, ..)| *at <= now) {
            self.in_flight -= size;
            if is_lost {
                self.model.lost(size);
                continue;
            }
            self.heard = now;
            let gone = std::mem::take(&mut self.gone);
            self.in_flight -= gone;
            if gone > 0 {
                self.model.lost(gone);
            }
            let rtt = now - sent;
            self.rtt = if self.rtt == 0 { rtt } else { (7 * self.rtt + rtt) / 8 };
            self.model.acknowledged(now, sent, size, self.rtt, self.waiting.is_empty());
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Line {
    /// Bytes a second.
    rate: u64,
    delay: u64,
    queue: u64,
    loss_thousandths: u64,
    /// How many packets are lost one after the other, on average; 1: each by itself.
    burst: u64,
    /// By sender.
    is_cut: [bool; 2],
}

struct World {
    now: u64,
    random: u64,
    lines: [Line; 2],
    ends: [Session; 2],
    /// By sender, then link.
    wires: [[Wire; 2]; 2],
    /// Bytes a second that are written at end 0; `None`: as many as there is room for.
    offer: Option<u64>,
    /// When each frame was written, how many have come, how old the oldest was then, and the bytes that were sent for them.
    written: Vec<u64>,
    /// How old each was when it came.
    ages: Vec<u64>,
    came: u64,
    /// How many of them end 0 knows to be durable.
    durable: u64,
    oldest: u64,
    sent: u64,
    payload: Bytes,
}

impl World {
    fn new(line: Line, offer: Option<u64>) -> Self {
        let mut ends = [3, 8].map(|name| Session::new(SessionOptions::default(), name, 2));
        for end in &mut ends {
            (0..2).for_each(|link| end.handle_link(1, link, true));
        }
        Self {
            now: 1,
            random: 9,
            lines: [line; 2],
            ends,
            wires: [0, 1].map(|_| [0, 1].map(|_| Wire::new(1))),
            offer,
            written: Vec::new(),
            ages: Vec::new(),
            came: 0,
            durable: 0,
            oldest: 0,
            sent: 0,
            payload: vec![7; FRAME].into(),
        }
    }

    fn random(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % limit
    }

    fn write(&mut self) {
        loop {
            let due = self.offer.map_or(u64::MAX, |offer| offer * self.now / SECOND / FRAME as u64);
            if self.written.len() as u64 >= due {
                return;
            }
            if !self.send() {
                return;
            }
        }
    }

    /// Writes at end 0, if there is room.
    fn send(&mut self) -> bool {
        let frame = Frame { channel: ChannelId([1; 16]), header: Bytes::new(), payload: self.payload.clone() };
        let is_taken = self.ends[0].send(frame).is_ok();
        if is_taken {
            self.written.push(self.now);
        }
        is_taken
    }

    fn arrive(&mut self) {
        for from in 0..2 {
            for link in 0..2 {
                let (now, wire) = (self.now, &mut self.wires[from][link]);
                while let Some((_, bytes)) = wire.flying.pop_front_if(|(at, _)| *at <= now) {
                    self.ends[1 - from].handle_datagram(now, link, &bytes).unwrap();
                }
                wire.hear(now);
            }
        }
    }

    fn events(&mut self) {
        for end in 0..2 {
            while let Some(event) = self.ends[end].poll_event() {
                if let SessionEvent::Durable { value, .. } = event {
                    self.durable = value;
                }
                if let SessionEvent::Frame(frame) = event {
                    self.ends[end].consumed(frame.body.len() as u64);
                    self.ends[end].mark_durable(self.now, frame.channel, self.came + 1);
                    let age = self.now - self.written[self.came as usize];
                    self.oldest = self.oldest.max(age);
                    self.ages.push(age);
                    self.came += 1;
                }
            }
        }
    }

    fn fill(&mut self, from: usize) {
        for link in 0..2 {
            self.ends[from].handle_rate(link, self.wires[from][link].model.capacity());
        }
        let mut rooms =
            [0, 1].map(|link| if self.wires[from][link].is_open { self.wires[from][link].room() } else { 0 });
        while rooms != [0; 2] {
            for (link, room) in rooms.iter_mut().enumerate().filter(|(_, room)| **room > 0) {
                let Some(bytes) = self.ends[from].poll_transmit(self.now, link) else {
                    *room = 0;
                    continue;
                };
                let wire = &mut self.wires[from][link];
                *room = room.saturating_sub(bytes.len() as u64);
                wire.waiting_bytes += bytes.len() as u64;
                wire.waiting.push_back(bytes);
            }
        }
    }

    fn pace(&mut self, from: usize, link: usize) {
        let (now, line) = (self.now, self.lines[link]);
        loop {
            let wire = &mut self.wires[from][link];
            let is_probe = wire.gone > 0 && now >= wire.probe_at;
            if now < wire.next_send || !is_probe && wire.in_flight >= wire.model.window() {
                return;
            }
            let Some(bytes) = wire.waiting.pop_front() else { return };
            if is_probe {
                wire.probe_at = now + 2 * wire.rtt + 25_000;
            }
            let size = bytes.len() as u64 + OVERHEAD;
            let pace = wire.model.pacing_rate().unwrap_or(10 << 20);
            wire.next_send = wire.next_send.max(now.saturating_sub(1_000)) + size * SECOND / pace;
            wire.waiting_bytes -= bytes.len() as u64;
            wire.in_flight += size;
            self.sent += size;
            if line.is_cut[from] {
                (wire.gone, wire.probe_at) = (wire.gone + size, wire.probe_at.max(now));
                continue;
            }
            let is_full = wire.busy_until.saturating_sub(now) > line.queue;
            if !is_full {
                wire.busy_until = wire.busy_until.max(now) + size * SECOND / line.rate;
            }
            let at = wire.busy_until.max(now) + line.delay;
            let is_lost = self.loses(from, link) || is_full;
            let wire = &mut self.wires[from][link];
            if line.is_cut[1 - from] {
                // It may arrive, but the sender does not hear of it.
                (wire.gone, wire.probe_at) = (wire.gone + size, wire.probe_at.max(now));
            } else {
                wire.fates.push_back((at + line.delay, now, size, is_lost));
            }
            if !is_lost {
                wire.flying.push_back((at, bytes));
            }
        }
    }

    /// Whether a line loses the next packet: of a burst all are lost, and none between two (Gilbert, 1960).
    fn loses(&mut self, from: usize, link: usize) -> bool {
        let Line { loss_thousandths, burst, .. } = self.lines[link];
        let chance = self.random(1_000_000);
        if burst == 1 {
            return chance < 1_000 * loss_thousandths;
        }
        let is_bad = &mut self.wires[from][link].is_bad;
        let limit = if *is_bad { 1_000_000 } else { 1_000_000 * loss_thousandths / (1_000 - loss_thousandths) } / burst;
        *is_bad ^= chance < limit;
        *is_bad
    }

    /// Cuts or heals a line; what is on its way over one that is cut is lost.
    fn cut(&mut self, link: usize, is_cut: bool) {
        (0..2).for_each(|from| self.cut_one_way(from, link, is_cut));
    }

    fn cut_one_way(&mut self, from: usize, link: usize, is_cut: bool) {
        self.lines[link].is_cut[from] = is_cut;
        if is_cut {
            self.wires[from][link].flying.clear();
            for end in &mut self.wires {
                let wire = &mut end[link];
                wire.gone += wire.fates.drain(..).map(|(_, _, size, _)| size).sum::<u64>();
                wire.probe_at = self.now + 2 * wire.rtt + 25_000;
            }
        }
    }

    /// What is silent for long is closed; what is closed is dialled again.
    fn connect(&mut self) {
        for link in 0..2 {
            if self.lines[link].is_cut == [false; 2] && self.now.is_multiple_of(REDIAL) && !self.wires[0][link].is_open
            {
                for end in 0..2 {
                    self.wires[end][link] = Wire::new(self.now);
                    self.ends[end].handle_link(self.now, link, true);
                }
            }
            let is_idle = |wire: &Wire| wire.is_open && self.now > wire.heard + IDLE;
            if is_idle(&self.wires[0][link]) || is_idle(&self.wires[1][link]) {
                for end in 0..2 {
                    self.wires[end][link] = Wire { is_open: false, ..Wire::new(self.now) };
                    self.ends[end].handle_link(self.now, link, false);
                }
            }
        }
    }

    fn run(&mut self, micros: u64) {
        let end = self.now + micros;
        while self.now < end {
            self.now = (self.now / TICK + 1) * TICK;
            self.connect();
            self.arrive();
            self.write();
            for from in 0..2 {
                if self.ends[from].poll_timeout().is_some_and(|at| at <= self.now) {
                    self.ends[from].handle_timeout(self.now);
                }
                self.fill(from);
                (0..2).for_each(|link| self.pace(from, link));
            }
            self.events();
        }
    }
}

const GOOD: Line =
    Line { rate: 5_000_000, delay: 10_000, queue: 50_000, loss_thousandths: 0, burst: 1, is_cut: [false; 2] };

/// Measured from what is usual before the cut; the lines carry 37 to 49 % of their rate then.
#[test]
fn a_link_that_is_cut_delays_nothing_by_more_than_a_round_trip_and_100_ms() {
    for delay in [10_000, 50_000, 100_000] {
        for loss_thousandths in [0, 10] {
            for moment in 0..4 {
                let mut world = World::new(Line { delay, loss_thousandths, ..GOOD }, Some(2_200_000));
                world.run(3 * SECOND + moment * 37_300);
                world.oldest = 0;
                world.run(SECOND / 2);
                let usual = std::mem::take(&mut world.oldest);
                world.cut(moment as usize % 2, true);
                world.run(SECOND);
                let more = world.oldest - usual;
                assert!(more <= 2 * delay + 100_000, "{delay} us, {loss_thousandths} in 1,000, {moment}: {more} us");
            }
        }
    }
}

/// The end that hears nothing over it goes on sending over it, and is heard.
#[test]
fn a_link_that_is_cut_one_way_delays_nothing_by_more_than_a_round_trip_and_100_ms() {
    for delay in [10_000, 50_000] {
        for (from, link, moment) in (0..16).map(|case| (case % 2, case / 2 % 2, case as u64 / 4)) {
            let mut world = World::new(Line { delay, loss_thousandths: 10, ..GOOD }, Some(2_200_000));
            world.run(3 * SECOND + moment * 37_300);
            world.oldest = 0;
            world.run(SECOND / 2);
            let usual = std::mem::take(&mut world.oldest);
            world.cut_one_way(from, link, true);
            world.run(3 * SECOND);
            let more = world.oldest - usual;
            assert!(more <= 2 * delay + 100_000, "{delay} us, from {from} over {link}, {moment}: {more} us");
            world.cut_one_way(from, link, false);
            world.run(SECOND / 2);
            assert!(world.ends.iter().all(|end| end.uses(link)), "{delay} us, from {from} over {link}: not used again");
        }
    }
}

/// A datagram of 1,100 bytes of the stream has 116 others, and nine tenths of the rate are the goal, less repair symbols.
#[test]
fn what_lines_let_through_is_used() {
    for (delay, queue, parts) in
        [(10_000, 50_000, [0.85, 0.83, 0.77, 0.71]), (50_000, 96_000, [0.84, 0.80, 0.74, 0.64])]
    {
        for (loss_thousandths, least) in [0, 10, 50, 100].into_iter().zip(parts) {
            let line = Line { rate: 5_000_000, delay, queue, loss_thousandths, burst: 1, is_cut: [false; 2] };
            for random in 1..4 {
                let mut world = World { random, ..World::new(line, None) };
                world.run(4 * SECOND);
                let came = world.came;
                world.run(3 * SECOND);
                let part = ((world.came - came) * FRAME as u64) as f64 / (6 * line.rate) as f64;
                assert!(part > least, "{delay} us, {loss_thousandths} in 1,000, chances {random}: {part} of the rate");
            }
        }
    }
}

/// Of 1 Gbit/s and 100 ms, where what is behind a block that is asked for comes to many megabytes.
#[test]
fn long_fast_lines_wait_for_no_window() {
    for (loss_thousandths, burst, least) in [(10, 1, 0.84), (50, 8, 0.70)] {
        let line = Line { rate: 62_500_000, delay: 50_000, loss_thousandths, burst, ..GOOD };
        let mut world = World::new(line, None);
        world.run(4 * SECOND);
        let came = world.came;
        world.run(5 * SECOND);
        let part = ((world.came - came) * FRAME as u64) as f64 / (10 * line.rate) as f64;
        assert!(part > least, "{loss_thousandths} in 1,000, bursts of {burst}: {part} of the rate");
    }
}

/// After 5 s the connections are new ones, and look for the rate as new ones do.
#[test]
fn lines_that_return_are_used_again_without_a_burst() {
    for delay in [10_000, 50_000] {
        for (outage, most_hundredths, least_hundredths) in [(1, 126, 90), (3, 126, 90), (5, 210, 75)] {
            let mut world = World::new(Line { delay, ..GOOD }, None);
            world.run(4 * SECOND);
            let (sent, came) = (world.sent, world.came);
            world.run(SECOND);
            let (sent, came) = (world.sent - sent, world.came - came);
            (0..2).for_each(|link| world.cut(link, true));
            world.run(outage * SECOND);
            (0..2).for_each(|link| world.cut(link, false));
            let case = format!("{delay} us, {outage} s");
            // Ten round trips, and a dial.
            for round in 0..10 + REDIAL / (2 * delay) {
                let before = world.sent;
                world.run(2 * delay);
                let part = (world.sent - before) * 100 * SECOND / (2 * delay * sent);
                assert!(part <= most_hundredths, "{case}: {part} % of the former rate in round {round}");
            }
            let before = world.came;
            world.run(SECOND);
            assert!(
                (world.came - before) * 100 > least_hundredths * came,
                "{case}: {} after {came}",
                world.came - before
            );
        }
    }
}

/// At seven tenths of what the lines let through. Three round trips are the goal; what is lost one by one takes none more.
#[test]
fn what_the_standby_lacks_is_not_old() {
    for (delay, loss_thousandths, burst, let_through, most) in [
        (10_000, 10, 1, 0.87, 1),
        (10_000, 50, 1, 0.80, 1),
        (10_000, 100, 1, 0.74, 1),
        (50_000, 100, 1, 0.73, 1),
        (10_000, 10, 8, 0.86, 3),
        (10_000, 50, 8, 0.81, 3),
        (50_000, 50, 8, 0.78, 3),
    ] {
        let line = Line { rate: 12_500_000, delay, loss_thousandths, burst, ..GOOD };
        let case = format!("{delay} us, {loss_thousandths} in 1,000, bursts of {burst}");
        let mut ages = Vec::new();
        for random in 1..4 {
            let offer = 0.7 * let_through * 2.0 * line.rate as f64;
            let mut world = World { random, ..World::new(line, Some(offer as u64)) };
            world.run(8 * SECOND);
            world.ages.clear();
            let sent = world.sent;
            world.run(3 * SECOND);
            ages.extend(world.ages);
            // Little blocks with the repair symbols that they need would take all of the lines.
            let part = (world.sent - sent) as f64 / (3 * 2 * line.rate) as f64;
            assert!(part < 0.94, "{case}: {part} of the rate is in use");
        }
        ages.sort();
        let oldest = ages[ages.len() * 99 / 100];
        assert!(oldest <= most * 2 * delay, "{case}: 99 of 100 within {oldest} us");
    }
}

/// An end that only receives has nothing acknowledged, and would not know when to ask for what is lacking.
#[test]
fn both_ends_know_the_round_trip_of_a_busy_stream() {
    let mut world = World::new(GOOD, Some(2_000_000));
    for delay in [10_000, 40_000] {
        world.lines = [Line { delay, ..GOOD }; 2];
        world.run(3 * SECOND);
        for (end, session) in world.ends.iter().enumerate() {
            for link in session.status(&[]).links {
                let rtt = link.rtt_micros.unwrap_or_default();
                assert!((2 * delay..2 * delay + 15_000).contains(&rtt), "{rtt} us at end {end}");
            }
        }
    }
}

/// One after the other, each answered when the standby has it. Nearly no burst of loss costs one of them another round trip; of 12,000
/// at 10 % loss six or seven take longer.
#[test]
fn a_synchronous_write_takes_a_round_trip_and_little_more() {
    let (alone, bursts) = ([(990, 110), (999, 130)], [(990, 110), (997, 130)]);
    // Where few are few by chance there are more of them.
    for (delay, loss_thousandths, burst, bounds, runs) in [
        (10_000, 10, 1, alone, 3),
        (10_000, 100, 1, alone, 12),
        (50_000, 50, 1, alone, 3),
        (10_000, 10, 8, bursts, 3),
        (50_000, 10, 8, bursts, 3),
    ] {
        let line = Line { rate: 12_500_000, delay, loss_thousandths, burst, ..GOOD };
        let mut times = Vec::new();
        for random in 1..=runs {
            let mut world = World { random, ..World::new(line, Some(0)) };
            world.run(SECOND);
            for _ in 0..1_000 {
                let begin = world.now;
                assert!(world.send());
                while world.durable < world.written.len() as u64 {
                    world.run(TICK);
                    assert!(world.now < begin + 10 * SECOND, "{delay} us, bursts of {burst}: never answered");
                }
                times.push(world.now - begin);
                let pause = world.random(4) * 1_000;
                world.run(pause);
            }
        }
        times.sort();
        for (part, most) in bounds {
            let hundredths = times[times.len() * part / 1_000] * 100 / (2 * delay);
            let case = format!("{delay} us, {loss_thousandths} in 1,000, bursts of {burst}");
            assert!(hundredths <= most, "{case}: {part} of 1,000 within {hundredths} % of a round trip");
        }
    }
}

/// Acknowledgements are lost as well, and an end that only receives has little else to go by.
#[test]
fn what_is_lost_one_by_one_puts_no_link_in_doubt() {
    for delay in [10_000, 50_000] {
        let line = Line { rate: 12_500_000, delay, loss_thousandths: 100, ..GOOD };
        let mut world = World::new(line, Some(12_000_000));
        world.run(4 * SECOND);
        let end = world.now + 8 * SECOND;
        while world.now < end {
            world.run(1_000);
            let used = world.ends.each_ref().map(|end| [0, 1].map(|link| end.uses(link)));
            assert_eq!(used, [[true; 2]; 2], "{delay} us, after {} us", world.now);
        }
    }
}
