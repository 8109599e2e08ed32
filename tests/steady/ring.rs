//! The ring on real sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use zhwkprox::limits::SLOT_BYTES;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::inbox::Inbox;
use zhwkprox::shard::io::{Done, Io, Kind, Op, Payload, SocketId, Token};
use zhwkprox::shard::ring::Ring;

use crate::meter::Meter;

const WARM_UP: usize = 100;
const ROUNDS: usize = 1000;

#[test]
fn a_message_that_is_sent_back_allocates_nothing() {
    let (inbox, _postbox) = Inbox::new().unwrap();
    let arena = Arena::new(64 * SLOT_BYTES).unwrap();
    let mut ring = Ring::new(&arena, inbox.bell()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = SocketId(0);
    ring.adopt(socket, listener.accept().unwrap().0.into());
    let meter = Meter::new();
    let mut done = Vec::new();
    for message in [vec![7; 64], vec![7; 60_000]] {
        let mut back = vec![0; message.len()];
        for round in 0..WARM_UP + ROUNDS {
            if round == WARM_UP {
                meter.take();
            }
            peer.write_all(&message).unwrap();
            meter.measure(|| send_back(&mut ring, socket, message.len(), &mut done));
            peer.read_exact(&mut back).unwrap();
        }
        assert_eq!(back, message);
        assert_eq!(meter.take(), 0, "{ROUNDS} messages of {} bytes", message.len());
    }
    ring.submit(Op::Close { socket, reset: false });
}

/// Receives and sends until so many bytes have gone.
fn send_back(ring: &mut Ring, socket: SocketId, bytes: usize, done: &mut Vec<Done>) {
    let receive = || Op::Receive { socket, max: u32::MAX, token: Token::new(Kind::Receive, 0, socket) };
    let mut left = bytes;
    ring.submit(receive());
    while left > 0 {
        ring.turn(None, done).unwrap();
        for done in done.drain(..) {
            match (done.result, done.payload) {
                (Ok(count), Payload::Received(slot)) => {
                    let chunk = slot.received(count as usize);
                    ring.submit(Op::Send { socket, chunk, wait: true, token: Token::new(Kind::Send, 0, socket) });
                }
                (Ok(count), Payload::Sent(_)) => {
                    left -= count as usize;
                    if left > 0 {
                        ring.submit(receive());
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
