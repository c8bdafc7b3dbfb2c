//! The line model in virtual time.

use super::*;
use crate::settings::{BurstLoss, Probability};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Sends `count` numbered packets of 1,000 bytes, one each `every`, and returns what came out with its time.
fn run(line: &mut Line, count: u32, every: Duration) -> Vec<(Duration, Vec<u8>)> {
    let mut arrived = Vec::new();
    let mut now = Duration::ZERO;
    for number in 0..count {
        drain(line, now, &mut arrived);
        let mut packet = vec![0xa5; 1_000];
        packet[..4].copy_from_slice(&number.to_le_bytes());
        line.handle_packet(now, packet);
        now += every;
    }
    drain(line, Duration::MAX, &mut arrived);
    arrived
}

fn drain(line: &mut Line, until: Duration, arrived: &mut Vec<(Duration, Vec<u8>)>) {
    while let Some(due_at) = line.poll_timeout().filter(|&due_at| due_at <= until) {
        if let Some(early) = due_at.checked_sub(Duration::from_nanos(1)) {
            assert!(line.poll_delivery(early).is_none(), "delivered before {due_at:?}");
        }
        let packet = line.poll_delivery(due_at).expect("a packet is due");
        arrived.push((due_at, packet.bytes));
    }
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_le_bytes(packet[..4].try_into().expect("four bytes"))
}

fn with(change: impl FnOnce(&mut LineSettings)) -> LineSettings {
    let mut settings = LineSettings::default();
    change(&mut settings);
    settings
}

#[test]
fn a_plain_line_delivers_all_at_once_and_unchanged() {
    let mut line = Line::new(LineSettings::default(), 1);
    let arrived = run(&mut line, 100, MILLISECOND);
    for (number, (at, packet)) in arrived.iter().enumerate() {
        assert_eq!(*at, MILLISECOND * number as u32);
        assert_eq!(number_of(packet) as usize, number);
        assert!(packet[4..].iter().all(|&byte| byte == 0xa5));
    }
    assert_eq!(arrived.len(), 100);
    let counters = line.counters();
    assert_eq!((counters.taken, counters.delivered, counters.lost()), (100, 100, 0));
    assert_eq!((counters.taken_bytes, counters.delivered_bytes), (100_000, 100_000));
}

#[test]
fn delay_and_jitter_keep_their_bounds_and_the_order() {
    let settings = with(|line| {
        line.delay = 10 * MILLISECOND;
        line.jitter = 4 * MILLISECOND;
    });
    // Far apart, each packet has its own delay; close together, a late one holds up those behind it.
    for (every, mean_us) in [(10 * MILLISECOND, 11_800..12_200), (Duration::from_micros(100), 13_000..14_000)] {
        let mut line = Line::new(settings.clone(), 2);
        let arrived = run(&mut line, 10_000, every);
        let mut sum = Duration::ZERO;
        for (number, (at, packet)) in arrived.iter().enumerate() {
            assert_eq!(number_of(packet) as usize, number, "jitter changed the order");
            let delay = *at - every * number as u32;
            assert!((10 * MILLISECOND..=14 * MILLISECOND).contains(&delay), "{delay:?}");
            sum += delay;
        }
        assert_eq!(arrived.len(), 10_000);
        let mean = sum / 10_000;
        assert!(mean_us.contains(&mean.as_micros()), "{mean:?}");
        assert_eq!(line.counters().reordered, 0);
    }
}

#[test]
fn random_loss_has_its_rate_and_is_independent() {
    let mut line = Line::new(with(|line| line.loss = Probability::from_percent(5)), 3);
    let arrived = run(&mut line, 100_000, MILLISECOND);
    let lost = line.counters().lost_random;
    // 5,000 expected, standard deviation 69: six of them on each side.
    assert!((4_586..=5_414).contains(&lost), "{lost}");
    assert_eq!(arrived.len() as u64 + lost, 100_000);
    // Two in a row happen as often as chance says: 250 expected, standard deviation under 16.
    let pairs = gaps(&arrived, 100_000).iter().map(|&gap| gap - 1).sum::<u32>();
    assert!((155..=345).contains(&pairs), "{pairs}");
}

#[test]
fn burst_loss_has_its_rate_and_its_length() {
    let share = Probability::from_percent(2);
    let mut line = Line::new(with(|line| line.burst = Some(BurstLoss::averaging(share, 10))), 4);
    let arrived = run(&mut line, 500_000, MILLISECOND);
    let lost = line.counters().lost_burst;
    // About 1,000 bursts of 10 with a standard deviation of 10 each: 450 for the sum, six of them on each side.
    assert!((7_300..=12_700).contains(&lost), "{lost}");
    let gaps = gaps(&arrived, 500_000);
    let length = f64::from(gaps.iter().sum::<u32>()) / gaps.len() as f64;
    assert!((8.0..=12.0).contains(&length), "{length}");
}

