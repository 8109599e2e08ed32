//! The one frame of 0x80: a header in clear that names the destination, then enciphered data. Written with [`seal`], read with
//! [`FrameReader`], which deciphers the payload where it lies.
//!
//! ```text
//! kind (04 | 06) | address (4 | 16) | port (2, big-endian) | length (4, little-endian) | data (length bytes)
//! ```
//!
//! What always holds: the reader keeps at most a partial header (23 bytes) and a cipher position between calls, whatever length a header
//! claims; an address is a key byte for byte and is never normalised here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::crypto::fixed_iv::{MessageCipher, Position};
use crate::limits::V80_HEADER_MAX;

/// First byte of a header with an IPv4 address.
const KIND_V4: u8 = 0x04;
/// First byte of a header with an IPv6 address.
const KIND_V6: u8 = 0x06;
/// Bytes of a header with an IPv4 address.
const HEADER_V4: usize = 1 + 4 + 2 + 4;
/// Bytes of a header with an IPv6 address.
const HEADER_V6: usize = 1 + 16 + 2 + 4;
const _: () = assert!(HEADER_V6 == V80_HEADER_MAX);

/// Where a flow goes, and its key on the tunnel: kind, address bytes and port as they stand on the wire. An IPv4-mapped IPv6 address is
/// another key than the IPv4 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// IPv4 address and port.
    V4([u8; 4], u16),
    /// IPv6 address and port.
    V6([u8; 16], u16),
}

impl Destination {
    /// As an address to connect to.
    #[must_use]
    pub fn to_socket_addr(self) -> SocketAddr {
        match self {
            Self::V4(address, port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address)), port),
            Self::V6(address, port) => SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)), port),
        }
    }

    /// Bytes of a header that names it.
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::V4(..) => HEADER_V4,
            Self::V6(..) => HEADER_V6,
        }
    }
}

impl From<SocketAddr> for Destination {
    /// Scope and flow label of an IPv6 address have no place on the wire.
    fn from(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) => Self::V4(ip.octets(), address.port()),
            IpAddr::V6(ip) => Self::V6(ip.octets(), address.port()),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_socket_addr().fmt(f)
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_socket_addr().fmt(f)
    }
}

/// What stands in front of the data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// Whose data it is.
    pub destination: Destination,
    /// Bytes of data that follow.
    pub length: u32,
}

impl Header {
    /// As it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> HeaderBytes {
        let mut bytes = [0; V80_HEADER_MAX];
        let (kind, address, port) = match &self.destination {
            Destination::V4(address, port) => (KIND_V4, address.as_slice(), port),
            Destination::V6(address, port) => (KIND_V6, address.as_slice(), port),
        };
        let port_at = 1 + address.len();
        bytes[0] = kind;
        bytes[1..port_at].copy_from_slice(address);
        bytes[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        bytes[port_at + 2..port_at + 6].copy_from_slice(&self.length.to_le_bytes());
        HeaderBytes { bytes, len: port_at + 6 }
    }

    /// From all its bytes: [`header_size`] of them.
    fn decode(bytes: &[u8; V80_HEADER_MAX]) -> Self {
        let [kind, rest @ ..] = bytes;
        if *kind == KIND_V4 {
            let [a, b, c, d, p, q, l, m, n, o, ..] = *rest;
            let destination = Destination::V4([a, b, c, d], u16::from_be_bytes([p, q]));
            Self { destination, length: u32::from_le_bytes([l, m, n, o]) }
        } else {
            let [address @ .., p, q, l, m, n, o] = *rest;
            Self { destination: Destination::V6(address, u16::from_be_bytes([p, q])), length: u32::from_le_bytes([l, m, n, o]) }
        }
    }
}

/// An encoded header: 11 or 23 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderBytes {
    bytes: [u8; V80_HEADER_MAX],
    len: usize,
}

impl HeaderBytes {
    /// The bytes to send.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::ops::Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Enciphers `payload` where it lies and returns the header to put in front of it. One call is one frame.
///
/// # Panics
/// `payload` is longer than the length field can say (4 GiB); a slot is 64 KiB.
#[must_use = "the payload is enciphered and means nothing without its header"]
pub fn seal(cipher: &MessageCipher, destination: Destination, payload: &mut [u8]) -> HeaderBytes {
    let Ok(length) = u32::try_from(payload.len()) else { panic!("a frame carries less than 4 GiB, got {} bytes", payload.len()) };
    if length > 0 {
        cipher.begin_encrypt().apply(payload);
    }
    Header { destination, length }.encode()
}

/// The frame that says "no more data in this direction", and opens a flow.
#[must_use]
pub fn empty(destination: Destination) -> HeaderBytes {
    Header { destination, length: 0 }.encode()
}

/// What ends a tunnel whose frames cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// A header that starts with neither kind.
    #[error("peer sent a frame of address kind {got:#04x}: expected {KIND_V4:#04x} or {KIND_V6:#04x}")]
    AddressKind {
        /// The byte that came.
        got: u8,
    },
}

