//! The secondary's side of the stream: what arrives is journalled as it is.

use super::Group;
use crate::{
    format::{
        message,
        record::{Kind, RECORD_HEADER_SIZE, Record},
    },
    journal::{LiveEntry, Place},
    output::{Event, Output},
    pair::Role,
    stream_state::Note,
    testing::{Plant, planted},
    units::{Epoch, Now, Order},
};
use alloc::{format, string::String};
use bytes::Bytes;

impl Group {
    /// A frame from the peer. One that cannot be accepted ends the session.
    pub fn handle_frame(&mut self, now: Now, body: Bytes) {
        self.now = now;
        let size = body.len() as u64;
        let takes = self.stopped.is_none() && !self.is_stopping() && self.peer.connected;
        if let Err(reason) = if takes { self.take_frame(&body) } else { Ok(()) } {
            // What follows in this session is of no use either.
            self.peer.connected = false;
            self.event(Event::PeerRefused { reason });
            self.outputs.push_back(Output::Reconnect);
        }
        self.outputs.push_back(Output::Consumed(size));
    }

    fn take_frame(&mut self, body: &Bytes) -> Result<(), String> {
        let (record, payload) = Record::parse_frame(body, self.id).map_err(|error| format!("{error}"))?;
        debug_assert!(body.len() >= RECORD_HEADER_SIZE);
        match record.kind {
            Kind::Greeting => {
                let greeting = message::Greeting::parse(&payload).map_err(|error| format!("{error}"))?;
                self.greeted(greeting)
            }
            Kind::ForkRanges => {
                let (ranges, others) = message::parse_ranges(&payload).map_err(|error| format!("{error}"))?;
                self.take_ranges(ranges, others)
            }
            Kind::Compare => self.compare(record, &payload),
            Kind::Differs => self.take_answer(&record, &payload),
            Kind::Fork => Err("The peer sent what no node sends".into()),
            Kind::Fetch => self.fetch(record),
            Kind::Fetched => self.fetched(&record, payload),
            Kind::LeaseAsk => self.lease_asked(&payload),
            Kind::Refusal => Err(format!("The peer refuses: {}", String::from_utf8_lossy(&payload))),
            _ => self.journal_frame(record, payload),
        }
    }

    fn journal_frame(&mut self, record: Record, payload: Bytes) -> Result<(), String> {
        if self.pair.role != Role::Secondary || !self.peer.greeted {
            return Err(format!("A record came, but this node is {} and sent no invitation", self.pair.role));
        }
        self.check_place(&record)?;
        if record.kind.changes_data() {
            self.check_range(&record)?;
        }
        let failed = |error| format!("{error}");
        let note = match record.kind {
            Kind::RestartPoint => Note::Label(message::parse_label(&payload).map_err(failed)?),
            Kind::CopyBegin => Note::History(message::parse_history(&payload).map_err(failed)?),
            _ => Note::None,
        };
        let whole_blocks = self.volumes.get(&record.volume).is_some_and(|volume| {
            let block = u64::from(volume.table.geometry().block_size);
            record.size >= block.max(64 << 10) && (record.offset | record.size).is_multiple_of(block)
        });
        let order = match record.kind {
            Kind::Write | Kind::Copy => self.stage_received(record, payload, whole_blocks),
            _ => {
                self.memory.stage(payload.len());
                let (place, payload) = (Place::Memory, Some(payload));
                self.stage_entry(LiveEntry { record, place, payload, note, is_void: false })
            }
        };
        self.peer.received(order);
        self.note_left_behind(false);
        Ok(())
    }

    fn stage_received(&mut self, record: Record, payload: Bytes, redirect: bool) -> Order {
        // Same as a write of our own, but for the header, which stays as it came.
        self.stage_data(record, payload, redirect)
    }

    /// A record must be the next in the order.
    fn check_place(&self, record: &Record) -> Result<(), String> {
        let last = self.stream.last;
        let fits = match record.kind {
            Kind::CopyBegin => record.at.epoch >= last.epoch || self.peer_is_ahead(record.at.epoch),
            Kind::EpochChange => record.at.epoch > last.epoch && record.at.seq == last.seq.next(),
            kind if kind.is_sequenced() => {
                let sees_no_gap = planted(Plant::GapTaken) || planted(Plant::DiscardNotSent);
                let follows = record.at.seq == last.seq.next() || sees_no_gap;
                record.at.epoch == last.epoch && follows
            }
            _ => record.at == last && self.stream.copying,
        };
        if fits { Ok(()) } else { Err(format!("Record {} ({:?}) does not follow {last}", record.at, record.kind)) }
    }

    fn peer_is_ahead(&self, epoch: Epoch) -> bool {
        epoch >= self.pair.peer_epoch
    }

    pub(super) fn check_range(&self, record: &Record) -> Result<(), String> {
        let volume = self.volumes.get(&record.volume);
        let fits = volume.is_some_and(|volume| {
            let block = u64::from(volume.spec.logical_block_size);
            record.end() <= volume.spec.size && (record.offset | record.size).is_multiple_of(block)
        });
        if fits {
            return Ok(());
        }
        Err(format!(
            "Record {} is for {} bytes at {} of volume {}",
            record.at, record.size, record.offset, record.volume
        ))
    }
}
