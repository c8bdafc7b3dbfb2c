//! Our rate model as the congestion controller of a QUIC connection.

use crate::rate::RateModel;
use noq::congestion::{Controller, ControllerFactory, ControllerMetrics};
use noq_proto::RttEstimator;
use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

/// Makes a controller for each connection over a link.
#[derive(Debug)]
pub(super) struct RateFactory {
    /// Whether nothing is heard over the link, or not for long: then nothing is held back, and while it is silent only hellos are sent.
    /// What was on its way when the link was cut would else fill the window, and after a while QUIC itself tries only once a second.
    pub is_unproven: Arc<AtomicBool>,
}

impl ControllerFactory for RateFactory {
    fn build(self: Arc<Self>, now: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(RateController { start: now, model: RateModel::new(), is_unproven: self.is_unproven.clone() })
    }
}

#[derive(Clone, Debug)]
struct RateController {
    start: Instant,
    model: RateModel,
    is_unproven: Arc<AtomicBool>,
}

impl Controller for RateController {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: u64, limited: bool, rtt: &RttEstimator) {
        let [at, sent] = [now, sent].map(|at| at.duration_since(self.start).as_micros() as u64 + 1);
        // Not the age of this packet: a receiver may keep an acknowledgement back for 25 ms, which is no queue.
        let rtt = rtt.get().as_micros() as u64;
        self.model.acknowledged(at, sent, bytes, rtt, limited);
    }

    // Loss is what the code is for.
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, is_marked: bool, lost: u64, _: u64) {
        if is_marked {
            self.model.marked();
        } else {
            self.model.lost(lost);
        }
    }

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        if self.is_unproven.load(Relaxed) { u64::MAX } else { self.model.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.model.window();
        metrics.pacing_rate = self.model.pacing_rate();
        metrics.bandwidth_estimate = self.model.capacity().map(|rate| 8 * rate);
        metrics.send_quantum = Some(64 << 10);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        RateModel::new().window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_mark_makes_the_window_smaller_and_a_lost_packet_does_not() {
        let start = Instant::now();
        let mut controller = RateController { start, model: RateModel::new(), is_unproven: Arc::default() };
        // 10 MB/s, until the search for the rate is over.
        for number in 1..40_000 {
            let now = number * 120;
            controller.model.acknowledged(now, now.saturating_sub(20_000), 1_200, 20_000, false);
        }
        let mut event = |is_marked, lost| {
            controller.on_congestion_event(start + Duration::from_secs(5), start, false, is_marked, lost, 0);
            controller.window()
        };
        let before = event(false, 1_200);
        assert!(before > 300_000, "a window of {before}");
        let after = event(true, 0);
        assert!(after < before / 2, "{after} of {before}");
    }
}
