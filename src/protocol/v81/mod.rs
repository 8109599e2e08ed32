//! Protocol 0x81, both sides: the frames that a record holds and the streams that they carry.
pub mod frame;
pub mod session;
pub mod settings;

pub use super::v80::Side;
