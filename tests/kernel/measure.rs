//! What a hop costs in CPU time of the ring's thread: `cargo test --release --test kernel -- --ignored --nocapture measure`.
//! Compare numbers of one run only; rounds of all variants are interleaved, and medians printed.
#![allow(clippy::disallowed_methods, reason = "measures")]
#![expect(unsafe_code, reason = "reads the thread's CPU clock")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cipher::{KeyIvInit, StreamCipher};
use zhwkprox::shard::affinity;
use zhwkprox::shard::io::{Errno, Io, Kind, Payload, SocketId};
use zhwkprox::shard::ring::Sizes;

use crate::ring::support::{Rig, tcp_pair};

type Cipher = ctr::Ctr128BE<aes::Aes128>;

const ROUNDS: usize = 21;
const RUNS_FOR: Duration = Duration::from_millis(500);
const SLOTS: usize = 256;

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a structure that lives through the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Takes what comes on the even sockets, enciphers it in place, and sends it on the odd ones, until told to stop. `out_of`: the socket
/// that bytes from a socket leave by. Gives CPU seconds.
fn relay(sizes: Sizes, ends: Vec<TcpStream>, out_of: fn(SocketId) -> SocketId, in_of: fn(SocketId) -> SocketId, stop: &AtomicBool) -> f64 {
    affinity::pin_to(0).unwrap();
    let mut rig = Rig::with_sizes(SLOTS, sizes);
    let sockets: Vec<_> = ends.into_iter().map(|end| rig.adopt(end)).collect();
    let mut cipher = Cipher::new(&[7; 16].into(), &[9; 16].into());
    for &socket in sockets.iter().filter(|&&socket| in_of(out_of(socket)) == socket) {
        rig.receive(socket);
    }
    let before = cpu_seconds();
    let mut done = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        rig.ring.turn(Some(Duration::from_millis(50)), &mut done).unwrap();
        for done in done.drain(..) {
            let socket = done.token.socket();
            match (done.token.kind().unwrap(), done.result, done.payload) {
                (Kind::Receive, Ok(count @ 1..), Payload::Received(slot)) => {
                    let mut chunk = slot.received(count as usize);
                    cipher.apply_keystream(chunk.as_mut_slice().unwrap());
                    rig.send(out_of(socket), chunk, true);
                }
                (Kind::Send, Ok(_), _) => rig.receive(in_of(socket)),
                (Kind::Receive, Ok(0) | Err(Errno(libc::ECONNRESET)), _) => return cpu_seconds() - before,
                (kind, result, payload) => panic!("{kind:?} on {socket:?}: {result:?}, {payload:?}"),
            }
        }
    }
    cpu_seconds() - before
}

/// CPU seconds per GB of 16 flows at full speed, each in by one socket and out by another.
fn bulk(sizes: Sizes) -> f64 {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..32 {
        let (one, other) = tcp_pair();
        other.set_nonblocking(true).unwrap();
        ours.push(one);
        theirs.push(other);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let moved = Arc::new(AtomicU64::new(0));
    let generator = thread::spawn({
        let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
        move || {
            affinity::pin_to(1).unwrap();
            let mut buffer = vec![1; 256 << 10];
            while !stop.load(Ordering::Relaxed) {
                for (index, stream) in theirs.iter_mut().enumerate() {
                    let result = if index.is_multiple_of(2) { stream.write(&buffer) } else { stream.read(&mut buffer) };
                    match result {
                        Ok(count) if !index.is_multiple_of(2) => _ = moved.fetch_add(count as u64, Ordering::Relaxed),
                        Ok(_) => {}
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            }
            theirs
        }
    });
    let relaying = Arc::new(AtomicBool::new(false));
    let relay = thread::spawn({
        let relaying = Arc::clone(&relaying);
        move || relay(sizes, ours, |socket| SocketId(socket.0 | 1), |socket| SocketId(socket.0 & !1), &relaying)
    });
    thread::sleep(RUNS_FOR);
    stop.store(true, Ordering::Relaxed);
    let streams = generator.join().unwrap();
    relaying.store(true, Ordering::Relaxed);
    let cpu = relay.join().unwrap();
    drop(streams);
    cpu / (moved.load(Ordering::Relaxed) as f64 / 1e9)
}

/// CPU microseconds per round trip of 64 bytes on 64 connections, all of which are under way at once.
fn echo(sizes: Sizes) -> f64 {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..64 {
        let (one, other) = tcp_pair();
        ours.push(one);
        theirs.push(other);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let generator = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            affinity::pin_to(1).unwrap();
            let (mut count, mut buffer) = (0_u64, [1; 64]);
            while !stop.load(Ordering::Relaxed) {
                for stream in &mut theirs {
                    stream.write_all(&buffer).unwrap();
                }
                for stream in &mut theirs {
                    stream.read_exact(&mut buffer).unwrap();
                    count += 1;
                }
            }
            (theirs, count)
        }
    });
    let started = Instant::now();
    let relaying = Arc::new(AtomicBool::new(false));
    let relay = thread::spawn({
        let relaying = Arc::clone(&relaying);
        move || relay(sizes, ours, |socket| socket, |socket| socket, &relaying)
    });
    thread::sleep(RUNS_FOR.saturating_sub(started.elapsed()));
    stop.store(true, Ordering::Relaxed);
    let (streams, count) = generator.join().unwrap();
    relaying.store(true, Ordering::Relaxed);
    let cpu = relay.join().unwrap();
    drop(streams);
    cpu * 1e6 / count as f64
}

/// Median, and the lower quartile, which a noisy neighbour touches less.
fn middle(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.3} (lower quartile {:.3})", values[values.len() / 2], values[values.len() / 4])
}

#[test]
#[ignore = "measures for a minute, needs two quiet cores and --release"]
fn slots_posted() {
    if cfg!(debug_assertions) {
        println!("a debug build: the numbers mean nothing");
    }
    let variants = [16, 32, 64];
    let mut numbers = vec![(Vec::new(), Vec::new()); variants.len()];
    for _ in 0..ROUNDS {
        for (variant, (bulks, echoes)) in variants.iter().zip(&mut numbers) {
            let sizes = Sizes { slots: *variant, ..Sizes::default() };
            bulks.push(bulk(sizes));
            echoes.push(echo(sizes));
        }
    }
    for (variant, (bulks, echoes)) in variants.iter().zip(numbers) {
        println!("{variant:>3} slots posted: {} cpu-s/GB, {} µs per round trip", middle(bulks), middle(echoes));
    }
}
