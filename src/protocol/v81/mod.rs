//! Protocol 0x81, both sides: the handshake that proves the key and gives both ends fresh secrets, the records that everything else travels
//! in, and the frames and streams that those hold. Direction-free: the server speaks first, whoever dialled.
//!
//! ```text
//! handshake ── Authenticated ──▶ record      bytes opened and sealed where they lie
//!              settings ───────▶ session     streams, credit, faults
//!                                frame       what a record holds
//! ```
pub mod frame;
pub mod handshake;
pub mod record;
pub mod session;
pub mod settings;

pub use super::v80::Side;

/// The version byte.
pub const VERSION: u8 = 0x81;
