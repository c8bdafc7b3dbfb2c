//! The program `link-emulator` as a user runs it: options, commands, messages.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use tools::emulator::Statistics;

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    a_side: SocketAddr,
    b_side: SocketAddr,
}

impl Program {
    /// Starts the program on free ports and returns when it says that it carries packets.
    fn start(options: &[&str]) -> Self {
        let mut child = command(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line).expect("a line");
        let mut addresses = line.split_whitespace().filter_map(|word| word.parse().ok());
        let mut address = || addresses.next().unwrap_or_else(|| panic!("no address in: {line}"));
        let (a_side, b_side) = (address(), address());
        Self {
            input: child.stdin.take().expect("piped"),
            output: BufReader::new(child.stdout.take().expect("piped")),
            child,
            a_side,
            b_side,
        }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("written");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("read");
        answer
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_link-emulator"));
    command.args(["--a-side", "127.0.0.1:0", "--b-side", "127.0.0.1:0"]).args(options);
    command
}

fn refused(options: &[&str]) -> String {
    let Output { status, stderr, .. } = command(options).stdin(Stdio::null()).output().expect("it runs");
    assert!(!status.success());
    String::from_utf8(stderr).expect("text")
}

fn ask_socket(path: &Path, line: &str) -> String {
    let stream = UnixStream::connect(path).expect("connected");
    writeln!(&mut &stream, "{line}").expect("written");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("read");
    answer
}

#[test]
fn packets_pass_and_commands_work_on_input_and_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("control");
    let b = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    b.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let node = b.local_addr().expect("an address").to_string();
    let options = ["--delay", "1ms", "--seed", "7", "--b", &node, "--control"];
    let mut options = options.to_vec();
    options.push(path.to_str().expect("text"));
    let mut program = Program::start(&options);
    let a = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    a.send_to(b"hello", program.a_side).expect("sent");
    let mut bytes = [0; 16];
    let (size, from) = b.recv_from(&mut bytes).expect("it arrives");
    assert_eq!((&bytes[..size], from), (&b"hello"[..], program.b_side));
    assert_eq!(program.ask("set loss 100%"), "ok\n");
    assert_eq!(ask_socket(&path, "cut b-to-a"), "ok\n");
    assert!(ask_socket(&path, "settings").contains("\"cut\":true"));
    let statistics: Statistics = serde_json::from_str(&program.ask("stats")).expect("JSON");
    assert_eq!((statistics.a_to_b.taken, statistics.a_to_b.delivered), (1, 1));
    assert!(program.ask("jump").starts_with("error: There is no command 'jump'"));
    // A second one does not take the socket of the first away; a dead one's socket is replaced.
    let error = refused(&["--control", path.to_str().expect("text")]);
    assert!(error.contains("is the control socket of another running emulator"), "{error}");
    drop(program);
    assert!(path.exists());
    let mut program = Program::start(&["--control", path.to_str().expect("text")]);
    assert_eq!(ask_socket(&path, "heal"), "ok\n");
    assert_eq!(program.ask("cut"), "ok\n");
}

#[test]
fn mistakes_are_named_and_help_has_examples() {
    let error = refused(&["--loss", "often"]);
    assert!(error.contains("Cannot use --loss") && error.contains("write 1% or 0.01"), "{error}");
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = taken.local_addr().expect("an address").to_string();
    let program = Command::new(env!("CARGO_BIN_EXE_link-emulator"))
        .args(["--a-side", &address, "--b-side", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let error = String::from_utf8(program.stderr).expect("text");
    assert!(!program.status.success());
    assert!(error.contains(&format!("Cannot listen on {address}")), "{error}");
    let help = command(&["--help"]).output().expect("it runs");
    assert!(help.status.success());
    assert!(String::from_utf8(help.stdout).expect("text").contains("Examples:"));
}
