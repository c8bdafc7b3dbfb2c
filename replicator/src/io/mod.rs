//! The driver: QUIC connections, one a link, around a [`Session`].
//!
//! The node with the lower key dials; the other listens. One task drives the session; each link has a task that keeps a
//! connection up, one that reads and one that writes. Everything runs on the tokio runtime that [`connect`] is called
//! in; a [`Handle`] can be used from any thread.

mod heartbeat;
mod identity;
mod rate;

pub use heartbeat::heartbeat;
pub use identity::{Identity, IdentityError, KeyTextError, PeerKey};

use crate::{
    ChannelId, Frame, LinkState, Mode, Received, SessionStatus, coder,
    session::{Full, Session, SessionEvent, SessionOptions},
};
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use noq::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

/// Datagrams handed to a connection ahead of what it can send.
const WRITE_QUEUE: usize = 32;
/// Bytes that a socket holds for us while the task that reads it does something else: 50 ms at 1 Gbit/s.
const SOCKET_BUFFER: usize = 8 << 20;
/// How long to wait before dialling again.
const REDIAL: Duration = Duration::from_millis(200);
/// After how long the end that listens says that nobody calls.
const CALL: Duration = Duration::from_secs(10);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(3);

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
    /// A port is in use, or the address is not this machine's.
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
        session: u64,
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
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    stop: Arc<Notify>,
}

impl Handle {
    /// Takes a frame, or gives it back if there is no session or no room; [`Event::Writable`] or [`Event::Up`] tells
    /// when to try again.
    pub fn try_send(&self, frame: Frame) -> Result<(), Full> {
        self.shared.lock().send(frame)?;
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Tells the peer that something is durable here.
    pub fn mark_durable(&self, channel: ChannelId, value: u64) {
        let now = self.shared.now();
        self.shared.lock().mark_durable(now, channel, value);
        self.shared.wake.notify_one();
    }

    /// Frames of so many bytes are out of memory: the peer may send as many more.
    pub fn consumed(&self, bytes: u64) {
        self.shared.lock().consumed(bytes);
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
        self.shared.lock().status(&self.shared.names)
    }

    /// Stops talking to the peer.
    pub fn close(&self) {
        self.stop.notify_one();
    }
}

enum LinkEvent {
    Open(usize, mpsc::Sender<Bytes>),
    Closed(usize),
    Datagrams(usize, Vec<Bytes>),
    Refused(usize, String),
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
    let transport = Arc::new(transport());
    let dials = options.identity.public() < options.peer;
    let mut endpoints = Vec::new();
    for link in &options.links {
        endpoints.push(endpoint(link, &options, &transport)?);
    }
    let client = options.identity.client(options.peer).map_err(|error| StartError::Key(error.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    let shared = Arc::new(Shared {
        session: Mutex::new(Session::new(options.session, seed, options.links.len())),
        wake: Notify::new(),
        start: Instant::now(),
        names: options.links.iter().map(|link| link.name.clone()).collect(),
    });
    let (link_events, from_links) = mpsc::channel(256);
    let mut tasks = JoinSet::new();
    for (index, (endpoint, link)) in endpoints.into_iter().zip(&options.links).enumerate() {
        let keeper = Keeper {
            index,
            endpoint,
            remote: link.remote,
            client: dials.then(|| client.clone()),
            events: link_events.clone(),
            drained: shared.clone(),
        };
        tasks.spawn(keeper.run());
    }
    let (events, receiver) = mpsc::unbounded_channel();
    let handle = Handle { shared: shared.clone(), stop: Arc::new(Notify::new()) };
    tokio::spawn(drive(shared, handle.stop.clone(), from_links, events, tasks));
    Ok((handle, receiver))
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(rate::RateFactory))
        // Symbols fit the smallest MTU; without discovery a burst of loss cannot be taken for a black hole.
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(Some(16 << 20))
        // What waits here has chosen its link already.
        .datagram_send_buffer_size(64 << 10)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(VarInt::from_u32(4_000).into()));
    config
}

fn endpoint(
    link: &LinkOptions,
    options: &NodeOptions,
    transport: &Arc<TransportConfig>,
) -> Result<Endpoint, StartError> {
    let bind = |source| StartError::Bind { name: link.name.clone(), local: link.local, source };
    let server = options.identity.server(options.peer).map_err(|error| StartError::Key(error.to_string()))?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport.clone());
    let socket = UdpSocket::bind(link.local).map_err(bind)?;
    enlarge_buffers(&socket);
    let runtime = noq::default_runtime().ok_or_else(|| bind(io::Error::other("there is no tokio runtime")))?;
    Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime).map_err(bind)
}

/// The default holds some 90 datagrams, fewer than come at once. Only root gets all that is asked for; others get what
/// `net.core.rmem_max` and `wmem_max` allow, and lose more when this machine is busy.
fn enlarge_buffers(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER);
    }
}

/// Keeps a connection up over one link.
struct Keeper {
    index: usize,
    endpoint: Endpoint,
    remote: SocketAddr,
    /// To dial with; else it listens.
    client: Option<ClientConfig>,
    events: mpsc::Sender<LinkEvent>,
    drained: Arc<Shared>,
}

