//! The IP driver of the emulator: two TUN devices, a line each way between them.
//!
//! What the kernel sends into one device comes out of the other when the model says so; with each device in a network
//! namespace of its own, TCP of the kernel itself runs over the line. The devices go when the driver is dropped.
//!
//! Like the UDP driver it has a thread of its own and decides nothing. Needs the right to make network devices.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::ip;
use link_model::{Ecn, Line, LineCounters, LineSettings, Packet};

/// The largest IP packet that a device takes.
const PACKET_BYTES_MAX: usize = 65_536;
/// So many packets of one device before the other gets its turn.
const PACKETS_IN_TURN_MAX: usize = 256;

/// A running line between two TUN devices. Dropping it ends both.
#[derive(Debug)]
pub struct TunLine {
    shared: Arc<Mutex<State>>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// By the device that the packets come from.
    lines: [Line; 2],
    stopping: bool,
}

impl TunLine {
    /// Makes devices of these names, which must be free, and starts to carry packets; the same line both ways.
    ///
    /// # Errors
    /// When the kernel refuses a device, which it does to all but root, or a thread.
    pub fn start(names: [&str; 2], settings: &LineSettings, seed: u64) -> io::Result<Self> {
        let device = |name: &str| -> io::Result<SyncDevice> {
            let device = DeviceBuilder::new().name(name).build_sync()?;
            device.set_nonblocking(true)?;
            Ok(device)
        };
        let devices = [device(names[0])?, device(names[1])?];
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        // The two ways must not share their chances, or both would lose the same packets.
        let lines = [Line::new(settings.clone(), seed), Line::new(settings.clone(), !seed)];
        let shared = Arc::new(Mutex::new(State { lines, stopping: false }));
        let driver = Driver { shared: Arc::clone(&shared), devices, woken, origin: Instant::now() };
        let thread = std::thread::Builder::new().name("tun-line".to_owned()).spawn(move || driver.run())?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    /// Changes what the line does, both ways.
    pub fn change(&self, mut change: impl FnMut(&mut LineSettings)) {
        for line in &mut lock(&self.shared).lines {
            let mut settings = line.settings().clone();
            change(&mut settings);
            line.change_settings(settings);
        }
        self.wake_up();
    }

    /// What happened so far, by the device that the packets came from.
    pub fn counters(&self) -> [LineCounters; 2] {
        let state = lock(&self.shared);
        [state.lines[0].counters(), state.lines[1].counters()]
    }

    fn wake_up(&self) {
        // A full pipe already wakes the thread, so an error here changes nothing.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for TunLine {
    fn drop(&mut self) {
        lock(&self.shared).stopping = true;
        self.wake_up();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Driver {
    shared: Arc<Mutex<State>>,
    devices: [SyncDevice; 2],
    woken: UnixStream,
    origin: Instant,
}

impl Driver {
    fn run(self) {
        let mut space = vec![0; PACKET_BYTES_MAX];
        loop {
            let is_full = [0, 1].map(|from| self.receive(from, &mut space)).contains(&true);
            [0, 1].into_iter().for_each(|from| self.deliver(from));
            let due_at = {
                let state = lock(&self.shared);
                if state.stopping {
                    return;
                }
                state.lines.iter().filter_map(Line::poll_timeout).min()
            };
            if !is_full {
                self.wait(due_at.map(|due_at| due_at.saturating_sub(self.origin.elapsed())));
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) {
        let mut sources = [
            PollFd::new(self.devices[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(self.devices[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted wait is an early wake-up, which is harmless.
        let _ = ppoll(&mut sources, timeout.map(TimeSpec::from), None);
        let mut bytes = [0; 64];
        while matches!((&self.woken).read(&mut bytes), Ok(count) if count > 0) {}
    }

    /// Takes what a device has; true when there may be more.
    fn receive(&self, from: usize, space: &mut [u8]) -> bool {
        for _ in 0..PACKETS_IN_TURN_MAX {
            // Nothing there, or a device that is going away: either way there is nothing to carry.
            let Ok(size) = self.devices[from].recv(space) else { return false };
            let now = self.origin.elapsed();
            let bytes = space.get(..size).unwrap_or_default().to_vec();
            lock(&self.shared).lines[from].handle_packet(now, Packet { ecn: ip::ecn(&bytes), bytes });
        }
        true
    }

    fn deliver(&self, from: usize) {
        for _ in 0..PACKETS_IN_TURN_MAX {
            let now = self.origin.elapsed();
            let Some(Packet { ecn, mut bytes }) = lock(&self.shared).lines[from].poll_delivery(now) else { return };
            if ecn == Ecn::Experienced {
                ip::mark(&mut bytes);
            }
            // A device that is down takes nothing, as a host that is down.
            let _ = self.devices[1 - from].send(&bytes);
        }
    }
}
