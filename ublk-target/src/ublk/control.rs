//! A device's life: made, taken over from a daemon that is gone, stopped.

use super::{device_path, queue::NewQueue};
use crate::config::Recovery;
use libublk::{
    UblkError, UblkFlags,
    ctrl::{UblkCtrl, UblkCtrlBuilder},
    io::UblkDev,
    sys,
};
use nix::libc;
use std::{
    fs::OpenOptions,
    io,
    os::{fd::BorrowedFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::mpsc,
    time::Duration,
};
use tokio::sync::mpsc::UnboundedSender;

/// Where the driver is asked.
const CONTROL: &str = "/dev/ublk-control";
/// Bytes of a request at most; larger ones are split by the kernel.
const REQUEST_SIZE_MAX: u32 = 1 << 20;
/// Bytes of a discard or write-zeroes at most.
const ZEROES_SIZE_MAX: u32 = 1 << 30;

/// Why a volume is not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no driver.
    #[error("The kernel's ublk driver is not there (no {CONTROL}): try `modprobe ublk_drv`, or attach with --nbd")]
    NoDriver,
    /// The driver is too old.
    #[error("The kernel's ublk driver lacks {0}; use NBD, which serves the volume as it is")]
    Lacks(&'static str),
    /// Somebody uses it.
    #[error("{path} is mounted or in use; unmount it first", path = device_path(*.0).display())]
    InUse(u32),
    /// The driver refuses.
    #[error("The ublk driver refuses to {what}: {reason}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

fn refused(what: &'static str) -> impl Fn(UblkError) -> AttachError {
    move |error| {
        let reason = match error {
            UblkError::OtherError(errno) | UblkError::UringIOError(errno) => {
                io::Error::from_raw_os_error(errno.abs()).to_string()
            }
            other => other.to_string(),
        };
        AttachError::Refused { what, reason }
    }
}

/// The library counts "busy" as success.
fn done(result: Result<i32, UblkError>) -> Result<(), UblkError> {
    match result {
        Ok(code) if code < 0 => Err(UblkError::UringIOError(code)),
        result => result.map(drop),
    }
}

/// What a device is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Names the volume in the driver's records, so that a later daemon finds its devices.
    pub mark: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub logical_block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight on a queue.
    pub depth: u16,
    /// What becomes of requests under way when this process dies.
    pub recovery: Recovery,
}

impl Shape {
    fn parameters(&self) -> sys::ublk_params {
        let block = self.logical_block_size.trailing_zeros() as u8;
        let mut attributes = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
        if self.read_only {
            attributes |= sys::UBLK_ATTR_READ_ONLY;
        }
        sys::ublk_params {
            len: size_of::<sys::ublk_params>() as u32,
            types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
            basic: sys::ublk_param_basic {
                attrs: attributes,
                logical_bs_shift: block,
                physical_bs_shift: 12,
                io_opt_shift: 16,
                io_min_shift: 12,
                max_sectors: REQUEST_SIZE_MAX >> 9,
                dev_sectors: self.size >> 9,
                ..Default::default()
            },
            discard: sys::ublk_param_discard {
                discard_granularity: 4096,
                max_discard_sectors: ZEROES_SIZE_MAX >> 9,
                max_write_zeroes_sectors: ZEROES_SIZE_MAX >> 9,
                max_discard_segments: 1,
                ..Default::default()
            },
            ..Default::default()
        }
    }
}

/// A device that this process serves.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// N of `/dev/ublkbN`.
    pub number: u32,
    /// It was taken over from a daemon that is gone.
    pub taken_over: bool,
}

/// A device as the driver knows it.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// N of `/dev/ublkbN`.
    pub number: u32,
    /// See [`Shape::mark`].
    pub mark: u64,
    /// The process that serves it, or did.
    pub process: u32,
    queues: u16,
    depth: u16,
    /// It was never started, or is stopped: nothing can be taken over.
    pub is_dead: bool,
}

