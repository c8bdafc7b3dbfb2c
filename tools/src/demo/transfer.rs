//! Bytes between files and an NBD export: ahead writing, reading all, comparing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::display::Progress;
use crate::nbd_client::{NbdClient, NbdRequest};

/// So many requests are under way at once.
const QUEUE_DEPTH: usize = 16;

/// Writes without waiting for the answer, as long as few are under way.
///
/// # Errors
/// When the server refused an earlier write or the connection broke.
pub fn write_ahead(client: &mut NbdClient, offset: u64, data: &[u8], progress: &Progress) -> anyhow::Result<()> {
    while client.pending_count() >= QUEUE_DEPTH {
        client.complete()?.result?;
    }
    client.submit(NbdRequest::Write { offset, data, durable: false })?;
    progress.add_bytes(data.len() as u64);
    Ok(())
}

/// Reads `bytes` bytes of the export into a new file, several requests under way at once.
///
/// # Errors
/// When the server refuses, the connection broke, or the file cannot be written.
pub fn read_all(client: &mut NbdClient, bytes: u64, path: &Path, progress: &Progress) -> anyhow::Result<()> {
    const PIECE: u32 = 1 << 20;
    let file = File::create_new(path).with_context(|| format!("Cannot create {}", path.display()))?;
    file.set_len(bytes)?;
    let mut offsets = BTreeMap::new();
    let mut next = 0;
    while next < bytes || client.pending_count() > 0 {
        if next < bytes && client.pending_count() < QUEUE_DEPTH / 4 {
            let size = u32::try_from(bytes - next).unwrap_or(PIECE).min(PIECE);
            let cookie = client.submit(NbdRequest::Read { offset: next, size })?;
            offsets.insert(cookie, next);
            next += u64::from(size);
            continue;
        }
        let completion = client.complete()?;
        let data = completion.result?;
        let offset = offsets.remove(&completion.cookie).context("An answer came twice")?;
        // Holes stay holes: the copy takes no more room than the image.
        if data.iter().any(|&byte| byte != 0) {
            file.write_all_at(&data, offset)?;
        }
        progress.add_bytes(data.len() as u64);
    }
    Ok(())
}

/// Compares two files byte for byte.
///
/// # Errors
/// When they differ, with the first place; or cannot be read.
pub fn compare(expected: &Path, found: &Path, progress: &Progress) -> anyhow::Result<()> {
    let (expected, found) = (File::open(expected)?, File::open(found)?);
    let (size, found_size) = (expected.metadata()?.len(), found.metadata()?.len());
    ensure!(size == found_size, "The copy has {found_size} bytes, not {size}");
    let mut offset = 0;
    while offset < size {
        let piece = (size - offset).min(1 << 20) as usize;
        let mut both = [vec![0; piece], vec![0; piece]];
        expected.read_exact_at(&mut both[0], offset)?;
        found.read_exact_at(&mut both[1], offset)?;
        if both[0] != both[1] {
            let at = both[0].iter().zip(&both[1]).position(|(left, right)| left != right);
            bail!(
                "The standby's volume differs from what was written, first at byte {}",
                offset + at.unwrap_or(0) as u64
            );
        }
        offset += piece as u64;
        progress.add_bytes(piece as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::super::display::Display;
    use super::*;

    #[test]
    fn what_is_written_ahead_is_what_is_read_back() {
        const SIZE: u64 = (5 << 20) + 4_096;
        let folder = tempfile::tempdir().expect("a folder");
        let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
        File::create(&image).and_then(|file| file.set_len(SIZE)).expect("an image");
        // It ends by itself when its only client leaves.
        let status = Command::new("qemu-nbd")
            .args(["--fork", "--format=raw", "--socket"])
            .args([&socket, &image])
            .stdin(Stdio::null())
            .status()
            .expect("qemu-nbd is in Debian's package qemu-utils");
        assert!(status.success(), "{status}");
        let copy = folder.path().join("copy");
        let mut display = Display::new();
        display
            .step("write and read", |progress| {
                let mut client = NbdClient::connect_unix(&socket, "")?;
                for index in (0..80u64).filter(|index| index % 7 != 3) {
                    write_ahead(&mut client, index << 16, &[index as u8 + 1; 1 << 16], progress)?;
                    assert!(client.pending_count() <= QUEUE_DEPTH);
                }
                client.complete_all()?;
                client.flush()?;
                read_all(&mut client, SIZE, &copy, progress)?;
                compare(&image, &copy, progress)?;
                Ok(((), String::new()))
            })
            .expect("equal");
        let copied = std::fs::read(&copy).expect("readable");
        assert_eq!(copied.len() as u64, SIZE);
        assert_eq!((copied[0], copied[3 << 16], copied[79 << 16]), (1, 0, 80));
    }

    #[test]
    fn one_wrong_byte_is_found_and_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let (left, right) = (folder.path().join("left"), folder.path().join("right"));
        let display = &mut Display::new();
        let mut bytes = vec![5; (3 << 20) + 17];
        std::fs::write(&left, &bytes).expect("written");
        std::fs::write(&right, &bytes).expect("written");
        let mut compared = || display.step("compare", |progress| Ok((compare(&left, &right, progress), String::new())));
        assert!(compared().expect("a step").is_ok());
        bytes[(2 << 20) + 3] = 6;
        std::fs::write(&right, &bytes).expect("written");
        let error = compared().expect("a step").expect_err("they differ").to_string();
        assert!(error.ends_with("first at byte 2097155"), "{error}");
        bytes.pop();
        std::fs::write(&right, &bytes).expect("written");
        let error = compared().expect("a step").expect_err("they differ").to_string();
        assert_eq!(error, "The copy has 3145744 bytes, not 3145745");
    }
}
