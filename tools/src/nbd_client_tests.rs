//! The client against a server that is not ours (`qemu-nbd`), and against one that breaks the protocol.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use super::*;

const SIZE: u64 = 8 << 20;

struct Server {
    folder: tempfile::TempDir,
}

impl Server {
    /// Returns when the server listens.
    fn start(extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(SIZE)).expect("an image");
        let status = Command::new("qemu-nbd")
            .args(["--fork", "--format=raw", "--export-name=volume", "--discard=unmap"])
            .args(extra)
            .arg("--pid-file")
            .arg(folder.path().join("pid"))
            .arg("--socket")
            .arg(folder.path().join("socket"))
            .arg(&image)
            .status()
            .expect("qemu-nbd is in Debian's package qemu-utils");
        assert!(status.success(), "qemu-nbd: {status}");
        Self { folder }
    }

    fn connect(&self) -> NbdClient {
        NbdClient::connect_unix(&self.folder.path().join("socket"), "volume").expect("connected")
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("image")).expect("readable")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself has taken its pid file along, or is no longer there to be asked.
        if let Ok(pid) = std::fs::read_to_string(self.folder.path().join("pid")) {
            let _ = Command::new("kill").arg(pid.trim()).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn what_is_written_is_read_and_reaches_the_image() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    assert_eq!((client.size(), client.is_read_only()), (SIZE, false));
    assert!(client.block_size() <= 4_096);
    client.write(4_096, &[1; 8_192]).expect("written");
    client.write_durable(1 << 20, &[2; 512]).expect("written");
    client.flush().expect("flushed");
    assert_eq!(client.read(4_096, 8_192).expect("read"), [1; 8_192]);
    client.write_zeroes(4_096, 4_096).expect("zeroed");
    client.trim(1 << 20, 4_096).expect("trimmed");
    assert_eq!(client.read(4_096, 4_096).expect("read"), [0; 4_096]);
    client.flush().expect("flushed");
    let image = server.image();
    assert_eq!(image.len() as u64, SIZE);
    assert!(image[4_096..8_192].iter().all(|&byte| byte == 0));
    assert!(image[8_192..12_288].iter().all(|&byte| byte == 1));
}

#[test]
fn many_requests_under_way_get_their_own_answers() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for index in 0..32u8 {
        let data = [index + 1; 4_096];
        let request = NbdRequest::Write { offset: u64::from(index) * 4_096, data: &data, durable: false };
        client.submit(request).expect("submitted");
    }
    assert_eq!(client.pending_count(), 32);
    client.complete_all().expect("all written");
    let mut wanted = BTreeMap::new();
    for index in 0..32u8 {
        let request = NbdRequest::Read { offset: u64::from(index) * 4_096, size: 4_096 };
        wanted.insert(client.submit(request).expect("submitted"), index + 1);
    }
    while client.pending_count() > 0 {
        let completion = client.complete().expect("an answer");
        let value = wanted.remove(&completion.cookie).expect("each cookie once");
        assert_eq!(completion.result.expect("read"), [value; 4_096]);
    }
    assert!(matches!(client.complete(), Err(NbdError::NothingSubmitted)));
}

#[test]
fn a_refused_request_does_not_end_the_conversation() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let error = client.read(SIZE, 4_096).expect_err("beyond the end");
    let text = error.to_string();
    assert!(text.contains("could not read 4096 bytes at 8388608: error 22"), "{text}");
    client.write(0, &[3; 512]).expect("the next one works");
    let large = vec![0; REQUEST_BYTES_MAX as usize + 1];
    assert!(matches!(client.write(0, &large), Err(NbdError::TooLarge { .. })));
}

#[test]
fn exports_are_listed_and_unknown_ones_named() {
    let server = Server::start(&["--read-only"]);
    let socket = server.folder.path().join("socket");
    assert_eq!(NbdClient::list_unix(&socket).expect("a list"), ["volume"]);
    let Err(error) = NbdClient::connect_unix(&socket, "other") else {
        panic!("connected to an export that does not exist");
    };
    assert_eq!(error.to_string(), "The NBD server has no export 'other'");
    let mut client = server.connect();
    assert!(client.is_read_only());
    let error = client.write(0, &[0; 512]).expect_err("it takes no writes").to_string();
    assert!(error.contains("could not write 512 bytes at 0: error "), "{error}");
}

#[test]
fn an_absent_server_is_named() {
    let Err(error) = NbdClient::connect_unix(Path::new("/nonexistent/socket"), "volume") else {
        panic!("connected to nobody");
    };
    assert_eq!(error.to_string(), "Cannot connect to /nonexistent/socket");
}

#[test]
fn a_server_that_leaves_the_protocol_is_refused_and_fills_no_memory() {
    let mut good = Vec::new();
    good.extend(GREETING.to_be_bytes());
    good.extend(OPTION.to_be_bytes());
    good.extend(3u16.to_be_bytes());
    let reply = |kind: u32, size: u32| {
        let mut bytes = good.clone();
        bytes.extend(OPTION_REPLY.to_be_bytes());
        bytes.extend(OPTION_GO.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes
    };
    // Accepts the option, then answers a request that was never made.
    let mut stray_answer = reply(REPLY_ACKNOWLEDGE, 0);
    stray_answer.extend(SIMPLE_REPLY.to_be_bytes());
    stray_answer.extend(0u32.to_be_bytes());
    stray_answer.extend(99u64.to_be_bytes());
    for (speech, expected) in [
        (b"HELO, this is something else".to_vec(), "the greeting"),
        (good[..12].to_vec(), "broke"),
        (reply(REPLY_INFO, u32::MAX), "an option reply's size"),
        (reply(REPLY_INFO, 0), "broke"),
        (reply(0x8000_0002, 0), "refused option 7 with 0x80000002"),
        (stray_answer, "the cookie 0x63"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a listener");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let _ = stream.write_all(&speech);
            // Reads until the client leaves, so that its own words do not fail.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let result = NbdClient::connect_unix(&path, "volume").and_then(|mut client| client.read(0, 512).map(drop));
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        server.join().expect("the server ends");
    }
}
