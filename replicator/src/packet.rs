//! The datagrams of a session. QUIC protects them against alteration; these parsers protect against a hostile peer.
//!
//! ```text
//!  header: 0 magic  2 version  3 kind  4 sequence  8 from  16 to  24 time  32
//!  symbol: 32 block  40 block size  44 symbol size  46 N  47 index  48 code  49 R  50 0  56: the symbol
//!  acknowledgement: 32 next block  40 limit  48 echo  56 hold  60 received  64 lost  68 complete size  70 lacking count
//!          71 mark count  72: complete, a bit for each block, up to the last byte that is not 0; then (block 8, count 1,
//!          missing 4, 0 3) each, then (channel 16, value 8) each
//!  hello: nothing more
//! ```

use crate::{
    ChannelId,
    coder::{Code, SYMBOL_COUNT_MAX},
};
use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Version of the datagrams, and of what two nodes say in them. Another one is refused.
pub const VERSION: u8 = 4;
/// Bytes of a source or repair symbol: with all headers they fit a path with the smallest MTU that QUIC allows.
pub const SYMBOL_SIZE: usize = 1_100;
/// Blocks behind the first incomplete one that an acknowledgement can tell of.
pub const COMPLETE_BIT_COUNT: u64 = 4_096;
/// Most requests for repair in an acknowledgement.
pub const LACKING_COUNT_MAX: usize = 24;
/// Most durable marks in an acknowledgement.
pub const MARK_COUNT_MAX: usize = 16;

const MAGIC: u16 = 0x5248; // "HR"
const SYMBOL: u8 = 1;
const ACKNOWLEDGEMENT: u8 = 2;
const HELLO: u8 = 3;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U16,
    version: u8,
    kind: u8,
    sequence: U32,
    from: U64,
    to: U64,
    time: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSymbol {
    block: U64,
    block_size: U32,
    symbol_size: U16,
    source_count: u8,
    index: u8,
    code: u8,
    repair_count: u8,
    reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawAcknowledgement {
    next_block: U64,
    limit: U64,
    echo: U64,
    hold: U32,
    received: U32,
    lost: U32,
    complete_size: U16,
    lacking_count: u8,
    mark_count: u8,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLacking {
    block: U64,
    count: u8,
    missing: U32,
    reserved: [u8; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawMark {
    channel: [u8; 16],
    value: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 32 && size_of::<RawSymbol>() == 24);
const _: () = assert!(size_of::<RawAcknowledgement>() == 40);
/// What follows an acknowledgement's fields: no more than makes it as long as the longest symbol.
const LISTS_SIZE_MAX: usize = size_of::<RawSymbol>() + SYMBOL_SIZE - size_of::<RawAcknowledgement>();
const _: () = assert!(COMPLETE_BIT_COUNT as usize / 8 <= LISTS_SIZE_MAX);

/// What every datagram says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Counts the datagrams on this link, so that the other end sees what is lost.
    pub sequence: u32,
    /// The sender's half of the session's name.
    pub from: u64,
    /// The receiver's half, as far as the sender knows it; else 0.
    pub to: u64,
    /// When it was sent, by the sender's clock, in microseconds.
    pub time: u64,
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Bytes of the stream in it.
    pub size: u32,
    /// Source symbols.
    pub source_count: u8,
    /// Its code.
    pub code: Code,
}

/// One symbol of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The block.
    pub block: u64,
    /// What it is.
    pub shape: BlockShape,
    /// From 0: the source symbols, then the repair symbols.
    pub index: u8,
    /// Its bytes.
    pub data: Bytes,
}

/// What the receiver tells the sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledgement {
    /// All blocks before this one are complete.
    pub next_block: u64,
    /// The sender may send the stream up to this byte.
    pub limit: u64,
    /// The time in the last datagram that came over this link.
    pub echo: u64,
    /// How long ago that was, in microseconds.
    pub hold: u32,
    /// Datagrams that came over this link.
    pub received: u32,
    /// Datagrams that were sent over this link and did not come.
    pub lost: u32,
    /// The block `next_block + i` is complete; each is greater than the one before.
    pub complete: Vec<u64>,
    /// Blocks that are not, and what they lack.
    pub lacking: Vec<Lacking>,
    /// What the application has made durable, by channel.
    pub marks: Vec<(ChannelId, u64)>,
}

impl Acknowledgement {
    /// The same, asking also for what an earlier one that was never sent asked for and what is still lacking.
    #[must_use]
    pub fn asking_too(mut self, earlier: Vec<Lacking>) -> Self {
        for request in earlier {
            let offset = request.block.checked_sub(self.next_block);
            let is_here = offset.is_none_or(|offset| self.complete.contains(&offset));
            let is_asked = self.lacking.iter().any(|other| other.block == request.block);
            if !is_here && !is_asked && self.lacking.len() < LACKING_COUNT_MAX {
                self.lacking.push(request);
            }
        }
        self
    }
}

/// A request for repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The block.
    pub block: u64,
    /// How many more symbols make it complete.
    pub count: u8,
    /// Bit i: source symbol i is not here. 0: nothing is said of that.
    pub missing: u32,
}

