//! A session between two nodes over one or two links, without I/O.
//!
//! Call order: `handle_*`, `send`, `mark_durable`, `consumed` in any order; then [`Session::poll_event`] and, for each
//! link that can send, [`Session::poll_transmit`] until they give `None`; then [`Session::poll_timeout`].
//!
//! A session has two names, one chosen by each end. It begins when an end has seen a datagram with both, lives through
//! the loss of links, and ends when the peer shows another name (it was started anew) or nothing was heard for
//! [`SessionOptions::timeout_micros`]. Within a session every frame arrives once and in order; across sessions nothing
//! is kept, and the layers above find out by themselves what must be sent again.

mod links;

use crate::{
    ChannelId, Frame, LinkState, LinkStatus, Mode, Received, SessionName, SessionStatus,
    came::Came,
    line::Link,
    marks::Marks,
    packet::{self, Acknowledgement, Body, Header, PacketError},
    parity,
    proof::Proof,
    receiver::Receiver,
    sender::Sender,
    testing::{Plant, planted},
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Something arrived: it is acknowledged after this at the latest, in microseconds.
const ACKNOWLEDGE_MICROS: u64 = 1_000;
/// So many symbols are acknowledged at once.
const ACKNOWLEDGE_COUNT: u32 = 48;
/// What was news is said once more after a quarter of the round trip within these bounds, if there is none since, in microseconds:
/// else whoever waits for what was lost would wait for the next keepalive.
const REPEAT_MICROS: std::ops::RangeInclusive<u64> = 2_000..=10_000;
/// A link is never silent for longer.
const KEEPALIVE_MICROS: u64 = 40_000;
/// What counts as a link's loss before it was measured: rather a symbol too many than a round trip more.
const INITIAL_LOSS: f64 = 0.02;

/// How a session behaves.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// How blocks are spread over the links.
    pub mode: Mode,
    /// The session ends when nothing was heard for so long, in microseconds.
    pub timeout_micros: u64,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { mode: Mode::Auto, timeout_micros: 10_000_000 }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A session has begun.
    Up {
        /// Its name.
        session: SessionName,
    },
    /// The session is over.
    Down {
        /// Why.
        reason: &'static str,
    },
    /// A frame has come.
    Frame(Received),
    /// The peer has made something durable.
    Durable {
        /// The channel.
        channel: ChannelId,
        /// Up to where.
        value: u64,
    },
    /// A link changed.
    Link {
        /// Which.
        link: usize,
        /// What it is now.
        state: LinkState,
    },
    /// [`Session::send`] has room again.
    Writable,
}

/// There is no room, or no session: the frame comes back.
#[derive(Debug)]
pub struct Full(pub Frame);

/// See the module.
pub struct Session {
    options: SessionOptions,
    own: u64,
    peer: Option<u64>,
    up: bool,
    links: [Link; 2],
    /// Whether what is sent over each link arrives.
    proofs: [Proof; 2],
    link_count: usize,
    sender: Sender,
    receiver: Receiver,
    marks: Marks,
    peer_marks: BTreeMap<ChannelId, u64>,
    ack_at: Option<u64>,
    /// When one was made.
    acked_at: u64,
    repeat_at: Option<u64>,
    unacknowledged: u32,
    acks: [Option<Acknowledgement>; 2],
    hello: [bool; 2],
    was_full: bool,
    heard: u64,
    events: VecDeque<SessionEvent>,
}

impl Session {
    /// A session with `link_count` (1 or 2) links. `name`: random, not 0.
    pub fn new(options: SessionOptions, name: u64, link_count: usize) -> Self {
        Self {
            options,
            own: name.max(1),
            peer: None,
            up: false,
            links: [Link { loss: INITIAL_LOSS, ..Link::default() }; 2],
            proofs: Default::default(),
            link_count: link_count.clamp(1, 2),
            sender: Sender::new(),
            receiver: Receiver::new(),
            marks: Marks::default(),
            peer_marks: BTreeMap::new(),
            ack_at: None,
            acked_at: 0,
            repeat_at: None,
            unacknowledged: 0,
            acks: [None, None],
            hello: [false; 2],
            was_full: false,
            heard: 0,
            events: VecDeque::new(),
        }
    }

    /// The session that is up.
    pub fn name(&self) -> Option<SessionName> {
        self.peer.filter(|_| self.up).map(|peer| SessionName(self.own ^ peer))
    }

    /// Takes a frame to send.
    pub fn send(&mut self, frame: Frame) -> Result<(), Full> {
        if !self.up || !self.sender.has_room() {
            self.was_full = true;
            return Err(Full(frame));
        }
        self.sender.push(frame);
        Ok(())
    }