impl Keeper {
    async fn run(self) {
        loop {
            let connection = match &self.client {
                Some(client) => self.dial(client.clone()).await,
                None => self.listen().await,
            };
            match connection {
                Ok(connection) => self.serve(connection).await,
                Err(reason) => {
                    if self.events.send(LinkEvent::Refused(self.index, reason)).await.is_err() {
                        return;
                    }
                }
            }
            if self.client.is_some() {
                sleep(REDIAL).await;
            }
        }
    }

    async fn dial(&self, client: ClientConfig) -> Result<Connection, String> {
        let connecting =
            self.endpoint.connect_with(client, self.remote, "holdfast").map_err(|error| error.to_string())?;
        match timeout(HANDSHAKE, connecting).await {
            Ok(connection) => connection.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{} does not answer", self.remote)),
        }
    }

    async fn listen(&self) -> Result<Connection, String> {
        let Ok(incoming) = timeout(CALL, self.endpoint.accept()).await else {
            return Err(format!(
                "{} has not called for {} s: is the node there running, are the addresses right, and has each node the \
                 other's key?",
                self.remote,
                CALL.as_secs()
            ));
        };
        let Some(incoming) = incoming else {
            std::future::pending::<()>().await;
            return Err("closed".into());
        };
        match timeout(HANDSHAKE, incoming).await {
            Ok(connection) => connection.map_err(|error| error.to_string()),
            Err(_) => Err("a handshake took too long".into()),
        }
    }

    /// Moves datagrams until the connection ends or, on the listening side, a newer one takes its place.
    async fn serve(&self, connection: Connection) {
        let mut connection = connection;
        loop {
            let (sender, mut outgoing) = mpsc::channel::<Bytes>(WRITE_QUEUE);
            if self.events.send(LinkEvent::Open(self.index, sender)).await.is_err() {
                return;
            }
            let write = async {
                while let Some(bytes) = outgoing.recv().await {
                    if connection.send_datagram_wait(bytes).await.is_err() {
                        break;
                    }
                    if outgoing.len() <= WRITE_QUEUE / 2 {
                        self.drained.wake.notify_one();
                    }
                }
            };
            let read = async {
                while let Ok(first) = connection.read_datagram().await {
                    let mut datagrams = vec![first];
                    // Whatever has come meanwhile is handed over together.
                    while datagrams.len() < 128 {
                        let more = futures_now(connection.read_datagram()).await;
                        let Some(Ok(more)) = more else { break };
                        datagrams.push(more);
                    }
                    if self.events.send(LinkEvent::Datagrams(self.index, datagrams)).await.is_err() {
                        break;
                    }
                }
            };
            let newer = async {
                match &self.client {
                    Some(_) => std::future::pending().await,
                    None => loop {
                        if let Ok(connection) = self.listen().await {
                            return connection;
                        }
                    },
                }
            };
            let next = tokio::select! {
                () = write => None,
                () = read => None,
                newer = newer => Some(newer),
            };
            if self.events.send(LinkEvent::Closed(self.index)).await.is_err() {
                return;
            }
            connection.close(VarInt::from_u32(0), b"");
            match next {
                Some(newer) => connection = newer,
                None => return,
            }
        }
    }
}

/// What a future gives if it is ready at once.
async fn futures_now<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

async fn drive(
    shared: Arc<Shared>,
    stop: Arc<Notify>,
    mut from_links: mpsc::Receiver<LinkEvent>,
    events: mpsc::UnboundedSender<Event>,
    tasks: JoinSet<()>,
) {
    let mut writers: [Option<mpsc::Sender<Bytes>>; 2] = [None, None];
    loop {
        let next_timeout = turn(&shared, &writers, &events);
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
                take(&shared, &mut writers, &events, event);
                // More may have come; it is cheaper to look than to be woken.
                while let Ok(event) = from_links.try_recv() {
                    take(&shared, &mut writers, &events, event);
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
    writers: &mut [Option<mpsc::Sender<Bytes>>; 2],
    events: &mpsc::UnboundedSender<Event>,
    event: LinkEvent,
) {
    let now = shared.now();
    let mut session = shared.lock();
    match event {
        LinkEvent::Open(link, writer) => {
            writers[link] = Some(writer);
            session.handle_link(now, link, true);
        }
        LinkEvent::Closed(link) => {
            writers[link] = None;
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
fn turn(
    shared: &Shared,
    writers: &[Option<mpsc::Sender<Bytes>>; 2],
    events: &mpsc::UnboundedSender<Event>,
) -> Option<u64> {
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
    // In turns, so that neither link waits for the other's whole queue to be filled.
    let mut room = [true; 2];
    while room.contains(&true) {
        for (link, writer) in writers.iter().enumerate() {
            let permit = writer.as_ref().filter(|_| room[link]).and_then(|writer| writer.try_reserve().ok());
            let datagram = permit.is_some().then(|| session.poll_transmit(now, link)).flatten();
            match (permit, datagram) {
                (Some(permit), Some(bytes)) => permit.send(bytes),
                _ => room[link] = false,
            }
        }
    }
    session.poll_timeout()
}

#[cfg(test)]
mod tests;
