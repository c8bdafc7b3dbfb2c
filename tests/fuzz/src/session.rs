//! The carrier's state machine: two sessions whose links, clock and applications do what the input says. Datagrams arrive late, twice,
//! never, altered, or from nowhere. As long as nothing was altered or forged, frames come once, in order and whole.

use crate::{
    input::{Input, padded},
    node::GROUP,
};
use bytes::Bytes;
use replicator::{
    ChannelId, Frame, Mode,
    coder::Code,
    packet::{self, Acknowledgement, BlockShape, Body, Header, Lacking, Symbol},
    session::{Session, SessionEvent, SessionOptions},
};

/// Events of one input.
const EVENT_COUNT_MAX: usize = 600;
/// Datagrams on their way.
const FLYING_COUNT_MAX: usize = 2_000;
const CHANNEL: ChannelId = ChannelId(GROUP.0);
const MODES: [Mode; 4] = [Mode::Split, Mode::Stripe, Mode::Mirror, Mode::Auto];

struct World {
    ends: [Session; 2],
    link_count: usize,
    now: u64,
    /// The end that it goes to, the link, the datagram.
    flying: Vec<(usize, usize, Bytes)>,
    /// Frames that each end sent and the other has not got, of this session.
    sent: [Vec<Frame>; 2],
    /// Something that no correct node sends has arrived.
    is_hostile: bool,
}

/// The target `session`.
pub fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.choose(&MODES);
    let link_count = 1 + input.pick(2);
    let options = SessionOptions { mode, ..SessionOptions::default() };
    let ends = [Session::new(options, 0x0a, link_count), Session::new(options, 0x0b, link_count)];
    let now = 1 << 40;
    let mut world =
        World { ends, link_count, now, flying: Vec::new(), sent: [Vec::new(), Vec::new()], is_hostile: false };
    for end in 0..2 {
        (0..link_count).for_each(|link| world.ends[end].handle_link(now, link, true));
    }
    if input.flag() {
        world.calm();
    }
    for _ in 0..EVENT_COUNT_MAX {
        if input.is_empty() {
            break;
        }
        world.event(&mut input);
        world.take_events();
    }
    let names = ["one".to_owned(), "two".to_owned()];
    assert!(world.ends.iter().all(|end| end.status(&names).links.len() == link_count));
}

impl World {
    fn event(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        let end = usize::from(what >> 7);
        let link = usize::from(what >> 6 & 1) % self.link_count;
        let now = self.now;
        match what & 15 {
            0 | 1 => self.transmit(end, link, 1 + input.pick(64)),
            2 => self.transmit(end, link, usize::MAX),
            3 | 4 => self.arrive(input, |_| true, |bytes, _| bytes),
            5 => self.arrive(input, |_| false, |bytes, _| bytes),
            6 => {
                self.is_hostile = true;
                self.arrive(input, |_| true, altered);
            }
            7 => {
                self.is_hostile = true;
                let datagram = forged(input, self.names(end));
                self.hear(end, link, &datagram);
            }
            8 => {
                self.is_hostile = true;
                let size = input.pick(200);
                let datagram = Bytes::copy_from_slice(input.bytes(size));
                self.hear(end, link, &datagram);
            }
            9 | 10 => self.send(end, input),
            11 => {
                self.now = match input.pick(3) {
                    0 => now + u64::from(input.byte()),
                    1 => now + (u64::from(input.u16()) << input.pick(10)),
                    _ => self.ends[end].poll_timeout().unwrap_or(now).max(now),
                };
                self.ends.iter_mut().for_each(|end| end.handle_timeout(self.now));
            }
            12 => self.ends[end].mark_durable(now, ChannelId([input.byte(); 16]), input.number(1)),
            13 => self.ends[end].handle_link(now, link, input.flag()),
            14 => match input.pick(8) {
                0 => self.ends[end].restart(now),
                _ => self.ends[end].set_mode(input.choose(&MODES)),
            },
            _ => self.calm(),
        }
    }

    fn send(&mut self, end: usize, input: &mut Input<'_>) {
        let size = usize::from(input.byte()) << input.pick(10);
        let header = Bytes::copy_from_slice(&padded(input.bytes(4), 64));
        let payload = vec![size as u8; size].into();
        let frame = Frame { channel: CHANNEL, header, payload };
        if self.ends[end].send(frame.clone()).is_ok() {
            self.sent[end].push(frame);
        }
    }

    fn transmit(&mut self, end: usize, link: usize, most: usize) {
        for _ in 0..most {
            if self.flying.len() >= FLYING_COUNT_MAX {
                return;
            }
            let Some(datagram) = self.ends[end].poll_transmit(self.now, link) else { return };
            self.flying.push((1 - end, link, datagram));
        }
    }

