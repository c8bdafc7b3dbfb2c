//! The sites of the tests: small, with a journal that is full soon.

use std::path::{Path, PathBuf};
use tools::{emulator::LineSettings, sites::SiteOptions};

pub use tools::sites::{EXPORT, GROUP, Sites};

/// The volume's size in bytes.
pub const SIZE: u64 = 64 << 20;

/// Where cargo put the programs.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    test.ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

fn options(line: LineSettings, seed: u64) -> SiteOptions {
    let (size, journal_size) = ("64MiB".to_owned(), "64MiB".to_owned());
    SiteOptions { prefix: "holdfast-test", programs: programs(), line: Some(line), seed, size, journal_size }
}

/// Two nodes that are not running.
pub fn new(line: LineSettings, seed: u64) -> anyhow::Result<Sites> {
    Sites::new(&options(line, seed))
}

/// Two running nodes with a volume that is paired and in step.
pub fn paired(line: LineSettings, seed: u64) -> anyhow::Result<Sites> {
    Sites::paired(&options(line, seed))
}
