//! Whether the simulator finds faults: each that can be planted is, and some seed must fail that does not fail without it.

use holdfast::testing::Plant;
use replicator::testing as carrier;
use simulator::{
    config::{Config, Feature},
    play_seed,
    trace::Trace,
};
use std::{
    fmt::{Debug, Formatter, Result as Formatted},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// So many seeds are played for a fault at most.
const SEED_COUNT_MAX: usize = 600;
/// So many faults are found at least: none is given up without a word.
const FIND_COUNT_MIN: usize = 46;

/// Holes: faults that are planted and not sought, because no seed has found them yet, or none in reasonable time.
const NOT_SOUGHT: [(Fault, &str); 12] = [
    (
        Fault::Core(Plant::CommandNotDurable),
        "nobody asks after a loss of power whether an answered restart point is still there",
    ),
    (
        Fault::Core(Plant::ChainNotChecked),
        "old batches with the right position and number hardly ever lie behind the last one",
    ),
    (
        Fault::Core(Plant::FreedUsedUnderRead),
        "a read would have to last longer than a checkpoint and a cycle of destaging",
    ),
    (Fault::Core(Plant::HeldDropped), "a trial checks only what it has written itself, and who looks lets go at once"),
    (
        Fault::Core(Plant::RingOverrun),
        "the ring would have to be full while the superblock is being written, and then the machine die",
    ),
    (
        Fault::Core(Plant::DirtyForgottenInCrash),
        "the machine must die between the superblock and the checkpoint of one suspension",
    ),
    (Fault::Core(Plant::CopyEndsBeforeRecords), "nobody looks at the standby before the records that follow at once"),
    (
        Fault::Core(Plant::GreetedUndurable),
        "the standby must lose power just after its greeting, and be promoted before the next",
    ),
    (Fault::Core(Plant::LeaseFromAnswer), "a takeover must come within a round trip of the end of the lease"),
    (Fault::Core(Plant::PromiseForgotten), "the standby must start again and be promoted while a lease lasts"),
    (Fault::Core(Plant::MendedWithStale), "a write must come while a damaged block is being fetched"),
    (Fault::Core(Plant::GapTaken), "seed 11 finds it, but only after minutes of sessions that are ended and made anew"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Core(Plant),
    Carrier(carrier::Plant),
}

impl Debug for Fault {
    fn fmt(&self, formatter: &mut Formatter) -> Formatted {
        match self {
            Self::Core(plant) => plant.fmt(formatter),
            Self::Carrier(plant) => plant.fmt(formatter),
        }
    }
}

impl Fault {
    fn all() -> Vec<Self> {
        Plant::ALL.map(Self::Core).into_iter().chain(carrier::Plant::ALL.map(Self::Carrier)).collect()
    }
}

fn plant(fault: Option<Fault>) {
    holdfast::testing::plant(if let Some(Fault::Core(plant)) = fault { Some(plant) } else { None });
    carrier::plant(if let Some(Fault::Carrier(plant)) = fault { Some(plant) } else { None });
}

struct Find {
    fault: Fault,
    /// The seed that fails, and why.
    seed: Option<(u64, String)>,
    seed_count: u64,
    took: Duration,
}

/// What its failure is about, where another one could be mistaken for it.
fn shows_as(fault: Fault) -> &'static str {
    match fault {
        Fault::Core(Plant::RemoteNotAwaited) => "I5: ",
        _ => "",
    }
}

/// Where the search begins: a seed that found the fault once. It goes on from there if that does not any more.
fn first_seed(fault: Fault) -> u64 {
    use Plant as P;
    use carrier::Plant as C;
    match fault {
        Fault::Core(P::NewestNotRead | P::NewerForgotten | P::GenerationsMixed)
        | Fault::Carrier(C::MarksOutliveSession) => 2,
        Fault::Core(P::FoldIntoKept | P::SnapshotFreed | P::CopyEndsEarly | P::DifferenceNotSeen | P::ForkNotKept) => 3,
        Fault::Carrier(C::BlockTwice | C::AcknowledgedUnseen | C::BlocksOutOfOrder) => 5,
        Fault::Core(P::NoSyncBeforeAnswer | P::EpochKeptInCrash) => 6,
        Fault::Carrier(C::WrongRepair) => 7,
        Fault::Core(P::OldEpochTaken | P::FenceIgnored) => 8,
        Fault::Core(P::PoolNotSynced) | Fault::Carrier(C::TailNotProbed) => 10,
        Fault::Core(P::TornRedirectTaken) => 12,
        Fault::Core(P::CleanBeforeAcknowledged) => 13,
        Fault::Core(P::CopyRacesWrite) => 15,
        Fault::Core(P::SuperblockNotSynced) => 16,
        Fault::Core(P::RedirectedUsedEarly) => 17,
        Fault::Core(P::AnswerUnwritten) => 18,
        Fault::Core(P::FreedUsedAtOnce) => 19,
        Fault::Core(P::TornBatchTaken | P::LeaseNotChecked) => 20,
        Fault::Core(P::TailBeforeTables) => 27,
        Fault::Core(P::RollbackKeepsOne | P::HandedOverEarly) => 28,
        Fault::Carrier(C::CreditLost) => 29,
        Fault::Core(P::DiscardNotSent) => 41,
        Fault::Core(P::DiscardNotDirty) => 42,
        Fault::Core(P::EpochNotRaised) => 44,
        Fault::Core(P::LiveNotDirty) => 88,
        Fault::Core(P::UndurableDestaged) => 114,
        Fault::Core(P::PagesNotSynced) => 129,
        Fault::Core(P::PromiseNotKept) => 130,
        Fault::Core(P::ForkNotVoided) => 260,
        Fault::Core(P::RemoteNotAwaited) => 303,
        Fault::Core(P::AcknowledgedUndurable) => 369,
        _ => 1,
    }
}

/// Without these a fault does nothing: seeds that lack them need not be played.
fn needs(fault: Fault) -> &'static [Feature] {
    use Feature::*;
    use Plant as P;
    let Fault::Core(plant) = fault else { return &[] };
    match plant {
        P::AnswerUnwritten => &[Kills],
        P::NoSyncBeforeAnswer
        | P::PoolNotSynced
        | P::SuperblockNotSynced
        | P::CommandNotDurable
        | P::TornBatchTaken
        | P::ChainNotChecked
        | P::TornRedirectTaken
        | P::UndurableDestaged
        | P::PagesNotSynced
        | P::EpochKeptInCrash => &[PowerLoss],
        P::ForkNotVoided => &[Kills, Promotions],
        P::RollbackKeepsOne | P::ForkNotKept | P::EpochNotRaised => &[Promotions],
        P::RemoteNotAwaited | P::AcknowledgedUndurable | P::GreetedUndurable => &[Levels, Promotions, PowerLoss],
        P::LeaseNotChecked => &[Leases],
        P::LeaseFromAnswer | P::PromiseNotKept => &[Leases, Promotions],
        P::PromiseForgotten => &[Kills, Leases],
        P::RingOverrun => &[Kills, Bursts],
        P::DirtyForgottenInCrash => &[Kills, Suspensions],
        P::DiscardNotDirty => &[Suspensions],
        P::LiveNotDirty => &[Cuts, Bursts],
        P::OldEpochTaken | P::FenceIgnored => &[Promotions, Cuts],
        P::GapTaken => &[Kills, Cuts],
        P::HandedOverEarly => &[Switches],
        P::HeldDropped => &[Trials],
        P::MendedWithStale => &[MediaErrors],
        _ => &[],
    }
}

