//! The receiving half of a session: symbols in, whole frames out, in order, each once.

use crate::{
    ChannelId, Received,
    coder::{Code, Coder, SYMBOL_COUNT_MAX},
    packet::{Acknowledgement, BlockShape, COMPLETE_BIT_COUNT, LACKING_COUNT_MAX, Lacking, Symbol},
    sender::{BLOCK_SIZE_MAX, FRAME_HEADER_SIZE},
    testing::{Plant, planted},
};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Largest body of a frame in bytes.
pub const FRAME_SIZE_MAX: usize = (1 << 20) + (4 << 10);
/// Bytes of the stream that the receiver takes before the application has used any.
pub const INITIAL_LIMIT: u64 = 32 << 20;
/// The most that it takes beyond what the application has used, and of how many round trips' use: a block that is asked for twice is
/// there after three and a half, and all that comes behind it waits.
pub const LIMIT_MAX: u64 = 128 << 20;
const LIMIT_ROUNDS: u64 = 4;
/// Frames that nobody has used, at most: as many empty ones as the first window holds.
const UNUSED_COUNT_MAX: usize = INITIAL_LIMIT as usize / FRAME_HEADER_SIZE;
/// What is used is counted for at least so long, in microseconds.
const ROUND_MICROS_MIN: u64 = 10_000;
/// Frames share pieces of memory of so many bytes.
const PIECE_SIZE: usize = 128 << 10;
/// What a symbol or a whole block that is kept costs beside its bytes: a place, and what an allocation takes.
const KEPT_OVERHEAD: u64 = 64;
/// What the blocks that an acknowledgement can tell of cost beside the bytes of the stream in them, at most: that for each symbol of
/// full blocks but one, with which they are whole, and an even size.
const HELD_OVERHEAD: u64 = COMPLETE_BIT_COUNT * (SYMBOL_COUNT_MAX as u64 / 2 - 1) * (KEPT_OVERHEAD + 2);
/// Symbols may overtake each other by so long before one counts as lost, in microseconds: a quarter of the round trip
/// within these bounds.
const REORDER_MICROS: std::ops::RangeInclusive<u64> = 2_000..=50_000;
/// An answer may take so much longer than a round trip before it counts as lost, in microseconds: the same, within these.
const ANSWER_MICROS: std::ops::RangeInclusive<u64> = 10_000..=25_000;

struct Incoming {
    /// Unknown until the first symbol comes.
    shape: Option<BlockShape>,
    symbols: Vec<Option<Bytes>>,
    count: usize,
    ask_at: u64,
}

/// What came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReceiveCounters {
    /// Whole frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Symbols of use.
    pub symbols: u64,
    /// Symbols that came twice, or after their block was complete.
    pub superfluous_symbols: u64,
    /// Blocks of which source symbols were missing and could be computed.
    pub repaired_blocks: u64,
    /// Source symbols that were computed.
    pub repaired_symbols: u64,
    /// Times that the sender was asked for more symbols of a block.
    pub requests: u64,
}

/// The peer sent what no correct peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame is too long.
    #[error("A frame of {0} bytes came; at most {FRAME_SIZE_MAX} are allowed")]
    FrameSize(usize),
    /// So many frames were not used, each of which costs more than its bytes.
    #[error("More than {0} frames came that nobody has used")]
    FrameCount(usize),
    /// Two symbols of a block disagree on what it is.
    #[error("Symbols of block {0} contradict each other")]
    Shape(u64),
    /// It sent more than it was allowed to.
    #[error("{0} bytes came; {1} were allowed")]
    Limit(u64, u64),
}

/// See the module.
pub struct Receiver {
    coder: Coder,
    blocks: BTreeMap<u64, Incoming>,
    /// Complete blocks that wait for one before them.
    complete: BTreeMap<u64, Bytes>,
    next_block: u64,
    highest: u64,
    stream: BytesMut,
    frames: VecDeque<Received>,
    /// Sizes of the frames that the application was not known to have used, and bytes that it has used of the first of them.
    unused: VecDeque<u32>,
    used: u64,
    /// Bytes of blocks that are not whole, or wait for one that is not.
    held: u64,
    /// Bytes of the stream that came in order, and how many may.
    taken: u64,
    limit: u64,
    credit: Credit,
    /// What came in.
    pub counters: ReceiveCounters,
}

