//! The wire, without IO: bytes in, bytes and events out. Nothing below this module owns a socket, a clock or a source of randomness, and no
//! peer can make it hold more than a few hundred bytes.
pub mod socks5;
pub mod v80;
