//! The operator's program that is run for each event, on a thread of its own: one that does not end holds nothing else back.

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};
use tracing::warn;

/// Events for which it is still to be run; for later ones it is not.
const WAITING_MAX: usize = 1000;
/// How soon it is looked whether it has ended, at first and at last.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(100);

/// See the module.
pub struct Hook {
    program: PathBuf,
    waiting: SyncSender<Told>,
}

/// What the program is told.
struct Told {
    event: String,
    line: String,
}

impl Hook {
    /// A hook that may run for `patience`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(program: PathBuf, patience: Duration) -> io::Result<Self> {
        let (waiting, told) = sync_channel(WAITING_MAX);
        let run = program.clone();
        thread::Builder::new().name("hook".into()).spawn(move || run_for_each(&run, patience, &told))?;
        Ok(Self { program, waiting })
    }

    /// Runs the program for an event, with all of it in `line`, when it has ended for those before.
    pub fn tell(&self, event: &str, line: &str) {
        let told = Told { event: event.to_owned(), line: line.to_owned() };
        if self.waiting.try_send(told).is_err() {
            warn!(hook = %self.program.display(), what = event, "The event hook is too slow; it is not run for an event");
        }
    }
}

fn run_for_each(program: &Path, patience: Duration, told: &Receiver<Told>) {
    let hook = program.display();
    for Told { event, line } in told {
        let mut command = Command::new(program);
        command.arg(event).env("HOLDFAST_EVENT", line).stdin(Stdio::null());
        // What it has begun ends with it.
        command.process_group(0);
        match command.spawn().and_then(|child| wait(child, patience)) {
            Ok(Some(status)) if status.success() => {}
            Ok(Some(status)) => warn!(%hook, %status, "The event hook failed"),
            Ok(None) => warn!(%hook, seconds = patience.as_secs(), "The event hook did not end in time and was killed"),
            Err(error) => warn!(%hook, %error, "The event hook cannot be run"),
        }
    }
}

/// How it has ended; None if it had to be killed.
fn wait(mut child: Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    let mut pause = LOOK_AGAIN_MIN;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            // It was not waited for yet, so the number is still its own.
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    /// A program that notes what it is told, and hangs with a child for "hang"; all of it ends with the folder.
    fn program(folder: &Path) -> PathBuf {
        let (path, at) = (folder.join("hook"), folder.display());
        let hang = format!("(while [ -e {at}/hook ]; do sleep 0.1; done) & echo $! >{at}/child; wait");
        fs::write(
            &path,
            format!("#!/bin/sh\necho \"$1 $HOLDFAST_EVENT\" >>{at}/told\n[ $1 != hang ] || {{ {hang}; }}\n"),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_all_that_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let hangs = Command::new(program(folder.path())).arg("hang").process_group(0).spawn().unwrap();
        let child = loop {
            let text = fs::read_to_string(folder.path().join("child")).unwrap_or_default();
            if text.ends_with('\n') {
                break text;
            }
            thread::yield_now();
        };
        assert!(wait(hangs, Duration::ZERO).unwrap().is_none());
        // Of a process that has ended the kernel knows no arguments.
        while fs::read(format!("/proc/{}/cmdline", child.trim())).is_ok_and(|arguments| !arguments.is_empty()) {
            thread::yield_now();
        }
    }

    #[test]
    fn it_is_run_for_each_event_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let hook = Hook::start(program(folder.path()), Duration::from_secs(3600)).unwrap();
        hook.tell("first", "1");
        hook.tell("next", "2");
        while fs::read_to_string(folder.path().join("told")).unwrap_or_default() != "first 1\nnext 2\n" {
            thread::yield_now();
        }
    }

    #[test]
    fn more_events_than_can_wait_keep_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let hook = Hook::start(program(folder.path()), Duration::from_secs(3600)).unwrap();
        hook.tell("hang", "1");
        (0..2 * WAITING_MAX).for_each(|_| hook.tell("next", "2"));
    }
}
