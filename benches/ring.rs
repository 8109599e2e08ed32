//! The hop, on the real ring: bytes are received into a slot, enciphered where they lie, and sent from there, through `shard::ring::Ring`
//! alone. Nothing of the roles takes part; beside `benches/turn.rs` it says what the kernel costs and what we do.
//!
//! One thread plays all parts, so nothing sleeps and no other core takes part. Only the ring's turns are counted, with what the kernel
//! does in them: on loopback that is also the delivery to the peer. What the peers do, writing and reading, is not.

#[path = "support/mod.rs"]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use criterion::{BenchmarkId, Throughput};
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::limits::BUFFER_MEMORY;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::inbox::Inbox;
use zhwkprox::shard::io::{Done, Io, Kind, Op, Payload, SocketId, Token};
use zhwkprox::shard::ring::Ring;

use crate::support::meter::Meter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections at once, and bytes on each: a lone keystroke, a busy shard, one download, several.
const LOADS: [(usize, usize); 4] = [(1, 64), (64, 64), (1, 65_536), (16, 65_536)];

fn main() {
    let mut criterion = support::criterion();
    let mut group = criterion.benchmark_group("ring");
    let kinds: [(&str, Pair); 2] = [("tcp", tcp), ("socketpair", unix)];
    for (kind, pair) in kinds {
        for (flows, bytes) in LOADS {
            let mut rig = Rig::new(flows, pair);
            group.throughput(Throughput::Bytes((flows * bytes) as u64));
            group.bench_function(BenchmarkId::new(kind, format!("{flows} x {bytes}")), |bencher| {
                bencher.iter_custom(|rounds| {
                    rig.meter.take();
                    (0..rounds).for_each(|_| rig.round(bytes));
                    rig.meter.take()
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

/// The other end of a connection. It does not wait.
trait Peer: Read + Write {}
impl<T: Read + Write> Peer for T {}

/// Makes a connection: the ring's end and the peer's.
type Pair = fn() -> (OwnedFd, Box<dyn Peer>);

fn tcp() -> (OwnedFd, Box<dyn Peer>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let theirs = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("the listener is there");
    let (ours, _) = listener.accept().expect("a connection waits");
    for end in [&ours, &theirs] {
        end.set_nodelay(true).expect("TCP has it");
    }
    theirs.set_nonblocking(true).expect("a socket can be");
    (ours.into(), Box::new(theirs))
}

fn unix() -> (OwnedFd, Box<dyn Peer>) {
    let (ours, theirs) = UnixStream::pair().expect("descriptors are free");
    theirs.set_nonblocking(true).expect("a socket can be");
    (ours.into(), Box::new(theirs))
}

struct Rig {
    ring: Ring,
    peers: Vec<Box<dyn Peer>>,
    cipher: MessageCipher,
    meter: Meter,
    done: Vec<Done>,
    bytes: Vec<u8>,
    _inbox: Inbox,
}

impl Rig {
    fn new(flows: usize, pair: Pair) -> Self {
        let arena = Arena::new(BUFFER_MEMORY).expect("memory for the arena");
        let (inbox, _) = Inbox::new().expect("an eventfd");
        let mut ring = Ring::new(&arena, inbox.bell()).expect("a kernel with io_uring");
        let mut peers = Vec::new();
        for socket in (0..).map(SocketId).take(flows) {
            let (ours, theirs) = pair();
            ring.adopt(socket, ours);
            ring.submit(receive(socket));
            peers.push(theirs);
        }
        let cipher = MessageCipher::new(Method::Aes128Ctr, &[7; 16], [9; 16]).expect("the key fits");
        let mut rig = Self { ring, peers, cipher, meter: Meter::new(), done: Vec::new(), bytes: vec![0; 1 << 18], _inbox: inbox };
        rig.turn();
        rig
    }

    /// Every peer sends so many bytes and gets them back, enciphered.
    fn round(&mut self, bytes: usize) {
        let mut left: Vec<(usize, usize)> = vec![(bytes, bytes); self.peers.len()];
        loop {
            for (peer, (to_send, _)) in self.peers.iter_mut().zip(&mut left).filter(|(_, (to_send, _))| *to_send > 0) {
                *to_send -= now(peer.write(&self.bytes[..*to_send]));
            }
            self.turn();
            for (peer, (_, to_come)) in self.peers.iter_mut().zip(&mut left).filter(|(_, (_, to_come))| *to_come > 0) {
                *to_come -= now(peer.read(&mut self.bytes));
            }
            if left.iter().all(|(_, to_come)| *to_come == 0) {
                return;
            }
        }
    }

    /// One turn, counted: what came is enciphered and queued to be sent, and what was sent makes room for more.
    fn turn(&mut self) {
        self.meter.start();
        self.ring.turn(Some(Duration::ZERO), &mut self.done).expect("the ring works");
        for done in self.done.drain(..) {
            let socket = done.token.socket();
            match (done.token.kind(), done.result, done.payload) {
                (Some(Kind::Receive), Ok(count @ 1..), Payload::Received(slot)) => {
                    let mut chunk = slot.received(count as usize);
                    self.cipher.begin_encrypt().apply(chunk.as_mut_slice().expect("it is the only handle"));
                    self.ring.submit(Op::Send { socket, chunk, wait: true, token: Token::new(Kind::Send, 0, socket) });
                }
                (Some(Kind::Send), Ok(_), _) => self.ring.submit(receive(socket)),
                other => panic!("on {socket:?}: {other:?}"),
            }
        }
        self.meter.stop();
    }
}

fn receive(socket: SocketId) -> Op {
    Op::Receive { socket, max: u32::MAX, token: Token::new(Kind::Receive, 0, socket) }
}

/// What could be done without waiting.
fn now(result: std::io::Result<usize>) -> usize {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        other => other.expect("the connection lives"),
    }
}
