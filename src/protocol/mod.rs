//! The wire, without IO: bytes in, bytes and events out. Nothing below this module owns a socket, a clock or a source of randomness, and
//! every reader keeps a few hundred bytes at most, whatever a peer claims.
pub mod socks5;
pub mod v80;
pub mod v81;
