//! The server (exit): dials inter-servers, takes flows from tunnels, connects to destinations.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// What the operator wants of the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The inter-servers, each served independently.
    pub dial: Vec<DialTarget>,
    /// Most tunnels per inter-server and shard.
    pub max_tunnels: usize,
    /// Destinations allowed although the default policy denies them.
    pub allow: Vec<IpNet>,
    /// Source address for connections to destinations.
    pub source: Option<IpAddr>,
    /// Time for a destination to accept.
    pub connect_timeout: Duration,
    /// A half-open flow without progress ends after this.
    pub linger: Duration,
    /// A flow without a byte either way ends after this (`None`: never).
    pub idle: Option<Duration>,
}

/// An inter-server to dial: re-resolved at each try when it is a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DialTarget {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Placeholder.
///
/// # Errors
/// Never.
pub fn run(plan: crate::shard::Plan, _settings: Settings, _cipher: crate::crypto::fixed_iv::MessageCipher) -> std::io::Result<()> {
    plan.idle();
    Ok(())
}
