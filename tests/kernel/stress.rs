//! Everything at once, for a few seconds.
#![allow(clippy::disallowed_methods, reason = "runs for a time")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use zhwkprox::limits::SLOTS_MIN;
use zhwkprox::shard::io::{Errno, Kind, Payload, SocketId};

use super::support::{Rig, WATCHDOG, listener, pattern};

const CONNECTIONS: usize = 200;
const THREADS: usize = 4;
const RUNS_FOR: Duration = Duration::from_secs(3);

/// Sends pieces of its own pattern on each connection in turn and wants the same back.
fn client(address: std::net::SocketAddr, first: u64) -> u64 {
    let count = CONNECTIONS / THREADS;
    let mut streams: Vec<_> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut offsets = vec![0_u64; count];
    let until = Instant::now() + RUNS_FOR;
    let (mut total, mut round) = (0, first);
    while Instant::now() < until {
        // Several are under way at once, so that slots are short.
        let pieces: Vec<usize> = (0..count as u64)
            .map(|_| {
                round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                1 + (round >> 33) as usize % if round.is_multiple_of(4) { 90_000 } else { 3000 }
            })
            .collect();
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.set_read_timeout(Some(WATCHDOG)).unwrap();
            stream.write_all(&pattern(first + index as u64, offsets[index], pieces[index])).unwrap();
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut back = vec![0; pieces[index]];
            stream.read_exact(&mut back).unwrap();
            assert!(back == pattern(first + index as u64, offsets[index], pieces[index]), "connection {index} got another's bytes");
            offsets[index] += pieces[index] as u64;
            total += pieces[index] as u64;
        }
    }
    for mut stream in streams {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    total
}

#[test]
fn two_hundred_connections_over_four_slots_all_get_their_own_bytes_back() {
    let mut rig = Rig::new(SLOTS_MIN);
    let (ours, address) = listener();
    let listener = rig.adopt(ours);
    let clients: Vec<_> = (0..THREADS).map(|thread| thread::spawn(move || client(address, 1000 * thread as u64))).collect();
    let (mut open, mut accepted, mut parked_ever, mut echoed) = (0, 0, 0_u64, 0_u64);
    let mut parked: VecDeque<SocketId> = VecDeque::new();
    rig.accept(listener);
    let until = Instant::now() + WATCHDOG + RUNS_FOR;
    while accepted < CONNECTIONS || open > 0 {
        assert!(Instant::now() < until, "{open} connections are still open, {} parked", parked.len());
        for done in rig.any() {
            let socket = done.token.socket();
            match (done.token.kind().unwrap(), done.result, done.payload) {
                (Kind::Accept, Ok(_), _) => {
                    (open, accepted) = (open + 1, accepted + 1);
                    rig.receive(socket);
                    if accepted < CONNECTIONS {
                        rig.accept(listener);
                    }
                }
                (Kind::Receive, Ok(count @ 1..), Payload::Received(slot)) => rig.send(socket, slot.received(count as usize), true),
                (Kind::Receive, Ok(0), _) => {
                    rig.close(socket, false);
                    open -= 1;
                }
                (Kind::Receive, Err(Errno(libc::ENOBUFS)), _) => {
                    parked.push_back(socket);
                    parked_ever += 1;
                }
                (Kind::Send, Ok(count), Payload::Sent(chunk)) => {
                    assert_eq!(count as usize, chunk.len());
                    echoed += u64::from(count);
                    rig.receive(socket);
                }
                (kind, result, payload) => panic!("{kind:?} on {socket:?}: {result:?}, {payload:?}"),
            }
        }
        for _ in 0..rig.ring.slots_available().min(parked.len()) {
            let socket = parked.pop_front().unwrap();
            rig.receive(socket);
        }
    }
    let total: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    println!("{total} bytes echoed over {SLOTS_MIN} slots, {parked_ever} receives parked");
    assert_eq!(echoed, total);
    assert!(parked_ever > 0, "slots were never short: the test tests nothing");
    assert_eq!(rig.slots_in_use(), 0);
}
