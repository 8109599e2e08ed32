//! The wire, without IO: bytes in, bytes and events out. Nothing below this module owns a socket, a clock or a source of randomness, and
//! every reader keeps a few hundred bytes at most, whatever a peer claims.
pub mod login;
pub mod socks5;
pub mod v80;
pub mod v81;

/// Which end of a tunnel we are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The inter-server: takes clients, opens flows.
    Entry,
    /// The server: takes flows, connects to destinations.
    Exit,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Entry => Self::Exit,
            Self::Exit => Self::Entry,
        }
    }
}
