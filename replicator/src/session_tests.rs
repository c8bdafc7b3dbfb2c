//! Two sessions in virtual time over bad links: every frame once, in order, whatever the links do.

use super::*;
use crate::packet::Lacking;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How bad the links are.
#[derive(Clone, Copy, Debug)]
struct Weather {
    loss_percent: u64,
    double_percent: u64,
    delay_micros: u64,
    jitter_micros: u64,
}

struct World {
    now: u64,
    random: u64,
    ends: [Session; 2],
    weather: Weather,
    cut: [bool; 2],
    /// An end, and the link over which nothing arrives that it sends.
    mute: Option<(usize, usize)>,
    /// Arrival, a number to keep the order defined, the end it goes to, the link.
    flying: BinaryHeap<Reverse<(u64, u64, usize, usize)>>,
    contents: BTreeMap<u64, Bytes>,
    next: u64,
    got: [Vec<u64>; 2],
    ups: [usize; 2],
    downs: [usize; 2],
    durable: [u64; 2],
}

const CHANNEL: ChannelId = ChannelId([3; 16]);

impl World {
    fn new(mode: Mode, weather: Weather, seed: u64) -> Self {
        let options = SessionOptions { mode, ..SessionOptions::default() };
        let mut ends = [Session::new(options, seed | 1, 2), Session::new(options, (seed << 1) | 5, 2)];
        for end in &mut ends {
            end.handle_link(1, 0, true);
            end.handle_link(1, 1, true);
        }
        Self {
            now: 1,
            random: seed,
            ends,
            weather,
            cut: [false; 2],
            mute: None,
            flying: BinaryHeap::new(),
            contents: BTreeMap::new(),
            next: 0,
            got: [vec![], vec![]],
            ups: [0; 2],
            downs: [0; 2],
            durable: [0; 2],
        }
    }

    fn random(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % limit.max(1)
    }

    fn frame(number: u64, size: usize) -> Frame {
        let payload: Vec<u8> = (0..size).map(|at| (number as usize + at) as u8).collect();
        Frame { channel: CHANNEL, header: Bytes::copy_from_slice(&number.to_le_bytes()), payload: payload.into() }
    }

    fn transmit(&mut self) {
        for from in 0..2 {
            for link in 0..2 {
                while let Some(bytes) = self.ends[from].poll_transmit(self.now, link) {
                    let copies = 1 + u64::from(self.random(100) < self.weather.double_percent);
                    for _ in 0..copies {
                        if self.cut[link]
                            || self.mute == Some((from, link))
                            || self.random(100) < self.weather.loss_percent
                        {
                            continue;
                        }
                        let jitter = self.random(self.weather.jitter_micros + 1);
                        let at = self.now + self.weather.delay_micros + jitter;
                        self.next += 1;
                        self.contents.insert(self.next, bytes.clone());
                        self.flying.push(Reverse((at, self.next, 1 - from, link)));
                    }
                }
            }
        }
    }

    fn events(&mut self) {
        for end in 0..2 {
            while let Some(event) = self.ends[end].poll_event() {
                match event {
                    SessionEvent::Frame(frame) => {
                        let number = u64::from_le_bytes(frame.body[..8].try_into().unwrap());
                        let expected = Self::frame(number, frame.body.len() - 8);
                        assert_eq!(&frame.body[8..], &expected.payload[..], "frame {number} is damaged");
                        self.ends[end].consumed(frame.body.len() as u64);
                        self.ends[end].mark_durable(self.now, CHANNEL, number + 1);
                        self.got[end].push(number);
                    }
                    SessionEvent::Up { .. } => self.ups[end] += 1,
                    SessionEvent::Down { .. } => self.downs[end] += 1,
                    SessionEvent::Durable { value, .. } => self.durable[end] = value,
                    SessionEvent::Link { .. } | SessionEvent::Writable => {}
                }
            }
        }
    }

    /// Goes to the next thing that happens.
    fn step(&mut self) {
        self.transmit();
        let timeout = self.ends.iter().filter_map(Session::poll_timeout).min().unwrap_or(u64::MAX);
        let arrival = self.flying.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
        self.now = self.now.max(timeout.min(arrival));
        while let Some(Reverse((at, number, to, link))) = self.flying.peek().copied() {
            if at > self.now {
                break;
            }
            self.flying.pop();
            if let Some(bytes) = self.contents.remove(&number) {
                self.ends[to].handle_datagram(self.now, link, &bytes).unwrap();
            }
        }
        for end in &mut self.ends {
            end.handle_timeout(self.now);
        }
        self.events();
    }

