//! `zhwkprox check`: a login that works, and each way in which one fails, in words. The far end is the real inter-server where it can be, else
//! the state machine of its handshake on a plain socket, or somebody else altogether.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use zhwkprox::crypto::aead::Method;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method as OldMethod};
use zhwkprox::protocol::v80;
use zhwkprox::protocol::v81::handshake::{Authenticated, EntryHandshake, ExitHandshake, Keys, Progress, Psk};
use zhwkprox::protocol::v81::settings::Settings;

use crate::process::{Process, WATCHDOG};
use crate::support::{Folder, KEY, one_line, output, refused, said, zhwkprox};

/// `check` on 0x81 with key 1.
fn check(folder: &Folder, at: SocketAddr, more: &[&str]) -> Output {
    let key = folder.write81("office.key", 1);
    output(&[&["check", "--key-file", &key, "--dial", &at.to_string()], more].concat())
}

/// `check` on 0x80.
fn check80(folder: &Folder, at: SocketAddr, more: &[&str]) -> Output {
    let key = folder.text("key");
    output(&[&["check", "--protocol", "0x80", "--key-file", &key, "--dial", &at.to_string()], more].concat())
}

#[track_caller]
fn fine(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let time = text.strip_prefix("key ok, round trip ").and_then(|rest| rest.strip_suffix(" ms\n"));
    assert!(time.is_some_and(|time| time.parse::<f64>().is_ok()), "{text}");
    assert_eq!(said(output), "");
}

/// Status 1, and one line that has the address and all of `words`.
#[track_caller]
fn fails(output: &Output, at: SocketAddr, words: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    assert!(output.stdout.is_empty());
    one_line(&said(output), &[&[at.to_string().as_str()], words].concat());
}

/// Somebody who takes one connection.
fn peer<T: Send + 'static>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let serve = move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        serve(stream)
    };
    (at, std::thread::spawn(serve))
}

fn keys(name: &str, number: u8) -> Arc<Keys> {
    Arc::new(Keys::new([(name.into(), Psk::new(&[number; 32]))]).unwrap())
}

/// A tunnel of 0x81 after its login.
struct Tunnel {
    stream: TcpStream,
    proof: Authenticated,
    unread: Vec<u8>,
}

/// Drives a handshake; `None` if it fails.
fn log_in<H>(mut stream: TcpStream, mut state: H, handle: impl Fn(H, &mut &[u8], &mut Vec<u8>) -> Option<Progress<H>>) -> Option<Tunnel> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).unwrap();
        assert_ne!(length, 0, "it left in the middle of the login");
        let (mut input, mut out) = (&buffer[..length], Vec::new());
        let progress = handle(state, &mut input, &mut out);
        stream.write_all(&out).unwrap();
        match progress? {
            Progress::More(more) => state = more,
            Progress::Done(proof) => return Some(Tunnel { stream, proof, unread: input.to_vec() }),
        }
    }
}

fn entry(stream: TcpStream, keys: Arc<Keys>) -> Option<Tunnel> {
    let start = EntryHandshake::start(keys, &Method::ALL, [9; 32], Settings::default());
    log_in(stream, start, |state, input, out| state.handle(input, out).ok())
}

fn exit(mut stream: TcpStream, number: u8) -> Option<Tunnel> {
    let mut hello = Vec::new();
    let start = ExitHandshake::start(&Psk::new(&[number; 32]), &Method::ALL, Settings::default(), &mut hello);
    stream.write_all(&hello).unwrap();
    log_in(stream, start, |state, input, out| state.handle(input, out).ok())
}

impl Tunnel {
    /// The frames of the next record: type, stream, payload; `None` at the connection's end.
    fn receive(&mut self) -> Option<Vec<(u8, u32, Vec<u8>)>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(whole) = self.proof.reader.whole(&self.unread).unwrap()
                && self.unread.len() >= whole
            {
                let mut record: Vec<u8> = self.unread.drain(..whole).collect();
                let plaintext = self.proof.reader.open(&mut record).unwrap();
                return Some(frames(&record[plaintext]));
            }
            match self.stream.read(&mut buffer).unwrap() {
                0 => {
                    assert!(self.unread.is_empty(), "the end comes inside a record");
                    return None;
                }
                length => self.unread.extend_from_slice(&buffer[..length]),
            }
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut frame = frame.to_vec();
        let (header, tag) = self.proof.writer.seal(&mut frame);
        self.stream.write_all(&[&header[..], &frame, &tag].concat()).unwrap();
    }

    fn pong(&mut self, ping: &[u8]) {
        self.send(&[&[9, 0, 8, 0, 0, 0, 0, 0], ping].concat());
    }
}

fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((&[kind, flags, low, high, a, b, c, d], rest)) = bytes.split_first_chunk::<8>() {
        assert_eq!(flags, 0);
        let (payload, rest) = rest.split_at(usize::from(u16::from_le_bytes([low, high])));
        all.push((kind, u32::from_le_bytes([a, b, c, d]), payload.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    all
}

/// Answers the ping of a tunnel; all it was sent until its end.
fn answer(mut tunnel: Tunnel) -> Vec<(u8, u32, Vec<u8>)> {
    let mut seen = Vec::new();
    while let Some(frames) = tunnel.receive() {
        for frame in frames {
            if frame.0 == 8 {
                tunnel.pong(&frame.2);
                tunnel.send(&[0x0a, 0, 1, 0, 0, 0, 0, 0, 0]);
            }
            seen.push(frame);
        }
    }
    seen
}

#[test]
fn a_key_that_fits_is_ok_and_the_tunnel_ends_politely_on_0x81() {
    let folder = Folder::new();
    let (at, peer) = peer(|stream| answer(entry(stream, keys("office", 1)).unwrap()));
    fine(&check(&folder, at, &[]));
    let seen = peer.join().unwrap();
    let kinds: Vec<_> = seen.iter().map(|(kind, stream, payload)| (*kind, *stream, payload.len())).collect();
    assert_eq!(kinds, [(8, 0, 8), (10, 0, 1)], "PING, GOAWAY");
    assert_eq!(seen[1].2, [0], "stopping");
}

#[test]
fn every_cipher_is_tried_that_is_asked_for() {
    let folder = Folder::new();
    for (name, method) in [("aes-128-gcm", Method::Aes128Gcm), ("chacha20-poly1305", Method::ChaCha20Poly1305)] {
        let (at, peer) = peer(move |stream| {
            let tunnel = entry(stream, keys("office", 1)).unwrap();
            assert_eq!(tunnel.proof.method, method);
            answer(tunnel)
        });
        fine(&check(&folder, at, &["--cipher", name]));
        peer.join().unwrap();
    }
}

#[test]
fn a_flow_that_is_put_on_the_tunnel_meanwhile_is_refused() {
    let folder = Folder::new();
    let (at, peer) = peer(|stream| {
        let mut tunnel = entry(stream, keys("office", 1)).unwrap();
        tunnel.send(&[2, 0, 7, 0, 1, 0, 0, 0, 4, 192, 0, 2, 1, 0, 80]);
        let ping = tunnel.receive().unwrap();
        let reset = tunnel.receive().unwrap();
        assert_eq!(reset, [(6, 1, vec![1])]);
        tunnel.pong(&ping[0].2);
        assert!(tunnel.receive().is_none());
    });
    fine(&check(&folder, at, &[]));
    peer.join().unwrap();
}

#[test]
fn a_server_that_listens_is_checked_as_an_inter_server() {
    let folder = Folder::new();
    let (at, peer81) = peer(|stream| answer(exit(stream, 1).unwrap()));
    fine(&check(&folder, at, &["--as", "inter-server"]));
    assert_eq!(peer81.join().unwrap().len(), 2);

    let (at, peer80) = peer(|mut stream| {
        let mut out = Vec::new();
        let mut state = v80::handshake::ExitHandshake::start(cipher80(), [7; 32], &mut out);
        let mut buffer = [0; 4096];
        loop {
            stream.write_all(&out).unwrap();
            let length = stream.read(&mut buffer).unwrap();
            out.clear();
            match state.handle(&mut &buffer[..length], &mut out).unwrap() {
                v80::handshake::Progress::More(more) => state = more,
                v80::handshake::Progress::Done(_) => break,
            }
        }
        stream.write_all(&out).unwrap();
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    });
    fine(&check80(&folder, at, &["--as", "inter-server"]));
    peer80.join().unwrap();
}

fn cipher80() -> MessageCipher {
    MessageCipher::new(OldMethod::Aes128Ctr, KEY.as_bytes(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]).unwrap()
}

#[test]
fn a_key_that_is_not_known_there_is_said_on_0x81() {
    let folder = Folder::new();
    let (at, peer) = peer(|stream| assert!(entry(stream, keys("other", 2)).is_none()));
    fails(&check(&folder, at, &[]), at, &["closed after our login message", "does not know this key"]);
    peer.join().unwrap();
}

#[test]
fn a_listening_server_with_another_key_is_said_on_0x81() {
    let folder = Folder::new();
    let (at, peer) = peer(|stream| drop(exit(stream, 2)));
    fails(&check(&folder, at, &["--as", "inter-server"]), at, &["wrong key"]);
    // It is left in the middle of its login.
    assert!(peer.join().is_err());
}

#[test]
fn a_tunnel_that_is_ended_instead_of_answering_says_why() {
    let folder = Folder::new();
    let (at, peer) = peer(|stream| {
        let mut tunnel = entry(stream, keys("office", 1)).unwrap();
        tunnel.send(&[&[0x0a, 0, 9, 0, 0, 0, 0, 0, 0x11], &b"too many"[..]].concat());
        while tunnel.receive().is_some() {}
    });
    fails(&check(&folder, at, &[]), at, &["the key is known", "GOAWAY 0x11", "too many"]);
    peer.join().unwrap();
}

fn entry80(folder: &Folder, more: &[&str]) -> (Process, SocketAddr) {
    let key = folder.text("key");
    let base = ["inter-server", "--protocol", "0x80", "--key-file", &key, "--listen", "127.0.0.1:0", "--socks", "127.0.0.1:0"];
    let mut process = Process::start(&mut zhwkprox(&[&base[..], more].concat()));
    let at = process.listens("servers");
    (process, at)
}

#[test]
fn the_real_inter_server_on_0x80_is_found_well_and_is_well_afterwards() {
    let folder = Folder::new();
    let (mut entry, at) = entry80(&folder, &[]);
    fine(&check80(&folder, at, &[]));
    entry.wait_for_state(|state| state["tunnels"] == 0);
    let key = folder.write("other", "ascii:another 16 bytes", 0o600);
    let wrong = output(&["check", "--protocol", "0x80", "--key-file", &key, "--dial", &at.to_string()]);
    fails(&wrong, at, &["does not have our key"]);
}

#[test]
fn an_inter_server_that_speaks_the_other_protocol_is_said() {
    let folder = Folder::new();
    let (_entry, at) = entry80(&folder, &[]);
    fails(&check(&folder, at, &[]), at, &["closed after our hello, without a word", "protocol 0x81", "--protocol"]);
    let (old, _peer) = peer(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        stream.write_all(&[0x80]).unwrap();
        stream.read(&mut [0; 64]).unwrap_or_default()
    });
    fails(&check(&folder, old, &[]), old, &["speaks protocol 0x80, expected 0x81", "--protocol 0x80"]);
    let (new, _peer) = peer(|stream| exit(stream, 1).is_none());
    fails(&check80(&folder, new, &["--as", "inter-server"]), new, &["speaks protocol 0x81, expected 0x80"]);
}

#[test]
fn a_server_in_the_place_of_an_inter_server_is_said() {
    let folder = Folder::new();
    let (at, _peer) = peer(|stream| exit(stream, 1).is_none());
    fails(&check(&folder, at, &[]), at, &["it is a server, expected an inter-server", "--as inter-server"]);
}

#[test]
fn an_address_that_is_not_allowed_is_told_from_a_key_that_is_not_known() {
    let folder = Folder::new();
    let (_entry, at) = entry80(&folder, &["--allow-servers", "192.0.2.0/24"]);
    for output in [check(&folder, at, &[]), check80(&folder, at, &[])] {
        fails(&output, at, &["closed at once", "(127.0.0.1)", "--allow-servers", "no zhwkprox inter-server"]);
    }
    let (exit, _peer) = peer(drop);
    fails(&check(&folder, exit, &["--as", "inter-server"]), exit, &["closed at once", "--allow-inter-servers"]);
}

#[test]
fn somebody_else_is_shown_by_his_first_sixteen_bytes_escaped() {
    let folder = Folder::new();
    let (ssh, _peer) = peer(|mut stream| {
        stream.write_all(b"SSH-2.0-OpenSSH_9.9p1\r\n").unwrap();
        stream.read(&mut [0; 64]).unwrap_or_default()
    });
    fails(&check(&folder, ssh, &[]), ssh, &["no zhwkprox inter-server", "`SSH-2.0-OpenSSH_`"]);
    let (web, _peer) = peer(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        stream.write_all(b"\x15\x03\x01\r\n\x1b[2J").unwrap();
        stream.read(&mut [0; 64]).unwrap_or_default()
    });
    fails(&check(&folder, web, &[]), web, &["expected protocol 0x81", r"`\x15\x03\x01\r\n\x1b[2J`"]);
}

