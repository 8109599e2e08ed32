//! The inter-server's side of the handshake: it chooses the cipher, finds the key that fits the server's login, and sends its settings behind
//! the server's.
//!
//! What always holds: a state is named by what it awaits, and awaits at least one byte; nothing is said to a server whose login does not
//! fit, and it has cost no operation on the curve.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::noise::{CURVE_BYTES, Ephemeral, Noise};
use super::{
    Authenticated, FirstRecord, HandshakeError, Keys, LOGIN_SIZE, LoginMessage, METHODS_MAX, NO_METHOD, NONCE_BYTES, PROLOGUE, Progress,
    names, records, send_settings, take_byte, take_up_to,
};
use crate::crypto::aead::Method;
use crate::protocol::v81::settings::Settings;
use crate::protocol::v81::{Side, VERSION};

/// The handshake of an inter-server. [`ExitHandshake`](super::ExitHandshake) shows the two talking.
pub struct EntryHandshake(State);

enum State {
    AwaitVersion(Start),
    AwaitMethodCount(Start),
    AwaitMethods(AwaitMethods),
    AwaitLoginSize(AwaitLogin),
    AwaitLogin(AwaitLogin),
    AwaitSettings(FirstRecord),
    Passed(Box<Authenticated>),
}

/// Nothing has been said.
struct Start {
    keys: Arc<Keys>,
    allowed: [Option<Method>; Method::ALL.len()],
    nonce: [u8; NONCE_BYTES],
    own: Settings,
    ephemeral: Option<Box<Ephemeral>>,
}

/// The server's methods are coming in.
struct AwaitMethods {
    start: Start,
    /// The prologue with all bytes of the hello so far.
    transcript: Vec<u8>,
    left: usize,
}

/// Our choice is out.
struct AwaitLogin {
    start: Start,
    transcript: Vec<u8>,
    method: Method,
    message: LoginMessage,
}

impl EntryHandshake {
    /// Waits for a server's hello. `nonce` must be random, and new for every tunnel: it is what makes a login good for this one only.
    #[must_use]
    pub fn start(keys: Arc<Keys>, allowed: &[Method], nonce: [u8; NONCE_BYTES], own: Settings) -> Self {
        Self::begin(keys, allowed, nonce, own, None)
    }

    /// As [`start`](Self::start), with an ephemeral key that is given and not made: the secrets of such a tunnel are known. For vectors.
    #[doc(hidden)]
    #[must_use]
    pub fn start_with_known_ephemeral(
        keys: Arc<Keys>,
        allowed: &[Method],
        nonce: [u8; NONCE_BYTES],
        own: Settings,
        ephemeral: [u8; CURVE_BYTES],
    ) -> Self {
        Self::begin(keys, allowed, nonce, own, Some(Box::new(Zeroizing::new(ephemeral))))
    }

    fn begin(keys: Arc<Keys>, allowed: &[Method], nonce: [u8; NONCE_BYTES], own: Settings, ephemeral: Option<Box<Ephemeral>>) -> Self {
        let allowed = Method::ALL.map(|method| allowed.contains(&method).then_some(method));
        Self(State::AwaitVersion(Start { keys, allowed, nonce, own, ephemeral }))
    }

    /// Takes what has arrived; `out` is what must be sent, also when this fails (it says then that no cipher is allowed, or nothing).
    ///
    /// # Errors
    /// The peer speaks another version, offers no cipher that is allowed, fits none of our keys, or breaks a rule; the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, HandshakeError> {
        let mut state = self.0;
        loop {
            state = match state {
                State::Passed(authenticated) => return Ok(Progress::Done(*authenticated)),
                state if input.is_empty() => return Ok(Progress::More(Self(state))),
                State::AwaitVersion(start) => start.handle_version(input)?,
                State::AwaitMethodCount(start) => start.handle_method_count(input)?,
                State::AwaitMethods(state) => state.handle(input, out)?,
                State::AwaitLoginSize(state) => state.handle_size(input)?,
                State::AwaitLogin(state) => state.handle(input, out)?,
                State::AwaitSettings(record) => handle_settings(record, input, out)?,
            };
        }
    }

    /// What is awaited of the server, for the message of a time-out.
    #[must_use]
    pub const fn awaits(&self) -> &'static str {
        match self.0 {
            State::AwaitVersion(_) | State::AwaitMethodCount(_) | State::AwaitMethods(_) => "the server's hello",
            State::AwaitLoginSize(_) | State::AwaitLogin(_) => "the server's login message",
            State::AwaitSettings(_) => "the server's settings",
            State::Passed(_) => "nothing",
        }
    }

    /// Whether the server's login message is awaited: the next bytes may cost Diffie–Hellman.
    #[must_use]
    pub const fn awaits_login(&self) -> bool {
        matches!(self.0, State::AwaitLoginSize(_) | State::AwaitLogin(_))
    }

    /// What it means that the server closes now.
    #[must_use]
    pub const fn closed(&self) -> HandshakeError {
        HandshakeError::Closed { awaited: self.awaits() }
    }
}

