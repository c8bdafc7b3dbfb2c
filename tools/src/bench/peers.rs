//! What users would take instead, and the medium below them all: each on a file of its own, in one folder.

use super::{
    fio::Disk,
    mirror::Monitor,
    network::{End, Network},
};
use crate::demo::processes::Workplace;
use anyhow::{Context, bail};
use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A server that does not listen by then has a fault.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);

/// One column of the table.
pub struct Target {
    /// As the tables have it.
    pub name: &'static str,
    /// What a reader must know of it.
    pub about: &'static str,
    /// Where it is.
    pub disk: Disk,
    /// Brings it into the state in which it is measured.
    pub prepare: Box<dyn Fn() -> anyhow::Result<()>>,
    /// Bytes that it has caused to be written to media so far, if that is known.
    pub written: Box<dyn Fn() -> Option<u64>>,
}

/// One of those that are measured beside us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// nbdkit on a file.
    NbdkitFile,
    /// nbdkit on memory.
    NbdkitMemory,
    /// qemu-nbd on a file.
    QemuNbd,
    /// qemu's mirror, which answers when both copies are written.
    QemuMirrorBlocking,
    /// qemu's mirror, which copies later.
    QemuMirrorBackground,
    /// fio on the file itself.
    Medium,
}

impl Peer {
    /// All, in the order of the tables.
    pub const ALL: [Self; 6] = [
        Self::NbdkitFile,
        Self::NbdkitMemory,
        Self::QemuNbd,
        Self::QemuMirrorBackground,
        Self::QemuMirrorBlocking,
        Self::Medium,
    ];

    /// As the tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NbdkitFile => "nbdkit file",
            Self::NbdkitMemory => "nbdkit memory",
            Self::QemuNbd => "qemu-nbd",
            Self::QemuMirrorBackground => "qemu mirror, background",
            Self::QemuMirrorBlocking => "qemu mirror, write-blocking",
            Self::Medium => "the medium",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::NbdkitFile => "through the page cache: only a flush reaches the disk, and reads come from memory",
            Self::NbdkitMemory => "no disk at all: what the protocol and the client cost",
            Self::QemuNbd => "cache=none, aio=io_uring: direct I/O on the file, no journal",
            Self::QemuMirrorBackground => {
                "qemu-storage-daemon and blockdev-mirror to a qemu-nbd (both cache=none, io_uring) on this machine; \
                 changed blocks are copied later, out of order"
            }
            Self::QemuMirrorBlocking => {
                "the same with copy-mode=write-blocking: a write is answered when both have it, durable on neither"
            }
            Self::Medium => "fio with io_uring and O_DIRECT on a file of the same file system; a flush is fdatasync",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::NbdkitFile | Self::NbdkitMemory => &["nbdkit"],
            Self::QemuNbd => &["qemu-nbd"],
            Self::QemuMirrorBackground | Self::QemuMirrorBlocking => &["qemu-nbd", "qemu-storage-daemon"],
            Self::Medium => &[],
        }
    }

    /// The first of its programs that is not installed.
    pub fn missing_program(self) -> Option<&'static str> {
        self.programs().iter().copied().find(|program| !is_there(program))
    }

    /// Starts it on a new file of this size.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start(self, place: &Workplace, size: u64) -> anyhow::Result<Target> {
        let name = self.name().replace([' ', ','], "-");
        let servers = Servers { place, name, size };
        let ready = || -> Box<dyn Fn() -> anyhow::Result<()>> { Box::new(|| Ok(())) };
        let (disk, prepare) = match self {
            Self::NbdkitFile => {
                let image = servers.image("image")?;
                let file = format!("file={}", image.display());
                (servers.start("nbdkit", &["-f", "-U", "SOCKET", "file", &file], "")?, ready())
            }
            Self::NbdkitMemory => {
                (servers.start("nbdkit", &["-f", "-U", "SOCKET", "memory", &size.to_string()], "")?, ready())
            }
            Self::QemuNbd => (servers.qemu_nbd("")?, ready()),
            Self::QemuMirrorBackground => servers.mirror_here("background")?,
            Self::QemuMirrorBlocking => servers.mirror_here("write-blocking")?,
            Self::Medium => (Disk::File(servers.image("image")?), ready()),
        };
        Ok(Target { name: self.name(), about: self.about(), disk, prepare, written: Box::new(|| None) })
    }
}

/// qemu's mirror from one end of a network to the other. Dropping it ends it.
pub struct FarMirror<'a> {
    place: &'a Workplace,
    /// Where a client writes.
    pub socket: PathBuf,
    /// Its monitor.
    pub monitor: Monitor,
}

const FAR_MIRROR: &str = "mirror";
/// NBD's own.
const FAR_PORT: &str = "10809";

