//! A connection as `check` sees it, and a 0x81 tunnel on it for as long as a ping takes.
//!
//! What always holds: at most one receive's worth of bytes is held beyond a whole record; the first bytes of the other end are kept for
//! the message that they are not what they should be.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use tokio::time::Instant;

use super::{PATIENCE, random};
use crate::protocol::v80::handshake::VERSION as VERSION_80;
use crate::protocol::v81::VERSION as VERSION_81;
use crate::protocol::v81::handshake::Authenticated;

/// Bytes that are shown of somebody who speaks something else.
const SHOWN: usize = 16;
/// A close that comes within this, or two round trips, is no answer to what we say.
const AT_ONCE: Duration = Duration::from_millis(200);
/// The other end's answer to our goodbye is waited for this long.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why nothing comes any more.
pub(super) enum Gone {
    Closed,
    Silent,
    Failed(std::io::Error),
}

/// See the module.
pub(super) struct Wire {
    stream: TcpStream,
    pub(super) peer: SocketAddr,
    connecting: Duration,
    first: Vec<u8>,
    unread: Vec<u8>,
    last_sent: Option<Instant>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, connecting: Duration) -> Result<Self, String> {
        let set = stream.set_nodelay(true).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        set.map_err(|cause| format!("{peer}: cannot set up the connection: {cause}"))?;
        Ok(Self { stream, peer, connecting, first: Vec::new(), unread: Vec::new(), last_sent: None })
    }

    /// The first bytes that came.
    pub(super) fn first(&self) -> &[u8] {
        &self.first
    }

    pub(super) const fn has_sent(&self) -> bool {
        self.last_sent.is_some()
    }

    /// Before the first word of a server: an inter-server says nothing yet, and one that closes now does not like our address.
    pub(super) fn listen_first(&mut self) -> Result<(), String> {
        match self.receive_within(AT_ONCE.max(2 * self.connecting)) {
            Err(Gone::Silent) => Ok(()),
            Err(Gone::Closed) => Err(self.not_allowed("inter-server")),
            Err(Gone::Failed(cause)) => Err(format!("the connection failed: {cause}")),
            Ok(_) => Err(match self.first.first() {
                Some(&(VERSION_80 | VERSION_81)) => "it is a server, expected an inter-server. cure: --as inter-server".to_owned(),
                _ => format!("no zhwkprox inter-server: expected it to let us speak first, got {}", text(&self.first)),
            }),
        }
    }

    pub(super) fn not_allowed(&self, peer: &str) -> String {
        let list = if peer == "server" { "--allow-inter-servers" } else { "--allow-servers" };
        let ours = self.stream.local_addr().map(|address| format!(" ({})", address.ip())).unwrap_or_default();
        format!("closed at once: our address{ours} is not in its {list}, or it is no zhwkprox {peer}")
    }

    /// Waits for bytes; with the time since ours were sent.
    pub(super) fn receive(&mut self) -> Result<Duration, Gone> {
        self.receive_within(PATIENCE)
    }

    fn receive_within(&mut self, time: Duration) -> Result<Duration, Gone> {
        self.stream.set_read_timeout(Some(time)).map_err(Gone::Failed)?;
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Gone::Closed),
                Ok(length) => {
                    let new = &buffer[..length];
                    self.first.extend(new.iter().take(SHOWN - self.first.len()));
                    self.unread.extend_from_slice(new);
                    return Ok(self.last_sent.map(|sent| sent.elapsed()).unwrap_or_default());
                }
                Err(cause) => match cause.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return Err(Gone::Closed),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(Gone::Silent),
                    _ => return Err(Gone::Failed(cause)),
                },
            }
        }
    }

    /// Shows what has come to somebody who takes some of it.
    pub(super) fn take<T>(&mut self, user: impl FnOnce(&mut &[u8]) -> T) -> T {
        let mut input = self.unread.as_slice();
        let result = user(&mut input);
        let used = self.unread.len() - input.len();
        self.unread.drain(..used);
        result
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.last_sent = Some(Instant::now());
        match self.stream.write_all(bytes) {
            Ok(()) => Ok(()),
            // What it said before, and that it has closed, is still to be read and says more.
            Err(cause) if matches!(cause.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(()),
            Err(cause) => Err(format!("cannot send: {cause}")),
        }
    }

    /// Ends the connection in order: our last bytes are not overtaken by a reset.
    pub(super) fn leave(mut self) {
        if self.stream.shutdown(Shutdown::Write).is_ok() {
            let end = Instant::now() + GOODBYE;
            while Instant::now() < end && self.receive_within(GOODBYE).is_ok() {
                self.unread.clear();
            }
        }
    }
}

