//! A peer on the disk thread: frames of all groups go out through it, in order, as the carrier takes them.

use crate::{actor::GroupActor, events, presence::Monitor};
use replicator::{
    ChannelId, Frame, SessionName, SessionStatus,
    io::{Handle, PeerKey},
    session::Full,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::{sync::Notify, time::sleep};

/// How long a session that went wrong is left alone before it is begun anew.
const RESTART_DELAY: Duration = Duration::from_millis(100);

/// See the module.
pub struct Peer {
    /// How this node calls it.
    pub name: String,
    /// Its key.
    pub key: PeerKey,
    handle: Handle,
    /// Frames that the carrier has not taken, and whose they are.
    outbox: RefCell<VecDeque<(Weak<GroupActor>, Frame)>>,
    /// The session that this thread knows of: the carrier may have begun another one already.
    session: Cell<Option<SessionName>>,
    /// Whether it is heard.
    pub monitor: RefCell<Monitor>,
    came_up: Notify,
    restarting: Cell<bool>,
}

impl Peer {
    /// A peer with which `handle` talks.
    pub fn new(name: String, key: PeerKey, handle: Handle) -> Rc<Self> {
        Rc::new(Self {
            name,
            key,
            handle,
            outbox: RefCell::default(),
            session: Cell::new(None),
            monitor: RefCell::new(Monitor::new(events::now())),
            came_up: Notify::new(),
            restarting: Cell::new(false),
        })
    }

    /// Sends a frame of a group, now or when there is room.
    pub fn send(&self, from: &Rc<GroupActor>, frame: Frame) {
        self.outbox.borrow_mut().push_back((Rc::downgrade(from), frame));
        // The group is borrowed now; its credit comes when the event loop comes round.
        if self.outbox.borrow().len() == 1 {
            self.handle_flush_later(from);
        }
    }

    fn handle_flush_later(&self, from: &Rc<GroupActor>) {
        let actor = from.clone();
        tokio_uring::spawn(async move { actor.flush_peer() });
    }

    /// Sends a message of the node itself.
    pub fn send_message(&self, body: Vec<u8>) {
        let frame = Frame { channel: ChannelId::default(), header: body.into(), payload: bytes::Bytes::new() };
        self.outbox.borrow_mut().push_back((Weak::new(), frame));
        self.flush();
    }

    /// Hands over as many frames as the carrier takes.
    pub fn flush(&self) {
        let Some(session) = self.session.get() else { return };
        let mut credits: Vec<(Rc<GroupActor>, u64)> = Vec::new();
        loop {
            let Some((from, frame)) = self.outbox.borrow_mut().pop_front() else {
                break;
            };
            let size = (frame.header.len() + frame.payload.len()) as u64;
            match self.handle.try_send(session, frame) {
                Ok(()) => {
                    if let Some(actor) = from.upgrade() {
                        match credits.last_mut().filter(|(last, _)| Rc::ptr_eq(last, &actor)) {
                            Some((_, credit)) => *credit += size,
                            None => credits.push((actor, size)),
                        }
                    }
                }
                Err(Full(frame)) => {
                    self.outbox.borrow_mut().push_front((from, frame));
                    break;
                }
            }
        }
        credits.into_iter().for_each(|(actor, credit)| actor.credit(credit));
    }

    /// A session has begun.
    pub fn set_up(&self, session: SessionName) {
        self.session.set(Some(session));
        self.came_up.notify_waiters();
    }

    /// It is over.
    pub fn set_down(&self) {
        self.session.set(None);
    }

    /// Whether there is a session.
    pub fn is_up(&self) -> bool {
        self.session.get().is_some()
    }

    /// Waits for a session.
    pub async fn wait_up(&self) {
        while !self.is_up() {
            self.came_up.notified().await;
        }
    }

    /// The session is over: what was not taken belongs to nobody.
    pub fn clear(&self) {
        self.outbox.borrow_mut().clear();
    }

    /// Tells the peer what is durable here.
    pub fn mark_durable(&self, channel: ChannelId, value: u64) {
        if let Some(session) = self.session.get() {
            self.handle.mark_durable(session, channel, value);
        }
    }

    /// Frames of so many bytes are out of memory.
    pub fn consumed(&self, bytes: u64) {
        if let Some(session) = self.session.get() {
            self.handle.consumed(session, bytes);
        }
    }

    /// Begins another session shortly.
    pub fn restart_soon(self: Rc<Self>) {
        if self.restarting.replace(true) {
            return;
        }
        tokio_uring::spawn(async move {
            sleep(RESTART_DELAY).await;
            self.restarting.set(false);
            self.handle.restart();
        });
    }

    /// The session as it is now.
    pub fn status(&self) -> SessionStatus {
        self.handle.status()
    }
}