    fn run_until(&mut self, limit_micros: u64, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit_micros;
        while !done(self) {
            assert!(
                self.now < end,
                "not done after {limit_micros} us: got {} and {}",
                self.got[0].len(),
                self.got[1].len()
            );
            self.step();
        }
    }

    /// Sends frames of many sizes from end 0 and some from end 1, letting the world go on meanwhile.
    fn talk(&mut self, count: u64, largest: u64) {
        for number in 0..count {
            let size = if self.random(3) == 0 { self.random(largest) } else { self.random(4200) };
            let mut frame = Self::frame(self.sent(0, number), size as usize);
            while let Err(Full(back)) = self.ends[0].send(frame) {
                frame = back;
                self.step();
            }
            if self.random(4) == 0 {
                self.step();
            }
        }
    }

    fn sent(&self, _: usize, number: u64) -> u64 {
        number
    }
}

fn in_order(numbers: &[u64], count: u64) {
    assert!(numbers.iter().copied().eq(0..count), "not every frame once and in order: {} of {count}", numbers.len());
}

const MODES: [Mode; 4] = [Mode::Split, Mode::Stripe, Mode::Mirror, Mode::Auto];

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_arrives_once_and_in_order(
        seed in 1u64.., mode in 0usize..4, loss_percent in 0u64..31, double_percent in 0u64..20, rate in 1u64..10_000_000,
        delay_micros in 100u64..50_000, jitter_micros in 0u64..20_000, cuts in prop::collection::vec((0usize..3, 0u64..60), 0..4),
    ) {
        let weather = Weather { loss_percent, double_percent, delay_micros, jitter_micros };
        let mut world = World::new(MODES[mode], weather, seed);
        (0..2).for_each(|link| world.ends[0].handle_rate(link, Some(rate)));
        world.run_until(20_000_000, |world| world.ups == [1, 1]);
        let mut sent = 0;
        for (which, steps) in cuts.into_iter().chain([(3, 0)]) {
            world.cut = [which == 0 || which == 2, which == 1 || which == 2];
            for _ in 0..10 {
                let size = world.random(30_000) as usize;
                let mut frame = World::frame(sent, size);
                while let Err(Full(back)) = world.ends[0].send(frame) {
                    frame = back;
                    world.step();
                }
                sent += 1;
            }
            (0..steps).for_each(|_| world.step());
        }
        world.cut = [false; 2];
        world.run_until(60_000_000, |world| world.got[1].len() as u64 >= sent && world.durable[0] == sent);
        prop_assert_eq!(world.downs, [0, 0]);
        in_order(&world.got[1], sent);
    }
}

#[test]
fn a_peer_that_is_started_anew_begins_another_session() {
    let weather = Weather { loss_percent: 2, double_percent: 2, delay_micros: 5_000, jitter_micros: 2_000 };
    let mut world = World::new(Mode::Stripe, weather, 99);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    world.talk(50, 50_000);
    let mut fresh = Session::new(SessionOptions::default(), 0xABCD, 2);
    fresh.handle_link(world.now, 0, true);
    fresh.handle_link(world.now, 1, true);
    world.ends[1] = fresh;
    world.got[1].clear();
    world.run_until(5_000_000, |world| world.ups == [2, 2] && world.downs[0] == 1);
    assert!(world.got[1].is_empty(), "frames of the earlier session were taken for the new one's");
    world.talk(50, 50_000);
    world.run_until(20_000_000, |world| world.got[1].len() >= 50);
    in_order(&world.got[1], 50);
}

#[test]
fn a_peer_may_say_that_everything_was_lost() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 5_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    let [end, peer] = &world.ends;
    let header = Header { sequence: 9, from: peer.own, to: end.own, time: 1 };
    let ack = Acknowledgement { received: 1 << 20, lost: u32::MAX, ..Acknowledgement::default() };
    let datagram = packet::encode(&header, &Body::Acknowledgement(ack));
    world.ends[0].handle_datagram(world.now, 0, &datagram).unwrap();
    let loss = world.ends[0].links[0].loss;
    assert!((0.2..0.3).contains(&loss), "{loss}");
}

#[test]
fn a_session_without_links_ends_after_its_time() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 5_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    world.cut = [true; 2];
    let start = world.now;
    world.run_until(60_000_000, |world| world.downs == [1, 1]);
    assert!(world.now - start >= 9_000_000);
    world.cut = [false; 2];
    world.run_until(5_000_000, |world| world.ups == [2, 2]);
}

