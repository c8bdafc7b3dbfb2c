//! What a line and this machine take by themselves: an echo of one datagram over a line like the nearer one that loses nothing,
//! at the same time as what is measured. Whatever is slower than that by less than the echo's own spread was not slow.

use super::scenarios::Scenario;
use crate::emulator::{Emulator, EmulatorSettings, LineSettings, Side};
use anyhow::{Context, anyhow};
use std::{
    io::ErrorKind,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// As large as one of ours.
const SIZE: usize = 1_200;
/// Who waits for longer than this and the line's round trip has lost a datagram in this machine: the next one is sent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does something, and sends one datagram after the other meanwhile, each when the echo of the former one has come; at least one. How
/// many milliseconds each took.
///
/// # Errors
/// When that fails, or there are no sockets for it.
pub fn meanwhile(
    scenario: &Scenario,
    seed: u64,
    measure: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let line = line(scenario);
    let patience = PATIENCE + 2 * (line.delay + line.jitter);
    let emulator = Emulator::start(EmulatorSettings::local(line, seed)).context("The line for the echo")?;
    let socket = || -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("A socket for the echo")?;
        socket.set_read_timeout(Some(patience)).context("A socket for the echo")?;
        Ok(socket)
    };
    let [near, far] = [socket()?, socket()?];
    emulator.set_node(Side::A, near.local_addr()?);
    emulator.set_node(Side::B, far.local_addr()?);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let times = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            let mut times = Vec::new();
            for number in 0u64.. {
                let start = Instant::now();
                near.send_to(&datagram(number), emulator.a_side())?;
                if receive(&far, number)? {
                    far.send_to(&datagram(number), emulator.b_side())?;
                    if receive(&near, number)? {
                        times.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                }
                if is_over.load(Relaxed) {
                    break;
                }
            }
            Ok(times)
        });
        let done = {
            // Also when it panics: the scope waits for the echo.
            let _over = Over(&is_over);
            measure()
        };
        let times = times.join().map_err(|_| anyhow!("The echo ended"))?.context("The echo")?;
        done.map(|()| times)
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn datagram(number: u64) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Waits for this datagram; whether it came. What was waited for in vain before may come first.
fn receive(socket: &UdpSocket, number: u64) -> anyhow::Result<bool> {
    let mut space = [0; SIZE];
    loop {
        match socket.recv(&mut space) {
            Ok(_) if space == datagram(number) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("Receiving"),
        }
    }
}

/// The nearer link without its losses.
fn line(scenario: &Scenario) -> LineSettings {
    let nearer = scenario.links.iter().min_by_key(|line| line.delay).cloned().unwrap_or_default();
    let LineSettings { delay, jitter, rate_bits, queue, .. } = nearer;
    LineSettings { delay, jitter, rate_bits, queue, ..LineSettings::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenarios;
    use link_model::Probability;

    #[test]
    fn echoes_take_no_less_than_the_nearer_line_does() {
        let lossy = scenarios::custom(&["delay 30ms, rate 10mbit", "delay 3ms, rate 10mbit, loss 50%"]).expect("lines");
        let line = line(&lossy);
        assert_eq!(line, LineSettings { loss: Probability::NEVER, ..lossy.links[1].clone() });
        let times = meanwhile(&lossy, 1, &mut || Ok(())).expect("echoes");
        // Both ways, each with a millisecond for the rate.
        assert!(!times.is_empty() && times.iter().all(|millis| *millis > 7.0), "{times:?}");
        assert!(meanwhile(&lossy, 1, &mut || Err(anyhow!("no"))).is_err());
    }
}
