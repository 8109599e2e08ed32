//! A SOCKS5 client in plain sockets: whole, split byte by byte or glued, and every kind of wrong.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::net::connect;

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// An address.
    Address(SocketAddr),
    /// A name, sent as it is.
    Name(String, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<(&str, u16)> for Target {
    fn from((name, port): (&str, u16)) -> Self {
        Self::Name(name.to_owned(), port)
    }
}

/// Why there is no flow.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The greeting was answered with this method.
    Method(u8),
    /// User and password were answered with this status.
    Credentials(u8),
    /// The request was answered with this code.
    Reply(u8),
    /// The connection ended or broke before an answer was complete.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(method) => write!(f, "the greeting was answered with method {method:#04x}"),
            Self::Credentials(status) => write!(f, "the credentials were answered with status {status}"),
            Self::Reply(code) => write!(f, "the request was answered with code {code}"),
            Self::Io(error) => write!(f, "no complete answer: {error}"),
        }
    }
}

/// How the bytes of the handshake are cut into sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// One send per message, as most clients do.
    Messages,
    /// One byte per send, with a pause.
    Bytes(Duration),
}

/// Greeting with one method.
pub(crate) const GREETING: [u8; 3] = [5, 1, 0];

/// A request with any command.
pub(crate) fn request(command: u8, target: &Target) -> Vec<u8> {
    let mut bytes = vec![5, command, 0];
    match target {
        Target::Address(address) => {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(1);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        Target::Name(name, port) => {
            bytes.extend([3, u8::try_from(name.len()).unwrap()]);
            bytes.extend(name.as_bytes());
            bytes.extend(port.to_be_bytes());
        }
    }
    bytes
}

/// RFC 1929.
pub(crate) fn user_and_password(user: &[u8], password: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, u8::try_from(user.len()).unwrap()];
    bytes.extend(user);
    bytes.push(u8::try_from(password.len()).unwrap());
    bytes.extend(password);
    bytes
}

/// Sends as cut.
pub(crate) fn send(stream: &mut TcpStream, bytes: &[u8], cut: Cut) -> io::Result<()> {
    match cut {
        Cut::Messages => stream.write_all(bytes),
        Cut::Bytes(pause) => {
            for byte in bytes {
                stream.write_all(&[*byte])?;
                std::thread::sleep(pause);
            }
            Ok(())
        }
    }
}

/// Reads the answer to a request to its end and returns its code.
pub(crate) fn read_reply(stream: &mut impl Read) -> io::Result<u8> {
    read_answer(stream).map(|(code, _)| code)
}

/// The same with the bound address.
pub(crate) fn read_answer(stream: &mut impl Read) -> io::Result<(u8, SocketAddr)> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let rest = match head[3] {
        1 => 6,
        4 => 18,
        other => return Err(io::Error::other(format!("reply {head:02x?} with address type {other}, expected 1 or 4"))),
    };
    let mut address = [0; 18];
    stream.read_exact(&mut address[..rest])?;
    let port = u16::from_be_bytes([address[rest - 2], address[rest - 1]]);
    let ip = if rest == 6 {
        IpAddr::from([address[0], address[1], address[2], address[3]])
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&address[..16]).unwrap())
    };
    if head[0] == 5 && head[2] == 0 {
        Ok((head[1], SocketAddr::new(ip, port)))
    } else {
        Err(io::Error::other(format!("reply starts {head:02x?}")))
    }
}

/// Greeting, credentials if there are any, request: the stream behind the success reply.
pub(crate) fn handshake(stream: &mut TcpStream, credentials: Option<(&[u8], &[u8])>, target: &Target, cut: Cut) -> Result<(), Refusal> {
    let method = if credentials.is_some() { 2 } else { 0 };
    send(stream, &[5, 1, method], cut)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    if answer != [5, method] {
        return Err(Refusal::Method(answer[1]));
    }
    if let Some((user, password)) = credentials {
        send(stream, &user_and_password(user, password), cut)?;
        stream.read_exact(&mut answer)?;
        if answer != [1, 0] {
            return Err(Refusal::Credentials(answer[1]));
        }
    }
    send(stream, &request(1, target), cut)?;
    match read_reply(stream)? {
        0 => Ok(()),
        code => Err(Refusal::Reply(code)),
    }
}

/// A flow to the target through the inter-server.
pub(crate) fn open(entry: SocketAddr, target: impl Into<Target>) -> Result<TcpStream, Refusal> {
    let mut stream = connect(entry)?;
    handshake(&mut stream, None, &target.into(), Cut::Messages)?;
    Ok(stream)
}

/// Greeting and request in one, no answer read.
pub(crate) fn ask(entry: SocketAddr, target: impl Into<Target>) -> io::Result<TcpStream> {
    let mut stream = connect(entry)?;
    stream.write_all(&[&GREETING[..], &request(1, &target.into())].concat())?;
    Ok(stream)
}

/// A flow that sends everything, first bytes included, without waiting for any answer; the answers are then read.
pub(crate) fn open_glued(entry: SocketAddr, target: impl Into<Target>, payload: &[u8]) -> Result<TcpStream, Refusal> {
    let mut stream = connect(entry)?;
    let mut all = GREETING.to_vec();
    all.extend(request(1, &target.into()));
    all.extend(payload);
    stream.write_all(&all)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    if answer != [5, 0] {
        return Err(Refusal::Method(answer[1]));
    }
    match read_reply(&mut stream)? {
        0 => Ok(stream),
        code => Err(Refusal::Reply(code)),
    }
}
