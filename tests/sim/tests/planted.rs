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
const SEED_COUNT_MAX: usize = 300;
/// So many faults are found at least: none is given up without a word.
const FIND_COUNT_MIN: usize = 51;

/// Holes: faults that are planted and not sought, because no seed has found them yet, or none in reasonable time.
const NOT_SOUGHT: [(Fault, &str); 7] = [
    (
        Fault::Core(Plant::FreedUsedUnderRead),
        "a block has to be freed, pass a checkpoint and be used again while one read of it lasts",
    ),
    (
        Fault::Core(Plant::RedirectedUsedEarly),
        "a block has to be used again just before a crash that the journal's tail has not passed; earlier seeds met it",
    ),
    (
        Fault::Core(Plant::RingOverrun),
        "the ring would have to be full while the superblock is being written, and then the machine die",
    ),
    (
        Fault::Core(Plant::CopyEndsBeforeRecords),
        "a copied range would have to hold a write whose record is held up behind the copy's end",
    ),
    (
        Fault::Core(Plant::AcknowledgedUndurable),
        "the standby must lose power just after its acknowledgement, and be promoted before it greets; earlier seeds met it",
    ),
    (
        Fault::Core(Plant::GreetedUndurable),
        "the standby must lose power just after its greeting, and be promoted before the next",
    ),
    (
        Fault::Core(Plant::MendedWithStale),
        "a write must come while a damaged block is being fetched; earlier seeds met it",
    ),
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
        let carriers = carrier::Plant::ALL.iter().copied().map(Self::Carrier);
        Plant::ALL.iter().copied().map(Self::Core).chain(carriers).collect()
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
        Fault::Core(P::NewestNotRead | P::GenerationsMixed) => 2,
        Fault::Core(P::SnapshotFreed | P::CopyEndsEarly | P::DifferenceNotSeen | P::ForkNotKept)
        | Fault::Carrier(C::MarksOutliveSession | C::PeerMarksOutliveSession) => 3,
        Fault::Core(P::NewerForgotten | P::HeldDropped) => 4,
        Fault::Core(P::GapTaken) | Fault::Carrier(C::AcknowledgedUnseen | C::BlockTwice | C::BlocksOutOfOrder) => 5,
        Fault::Core(P::OldEpochTaken | P::FenceIgnored) => 8,
        Fault::Core(P::NoSyncBeforeAnswer) => 9,
        Fault::Core(P::PoolNotSynced | P::CommandNotDurable | P::FoldIntoKept) => 10,
        Fault::Carrier(C::WrongRepair) => 11,
        Fault::Carrier(C::TailNotProbed) => 15,
        Fault::Core(P::TornRedirectTaken | P::EpochKeptInCrash) => 16,
        Fault::Core(P::TornBatchTaken) => 20,
        Fault::Core(P::SuperblockNotSynced) => 22,
        Fault::Core(P::HandedOverEarly) => 32,
        Fault::Core(P::TailBeforeTables) => 38,
        Fault::Core(P::DiscardNotSent) => 41,
        Fault::Core(P::FreedUsedAtOnce) => 42,
        Fault::Core(P::EpochNotRaised) => 44,
        Fault::Core(P::RollbackKeepsOne) => 45,
        Fault::Core(P::CleanBeforeAcknowledged) => 49,
        Fault::Core(P::AnswerUnwritten) => 69,
        Fault::Carrier(C::CreditLost) => 107,
        Fault::Core(P::DiscardNotDirty) => 109,
        Fault::Core(P::ChainNotChecked) => 118,
        Fault::Core(P::LeaseNotChecked) => 123,
        Fault::Core(P::UndurableDestaged) => 133,
        Fault::Core(P::PromiseNotKept) => 201,
        Fault::Core(P::DirtyForgottenInCrash) => 243,
        Fault::Core(P::ForkNotVoided) => 271,
        Fault::Core(P::LiveNotDirty) => 312,
        Fault::Core(P::PagesNotSynced) => 328,
        Fault::Core(P::PromiseForgotten) => 376,
        Fault::Core(P::LeaseFromAnswer) => 472,
        Fault::Core(P::RemoteNotAwaited) => 553,
        Fault::Core(P::CopyRacesWrite) => 874,
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
        P::RemoteNotAwaited => &[Levels, Promotions, PowerLoss],
        P::LeaseNotChecked => &[Leases],
        P::LeaseFromAnswer | P::PromiseNotKept => &[Leases, Promotions],
        P::PromiseForgotten => &[Leases],
        P::DirtyForgottenInCrash => &[Ambushes, Suspensions],
        P::DiscardNotDirty => &[Suspensions],
        P::CopyRacesWrite => &[Suspensions, SlowMedia, Bursts],
        P::LiveNotDirty => &[Cuts, Bursts],
        P::OldEpochTaken | P::FenceIgnored => &[Promotions, Cuts],
        P::HandedOverEarly => &[Switches],
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