/// What the driver can do: bits of `UBLK_F_*`.
///
/// # Errors
/// When there is no driver, or it is older than Linux 6.5.
pub fn driver_features() -> Result<u64, AttachError> {
    if !Path::new(CONTROL).exists() {
        return Err(AttachError::NoDriver);
    }
    UblkCtrl::get_features().ok_or(AttachError::Lacks("GET_FEATURES (Linux 6.5)"))
}

/// All ublk devices of this machine. Blocks for a moment.
pub fn attached() -> Vec<DeviceInfo> {
    let Ok(entries) = std::fs::read_dir("/sys/class/ublk-char") else {
        return Vec::new();
    };
    let number =
        |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok();
    let mut numbers: Vec<u32> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    numbers.into_iter().filter_map(device_info).collect()
}

/// A device as the driver knows it; `None` if it is not there. Blocks for a moment.
pub fn device_info(number: u32) -> Option<DeviceInfo> {
    let info = UblkCtrl::new_simple(number as i32).ok()?.dev_info();
    Some(DeviceInfo {
        number,
        mark: info.ublksrv_flags,
        process: info.ublksrv_pid as u32,
        queues: info.nr_hw_queues,
        depth: info.queue_depth,
        is_dead: u32::from(info.state) == sys::UBLK_S_DEV_DEAD,
    })
}