#[test]
fn a_dead_link_delays_nothing_for_long() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 10_000, jitter_micros: 500 };
    for mode in MODES {
        let mut world = World::new(mode, weather, 11);
        world.run_until(5_000_000, |world| world.ups == [1, 1]);
        let until = world.now + 500_000;
        world.run_until(5_000_000, |world| world.now >= until);
        world.talk(20, 60_000);
        world.cut[0] = true;
        let start = world.now;
        world.run_until(5_000_000, |world| world.got[1].len() == 20);
        assert!(world.now - start < 400_000, "{mode:?}: {} us", world.now - start);
    }
}

#[test]
fn a_reader_that_does_not_read_stops_the_sender() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 1_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Stripe, weather, 3);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    let mut taken = 0u64;
    // End 1 hands its frames out but nobody says that they were used.
    for number in 0..400 {
        if world.ends[0].send(World::frame(number, 1 << 20)).is_ok() {
            taken += 1;
        }
        for _ in 0..20 {
            world.transmit();
            world.now += 1_000;
            while let Some(Reverse((_, number, to, link))) = world.flying.pop() {
                let bytes = world.contents.remove(&number).unwrap();
                world.ends[to].handle_datagram(world.now, link, &bytes).unwrap();
            }
            world.ends.iter_mut().for_each(|end| {
                end.handle_timeout(world.now);
                while end.poll_event().is_some() {}
            });
        }
    }
    assert!(taken < 80, "{taken} MiB were taken");
}

/// Both ends have heard something old, and take a name for the other's that nobody has any more.
#[test]
fn ends_that_were_misled_by_old_datagrams_find_each_other() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 1_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    for end in &mut world.ends {
        let old = Header { sequence: 9, from: 77, to: 78, time: 1 };
        end.handle_datagram(1, 0, &packet::encode(&old, &Body::Hello)).unwrap();
    }
    world.run_until(1_000_000, |world| world.ups == [1, 1]);
}

#[test]
fn news_that_is_lost_is_said_again_soon() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 10_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 7);
    world.run_until(1_000_000, |world| world.ups == [1, 1]);
    let start = world.now + 500_000;
    world.run_until(1_000_000, |world| world.now >= start);
    let told = world.now;
    world.ends[1].mark_durable(told, CHANNEL, 1);
    world.ends[1].handle_timeout(told);
    // Both copies of the first acknowledgement are lost.
    assert!((0..2).all(|link| world.ends[1].poll_transmit(told, link).is_some()));
    world.run_until(1_000_000, |world| world.durable[0] == 1);
    assert!(world.now <= told + 10_000 + 5_000, "only after {} us", world.now - told);
}

#[test]
fn what_is_newly_durable_is_told_at_once_however_many_channels_there_are() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 10_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 7);
    world.run_until(1_000_000, |world| world.ups == [1, 1]);
    let marked = |world: &mut World, channel, value| world.ends[1].mark_durable(world.now, channel, value);
    let told = |world: &World, channel| world.ends[0].peer_marks.get(&channel).copied().unwrap_or_default();
    let channels: Vec<ChannelId> = (0..64).map(|number| ChannelId([number; 16])).collect();
    channels.iter().for_each(|channel| marked(&mut world, *channel, 1));
    let start = world.now;
    world.run_until(1_000_000, |world| channels.iter().all(|channel| told(world, *channel) == 1));
    assert!(world.now <= start + 10_000 + 5_000, "all of them only after {} us", world.now - start);
    for (round, channel) in channels.iter().enumerate() {
        let start = world.now + 50_000;
        world.run_until(1_000_000, |world| world.now >= start);
        let (start, value) = (world.now, 2 + round as u64);
        marked(&mut world, *channel, value);
        world.run_until(1_000_000, |world| told(world, *channel) == value);
        assert!(world.now <= start + 10_000 + 1_000, "{channel:?} only after {} us", world.now - start);
    }
}

