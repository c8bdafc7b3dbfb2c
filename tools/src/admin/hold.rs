//! Holding an application or a file system still while a restart point is declared.
//!
//! Each hold is kept by a shell of its own, which does what begins it, waits until its input ends, and does what ends it.
//! So a hold ends when the point is declared, when its time is over, and when this program dies, by whatever signal.

use super::ClientError;
use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

/// $1 begins the hold, $2 ends it, $3: seconds for each of both, and for the hold. Says "held", and "late" if its time was over.
/// What ends a hold is done also if what begins it failed, because it may have done a part. A shell in brackets speaks, so that
/// only that one dies if nobody listens any more.
const KEEPER: &str = r#"
timeout "$3" sh -c "$1" </dev/null >&2 && (echo held) || (echo "failed $?")
timeout "$3" cat >/dev/null || (echo late)
timeout "$3" sh -c "$2" </dev/null >&2 || (echo "not ended")
"#;

/// A hold that is on.
struct Hold {
    what: String,
    keeper: Child,
    said: BufReader<ChildStdout>,
}

/// The holds that are on; those that began last end first.
#[derive(Default)]
pub(super) struct Holds(Vec<Hold>);

fn refused(text: String) -> ClientError {
    ClientError::Refused(text)
}

impl Holds {
    /// Runs a command that makes the application quiet, and later the one that lets it go on.
    pub(super) fn execute(&mut self, before: &str, after: &str, seconds: u64) -> Result<(), ClientError> {
        let what = if before.is_empty() { after } else { before };
        self.begin(what, before, after, seconds)
    }

    /// Freezes a mounted file system: it is written out, and whoever writes waits.
    pub(super) fn freeze(&mut self, mountpoint: &Path, seconds: u64) -> Result<(), ClientError> {
        let place = mountpoint.display().to_string().replace('\'', r"'\''");
        let command = |verb| format!("fsfreeze --{verb} '{place}'");
        self.begin(&command("freeze"), &command("freeze"), &command("unfreeze"), seconds)
    }

    fn begin(&mut self, what: &str, before: &str, after: &str, seconds: u64) -> Result<(), ClientError> {
        let failed = |reason: String| refused(format!("{what}: {reason}; no restart point was declared"));
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", before, after, &seconds.to_string()])
            // A ^C is for this program; the keeper ends the hold all the same.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let Some(output) = keeper.stdout.take() else {
            return Err(failed("its output cannot be read".into()));
        };
        let mut said = BufReader::new(output);
        let mut line = String::new();
        let read = said.read_line(&mut line).map_err(|error| failed(error.to_string()));
        self.0.push(Hold { what: what.to_owned(), keeper, said });
        read?;
        match line.trim_end().strip_prefix("failed ") {
            None if line.starts_with("held") => Ok(()),
            Some("124") => Err(failed(format!("not done after {seconds} s (--hold-for)"))),
            Some(status) => Err(failed(format!("exit status {status}"))),
            None => Err(failed("its keeper ended".into())),
        }
    }

    /// Ends all holds; an error if one did not last until now, or could not be ended.
    pub(super) fn end(&mut self) -> Result<(), ClientError> {
        let mut wrong = Vec::new();
        while let Some(mut hold) = self.0.pop() {
            drop(hold.keeper.stdin.take());
            let mut said = String::new();
            let read = hold.said.read_to_string(&mut said);
            let ended = hold.keeper.wait();
            let what = &hold.what;
            if read.is_err() || ended.is_err() || said.contains("not ended") {
                wrong.push(format!("{what}: what ends it failed; see to it by hand"));
            }
            if said.contains("late") {
                wrong.push(format!(
                    "{what}: its time was over before the restart point was declared, so that point is only \
                     crash-consistent; try again with a longer --hold-for"
                ));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(refused(wrong.join("\n"))) }
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        // After an error that is told already.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_whose_time_is_over_says_so() {
        let mut holds = Holds::default();
        holds.execute("echo begun", "echo ended", 1).expect("held");
        while holds.0[0].keeper.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        let error = holds.end().expect_err("late").to_string();
        assert!(error.contains("echo begun: its time was over before the restart point was declared"), "{error}");
        assert!(holds.end().is_ok(), "nothing is held any more");
    }

    #[test]
    fn a_hold_that_cannot_be_ended_says_so() {
        let mut holds = Holds::default();
        holds.execute("true", "exit 7", 3600).expect("held");
        let error = holds.end().expect_err("not ended").to_string();
        assert!(error.contains("true: what ends it failed; see to it by hand"), "{error}");
    }
}
