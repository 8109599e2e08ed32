//! How sockets are made: options by [`Purpose`], source address, family. Synchronous system calls that do not wait.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::shard::io::Purpose;

/// Unsent bytes the kernel takes for a tunnel: without a bound 4 MB would sit in front of the next small frame.
const TUNNEL_NOTSENT_BYTES: u32 = 128 << 10;
/// A silent tunnel is probed after this long: a NAT on the way forgets it otherwise, and a lost peer would go unnoticed.
const TUNNEL_KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Between probes.
const TUNNEL_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Probes without an answer that end the tunnel.
const TUNNEL_KEEPALIVE_PROBES: u32 = 3;

/// The congestion control of connections that stay on the host: in every kernel, and allowed to everybody. A host's default may pace what it
/// sends (BBR does), each burst by a timer. That protects networks; here there is none, and it costs a tenth of a transfer's CPU time.
const LOOPBACK_CONGESTION: &[u8] = b"reno";

/// Sets what depends on where the other end of a TCP socket is.
pub(super) fn suit(socket: &SockRef<'_>, peer: IpAddr) {
    if peer.to_canonical().is_loopback() {
        // With the default it works as well.
        let _ = socket.set_tcp_congestion(LOOPBACK_CONGESTION);
    }
}

/// Sets what `purpose` asks for on a TCP socket. On a listener it is for the connections to come: each begins as a copy of its listener, so that
/// accepting one takes no further system call. Before it listens, or the first are without.
///
/// # Errors
/// The kernel's, for a socket that is none of TCP.
pub fn set(socket: &SockRef<'_>, purpose: Purpose) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    match purpose {
        Purpose::Flow => socket.set_keepalive(true),
        Purpose::Tunnel => {
            socket.set_tcp_notsent_lowat(TUNNEL_NOTSENT_BYTES)?;
            socket.set_tcp_keepalive(
                &TcpKeepalive::new()
                    .with_time(TUNNEL_KEEPALIVE_IDLE)
                    .with_interval(TUNNEL_KEEPALIVE_INTERVAL)
                    .with_retries(TUNNEL_KEEPALIVE_PROBES),
            )
        }
    }
}

/// A socket that is ready to be connected to the address it comes with.
pub(super) fn for_connect(to: SocketAddr, from: Option<IpAddr>, purpose: Purpose) -> io::Result<(OwnedFd, SockAddr)> {
    // An IPv4 address in IPv6 spelling is dialled as what it is, so that an IPv4 source fits it.
    let to = if to.ip().to_canonical().is_ipv4() { SocketAddr::new(to.ip().to_canonical(), to.port()) } else { to };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    set(&SockRef::from(&socket), purpose)?;
    suit(&SockRef::from(&socket), to.ip());
    if let Some(from) = from.map(|from| from.to_canonical()).filter(|from| !from.is_unspecified()) {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        // The port is chosen at connect, for the pair of addresses, and not at bind, where there are 28,000 for all destinations.
        set_bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    Ok((socket.into(), to.into()))
}

/// Closes a socket. `reset`: with RST and without sending what is unsent.
pub(super) fn close(descriptor: OwnedFd, reset: bool) {
    if reset {
        // Fails only where there is nothing to reset.
        let _ = SockRef::from(&descriptor).set_linger(Some(Duration::ZERO));
    }
    drop(descriptor);
}

#[expect(unsafe_code, reason = "socket2 has no IP_BIND_ADDRESS_NO_PORT")]
fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the option value is an int that lives through the call, and its length is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source_and_target(to: &str, from: &str) -> Result<(IpAddr, IpAddr), Option<i32>> {
        let made = for_connect(SocketAddr::new(to.parse().unwrap(), 9), Some(from.parse().unwrap()), Purpose::Flow);
        let (socket, to) = made.map_err(|error| error.raw_os_error())?;
        let local = Socket::from(socket).local_addr().unwrap().as_socket().unwrap();
        assert_eq!(local.port(), 0, "the port is left to connect");
        Ok((local.ip(), to.as_socket().unwrap().ip()))
    }

    #[test]
    fn a_source_of_either_spelling_fits_an_ipv4_target_of_either_spelling() {
        let plain: IpAddr = "127.0.0.2".parse().unwrap();
        let target: IpAddr = "127.0.0.1".parse().unwrap();
        for to in ["127.0.0.1", "::ffff:127.0.0.1"] {
            for from in ["127.0.0.2", "::ffff:127.0.0.2"] {
                assert_eq!(source_and_target(to, from), Ok((plain, target)), "{from} to {to}");
            }
        }
    }

    #[test]
    fn what_stays_on_the_host_is_not_paced_and_what_leaves_it_is_as_the_host_wants_it() {
        let congestion = |to: &str| {
            let made = for_connect(SocketAddr::new(to.parse().unwrap(), 9), None, Purpose::Tunnel).unwrap();
            let name = Socket::from(made.0).tcp_congestion().unwrap();
            name.split(|&byte| byte == 0).next().unwrap().to_vec()
        };
        let default = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().tcp_congestion().unwrap();
        let default = default.split(|&byte| byte == 0).next().unwrap();
        for to in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(congestion(to), LOOPBACK_CONGESTION, "{to}");
        }
        assert_eq!(congestion("192.0.2.1"), default);
    }

    #[test]
    fn a_source_of_the_other_family_is_refused_and_none_is_made_up() {
        assert_eq!(source_and_target("::1", "127.0.0.2"), Err(Some(libc::EAFNOSUPPORT)));
        assert_eq!(source_and_target("127.0.0.1", "::1"), Err(Some(libc::EAFNOSUPPORT)));
    }
}
