//! The inter-server (entry): takes SOCKS5 clients and servers' tunnels, and brings them together.

use std::time::Duration;

use ipnet::IpNet;

/// What the operator wants of the inter-server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may log in as a server.
    pub allow_servers: Vec<IpNet>,
    /// User and password that clients need (`None`: no method but "none" is asked for). Never printed.
    pub credentials: Option<crate::protocol::socks5::Credentials>,
    /// A half-open flow without progress ends after this.
    pub linger: Duration,
    /// A flow without a byte either way ends after this (`None`: never).
    pub idle: Option<Duration>,
    /// How long a client waits for a tunnel on which its (ip, port) is free.
    pub wait_for_tunnel: Duration,
}

/// What a listener is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerKind {
    /// Servers log in here.
    Tunnel,
    /// SOCKS5 clients; `authenticate`: user and password are required here.
    Socks {
        /// Whether RFC 1929 is required on this listener.
        authenticate: bool,
    },
    /// Both, told apart by the first byte (0x05 or 0x80).
    Shared {
        /// Whether RFC 1929 is required of clients on this listener.
        authenticate: bool,
        /// Whether clients are taken here at all (not on a public address without a password).
        clients: bool,
    },
}

/// Placeholder.
///
/// # Errors
/// Never.
pub fn run(plan: crate::shard::Plan, _settings: Settings, _cipher: crate::crypto::fixed_iv::MessageCipher) -> std::io::Result<()> {
    plan.idle();
    Ok(())
}
