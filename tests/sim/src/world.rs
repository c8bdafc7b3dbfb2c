//! The pair: two machines, the lines between them, and one queue of what happens next. All of it runs in one thread, in
//! virtual time, and depends on the seed alone.

use crate::{
    ambush::Moment,
    carrier::Connection,
    config::Config,
    media::Media,
    node::{Arrival, Clock, Ills, Node, Slot, channel, lease_channel},
    operator::Errands,
    outside::Outside,
    script::Step,
    trace::Trace,
};
use holdfast::{
    group::Group,
    output::Output,
    request::Busy,
    units::{FrameCount, GroupId},
};
use link_model::{Line, Random};
use replicator::{
    Frame,
    session::{Full, SessionEvent},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

/// Bytes of frames handed out ahead of what the carrier has taken, as in the real shell.
const STREAM_CREDIT: u64 = 4 << 20;
/// More happens at no instant.
const TURNS_MAX: u32 = 100_000;
/// A group's timer does not fire more often, as in the real shell.
const TIMER_STEP: u64 = 1_000;
/// Something that happens at a time.
pub enum What {
    /// A step of the script.
    Step(Step),
    /// An operation of a medium ends: node, life, group, life of the group, number.
    Disk(usize, u64, usize, u64, u64),
    /// A link is tried.
    Connect(usize),
    /// A node goes on with what its session has for it.
    Pump(usize),
    /// The third path.
    Heartbeat,
    /// A stalled node goes on.
    Resume(usize),
    /// A node loses power in this life; what comes of it.
    Ambush(usize, u64, u64),
    /// A standby that was not yet to be promoted is asked again, so often at most.
    Insist(usize, usize, u32),
}

/// See the module.
pub struct World {
    /// True time in microseconds.
    pub now: u64,
    /// How many things have happened.
    pub event_count: u64,
    /// What the seed is about.
    pub config: Config,
    /// Chances that nobody decides.
    pub chance: Random,
    /// The machines.
    pub nodes: [Node; 2],
    /// The groups as their clients know them.
    pub outside: Vec<Outside>,
    /// By link and the node that sends.
    pub lines: [[Line; 2]; 2],
    /// The third path carries.
    pub heartbeat: bool,
    /// What operators wait for.
    pub errands: Errands,
    /// What is to be looked at as soon as the present event is over.
    pub todo: VecDeque<crate::checks::Todo>,
    /// Which nodes the present event has had to do with.
    pub touched: [bool; 2],
    /// What happened, for people.
    pub trace: Trace,
    /// Frames by group, epoch and seq.
    pub records: BTreeMap<(usize, u64, u64), u32>,
    /// By link.
    pub connections: [Option<Connection>; 2],
    /// How many there ever were.
    pub connection_count: u32,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    planned: BTreeMap<u64, What>,
    next: u64,
}

/// The group's identifier.
pub fn group_id(group: usize) -> GroupId {
    GroupId([7 + group as u8; 16])
}

impl World {
    /// Two machines without groups.
    pub fn new(seed: u64, config: Config, trace: Trace) -> Self {
        let mut chance = Random::new(seed);
        let bad_clocks = config.has(crate::config::Feature::BadClocks);
        let node = |chance: &mut Random| Node {
            media: (0..config.group_count).map(|_| Media::default()).collect(),
            ills: Ills::default(),
            // Two clocks are at most 4 % apart: a twentieth is what leases allow for.
            clock: Clock { rate: if bad_clocks { 980_000 + chance.below(40_000) } else { 1_000_000 }, wall: 0 },
            life: 0,
            stalled_until: 0,
            inbox: VecDeque::new(),
            was_rotten: false,
            retired: false,
            ambush: None,
            daemon: None,
        };
        let nodes = [node(&mut chance), node(&mut chance)];
        let line = |link: usize, chance: &mut Random| Line::new(config.lines[link].clone(), chance.next_u64());
        let lines = [0, 1].map(|link| [line(link, &mut chance), line(link, &mut chance)]);
        let outside = (0..config.group_count).map(|_| Outside::new(&config)).collect();
        let mut world = Self {
            now: 1,
            event_count: 0,
            chance,
            nodes,
            outside,
            lines,
            heartbeat: config.has(crate::config::Feature::Heartbeats),
            errands: Errands::default(),
            todo: VecDeque::new(),
            touched: [false; 2],
            trace,
            records: BTreeMap::new(),
            connections: [None; 2],
            connection_count: 0,
            queue: BinaryHeap::new(),
            planned: BTreeMap::new(),
            next: 1,
            config,
        };
        (0..world.config.link_count).for_each(|link| world.plan(2, What::Connect(link)));
        world.plan(2, What::Heartbeat);
        world
    }

    /// A number that was not used before.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Lets something happen then.
    pub fn plan(&mut self, at: u64, what: What) {
        let number = self.number();
        self.queue.push(Reverse((at, number)));
        self.planned.insert(number, what);
    }

    /// Nobody does anything more of what was planned.
    pub fn forget_plans(&mut self) {
        let is_fault = |what: &What| matches!(what, What::Step(_) | What::Ambush(..) | What::Insist(..));
        self.planned.retain(|_, what| !is_fault(what));
    }

    /// Lets a step happen at its time.
    pub fn plan_step(&mut self, step: Step) {
        self.plan(step.at, What::Step(step));
    }

    /// What a node's group is, if it runs.
    pub fn slot(&mut self, node: usize, group: usize) -> Option<&mut Slot> {
        self.nodes[node].daemon.as_mut()?.slots.get_mut(group)
    }

    /// A node's group, if it runs.
    pub fn group(&mut self, node: usize, group: usize) -> Option<&mut Group> {
        self.slot(node, group)?.group.as_mut()
    }

    /// Whether a node takes part in what happens.
    pub fn is_awake(&self, node: usize) -> bool {
        self.nodes[node].daemon.is_some() && self.nodes[node].stalled_until <= self.now
    }

    /// Goes on until then.
    pub fn run_until(&mut self, end: u64) {
        self.run_to(end, u64::MAX);
    }

    /// Goes on until then, or until so many things have happened since the beginning: whether they have.
    pub fn run_to(&mut self, end: u64, event_count: u64) -> bool {
        let mut turns = 0;
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            turns = if at > self.now { 0 } else { turns + 1 };
            assert!(turns < TURNS_MAX, "liveness: time stands still");
            if self.event_count >= event_count {
                return true;
            }
            self.event_count += 1;
            self.now = self.now.max(at);
            self.happen();
            self.look_after();
            if self.config.watched {
                self.watch();
            }
        }
        self.now = self.now.max(end);
        false
    }

    fn next_time(&mut self) -> Option<u64> {
        let planned = self.queue.peek().map(|Reverse((at, _))| *at);
        let due = |line: &Line| line.poll_timeout().map(|at| at.as_nanos().div_ceil(1_000) as u64);
        let flying = self.lines.iter().flatten().filter_map(due).min();
        let timers = [0, 1].into_iter().filter_map(|node| self.next_timer(node)).min();
        [planned, flying, timers].into_iter().flatten().min()
    }

    fn next_timer(&self, node: usize) -> Option<u64> {
        let Node { daemon, clock, stalled_until, .. } = &self.nodes[node];
        let daemon = daemon.as_ref()?;
        let groups = daemon.slots.iter().filter_map(|slot| {
            let at = slot.group.as_ref()?.poll_timeout()?;
            Some(clock.when(at.0).max(slot.timer_after))
        });
        let session = daemon.session.poll_timeout().into_iter().chain(daemon.restart_at).map(|at| clock.when(at));
        groups.chain(session).min().map(|at| at.max(*stalled_until))
    }

    fn happen(&mut self) {
        if let Some(Reverse((_, number))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= self.now) {
            self.queue.pop();
            if let Some(what) = self.planned.remove(&number) {
                self.carry_out(what);
            }
            return;
        }
        for link in 0..2 {
            for from in 0..2 {
                if let Some(packet) = self.lines[link][from].poll_delivery(Duration::from_micros(self.now)) {
                    self.arrive(link, 1 - from, packet.bytes);
                    return;
                }
            }
        }
        for node in 0..2 {
            if self.next_timer(node).is_some_and(|at| at <= self.now) {
                self.fire(node);
                return;
            }
        }
    }

    fn carry_out(&mut self, what: What) {
        match what {
            What::Step(step) => self.take_step(step),
            What::Disk(node, life, group, slot_life, number) => {
                let lives = self.nodes[node].life == life;
                if lives && self.slot(node, group).is_some_and(|slot| slot.life == slot_life) {
                    if self.nodes[node].stalled_until > self.now {
                        self.nodes[node].inbox.push_back(Arrival::Disk(group, number));
                    } else {
                        self.end_operation(node, group, number);
                    }
                }
            }
            What::Connect(link) => self.connect(link),
            What::Pump(node) => {
                if self.is_awake(node) {
                    self.pump(node);
                }
            }
            What::Heartbeat => self.beat(),
            What::Resume(node) => self.resume(node),
            What::Ambush(node, life, salt) => {
                if self.nodes[node].life == life {
                    self.spring(node, salt);
                }
            }
            What::Insist(node, group, left) => self.insist(node, group, left),
        }
    }

    fn fire(&mut self, node: usize) {
        let Node { daemon: Some(daemon), clock, .. } = &mut self.nodes[node] else { return };
        let (now, shown) = (clock.now(self.now), clock.at(self.now));
        if daemon.restart_at.is_some_and(|at| shown >= at) {
            daemon.restart_at = None;
            daemon.session.restart(shown);
        }
        daemon.session.handle_timeout(shown);
        for slot in &mut daemon.slots {
            let Some(group) = &mut slot.group else { continue };
            if group.poll_timeout().is_some_and(|at| at <= now.monotonic) && slot.timer_after <= self.now {
                slot.timer_after = self.now + TIMER_STEP;
                group.handle_timeout(now);
            }
        }
        self.pump(node);
    }

    /// Carries out what a node's daemon asks for until it asks for nothing more now.
    pub fn pump(&mut self, node: usize) {
        self.touched[node] = true;
        loop {
            let mut is_busy = false;
            for group in 0..self.config.group_count {
                is_busy |= self.drain(node, group);
            }
            is_busy |= self.session_events(node);
            if !is_busy {
                break;
            }
        }
        self.transmit(node);
    }

    fn drain(&mut self, node: usize, group: usize) -> bool {
        let mut is_busy = false;
        let now = self.nodes[node].clock.now(self.now);
        loop {
            let Some(core) = self.group(node, group) else { return is_busy };
            let output = core.poll_output();
            for id in core.take_started() {
                self.outside[group].started(node, id);
            }
            if let Some(output) = output {
                is_busy = true;
                self.put_out(node, group, output);
                continue;
            }
            let Some(slot) = self.slot(node, group) else { return is_busy };
            let (Some(core), Some(request)) = (&mut slot.group, slot.waiting.pop_front()) else { return is_busy };
            if let Err(Busy(request)) = core.handle_request(now, request) {
                slot.waiting.push_front(request);
                return is_busy;
            }
            is_busy = true;
        }
    }

    fn put_out(&mut self, node: usize, group: usize, output: Output) {
        match output {
            Output::Disk(operation) => self.begin_operation(node, group, operation),
            Output::Answer { id, result } => self.answered(node, group, id, result),
            Output::CommandAnswer { id, result } => {
                self.command_answered(node, group, id, result);
                self.meet(node, Moment::Answer);
            }
            Output::Send(frame) => {
                self.check_record(node, group, &frame.header, &frame.payload);
                let Some(daemon) = &mut self.nodes[node].daemon else { return };
                if daemon.slots[group].has_peer {
                    let channel = channel(group_id(group));
                    let frame = Frame { channel, header: frame.header, payload: frame.payload };
                    daemon.outbox.push_back((group, frame));
                    self.flush(node);
                }
            }
            Output::Durable(count) => {
                self.mark(node, group, channel(group_id(group)), count.0);
                self.meet(node, Moment::Mark);
            }
            Output::LeaseMark(number) => {
                self.mark(node, group, lease_channel(group_id(group)), number);
                self.meet(node, Moment::Promise);
            }
            Output::Consumed(bytes) => {
                let Some(daemon) = &mut self.nodes[node].daemon else { return };
                if daemon.slots[group].has_peer {
                    daemon.session.consumed(bytes);
                }
            }
            Output::Reconnect => {
                let shown = self.nodes[node].clock.at(self.now);
                let Some(daemon) = &mut self.nodes[node].daemon else { return };
                if daemon.slots[group].has_peer {
                    daemon.restart_soon(shown);
                }
            }
            Output::Event(event) => self.event(node, group, event),
        }
    }

    fn mark(&mut self, node: usize, group: usize, channel: replicator::ChannelId, value: u64) {
        let shown = self.nodes[node].clock.at(self.now);
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        if daemon.slots[group].has_peer {
            daemon.session.mark_durable(shown, channel, value);
        }
    }

    /// Hands over as many frames as the carrier takes.
    fn flush(&mut self, node: usize) {
        let now = self.nodes[node].clock.now(self.now);
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        while let Some((group, frame)) = daemon.outbox.pop_front() {
            let size = (frame.header.len() + frame.payload.len()) as u64;
            match daemon.session.send(frame) {
                Ok(()) => {
                    if let Some(core) = &mut daemon.slots[group].group {
                        core.handle_stream_credit(now, size);
                    }
                }
                Err(Full(frame)) => {
                    daemon.outbox.push_front((group, frame));
                    break;
                }
            }
        }
    }

    fn session_events(&mut self, node: usize) -> bool {
        let mut is_busy = false;
        loop {
            let now = self.nodes[node].clock.now(self.now);
            let Some(daemon) = &mut self.nodes[node].daemon else { return false };
            let Some(event) = daemon.session.poll_event() else { return is_busy };
            is_busy = true;
            match event {
                SessionEvent::Up { .. } => {
                    daemon.up = true;
                    self.trace.note(self.now, || format!("node {node}: session up"));
                    (0..self.config.group_count).for_each(|group| self.tell_up(node, group));
                    self.meet(node, Moment::Session);
                }
                SessionEvent::Down { reason } => {
                    daemon.up = false;
                    daemon.outbox.clear();
                    self.trace.note(self.now, || format!("node {node}: session down, {reason}"));
                    for slot in &mut daemon.slots {
                        slot.view.greeted = false;
                        if std::mem::take(&mut slot.has_peer)
                            && let Some(core) = &mut slot.group
                        {
                            core.handle_peer_down(now);
                        }
                    }
                }
                SessionEvent::Frame(frame) => {
                    let group = (0..daemon.slots.len()).find(|group| channel(group_id(*group)) == frame.channel);
                    if let Some(slot) = group.map(|group| &mut daemon.slots[group]).filter(|slot| slot.has_peer)
                        && let Some(core) = &mut slot.group
                    {
                        core.handle_frame(now, frame.body);
                        if self.config.watched {
                            // Each frame is an event of its own: somebody looks before the next one.
                            self.plan(self.now, What::Pump(node));
                            return false;
                        }
                    } else {
                        // Nobody wants it.
                        daemon.session.consumed(frame.body.len() as u64);
                    }
                }
                SessionEvent::Durable { channel: of, value } => {
                    for (group, slot) in daemon.slots.iter_mut().enumerate().filter(|(_, slot)| slot.has_peer) {
                        let Some(core) = &mut slot.group else { continue };
                        if of == channel(group_id(group)) {
                            core.handle_durable(now, FrameCount(value));
                        } else if of == lease_channel(group_id(group)) {
                            core.handle_lease_mark(now, value);
                        }
                    }
                }
                SessionEvent::Writable => self.flush(node),
                SessionEvent::Link { .. } => {}
            }
        }
    }

    /// Tells a group of the session, if it has a peer.
    pub fn tell_up(&mut self, node: usize, group: usize) {
        let now = self.nodes[node].clock.now(self.now);
        let Some(daemon) = self.nodes[node].daemon.as_mut().filter(|daemon| daemon.up) else { return };
        let slot = &mut daemon.slots[group];
        let Some(core) = slot.group.as_mut().filter(|core| core.label().peer.is_some()) else { return };
        slot.has_peer = true;
        slot.view.greeted = false;
        core.handle_peer_up(now);
        core.handle_stream_credit(now, STREAM_CREDIT);
    }
}
