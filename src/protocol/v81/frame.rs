//! Frames of 0x81: what a record holds. [`Header`] is written and read here, [`Frames`] walks over the plaintext of a record; what a frame means
//! is said in [`super::session`].
//!
//! ```text
//! type (1) | flags (1) | length of the payload (2, little-endian) | stream (4, little-endian) | payload (length bytes)
//! ```
//!
//! What always holds: nothing is allocated, copied or kept for a frame; frames that do not fill their record exactly are a fault.

pub(super) mod address;

use std::ops::Range;

/// Bytes of a header.
pub const FRAME_HEADER: usize = 8;
/// Most bytes of a payload: with its header, its record's length and tag it fills one slot behind the headroom.
pub const FRAME_PAYLOAD_MAX: usize = 65_380;

/// The types of frames.
pub mod kind {
    /// Filler, skipped.
    pub const PAD: u8 = 0x00;
    /// What the sender accepts; in the first record only.
    pub const SETTINGS: u8 = 0x01;
    /// Opens a stream; from the inter-server.
    pub const OPEN: u8 = 0x02;
    /// The destination is connected; from the server.
    pub const OPENED: u8 = 0x03;
    /// Bytes of a stream.
    pub const DATA: u8 = 0x04;
    /// No more bytes in this direction.
    pub const FIN: u8 = 0x05;
    /// Both directions are over.
    pub const RESET: u8 = 0x06;
    /// More credit.
    pub const WINDOW: u8 = 0x07;
    /// Asks for a PONG.
    pub const PING: u8 = 0x08;
    /// Answers a PING.
    pub const PONG: u8 = 0x09;
    /// The tunnel winds down, or ends.
    pub const GOAWAY: u8 = 0x0a;
    /// A datagram of a UDP association.
    pub const DATAGRAM: u8 = 0x0b;
    /// Unknown types from here on are skipped; other unknown types are a fault.
    pub const SKIPPED_FROM: u8 = 0x80;

    /// What a type is called.
    #[must_use]
    pub const fn name(kind: u8) -> &'static str {
        match kind {
            PAD => "PAD",
            SETTINGS => "SETTINGS",
            OPEN => "OPEN",
            OPENED => "OPENED",
            DATA => "DATA",
            FIN => "FIN",
            RESET => "RESET",
            WINDOW => "WINDOW",
            PING => "PING",
            PONG => "PONG",
            GOAWAY => "GOAWAY",
            DATAGRAM => "DATAGRAM",
            _ => "a frame of unknown type",
        }
    }
}

/// Codes of a RESET: up to 0x08 those of SOCKS5.
pub mod reset {
    /// Something on the sender's side.
    pub const GENERAL: u8 = 0x01;
    /// The exit's policy forbids the destination.
    pub const POLICY: u8 = 0x02;
    /// No route to the network.
    pub const NETWORK: u8 = 0x03;
    /// No route to the host, or no such name.
    pub const HOST: u8 = 0x04;
    /// The destination refused.
    pub const REFUSED: u8 = 0x05;
    /// The destination did not answer in time.
    pub const TIMED_OUT: u8 = 0x06;
    /// UDP is not offered.
    pub const NO_UDP: u8 = 0x07;
    /// The address is none that can be connected to.
    pub const ADDRESS: u8 = 0x08;
    /// Idle, or half-open without progress, for too long.
    pub const IDLE: u8 = 0x10;
    /// A limit is reached.
    pub const LIMIT: u8 = 0x12;
    /// The socket behind the sender was reset.
    pub const SOCKET: u8 = 0x13;
    /// Nobody wants the stream any more.
    pub const CANCELLED: u8 = 0x14;
}

