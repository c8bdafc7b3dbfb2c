//! The ext4 image that the demo writes: a real file system, made by `mke2fs -d` from the project's docs and sources
//! and, to give the links something to carry, the sources of the crates it is built from.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// The image is written in pieces of this size, in bytes.
pub const BLOCK_BYTES: u32 = 64 << 10;

/// What goes into the image from the repository.
const OWN: [&str; 10] =
    ["src", "replicator", "ublk-target", "tools", "tests", "docs", "README.md", "Cargo.toml", "Cargo.lock", ".ci"];

/// A file system image, and what is in it.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// How many files went into it.
    pub files_count: u64,
    /// Where it is not all zeroes: starts of blocks of [`BLOCK_BYTES`], ascending.
    pub used_blocks: Vec<u64>,
}

/// Makes an ext4 image of `size` bytes in `folder`, with at most `crates_bytes_max` of crate sources.
///
/// # Errors
/// When the sources cannot be read, `mke2fs` is missing or fails, or the folder is full.
pub fn build(folder: &Path, size: u64, crates_bytes_max: u64) -> anyhow::Result<Image> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("The demo was built outside its repository")?;
    let staging = folder.join("content");
    let mut copied = Copied::default();
    for name in OWN {
        let from = root.join(name);
        if from.exists() {
            fs::create_dir_all(staging.join("holdfast"))?;
            copied.tree(&from, &staging.join("holdfast").join(name), u64::MAX)?;
        }
    }
    ensure!(
        copied.files_count > 0,
        "There is nothing to fill the image with: {} is empty; run the demo in its repository",
        root.display()
    );
    if let Some(crates) = crate_sources() {
        copied.bytes = 0;
        copied.tree(&crates, &staging.join("crates"), crates_bytes_max)?;
    }
    let path = folder.join("image.ext4");
    File::create_new(&path)
        .and_then(|file| file.set_len(size))
        .with_context(|| format!("Cannot create {}", path.display()))?;
    run("mke2fs", |command| {
        command.args(["-q", "-F", "-t", "ext4", "-L", "holdfast", "-d"]);
        command.arg(&staging).arg(&path)
    })?;
    fs::remove_dir_all(&staging)?;
    let used_blocks = used_blocks(&path)?;
    Ok(Image { path, size, files_count: copied.files_count, used_blocks })
}

/// Checks the file system in `path` without changing it and returns the checker's closing line.
///
/// # Errors
/// When `e2fsck` is missing or finds anything wrong.
pub fn check(path: &Path) -> anyhow::Result<String> {
    let output = run("e2fsck", |command| command.arg("-fn").arg(path))?;
    Ok(output.lines().last().unwrap_or_default().to_owned())
}

/// Where cargo keeps the sources of crates, if it is in its usual place.
fn crate_sources() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))?;
    let entries = fs::read_dir(home.join("registry/src")).ok()?;
    entries.filter_map(Result::ok).map(|entry| entry.path()).max()
}

#[derive(Default)]
struct Copied {
    files_count: u64,
    bytes: u64,
}

impl Copied {
    /// Copies files and folders, in the order of their names, until `bytes_max` is reached. Links and the like stay out.
    fn tree(&mut self, from: &Path, to: &Path, bytes_max: u64) -> anyhow::Result<()> {
        let reading = || format!("Cannot read {}", from.display());
        let kind = fs::symlink_metadata(from).with_context(reading)?;
        if kind.is_file() && self.bytes + kind.len() <= bytes_max {
            fs::copy(from, to).with_context(|| format!("Cannot copy {} to {}", from.display(), to.display()))?;
            self.files_count += 1;
            self.bytes += kind.len();
        }
        if kind.is_dir() && self.bytes < bytes_max {
            fs::create_dir_all(to).with_context(|| format!("Cannot create {}", to.display()))?;
            let mut names = fs::read_dir(from)
                .with_context(reading)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<Vec<_>, _>>()
                .with_context(reading)?;
            names.sort();
            for name in names.iter().filter(|name| *name != "target") {
                self.tree(&from.join(name), &to.join(name), bytes_max)?;
            }
        }
        Ok(())
    }
}

fn used_blocks(path: &Path) -> anyhow::Result<Vec<u64>> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut used = Vec::new();
    for index in 0.. {
        match file.read_exact(&mut block) {
            Ok(()) if block.iter().any(|&byte| byte != 0) => {
                used.push(index * u64::from(BLOCK_BYTES));
            }
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(used)
}

fn run(program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> anyhow::Result<String> {
    // File system tools are not on every user's path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new(program);
    let output = arguments(command.env("PATH", path).stdin(Stdio::null()))
        .output()
        .with_context(|| format!("Cannot run {program}; it is in Debian's package e2fsprogs"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}):\n{text}{errors}", output.status);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn image_is_a_clean_file_system_and_damage_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = build(folder.path(), 64 << 20, 1 << 20).expect("an image");
        assert!(image.files_count > 20, "{image:?}");
        assert!(image.used_blocks.contains(&0));
        assert!(image.used_blocks.is_sorted());
        assert!((image.used_blocks.len() as u64) < image.size / u64::from(BLOCK_BYTES));
        let summary = check(&image.path).expect("clean");
        assert!(summary.contains("files"), "{summary}");
        // What is outside the used blocks is zero, so writing those alone makes the same image.
        let whole = fs::read(&image.path).expect("readable");
        assert_eq!(whole.len() as u64, image.size);
        let bytes = BLOCK_BYTES as usize;
        let nonzero = whole.chunks(bytes).filter(|block| block.iter().any(|&byte| byte != 0));
        assert_eq!(nonzero.count(), image.used_blocks.len());
        // A broken superblock is found.
        let file = File::options().write(true).open(&image.path).expect("writable");
        file.write_all_at(&[0xff; 512], 1_024).expect("written");
        assert!(check(&image.path).is_err());
    }
}