    /// One of the datagrams on their way arrives; `once`: and is not on its way any more.
    fn arrive(
        &mut self,
        input: &mut Input<'_>,
        once: impl Fn(&Bytes) -> bool,
        change: impl Fn(Bytes, &mut Input<'_>) -> Bytes,
    ) {
        if self.flying.is_empty() {
            return;
        }
        let index = usize::from(input.byte()) % self.flying.len();
        let (end, link, datagram) =
            if once(&self.flying[index].2) { self.flying.swap_remove(index) } else { self.flying[index].clone() };
        let datagram = change(datagram, input);
        self.hear(end, link, &datagram);
    }

    fn hear(&mut self, end: usize, link: usize, datagram: &Bytes) {
        let result = self.ends[end].handle_datagram(self.now, link, datagram);
        assert!(self.is_hostile || result.is_ok(), "an honest datagram is refused: {result:?}");
    }

    /// An end's names of the session: its own and, as far as it knows, the other's.
    fn names(&mut self, end: usize) -> (u64, u64) {
        let own = |session: &mut Session, now| {
            session.handle_link(now, 0, true);
            let sent = session.poll_transmit(now, 0)?;
            Some(packet::parse(&sent).ok()?.0)
        };
        own(&mut self.ends[end], self.now).map_or((0, 0), |header| (header.from, header.to))
    }

    /// For a while everything arrives.
    fn calm(&mut self) {
        for _ in 0..40 {
            for end in 0..2 {
                self.ends[end].handle_timeout(self.now);
                (0..self.link_count).for_each(|link| self.transmit(end, link, usize::MAX));
            }
            for (end, link, datagram) in std::mem::take(&mut self.flying) {
                self.hear(end, link, &datagram);
                self.take_events();
            }
            self.now += 2_000;
        }
    }

    fn take_events(&mut self) {
        for end in 0..2 {
            while let Some(event) = self.ends[end].poll_event() {
                match event {
                    SessionEvent::Frame(frame) => {
                        self.ends[end].consumed(frame.body.len() as u64);
                        if !self.is_hostile {
                            let expected = self.sent[1 - end].remove(0);
                            assert_eq!(frame.body, [expected.header, expected.payload].concat());
                        }
                    }
                    // What was sent in an earlier session is lost; which frames these are is not followed.
                    SessionEvent::Up { .. } | SessionEvent::Down { .. } => {
                        self.is_hostile |= self.sent.iter().any(|sent| !sent.is_empty());
                        self.sent.iter_mut().for_each(Vec::clear);
                    }
                    SessionEvent::Durable { .. } | SessionEvent::Link { .. } | SessionEvent::Writable => {}
                }
            }
        }
    }
}

/// A datagram with another field.
fn altered(datagram: Bytes, input: &mut Input<'_>) -> Bytes {
    let Ok((mut header, mut body)) = packet::parse(&datagram) else { return datagram };
    match (input.pick(8), &mut body) {
        (0, _) => header.sequence = input.number(header.sequence.into()) as u32,
        (1, _) => header.time = input.number(header.time),
        (_, Body::Hello) => header.to = input.number(header.to),
        (2 | 3, Body::Symbol(symbol)) => symbol.block = input.number(symbol.block),
        (4, Body::Symbol(symbol)) => symbol.index = input.byte(),
        (5, Body::Symbol(symbol)) => symbol.shape.size = input.number(symbol.shape.size.into()) as u32,
        (6, Body::Symbol(symbol)) => symbol.shape.source_count = input.byte(),
        (_, Body::Symbol(symbol)) => {
            let mut data = symbol.data.to_vec();
            let at = usize::from(input.u16()) % data.len();
            data[at] = input.byte();
            symbol.data = data.into();
        }
        (_, Body::Acknowledgement(ack)) => alter_acknowledgement(ack, input),
    }
    packet::encode(&header, &body)
}

fn alter_acknowledgement(ack: &mut Acknowledgement, input: &mut Input<'_>) {
    match input.pick(9) {
        0 => ack.next_block = input.number(ack.next_block),
        1 => ack.limit = input.number(ack.limit),
        2 => ack.echo = input.number(ack.echo),
        3 => ack.hold = input.number(ack.hold.into()) as u32,
        4 => ack.received = input.number(ack.received.into()) as u32,
        5 => ack.lost = input.number(ack.lost.into()) as u32,
        6 => ack.complete = (0..input.pick(64)).map(|_| input.u16().into()).filter(|bit| *bit < 512).collect(),
        7 => {
            let lacking = |input: &mut Input<'_>| Lacking {
                block: input.number(ack.next_block),
                count: input.byte(),
                missing: input.number(0) as u32,
            };
            ack.lacking = (0..input.pick(24)).map(|_| lacking(input)).collect();
        }
        _ => ack.marks = (0..input.pick(16)).map(|_| (ChannelId(input.array()), input.number(1))).collect(),
    }
}

/// A datagram of any kind to the end with these names.
fn forged(input: &mut Input<'_>, (own, peer): (u64, u64)) -> Bytes {
    let to = if input.pick(8) == 0 { input.number(own) } else { own };
    let from = if peer == 0 || input.pick(16) == 0 { input.number(0x0b) } else { peer };
    let header = Header { sequence: input.number(1) as u32, from, to, time: input.number(1 << 40) };
    let body = match input.pick(4) {
        0 => Body::Hello,
        1 => {
            let mut ack = Acknowledgement { limit: 32 << 20, ..Acknowledgement::default() };
            (0..1 + input.pick(4)).for_each(|_| alter_acknowledgement(&mut ack, input));
            Body::Acknowledgement(ack)
        }
        _ => {
            let source_count = 1 + input.pick(64) as u8;
            let code = match input.pick(3) {
                0 => Code::Copy,
                1 => Code::Xor,
                _ => Code::ReedSolomon(1 << input.pick(8)),
            };
            let symbol_size = 2 * (1 + input.pick(32));
            let size = (usize::from(source_count) * symbol_size - input.pick(symbol_size)) as u32;
            let shape = BlockShape { size, source_count, code };
            let data = padded(input.bytes(symbol_size.min(40)), symbol_size).into();
            Body::Symbol(Symbol { block: input.number(0), shape, index: input.byte(), data })
        }
    };
    packet::encode(&header, &body)
}
