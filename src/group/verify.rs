//! Verifying a pair in step: everything is compared by digests while writes go on.
//!
//! A block is compared as it happens to be first. One that differs is compared again exactly: writes to it wait until its
//! digests are in the stream behind all that they contain. What differs several times is different.

use super::{
    Group,
    compare::HOLE_SIZE_MAX,
    read::{Reader, join},
};
use crate::{
    command::{CommandError, CommandId, CommandReply, Progress},
    format::message::{Digests, RANGE_COUNT_MAX, Range},
    output::Output,
    pair::Cause,
    table::ReadCount,
    units::{Order, VolumeId},
};
use alloc::{collections::BTreeMap, vec::Vec};
use bytes::Bytes;

/// A block that differs so often, the last times exactly, is different.
const TRY_COUNT: u8 = 4;

/// A part of a volume, and how often it was compared already.
#[derive(Clone, Copy)]
struct Part {
    size: u64,
    tries: u8,
}

struct Reading {
    number: ReadCount,
    place: (VolumeId, u64),
    part: Part,
    /// The digests, and the last entry that they contain.
    ready: Option<(Order, Digests)>,
}

/// A verification under way.
pub(super) struct Verifier {
    command: CommandId,
    mend: bool,
    /// Where the next part begins.
    cursor: (VolumeId, u64),
    reading: Option<Reading>,
    asked: BTreeMap<(VolumeId, u64), Part>,
    /// To be compared once more.
    again: BTreeMap<(VolumeId, u64), Part>,
    done: u64,
    differing: Vec<Range>,
    differing_bytes: u64,
}

impl Verifier {
    /// Writes to this range must wait.
    pub(super) fn holds(&self, volume: VolumeId, from: u64, to: u64) -> bool {
        self.reading.as_ref().is_some_and(|reading| {
            let (id, offset) = reading.place;
            reading.part.tries > 0 && id == volume && from < offset + reading.part.size && offset < to
        })
    }

    /// Who waits for it.
    pub(super) fn command(&self) -> CommandId {
        self.command
    }
}

impl Group {
    /// Begins it; answered when everything was compared.
    pub(super) fn verify(&mut self, id: CommandId, mend: bool) -> Result<(), CommandError> {
        self.require_peer_follows("only a pair in duplex whose standby is connected can be verified")?;
        if self.verifier.is_some() {
            return Err(CommandError::InProgress("verification"));
        }
        self.verifier = Some(Verifier {
            command: id,
            mend,
            cursor: (VolumeId(0), 0),
            reading: None,
            asked: BTreeMap::new(),
            again: BTreeMap::new(),
            done: 0,
            differing: Vec::new(),
            differing_bytes: 0,
        });
        self.again = true;
        Ok(())
    }

    /// How far it is.
    pub(super) fn verify_progress(&self) -> Option<Progress> {
        let verifier = self.verifier.as_ref()?;
        let total = self.volumes.values().map(|volume| volume.spec.size).sum();
        Some(Progress { done: verifier.done, total, differing: verifier.differing_bytes })
    }

