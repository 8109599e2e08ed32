//! What a SOCKS5 request asks for: kind, address and port, read and judged. A target that comes out of here can be looked up or dialled.
//!
//! What always holds: a name that reads as an address *is* that address; an IPv4-mapped IPv6 address is the IPv4 address (the inter-server
//! maps before it sends); port 0, unspecified addresses and names that cannot exist are refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Reply;

/// First byte of an IPv4 address.
pub(super) const KIND_V4: u8 = 1;
/// First byte of a name.
const KIND_NAME: u8 = 3;
/// First byte of an IPv6 address.
pub(super) const KIND_V6: u8 = 4;
/// Longest name of the DNS, without a dot at its end (RFC 1035 §2.3.4, as text).
const NAME_MAX: usize = 253;
/// Longest part of a name between dots.
const LABEL_MAX: usize = 63;

/// What a client wants to be connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// An address and port.
    Address(SocketAddr),
    /// A name, as the client wrote it, and a port.
    Name(String, u16),
}

/// Why a target is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadTarget {
    /// Neither IPv4 nor IPv6 nor a name.
    #[error("an address of unknown kind {got}: expected 1 (ipv4), 3 (name) or 4 (ipv6)")]
    Kind {
        /// The byte that came.
        got: u8,
    },
    /// No such name can exist.
    #[error("the name {name:?}, which cannot exist: {why}")]
    Name {
        /// What came, with what is not text replaced.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing listens on port 0.
    #[error("{target}: port 0 is never listened on")]
    PortZero {
        /// What came.
        target: String,
    },
    /// 0.0.0.0 or ::, which is this machine under another name.
    #[error("{target}: the unspecified address is no destination")]
    Unspecified {
        /// What came.
        target: String,
    },
}

impl BadTarget {
    /// What the client is told. Port 0 and unspecified addresses can be read, it is our rule that forbids them: 02, not 08. A name that
    /// cannot exist is what a name that does not exist is: 04.
    pub(super) const fn code(&self) -> Reply {
        match self {
            Self::Kind { .. } => Reply::AddressTypeNotSupported,
            Self::Name { .. } => Reply::HostUnreachable,
            Self::PortZero { .. } | Self::Unspecified { .. } => Reply::NotAllowed,
        }
    }
}

impl Target {
    /// Bytes that a target which begins so must have at least.
    pub(super) fn needs(bytes: &[u8]) -> usize {
        match bytes {
            [KIND_V4, ..] => 1 + 4 + 2,
            [KIND_V6, ..] => 1 + 16 + 2,
            [KIND_NAME, length, ..] => 2 + usize::from(*length) + 2,
            [KIND_NAME] => 2,
            _ => 1,
        }
    }

    /// From all its bytes: [`Target::needs`] of them.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadTarget> {
        match *bytes {
            [KIND_V4, a, b, c, d, p, q] => Self::from_address(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([p, q])),
            [KIND_NAME, _, ref name @ .., p, q] => Self::from_name(name, u16::from_be_bytes([p, q])),
            [KIND_V6, ref address @ .., p, q] if address.len() == 16 => {
                let mut octets = [0; 16];
                octets.copy_from_slice(address);
                Self::from_address(Ipv6Addr::from(octets).into(), u16::from_be_bytes([p, q]))
            }
            _ => Err(BadTarget::Kind { got: bytes.first().copied().unwrap_or_default() }),
        }
    }

    /// The target of a 0x81 OPEN, which is judged at the exit: port 0 first, for it has a code of its own there.
    pub(in crate::protocol) fn of_open(address: SocketAddr) -> Result<Self, BadTarget> {
        if address.port() == 0 {
            return Err(BadTarget::PortZero { target: address.to_string() });
        }
        Self::from_address(address.ip(), address.port())
    }

    /// The same for a name. What an exit looks up is a host's name: fewer characters will do than a client may say.
    pub(in crate::protocol) fn of_open_name(bytes: &[u8], port: u16) -> Result<Self, BadTarget> {
        let bad = |why| BadTarget::Name { name: String::from_utf8_lossy(bytes).into_owned(), why };
        if port == 0 {
            return Err(BadTarget::PortZero { target: format!("{}:0", String::from_utf8_lossy(bytes)) });
        }
        let target = Self::from_name(bytes, port)?;
        if let Self::Name(name, _) = &target {
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
                return Err(bad("it holds a character other than letters, digits, '-', '_' and '.'"));
            }
            let absolute = name.strip_suffix('.').unwrap_or(name);
            if absolute.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
                return Err(bad("its last part is all digits, and yet it is no address"));
            }
        }
        Ok(target)
    }

    fn from_address(address: IpAddr, port: u16) -> Result<Self, BadTarget> {
        let address = SocketAddr::new(address.to_canonical(), port);
        if address.ip().is_unspecified() {
            return Err(BadTarget::Unspecified { target: address.to_string() });
        }
        if port == 0 {
            return Err(BadTarget::PortZero { target: address.to_string() });
        }
        Ok(Self::Address(address))
    }

    fn from_name(bytes: &[u8], port: u16) -> Result<Self, BadTarget> {
        let bad = |why| BadTarget::Name { name: String::from_utf8_lossy(bytes).into_owned(), why };
        let name = std::str::from_utf8(bytes).map_err(|_| bad("it is not text"))?;
        if let Some(address) = read_address(name) {
            return Self::from_address(address, port);
        }
        if let Some(why) = fault_of_name(name) {
            return Err(bad(why));
        }
        let target = Self::Name(name.to_owned(), port);
        if port == 0 { Err(BadTarget::PortZero { target: target.to_string() }) } else { Ok(target) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// An address that came as a name, with or without the brackets of a URL.
fn read_address(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => name.parse().ok(),
    }
}

/// Why no such name can exist in the DNS or in a hosts file. Names beyond ASCII travel as their A-labels (`xn--…`), which clients make.
fn fault_of_name(name: &str) -> Option<&'static str> {
    let absolute = name.strip_suffix('.').unwrap_or(name);
    if absolute.is_empty() {
        Some("it is empty")
    } else if name.contains('\0') {
        Some("it holds a nul byte")
    } else if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("it holds a blank, a control or a non-ascii character")
    } else if absolute.len() > NAME_MAX {
        Some("it is longer than 253 characters")
    } else if absolute.split('.').any(|label| label.is_empty() || label.len() > LABEL_MAX) {
        Some("a part of it is empty or longer than 63 characters")
    } else {
        None
    }
}
