//! The driver with real sockets. Every wait is for an event, with a limit that only a failure reaches.

use super::*;
use link_model::{Probability, QueueLimit};
use nix::sys::socket::sockopt::Ipv4Tos;

const LIMIT: Duration = Duration::from_secs(30);

struct Bench {
    emulator: Emulator,
    a: UdpSocket,
    b: UdpSocket,
}

fn bench(line: LineSettings) -> Bench {
    let node = || {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
        socket.set_read_timeout(Some(LIMIT)).expect("a limit");
        socket
    };
    let (a, b) = (node(), node());
    let mut settings = EmulatorSettings::local(line, 1);
    settings.a = Some(a.local_addr().expect("an address"));
    settings.b = Some(b.local_addr().expect("an address"));
    let emulator = Emulator::start(settings).expect("the emulator starts");
    Bench { emulator, a, b }
}

impl Bench {
    fn send_from_a(&self, bytes: &[u8]) {
        self.a.send_to(bytes, self.emulator.a_side()).expect("sent");
    }

    fn send_from_b(&self, bytes: &[u8]) {
        self.b.send_to(bytes, self.emulator.b_side()).expect("sent");
    }
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (size, from) = socket.recv_from(&mut bytes).expect("a packet arrives");
    bytes.truncate(size);
    (bytes, from)
}

#[test]
fn packets_cross_both_ways_and_come_from_the_fixed_address() {
    let bench = bench(LineSettings::default());
    bench.send_from_a(b"from a");
    assert_eq!(receive(&bench.b), (b"from a".to_vec(), bench.emulator.b_side()));
    bench.send_from_b(b"from b");
    assert_eq!(receive(&bench.a), (b"from b".to_vec(), bench.emulator.a_side()));
    // Every size arrives as it was, the empty packet too.
    for size in [0, 1, 1_200, 1_452, 9_000, 60_000] {
        bench.send_from_a(&vec![7; size]);
        assert_eq!(receive(&bench.b).0, vec![7; size]);
    }
}

#[test]
fn packets_of_mixed_sizes_keep_their_borders() {
    // Held for 20 ms, so that they leave together as segments of few large sends.
    let bench = bench(LineSettings { delay: Duration::from_millis(20), ..LineSettings::default() });
    let sizes = [1_200, 1_200, 1_200, 300, 1_200, 1_201, 0, 5, 5, 5, 4];
    for size in sizes {
        bench.send_from_a(&vec![size as u8; size]);
    }
    for size in sizes {
        assert_eq!(receive(&bench.b).0, vec![size as u8; size]);
    }
}

#[test]
fn congestion_marks_are_carried_and_set() {
    let queue = QueueLimit::Time(LIMIT);
    let bench = bench(LineSettings { rate_bits: Some(1_000_000), queue, ..LineSettings::default() });
    let mut reader = Reader::new(bench.b.try_clone().expect("a socket"));
    let send = |ecn: Ecn, bytes: &[u8]| {
        setsockopt(&bench.a, Ipv4Tos, &i32::from(ecn as u8)).expect("the socket's option");
        bench.send_from_a(bytes);
    };
    for ecn in [Ecn::Capable0, Ecn::Absent, Ecn::Capable1, Ecn::Experienced] {
        send(ecn, b"as it is");
        assert_eq!(reader.next(), Packet { ecn, bytes: b"as it is".to_vec() });
    }
    bench.emulator.change(|line| line.codel = Some(Duration::from_millis(5)));
    // What takes 10 ms each waits for half a second, unless this test is slower.
    let (start, mut marked) = (Instant::now(), 0);
    while marked == 0 {
        assert!(start.elapsed() < LIMIT, "nothing is marked");
        (0..50).for_each(|_| send(Ecn::Capable0, &[7; 1_250]));
        marked = (0..50).filter(|_| reader.next().ecn == Ecn::Experienced).count() as u64;
    }
    assert_eq!(marked, bench.emulator.statistics().a_to_b.marked);
}

/// Packets with and without a mark wait together, and leave in one turn.
#[test]
fn what_leaves_together_keeps_its_marks() {
    let bench = bench(LineSettings { delay: Duration::from_millis(20), ..LineSettings::default() });
    let sent: Vec<Packet> = [2, 2, 3, 3, 0, 2, 1, 1]
        .into_iter()
        .enumerate()
        .map(|(number, bits)| Packet { ecn: Ecn::from_bits(bits), bytes: vec![number as u8; 1_200] })
        .collect();
    for packet in &sent {
        setsockopt(&bench.a, Ipv4Tos, &i32::from(packet.ecn as u8)).expect("the socket's option");
        bench.send_from_a(&packet.bytes);
    }
    let mut reader = Reader::new(bench.b.try_clone().expect("a socket"));
    sent.iter().for_each(|packet| assert_eq!(reader.next(), *packet));
}

/// A socket's packets with their marks.
struct Reader {
    socket: UdpSocket,
    state: UdpSocketState,
    read: std::collections::VecDeque<Packet>,
}

impl Reader {
    fn new(socket: UdpSocket) -> Self {
        let state = UdpSocketState::new((&socket).into()).expect("the socket's options");
        Self { socket, state, read: Default::default() }
    }

