//! What changed, kept for operators: whatever is logged under the target [`EVENT`] goes to `events.jsonl` in the node's
//! directory as well, and to a command of theirs.

use crate::hook::Hook;
use serde_json::{Map, Value};
use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    warn,
};
use tracing_subscriber::{Layer, layer::Context};

/// The target of what is an event.
pub const EVENT: &str = "holdfast::event";

/// The file is set aside when it is so large; the one that was set aside before is dropped.
const FILE_SIZE_MAX: u64 = 1 << 20;
/// Events that wait to be written; later ones are only logged.
const WAITING_MAX: usize = 1000;
/// How long the command may take for an event.
const HOOK_PATIENCE: Duration = Duration::from_secs(60);

static EVENTS: OnceLock<SyncSender<Map<String, Value>>> = OnceLock::new();

/// Keeps events from now on.
///
/// # Errors
/// When the directory cannot be written.
pub fn keep(directory: &Path, hook: Option<PathBuf>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let path = file(directory);
    append(&path)?;
    let hook = hook.map(|program| Hook::start(program, HOOK_PATIENCE)).transpose()?;
    let (sender, receiver) = sync_channel(WAITING_MAX);
    thread::Builder::new().name("events".into()).spawn(move || write(&path, hook.as_ref(), &receiver))?;
    // A process keeps the events of one node.
    let _ = EVENTS.set(sender);
    Ok(())
}

/// The wall clock, in microseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// The last events, oldest first; of one group if it is named.
pub fn last(directory: &Path, group: Option<&str>, count: usize) -> Vec<Value> {
    let newest = file(directory);
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let text = read(&newest.with_extension("old")) + &read(&newest);
    let of_group = |event: &Value| group.is_none_or(|group| event["group"] == group);
    // A line that was being written when the machine died is not one.
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(of_group).collect();
    events.into_iter().rev().take(count).rev().collect()
}

fn file(directory: &Path) -> PathBuf {
    directory.join("events.jsonl")
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write(path: &Path, hook: Option<&Hook>, events: &Receiver<Map<String, Value>>) {
    for event in events {
        let what = event.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
        let line = Value::Object(event).to_string();
        let kept = append(path).and_then(|mut file| {
            if file.metadata()?.len() > FILE_SIZE_MAX {
                fs::rename(path, path.with_extension("old"))?;
                file = append(path)?;
            }
            file.write_all(format!("{line}\n").as_bytes())
        });
        if let Err(error) = kept {
            warn!(path = %path.display(), %error, "An event is not kept");
        }
        if let Some(hook) = hook {
            hook.tell(&what, &line);
        }
    }
}

/// The part of the log that keeps events.
pub struct EventLayer;

impl<S: Subscriber> Layer<S> for EventLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != EVENT {
            return;
        }
        let Some(events) = EVENTS.get() else { return };
        let mut fields = Fields(Map::from_iter([("time".to_owned(), now().into())]));
        event.record(&mut fields);
        // Its own trouble must not become that of the group.
        let _ = events.try_send(fields.0);
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "event" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_of_a_group_are_found_across_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let line = |number: u64, group: &str| format!("{{\"time\":{number},\"group\":\"{group}\",\"event\":\"e\"}}\n");
        fs::write(folder.path().join("events.old"), line(1, "a") + &line(2, "b")).unwrap();
        fs::write(folder.path().join("events.jsonl"), line(3, "a") + "{\"time\":4,\"gro").unwrap();
        let times =
            |events: Vec<Value>| -> Vec<u64> { events.iter().filter_map(|event| event["time"].as_u64()).collect() };
        assert_eq!(times(last(folder.path(), None, 10)), [1, 2, 3]);
        assert_eq!(times(last(folder.path(), Some("a"), 10)), [1, 3]);
        assert_eq!(times(last(folder.path(), None, 2)), [2, 3]);
        assert!(last(&folder.path().join("none"), None, 2).is_empty());
    }
}
