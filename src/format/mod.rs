//! Every byte on a medium or in a frame: one file a format.
//!
//! All integers are little-endian; reserved bytes are written zero and checked zero; each structure has a magic, a
//! version and a CRC32C. Bytes that were not checked have no type here: a parser gives the checked structure or an
//! error.

pub mod batch;
pub mod journal_superblock;
pub mod kept_page;
pub mod message;
pub mod page;
mod parts;
pub mod pool_superblock;
pub mod record;
pub mod table_page;
pub mod text;
pub mod volume_entry;

pub use parts::{FormatError, MAGIC, VERSION};
