//! Addresses as OPEN and OPENED write them: `04` and 4 bytes, `06` and 16, or `03`, a length and a name; then the port, big-endian.
//!
//! What always holds: a target that comes out of here can be looked up or dialled; what a client can have brought about is answered with a
//! RESET, and only a payload of the wrong size is a fault.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::reset;
use crate::protocol::socks5::{BadTarget, Target};

/// First byte of a name.
const KIND_NAME: u8 = 0x03;
/// First byte of an IPv4 address.
const KIND_V4: u8 = 0x04;
/// First byte of an IPv6 address.
const KIND_V6: u8 = 0x06;

/// What an OPEN asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::protocol::v81) enum Asked {
    /// Something to look up or dial.
    Target(Target),
    /// Nothing that can be: the code of the RESET that says so.
    Refused(u8),
    /// The payload has not the size that its first bytes say.
    WrongSize,
}

/// Appends an address and port.
pub(in crate::protocol::v81) fn encode_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(KIND_V4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(KIND_V6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// Appends what a client asked for, a name as the client gave it. A name beyond the 255 bytes that can be said, which no client can have
/// given, is cut; the exit refuses it like any that is too long.
pub(in crate::protocol::v81) fn encode_target(target: &Target, out: &mut Vec<u8>) {
    match target {
        Target::Address(address) => encode_address(*address, out),
        Target::Name(name, port) => {
            let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
            out.extend_from_slice(&[KIND_NAME, length]);
            out.extend(name.bytes().take(usize::from(length)));
            out.extend_from_slice(&port.to_be_bytes());
        }
    }
}

/// The bound address of an OPENED, always a number.
pub(in crate::protocol::v81) fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    match *bytes {
        [KIND_V4, a, b, c, d, p, q] => Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([p, q]))),
        [KIND_V6, ref address @ .., p, q] => {
            let octets: [u8; 16] = address.try_into().ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(octets).into(), u16::from_be_bytes([p, q])))
        }
        _ => None,
    }
}

/// The target of an OPEN, judged as the exit must.
pub(in crate::protocol::v81) fn decode_target(bytes: &[u8]) -> Asked {
    let judged = match *bytes {
        [KIND_V4 | KIND_V6, ..] => match decode_address(bytes) {
            Some(address) => Target::of_open(address),
            None => return Asked::WrongSize,
        },
        [KIND_NAME, length, ref name @ .., p, q] if name.len() == usize::from(length) => {
            Target::of_open_name(name, u16::from_be_bytes([p, q]))
        }
        [] | [KIND_NAME, ..] => return Asked::WrongSize,
        _ => return Asked::Refused(reset::ADDRESS),
    };
    match judged {
        Ok(target) => Asked::Target(target),
        Err(bad) => Asked::Refused(match bad {
            BadTarget::Name { .. } => reset::HOST,
            BadTarget::Unspecified { .. } => reset::POLICY,
            BadTarget::Kind { .. } | BadTarget::PortZero { .. } => reset::ADDRESS,
        }),
    }
}
