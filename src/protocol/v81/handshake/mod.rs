//! Hello and login of a 0x81 tunnel, both sides, up to and including the first record of each. Each side is a value that consumes itself with
//! every piece of input, and the only way to an [`Authenticated`], without which there are no records.
//!
//! ```text
//! exit                                          entry
//!   ── 81 | count | methods ──────────────────▶   await version, methods
//!   ◀─────────────── 81 | method | nonce (32) ──   (81 | FF: none of these)
//!   ── 48 | Noise message 1 ──────────────────▶   await the login
//!   ◀───────────────── 48 | Noise message 2 ──
//!   ── record: SETTINGS ──────────────────────▶   await the settings
//!   ◀──────────────────── record: SETTINGS ──     done
//! done
//! ```
//!
//! What always holds: exactly the bytes of the handshake are taken from the input, what follows stays there; no input, however long, makes
//! either side hold more than 512 bytes of it; bytes put into `out` are to be sent even if an error is returned with them.

mod entry;
mod exit;
mod keys;
mod noise;

use std::sync::Arc;

pub use entry::EntryHandshake;
pub use exit::ExitHandshake;
pub use keys::{KEYS_MAX, Keys, KeysError, Psk};
use noise::{MESSAGE, Secrets};
pub use noise::{PSK_BYTES, curve_operations};

use super::record::{FIRST_RECORD_MAX, RECORD_HEADER, RecordError, RecordReader, RecordWriter};
use super::settings::{Settings, SettingsError};
use super::{Side, VERSION};
use crate::crypto::aead::{Method, Opener, Sealer};
use crate::protocol::v80::handshake::VERSION as VERSION_80;

/// Bytes of the inter-server's nonce.
pub const NONCE_BYTES: usize = 32;
/// Methods that a hello may name.
const METHODS_MAX: usize = 16;
/// In the place of a method: none of those offered.
const NO_METHOD: u8 = 0xff;
/// What the transcript of the hellos begins with.
const PROLOGUE: &[u8] = b"zhwkprox";
/// What stands before each login message.
#[expect(clippy::cast_possible_truncation, reason = "it is 48")]
const LOGIN_SIZE: u8 = MESSAGE as u8;

const _: () = assert!(PROLOGUE.len() + 2 + METHODS_MAX + 2 + NONCE_BYTES + 1 + MESSAGE + RECORD_HEADER + FIRST_RECORD_MAX <= 512);

/// What a handshake is after a piece of input.
#[derive(Debug)]
pub enum Progress<H> {
    /// All input is used and more is awaited.
    More(H),
    /// The tunnel may be used; bytes left in the input are the peer's next records.
    Done(Authenticated),
}

/// Proof that a handshake has passed on one tunnel: the other side has the key, and its first record has verified. Only a handshake makes one.
#[derive(Debug)]
pub struct Authenticated {
    /// Which side we are on this tunnel.
    pub side: Side,
    /// How its records are enciphered.
    pub method: Method,
    /// At the inter-server: the name of the key, which is the exit's.
    pub name: Option<Arc<str>>,
    /// At the inter-server: the keys among which it was, when the login began.
    pub keys: Option<Arc<Keys>>,
    /// Opens what the peer sends; its first record is behind it.
    pub reader: RecordReader,
    /// Seals what we send; our first record is behind it.
    pub writer: RecordWriter,
    /// What we have told the peer.
    pub own: Settings,
    /// What the peer has told us.
    pub peer: Settings,
    _proof: Proof,
}

/// What nobody else can name.
#[derive(Debug)]
struct Proof;

/// Why a handshake ends its tunnel.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The server's first byte is no 0x81.
    #[error("server speaks {got:#04x}: expected {VERSION:#04x}{}", see_protocol(*got))]
    ServerVersion {
        /// The byte that came.
        got: u8,
    },
    /// The inter-server's first byte is no 0x81.
    #[error("inter-server speaks {got:#04x}: expected {VERSION:#04x}{}", see_protocol(*got))]
    InterServerVersion {
        /// The byte that came.
        got: u8,
    },
    /// The server's hello names no method, or too many.
    #[error("server offered {got} ciphers: expected 1 to {METHODS_MAX}")]
    MethodCount {
        /// How many.
        got: u8,
    },
    /// We allow none of the server's methods.
    #[error("server offered no cipher that is allowed here: got {offered}, expected one of {allowed}")]
    NothingAllowed {
        /// What the server offered.
        offered: String,
        /// What we allow.
        allowed: String,
    },
    /// The inter-server allows none of our methods.
    #[error("inter-server allows none of the ciphers offered: {offered}. see --cipher on both sides")]
    NothingChosen {
        /// What we offered.
        offered: String,
    },
    /// The inter-server chose a method that we did not offer.
    #[error("inter-server chose cipher {got:#04x}: expected one of those offered, {offered}")]
    NotOffered {
        /// The byte that came.
        got: u8,
        /// What we offered.
        offered: String,
    },
    /// A login message of another size.
    #[error("{from} sent a login message of {got} bytes: expected {LOGIN_SIZE}")]
    LoginSize {
        /// Who.
        from: &'static str,
        /// The size that came.
        got: u8,
    },
    /// The server's login fits none of our keys.
    #[error("wrong key or not a zhwkproX server")]
    WrongKey,
    /// The inter-server's answer to our login does not verify.
    #[error("answer to our login message does not verify: changed on the way, or not from an inter-server that knows this key")]
    WrongAnswer,
    /// The inter-server has closed instead of answering our login.
    #[error("closed after our login message: the inter-server does not know this key, or is none")]
    ClosedAfterLogin,
    /// The peer has closed before it said all.
    #[error("closed before {awaited}")]
    Closed {
        /// What was awaited.
        awaited: &'static str,
    },
    /// The first record is none of the peer's.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The first record is the peer's and breaks the rules.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// No fault of the peer's.
    #[error("cannot log in: this system gives no random bytes or no memory")]
    Unable,
}