    fn next(&mut self) -> Packet {
        while self.read.is_empty() {
            let mut sources = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let is_there = ppoll(&mut sources, Some(TimeSpec::from(LIMIT)), None).expect("a wait");
            assert!(is_there > 0, "no packet arrives");
            let (mut space, mut metas) = (vec![0; 65_536], [RecvMeta::default()]);
            let mut buffers = [IoSliceMut::new(&mut space)];
            if self.state.recv((&self.socket).into(), &mut buffers, &mut metas).is_ok() {
                let [meta] = metas;
                let ecn = meta.ecn.map_or(Ecn::Absent, |ecn| Ecn::from_bits(ecn as u8));
                let bytes = space[..meta.len].chunks(meta.stride);
                self.read.extend(bytes.map(|bytes| Packet { ecn, bytes: bytes.to_vec() }));
            }
        }
        self.read.pop_front().expect("it was filled")
    }
}

#[test]
fn delay_takes_at_least_its_time() {
    let bench = bench(LineSettings { delay: Duration::from_millis(30), ..LineSettings::default() });
    let start = Instant::now();
    bench.send_from_a(b"late");
    receive(&bench.b);
    assert!(start.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_cut_line_loses_everything_until_it_is_healed() {
    let bench = bench(LineSettings::default());
    bench.emulator.cut();
    bench.send_from_a(b"lost");
    bench.send_from_b(b"lost");
    assert!(
        bench
            .emulator
            .wait_until(LIMIT, |statistics| { statistics.a_to_b.lost_cut == 1 && statistics.b_to_a.lost_cut == 1 })
    );
    bench.emulator.heal();
    bench.send_from_a(b"through");
    assert_eq!(receive(&bench.b).0, b"through");
}

#[test]
fn a_packet_on_its_way_is_lost_by_a_cut() {
    let bench = bench(LineSettings { delay: Duration::from_secs(3_600), ..LineSettings::default() });
    bench.send_from_a(b"on its way");
    assert!(bench.emulator.wait_until(LIMIT, |statistics| statistics.a_to_b.taken == 1));
    bench.emulator.cut();
    let counters = bench.emulator.statistics().a_to_b;
    assert_eq!((counters.lost_cut, counters.delivered), (1, 0));
}

#[test]
fn one_way_can_be_bad_alone() {
    let bench = bench(LineSettings::default());
    bench.emulator.change_way(Side::A, |line| line.loss = Probability::ALWAYS);
    bench.send_from_a(b"lost");
    bench.send_from_b(b"through");
    assert_eq!(receive(&bench.a).0, b"through");
    assert!(bench.emulator.wait_until(LIMIT, |statistics| statistics.a_to_b.lost_random == 1));
    assert_eq!(bench.emulator.statistics().b_to_a.lost(), 0);
}

#[test]
fn strangers_do_not_get_through() {
    let bench = bench(LineSettings::default());
    let stranger = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    stranger.send_to(b"strange", bench.emulator.a_side()).expect("sent");
    assert!(bench.emulator.wait_until(LIMIT, |statistics| statistics.strangers == 1));
    bench.send_from_a(b"known");
    assert_eq!(receive(&bench.b).0, b"known");
}

#[test]
fn nodes_that_are_not_named_are_found_by_what_they_send() {
    let mut settings = EmulatorSettings::local(LineSettings::default(), 1);
    let (a, b) =
        (UdpSocket::bind(("127.0.0.1", 0)).expect("a socket"), UdpSocket::bind(("127.0.0.1", 0)).expect("a socket"));
    settings.a = None;
    let emulator = Emulator::start(settings).expect("the emulator starts");
    b.set_read_timeout(Some(LIMIT)).expect("a limit");
    a.set_read_timeout(Some(LIMIT)).expect("a limit");
    a.send_to(b"nobody there yet", emulator.a_side()).expect("sent");
    assert!(emulator.wait_until(LIMIT, |statistics| statistics.unaddressed == 1));
    b.send_to(b"hello", emulator.b_side()).expect("sent");
    assert_eq!(receive(&a).0, b"hello");
    a.send_to(b"hello yourself", emulator.a_side()).expect("sent");
    assert_eq!(receive(&b).0, b"hello yourself");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    let address = taken.local_addr().expect("an address");
    let mut settings = EmulatorSettings::local(LineSettings::default(), 1);
    settings.b_side = address;
    let error = Emulator::start(settings).expect_err("the address is taken");
    assert_eq!(error.to_string(), format!("Cannot listen on {address}; is another program using it?"));
}

#[test]
fn ten_thousand_packets_are_all_accounted_for() {
    let bench = bench(LineSettings {
        loss: Probability::from_percent(3),
        duplicate: Probability::from_percent(2),
        ..LineSettings::default()
    });
    // In step with the receiver, so that no kernel buffer decides anything.
    for _ in 0..500 {
        let before = bench.emulator.statistics().a_to_b;
        for _ in 0..20 {
            bench.send_from_a(&[9; 1_200]);
        }
        assert!(bench.emulator.wait_until(LIMIT, |statistics| {
            let now = statistics.a_to_b;
            now.taken == before.taken + 20 && now.delivered + now.lost() == now.taken + now.duplicated
        }));
        let delivered = bench.emulator.statistics().a_to_b.delivered - before.delivered;
        for _ in 0..delivered {
            assert_eq!(receive(&bench.b).0.len(), 1_200);
        }
    }
    let counters = bench.emulator.statistics().a_to_b;
    assert!((150..=450).contains(&counters.lost_random), "{counters:?}");
    assert!((80..=330).contains(&counters.duplicated), "{counters:?}");
}
