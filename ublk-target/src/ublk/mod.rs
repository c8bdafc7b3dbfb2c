//! Volumes as kernel block devices, `/dev/ublkbN`.
//!
//! The disk thread serves the queues of all devices, each by a ring of its own. A write's data is copied once, from the bio into a
//! buffer of ours (USER_COPY). libublk makes and manages the devices.
//!
//! A device outlives the daemon: when that dies, the kernel holds requests back until a new one takes the device over, and
//! issues those again that were under way. That is harmless: a write that was issued twice carries the same data twice, and
//! until the first issue was answered, no later write to the same place was sent by anybody who waits for answers.

mod control;
mod queue;

pub use control::{
    AttachError, Device, DeviceInfo, Shape, attach, attached, detach, device_info, driver_features, quiesce, resize,
};
pub use queue::{Answer, Asker, NewQueue, Queue};

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The kernel frees memory by writing to devices: what serves one must not wait for memory to be freed. Holds for this thread
/// and those that it starts; without CAP_SYS_RESOURCE nothing happens, and no device can be made either.
pub fn never_wait_for_memory() {
    let _ = libublk::ctrl::UblkCtrl::init_queue_thread();
}

/// The name of the kernel's device.
pub fn device_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// The ublk device that a file lies on, or that the path itself is: its number.
///
/// A daemon that keeps its media on a device that it serves waits for itself when memory is short.
pub fn device_below(path: &Path) -> Option<u32> {
    let place = path.ancestors().find_map(|place| std::fs::metadata(place).ok())?;
    let number = if place.rdev() != 0 { place.rdev() } else { place.dev() };
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let device = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // A partition's folder is below its disk's.
    let disk = device.ancestors().find_map(|folder| folder.file_name()?.to_str()?.strip_prefix("ublkb"))?;
    disk.split('p').next()?.parse().ok()
}
