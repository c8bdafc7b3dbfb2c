//! The UDP driver of the emulator: two sockets, a line each way between them.
//!
//! Node A is configured with the emulator's A side as its peer, node B with the B side. What A sends to the A side goes
//! through the model and leaves the B side towards B, so each node sees a peer with one fixed address. A node that is
//! not named in the settings is the first one that sends to its side.
//!
//! The driver has a thread of its own and needs no runtime. It decides nothing: chances, delays, queues and their marks (ECN) are the
//! model's.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use noq_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use link_model::{Ecn, Line, LineCounters, LineSettings, Packet};

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where node A is.
    A,
    /// Where node B is.
    B,
}

/// How an emulator starts.
#[derive(Clone, Debug)]
pub struct EmulatorSettings {
    /// The address that node A sends to; port 0 takes a free one.
    pub a_side: SocketAddr,
    /// The address that node B sends to; port 0 takes a free one.
    pub b_side: SocketAddr,
    /// Node A; when not given, the first that sends to the A side.
    pub a: Option<SocketAddr>,
    /// Node B; when not given, the first that sends to the B side.
    pub b: Option<SocketAddr>,
    /// The way from A to B.
    pub a_to_b: LineSettings,
    /// The way from B to A.
    pub b_to_a: LineSettings,
    /// Decides all chances, both ways.
    pub seed: u64,
}

impl EmulatorSettings {
    /// Both sides on free ports of 127.0.0.1, the same line both ways, the nodes found by what they send.
    pub fn local(line: LineSettings, seed: u64) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { a_side: any_port, b_side: any_port, a: None, b: None, a_to_b: line.clone(), b_to_a: line, seed }
    }
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// From A to B.
    pub a_to_b: LineCounters,
    /// From B to A.
    pub b_to_a: LineCounters,
    /// Packets from an address that is neither node; dropped.
    pub strangers: u64,
    /// Packets that arrived before the node they are for was known; dropped.
    pub unaddressed: u64,
    /// Packets that the kernel would not send.
    pub send_failed: u64,
}

/// Why an emulator does not start.
#[derive(Debug, Error)]
pub enum EmulatorError {
    /// The address cannot be had.
    #[error("Cannot listen on {address}; is another program using it?")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something else that the kernel refused.
    #[error("Cannot prepare the emulator: {what}")]
    Prepare {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A running emulator of one link. Dropping it stops it.
#[derive(Debug)]
pub struct Emulator {
    shared: Arc<Shared>,
    wake: UnixStream,
    a_side: SocketAddr,
    b_side: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Takes the two addresses and starts to carry packets.
    ///
    /// # Errors
    /// When an address cannot be had or the kernel refuses a socket, a wake-up pipe or a thread.
    pub fn start(settings: EmulatorSettings) -> Result<Self, EmulatorError> {
        let a_port = Port::open(settings.a_side)?;
        let b_port = Port::open(settings.b_side)?;
        let (wake, woken) = UnixStream::pair().map_err(prepare("a wake-up pipe"))?;
        wake.set_nonblocking(true).and_then(|()| woken.set_nonblocking(true)).map_err(prepare("a wake-up pipe"))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                // The two ways must not share their chances, or both would lose the same packets.
                lines: [Line::new(settings.a_to_b, settings.seed), Line::new(settings.b_to_a, !settings.seed)],
                nodes: [settings.a, settings.b],
                statistics: Statistics::default(),
                stopping: false,
            }),
            changed: Condvar::new(),
        });
        let (a_side, b_side) = (a_port.address, b_port.address);
        let driver = Driver { shared: Arc::clone(&shared), ports: [a_port, b_port], woken, origin: Instant::now() };
        let thread = std::thread::Builder::new()
            .name("link-emulator".to_owned())
            .spawn(move || driver.run())
            .map_err(prepare("a thread"))?;
        Ok(Self { shared, wake, a_side, b_side, thread: Some(thread) })
    }

    /// The address that node A sends to.
    pub fn a_side(&self) -> SocketAddr {
        self.a_side
    }

    /// The address that node B sends to.
    pub fn b_side(&self) -> SocketAddr {
        self.b_side
    }

    /// Names the node on one side, in place of the one before.
    pub fn set_node(&self, side: Side, node: SocketAddr) {
        self.shared.lock().nodes[side as usize] = Some(node);
    }

    /// Changes what the line does, both ways; the change is given each way's settings in turn (A to B first).
    pub fn change(&self, mut change: impl FnMut(&mut LineSettings)) {
        self.change_way(Side::A, &mut change);
        self.change_way(Side::B, &mut change);
    }

    /// Changes what the line does to the packets that come from one side.
    pub fn change_way(&self, from: Side, change: impl FnOnce(&mut LineSettings)) {
        {
            let mut state = self.shared.lock();
            let line = &mut state.lines[from as usize];
            let mut settings = line.settings().clone();
            change(&mut settings);
            line.change_settings(settings);
        }
        self.wake_up();
    }

    /// What the line does to the packets that come from one side.
    pub fn line_settings(&self, from: Side) -> LineSettings {
        self.shared.lock().lines[from as usize].settings().clone()
    }

    /// Cuts the line, both ways.
    pub fn cut(&self) {
        self.change(|line| line.cut = true);
    }

    /// Ends a cut, both ways. Everything else stays as it was set.
    pub fn heal(&self) {
        self.change(|line| line.cut = false);
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().statistics()
    }

    /// Waits until the statistics are as wanted; false when that has not come about in `limit`.
    pub fn wait_until(&self, limit: Duration, mut wanted: impl FnMut(&Statistics) -> bool) -> bool {
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), limit, |state| !wanted(&state.statistics()))
            .unwrap_or_else(PoisonError::into_inner);
        wanted(&state.statistics())
    }

    fn wake_up(&self) {
        // A full pipe already wakes the thread, so an error here changes nothing.
        let _ = io::Write::write(&mut &self.wake, &[0]);
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.wake_up();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    /// By the side that the packets come from.
    lines: [Line; 2],
    nodes: [Option<SocketAddr>; 2],
    statistics: Statistics,
    stopping: bool,
}

