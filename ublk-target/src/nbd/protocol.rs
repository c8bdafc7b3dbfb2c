//! The transmission phase in bytes: requests in, replies out.

use super::{ExportError, ExportInfo, Extent, ExtentKind};

/// Longest read or write in bytes.
pub const REQUEST_SIZE_MAX: u32 = 32 << 20;
/// Bytes of a request's header.
pub const REQUEST_HEADER_SIZE: usize = 28;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const FLAG_FUA: u16 = 1 << 0;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;
const FLAG_FAST_ZERO: u16 = 1 << 4;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) + 1;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// The number by which a client names the only metadata context there is.
pub const ALLOCATION_CONTEXT: u32 = 1;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the payload follows.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Disconnect.
    Disconnect,
    /// Flush.
    Flush,
    /// Trim.
    Trim {
        /// Force unit access.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// Force unit access.
        fua: bool,
        /// The space stays allocated.
        no_hole: bool,
        /// Only if it is faster than writing.
        fast: bool,
    },
    /// Block status.
    BlockStatus {
        /// The first extent only.
        one: bool,
    },
    /// Something else, or with flags that make no sense.
    Invalid {
        /// So many bytes follow that must be skipped.
        payload: bool,
    },
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub command: Command,
    /// Comes back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub size: u32,
}

/// The stream is out of step: what follows cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The client sent {0:#010x} where a request should begin")]
pub struct OutOfStep(u32);

impl Request {
    /// Reads a header.
    pub fn parse(bytes: &[u8; REQUEST_HEADER_SIZE]) -> Result<Self, OutOfStep> {
        let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(OutOfStep(magic));
        }
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, s0, s1, s2, s3] = rest;
        Ok(Self {
            command: Command::parse(u16::from_be_bytes([t0, t1]), u16::from_be_bytes([f0, f1])),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            size: u32::from_be_bytes([s0, s1, s2, s3]),
        })
    }

    /// Whether the export can be asked for this; else the error to answer with.
    pub fn check(&self, info: &ExportInfo) -> Result<(), ExportError> {
        let writes = matches!(self.command, Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. });
        if writes && info.read_only {
            return Err(ExportError::ReadOnly);
        }
        match self.command {
            Command::Flush | Command::Disconnect => return Ok(()),
            Command::Invalid { .. } => return Err(ExportError::Invalid),
            _ => {}
        }
        let moves = matches!(self.command, Command::Read | Command::Write { .. });
        let block = u64::from(info.logical_block_size);
        let aligned = (self.offset | u64::from(self.size)).is_multiple_of(block);
        if !aligned || self.size == 0 || (moves && self.size > REQUEST_SIZE_MAX) {
            return Err(ExportError::Invalid);
        }
        let end = self.offset.checked_add(self.size.into());
        if end.is_some_and(|end| end <= info.size) {
            return Ok(());
        }
        let writes_data = matches!(self.command, Command::Write { .. } | Command::WriteZeroes { .. });
        Err(if writes_data { ExportError::NoSpace } else { ExportError::Invalid })
    }
}

impl Command {
    fn parse(kind: u16, flags: u16) -> Self {
        let fua = flags & FLAG_FUA != 0;
        let only = |allowed: u16| flags & !allowed == 0;
        match kind {
            0 if only(FLAG_FUA | FLAG_DF) => Self::Read,
            1 if only(FLAG_FUA) => Self::Write { fua },
            2 => Self::Disconnect,
            3 if only(FLAG_FUA) => Self::Flush,
            4 if only(FLAG_FUA) => Self::Trim { fua },
            6 if only(FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO) => {
                Self::WriteZeroes { fua, no_hole: flags & FLAG_NO_HOLE != 0, fast: flags & FLAG_FAST_ZERO != 0 }
            }
            7 if only(FLAG_FUA | FLAG_REQ_ONE) => Self::BlockStatus { one: flags & FLAG_REQ_ONE != 0 },
            _ => Self::Invalid { payload: kind == 1 },
        }
    }
}

/// The protocol's number for an error.
pub fn errno(error: ExportError) -> u32 {
    match error {
        ExportError::ReadOnly => 1,
        ExportError::Io => 5,
        ExportError::Invalid => 22,
        ExportError::NoSpace => 28,
        ExportError::NotSupported => 95,
        ExportError::Shutdown => 108,
    }
}

/// What a client negotiated about replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyStyle {
    /// Structured replies.
    pub structured: bool,
    /// The allocation context was asked for.
    pub allocation: bool,
}

