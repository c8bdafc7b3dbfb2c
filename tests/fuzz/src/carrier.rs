//! What comes from a peer's sockets: datagrams, heartbeats, and the stream of frames inside the symbols.

use crate::input::Input;
use bytes::Bytes;
use replicator::{
    ChannelId, FRAME_SIZE_MAX,
    coder::{Code, Coder},
    heartbeat::{BEAT_SIZE, Heartbeat},
    packet::{self, BlockShape, Body, Header, SYMBOL_SIZE, Symbol},
    session::{Session, SessionEvent, SessionOptions},
};

/// A frame's head in the stream: its channel and size.
const FRAME_HEADER_SIZE: usize = 20;
const OWN: u64 = 0x0a;
const PEER: u64 = 0x0b;

/// A datagram as it is.
pub fn packet(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok((header, body)) = packet::parse(&bytes) {
        assert_eq!(packet::parse(&packet::encode(&header, &body)), Ok((header, body)));
    }
}

/// Messages of any kind to one side, between its own. The same message never says twice that the other side lives.
pub fn heartbeat(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut side, mut other) = (Heartbeat::new([1; 16]), Heartbeat::new([2; 16]));
    let mut sent = vec![side.beat()];
    while !input.is_empty() {
        let beat = match input.pick(5) {
            0 => {
                sent.push(side.beat());
                continue;
            }
            1 => {
                other.hear(&sent[input.pick(sent.len())]);
                other.beat().to_vec()
            }
            2 => {
                // Signed, so from the other node, but of any life of it.
                let mut beat = other.beat();
                beat[8..24].fill(input.byte());
                beat[24..40].copy_from_slice(&sent[input.pick(sent.len())][8..24]);
                beat[40..48].copy_from_slice(&input.number(1).to_le_bytes());
                beat.to_vec()
            }
            3 => {
                let mut beat = other.beat();
                beat[input.pick(BEAT_SIZE)] = input.byte();
                beat.to_vec()
            }
            _ => {
                let size = input.pick(80);
                input.bytes(size).to_vec()
            }
        };
        if side.hear(&beat) {
            assert!(!side.hear(&beat), "an old message is taken for a sign of life");
        }
    }
}

/// A stream of any bytes, cut into blocks, coded and carried in disorder with losses and doubles: the frames that come out are those
/// that a plain reading of the stream finds.
pub fn stream(data: &[u8]) {
    let mut input = Input::new(data);
    let mut session = started_session();
    let (mut stream, mut got) = (Vec::new(), Vec::new());
    for block in 0..1 + input.pick(16) as u64 {
        let (code, source) = next_block(&mut input, &mut stream);
        let size = source.iter().map(Bytes::len).sum::<usize>();
        let cut = input.pick(source[0].len()).min(size - 1);
        let shape = BlockShape { size: (size - cut) as u32, source_count: source.len() as u8, code };
        stream.truncate(stream.len() - cut);
        let mut symbols: Vec<(usize, Bytes)> = source.iter().cloned().enumerate().collect();
        symbols
            .extend(Coder::new().encode(code, &source).into_iter().enumerate().map(|(at, s)| (source.len() + at, s)));
        // As many as are needed come, in any order and some twice.
        for left in (0..symbols.len()).rev() {
            let (index, data) = symbols.swap_remove(input.pick(left + 1));
            let symbol = Symbol { block, shape, index: index as u8, data };
            for _ in 0..1 + input.pick(2) {
                let header = Header { sequence: 1, from: PEER, to: OWN, time: 1 };
                let datagram = packet::encode(&header, &Body::Symbol(symbol.clone()));
                let result = session.handle_datagram(2, 0, &datagram);
                take_frames(&mut session, &mut got);
                if result.is_err() {
                    return assert!(frames_of(&stream).1, "the session was ended without a reason");
                }
            }
        }
        let (frames, is_broken) = frames_of(&stream);
        assert!(!is_broken && frames == got, "{} frames came of {}", got.len(), frames.len());
    }
}

/// The source symbols of the next block, whose bytes also go to the end of `stream`.
fn next_block(input: &mut Input<'_>, stream: &mut Vec<u8>) -> (Code, Vec<Bytes>) {
    let (count, repair) = (1 + input.pick(6), 1 + input.pick(4));
    let size = (2 * (1 + input.pick(60))).min(SYMBOL_SIZE);
    let mut symbols = Vec::new();
    for _ in 0..count {
        let mut symbol = Vec::new();
        // Frames one after the other make a stream; other bytes soon break it.
        while symbol.len() < size && input.pick(16) != 0 {
            let body = input.pick(64);
            symbol.extend([input.byte() & 1; 16]);
            symbol.extend((body as u32).to_le_bytes());
            symbol.extend(crate::input::padded(input.bytes(body), body));
        }
        symbol.extend(input.bytes(size.saturating_sub(symbol.len())));
        symbol.resize(size, 0);
        stream.extend(&symbol);
        symbols.push(Bytes::from(symbol));
    }
    (Code::choose(count, repair), symbols)
}

/// The frames of a stream, and whether one is longer than allowed.
fn frames_of(mut stream: &[u8]) -> (Vec<(ChannelId, Vec<u8>)>, bool) {
    let mut frames = Vec::new();
    while let Some((head, rest)) = stream.split_first_chunk::<FRAME_HEADER_SIZE>() {
        let size = u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize;
        if size > FRAME_SIZE_MAX {
            return (frames, true);
        }
        let Some((body, after)) = rest.split_at_checked(size) else { break };
        let channel = ChannelId(std::array::from_fn(|at| head[at]));
        frames.push((channel, body.to_vec()));
        stream = after;
    }
    (frames, false)
}

fn take_frames(session: &mut Session, got: &mut Vec<(ChannelId, Vec<u8>)>) {
    while let Some(event) = session.poll_event() {
        if let SessionEvent::Frame(frame) = event {
            session.consumed(frame.body.len() as u64);
            got.push((frame.channel, frame.body.to_vec()));
        }
    }
}

/// A session that has just begun.
fn started_session() -> Session {
    let mut session = Session::new(SessionOptions::default(), OWN, 1);
    session.handle_link(1, 0, true);
    let hello = packet::encode(&Header { sequence: 1, from: PEER, to: OWN, time: 1 }, &Body::Hello);
    session.handle_datagram(1, 0, &hello).expect("a hello is in order");
    assert!(std::iter::from_fn(|| session.poll_event()).any(|event| matches!(event, SessionEvent::Up { .. })));
    session
}
