//! `zhwkprox demo`: both roles on loopback in this process, with a key that nobody sees, a page to fetch, and the two lines to try.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::Router;
use axum::routing::get;

use crate::config::{Config, ListenAt, Listener, Protocol, Role, loopback};
use crate::control::{Announce, Control};
use crate::crypto::aead::Method;
use crate::dial::DialTarget;
use crate::exit::Failure;
use crate::inter_server;
use crate::keys::v81::{self, KeyRing};
use crate::limits;
use crate::listen::ListenerKind;
use crate::protocol::v81::handshake::Keys;
use crate::rlimits;
use crate::run::listeners::Bound;
use crate::run::{self, tcp_address};
use crate::server;
use crate::shard::affinity;
use crate::shard::engine::Choice;
use crate::telemetry::log;

/// Where SOCKS5 proxies usually are; if it is taken, a free port does.
const SOCKS_PORT: u16 = 1080;
/// What the page says.
const PAGE: &str =
    "It works. This page came to you through the relay:\n\n    curl --SOCKS5--> inter-server <--0x81, sealed-- server --> this page\n";

/// Runs the demo until Ctrl-C.
///
/// # Errors
/// What kept it from starting, or what ended it.
pub fn run(engine: Choice) -> Result<(), Failure> {
    let log = log::start(log::Settings { form: log::Form::Text, level: tracing::Level::WARN });
    let log = log.map_err(|cause| Failure::other(format!("cannot start the log: {cause}")))?;
    // A demo has few connections.
    let _ = rlimits::raise_nofile();
    let (mut entry_sockets, socks, tunnel) = entry_sockets()?;
    let protocol = throw_away_keys()?;
    let cores = affinity::allowed_cores().map_err(|cause| Failure::other(format!("cannot ask for the cores: {cause}")))?;
    let first = cores.first().copied().unwrap_or(0);
    let second = cores.get(1).copied().unwrap_or(first);
    let entry = config(Role::InterServer(entry_settings()), first, engine, protocol.clone());
    let exit = config(Role::Server(exit_settings(tunnel)), second, engine, protocol);
    let runtime = run::runtime()?;
    let ended = runtime.block_on(async {
        let events = run::events()?;
        let page = serve_page().await.map_err(|cause| Failure::other(format!("cannot serve the demo's page: {cause}")))?;
        let entry = run::start(&entry, entry_sockets.take(), 0, &events)?;
        let exit = run::start(&exit, vec![Vec::new()], 1, &events)?;
        let tell = move || tell(socks, page);
        let announce = Announce { started: Some(Box::new(|chosen| chosen.iter().for_each(run::say_engine))), tunnel: Some(Box::new(tell)) };
        Control::new(events, vec![entry, exit], None, announce).run().await
    });
    runtime.shutdown_background();
    drop(log);
    ended
}

fn entry_sockets() -> Result<(Bound, SocketAddr, SocketAddr), Failure> {
    let loopback = |port| ListenAt::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let both = |port| {
        let socks = Listener { kind: ListenerKind::Socks { authenticate: false }, at: loopback(port) };
        Bound::new(&[socks, Listener { kind: ListenerKind::Tunnel, at: loopback(0) }], 1)
    };
    let bound = both(SOCKS_PORT).or_else(|_| both(0))?;
    let socks = tcp_address(&bound, |kind| matches!(kind, ListenerKind::Socks { .. }));
    let tunnel = tcp_address(&bound, |kind| kind == ListenerKind::Tunnel);
    match (socks, tunnel) {
        (Some(socks), Some(tunnel)) => Ok((bound, socks, tunnel)),
        _ => Err(Failure::other("no address to listen on")),
    }
}

fn throw_away_keys() -> Result<Protocol, Failure> {
    let psk = v81::throw_away().map_err(|cause| Failure::other(cause.to_string()))?;
    let keys = Keys::new([("demo".into(), psk)]).map_err(|error| Failure::other(error.to_string()))?;
    Ok(Protocol::V81 { keys: KeyRing::without_files(keys), methods: Method::by_speed().to_vec() })
}

fn entry_settings() -> inter_server::Settings {
    inter_server::Settings {
        dial: Vec::new(),
        allow_servers: loopback(),
        credentials: None,
        linger: limits::LINGER,
        idle: None,
        wait_for_tunnel: limits::WAIT_FOR_TUNNEL,
    }
}

fn exit_settings(tunnel: SocketAddr) -> server::Settings {
    server::Settings {
        dial: vec![DialTarget { host: tunnel.ip().to_string(), port: tunnel.port() }],
        allow_inter_servers: loopback(),
        max_tunnels: limits::MAX_TUNNELS,
        allow: loopback(),
        source: None,
        connect_timeout: limits::CONNECT_TIMEOUT,
        linger: limits::LINGER,
        idle: None,
    }
}

fn config(role: Role, core: usize, engine: Choice, protocol: Protocol) -> Config {
    Config {
        role,
        cores: vec![core],
        buffer_memory: limits::BUFFER_MEMORY,
        engine,
        protocol,
        listeners: Vec::new(),
        resolver: None,
        log: log::Settings { form: log::Form::Text, level: tracing::Level::WARN },
        warnings: Vec::new(),
    }
}

async fn serve_page() -> io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).await?;
    let address = listener.local_addr()?;
    let page = Router::new().route("/", get(|| async { PAGE }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, page).await {
            tracing::error!(%error, "the demo's page is gone");
        }
    });
    Ok(address)
}

/// Each command on a line of its own, so that a script can pick it out.
fn tell(socks: SocketAddr, page: SocketAddr) {
    let text = format!(
        "Both roles run on loopback, with a key that ends with them. Fetch a page through them:\n\n\
         curl -x socks5h://{socks} http://{page}/\n\n\
         Or something of the wide world:\n\n\
         curl -x socks5h://{socks} https://example.com/\n\n\
         This is protocol 0x81. Ctrl-C ends it.\n"
    );
    let mut out = io::stdout().lock();
    // Nobody to tell where standard output is closed.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