/// A datagram's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A symbol.
    Symbol(Symbol),
    /// An acknowledgement.
    Acknowledgement(Acknowledgement),
    /// "I am here."
    Hello,
}

/// Why a datagram was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Too short, or not one of ours.
    #[error("The datagram is not one of a session")]
    Foreign,
    /// Of another version.
    #[error(
        "The peer speaks version {0} of the session protocol, this program version {VERSION}; use the same version of Holdfast on both nodes"
    )]
    Version(u8),
    /// A field is out of range.
    #[error("The datagram has an impossible {0}")]
    Field(&'static str),
}

/// The bytes of a datagram.
pub fn encode(header: &Header, body: &Body) -> Bytes {
    let kind = match body {
        Body::Symbol(_) => SYMBOL,
        Body::Acknowledgement(_) => ACKNOWLEDGEMENT,
        Body::Hello => HELLO,
    };
    let raw = RawHeader {
        magic: MAGIC.into(),
        version: VERSION,
        kind,
        sequence: header.sequence.into(),
        from: header.from.into(),
        to: header.to.into(),
        time: header.time.into(),
    };
    let mut bytes = BytesMut::with_capacity(56 + SYMBOL_SIZE);
    bytes.put_slice(raw.as_bytes());
    match body {
        Body::Symbol(symbol) => {
            let (code, repair_count) = match symbol.shape.code {
                Code::Copy => (0, 0),
                Code::Xor => (1, 0),
                Code::ReedSolomon(count) => (2, count),
            };
            let raw = RawSymbol {
                block: symbol.block.into(),
                block_size: symbol.shape.size.into(),
                symbol_size: (symbol.data.len() as u16).into(),
                source_count: symbol.shape.source_count,
                index: symbol.index,
                code,
                repair_count,
                reserved: [0; 6],
            };
            bytes.put_slice(raw.as_bytes());
            bytes.put_slice(&symbol.data);
        }
        Body::Acknowledgement(ack) => encode_acknowledgement(ack, &mut bytes),
        Body::Hello => {}
    }
    bytes.freeze()
}

fn encode_acknowledgement(ack: &Acknowledgement, bytes: &mut BytesMut) {
    let lacking = &ack.lacking[..ack.lacking.len().min(LACKING_COUNT_MAX)];
    let marks = &ack.marks[..ack.marks.len().min(MARK_COUNT_MAX)];
    let mut complete = [0; COMPLETE_BIT_COUNT as usize / 8];
    let mut complete_size = 0;
    // A later one tells of those that are so far behind that there is no room for them.
    let room = LISTS_SIZE_MAX - lacking.len() * size_of::<RawLacking>() - marks.len() * size_of::<RawMark>();
    for offset in &ack.complete {
        let byte = (offset / 8) as usize;
        if let Some(bits) = complete.get_mut(byte).filter(|_| byte < room) {
            *bits |= 1 << (offset % 8);
            complete_size = complete_size.max(byte + 1);
        }
    }
    let raw = RawAcknowledgement {
        next_block: ack.next_block.into(),
        limit: ack.limit.into(),
        echo: ack.echo.into(),
        hold: ack.hold.into(),
        received: ack.received.into(),
        lost: ack.lost.into(),
        complete_size: (complete_size as u16).into(),
        lacking_count: lacking.len() as u8,
        mark_count: marks.len() as u8,
    };
    bytes.put_slice(raw.as_bytes());
    bytes.put_slice(&complete[..complete_size]);
    for Lacking { block, count, missing } in lacking {
        let raw = RawLacking { block: (*block).into(), count: *count, missing: (*missing).into(), reserved: [0; 3] };
        bytes.put_slice(raw.as_bytes());
    }
    for (channel, value) in marks {
        bytes.put_slice(RawMark { channel: channel.0, value: (*value).into() }.as_bytes());
    }
}

