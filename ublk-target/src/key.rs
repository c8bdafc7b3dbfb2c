//! The node's key file.

use replicator::io::{Identity, IdentityError};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("Cannot read or create the key file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content is no key.
    #[error("{path}: {source}; restore the file, or move it away to get a new key (the peers must then be told)")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
}

/// Reads the key file, or makes it with mode 0600.
pub fn load_or_create(path: &Path) -> Result<Identity, KeyError> {
    let file = |source| KeyError::File { path: path.into(), source };
    let content = |source| KeyError::Content { path: path.into(), source };
    match fs::read(path) {
        Ok(bytes) => return Identity::from_bytes(&bytes).map_err(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file(error)),
    }
    let identity = Identity::generate().map_err(content)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(file)?;
    }
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(file)?;
    made.write_all(identity.to_bytes()).map_err(file)?;
    made.sync_all().map_err(file)?;
    Ok(identity)
}
