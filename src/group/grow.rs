//! Making a volume larger.
//!
//! First a checkpoint, so that nothing of an earlier attempt can be taken for the table's new pages; then the table grows in
//! memory and a second checkpoint makes that durable, moved pages and all, with one write of the pool's superblock; then the
//! journal's superblock says the new size, and requests may go there. Whatever is interrupted is done again by the same
//! command. What the medium has gained takes no journalled data before the pool's superblock says that it is there.

use super::Group;
use crate::{
    command::{CommandError, CommandId, CommandReply},
    format::volume_entry::check_geometry,
    output::Output,
    units::VolumeId,
};

enum Step {
    /// Until this checkpoint is durable, and then until nothing is written to pools.
    Settling(u64),
    /// Until this checkpoint is durable.
    Growing(u64),
}

/// A volume that is being made larger.
pub(super) struct Growth {
    id: CommandId,
    volume: VolumeId,
    size: u64,
    pool_size: u64,
    step: Step,
}

impl Growth {
    /// Whose command it is.
    pub(super) fn command(&self) -> CommandId {
        self.id
    }
}

impl Group {
    /// `true` if there is nothing to do.
    pub(super) fn grow(
        &mut self,
        id: CommandId,
        volume: VolumeId,
        size: u64,
        pool_size: u64,
    ) -> Result<bool, CommandError> {
        if self.growth.is_some() {
            return Err(CommandError::InProgress("change of a volume's size"));
        }
        let Some(spec) = self.volumes.get(&volume).map(|volume| &volume.spec) else {
            return Err(CommandError::NoVolume(volume));
        };
        let refuse = |reason| Err(CommandError::Volume { name: spec.name, reason });
        if size == spec.size {
            return Ok(true);
        }
        if size < spec.size {
            return refuse("a volume can be made larger, not smaller");
        }
        if !spec.size.is_multiple_of(u64::from(spec.table_block_size)) {
            return refuse("its size is no multiple of its table block; make a new volume and copy it");
        }
        let mut larger = spec.clone();
        larger.size = size;
        if let Err(reason) = check_geometry(&larger) {
            return refuse(reason);
        }
        self.checkpoint.marked = true;
        self.checkpoint.wanted = true;
        let step = Step::Settling(self.checkpoint.begun() + 1);
        self.growth = Some(Growth { id, volume, size, pool_size, step });
        Ok(false)
    }

    /// Whether no destaging and no other checkpoint may begin, because a table is about to grow.
    pub(super) fn is_about_to_grow(&self) -> bool {
        matches!(&self.growth, Some(Growth { step: Step::Settling(count), .. }) if self.checkpoint.ended() >= *count)
    }

    /// Goes on with it.
    pub(super) fn continue_growth(&mut self) {
        let Some(growth) = &self.growth else { return };
        let (id, id_of_volume, size, pool_size) = (growth.id, growth.volume, growth.size, growth.pool_size);
        match growth.step {
            Step::Settling(_) => {
                if !self.is_about_to_grow()
                    || self.destage.is_running()
                    || self.checkpoint.is_running()
                    || self.is_opening()
                {
                    return;
                }
                let grown = self.volumes.get_mut(&id_of_volume).map(|volume| volume.table.grow(size, pool_size));
                if grown != Some(true) {
                    self.growth = None;
                    let name = self.volumes.get(&id_of_volume).map(|volume| volume.spec.name).unwrap_or_default();
                    let reason = "its pool's medium has not enough room; enlarge that first";
                    let result = Err(CommandError::Volume { name, reason });
                    return self.outputs.push_back(Output::CommandAnswer { id, result });
                }
                self.begin_checkpoint();
                let step = Step::Growing(self.checkpoint.begun());
                self.growth = Some(Growth { id, volume: id_of_volume, size, pool_size, step });
            }
            Step::Growing(count) if self.checkpoint.ended() >= count => {
                self.growth = None;
                if let Some(volume) = self.volumes.get_mut(&id_of_volume) {
                    volume.spec.size = size;
                }
                if self.pair.peer.is_some() && !self.peer.greeted {
                    // It was refused while its volumes were larger.
                    self.outputs.push_back(Output::Reconnect);
                }
                let count = self.superblock.request();
                self.again = true;
                self.answer_when_stored(id, count, CommandReply::Done);
            }
            Step::Growing(_) => {}
        }
    }
}
