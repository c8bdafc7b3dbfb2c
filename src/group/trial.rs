//! A trial: a writable copy of a generation, beside everything else the group does. Nobody else sees what is written to it,
//! and it is gone when it ends or the daemon does.
//!
//! What is written goes into blocks of the pool that no table names, so that after a crash they are unused by themselves.
//! Nothing of it is journalled, and a flush promises nothing.

use super::{Group, Purpose, read::Reader};
use crate::{
    buffer::{AlignedBuffer, aligned},
    command::{CommandError, CommandId, CommandReply, GenerationId, GenerationKind, GenerationStatus, TrialStatus},
    disk::{DiskAction, DiskOutcome, MediumId},
    output::Output,
    request::{Operation, Reply, Request, RequestError, RequestId},
    table::Geometry,
    units::{Order, Position, VolumeId},
};
use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use bytes::Bytes;

/// A trial leaves this part of a pool's blocks to the group.
const RESERVED_PART: u32 = 16;

type Place = (VolumeId, u32);

/// A block that was written.
#[derive(Clone, Copy, Default)]
pub(super) struct Tried {
    /// 0: all of it reads as zeroes.
    pub(super) physical: u32,
    /// The granules that are in it; the others are those of the generation.
    pub(super) mask: u64,
}

/// A write, or the part of one that is within a block.
struct Edit {
    request: RequestId,
    /// First and last byte within the block.
    from: usize,
    to: usize,
    /// `None`: zeroes.
    data: Option<Bytes>,
    /// What the block will be.
    after: Tried,
    /// The physical block was unused before.
    is_new: bool,
}

/// See the module.
pub(super) struct Trial {
    base: Order,
    name: GenerationId,
    at: Position,
    tried: BTreeMap<Place, Tried>,
    /// Writes that wait, in order.
    queue: VecDeque<Request>,
    /// One at a time for each block.
    active: BTreeMap<Place, Edit>,
    /// How many edits of a request are left, and whether one failed.
    left: BTreeMap<RequestId, (usize, Option<RequestError>)>,
    /// It ends when its edits have; the command that waits for that.
    ending: Option<Option<CommandId>>,
}

impl Trial {
    /// The generation of which it is a copy.
    pub(super) fn base(&self) -> Order {
        self.base
    }

    /// What was written to a block.
    pub(super) fn tried(&self, volume: VolumeId, block: u32) -> Tried {
        self.tried.get(&(volume, block)).copied().unwrap_or_default()
    }

    /// Whether it takes requests.
    pub(super) fn is_open(&self) -> bool {
        self.ending.is_none()
    }

    /// The command that waits for its end, and the requests that will not be answered otherwise.
    pub(super) fn abandon(&mut self) -> (Option<CommandId>, Vec<RequestId>) {
        let waiting = core::mem::take(&mut self.queue).into_iter().map(|request| request.id);
        let requests = waiting.chain(core::mem::take(&mut self.left).into_keys()).collect();
        (self.ending.as_mut().and_then(Option::take), requests)
    }
}

impl Group {
    /// Opens a trial of a generation, of the last restart point if none is named.
    pub(super) fn begin_trial(&mut self, asked: Option<GenerationId>) -> Result<CommandReply, CommandError> {
        let kept = self.generations();
        let wanted = |kept: &GenerationStatus| match asked {
            Some(name) => kept.name == name,
            None => kept.kind != GenerationKind::Fork,
        };
        let found = kept.iter().find(|kept| kept.applied && wanted(kept));
        let Some((found, base)) = found.and_then(|found| Some((found, self.find_generation(found.name)?))) else {
            return Err(asked.map_or(CommandError::NoRestartPoint, |asked| self.not_kept(asked)));
        };
        let reply = CommandReply::Trial { generation: found.name, at: found.at };
        match &self.trial {
            Some(trial) if trial.base == base && trial.is_open() => return Ok(reply),
            Some(_) => return Err(CommandError::InProgress("trial")),
            None => {}
        }
        self.trial = Some(Trial {
            base,
            name: found.name,
            at: found.at,
            tried: BTreeMap::new(),
            queue: VecDeque::new(),
            active: BTreeMap::new(),
            left: BTreeMap::new(),
            ending: None,
        });
        Ok(reply)
    }

    /// Throws the trial away. `true` if there is none.
    pub(super) fn end_trial(&mut self, command: Option<CommandId>) -> Result<bool, CommandError> {
        let Some(trial) = &mut self.trial else { return Ok(true) };
        if trial.ending.flatten().is_some() {
            return Err(CommandError::InProgress("trial's end"));
        }
        trial.ending = Some(command);
        let waiting: Vec<RequestId> = core::mem::take(&mut trial.queue).into_iter().map(|request| request.id).collect();
        waiting.into_iter().for_each(|id| self.answer(id, Err(RequestError::NotKept)));
        self.again = true;
        Ok(false)
    }

