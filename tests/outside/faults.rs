//! What can happen to two nodes: bad lines, death, a standstill, a full disk, limits. Each is begun and ended by a call.

use anyhow::{Context, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use system_tests::sites::{GROUP, Sites, programs};
use tools::{
    emulator::{BurstLoss, LineSettings, Probability, Random},
    sites::SiteOptions,
};

/// A daemon that is not ready by then has a fault.
const READY: Duration = Duration::from_secs(30);
/// Unless it was given limits, of which it may run out before it can say so.
const READY_WITH_LIMITS: Duration = Duration::from_secs(3);
/// Room on a node's small disk: more than journal and pools ever need.
const DISK: &str = "192m";

/// What a daemon may use, as a shell's `ulimit` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// Whatever this machine gives.
    None,
    /// So many open files.
    Files(u32),
    /// Files of so many KiB.
    FileKibibytes(u64),
}

/// The nodes and lines.
pub struct World {
    // Dropped first: a folder that is mounted on cannot be removed.
    disks: Disks,
    /// The nodes.
    pub sites: Sites,
    limits: [Limits; 2],
}

struct Disks {
    mounted: [Option<PathBuf>; 2],
}

impl Drop for Disks {
    fn drop(&mut self) {
        for folder in self.mounted.iter().flatten() {
            // Lazily: the daemons that still run are about to be killed.
            let _ = shell(&["umount", "-l", &folder.display().to_string()]);
        }
    }
}

fn shell(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl World {
    /// Two nodes that are not running, their media on disks of their own if this user may mount.
    pub fn new(seed: u64) -> anyhow::Result<Self> {
        let sites = Sites::new(&SiteOptions {
            prefix: "holdfast-outside",
            programs: programs(),
            line: Some(LineSettings::default()),
            seed,
            size: "16MiB".to_owned(),
            journal_size: "16MiB".to_owned(),
        })?;
        let mut disks = Disks { mounted: [None, None] };
        for (node, mounted) in disks.mounted.iter_mut().enumerate() {
            *mounted = disk(&groups(&sites, node))?;
        }
        Ok(Self { disks, sites, limits: [Limits::None; 2] })
    }

    /// Starts a daemon with limits.
    pub fn start(&mut self, node: usize, limits: Limits) -> anyhow::Result<()> {
        self.limits[node] = limits;
        let limit = match limits {
            Limits::None => String::new(),
            Limits::Files(count) => format!("ulimit -n {count};"),
            // A shell counts in blocks of 512 bytes.
            Limits::FileKibibytes(size) => format!("ulimit -f {};", size * 2),
        };
        let name = &self.sites.nodes[node].name;
        let ready = if limits == Limits::None { READY } else { READY_WITH_LIMITS };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("echo $$ > \"$1\"; {limit} exec \"$2\" --config \"$3\"")).arg("sh");
        command.arg(self.pid_path(node)).arg(programs().join("holdfastd")).arg(self.sites.nodes[node].config_path());
        self.sites.workplace.start(name, &mut command, ready)
    }

    /// Kills a daemon, or finds that it has died of its limits.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        self.sites.kill(node)
    }

    /// What a daemon was started with.
    pub fn limits(&self, node: usize) -> Limits {
        self.limits[node]
    }

    fn pid_path(&self, node: usize) -> PathBuf {
        self.sites.workplace.folder().join(format!("{node}.pid"))
    }

    /// Stops a daemon (`STOP`), or lets it go on (`CONT`).
    pub fn signal(&self, node: usize, signal: &str) -> anyhow::Result<()> {
        let pid = fs::read_to_string(self.pid_path(node))?;
        shell(&["kill", "-s", signal, pid.trim()])
    }

    /// Makes both lines bad, each way in its own manner.
    pub fn disturb(&self, random: &mut Random) -> String {
        let mut text = String::new();
        for (name, link) in [("one", &self.sites.links[0]), ("two", &self.sites.links[1])] {
            let settings = line(random);
            text += &format!(
                " {name}: delay {:?}+{:?}, loss {}, burst {:?}, doubled {}, reordered {}, corrupt {};",
                settings.delay,
                settings.jitter,
                settings.loss,
                settings.burst.map(|burst| burst.begin),
                settings.duplicate,
                settings.reorder,
                settings.corrupt
            );
            link.change(|it| *it = LineSettings { cut: it.cut, ..settings.clone() });
        }
        text
    }

    /// Both lines are good again.
    pub fn calm(&self) {
        self.sites.links.iter().for_each(|link| link.change(|it| *it = LineSettings::default()));
    }

    /// Takes nearly all room of a node's disk; whether it has one of its own.
    pub fn fill(&self, node: usize, left: u64) -> anyhow::Result<bool> {
        let Some(folder) = &self.disks.mounted[node] else { return Ok(false) };
        let output = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(folder).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (blocks, size) = text.trim().split_once(' ').context("stat")?;
        let free = blocks.parse::<u64>()? * size.parse::<u64>()?;
        let mut ballast = free.saturating_sub(left).max(4096);
        let path = folder.join("ballast").display().to_string();
        // The daemon may have taken some of it meanwhile.
        while let Err(error) = shell(&["fallocate", "-l", &ballast.to_string(), &path]) {
            ensure!(ballast > 1 << 20, "{error:#}");
            ballast -= 1 << 20;
        }
        Ok(true)
    }

    /// Gives the room back.
    pub fn empty(&self, node: usize) {
        if let Some(folder) = &self.disks.mounted[node] {
            // Not there if the disk was not full.
            let _ = fs::remove_file(folder.join("ballast"));
        }
    }

    /// Makes the group, its volumes and the pair.
    pub fn create(&self, volumes: &[(String, usize)]) -> anyhow::Result<()> {
        self.sites.ask(0, &["group", "create", GROUP, "--journal-size", "16MiB"])?;
        for (number, (export, block)) in volumes.iter().enumerate() {
            let name = export.rsplit('/').next().unwrap_or_default();
            let logical = (block * 512).to_string();
            let table = if number == 0 { "64KiB" } else { "16KiB" };
            let size = ["--size", "16MiB", "--logical-block", &logical, "--table-block", table];
            self.sites.ask(0, &[&["volume", "create", GROUP, name], &size[..]].concat())?;
        }
        self.sites.pair()
    }
}

