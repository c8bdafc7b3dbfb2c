//! What a peer can make this node hold, and what an honest one needs.

use super::*;
use crate::ProtocolError;
use crate::packet::{BlockShape, Symbol};

fn frame(number: u64) -> Frame {
    let header = Bytes::copy_from_slice(&number.to_le_bytes());
    Frame { channel: ChannelId([3; 16]), header, payload: vec![0; 1 << 20].into() }
}

#[test]
fn a_peer_that_sends_more_than_it_may_is_refused() {
    let mut receiver = Receiver::new();
    let shape = BlockShape { size: 1_100, source_count: 1, code: crate::coder::Code::Copy };
    // Each block is one frame, which nobody uses.
    let mut data = vec![0; 1_100];
    data[16..20].copy_from_slice(&1_080u32.to_le_bytes());
    let data = Bytes::from(data);
    // A little more than what may come before any is used.
    let mut symbols = (0..40_000).map(|block| Symbol { block, shape, index: 0, data: data.clone() });
    let refused = symbols.find_map(|symbol| {
        let outcome = receiver.handle(1, symbol, 20_000).err();
        while receiver.pop().is_some() {}
        outcome
    });
    assert!(matches!(refused, Some(ProtocolError::Limit(..))), "{refused:?}");
}

#[test]
fn frames_with_nothing_in_them_cannot_come_without_end_either() {
    let shape = BlockShape { size: 1_100, source_count: 1, code: crate::coder::Code::Copy };
    // Each block is 55 of them.
    let data = Bytes::from(vec![0; 1_100]);
    for is_used in [false, true] {
        let mut receiver = Receiver::new();
        let mut frames = 0;
        let refused = (0..70_000).find_map(|block| {
            let outcome = receiver.handle(1, Symbol { block, shape, index: 0, data: data.clone() }, 20_000).err();
            while receiver.pop().is_some() {
                frames += 1;
                if is_used {
                    receiver.consumed(0);
                }
            }
            receiver.tell(1, 20_000, &mut Acknowledgement::default());
            outcome
        });
        match refused {
            None => assert!(is_used),
            Some(refused) => assert!(!is_used && frames * 20 <= 32 << 20, "{frames} frames, {refused:?}"),
        }
    }
}

/// Frames of all sizes, used in another order than they came in.
#[test]
fn the_credit_of_all_that_is_used_comes_back() {
    let mut receiver = Receiver::new();
    let mut stream = Vec::new();
    let sizes = [500, 0, 300, 7, 0, 0, 193];
    for size in sizes {
        stream.extend([0; 16]);
        stream.extend(u32::to_le_bytes(size));
        stream.extend(vec![0; size as usize]);
    }
    let shape = BlockShape { size: stream.len() as u32, source_count: 2, code: crate::coder::Code::Xor };
    let limit = |receiver: &mut Receiver| {
        let mut ack = Acknowledgement::default();
        receiver.tell(1, 20_000, &mut ack);
        ack.limit
    };
    let before = limit(&mut receiver);
    for (index, data) in stream.chunks(stream.len() / 2).enumerate() {
        let symbol = Symbol { block: 0, shape, index: index as u8, data: Bytes::copy_from_slice(data) };
        receiver.handle(1, symbol, 20_000).unwrap();
    }
    assert_eq!(limit(&mut receiver), before);
    sizes.iter().rev().for_each(|size| receiver.consumed(u64::from(*size)));
    assert_eq!(limit(&mut receiver), before + stream.len() as u64);
}

/// Each block ends a frame and begins another one, and nobody lets go of any.
#[test]
fn little_frames_share_a_piece_of_memory() {
    let mut receiver = Receiver::new();
    let header = [&[0; 16][..], &1u32.to_le_bytes()].concat();
    let block = [&[7][..], &header].concat();
    let symbol = |number, data: Vec<u8>| {
        let shape = BlockShape { size: data.len() as u32, source_count: 1, code: crate::coder::Code::Copy };
        Symbol { block: number, shape, index: 0, data: data.into() }
    };
    receiver.handle(1, symbol(0, header), 20_000).unwrap();
    (1..2_000).for_each(|number| receiver.handle(1, symbol(number, block.clone()), 20_000).unwrap());
    let kept: Vec<_> = std::iter::from_fn(|| receiver.pop()).collect();
    let is_apart = |pair: &&[crate::Received]| pair[0].body.as_ptr().wrapping_add(block.len()) != pair[1].body.as_ptr();
    assert_eq!(kept.len(), 1_999);
    assert!(kept.windows(2).filter(is_apart).count() <= 1);
}