/// How far ahead of the application the sender may be: as Dynamic Right-Sizing has it for TCP (Fisk and Feng, 2001), some round trips
/// of what is used, so that a long fast line is filled, and an application that is slow does not have much waiting for it.
struct Credit {
    /// Bytes that were used, with the frames' headers.
    used: u64,
    window: u64,
    /// Since when a round lasts, and what had been used then.
    since: u64,
    used_before: u64,
}

impl Credit {
    /// How far the stream may go, as of now. `rtt` in microseconds.
    fn limit(&mut self, now: u64, rtt: u64) -> u64 {
        if now >= self.since + rtt.max(ROUND_MICROS_MIN) {
            let wanted = LIMIT_ROUNDS * (self.used - self.used_before);
            // A block that is asked for may keep everything waiting for some rounds.
            self.window = wanted.max(self.window - self.window / 8).clamp(INITIAL_LIMIT, LIMIT_MAX);
            (self.since, self.used_before) = (now, self.used);
        }
        self.used + self.window
    }
}

impl Receiver {
    /// Nothing received yet.
    pub fn new() -> Self {
        Self {
            coder: Coder::new(),
            blocks: BTreeMap::new(),
            complete: BTreeMap::new(),
            next_block: 0,
            highest: 0,
            stream: BytesMut::new(),
            frames: VecDeque::new(),
            unused: VecDeque::new(),
            used: 0,
            held: 0,
            taken: 0,
            limit: INITIAL_LIMIT,
            credit: Credit { used: 0, window: INITIAL_LIMIT, since: 0, used_before: 0 },
            counters: ReceiveCounters::default(),
        }
    }

    /// A symbol came. `rtt` in microseconds.
    pub fn handle(&mut self, now: u64, symbol: Symbol, rtt: u64) -> Result<(), ProtocolError> {
        let number = symbol.block;
        let known = number < self.next_block || self.complete.contains_key(&number);
        if known || number >= self.next_block + COMPLETE_BIT_COUNT {
            self.counters.superfluous_symbols += 1;
            return Ok(());
        }
        let patience = (rtt / 4).clamp(*REORDER_MICROS.start(), *REORDER_MICROS.end());
        // Blocks that were jumped over exist, though nothing of them has come.
        for skipped in self.highest..number {
            if skipped >= self.next_block && !self.complete.contains_key(&skipped) {
                self.blocks.entry(skipped).or_insert_with(|| Incoming::new(now + patience));
            }
        }
        self.highest = self.highest.max(number + 1);
        let block = self.blocks.entry(number).or_insert_with(|| Incoming::new(now + patience));
        let shape = *block.shape.get_or_insert(symbol.shape);
        if shape != symbol.shape {
            return Err(ProtocolError::Shape(number));
        }
        let source_count = usize::from(shape.source_count);
        if block.symbols.is_empty() {
            // Only as many places as the code needs: copies need no more than one.
            let repair = if shape.code == Code::Copy { 1 } else { shape.code.repair_count() };
            block.symbols = vec![None; source_count + repair];
        }
        let index = match shape.code {
            Code::Copy => usize::from(symbol.index).min(1),
            _ => usize::from(symbol.index),
        };
        match block.symbols.get_mut(index) {
            Some(place @ None) => {
                // A copy: what came is a part of a buffer of up to 64 KiB, all of which it would keep alive.
                let data = Bytes::copy_from_slice(&symbol.data);
                self.held += cost(&data);
                *place = Some(data);
            }
            _ => {
                self.counters.superfluous_symbols += 1;
                return Ok(());
            }
        }
        block.count += 1;
        block.ask_at = block.ask_at.max(now + patience);
        self.counters.symbols += 1;
        let sizes_agree = block
            .symbols
            .iter()
            .flatten()
            .all(|other| Some(other.len()) == block.symbols.iter().flatten().next().map(Bytes::len));
        if !sizes_agree {
            return Err(ProtocolError::Shape(number));
        }
        if block.count >= source_count {
            self.finish(number, shape)?;
        }
        // No correct sender has more under way: its blocks are parts of what it may send, and each is held at most once.
        let held_max = self.limit.saturating_sub(self.taken) + HELD_OVERHEAD;
        if self.held > held_max {
            return Err(ProtocolError::Limit(self.held, held_max));
        }
        Ok(())
    }

