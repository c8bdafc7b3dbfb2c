//! The rate model over lines with a drop-tail queue, in virtual time.

use super::*;
use std::collections::VecDeque;

const SECOND: u64 = 1_000_000;

/// A line with a drop-tail queue. What it is may change at a time.
#[derive(Clone, Copy, Debug)]
struct Line {
    rate: u64,
    delay: u64,
    loss_percent: u64,
    /// The longest, in microseconds.
    queue: u64,
    /// What there is to send, in bytes a second; `None`: always more.
    offer: Option<u64>,
    /// It comes once in so many microseconds.
    every: u64,
    /// Acknowledgements come together, once in so many microseconds.
    clump: u64,
    /// That of a packet is kept back for so long if no other packet comes, in microseconds. The round trip does not count it.
    hold: u64,
    /// From this moment on this end does nothing for so long once in so long, in microseconds, as a machine does that others share.
    stall: (u64, u64, u64),
}

const PLAIN: Line = Line {
    rate: 12_500_000,
    delay: 10_000,
    loss_percent: 0,
    queue: 200_000,
    offer: None,
    every: 1,
    clump: 1,
    hold: 0,
    stall: (0, 0, 1),
};

/// What came of it.
struct Ran {
    /// How much of the line was used after `from`.
    used: f64,
    /// How much was sent then, as a part of what the line carries.
    offered: f64,
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
    run_until(before, change_at, after, from, 20 * SECOND)
}

