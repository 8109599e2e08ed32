//! Protocol 0x81, both sides: the handshake that proves the key and gives both ends fresh secrets, the records that everything else travels
//! in, the frames that a record holds, and the streams that they carry. Direction-free: the server speaks first, whoever dialled.
//!
//! ```text
//! handshake ── Authenticated ──▶ record      bytes opened and sealed where they lie
//!                                settings    what the other side accepts
//!                                frame       what a record holds
//!                                session     streams, windows, what goes first
//! ```
pub mod frame;
pub mod handshake;
pub mod record;
pub mod session;
pub mod settings;

pub use super::Side;

/// The version byte.
pub const VERSION: u8 = 0x81;