    fn finish(&mut self, number: u64, shape: BlockShape) -> Result<(), ProtocolError> {
        let Some(mut block) = self.blocks.remove(&number) else {
            return Ok(());
        };
        let held: u64 = block.symbols.iter().flatten().map(cost).sum();
        let source_count = usize::from(shape.source_count);
        let missing = block.symbols.iter().take(source_count).filter(|symbol| symbol.is_none()).count();
        if !self.coder.decode(shape.code, source_count, &mut block.symbols) {
            self.blocks.insert(number, block);
            return Ok(());
        }
        if missing > 0 {
            self.counters.repaired_blocks += 1;
            self.counters.repaired_symbols += missing as u64;
        }
        let mut left = if planted(Plant::PaddingDelivered) { usize::MAX } else { shape.size as usize };
        let pieces = block.symbols.iter().take(source_count).flatten().map(|symbol| {
            let piece = &symbol[..symbol.len().min(left)];
            left -= piece.len();
            piece
        });
        self.held = self.held.saturating_sub(held);
        if number == self.next_block {
            make_room(&mut self.stream, shape.size as usize);
            let before = self.stream.len();
            pieces.for_each(|piece| self.stream.extend_from_slice(piece));
            self.admit((self.stream.len() - before) as u64)?;
            self.cut_frames()?;
        } else {
            let mut data = BytesMut::with_capacity(shape.size as usize + 2 * source_count);
            pieces.for_each(|piece| data.extend_from_slice(piece));
            let data = data.freeze();
            self.held += cost(&data);
            self.complete.insert(number, data);
        }
        while let Some(data) = self.next_complete() {
            self.held = self.held.saturating_sub(cost(&data));
            self.admit(data.len() as u64)?;
            make_room(&mut self.stream, data.len());
            self.stream.extend_from_slice(&data);
            if planted(Plant::BlockTwice) {
                self.stream.extend_from_slice(&data);
            }
            self.cut_frames()?;
        }
        Ok(())
    }

    /// So many bytes, the next block's, come into the stream.
    fn admit(&mut self, size: u64) -> Result<(), ProtocolError> {
        self.next_block += 1;
        self.taken += size;
        if self.taken > self.limit { Err(ProtocolError::Limit(self.taken, self.limit)) } else { Ok(()) }
    }

    fn next_complete(&mut self) -> Option<Bytes> {
        if planted(Plant::BlocksOutOfOrder) {
            return self.complete.pop_first().map(|(_, data)| data);
        }
        self.complete.remove(&self.next_block)
    }

    fn cut_frames(&mut self) -> Result<(), ProtocolError> {
        while let Some(head) = self.stream.first_chunk::<FRAME_HEADER_SIZE>() {
            let size = u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize;
            if size > FRAME_SIZE_MAX {
                return Err(ProtocolError::FrameSize(size));
            }
            let mut channel = [0; 16];
            channel.copy_from_slice(&head[..16]);
            let lacking = (FRAME_HEADER_SIZE + size).saturating_sub(self.stream.len());
            if lacking > 0 {
                // At once, or what is here would be copied again for each block; the last of them has more than this frame lacks.
                if self.stream.capacity() - self.stream.len() < lacking {
                    make_room(&mut self.stream, lacking + BLOCK_SIZE_MAX as usize);
                }
                break;
            }
            self.stream.advance(FRAME_HEADER_SIZE);
            let body = self.stream.split_to(size).freeze();
            self.unused.push_back(size as u32);
            if self.unused.len() > UNUSED_COUNT_MAX {
                return Err(ProtocolError::FrameCount(UNUSED_COUNT_MAX));
            }
            self.counters.frames += 1;
            self.counters.bytes += size as u64;
            self.frames.push_back(Received { channel: ChannelId(channel), body });
        }
        Ok(())
    }

