//! The sending half of a session: a stream of frames, cut into coding blocks that are kept until they are acknowledged.

use crate::{
    Frame, Mode,
    coder::{Code, Coder, SYMBOL_COUNT_MAX},
    packet::{Acknowledgement, BlockShape, COMPLETE_BIT_COUNT, Lacking, SYMBOL_SIZE, Symbol},
    parity::{RESIDUAL, RESIDUAL_BACKLOG, RESIDUAL_DEEP, repair_count},
    receiver::{INITIAL_LIMIT, LIMIT_MAX},
    testing::{Plant, planted},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Bytes that wait to be sent, at most; then the session is full.
pub const QUEUE_SIZE: u64 = 32 << 20;
/// Bytes before each frame in the stream: channel and size.
pub const FRAME_HEADER_SIZE: usize = 20;
/// A block that is not acknowledged for so long beyond one and a half round trips is asked about.
const PROBE_MICROS: u64 = 10_000;
/// So many symbols ask: a little block of which nothing has arrived is whole then.
const PROBE_SYMBOLS: usize = 4;
/// The longest wait between two probes.
const PROBE_MICROS_MAX: u64 = 1_000_000;

/// A symbol may take an eighth of a round trip longer than one, but no more than this, in microseconds: the receiver asks again soon
/// after that.
const LATE_MICROS_MAX: u64 = 10_000;

/// A block of so many source symbols is little: what one request for 8 KiB has written.
const LITTLE_BLOCK: usize = 8;
/// So many full blocks that wait are a backlog.
const BACKLOG_BLOCKS: u64 = 8;
/// So many round trips pass before a block is whole that was asked for, and where the answer to that was lost too, nearly always.
const REPAIR_ROUNDS: u64 = 2;
/// Symbols that stand in line for both links together, at most, before more of them are sent again: all of the blocks that can be
/// under way.
const LINE_LENGTH_MAX: usize = COMPLETE_BIT_COUNT as usize * SYMBOL_COUNT_MAX;
/// The symbols of so many blocks take turns while there is a backlog, so that each loses a part of a burst only.
const INTERLEAVED_BLOCKS: usize = 4;

/// Bytes of the stream in a block at most.
pub const BLOCK_SIZE_MAX: u64 = (SYMBOL_COUNT_MAX / 2 * SYMBOL_SIZE) as u64;

/// What a link is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    /// The share of the datagrams that it loses.
    pub loss: f64,
    /// Its round trip is much longer than that of the other link.
    pub is_farther: bool,
    /// So long it waits for a block to be full, in microseconds: little blocks need many repair symbols, for which a busy link has
    /// no room.
    pub hold: u64,
    /// It loses something, the other link is as near, and both have room: then each gets half of a little block, and what a burst over
    /// one of them takes is not missed.
    pub has_spare_room: bool,
    /// Bytes that all links together carry in a round trip, if that is known.
    pub under_way: Option<u64>,
}

struct Block {
    shape: BlockShape,
    source: Vec<Bytes>,
    repair: Vec<Bytes>,
    /// The first symbol that was never sent; the source is sent at once.
    next: usize,
    /// How many were sent again without knowing which are lacking.
    again: usize,
    repair_sent: bool,
    /// Which symbols were sent over each link, a bit each.
    sent_on: [u128; 2],
    /// How many stand in each line.
    waiting: [usize; 2],
    /// When a symbol was sent last; and one that did not only ask about the block.
    last_sent: u64,
    last_meant: u64,
    /// What is sent now asks about it.
    is_probed: bool,
    last_asked: u64,
    requests: u32,
    probes: u32,
    bytes: u64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SendCounters {
    /// Frames taken.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks made.
    pub blocks: u64,
    /// Source symbols sent for the first time.
    pub source_symbols: u64,
    /// Repair symbols sent with their block.
    pub repair_symbols: u64,
    /// Symbols sent because the receiver asked for them, or said nothing.
    pub resent_symbols: u64,
}

/// See the module.
pub struct Sender {
    coder: Coder,
    /// Stream bytes that are in no block yet.
    queue: VecDeque<Bytes>,
    queued: u64,
    /// Since when; and until when they wait for more.
    queued_since: Option<u64>,
    held_until: Option<u64>,
    /// Bytes in blocks that are not acknowledged.
    unacknowledged: u64,
    blocks: BTreeMap<u64, Block>,
    next_block: u64,
    acknowledged_block: u64,
    /// Bytes of the stream that were put into blocks, and how far the receiver allows.
    offset: u64,
    limit: u64,
    /// What each link is to send next.
    lines: [VecDeque<(u64, u8)>; 2],
    /// What was sent.
    pub counters: SendCounters,
}

impl Sender {
    /// Nothing sent yet.
    pub fn new() -> Self {
        Self {
            coder: Coder::new(),
            queue: VecDeque::new(),
            queued: 0,
            queued_since: None,
            held_until: None,
            unacknowledged: 0,
            blocks: BTreeMap::new(),
            next_block: 0,
            acknowledged_block: 0,
            offset: 0,
            limit: INITIAL_LIMIT,
            lines: [VecDeque::new(), VecDeque::new()],
            counters: SendCounters::default(),
        }
    }

