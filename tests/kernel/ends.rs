//! Cancelling, closing, resetting, dropping.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::engine::Engine;
use zhwkprox::shard::io::{Errno, Kind, Payload, Purpose};

use super::support::{Rig, WATCHDOG, engine, listener, pattern, read_to_end, received, sent, write_all};

const CANCELLED: Errno = Errno(libc::ECANCELED);

#[test]
fn a_cancel_yields_every_completion_and_the_close_behind_it_sends_fin() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let bytes = pattern(4, 0, 16 << 20);
    rig.receive(socket);
    rig.send(socket, Chunk::copy_of(&bytes), true);
    assert!(rig.poll().is_empty(), "both wait for the peer");
    rig.cancel(socket);
    let receive = rig.wait(Kind::Receive, socket);
    assert_eq!(receive.result, Err(CANCELLED));
    let (count, chunk) = sent(rig.wait(Kind::Send, socket));
    let count = count.expect("a send that is under way reports what it has done") as usize;
    assert!(0 < count && count < bytes.len());
    assert_eq!(chunk.len(), bytes.len());
    rig.close(socket, false);
    assert!(read_to_end(&peer) == bytes[..count], "FIN comes behind what was sent");
}

#[test]
fn what_was_submitted_before_a_cancel_is_sent_as_far_as_it_fits() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    rig.send(socket, Chunk::copy_of(b"last words"), true);
    rig.cancel(socket);
    assert_eq!(sent(rig.wait(Kind::Send, socket)).0, Ok(10));
    assert_eq!(rig.wait(Kind::Receive, socket).result, Err(CANCELLED));
    rig.close(socket, false);
    assert_eq!(read_to_end(&peer), b"last words");
}