    /// The trial as it is.
    pub(super) fn trial_status(&self) -> Option<TrialStatus> {
        let trial = self.trial.as_ref()?;
        let size =
            |(volume, _): &Place| self.volumes.get(volume).map_or(0, |volume| volume.table.geometry().block_size);
        let stored = trial.tried.iter().filter(|(_, tried)| tried.physical != 0);
        let written_bytes = stored.map(|(place, _)| u64::from(size(place))).sum();
        Some(TrialStatus { generation: trial.name, at: trial.at, written_bytes })
    }

    /// A request that changes something, or wants all before it to be done.
    pub(super) fn try_out(&mut self, request: Request) {
        if let Some(trial) = &mut self.trial {
            trial.queue.push_back(request);
            self.again = true;
        }
    }

    /// Starts what waits, as far as it is for blocks that nothing else is being written to; or ends.
    pub(super) fn continue_trial(&mut self) {
        while let Some(trial) = &mut self.trial
            && let Some(request) = trial.queue.front()
        {
            let busy =
                self.volumes.get(&request.volume).is_some_and(|volume| trial.is_busy(request, volume.table.geometry()));
            let Some(request) = trial.queue.pop_front_if(|_| !busy) else { return };
            self.try_request(request);
        }
        let Some(trial) = self.trial.take_if(|trial| !trial.is_open() && trial.active.is_empty()) else { return };
        // Nobody else may be there to ask for the checkpoint that they wait for.
        self.checkpoint.marked |= !trial.tried.is_empty();
        for ((volume, _), tried) in &trial.tried {
            if let Some(volume) = self.volumes.get_mut(volume) {
                volume.table.blocks.free(tried.physical);
            }
        }
        self.let_go_of_generations();
        if let Some(id) = trial.ending.flatten() {
            self.outputs.push_back(Output::CommandAnswer { id, result: Ok(CommandReply::Done) });
        }
    }

    fn try_request(&mut self, request: Request) {
        let (id, volume) = (request.id, request.volume);
        let (offset, end, data) = match request.operation {
            Operation::Write { offset, data, .. } => (offset, offset + data.len() as u64, Some(data)),
            Operation::WriteZeroes { offset, size, .. } => (offset, offset + size, None),
            // A discard is a hint, and a flush waits for nothing but what was before it.
            _ => return self.answer(id, Ok(Reply::Done)),
        };
        let Some(geometry) = self.volumes.get(&volume).map(|volume| *volume.table.geometry()) else { return };
        let block_size = u64::from(geometry.block_size);
        let (mut edits, mut at) = (Vec::new(), offset);
        while at < end {
            let (block, within) = ((at / block_size) as u32, at % block_size);
            let size = (block_size - within).min(end - at);
            match &data {
                None if size == block_size => self.try_hole(volume, block),
                _ => {
                    let start = (at - offset) as usize;
                    let data = data.as_ref().map(|data| data.slice(start..start + size as usize));
                    edits.push((block, within as usize, (within + size) as usize, data));
                }
            }
            at += size;
        }
        if edits.is_empty() {
            return self.answer(id, Ok(Reply::Done));
        }
        if let Some(trial) = &mut self.trial {
            trial.left.insert(id, (edits.len(), None));
        }
        for (block, from, to, data) in edits {
            let edit = Edit { request: id, from, to, data, after: Tried::default(), is_new: false };
            self.begin_edit((volume, block), edit, &geometry);
        }
    }

    /// All of a block reads as zeroes.
    fn try_hole(&mut self, id: VolumeId, block: u32) {
        let (Some(trial), Some(volume)) = (&mut self.trial, self.volumes.get_mut(&id)) else { return };
        let was =
            volume.table.entry_in(trial.base, block).is_some_and(|entry| entry.latest == 0 && entry.snapshot == 0);
        let hole = Tried { physical: 0, mask: volume.table.geometry().full_mask() };
        let before = if was { trial.tried.remove(&(id, block)) } else { trial.tried.insert((id, block), hole) };
        let freed = before.unwrap_or_default().physical;
        volume.table.blocks.free(freed);
        self.checkpoint.marked |= freed != 0;
    }