/// Reads a datagram.
pub fn parse(bytes: &Bytes) -> Result<(Header, Body), PacketError> {
    let (raw, rest) = RawHeader::ref_from_prefix(bytes).map_err(|_| PacketError::Foreign)?;
    if raw.magic.get() != MAGIC {
        return Err(PacketError::Foreign);
    }
    if raw.version != VERSION {
        return Err(PacketError::Version(raw.version));
    }
    let header = Header { sequence: raw.sequence.get(), from: raw.from.get(), to: raw.to.get(), time: raw.time.get() };
    let body = match raw.kind {
        SYMBOL => Body::Symbol(parse_symbol(bytes, rest)?),
        ACKNOWLEDGEMENT => Body::Acknowledgement(parse_acknowledgement(rest)?),
        HELLO => Body::Hello,
        _ => return Err(PacketError::Field("kind")),
    };
    Ok((header, body))
}

fn require(holds: bool, field: &'static str) -> Result<(), PacketError> {
    if holds { Ok(()) } else { Err(PacketError::Field(field)) }
}

fn parse_symbol(whole: &Bytes, rest: &[u8]) -> Result<Symbol, PacketError> {
    let (raw, data) = RawSymbol::ref_from_prefix(rest).map_err(|_| PacketError::Foreign)?;
    let size = usize::from(raw.symbol_size.get());
    let count = usize::from(raw.source_count);
    require(size > 0 && size <= SYMBOL_SIZE && size.is_multiple_of(2) && data.len() == size, "symbol size")?;
    require((1..=SYMBOL_COUNT_MAX).contains(&count) && raw.reserved == [0; 6], "symbol count")?;
    let code = match (raw.code, raw.repair_count) {
        (0, 0) if count == 1 => Code::Copy,
        (1, 0) => Code::Xor,
        (2, repair) if (1..=SYMBOL_COUNT_MAX).contains(&usize::from(repair)) && repair.is_power_of_two() => {
            Code::ReedSolomon(repair)
        }
        _ => return Err(PacketError::Field("code")),
    };
    require(usize::from(raw.index) < count + code.repair_count(), "symbol index")?;
    let block_size = raw.block_size.get() as usize;
    require(block_size > (count - 1) * size && block_size <= count * size, "block size")?;
    let shape = BlockShape { size: raw.block_size.get(), source_count: raw.source_count, code };
    Ok(Symbol { block: raw.block.get(), shape, index: raw.index, data: whole.slice(56..) })
}

