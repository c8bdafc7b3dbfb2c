//! Busy polling: for a while after anything has happened in a group the disk thread looks for work instead of sleeping.
//!
//! A thread that sleeps is woken by an interrupt, on a virtual machine by way of the host; a lone request waits for that twice, as
//! it comes and when the disk has done its part. Whoever has a processor to spare for it can have these times back.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// See the module. One for a disk thread.
pub struct BusyPoll {
    span: Duration,
    until: Cell<Instant>,
    begin: Notify,
}

impl BusyPoll {
    /// Polls for so long after each [`BusyPoll::touch`]; never if that is zero. Must be called inside a tokio-uring runtime.
    pub fn start(span: Duration) -> Rc<Self> {
        let poll = Rc::new(Self { span, until: Cell::new(Instant::now()), begin: Notify::new() });
        if !span.is_zero() {
            tokio_uring::spawn(poll.clone().run());
        }
        poll
    }

    /// Something happened; more of it may come soon.
    pub fn touch(&self) {
        if !self.span.is_zero() {
            self.until.set(Instant::now() + self.span);
            self.begin.notify_one();
        }
    }

    async fn run(self: Rc<Self>) {
        loop {
            self.begin.notified().await;
            while Instant::now() < self.until.get() {
                // It has ended when the ring is looked at, and the ring is looked at when no other task has anything to do: so
                // the thread goes round without sleeping, submits what was asked for, and sees what has come from elsewhere.
                if tokio_uring::no_op().await.is_err() {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_polls_after_a_touch_and_lets_others_run_meanwhile() {
        tokio_uring::start(async {
            let poll = BusyPoll::start(Duration::from_secs(3600));
            poll.touch();
            let (sender, receiver) = tokio::sync::oneshot::channel();
            // From another thread, which the polling must not shut out.
            let other = std::thread::spawn(move || sender.send(7));
            assert_eq!(receiver.await, Ok(7));
            // It stops when the time is over.
            poll.until.set(Instant::now());
            tokio_uring::no_op().await.unwrap();
            assert_eq!(other.join().unwrap(), Ok(()));
        });
    }
}
