//! The server: listeners, connections, requests in flight. One thread, no lock.
//!
//! A connection has one task that reads requests, one that writes what is ready, and one for each request in flight, so
//! that replies go out in the order in which requests end. What a client sends can end its own connection only.

use super::{
    Export, ExportCatalog, ExportError, ExportInfo, ExportReply, ExportRequest,
    handshake::{Catalog, GREETING, Handshake, Step},
    protocol::{Command, REQUEST_HEADER_SIZE, REQUEST_SIZE_MAX, ReplyStyle, Request},
    replies::{Outbox, Replies, Sink},
    room::{Permit, Room, Share, Taken},
};
use crate::{
    buffers::Filling,
    unix_socket::{self, SocketError},
};
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    fs, io,
    net::{Shutdown, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_uring::{
    buf::BoundedBuf,
    net::{TcpListener, TcpStream, UnixStream},
};
use tracing::{debug, info, warn};

/// Requests of a connection in flight.
const IN_FLIGHT_MAX: usize = 128;
/// What one answer says of an export's parts; clients ask for the rest. All groups wait while it is found out.
const EXTENTS_SIZE_MAX: u32 = 64 << 20;
/// Memory for a part, here and on its way.
const EXTENT_SIZE: u32 = 64;
/// How much is read at once while looking for requests.
const READ_SIZE: usize = 128 << 10;
/// The same while the client says what it wants.
const NEGOTIATION_READ_SIZE: usize = 4 << 10;
/// How long it takes until clients are let in again after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// When a TCP client that is silent is asked whether it is there, how often, and how many times.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 15;
const KEEPALIVE_COUNT: u32 = 4;
/// How long a negotiation may take.
const NEGOTIATION: Duration = Duration::from_secs(30);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket, made with mode 0600.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket cannot be made.
    #[error("NBD: {0}")]
    Unix(#[from] SocketError),
    /// The address cannot be used.
    #[error("NBD: cannot listen on {address}: {source}; choose another address in [nbd] tcp")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A server that listens until it is dropped.
pub struct Server {
    tasks: Vec<JoinHandle<()>>,
    paths: Vec<PathBuf>,
}

impl Server {
    /// Listens. Must be called inside a tokio-uring runtime.
    pub fn start<C: ExportCatalog>(addresses: &[ListenAddress], catalog: Rc<C>) -> Result<Self, ListenError> {
        let mut server = Self { tasks: Vec::new(), paths: Vec::new() };
        let room = Rc::new(Room::default());
        for address in addresses {
            let (catalog, room) = (catalog.clone(), room.clone());
            server.tasks.push(match address {
                ListenAddress::Unix(path) => {
                    // Not tokio-uring's own: it asks for SO_REUSEPORT, which newer kernels refuse on unix sockets.
                    let listener = unix_socket::listen(path, "nbd.unix")?;
                    server.paths.push(path.clone());
                    tokio_uring::spawn(async move {
                        loop {
                            let accepted = listener.accept().await;
                            let Some((stream, _)) = come(accepted).await else { continue };
                            let Some(share) = room.let_in() else { continue };
                            // A ring waits by itself only where the socket blocks.
                            let ready =
                                stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
                            if let Ok(stream) = ready {
                                let stream = Stream::Unix(UnixStream::from_std(stream));
                                tokio_uring::spawn(serve(stream, share, catalog.clone()));
                            }
                        }
                    })
                }
                ListenAddress::Tcp(address) => {
                    let listener =
                        listen_tcp(*address).map_err(|source| ListenError::Tcp { address: *address, source })?;
                    tokio_uring::spawn(async move {
                        loop {
                            let accepted = listener.accept().await;
                            let Some((stream, _)) = come(accepted).await else { continue };
                            let Some(share) = room.let_in() else { continue };
                            tokio_uring::spawn(serve(Stream::Tcp(stream), share, catalog.clone()));
                        }
                    })
                }
            });
        }
        Ok(server)
    }
}

/// Who has come. That somebody could not be let in, for want of descriptors say, passes; the listener goes on.
async fn come<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(stream) => Some(stream),
        Err(error) => {
            warn!(%error, "An NBD client could not be let in");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for path in &self.paths {
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens, and has what comes notice that a client's machine is dead: it sends nothing that would tell, and would keep what it has
/// connected to for ever. What is set on a listener is set on what it accepts.
fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    // Not as tokio-uring binds it: two daemons could then share the address, and a client's connections be shared out to both.
    let listener = TcpListener::from_std(std::net::TcpListener::bind(address)?);
    // SAFETY: the listener is open, and lives longer than this.
    let socket = unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) };
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    // The same where replies are on their way, which keepalive leaves alone.
    let patience = KEEPALIVE_IDLE_SECONDS + KEEPALIVE_INTERVAL_SECONDS * KEEPALIVE_COUNT;
    setsockopt(&socket, sockopt::TcpUserTimeout, &(patience * 1000))?;
    Ok(listener)
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Reads at least one and at most about `size` bytes more behind those that are pending; whether there were any.
    async fn read_more(&self, pending: &mut Vec<u8>, size: usize) -> io::Result<bool> {
        let mut buffer = std::mem::take(pending);
        buffer.reserve(size);
        let (before, room) = (buffer.len(), buffer.len()..);
        let (result, slice) = match self {
            Self::Unix(stream) => stream.read(buffer.slice(room)).await,
            Self::Tcp(stream) => stream.read(buffer.slice(room)).await,
        };
        *pending = slice.into_inner();
        result?;
        Ok(pending.len() > before)
    }

    /// Fills a buffer to its end.
    async fn read_all(&self, share: &Share, filling: Filling, size: usize) -> io::Result<Filling> {
        let mut filling = filling;
        while filling.filled() < size {
            let from = filling.filled();
            let read = async {
                match self {
                    Self::Unix(stream) => stream.read(filling.slice(from..)).await,
                    Self::Tcp(stream) => stream.read(filling.slice(from..)).await,
                }
            };
            let (result, slice) = share.step(read).await?;
            filling = slice.into_inner();
            if result? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(filling)
    }

    fn shutdown(&self) {
        // It may be closed already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Writes to a connection, as long as that goes on or nobody waits.
struct Writer {
    stream: Rc<Stream>,
    share: Rc<Share>,
}

impl Sink for Writer {
    async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let written = self.share.step(self.stream.write_all(bytes)).await;
        written.unwrap_or_else(|error| (Err(error), Vec::new()))
    }

    async fn write_some(&self, pieces: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
        let written = self.share.step(self.stream.write_some(pieces)).await;
        written.unwrap_or_else(|error| (Err(error), Vec::new()))
    }
}

impl Sink for Stream {
    async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Unix(stream) => stream.write_all(bytes).await,
            Self::Tcp(stream) => stream.write_all(bytes).await,
        }
    }

    async fn write_some(&self, pieces: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
        match self {
            Self::Unix(stream) => stream.writev(pieces).await,
            Self::Tcp(stream) => stream.writev(pieces).await,
        }
    }
}

struct Names<C>(Rc<C>);

impl<C: ExportCatalog> Catalog for Names<C> {
    fn list(&self) -> Vec<ExportInfo> {
        self.0.list()
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.0.find(name).map(|export| export.info())
    }
}

async fn serve<C: ExportCatalog>(stream: Stream, share: Share, catalog: Rc<C>) {
    let (stream, share) = (Rc::new(stream), Rc::new(share));
    let mut pending = Vec::new();
    let negotiation = timeout(NEGOTIATION, negotiate(&stream, &catalog, &mut pending)).await;
    match negotiation {
        Ok(Ok(Some((name, style)))) => {
            if let Some(export) = catalog.find(&name) {
                info!(export = name, "NBD client connected");
                transmit(&stream, share, export, style, pending).await;
                info!(export = name, "NBD client gone");
            }
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => debug!(%error, "NBD negotiation ended"),
        Err(_) => warn!("NBD negotiation took too long"),
    }
    stream.shutdown();
}

async fn negotiate<C: ExportCatalog>(
    stream: &Stream,
    catalog: &Rc<C>,
    pending: &mut Vec<u8>,
) -> io::Result<Option<(String, ReplyStyle)>> {
    stream.write_all(GREETING.to_vec()).await.0?;
    let (mut handshake, names) = (Handshake::default(), Names(catalog.clone()));
    loop {
        let mut output = Vec::new();
        let step = handshake.advance(pending, &names, &mut output);
        if !output.is_empty() {
            stream.write_all(output).await.0?;
        }
        match step {
            Step::Go { name, style } => return Ok(Some((name, style))),
            Step::End => return Ok(None),
            Step::More => {}
        }
        if !stream.read_more(pending, NEGOTIATION_READ_SIZE).await? {
            return Ok(None);
        }
    }
}

struct Connection<E> {
    stream: Rc<Stream>,
    export: Rc<E>,
    info: ExportInfo,
    style: ReplyStyle,
    outbox: Rc<Outbox>,
    requests: Rc<Semaphore>,
    share: Rc<Share>,
}

async fn transmit<E: Export>(
    stream: &Rc<Stream>,
    share: Rc<Share>,
    export: Rc<E>,
    style: ReplyStyle,
    pending: Vec<u8>,
) {
    let outbox = Rc::new(Outbox::default());
    let writer = tokio_uring::spawn({
        let (writer, outbox) = (Writer { stream: stream.clone(), share: share.clone() }, outbox.clone());
        async move {
            if outbox.write_to(&writer).await.is_err() {
                writer.stream.shutdown();
            }
        }
    });
    let requests = Rc::new(Semaphore::new(IN_FLIGHT_MAX));
    let info = export.info();
    let connection = Connection {
        stream: stream.clone(),
        export,
        info,
        style,
        outbox: outbox.clone(),
        requests: requests.clone(),
        share,
    };
    if let Err(error) = connection.read_requests(pending).await {
        debug!(%error, "NBD connection ended");
    }
    // Everything that was accepted is answered before the connection is closed.
    let _ = requests.acquire_many(IN_FLIGHT_MAX as u32).await;
    outbox.close();
    let _ = writer.await;
}

impl<E: Export> Connection<E> {
    async fn read_requests(&self, mut pending: Vec<u8>) -> io::Result<()> {
        let mut at = 0;
        loop {
            let Some(header) = pending.get(at..).and_then(|rest| rest.first_chunk::<REQUEST_HEADER_SIZE>()) else {
                pending.drain(..at);
                at = 0;
                if !self.stream.read_more(&mut pending, READ_SIZE).await? {
                    return Ok(());
                }
                continue;
            };
            let request = Request::parse(header).map_err(io::Error::other)?;
            at += REQUEST_HEADER_SIZE;
            // Whoever takes no more answers is asked for nothing more.
            if request.command == Command::Disconnect || self.outbox.is_closed() {
                return Ok(());
            }
            let memory = self.share.take(self.memory_for(&request)).await;
            let payload = self.read_payload(&request, &pending, &mut at).await?;
            self.start(request, payload, memory).await;
        }
    }

    /// How many bytes a request and its reply take at most.
    fn memory_for(&self, request: &Request) -> u32 {
        match request.command {
            Command::Read | Command::Write { .. } | Command::Invalid { payload: true } => {
                request.size.min(REQUEST_SIZE_MAX)
            }
            Command::BlockStatus { .. } => {
                request.size.min(EXTENTS_SIZE_MAX).div_ceil(self.info.logical_block_size) * EXTENT_SIZE
            }
            _ => 0,
        }
    }

    /// The payload of a write, from what has been read already and then straight from the socket.
    async fn read_payload(&self, request: &Request, pending: &[u8], at: &mut usize) -> io::Result<Bytes> {
        let follows = matches!(request.command, Command::Write { .. } | Command::Invalid { payload: true });
        if !follows {
            return Ok(Bytes::new());
        }
        if request.size > REQUEST_SIZE_MAX {
            // It could be skipped, but a client that ignores the limit it was told is not worth gigabytes of reading.
            return Err(io::Error::other("a payload longer than 32 MiB"));
        }
        let size = request.size as usize;
        let mut filling = Filling::new(size);
        let here = size.min(pending.len() - *at);
        filling.push(&pending[*at..*at + here]);
        *at += here;
        if filling.filled() < size {
            filling = self.stream.read_all(&self.share, filling, size).await?;
        }
        Ok(filling.freeze())
    }

    /// Starts a request; waits only while too many are in flight.
    async fn start(&self, request: Request, payload: Bytes, memory: Taken) {
        let permit = Permit::of(&self.requests, 1).await;
        let (style, outbox) = (self.style, self.outbox.clone());
        let refused = request.check(&self.info);
        let asked = refused.and_then(|()| translate(&request, payload, style));
        let work = asked.map(|asked| self.export.submit(asked));
        tokio_uring::spawn(async move {
            let result = match work {
                Ok(work) => work.await,
                Err(error) => Err(error),
            };
            outbox.add(|replies| {
                answer(&request, style, result, replies);
                replies.keep(memory);
            });
            drop(permit);
        });
    }
}

fn translate(request: &Request, payload: Bytes, style: ReplyStyle) -> Result<ExportRequest, ExportError> {
    let (offset, size) = (request.offset, u64::from(request.size));
    Ok(match request.command {
        Command::Read => ExportRequest::Read { offset, size: request.size },
        Command::Write { fua } => ExportRequest::Write { offset, data: payload, fua },
        Command::Flush => ExportRequest::Flush,
        Command::Trim { fua: false } => ExportRequest::Discard { offset, size },
        // A discard is answered before it is durable. This does the same to the volume.
        Command::Trim { fua: true } => ExportRequest::WriteZeroes { offset, size, keep_allocated: false, fua: true },
        Command::WriteZeroes { fua, no_hole, .. } => {
            ExportRequest::WriteZeroes { offset, size, keep_allocated: no_hole, fua }
        }
        Command::BlockStatus { .. } if style.allocation => {
            ExportRequest::Extents { offset, size: size.min(EXTENTS_SIZE_MAX.into()) }
        }
        Command::BlockStatus { .. } | Command::Invalid { .. } | Command::Disconnect => {
            return Err(ExportError::Invalid);
        }
    })
}

fn answer(request: &Request, style: ReplyStyle, result: Result<ExportReply, ExportError>, replies: &mut Replies) {
    match result {
        Ok(ExportReply::Data(pieces)) => {
            let size = pieces.iter().map(Bytes::len).sum();
            replies.put(|out| style.data(request.cookie, request.offset, size, out));
            pieces.into_iter().for_each(|piece| replies.lend(piece));
        }
        Ok(ExportReply::Extents(extents)) => {
            let one = matches!(request.command, Command::BlockStatus { one: true });
            replies.put(|out| style.extents(request.cookie, &extents, one, out));
        }
        Ok(ExportReply::Done) => replies.put(|out| style.done(request.cookie, out)),
        Err(error) => replies.put(|out| style.error(request.cookie, error, out)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;

    fn asked(command: Command, size: u32) -> ExportRequest {
        let style = ReplyStyle { structured: true, allocation: true };
        translate(&Request { command, cookie: 1, offset: 0, size }, Bytes::new(), style).unwrap()
    }

    #[test]
    fn a_trim_that_is_to_be_durable_is_answered_when_it_is() {
        let plain = asked(Command::Trim { fua: false }, 4096);
        assert!(matches!(plain, ExportRequest::Discard { size: 4096, .. }), "{plain:?}");
        let durable = asked(Command::Trim { fua: true }, 4096);
        let releases =
            matches!(durable, ExportRequest::WriteZeroes { size: 4096, keep_allocated: false, fua: true, .. });
        assert!(releases, "{durable:?}");
    }

    #[test]
    fn one_answer_describes_so_much_and_no_more() {
        for (size, described) in [(4096, 4096), (64 << 20, 64 << 20), (!4095, 64 << 20)] {
            let asked = asked(Command::BlockStatus { one: false }, size);
            assert!(matches!(asked, ExportRequest::Extents { size, .. } if size == described), "{asked:?}");
        }
    }

    #[test]
    fn an_address_has_one_server() {
        tokio_uring::start(async {
            let listener = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            let second = listen_tcp(listener.local_addr().unwrap());
            assert_eq!(second.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
        });
    }

    #[test]
    fn a_tcp_client_whose_machine_is_dead_is_noticed() {
        tokio_uring::start(async {
            let listener = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            // SAFETY: the stream is open until the end.
            let socket = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
            assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
            assert!(getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
            assert_eq!(getsockopt(&socket, sockopt::TcpKeepIdle), Ok(60));
            assert_eq!(getsockopt(&socket, sockopt::TcpKeepInterval), Ok(15));
            assert_eq!(getsockopt(&socket, sockopt::TcpKeepCount), Ok(4));
            assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout), Ok(120_000));
        });
    }
}