fn groups(sites: &Sites, node: usize) -> PathBuf {
    sites.workplace.folder().join(&sites.nodes[node].name).join("state/groups")
}

/// A small disk of memory in a node's directory. None where this user may not mount; then a limit on files' sizes takes its place.
fn disk(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    fs::create_dir_all(folder)?;
    let path = folder.display().to_string();
    if let Err(error) = shell(&["mount", "-t", "tmpfs", "-o", &format!("size={DISK}"), "holdfast-outside", &path]) {
        println!("No disk of its own for a node: limits on files' sizes take the place of full disks ({error:#})");
        return Ok(None);
    }
    // Before Linux 6.6 this file system had no direct I/O.
    let probe = folder.join("probe").display().to_string();
    if shell(&["dd", "if=/dev/zero", &format!("of={probe}"), "bs=4096", "count=1", "oflag=direct"]).is_err() {
        shell(&["umount", &path])?;
        println!("tmpfs has no direct I/O here: limits on files' sizes take the place of full disks");
        return Ok(None);
    }
    fs::remove_file(&probe)?;
    Ok(Some(folder.to_owned()))
}

fn line(random: &mut Random) -> LineSettings {
    let mut percent = |limit: u64| Probability::from_percent(random.below(limit + 1) as u32);
    let (loss, duplicate, reorder, corrupt) = (percent(10), percent(20), percent(20), percent(1));
    let mut millis = |limit| Duration::from_millis(random.below(limit));
    let (delay, jitter, reorder_by) = (millis(20), millis(5), millis(15));
    let burst = (random.below(3) == 0).then(|| BurstLoss::averaging(Probability::from_percent(3), 8));
    LineSettings { delay, jitter, loss, duplicate, reorder, reorder_by, corrupt, burst, ..LineSettings::default() }
}
