//! The server's side of the handshake: it speaks first, offers ciphers, logs in and sends its settings at once.
//!
//! What always holds: a state is named by what it awaits, and awaits at least one byte.

use std::fmt;

use zeroize::Zeroizing;

use super::noise::{CURVE_BYTES, Ephemeral, Noise};
use super::{
    Authenticated, FirstRecord, HandshakeError, LOGIN_SIZE, LoginMessage, METHODS_MAX, NO_METHOD, NONCE_BYTES, PROLOGUE, Progress, Psk,
    names, records, send_settings, take_byte, take_up_to,
};
use crate::crypto::aead::Method;
use crate::protocol::v81::settings::Settings;
use crate::protocol::v81::{Side, VERSION};

/// The handshake of a server.
///
/// ```
/// use std::sync::Arc;
///
/// use zhwkprox::crypto::aead::Method;
/// use zhwkprox::protocol::v81::handshake::{EntryHandshake, ExitHandshake, Keys, Progress, Psk};
/// use zhwkprox::protocol::v81::settings::Settings;
///
/// let psk = Psk::new(&[7; 32]); // really: 32 random bytes that both sides have
/// let keys = Arc::new(Keys::new([("berlin".into(), psk.clone())])?);
/// let nonce = [9; 32]; // really: random, and new for every tunnel
///
/// let (mut to_entry, mut to_exit) = (Vec::new(), Vec::new());
/// let mut exit = ExitHandshake::start(&psk, &Method::by_speed(), Settings::default(), &mut to_entry);
/// let mut entry = EntryHandshake::start(keys, &Method::ALL, nonce, Settings::default());
/// let mut at_entry = loop {
///     // … each side's `out` travels, in whatever pieces …
///     let arrived = std::mem::take(&mut to_entry);
///     entry = match entry.handle(&mut arrived.as_slice(), &mut to_exit)? {
///         Progress::More(entry) => entry,
///         Progress::Done(authenticated) => break authenticated,
///     };
///     let arrived = std::mem::take(&mut to_exit);
///     exit = match exit.handle(&mut arrived.as_slice(), &mut to_entry)? {
///         Progress::More(exit) => exit,
///         Progress::Done(_) => panic!("the inter-server's settings come last"),
///     };
/// };
/// assert_eq!(at_entry.name.as_deref(), Some("berlin"));
/// let Progress::Done(mut at_exit) = exit.handle(&mut to_exit.as_slice(), &mut to_entry)? else { panic!("these were they") };
///
/// // The tunnel carries records from here on, both ways.
/// let mut frames = *b"eight bytes or more: whole frames";
/// let (header, tag) = at_exit.writer.seal(&mut frames);
/// let mut stream = [header.as_slice(), &frames, &tag].concat();
/// let whole = at_entry.reader.whole(&stream)?.expect("more than four bytes have come");
/// let plaintext = at_entry.reader.open(&mut stream[..whole])?;
/// assert_eq!(&stream[plaintext], b"eight bytes or more: whole frames");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ExitHandshake(State);

enum State {
    AwaitVersion(Hello),
    AwaitMethod(Hello),
    AwaitNonce(AwaitNonce),
    AwaitAnswerSize(AwaitAnswer),
    AwaitAnswer(AwaitAnswer),
    AwaitSettings(FirstRecord),
    Passed(Box<Authenticated>),
}

/// Our hello is out.
struct Hello {
    psk: Psk,
    own: Settings,
    ephemeral: Option<Box<Ephemeral>>,
    /// The prologue with all bytes of both hellos so far; ours end at `sent`.
    transcript: Vec<u8>,
    sent: usize,
}

/// The inter-server has chosen.
struct AwaitNonce {
    hello: Hello,
    method: Method,
    left: usize,
}

/// Our login message is out.
struct AwaitAnswer {
    noise: Noise,
    method: Method,
    own: Settings,
    message: LoginMessage,
}

impl ExitHandshake {
    /// Says hello. `methods` are offered as they stand, most wanted first: 1 to 16 of them.
    #[must_use]
    pub fn start(psk: &Psk, methods: &[Method], own: Settings, out: &mut Vec<u8>) -> Self {
        Self::begin(psk, methods, own, None, out)
    }

    /// As [`start`](Self::start), with an ephemeral key that is given and not made: the secrets of such a tunnel are known. For vectors.
    #[doc(hidden)]
    #[must_use]
    pub fn start_with_known_ephemeral(
        psk: &Psk,
        methods: &[Method],
        own: Settings,
        ephemeral: [u8; CURVE_BYTES],
        out: &mut Vec<u8>,
    ) -> Self {
        Self::begin(psk, methods, own, Some(Box::new(Zeroizing::new(ephemeral))), out)
    }