#[test]
fn a_link_that_takes_nothing_costs_nothing() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 1_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 9);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    // The connection over link 1 is full; then it is gone. Whatever comes wakes the one to which it comes.
    for is_open in [true, false] {
        world.ends[0].handle_link(world.now, 1, is_open);
        let (start, mut turns, mut sent) = (world.now, 0, 0);
        while world.now < start + 1_000_000 {
            let before = sent;
            for from in 0..2 {
                world.ends[from].handle_timeout(world.now);
                while let Some(datagram) = world.ends[from].poll_transmit(world.now, 0) {
                    world.ends[1 - from].handle_datagram(world.now, 0, &datagram).unwrap();
                    sent += 1;
                }
            }
            turns += 1;
            let timeout = world.ends.iter().filter_map(Session::poll_timeout).min().unwrap();
            let arrival = if sent > before { world.now + 1_000 } else { u64::MAX };
            world.now = timeout.min(arrival).max(world.now + 100);
        }
        assert!(turns < 200 && sent < 200, "{turns} turns and {sent} datagrams in a second");
    }
}

#[test]
fn loss_is_counted_from_where_a_peer_begins_and_past_the_end_of_the_numbers() {
    for start in [1, 10_000_000, u32::MAX - 500] {
        let mut came = Came::default();
        (0..1_000u32).filter(|number| number % 10 != 3).for_each(|number| came.take(start.wrapping_add(number)));
        assert_eq!((came.received, came.lost()), (900, 100), "from {start}");
    }
    let mut came = Came::default();
    [7, 6, 8, 8].into_iter().for_each(|number| came.take(number));
    assert_eq!(came.lost(), 0, "more came than were sent");
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 1_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 9);
    world.ends[0].links[0].came.take(u32::MAX / 4);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    assert_eq!(world.ends[0].links[0].came.numbers.map(|(first, _)| first), Some(1), "it is another peer");
}

#[test]
fn what_an_unsent_acknowledgement_asked_for_is_asked_for_by_the_next() {
    let lacking = |block| Lacking { block, count: 1, missing: 1 };
    let earlier = (0..40).map(lacking).collect();
    let complete = vec![2];
    let ack = Acknowledgement { next_block: 5, complete, lacking: vec![lacking(6)], ..Acknowledgement::default() };
    let asked: Vec<u64> = ack.asking_too(earlier).lacking.iter().map(|lacking| lacking.block).collect();
    assert_eq!(asked.len(), packet::LACKING_COUNT_MAX);
    assert_eq!(asked[..4], [6, 5, 8, 9], "5 to 7 but for what is complete or asked for already");
}

#[test]
fn a_link_over_which_nothing_comes_is_not_used_long_before_it_counts_as_dead() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 10_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    let start = world.now + 500_000;
    world.run_until(5_000_000, |world| world.now >= start);
    world.cut[0] = true;
    let mut sent = 0;
    while world.now < start + 80_000 {
        world.ends[0].send(World::frame(sent, 1_000)).unwrap();
        sent += 1;
        world.step();
    }
    assert!(world.ends[0].links[0].alive && !world.ends[0].live()[0], "it is used");
    world.cut[0] = false;
    world.run_until(5_000_000, |world| world.ends[0].live() == [true; 2] && world.got[1].len() as u64 == sent);
}

/// The end whose datagrams are lost hears the other one over the link all the time.
#[test]
fn a_link_that_is_dead_one_way_delays_nothing_for_long_and_is_used_again() {
    let weather = Weather { loss_percent: 1, double_percent: 0, delay_micros: 10_000, jitter_micros: 500 };
    for (mode, from, link) in
        MODES.into_iter().flat_map(|mode| [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| (mode, a, b)))
    {
        let mut world = World::new(mode, weather, 11);
        world.run_until(5_000_000, |world| world.ups == [1, 1]);
        let (mut sent, mut oldest, mut sent_dead) = (vec![], 0, 0);
        let start = world.now;
        while sent.len() < 1_500 {
            match sent.len() {
                300 => world.mute = Some((from, link)),
                400 => sent_dead = world.ends[from].links[link].sequence,
                1_000 => {
                    sent_dead = world.ends[from].links[link].sequence - sent_dead;
                    // Who sends nothing but acknowledgements is told little, and does no harm.
                    let is_idle = !world.ends[from].live()[link] && sent_dead <= 40;
                    assert!(is_idle || from == 1, "{mode:?} {from} {link}: {sent_dead}");
                    world.mute = None;
                }
                1_060 => assert_eq!(world.ends[from].live(), [true; 2], "{mode:?} {from} {link}: 120 ms later"),
                _ => {}
            }
            world.ends[0].send(World::frame(sent.len() as u64, 3_000)).unwrap();
            sent.push(world.now);
            while world.now < start + 2_000 * sent.len() as u64 {
                let came = world.got[1].len();
                world.step();
                oldest =
                    world.got[1][came..].iter().map(|number| world.now - sent[*number as usize]).fold(oldest, u64::max);
            }
        }
        // 10.5 ms, a round trip and 100 ms.
        assert!(oldest <= 130_500, "{mode:?} {from} {link}: {oldest} us");
    }
}

