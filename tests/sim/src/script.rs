//! What befalls a pair, in order: all of it is written down before the first event, so that a history can be shortened by
//! leaving steps out. A step decides the rest by its own number, whatever became of the steps before it.

use crate::config::{Config, Feature};
use link_model::Random;
use std::fmt;

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, in microseconds.
    pub at: u64,
    /// What.
    pub action: Action,
    /// Decides what is left open.
    pub salt: u64,
}

/// What happens. Nodes are 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client writes, zeroes, flushes or reads.
    Request,
    /// A client writes much.
    Burst,
    /// The application declares that it can restart.
    RestartPoint,
    /// A daemon dies.
    Kill(usize),
    /// A machine loses power.
    PowerLoss(usize),
    /// A machine will lose power at a bad moment.
    Ambush(usize),
    /// A daemon is stopped in good order.
    Stop(usize),
    /// A daemon is started.
    Start(usize),
    /// A daemon stands still for a while.
    Stall(usize),
    /// A link is cut.
    Cut(usize),
    /// A link carries nothing from this node.
    HalfCut(usize, usize),
    /// Links carry again.
    Heal,
    /// The third path is cut or carries again.
    Heartbeat(bool),
    /// A medium is slow, or not any more.
    SlowMedia(usize, bool),
    /// Operations of a node's media fail, or not any more.
    MediaErrors(usize, bool),
    /// A node's file systems are full, or not any more.
    FullMedia(usize, bool),
    /// Something that was written on this node's media is changed.
    Rot(usize),
    /// A write of this node goes elsewhere, or nowhere.
    LostWrite(usize),
    /// A node's time of day jumps.
    Jump(usize),
    /// The standby is promoted.
    Promote,
    /// A former primary is made the standby.
    Demote,
    /// The standby is cut off, perhaps starts again, and is promoted as soon as it lets itself be.
    Coup,
    /// Roles are switched in good order.
    Switch,
    /// An operator's command, of this kind, at some node.
    Command(Errand),
    /// Somebody looks at what a node holds.
    Look(usize),
    /// Somebody looks at the generations of a node.
    LookBack(usize),
    /// Somebody holds a generation of a node, or looks at it again and lets it go.
    Hold(usize, bool),
    /// A stopped group is opened again.
    Reopen(usize),
    /// A new standby takes the place of a node.
    Replace,
}

/// A command that goes to the node that it is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// `pair suspend`.
    Suspend,
    /// `pair resume`.
    Resume,
    /// `pair verify`.
    Verify,
    /// `level`.
    Level,
    /// `policy`.
    Policy,
    /// `fence`.
    Lease,
    /// `auto-promote`.
    Takeover,
    /// `generation keep`.
    Keep,
    /// `generation drop`.
    Drop,
    /// `failover --test`.
    BeginTrial,
    /// A client of a trial.
    TryOut,
    /// `failover --test --end`.
    EndTrial,
    /// `volume resize`.
    GrowVolume,
    /// `group resize-journal`.
    GrowJournal,
    /// `pair delete`.
    DeletePair,
    /// Any command at any node.
    Nonsense,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:10.3} s  {:?} {:x}", self.at as f64 / 1e6, self.action, self.salt & 0xFFFF)
    }
}