    fn begin(psk: &Psk, methods: &[Method], own: Settings, ephemeral: Option<Box<Ephemeral>>, out: &mut Vec<u8>) -> Self {
        debug_assert!((1..=METHODS_MAX).contains(&methods.len()), "{} methods are offered", methods.len());
        let mut transcript = PROLOGUE.to_vec();
        let count = methods.len().min(METHODS_MAX);
        transcript.extend_from_slice(&[VERSION, count.to_le_bytes()[0]]);
        transcript.extend(methods[..count].iter().map(|method| method.byte()));
        out.extend_from_slice(&transcript[PROLOGUE.len()..]);
        let sent = transcript.len();
        Self(State::AwaitVersion(Hello { psk: psk.clone(), own, ephemeral, transcript, sent }))
    }

    /// Takes what has arrived; `out` is what must be sent.
    ///
    /// # Errors
    /// The peer speaks another version, allows none of our ciphers, does not have the key, or breaks a rule; the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, HandshakeError> {
        let mut state = self.0;
        loop {
            state = match state {
                State::Passed(authenticated) => return Ok(Progress::Done(*authenticated)),
                state if input.is_empty() => return Ok(Progress::More(Self(state))),
                State::AwaitVersion(hello) => hello.handle_version(input)?,
                State::AwaitMethod(hello) => hello.handle_method(input)?,
                State::AwaitNonce(state) => state.handle(input, out)?,
                State::AwaitAnswerSize(state) => state.handle_size(input)?,
                State::AwaitAnswer(state) => state.handle(input, out)?,
                State::AwaitSettings(record) => handle_settings(record, input)?,
            };
        }
    }

    /// What is awaited of the inter-server, for the message of a time-out.
    #[must_use]
    pub const fn awaits(&self) -> &'static str {
        match self.0 {
            State::AwaitVersion(_) | State::AwaitMethod(_) | State::AwaitNonce(_) => "the inter-server's hello",
            State::AwaitAnswerSize(_) | State::AwaitAnswer(_) => "the inter-server's answer to our login message",
            State::AwaitSettings(_) => "the inter-server's settings",
            State::Passed(_) => "nothing",
        }
    }

    /// What it means that the inter-server closes now.
    #[must_use]
    pub const fn closed(&self) -> HandshakeError {
        match self.0 {
            State::AwaitAnswerSize(_) => HandshakeError::ClosedAfterLogin,
            _ => HandshakeError::Closed { awaited: self.awaits() },
        }
    }
}

impl Hello {
    fn handle_version(mut self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        match take_byte(input) {
            None => Ok(State::AwaitVersion(self)),
            Some(VERSION) => {
                self.transcript.push(VERSION);
                Ok(State::AwaitMethod(self))
            }
            Some(got) => Err(HandshakeError::InterServerVersion { got }),
        }
    }

    fn handle_method(mut self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        let Some(got) = take_byte(input) else { return Ok(State::AwaitMethod(self)) };
        let offered = &self.transcript[PROLOGUE.len() + 2..self.sent];
        if got == NO_METHOD {
            return Err(HandshakeError::NothingChosen { offered: names(offered) });
        }
        match Method::from_byte(got) {
            Some(method) if offered.contains(&got) => {
                self.transcript.push(got);
                Ok(State::AwaitNonce(AwaitNonce { hello: self, method, left: NONCE_BYTES }))
            }
            _ => Err(HandshakeError::NotOffered { got, offered: names(offered) }),
        }
    }
}

impl AwaitNonce {
    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let piece = take_up_to(input, self.left);
        self.hello.transcript.extend_from_slice(piece);
        self.left -= piece.len();
        if self.left > 0 {
            return Ok(State::AwaitNonce(self));
        }
        let Self { hello, method, .. } = self;
        let mut noise = Noise::initiator(&hello.transcript, &hello.psk, hello.ephemeral.as_deref())?;
        let message = noise.write()?;
        out.push(LOGIN_SIZE);
        out.extend_from_slice(&message);
        Ok(State::AwaitAnswerSize(AwaitAnswer { noise, method, own: hello.own, message: LoginMessage::new() }))
    }
}

impl AwaitAnswer {
    fn handle_size(self, input: &mut &[u8]) -> Result<State, HandshakeError> {
        match take_byte(input) {
            None => Ok(State::AwaitAnswerSize(self)),
            Some(LOGIN_SIZE) => Ok(State::AwaitAnswer(self)),
            Some(got) => Err(HandshakeError::LoginSize { from: "inter-server", got }),
        }
    }

    fn handle(mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<State, HandshakeError> {
        let Some(message) = self.message.handle(input) else { return Ok(State::AwaitAnswer(self)) };
        if !self.noise.read(message) {
            return Err(HandshakeError::WrongAnswer);
        }
        let Self { noise, method, own, .. } = self;
        let (reader, mut writer) = records(Side::Exit, method, &noise.split()?);
        send_settings(own, Side::Exit, &mut writer, out);
        Ok(State::AwaitSettings(FirstRecord::new(method, None, (reader, writer), own)))
    }
}

fn handle_settings(mut record: FirstRecord, input: &mut &[u8]) -> Result<State, HandshakeError> {
    Ok(match record.handle(input)? {
        None => State::AwaitSettings(record),
        Some(peer) => State::Passed(Box::new(record.authenticated(peer))),
    })
}

impl fmt::Debug for ExitHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitHandshake(awaits {})", self.awaits())
    }
}
