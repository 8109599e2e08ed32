//! Both sides of 0x81's channel against the other implementation (`tests/peer81`), over TCP, with fresh keys on every run: a stream of bytes
//! goes through it to its echo, and a page is fetched from us.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use zhwkprox::crypto::aead::Method;
use zhwkprox::protocol::v81::handshake::{Authenticated, EntryHandshake, ExitHandshake, HandshakeError, Progress};

use crate::v81_channel::{AT_ENTRY, AT_EXIT, Side, keys, psk, record};
use crate::v81_vectors::python;

/// Ten times what the slowest of these takes on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(60);
const OPEN: u8 = 0x02;
const OPENED: u8 = 0x03;
const DATA: u8 = 0x04;
const FIN: u8 = 0x05;
const GOAWAY: u8 = 0x0a;
/// 127.0.0.1 port 80.
const ADDRESS: [u8; 7] = [4, 127, 0, 0, 1, 0, 80];

/// A tunnel over a socket that blocks.
struct Tunnel {
    socket: TcpStream,
    received: Vec<u8>,
    authenticated: Authenticated,
}

impl Tunnel {
    fn begin(mut socket: TcpStream, mut side: Side, hello: &[u8]) -> Result<Self, HandshakeError> {
        socket.set_read_timeout(Some(WATCHDOG)).expect("a socket");
        socket.write_all(hello).expect("the peer is there");
        let mut piece = [0; 4096];
        loop {
            let count = socket.read(&mut piece).expect("the peer goes on");
            if count == 0 {
                return Err(side.closed());
            }
            let (mut input, mut out) = (&piece[..count], Vec::new());
            let progress = side.handle(&mut input, &mut out);
            socket.write_all(&out).expect("the peer is there");
            match progress? {
                Progress::More(more) => side = more,
                Progress::Done(authenticated) => return Ok(Self { socket, received: input.to_vec(), authenticated }),
            }
        }
    }

    fn send(&mut self, frames: &[(u8, u32, &[u8])]) {
        let mut plaintext = Vec::new();
        for (kind, stream, payload) in frames {
            let length = u16::try_from(payload.len()).expect("a frame").to_le_bytes();
            plaintext.extend_from_slice(&[*kind, 0, length[0], length[1]]);
            plaintext.extend_from_slice(&stream.to_le_bytes());
            plaintext.extend_from_slice(payload);
        }
        let sealed = record(&mut self.authenticated.writer, &plaintext);
        self.socket.write_all(&sealed).expect("the peer is there");
    }

    /// The frames of the next record: type and payload.
    fn receive(&mut self) -> Vec<(u8, Vec<u8>)> {
        let whole = loop {
            match self.authenticated.reader.whole(&self.received).expect("a record") {
                Some(whole) if whole <= self.received.len() => break whole,
                _ => {
                    let mut piece = [0; 4096];
                    let count = self.socket.read(&mut piece).expect("the peer goes on");
                    assert!(count > 0, "the peer has closed");
                    self.received.extend_from_slice(&piece[..count]);
                }
            }
        };
        let mut record: Vec<u8> = self.received.drain(..whole).collect();
        let plaintext = self.authenticated.reader.open(&mut record).expect("the next record");
        let (mut rest, mut frames) = (&record[plaintext], Vec::new());
        while let Some((header, behind)) = rest.split_first_chunk::<8>() {
            let (payload, next) = behind.split_at(usize::from(u16::from_le_bytes([header[2], header[3]])));
            frames.push((header[0], payload.to_vec()));
            rest = next;
        }
        frames
    }

    /// All data until a frame of this type.
    fn data_until(&mut self, last: u8) -> Vec<u8> {
        let mut data = Vec::new();
        loop {
            let frames = self.receive();
            data.extend(frames.iter().filter(|(kind, _)| *kind == DATA).flat_map(|(_, payload)| payload.iter().copied()));
            if frames.iter().any(|(kind, _)| *kind == last) {
                return data;
            }
        }
    }
}

/// A running peer, with its key.
struct Peer {
    child: Child,
    _key: tempfile::NamedTempFile,
}