/// The steps of a seed, in order.
pub fn steps(seed: u64, config: &Config) -> Vec<Step> {
    let mut chance = Random::new(seed ^ 0x5C_417);
    let mut steps = Vec::new();
    let mut push =
        |at: u64, action: Action, chance: &mut Random| steps.push(Step { at, action, salt: chance.next_u64() });
    let mut at = 1_000_000;
    while at < config.micros {
        // Clients pause now and then.
        at += if chance.below(100) == 0 { 3_000_000 } else { chance.below(2 * config.think_micros) };
        let action = match chance.below(60) {
            0 | 1 => Action::RestartPoint,
            2 => Action::Look(0),
            3 => Action::Look(1),
            4 if config.has(Feature::Bursts) => Action::Burst,
            _ => Action::Request,
        };
        push(at, action, &mut chance);
    }
    let mut at = 1_000_000;
    while at < config.micros {
        at += chance.below(2 * config.calm_micros);
        let node = chance.below(2) as usize;
        let later = at + [1_000, 200_000, 3_000_000, 15_000_000][chance.below(4) as usize] + chance.below(1_000_000);
        let feature = config.features.get(chance.below(config.features.len().max(1) as u64) as usize);
        let Some(feature) = feature else { break };
        let (now, then) = befalls(*feature, node, &mut chance);
        if let Some(action) = now {
            push(at, action, &mut chance);
        }
        if let Some(action) = then {
            push(later, action, &mut chance);
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// What a feature does, and what ends it.
fn befalls(feature: Feature, node: usize, chance: &mut Random) -> (Option<Action>, Option<Action>) {
    use Action::*;
    let command = |errand| Some(Command(errand));
    let one_of =
        |errands: &[Errand], chance: &mut Random| command(errands[chance.below(errands.len() as u64) as usize]);
    match feature {
        Feature::Kills => (Some(Kill(node)), Some(Start(node))),
        Feature::PowerLoss => (Some(PowerLoss(node)), Some(Start(node))),
        Feature::Cuts => (Some(Cut(chance.below(3) as usize)), Some(Heal)),
        Feature::HalfCuts => (Some(HalfCut(chance.below(3) as usize, node)), Some(Heal)),
        Feature::BadLines | Feature::SlowLines | Feature::Bursts => (None, None),
        Feature::BadClocks => (Some(Jump(node)), None),
        Feature::SlowMedia => (Some(SlowMedia(node, true)), Some(SlowMedia(node, false))),
        Feature::MediaErrors => (Some(MediaErrors(node, true)), Some(Reopen(node))),
        Feature::FullMedia => (Some(FullMedia(node, true)), Some(FullMedia(node, false))),
        Feature::Rot if chance.below(2) == 0 => (Some(Rot(node)), Some(Replace)),
        Feature::Rot => (Some(LostWrite(node)), Some(Replace)),
        Feature::Stalls => (Some(Stall(node)), None),
        Feature::Promotions => (Some(Promote), Some(Demote)),
        Feature::Switches if chance.below(3) == 0 => (Some(Stop(node)), Some(Start(node))),
        Feature::Switches => (Some(Switch), None),
        Feature::Suspensions => (command(Errand::Suspend), command(Errand::Resume)),
        Feature::Verifications => (command(Errand::Verify), None),
        Feature::Levels => (command(Errand::Level), None),
        Feature::Policies => (command(Errand::Policy), None),
        Feature::Leases if chance.below(4) == 0 => (Some(Coup), None),
        Feature::Leases => (command(Errand::Lease), None),
        Feature::Takeovers => (command(Errand::Takeover), None),
        Feature::Heartbeats => (Some(Heartbeat(chance.below(2) == 0)), Some(Heartbeat(true))),
        Feature::Generations => match chance.below(4) {
            0 => (Some(Hold(node, true)), Some(Hold(node, false))),
            1 => (command(Errand::Drop), Some(LookBack(node))),
            _ => (command(Errand::Keep), Some(LookBack(node))),
        },
        Feature::Trials if chance.below(2) == 0 => (command(Errand::TryOut), command(Errand::TryOut)),
        Feature::Trials => (command(Errand::BeginTrial), one_of(&[Errand::TryOut, Errand::EndTrial], chance)),
        Feature::Growth => (one_of(&[Errand::GrowVolume, Errand::GrowJournal], chance), None),
        Feature::NewPairs => (command(Errand::DeletePair), Some(Replace)),
        Feature::Nonsense => (command(Errand::Nonsense), None),
        Feature::Ambushes => (Some(Ambush(node)), Some(Start(node))),
    }
}
