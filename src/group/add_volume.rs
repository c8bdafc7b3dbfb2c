//! Adding a volume to a group. Its number may have been a former volume's, of which the journal still has entries: before the
//! group knows the new one, its table says durably that it has them.

use super::{Group, Volume};
use crate::{
    command::{CommandError, CommandId, CommandReply, VolumeSpec},
    disk::{DiskError, MediumId, Storage},
    output::Output,
    overlay::Overlay,
    pair::Role,
    table::{self, Table},
    units::{Now, VOLUME_COUNT_MAX},
};

impl Group {
    /// Adds a volume whose pool was formatted for it; answered like a command.
    pub fn handle_add_volume(&mut self, now: Now, id: CommandId, storage: &mut dyn Storage, spec: VolumeSpec) {
        self.now = now;
        let result = self.add_volume(storage, spec);
        match result {
            Ok(()) => {
                let count = self.superblock.request();
                self.answer_when_stored(id, count, CommandReply::Done);
            }
            Err(error) => self.outputs.push_back(Output::CommandAnswer { id, result: Err(error) }),
        }
    }

    fn add_volume(&mut self, storage: &mut dyn Storage, spec: VolumeSpec) -> Result<(), CommandError> {
        let refuse = |reason| Err(CommandError::Volume { name: spec.name, reason });
        if self.stopped.is_some() {
            return Err(CommandError::Stopped);
        }
        if self.pair.peer.is_some() && self.pair.role == Role::Primary {
            return refuse("the group is paired; delete the pair, add the volume, create the pair again");
        }
        if self.volumes.len() >= VOLUME_COUNT_MAX {
            return refuse("the group has 64 volumes, which is the most");
        }
        if self.volumes.values().any(|volume| volume.spec.name == spec.name || volume.spec.id == spec.id) {
            return refuse("the group has a volume of that name or number");
        }
        if self.journal.after(self.durable).any(|(_, entry)| entry.record.volume == spec.id) {
            return refuse("a volume with its number was forgotten a moment ago; try again");
        }
        let Ok(mut table) = table::load(storage, self.id, &spec) else {
            return refuse("its pool cannot be used");
        };
        let mut kept = self.kept_before(self.journal.last());
        kept.extend(self.stream.restart_point.as_ref().map(|point| point.order));
        let later = kept.split_off(&self.durable.next());
        table.keep_nothing_as(&kept);
        if self.store_new(storage, &spec, &mut table).is_err() {
            return refuse("its pool cannot be written");
        }
        table.keep_nothing_as(&later);
        let applied_before = self.journal.last();
        let volume = Volume { spec: spec.clone(), table, overlay: Overlay::default(), unsynced: false, applied_before };
        self.volumes.insert(spec.id, volume);
        self.checkpoint.wanted = true;
        Ok(())
    }

    /// Makes an empty table durable as of the last durable entry.
    fn store_new(&mut self, storage: &mut dyn Storage, spec: &VolumeSpec, table: &mut Table) -> Result<(), DiskError> {
        let medium = MediumId::Pool(spec.id);
        let mut checkpoint = table.begin_checkpoint(self.durable);
        while let Some((offset, bytes)) = table.next_page() {
            storage.write(medium, offset, bytes)?;
        }
        storage.sync(medium)?;
        let (offset, bytes) = table.superblock(&mut checkpoint);
        storage.write(medium, offset, bytes)?;
        storage.sync(medium)?;
        table.commit_checkpoint(checkpoint, self.reads.next());
        Ok(())
    }
}
