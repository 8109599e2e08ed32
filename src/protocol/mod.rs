//! The wire, without IO: bytes in, bytes and events out.
pub mod socks5;
