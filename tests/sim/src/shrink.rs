//! A failing seed's history, shortened: first whole features are left out, then steps of the script, in ever smaller parts
//! (delta debugging: Zeller and Hildebrandt, 2002). What is left fails in the same way, and if no limit was reached, it does
//! not without any one of its steps.
//!
//! It is deterministic: the same seed is shortened to the same steps.

use crate::{
    Outcome,
    config::{Config, Feature},
    play,
    script::{self, Action, Errand, Step},
    trace::Trace,
};

/// A seed's history without some of what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The features that are left out.
    pub without: Vec<Feature>,
    /// The steps that are left, by their index in the seed's script.
    pub keep: Vec<usize>,
}

impl Part {
    /// All of a seed.
    pub fn whole(seed: u64) -> Self {
        let steps = script::steps(seed, &Config::new(seed));
        Self { without: Vec::new(), keep: (0..steps.len()).collect() }
    }

    /// Plays it. Indexes beyond the script's end mean nothing.
    pub fn play(&self, seed: u64, trace: Trace) -> Outcome {
        let config = Config::new(seed);
        let all = script::steps(seed, &config);
        let steps: Vec<Step> = self.keep.iter().filter_map(|index| all.get(*index).copied()).collect();
        play(seed, &config.without(&self.without), &steps, trace)
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left.
    pub part: Part,
    /// How many histories were played for it.
    pub play_count: u32,
    /// Nothing more can be left out; else the limit was reached.
    pub is_smallest: bool,
}

/// What fails, without the particulars: the promise that is broken, such as `I3`, or else the place of the assertion. Two
/// histories that fail in this way fail for the same reason, as far as can be told.
pub fn kind(message: &str) -> String {
    let message = message.strip_prefix("panicked at ").unwrap_or(message);
    let (place, text) = message.split_once(":\n").unwrap_or(("", message));
    let is_promise = |word: &&str| {
        let number = word.strip_prefix('I').unwrap_or_default();
        *word == "liveness" || !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let first_line = text.lines().next().unwrap_or_default();
    if let Some(promise) = first_line.split(": ").find(is_promise) {
        return promise.to_owned();
    }
    let words = first_line.split(':').next().unwrap_or_default();
    if place.is_empty() { words.to_owned() } else { format!("{place}: {words}") }
}

/// Shortens what fails with this message, in so many plays at most. `progress` hears of each part that still fails.
pub fn shrink(seed: u64, failing: Part, message: &str, plays_max: u32, mut progress: impl FnMut(&Part, u32)) -> Shrunk {
    let wanted = kind(message);
    shrink_while(seed, failing, plays_max, |part, count| {
        let failure = part.play(seed, Trace::default()).failure;
        let is_same = failure.is_some_and(|message| kind(&message) == wanted);
        if is_same {
            progress(part, count);
        }
        is_same
    })
}

/// Shortens while `fails` says so of what is left.
fn shrink_while(seed: u64, failing: Part, plays_max: u32, mut fails: impl FnMut(&Part, u32) -> bool) -> Shrunk {
    let config = Config::new(seed);
    let steps = script::steps(seed, &config);
    let mut plays = Plays { count: 0, max: plays_max };
    let mut part = failing;
    for feature in config.features.iter().filter(|feature| !part.without.contains(feature)).collect::<Vec<_>>() {
        let fewer = leave_out(&part, *feature, &config, &steps);
        if plays.allow() && fails(&fewer, plays.count) {
            part = fewer;
        }
    }
    let Part { without, keep } = part;
    let keep =
        fewest(keep, &mut plays, |keep, count| fails(&Part { without: without.clone(), keep: keep.to_vec() }, count));
    Shrunk { part: Part { without, keep }, play_count: plays.count.min(plays_max), is_smallest: !plays.are_over() }
}

struct Plays {
    count: u32,
    max: u32,
}

impl Plays {
    fn are_over(&self) -> bool {
        self.count > self.max
    }

    /// Counts one more; once there was one too many, none is allowed.
    fn allow(&mut self) -> bool {
        self.count += u32::from(!self.are_over());
        !self.are_over()
    }
}

/// The items without which `fails` is not true any more: one by one none can be left out.
fn fewest(all: Vec<usize>, plays: &mut Plays, mut fails: impl FnMut(&[usize], u32) -> bool) -> Vec<usize> {
    let mut kept = all;
    let mut size = kept.len();
    while size > 0 && !kept.is_empty() {
        let mut is_shorter = false;
        // From the end: what comes after the failure goes first, and leaves all before it as it was.
        let mut end = kept.len();
        while end > 0 {
            let start = end.saturating_sub(size);
            let mut fewer = kept.clone();
            fewer.drain(start..end);
            if !plays.allow() {
                return kept;
            }
            if fails(&fewer, plays.count) {
                kept = fewer;
                is_shorter = true;
            }
            end = start;
        }
        // A step may have needed one that is gone now.
        if size > 1 || !is_shorter {
            size /= 2;
        }
    }
    kept
}

fn leave_out(part: &Part, feature: Feature, config: &Config, steps: &[Step]) -> Part {
    let mut without = part.without.clone();
    without.push(feature);
    let left: Vec<Feature> = config.features.iter().copied().filter(|feature| !without.contains(feature)).collect();
    let stays = |index: &usize| {
        steps.get(*index).is_some_and(|step| {
            !brings(feature, step.action) || left.iter().any(|feature| brings(*feature, step.action))
        })
    };
    let keep = part.keep.iter().copied().filter(stays).collect();
    Part { without, keep }
}

/// Whether a feature puts such steps into a script, whatever else may put them there.
fn brings(feature: Feature, action: Action) -> bool {
    match action {
        Action::Request | Action::RestartPoint | Action::Look(_) => false,
        Action::Burst => feature == Feature::Bursts,
        Action::Kill(_) => feature == Feature::Kills,
        Action::PowerLoss(_) => feature == Feature::PowerLoss,
        Action::Stop(_) | Action::Switch => feature == Feature::Switches,
        Action::Ambush(_) => feature == Feature::Ambushes,
        Action::Start(_) => {
            matches!(feature, Feature::Kills | Feature::PowerLoss | Feature::Switches | Feature::Ambushes)
        }
        Action::Stall(_) => feature == Feature::Stalls,
        Action::Cut(_) => feature == Feature::Cuts,
        Action::HalfCut(..) => feature == Feature::HalfCuts,
        Action::Heal => matches!(feature, Feature::Cuts | Feature::HalfCuts),
        Action::Heartbeat(_) => feature == Feature::Heartbeats,
        Action::SlowMedia(..) => feature == Feature::SlowMedia,
        Action::MediaErrors(..) | Action::Reopen(_) => feature == Feature::MediaErrors,
        Action::FullMedia(..) => feature == Feature::FullMedia,
        Action::Rot(_) | Action::LostWrite(_) => feature == Feature::Rot,
        Action::Jump(_) => feature == Feature::BadClocks,
        Action::Promote | Action::Demote => feature == Feature::Promotions,
        Action::Coup => feature == Feature::Leases,
        Action::LookBack(_) | Action::Hold(..) => feature == Feature::Generations,
        Action::Replace => matches!(feature, Feature::Rot | Feature::NewPairs),
        Action::Command(errand) => feature == sends(errand),
    }
}

fn sends(errand: Errand) -> Feature {
    match errand {
        Errand::Suspend | Errand::Resume => Feature::Suspensions,
        Errand::Verify => Feature::Verifications,
        Errand::Level => Feature::Levels,
        Errand::Policy => Feature::Policies,
        Errand::Lease => Feature::Leases,
        Errand::Takeover => Feature::Takeovers,
        Errand::Keep | Errand::Drop => Feature::Generations,
        Errand::BeginTrial | Errand::TryOut | Errand::EndTrial => Feature::Trials,
        Errand::GrowVolume | Errand::GrowJournal => Feature::Growth,
        Errand::DeletePair => Feature::NewPairs,
        Errand::Nonsense => Feature::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plays(max: u32) -> Plays {
        Plays { count: 0, max }
    }

    #[test]
    fn what_is_needed_is_left() {
        let needed = [3, 70, 71, 99];
        let fails = |kept: &[usize], _: u32| needed.iter().all(|index| kept.contains(index));
        let mut budget = plays(1_000);
        assert_eq!(fewest((0..100).collect(), &mut budget, fails), needed);
        assert!(budget.count < 150, "{} plays", budget.count);
    }

    #[test]
    fn steps_that_need_each_other_go_in_the_end() {
        // 5 alone fails, but no history that has 20 without 10.
        let fails = |kept: &[usize], _: u32| kept.contains(&5) && (!kept.contains(&20) || kept.contains(&10));
        assert_eq!(fewest((0..32).collect(), &mut plays(1_000), fails), [5]);
    }

    #[test]
    fn the_limit_ends_it_with_what_fails() {
        let fails = |kept: &[usize], _: u32| kept.contains(&40) && kept.contains(&41);
        let mut budget = plays(12);
        let kept = fewest((0..64).collect(), &mut budget, fails);
        assert!(budget.are_over() && fails(&kept, 0) && kept.len() < 64, "{kept:?}");
        let mut budget = plays(0);
        assert_eq!(fewest((0..9).collect(), &mut budget, fails), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn failures_are_the_same_when_the_same_promise_is_broken() {
        let at = |text: &str| kind(&format!("panicked at tests/sim/src/checks.rs:120:13:\n{text}"));
        assert_eq!(at("I3: node 0 group 0 reads 7"), "I3");
        assert_eq!(at("node 1 group 0: I4: generation 7 is not what it was: []"), "I4");
        assert_eq!(at("liveness: time stands still"), "liveness");
        assert_eq!(
            at("assertion `left == right` failed: 7\n  left: 1"),
            "tests/sim/src/checks.rs:120:13: assertion `left == right` failed"
        );
        assert_ne!(at("I3: node 0"), at("I1: node 0"));
    }

    #[test]
    fn a_feature_goes_with_its_steps_and_leaves_those_of_others() {
        let seed = (1..500).find(|seed| {
            let config = Config::new(*seed);
            config.has(Feature::Kills) && config.has(Feature::PowerLoss)
        });
        let seed = seed.expect("features are drawn");
        let config = Config::new(seed);
        let steps = script::steps(seed, &config);
        let whole = Part::whole(seed);
        let part = leave_out(&whole, Feature::Kills, &config, &steps);
        let actions = |part: &Part| part.keep.iter().map(|index| steps[*index].action).collect::<Vec<_>>();
        let count = |actions: &[Action], of: fn(&Action) -> bool| actions.iter().filter(|action| of(action)).count();
        let (all, fewer) = (actions(&whole), actions(&part));
        assert!(count(&all, |action| matches!(action, Action::Kill(_))) > 0);
        assert_eq!(count(&fewer, |action| matches!(action, Action::Kill(_))), 0);
        let starts = |action: &Action| matches!(action, Action::Start(_));
        assert_eq!(count(&all, starts), count(&fewer, starts));
    }

    #[test]
    fn a_real_history_is_shortened_to_the_step_that_matters() {
        // What is looked for is no fault, so that the test outlives the faults: that somebody becomes primary by a command. It
        // takes one step.
        let is_promoted = |part: &Part, seed: u64| {
            let outcome = part.play(seed, Trace::default());
            outcome.failure.is_none()
                && outcome.marks.contains_key("step: Promote")
                && outcome.marks.contains_key("role: secondary to primary")
        };
        let short = |seed: &u64| {
            let config = Config::new(*seed);
            config.has(Feature::Promotions) && script::steps(*seed, &config).len() < 900
        };
        let seed = (1..2_000).filter(short).find(|seed| is_promoted(&Part::whole(*seed), *seed));
        let seed = seed.expect("a promotion in one of the seeds");
        let whole = Part::whole(seed);
        let play = || shrink_while(seed, whole.clone(), 400, |part, _| is_promoted(part, seed));
        let shrunk = play();
        assert!(shrunk.is_smallest && shrunk.play_count <= 400, "{shrunk:?}");
        let steps = script::steps(seed, &Config::new(seed));
        let left: Vec<Action> = shrunk.part.keep.iter().map(|index| steps[*index].action).collect();
        assert_eq!(left, [Action::Promote]);
        assert!(!shrunk.part.without.is_empty() && is_promoted(&shrunk.part, seed));
        assert_eq!(play().part, shrunk.part);
    }
}