    /// Whether another frame can be taken.
    pub fn has_room(&self) -> bool {
        self.queued < QUEUE_SIZE
    }

    /// Takes a frame.
    pub fn push(&mut self, frame: Frame) {
        let size = frame.header.len() + frame.payload.len();
        let mut head = BytesMut::with_capacity(FRAME_HEADER_SIZE + frame.header.len());
        head.put_slice(&frame.channel.0);
        head.put_u32_le(size as u32);
        head.put_slice(&frame.header);
        self.queued += (FRAME_HEADER_SIZE + size) as u64;
        self.queue.push_back(head.freeze());
        if !frame.payload.is_empty() {
            self.queue.push_back(frame.payload);
        }
        self.counters.frames += 1;
        self.counters.bytes += size as u64;
    }

    /// The next symbol for a link that can send. `live`: which links can be used at all; `path`: what that link is like. A
    /// block has repair symbols for the link that it is made for: a good link does not pay for a bad one beside it.
    pub fn poll(&mut self, now: u64, link: usize, live: [bool; 2], mode: Mode, path: Path) -> Option<Symbol> {
        loop {
            if let Some(symbol) = self.take(now, link) {
                return Some(symbol);
            }
            // What stands in line for a link that is gone goes over the one that is left.
            if !live[1 - link] && !self.lines[1 - link].is_empty() {
                self.move_line(1 - link);
                continue;
            }
            let stripe = matches!(mode, Mode::Stripe | Mode::Auto);
            let is_detour = stripe && path.is_farther && live[1 - link];
            // What is little is there sooner over the nearer link alone, even if it has to wait for it; and what waits until it fills
            // a block waits for that link.
            let much = if self.held_until.is_some() { 2 * BLOCK_SIZE_MAX } else { BLOCK_SIZE_MAX };
            if is_detour && self.queued < much {
                return None;
            }
            if stripe
                && !is_detour
                && let Some((number, index)) = self.lines[1 - link].pop_back()
            {
                // Whoever is free first takes from the other's end: the links carry what their rates allow.
                if let Some(block) = self.blocks.get_mut(&number) {
                    block.waiting[1 - link] = block.waiting[1 - link].saturating_sub(1);
                    self.line_up(link, number, index);
                }
                continue;
            }
            // Only there does a block have more repair symbols the smaller it is.
            let hold = if stripe { path.hold } else { 0 };
            if self.waits_for_more(now, hold) || !self.make_blocks(link, live, mode, path) {
                return None;
            }
            self.queued_since = None;
        }
    }

    fn take(&mut self, now: u64, link: usize) -> Option<Symbol> {
        while let Some((number, index)) = self.lines[link].pop_front() {
            let Some(block) = self.blocks.get_mut(&number) else {
                continue;
            };
            let count = block.source.len();
            block.waiting[link] = block.waiting[link].saturating_sub(1);
            let data = match usize::from(index).checked_sub(count) {
                None => block.source.get(usize::from(index)),
                Some(repair) => block.repair.get(repair),
            };
            let Some(data) = data.cloned() else { continue };
            block.sent_on[link] |= 1 << index;
            block.last_sent = now;
            if !block.is_probed {
                block.last_meant = now;
            }
            return Some(Symbol { block: number, shape: block.shape, index, data });
        }
        None
    }

    /// Whether what is queued is not enough for a block, and has not waited for so long.
    fn waits_for_more(&mut self, now: u64, hold: u64) -> bool {
        if self.queued == 0 {
            return true;
        }
        let until = *self.queued_since.get_or_insert(now) + hold;
        let waits = self.queued < BLOCK_SIZE_MAX && now < until;
        // The links may differ.
        self.held_until = waits.then(|| self.held_until.map_or(until, |other| other.min(until)));
        waits
    }

