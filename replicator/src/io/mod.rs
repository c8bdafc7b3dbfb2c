//! The driver: QUIC connections, one a link, around a [`Session`].
//!
//! The node with the lower key dials; the other listens. One task drives the session and sends; each link has a task that keeps
//! a connection up and reads. Everything runs on the tokio runtime that [`connect`] is called in; a [`Handle`] can be used from
//! any thread.

mod heartbeat;
mod identity;
mod link;
mod rate;

pub use heartbeat::heartbeat;
pub use identity::{Identity, IdentityError, KeyTextError, PeerKey};

use crate::{
    ChannelId, Frame, LinkState, Mode, Received, SessionName, SessionStatus, coder,
    session::{Full, Session, SessionEvent, SessionOptions},
};
use link::{Keeper, LinkEvent, Place};
use noq::{ClientConfig, Connection, PathId};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::sleep_until,
};

/// How much may wait in a connection to be paced, as a time: it has chosen its link already, and what is urgent waits behind it.
const QUEUE: Duration = Duration::from_millis(5);
/// How soon a connection with a full queue is looked at again.
const REFILL: Duration = Duration::from_millis(1);
/// The queue in bytes while the rate is unknown, and at least.
const QUEUE_SIZE_FIRST: usize = 64 << 10;
const QUEUE_SIZE_MIN: usize = 4 << 10;
/// And at most: 5 ms at 1.6 Gbit/s.
const QUEUE_SIZE_MAX: usize = 1 << 20;
/// What the connection can hold: more, as it counts something for each datagram, and would drop the oldest.
const BUFFER_SIZE: usize = 2 * QUEUE_SIZE_MAX;
/// One link to the peer.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// For people.
    pub name: String,
    /// Where this node sends from and listens.
    pub local: SocketAddr,
    /// Where the peer does.
    pub remote: SocketAddr,
}

/// Who talks to whom, and how.
#[derive(Clone)]
pub struct NodeOptions {
    /// This node's key pair.
    pub identity: Identity,
    /// The peer's key.
    pub peer: PeerKey,
    /// One or two links.
    pub links: Vec<LinkOptions>,
    /// The session.
    pub session: SessionOptions,
}

/// Why a node could not begin to talk to its peer.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No links, or too many.
    #[error("A peer has one or two links, not {0}")]
    LinkCount(usize),
    /// A port is in use, say. An address that is not this machine's is waited for.
    #[error("Link {name}: cannot use the local address {local}: {source}")]
    Bind {
        /// The link's name.
        name: String,
        /// The address.
        local: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The key was not accepted.
    #[error("The node's key cannot be used: {0}")]
    Key(String),
    /// The same key at both ends.
    #[error("The peer's key is this node's own; ask the peer's administrator for `ublk-admin key`")]
    OwnKey,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A session has begun.
    Up {
        /// Its name.
        session: SessionName,
    },
    /// The session is over.
    Down {
        /// Why.
        reason: &'static str,
    },
    /// A frame has come. Say [`Handle::consumed`] when it is out of memory.
    Frame(Received),
    /// The peer has made something durable.
    Durable {
        /// The channel.
        channel: ChannelId,
        /// Up to where.
        value: u64,
    },
    /// A link changed.
    Link {
        /// Its name.
        link: String,
        /// What it is now.
        state: LinkState,
    },
    /// [`Handle::try_send`] has room again.
    Writable,
    /// A handshake failed, or a datagram was not acceptable.
    Refused {
        /// The link.
        link: String,
        /// Why.
        reason: String,
    },
}

struct Shared {
    session: Mutex<Session>,
    wake: Notify,
    start: Instant,
    names: Vec<String>,
    /// Bytes a second over each link; 0: not known.
    rates: [AtomicU64; 2],
    /// Whether nothing is heard over each link, or not for long.
    unproven: [Arc<AtomicBool>; 2],
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Session> {
        // A panic elsewhere leaves a session that is as good as any: the peer checks everything.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + 1
    }
}

/// The upper layers' end of a session.
///
/// They learn of another one later than it begins: so they say in which session they take themselves to be, and what is for one
/// that is over is passed over.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    stop: Arc<Notify>,
}