/// Plays seeds with a fault from `first` on until one fails that does not fail without it.
fn find(fault: Fault, first: u64) -> Find {
    let begun = Instant::now();
    let mut seed_count = 0;
    let mut fails = |seed: &u64| {
        seed_count += 1;
        plant(Some(fault));
        let failure = play_seed(*seed, Trace::default()).failure;
        plant(None);
        // Only what the fault has done counts.
        let shown = failure.filter(|why| why.contains(shows_as(fault)));
        shown.filter(|_| play_seed(*seed, Trace::default()).failure.is_none())
    };
    let has_all = |seed: &u64| needs(fault).iter().all(|feature| Config::new(*seed).has(*feature));
    let mut seeds = (first..).filter(has_all).take(SEED_COUNT_MAX);
    let seed = seeds.find_map(|seed| Some((seed, fails(&seed)?)));
    Find { fault, seed, seed_count, took: begun.elapsed() }
}

#[test]
fn every_planted_fault_is_found() {
    let (next, finds) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let sought: Vec<Fault> =
        Fault::all().into_iter().filter(|fault| NOT_SOUGHT.iter().all(|(other, _)| other != fault)).collect();
    let seek = || {
        while let Some(fault) = sought.get(next.fetch_add(1, Ordering::Relaxed)) {
            let find = find(*fault, first_seed(*fault));
            finds.lock().expect("no search panics").push(find);
        }
    };
    let thread_count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..thread_count).for_each(|_| drop(scope.spawn(seek))));
    let finds = finds.into_inner().expect("no search panics");
    for Find { fault, seed, seed_count, took } in &finds {
        let name = format!("{fault:?}");
        match seed {
            Some((seed, why)) => {
                let why: String = why.lines().skip(1).flat_map(str::chars).take(100).collect();
                println!("{name:24} seed {seed:5}, after {seed_count:3}, {:5.1} s: {why}", took.as_secs_f64());
            }
            None => println!("{name:24} not found in {seed_count} seeds, {:5.1} s", took.as_secs_f64()),
        }
    }
    let missed: Vec<Fault> = finds.iter().filter(|find| find.seed.is_none()).map(|find| find.fault).collect();
    assert!(missed.is_empty(), "the simulator does not find {missed:?}");
    assert!(finds.len() >= FIND_COUNT_MIN, "only {} faults are sought", finds.len());
}
