//! SOCKS5, the server's side (RFC 1928, RFC 1929): one client's bytes in, its request and our answers out.
//!
//! What always holds: exactly one message after another is taken from the input, cut anywhere or glued together, and the payload behind the
//! request stays there; a client can make us hold at most 513 bytes; bytes put into `out` are to be sent even if the client is refused, after
//! which nothing more of it is looked at. Every refusal that the client can understand has its answer.

mod target;

pub use target::{BadTarget, Target};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// First byte of every SOCKS5 message but those of RFC 1929.
pub const VERSION: u8 = 5;
/// First byte of the messages of RFC 1929.
const AUTH_VERSION: u8 = 1;
/// No authentication.
const METHOD_NONE: u8 = 0;
/// User and password.
const METHOD_PASSWORD: u8 = 2;
/// None of the client's methods will do.
const METHOD_REFUSED: u8 = 0xff;
/// The one command that we know.
const COMMAND_CONNECT: u8 = 1;
/// The longest message, RFC 1929: version, two lengths, user, password.
const LONGEST_MESSAGE: usize = 1 + 1 + 255 + 1 + 255;

/// User and password of RFC 1929, 0–255 bytes each. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: Vec<u8>,
    /// The password.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// How a request went, with the codes of RFC 1928.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Reply {
    /// Connected.
    Succeeded = 0,
    /// Something on our side.
    GeneralFailure = 1,
    /// Our rules forbid the target.
    NotAllowed = 2,
    /// No route to the network.
    NetworkUnreachable = 3,
    /// No route to the host, or no such host.
    HostUnreachable = 4,
    /// The target refused.
    ConnectionRefused = 5,
    /// No answer in time.
    TtlExpired = 6,
    /// We do not do that.
    CommandNotSupported = 7,
    /// We do not know that kind of address.
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// What a client is told when the exit gave this code: those of 0x81 up to 8 are SOCKS5's, all others are told as a general failure.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            2 => Self::NotAllowed,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::ConnectionRefused,
            6 => Self::TtlExpired,
            7 => Self::CommandNotSupported,
            8 => Self::AddressTypeNotSupported,
            _ => Self::GeneralFailure,
        }
    }
}

/// The answer to a request. The address is always of kind IPv4 or IPv6, never a name, whatever the client asked with; unknown is 0.0.0.0:0.
#[must_use]
pub fn reply(reply: Reply, bound: Option<SocketAddr>) -> Vec<u8> {
    let bound = bound.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    let mut message = vec![VERSION, reply as u8, 0];
    match bound.ip() {
        IpAddr::V4(ip) => {
            message.push(target::KIND_V4);
            message.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            message.push(target::KIND_V6);
            message.extend_from_slice(&ip.octets());
        }
    }
    message.extend_from_slice(&bound.port().to_be_bytes());
    message
}

/// What a client that has passed asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Where to.
    pub target: Target,
}

/// Why a client is refused. What it must still be told stands in `out`; then it is closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Not SOCKS5: closed without a byte, for nothing that we could say would be understood.
    #[error("client does not speak socks5: its first byte is {got:#04x}{}, expected 0x05", looks_like(*got))]
    NotSocks5 {
        /// The byte that came.
        got: u8,
    },
    /// None of its methods will do.
    #[error("client offers no way to authenticate that is taken here: expected {}", method_name(*.expected))]
    NoMethod {
        /// The method that would have done.
        expected: u8,
    },
    /// Its authentication is not that of RFC 1929.
    #[error("client sent authentication version {got}: expected {AUTH_VERSION}")]
    AuthVersion {
        /// The byte that came.
        got: u8,
    },
    /// Wrong user or password.
    #[error("client gave a wrong user or password")]
    WrongCredentials,
    /// Its request is of another version than its greeting.
    #[error("client sent a request of version {got}: expected {VERSION}")]
    RequestVersion {
        /// The byte that came.
        got: u8,
    },
    /// A command other than connect.
    #[error("client asks for {}: only connect (command 1) is done here", command_name(*.got))]
    Command {
        /// The byte that came.
        got: u8,
    },
    /// The reserved byte is used for something that we do not know.
    #[error("client's request has {got:#04x} in its reserved byte: expected 0x00")]
    Reserved {
        /// The byte that came.
        got: u8,
    },
    /// An address that leads nowhere, or that we cannot read.
    #[error("client asks for {0}")]
    Target(#[from] BadTarget),
}

