//! A small NBD client: what the demo and the tests need, and no package but our own.
//!
//! Fixed newstyle, `NBD_OPT_GO`, simple replies. Requests can be sent ahead and their answers collected later, in the
//! server's order, by [`NbdClient::submit`] and [`NbdClient::complete`]; the other calls do one request and wait for it.
//!
//! The server is not trusted: sizes it names are checked before anything is allocated, and an answer to a request that
//! was never sent ends the conversation.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use thiserror::Error;

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

const OPTION_LIST: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACKNOWLEDGE: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_UNKNOWN: u32 = 0x8000_0006;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const FLAG_READ_ONLY: u16 = 1 << 1;
const COMMAND_FLAG_FUA: u16 = 1;

/// The most that one request may carry, in bytes; the protocol's own default limit.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// An option's answer is refused above this size, in bytes.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// Something that went wrong between client and server.
#[derive(Debug, Error)]
pub enum NbdError {
    /// Nobody answers there.
    #[error("Cannot connect to {address}")]
    Connect {
        /// The socket's path or address.
        address: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("The connection to the NBD server broke")]
    Connection(#[from] io::Error),
    /// The other end does not speak the protocol.
    #[error("The NBD server sent {what} {value:#x}, which the protocol does not have there")]
    Protocol {
        /// Which field.
        what: &'static str,
        /// What it held.
        value: u64,
    },
    /// There is no such export.
    #[error("The NBD server has no export '{name}'")]
    NoExport {
        /// What was asked for.
        name: String,
    },
    /// The server refused an option.
    #[error("The NBD server refused option {option} with {code:#x}: {message}")]
    Refused {
        /// The option's number.
        option: u32,
        /// The server's code.
        code: u32,
        /// The server's words.
        message: String,
    },
    /// A request failed; the conversation goes on.
    #[error("The NBD server could not {command} {size} bytes at {offset}: error {code}")]
    Request {
        /// What was asked.
        command: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        size: u32,
        /// The protocol's error number, which is Linux's errno.
        code: u32,
    },
    /// Larger than a request may be.
    #[error("A request of {size} bytes is larger than the {REQUEST_BYTES_MAX} that NBD allows")]
    TooLarge {
        /// How much was asked for, in bytes.
        size: usize,
    },
    /// Nothing was sent that an answer could belong to.
    #[error("No request is under way")]
    NothingSubmitted,
}

/// One request. Offsets and sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub enum NbdRequest<'a> {
    /// Read.
    Read {
        /// From where.
        offset: u64,
        /// How much.
        size: u32,
    },
    /// Write.
    Write {
        /// Where to.
        offset: u64,
        /// What.
        data: &'a [u8],
        /// Answered only when it is durable.
        durable: bool,
    },
    /// Make everything durable that was answered before.
    Flush,
    /// Give the space back; what is read there afterwards is not defined by the protocol.
    Trim {
        /// From where.
        offset: u64,
        /// How much.
        size: u32,
    },
    /// Read as zeroes from now on.
    WriteZeroes {
        /// From where.
        offset: u64,
        /// How much.
        size: u32,
    },
}

/// An answer.
#[derive(Debug)]
pub struct NbdCompletion {
    /// The number that [`NbdClient::submit`] gave.
    pub cookie: u64,
    /// The bytes read (empty for all but reads), or why it failed.
    pub result: Result<Vec<u8>, NbdError>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    command: &'static str,
    offset: u64,
    size: u32,
    reads: bool,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection to one export.
pub struct NbdClient {
    // Boxed: a unix socket or TCP, decided when connecting.
    stream: BufReader<Box<dyn Stream>>,
    size: u64,
    read_only: bool,
    block_size: u32,
    pending: BTreeMap<u64, Pending>,
    last_cookie: u64,
}

impl NbdClient {
    /// Connects to an export on a unix socket.
    ///
    /// # Errors
    /// When nobody listens, the server does not speak NBD, or has no such export.
    pub fn connect_unix(path: &Path, export: &str) -> Result<Self, NbdError> {
        Self::negotiate(connect_unix(path)?, export)
    }

    /// Connects to an export by TCP.
    ///
    /// # Errors
    /// When nobody listens, the server does not speak NBD, or has no such export.
    pub fn connect_tcp(address: SocketAddr, export: &str) -> Result<Self, NbdError> {
        let stream = TcpStream::connect(address)
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| NbdError::Connect { address: address.to_string(), source })?;
        Self::negotiate(Box::new(stream), export)
    }

