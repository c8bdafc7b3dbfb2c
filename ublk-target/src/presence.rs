//! Whether a peer is there, as far as this node can tell.

use serde::Serialize;
use std::{collections::BTreeSet, fmt};

/// What this node knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It is heard.
    Alive,
    /// All links are silent, for longer than their round trips explain, and it may be back in a moment; or there is no session,
    /// but a heartbeat is heard.
    Suspect,
    /// The session has ended: silence lasted 10 s, or it was started anew. It may be dead, or only cut off.
    Dead,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        })
    }
}

/// Follows a peer's session and links. Times in microseconds since 1970.
#[derive(Debug)]
pub struct Monitor {
    is_up: bool,
    beats: bool,
    links_up: BTreeSet<String>,
    presence: Presence,
    since: u64,
}

impl Monitor {
    /// Nothing was heard yet.
    pub fn new(now: u64) -> Self {
        Self { is_up: false, beats: false, links_up: BTreeSet::new(), presence: Presence::Dead, since: now }
    }

    /// A session has begun or ended. The presence, if it has changed.
    pub fn session(&mut self, now: u64, is_up: bool) -> Option<Presence> {
        self.is_up = is_up;
        self.look(now)
    }

    /// A link came or went. The presence, if it has changed.
    pub fn link(&mut self, now: u64, link: String, is_up: bool) -> Option<Presence> {
        if is_up {
            self.links_up.insert(link);
        } else {
            self.links_up.remove(&link);
        }
        self.look(now)
    }

    /// Heartbeats have begun, or stopped. The presence, if it has changed.
    pub fn heartbeat(&mut self, now: u64, beats: bool) -> Option<Presence> {
        self.beats = beats;
        self.look(now)
    }

    fn look(&mut self, now: u64) -> Option<Presence> {
        let presence = match (self.is_up, self.links_up.is_empty()) {
            (false, _) if !self.beats => Presence::Dead,
            (false, _) | (true, true) => Presence::Suspect,
            (true, false) => Presence::Alive,
        };
        let changed = presence != self.presence;
        if changed {
            (self.presence, self.since) = (presence, now);
        }
        changed.then_some(presence)
    }

    /// The presence, and since when.
    pub fn presence(&self) -> (Presence, u64) {
        (self.presence, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_suspect_when_its_last_link_is_silent_and_dead_when_its_session_ends() {
        let mut monitor = Monitor::new(1);
        assert_eq!(monitor.presence(), (Presence::Dead, 1));
        // A link is there before the session is.
        assert_eq!(monitor.link(2, "one".into(), true), None);
        assert_eq!(monitor.session(3, true), Some(Presence::Alive));
        assert_eq!(monitor.link(4, "two".into(), true), None);
        assert_eq!(monitor.link(5, "one".into(), false), None);
        assert_eq!(monitor.presence(), (Presence::Alive, 3));
        assert_eq!(monitor.link(6, "two".into(), false), Some(Presence::Suspect));
        assert_eq!(monitor.link(7, "two".into(), true), Some(Presence::Alive));
        assert_eq!(monitor.link(8, "two".into(), false), Some(Presence::Suspect));
        assert_eq!(monitor.session(9, false), Some(Presence::Dead));
        assert_eq!(monitor.session(10, false), None);
        assert_eq!(monitor.presence(), (Presence::Dead, 9));
        assert_eq!(monitor.heartbeat(11, true), Some(Presence::Suspect));
        assert_eq!(monitor.link(12, "one".into(), true), None);
        assert_eq!(monitor.session(13, true), Some(Presence::Alive));
        assert_eq!(monitor.heartbeat(14, false), None);
        assert_eq!(monitor.session(15, false), Some(Presence::Dead));
    }
}
