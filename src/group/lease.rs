//! Fencing by lease: a primary answers only as long as its peer has promised not to be promoted.
//!
//! The primary asks again and again; a lease runs from when it *asked*. The peer promises from when it *granted*, which is
//! later, and for a sixteenth longer. So the two clocks need not agree: it is enough that the primary's runs at least 16/17 as
//! fast as the peer's. What was promised is durable before it is granted, and a peer that is started anew counts from then.
//! After Gray and Cheriton, Leases (1989).
//!
//! How long a lease is goes in the stream; once that is known at the peer, questions and answers are numbers that overtake the
//! stream, so that a lease does not wait for data.

use super::Group;
use crate::{
    command::{CommandError, CommandId, CommandReply, LeaseStatus},
    format::{
        message::{LEASE_MILLIS_MAX, Lease},
        record::Kind,
    },
    output::{Event, Output},
    pair::Role,
    request::{Reply, RequestError, RequestId},
    testing::{Plant, planted},
    units::{Epoch, Monotonic, Now},
};
use alloc::{collections::VecDeque, format, string::String, vec::Vec};
use bytes::Bytes;

/// Leases that were asked for and not granted, at most.
const ASKED_MAX: usize = 8;
/// A lease is asked for so many times while one lasts.
const ASKS: u64 = 3;
/// What a promise is longer than its lease besides a sixteenth, for what is under way in the primary.
const GRACE_MICROS: u64 = 50_000;

/// The state of the lease.
#[derive(Default)]
pub(super) struct Leasing {
    /// Primary: the leases asked for and not granted, and when.
    asked: VecDeque<(u64, Monotonic)>,
    number: u64,
    /// Primary: the peer knows in this session how long a lease is.
    is_known: bool,
    /// Primary: when to ask again.
    ask_at: Monotonic,
    /// Primary: until when it may answer.
    until: Monotonic,
    /// Primary: whether the last event said that there is a lease; `None`: nothing was said yet.
    told: Option<bool>,
    /// Primary: when it is said that there is none, if nothing was said yet: the first one takes a moment.
    tell_at: Monotonic,
    /// Peer: how long a lease is, as said in this session.
    asked_millis: Option<u32>,
    /// Peer: what was asked for and is not granted yet.
    granting: Option<Lease>,
    /// Peer: the superblock that says how long promises are.
    stored: u64,
    /// Primary: reads that ended without a lease.
    withheld: Vec<(RequestId, Result<Reply, RequestError>)>,
    /// Peer: until when it must not be promoted.
    promised: Monotonic,
    /// Peer: the primary has stepped down in this session.
    is_released: bool,
    /// Peer: the primary wants to know when it is durable that this node does not count on leases any more.
    answer_due: bool,
    /// Primary: the superblock that says how long leases are.
    set: u64,
    /// Primary: the command that ends leases; the peer has been told, and has not answered.
    ending: Option<CommandId>,
}

impl Leasing {
    /// When a group is opened: a lease of so long may have been granted a moment ago.
    pub(super) fn after_restart(role: Role, millis: u32, now: Monotonic) -> Self {
        let is_primary = role == Role::Primary;
        let forgets = is_primary || planted(Plant::PromiseForgotten);
        let promised = if forgets { Monotonic(0) } else { promise(now, millis) };
        Self { promised, tell_at: first_lease(now, millis), ..Self::default() }
    }

    /// The session is over, or another begins: asks at once, and waits for nothing that was sent before.
    pub(super) fn forget_session(&mut self) {
        self.asked.clear();
        self.ask_at = Monotonic(0);
        (self.is_known, self.asked_millis) = (false, None);
        self.granting = None;
        self.is_released = false;
        self.answer_due = false;
    }

    /// The peer is no primary: nobody relies on what was promised.
    pub(super) fn release(&mut self) {
        self.promised = Monotonic(0);
    }

    /// This node relies on no promise that it has.
    pub(super) fn renounce(&mut self) {
        self.asked.clear();
        self.until = Monotonic(0);
        self.told = Some(true);
    }