    /// The next whole frame.
    pub fn pop(&mut self) -> Option<Received> {
        self.frames.pop_front()
    }

    /// The application has used so many bytes of frames. It may be 0: a frame can be empty.
    pub fn consumed(&mut self, bytes: u64) {
        // Frames may be used in another order: whose bytes they are does not matter, only that there are as many. Their headers
        // are given back with them and not before, or frames with nothing but a header could come without end.
        self.used += bytes;
        while let Some(size) = self.unused.pop_front_if(|size| u64::from(*size) <= self.used) {
            self.used -= u64::from(size);
            self.credit.used += FRAME_HEADER_SIZE as u64;
        }
        if !planted(Plant::CreditLost) {
            self.credit.used += bytes;
        }
    }

    /// When to ask for symbols, if any are lacking.
    pub fn timeout(&self) -> Option<u64> {
        self.blocks.values().map(|block| block.ask_at).min()
    }

    /// Puts into an acknowledgement what is complete and what is lacking.
    pub fn tell(&mut self, now: u64, rtt: u64, ack: &mut Acknowledgement) {
        ack.next_block = if planted(Plant::AcknowledgedUnseen) { self.highest } else { self.next_block };
        self.limit = self.limit.max(self.credit.limit(now, rtt));
        ack.limit = self.limit;
        ack.complete = self.complete.keys().map(|number| number - self.next_block).collect();
        for (number, block) in &mut self.blocks {
            if now < block.ask_at || ack.lacking.len() == LACKING_COUNT_MAX {
                continue;
            }
            let count =
                block.shape.map_or(u8::MAX, |shape| shape.source_count.saturating_sub(block.count as u8)).max(1);
            let source = block.symbols.iter().take(block.shape.map_or(0, |shape| shape.source_count.into()));
            let missing = source.zip(0..u32::BITS).filter(|(symbol, _)| symbol.is_none());
            let missing = missing.fold(0, |bits, (_, index)| bits | 1 << index);
            block.ask_at = now + rtt + (rtt / 4).clamp(*ANSWER_MICROS.start(), *ANSWER_MICROS.end());
            self.counters.requests += 1;
            ack.lacking.push(Lacking { block: *number, count, missing });
        }
    }
}

/// Makes room at the end of the stream's part that is here. Its own growth takes along what was cut off already, as long as that is in
/// use, or doubles: then nearly all of what comes goes into memory that was never touched before, which costs more than the copy.
fn make_room(stream: &mut BytesMut, size: usize) {
    if stream.capacity() - stream.len() < size {
        let mut roomy = BytesMut::with_capacity((stream.len() + size).max(PIECE_SIZE));
        roomy.extend_from_slice(stream);
        *stream = roomy;
    }
}

/// What it costs to keep this.
fn cost(data: &Bytes) -> u64 {
    data.len() as u64 + KEPT_OVERHEAD
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Incoming {
    fn new(ask_at: u64) -> Self {
        Self { shape: None, symbols: Vec::new(), count: 0, ask_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_in_which_nothing_is_used_closes_the_window_a_little() {
        let mut credit = Credit { used: 0, window: INITIAL_LIMIT, since: 0, used_before: 0 };
        credit.used = 30 << 20;
        assert_eq!(credit.limit(100_000, 100_000), (30 + 120) << 20);
        assert_eq!(credit.limit(199_999, 100_000), (30 + 120) << 20);
        assert_eq!(credit.limit(200_000, 100_000), (30 + 105) << 20);
        credit.used = 31 << 20;
        assert!(credit.limit(300_000, 100_000) > (31 + 90) << 20);
    }
}
