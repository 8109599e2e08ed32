//! An engine with its arena and inbox on the test's own thread, and helpers that wait for events under a watchdog.
#![allow(clippy::disallowed_methods, reason = "tests have watchdogs")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zhwkprox::limits::SLOT_BYTES;
use zhwkprox::shard::buffers::{Arena, Chunk};
use zhwkprox::shard::engine::{self, Choice, Engine};
use zhwkprox::shard::inbox::{Inbox, Postbox};
use zhwkprox::shard::io::{Done, Errno, Io, Kind, Op, Payload, Purpose, SocketId, Token};
use zhwkprox::shard::ring::{Ring, Sizes};

/// Far above what anything here takes.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(20);
pub(crate) const GENERATION: u32 = 0x00ab_cdef;

/// Which engine these tests are about: each has a module of its own, and all of it is the same text.
pub(crate) fn engine() -> Engine {
    if module_path!().contains("tokio_uring") { Engine::TokioUring } else { Engine::Ring }
}

pub(crate) fn make_engine(arena: &Arena, inbox: &Inbox) -> Box<dyn Io> {
    let (io, chosen) = engine::make(Choice::Only(engine()), arena, inbox.bell()).unwrap();
    assert_eq!((chosen.engine, chosen.instead), (engine(), None));
    io
}

pub(crate) struct Rig<E: Io + ?Sized = dyn Io> {
    pub(crate) ring: Box<E>,
    pub(crate) arena: Arena,
    pub(crate) inbox: Inbox,
    pub(crate) postbox: Postbox,
    waiting: VecDeque<Done>,
    next: u32,
}

impl Rig {
    pub(crate) fn new(slots: usize) -> Self {
        Self::with(slots, make_engine)
    }
}

impl Rig<Ring> {
    /// The first engine, whichever these tests are about.
    pub(crate) fn with_sizes(slots: usize, sizes: Sizes) -> Self {
        Self::with(slots, |arena, inbox| Box::new(Ring::with_sizes(arena, inbox.bell(), sizes).unwrap()))
    }
}

impl<E: Io + ?Sized> Rig<E> {
    fn with(slots: usize, make: impl FnOnce(&Arena, &Inbox) -> Box<E>) -> Self {
        let arena = Arena::new(slots * SLOT_BYTES).unwrap();
        let (inbox, postbox) = Inbox::new().unwrap();
        let ring = make(&arena, &inbox);
        Self { ring, arena, inbox, postbox, waiting: VecDeque::new(), next: 0 }
    }

    pub(crate) fn id(&mut self) -> SocketId {
        self.next += 1;
        SocketId(self.next - 1)
    }

    pub(crate) fn adopt(&mut self, descriptor: impl Into<OwnedFd>) -> SocketId {
        let id = self.id();
        self.ring.adopt(id, descriptor.into());
        id
    }

    /// One end in the ring, the other with the test.
    pub(crate) fn tcp(&mut self) -> (SocketId, TcpStream) {
        let (ours, theirs) = tcp_pair();
        (self.adopt(ours), theirs)
    }

    pub(crate) fn unix(&mut self) -> (SocketId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (self.adopt(ours), theirs)
    }

    pub(crate) fn receive(&mut self, socket: SocketId) {
        self.ring.submit(Op::Receive { socket, max: u32::MAX, token: token(Kind::Receive, socket) });
    }

    pub(crate) fn send(&mut self, socket: SocketId, chunk: Chunk, wait: bool) {
        self.ring.submit(Op::Send { socket, chunk, wait, token: token(Kind::Send, socket) });
    }

    pub(crate) fn accept(&mut self, listener: SocketId) -> SocketId {
        let into = self.id();
        self.ring.submit(Op::Accept { listener, into, token: token(Kind::Accept, into) });
        into
    }

    pub(crate) fn connect(&mut self, to: SocketAddr, from: Option<&str>, purpose: Purpose) -> SocketId {
        let socket = self.id();
        let from = from.map(|from| from.parse().unwrap());
        self.ring.submit(Op::Connect { socket, to, from, purpose, token: token(Kind::Connect, socket) });
        socket
    }