    /// The command that ends leases; it will not be answered otherwise.
    pub(super) fn take_ending(&mut self) -> Option<CommandId> {
        self.ending.take()
    }

    /// Reads that were not answered; nobody will answer them otherwise.
    pub(super) fn take_withheld(&mut self) -> impl Iterator<Item = RequestId> + use<> {
        core::mem::take(&mut self.withheld).into_iter().map(|(id, _)| id)
    }
}

/// By when a peer that is there has granted the first one.
fn first_lease(now: Monotonic, millis: u32) -> Monotonic {
    now.after(u64::from(millis) * 1000)
}

/// Until when a lease that is granted now must be honoured.
fn promise(now: Monotonic, millis: u32) -> Monotonic {
    let micros = u64::from(millis) * 1000;
    if micros == 0 { Monotonic(0) } else { now.after(micros + micros / 16 + GRACE_MICROS) }
}

impl Group {
    pub(super) fn needs_lease(&self) -> bool {
        self.pair.lease_millis > 0 && self.pair.role == Role::Primary && self.pair.peer.is_some()
    }

    /// Whether this node may answer its hosts, as far as leases go.
    pub(super) fn is_leased(&self) -> bool {
        !self.needs_lease() || self.now.monotonic < self.leasing.until || planted(Plant::LeaseNotChecked)
    }

    /// An operator's command: `millis` 0 ends fencing by lease. `true` if it is done.
    pub(super) fn set_lease(&mut self, id: CommandId, millis: u32, force: bool) -> Result<bool, CommandError> {
        self.require_primary_pair()?;
        if millis > LEASE_MILLIS_MAX {
            return Err(CommandError::LeaseLength(millis));
        }
        if self.leasing.ending.is_some() {
            return Err(CommandError::InProgress("change of fencing"));
        }
        if millis > 0 && !self.peer.greeted {
            let hint = "the peer must be connected: without its promise this node would answer nothing";
            return Err(CommandError::WrongPairState { state: self.pair.state, hint });
        }
        if millis == 0 && self.needs_lease() && !force {
            // The peer may promote itself as long as it believes that this node needs its promise.
            if !self.peer.greeted {
                return Err(CommandError::CannotTell);
            }
            self.leasing.number += 1;
            self.send_message(Kind::LeaseAsk, Lease { number: self.leasing.number, millis }.encode());
            self.leasing.ending = Some(id);
            return Ok(false);
        }
        if millis == 0 {
            self.release_peer(millis);
        }
        self.change_lease(millis);
        Ok(true)
    }

    fn change_lease(&mut self, millis: u32) {
        if millis == 0 || self.pair.lease_millis == 0 {
            self.leasing.renounce();
            // What is not held yet is not lost.
            self.leasing.told = (millis == 0).then_some(true);
            self.leasing.tell_at = first_lease(self.now.monotonic, millis);
        }
        self.pair.lease_millis = millis;
        // The peer must not count on what this node could forget.
        self.leasing.set = self.superblock.request();
        self.leasing.forget_session();
        // Who waited for a lease only waits no more.
        self.answer_waiting();
        self.again = true;
    }

    /// The peer has noted that no lease will be needed any more.
    fn lease_ended(&mut self) {
        if let Some(id) = self.leasing.ending.take() {
            self.release_peer(0);
            self.change_lease(0);
            let count = self.superblock.request();
            self.answer_when_stored(id, count, CommandReply::Done);
        }
    }

