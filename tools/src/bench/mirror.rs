//! qemu's own replication, driven through its monitor (QMP): one JSON object a line, both ways.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// A mirror that is not in step by then never will be.
const STEP_LIMIT: Duration = Duration::from_secs(120);
const JOB: &str = "mirror";

/// A connection to the monitor of a qemu-storage-daemon.
pub struct Monitor {
    stream: RefCell<BufReader<UnixStream>>,
}

impl Monitor {
    /// Connects and agrees on capabilities, as the protocol wants it.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("Cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let monitor = Self { stream: RefCell::new(BufReader::new(stream)) };
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has everything of `node` copied to `target` now, and what is written to it from now on.
    ///
    /// # Errors
    /// When qemu refuses.
    pub fn begin_mirror(&self, node: &str, target: &str, copy_mode: &str) -> anyhow::Result<()> {
        let arguments = json!({
            "job-id": JOB, "device": node, "target": target, "sync": "full", "copy-mode": copy_mode,
        });
        self.ask("blockdev-mirror", &arguments).map(drop)
    }

    /// Waits until the target has everything.
    ///
    /// # Errors
    /// When the mirror has failed, or does not get there.
    pub fn wait_in_step(&self) -> anyhow::Result<()> {
        let end = Instant::now() + STEP_LIMIT;
        loop {
            let job = self.job()?;
            if job["status"] == "ready" && job["current-progress"] == job["total-progress"] {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("qemu's mirror is not in step after {STEP_LIMIT:?}: {job}");
            }
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn job(&self) -> anyhow::Result<Value> {
        let jobs = self.ask("query-jobs", &json!({}))?;
        let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == JOB);
        job.cloned().with_context(|| format!("qemu's mirror has ended: {jobs}"))
    }

    fn ask(&self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let mut stream = self.stream.borrow_mut();
        writeln!(stream.get_mut(), "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).with_context(|| format!("qemu does not answer {command}"))? == 0 {
                bail!("qemu has ended before it answered {command}");
            }
            let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("qemu said {line}"))?;
            if let Some(error) = answer.get("error") {
                bail!("qemu refuses {command}: {error}");
            }
            // Everything else is its greeting or an event.
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }
}