/// Codes of a GOAWAY: below [`goaway::ENDS_FROM`] the tunnel winds down, from there on it ends now.
pub mod goaway {
    /// The sender is stopping, or answers.
    pub const STOPPING: u8 = 0x00;
    /// The ids of streams are nearly used up.
    pub const NO_IDS: u8 = 0x01;
    /// The tunnel is a spare that is not needed.
    pub const SPARE: u8 = 0x02;
    /// The tunnel ends now from this code on.
    pub const ENDS_FROM: u8 = 0x10;
    /// The peer broke a rule, which the text names.
    pub const FAULT: u8 = 0x10;
    /// Too many tunnels, or too much owed.
    pub const TOO_MANY: u8 = 0x11;
    /// The key was withdrawn.
    pub const KEY: u8 = 0x13;
}

/// What stands before every payload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// One of [`kind`], or unknown.
    pub kind: u8,
    /// 0, but for OPEN.
    pub flags: u8,
    /// Bytes of the payload.
    pub length: u16,
    /// The stream; 0 is the tunnel itself.
    pub stream: u32,
}

impl Header {
    /// As it stands on the wire.
    #[must_use]
    pub const fn encode(self) -> [u8; FRAME_HEADER] {
        let [low, high] = self.length.to_le_bytes();
        let [a, b, c, d] = self.stream.to_le_bytes();
        [self.kind, self.flags, low, high, a, b, c, d]
    }

    /// From the beginning of `bytes`; `None`: they are fewer than a header has.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [kind, flags, low, high, stream @ ..] = *bytes.first_chunk::<FRAME_HEADER>()?;
        Some(Self { kind, flags, length: u16::from_le_bytes([low, high]), stream: u32::from_le_bytes(stream) })
    }
}

/// Why a record's plaintext is no row of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameFault {
    /// Too short for a header.
    #[error("a record ends with {got} bytes behind its last frame: expected none or a header of {FRAME_HEADER}")]
    Header {
        /// Bytes that are left.
        got: usize,
    },
    /// Shorter than the header says.
    #[error("a record ends {got} bytes into the payload of {}: expected {expected}", kind::name(*.kind))]
    Payload {
        /// The frame's type.
        kind: u8,
        /// Bytes that are left.
        got: usize,
        /// Bytes that the header announces.
        expected: u16,
    },
    /// No frame at all.
    #[error("a record holds no frame: expected at least one")]
    Empty,
}

/// Walks over the frames of one record.
///
/// ```
/// # use zhwkprox::protocol::v81::frame::{Frames, Header, kind};
/// let record = [4, 0, 2, 0, 9, 0, 0, 0, b'h', b'i', 5, 0, 0, 0, 9, 0, 0, 0];
/// let mut frames = Frames::new(&record);
/// while let Some((header, range)) = frames.next()? {
///     println!("{} on stream {}: {:?}", kind::name(header.kind), header.stream, &record[range]);
/// }
/// # Ok::<(), zhwkprox::protocol::v81::frame::FrameFault>(())
/// ```
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    plaintext: &'a [u8],
    at: usize,
}

impl<'a> Frames<'a> {
    /// Stands before the first frame.
    #[must_use]
    pub const fn new(plaintext: &'a [u8]) -> Self {
        Self { plaintext, at: 0 }
    }

    /// The next header, and where its payload lies. `None`: the record has been walked to its end.
    ///
    /// # Errors
    /// The frames do not fill the record exactly; the tunnel ends.
    #[expect(clippy::should_implement_trait, reason = "a caller wants `?` between the frames, which an iterator of results makes clumsy")]
    pub fn next(&mut self) -> Result<Option<(Header, Range<usize>)>, FrameFault> {
        let rest = self.plaintext.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return if self.plaintext.is_empty() { Err(FrameFault::Empty) } else { Ok(None) };
        }
        let header = Header::decode(rest).ok_or(FrameFault::Header { got: rest.len() })?;
        let got = rest.len() - FRAME_HEADER;
        if got < usize::from(header.length) {
            return Err(FrameFault::Payload { kind: header.kind, got, expected: header.length });
        }
        let from = self.at + FRAME_HEADER;
        self.at = from + usize::from(header.length);
        Ok(Some((header, from..self.at)))
    }
}
