//! Hello and authentication of a 0x80 tunnel, both sides. Each side is a value that consumes itself with every piece of input, and the only
//! way to an [`Authenticated`], without which there is no session.
//!
//! ```text
//! exit                                       entry
//!   ── 80 | count | methods ───────────────▶   await version, methods
//!   ◀──────────────────────────────── 80 ──
//!   ── size | challenge ───────────────────▶   await challenge
//!   ◀──────── size | E(challenge ‖ tail) ──
//!   ── verdict (00 failed, else passed) ───▶   await verdict
//! ```
//!
//! What always holds: exactly the bytes of the handshake are taken from the input, what follows stays there; no input, however long, makes
//! either side hold more than 255 bytes of it; bytes put into `out` are to be sent even if an error is returned with them.

mod entry;
mod exit;

pub use entry::EntryHandshake;
pub use exit::ExitHandshake;

use super::Side;
use crate::protocol::v81::VERSION as VERSION_81;

/// The version byte.
pub const VERSION: u8 = 0x80;
/// The one method that a hello of ours names.
const METHOD_FIXED_KEY: u8 = 0x00;
/// The verdict of a server that does not believe its peer.
const VERDICT_FAILED: u8 = 0x00;
/// The verdict of a server that does.
const VERDICT_PASSED: u8 = 0x01;

/// What a handshake is after a piece of input.
#[derive(Debug)]
pub enum Progress<H> {
    /// All input is used and more is awaited.
    More(H),
    /// The tunnel may be used; bytes left in the input are its first frames.
    Done(Authenticated),
}

/// Proof that a handshake has passed on one tunnel. Only a handshake makes one, and a session takes it away.
#[derive(PartialEq, Eq, Debug)]
pub struct Authenticated {
    side: Side,
}

impl Authenticated {
    /// Which side we are on this tunnel.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }
}

/// Why a handshake ends its tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The server's first byte is no 0x80.
    #[error("server speaks {got:#04x}: expected {VERSION:#04x}{}", see_protocol(*got))]
    ServerVersion {
        /// The byte that came.
        got: u8,
    },
    /// The inter-server's first byte is no 0x80.
    #[error("inter-server speaks {got:#04x}: expected {VERSION:#04x}{}", see_protocol(*got))]
    InterServerVersion {
        /// The byte that came.
        got: u8,
    },
    /// A challenge that we do not answer.
    #[error("server sent a challenge of {got} bytes: expected 1 to {}", crate::limits::CHALLENGE_MAX)]
    ChallengeSize {
        /// The size that came.
        got: u8,
    },
    /// Fewer bytes than we sent cannot hold them all.
    #[error("inter-server replied with {got} bytes to a challenge of {expected}: expected at least as many")]
    ShortReply {
        /// The size that came.
        got: u8,
        /// The size of our challenge.
        expected: usize,
    },
    /// The reply deciphers to something else than our challenge.
    #[error("inter-server does not have our key: its reply does not decipher to our challenge (key, cipher or iv differ)")]
    WrongKey,
    /// The server's verdict on our reply.
    #[error("server refused our key: it could not read its challenge in our reply (key, cipher or iv differ)")]
    Refused,
}

/// The one mistake that is easily made: the two sides are set to different versions.
const fn see_protocol(got: u8) -> &'static str {
    if got == VERSION_81 { ", see --protocol" } else { "" }
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
