//! Memory for what is under way: so much for each connection, and so much for all of a server.
//!
//! A permit lasts from before a payload is read until the reply is written, so whoever neither sends nor reads keeps what it has. It
//! must not keep the others out: a connection with nothing under way has a small request served whatever the others hold, and one
//! that stands still is ended when others wait.

use std::{cell::Cell, future::Future, io, pin::pin, rc::Rc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};
use tracing::warn;

/// Connections of a server.
const CONNECTION_COUNT_MAX: usize = 256;
/// Bytes of a page.
const PAGE: u32 = 4096;
/// Pages of a connection: 64 MiB. At least two of the largest requests, so that one is answered while the other is read.
const OWN_PAGES_MAX: u32 = 16 << 10;
/// Pages of all connections: 1 GiB.
const ALL_PAGES_MAX: u32 = 256 << 10;
/// A request of at most so many pages is small: 1 MiB.
const SMALL_PAGES_MAX: u32 = 256;
/// A connection may stand still so long while others wait.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Permits that live in an `Rc`, because everything here is one thread.
pub struct Permit {
    semaphore: Rc<Semaphore>,
    count: u32,
}

impl Permit {
    /// Waits for `count` of a semaphore that is never closed.
    pub async fn of(semaphore: &Rc<Semaphore>, count: u32) -> Self {
        if let Ok(permit) = semaphore.acquire_many(count).await {
            permit.forget();
        }
        Self { semaphore: semaphore.clone(), count }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.count as usize);
    }
}

/// The room of a server.
pub struct Room {
    pages: Rc<Semaphore>,
    waiting: Cell<usize>,
    connections: Cell<usize>,
    is_told: Cell<bool>,
    standstill: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self::new(ALL_PAGES_MAX, STANDSTILL)
    }
}

impl Room {
    fn new(pages: u32, standstill: Duration) -> Self {
        Self {
            pages: Rc::new(Semaphore::new(pages as usize)),
            waiting: Cell::new(0),
            connections: Cell::new(0),
            is_told: Cell::new(false),
            standstill,
        }
    }

    /// The share of one more connection; `None` if there are too many.
    pub fn let_in(self: &Rc<Self>) -> Option<Share> {
        let count = self.connections.get();
        if count >= CONNECTION_COUNT_MAX {
            if !self.is_told.replace(true) {
                warn!(connections = count, "No more NBD clients are let in until one goes");
            }
            return None;
        }
        self.is_told.set(false);
        self.connections.set(count + 1);
        Some(Share { room: self.clone(), pages: Rc::new(Semaphore::new(OWN_PAGES_MAX as usize)) })
    }
}

/// The share of one connection.
pub struct Share {
    room: Rc<Room>,
    pages: Rc<Semaphore>,
}

/// Memory of one request.
pub struct Taken {
    _own: Permit,
    /// None of the server's for what is always served.
    _of_all: Option<Permit>,
}

impl Share {
    /// Waits for memory for a request.
    pub async fn take(&self, bytes: u32) -> Taken {
        let pages = bytes.div_ceil(PAGE).clamp(1, OWN_PAGES_MAX);
        let is_alone = self.pages.available_permits() == OWN_PAGES_MAX as usize;
        let own = Permit::of(&self.pages, pages).await;
        let is_served = is_alone && pages <= SMALL_PAGES_MAX;
        let of_all = if is_served { None } else { Some(self.of_all(pages).await) };
        Taken { _own: own, _of_all: of_all }
    }

    async fn of_all(&self, pages: u32) -> Permit {
        let _waiting = Waiting::new(&self.room.waiting);
        Permit::of(&self.room.pages, pages).await
    }

    /// Waits for a step of the connection, for ever unless others wait too.
    ///
    /// # Errors
    /// When they have waited for too long.
    pub async fn step<T>(&self, step: impl Future<Output = T>) -> io::Result<T> {
        let mut step = pin!(step);
        loop {
            match timeout(self.room.standstill, &mut step).await {
                Ok(done) => return Ok(done),
                Err(_) if self.room.waiting.get() > 0 => {
                    warn!("An NBD client that stands still is cut off, for others wait for the memory that it holds");
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(_) => {}
            }
        }
    }
}

/// One more that waits, as long as it does.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.update(|count| count + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.update(|count| count - 1);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.connections.update(|count| count - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::task::yield_now;

    const MIB: u32 = 1 << 20;

    fn room(size: u32) -> Rc<Room> {
        Rc::new(Room::new(size / PAGE, Duration::ZERO))
    }

    async fn has_room(share: &Share, size: u32) -> bool {
        tokio::select! {
            biased;
            _ = share.take(size) => true,
            () = ready(()) => false,
        }
    }

    #[tokio::test]
    async fn whoever_keeps_all_the_memory_keeps_nobody_from_a_small_request() {
        let room = room(64 * MIB);
        let [hoards, works] = [(); 2].map(|()| room.let_in().unwrap());
        let held = [hoards.take(32 * MIB).await, hoards.take(32 * MIB).await];
        assert!(!has_room(&hoards, 1).await, "a connection has no more than its share");
        assert!(has_room(&works, MIB).await && !has_room(&works, 2 * MIB).await);
        let small = works.take(MIB).await;
        assert!(!has_room(&works, 1).await, "one request is served whatever others hold, not any number");
        drop(small);
        assert!(has_room(&works, 1).await);
        drop(held);
        assert!(has_room(&works, 32 * MIB).await && has_room(&hoards, 32 * MIB).await);
    }

    #[tokio::test]
    async fn whoever_stands_still_is_ended_when_others_wait() {
        let room = room(32 * MIB);
        let [hoards, works] = [(); 2].map(|()| room.let_in().unwrap());
        let held = hoards.take(32 * MIB).await;
        assert!(hoards.step(yield_now()).await.is_ok(), "nobody waits");
        let stands = async {
            assert!(hoards.step(pending::<()>()).await.is_err());
            drop(held);
        };
        tokio::join!(works.take(32 * MIB), stands);
    }

    #[test]
    fn so_many_connections_are_let_in_and_no_more() {
        let room = room(MIB);
        let mut shares: Vec<Share> = std::iter::from_fn(|| room.let_in()).collect();
        assert_eq!(shares.len(), CONNECTION_COUNT_MAX);
        shares.pop();
        assert!(room.let_in().is_some());
    }
}