    /// The session is over, or another begins.
    pub(super) fn forget_lease_session(&mut self) {
        self.leasing.forget_session();
        if let Some(id) = self.leasing.ending.take() {
            self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::PeerLost) });
        }
    }

    /// Tells the peer that this node relies on no promise; leases are to be so long from now on.
    pub(super) fn release_peer(&mut self, millis: u32) {
        if self.needs_lease() && self.peer.greeted {
            self.send_message(Kind::LeaseAsk, Lease { number: 0, millis }.encode());
        }
    }

    /// After a promotion of a node whose last record was of `epoch`, wherever it has gone back to: unless the other node has stepped
    /// down for this one, nobody may be there who could grant a lease. But a node that was itself the primary of that epoch is
    /// believed to be fenced by who was its standby, and stays so.
    pub(super) fn lease_after_promotion(&mut self, epoch: Epoch) {
        if !self.leasing.is_released && self.pair.lease_millis > 0 && self.pair.former_epoch != epoch {
            self.pair.lease_millis = 0;
            self.event(Event::LeaseDropped);
        }
        let tell_at = first_lease(self.now.monotonic, self.pair.lease_millis);
        self.leasing = Leasing { tell_at, ..Leasing::default() };
    }

    /// Asks for leases, tells what became of them, and grants what the peer asked for.
    pub(super) fn keep_lease(&mut self) {
        let (now, held) = (self.now.monotonic, self.is_leased());
        let is_due = held || self.leasing.told.is_some() || now >= self.leasing.tell_at;
        if self.leasing.told != Some(held) && is_due {
            self.leasing.told = Some(held);
            if self.needs_lease() {
                self.event(if held { Event::LeaseHeld } else { Event::LeaseLost });
            }
        }
        if held {
            for (id, result) in core::mem::take(&mut self.leasing.withheld) {
                self.answer(id, result);
            }
        }
        let asks = self.needs_lease() && self.peer.greeted && self.leasing.ending.is_none();
        if asks && self.superblock.is_durable(self.leasing.set) && now >= self.leasing.ask_at {
            let lease = &mut self.leasing;
            lease.number += 1;
            lease.asked.push_back((lease.number, now));
            if lease.asked.len() > ASKED_MAX {
                lease.asked.pop_front();
            }
            lease.ask_at = now.after(u64::from(self.pair.lease_millis) * 1000 / ASKS);
            let ask = Lease { number: lease.number, millis: self.pair.lease_millis };
            if lease.is_known {
                self.outputs.push_back(Output::LeaseMark(ask.number));
            } else {
                self.send_message(Kind::LeaseAsk, ask.encode());
            }
        }
        let is_stored = self.superblock.is_durable(self.leasing.stored);
        if let Some(lease) = self.leasing.granting.take_if(|_| is_stored) {
            self.grant(lease);
        }
        if is_stored && core::mem::take(&mut self.leasing.answer_due) {
            self.send_message(Kind::LeaseAsk, Lease { number: 0, millis: 0 }.encode());
        }
    }

    /// A host's read has ended. What it read may be out of date if this node has no lease now.
    pub(super) fn read_ended(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if self.is_leased() || self.stopped.is_some() {
            self.answer(id, result);
        } else {
            self.leasing.withheld.push((id, result));
        }
    }

    /// When something is to be done about it.
    pub(super) fn lease_timeout(&self) -> Option<Monotonic> {
        let asks = self.needs_lease() && self.peer.greeted && self.leasing.ending.is_none();
        let ask = (asks && self.superblock.is_durable(self.leasing.set)).then_some(self.leasing.ask_at);
        let lost = match self.leasing.told {
            Some(true) => Some(self.leasing.until),
            Some(false) => None,
            None => Some(self.leasing.tell_at),
        };
        let lost = lost.filter(|_| self.needs_lease());
        ask.into_iter().chain(lost).min()
    }

    /// The peer's mark: a question, if it is the primary, else an answer.
    pub fn handle_lease_mark(&mut self, now: Now, number: u64) {
        self.now = now;
        if self.stopped.is_some() || !self.peer.connected {
            return;
        }
        match (self.pair.role, self.leasing.asked_millis) {
            (Role::Primary, _) => self.lease_granted(number),
            (_, Some(millis)) if self.peer.greeted => self.lease_wanted(Lease { number, millis }),
            _ => {}
        }
    }

    /// On the peer: the primary asks for a lease, or says that it relies on none any more.
    pub(super) fn lease_asked(&mut self, payload: &Bytes) -> Result<(), String> {
        let lease = Lease::parse(payload).map_err(|error| format!("{error}"))?;
        if self.pair.role == Role::Primary && (lease.number, lease.millis) == (0, 0) {
            self.lease_ended();
            return Ok(());
        }
        if self.pair.role == Role::Primary || !self.peer.greeted {
            return Err(format!("A lease was asked for, but this node is {} and sent no invitation", self.pair.role));
        }
        self.leasing.is_released = lease.number == 0;
        self.leasing.asked_millis = (lease.number > 0 && lease.millis > 0).then_some(lease.millis);
        if self.leasing.is_released {
            self.leasing.release();
            self.leasing.granting = None;
        } else if lease.millis == 0 {
            // What was promised stays promised; but a silent primary will be fenced no more.
            self.leasing.granting = None;
            self.leasing.answer_due = true;
            self.disarm_takeover();
            self.leasing.stored = self.superblock.request();
            return Ok(());
        }
        self.lease_wanted(lease);
        Ok(())
    }

    fn lease_wanted(&mut self, lease: Lease) {
        if self.is_promoting() {
            return;
        }
        // A longer one that was granted before is remembered until it is over.
        let longer = self.leasing.promised > promise(self.now.monotonic, lease.millis);
        if lease.millis > self.pair.lease_millis || (lease.millis < self.pair.lease_millis && !longer) {
            self.pair.lease_millis = lease.millis;
            self.leasing.stored = self.superblock.request();
        }
        if lease.number > 0 {
            self.leasing.granting = Some(lease);
        }
        self.again = true;
    }

    fn grant(&mut self, lease: Lease) {
        if lease.millis == 0 || self.pair.role == Role::Primary || self.is_promoting() {
            return;
        }
        self.leasing.promised = self.leasing.promised.max(promise(self.now.monotonic, lease.millis));
        // Should this node be the primary later in the session, its own numbers are higher.
        self.leasing.number = self.leasing.number.max(lease.number);
        self.arm_takeover();
        self.outputs.push_back(Output::LeaseMark(lease.number));
    }

    /// On the primary: the peer has granted one.
    fn lease_granted(&mut self, number: u64) {
        let asked = self.leasing.asked.iter().position(|(asked, _)| *asked == number);
        // One that nobody waits for any more is left alone.
        if let Some((_, at)) = asked.and_then(|index| self.leasing.asked.drain(..=index).next_back()) {
            let at = if planted(Plant::LeaseFromAnswer) { self.now.monotonic } else { at };
            self.leasing.is_known = true;
            self.leasing.until = self.leasing.until.max(at.after(u64::from(self.pair.lease_millis) * 1000));
            // They may have waited for nothing else since an acknowledgement that came too late.
            self.answer_waiting();
            self.again = true;
        }
    }

    /// Refuses to promote this node while the primary may still answer.
    pub(super) fn check_promise(&self) -> Result<(), CommandError> {
        let left = self.leasing.promised.0.saturating_sub(self.now.monotonic.0);
        if left == 0 || planted(Plant::PromiseNotKept) {
            Ok(())
        } else {
            Err(CommandError::Leased { seconds: left.div_ceil(1_000_000) })
        }
    }

    /// Until when this node must not be promoted.
    pub(super) fn promised_until(&self) -> Monotonic {
        self.leasing.promised
    }

    /// As an operator sees it.
    pub(super) fn lease_status(&self, now: Now) -> Option<LeaseStatus> {
        let end = if self.pair.role == Role::Primary { self.leasing.until } else { self.leasing.promised };
        (self.pair.lease_millis > 0).then(|| LeaseStatus {
            millis: self.pair.lease_millis,
            left_millis: end.0.saturating_sub(now.monotonic.0) / 1000,
        })
    }
}

const _: () = assert!(LEASE_MILLIS_MAX as u64 * 1000 < u64::MAX / 32);