    /// The names of the exports on a unix socket.
    ///
    /// # Errors
    /// When nobody listens, the server does not speak NBD, or does not list.
    pub fn list_unix(path: &Path) -> Result<Vec<String>, NbdError> {
        let mut stream = greet(connect_unix(path)?)?;
        send_option(&mut stream, OPTION_LIST, &[])?;
        let mut names = Vec::new();
        loop {
            let (kind, data) = receive_option_reply(&mut stream, OPTION_LIST)?;
            match kind {
                REPLY_ACKNOWLEDGE => return Ok(names),
                REPLY_SERVER => {
                    let mut data = data.as_slice();
                    let size = read_u32(&mut data)? as usize;
                    let name = data.get(..size).unwrap_or(data);
                    names.push(String::from_utf8_lossy(name).into_owned());
                }
                _ => return Err(refused(OPTION_LIST, kind, &data)),
            }
        }
    }

    fn negotiate(stream: Box<dyn Stream>, export: &str) -> Result<Self, NbdError> {
        let mut stream = greet(stream)?;
        let mut data = Vec::new();
        data.extend((export.len() as u32).to_be_bytes());
        data.extend(export.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        send_option(&mut stream, OPTION_GO, &data)?;
        let mut client =
            Self { stream, size: 0, read_only: false, block_size: 512, pending: BTreeMap::new(), last_cookie: 0 };
        loop {
            let (kind, data) = receive_option_reply(&mut client.stream, OPTION_GO)?;
            match kind {
                REPLY_ACKNOWLEDGE => return Ok(client),
                REPLY_INFO => client.learn(&data)?,
                REPLY_UNKNOWN => {
                    return Err(NbdError::NoExport { name: export.to_owned() });
                }
                _ => return Err(refused(OPTION_GO, kind, &data)),
            }
        }
    }

    fn learn(&mut self, mut info: &[u8]) -> Result<(), NbdError> {
        match read_u16(&mut info)? {
            INFO_EXPORT => {
                self.size = read_u64(&mut info)?;
                self.read_only = read_u16(&mut info)? & FLAG_READ_ONLY != 0;
            }
            INFO_BLOCK_SIZE => self.block_size = read_u32(&mut info)?,
            // Information that was not asked for may be left unread.
            _ => {}
        }
        Ok(())
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the server takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Requests must be aligned to this, in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many requests are under way.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request and does not wait. Collect answers now and then: a server stops reading when too many wait.
    ///
    /// # Errors
    /// When the request is too large or the connection broke.
    pub fn submit(&mut self, request: NbdRequest<'_>) -> Result<u64, NbdError> {
        let (command, flags, number, offset, size, data): (_, u16, u16, u64, u32, &[u8]) = match request {
            NbdRequest::Read { offset, size } => ("read", 0, 0, offset, size, &[]),
            NbdRequest::Write { offset, data, durable } => {
                let size = u32::try_from(data.len()).map_err(|_| NbdError::TooLarge { size: data.len() })?;
                let flags = if durable { COMMAND_FLAG_FUA } else { 0 };
                ("write", flags, 1, offset, size, data)
            }
            NbdRequest::Flush => ("flush", 0, 3, 0, 0, &[]),
            NbdRequest::Trim { offset, size } => ("trim", 0, 4, offset, size, &[]),
            NbdRequest::WriteZeroes { offset, size } => ("zero", 0, 6, offset, size, &[]),
        };
        let reads = command == "read";
        if size > REQUEST_BYTES_MAX && (reads || !data.is_empty()) {
            return Err(NbdError::TooLarge { size: size as usize });
        }
        self.last_cookie += 1;
        let mut header = Vec::with_capacity(28);
        header.extend(REQUEST.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(number.to_be_bytes());
        header.extend(self.last_cookie.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend(size.to_be_bytes());
        self.stream.get_mut().write_all(&header)?;
        self.stream.get_mut().write_all(data)?;
        let pending = Pending { command, offset, size, reads };
        self.pending.insert(self.last_cookie, pending);
        Ok(self.last_cookie)
    }

    /// Waits for the next answer, whichever request it belongs to.
    ///
    /// # Errors
    /// When nothing is under way, the connection broke, or the server left the protocol. A request that the server
    /// refused is no error here but in the completion.
    pub fn complete(&mut self) -> Result<NbdCompletion, NbdError> {
        if self.pending.is_empty() {
            return Err(NbdError::NothingSubmitted);
        }
        let magic = read_u32(&mut self.stream)?;
        expect("the reply magic", magic.into(), SIMPLE_REPLY.into())?;
        let code = read_u32(&mut self.stream)?;
        let cookie = read_u64(&mut self.stream)?;
        let pending = self.pending.remove(&cookie).ok_or(NbdError::Protocol { what: "the cookie", value: cookie })?;
        if code != 0 {
            let result =
                Err(NbdError::Request { command: pending.command, offset: pending.offset, size: pending.size, code });
            return Ok(NbdCompletion { cookie, result });
        }
        let mut data = vec![0; if pending.reads { pending.size as usize } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(NbdCompletion { cookie, result: Ok(data) })
    }

    /// Waits for everything that is under way.
    ///
    /// # Errors
    /// The first request that failed, after all have been answered; or a broken connection.
    pub fn complete_all(&mut self) -> Result<(), NbdError> {
        let mut first = Ok(());
        while !self.pending.is_empty() {
            let result = self.complete()?.result.map(drop);
            first = first.and(result);
        }
        first
    }

    /// Reads `size` bytes.
    ///
    /// # Errors
    /// When the server refuses, or as in [`NbdClient::complete`].
    pub fn read(&mut self, offset: u64, size: u32) -> Result<Vec<u8>, NbdError> {
        self.one(NbdRequest::Read { offset, size })
    }

    /// Writes; durable only after a flush.
    ///
    /// # Errors
    /// When the server refuses, or as in [`NbdClient::complete`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let durable = false;
        self.one(NbdRequest::Write { offset, data, durable }).map(drop)
    }

    /// Writes and returns when it is durable.
    ///
    /// # Errors
    /// When the server refuses, or as in [`NbdClient::complete`].
    pub fn write_durable(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let durable = true;
        self.one(NbdRequest::Write { offset, data, durable }).map(drop)
    }

    /// Makes everything durable that was answered before.
    ///
    /// # Errors
    /// When the server refuses, or as in [`NbdClient::complete`].
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.one(NbdRequest::Flush).map(drop)
    }

    /// Gives space back.
    ///
    /// # Errors
    /// When the server refuses, or as in [`NbdClient::complete`].
    pub fn trim(&mut self, offset: u64, size: u32) -> Result<(), NbdError> {
        self.one(NbdRequest::Trim { offset, size }).map(drop)
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// When the server refuses, or as in [`NbdClient::complete`].
    pub fn write_zeroes(&mut self, offset: u64, size: u32) -> Result<(), NbdError> {
        self.one(NbdRequest::WriteZeroes { offset, size }).map(drop)
    }

    fn one(&mut self, request: NbdRequest<'_>) -> Result<Vec<u8>, NbdError> {
        self.complete_all()?;
        self.submit(request)?;
        self.complete()?.result
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // A polite end; a server must bear a rude one as well, so an error here is of no interest.
        let mut header = Vec::with_capacity(28);
        header.extend(REQUEST.to_be_bytes());
        header.extend([0, 0, 0, 2]);
        header.extend([0; 20]);
        let _ = self.stream.get_mut().write_all(&header);
    }
}

fn connect_unix(path: &Path) -> Result<Box<dyn Stream>, NbdError> {
    let stream = UnixStream::connect(path)
        .map_err(|source| NbdError::Connect { address: PathBuf::from(path).display().to_string(), source })?;
    Ok(Box::new(stream))
}

fn greet(stream: Box<dyn Stream>) -> Result<BufReader<Box<dyn Stream>>, NbdError> {
    // Small, so that payloads are read straight into their own memory.
    let mut stream = BufReader::with_capacity(4_096, stream);
    expect("the greeting", read_u64(&mut stream)?, GREETING)?;
    expect("the option magic", read_u64(&mut stream)?, OPTION)?;
    let server_flags = read_u16(&mut stream)?;
    // Fixed newstyle (1) must be there; no trailing zeroes (2) is taken when offered.
    expect("the handshake flags", (server_flags & 1).into(), 1)?;
    let flags = u32::from(server_flags & 3);
    stream.get_mut().write_all(&flags.to_be_bytes())?;
    Ok(stream)
}

fn send_option(stream: &mut BufReader<Box<dyn Stream>>, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut message = Vec::with_capacity(16 + data.len());
    message.extend(OPTION.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.get_mut().write_all(&message)?;
    Ok(())
}

fn receive_option_reply(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
    expect("the option reply magic", read_u64(stream)?, OPTION_REPLY)?;
    expect("the option", read_u32(stream)?.into(), option.into())?;
    let kind = read_u32(stream)?;
    let size = read_u32(stream)?;
    if size > OPTION_REPLY_BYTES_MAX {
        return Err(NbdError::Protocol { what: "an option reply's size", value: size.into() });
    }
    let mut data = vec![0; size as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

fn refused(option: u32, code: u32, message: &[u8]) -> NbdError {
    NbdError::Refused { option, code, message: String::from_utf8_lossy(message).into_owned() }
}

fn expect(what: &'static str, value: u64, expected: u64) -> Result<(), NbdError> {
    if value == expected { Ok(()) } else { Err(NbdError::Protocol { what, value }) }
}

fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
#[path = "nbd_client_tests.rs"]
mod tests;
