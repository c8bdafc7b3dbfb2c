//! What nodes say to each other outside any group: JSON, version 1.

use holdfast::{
    command::VolumeSpec,
    format::text::NameError,
    pair::Role,
    units::{MediumUuid, VolumeId},
};
use serde::{Deserialize, Serialize};

/// A volume that a standby is to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionVolume {
    id: u16,
    /// Its name in the group.
    pub name: String,
    size: u64,
    logical_block_size: u32,
    table_block_size: u32,
}

impl From<&VolumeSpec> for ProvisionVolume {
    fn from(spec: &VolumeSpec) -> Self {
        Self {
            id: spec.id.0,
            name: spec.name.to_string(),
            size: spec.size,
            logical_block_size: spec.logical_block_size,
            table_block_size: spec.table_block_size,
        }
    }
}

impl ProvisionVolume {
    /// Whether it is the same volume of the group, by its number.
    pub fn has_number_of(&self, spec: &VolumeSpec) -> bool {
        self.id == spec.id.0
    }

    /// The volume, with its pool on this node.
    pub fn spec(&self, pool: MediumUuid, pool_path: String) -> Result<VolumeSpec, NameError> {
        Ok(VolumeSpec {
            id: VolumeId(self.id),
            name: self.name.parse()?,
            size: self.size,
            logical_block_size: self.logical_block_size,
            table_block_size: self.table_block_size,
            pool,
            pool_path,
        })
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "v1", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// "Make a standby of this group."
    Provision {
        /// Comes back with the answer.
        number: u64,
        /// The group's id, 32 hexadecimal digits.
        group: String,
        /// Its name.
        name: String,
        /// Bytes in the journal's ring.
        journal_size: u64,
        /// Its volumes.
        volumes: Vec<ProvisionVolume>,
    },
    /// The answer.
    Provisioned {
        /// As asked.
        number: u64,
        /// Why not.
        error: Option<String>,
    },
    /// "Make this volume of your standby larger."
    Grow {
        /// Comes back with the answer, which is [`Message::Provisioned`].
        number: u64,
        /// The group's id, 32 hexadecimal digits.
        group: String,
        /// Its number in the group.
        volume: u16,
        /// Bytes.
        size: u64,
    },
    /// "I have stepped down, and you have everything: be the primary."
    TakeOver {
        /// Comes back with the answer, which is [`Message::Provisioned`].
        number: u64,
        /// The group's id, 32 hexadecimal digits.
        group: String,
    },
    /// "What are you for this group?"
    WhichRole {
        /// Comes back with the answer.
        number: u64,
        /// The group's id, 32 hexadecimal digits.
        group: String,
    },
    /// The answer.
    Role {
        /// As asked.
        number: u64,
        /// Nothing if the group is not there, or not paired with the asker.
        role: Option<Role>,
    },
}

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a message; `None` if it is none of this version.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let message = Message::Provisioned { number: 7, error: None };
        assert_eq!(message.encode(), br#"{"v1":"provisioned","number":7,"error":null}"#);
        assert_eq!(Message::parse(&message.encode()), Some(message));
        assert_eq!(Message::parse(br#"{"v2":"provisioned","number":7}"#), None);
    }
}
