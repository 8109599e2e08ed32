//! How sockets come to be: accepts, connects, their options and addresses.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};

use socket2::{SockRef, Socket};
use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::io::{Errno, Kind, Payload, Purpose};
use zhwkprox::shard::options;

use super::support::{Rig, listener, read_to_end, sent};

#[test]
fn a_connection_is_made_accepted_and_carries_bytes_with_both_ends_in_the_ring() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let listener = rig.adopt(ours);
    let accepted = rig.accept(listener);
    let connected = rig.connect(address, None, Purpose::Tunnel);
    assert_eq!(rig.wait(Kind::Connect, connected).result, Ok(0));
    let done = rig.wait(Kind::Accept, accepted);
    assert_eq!(done.result, Ok(0));
    let Payload::Accepted(Some(peer)) = done.payload else { panic!("{:?}", done.payload) };
    rig.send(connected, Chunk::copy_of(b"hello"), true);
    assert_eq!(rig.read_exactly(accepted, 5), b"hello");
    assert_eq!(sent(rig.wait(Kind::Send, connected)).0, Ok(5));
    let connected = Socket::from(rig.ring.detach(connected));
    assert_eq!(connected.local_addr().unwrap().as_socket(), Some(peer));
}

#[test]
fn a_connection_that_is_reset_at_once_was_made_all_the_same() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let other = std::thread::spawn(move || {
        for _ in 0..200 {
            let (stream, _) = ours.accept().unwrap();
            SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    });
    for _ in 0..200 {
        let connected = rig.connect(address, None, Purpose::Flow);
        let connect = rig.wait(Kind::Connect, connected).result;
        rig.receive(connected);
        let receive = rig.wait(Kind::Receive, connected).result;
        // The reset is told once, by the one or by the other.
        assert!(matches!((connect, receive), (Ok(0), Err(Errno(libc::ECONNRESET))) | (Ok(1), Ok(0))), "{connect:?}, {receive:?}");
        rig.close(connected, false);
    }
    other.join().unwrap();
}

#[test]
fn a_connections_own_address_is_what_its_peer_sees_and_other_sockets_have_none() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let connected = rig.connect(address, None, Purpose::Flow);
    assert_eq!(rig.wait(Kind::Connect, connected).result, Ok(0));
    let (_stream, peer) = ours.accept().unwrap();
    assert_eq!(rig.ring.local_address(connected), Some(peer));
    let (unix, _other) = rig.unix();
    assert_eq!(rig.ring.local_address(unix), None);
    rig.close(connected, false);
    assert_eq!(rig.ring.local_address(connected), None);
}

#[test]
fn tunnels_have_their_options_and_flows_theirs_whichever_end_made_them() {
    let mut rig = Rig::new(8);
    for purpose in [Purpose::Tunnel, Purpose::Flow] {
        let (ours, address) = listener();
        options::set(&SockRef::from(&ours), purpose).unwrap();
        let listener = rig.adopt(ours);
        let accepted = rig.accept(listener);
        let connected = rig.connect(address, None, purpose);
        rig.wait(Kind::Connect, connected);
        rig.wait(Kind::Accept, accepted);
        for id in [accepted, connected] {
            let socket = Socket::from(rig.ring.detach(id));
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert!(!socket.nonblocking().unwrap());
            let seconds = socket.tcp_keepalive_time().unwrap().as_secs();
            let timeout = socket.tcp_user_timeout().unwrap();
            assert!(timeout.is_none_or(|timeout| timeout.is_zero()), "a peer that does not read would cost its tunnel");
            match purpose {
                Purpose::Tunnel => {
                    assert_eq!(seconds, 15);
                    assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 5);
                    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
                    assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 << 10);
                }
                Purpose::Flow => assert_ne!(seconds, 15, "the system's own"),
            }
        }
    }
}

#[test]
fn peers_of_all_families_are_told_apart() {
    let mut rig = Rig::new(8);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socks");
    let listening = rig.adopt(UnixListener::bind(&path).unwrap());
    let accepted = rig.accept(listening);
    let client = UnixStream::connect(&path).unwrap();
    let done = rig.wait(Kind::Accept, accepted);
    assert!(matches!((done.result, &done.payload), (Ok(0), Payload::Accepted(None))), "{done:?}");
    rig.send(accepted, Chunk::copy_of(b"x"), true);
    rig.wait(Kind::Send, accepted);
    rig.close(accepted, false);
    assert_eq!(read_to_end(client), b"x");

    let six = TcpListener::bind("[::1]:0").unwrap();
    let address = six.local_addr().unwrap();
    let listening = rig.adopt(six);
    let accepted = rig.accept(listening);
    let connected = rig.connect(address, None, Purpose::Flow);
    rig.wait(Kind::Connect, connected);
    let done = rig.wait(Kind::Accept, accepted);
    let Payload::Accepted(Some(peer)) = done.payload else { panic!("{:?}", done.payload) };
    assert_eq!(peer.ip(), IpAddr::from(std::net::Ipv6Addr::LOCALHOST));
}

#[test]
fn a_source_address_of_either_spelling_is_used_for_a_target_of_either_spelling() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let listener = rig.adopt(ours);
    let source: IpAddr = "127.0.0.2".parse().unwrap();
    let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), address.port());
    for (to, from) in [(address, "127.0.0.2"), (mapped, "127.0.0.2"), (address, "::ffff:127.0.0.2"), (mapped, "::ffff:127.0.0.2")] {
        let accepted = rig.accept(listener);
        let connected = rig.connect(to, Some(from), Purpose::Flow);
        assert_eq!(rig.wait(Kind::Connect, connected).result, Ok(0), "{from} to {to}");
        let Payload::Accepted(Some(peer)) = rig.wait(Kind::Accept, accepted).payload else { panic!() };
        assert_eq!(peer.ip(), source, "{from} to {to}");
    }
}

#[test]
fn a_source_port_serves_many_destinations_because_it_is_chosen_at_connect() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let connected = rig.connect(address, Some("127.0.0.2"), Purpose::Flow);
    rig.wait(Kind::Connect, connected);
    let socket = Socket::from(rig.ring.detach(connected));
    assert_ne!(socket.local_addr().unwrap().as_socket().unwrap().port(), 0);
    drop(ours);
}