/// What stands in the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// A frame begins. Exactly once per frame; with length 0 it is the whole frame.
    Header(Header),
    /// A stretch of the frame's data, deciphered where it lies.
    Payload {
        /// Whose data it is.
        destination: Destination,
        /// Where it lies in the bytes that were handed in. Never empty.
        range: Range<usize>,
        /// Whether the frame is complete with it.
        last: bool,
    },
}

/// Reads one tunnel's frames, from whatever pieces its bytes come in.
///
/// ```
/// # use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
/// use zhwkprox::protocol::v80::frame::{Destination, FrameReader, Piece, seal};
/// # let cipher = MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatch", [7; 16]).unwrap();
///
/// let destination = Destination::V4([192, 0, 2, 7], 443);
/// let mut payload = *b"hello";
/// let header = seal(&cipher, destination, &mut payload);
/// let mut arrived = [header.as_slice(), &payload].concat();
///
/// let (mut reader, mut at) = (FrameReader::new(cipher), 0);
/// while let Some(piece) = reader.next(&mut arrived, &mut at)? {
///     match piece {
///         Piece::Header(header) => assert_eq!((header.destination, header.length), (destination, 5)),
///         Piece::Payload { range, last, .. } => assert_eq!((&arrived[range], last), (b"hello".as_slice(), true)),
///     }
/// }
/// # Ok::<(), zhwkprox::protocol::v80::frame::FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FrameReader {
    cipher: MessageCipher,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Header { bytes: [u8; V80_HEADER_MAX], received: usize },
    Payload { destination: Destination, position: Position, left: u32 },
    Failed(FrameError),
}

impl State {
    const BETWEEN_FRAMES: Self = Self::Header { bytes: [0; V80_HEADER_MAX], received: 0 };
}

impl FrameReader {
    /// A reader at the start of a frame.
    #[must_use]
    pub const fn new(cipher: MessageCipher) -> Self {
        Self { cipher, state: State::BETWEEN_FRAMES }
    }

    /// The next piece in `bytes[*at..]`, or `None` when all are used; `at` moves behind what was used. Call until `None`, then hand in the
    /// next bytes with `at` at their start.
    ///
    /// # Errors
    /// The bytes are no frame. The reader stays failed: the tunnel ends.
    pub fn next(&mut self, bytes: &mut [u8], at: &mut usize) -> Result<Option<Piece>, FrameError> {
        let arrived = bytes.get_mut(*at..).unwrap_or_default();
        match &mut self.state {
            State::Failed(error) => Err(*error),
            State::Header { bytes: header, received } => match fill(header, received, arrived) {
                Ok(Fill { used, complete }) => {
                    *at += used;
                    Ok(complete.then(|| self.begin()).flatten())
                }
                Err(error) => {
                    self.state = State::Failed(error);
                    Err(error)
                }
            },
            State::Payload { destination, position, left } => {
                let used = arrived.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                if used == 0 {
                    return Ok(None);
                }
                self.cipher.decrypt_at(position, &mut arrived[..used]);
                let (destination, range) = (*destination, *at..*at + used);
                *at += used;
                *left -= u32::try_from(used).unwrap_or(*left);
                let last = *left == 0;
                if last {
                    self.state = State::BETWEEN_FRAMES;
                }
                Ok(Some(Piece::Payload { destination, range, last }))
            }
        }
    }

    /// Whether every byte so far belongs to a complete frame: a tunnel that ends elsewhere was cut.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { received: 0, .. })
    }

    /// The header is complete: its payload begins, or the next frame.
    fn begin(&mut self) -> Option<Piece> {
        let State::Header { bytes, .. } = &self.state else { return None };
        let header = Header::decode(bytes);
        self.state = match header.length {
            0 => State::BETWEEN_FRAMES,
            left => State::Payload { destination: header.destination, position: self.cipher.start(), left },
        };
        Some(Piece::Header(header))
    }
}

/// What became of a header with the bytes that arrived.
struct Fill {
    used: usize,
    complete: bool,
}

/// Takes from `arrived` what the header still lacks.
fn fill(header: &mut [u8; V80_HEADER_MAX], received: &mut usize, arrived: &[u8]) -> Result<Fill, FrameError> {
    let kind = if *received > 0 {
        header[0]
    } else if let Some(first) = arrived.first() {
        *first
    } else {
        return Ok(Fill { used: 0, complete: false });
    };
    let size = header_size(kind)?;
    let used = arrived.len().min(size - *received);
    header[*received..*received + used].copy_from_slice(&arrived[..used]);
    *received += used;
    Ok(Fill { used, complete: *received == size })
}

/// Bytes of a header, by its first.
const fn header_size(kind: u8) -> Result<usize, FrameError> {
    match kind {
        KIND_V4 => Ok(HEADER_V4),
        KIND_V6 => Ok(HEADER_V6),
        got => Err(FrameError::AddressKind { got }),
    }
}
