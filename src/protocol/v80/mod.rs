//! Protocol 0x80, both sides: the handshake that proves the key, the frame that both directions use, and the table of keys that one
//! tunnel has taken. Direction-free: the server speaks first, whoever dialled.
//!
//! ```text
//! handshake ── Authenticated ──▶ session   which (ip, port) are taken, which ends have passed
//!                                frame     headers and payload pieces, deciphered in place
//! ```
pub mod frame;
pub mod handshake;
pub mod session;

/// Which end of a tunnel we are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The inter-server: takes clients, opens flows.
    Entry,
    /// The server: takes flows, connects to destinations.
    Exit,
}

impl Side {
    /// The far end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Entry => Self::Exit,
            Self::Exit => Self::Entry,
        }
    }
}

/// Which rules the far end keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Profile {
    /// This project's: each direction of a flow sends exactly one end.
    #[default]
    Ours,
    /// Those of the author's original programs.
    Original,
}

impl Profile {
    /// Most bytes that one frame to `destination` may carry.
    #[must_use]
    pub const fn payload_max(self, destination: frame::Destination) -> usize {
        match self {
            Self::Ours => crate::limits::V80_PAYLOAD_MAX,
            Self::Original => crate::limits::V80_ORIGINAL_FRAME_MAX - destination.header_bytes(),
        }
    }
}
