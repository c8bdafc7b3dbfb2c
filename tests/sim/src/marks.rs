//! What a run has reached: every state, fault, event and refusal is counted by name, so that what is never reached shows.

use crate::{operator::first_word, world::World};
use holdfast::{
    output::Event,
    request::{Reply, RequestError},
};

impl World {
    pub(crate) fn mark_event(&mut self, node: usize, group: usize, event: &Event) {
        self.trace.mark(&format!("event: {}", first_word(event)));
        let Some(view) = self.slot(node, group).map(|slot| slot.view) else { return };
        match event {
            Event::PairChanged { state } => {
                self.trace.mark(&format!("pair: {} to {}", view.pair.name(), state.name()));
            }
            Event::RoleChanged { role, .. } => self.trace.mark(&format!("role: {} to {role}", view.role)),
            _ => {}
        }
    }

    pub(crate) fn mark_request_error(&mut self, result: &Result<Reply, RequestError>) {
        if let Err(error) = result {
            self.trace.mark(&format!("request: {}", first_word(error)));
        }
    }
}

/// What a few dozen seeds reach. One that is missing means that chance, or the pair, does not do any more what it did.
pub const EXPECTED: &[&str] = &[
    "command: BeginTrial",
    "command: CreatePair",
    "command: DeletePair",
    "command: Demote",
    "command: DropGeneration",
    "command: EndTrial",
    "command: GrowJournal",
    "command: GrowVolume",
    "command: HandOver",
    "command: KeepGenerations",
    "command: Promote",
    "command: RemoveVolume",
    "command: RestartPoint",
    "command: ResumePair",
    "command: SetLease",
    "command: SetLevel",
    "command: SetPolicy",
    "command: SetTakeover",
    "command: SetWithoutPeer",
    "command: Stop",
    "command: SuspendPair",
    "command: VerifyPair",
    "event: CopyEnded",
    "event: GenerationDropped",
    "event: LeaseDropped",
    "event: LeaseHeld",
    "event: LeaseLost",
    "event: MediumFailed",
    "event: PairChanged",
    "event: PeerGreeted",
    "event: PeerRefused",
    "event: PoolFull",
    "event: RestartPoint",
    "event: RoleChanged",
    "look: a fenced node",
    "look: a fork that a former primary left",
    "look: a generation",
    "look: a primary",
    "look: a standby",
    "pair: duplex to duplex-pending",
    "pair: duplex to initial-copy",
    "pair: duplex to simplex",
    "pair: duplex to suspended",
    "pair: duplex to suspending",
    "pair: duplex-pending to duplex",
    "pair: initial-copy to duplex",
    "pair: initial-copy to duplex-pending",
    "pair: initial-copy to simplex",
    "pair: simplex to initial-copy",
    "pair: suspended to duplex-pending",
    "pair: suspended to initial-copy",
    "pair: suspended to suspended",
    "pair: suspending to suspended",
    "refused: Fenced",
    "refused: InProgress",
    "refused: Io",
    "refused: Journal",
    "refused: KeepCount",
    "refused: LastRestartPoint",
    "refused: LeaseLength",
    "refused: NoRestartPoint",
    "refused: NoVolume",
    "refused: NotFenced",
    "refused: NotKept",
    "refused: PeerLost",
    "refused: Stopped",
    "refused: Volume",
    "refused: WrongPairState",
    "refused: WrongRole",
    "request: Io",
    "request: NotPrimary",
    "request: Stopped",
    "role: fenced to secondary",
    "role: primary to fenced",
    "role: primary to secondary",
    "role: secondary to primary",
    "step: Burst",
    "step: Command",
    "step: Cut",
    "step: Demote",
    "step: FullMedia",
    "step: HalfCut",
    "step: Heal",
    "step: Heartbeat",
    "step: Jump",
    "step: Kill",
    "step: Look",
    "step: LookBack",
    "step: LostWrite",
    "step: MediaErrors",
    "step: PowerLoss",
    "step: Promote",
    "step: Reopen",
    "step: Replace",
    "step: Request",
    "step: RestartPoint",
    "step: Rot",
    "step: SlowMedia",
    "step: Stall",
    "step: Start",
    "step: Stop",
    "step: Switch",
];

/// What takes hundreds of seeds: several features have to meet for it, or one has to come at a certain moment.
pub const RARE: &[&str] = &[
    "event: DelayGivenUp",
    "event: Mended",
    "event: TakeoverRefused",
    "event: TakingOver",
    "event: TrialDropped",
    "look: a fork",
    "look: before a copy",
    "pair: duplex-pending to initial-copy",
    "pair: duplex-pending to suspended",
    "pair: initial-copy to initial-copy",
    "pair: initial-copy to suspended",
    "pair: suspended to simplex",
    "pair: suspended to suspending",
    "pair: suspending to simplex",
    "refused: Behind",
    "refused: CannotTell",
    "refused: CopyInProgress",
    "refused: ForkInTheWay",
    "refused: ForkWouldBeLost",
    "refused: GenerationInUse",
    "refused: Leased",
    "refused: NotApplied",
    "refused: NothingReceived",
    "refused: PrimaryHeard",
];
