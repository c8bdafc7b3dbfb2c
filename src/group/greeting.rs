//! How the two nodes of a pair find out where they stand when a session comes up.
//!
//! Each sends a greeting: role, epochs, last record. The epochs tell a short gap (send from the journal), a long gap
//! (copy by bitmap), a fork (join what both wrote, then copy) and a stranger (copy anew) apart. Who meets a higher epoch
//! stops serving. Only the primary decides; the secondary follows.

use super::Group;
use crate::{
    format::{
        message::{Greeting, Range},
        record::{Kind, Record},
    },
    output::{Event, Output},
    pair::{Cause, PairState, Role},
    request::RequestError,
    stream_state::{EpochStart, StreamState},
    testing::{Plant, planted},
    units::{Epoch, Monotonic, Now, Position, Seq, VolumeId},
};
use alloc::{format, string::String};
use bytes::Bytes;

/// How long a primary that was opened waits for its peer before it serves: the peer may have been promoted.
const CONFIRM_MICROS: u64 = 3_000_000;

/// Whether a primary knows that it may serve.
#[derive(Default)]
pub(super) struct Confirmation {
    /// Until when to wait.
    pub(super) until: Option<Monotonic>,
}

impl Confirmation {
    /// A primary with a peer was opened.
    pub(super) fn waiting(now: Monotonic) -> Self {
        Self { until: Some(now.after(CONFIRM_MICROS)) }
    }
}

enum Place {
    /// The peer has this record and no other after it.
    Prefix(Seq),
    /// The peer has what is not part of the history; this is the last common record.
    Fork(Position),
    /// Nothing is known of any of the peer's epochs.
    Stranger,
}