    /// Goes on with it.
    pub(super) fn verify_next(&mut self) {
        let follows = self.peer_follows();
        let Some(verifier) = &self.verifier else { return };
        if !follows {
            let id = verifier.command;
            self.verifier = None;
            self.again = true;
            return self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::PeerLost) });
        }
        self.ask_what_is_ready();
        let asked_max = self.asked_max();
        while let Some(verifier) = &mut self.verifier
            && verifier.reading.is_none()
            && verifier.asked.len() < asked_max
            && self.peer.credit > 0
        {
            if let Some((place, part)) = verifier.again.pop_first() {
                self.verify_read(place, part);
            } else if let Some((place, size, is_hole)) = self.next_part() {
                let part = Part { size, tries: 0 };
                if is_hole {
                    self.verify_ask(place, part, &Digests::of_hole());
                } else {
                    self.verify_read(place, part);
                }
            } else {
                return self.verified();
            }
        }
    }

    /// The next part of the volumes, and whether nothing is stored there.
    fn next_part(&mut self) -> Option<((VolumeId, u64), u64, bool)> {
        let verifier = self.verifier.as_mut()?;
        let (first, mut at) = verifier.cursor;
        for (id, volume) in self.volumes.range(first..) {
            if *id != first {
                at = 0;
            }
            let geometry = volume.table.geometry();
            // An interrupted resize may have left a table that is larger than the volume.
            let (block_size, end) = (u64::from(geometry.block_size), geometry.volume_size.min(volume.spec.size));
            if at >= end {
                continue;
            }
            let most = (HOLE_SIZE_MAX / block_size) as u32;
            let hole = u64::from(volume.table.hole_count((at / block_size) as u32, most)) * block_size;
            let newer = volume.overlay.pieces(at, at + hole).next().map_or(u64::MAX, |piece| piece.offset);
            let hole = hole.min((newer / block_size * block_size).saturating_sub(at));
            let size = if hole > 0 { hole } else { block_size }.min(end - at);
            verifier.cursor = (*id, at + size);
            return Some(((*id, at), size, hole > 0));
        }
        None
    }

    fn verify_read(&mut self, place: (VolumeId, u64), part: Part) {
        let number = self.reads.next();
        if let Some(verifier) = &mut self.verifier {
            verifier.reading = Some(Reading { number, place, part, ready: None });
        }
        self.read(Reader::Verify(number), place.0, place.1, part.size);
    }

    /// A part was read (`None`: it could not be).
    pub(super) fn verify_read_done(&mut self, number: ReadCount, data: Option<Vec<Bytes>>) {
        let last = self.journal.last();
        let Some(verifier) = &mut self.verifier else { return };
        let Some(reading) = verifier.reading.as_mut().filter(|reading| reading.number == number) else {
            return;
        };
        let unit = self.volumes.get(&reading.place.0).map(|volume| volume.table.geometry().dirty_unit());
        let (Some(data), Some(unit)) = (data, unit) else {
            let id = verifier.command;
            self.verifier = None;
            self.again = true;
            return self.outputs.push_back(Output::CommandAnswer { id, result: Err(CommandError::Unreadable) });
        };
        reading.ready = Some((last, Digests::of(&join(&data), unit)));
        self.again = true;
    }

    fn ask_what_is_ready(&mut self) {
        let cursor = self.peer.cursor();
        let Some(verifier) = &mut self.verifier else { return };
        // At first any place will do.
        let is_due = |reading: &mut Reading| {
            reading.ready.as_ref().is_some_and(|(newest, _)| reading.part.tries == 0 || cursor >= *newest)
        };
        if let Some(Reading { place, part, ready: Some((_, digests)), .. }) = verifier.reading.take_if(is_due) {
            self.again = true;
            self.verify_ask(place, part, &digests);
        }
    }

    fn verify_ask(&mut self, place: (VolumeId, u64), part: Part, digests: &Digests) {
        if let Some(verifier) = &mut self.verifier {
            verifier.asked.insert(place, part);
        }
        self.ask(place.0, place.1, part.size, digests);
    }

    /// The secondary's answer.
    pub(super) fn verify_compared(&mut self, asked: &Range, ranges: &[Range]) {
        let Some(verifier) = &mut self.verifier else { return };
        let Some(part) = verifier.asked.remove(&(asked.volume, asked.offset)) else {
            return;
        };
        self.again = true;
        if part.tries + 1 >= TRY_COUNT && !ranges.is_empty() {
            verifier.done += part.size;
            verifier.differing_bytes += ranges.iter().map(|range| range.size).sum::<u64>();
            let room = RANGE_COUNT_MAX - verifier.differing.len();
            verifier.differing.extend(ranges.iter().take(room));
            if verifier.mend
                && let Some(volume) = self.volumes.get_mut(&asked.volume)
            {
                ranges.iter().for_each(|range| volume.table.mark_dirty(range.offset, range.size));
            }
            return;
        }
        let Some(volume) = self.volumes.get(&asked.volume) else { return };
        let block_size = u64::from(volume.table.geometry().block_size);
        let (mut again, end) = (0, asked.offset + asked.size);
        for range in ranges {
            // Of a hole only the blocks that the secondary holds.
            let mut at = (range.offset / block_size * block_size).max(asked.offset);
            while at < range.offset + range.size {
                let size = (block_size - at % block_size).min(end - at);
                if verifier.again.insert((asked.volume, at), Part { size, tries: part.tries + 1 }).is_none() {
                    again += size;
                }
                at += size;
            }
        }
        verifier.done += asked.size - again;
    }

    fn verified(&mut self) {
        if self.verifier.as_ref().is_some_and(|verifier| !verifier.asked.is_empty()) {
            return;
        }
        let Some(mut verifier) = self.verifier.take() else { return };
        verifier.differing.sort_unstable();
        let mends = verifier.mend && verifier.differing_bytes > 0;
        let reply = CommandReply::Verified {
            compared_bytes: verifier.done,
            differing_bytes: verifier.differing_bytes,
            differing: verifier.differing,
            mending: mends,
        };
        if mends {
            // Records may be under way: they are noted with what differs, and the copy begins in a session of its own.
            self.suspend(Cause::Peer);
            self.again = true;
            // The answer means that what differs is not forgotten.
            return self.answer_when_noted(verifier.command, reply);
        }
        self.again = true;
        self.outputs.push_back(Output::CommandAnswer { id: verifier.command, result: Ok(reply) });
    }
}