impl Handle {
    /// Takes a frame, or gives it back if the session is over or there is no room; [`Event::Writable`] or [`Event::Up`] tells
    /// when to try again.
    pub fn try_send(&self, session: SessionName, frame: Frame) -> Result<(), Full> {
        match self.current(session) {
            Some(mut session) => session.send(frame)?,
            None => return Err(Full(frame)),
        }
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Tells the peer that something is durable here.
    pub fn mark_durable(&self, session: SessionName, channel: ChannelId, value: u64) {
        let now = self.shared.now();
        if let Some(mut session) = self.current(session) {
            session.mark_durable(now, channel, value);
        }
        self.shared.wake.notify_one();
    }

    /// Frames of so many bytes are out of memory: the peer may send as many more.
    pub fn consumed(&self, session: SessionName, bytes: u64) {
        if let Some(mut session) = self.current(session) {
            session.consumed(bytes);
        }
    }

    /// The session, as long as it is this one.
    fn current(&self, name: SessionName) -> Option<MutexGuard<'_, Session>> {
        Some(self.shared.lock()).filter(|session| session.name() == Some(name))
    }

    /// Ends the session; another one begins at once.
    pub fn restart(&self) {
        let now = self.shared.now();
        self.shared.lock().restart(now);
        self.shared.wake.notify_one();
    }

    /// Changes how blocks are spread over the links.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.lock().set_mode(mode);
    }

    /// The session as it is now.
    pub fn status(&self) -> SessionStatus {
        let mut status = self.shared.lock().status(&self.shared.names);
        for (link, rate) in status.links.iter_mut().zip(&self.shared.rates) {
            link.rate = Some(rate.load(Relaxed)).filter(|rate| *rate > 0);
        }
        status
    }

    /// Stops talking to the peer.
    pub fn close(&self) {
        self.stop.notify_one();
    }
}

/// Begins to talk to a peer, in tasks of the current tokio runtime. `seed`: a random number.
pub fn connect(options: NodeOptions, seed: u64) -> Result<(Handle, mpsc::UnboundedReceiver<Event>), StartError> {
    if !(1..=2).contains(&options.links.len()) {
        return Err(StartError::LinkCount(options.links.len()));
    }
    if options.identity.public() == options.peer {
        return Err(StartError::OwnKey);
    }
    coder::warm_up();
    let dials = options.identity.public() < options.peer;
    let client = options.identity.client(options.peer).map_err(|error| StartError::Key(error.to_string()))?;
    let client = ClientConfig::new(Arc::new(client));
    let shared = Arc::new(Shared {
        session: Mutex::new(Session::new(options.session, seed, options.links.len())),
        wake: Notify::new(),
        start: Instant::now(),
        names: options.links.iter().map(|link| link.name.clone()).collect(),
        rates: Default::default(),
        unproven: Default::default(),
    });
    let (link_events, from_links) = mpsc::channel(256);
    let mut tasks = JoinSet::new();
    for (index, (link, is_unproven)) in options.links.iter().zip(&shared.unproven).enumerate() {
        let transport = Arc::new(link::transport(is_unproven.clone()));
        let (server, client) = if dials {
            let mut client = client.clone();
            client.transport_config(transport);
            (None, Some(client))
        } else {
            (Some(link::server(&options, transport)?), None)
        };
        let (place, events) = (Place { link: link.clone(), server }, link_events.clone());
        let bound = if_there(place.bind())?;
        tasks.spawn(async move {
            let endpoint = match bound {
                Some(endpoint) => endpoint,
                None => match place.bind_when_there(index, &events).await {
                    Some(endpoint) => endpoint,
                    None => return,
                },
            };
            Keeper { index, endpoint, remote: place.link.remote, client, events }.run().await;
        });
    }
    let (events, receiver) = mpsc::unbounded_channel();
    let handle = Handle { shared: shared.clone(), stop: Arc::new(Notify::new()) };
    tokio::spawn(drive(shared, handle.stop.clone(), from_links, events, tasks));
    Ok((handle, receiver))
}

/// What was bound, unless its address is not this machine's yet: an interface may come up later than this node.
fn if_there<T>(bound: Result<T, StartError>) -> Result<Option<T>, StartError> {
    match bound {
        Err(StartError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrNotAvailable => Ok(None),
        bound => bound.map(Some),
    }
}

async fn drive(
    shared: Arc<Shared>,
    stop: Arc<Notify>,
    mut from_links: mpsc::Receiver<LinkEvent>,
    events: mpsc::UnboundedSender<Event>,
    tasks: JoinSet<()>,
) {
    let mut connections: [Option<Connection>; 2] = [None, None];
    loop {
        let next_timeout = turn(&shared, &connections, &events);
        let deadline = next_timeout.map(|at| shared.start + Duration::from_micros(at));
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.notified() => break,
            () = shared.wake.notified() => {}
            () = timer => {}
            event = from_links.recv() => {
                let Some(event) = event else { break };
                take(&shared, &mut connections, &events, event);
                // More may have come; it is cheaper to look than to be woken.
                while let Ok(event) = from_links.try_recv() {
                    take(&shared, &mut connections, &events, event);
                }
            }
        }
        if events.is_closed() {
            break;
        }
    }
    drop(tasks);
}