impl Peer {
    fn start(mut python: Command, key: u8, arguments: &[&str]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a place for a key");
        let line = format!("zhwkprox-0x81:{}\n", base64::engine::general_purpose::STANDARD.encode([key; 32]));
        std::fs::write(file.path(), line).expect("a place for a key");
        let (command, rest) = arguments.split_first().expect("a command");
        python.arg(command).arg("--key").arg(file.path()).args(rest);
        Self { child: python.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python was there"), _key: file }
    }

    /// All that it says until it ends, and whether it is content.
    fn end(mut self) -> (String, bool) {
        let mut said = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        (said, self.child.wait().expect("it ends").success())
    }
}

fn exit_peer(python: Command, key: u8, cipher: &str) -> (Peer, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let peer = Peer::start(python, key, &["exit", "--connect", &address, "--cipher", cipher]);
    (peer, listener.accept().expect("it dials").0)
}

fn our_entry() -> Side {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).expect("random bytes");
    Side::Entry(EntryHandshake::start(keys(&[("other", 6), ("peer", 7)]), &Method::ALL, nonce, AT_ENTRY))
}

#[test]
fn bytes_go_through_the_other_implementations_server_and_come_back_with_every_cipher() {
    for method in Method::ALL {
        let Some(python) = python::peer() else { return };
        let (peer, socket) = exit_peer(python, 7, method.name());
        let mut tunnel = Tunnel::begin(socket, our_entry(), &[]).unwrap_or_else(|error| panic!("{method}: {error}"));
        assert_eq!((tunnel.authenticated.method, tunnel.authenticated.name.as_deref()), (method, Some("peer")));
        assert_eq!(tunnel.authenticated.peer.max_streams, 64);
        let data: Vec<u8> = (0..=250).cycle().take(16_000).collect();
        tunnel.send(&[(OPEN, 1, &ADDRESS), (DATA, 1, &data), (FIN, 1, &[])]);
        assert_eq!(tunnel.data_until(FIN), data, "{method}");
        tunnel.send(&[(GOAWAY, 0, &[0])]);
        assert!(tunnel.data_until(GOAWAY).is_empty());
        let (said, content) = peer.end();
        assert!(content && said.ends_with("over\n"), "{method}: {said}");
    }
}

#[test]
fn the_other_implementations_inter_server_fetches_a_page_from_us() {
    let Some(python) = python::peer() else { return };
    let mut peer = Peer::start(python, 7, &["entry", "--listen", "127.0.0.1:0", "--get", "127.0.0.1:80"]);
    let mut said = BufReader::new(peer.child.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("text");
    let socket = TcpStream::connect(line.trim().rsplit(' ').next().expect("an address")).expect("it listens");
    let mut hello = Vec::new();
    let exit = Side::Exit(ExitHandshake::start(&psk(7), &Method::by_speed(), AT_EXIT, &mut hello));
    let mut tunnel = Tunnel::begin(socket, exit, &hello).expect("one key");
    let request = tunnel.data_until(FIN);
    assert_eq!(request, b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    tunnel.send(&[(OPENED, 1, &ADDRESS), (DATA, 1, b"HTTP/1.0 200 OK\r\n\r\nIt works."), (FIN, 1, &[])]);
    tunnel.data_until(GOAWAY);
    tunnel.send(&[(GOAWAY, 0, &[0])]);
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    assert!(peer.child.wait().expect("it ends").success(), "{rest}");
    assert!(rest.ends_with("It works.") && rest.contains("status HTTP/1.0 200 OK") && rest.contains("window 300000 streams 7"), "{rest}");
}

#[test]
fn the_other_implementation_with_another_key_gets_nowhere() {
    let Some(python) = python::peer() else { return };
    let (peer, socket) = exit_peer(python, 5, "aes-128-gcm");
    assert_eq!(Tunnel::begin(socket, our_entry(), &[]).err(), Some(HandshakeError::WrongKey));
    let (said, content) = peer.end();
    assert!(!content && said.starts_with("closed: "), "{said}");
}

/// Keys are shared between shards, so the type must be.
#[test]
fn keys_can_be_shared_between_threads() {
    fn share<T: Send + Sync>(_: T) {}
    share(Arc::clone(&keys(&[("peer", 7)])));
}