/// The lengths of the runs of lost packets.
fn gaps(arrived: &[(Duration, Vec<u8>)], count: u32) -> Vec<u32> {
    let mut gaps = Vec::new();
    let mut next = 0;
    let numbers = arrived.iter().map(|(_, packet)| number_of(packet));
    for number in numbers.chain([count]) {
        if number > next {
            gaps.push(number - next);
        }
        next = number + 1;
    }
    gaps
}

#[test]
fn rate_spaces_packets_out() {
    // 8 Mbit/s carries 1,000 bytes in one millisecond.
    let settings = with(|line| {
        line.rate_bits = Some(8_000_000);
        line.queue = QueueLimit::Time(Duration::from_secs(60));
    });
    let mut line = Line::new(settings, 5);
    let arrived = run(&mut line, 50, Duration::ZERO);
    for (number, (at, _)) in arrived.iter().enumerate() {
        assert_eq!(*at, MILLISECOND * (number as u32 + 1));
    }
    assert_eq!(arrived.len(), 50);
}

#[test]
fn full_queue_drops_what_comes_on_top() {
    for (queue, expected) in [
        // One packet is being sent when each of the limits counts what waits.
        (QueueLimit::Bytes(10_000), 10),
        (QueueLimit::Bytes(0), 1),
        (QueueLimit::Time(10 * MILLISECOND), 11),
        (QueueLimit::Time(Duration::ZERO), 1),
    ] {
        let settings = with(|line| {
            line.rate_bits = Some(8_000_000);
            line.queue = queue;
        });
        let mut line = Line::new(settings, 6);
        let arrived = run(&mut line, 100, Duration::ZERO);
        assert_eq!(arrived.len(), expected, "{queue:?}");
        assert_eq!(line.counters().lost_queue, 100 - expected as u64, "{queue:?}");
    }
}

#[test]
fn a_queue_that_drains_takes_packets_again() {
    let settings = with(|line| {
        line.rate_bits = Some(8_000_000);
        line.queue = QueueLimit::Bytes(2_000);
    });
    let mut line = Line::new(settings, 7);
    // Offered at twice the rate: half of it comes through, at the rate.
    let arrived = run(&mut line, 2_000, Duration::from_micros(500));
    assert!((998..=1_003).contains(&arrived.len()), "{}", arrived.len());
}

/// A packet each millisecond over a line that carries one in two, but for what goes beyond the longest queue.
#[test]
fn a_queue_that_stands_marks_packets_or_loses_those_of_who_takes_no_part() {
    let settings = with(|line| {
        line.rate_bits = Some(4_000_000);
        line.queue = QueueLimit::Time(60 * MILLISECOND);
        line.codel = Some(5 * MILLISECOND);
    });
    let sent = |ecn: Ecn, settings: &LineSettings| {
        let mut line = Line::new(settings.clone(), 14);
        (0..1_000).for_each(|at| line.handle_packet(at * MILLISECOND, Packet { ecn, bytes: vec![0; 1_000] }));
        let arrived: Vec<Ecn> = std::iter::from_fn(|| line.poll_delivery(Duration::MAX)).map(|one| one.ecn).collect();
        (arrived, line.counters())
    };
    for ecn in [Ecn::Capable0, Ecn::Capable1, Ecn::Experienced] {
        let (arrived, counters) = sent(ecn, &settings);
        let (marked, lost) = (counters.marked, counters.lost_queue);
        assert!((15..40).contains(&marked) && arrived.len() as u64 == 1_000 - lost, "{marked} marked, {lost} lost");
        let count = arrived.iter().filter(|ecn| **ecn == Ecn::Experienced).count() as u64;
        assert_eq!(count, if ecn == Ecn::Experienced { 1_000 - lost } else { marked });
        assert!(arrived.iter().all(|one| *one == ecn || *one == Ecn::Experienced));
    }
    let (arrived, counters) = sent(Ecn::Absent, &settings);
    assert!(counters.marked == 0 && arrived.iter().all(|ecn| *ecn == Ecn::Absent));
    // Where no queue is full who takes no part loses what is marked elsewhere.
    let long = LineSettings { queue: QueueLimit::Time(Duration::from_secs(60)), ..settings.clone() };
    let [marked, lost] = [sent(Ecn::Capable0, &long).1, sent(Ecn::Absent, &long).1];
    assert!(marked.marked > 15 && marked.lost() == 0 && lost.lost_queue > 15, "{marked:?}, {lost:?}");
    // Where nothing waits nobody is told.
    let fast = LineSettings { rate_bits: Some(8_000_000), ..settings.clone() };
    assert_eq!(sent(Ecn::Capable0, &fast).1.marked, 0);
    assert_eq!(sent(Ecn::Capable0, &LineSettings { codel: None, ..settings }).1.marked, 0);
}

