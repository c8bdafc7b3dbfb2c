//! Whether the simulator finds faults: each that can be planted is, and some seed or story must fail that does not fail without it.

use holdfast::testing::Plant;
use replicator::testing as carrier;
use simulator::{
    Outcome,
    config::{Config, Feature},
    play_seed,
    story::Story,
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
    /// What fails, and why.
    history: Option<(String, String)>,
    history_count: u64,
    took: Duration,
}

/// The story that is about it, where chance meets it too seldom.
fn story_of(fault: Fault) -> Option<&'static str> {
    let Fault::Core(plant) = fault else { return None };
    Some(match plant {
        Plant::AcknowledgedUndurable => "acknowledged",
        Plant::GreetedUndurable => "greeted",
        Plant::MendedWithStale => "mended",
        Plant::CopyEndsBeforeRecords => "copied",
        Plant::RingOverrun => "full",
        Plant::RedirectedUsedEarly => "overwritten",
        Plant::FreedUsedUnderRead => "long-read",
        _ => return None,
    })
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
        Fault::Core(P::TornRedirectTaken) => 16,
        Fault::Core(P::EpochKeptInCrash) => 20,
        Fault::Core(P::SuperblockNotSynced) => 22,
        Fault::Core(P::HandedOverEarly) => 32,
        Fault::Core(P::TailBeforeTables) => 38,
        Fault::Core(P::DiscardNotSent) => 41,
        Fault::Core(P::FreedUsedAtOnce) => 42,
        Fault::Core(P::EpochNotRaised) => 44,
        Fault::Core(P::RollbackKeepsOne) => 49,
        Fault::Core(P::CleanBeforeAcknowledged) => 71,
        Fault::Core(P::TornBatchTaken) => 64,
        Fault::Core(P::AnswerUnwritten) => 69,
        Fault::Carrier(C::CreditLost) => 107,
        Fault::Core(P::DiscardNotDirty) => 109,
        Fault::Core(P::ChainNotChecked) => 809,
        Fault::Core(P::UndurableDestaged) => 263,
        Fault::Core(P::LeaseNotChecked) => 148,
        Fault::Core(P::PromiseNotKept) => 212,
        Fault::Core(P::ForkNotVoided) => 271,
        Fault::Core(P::ForkListedShort) => 283,
        Fault::Core(P::DirtyForgottenInCrash) => 1692,
        Fault::Core(P::LiveNotDirty) => 389,
        Fault::Core(P::PromiseForgotten) => 799,
        Fault::Core(P::LeaseFromAnswer) => 3442,
        Fault::Core(P::PagesNotSynced) => 611,
        Fault::Core(P::RemoteNotAwaited) => 751,
        Fault::Core(P::CopyRacesWrite) => 6105,
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
        P::RollbackKeepsOne | P::ForkNotKept | P::ForkListedShort | P::EpochNotRaised => &[Promotions],
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

/// Plays histories with a fault until one fails that does not fail without it.
fn find(fault: Fault) -> Find {
    let begun = Instant::now();
    let mut history_count = 0;
    let mut fails = |name: String, play: &dyn Fn() -> Outcome| {
        history_count += 1;
        plant(Some(fault));
        let failure = play().failure;
        plant(None);
        // Only what the fault has done counts.
        let shown = failure.filter(|why| why.contains(shows_as(fault)));
        shown.filter(|_| play().failure.is_none()).map(|why| (name, why))
    };
    let history = if let Some(name) = story_of(fault) {
        let story = Story::ALL.iter().position(|story| story.name == name).expect("there is such a story");
        Story::tellings(story).find_map(|told| fails(format!("story {told}"), &|| told.play(Trace::default())))
    } else {
        let has_all = |seed: &u64| needs(fault).iter().all(|feature| Config::new(*seed).has(*feature));
        let mut seeds = (first_seed(fault)..).filter(has_all).take(SEED_COUNT_MAX);
        seeds.find_map(|seed| fails(format!("seed {seed}"), &|| play_seed(seed, Trace::default())))
    };
    Find { fault, history, history_count, took: begun.elapsed() }
}

#[test]
fn every_planted_fault_is_found() {
    let (next, finds) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let sought = Fault::all();
    let seek = || {
        while let Some(fault) = sought.get(next.fetch_add(1, Ordering::Relaxed)) {
            let find = find(*fault);
            finds.lock().expect("no search panics").push(find);
        }
    };
    let thread_count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..thread_count).for_each(|_| drop(scope.spawn(seek))));
    let finds = finds.into_inner().expect("no search panics");
    for Find { fault, history, history_count, took } in &finds {
        let (name, seconds) = (format!("{fault:?}"), took.as_secs_f64());
        match history {
            Some((history, why)) => {
                let why: String = why.lines().skip(1).flat_map(str::chars).take(100).collect();
                println!("{name:24} {history}, after {history_count:3}, {seconds:5.1} s: {why}");
            }
            None => println!("{name:24} not found in {history_count} histories, {seconds:5.1} s"),
        }
    }
    let missed: Vec<Fault> = finds.iter().filter(|find| find.history.is_none()).map(|find| find.fault).collect();
    assert!(missed.is_empty(), "the simulator does not find {missed:?}");
    assert_eq!(finds.len(), sought.len());
}
