//! SOCKS5, the server's side (RFC 1928, RFC 1929).

use std::net::SocketAddr;

/// What a client wants to be connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// An address and port.
    Address(SocketAddr),
    /// A name, as the client wrote it, and a port.
    Name(String, u16),
}

/// User and password of RFC 1929, 0–255 bytes each. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: Vec<u8>,
    /// The password.
    pub password: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}
