//! A link's connection: one end dials, the other listens; and what comes over it.
//!
//! Anybody can send a datagram to the end that listens. What an address can tell is looked at before anything is kept or computed for
//! it; who has the peer's key, the handshake shows.

use super::{BUFFER_SIZE, LinkOptions, NodeOptions, StartError, rate::RateFactory};
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use noq::{ClientConfig, Connection, Endpoint, EndpointConfig, Incoming, ServerConfig, TransportConfig, VarInt};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Bytes that a socket holds for us while the task that reads it does something else: 50 ms at 1 Gbit/s.
const SOCKET_BUFFER: usize = 8 << 20;
/// How long to wait before dialling again, or before asking again for an address.
const REDIAL: Duration = Duration::from_millis(200);
/// After how long the end that listens says that nobody calls.
const CALL: Duration = Duration::from_secs(10);
/// What counts as a round trip of a new connection.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Handshakes under way at the end that listens: the peer's, and those of whoever claims to be at its address.
const HANDSHAKE_COUNT_MAX: usize = 4;
/// Calls that were not looked at yet, and bytes that are kept of each.
const INCOMING_COUNT_MAX: usize = 16;
const INCOMING_SIZE_MAX: u64 = 16 << 10;

/// Handshakes under way.
type Handshakes = JoinSet<Result<Connection, String>>;

/// What a link's task tells the one that drives the session.
pub(super) enum LinkEvent {
    Open(usize, Connection),
    Closed(usize),
    Datagrams(usize, Vec<Bytes>),
    Refused(usize, String),
}

/// How a link's connections behave.
pub(super) fn transport(is_unproven: Arc<AtomicBool>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(RateFactory { is_unproven }))
        // Until one was measured. A handshake that is lost is tried again after three of them.
        .initial_rtt(INITIAL_RTT)
        // Symbols fit the smallest MTU; without discovery a burst of loss cannot be taken for a black hole.
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(Some(16 << 20))
        .datagram_send_buffer_size(BUFFER_SIZE)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(VarInt::from_u32(4_000).into()));
    config
}

/// What the end that listens needs. As long as nobody has a place among the handshakes only little is kept of who calls.
pub(super) fn server(options: &NodeOptions, transport: Arc<TransportConfig>) -> Result<ServerConfig, StartError> {
    let crypto = options.identity.server(options.peer).map_err(|error| StartError::Key(error.to_string()))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(transport)
        .max_incoming(INCOMING_COUNT_MAX)
        .incoming_buffer_size(INCOMING_SIZE_MAX)
        .incoming_buffer_size_total(INCOMING_COUNT_MAX as u64 * INCOMING_SIZE_MAX);
    Ok(server)
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

/// Where a link's socket is to be.
pub(super) struct Place {
    pub link: LinkOptions,
    /// To listen with; else it only dials.
    pub server: Option<ServerConfig>,
}

impl Place {
    /// Waits until the address can be had, and says why it cannot, once for each reason. None when nobody listens any more.
    pub(super) async fn bind_when_there(&self, index: usize, events: &mpsc::Sender<LinkEvent>) -> Option<Endpoint> {
        let mut said = String::new();
        loop {
            let reason = match self.bind() {
                Ok(endpoint) => return Some(endpoint),
                Err(error) => error.to_string(),
            };
            if reason != said {
                events.send(LinkEvent::Refused(index, reason.clone())).await.ok()?;
                said = reason;
            }
            sleep(REDIAL).await;
        }
    }

    /// The socket. Without a `server` nobody who calls costs anything.
    pub(super) fn bind(&self) -> Result<Endpoint, StartError> {
        let LinkOptions { name, local, .. } = &self.link;
        let failed = |source| StartError::Bind { name: name.clone(), local: *local, source };
        let socket = UdpSocket::bind(local).map_err(failed)?;
        enlarge_buffers(&socket);
        let runtime = noq::default_runtime().ok_or_else(|| failed(io::Error::other("there is no tokio runtime")))?;
        Endpoint::new(EndpointConfig::default(), self.server.clone(), socket, runtime).map_err(failed)
    }
}

/// Keeps a connection up over one link.
pub(super) struct Keeper {
    pub index: usize,
    pub endpoint: Endpoint,
    pub remote: SocketAddr,
    /// To dial with; else it listens.
    pub client: Option<ClientConfig>,
    pub events: mpsc::Sender<LinkEvent>,
}

impl Keeper {
    pub(super) async fn run(self) {
        let mut handshakes = JoinSet::new();
        loop {
            let connection = match &self.client {
                Some(client) => self.dial(client.clone()).await,
                None => self.listen(&mut handshakes).await,
            };
            match connection {
                Ok(connection) => self.serve(connection, &mut handshakes).await,
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

    /// Waits for the peer's call. Of several handshakes the first that succeeds counts, so nobody who begins one and falls silent
    /// keeps the peer waiting.
    async fn listen(&self, handshakes: &mut Handshakes) -> Result<Connection, String> {
        let patience = sleep(CALL);
        tokio::pin!(patience);
        let mut stranger = None;
        loop {
            tokio::select! {
                Some(done) = handshakes.join_next() => {
                    // One that was cut off says nothing.
                    if let Ok(outcome) = done {
                        return outcome;
                    }
                }
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) if is_from(&incoming, self.remote) => admit(incoming, handshakes),
                    Some(incoming) => {
                        stranger = Some(incoming.remote_address());
                        incoming.ignore();
                    }
                    None => std::future::pending().await,
                },
                () = &mut patience => return Err(self.unheard(stranger)),
            }
        }
    }

    fn unheard(&self, stranger: Option<SocketAddr>) -> String {
        let stranger = stranger.map(|address| format!(", but {address} has")).unwrap_or_default();
        format!(
            "{} has not called for {} s{stranger}: is the node there running, are the addresses right, and has each node the \
             other's key?",
            self.remote,
            CALL.as_secs()
        )
    }

    /// Moves datagrams until the connection ends or, on the listening side, a newer one takes its place.
    async fn serve(&self, connection: Connection, handshakes: &mut Handshakes) {
        let mut connection = connection;
        loop {
            if self.events.send(LinkEvent::Open(self.index, connection.clone())).await.is_err() {
                return;
            }
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
                        if let Ok(connection) = self.listen(handshakes).await {
                            return connection;
                        }
                    },
                }
            };
            let next = tokio::select! {
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

/// Whether the peer calls, as far as its address says.
fn is_from(incoming: &Incoming, remote: SocketAddr) -> bool {
    // A socket for both families shows IPv4 addresses as IPv6 ones.
    incoming.remote_address().ip().to_canonical() == remote.ip().to_canonical()
}

/// Begins a handshake, if there is a place.
fn admit(incoming: Incoming, handshakes: &mut Handshakes) {
    if handshakes.len() >= HANDSHAKE_COUNT_MAX {
        // Whoever is in earnest calls again soon.
        incoming.ignore();
    } else if !handshakes.is_empty() && !incoming.remote_address_validated() {
        // Anyone may write the peer's address on a datagram: with more than one handshake each has to show that it hears what is sent
        // there. A lone one is spared the round trip.
        let _ = incoming.retry();
    } else {
        handshakes.spawn(async move {
            match timeout(HANDSHAKE, incoming).await {
                Ok(connection) => connection.map_err(|error| error.to_string()),
                Err(_) => Err("a handshake took too long".into()),
            }
        });
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
