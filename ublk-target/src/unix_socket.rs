//! Unix sockets to listen on, which only their owner can open.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error(
        "Another program answers on {path}: stop it if it is a second holdfastd, else choose another path for {key}"
    )]
    InUse {
        /// Where.
        path: PathBuf,
        /// The key of the configuration that says so.
        key: &'static str,
    },
    /// Something else is there.
    #[error("{path} is there and is not a socket: move it away, or choose another path for {key}")]
    NotASocket {
        /// Where.
        path: PathBuf,
        /// The key of the configuration that says so.
        key: &'static str,
    },
    /// It cannot be made.
    #[error("Cannot listen on {path}: {source}; mend that, or choose another path for {key}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// The key of the configuration that says so.
        key: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket that `key` of the configuration names. One that a dead daemon left is replaced, and nothing else is: a file to
/// which nobody answers either may be the node's own key.
pub fn listen(path: &Path, key: &'static str) -> Result<UnixListener, SocketError> {
    let error = |source| SocketError::Listen { path: path.into(), key, source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse { path: path.into(), key }),
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(error)?;
            }
            Err(other) => return Err(error(other)),
        },
        Ok(_) => return Err(SocketError::NotASocket { path: path.into(), key }),
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => {}
        Err(other) => return Err(error(other)),
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(error)?;
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn only_a_socket_that_nobody_answers_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/socket");
        let listener = listen(&path, "node.control").unwrap();
        assert!(matches!(listen(&path, "node.control"), Err(SocketError::InUse { .. })));
        drop(listener);
        listen(&path, "node.control").unwrap();

        let (key, link) = (folder.path().join("key"), folder.path().join("link"));
        fs::write(&key, "secret").unwrap();
        symlink(&key, &link).unwrap();
        for other in [&key, &link, &folder.path().to_owned()] {
            let refusal = listen(other, "nbd.unix").unwrap_err();
            assert!(matches!(refusal, SocketError::NotASocket { .. }), "{refusal}");
            let way_out = "is there and is not a socket: move it away, or choose another path for nbd.unix";
            assert_eq!(refusal.to_string(), format!("{} {way_out}", other.display()));
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "secret");
    }
}
