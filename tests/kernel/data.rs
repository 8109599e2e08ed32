//! Bytes in, bytes out.

use std::io::Read;
use std::thread;

use zhwkprox::limits::RECORD_BYTES_MAX;
use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::io::{Errno, Kind, Op, Payload};

use super::support::{Rig, pattern, read_to_end, received, sent, token, write_all};

#[test]
fn bytes_are_received_changed_in_place_and_sent_from_the_same_slot() {
    let mut rig = Rig::new(8);
    let (socket, mut peer) = rig.tcp();
    rig.receive(socket);
    write_all(&peer, b"ping");
    let mut chunk = received(rig.wait(Kind::Receive, socket));
    assert_eq!(chunk.as_slice(), b"ping");
    assert!(chunk.holds_slot());
    chunk.as_mut_slice().unwrap()[1] = b'o';
    chunk.prepend(b"<header>");
    rig.send(socket, chunk, true);
    let (count, chunk) = sent(rig.wait(Kind::Send, socket));
    assert_eq!(count, Ok(12));
    assert_eq!(chunk.as_slice(), b"<header>pong");
    let mut answer = [0; 12];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"<header>pong");
    drop(chunk);
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn a_waiting_receive_holds_no_slot_until_bytes_come() {
    let mut rig = Rig::new(8);
    let pairs: Vec<_> = (0..100).map(|_| rig.tcp()).collect();
    for (socket, _) in &pairs {
        rig.receive(*socket);
    }
    assert!(rig.poll().is_empty());
    assert_eq!((rig.slots_in_use(), rig.ring.slots_available()), (0, 8));
    write_all(&pairs[41].1, b"x");
    let chunk = received(rig.wait(Kind::Receive, pairs[41].0));
    assert_eq!((rig.slots_in_use(), rig.ring.slots_available()), (1, 7));
    drop(chunk);
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn a_receive_takes_no_more_than_it_was_told_and_than_a_slot_holds() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let bytes = pattern(1, 0, 300_000);
    let writer = thread::spawn({
        let bytes = bytes.clone();
        move || write_all(&peer, &bytes)
    });
    rig.ring.submit(Op::Receive { socket, max: 10, token: token(Kind::Receive, socket) });
    let first = received(rig.wait(Kind::Receive, socket));
    assert_eq!(first.as_slice(), &bytes[..10]);
    let mut all = first.as_slice().to_vec();
    while all.len() < bytes.len() {
        rig.receive(socket);
        let chunk = received(rig.wait(Kind::Receive, socket));
        assert!(chunk.len() <= RECORD_BYTES_MAX);
        all.extend_from_slice(chunk.as_slice());
    }
    assert!(all == bytes);
    writer.join().unwrap();
}

#[test]
fn the_end_of_the_peers_bytes_is_a_receive_of_none_without_a_slot() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    drop(peer);
    let done = rig.wait(Kind::Receive, socket);
    assert_eq!(done.result, Ok(0));
    assert!(matches!(done.payload, Payload::None), "{:?}", done.payload);
    assert_eq!(rig.slots_in_use(), 0);
    rig.close(socket, false);
}

#[test]
fn a_send_that_waits_is_whole_however_slow_the_reader() {
    let mut rig = Rig::new(8);
    let (socket, mut peer) = rig.tcp();
    let bytes = pattern(2, 0, 16 << 20);
    rig.send(socket, Chunk::copy_of(&bytes), true);
    // More than both socket buffers take, so it cannot be over before the peer reads.
    assert!(rig.poll().is_empty());
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; 16 << 20];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    });
    let (count, chunk) = sent(rig.wait(Kind::Send, socket));
    assert_eq!(count, Ok(16 << 20));
    assert_eq!(chunk.len(), 16 << 20);
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn a_send_that_does_not_wait_reports_what_fitted_and_gives_the_chunk_back() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let bytes = pattern(3, 0, 16 << 20);
    rig.send(socket, Chunk::copy_of(&bytes), false);
    let (count, chunk) = sent(rig.wait(Kind::Send, socket));
    let count = count.unwrap() as usize;
    assert!(0 < count && count < bytes.len(), "{count} bytes fitted");
    assert!(chunk.as_slice() == bytes, "the chunk comes back unchanged");
    // Until the buffers are full: then nothing is taken, and the send does not wait either.
    let mut taken = count;
    let error = loop {
        rig.send(socket, chunk.part(taken, bytes.len()), false);
        match sent(rig.wait(Kind::Send, socket)) {
            (Ok(more), _) => taken += more as usize,
            (Err(error), rest) => {
                assert_eq!(rest.len(), bytes.len() - taken);
                break error;
            }
        }
    };
    assert_eq!(error, Errno(libc::EAGAIN));
    rig.close(socket, false);
    assert!(read_to_end(&peer) == bytes[..taken], "what was reported as sent arrives, and nothing else");
}

#[test]
fn sends_one_after_the_other_arrive_in_that_order_and_the_shutdown_behind_them() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let reader = thread::spawn(move || (read_to_end(&peer), peer));
    let mut expected = Vec::new();
    for piece in 0..200 {
        let bytes = pattern(piece, 0, 1 + (piece as usize * 7919) % 60_000);
        expected.extend_from_slice(&bytes);
        rig.send(socket, Chunk::copy_of(&bytes), true);
        assert_eq!(sent(rig.wait(Kind::Send, socket)).0, Ok(bytes.len() as u32));
    }
    rig.ring.submit(Op::Shutdown { socket });
    let (bytes, peer) = reader.join().unwrap();
    assert!(bytes == expected);
    // The other direction is still open.
    rig.receive(socket);
    write_all(&peer, b"late");
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"late");
}

#[test]
fn unix_sockets_carry_bytes_too() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.unix();
    rig.receive(socket);
    write_all(&peer, b"hello");
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"hello");
}

#[test]
fn a_socket_that_was_made_non_blocking_elsewhere_waits_for_bytes_all_the_same() {
    let mut rig = Rig::new(8);
    let (ours, peer) = super::support::tcp_pair();
    ours.set_nonblocking(true).unwrap();
    let socket = rig.adopt(ours);
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    write_all(&peer, b"x");
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"x");
}