impl<'a> FarMirror<'a> {
    /// Starts it on new files of this size, and waits until the copy is complete.
    ///
    /// # Errors
    /// When a program is missing, or does not start; with the end of its log.
    pub fn start(network: &'a Network, size: u64, copy_mode: &str) -> anyhow::Result<Self> {
        if let Some(program) = Peer::QemuMirrorBackground.missing_program() {
            bail!("{program} is not installed; install it with: tools/install-packages bench");
        }
        let place = network.place();
        let servers = Servers { place, name: FAR_MIRROR.to_owned(), size };
        let (image, address) = (servers.image("image-copy")?, End::Far.address().to_string());
        let mut far = network.inside(End::Far, "qemu-nbd");
        far.args(["-t", "-f", "raw", "--cache=none", "--aio=io_uring", "-b", &address, "-p", FAR_PORT]).arg(image);
        place.launch(&format!("{FAR_MIRROR}-copy"), &mut far)?;
        // The other one may not listen yet.
        let copy = format!("server.type=inet,server.host={address},server.port={FAR_PORT},open-timeout=20");
        let near = network.inside(End::Near, "qemu-storage-daemon");
        let (_, monitor) = servers.mirror(near, &copy, copy_mode)?;
        let mirror = Self { place, socket: servers.path("sock"), monitor };
        mirror.monitor.wait_in_step()?;
        Ok(mirror)
    }
}

impl Drop for FarMirror<'_> {
    fn drop(&mut self) {
        for process in [FAR_MIRROR.to_owned(), format!("{FAR_MIRROR}-copy")] {
            // One that has ended already is what was wanted.
            let _ = self.place.kill(&process);
        }
    }
}

type Prepared = (Disk, Box<dyn Fn() -> anyhow::Result<()>>);

struct Servers<'a> {
    place: &'a Workplace,
    name: String,
    size: u64,
}

impl Servers<'_> {
    fn path(&self, kind: &str) -> PathBuf {
        self.place.folder().join(format!("{}.{kind}", self.name))
    }

    fn image(&self, kind: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(kind);
        let file = File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
        file.set_len(self.size).with_context(|| format!("Cannot make {} of {} bytes", path.display(), self.size))?;
        Ok(path)
    }

    /// Starts a program that serves NBD on the socket that `SOCKET` stands for.
    fn start(&self, program: &str, arguments: &[&str], suffix: &str) -> anyhow::Result<Disk> {
        let socket = self.path(&format!("sock{suffix}"));
        let mut command = Command::new(program);
        for argument in arguments {
            match *argument {
                "SOCKET" => command.arg(&socket),
                other => command.arg(other),
            };
        }
        self.launch(suffix, &mut command, &socket)?;
        Ok(Disk::on_socket(&socket, ""))
    }

    fn qemu_nbd(&self, suffix: &str) -> anyhow::Result<Disk> {
        let image = self.image(&format!("image{suffix}"))?;
        let image = image.to_string_lossy();
        let arguments = ["-t", "-e", "8", "-f", "raw", "--cache=none", "--aio=io_uring", "-k", "SOCKET", &image];
        self.start("qemu-nbd", &arguments, suffix)
    }

    /// A daemon that mirrors its file to a qemu-nbd here.
    fn mirror_here(&self, copy_mode: &'static str) -> anyhow::Result<Prepared> {
        self.qemu_nbd("-copy")?;
        let copy = format!("server.type=unix,server.path={}", self.path("sock-copy").display());
        let (disk, monitor) = self.mirror(Command::new("qemu-storage-daemon"), &copy, copy_mode)?;
        Ok((disk, Box::new(move || monitor.wait_in_step())))
    }

    /// Has this daemon mirror its file to the server of `copy`.
    fn mirror(&self, mut command: Command, copy: &str, copy_mode: &str) -> anyhow::Result<(Disk, Monitor)> {
        let (image, socket, monitor) = (self.image("image")?, self.path("sock"), self.path("qmp"));
        // The daemon takes its options in their order: when the disk's socket listens, the monitor's does.
        for (option, value) in [
            ("--chardev", format!("socket,id=qmp,path={},server=on,wait=off", monitor.display())),
            ("--monitor", "chardev=qmp".to_owned()),
            (
                "--blockdev",
                format!("driver=file,node-name=file,filename={},cache.direct=on,aio=io_uring", image.display()),
            ),
            ("--blockdev", "driver=raw,node-name=disk,file=file".to_owned()),
            ("--blockdev", format!("driver=nbd,node-name=copy,{copy}")),
            ("--nbd-server", format!("addr.type=unix,addr.path={},max-connections=8", socket.display())),
            ("--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on".to_owned()),
        ] {
            command.arg(option).arg(value);
        }
        self.launch("", &mut command, &socket)?;
        let monitor = Monitor::connect(&monitor)?;
        monitor.begin_mirror("disk", "copy", copy_mode)?;
        Ok((Disk::on_socket(&socket, "disk"), monitor))
    }

    fn launch(&self, suffix: &str, command: &mut Command, socket: &Path) -> anyhow::Result<()> {
        let name = format!("{}{suffix}", self.name);
        self.place.launch(&name, command)?;
        let end = Instant::now() + LISTEN_LIMIT;
        while UnixStream::connect(socket).is_err() {
            if Instant::now() > end {
                bail!("Nothing listens on {}:\n{}", socket.display(), self.place.log_tail(&name));
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// Is a program installed? It is when it tells its version.
pub fn is_there(program: &str) -> bool {
    let option = if program == "ip" { "-V" } else { "--version" };
    let version = Command::new(program).arg(option).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}
