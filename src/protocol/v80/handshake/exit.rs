//! The server's side of the handshake: it speaks first, sets the challenge and pronounces the verdict.
//!
//! What always holds: a state is named by what it awaits, and awaits at least one byte.

use std::fmt;

use subtle::ConstantTimeEq;

use super::{Authenticated, HandshakeError, METHOD_FIXED_KEY, Progress, VERDICT_FAILED, VERDICT_PASSED, VERSION, take_byte, take_up_to};
use crate::crypto::fixed_iv::MessageCipher;
use crate::limits::CHALLENGE_BYTES;
use crate::protocol::v80::Side;

/// The handshake of a server.
///
/// ```
/// # use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
/// use zhwkprox::protocol::v80::handshake::{EntryHandshake, ExitHandshake, Progress};
/// # let cipher = MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatch", [7; 16]).unwrap();
/// # let (challenge, tail) = ([1; 32], [2; 16]);
///
/// let (mut to_entry, mut to_exit) = (Vec::new(), Vec::new());
/// let mut exit = ExitHandshake::start(cipher.clone(), challenge, &mut to_entry);
/// let mut entry = EntryHandshake::start(cipher, tail);
/// loop {
///     // … each side's `out` travels …
///     let arrived = std::mem::take(&mut to_entry);
///     entry = match entry.handle(&mut arrived.as_slice(), &mut to_exit)? {
///         Progress::More(entry) => entry,
///         Progress::Done(_authenticated) => break,
///     };
///     let arrived = std::mem::take(&mut to_exit);
///     exit = match exit.handle(&mut arrived.as_slice(), &mut to_entry)? {
///         Progress::More(exit) => exit,
///         Progress::Done(_authenticated) => {
///             assert_eq!(to_entry, [1], "the verdict");
///             # break;
///         }
///     };
/// }
/// # Ok::<(), zhwkprox::protocol::v80::handshake::HandshakeError>(())
/// ```
pub struct ExitHandshake(State);

enum State {
    AwaitVersion(AwaitVersion),
    AwaitReplySize(AwaitReplySize),
    AwaitReply(AwaitReply),
    Passed,
}

/// Our hello is out.
struct AwaitVersion {
    cipher: MessageCipher,
    challenge: [u8; CHALLENGE_BYTES],
}

/// Our challenge is out.
struct AwaitReplySize {
    cipher: MessageCipher,
    challenge: [u8; CHALLENGE_BYTES],
}

/// The reply is coming in. Its trailing bytes are read and not looked at.
struct AwaitReply {
    cipher: MessageCipher,
    challenge: [u8; CHALLENGE_BYTES],
    size: u8,
    start: [u8; CHALLENGE_BYTES],
    received: usize,
}

impl ExitHandshake {
    /// Says hello. `challenge` must be random, and new for every tunnel.
    #[must_use]
    pub fn start(cipher: MessageCipher, challenge: [u8; CHALLENGE_BYTES], out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&[VERSION, 1, METHOD_FIXED_KEY]);
        Self(State::AwaitVersion(AwaitVersion { cipher, challenge }))
    }

    /// Takes what has arrived; `out` is what must be sent, also when this fails (it holds the verdict then).
    ///
    /// # Errors
    /// The peer speaks another version or does not have the key; the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, HandshakeError> {
        let mut state = self.0;
        loop {
            state = match state {
                State::Passed => return Ok(Progress::Done(Authenticated { side: Side::Exit })),
                state if input.is_empty() => return Ok(Progress::More(Self(state))),
                State::AwaitVersion(state) => state.handle(input, out)?,
                State::AwaitReplySize(state) => state.handle(input, out)?,
                State::AwaitReply(state) => state.handle(input, out)?,
            };
        }
    }

    /// What is awaited of the inter-server, for the message of a time-out.
    #[must_use]
    pub const fn awaits(&self) -> &'static str {
        match self.0 {
            State::AwaitVersion(_) => "the inter-server's version",
            State::AwaitReplySize(_) | State::AwaitReply(_) => "the inter-server's reply to the challenge",
            State::Passed => "nothing",
        }
    }
}

impl AwaitVersion {
    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let Some(got) = take_byte(input) else { return Ok(State::AwaitVersion(self)) };
        if got != VERSION {
            return Err(HandshakeError::InterServerVersion { got });
        }
        let Self { cipher, challenge } = self;
        out.push(const { CHALLENGE_BYTES.to_le_bytes()[0] });
        out.extend_from_slice(&challenge);
        Ok(State::AwaitReplySize(AwaitReplySize { cipher, challenge }))
    }
}

impl AwaitReplySize {
    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let Some(size) = take_byte(input) else { return Ok(State::AwaitReplySize(self)) };
        let Self { cipher, challenge } = self;
        let reply = AwaitReply { cipher, challenge, size, start: [0; CHALLENGE_BYTES], received: 0 };
        if size == 0 { reply.judge(out) } else { Ok(State::AwaitReply(reply)) }
    }
}

impl AwaitReply {
    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let piece = take_up_to(input, usize::from(self.size) - self.received);
        let room = self.start.get_mut(self.received..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(piece) {
            *to = *from;
        }
        self.received += piece.len();
        // A reply that is too short is read to its end all the same: closing with bytes unread would let the reset overtake the verdict.
        if self.received == usize::from(self.size) { self.judge(out) } else { Ok(State::AwaitReply(self)) }
    }

    fn judge(mut self, out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        self.cipher.begin_decrypt().apply(&mut self.start);
        let short = usize::from(self.size) < CHALLENGE_BYTES;
        if !short && bool::from(self.start.ct_eq(&self.challenge)) {
            out.push(VERDICT_PASSED);
            return Ok(State::Passed);
        }
        out.push(VERDICT_FAILED);
        Err(if short { HandshakeError::ShortReply { got: self.size, expected: CHALLENGE_BYTES } } else { HandshakeError::WrongKey })
    }
}

impl fmt::Debug for ExitHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitHandshake(awaits {})", self.awaits())
    }
}
