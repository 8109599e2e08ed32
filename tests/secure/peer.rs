//! A peer that has the key and says whatever a test wants: the library's own login and records, and nothing of its sessions.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use zhwkprox::crypto::aead::Method;
use zhwkprox::protocol::v81::frame::kind;
use zhwkprox::protocol::v81::handshake::{Authenticated, EntryHandshake, ExitHandshake, Keys, Progress, Psk};
use zhwkprox::protocol::v81::settings::Settings;

use crate::harness::net::{connect, guard};

/// The most that one may say.
pub(crate) const GENEROUS: Settings = Settings { stream_window: i32::MAX as u32, max_streams: 65_536 };

/// A frame that has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A tunnel with a peer of ours at its other end.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    received: Vec<u8>,
    tunnel: Authenticated,
    frames: std::collections::VecDeque<Frame>,
    records: [u64; 2],
}

/// A frame in bytes.
pub(crate) fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame_with_flags(kind, 0, stream, payload)
}

pub(crate) fn frame_with_flags(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
    [&[kind, flags, length[0], length[1]], &stream.to_le_bytes()[..], payload].concat()
}

/// An address as OPEN and OPENED have it.
pub(crate) fn address(of: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(of) = of else { panic!("{of} is not IPv4") };
    [&[4], &of.ip().octets()[..], &of.port().to_be_bytes()].concat()
}

impl Peer {
    /// Logs in at an inter-server, as the exit that has the key of this number.
    pub(crate) fn as_exit(inter_server: SocketAddr, key: u8, own: Settings) -> Self {
        let mut hello = Vec::new();
        let mut login = ExitHandshake::start(&Psk::new(&[key; 32]), &Method::by_speed(), own, &mut hello);
        let mut socket = connect(inter_server).unwrap();
        socket.write_all(&hello).unwrap();
        loop {
            let (piece, mut out) = (read_some(&mut socket), Vec::new());
            let mut input = piece.as_slice();
            let progress = login.handle(&mut input, &mut out).unwrap();
            socket.write_all(&out).unwrap();
            match progress {
                Progress::More(more) => login = more,
                Progress::Done(tunnel) => return Self::new(socket, input, tunnel),
            }
        }
    }

    /// Takes the login of a server that dials here, as an inter-server that knows this key.
    pub(crate) fn as_entry(listener: &TcpListener, key: u8, own: Settings) -> Self {
        Self::as_entry_with(listener, key, own, &[], 0)
    }

    /// The same; so many bytes of these records leave in one piece with the last of the login, the rest a little later.
    pub(crate) fn as_entry_with(listener: &TcpListener, key: u8, own: Settings, records: &[Vec<u8>], glued: usize) -> Self {
        let mut socket = listener.accept().unwrap().0;
        guard(&socket);
        let keys = Arc::new(Keys::new([("exit".into(), Psk::new(&[key; 32]))]).unwrap());
        let mut login = EntryHandshake::start(keys, &Method::ALL, rand::random(), own);
        loop {
            let (piece, mut out) = (read_some(&mut socket), Vec::new());
            let mut input = piece.as_slice();
            let progress = login.handle(&mut input, &mut out).unwrap();
            match progress {
                Progress::More(more) => login = more,
                Progress::Done(tunnel) => {
                    let mut peer = Self::new(socket, input, tunnel);
                    let sealed: Vec<u8> = records.iter().flat_map(|record| peer.seal(record)).collect();
                    let (with_the_login, behind) = sealed.split_at(glued);
                    out.extend_from_slice(with_the_login);
                    peer.socket.write_all(&out).unwrap();
                    if !behind.is_empty() {
                        std::thread::sleep(Duration::from_millis(50));
                        peer.socket.write_all(behind).unwrap();
                    }
                    return peer;
                }
            }
            socket.write_all(&out).unwrap();
        }
    }

    fn new(socket: TcpStream, received: &[u8], tunnel: Authenticated) -> Self {
        Self { socket, received: received.to_vec(), tunnel, frames: std::collections::VecDeque::new(), records: [1, 1] }
    }