fn take(
    shared: &Shared,
    connections: &mut [Option<Connection>; 2],
    events: &mpsc::UnboundedSender<Event>,
    event: LinkEvent,
) {
    let now = shared.now();
    let mut session = shared.lock();
    match event {
        LinkEvent::Open(link, connection) => {
            connections[link] = Some(connection);
            session.handle_link(now, link, true);
        }
        LinkEvent::Closed(link) => {
            connections[link] = None;
            session.handle_link(now, link, false);
        }
        LinkEvent::Datagrams(link, datagrams) => {
            for datagram in datagrams {
                if let Err(error) = session.handle_datagram(now, link, &datagram) {
                    refuse(shared, events, link, error.to_string());
                }
            }
        }
        LinkEvent::Refused(link, reason) => refuse(shared, events, link, reason),
    }
}

fn refuse(shared: &Shared, events: &mpsc::UnboundedSender<Event>, link: usize, reason: String) {
    let link = shared.names.get(link).cloned().unwrap_or_default();
    // A receiver that is gone ends the task at the next turn.
    let _ = events.send(Event::Refused { link, reason });
}

/// Lets the session do what it can now; when it wants to be called again.
fn turn(shared: &Shared, connections: &[Option<Connection>; 2], events: &mpsc::UnboundedSender<Event>) -> Option<u64> {
    let now = shared.now();
    let mut session = shared.lock();
    session.handle_timeout(now);
    while let Some(event) = session.poll_event() {
        let name = |link: usize| shared.names.get(link).cloned().unwrap_or_default();
        let _ = events.send(match event {
            SessionEvent::Up { session } => Event::Up { session },
            SessionEvent::Down { reason } => Event::Down { reason },
            SessionEvent::Frame(frame) => Event::Frame(frame),
            SessionEvent::Durable { channel, value } => Event::Durable { channel, value },
            SessionEvent::Link { link, state } => Event::Link { link: name(link), state },
            SessionEvent::Writable => Event::Writable,
        });
    }
    for (link, is_unproven) in shared.unproven.iter().enumerate() {
        is_unproven.store(session.is_unproven(now, link), Relaxed);
    }
    let refill = transmit(now, shared, &mut session, connections).then(|| now + REFILL.as_micros() as u64);
    [session.poll_timeout(), refill].into_iter().flatten().min()
}

/// Sends what the session has, as far as there is room; whether there may be more.
fn transmit(now: u64, shared: &Shared, session: &mut Session, connections: &[Option<Connection>; 2]) -> bool {
    let mut batches = [const { Vec::new() }; 2];
    let mut rooms = [0; 2];
    for (link, connection) in connections.iter().enumerate() {
        let rate = connection.as_ref().and_then(rate);
        shared.rates[link].store(rate.unwrap_or_default(), Relaxed);
        session.handle_rate(link, rate);
        rooms[link] = connection.as_ref().map_or(0, |connection| room(connection, rate));
    }
    let mut is_full = [0, 1].map(|link| connections[link].is_some() && rooms[link] == 0);
    // In turns, so that neither link waits for the other's whole queue to be filled.
    while rooms != [0; 2] {
        for link in 0..2 {
            if rooms[link] == 0 {
                continue;
            }
            let Some(datagram) = session.poll_transmit(now, link) else {
                rooms[link] = 0;
                continue;
            };
            rooms[link] = rooms[link].saturating_sub(datagram.len());
            is_full[link] = rooms[link] == 0;
            batches[link].push(datagram);
        }
    }
    for (connection, batch) in connections.iter().zip(&batches).filter(|(_, batch)| !batch.is_empty()) {
        // All datagrams fit; an error means that the connection is gone, which the task that reads says.
        let _ = connection.as_ref().map(|connection| connection.send_many_datagrams(batch));
    }
    is_full != [false; 2]
}

/// What a connection's path is thought to carry, in bytes a second.
fn rate(connection: &Connection) -> Option<u64> {
    connection.path_stats(PathId::ZERO).and_then(|path| path.bandwidth_estimate).map(|bits| bits / 8)
}

/// Bytes that may be handed to a connection now.
fn room(connection: &Connection, rate: Option<u64>) -> usize {
    let most = rate.map_or(QUEUE_SIZE_FIRST, |rate| (rate * QUEUE.as_micros() as u64 / 1_000_000) as usize);
    let waiting = BUFFER_SIZE.saturating_sub(connection.datagram_send_buffer_space());
    most.clamp(QUEUE_SIZE_MIN, QUEUE_SIZE_MAX).saturating_sub(waiting)
}

#[cfg(test)]
mod tests;
