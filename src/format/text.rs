//! Short text in fixed space.

use crate::units::NAME_SIZE_MAX;
use alloc::borrow::ToOwned;
use alloc::string::String;
use core::{fmt, str::FromStr};
use serde::Serialize;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Text of at most [`NAME_SIZE_MAX`] bytes, as it stands in every format: the size, then UTF-8, then zeroes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Name {
    size: u8,
    text: [u8; NAME_SIZE_MAX],
}

const _: () = assert!(size_of::<Name>() == 64);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too long.
    #[error("\"{text}\" has {size} bytes; at most {NAME_SIZE_MAX} are allowed")]
    Long {
        /// The text.
        text: String,
        /// Its size in bytes.
        size: usize,
    },
    /// A control character.
    #[error("\"{text}\" has a control character")]
    Control {
        /// The text, made printable.
        text: String,
    },
    /// Not what the format says.
    #[error("The text on the medium is damaged")]
    Damaged,
}

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.text.get(..usize::from(self.size)).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("")
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Whether the bytes are what [`FromStr`] would have made.
    pub fn check(&self) -> Result<(), NameError> {
        let (text, rest) = self.text.split_at_checked(usize::from(self.size)).ok_or(NameError::Damaged)?;
        let text = core::str::from_utf8(text).map_err(|_| NameError::Damaged)?;
        if rest.iter().any(|byte| *byte != 0) || text.chars().any(char::is_control) {
            return Err(NameError::Damaged);
        }
        Ok(())
    }
}

impl Default for Name {
    fn default() -> Self {
        Self { size: 0, text: [0; NAME_SIZE_MAX] }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > NAME_SIZE_MAX {
            return Err(NameError::Long { text: text.to_owned(), size: text.len() });
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Control { text: text.escape_debug().collect() });
        }
        let mut name = Self { size: text.len() as u8, ..Self::default() };
        name.text[..text.len()].copy_from_slice(text.as_bytes());
        Ok(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
