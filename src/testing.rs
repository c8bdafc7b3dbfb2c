//! Faults planted on purpose, to see that the simulator finds each: a promise that no test can see broken is not tested.
//!
//! There is none without the feature `testing`, which only the simulator turns on, and none with it until a test plants one.
//! A site is one short condition. Each fault is a mistake that a programmer could make.

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
    /// A flush or FUA write is answered when it is written, not when it is durable.
    NoSyncBeforeAnswer,
    /// A write is answered before its batch is on the medium.
    AnswerUnwritten,
    /// The sync of a flush leaves out the pools, in which large writes are.
    PoolNotSynced,
    /// The journal's superblock counts as durable when it is written.
    SuperblockNotSynced,
    /// The answer to a restart point does not wait for its record to be durable.
    CommandNotDurable,
    /// Recovery takes a batch whose payloads do not match their checksums.
    TornBatchTaken,
    /// Recovery takes a batch that does not continue the one before it.
    ChainNotChecked,
    /// Recovery takes a large write whose data in the pool does not match its checksum.
    TornRedirectTaken,
    /// Recovery does not repeat what a promotion took back.
    ForkNotVoided,
    /// The mask of a table entry names one granule more than was written.
    MaskTooWide,
    /// Content is folded into a block that a kept generation needs.
    FoldIntoKept,
    /// A read passes over the newest entry.
    NewestNotRead,
    /// A cycle of destaging forgets also what was written while it ran.
    NewerForgotten,
    /// What is not durable in the journal is destaged.
    UndurableDestaged,
    /// A cycle of destaging goes on behind a restart point, so that two generations mix.
    GenerationsMixed,
    /// A freed block is used again before a checkpoint.
    FreedUsedAtOnce,
    /// A freed block is used again while a read of it is under way.
    FreedUsedUnderRead,
    /// A freed block that holds a journalled record's data is used again before the journal's tail has passed the record.
    RedirectedUsedEarly,
    /// A block that a kept generation needs is freed when it is overwritten.
    SnapshotFreed,
    /// A generation is let go of while somebody reads it.
    HeldDropped,
    /// A checkpoint does not sync the pages before its superblock.
    PagesNotSynced,
    /// The journal's tail passes what is in the tables but not durable there.
    TailBeforeTables,
    /// The ring is written anew behind a tail that no durable superblock has.
    RingOverrun,
    /// A promotion to a restart point keeps one record after it.
    RollbackKeepsOne,
    /// What was not destaged at a crash is not noted in the bitmap.
    DirtyForgottenInCrash,
    /// What the journal holds at a suspension is not noted in the bitmap.
    LiveNotDirty,
    /// A discard is not noted in the bitmap.
    DiscardNotDirty,
    /// A bit of the bitmap is cleared when the copy was sent, not when it was acknowledged.
    CleanBeforeAcknowledged,
    /// The end of a copy is sent while copies are still being read.
    CopyEndsEarly,
    /// The end of a copy is sent before the records that copied ranges may contain.
    CopyEndsBeforeRecords,
    /// A write goes on while its range is being read for a copy.
    CopyRacesWrite,
    /// A comparison of what both nodes hold finds no difference.
    DifferenceNotSeen,
    /// A discard is not sent, and the standby does not see the gap.
    DiscardNotSent,
    /// An entry that is no longer in memory is passed over, and the standby does not see the gap.
    GapTaken,
    /// The standby acknowledges what it has received.
    AcknowledgedUndurable,
    /// The standby greets with records that are not durable.
    GreetedUndurable,
    /// At level `remote` answers do not wait for the peer.
    RemoteNotAwaited,
    /// A standby that has seen a higher epoch takes records of a lower one, and the primary of that one is not told.
    OldEpochTaken,
    /// A primary that meets a higher epoch goes on.
    FenceIgnored,
    /// A promotion does not raise the epoch.
    EpochNotRaised,
    /// A primary goes on in its epoch after an unclean stop.
    EpochKeptInCrash,
    /// A primary answers without its lease.
    LeaseNotChecked,
    /// A lease runs from its answer on, not from its question.
    LeaseFromAnswer,
    /// A promotion does not wait for the end of what was promised.
    PromiseNotKept,
    /// A standby that starts again has forgotten what it promised.
    PromiseForgotten,
    /// What a former primary wrote past the fork is not kept when it steps down.
    ForkNotKept,
    /// A former primary does not list what it wrote past the fork and its journal no longer has.
    ForkListedShort,
    /// A hand-over does not wait for the peer to have everything.
    HandedOverEarly,
    /// A write goes on while its block is being fetched from the peer.
    MendedWithStale,
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
    extern crate std;

    use super::Plant;
    use std::{cell::Cell, thread_local};

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
