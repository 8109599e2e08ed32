//! What a listening socket is for.
//!
//! What always holds: it is decided before any shard runs, and no connection of one kind is ever taken for one of another.

/// What a listener is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerKind {
    /// The other role's tunnels come in here: servers' at an inter-server, inter-servers' at a server.
    Tunnel,
    /// SOCKS5 clients; `authenticate`: user and password are required here.
    Socks {
        /// Whether RFC 1929 is required on this listener.
        authenticate: bool,
    },
    /// Both, told apart by the first byte: 0x05, or the version of the tunnels' protocol.
    Shared {
        /// Whether RFC 1929 is required of clients on this listener.
        authenticate: bool,
        /// Whether clients are taken here at all (not on a public address without a password).
        clients: bool,
    },
}