/// Nor where a window is as large as it can be.
#[test]
fn so_many_frames_with_nothing_in_them_are_refused_however_large_the_window() {
    let mut receiver = Receiver::new();
    receiver.consumed(100 << 20);
    receiver.tell(1 << 20, 20_000, &mut Acknowledgement::default());
    let shape = BlockShape { size: 1_100, source_count: 1, code: crate::coder::Code::Copy };
    let data = Bytes::from(vec![0; 1_100]);
    let mut frames = 0;
    let refused = (0..70_000).find_map(|block| {
        let outcome = receiver.handle(1, Symbol { block, shape, index: 0, data: data.clone() }, 20_000).err();
        frames += std::iter::from_fn(|| receiver.pop()).count();
        outcome
    });
    assert!(matches!(refused, Some(ProtocolError::FrameCount(_))), "{refused:?}");
    assert!(frames * 20 <= 32 << 20, "{frames} frames");
}

/// A long fast line holds more than the first window. What waits for an application that is slow is no more than that.
#[test]
fn the_window_follows_what_the_application_uses_in_some_round_trips() {
    let mut receiver = Receiver::new();
    let (mut now, mut used) = (1, 0);
    let mut ahead = |rounds, in_a_round| {
        let mut limit = 0;
        for _ in 0..rounds {
            (now, used) = (now + 100_000, used + in_a_round);
            receiver.consumed(in_a_round);
            let mut ack = Acknowledgement::default();
            receiver.tell(now, 100_000, &mut ack);
            assert!(ack.limit >= limit, "what was allowed is taken back");
            limit = ack.limit;
        }
        (limit - used) >> 20
    };
    assert_eq!(ahead(2, 1 << 20), 32);
    assert_eq!(ahead(2, 20 << 20), 80);
    assert_eq!(ahead(2, 60 << 20), 128);
    assert_eq!(ahead(200, 1 << 20), 32);
}

#[test]
fn as_much_can_be_under_way_as_the_window_holds() {
    let mut sender = Sender::new();
    (0..32).for_each(|number| sender.push(frame(number)));
    let symbols = std::iter::from_fn(|| sender.poll(1, 0, [true; 2], Mode::Auto, crate::sender::Path::default()));
    let source = symbols.filter(|symbol| symbol.index < symbol.shape.source_count);
    let bytes: usize = source.map(|symbol| symbol.data.len()).sum();
    assert!(bytes >= 32 << 20, "{bytes} bytes, which is less than what is allowed");
}

/// What a peer sends of many blocks, each of which lacks one symbol, until it is refused: how many bytes of symbols that were.
fn held_at_most(source_count: u8, size: usize) -> (u64, Option<ProtocolError>) {
    let mut receiver = Receiver::new();
    let (count, code) = (u32::from(source_count), crate::coder::Code::ReedSolomon(32));
    let shape = BlockShape { size: count * size as u32, source_count, code };
    let data = Bytes::from(vec![0; size]);
    let symbols = (0..1_024).flat_map(|block| (1..source_count).map(move |index| (block, index)));
    let mut held = 0;
    let refused = symbols.map(|(block, index)| Symbol { block, shape, index, data: data.clone() }).find_map(|symbol| {
        held += size as u64;
        receiver.handle(1, symbol, 20_000).err()
    });
    (held, refused)
}

#[test]
fn a_peer_that_completes_no_block_cannot_make_this_node_hold_more_than_it_may() {
    let (held, refused) = held_at_most(64, 1_100);
    assert!(matches!(refused, Some(ProtocolError::Limit(..))), "{refused:?}");
    assert!(held <= 38 << 20, "{held} bytes are held");
    let (held, refused) = held_at_most(32, 1_100);
    assert!(held > 33 << 20 && refused.is_none(), "full blocks are refused: {held}, {refused:?}");
}

#[test]
fn a_symbol_that_is_kept_does_not_keep_the_buffer_it_came_in() {
    let mut receiver = Receiver::new();
    let buffer = Bytes::from(vec![7; 64 << 10]);
    let shape = BlockShape { size: 4, source_count: 2, code: crate::coder::Code::Xor };
    for block in 0..8 {
        let data = buffer.slice(100..102);
        receiver.handle(1, Symbol { block, shape, index: 0, data }, 20_000).unwrap();
    }
    assert!(buffer.is_unique(), "2 bytes keep 64 KiB alive");
}