#[test]
fn nothing_but_a_hello_now_and_then_goes_over_a_link_that_is_silent() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 10_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    world.cut[0] = true;
    world.run_until(5_000_000, |world| world.ends.iter().all(|end| !end.live()[0]));
    let (start, before) = (world.now, [0, 1].map(|end: usize| world.ends[end].links[0].sequence));
    for number in 0..400 {
        world.ends[0].send(World::frame(number, 1_000)).unwrap();
        world.run_until(5_000_000, |world| world.now >= start + 2_500 * number);
    }
    for (end, before) in world.ends.iter().zip(before) {
        let sent = end.links[0].sequence - before;
        assert!((20..=26).contains(&sent), "{sent} datagrams in a second");
    }
    world.cut[0] = false;
    let healed = world.now;
    world.run_until(5_000_000, |world| world.ends.iter().all(|end| end.live() == [true; 2]));
    assert!(world.now <= healed + KEEPALIVE_MICROS + 10_000 + 1_000, "{} us", world.now - healed);
    let last = world.ends.iter().map(|end| end.links[0].back_at).max().unwrap();
    assert_eq!(
        [0, 39_999, 40_000].map(|after| world.ends.iter().any(|end| end.is_unproven(last + after, 0))),
        [true, true, false]
    );
    world.run_until(5_000_000, |world| world.got[1].len() == 400 && world.durable[0] == 400);
}

/// What came over both links while this process stood still is taken at once, first what came over one of them.
#[test]
fn a_stall_of_this_process_is_no_silence_of_a_link() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 10_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    let start = world.now + 500_000;
    world.run_until(5_000_000, |world| world.now >= start);
    let mut came = [vec![], vec![]];
    for number in 0..20 {
        world.now += 5_000;
        let now = world.now;
        world.ends[0].mark_durable(now, CHANNEL, number);
        world.ends[0].handle_timeout(now);
        for (link, came) in came.iter_mut().enumerate() {
            came.extend(std::iter::from_fn(|| world.ends[0].poll_transmit(now, link)));
        }
        // The first of them come before the stall.
        if number == 0 {
            came.iter_mut().enumerate().rev().for_each(|(link, came)| {
                came.drain(..).for_each(|bytes| world.ends[1].handle_datagram(now, link, &bytes).unwrap());
            });
        }
    }
    world.ends[1].send(World::frame(0, 100_000)).unwrap();
    for link in 0..2 {
        assert!((0..20).all(|_| world.ends[1].poll_transmit(world.now, link).is_some()));
    }
    for (link, came) in came.iter().enumerate() {
        assert!(came.len() >= 10, "{} over link {link}", came.len());
        came.iter().for_each(|bytes| world.ends[1].handle_datagram(world.now, link, bytes).unwrap());
    }
    world.ends[1].handle_timeout(world.now);
    assert_eq!(world.ends[1].live(), [true; 2]);
    assert_eq!(world.ends[1].sender.counters.resent_symbols, 0, "what went over a link that is there is sent again");
}

#[test]
fn what_waits_for_more_over_busy_links_is_sent_in_time() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay_micros: 100_000, jitter_micros: 0 };
    let mut world = World::new(Mode::Auto, weather, 5);
    (0..2).for_each(|link| world.ends[0].handle_rate(link, Some(1_000)));
    world.run_until(5_000_000, |world| world.ups == [1, 1]);
    for moment in 0..20 {
        let start = world.now + 3_000_000 + moment * 2_000;
        world.run_until(5_000_000, |world| world.now >= start);
        let sent = world.now;
        world.ends[0].send(World::frame(moment, 1_000)).unwrap();
        world.run_until(5_000_000, |world| world.got[1].len() as u64 > moment);
        let took = world.now - sent;
        assert!((100_000..=125_000).contains(&took), "{took} us");
    }
    // As long as no link has room nobody is woken for it.
    world.ends[0].send(World::frame(20, 1_000)).unwrap();
    world.transmit();
    let due = world.ends[0].sender.held_until().unwrap();
    world.ends[0].handle_timeout(due);
    assert!(world.ends[0].poll_timeout() > Some(due));
}