fn parse_acknowledgement(rest: &[u8]) -> Result<Acknowledgement, PacketError> {
    let (raw, rest) = RawAcknowledgement::ref_from_prefix(rest).map_err(|_| PacketError::Foreign)?;
    require(rest.len() <= LISTS_SIZE_MAX, "size")?;
    let complete_size = usize::from(raw.complete_size.get());
    require(complete_size <= COMPLETE_BIT_COUNT as usize / 8, "count")?;
    let (complete, mut rest) = rest.split_at_checked(complete_size).ok_or(PacketError::Foreign)?;
    require(usize::from(raw.lacking_count) <= LACKING_COUNT_MAX, "count")?;
    require(usize::from(raw.mark_count) <= MARK_COUNT_MAX, "count")?;
    let bits = |(byte, at): (&u8, u64)| {
        let byte = *byte;
        (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| 8 * at + bit)
    };
    let mut ack = Acknowledgement {
        next_block: raw.next_block.get(),
        limit: raw.limit.get(),
        echo: raw.echo.get(),
        hold: raw.hold.get(),
        received: raw.received.get(),
        lost: raw.lost.get(),
        complete: complete.iter().zip(0..).flat_map(bits).collect(),
        lacking: Vec::new(),
        marks: Vec::new(),
    };
    for _ in 0..raw.lacking_count {
        let (lacking, after) = RawLacking::ref_from_prefix(rest).map_err(|_| PacketError::Foreign)?;
        let (block, count, missing) = (lacking.block.get(), lacking.count, lacking.missing.get());
        ack.lacking.push(Lacking { block, count, missing });
        rest = after;
    }
    for _ in 0..raw.mark_count {
        let (mark, after) = RawMark::ref_from_prefix(rest).map_err(|_| PacketError::Foreign)?;
        ack.marks.push((ChannelId(mark.channel), mark.value.get()));
        rest = after;
    }
    require(rest.is_empty(), "size")?;
    Ok(ack)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header { sequence: 7, from: 0x1111, to: 0x2222, time: 0x3333 };

    fn symbol() -> Symbol {
        let shape = BlockShape { size: 5, source_count: 2, code: Code::ReedSolomon(4) };
        Symbol { block: 9, shape, index: 3, data: Bytes::from_static(b"abcd") }
    }

    fn acknowledgement() -> Acknowledgement {
        Acknowledgement {
            next_block: 5,
            limit: 6,
            echo: 7,
            hold: 8,
            received: 9,
            lost: 10,
            complete: vec![1, 9, 4_095],
            lacking: vec![Lacking { block: 5, count: 2, missing: 0x11 }],
            marks: vec![(ChannelId([1; 16]), 3)],
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode(&HEADER, &Body::Symbol(symbol()));
        let head = b"HR\x04\x01\x07\0\0\0\x11\x11\0\0\0\0\0\0\x22\x22\0\0\0\0\0\0\x33\x33\0\0\0\0\0\0";
        assert_eq!(&bytes[..32], head);
        assert_eq!(&bytes[32..], b"\x09\0\0\0\0\0\0\0\x05\0\0\0\x04\0\x02\x03\x02\x04\0\0\0\0\0\0abcd");
        assert_eq!(encode(&HEADER, &Body::Hello)[..4], *b"HR\x04\x03");
        let bytes = encode(&HEADER, &Body::Acknowledgement(acknowledgement()));
        assert_eq!(&bytes[32..48], b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0");
        assert_eq!(bytes[68..74], [0, 2, 1, 1, 2, 2]);
        assert_eq!(bytes[583], 0x80);
        assert_eq!(&bytes[584..600], b"\x05\0\0\0\0\0\0\0\x02\x11\0\0\0\0\0\0");
        assert_eq!(bytes.len(), 584 + 16 + 24);
        // Nothing is said of blocks behind the last one that is complete.
        let ack = Acknowledgement { complete: vec![1, 9], ..acknowledgement() };
        let bytes = encode(&HEADER, &Body::Acknowledgement(ack));
        assert_eq!(bytes[68..75], [2, 0, 1, 1, 2, 2, 5]);
        assert_eq!(bytes.len(), 74 + 16 + 24);
    }

    #[test]
    fn an_acknowledgement_that_has_much_to_tell_is_no_longer_than_a_symbol() {
        let mut ack = Acknowledgement {
            complete: (0..COMPLETE_BIT_COUNT).collect(),
            lacking: vec![Lacking { block: 5, count: 2, missing: 0x11 }; LACKING_COUNT_MAX],
            marks: vec![(ChannelId([1; 16]), 3); MARK_COUNT_MAX],
            ..acknowledgement()
        };
        let bytes = encode(&HEADER, &Body::Acknowledgement(ack.clone()));
        assert_eq!(bytes.len(), 32 + 24 + SYMBOL_SIZE);
        let (_, Body::Acknowledgement(told)) = parse(&bytes).unwrap() else { panic!("it is something else") };
        // What there was room for.
        assert!(told.complete.len() > 2_500);
        ack.complete.truncate(told.complete.len());
        assert_eq!(told, ack);
    }

    #[test]
    fn another_version_is_refused_with_its_number() {
        let mut bytes = encode(&HEADER, &Body::Hello).to_vec();
        bytes[2] = 1;
        assert_eq!(parse(&bytes.into()), Err(PacketError::Version(1)));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_parsed(kind in 0..3) {
            let body = match kind {
                0 => Body::Hello,
                1 => Body::Symbol(symbol()),
                _ => Body::Acknowledgement(acknowledgement()),
            };
            prop_assert_eq!(parse(&encode(&HEADER, &body)), Ok((HEADER, body)));
        }

        #[test]
        fn damaged_bytes_are_refused_or_in_range(at in 0usize..640, to: u8, cut in 0usize..640) {
            for body in [Body::Symbol(symbol()), Body::Acknowledgement(acknowledgement())] {
                let mut bytes = encode(&HEADER, &body).to_vec();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = to;
                }
                bytes.truncate(cut);
                if let Ok((_, Body::Symbol(symbol))) = parse(&bytes.into()) {
                    prop_assert!(symbol.data.len() <= SYMBOL_SIZE);
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = parse(&bytes.into());
        }
    }
}