/// Bytes as they can stand in a line.
pub(super) fn text(bytes: &[u8]) -> String {
    format!("`{}`", bytes.escape_ascii())
}

const OPEN: u8 = 0x02;
const RESET: u8 = 0x06;
const PING: u8 = 0x08;
const PONG: u8 = 0x09;
const GOAWAY: u8 = 0x0a;
/// GOAWAY: stopping.
const STOPPING: u8 = 0x00;
/// RESET: a general failure.
const FAILURE: u8 = 0x01;

/// A tunnel that is about to end.
pub(super) struct Tunnel<'a> {
    wire: &'a mut Wire,
    proof: Authenticated,
    ping: [u8; 8],
    answered: Option<Duration>,
}

impl<'a> Tunnel<'a> {
    pub(super) const fn new(wire: &'a mut Wire, proof: Authenticated) -> Self {
        Self { wire, proof, ping: [0; 8], answered: None }
    }

    /// The time for a ping and its answer. The goodbye goes with the ping, so that nothing is opened on this tunnel.
    pub(super) fn ping_and_leave(mut self) -> Result<Duration, String> {
        self.ping = random()?;
        let mut frames = Vec::new();
        frame(PING, 0, &self.ping, &mut frames);
        frame(GOAWAY, 0, &[STOPPING], &mut frames);
        self.seal_and_send(frames)?;
        loop {
            while let Some(record) = self.next_record()? {
                self.on_record(&record)?;
            }
            if let Some(time) = self.answered {
                return Ok(time);
            }
            match self.wire.receive() {
                Ok(_) => {}
                Err(Gone::Closed) => return Err("the key is known, but the tunnel was closed before it answered a ping".to_owned()),
                Err(Gone::Silent) => {
                    return Err(format!("timed out: the key is known, but no answer to a ping within {} s", PATIENCE.as_secs()));
                }
                Err(Gone::Failed(cause)) => return Err(format!("the connection failed: {cause}")),
            }
        }
    }

    /// The plaintext of the next record, once it is whole.
    fn next_record(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(whole) = self.proof.reader.whole(&self.wire.unread).map_err(|error| error.to_string())? else { return Ok(None) };
        if self.wire.unread.len() < whole {
            return Ok(None);
        }
        let mut record: Vec<u8> = self.wire.unread.drain(..whole).collect();
        let plaintext = self.proof.reader.open(&mut record).map_err(|error| error.to_string())?;
        Ok(Some(record[plaintext].to_vec()))
    }

    fn on_record(&mut self, mut frames: &[u8]) -> Result<(), String> {
        while let Some((&[kind, _, low, high, a, b, c, d], rest)) = frames.split_first_chunk::<8>() {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let (payload, rest) = rest.split_at_checked(length).ok_or("peer's frame does not end with its record")?;
            frames = rest;
            match (kind, payload) {
                (PONG, payload) if *payload == self.ping => {
                    let sent = self.wire.last_sent.unwrap_or_else(Instant::now);
                    self.answered.get_or_insert_with(|| sent.elapsed());
                }
                (OPEN, _) => {
                    let mut refusal = Vec::new();
                    frame(RESET, u32::from_le_bytes([a, b, c, d]), &[FAILURE], &mut refusal);
                    let ping_sent = self.wire.last_sent;
                    self.seal_and_send(refusal)?;
                    self.wire.last_sent = ping_sent;
                }
                (GOAWAY, [code @ 0x10..=0xff, words @ ..]) => {
                    return Err(format!("the key is known, but the tunnel was ended: GOAWAY {code:#04x} {}", text(words)));
                }
                // Its own goodbye, and whatever else there is to say on a tunnel without flows.
                _ => {}
            }
        }
        Ok(())
    }

    fn seal_and_send(&mut self, mut frames: Vec<u8>) -> Result<(), String> {
        let (header, tag) = self.proof.writer.seal(&mut frames);
        self.wire.send(&[header.as_slice(), &frames, &tag].concat())
    }
}

/// Appends a frame.
fn frame(kind: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    let [low, high, ..] = payload.len().to_le_bytes();
    out.extend_from_slice(&[kind, 0, low, high]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(payload);
}