    /// One record, sealed.
    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut plaintext = plaintext.to_vec();
        let (length, tag) = self.tunnel.writer.seal(&mut plaintext);
        self.records[0] += 1;
        [&length[..], &plaintext, &tag].concat()
    }

    /// Sends one record. An error: the other side has closed.
    pub(crate) fn try_send(&mut self, plaintext: &[u8]) -> std::io::Result<()> {
        let record = self.seal(plaintext);
        self.socket.write_all(&record)
    }

    pub(crate) fn send(&mut self, plaintext: &[u8]) {
        self.try_send(plaintext).unwrap();
    }

    /// The next frame, PINGs answered; `None`: FIN, between records.
    pub(crate) fn try_receive(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                if frame.kind == kind::PING {
                    let _ = self.try_send(&frame_of(kind::PONG, &frame.payload));
                    continue;
                }
                return Ok(Some(frame));
            }
            let whole = self.tunnel.reader.whole(&self.received).unwrap();
            match whole {
                Some(whole) if whole <= self.received.len() => {
                    let mut record: Vec<u8> = self.received.drain(..whole).collect();
                    let plaintext = self.tunnel.reader.open(&mut record).unwrap();
                    self.records[1] += 1;
                    self.take_apart(&record[plaintext]);
                }
                _ => {
                    let mut piece = [0; 65_536];
                    let count = match self.socket.read(&mut piece) {
                        // With a time-out set it is not begun again by itself.
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                        count => count?,
                    };
                    if count == 0 {
                        assert!(self.received.is_empty(), "FIN inside a record");
                        return Ok(None);
                    }
                    self.received.extend_from_slice(&piece[..count]);
                }
            }
        }
    }

    pub(crate) fn receive(&mut self) -> Frame {
        self.try_receive().unwrap().expect("the other side goes on")
    }

    /// Records that we have sealed and opened, settings included.
    pub(crate) fn records(&self) -> [u64; 2] {
        self.records
    }

    /// The next frame of this kind; others are passed over.
    pub(crate) fn await_kind(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.receive();
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// A PING, and all frames until its PONG.
    pub(crate) fn round_trip(&mut self) -> Vec<Frame> {
        let data: [u8; 8] = rand::random();
        self.send(&frame_of(kind::PING, &data));
        let mut between = Vec::new();
        loop {
            let frame = self.receive();
            if frame.kind == kind::PONG {
                assert_eq!(frame.payload, data);
                return between;
            }
            between.push(frame);
        }
    }

    /// What the other side says at the end: code and text of its GOAWAY, behind which comes FIN and nothing else. A RST instead would be an error.
    pub(crate) fn await_goaway(&mut self) -> (u8, String) {
        let mut last = None;
        loop {
            match self.try_receive().unwrap_or_else(|error| panic!("{error}, after {last:?}")) {
                Some(frame) => {
                    assert!(last.is_none(), "{frame:?} behind {last:?}");
                    if frame.kind == kind::GOAWAY && frame.payload[0] >= 0x10 {
                        last = Some((frame.payload[0], String::from_utf8_lossy(&frame.payload[1..]).into_owned()));
                    }
                }
                None => return last.expect("a GOAWAY before the end"),
            }
        }
    }

    fn take_apart(&mut self, mut plaintext: &[u8]) {
        while let Some((header, behind)) = plaintext.split_first_chunk::<8>() {
            let (payload, next) = behind.split_at(usize::from(u16::from_le_bytes([header[2], header[3]])));
            let stream = u32::from_le_bytes(*header.last_chunk().unwrap());
            self.frames.push_back(Frame { kind: header[0], stream, payload: payload.to_vec() });
            plaintext = next;
        }
    }
}

fn frame_of(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame(kind, 0, payload)
}

fn read_some(socket: &mut TcpStream) -> Vec<u8> {
    let mut piece = vec![0; 4096];
    let count = socket.read(&mut piece).unwrap();
    assert!(count > 0, "closed during the login");
    piece.truncate(count);
    piece
}
