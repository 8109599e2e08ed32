//! The inter-server's side of the handshake: it listens, enciphers the challenge and waits for the verdict.
//!
//! What always holds: a state is named by what it awaits, and awaits at least one byte.

use std::fmt;

use super::{Authenticated, HandshakeError, Progress, VERDICT_FAILED, VERSION, take_byte, take_up_to};
use crate::crypto::fixed_iv::MessageCipher;
use crate::limits::{AUTH_TAIL_BYTES, CHALLENGE_MAX};
use crate::protocol::v80::Side;

/// The handshake of an inter-server. [`ExitHandshake`](super::ExitHandshake) shows the two talking.
pub struct EntryHandshake(State);

enum State {
    AwaitVersion(Secret),
    AwaitMethodCount(Secret),
    AwaitMethods(AwaitMethods),
    AwaitChallengeSize(Secret),
    AwaitChallenge(AwaitChallenge),
    AwaitVerdict,
    Passed,
}

/// What the reply is made with.
struct Secret {
    cipher: MessageCipher,
    tail: [u8; AUTH_TAIL_BYTES],
}

/// The hello's methods are passing by; they are not looked at.
struct AwaitMethods {
    secret: Secret,
    left: usize,
}

/// The challenge is coming in.
struct AwaitChallenge {
    secret: Secret,
    size: u8,
    challenge: [u8; CHALLENGE_MAX],
    received: usize,
}

impl EntryHandshake {
    /// Waits for a server's hello. `tail` must be random, and new for every tunnel.
    #[must_use]
    pub const fn start(cipher: MessageCipher, tail: [u8; AUTH_TAIL_BYTES]) -> Self {
        Self(State::AwaitVersion(Secret { cipher, tail }))
    }

    /// Takes what has arrived; `out` is what must be sent.
    ///
    /// # Errors
    /// The peer speaks another version, asks too much or too little, or refuses us; the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, HandshakeError> {
        let mut state = self.0;
        loop {
            state = match state {
                State::Passed => return Ok(Progress::Done(Authenticated { side: Side::Entry })),
                state if input.is_empty() => return Ok(Progress::More(Self(state))),
                State::AwaitVersion(secret) => secret.handle_version(input)?,
                State::AwaitMethodCount(secret) => secret.handle_method_count(input, out),
                State::AwaitMethods(state) => state.handle(input, out),
                State::AwaitChallengeSize(secret) => secret.handle_challenge_size(input)?,
                State::AwaitChallenge(state) => state.handle(input, out),
                State::AwaitVerdict => handle_verdict(input)?,
            };
        }
    }

    /// What is awaited of the server, for the message of a time-out.
    #[must_use]
    pub const fn awaits(&self) -> &'static str {
        match self.0 {
            State::AwaitVersion(_) | State::AwaitMethodCount(_) | State::AwaitMethods(_) => "the server's hello",
            State::AwaitChallengeSize(_) | State::AwaitChallenge(_) => "the server's challenge",
            State::AwaitVerdict => "the server's verdict",
            State::Passed => "nothing",
        }
    }
}

impl Secret {
    fn handle_version(self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        match take_byte(input) {
            None => Ok(State::AwaitVersion(self)),
            Some(VERSION) => Ok(State::AwaitMethodCount(self)),
            Some(got) => Err(HandshakeError::ServerVersion { got }),
        }
    }

    fn handle_method_count(self, input: &mut &[u8], out: &mut Vec<u8>) -> State {
        match take_byte(input) {
            None => State::AwaitMethodCount(self),
            Some(0) => self.answer_version(out),
            Some(left) => State::AwaitMethods(AwaitMethods { secret: self, left: usize::from(left) }),
        }
    }

    fn answer_version(self, out: &mut Vec<u8>) -> State {
        out.push(VERSION);
        State::AwaitChallengeSize(self)
    }

    fn handle_challenge_size(self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        match take_byte(input) {
            None => Ok(State::AwaitChallengeSize(self)),
            Some(size) if (1..=CHALLENGE_MAX).contains(&usize::from(size)) => {
                Ok(State::AwaitChallenge(AwaitChallenge { secret: self, size, challenge: [0; CHALLENGE_MAX], received: 0 }))
            }
            Some(got) => Err(HandshakeError::ChallengeSize { got }),
        }
    }
}

impl AwaitMethods {
    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> State {
        self.left -= take_up_to(input, self.left).len();
        if self.left == 0 { self.secret.answer_version(out) } else { State::AwaitMethods(self) }
    }
}

impl AwaitChallenge {
    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> State {
        let piece = take_up_to(input, usize::from(self.size) - self.received);
        self.challenge[self.received..self.received + piece.len()].copy_from_slice(piece);
        self.received += piece.len();
        if self.received < usize::from(self.size) {
            return State::AwaitChallenge(self);
        }
        out.push(self.size + const { AUTH_TAIL_BYTES.to_le_bytes()[0] });
        let reply = out.len();
        out.extend_from_slice(&self.challenge[..self.received]);
        out.extend_from_slice(&self.secret.tail);
        self.secret.cipher.begin_encrypt().apply(&mut out[reply..]);
        State::AwaitVerdict
    }
}

fn handle_verdict(input: &mut &[u8]) -> Result<State, HandshakeError> {
    match take_byte(input) {
        None => Ok(State::AwaitVerdict),
        Some(VERDICT_FAILED) => Err(HandshakeError::Refused),
        Some(_) => Ok(State::Passed),
    }
}

impl fmt::Debug for EntryHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryHandshake(awaits {})", self.awaits())
    }
}