impl State {
    fn statistics(&self) -> Statistics {
        Statistics { a_to_b: self.lines[0].counters(), b_to_a: self.lines[1].counters(), ..self.statistics }
    }
}

struct Port {
    socket: UdpSocket,
    offload: UdpSocketState,
    address: SocketAddr,
}

impl Port {
    fn open(address: SocketAddr) -> Result<Self, EmulatorError> {
        const BUFFER_BYTES: usize = 16 << 20;
        let listen = |source| EmulatorError::Listen { address, source };
        let socket = UdpSocket::bind(address).map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let offload = UdpSocketState::new((&socket).into()).map_err(prepare("the socket's options"))?;
        // Large buffers, so that what is lost is lost by the model. Only root gets all of it; others get the limit.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES);
        }
        let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES);
        Ok(Self { socket, offload, address })
    }
}

struct Driver {
    shared: Arc<Shared>,
    ports: [Port; 2],
    woken: UnixStream,
    origin: Instant,
}

/// The largest payload handed to the kernel at once, under the 65,507 bytes that fit a UDP packet.
const SEND_BYTES_MAX: usize = 65_000;
/// So many packets leave between two looks at what arrives.
const SEND_PACKETS_MAX: usize = 512;
/// So many reads of one socket before the other gets its turn.
const RECEIVE_ROUNDS_MAX: usize = 4;

impl Driver {
    fn run(self) {
        let mut receive_space = vec![0; BATCH_SIZE * 65_536];
        let mut send_space = Vec::with_capacity(SEND_BYTES_MAX);
        loop {
            for from in [Side::A, Side::B] {
                self.receive(from, &mut receive_space);
            }
            for from in [Side::A, Side::B] {
                self.deliver(from, &mut send_space);
            }
            self.shared.changed.notify_all();
            let timeout = {
                let state = self.shared.lock();
                if state.stopping {
                    return;
                }
                let due_at = state.lines.iter().filter_map(Line::poll_timeout).min();
                due_at.map(|due_at| due_at.saturating_sub(self.origin.elapsed()))
            };
            self.wait(timeout);
        }
    }

