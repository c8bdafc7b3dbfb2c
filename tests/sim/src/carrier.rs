//! What is between two sessions: connections over the links, which encrypt and authenticate on a real machine, and the third
//! path. Instead of QUIC there is a number for each connection and a checksum: what is changed on the way, or left over from
//! another connection, never reaches the session.

use crate::{
    node::Arrival,
    world::{What, World},
};
use bytes::Bytes;
use std::time::Duration;

/// A connection ends when one end has heard nothing for so long.
const SILENCE_MICROS: u64 = 4_000_000;
/// How often a connection is tried.
const CONNECT_MICROS: u64 = 300_000;
/// How often the nodes are heard on the third path.
const HEARTBEAT_MICROS: u64 = 1_000_000;
/// Checksum and number of a connection in front of each datagram.
const HEAD: usize = 8;

/// A connection over a link.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    number: u32,
    /// Of the daemons at its ends.
    lives: [u64; 2],
    heard: [u64; 2],
}

/// What a connection is said to carry, in bytes a second: for some a burst is a deep backlog, or the link busy. Nothing is.
const RATES: [Option<u64>; 3] = [None, Some(1 << 20), Some(100 << 20)];

fn seal(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEAD / 2];
    packet.extend(number.to_le_bytes());
    packet.extend(bytes);
    let checksum = crc32c::crc32c(&packet[HEAD / 2..]);
    packet[..HEAD / 2].copy_from_slice(&checksum.to_le_bytes());
    packet
}

fn unseal(number: u32, packet: Vec<u8>) -> Option<Bytes> {
    let (checksum, rest) = packet.split_first_chunk()?;
    let (of, _) = rest.split_first_chunk()?;
    let is_whole = u32::from_le_bytes(*checksum) == crc32c::crc32c(rest) && u32::from_le_bytes(*of) == number;
    is_whole.then(|| Bytes::from(packet).slice(HEAD..))
}

impl World {
    /// Sends what a node's session has to send.
    pub(crate) fn transmit(&mut self, node: usize) {
        let shown = self.nodes[node].clock.at(self.now);
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        for link in 0..self.config.link_count {
            let Some(connection) = self.connections[link] else { continue };
            daemon.session.handle_rate(link, RATES[connection.number as usize % RATES.len()]);
            while let Some(bytes) = daemon.session.poll_transmit(shown, link) {
                let packet = seal(connection.number, &bytes);
                self.lines[link][node].handle_packet(Duration::from_micros(self.now), packet);
            }
        }
    }

    /// A packet has come.
    pub(crate) fn arrive(&mut self, link: usize, node: usize, packet: Vec<u8>) {
        let Some(connection) = &mut self.connections[link] else { return };
        if connection.lives[node] != self.nodes[node].life || self.nodes[node].daemon.is_none() {
            return;
        }
        let Some(bytes) = unseal(connection.number, packet) else { return };
        connection.heard[node] = self.now;
        if self.nodes[node].stalled_until > self.now {
            self.nodes[node].inbox.push_back(Arrival::Datagram(link, bytes));
            return;
        }
        self.datagram(node, link, &bytes);
        self.pump(node);
    }

    fn datagram(&mut self, node: usize, link: usize, bytes: &Bytes) {
        let shown = self.nodes[node].clock.at(self.now);
        if let Some(daemon) = &mut self.nodes[node].daemon {
            let result = daemon.session.handle_datagram(shown, link, bytes);
            assert!(result.is_ok(), "I6: a datagram that the peer's session made is refused: {result:?}");
        }
    }

    /// Makes a connection over a link, or ends one that is silent.
    pub(crate) fn connect(&mut self, link: usize) {
        let later = CONNECT_MICROS / 2 + self.chance.below(CONNECT_MICROS);
        self.plan(self.now + later, What::Connect(link));
        let lives = [self.nodes[0].life, self.nodes[1].life];
        let runs = [0, 1].map(|node| self.nodes[node].daemon.is_some());
        if let Some(connection) = self.connections[link] {
            let is_current = connection.lives == lives && runs == [true; 2];
            let is_heard = connection.heard.iter().all(|heard| heard + SILENCE_MICROS > self.now);
            if is_current && is_heard {
                return;
            }
            // Who is left notices it only by the silence, or by a new connection.
            if !is_heard {
                self.connections[link] = None;
                (0..2).for_each(|node| self.tell_link(node, link, false));
            }
        }
        let is_cut = (0..2).any(|from| self.lines[link][from].settings().cut);
        if runs != [true; 2] || is_cut || (0..2).any(|node| !self.is_awake(node)) {
            return;
        }
        self.connection_count += 1;
        self.connections[link] = Some(Connection { number: self.connection_count, lives, heard: [self.now; 2] });
        for node in 0..2 {
            self.tell_link(node, link, false);
            self.tell_link(node, link, true);
        }
    }

    fn tell_link(&mut self, node: usize, link: usize, open: bool) {
        let shown = self.nodes[node].clock.at(self.now);
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.session.handle_link(shown, link, open);
            self.pump(node);
        }
    }

    /// The third path.
    pub(crate) fn beat(&mut self) {
        self.plan(self.now + HEARTBEAT_MICROS, What::Heartbeat);
        if !self.heartbeat {
            return;
        }
        for node in (0..2).filter(|node| self.is_awake(*node) && self.is_awake(1 - *node)).collect::<Vec<_>>() {
            let now = self.nodes[node].clock.now(self.now);
            for group in 0..self.config.group_count {
                if let Some(core) = self.group(node, group) {
                    core.handle_heartbeat(now);
                }
            }
            self.pump(node);
        }
    }

    /// A stalled node goes on, with what came meanwhile.
    pub(crate) fn resume(&mut self, node: usize) {
        if self.nodes[node].stalled_until > self.now {
            return;
        }
        while let Some(arrival) = self.nodes[node].inbox.pop_front() {
            match arrival {
                Arrival::Datagram(link, bytes) => {
                    self.datagram(node, link, &bytes);
                    self.pump(node);
                }
                Arrival::Disk(group, number) => self.end_operation(node, group, number),
            }
        }
    }
}
