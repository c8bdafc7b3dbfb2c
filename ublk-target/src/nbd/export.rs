//! What the front end asks of a volume.

use bytes::Bytes;
use std::rc::Rc;

/// A request. Offsets and sizes in bytes, checked against the export's size and logical block.
#[derive(Clone, Debug)]
pub enum ExportRequest {
    /// Give data.
    Read {
        /// First byte.
        offset: u64,
        /// At most 32 MiB.
        size: u32,
    },
    /// Replace data.
    Write {
        /// First byte.
        offset: u64,
        /// Starts at a 4,096-byte boundary of memory.
        data: Bytes,
        /// Answer when it would survive loss of power.
        fua: bool,
    },
    /// Make all completed writes durable.
    Flush,
    /// The data is of no more use.
    Discard {
        /// First byte.
        offset: u64,
        /// How many bytes.
        size: u64,
    },
    /// Reads give zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// How many bytes.
        size: u64,
        /// The space stays allocated.
        keep_allocated: bool,
        /// Answer when it would survive loss of power.
        fua: bool,
    },
    /// Tell which parts hold data.
    Extents {
        /// First byte.
        offset: u64,
        /// How many bytes.
        size: u64,
    },
}

/// The answer to a request that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportReply {
    /// It is done.
    Done,
    /// Data in pieces, in order.
    Data(Vec<Bytes>),
    /// Parts, in order.
    Extents(Vec<Extent>),
}

/// A part of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Size in bytes.
    pub size: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What a part of an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data.
    Allocated,
    /// Nothing; reads as zeroes.
    Hole,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Not possible as asked.
    #[error("The request is not valid")]
    Invalid,
    /// A medium failed.
    #[error("A medium failed")]
    Io,
    /// No room.
    #[error("There is no space left")]
    NoSpace,
    /// Not writable.
    #[error("The export is read-only")]
    ReadOnly,
    /// Not something this export does.
    #[error("The request is not supported")]
    NotSupported,
    /// The server is going down.
    #[error("The export is being closed")]
    Shutdown,
}

/// What an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Every offset and size is a multiple of this.
    pub logical_block_size: u32,
    /// What is best for speed.
    pub preferred_block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// A volume that is served. Everything runs in one thread.
pub trait Export: 'static {
    /// What it is now.
    fn info(&self) -> ExportInfo;
    /// Carries out a request.
    fn submit(&self, request: ExportRequest) -> impl Future<Output = Result<ExportReply, ExportError>> + 'static;
}

/// The exports there are, looked up at each negotiation.
pub trait ExportCatalog: 'static {
    /// Their type.
    type Export: Export;
    /// All of them.
    fn list(&self) -> Vec<ExportInfo>;
    /// One of them; the empty name means the only one.
    fn find(&self, name: &str) -> Option<Rc<Self::Export>>;
}
