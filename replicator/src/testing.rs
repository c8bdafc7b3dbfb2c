//! Faults planted on purpose, to see that the simulator finds each.
//!
//! There is none without the feature `testing`, which only the simulator turns on, and none with it until a test plants one.

macro_rules! plants {
    ($($(#[$what:meta])* $name:ident,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Plant {
            $($(#[$what])* $name,)*
        }

        impl Plant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

plants! {
    /// Blocks are acknowledged of which only a part has come.
    AcknowledgedUnseen,
    /// A block that had to wait for another one is delivered twice.
    BlockTwice,
    /// Blocks are delivered as they come, not in order.
    BlocksOutOfOrder,
    /// A block's padding is taken for a part of it.
    PaddingDelivered,
    /// A repair symbol is decoded as the one after it.
    WrongRepair,
    /// The sender is not told how much the application has used.
    CreditLost,
    /// The end of a stream is not sent again when nothing is heard of it.
    TailNotProbed,
    /// What is durable is told in the next session too.
    MarksOutliveSession,
    /// The peer's marks of one session are compared with those of the next.
    PeerMarksOutliveSession,
    /// A session that ends keeps its name.
    NameOutlivesSession,
}

/// Whether a fault is planted in this thread.
#[cfg(not(feature = "testing"))]
pub(crate) const fn planted(_: Plant) -> bool {
    false
}

#[cfg(feature = "testing")]
pub use switch::plant;
#[cfg(feature = "testing")]
pub(crate) use switch::planted;

#[cfg(feature = "testing")]
mod switch {
    use super::Plant;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
    }

    /// Plants a fault in this thread in place of the former one.
    pub fn plant(plant: Option<Plant>) {
        PLANTED.set(plant);
    }

    /// Whether a fault is planted in this thread.
    pub(crate) fn planted(plant: Plant) -> bool {
        PLANTED.get() == Some(plant)
    }
}
