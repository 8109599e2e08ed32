//! `zhwkprox check`: dials the other end, logs in once, leaves again, and says in words how that went, seen from here. Plain blocking
//! sockets, no ring: it works where the relay itself cannot run.
//!
//! What always holds: nothing is waited for longer than `PATIENCE`; a flow that is put on our tunnel meanwhile is refused, not left
//! hanging; no key is in any message.

mod login;
mod wire;

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Check, Protocol};
use crate::crypto::aead;
use crate::crypto::fixed_iv::MessageCipher;
use crate::exit::Failure;
use crate::keys::v81::KeyRing;
use crate::limits::{AUTH_TAIL_BYTES, CHALLENGE_BYTES, TUNNEL_HANDSHAKE};
use crate::protocol::v80::{self, Side};
use crate::protocol::v81::{self, settings::Settings};
use login::log_in;
use wire::{Wire, text};

/// The longest wait for one step: what the other end gives a whole login.
const PATIENCE: Duration = TUNNEL_HANDSHAKE;

/// Tries a login; the line to print when all is well.
///
/// # Errors
/// What is wrong, in words.
pub fn run(check: Check) -> Result<String, Failure> {
    let Check { dial, side, protocol, .. } = check;
    let tried = find(&dial.host, dial.port).and_then(|addresses| connect(&addresses)).and_then(|wire| {
        let address = wire.peer;
        let round_trip = match protocol {
            Protocol::V80 { cipher, .. } => check_v80(wire, side, cipher),
            Protocol::V81 { keys, methods } => check_v81(wire, side, &keys, &methods),
        };
        round_trip.map_err(|what| format!("{address}: {what}"))
    });
    match tried {
        Ok(round_trip) => Ok(format!("key ok, round trip {}", in_words(round_trip))),
        Err(what) => Err(Failure::other(format!("{dial}: {}", what.strip_prefix(&format!("{dial}: ")).unwrap_or(&what)))),
    }
}

/// The host's addresses.
fn find(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    // The system's look-up knows no time limit: a thread of its own is left behind if it must be.
    let (sender, receiver) = channel();
    let name = host.to_owned();
    std::thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // Nobody takes it after the time limit.
        let _ = sender.send(found);
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        Ok(Ok(_)) => Err("name not found: it has no address".to_owned()),
        Ok(Err(cause)) => Err(format!("name not found: {cause}")),
        Err(_) => Err(format!("name not found: no answer from the name server within {} s", PATIENCE.as_secs())),
    }
}

/// A connection to the first address that takes one.
fn connect(addresses: &[SocketAddr]) -> Result<Wire, String> {
    let mut failures = Vec::new();
    let end = Instant::now() + PATIENCE;
    for (index, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let tries_left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        // A silent address leaves time for those behind it.
        let time = (left / tries_left).max(Duration::from_millis(1));
        let begin = Instant::now();
        match TcpStream::connect_timeout(address, time) {
            Ok(stream) => return Wire::new(stream, *address, begin.elapsed()),
            Err(cause) => failures.push(format!("{address}: {}", why_not_connected(&cause, time))),
        }
    }
    Err(failures.join("; "))
}

fn why_not_connected(cause: &std::io::Error, time: Duration) -> String {
    use std::io::ErrorKind;
    match cause.kind() {
        ErrorKind::ConnectionRefused => "refused: nothing listens there, or a firewall refuses for it".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            format!("timed out: no answer within {}: the host is off, or a firewall drops what we send", in_words(time))
        }
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => format!("unreachable: {cause}"),
        _ => format!("cannot connect: {cause}"),
    }
}

/// 0x80 has no ping: the answer to the challenge, or the verdict on ours, is the round trip.
fn check_v80(mut wire: Wire, side: Side, cipher: MessageCipher) -> Result<Duration, String> {
    let round_trip = match side {
        Side::Exit => {
            wire.listen_first()?;
            let mut hello = Vec::new();
            let login = v80::handshake::ExitHandshake::start(cipher, random::<CHALLENGE_BYTES>()?, &mut hello);
            wire.send(&hello)?;
            log_in(&mut wire, login)?.1
        }
        Side::Entry => log_in(&mut wire, v80::handshake::EntryHandshake::start(cipher, random::<AUTH_TAIL_BYTES>()?))?.1,
    };
    wire.leave();
    Ok(round_trip)
}

fn check_v81(mut wire: Wire, side: Side, keys: &KeyRing, methods: &[aead::Method]) -> Result<Duration, String> {
    let keys = keys.keys();
    // Nothing is to be opened here; none at all is no setting.
    let settings = Settings { max_streams: 1, ..Settings::default() };
    let (proof, _) = match side {
        Side::Exit => {
            wire.listen_first()?;
            let mut hello = Vec::new();
            let (_, psk) = keys.iter().next().ok_or("no key to try")?;
            let login = v81::handshake::ExitHandshake::start(psk, methods, settings, &mut hello);
            wire.send(&hello)?;
            log_in(&mut wire, login)?
        }
        Side::Entry => {
            let login = v81::handshake::EntryHandshake::start(Arc::clone(keys), methods, random()?, settings);
            log_in(&mut wire, login)?
        }
    };
    let round_trip = wire::Tunnel::new(&mut wire, proof).ping_and_leave()?;
    wire.leave();
    Ok(round_trip)
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|cause| format!("no random bytes: {cause}"))?;
    Ok(bytes)
}

/// As many digits as tell something: `0.3 ms`, `12 ms`, `1500 ms`.
fn in_words(time: Duration) -> String {
    let micros = time.as_micros();
    if micros < 10_000 { format!("{}.{} ms", micros / 1000, micros / 100 % 10) } else { format!("{} ms", micros / 1000) }
}

/// What is wrong with a far end whose first bytes are these; nothing if they begin as those of `version`.
fn wrong_version(first: &[u8], version: u8) -> Option<String> {
    let cure = match (*first.first()?, version) {
        (got, expected) if got == expected => return None,
        (v80::handshake::VERSION, _) => "it speaks protocol 0x80, expected 0x81. cure: --protocol 0x80, or 0x81 on the other end",
        (v81::VERSION, _) => "it speaks protocol 0x81, expected 0x80. cure: leave --protocol 0x80 out, with a key for 0x81",
        _ => return Some(format!("no zhwkprox: expected protocol {version:#04x}, got {}", text(first))),
    };
    Some(cure.to_owned())
}