    /// Tells the peer that something is durable here. `value` never falls within a session.
    pub fn mark_durable(&mut self, now: u64, channel: ChannelId, value: u64) {
        if self.up {
            self.marks.set(channel, value);
            self.ack_at = Some(now);
        }
    }

    /// The application has used so many bytes of frames.
    pub fn consumed(&mut self, bytes: u64) {
        self.receiver.consumed(bytes);
    }

    /// What a link is thought to carry, in bytes a second, if that is known.
    pub fn handle_rate(&mut self, link: usize, rate: Option<u64>) {
        self.links[link].rate = rate;
    }

    /// Changes how blocks are spread over the links, from the next block on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.options.mode = mode;
    }

    /// Ends the session and begins another.
    pub fn restart(&mut self, now: u64) {
        self.end(now, "ended by this node");
    }

    /// The driver's connection over a link came or went.
    pub fn handle_link(&mut self, now: u64, link: usize, open: bool) {
        self.links[link].open = open;
        self.proofs[link] = Proof::default();
        if open {
            self.links[link].sent = 0;
            self.hello[link] = true;
        } else {
            // Nothing waits for a link that cannot send.
            (self.hello[link], self.acks[link]) = (false, None);
            self.link_dead(link);
        }
        let _ = now;
    }

    /// A datagram came. An error is the peer's fault; one that is not [`PacketError::Foreign`] ends the session.
    pub fn handle_datagram(&mut self, now: u64, link: usize, bytes: &Bytes) -> Result<(), PacketError> {
        let (header, body) = packet::parse(bytes)?;
        if header.from == 0 || link >= self.link_count {
            return Ok(());
        }
        if self.peer != Some(header.from) {
            // An old datagram of an earlier session names an earlier name of ours, or none. As long as no session is up, it may
            // be the other end that has been misled by one: then the names that come last count, or both would wait for ever.
            if self.up && header.to != self.own && header.to != 0 {
                return Ok(());
            }
            if self.up {
                self.end(now, "the peer was started anew");
            }
            self.peer = Some(header.from);
            self.hello = [true; 2];
            // Another peer counts from another number.
            self.links.iter_mut().for_each(|line| (line.came, line.told) = (Came::default(), (0, 0)));
        }
        self.heard(now, link, &header);
        if header.to != self.own {
            self.hello[link] = true;
            return Ok(());
        }
        if !self.up {
            self.up = true;
            self.hello = [true; 2];
            self.events.push_back(SessionEvent::Up { session: SessionName(self.own ^ header.from) });
        }
        match body {
            Body::Hello => {}
            Body::Acknowledgement(ack) => self.handle_acknowledgement(now, link, &ack),
            Body::Symbol(symbol) => {
                if self.receiver.handle(now, symbol, self.rtt()).is_err() {
                    self.end(now, "the peer broke the protocol");
                    return Err(PacketError::Field("symbol"));
                }
                while let Some(frame) = self.receiver.pop() {
                    self.events.push_back(SessionEvent::Frame(frame));
                }
                self.unacknowledged += 1;
                let at = if self.unacknowledged >= ACKNOWLEDGE_COUNT { now } else { now + ACKNOWLEDGE_MICROS };
                self.ack_at = Some(self.ack_at.map_or(at, |due| due.min(at)));
            }
        }
        Ok(())
    }

    fn heard(&mut self, now: u64, link: usize, header: &Header) {
        self.heard = now;
        let line = &mut self.links[link];
        line.heard = now;
        if !line.alive || line.is_silent {
            line.back_at = now;
            self.proofs[link].renew(now);
            // The peer uses the link when it hears that what it sends arrives.
            self.hello[link] = true;
        }
        (line.overtaken, line.is_silent) = ((0, now), false);
        line.came.take(header.sequence);
        (line.echo, line.echo_at) = (header.time, now);
        if !line.alive {
            (line.alive, line.up_at) = (true, now);
            self.events.push_back(SessionEvent::Link { link, state: LinkState::Up });
        }
        let other = &mut self.links[1 - link];
        let (count, since) = other.overtaken;
        other.overtaken = if count == 0 { (1, now) } else { (count.saturating_add(1), since) };
    }

    fn handle_acknowledgement(&mut self, now: u64, link: usize, ack: &Acknowledgement) {
        self.links[link].measure(now, ack);
        let farther = self.farther(link);
        let [first, second] = &mut self.proofs;
        let (proof, other) = if link == 0 { (first, second) } else { (second, first) };
        if ack.echo != 0 && ack.echo <= now && proof.arrived(now, ack.echo, other, farther) {
            self.links[link].back_at = now;
        }
        let rtts = [0, 1].map(|link| self.rtt_of(link));
        let over = self.links_in_turn().unwrap_or([link; 2]);
        self.sender.acknowledged(now, ack, rtts, over);
        for (channel, value) in &ack.marks {
            // Bounded: a peer has no more channels than this node has groups; it cannot make us remember more.
            if self.peer_marks.len() >= 4096 && !self.peer_marks.contains_key(channel) {
                continue;
            }
            let known = self.peer_marks.entry(*channel).or_default();
            if *value > *known {
                *known = *value;
                self.events.push_back(SessionEvent::Durable { channel: *channel, value: *value });
            }
        }
        if self.was_full && self.sender.has_room() {
            self.was_full = false;
            self.events.push_back(SessionEvent::Writable);
        }
    }

    /// The time that [`Session::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: u64) {
        for link in 0..self.link_count {
            // Judged here, when everything that has come was taken: after a stall of this process what came over one link is taken
            // before what came over the other. What the link carried goes over the other, and nothing over it until it is heard.
            if self.is_overtaken(link) {
                self.links[link].is_silent = true;
                self.sender.link_lost(link);
            } else if self.is_doubtful(link) {
                self.proofs[link].doubt();
                self.sender.link_lost(link);
            }
            let line = self.links[link];
            if line.alive && now >= line.heard + self.silence(link) {
                self.link_dead(link);
            }
            if line.open && now >= line.sent + KEEPALIVE_MICROS {
                self.hello[link] = true;
            }
        }
        if self.up && now >= self.heard + self.options.timeout_micros {
            self.end(now, "nothing was heard from the peer");
        }
        if !self.up {
            return;
        }
        self.sender.release(now);
        let rtt = self.rtt();
        if self.receiver.timeout().is_some_and(|at| now >= at) {
            self.ack_at = Some(now);
        }
        if let Some(links) = self.links_in_turn() {
            self.sender.probe(now, [0, 1].map(|link| self.rtt_of(link)), links);
        }
        let is_due = |at: Option<u64>| at.is_some_and(|at| now >= at);
        let heard = self.are_heard();
        let is_idle = |link: usize| heard[link] && self.hello[link] && self.acks[link].is_none();
        // The peer measures its round trips by them, also who only receives.
        let is_long_ago = now >= self.acked_at + KEEPALIVE_MICROS;
        if is_due(self.ack_at) || is_due(self.repeat_at) || is_long_ago || (0..self.link_count).any(is_idle) {
            let wait = (rtt / 4).clamp(*REPEAT_MICROS.start(), *REPEAT_MICROS.end());
            self.repeat_at = self.ack_at.map(|_| now + wait);
            self.make_acknowledgement(now);
        }
    }

    fn make_acknowledgement(&mut self, now: u64) {
        (self.ack_at, self.acked_at) = (None, now);
        self.unacknowledged = 0;
        let mut ack = Acknowledgement::default();
        self.receiver.tell(now, self.rtt(), &mut ack);
        let live = self.live();
        if live != [false; 2] {
            // The last acknowledgement waits for room on each link: what this one tells comes in its place.
            if (0..2).all(|link| !live[link] || self.acks[link].is_some())
                && let Some(unsent) = self.acks.iter().flatten().next()
            {
                self.marks.untold(&unsent.marks);
            }
            ack.marks = self.marks.tell();
        }
        let heard = self.are_heard();
        // Over a link in doubt only as often as a hello, which it stands for: what the peer says of it ends the doubt.
        for link in (0..2).filter(|link| live[*link] || heard[*link] && self.hello[*link]) {
            let unsent = self.acks[link].take().unwrap_or_default();
            self.acks[link] = Some(ack.clone().asking_too(unsent.lacking));
        }
    }

    /// When [`Session::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<u64> {
        let mut at: Vec<u64> = Vec::new();
        for (link, line) in self.links.iter().enumerate().take(self.link_count) {
            // What waits already waits for room, not for time.
            if line.open && !self.hello[link] {
                at.push(line.sent + KEEPALIVE_MICROS);
            }
            if line.alive {
                at.push(line.heard + self.silence(link));
            }
            if self.is_overtaken(link) || self.is_doubtful(link) {
                at.push(self.links[1 - link].heard);
            }
        }
        if self.up {
            at.push(self.heard + self.options.timeout_micros);
            at.extend(self.ack_at);
            at.push(self.acked_at + KEEPALIVE_MICROS);
            at.extend(self.sender.held_until());
            at.extend(self.repeat_at);
            at.extend(self.receiver.timeout());
            at.extend(self.best_link().and_then(|_| self.sender.timeout([0, 1].map(|link| self.rtt_of(link)))));
        }
        at.into_iter().min()
    }

    /// The next datagram for a link that can send.
    pub fn poll_transmit(&mut self, now: u64, link: usize) -> Option<Bytes> {
        if !self.links[link].open {
            return None;
        }
        let body = self.next_body(now, link)?;
        let line = &mut self.links[link];
        line.sequence = line.sequence.wrapping_add(1);
        line.sent = now;
        self.proofs[link].sent(now);
        self.hello[link] = false;
        let header =
            Header { sequence: line.sequence, from: self.own, to: self.peer.unwrap_or_default(), time: now.max(1) };
        let bytes = packet::encode(&header, &body);
        line.bytes += bytes.len() as u64;
        line.load.add(now, bytes.len());
        Some(bytes)
    }

    fn next_body(&mut self, now: u64, link: usize) -> Option<Body> {
        if self.up {
            if let Some(mut ack) = self.acks[link].take() {
                let line = &self.links[link];
                (ack.echo, ack.hold) = (line.echo, now.saturating_sub(line.echo_at).min(u32::MAX.into()) as u32);
                (ack.received, ack.lost) = (line.came.received, line.came.lost());
                if self.marks.has_more() {
                    let at = now + ACKNOWLEDGE_MICROS;
                    self.ack_at = Some(self.ack_at.map_or(at, |due| due.min(at)));
                }
                return Some(Body::Acknowledgement(ack));
            }
            let live = self.live();
            if live[link]
                && let Some(symbol) = self.sender.poll(now, link, live, self.options.mode, self.path(now, link))
            {
                return Some(Body::Symbol(symbol));
            }
        }
        self.hello[link].then_some(Body::Hello)
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Whether nothing is heard over a link that can send, or not for long. While it is silent nothing goes over it but a hello now and
    /// then, which finds out whether it is back; and when it is heard something must get through, so that what was lost is known to
    /// be: so the driver must not hold anything back for what seems to be on its way there.
    pub fn is_unproven(&self, now: u64, link: usize) -> bool {
        self.links[link].open && (!self.live()[link] || now < self.links[link].back_at + KEEPALIVE_MICROS)
    }

    /// Whether frames go over a link.
    #[cfg(test)]
    pub(crate) fn uses(&self, link: usize) -> bool {
        self.live()[link]
    }

    fn link_dead(&mut self, link: usize) {
        if core::mem::take(&mut self.links[link].alive) {
            self.events.push_back(SessionEvent::Link { link, state: LinkState::Down });
            if self.live()[1 - link] {
                self.sender.link_lost(link);
            }
        }
    }

    fn end(&mut self, now: u64, reason: &'static str) {
        if self.up {
            self.events.push_back(SessionEvent::Down { reason });
        }
        self.up = false;
        self.peer = None;
        // A new name, so that nothing that is still on its way is taken for part of the next session.
        if !planted(Plant::NameOutlivesSession) {
            self.own = self.own.rotate_left(17).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        }
        let counters = (self.sender.counters, self.receiver.counters);
        (self.sender, self.receiver) = (Sender::new(), Receiver::new());
        (self.sender.counters, self.receiver.counters) = counters;
        if !planted(Plant::MarksOutliveSession) {
            self.marks = Marks::default();
        }
        if !planted(Plant::PeerMarksOutliveSession) {
            self.peer_marks.clear();
        }
        (self.acks, self.proofs) = Default::default();
        (self.ack_at, self.repeat_at) = (None, None);
        self.was_full = false;
        self.hello = [true; 2];
        self.heard = now;
    }

    /// The session as it is now.
    pub fn status(&self, names: &[String]) -> SessionStatus {
        let state = |line: &Link| {
            if line.open && line.alive { LinkState::Up } else { LinkState::Down }
        };
        let links = self.links.iter().take(self.link_count).enumerate().map(|(index, line)| LinkStatus {
            name: names.get(index).cloned().unwrap_or_default(),
            state: state(line),
            rtt_micros: line.rtt,
            loss: line.seen_loss,
            rate: None,
            repair_symbols: parity::full_block_repair_count(line.loss),
            is_farther: self.is_farther(index),
            sent_datagrams: line.sequence.into(),
            sent_bytes: line.bytes,
            received_datagrams: line.came.received.into(),
            lost_datagrams: line.came.lost().into(),
        });
        SessionStatus {
            up: self.up,
            mode: self.options.mode,
            outstanding_bytes: self.sender.outstanding(),
            sent: self.sender.counters,
            received: self.receiver.counters,
            links: links.collect(),
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod bounds_tests;