    /// When [`Sender::release`] is due.
    pub fn held_until(&self) -> Option<u64> {
        self.held_until
    }

    /// What has waited for more does so no longer: the next link that can send takes it.
    pub fn release(&mut self, now: u64) {
        self.held_until = self.held_until.filter(|until| now < *until);
    }

    /// Whether so much waits that what matters is how soon the last of it is there.
    fn is_backlog(&self) -> bool {
        self.queued >= BACKLOG_BLOCKS * BLOCK_SIZE_MAX
    }

    /// Whether so much waits that what a block lacks has been asked for and sent before the last of it goes. Then nothing is gained by
    /// sending more than it takes.
    fn is_deep(&self, under_way: Option<u64>) -> bool {
        under_way.is_some_and(|bytes| self.queued >= REPAIR_ROUNDS * bytes)
    }

    /// Cuts blocks from the queue and lines their symbols up.
    fn make_blocks(&mut self, link: usize, live: [bool; 2], mode: Mode, path: Path) -> bool {
        let is_backlog = self.is_backlog();
        let residual = match is_backlog {
            true if self.is_deep(path.under_way) => RESIDUAL_DEEP,
            true => RESIDUAL_BACKLOG,
            false => RESIDUAL,
        };
        let repair = |count| match mode {
            Mode::Split => count,
            Mode::Mirror => 0,
            Mode::Stripe | Mode::Auto => {
                let half = if path.has_spare_room && count <= LITTLE_BLOCK { count } else { 0 };
                repair_count(count, path.loss, residual).max(half)
            }
        };
        let most = if is_backlog { INTERLEAVED_BLOCKS } else { 1 };
        let blocks: Vec<(u64, usize, usize)> = (0..most).map_while(|_| self.make_block(repair)).collect();
        let longest = blocks.iter().map(|(_, source, repair)| source + repair).max().unwrap_or_default();
        let other = if live[1 - link] { 1 - link } else { link };
        for index in 0..longest as u8 {
            for (number, source, repair) in blocks.iter().copied() {
                match mode {
                    _ if usize::from(index) >= source + repair => {}
                    Mode::Split => {
                        let first = if live[0] { 0 } else { link };
                        let second = if live[1] { 1 } else { first };
                        self.line_up(if usize::from(index) < source { first } else { second }, number, index);
                    }
                    Mode::Mirror => {
                        self.line_up(link, number, index);
                        if other != link {
                            self.line_up(other, number, index);
                        }
                    }
                    Mode::Stripe | Mode::Auto => self.line_up(link, number, index),
                }
            }
        }
        !blocks.is_empty()
    }

