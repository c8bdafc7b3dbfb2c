//! Heartbeats: small signed messages on a path of their own, which say that a node lives though no session is up.
//!
//! Each side sends a nonce of its own and the last one that it heard of the other. Only a message that repeats this side's
//! nonce, with a higher count than the one before, is taken for a sign of life: an old message says nothing.
//!
//! ```text
//!  0 magic "HFHB"  4 version  6 0  8 nonce (16)  24 echo (16)  40 count (8)  48: Ed25519 signature (64) of the text
//!  "holdfast heartbeat", the receiver's key and bytes 0 to 48
//! ```

use std::collections::VecDeque;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Bytes that are signed.
pub const BEAT_SIZE: usize = 48;
/// Bytes of a signature.
pub const SIGNATURE_SIZE: usize = 64;

const MAGIC: u32 = 0x4248_4648; // "HFHB"
const VERSION: u16 = 1;
/// After so many messages without an answer another nonce is repeated.
const QUIET: u32 = 3;
/// How many former lives of the other side are remembered.
const FORMER_MAX: usize = 1024;

/// A number that is used once.
pub type Nonce = [u8; 16];

/// A message without its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: U16,
    reserved: U16,
    nonce: Nonce,
    echo: Nonce,
    count: U64,
}

const _: () = assert!(size_of::<Raw>() == BEAT_SIZE);

/// One side of it.
pub struct Heartbeat {
    nonce: Nonce,
    count: u64,
    /// What the other side sent last.
    theirs: Nonce,
    /// The nonce and count of its last sign of life.
    living: (Nonce, u64),
    /// Those of its former lives that were heard in this one: messages from then say nothing any more.
    former: VecDeque<Nonce>,
    /// How many messages were sent since the last sign of life.
    quiet: u32,
}

impl Heartbeat {
    /// With a random nonce.
    pub fn new(nonce: Nonce) -> Self {
        Self {
            nonce,
            count: 0,
            theirs: Nonce::default(),
            living: Default::default(),
            former: VecDeque::new(),
            quiet: QUIET,
        }
    }

    /// The next message.
    pub fn beat(&mut self) -> [u8; BEAT_SIZE] {
        self.count += 1;
        self.quiet = self.quiet.saturating_add(1);
        zerocopy::transmute!(Raw {
            magic: MAGIC.into(),
            version: VERSION.into(),
            reserved: 0.into(),
            nonce: self.nonce,
            echo: self.theirs,
            count: self.count.into(),
        })
    }

    /// A message of the other side whose signature was checked. `true`: it lives.
    pub fn hear(&mut self, beat: &[u8]) -> bool {
        let Ok(raw) = Raw::ref_from_bytes(beat) else { return false };
        if raw.magic.get() != MAGIC || raw.version.get() != VERSION || raw.reserved.get() != 0 {
            return false;
        }
        if self.former.contains(&raw.nonce) {
            return false;
        }
        // While the other side is heard, an old message must not make this one repeat what nobody knows.
        if self.quiet >= QUIET {
            self.theirs = raw.nonce;
        }
        let (living, count) = self.living;
        if raw.echo != self.nonce || (raw.nonce == living && raw.count.get() <= count) {
            return false;
        }
        if raw.nonce != living {
            self.former.push_back(living);
            if self.former.len() > FORMER_MAX {
                self.former.pop_front();
            }
        }
        self.living = (raw.nonce, raw.count.get());
        (self.theirs, self.quiet) = (raw.nonce, 0);
        true
    }
}

/// What is signed for a receiver.
pub fn signed(receiver: &[u8; 32], beat: &[u8]) -> Vec<u8> {
    [b"holdfast heartbeat", &receiver[..], beat].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_side_lives_when_it_repeats_what_it_heard() {
        let (mut north, mut south) = (Heartbeat::new([1; 16]), Heartbeat::new([2; 16]));
        let first = north.beat();
        assert!(!south.hear(&first), "it has heard nothing yet");
        let answer = south.beat();
        assert!(north.hear(&answer));
        assert!(!north.hear(&answer), "the same again");
        let second = north.beat();
        assert!(south.hear(&second));
        // Old messages say nothing, also to a side that was started anew.
        assert!(!south.hear(&first) && !south.hear(&second));
        let mut reborn = Heartbeat::new([3; 16]);
        assert!(!reborn.hear(&first) && !reborn.hear(&second));
        reborn.hear(&north.beat());
        let third = reborn.beat();
        assert!(north.hear(&third));
        assert!(reborn.hear(&north.beat()));
        // One of a life that was never heard of does not make a side that is heard forget the present one.
        assert!(!north.hear(&Heartbeat::new([4; 16]).beat()));
        assert!(reborn.hear(&north.beat()));
        // Turn by turn they would all be new.
        for old in [answer, third, answer, south.beat(), third] {
            assert!(!north.hear(&old));
        }
    }

    #[test]
    fn messages_keep_their_bytes() {
        let mut side = Heartbeat::new([0x11; 16]);
        side.hear(&Heartbeat::new([0x22; 16]).beat());
        let mut expected = b"HFHB\x01\0\0\0".to_vec();
        expected.extend([[0x11; 16], [0x22; 16]].concat());
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(side.beat()[..], expected);
        let mut newer = expected.clone();
        newer[4] = 2;
        assert!(!Heartbeat::new([0x22; 16]).hear(&newer));
        assert!(Heartbeat::new([0x22; 16]).hear(&expected));
    }

    proptest! {
        #[test]
        fn random_bytes_are_no_sign_of_life(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(!Heartbeat::new([1; 16]).hear(&bytes));
        }
    }
}