    pub(crate) fn cancel(&mut self, socket: SocketId) {
        self.ring.submit(Op::Cancel { socket });
    }

    pub(crate) fn close(&mut self, socket: SocketId, reset: bool) {
        self.ring.submit(Op::Close { socket, reset });
    }

    /// What one turn that does not sleep yields.
    pub(crate) fn poll(&mut self) -> Vec<Done> {
        let mut done: Vec<Done> = self.waiting.drain(..).collect();
        self.ring.turn(Some(Duration::ZERO), &mut done).unwrap();
        done
    }

    /// One turn that does not sleep; what it yields is kept.
    pub(crate) fn turn(&mut self) {
        let mut done = Vec::new();
        self.ring.turn(Some(Duration::ZERO), &mut done).unwrap();
        self.waiting.extend(done);
    }

    /// What the next turn with anything yields.
    pub(crate) fn any(&mut self) -> Vec<Done> {
        let until = Instant::now() + WATCHDOG;
        let mut done: Vec<Done> = self.waiting.drain(..).collect();
        while done.is_empty() {
            assert!(Instant::now() < until, "nothing came");
            self.ring.turn(Some(WATCHDOG), &mut done).unwrap();
        }
        done
    }

    /// Waits for one completion and keeps the others.
    pub(crate) fn wait(&mut self, kind: Kind, socket: SocketId) -> Done {
        let until = Instant::now() + WATCHDOG;
        loop {
            let wanted = |done: &Done| done.token == token(kind, socket);
            if let Some(place) = self.waiting.iter().position(wanted) {
                return self.waiting.remove(place).unwrap();
            }
            assert!(Instant::now() < until, "no completion of {kind:?} on {socket:?}; there are {:?}", self.waiting);
            let mut done = Vec::new();
            self.ring.turn(Some(WATCHDOG), &mut done).unwrap();
            self.waiting.extend(done);
        }
    }

    pub(crate) fn wait_wake(&mut self) {
        let until = Instant::now() + WATCHDOG;
        let wake = Token::new(Kind::Wake, 0, SocketId(0));
        loop {
            if let Some(place) = self.waiting.iter().position(|done| done.token == wake) {
                self.waiting.remove(place);
                return;
            }
            assert!(Instant::now() < until, "not woken");
            let mut done = Vec::new();
            self.ring.turn(None, &mut done).unwrap();
            self.waiting.extend(done);
        }
    }

    /// Receives until there are `count` bytes.
    pub(crate) fn read_exactly(&mut self, socket: SocketId, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            self.receive(socket);
            let done = self.wait(Kind::Receive, socket);
            bytes.extend_from_slice(received(done).as_slice());
        }
        assert_eq!(bytes.len(), count);
        bytes
    }

    /// Slots that are neither free nor posted.
    pub(crate) fn slots_in_use(&self) -> usize {
        self.arena.slots() - self.ring.slots_available()
    }
}

pub(crate) fn token(kind: Kind, socket: SocketId) -> Token {
    Token::new(kind, GENERATION, socket)
}

/// The bytes of a successful receive.
#[track_caller]
pub(crate) fn received(done: Done) -> Chunk {
    match (done.result, done.payload) {
        (Ok(count), Payload::Received(slot)) if count > 0 => slot.received(count as usize),
        other => panic!("no bytes but {other:?}"),
    }
}

/// Count and chunk of a send.
#[track_caller]
pub(crate) fn sent(done: Done) -> (Result<u32, Errno>, Chunk) {
    match done.payload {
        Payload::Sent(chunk) => (done.result, chunk),
        other => panic!("no chunk came back but {other:?} ({:?})", done.result),
    }
}

pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_read_timeout(Some(WATCHDOG)).unwrap();
    theirs.set_write_timeout(Some(WATCHDOG)).unwrap();
    (ours, theirs)
}

pub(crate) fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Bytes that tell where they belong: a function of (stream, offset).
pub(crate) fn pattern(stream: u64, from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|at| (stream.wrapping_mul(151) ^ at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

pub(crate) fn write_all(mut stream: impl Write, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

pub(crate) fn read_to_end(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