    /// Cuts a block from the queue: its number and how many source and repair symbols it has, of which `repair_count` decides.
    fn make_block(&mut self, repair_count: impl Fn(usize) -> usize) -> Option<(u64, usize, usize)> {
        let in_flight = self.next_block - self.acknowledged_block;
        let allowed = self.limit.saturating_sub(self.offset);
        let size = self.queued.min(BLOCK_SIZE_MAX).min(allowed);
        // Whatever the peer allows.
        let is_full = in_flight >= COMPLETE_BIT_COUNT || self.unacknowledged >= LIMIT_MAX;
        if size == 0 || is_full {
            return None;
        }
        let count = (size as usize).div_ceil(SYMBOL_SIZE);
        let symbol_size = (size as usize).div_ceil(count).next_multiple_of(2);
        let mut data = BytesMut::with_capacity(count * symbol_size);
        while (data.len() as u64) < size {
            let Some(front) = self.queue.front_mut() else {
                break;
            };
            let step = front.len().min(size as usize - data.len());
            data.extend_from_slice(&front[..step]);
            front.advance(step);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
        data.resize(count * symbol_size, 0);
        let data = data.freeze();
        let source: Vec<Bytes> =
            (0..count).map(|index| data.slice(index * symbol_size..(index + 1) * symbol_size)).collect();
        let repair_count = repair_count(count);
        let code = Code::choose(count, repair_count);
        let shape = BlockShape { size: size as u32, source_count: count as u8, code };
        let repair = if repair_count > 0 { self.coder.encode(code, &source) } else { Vec::new() };
        let number = self.next_block;
        self.next_block += 1;
        self.queued -= size;
        self.unacknowledged += size;
        self.offset += size;
        let sent_now = repair_count.min(repair.len());
        let block = Block {
            shape,
            source,
            repair,
            next: count + sent_now,
            again: 0,
            repair_sent: sent_now > 0,
            sent_on: [0; 2],
            waiting: [0; 2],
            last_sent: 0,
            last_meant: 0,
            is_probed: false,
            last_asked: 0,
            requests: 0,
            probes: 0,
            bytes: size,
        };
        self.blocks.insert(number, block);
        self.counters.blocks += 1;
        self.counters.source_symbols += count as u64;
        self.counters.repair_symbols += sent_now as u64;
        Some((number, count, sent_now))
    }

    /// What the receiver says. What is lacking goes over each of `links`, or in a backlog over the first, and what still is lacking
    /// over the second, and so on. `rtts`: round trips of both links in microseconds.
    pub fn acknowledged(&mut self, now: u64, ack: &Acknowledgement, rtts: [u64; 2], links: [usize; 2]) {
        if ack.next_block > self.next_block {
            return;
        }
        self.limit = self.limit.max(ack.limit);
        while let Some(entry) = self.blocks.first_entry().filter(|entry| *entry.key() < ack.next_block) {
            self.unacknowledged -= entry.remove().bytes;
        }
        self.acknowledged_block = self.acknowledged_block.max(ack.next_block);
        // Most of what it tells of was told before.
        let mut complete = ack.complete.iter().map(|offset| ack.next_block + offset).peekable();
        let is_complete = |number: &&u64| {
            while complete.next_if(|other| other < *number).is_some() {}
            complete.peek() == Some(*number)
        };
        for number in self.blocks.keys().filter(is_complete).copied().collect::<Vec<_>>() {
            self.unacknowledged -= self.blocks.remove(&number).map_or(0, |block| block.bytes);
        }
        for Lacking { block: number, count, missing } in ack.lacking.iter().copied() {
            let Some(block) = self.blocks.get_mut(&number) else {
                continue;
            };
            let rtt = block.rtt(rtts).unwrap_or_default();
            // The same request comes over both links, and again before the answer can have arrived; and it comes before what
            // went over the link that is farther away. A question that was sent meanwhile is no answer.
            if now < block.last_asked + rtt || now < block.last_meant + rtt + (rtt / 8).min(LATE_MICROS_MAX) {
                continue;
            }
            (block.last_asked, block.is_probed) = (now, false);
            let turn = block.requests as usize % 2;
            block.requests = block.requests.wrapping_add(1);
            let count = usize::from(count).min(block.source.len());
            self.send_again(number, count, missing, [links[turn], links[1 - turn]]);
        }
    }

    /// Puts a symbol at the end of a line.
    fn line_up(&mut self, link: usize, number: u64, index: u8) {
        self.lines[link].push_back((number, index));
        if let Some(block) = self.blocks.get_mut(&number) {
            block.waiting[link] += 1;
        }
    }

    /// What stands in line for one link stands in line for the other.
    fn move_line(&mut self, from: usize) {
        let moved = std::mem::take(&mut self.lines[from]);
        self.lines[1 - from].extend(moved);
        for block in self.blocks.values_mut() {
            block.waiting[1 - from] += std::mem::take(&mut block.waiting[from]);
        }
    }

    /// Sends so much of a block again over each of the links: what is behind it waits, and a burst of loss, or a link that is dying,
    /// would take all that goes over one. A backlog waits less for that than for room: there it goes over the first.
    fn send_again(&mut self, number: u64, count: usize, missing: u32, links: [usize; 2]) {
        self.send_more(number, count, missing, links[0]);
        if !self.is_backlog() {
            self.send_more(number, count, missing, links[1]);
        }
    }

    /// Lines up `count` symbols of a block that the receiver does not have: new ones as long as there are any, then those of
    /// the source that it says are `missing`, or if it does not say so, any. Those that stand in line already are as good.
    fn send_more(&mut self, number: u64, count: usize, missing: u32, link: usize) {
        let Some(block) = self.blocks.get_mut(&number) else {
            return;
        };
        if block.repair.is_empty() && !block.repair_sent {
            block.repair = self.coder.encode(block.shape.code, &block.source);
        }
        let all = block.source.len() + block.repair.len();
        let mut missing = (0..block.source.len().min(32)).filter(|index| missing >> index & 1 == 1);
        // A peer may ask for more and take nothing; and what stands in line for a link that is lost moves to the other.
        let room = LINE_LENGTH_MAX.saturating_sub(self.lines[0].len() + self.lines[1].len());
        for _ in block.waiting[link]..count.min(room) {
            let index = if block.next < all {
                block.next += 1;
                block.next - 1
            } else if let Some(index) = missing.next() {
                index
            } else {
                block.again += 1;
                (block.again - 1) % all
            };
            self.lines[link].push_front((number, index as u8));
            block.waiting[link] += 1;
            self.counters.resent_symbols += 1;
        }
    }

    /// A link is gone: what it carried and is not acknowledged is replaced on the other.
    pub fn link_lost(&mut self, lost: usize) {
        self.move_line(lost);
        for (number, block) in self.blocks.iter_mut().rev() {
            let gone = std::mem::take(&mut block.sent_on[lost]) & !block.sent_on[1 - lost];
            block.is_probed &= gone == 0;
            // As many as there are source symbols are always enough.
            let again = (0..u128::BITS as u8).filter(|index| gone >> index & 1 == 1).take(block.source.len());
            for index in again.collect::<Vec<_>>().into_iter().rev() {
                self.lines[1 - lost].push_front((*number, index));
                block.waiting[1 - lost] += 1;
                self.counters.resent_symbols += 1;
            }
        }
    }

    /// Asks about blocks of which nothing was heard for long: over both links, or in a backlog the first, then the second, and so on.
    /// `rtts`: round trips of both links in microseconds.
    pub fn probe(&mut self, now: u64, rtts: [u64; 2], links: [usize; 2]) {
        let mut due = Vec::new();
        for (number, block) in &mut self.blocks {
            let is_due = block.last_sent > 0 && now >= block.last_sent + block.patience(rtts);
            if is_due && !planted(Plant::TailNotProbed) {
                due.push((*number, block.source.len(), block.probes as usize % 2));
                block.probes += 1;
                block.last_sent = now;
                // What still stands in line is sent for the first time.
                block.is_probed |= block.waiting == [0; 2];
            }
        }
        for (number, count, turn) in due.into_iter().rev() {
            self.send_again(number, count.min(PROBE_SYMBOLS), 0, [links[turn], links[1 - turn]]);
        }
    }

    /// When [`Sender::probe`] is due.
    pub fn timeout(&self, rtts: [u64; 2]) -> Option<u64> {
        let sent = self.blocks.values().filter(|block| block.last_sent > 0 && !planted(Plant::TailNotProbed));
        sent.map(|block| block.last_sent + block.patience(rtts)).min()
    }

    /// Bytes taken that are not acknowledged.
    pub fn outstanding(&self) -> u64 {
        self.queued + self.unacknowledged
    }
}

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

impl Block {
    /// The longest round trip of the links that it went over.
    fn rtt(&self, rtts: [u64; 2]) -> Option<u64> {
        (0..2).filter(|link| self.sent_on[*link] != 0).map(|link| rtts[link]).max()
    }

