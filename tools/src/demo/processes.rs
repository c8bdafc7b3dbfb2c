//! The demo's processes and folder: whatever ends the demo ends them too.
//!
//! Three ways lead out of the demo: its end, an error or panic (both unwind, so [`Workplace`] is dropped), and a signal,
//! which a thread of its own waits for. Each kills the processes and removes the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A temporary folder and the processes that work in it.
pub struct Workplace {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    children: Mutex<BTreeMap<String, Child>>,
    /// What else must be undone, as commands, the last first.
    undoings: Mutex<Vec<Command>>,
    /// Set once everything has been cleared away; nothing may be started after that.
    is_cleared: AtomicBool,
}

impl Workplace {
    /// Makes the folder, readable by this user alone, and listens for signals.
    ///
    /// # Errors
    /// When the folder cannot be made or signals cannot be listened for.
    pub fn new(prefix: &str) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("{prefix}-{}-{number}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
        let (children, undoings) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
        let shared = Arc::new(Shared { folder, children, undoings, is_cleared: AtomicBool::new(false) });
        clear_on_signal(&shared)?;
        Ok(Self { shared })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Starts a daemon and returns when it says that it is ready, as a service manager would wait (`READY=1` on
    /// `NOTIFY_SOCKET`). What it prints goes to `NAME.log` in the folder.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready within `limit`; then with the end of its log.
    pub fn start(&self, name: &str, command: &mut Command, limit: Duration) -> anyhow::Result<()> {
        let notify_path = self.folder().join(format!("{name}.notify"));
        let _ = fs::remove_file(&notify_path);
        let notify =
            UnixDatagram::bind(&notify_path).with_context(|| format!("Cannot listen on {}", notify_path.display()))?;
        // Short, because the process's end must be noticed in between; the message itself wakes at once.
        notify.set_read_timeout(Some(Duration::from_millis(50)))?;
        let log_path = self.launch(name, command.env("NOTIFY_SOCKET", &notify_path))?;
        let start = Instant::now();
        let mut message = [0; 4_096];
        loop {
            match notify.recv(&mut message) {
                Ok(size) if says_ready(message.get(..size).unwrap_or_default()) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error).context("Cannot wait for the daemon"),
            }
            if let Some(status) = self.ended(name)? {
                bail!("{name} ended at once ({status}):\n{}", tail(&log_path));
            }
            if start.elapsed() > limit {
                bail!("{name} is not ready after {limit:?}:\n{}", tail(&log_path));
            }
        }
    }

    /// Starts a process that says nothing of itself. What it prints goes to `NAME.log` in the folder; the log's path.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&self, name: &str, command: &mut Command) -> anyhow::Result<PathBuf> {
        let log_path = self.folder().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&log_path)?;
        // Held from here on, so that a signal's clearing away comes either before, which is seen, or after, and finds it.
        let mut children = self.shared.lock();
        if self.shared.is_cleared.load(Ordering::Relaxed) {
            bail!("{name} is not started: the program is being ended");
        }
        let child = command
            // The log is a file.
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for this program, which ends its processes in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("Cannot start {}", command.get_program().display()))?;
        children.insert(name.to_owned(), child);
        Ok(log_path)
    }

    /// Runs a command to its end and returns what it printed, both outputs together.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes longer than `limit`; then with the end of what it printed.
    pub fn run(&self, name: &str, command: &mut Command, limit: Duration) -> anyhow::Result<String> {
        let _ = fs::remove_file(self.folder().join(format!("{name}.log")));
        let log_path = self.launch(name, command)?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.ended(name)? {
                break status;
            }
            if start.elapsed() > limit {
                self.kill(name)?;
                bail!("{name} did not end within {limit:?}:\n{}", tail(&log_path));
            }
            std::thread::park_timeout(Duration::from_millis(2));
        };
        self.shared.lock().remove(name);
        if !status.success() {
            bail!("{name} failed ({status}):\n{}", tail(&log_path));
        }
        let bytes = fs::read(&log_path).with_context(|| format!("Cannot read {}", log_path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Has this command run whatever ends the program, after the processes are gone; the last given runs first.
    pub fn undo_at_the_end(&self, command: Command) {
        self.shared.undoings.lock().unwrap_or_else(PoisonError::into_inner).push(command);
    }

    /// Kills a process as `kill -9` does and returns when it is gone.
    ///
    /// # Errors
    /// When there is no process of this name.
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        let mut child = self.shared.lock().remove(name).with_context(|| format!("There is no process {name}"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// A file of `/proc/PID` of a process.
    ///
    /// # Errors
    /// When there is no process of this name, or no such file.
    pub fn proc_file(&self, name: &str, file: &str) -> anyhow::Result<String> {
        let id = self.shared.lock().get(name).map(Child::id).with_context(|| format!("There is no process {name}"))?;
        let path = format!("/proc/{id}/{file}");
        fs::read_to_string(&path).with_context(|| path)
    }

    /// Bytes that all processes have caused to be written to media so far, as the kernel counts them (`write_bytes` in
    /// `/proc/PID/io`); `None` if it does not tell.
    pub fn written_bytes(&self) -> Option<u64> {
        let children = self.shared.lock();
        let of = |child: &Child| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/{}/io", child.id())).ok()?;
            text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
        };
        children.values().map(of).sum()
    }

    /// The last lines that a process printed.
    pub fn log_tail(&self, name: &str) -> String {
        tail(&self.folder().join(format!("{name}.log")))
    }

    fn ended(&self, name: &str) -> io::Result<Option<ExitStatus>> {
        match self.shared.lock().get_mut(name) {
            Some(child) => child.try_wait(),
            None => Ok(None),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        self.shared.clear();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self) {
        let mut children = self.lock();
        self.is_cleared.store(true, Ordering::Relaxed);
        for child in children.values_mut() {
            // One that has ended already is what was wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
        children.clear();
        for mut command in self.undoings.lock().unwrap_or_else(PoisonError::into_inner).drain(..).rev() {
            // What is gone already is what was wanted.
            let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Has a signal clear this workplace, and all others, before it ends the program.
fn clear_on_signal(place: &Arc<Shared>) -> anyhow::Result<()> {
    static PLACES: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    if places.is_empty() {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
                places.iter().filter_map(Weak::upgrade).for_each(|place| place.clear());
                // What a shell reports for a program that a signal ended.
                std::process::exit(128 + signal);
            }
        });
    }
    places.push(Arc::downgrade(place));
    Ok(())
}

fn says_ready(message: &[u8]) -> bool {
    message.split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn tail(path: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg("-c").arg(script);
        command
    }

    const READY: &str = "import os,socket,time\n\
        s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\n\
        s.sendto(b'STATUS=up\\nREADY=1\\n',os.environ['NOTIFY_SOCKET'])\n\
        print('running',flush=True)\n\
        time.sleep(1000)";

    #[test]
    fn a_process_is_waited_for_killed_and_cleared_away() {
        let workplace = Workplace::new("holdfast-test-start").expect("a folder");
        let folder = workplace.folder().to_owned();
        workplace.start("one", &mut shell(READY), LIMIT).expect("ready");
        workplace.start("two", &mut shell(READY), LIMIT).expect("ready");
        let two = workplace.shared.lock().get("two").map(Child::id).expect("it runs");
        workplace.kill("one").expect("killed");
        assert!(workplace.kill("one").is_err(), "killed twice");
        drop(workplace);
        assert!(!folder.exists());
        assert!(!Path::new(&format!("/proc/{two}")).exists(), "two outlived the demo");
    }

    #[test]
    fn a_process_that_ends_at_once_is_told_with_its_words() {
        let workplace = Workplace::new("holdfast-test-end").expect("a folder");
        let script = "import sys; print('No medium there'); sys.exit(3)";
        let error = workplace.start("node", &mut shell(script), LIMIT).expect_err("it ended");
        let text = error.to_string();
        assert!(text.contains("node ended at once") && text.contains("No medium there"), "{text}");
    }

    #[test]
    fn a_command_is_run_to_its_end_and_undone_at_the_last() {
        let workplace = Workplace::new("holdfast-test-run").expect("a folder");
        let mark = std::env::temp_dir().join(format!("holdfast-test-run-{}.mark", std::process::id()));
        let mut undoing = Command::new("touch");
        undoing.arg(&mark);
        workplace.undo_at_the_end(undoing);
        assert_eq!(workplace.run("one", &mut shell("print('said')"), LIMIT).expect("it runs"), "said\n");
        let error = workplace.run("two", &mut shell("print('why'); exit(3)"), LIMIT).expect_err("it fails");
        assert!(error.to_string().contains("why"), "{error}");
        let late = workplace.run("three", &mut shell("import time; time.sleep(1000)"), Duration::from_millis(100));
        assert!(late.expect_err("it does not end").to_string().contains("three did not end within 100ms"));
        drop(workplace);
        assert!(mark.exists());
        fs::remove_file(&mark).expect("removed");
    }

    #[test]
    fn a_process_that_never_gets_ready_is_given_up() {
        let workplace = Workplace::new("holdfast-test-late").expect("a folder");
        let error = workplace
            .start("node", &mut shell("import time; time.sleep(1000)"), Duration::from_millis(200))
            .expect_err("it is not ready");
        assert!(error.to_string().contains("node is not ready after 200ms"), "{error}");
    }
}