impl ReplyStyle {
    /// An answer without data.
    pub fn done(self, cookie: u64, out: &mut Vec<u8>) {
        if self.structured {
            chunk(CHUNK_NONE, cookie, 0, out);
        } else {
            simple(0, cookie, out);
        }
    }

    /// An error.
    pub fn error(self, cookie: u64, error: ExportError, out: &mut Vec<u8>) {
        if !self.structured {
            return simple(errno(error), cookie, out);
        }
        let text = error.to_string();
        chunk(CHUNK_ERROR, cookie, 6 + text.len() as u32, out);
        out.extend_from_slice(&errno(error).to_be_bytes());
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    /// What stands before `size` bytes of data that were read.
    pub fn data(self, cookie: u64, offset: u64, size: usize, out: &mut Vec<u8>) {
        if self.structured {
            chunk(CHUNK_OFFSET_DATA, cookie, 8 + size as u32, out);
            out.extend_from_slice(&offset.to_be_bytes());
        } else {
            simple(0, cookie, out);
        }
    }

    /// The state of extents; with `one` of the first only.
    pub fn extents(self, cookie: u64, extents: &[Extent], one: bool, out: &mut Vec<u8>) {
        let extents = if one { &extents[..extents.len().min(1)] } else { extents };
        chunk(CHUNK_BLOCK_STATUS, cookie, 4 + 8 * extents.len() as u32, out);
        out.extend_from_slice(&ALLOCATION_CONTEXT.to_be_bytes());
        for extent in extents {
            let state = if extent.kind == ExtentKind::Hole { STATE_HOLE | STATE_ZERO } else { 0 };
            out.extend_from_slice(&(extent.size as u32).to_be_bytes());
            out.extend_from_slice(&state.to_be_bytes());
        }
    }
}

fn simple(errno: u32, cookie: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&errno.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn chunk(kind: u16, cookie: u64, size: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&CHUNK_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&size.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: u16, flags: u16, offset: u64, size: u32) -> [u8; REQUEST_HEADER_SIZE] {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&7u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.try_into().unwrap()
    }

    fn info(read_only: bool) -> ExportInfo {
        ExportInfo {
            name: "v".into(),
            description: String::new(),
            size: 1 << 20,
            logical_block_size: 512,
            preferred_block_size: 4096,
            read_only,
        }
    }

    #[test]
    fn requests_are_checked_as_the_protocol_says() {
        let check = |kind, flags, offset, size, read_only| {
            Request::parse(&header(kind, flags, offset, size)).unwrap().check(&info(read_only))
        };
        assert_eq!(check(0, 0, 0, 512, true), Ok(()));
        assert_eq!(check(1, 0, 0, 512, true), Err(ExportError::ReadOnly));
        assert_eq!(check(1, 0, 1 << 20, 512, false), Err(ExportError::NoSpace));
        assert_eq!(check(0, 0, 1 << 20, 512, false), Err(ExportError::Invalid));
        assert_eq!(check(0, 0, u64::MAX - 511, 512, false), Err(ExportError::Invalid));
        assert_eq!(check(0, 0, 1, 512, false), Err(ExportError::Invalid));
        assert_eq!(check(0, 0, 0, 33 << 20, false), Err(ExportError::Invalid));
        assert_eq!(check(5, 0, 0, 512, false), Err(ExportError::Invalid));
        assert_eq!(check(3, 0, 0, 0, true), Ok(()));
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        let (simple, structured) = (ReplyStyle::default(), ReplyStyle { structured: true, allocation: true });
        let mut out = Vec::new();
        simple.error(7, ExportError::NoSpace, &mut out);
        assert_eq!(out, b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x07");
        out.clear();
        structured.data(7, 512, 3, &mut out);
        assert_eq!(out, b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x07\0\0\0\x0b\0\0\0\0\0\0\x02\0");
        out.clear();
        structured.extents(7, &[Extent { size: 4096, kind: ExtentKind::Hole }], true, &mut out);
        assert_eq!(out[4..8], [0, 1, 0, 5]);
        assert_eq!(out[20..], [0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3]);
    }

    proptest! {
        #[test]
        fn random_headers_never_panic(bytes in any::<[u8; REQUEST_HEADER_SIZE]>(), kind in 0u16..12, flags: u16, offset: u64, size: u32) {
            let _ = Request::parse(&bytes).map(|request| request.check(&info(false)));
            let _ = Request::parse(&header(kind, flags, offset, size)).unwrap().check(&info(false));
        }
    }
}
