//! `ublk-admin`: the commands, what they ask of the daemon, and how answers are shown.

mod arguments;
mod client;
mod hold;
mod show;

pub use arguments::Arguments;
pub use client::{Client, ClientError};

use arguments::{
    Command, Fence, GenerationCommand, GroupCommand, NodeCommand, PairCommand, RestartPointOptions, Switch,
    VolumeCommand,
};
use hold::Holds;
use holdfast::units::Generation;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};
use ublk_target::{
    api::Request,
    config::{CONFIG_PATH, Config},
    key,
};

/// How soon a waiting command looks again, at first and at last.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(200);

/// Carries out a command and prints its answer.
///
/// # Errors
/// When the daemon cannot be reached or refuses.
pub fn run(arguments: &Arguments) -> Result<(), ClientError> {
    if let Command::Key(options) = &arguments.command {
        let path = options.config.clone().unwrap_or_else(|| CONFIG_PATH.into());
        let text = own_key(&path)?;
        print(arguments, &json!({ "key": text }), &text);
        return Ok(());
    }
    let client = Client::new(arguments.socket()?);
    if let Command::Status(options) = &arguments.command {
        let request = Request::Status { group: options.group.clone() };
        loop {
            let value = client.ask(&request)?;
            let clear = if options.watch { "\x1b[H\x1b[2J" } else { "" };
            print(arguments, &value, &format!("{clear}{}", show::status(&value)));
            if !options.watch {
                return Ok(());
            }
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }
    let request = request(&arguments.command)?;
    let mut value = match &arguments.command {
        Command::RestartPoint(options) => restart_point(&client, options, &request)?,
        _ => client.ask(&request)?,
    };
    if let Command::Pair(PairCommand::Create { group, wait: true, timeout, .. }) = &arguments.command {
        let deadline = Deadline::after(*timeout, "the copy to end");
        wait(&client, group, &deadline, |status| Ok(status["pair"]["state"] == "duplex"))?;
    }
    if let Command::Generation(GenerationCommand::List { .. }) = &arguments.command {
        value = value["generations"].take();
    }
    if value.is_null() {
        value = json!({ "done": "Done" });
    }
    let text = match &arguments.command {
        Command::Node(NodeCommand::Status) => show::node(&value),
        Command::Group(GroupCommand::List | GroupCommand::Show { .. }) => show::status(&value),
        Command::Volume(VolumeCommand::List { .. }) => show::volumes(&value),
        Command::Generation(GenerationCommand::List { .. }) => show::generations(&value),
        Command::Events { .. } => show::events(&value),
        _ => show::answer(&value),
    };
    print(arguments, &value, &text);
    match (&arguments.command, value["verified"]["differing_bytes"].as_u64()) {
        (Command::Pair(PairCommand::Verify { group, mend: false }), Some(1..)) => Err(ClientError::Refused(format!(
            "The nodes of group {group} differ, and which of them is right they cannot know; look at it on both, and copy it from the \
             primary to the standby with: ublk-admin pair verify {group} --mend"
        ))),
        _ => Ok(()),
    }
}

fn print(arguments: &Arguments, value: &Value, text: &str) {
    let mut out = std::io::stdout();
    let said = if arguments.json { writeln!(out, "{value:#}") } else { writeln!(out, "{text}") };
    // Whoever reads has seen enough: `ublk-admin status | head -1`.
    if said.is_err() {
        std::process::exit(0);
    }
}

fn own_key(config: &Path) -> Result<String, ClientError> {
    let config = Config::read(config).map_err(|error| ClientError::Refused(error.to_string()))?;
    let identity = key::load_or_create(&config.key_path()).map_err(|error| ClientError::Refused(error.to_string()))?;
    Ok(identity.public().to_string())
}

/// Declares a restart point; with `--wait` one that the standby has. In the midst of a copy the standby has no state of the
/// primary's to keep, so the point is declared when the copy has ended, and anew if one begins before the point is there.
fn restart_point(client: &Client, options: &RestartPointOptions, request: &Request) -> Result<Value, ClientError> {
    let group = &options.group;
    let deadline = Deadline::after(options.timeout, "the standby to have the restart point");
    loop {
        if options.wait {
            wait(client, group, &deadline, |status| is_in_step(group, status))?;
        }
        let mut holds = Holds::default();
        if options.exec_before.is_some() || options.exec_after.is_some() {
            let [before, after] =
                [&options.exec_before, &options.exec_after].map(|it| it.as_deref().unwrap_or_default());
            holds.execute(before, after, options.hold_for)?;
        }
        options.freeze.iter().try_for_each(|place| holds.freeze(place, options.hold_for))?;
        let value = client.ask(request)?;
        holds.end()?;
        let point = &value["restart-point"];
        let (generation, seq) = (point["generation"].as_u64().unwrap_or(u64::MAX), point["at"]["seq"].as_u64());
        let has = |status: &Value| status["restart_point_acknowledged"].as_u64().is_some_and(|have| have >= generation);
        // It is lost with a copy that is under way, or was, and brought what followed it.
        let is_past = |status: &Value| status["acknowledged"].as_u64() >= seq;
        let done = |status: &Value| Ok(has(status) || is_past(status) || !is_in_step(group, status)?);
        if !options.wait {
            return Ok(value);
        }
        let status = wait(client, group, &deadline, done)?;
        if has(&status) {
            return Ok(value);
        }
        deadline.check(group, &status)?;
    }
}

/// Whether the standby gets the restart points that are declared now.
///
/// # Errors
/// Why that will not come about by itself.
fn is_in_step(group: &str, status: &Value) -> Result<bool, String> {
    let pair = &status["pair"];
    match (pair["state"].as_str().unwrap_or("unknown"), pair["cause"].as_str()) {
        ("duplex", _) => Ok(true),
        ("initial-copy" | "duplex-pending", _) | ("suspended", Some("journal-full" | "peer")) => Ok(false),
        ("simplex", _) => Err(format!("Group {group} has no standby; leave out --wait, or create a pair")),
        (state, cause) => {
            let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
            Err(format!(
                "The pair of group {group} is {state}{cause}: its standby gets no restart point. Leave out --wait, or resume \
                 it first: ublk-admin pair resume {group}"
            ))
        }
    }
}

/// Until when something is waited for.
struct Deadline {
    /// Never, if that is later than any clock will show.
    end: Option<Instant>,
    seconds: u64,
    what: &'static str,
}

impl Deadline {
    fn after(seconds: u64, what: &'static str) -> Self {
        Self { end: Instant::now().checked_add(Duration::from_secs(seconds)), seconds, what }
    }

    fn check(&self, group: &str, status: &Value) -> Result<(), ClientError> {
        if self.end.is_none_or(|end| Instant::now() < end) {
            return Ok(());
        }
        let (seconds, what) = (self.seconds, self.what);
        let state = status["pair"]["state"].as_str().unwrap_or("unknown");
        Err(ClientError::Refused(format!(
            "Waited {seconds} s for {what}; the pair is {state}: look at `ublk-admin status {group}`"
        )))
    }
}

/// Waits until it is done; the status that shows it.
fn wait(
    client: &Client,
    group: &str,
    deadline: &Deadline,
    done: impl Fn(&Value) -> Result<bool, String>,
) -> Result<Value, ClientError> {
    let mut pause = LOOK_AGAIN_MIN;
    loop {
        let status = client.ask(&Request::Status { group: Some(group.to_owned()) })?;
        if done(&status).map_err(ClientError::Refused)? {
            return Ok(status);
        }
        deadline.check(group, &status)?;
        std::thread::park_timeout(pause);
        // What has taken long may take a little longer.
        pause = (pause * 5 / 4).min(LOOK_AGAIN_MAX);
    }
}

fn request(command: &Command) -> Result<Request, ClientError> {
    let refuse = |text: &str| Err(ClientError::Refused(text.to_owned()));
    Ok(match command.clone() {
        Command::Key(_) | Command::Status(_) => return refuse("not a request"),
        Command::Node(NodeCommand::Status) => Request::NodeStatus {},
        Command::Group(GroupCommand::Create { group, journal_size, journal, overwrite }) => {
            Request::GroupCreate { group, journal_size, journal, overwrite }
        }
        Command::Group(GroupCommand::Resize { group, journal_size }) => Request::GroupResize { group, journal_size },
        Command::Group(GroupCommand::Reopen { group }) => Request::GroupReopen { group },
        Command::Group(GroupCommand::List) => Request::Status { group: None },
        Command::Group(GroupCommand::Show { group }) => Request::Status { group: Some(group) },
        Command::Group(GroupCommand::Delete { group, yes, erase }) => {
            if !yes {
                return refuse("Deleting a group is final on this node; say --yes if you mean it");
            }
            Request::GroupDelete { group, erase }
        }
        Command::Volume(VolumeCommand::Create {
            group,
            volume,
            size,
            logical_block,
            table_block,
            pool,
            overwrite,
            preallocate,
        }) => Request::VolumeCreate {
            group,
            volume,
            size,
            logical_block_size: logical_block,
            table_block_size: table_block,
            pool,
            preallocate,
            overwrite,
        },
        Command::Volume(VolumeCommand::Resize { group, volume, size }) => Request::VolumeResize { group, volume, size },
        Command::Volume(VolumeCommand::List { group }) => Request::Status { group: Some(group) },
        Command::Volume(VolumeCommand::Delete { group, volume, yes }) => {
            if !yes {
                return refuse("Deleting a volume is final; say --yes if you mean it");
            }
            Request::VolumeDelete { group, volume }
        }
        Command::Volume(VolumeCommand::Attach { group, volume, read_only, nbd, ublk: _ }) => {
            Request::VolumeAttach { group, volume, read_only, nbd }
        }
        Command::Volume(VolumeCommand::Detach { group, volume }) => Request::VolumeDetach { group, volume },
        Command::Volume(VolumeCommand::Name { device }) => Request::VolumeName { device },
        Command::Volume(VolumeCommand::Export { group, read_only }) => {
            if !read_only {
                return refuse("A primary's volumes are exported without being asked; on a standby say --read-only");
            }
            Request::VolumeExport { group, read_only: true }
        }
        Command::Volume(VolumeCommand::Unexport { group }) => Request::VolumeExport { group, read_only: false },
        Command::Pair(PairCommand::Create { group, peer, .. }) => Request::PairCreate { group, peer },
        Command::Pair(PairCommand::Delete { group }) => Request::PairDelete { group },
        Command::Pair(PairCommand::Suspend { group, now }) => Request::PairSuspend { group, now },
        Command::Pair(PairCommand::Switch { group }) => Request::PairSwitch { group },
        Command::Pair(PairCommand::Resume { group, no_compare }) => Request::PairResume { group, no_compare },
        Command::Pair(PairCommand::Verify { group, mend }) => Request::PairVerify { group, mend },
        Command::RestartPoint(options) => Request::RestartPoint { group: options.group, label: options.label },
        Command::Generation(GenerationCommand::List { group }) => Request::Status { group: Some(group) },
        Command::Generation(GenerationCommand::Keep { group, count, time }) => {
            Request::GenerationKeep { group, count, seconds: time }
        }
        Command::Generation(GenerationCommand::Drop { group, generation }) => {
            Request::GenerationDrop { group, generation }
        }
        Command::Failover { group, end: true, .. } => Request::TrialEnd { group },
        Command::Failover { group, generation, .. } => Request::TrialBegin { group, generation },
        Command::Promote { group, latest, generation, force } => {
            Request::Promote { group, latest, generation: generation.map(Generation), force }
        }
        Command::Demote { group, discard_fork } => Request::Demote { group, discard_fork },
        Command::Events { group, count } => Request::Events { group, count },
        Command::Fence { group, by, seconds, force } => {
            let lease_seconds = if matches!(by, Fence::Lease) { seconds } else { 0 };
            Request::SetFence { group, lease_seconds, force }
        }
        Command::AutoPromote { after: 0, switch: Switch::On, .. } => {
            return refuse("A primary may be silent for a moment; say after how long, at least --after 1s");
        }
        Command::AutoPromote { group, switch, after, latest } => {
            let after_seconds = if switch == Switch::On { after } else { 0 };
            Request::SetTakeover { group, after_seconds, latest }
        }
        Command::Policy { group, policy } => Request::SetPolicy { group, policy: policy.into() },
        Command::Level { group, level, without_peer } => {
            Request::SetLevel { group, level: level.into(), without_peer: without_peer.map(Into::into) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_ever_is_told_nothing() {
        assert!(Deadline::after(0, "it").check("g", &Value::Null).is_err());
        assert!(Deadline::after(u64::MAX, "it").check("g", &Value::Null).is_ok());
    }
}