#[test]
fn duplicates_are_the_same_bytes_twice() {
    let mut line = Line::new(with(|line| line.duplicate = Probability::from_percent(10)), 8);
    let arrived = run(&mut line, 10_000, MILLISECOND);
    let doubled = line.counters().duplicated;
    assert!((820..=1_180).contains(&doubled), "{doubled}");
    let same = arrived.windows(2).filter(|pair| pair[0].1 == pair[1].1).count();
    assert_eq!(same as u64, doubled);
    assert_eq!(arrived.len() as u64, 10_000 + doubled);
    assert_eq!(line.counters().reordered, 0);
}

#[test]
fn reordered_packets_are_overtaken_and_not_lost() {
    let settings = with(|line| {
        line.reorder = Probability::from_percent(10);
        line.reorder_by = 5 * MILLISECOND;
    });
    let mut line = Line::new(settings, 9);
    let arrived = run(&mut line, 10_000, MILLISECOND);
    let mut numbers: Vec<u32> = arrived.iter().map(|(_, packet)| number_of(packet)).collect();
    let backwards = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(backwards > 500, "{backwards}");
    let reordered = line.counters().reordered;
    assert!((820..=1_180).contains(&reordered), "{reordered}");
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..10_000));
}

#[test]
fn corruption_changes_up_to_three_bytes_and_keeps_the_size() {
    let mut line = Line::new(with(|line| line.corrupt = Probability::ALWAYS), 10);
    let mut by_count = [0u32; 4];
    for _ in 0..1_000 {
        line.handle_packet(Duration::ZERO, vec![0x11; 64]);
        let packet = line.poll_delivery(Duration::ZERO).expect("a packet").bytes;
        assert_eq!(packet.len(), 64);
        by_count[packet.iter().filter(|&&byte| byte != 0x11).count()] += 1;
    }
    assert_eq!(by_count[0], 0, "a packet came through unchanged");
    assert!(by_count[1..].iter().all(|&count| count > 200), "{by_count:?}");
    assert_eq!(line.counters().corrupted, 1_000);
    // A packet without bytes has nothing to change.
    line.handle_packet(Duration::ZERO, Vec::new());
    assert_eq!(line.poll_delivery(Duration::ZERO), Some(Vec::new().into()));
    assert_eq!(line.counters().corrupted, 1_000);
}

#[test]
fn larger_packets_than_the_line_takes_are_lost() {
    let mut line = Line::new(with(|line| line.packet_bytes_max = Some(1_200)), 11);
    line.handle_packet(Duration::ZERO, vec![0; 1_200]);
    line.handle_packet(Duration::ZERO, vec![0; 1_201]);
    assert_eq!(line.poll_delivery(Duration::ZERO).map(|packet| packet.bytes.len()), Some(1_200));
    assert_eq!(line.poll_delivery(Duration::ZERO), None);
    assert_eq!(line.counters().lost_size, 1);
}

#[test]
fn a_cut_loses_what_is_on_its_way_and_a_healed_line_works_again() {
    let good = with(|line| {
        line.delay = 10 * MILLISECOND;
        line.duplicate = Probability::ALWAYS;
    });
    let mut line = Line::new(good.clone(), 12);
    line.handle_packet(Duration::ZERO, vec![1]);
    line.change_settings(LineSettings { cut: true, ..good.clone() });
    assert_eq!(line.poll_timeout(), None);
    line.handle_packet(MILLISECOND, vec![2]);
    // The doubled packet is one lost packet.
    assert_eq!((line.counters().lost_cut, line.counters().delivered), (2, 0));
    line.change_settings(good);
    line.handle_packet(2 * MILLISECOND, vec![3]);
    assert_eq!(line.poll_delivery(12 * MILLISECOND), Some(vec![3].into()));
}

#[test]
fn what_waits_is_bounded_without_a_rate_too() {
    let mut line = Line::new(with(|line| line.delay = MILLISECOND), 13);
    let packets = BYTES_WAITING_MAX / 65_536;
    for _ in 0..packets + 5 {
        line.handle_packet(Duration::ZERO, vec![0; 65_536]);
    }
    assert_eq!(line.waiting_count() as u64, packets);
    assert_eq!(line.counters().lost_queue, 5);
}

#[test]
fn the_same_seed_gives_the_same_history_and_another_seed_another() {
    let all_faults = with(|line| {
        line.delay = 10 * MILLISECOND;
        line.jitter = 5 * MILLISECOND;
        line.rate_bits = Some(9_000_000);
        line.loss = Probability::from_percent(3);
        line.burst = Some(BurstLoss::averaging(Probability::from_percent(2), 4));
        line.reorder = Probability::from_percent(4);
        line.duplicate = Probability::from_percent(5);
        line.corrupt = Probability::from_percent(6);
    });
    let history = |seed| {
        let mut line = Line::new(all_faults.clone(), seed);
        let arrived = run(&mut line, 5_000, MILLISECOND);
        let counters = line.counters();
        // Each packet that came in is delivered or lost under one cause.
        assert_eq!(counters.taken, counters.delivered - counters.duplicated + counters.lost());
        (arrived, counters)
    };
    assert!(history(14) == history(14));
    assert!(history(14) != history(15));
}
