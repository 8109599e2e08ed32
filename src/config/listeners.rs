//! Where a process listens: an inter-server for clients and servers, a server for inter-servers that dial it.

use std::net::IpAddr;

use super::value::Values;
use super::{ConfigError, ListenAt, Listener, missing, parse};
use crate::listen::ListenerKind;

/// An inter-server's. One that dials need not listen for servers.
pub(super) fn inter_server(values: &Values, authenticate: bool, dials: bool) -> Result<Vec<Listener>, ConfigError> {
    let tunnel = values.all("listen", parse::address)?;
    let shared = values.all("shared", parse::address)?;
    let socks = values.all("socks", |text| {
        let at = parse::listen_at(text)?;
        match &at {
            ListenAt::Tcp(address) if !authenticate && !address.ip().is_loopback() => {
                Err("a loopback address or unix:/path, or --credentials-file with it: it would be an open proxy".to_owned())
            }
            _ => Ok(at),
        }
    })?;
    if tunnel.is_empty() && shared.is_empty() && !dials {
        return Err(missing("--listen ADDR:PORT (or --shared, or --dial HOST:PORT)", "where servers log in, or the server to dial"));
    }
    if socks.is_empty() && shared.is_empty() {
        return Err(missing("--socks ADDR:PORT (or --shared)", "where clients come in"));
    }
    let tunnel = tunnel.into_iter().map(|address| Listener { kind: ListenerKind::Tunnel, at: ListenAt::Tcp(address) });
    let socks = socks.into_iter().map(|at| Listener { kind: ListenerKind::Socks { authenticate }, at });
    let shared = shared.into_iter().map(|address| Listener {
        kind: ListenerKind::Shared { authenticate, clients: authenticate || is_private(address.ip()) },
        at: ListenAt::Tcp(address),
    });
    each_once(tunnel.chain(socks).chain(shared).collect())
}

/// A server's.
pub(super) fn server(values: &Values) -> Result<Vec<Listener>, ConfigError> {
    let tunnel = values.all("listen", parse::address)?;
    each_once(tunnel.into_iter().map(|address| Listener { kind: ListenerKind::Tunnel, at: ListenAt::Tcp(address) }).collect())
}

fn each_once(listeners: Vec<Listener>) -> Result<Vec<Listener>, ConfigError> {
    for (index, listener) in listeners.iter().enumerate() {
        let port_is_chosen = matches!(listener.at, ListenAt::Tcp(address) if address.port() == 0);
        if !port_is_chosen && listeners[..index].iter().any(|other| other.at == listener.at) {
            let both = if listener.kind == ListenerKind::Tunnel { "" } else { " (--shared takes both on one port)" };
            return Err(ConfigError(format!("{} is given twice, expected each address once{both}", listener.at)));
        }
    }
    Ok(listeners)
}

/// Loopback and private addresses, where whoever connects is known.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}