fn run_until(before: Line, change_at: u64, after: Line, from: u64, end: u64) -> Ran {
    const PACKET: u64 = 1_200;
    let (mut model, mut now) = (RateModel::new(), 1u64);
    let (mut busy_until, mut next_send, mut flying) = (0u64, 0u64, 0u64);
    let mut arrivals: VecDeque<(u64, u64, bool)> = VecDeque::new();
    let (mut delivered, mut random) = (0u64, 7u64);
    let (mut sent, mut offered, mut limited) = (0u64, 0u64, false);
    let mut unbounded = (0, 0);
    let mut ran = Ran { used: 0.0, offered: 0.0, queue: 0, waiting: 0, overflow: 0, best: 0 };
    while now < end {
        let line = if now < change_at { before } else { after };
        let (begin, micros, every) = line.stall;
        if now > begin && (now - begin) % every < micros {
            now += 50;
            continue;
        }
        let heard = now - now % line.clump;
        let is_pair = arrivals.get(1).is_some_and(|(at, ..)| *at <= heard);
        let heard = if is_pair { heard } else { heard.saturating_sub(line.hold) };
        while let Some((at, sent, lost)) = arrivals.pop_front_if(|(at, ..)| *at <= heard) {
            flying -= PACKET;
            if lost {
                model.lost(PACKET);
            } else {
                let rtt = if line.hold == 0 { now } else { at } - sent;
                model.acknowledged(now, sent, PACKET, rtt, limited);
                delivered += PACKET * u64::from(now > from);
            }
        }
        // What was sent while there was always more has been written too.
        if line.offer.is_none() {
            unbounded = (sent, now);
        }
        let (before, since) = unbounded;
        let written = line.offer.map(|offer| before + offer * (now - now % line.every).saturating_sub(since) / SECOND);
        let waiting = written.map(|written| written.saturating_sub(sent));
        if now > from {
            ran.waiting = ran.waiting.max(waiting.unwrap_or_default());
            ran.best = ran.best.max(model.best());
        }
        limited = waiting.is_some_and(|waiting| waiting < PACKET);
        while now >= next_send && flying + PACKET <= model.window() {
            if written.is_some_and(|written| written < sent + PACKET) {
                break;
            }
            sent += PACKET;
            offered += PACKET * u64::from(now > from);
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
    let carried = after.rate as f64 * (end - from) as f64 / SECOND as f64;
    (ran.used, ran.offered) = (delivered as f64 / carried, offered as f64 / carried);
    ran
}

#[test]
fn random_loss_does_not_slow_it_and_the_queue_stays_bounded() {
    for (rate, delay) in [(12_500_000, 10_000), (12_500_000, 50_000), (2_500_000, 25_000)] {
        for loss in [0, 1, 5, 10] {
            let line = Line { rate, delay, loss_percent: loss, ..PLAIN };
            let Ran { used, queue, .. } = run(line, 0, line, 10 * SECOND);
            let left = 1.0 - loss as f64 / 100.0;
            assert!(used > 0.92 * left, "{rate} B/s, {delay} us, {loss} %: {used}");
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

/// A search that an outage has ended leaves next to nothing: a packet in a round trip or two, whose acknowledgement is kept back.
#[test]
fn a_line_of_which_next_to_nothing_is_known_is_soon_used() {
    for rate in [30_000, 65_536, 100_000, 200_000] {
        for delay in [500, 5_000, 20_000, 75_000] {
            for hold in [0, 25_000] {
                for loss_percent in [0, 1] {
                    let slow = Line { rate, delay, hold, loss_percent, ..PLAIN };
                    let from = 6 * SECOND + 80 * delay;
                    let Ran { used, .. } = run(slow, 5 * SECOND, Line { rate: 12_500_000, ..slow }, from);
                    let left = 1.0 - loss_percent as f64 / 100.0;
                    assert!(used > 0.9 * left, "{slow:?}: {used}");
                }
            }
        }
    }
}

#[test]
fn a_slow_line_has_no_standing_queue() {
    for rate in [125_000, 250_000, 500_000] {
        for delay in [500, 5_000, 20_000, 75_000] {
            for loss_percent in [0, 1, 10] {
                for hold in [0, 25_000] {
                    let line = Line { rate, delay, loss_percent, hold, ..PLAIN };
                    let Ran { used, queue, .. } = run(line, 0, line, 10 * SECOND);
                    let left = 1.0 - loss_percent as f64 / 100.0;
                    assert!(used > 0.9 * left, "{line:?}: {used}");
                    assert!(queue < 2 * delay + 40_000, "{line:?}: a queue of {queue} us");
                }
            }
        }
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

/// Hellos and acknowledgements go over it, and others' traffic keeps a queue on the line. As in QUIC what has arrived is told first and
/// what was lost next, when a round may just have ended.
#[test]
fn what_an_idle_link_loses_now_and_then_does_not_slow_it() {
    for (every, bytes) in [(40_000, 200), (2_000, 2_000)] {
        let (mut model, mut now) = (RateModel::new(), 1);
        let mut go = |model: &mut RateModel, every: u64, bytes: u64, rtt: u64, limited: bool| {
            now += every;
            model.acknowledged(now, now.saturating_sub(rtt), bytes, rtt, limited);
        };
        // At 10 MB/s.
        (0..40_000).for_each(|_| go(&mut model, 120, 1_200, 20_000, false));
        let (busy, mut rounds) = (model.best(), 0);
        while rounds < 1_000 {
            go(&mut model, every, bytes, 30_000, true);
            rounds += u64::from(model.round_delivered == 0);
            if model.round_delivered == 0 && rounds % 50 == 0 {
                model.lost(bytes);
            }
        }
        assert!(busy > 9_000_000 && model.best() == busy, "{} after {busy} B/s", model.best());
    }
    // Nor are such losses what a contest begins with, whatever is known of the sender.
    let mut contest = Contest::default();
    contest.acknowledged(1, 20_000);
    contest.acknowledged(2, 30_000);
    contest.lost(OURS_MIN - 1);
    assert_eq!(contest.window(), None);
    contest.lost(OURS_MIN);
    assert!(contest.window().is_some());
}

/// A contest's window grows with time, also unused; and what is lost at random is known of a sender that has always something to send.
#[test]
fn who_has_no_more_to_send_neither_contends_nor_sticks_to_an_old_loss() {
    let (mut model, mut now) = (RateModel::new(), 1);
    let mut go = |model: &mut RateModel, count: u64, rtt: u64, lost_every: u64, limited: bool| {
        for number in 0..count {
            now += 120;
            model.acknowledged(now, now.saturating_sub(rtt), 1_200, rtt, limited);
            if number % lost_every == lost_every - 1 {
                model.lost(1_200);
            }
        }
    };
    go(&mut model, 40_000, 20_000, 3, false);
    let (best, lossy) = (model.best(), model.capacity().unwrap());
    assert!(lossy > best * 5 / 4, "{lossy} of {best}");
    go(&mut model, 80_000, 20_000, u64::MAX, true);
    let capacity = model.capacity().unwrap();
    assert!(capacity < best * 21 / 20, "{capacity} of {best}");
    assert!(model.pacing_rate().unwrap() > capacity, "what is a little more would wait");
    // A queue, and a loss in it.
    go(&mut model, 1_000, 29_000, u64::MAX, false);
    go(&mut model, 30, 29_000, 10, false);
    assert!(model.contest.window().is_some());
    go(&mut model, 1_000, 29_000, u64::MAX, true);
    assert_eq!(model.contest.window(), None);
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
fn acknowledgements_that_come_together_hide_no_queue() {
    for clump in [12_000, 20_000, 29_000] {
        for delay in [10_000, 20_000, 50_000] {
            let line = Line { clump, delay, ..PLAIN };
            let Ran { used, queue, .. } = run(line, 5 * SECOND, Line { rate: 5_000_000, ..line }, 8 * SECOND);
            assert!(used > 0.7, "{clump} us, {delay} us: {used}");
            assert!(queue <= 15_000 + delay / 2, "{clump} us, {delay} us: a queue of {queue} us");
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

/// Who takes the overflow of its own probes for random loss sends more to make it good, and so loses more with the next one.
#[test]
fn little_more_is_sent_than_a_line_with_a_short_queue_carries() {
    for rate in [1_250_000, 5_000_000] {
        for delay in [10_000, 50_000] {
            for queue_hundredths in [5, 10, 15, 20, 25] {
                for loss_percent in [0, 1] {
                    let line = Line { rate, delay, loss_percent, queue: 2 * delay * queue_hundredths / 100, ..PLAIN };
                    let Ran { used, offered, .. } = run(line, 0, line, 10 * SECOND);
                    let left = 1.0 - loss_percent as f64 / 100.0;
                    assert!(offered < 1.15 * used / left, "{line:?}: {offered} for {used}");
                    // At a queue of a fifth of a long path a probe's overflow may look like a rival's.
                    assert!(used > 0.85 * left, "{line:?}: {used}");
                }
            }
        }
    }
}

/// What it is sent beyond what the path carries overflows a short queue, and is not to be made good by sending still more.
#[test]
fn little_more_is_sent_than_arrives_of_what_comes_in_lumps() {
    for (delay, queue) in [(50_000, 10_000), (50_000, 3_000), (10_000, 3_000)] {
        for every in [100_000, 200_000] {
            let always = Line { delay, queue, ..PLAIN };
            let lumps = Line { offer: Some(4_700_000), every, ..always };
            let Ran { used, offered, .. } = run(lumps, 0, lumps, 10 * SECOND);
            let Ran { used: later_used, offered: later_offered, .. } = run(always, 8 * SECOND, lumps, 12 * SECOND);
            let (first, later) = (offered / used, later_offered / later_used);
            assert!(
                first.max(later) < 1.25,
                "{delay} us, a queue of {queue} us, each {every} us: {first}, {later} times"
            );
        }
    }
}

#[test]
fn random_loss_that_ends_is_no_longer_made_good() {
    for delay in [10_000, 50_000] {
        for queue in [2_000, 5_000, 10_000, 50_000] {
            let line = Line { rate: 5_000_000, delay, loss_percent: 30, queue, ..PLAIN };
            let Ran { used, .. } = run(line, 0, line, 10 * SECOND);
            assert!(used > 0.9 * 0.7, "{line:?}: {used}");
            let Ran { offered, used, .. } = run(line, 5 * SECOND, Line { loss_percent: 0, ..line }, 15 * SECOND);
            assert!(offered < 1.15 * used, "{line:?}: {offered} for {used}");
        }
    }
}

/// All that is on its way is lost when a link is cut, and nothing of that comes again when it is back.
#[test]
fn an_outage_is_not_made_good() {
    const BYTES: u64 = 12_500;
    let (mut model, mut now) = (RateModel::new(), 1u64);
    let go_on = |model: &mut RateModel, now: &mut u64, rounds: u64| {
        for _ in 0..20 * rounds {
            *now += 1_000;
            model.acknowledged(*now, now.saturating_sub(20_000), BYTES, 20_000, false);
        }
    };
    go_on(&mut model, &mut now, 200);
    for rounds in 1..=RATE_ROUNDS as u64 {
        let (mut model, mut now) = (model.clone(), now);
        go_on(&mut model, &mut now, rounds);
        model.lost(40 * BYTES);
        go_on(&mut model, &mut now, 3);
        assert!(model.random_thousandths() < RANDOM_MIN, "{} of 1,000", model.random_thousandths());
    }
}

/// It stands still for 60 ms at some moment of the search for the rate.
#[test]
fn a_machine_that_stands_still_once_does_not_end_the_search() {
    for (rate, delay) in [(12_500_000, 10_000), (12_500_000, 50_000), (62_500_000, 50_000), (12_500_000, 150_000)] {
        for (loss_percent, quarter) in [0, 1].into_iter().flat_map(|loss| (10..30).map(move |quarter| (loss, quarter)))
        {
            let stall = (2 * delay * quarter / 4, 60_000, u64::MAX);
            let line = Line { rate, delay, loss_percent, stall, queue: 100_000, ..PLAIN };
            let from = 40 * delay;
            let Ran { used, .. } = run_until(line, 0, line, from, 2 * from);
            assert!(used > 0.88, "{rate} B/s, {delay} us, {loss_percent} %, {stall:?}: {used}");
        }
    }
}

/// Nothing is sent meanwhile, but what is sent between is sent as fast as before.
#[test]
fn a_machine_that_stands_still_all_the_time_does_not_bring_the_rate_down() {
    for (rate, delay) in [(12_500_000, 10_000), (12_500_000, 50_000), (62_500_000, 50_000)] {
        for loss_percent in [0, 1] {
            for (begin, micros, every) in [(33_000, 30_000, 170_000), (0, 60_000, 300_000), (33_000, 60_000, 300_000)] {
                let stall = (begin, micros, every);
                let line = Line { rate, delay, loss_percent, stall, queue: 100_000, ..PLAIN };
                let Ran { used, .. } = run_until(line, 0, line, 40 * delay, 120 * delay);
                let part = used / (1.0 - micros as f64 / every as f64);
                assert!(
                    part > 0.85,
                    "{rate} B/s, {delay} us, {loss_percent} %, {stall:?}: {part} of what there is time for"
                );
            }
        }
    }
}
