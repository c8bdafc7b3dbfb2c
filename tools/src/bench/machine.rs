//! On what was measured.

use std::{fs, path::Path, thread};

/// The machine, its kernel, its load now, and the file system of a folder.
pub fn conditions(folder: &Path) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let processors = thread::available_parallelism().map_or(0, usize::from);
    let file_system = file_system(folder, &read("/proc/mounts"));
    vec![
        ("Holdfast", env!("CARGO_PKG_VERSION").to_owned()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("processors", format!("{processors} × {}", model.map_or("unknown", |(_, model)| model.trim()))),
        ("load before", read("/proc/loadavg").trim().to_owned()),
        ("files in", format!("{} ({file_system})", folder.display())),
    ]
}

/// The type and device of the file system that a folder is on: of the longest mount point above it, the last mounted.
fn file_system(folder: &Path, mounts: &str) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?, words.next()?))
    });
    mounts
        .filter(|(_, point, _)| folder.starts_with(point))
        .max_by_key(|(_, point, _)| point.len())
        .map_or("unknown".to_owned(), |(device, _, kind)| format!("{kind} on {device}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_above_counts() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\ntmpfs /tmpother xfs rw 0 0\n";
        assert_eq!(file_system(Path::new("/tmp/folder"), mounts), "tmpfs on tmpfs");
        assert_eq!(file_system(Path::new("/var/tmp"), mounts), "ext4 on /dev/vda");
        assert_eq!(file_system(Path::new("/var/tmp"), ""), "unknown");
    }
}