impl Start {
    fn handle_version(self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        match take_byte(input) {
            None => Ok(State::AwaitVersion(self)),
            Some(VERSION) => Ok(State::AwaitMethodCount(self)),
            Some(got) => Err(HandshakeError::ServerVersion { got }),
        }
    }

    fn handle_method_count(self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        let Some(got) = take_byte(input) else { return Ok(State::AwaitMethodCount(self)) };
        let left = usize::from(got);
        if !(1..=METHODS_MAX).contains(&left) {
            return Err(HandshakeError::MethodCount { got });
        }
        let transcript = [PROLOGUE, &[VERSION, got]].concat();
        Ok(State::AwaitMethods(AwaitMethods { start: self, transcript, left }))
    }

    fn allows(&self, byte: u8) -> Option<Method> {
        self.allowed.into_iter().flatten().find(|method| method.byte() == byte)
    }
}

impl AwaitMethods {
    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let piece = take_up_to(input, self.left);
        self.transcript.extend_from_slice(piece);
        self.left -= piece.len();
        if self.left == 0 { self.choose(out) } else { Ok(State::AwaitMethods(self)) }
    }

    /// The first of the server's that we allow; those that we do not know are passed over.
    fn choose(self, out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let Self { start, mut transcript, .. } = self;
        let offered = &transcript[PROLOGUE.len() + 2..];
        let Some(method) = offered.iter().find_map(|byte| start.allows(*byte)) else {
            out.extend_from_slice(&[VERSION, NO_METHOD]);
            let allowed: Vec<u8> = start.allowed.into_iter().flatten().map(Method::byte).collect();
            return Err(HandshakeError::NothingAllowed { offered: names(offered), allowed: names(&allowed) });
        };
        let answer = transcript.len();
        transcript.extend_from_slice(&[VERSION, method.byte()]);
        transcript.extend_from_slice(&start.nonce);
        out.extend_from_slice(&transcript[answer..]);
        Ok(State::AwaitLoginSize(AwaitLogin { start, transcript, method, message: LoginMessage::new() }))
    }
}

impl AwaitLogin {
    fn handle_size(self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        match take_byte(input) {
            None => Ok(State::AwaitLoginSize(self)),
            Some(LOGIN_SIZE) => Ok(State::AwaitLogin(self)),
            Some(got) => Err(HandshakeError::LoginSize { from: "server", got }),
        }
    }

    /// A wrong key, garbage and the login of another tunnel are all the same: no key fits.
    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let Some(message) = self.message.handle(input) else { return Ok(State::AwaitLogin(self)) };
        let mut noise = Noise::responder(&self.transcript, self.start.ephemeral.as_deref())?;
        let fitting = self.start.keys.iter().find(|(_, psk)| noise.read_with(psk, message));
        let name = fitting.map(|(name, _)| Arc::clone(name)).ok_or(HandshakeError::WrongKey)?;
        let answer = noise.write()?;
        out.push(LOGIN_SIZE);
        out.extend_from_slice(&answer);
        let records = records(Side::Entry, self.method, &noise.split()?);
        Ok(State::AwaitSettings(FirstRecord::new(self.method, Some(name), records, self.start.own)))
    }
}

fn handle_settings(mut record: FirstRecord, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
    let Some(peer) = record.handle(input)? else { return Ok(State::AwaitSettings(record)) };
    send_settings(record.own, Side::Entry, &mut record.writer, out);
    Ok(State::Passed(Box::new(record.authenticated(peer))))
}

impl fmt::Debug for EntryHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryHandshake(awaits {})", self.awaits())
    }
}
