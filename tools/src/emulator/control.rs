//! The commands of a running emulator: one a line, one answer a line.
//!
//! | command | effect |
//! | --- | --- |
//! | `cut [a-to-b \| b-to-a]` | nothing comes through any more |
//! | `heal [a-to-b \| b-to-a]` | ends a cut |
//! | `set [a-to-b \| b-to-a] NAME VALUE` | changes a setting, as on the command line |
//! | `stats` | the statistics as one line of JSON |
//! | `settings` | the settings both ways as one line of JSON |

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use thiserror::Error;

use super::proxy::{Emulator, Side};
use link_model::SettingError;

/// A command that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Not a command.
    #[error("There is no command '{line}'; there are cut, heal, set, stats and settings")]
    Unknown {
        /// What was written.
        line: String,
    },
    /// A setting that cannot be read.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// Carries out one command and returns the answer, without an end of line.
///
/// # Errors
/// When the command or its value cannot be read; then nothing has changed.
pub fn answer(emulator: &Emulator, line: &str) -> Result<String, CommandError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (command, rest) = match words.split_first() {
        Some((command, rest)) => (*command, rest),
        None => ("", words.as_slice()),
    };
    let (ways, rest): (&[Side], &[&str]) = match rest.split_first() {
        Some((&"a-to-b", rest)) => (&[Side::A], rest),
        Some((&"b-to-a", rest)) => (&[Side::B], rest),
        _ => (&[Side::A, Side::B], rest),
    };
    match (command, rest) {
        ("cut", []) => change(emulator, ways, |line| line.cut = true),
        ("heal", []) => change(emulator, ways, |line| line.cut = false),
        ("set", [name, value]) => {
            // Tried on a copy first: no way changes when the value is bad.
            emulator.line_settings(Side::A).set(name, value)?;
            change(emulator, ways, |line| {
                let _ = line.set(name, value);
            });
        }
        ("stats", []) => return Ok(json(&emulator.statistics())),
        ("settings", []) => {
            let both = [Side::A, Side::B].map(|side| emulator.line_settings(side));
            let [a_to_b, b_to_a] = both;
            return Ok(json(&serde_json::json!({"a_to_b": a_to_b, "b_to_a": b_to_a})));
        }
        _ => {
            return Err(CommandError::Unknown { line: line.trim().to_owned() });
        }
    }
    Ok("ok".to_owned())
}

fn change(emulator: &Emulator, ways: &[Side], change: impl Fn(&mut link_model::LineSettings)) {
    for &way in ways {
        emulator.change_way(way, &change);
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("numbers and names always become JSON")
}

/// Reads commands until the input ends and writes an answer for each; an error is answered as `error: …`.
///
/// # Errors
/// When reading or writing fails.
pub fn converse(emulator: &Emulator, input: impl Read, mut output: impl Write) -> io::Result<()> {
    const LINE_BYTES_MAX: u64 = 4_096;
    let mut input = BufReader::new(input);
    loop {
        let mut line = String::new();
        if input.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match answer(emulator, &line) {
            Ok(answer) => answer,
            Err(error) => format!("error: {error}"),
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
}

/// Answers everyone who connects, one after the other, until the listener fails.
///
/// # Errors
/// When the listener fails; a connection that fails only ends itself.
pub fn serve(emulator: &Arc<Emulator>, listener: &UnixListener) -> io::Result<()> {
    loop {
        let (connection, _) = listener.accept()?;
        let emulator = Arc::clone(emulator);
        // One thread each: whoever stays connected must not keep others out.
        std::thread::spawn(move || serve_one(&emulator, &connection));
    }
}

fn serve_one(emulator: &Emulator, connection: &UnixStream) {
    // The client is gone, or sent something that is not text: either way the conversation is over.
    let _ = converse(emulator, connection, connection);
}

#[cfg(test)]
mod tests {
    use super::super::proxy::EmulatorSettings;
    use super::*;
    use link_model::{LineSettings, Probability};

    fn emulator() -> Emulator {
        Emulator::start(EmulatorSettings::local(LineSettings::default(), 1)).expect("it starts")
    }

    #[test]
    fn commands_change_both_ways_or_one() {
        let emulator = emulator();
        assert_eq!(answer(&emulator, "set loss 3%"), Ok("ok".to_owned()));
        assert_eq!(answer(&emulator, " set b-to-a  loss 5%\n"), Ok("ok".to_owned()));
        assert_eq!(answer(&emulator, "cut a-to-b"), Ok("ok".to_owned()));
        let (a, b) = (emulator.line_settings(Side::A), emulator.line_settings(Side::B));
        assert_eq!((a.loss, b.loss), (Probability::from_percent(3), Probability::from_percent(5)));
        assert_eq!((a.cut, b.cut), (true, false));
        assert_eq!(answer(&emulator, "cut"), Ok("ok".to_owned()));
        assert!(emulator.line_settings(Side::B).cut);
        assert_eq!(answer(&emulator, "heal"), Ok("ok".to_owned()));
        assert!(!emulator.line_settings(Side::A).cut);
    }

    #[test]
    fn a_conversation_answers_each_line_and_survives_mistakes() {
        let emulator = emulator();
        let mut output = Vec::new();
        converse(&emulator, &b"stats\nset loss lots\ndance\ncut\n"[..], &mut output).expect("a conversation");
        let output = String::from_utf8(output).expect("text");
        let lines: Vec<&str> = output.lines().collect();
        let statistics: super::super::proxy::Statistics = serde_json::from_str(lines[0]).expect("JSON");
        assert_eq!(statistics, emulator.statistics());
        assert_eq!(lines[1], "error: 'lots' is not a probability; write 1% or 0.01");
        assert_eq!(lines[2], "error: There is no command 'dance'; there are cut, heal, set, stats and settings");
        assert_eq!(lines[3], "ok");
        assert!(emulator.line_settings(Side::A).cut);
    }

    #[test]
    fn the_socket_answers_two_clients_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).expect("a listener");
        let emulator = Arc::new(emulator());
        std::thread::spawn(move || serve(&emulator, &listener));
        let ask = |stream: &UnixStream, line: &str| {
            writeln!(&mut &*stream, "{line}").expect("written");
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).expect("read");
            answer
        };
        let first = UnixStream::connect(&path).expect("connected");
        assert_eq!(ask(&first, "cut"), "ok\n");
        let second = UnixStream::connect(&path).expect("connected");
        assert_eq!(ask(&second, "heal"), "ok\n");
        assert!(ask(&first, "stats").starts_with('{'));
    }
}