#[test]
fn a_port_where_nothing_listens_is_refused_there() {
    let folder = Folder::new();
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fails(&check(&folder, at, &[]), at, &["refused", "nothing listens there"]);
}

#[test]
fn a_name_that_is_none_is_not_found() {
    let hide = "mount --bind /dev/null /etc/resolv.conf && exec \"$@\"";
    let possible = Command::new("unshare").args(["-rmn", "sh", "-c", hide, "sh", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "unshare -rmn does not work here: apt-get install util-linux");
        eprintln!("SKIPPED: unshare -rmn does not work here");
        return;
    }
    let folder = Folder::new();
    let key = folder.write81("office.key", 1);
    let mut command = Command::new("unshare");
    command.args(["-rmn", "sh", "-c", hide, "sh", env!("CARGO_BIN_EXE_zhwkprox")]);
    let output = command.args(["check", "--key-file", &key, "--dial", "entry.invalid:1992"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    one_line(&said(&output), &["entry.invalid:1992: name not found"]);
}

#[test]
fn somebody_who_says_nothing_is_left_after_ten_seconds() {
    let folder = Folder::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    fails(&check(&folder, at, &[]), at, &["timed out: no answer within 10 s", "the inter-server's hello"]);
}

#[test]
fn what_check_cannot_do_without_is_named() {
    let folder = Folder::new();
    let key = folder.write81("office.key", 1);
    refused(&output(&["check"]), &["--key-file FILE is missing"]);
    refused(&output(&["check", "--key-file", &key]), &["--dial HOST:PORT is missing"]);
    refused(&output(&["check", "--key-file", &key, "--dial", "a"]), &["--dial: got `a`, expected host and port"]);
    refused(&output(&["check", "--key-file", &key, "--dial", "a:1", "--as", "me"]), &["--as: got `me`, expected server or inter-server"]);
}
