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
/// How often what waits looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// Does something, and sends one datagram after the other meanwhile, each when the echo of the former one has come. How many
/// milliseconds each took.
///
/// # Errors
/// When that fails, or there are no sockets for it.
pub fn meanwhile(
    scenario: &Scenario,
    seed: u64,
    measure: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let emulator = Emulator::start(EmulatorSettings::local(line(scenario), seed)).context("The line for the echo")?;
    let socket = || -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("A socket for the echo")?;
        socket.set_read_timeout(Some(PATIENCE)).context("A socket for the echo")?;
        Ok(socket)
    };
    let [near, far] = [socket()?, socket()?];
    emulator.set_node(Side::A, near.local_addr()?);
    emulator.set_node(Side::B, far.local_addr()?);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| -> anyhow::Result<()> {
            while receive(&far, &is_over)? {
                far.send_to(&[0; SIZE], emulator.b_side())?;
            }
            Ok(())
        });
        let times = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            let mut times = Vec::new();
            loop {
                let start = Instant::now();
                near.send_to(&[0; SIZE], emulator.a_side())?;
                if !receive(&near, &is_over)? {
                    return Ok(times);
                }
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        });
        let done = measure();
        is_over.store(true, Relaxed);
        let ended = || anyhow!("The echo ended");
        echo.join().map_err(|_| ended())?.context("The echo")?;
        let times = times.join().map_err(|_| ended())?.context("The echo")?;
        done.map(|()| times)
    })
}

/// The nearer link without its losses.
fn line(scenario: &Scenario) -> LineSettings {
    let nearer = scenario.links.iter().min_by_key(|line| line.delay).cloned().unwrap_or_default();
    let LineSettings { delay, jitter, rate_bits, queue, .. } = nearer;
    LineSettings { delay, jitter, rate_bits, queue, ..LineSettings::default() }
}

/// Waits for a datagram; whether one came before it was over.
fn receive(socket: &UdpSocket, is_over: &AtomicBool) -> anyhow::Result<bool> {
    let mut space = [0; SIZE];
    while !is_over.load(Relaxed) {
        match socket.recv(&mut space) {
            Ok(_) => return Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("Receiving"),
        }
    }
    Ok(false)
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
        // What is measured is a datagram over a longer line.
        let longer = LineSettings { delay: Duration::from_millis(40), ..LineSettings::default() };
        let longer = Emulator::start(EmulatorSettings::local(longer, 1)).expect("a line");
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        longer.set_node(Side::A, from.local_addr().expect("an address"));
        longer.set_node(Side::B, to.local_addr().expect("an address"));
        let times = meanwhile(&lossy, 1, &mut || {
            from.send_to(&[1], longer.a_side())?;
            to.recv(&mut [0])?;
            Ok(())
        })
        .expect("echoes");
        // Both ways, each with a millisecond for the rate.
        assert!(times.iter().all(|millis| *millis > 7.0), "{times:?}");
        assert!(meanwhile(&lossy, 1, &mut || Err(anyhow!("no"))).is_err());
    }
}