impl Refused {
    /// What a client is told that has come as far as its request.
    fn code(&self) -> Reply {
        match self {
            // The request as a whole is none that we know; a client falls back on 07, where it would retry on a close.
            Self::Command { .. } | Self::Reserved { .. } | Self::RequestVersion { .. } => Reply::CommandNotSupported,
            Self::Target(target) => target.code(),
            Self::NotSocks5 { .. } | Self::NoMethod { .. } | Self::AuthVersion { .. } | Self::WrongCredentials => Reply::GeneralFailure,
        }
    }
}

/// One client, from its greeting to its request.
///
/// ```
/// use zhwkprox::protocol::socks5::{Negotiation, Reply, reply};
///
/// let mut negotiation = Negotiation::new(None);
/// let mut input: &[u8] = b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbbGET /";
/// let mut out = Vec::new();
/// let request = negotiation.handle(&mut input, &mut out)?.expect("the request is complete");
/// assert_eq!(request.target.to_string(), "192.0.2.7:443");
/// assert_eq!(out, [5, 0], "the method that was chosen");
/// assert_eq!(input, b"GET /", "the payload is not ours");
/// out.extend(reply(Reply::Succeeded, None));
/// # Ok::<(), zhwkprox::protocol::socks5::Refused>(())
/// ```
pub struct Negotiation {
    required: Option<Credentials>,
    awaits: Awaits,
    /// The message that is coming in, from its first byte. Wiped: it may hold a password.
    message: Zeroizing<Vec<u8>>,
}

#[derive(Clone)]
enum Awaits {
    Greeting,
    Password,
    Request,
    Nothing(Result<(), Refused>),
}

impl Negotiation {
    /// A client that has just connected. With `required`, it must know user and password; without, it must offer "no authentication".
    #[must_use]
    pub fn new(required: Option<Credentials>) -> Self {
        // The room is taken at once: a vector that grows would leave copies of a password behind.
        Self { required, awaits: Awaits::Greeting, message: Zeroizing::new(Vec::with_capacity(LONGEST_MESSAGE)) }
    }

    /// Takes what has arrived, up to the end of the request; `out` is what must be sent, also when this fails. `None`: more is awaited.
    ///
    /// # Errors
    /// The client is refused, once and for all; it is to be closed when `out` is sent.
    pub fn handle(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<Request>, Refused> {
        loop {
            let step = match &self.awaits {
                Awaits::Nothing(over) => return over.clone().map(|()| None),
                Awaits::Greeting if fill(&mut self.message, input, greeting_needs) => self.on_greeting(out),
                Awaits::Password if fill(&mut self.message, input, password_needs) => self.on_password(out),
                Awaits::Request if fill(&mut self.message, input, request_needs) => match self.on_request(out) {
                    Ok(request) => {
                        self.awaits = Awaits::Nothing(Ok(()));
                        return Ok(Some(request));
                    }
                    Err(refused) => Err(refused),
                },
                Awaits::Greeting | Awaits::Password | Awaits::Request => return Ok(None),
            };
            self.message.as_mut_slice().fill(0);
            self.message.clear();
            self.awaits = step.unwrap_or_else(|refused| Awaits::Nothing(Err(refused)));
        }
    }

    /// What is awaited of the client, for the message of a time-out.
    #[must_use]
    pub const fn awaits(&self) -> &'static str {
        match self.awaits {
            Awaits::Greeting => "the client's greeting",
            Awaits::Password => "the client's user and password",
            Awaits::Request => "the client's request",
            Awaits::Nothing(_) => "nothing",
        }
    }

    fn on_greeting(&self, out: &mut Vec<u8>) -> Result<Awaits, Refused> {
        let [version, _count, methods @ ..] = self.message.as_slice() else { return Err(Refused::NotSocks5 { got: self.first() }) };
        if *version != VERSION {
            return Err(Refused::NotSocks5 { got: *version });
        }
        let (wanted, next) = if self.required.is_some() { (METHOD_PASSWORD, Awaits::Password) } else { (METHOD_NONE, Awaits::Request) };
        if !methods.contains(&wanted) {
            out.extend_from_slice(&[VERSION, METHOD_REFUSED]);
            return Err(Refused::NoMethod { expected: wanted });
        }
        out.extend_from_slice(&[VERSION, wanted]);
        Ok(next)
    }