#[test]
fn a_close_with_an_idle_receive_just_cancelled_sends_fin_at_once() {
    let mut rig = Rig::new(8);
    let (socket, mut peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    rig.cancel(socket);
    assert_eq!(rig.wait(Kind::Receive, socket).result, Err(CANCELLED));
    rig.close(socket, false);
    // No further turn: the descriptor was the last reference.
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_close_with_reset_sends_rst_and_throws_away_what_is_unsent() {
    let mut rig = Rig::new(8);
    let (socket, mut peer) = rig.tcp();
    let (idle, mut idle_peer) = rig.tcp();
    rig.send(socket, Chunk::copy_of(&pattern(5, 0, 16 << 20)), false);
    rig.wait(Kind::Send, socket);
    rig.close(socket, true);
    rig.close(idle, true);
    assert_eq!(idle_peer.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut bytes = Vec::new();
    assert_eq!(peer.read_to_end(&mut bytes).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_peers_reset_is_told_by_the_receive() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    assert_eq!(rig.wait(Kind::Receive, socket).result, Err(Errno(libc::ECONNRESET)));
    // And a send to it neither hangs nor raises a signal.
    rig.send(socket, Chunk::copy_of(b"late"), true);
    assert_eq!(sent(rig.wait(Kind::Send, socket)).0, Err(Errno(libc::EPIPE)));
    rig.close(socket, false);
}

#[test]
fn a_peers_reset_under_a_waiting_send_is_told_by_the_send_or_the_receive() {
    let mut rig = Rig::new(8);
    for _ in 0..20 {
        let (socket, peer) = rig.tcp();
        rig.receive(socket);
        rig.send(socket, Chunk::copy_of(&pattern(8, 0, 16 << 20)), true);
        assert!(rig.poll().is_empty());
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        let receive = rig.wait(Kind::Receive, socket).result;
        let (send, chunk) = sent(rig.wait(Kind::Send, socket));
        // The kernel tells it once. A send that waited and comes back short is such a telling, and the receive then looks like FIN.
        let told_by_send = send.is_err() || send.is_ok_and(|count| (count as usize) < chunk.len());
        assert!(told_by_send || receive.is_err(), "send {send:?}, receive {receive:?}");
        rig.close(socket, false);
    }
}

#[test]
fn a_cancelled_listener_gives_all_its_accepts_back_and_works_on() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let listener = rig.adopt(ours);
    let waiting: Vec<_> = (0..4).map(|_| rig.accept(listener)).collect();
    assert!(rig.poll().is_empty());
    rig.cancel(waiting[2]);
    assert_eq!(rig.wait(Kind::Accept, waiting[2]).result, Err(CANCELLED));
    assert!(rig.poll().is_empty(), "one accept was named and the others wait on");
    rig.cancel(listener);
    for into in [waiting[0], waiting[1], waiting[3]] {
        assert_eq!(rig.wait(Kind::Accept, into).result, Err(CANCELLED));
    }
    let into = rig.accept(listener);
    let _client = TcpStream::connect(address).unwrap();
    assert_eq!(rig.wait(Kind::Accept, into).result, Ok(0));
    rig.close(into, false);
    rig.close(listener, false);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_connect_that_gets_no_answer_is_cancelled_and_its_id_is_free_again() {
    let mut rig = Rig::new(8);
    // A backlog that is full answers no SYN.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _in_the_way = TcpStream::connect(address).unwrap();
    let socket = rig.connect(address, None, Purpose::Flow);
    let other = rig.connect(address, None, Purpose::Flow);
    assert!(rig.poll().is_empty());
    rig.cancel(socket);
    assert_eq!(rig.wait(Kind::Connect, socket).result, Err(CANCELLED));
    let (ours, mut peer) = super::support::tcp_pair();
    rig.ring.adopt(socket, ours.into());
    rig.close(socket, false);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    rig.cancel(other);
    rig.wait(Kind::Connect, other);
}

#[test]
fn a_cancel_of_nothing_is_nothing() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let unknown = rig.id();
    rig.cancel(socket);
    rig.cancel(unknown);
    assert!(rig.poll().is_empty());
    rig.receive(socket);
    write_all(&peer, b"x");
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"x");
}

#[test]
fn a_dropped_ring_gives_back_slots_and_closes_descriptors_whatever_was_outstanding() {
    let mut rig = Rig::new(8);
    let (socket, mut peer) = rig.tcp();
    let (ours, address) = listener();
    let listening = rig.adopt(ours);
    rig.accept(listening);
    rig.receive(socket);
    let (full, full_peer) = rig.tcp();
    rig.send(full, Chunk::copy_of(&pattern(6, 0, 16 << 20)), true);
    assert!(rig.poll().is_empty());
    // Never handed over to the kernel before the drop.
    let (unsubmitted, _unsubmitted_peer) = rig.tcp();
    rig.receive(unsubmitted);
    let arena = rig.arena.clone();
    assert!(engine() == Engine::TokioUring || arena.free() < arena.slots(), "some are posted");
    drop(rig);
    assert_eq!(arena.free(), arena.slots());
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    assert!(!read_to_end(&full_peer).is_empty());
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_dropped_ring_closes_a_connection_that_was_accepted_but_not_reported() {
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let listener = rig.adopt(ours);
    rig.accept(listener);
    assert!(rig.poll().is_empty());
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(WATCHDOG)).unwrap();
    drop(rig);
    match client.read(&mut [0; 8]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the connection is still open: {other:?}"),
    }
}

#[test]
fn a_socket_moves_from_one_ring_to_another_on_another_thread_without_losing_a_byte() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    write_all(&peer, b"one");
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"one");
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    rig.cancel(socket);
    assert_eq!(rig.wait(Kind::Receive, socket).result, Err(CANCELLED));
    write_all(&peer, b"two");
    let descriptor = rig.ring.detach(socket);
    let number = descriptor.as_raw_fd();
    let other = std::thread::spawn(move || {
        assert_eq!(descriptor.as_raw_fd(), number);
        let mut rig = Rig::new(8);
        let socket = rig.adopt(descriptor);
        let bytes = rig.read_exactly(socket, 3);
        rig.send(socket, Chunk::copy_of(b"three"), true);
        assert_eq!(sent(rig.wait(Kind::Send, socket)).0, Ok(5));
        rig.close(socket, false);
        bytes
    });
    assert_eq!(other.join().unwrap(), b"two");
    assert_eq!(read_to_end(&peer), b"three");
    // The id is free again in the first.
    let (ours, _peer) = super::support::tcp_pair();
    rig.ring.adopt(socket, ours.into());
}

#[test]
fn an_accept_that_won_against_its_cancel_yields_a_connection_that_can_be_closed() {
    let mut rig = Rig::new(8);
    let (ours, address): (TcpListener, _) = listener();
    let listener = rig.adopt(ours);
    let into = rig.accept(listener);
    assert!(rig.poll().is_empty());
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(WATCHDOG)).unwrap();
    rig.cancel(into);
    let done = rig.wait(Kind::Accept, into);
    match done.result {
        Ok(_) => {
            assert!(matches!(done.payload, Payload::Accepted(Some(_))));
            rig.close(into, false);
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        }
        Err(error) => assert_eq!(error, CANCELLED),
    }
}

#[test]
#[should_panic(expected = "while something is outstanding")]
fn giving_up_a_socket_under_the_kernel_is_noticed_and_the_unwinding_is_safe() {
    let mut rig = Rig::new(8);
    let (socket, _peer) = rig.tcp();
    rig.receive(socket);
    rig.send(socket, Chunk::copy_of(&pattern(7, 0, 16 << 20)), true);
    assert!(rig.poll().is_empty());
    rig.close(socket, false);
}
