//! Where a role that dials finds the other one.
//!
//! What always holds: host and port could be looked up and connected to; whether anybody is there is seen at each try.

/// Most to dial of one process: a dialler's number has to fit a timer's.
pub const MAX_DIAL: usize = 128;

/// Somebody to dial: re-resolved at each try when it is a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DialTarget {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for DialTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
