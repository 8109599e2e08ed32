//! What only a broken peer can send, by name, and the checks that need nothing but a frame's header. Everything else that is wrong costs
//! its own stream.

use super::Side;
use crate::protocol::v81::frame::{FrameFault, Header, goaway, kind};

/// Most bytes of a GOAWAY's text.
pub(super) const TEXT_MAX: usize = 200;

/// A rule that the peer broke: the tunnel ends with GOAWAY [`Fault::code`], whose text this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The frames do not fill their record.
    #[error(transparent)]
    Frame(#[from] FrameFault),
    /// A type that this version does not know, and may not skip.
    #[error("frame of type {kind:#04x}: expected a known one, or one from 0x80 on")]
    UnknownType {
        /// The type that came.
        kind: u8,
    },
    /// Flags that mean nothing.
    #[error("{} with flags {got:#04x}: expected none", kind::name(*.kind))]
    Flags {
        /// The frame's type.
        kind: u8,
        /// The flags that came.
        got: u8,
    },
    /// A frame of the tunnel on a stream, or a frame of a stream on none.
    #[error("{} on stream {got}: expected {}", kind::name(*.kind), if *.got == 0 { "one from 1 on" } else { "0" })]
    Stream {
        /// The frame's type.
        kind: u8,
        /// The stream that came.
        got: u32,
    },
    /// A frame that only the other side sends.
    #[error("{} from the {}: only the other side sends it", kind::name(*.kind), if *.from == Side::Entry { "inter-server" } else { "server" })]
    WrongSide {
        /// The frame's type.
        kind: u8,
        /// Who sent it.
        from: Side,
    },
    /// A payload of the wrong size, an empty DATA among them.
    #[error("{} with a payload of {got} bytes: expected {expected}", kind::name(*.kind))]
    Size {
        /// The frame's type.
        kind: u8,
        /// Bytes that came.
        got: u16,
        /// What fits.
        expected: &'static str,
    },
    /// SETTINGS behind the first record.
    #[error("a second SETTINGS: expected one, in the first record")]
    SecondSettings,
    /// A second OPENED.
    #[error("a second OPENED on stream {stream}: expected one")]
    SecondOpened {
        /// The stream.
        stream: u32,
    },
    /// A PING while one is unanswered.
    #[error("a second PING before the first was answered: expected one at most")]
    SecondPing,
    /// A PONG that answers nothing.
    #[error("a PONG without a PING of these bytes: expected what was asked")]
    StrayPong,
    /// A second GOAWAY that winds down.
    #[error("a second GOAWAY with code {code:#04x}: expected none, or one that ends the tunnel")]
    SecondGoAway {
        /// The code that came.
        code: u8,
    },
    /// An OPEN that is not the next.
    #[error("OPEN of stream {got}: expected {expected}, the last and one more")]
    OpenId {
        /// The id that came.
        got: u32,
        /// The last that was opened, and one more.
        expected: u64,
    },
    /// An OPEN behind the inter-server's own GOAWAY.
    #[error("OPEN of stream {stream} behind GOAWAY: expected no more streams")]
    OpenAfterGoAway {
        /// The stream.
        stream: u32,
    },
    /// More streams refused than the peer could have open.
    #[error("OPEN of stream {stream} while {owed} RESETs are owed for earlier ones: expected no more streams than setting 2 allows")]
    TooManyOwed {
        /// The stream.
        stream: u32,
        /// RESETs that wait to be sent.
        owed: usize,
    },
    /// An id above all that were opened.
    #[error("{} on stream {got}: the last that was opened is {last}", kind::name(*.kind))]
    NotOpened {
        /// The frame's type.
        kind: u8,
        /// The id that came.
        got: u32,
        /// The highest id that was opened.
        last: u32,
    },
    /// Something of the server's before its OPENED.
    #[error("{} on stream {stream} before OPENED: expected OPENED or RESET first", kind::name(*.kind))]
    BeforeOpened {
        /// The frame's type.
        kind: u8,
        /// The stream.
        stream: u32,
    },
    /// DATA or FIN behind FIN.
    #[error("{} on stream {stream} behind FIN: expected no more in this direction", kind::name(*.kind))]
    AfterFin {
        /// The frame's type.
        kind: u8,
        /// The stream.
        stream: u32,
    },
    /// DATA beyond the credit.
    #[error("DATA of {got} bytes on stream {stream}: its credit is {credit}")]
    BeyondCredit {
        /// The stream.
        stream: u32,
        /// Bytes that came.
        got: u16,
        /// Bytes that were allowed.
        credit: u32,
    },
    /// A WINDOW of nothing, or of too much.
    #[error("WINDOW of {got} on stream {stream} with a credit of {credit}: expected 1 or more, in all at most 2147483647")]
    Credit {
        /// The stream.
        stream: u32,
        /// Credit that came.
        got: u32,
        /// Credit that was there.
        credit: u32,
    },
    /// A datagram on a stream of TCP.
    #[error("DATAGRAM on stream {stream}, which carries tcp")]
    DatagramOnTcp {
        /// The stream.
        stream: u32,
    },
}

impl Fault {
    /// The code of the GOAWAY that ends the tunnel.
    #[must_use]
    pub const fn code(&self) -> u8 {
        if let Self::TooManyOwed { .. } = self { goaway::TOO_MANY } else { goaway::FAULT }
    }
}

/// Sees that a header, sent by side `from`, is one that a correct peer can send, whatever the state of its stream. Types to be skipped pass.
pub(super) fn check(header: Header, from: Side) -> Result<(), Fault> {
    let Header { kind, flags, length, stream } = header;
    let is_of_tunnel = match kind {
        kind::SKIPPED_FROM.. => return Ok(()),
        kind::SETTINGS => return Err(Fault::SecondSettings),
        kind::PAD | kind::PING | kind::PONG | kind::GOAWAY => true,
        kind::OPEN | kind::OPENED | kind::DATA | kind::FIN | kind::RESET | kind::WINDOW | kind::DATAGRAM => false,
        _ => return Err(Fault::UnknownType { kind }),
    };
    if is_of_tunnel != (stream == 0) {
        return Err(Fault::Stream { kind, got: stream });
    }
    if flags != 0 && (kind, flags) != (kind::OPEN, OPEN_UDP) {
        return Err(Fault::Flags { kind, got: flags });
    }
    if matches!((kind, from), (kind::OPEN, Side::Exit) | (kind::OPENED, Side::Entry)) {
        return Err(Fault::WrongSide { kind, from });
    }
    let (fits, expected) = match kind {
        kind::DATA => (length >= 1, "1 or more"),
        kind::FIN => (length == 0, "none"),
        kind::RESET => (length == 1, "1"),
        kind::WINDOW => (length == 4, "4"),
        kind::PING | kind::PONG => (length == 8, "8"),
        kind::GOAWAY => (length >= 1 && usize::from(length) <= 1 + TEXT_MAX, "1 to 201"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(Fault::Size { kind, got: length, expected }) }
}

/// Flag of an OPEN that asks for a UDP association.
pub(super) const OPEN_UDP: u8 = 0x01;

/// A peer's words, escaped and cut to what a log line may hold of them.
pub(super) fn for_the_log(text: &[u8]) -> String {
    let mut line = text.escape_ascii().to_string();
    line.truncate(TEXT_MAX);
    line
}