    /// How long nothing may be heard of it before it is asked about.
    fn patience(&self, rtts: [u64; 2]) -> u64 {
        let rtt = self.rtt(rtts).unwrap_or(rtts[0].max(rtts[1]));
        ((rtt * 3 / 2 + PROBE_MICROS) << self.probes.min(6)).min(PROBE_MICROS_MAX.max(2 * rtt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It asks for more over the first link and lets that one fall silent, over and over.
    #[test]
    fn a_peer_that_takes_nothing_cannot_make_the_lines_grow_without_end() {
        let mut sender = Sender::new();
        let payload = Bytes::from(vec![0; 1 << 20]);
        let frame = Frame { channel: crate::ChannelId([0; 16]), header: Bytes::new(), payload };
        (0..32).for_each(|_| sender.push(frame.clone()));
        while sender.poll(1, 0, [true, false], Mode::Auto, Path::default()).is_some() {}
        for now in 2..300 {
            let lacking = (0..32).map(|block| Lacking { block, count: 32, missing: u32::MAX }).collect();
            sender.acknowledged(now, &Acknowledgement { lacking, ..Acknowledgement::default() }, [0; 2], [0; 2]);
            sender.link_lost(0);
        }
        let length = sender.lines[0].len() + sender.lines[1].len();
        assert!(length > LINE_LENGTH_MAX / 2 && length < 2 * LINE_LENGTH_MAX, "{length} symbols stand in line");
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod block_tests;