impl Group {
    /// Whether requests may be served.
    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmation.until.is_none()
    }

    /// When the wait for the peer ends.
    pub(super) fn confirm_timeout(&self) -> Option<Monotonic> {
        self.confirmation.until
    }

    /// Ends the wait for the peer when it has been long enough.
    pub(super) fn confirm(&mut self) {
        if self.confirmation.until.is_some_and(|until| self.now.monotonic >= until) {
            self.confirmation.until = None;
        }
    }

    /// A session to the peer is up.
    pub fn handle_peer_up(&mut self, now: Now) {
        self.now = now;
        self.silence.begin(now.monotonic);
        self.peer.forget_session();
        self.forget_lease_session();
        self.copy.stop();
        self.comparisons.forget();
        self.ask_anew();
        self.give_up_draining();
        self.peer.connected = self.pair.peer.is_some();
        self.peer.greeting_due = self.peer.connected;
    }

    /// The session to the peer is over.
    pub fn handle_peer_down(&mut self, now: Now) {
        self.now = now;
        self.silence.begin(now.monotonic);
        self.peer.forget_session();
        self.forget_lease_session();
        self.copy.stop();
        self.comparisons.forget();
        self.ask_anew();
        self.give_up_draining();
        self.answer_waiting();
    }

    /// Greets the peer. A secondary first makes durable what it has, because the primary takes the last record in the
    /// greeting for an acknowledgement. Whoever is being promoted invites nobody to send anything.
    pub(super) fn greet(&mut self) {
        let is_durable = self.durable == self.journal.last() || planted(Plant::GreetedUndurable);
        let settled = self.pair.role != Role::Secondary || is_durable && !self.is_promoting();
        if !self.peer.greeting_due || !settled {
            return;
        }
        self.peer.greeting_due = false;
        let leaves_behind = self.is_tracking();
        self.send_greeting(leaves_behind);
        self.tell_fork();
    }

    /// Tells the peer that nothing is sent to it any more: else it would take what it has for all there is.
    pub(super) fn leave_behind(&mut self) {
        if self.pair.role == Role::Primary && self.peer.connected && self.peer.greeted {
            self.send_greeting(true);
        }
    }

    fn send_greeting(&mut self, leaves_behind: bool) {
        let greeting = Greeting {
            role: self.pair.role,
            copying: self.stream.copying,
            leaves_behind,
            generation: self.stream.generation,
            head: self.stream.last,
            restart_point: self
                .stream
                .restart_point
                .as_ref()
                .filter(|point| point.info.is_declared())
                .map(|point| (point.info.generation, point.info.at)),
            volumes: self.volume_digest(),
            lease_millis: if self.needs_lease() { self.pair.lease_millis } else { 0 },
            epochs: self.stream.epochs.clone(),
        };
        self.send_message(Kind::Greeting, greeting.encode());
    }

    pub(super) fn send_message(&mut self, kind: Kind, payload: Bytes) {
        self.send_about(kind, Range { volume: VolumeId(0), offset: 0, size: 0 }, payload);
    }

    /// Sends a frame that is not journalled, about a range of a volume.
    pub(super) fn send_about(&mut self, kind: Kind, range: Range, payload: Bytes) {
        let mut record = Record { at: self.stream.last, ..self.new_record(kind) }.carrying(&payload);
        (record.volume, record.offset, record.size) = (range.volume, range.offset, range.size);
        self.send_frame(&record, payload, None);
    }

    fn volume_digest(&self) -> u32 {
        self.volumes.values().fold(0, |digest, volume| {
            let digest = crc32c::crc32c_append(digest, &volume.spec.id.0.to_le_bytes());
            let digest = crc32c::crc32c_append(digest, &volume.spec.size.to_le_bytes());
            crc32c::crc32c_append(digest, &volume.spec.logical_block_size.to_le_bytes())
        })
    }

    /// The epoch in which this node is.
    pub fn epoch(&self) -> Epoch {
        self.stream.epochs.last().map_or(self.stream.last.epoch, |start| start.epoch)
    }

    /// The peer's greeting.
    pub(super) fn greeted(&mut self, greeting: Greeting) -> Result<(), String> {
        if self.is_promoting() {
            // It takes nothing from anybody until it is the primary, and greets anew then.
            return Ok(());
        }
        let theirs = greeting.epochs.last().map_or(greeting.head.epoch, |start| start.epoch);
        let ours = self.epoch();
        if greeting.volumes != self.volume_digest() {
            // Who meets a higher epoch serves no more, whatever else is amiss.
            if self.pair.role == Role::Primary && theirs > ours {
                self.meet_epoch(theirs);
                self.fence(&greeting);
            }
            // The session stays, because through it a volume is made as large as the peer's.
            self.peer.connected = false;
            let reason = "The peer's volumes are not the same (number, size or logical block); if a resize was \
                          interrupted, repeat it, else delete the pair and create it anew";
            self.event(Event::PeerRefused { reason: reason.into() });
            return Ok(());
        }
        if self.peer.greeted && self.pair.role == Role::Primary && greeting.role == Role::Secondary {
            return Err("A standby greets once in a session".into());
        }
        self.meet_epoch(theirs);
        self.peer.greeted = true;
        self.silence.end();
        self.peer.is_blank = greeting.head == StreamState::new().last && !greeting.copying;
        if greeting.role == Role::Primary {
            self.peer.primary_head = greeting.head;
            self.note_left_behind(greeting.leaves_behind);
            if greeting.lease_millis == 0 {
                self.disarm_takeover();
            }
        } else {
            self.leasing.release();
        }
        let kept = greeting
            .restart_point
            .filter(|(_, at)| self.stream.shared_end_of(at.epoch, &greeting.epochs).is_some_and(|end| at.seq <= end));
        self.peer.restart_point = kept.map(|(generation, _)| generation);
        self.event(Event::PeerGreeted { head: greeting.head });
        let is_deaf = planted(Plant::FenceIgnored) || planted(Plant::OldEpochTaken);
        match (self.pair.role, greeting.role) {
            (Role::Primary, _) if theirs > ours && !is_deaf => self.fence(&greeting),
            (Role::Primary, Role::Primary) if theirs == ours => {
                return Err(format!("Both nodes are primary in epoch {ours}; demote one of them"));
            }
            // A former primary fences itself when it hears of our epoch.
            (Role::Primary, Role::Primary | Role::Fenced) => self.confirmation.until = None,
            (Role::Primary, Role::Secondary) => {
                self.confirmation.until = None;
                self.decide(&greeting);
            }
            (Role::Secondary, Role::Primary) if theirs < ours && !planted(Plant::OldEpochTaken) => {
                return Err(format!("The peer is primary in epoch {theirs}, but this node has seen epoch {ours}"));
            }
            (Role::Secondary, Role::Primary) => {
                self.peer.unanswered = Some(greeting);
                self.tell_fork();
            }
            (Role::Fenced, Role::Primary) => self.pair.fork = self.common(&greeting),
            (Role::Secondary | Role::Fenced, _) => {}
        }
        Ok(())
    }

    /// On the secondary: whether the primary goes on without it.
    pub(super) fn note_left_behind(&mut self, is_left: bool) {
        if self.pair.left_behind != is_left {
            self.pair.left_behind = is_left;
            self.superblock.wanted = true;
        }
    }

    /// An epoch is the peer's: never open it here.
    fn meet_epoch(&mut self, theirs: Epoch) {
        if theirs > self.pair.peer_epoch {
            self.pair.peer_epoch = theirs;
            self.superblock.request_first();
        }
    }

    /// The last record that the peer's history and ours share, as far as it is known.
    pub(super) fn common(&self, greeting: &Greeting) -> Position {
        let ours = &self.stream.epochs;
        let shared = ours.iter().rev().find(|start| greeting.epochs.contains(start));
        let Some(shared) = shared else {
            return Position::default();
        };
        let here = self.stream.end_of(shared.epoch).unwrap_or_default();
        let there = end_in(&greeting.epochs, greeting.head, shared.epoch).unwrap_or_default();
        Position { epoch: shared.epoch, seq: here.min(there) }
    }

    /// Somebody else is primary in a higher epoch: this node serves no more.
    fn fence(&mut self, greeting: &Greeting) {
        self.pair.fork = self.common(greeting);
        self.pair.role = Role::Fenced;
        self.confirmation.until = None;
        self.lose_anchor();
        self.copy.stop();
        for id in self.waiting.take_all().into_iter().chain(self.leasing.take_withheld()) {
            self.answer(id, Err(RequestError::NotPrimary));
        }
        self.superblock.wanted = true;
        self.event(Event::RoleChanged { role: Role::Fenced, epoch: self.epoch() });
    }

    /// Decides how the secondary that greets is brought up to date.
    fn decide(&mut self, greeting: &Greeting) {
        if matches!(self.pair.state, PairState::Suspended(Cause::Command | Cause::MediumError)) {
            return;
        }
        match self.place(greeting) {
            Place::Prefix(seq) if self.is_tracking() => {
                let known = seq >= self.pair.synced.seq && self.pair.state != PairState::InitialCopy;
                self.prepare_copy(!known);
            }
            Place::Prefix(seq) if self.covers(seq) && self.peer.unvoided == 0 => {
                let order = self.journal.order_of(seq);
                let dirty = self.volumes.values().any(|volume| volume.table.dirty_bytes() > 0);
                match (dirty, greeting.copying) {
                    (false, false) => {
                        self.peer.stream_after(order);
                        self.set_pair_state(PairState::Duplex);
                        // The greeting acknowledges what it names.
                        self.answer_waiting();
                    }
                    (_, true) => self.continue_copy(order),
                    (true, false) => {
                        self.note_lacking(Position { epoch: greeting.head.epoch, seq });
                        self.prepare_copy(false);
                    }
                }
            }
            // The peer lists what it has; see take_ranges.
            Place::Fork(at) => self.peer.fork = Some(at),
            Place::Prefix(_) | Place::Stranger => self.prepare_copy(true),
        }
    }

    fn place(&self, greeting: &Greeting) -> Place {
        let head = greeting.head;
        match self.stream.shared_end_of(head.epoch, &greeting.epochs) {
            Some(end) if head.seq <= end => Place::Prefix(head.seq),
            Some(end) => Place::Fork(Position { epoch: head.epoch, seq: end }),
            // It was started anew, or promoted, since the histories parted.
            None => match self.common(greeting) {
                common if common == Position::default() => Place::Stranger,
                common => Place::Fork(common),
            },
        }
    }

    /// Whether the journal has every record after `seq`. What came by a copy is not in it as records: there is a gap then, which what
    /// this node wrote past a fork, with the same numbers, does not fill.
    pub(super) fn covers(&self, seq: Seq) -> bool {
        let live = self.journal.after(self.journal.tail_order).map(|(_, entry)| entry);
        let records =
            live.filter(|entry| !entry.is_void && entry.record.kind.is_sequenced()).map(|entry| entry.record.at);
        let seqs = records.filter(|at| self.stream.end_of(at.epoch).is_some_and(|end| at.seq <= end)).map(|at| at.seq);
        let mut run: Option<(Seq, Seq)> = None;
        for next in seqs {
            let first = run.filter(|(_, last)| next.0 == last.0 + 1).map_or(next, |(first, _)| first);
            run = Some((first, next));
        }
        let last = self.stream.last.seq;
        run.filter(|(_, end)| *end == last).map_or(seq >= last, |(first, _)| first.0 <= seq.0 + 1)
    }

    /// Ends the session, so that both nodes greet again.
    pub(super) fn greet_again(&mut self) {
        // Also where the peer's volumes did not match: it must hear of another epoch or role all the same.
        if self.pair.peer.is_some() {
            self.outputs.push_back(Output::Reconnect);
        }
    }
}

/// The last record of an epoch in a history that ends with `head`.
fn end_in(epochs: &[EpochStart], head: Position, epoch: Epoch) -> Option<Seq> {
    let index = epochs.iter().position(|start| start.epoch == epoch)?;
    let next = epochs.get(index + 1).map(|start| Seq(start.first.0.saturating_sub(1)));
    Some(next.unwrap_or(head.seq))
}