    /// Finds the block that takes it, and reads what it lacks.
    fn begin_edit(&mut self, place: Place, mut edit: Edit, geometry: &Geometry) {
        let (Some(trial), Some(volume)) = (&mut self.trial, self.volumes.get_mut(&place.0)) else { return };
        let before = trial.tried(place.0, place.1);
        let granule = geometry.granule_size() as usize;
        // A block that was all zeroes is written whole.
        let widens = before.mask != 0 && before.physical == 0;
        let (first, last) = if widens { (0, geometry.granule_count()) } else { granules(&edit, granule) };
        edit.after = Tried { physical: before.physical, mask: before.mask | mask_of(first, last) };
        if before.physical == 0 {
            let blocks = &mut volume.table.blocks;
            let found =
                (blocks.free_count() > geometry.block_count / RESERVED_PART).then(|| blocks.allocate()).flatten();
            let Some(physical) = found else {
                self.checkpoint.wanted |= blocks.is_waiting();
                trial.active.insert(place, edit);
                return self.end_edit(place, Some(RequestError::NoSpace));
            };
            (edit.after.physical, edit.is_new) = (physical, true);
        }
        let is_whole = edit.from.is_multiple_of(granule) && edit.to.is_multiple_of(granule) && !widens;
        trial.active.insert(place, edit);
        if is_whole {
            return self.write_edit(place, None);
        }
        let start = u64::from(place.1) * u64::from(geometry.block_size) + u64::from(first) * granule as u64;
        self.read_trial(Reader::Trial(place.0, place.1), place.0, start, u64::from(last - first) * granule as u64);
    }

    /// What surrounds an edit was read (`None`: it could not be).
    pub(super) fn edit_read(&mut self, place: Place, data: Option<Vec<Bytes>>) {
        match data {
            Some(parts) => self.write_edit(place, Some(parts)),
            None => self.end_edit(place, Some(RequestError::Io)),
        }
    }

    fn write_edit(&mut self, place: Place, around: Option<Vec<Bytes>>) {
        let (Some(trial), Some(volume)) = (&self.trial, self.volumes.get(&place.0)) else { return };
        let Some(edit) = trial.active.get(&place) else { return };
        let geometry = volume.table.geometry();
        let granule = geometry.granule_size() as usize;
        let widens = around
            .as_ref()
            .is_some_and(|parts| parts.iter().map(Bytes::len).sum::<usize>() == geometry.block_size as usize);
        let first = if widens { 0 } else { granules(edit, granule).0 as usize };
        let bytes = match (around, &edit.data) {
            (None, Some(data)) => aligned(data.clone()),
            (None, None) => AlignedBuffer::new(edit.to - edit.from).freeze(),
            (Some(parts), data) => {
                let mut buffer = AlignedBuffer::new(parts.iter().map(Bytes::len).sum());
                let mut rest = buffer.as_mut_slice();
                for part in parts {
                    let (target, after) = rest.split_at_mut(part.len());
                    target.copy_from_slice(&part);
                    rest = after;
                }
                let target = &mut buffer.as_mut_slice()[edit.from - first * granule..edit.to - first * granule];
                match data {
                    Some(data) => target.copy_from_slice(data),
                    None => target.fill(0),
                }
                buffer.freeze()
            }
        };
        let offset = geometry.offset_of(edit.after.physical) + (first * granule) as u64;
        let action = DiskAction::Write { offset, pieces: alloc::vec![bytes] };
        self.disk(MediumId::Pool(place.0), action, Purpose::Trial { place });
    }

    /// An edit is in the pool, or is not.
    pub(super) fn edit_written(&mut self, place: Place, outcome: DiskOutcome) {
        self.end_edit(place, outcome.err().map(|_| RequestError::Io));
    }

    fn end_edit(&mut self, place: Place, error: Option<RequestError>) {
        let Some(trial) = &mut self.trial else { return };
        let Some(edit) = trial.active.remove(&place) else { return };
        if error.is_none() {
            trial.tried.insert(place, edit.after);
        } else if let Some(volume) = self.volumes.get_mut(&place.0).filter(|_| edit.is_new) {
            volume.table.blocks.free(edit.after.physical);
            self.checkpoint.marked = true;
        }
        self.again = true;
        let Some((left, failed)) = trial.left.get_mut(&edit.request) else { return };
        *left -= 1;
        *failed = failed.or(error);
        if *left == 0 {
            let result = failed.map_or(Ok(Reply::Done), Err);
            trial.left.remove(&edit.request);
            self.answer(edit.request, result);
        }
    }
}

impl Trial {
    fn is_busy(&self, request: &Request, geometry: &Geometry) -> bool {
        let block_size = u64::from(geometry.block_size);
        let (offset, size) = match &request.operation {
            Operation::Write { offset, data, .. } => (*offset, data.len() as u64),
            Operation::WriteZeroes { offset, size, .. } => (*offset, *size),
            Operation::Flush => return !self.active.is_empty(),
            _ => return false,
        };
        let (first, last) = ((offset / block_size) as u32, ((offset + size - 1) / block_size) as u32);
        self.active.range((request.volume, first)..=(request.volume, last)).next().is_some()
    }
}

/// The granules that an edit touches: the first, and the first after it.
fn granules(edit: &Edit, granule: usize) -> (u32, u32) {
    ((edit.from / granule) as u32, edit.to.div_ceil(granule) as u32)
}

fn mask_of(first: u32, end: u32) -> u64 {
    (u64::MAX >> (64 - (end - first))) << first
}
