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

pub use super::Side;

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
    /// Most bytes that one frame to `destination` may carry. Ours is, with its header, just what one receive takes at the other end: under load
    /// each then comes in one piece and leaves with one send. Longer, each came in two, of which one was copied.
    #[must_use]
    pub const fn payload_max(self, destination: frame::Destination) -> usize {
        match self {
            Self::Ours => crate::limits::V80_FRAME_MAX - destination.header_bytes(),
            Self::Original => crate::limits::V80_ORIGINAL_FRAME_MAX - destination.header_bytes(),
        }
    }
}