/// The one mistake that is easily made: the two sides are set to different versions.
const fn see_protocol(got: u8) -> &'static str {
    if got == VERSION_80 { ", see --protocol" } else { "" }
}

/// Methods in words; unknown ones as they came.
fn names(methods: &[u8]) -> String {
    let name = |byte: &u8| Method::from_byte(*byte).map_or_else(|| format!("{byte:#04x}"), |method| method.name().to_owned());
    methods.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Reader and writer of one side, at record 0.
fn records(side: Side, method: Method, secrets: &Secrets) -> (RecordReader, RecordWriter) {
    let (sends, receives) = match side {
        Side::Exit => (&secrets.to_inter_server, &secrets.to_server),
        Side::Entry => (&secrets.to_server, &secrets.to_inter_server),
    };
    (RecordReader::new(Opener::new(method, receives)), RecordWriter::new(Sealer::new(method, sends)))
}

/// Appends our first record.
fn send_settings(own: Settings, from: Side, writer: &mut RecordWriter, out: &mut Vec<u8>) {
    let record = out.len();
    own.encode(from, out);
    writer.seal_from(out, record);
}

/// The peer's first record coming in. The login has passed.
struct FirstRecord {
    method: Method,
    name: Option<Arc<str>>,
    keys: Option<Arc<Keys>>,
    reader: RecordReader,
    writer: RecordWriter,
    own: Settings,
    /// At most a whole first record.
    received: Vec<u8>,
}

impl FirstRecord {
    fn new(method: Method, name: Option<Arc<str>>, (reader, writer): (RecordReader, RecordWriter), own: Settings) -> Self {
        Self { method, name, keys: None, reader, writer, own, received: Vec::with_capacity(RECORD_HEADER + FIRST_RECORD_MAX) }
    }

    /// Takes no byte more than the record has; the peer's settings once it is whole and has verified.
    fn handle(&mut self, input: &mut &[u8]) -> Result<Option<Settings>, HandshakeError> {
        self.fill(RECORD_HEADER, input);
        let Some(whole) = self.reader.whole(&self.received)? else { return Ok(None) };
        self.fill(whole, input);
        if self.received.len() < whole {
            return Ok(None);
        }
        let plaintext = self.reader.open(&mut self.received)?;
        Ok(Some(Settings::decode(&self.received[plaintext], self.peer_side())?))
    }

    fn fill(&mut self, size: usize, input: &mut &[u8]) {
        let piece = take_up_to(input, size.saturating_sub(self.received.len()));
        self.received.extend_from_slice(piece);
    }

    /// Only inter-servers know names.
    const fn side(&self) -> Side {
        if self.name.is_some() { Side::Entry } else { Side::Exit }
    }

    const fn peer_side(&self) -> Side {
        match self.side() {
            Side::Entry => Side::Exit,
            Side::Exit => Side::Entry,
        }
    }

    fn authenticated(self, peer: Settings) -> Authenticated {
        let side = self.side();
        let Self { method, name, keys, reader, writer, own, .. } = self;
        Authenticated { side, method, name, keys, reader, writer, own, peer, _proof: Proof }
    }
}

/// A login message coming in.
struct LoginMessage {
    bytes: [u8; MESSAGE],
    received: usize,
}

impl LoginMessage {
    const fn new() -> Self {
        Self { bytes: [0; MESSAGE], received: 0 }
    }

    /// The message, once it is whole.
    fn handle(&mut self, input: &mut &[u8]) -> Option<&[u8; MESSAGE]> {
        let piece = take_up_to(input, MESSAGE - self.received);
        self.bytes[self.received..self.received + piece.len()].copy_from_slice(piece);
        self.received += piece.len();
        (self.received == MESSAGE).then_some(&self.bytes)
    }
}

/// Takes the next byte, if there is one.
fn take_byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

/// Takes what there is, up to `most` bytes.
fn take_up_to<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}
