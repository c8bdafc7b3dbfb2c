//! The NBD front end: the protocol without I/O, and a server around it.
//!
//! After the NBD project's doc/proto.md: fixed newstyle negotiation, structured replies, block sizes, block status.

mod export;
pub mod handshake;
pub mod protocol;
mod replies;
mod room;
mod server;

pub use export::{Export, ExportCatalog, ExportError, ExportInfo, ExportReply, ExportRequest, Extent, ExtentKind};
pub use server::{ListenAddress, ListenError, Server};