    fn wait(&self, timeout: Option<Duration>) {
        let mut sources = [
            PollFd::new(self.ports[0].socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ports[1].socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted wait is an early wake-up, which is harmless.
        let _ = ppoll(&mut sources, timeout.map(TimeSpec::from), None);
        let mut bytes = [0; 64];
        while matches!(io::Read::read(&mut &self.woken, &mut bytes), Ok(count) if count > 0) {}
    }

    fn receive(&self, from: Side, space: &mut [u8]) {
        let port = &self.ports[from as usize];
        for _ in 0..RECEIVE_ROUNDS_MAX {
            let mut metas = [RecvMeta::default(); BATCH_SIZE];
            let received = {
                let mut buffers: Vec<IoSliceMut<'_>> = space.chunks_mut(65_536).map(IoSliceMut::new).collect();
                port.offload.recv((&port.socket).into(), &mut buffers, &mut metas)
            };
            // Nothing there, or an error that a peer can cause (a refused port): either way there is nothing to carry.
            let Ok(count) = received else { return };
            let now = self.origin.elapsed();
            let mut state = self.shared.lock();
            for (meta, bytes) in metas.iter().zip(space.chunks(65_536)).take(count) {
                state.take(from, now, meta, bytes);
            }
        }
    }

    fn deliver(&self, from: Side, space: &mut Vec<u8>) {
        let packets: Vec<Packet> = {
            let now = self.origin.elapsed();
            let line = &mut self.shared.lock().lines[from as usize];
            std::iter::from_fn(|| line.poll_delivery(now)).take(SEND_PACKETS_MAX).collect()
        };
        if packets.is_empty() {
            return;
        }
        let to = match from {
            Side::A => Side::B,
            Side::B => Side::A,
        };
        let Some(destination) = self.shared.lock().nodes[to as usize] else {
            self.shared.lock().statistics.unaddressed += packets.len() as u64;
            return;
        };
        let port = &self.ports[to as usize];
        let mut rest = packets.as_slice();
        while let Some(segment) = rest.first() {
            let run = run_of_segments(rest, port.offload.max_gso_segments().get());
            let (now, later) = rest.split_at(run);
            rest = later;
            space.clear();
            now.iter().for_each(|packet| space.extend_from_slice(&packet.bytes));
            let transmit = Transmit {
                destination,
                ecn: EcnCodepoint::from_bits(segment.ecn as u8),
                contents: space,
                segment_size: (run > 1).then_some(segment.bytes.len()),
                src_ip: None,
            };
            if send(port, &transmit).is_err() {
                self.shared.lock().statistics.send_failed += run as u64;
            }
        }
    }
}

impl State {
    fn take(&mut self, from: Side, now: Duration, meta: &RecvMeta, bytes: &[u8]) {
        let node = *self.nodes[from as usize].get_or_insert(meta.addr);
        let ecn = meta.ecn.map_or(Ecn::Absent, |ecn| Ecn::from_bits(ecn as u8));
        let packet = |bytes: &[u8]| Packet { ecn, bytes: bytes.to_vec() };
        let bytes = bytes.get(..meta.len).unwrap_or_default();
        if bytes.is_empty() {
            self.take_packet(from, now, node == meta.addr, packet(bytes));
        }
        for bytes in bytes.chunks(meta.stride.max(1)) {
            self.take_packet(from, now, node == meta.addr, packet(bytes));
        }
    }

    fn take_packet(&mut self, from: Side, now: Duration, known: bool, packet: Packet) {
        if known {
            self.lines[from as usize].handle_packet(now, packet);
        } else {
            self.statistics.strangers += 1;
        }
    }
}

/// How many packets from the start the kernel can send as segments of one: all with one mark and of one size, the last may be smaller.
fn run_of_segments(packets: &[Packet], segments_max: usize) -> usize {
    let Some(first) = packets.first().filter(|first| !first.bytes.is_empty()) else {
        return 1;
    };
    let size = first.bytes.len();
    let limit = segments_max.min(SEND_BYTES_MAX / size).max(1);
    let alike = packets.iter().take(limit).take_while(|packet| packet.ecn == first.ecn);
    let sizes = || alike.clone().map(|packet| packet.bytes.len());
    let same = sizes().take_while(|other| *other == size).count();
    let smaller_follows = sizes().nth(same).is_some_and(|next| (1..size).contains(&next));
    same + usize::from(smaller_follows)
}

/// Sends; waits while the kernel's buffer is full, because losing is the model's task.
fn send(port: &Port, transmit: &Transmit<'_>) -> io::Result<()> {
    loop {
        match port.offload.try_send((&port.socket).into(), transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut sources = [PollFd::new(port.socket.as_fd(), PollFlags::POLLOUT)];
                let _ = ppoll(&mut sources, None, None);
            }
            sent => return sent,
        }
    }
}

fn prepare(what: &'static str) -> impl Fn(io::Error) -> EmulatorError {
    move |source| EmulatorError::Prepare { what, source }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
