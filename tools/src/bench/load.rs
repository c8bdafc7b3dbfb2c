//! What is done to a volume while a line is measured, and how its effects are taken.

use crate::{
    nbd_client::{NbdClient, NbdRequest},
    sites::Sites,
};
use anyhow::{anyhow, bail};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const SAMPLE_EVERY: Duration = Duration::from_millis(5);
const CHUNK: usize = 256 << 10;
const LOAD_CHUNK: usize = 16 << 10;
const BLOCK: usize = 4096;
/// No more than the volume and its journal hold.
const BACKLOG_BYTES_MAX: f64 = 3.0 * (1 << 30) as f64;

/// Milliseconds of each write, one after the other.
///
/// # Errors
/// When one fails.
pub fn latencies(client: &mut NbdClient, took: Duration) -> anyhow::Result<Vec<f64>> {
    let (start, mut all, mut content) = (Instant::now(), Vec::new(), Content::new());
    while start.elapsed() < took {
        let begin = Instant::now();
        client.write(place(client, all.len() as u64), content.next(BLOCK))?;
        all.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(all)
}

/// Random writes of 4 KiB a second, so many of them under way all the time, after a warm-up.
///
/// # Errors
/// When one fails.
pub fn write_rate(client: &mut NbdClient, depth: usize, warm_up: Duration, took: Duration) -> anyhow::Result<f64> {
    let (start, mut count, mut content) = (Instant::now(), 0u64, Content::new());
    let mut before = None;
    loop {
        while client.pending_count() >= depth {
            client.complete()?;
        }
        let (offset, elapsed) = (place(client, count), start.elapsed());
        if before.is_none() && elapsed >= warm_up {
            before = Some((count, elapsed));
        }
        if let Some((before, since)) = before.filter(|(_, since)| elapsed >= *since + took) {
            client.complete_all()?;
            return Ok((count - before) as f64 / (elapsed - since).as_secs_f64());
        }
        client.submit(NbdRequest::Write { offset, data: content.next(BLOCK), durable: false })?;
        count += 1;
    }
}

/// Where the write of this number goes. An odd step meets every block of a volume whose size is a power of two.
pub(super) fn place(client: &NbdClient, number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (client.size() / BLOCK as u64) * BLOCK as u64
}

/// Does something while so many bytes a second are written.
///
/// # Errors
/// When a write fails, or what is done.
pub fn under_load(sites: &Sites, rate: f64, mut during: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut client = sites.client(0)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<()> {
            let (start, mut content, mut count) = (Instant::now(), Content::new(), 0u64);
            let places = client.size() / LOAD_CHUNK as u64;
            while !stop.load(Ordering::Relaxed) {
                while client.pending_count() >= 8 {
                    client.complete()?;
                }
                let offset = count % places * LOAD_CHUNK as u64;
                client.submit(NbdRequest::Write { offset, data: content.next(LOAD_CHUNK), durable: false })?;
                count += 1;
                // The load is a rate, not as much as there can be.
                let due = start + Duration::from_secs_f64((count * LOAD_CHUNK as u64) as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(client.complete_all()?)
        });
        let done = during();
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow!("The writer failed"))??;
        done
    })
}

/// One look at how old what the standby lacks is.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// When.
    pub at: Instant,
    /// How old, in milliseconds.
    pub millis: f64,
}

/// How old what the standby lacks is, sampled.
///
/// # Errors
/// When the node does not tell.
pub fn ages(sites: &Sites, took: Duration) -> anyhow::Result<Vec<Age>> {
    let (start, mut samples) = (Instant::now(), Vec::new());
    while start.elapsed() < took {
        let next = Instant::now() + SAMPLE_EVERY;
        let millis = sites.lag(0)?.micros as f64 / 1e3;
        samples.push(Age { at: Instant::now(), millis });
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(samples)
}

/// What becomes durable at the standby in so long, after a warm-up, in bits a second, while more is there than a line of
/// `rate_bits` can carry. `at_window` is called when the time that counts begins, and when it is over.
///
/// # Errors
/// When a write fails, or the standby was waited for with nothing left to send.
pub fn backlog_goodput(
    sites: &Sites,
    rate_bits: f64,
    [warm_up, took]: [Duration; 2],
    at_window: &mut dyn FnMut(),
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let size = backlog_bytes(rate_bits, warm_up + took);
    write_bytes(&mut sites.client(0)?, size)?;
    thread::sleep((start + warm_up).saturating_duration_since(Instant::now()));
    let (before, from) = (sites.lag(0)?.bytes, Instant::now());
    at_window();
    thread::sleep((from + took).saturating_duration_since(Instant::now()));
    let (after, lasted) = (sites.lag(0)?.bytes, from.elapsed());
    at_window();
    if after == 0 {
        bail!("{size:.0} bytes are no backlog for {:?}", warm_up + took);
    }
    Ok(before.saturating_sub(after) as f64 * 8.0 / lasted.as_secs_f64())
}

/// More than a line of `rate_bits` carries in so long.
pub fn backlog_bytes(rate_bits: f64, took: Duration) -> f64 {
    (rate_bits / 8.0 * took.as_secs_f64() * 1.1 + 1e6).min(BACKLOG_BYTES_MAX)
}

/// Writes so many bytes from the start, in whole chunks, a few requests in flight.
///
/// # Errors
/// When a write fails.
pub fn write_bytes(client: &mut NbdClient, size: f64) -> anyhow::Result<()> {
    let mut content = Content::new();
    for number in 0..(size / CHUNK as f64) as u64 {
        while client.pending_count() >= 8 {
            client.complete()?;
        }
        let offset = number * CHUNK as u64;
        client.submit(NbdRequest::Write { offset, data: content.next(CHUNK), durable: false })?;
    }
    Ok(client.complete_all()?)
}

/// What cannot be compressed and is not written twice.
struct Content {
    data: Vec<u8>,
    state: u64,
}

impl Content {
    fn new() -> Self {
        Self { data: Vec::new(), state: 1 }
    }

    fn next(&mut self, size: usize) -> &[u8] {
        self.data.resize(size, 0);
        for word in self.data.chunks_exact_mut(8) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        &self.data
    }
}

/// The figure that this share of all does not pass.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_figure_that_was_measured() {
        let figures: Vec<f64> = (1..=1000).map(f64::from).collect();
        let of = |share| percentile(&figures, share);
        assert_eq!([of(0.5), of(0.99), of(0.999), of(1.0)], [Some(500.0), Some(990.0), Some(999.0), Some(1000.0)]);
        assert_eq!((percentile(&[7.0], 0.5), percentile(&[], 0.5)), (Some(7.0), None));
    }
}