    fn on_password(&self, out: &mut Vec<u8>) -> Result<Awaits, Refused> {
        let refused = match self.message.as_slice() {
            [AUTH_VERSION, rest @ ..] if self.is_right(rest) => {
                out.extend_from_slice(&[AUTH_VERSION, 0]);
                return Ok(Awaits::Request);
            }
            [AUTH_VERSION, ..] => Refused::WrongCredentials,
            _ => Refused::AuthVersion { got: self.first() },
        };
        out.extend_from_slice(&[AUTH_VERSION, 1]);
        Err(refused)
    }

    /// Compares length | user | length | password with what is required, in a time that depends on neither.
    fn is_right(&self, given: &[u8]) -> bool {
        let (user, password) = length_and_bytes(given).unwrap_or_default();
        let (password, _) = length_and_bytes(password).unwrap_or_default();
        self.required.as_ref().is_some_and(|required| {
            let user = padded(user).ct_eq(&*padded(&required.user));
            let password = padded(password).ct_eq(&*padded(&required.password));
            bool::from(user & password)
        })
    }

    fn on_request(&self, out: &mut Vec<u8>) -> Result<Request, Refused> {
        let read = match *self.message.as_slice() {
            [VERSION, COMMAND_CONNECT, 0, ref target @ ..] => {
                Target::decode(target).map(|target| Request { target }).map_err(Refused::from)
            }
            [VERSION, COMMAND_CONNECT, got, ..] => Err(Refused::Reserved { got }),
            [VERSION, got, ..] => Err(Refused::Command { got }),
            _ => Err(Refused::RequestVersion { got: self.first() }),
        };
        if let Err(refused) = &read {
            out.extend(reply(refused.code(), None));
        }
        read
    }

    fn first(&self) -> u8 {
        self.message.first().copied().unwrap_or_default()
    }
}

impl fmt::Debug for Negotiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Negotiation(awaits {})", self.awaits())
    }
}

/// Takes from the input what the message lacks, and not a byte more. `needs` says how long a message that begins so must be at least; one
/// that is as long as it needs to be is complete.
fn fill(message: &mut Vec<u8>, input: &mut &[u8], needs: fn(&[u8]) -> usize) -> bool {
    loop {
        let lacks = needs(message).saturating_sub(message.len());
        if lacks == 0 {
            return true;
        }
        let (taken, rest) = input.split_at(lacks.min(input.len()));
        if taken.is_empty() {
            return false;
        }
        message.extend_from_slice(taken);
        *input = rest;
    }
}

/// version | count | methods. A wrong version is complete at once: the rest cannot be told.
fn greeting_needs(message: &[u8]) -> usize {
    match message {
        [VERSION, count, ..] => 2 + usize::from(*count),
        [VERSION] => 2,
        _ => 1,
    }
}

/// version | length | user | length | password. A wrong version is complete at once.
fn password_needs(message: &[u8]) -> usize {
    match message {
        [AUTH_VERSION, user, rest @ ..] => match rest.get(usize::from(*user)) {
            Some(password) => 3 + usize::from(*user) + usize::from(*password),
            None => 3 + usize::from(*user),
        },
        [AUTH_VERSION] => 2,
        _ => 1,
    }
}

/// version | command | reserved | kind | address | port. A wrong version is complete at once, an unknown kind with its byte; a command that
/// we do not know is read to its end all the same, since closing with bytes unread would let the reset overtake the answer.
fn request_needs(message: &[u8]) -> usize {
    match message {
        [VERSION, _command, _reserved, target @ ..] => 3 + Target::needs(target),
        [VERSION, ..] => 4,
        _ => 1,
    }
}

/// Splits length | bytes off.
fn length_and_bytes(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = message.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// Length and bytes as one value of fixed size, so that comparing takes the same time for every length.
fn padded(bytes: &[u8]) -> Zeroizing<[u8; 8 + 255]> {
    let mut padded = Zeroizing::new([0; 8 + 255]);
    let (length, room) = padded.split_at_mut(8);
    length.copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = *from;
    }
    padded
}

/// A hint for the operator: what the first byte of a client that speaks no SOCKS5 may mean.
const fn looks_like(first: u8) -> &'static str {
    match first {
        0x04 => " (socks4?)",
        0x16 => " (tls?)",
        0x80 => " (a server's tunnel?)",
        b'A'..=b'Z' => " (http?)",
        _ => "",
    }
}

const fn method_name(method: u8) -> &'static str {
    if method == METHOD_PASSWORD { "user and password (method 2)" } else { "no authentication (method 0)" }
}

fn command_name(command: u8) -> String {
    match command {
        2 => "bind (command 2)".to_owned(),
        3 => "udp associate (command 3)".to_owned(),
        other => format!("unknown command {other}"),
    }
}