/// Makes a device, or takes over the one that has the mark already. Blocks until it can be used.
///
/// # Errors
/// When the driver is not there, lacks something, or refuses.
pub fn attach(mut shape: Shape, queues: &UnboundedSender<NewQueue>) -> Result<Device, AttachError> {
    let features = driver_features()?;
    for (bit, name) in [
        (sys::UBLK_F_USER_COPY, "USER_COPY (Linux 6.5)"),
        (sys::UBLK_F_USER_RECOVERY, "USER_RECOVERY (Linux 6.1)"),
        (sys::UBLK_F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE (Linux 6.1)"),
    ] {
        if features & u64::from(bit) == 0 {
            return Err(AttachError::Lacks(name));
        }
    }
    let mut old = attached().into_iter().find(|device| device.mark == shape.mark);
    // A daemon that was killed while it made or deleted a device leaves one to which no request can come any more.
    if let Some(dead) = old.take_if(|old| old.is_dead) {
        let control = UblkCtrl::new_simple(dead.number as i32).map_err(refused("open the device"))?;
        done(control.del_dev()).map_err(refused("delete a device that was left half made"))?;
    }
    if let Some(old) = old {
        // Queues are as they were made.
        (shape.queues, shape.depth) = (old.queues, old.depth);
    }
    let control = open(&shape, old, features)?;
    if let Err(error) = start(&control, &shape, queues) {
        if old.is_none() {
            let _ = control.del_dev();
        }
        return Err(error);
    }
    Ok(Device { number: control.dev_info().dev_id, taken_over: old.is_some() })
}

/// Lets the disk thread serve the queues, and starts the device.
fn start(control: &UblkCtrl, shape: &Shape, queues: &UnboundedSender<NewQueue>) -> Result<(), AttachError> {
    let (tell, told) = mpsc::channel();
    let set_up = |device: &mut UblkDev| {
        device.tgt.dev_size = shape.size;
        device.tgt.params = shape.parameters();
        Ok(())
    };
    let device = UblkDev::new("holdfast".into(), set_up, control).map_err(refused("open the device"))?;
    for index in 0..shape.queues {
        // SAFETY: libublk's object owns the descriptor and lives until the end of this function.
        let file = unsafe { BorrowedFd::borrow_raw(device.tgt.fds[0]) }.try_clone_to_owned();
        let file = file.map_err(|error| refused("open the device")(UblkError::IOError(error)))?.into();
        // A receiver that is gone drops it, and tells nothing.
        let _ = queues.send(NewQueue { file, index, depth: shape.depth, told: tell.clone() });
        control.configure_queue(&device, index, 0).map_err(refused("make its queues"))?;
    }
    drop(tell);
    // The driver would wait for ever for a queue that is not served.
    for _ in 0..shape.queues {
        let served = told.recv().unwrap_or_else(|_| Err(io::Error::other("the daemon is going down")));
        served.map_err(|error| refused("serve its queues")(UblkError::IOError(error)))?;
    }
    done(control.start_dev(&device)).map_err(refused("start the device"))?;
    Ok(())
}

fn open(shape: &Shape, old: Option<DeviceInfo>, features: u64) -> Result<UblkCtrl, AttachError> {
    let mut flags = sys::UBLK_F_USER_COPY | sys::UBLK_F_USER_RECOVERY;
    if shape.recovery == Recovery::Reissue {
        flags |= sys::UBLK_F_USER_RECOVERY_REISSUE;
    }
    if features & u64::from(sys::UBLK_F_QUIESCE) != 0 {
        flags |= sys::UBLK_F_QUIESCE;
    }
    let (number, how) = match old {
        Some(old) => (old.number as i32, UblkFlags::UBLK_DEV_F_RECOVER_DEV),
        None => (-1, UblkFlags::UBLK_DEV_F_ADD_DEV),
    };
    let control = UblkCtrlBuilder::default()
        .name("holdfast")
        .id(number)
        .nr_queues(shape.queues)
        .depth(shape.depth)
        .io_buf_bytes(REQUEST_SIZE_MAX)
        .ctrl_flags(u64::from(flags))
        .ctrl_target_flags(shape.mark)
        .dev_flags(how)
        .build()
        .map_err(refused("make a device"))?;
    // Only an operator's word deletes a device, never the end of this object.
    control.disown();
    if old.is_some() {
        done(control.start_user_recover()).map_err(refused("hand over the device"))?;
    }
    Ok(control)
}

/// Tells the kernel that a device has another size; `false` if the driver cannot change it (before Linux 6.16).
///
/// # Errors
/// When the driver refuses.
pub fn resize(number: u32, size: u64) -> Result<bool, AttachError> {
    if driver_features()? & u64::from(sys::UBLK_F_UPDATE_SIZE) == 0 {
        return Ok(false);
    }
    let control = UblkCtrl::new_simple(number as i32).map_err(refused("open the device"))?;
    done(control.update_size(size)).map_err(refused("change the device's size"))?;
    Ok(true)
}

/// Lets a device be handed over without a request under way: new ones wait in the kernel for the next daemon, those that it
/// has issued are answered first. After this the process must end: its devices are served no more. Blocks for at most
/// `patience`; `false` if the driver cannot do it (before Linux 6.16) or not in time. The device can be taken over in any case.
pub fn quiesce(number: u32, patience: Duration) -> bool {
    let can = driver_features().is_ok_and(|features| features & u64::from(sys::UBLK_F_QUIESCE) != 0);
    let milliseconds = patience.as_millis() as u64;
    can && UblkCtrl::new_simple(number as i32).is_ok_and(|control| done(control.quiesce_dev(milliseconds)).is_ok())
}

/// Stops and deletes a device. Blocks until what is in flight has been answered.
///
/// # Errors
/// When it is mounted or otherwise in use, or the driver refuses.
pub fn detach(number: u32) -> Result<(), AttachError> {
    // Opens for nobody while a file system or another device claims it.
    let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(device_path(number));
    if claim.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        return Err(AttachError::InUse(number));
    }
    let control = UblkCtrl::new_simple(number as i32).map_err(refused("open the device"))?;
    // While it is claimed nobody can mount it; the driver waits for the claim's end before the device is gone.
    done(control.stop_dev()).map_err(refused("stop the device"))?;
    drop(claim);
    done(control.del_dev()).map_err(refused("delete the device"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_not_done() {
        assert!(done(Ok(0)).is_ok());
        assert!(done(Ok(-libc::EBUSY)).is_err());
        assert!(done(Err(UblkError::UringIOError(-libc::ENODEV))).is_err());
    }
}
