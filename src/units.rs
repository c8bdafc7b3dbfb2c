//! Numbers that must not be mixed up, each with its range.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number after this one.
            ///
            /// # Panics
            /// If the numbers are exhausted, which takes longer than any volume lives.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect(concat!(stringify!($name), " is exhausted")))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Issue ID: a record's place in its group's order. The first record has 1; 0 means "before the first".
    Seq(u64)
}
number! {
    /// How many journalled frames (records, copies and their marks) a session has carried in one direction.
    FrameCount(u64)
}
number! {
    /// A journal entry's number on this node, from 1, no gaps; counts what has no seq of its own as well.
    Order(u64)
}

/// Raised at each promotion and after an unclean stop of a primary; (epoch, seq) orders all that ever happened.
///
/// The upper 32 bits count promotions, the lower 32 the unclean restarts of one primary, so that a promotion always
/// outranks a former primary that merely restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a new group.
    pub const FIRST: Self = Self(1 << 32);

    /// The epoch that a promotion opens on a node that stepped down last in the epoch `stepped_down`.
    ///
    /// The node that was the primary of this epoch skips a number: when both are promoted at once, which nothing but a common
    /// witness could prevent, they open different epochs, and the one with the lower steps down when they meet.
    #[must_use]
    pub fn promoted(self, stepped_down: Self) -> Self {
        let count = if self.0 >> 32 == stepped_down.0 >> 32 { 2 } else { 1 };
        Self(((self.0 >> 32) + count) << 32)
    }

    /// The epoch that a primary opens after an unclean stop.
    #[must_use]
    pub fn restarted(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 32, self.0 as u32)
    }
}

number! {
    /// The state of the volumes at a restart point; also the number of the interval that ends there. From 1.
    Generation(u32)
}
impl Generation {
    /// The number of a state that no application declared.
    pub const UNDECLARED: Self = Self(0);
}

number! {
    /// A volume's number in its group, from 1.
    VolumeId(u16)
}
number! {
    /// Microseconds of a clock that never goes back, from an arbitrary start.
    Monotonic(u64)
}
number! {
    /// Microseconds since 1970-01-01 UTC. For people and labels; no decision depends on it.
    WallClock(u64)
}

impl Monotonic {
    /// This instant and `micros` microseconds more.
    #[must_use]
    pub fn after(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` to this instant, 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The two clocks, read by the shell and passed in with each event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// For every time-out and duration.
    pub monotonic: Monotonic,
    /// Written into records, for people.
    pub wall: WallClock,
}

/// A record's place in all that ever happened in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The epoch in which the record was made.
    pub epoch: Epoch,
    /// Its number in the group's order.
    pub seq: Seq,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $size:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $size]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

identity! {
    /// Names a consistency group for ever; random, chosen by the shell at creation.
    GroupId, 16
}
identity! {
    /// Names one pool or journal medium for ever; random, chosen by the shell at creation.
    MediumUuid, 16
}
identity! {
    /// A node is known by its Ed25519 public key.
    NodeKey, 32
}

/// Smallest and largest volume in bytes: 16 MiB and 16 TiB.
pub const VOLUME_SIZE_MIN: u64 = 16 << 20;
/// See [`VOLUME_SIZE_MIN`].
pub const VOLUME_SIZE_MAX: u64 = 16 << 40;
/// Smallest and largest table block in bytes.
pub const TABLE_BLOCK_SIZE_MIN: u32 = 16 << 10;
/// See [`TABLE_BLOCK_SIZE_MIN`].
pub const TABLE_BLOCK_SIZE_MAX: u32 = 1 << 20;
/// Table block in bytes where nothing else is asked for.
pub const TABLE_BLOCK_SIZE_DEFAULT: u32 = 64 << 10;
/// Most bytes that one record carries; a longer request becomes several records.
pub const RECORD_PAYLOAD_SIZE_MAX: u32 = 1 << 20;
/// Most bytes that one record discards or zeroes; a longer request becomes several records.
pub const ZEROES_SIZE_MAX: u64 = 1 << 30;
/// Most volumes in a group.
pub const VOLUME_COUNT_MAX: usize = 64;
/// Smallest journal medium in bytes.
pub const JOURNAL_SIZE_MIN: u64 = 16 << 20;
/// Longest name of a group or volume in bytes.
pub const NAME_SIZE_MAX: usize = 63;
/// Longest label of a restart point in bytes.
pub const LABEL_SIZE_MAX: usize = 63;
