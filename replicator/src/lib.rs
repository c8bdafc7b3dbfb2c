//! The carrier: moves opaque frames between two nodes, each once and in order, coded against loss, over one or two
//! UDP links; and tells what the other end has made durable.
//!
//! It does not know what a frame means. [`session`] and what it is made of are pure; `io` holds the sockets.
#![forbid(unsafe_code)]

mod came;
pub mod coder;
mod contest;
pub mod heartbeat;
#[cfg(feature = "io")]
pub mod io;
mod line;
mod marks;
pub mod packet;
mod parity;
mod proof;
pub mod rate;
mod receiver;
mod sender;
pub mod session;
pub mod testing;

pub use receiver::{FRAME_SIZE_MAX, ProtocolError, ReceiveCounters};
pub use sender::SendCounters;

use bytes::Bytes;

/// What a frame belongs to. All zero: the nodes themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub [u8; 16]);

/// Which session: the exclusive or of both ends' names. What belongs to one says nothing in the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionName(pub u64);

/// A frame to send: the body is the header, then the payload; at most [`FRAME_SIZE_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it belongs to.
    pub channel: ChannelId,
    /// The start of the body.
    pub header: Bytes,
    /// The rest of the body.
    pub payload: Bytes,
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What it belongs to.
    pub channel: ChannelId,
    /// Its body.
    pub body: Bytes,
}

/// How blocks are spread over two links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Source symbols over the first, as many repair symbols over the second: either alone suffices.
    Split,
    /// Both carry what they can; repair symbols follow the measured loss.
    Stripe,
    /// Everything over both.
    Mirror,
    /// The same as [`Mode::Stripe`]: how many repair symbols, and whether a link carries little, follows what is measured.
    #[default]
    Auto,
}

/// Whether a link can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// It is connected and the peer is heard.
    Up,
    /// It is not.
    Down,
}

/// A link as an operator sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LinkStatus {
    /// Its name.
    pub name: String,
    /// Whether it can be used.
    pub state: LinkState,
    /// The round trip in microseconds, smoothed.
    pub rtt_micros: Option<u64>,
    /// The part of datagrams sent that does not arrive, smoothed; `None` before it was measured.
    pub loss: Option<f64>,
    /// What it is thought to carry, in bytes a second, by the model of the path; `None` before anything is known.
    pub rate: Option<u64>,
    /// Repair symbols that a full block gets for this loss.
    pub repair_symbols: usize,
    /// Its round trip is so much longer than the other link's that it carries only what the other has no room for.
    pub is_farther: bool,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Datagrams that the peer sent and that did not come (or have not yet).
    pub lost_datagrams: u64,
}

/// A session as an operator sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SessionStatus {
    /// Whether there is one.
    pub up: bool,
    /// How blocks are spread over the links.
    pub mode: Mode,
    /// Bytes taken that the peer has not acknowledged.
    pub outstanding_bytes: u64,
    /// What was sent.
    pub sent: SendCounters,
    /// What came.
    pub received: ReceiveCounters,
    /// The links.
    pub links: Vec<LinkStatus>,
}

#[cfg(test)]
mod stream_tests;
