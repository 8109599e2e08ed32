//! Sockets that are reset behind the bytes they were given, by a shard's core over an engine.
#![allow(clippy::disallowed_methods, reason = "tests have watchdogs")]

use std::cell::Cell;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use zhwkprox::limits::SLOT_BYTES;
use zhwkprox::shard::board::Board;
use zhwkprox::shard::buffers::{Arena, Chunk};
use zhwkprox::shard::core::{Closing, Core, Event, Owner, Parts};
use zhwkprox::shard::inbox::{Inbox, ToControl};
use zhwkprox::shard::state::State;
use zhwkprox::shard::time::Time;
use zhwkprox::shard::{Role, Shard};

use super::support::{WATCHDOG, make_engine, pattern, tcp_pair};

const BYTES: usize = 16 << 20;

/// Sends what fits on one connection, and resets it behind that.
struct SendAndReset {
    descriptor: Option<OwnedFd>,
    taken: Rc<Cell<Option<usize>>>,
}

impl Role for SendAndReset {
    fn start(&mut self, core: &mut Core) {
        if let Some(descriptor) = self.descriptor.take() {
            let socket = core.adopt(descriptor, Owner::Role);
            core.send(socket, Chunk::copy_of(&pattern(9, 0, BYTES)), false);
        }
    }

    fn on_event(&mut self, core: &mut Core, event: Event) {
        if let Event::Sent { socket, result, .. } = event {
            self.taken.set(Some(result.unwrap() as usize));
            core.receive(socket);
            core.close(socket, Closing::ResetWhenSent);
        }
    }

    fn flush(&mut self, _core: &mut Core) {}

    fn state(&self, _state: &mut State) {}

    fn is_finished(&self) -> bool {
        self.taken.get().is_some()
    }
}

struct Rig {
    shard: Shard<SendAndReset>,
    started: Instant,
    taken: usize,
    _control: UnboundedReceiver<ToControl>,
}

impl Rig {
    /// A shard that has closed its connection, whose other end has read nothing yet.
    fn new() -> (Self, TcpStream) {
        let (ours, theirs) = tcp_pair();
        let arena = Arena::new(8 * SLOT_BYTES).unwrap();
        let (inbox, postbox) = Inbox::new().unwrap();
        let io = make_engine(&arena, &inbox);
        let (control, from_shard) = unbounded_channel();
        let rng = StdRng::seed_from_u64(1);
        let parts = Parts { io, arena, index: 0, control, peers: vec![postbox], board: Board::new(1), rng };
        let taken = Rc::new(Cell::new(None));
        let role = SendAndReset { descriptor: Some(ours.into()), taken: Rc::clone(&taken) };
        let shard = Shard::new(Core::new(parts), role, inbox, Time::ZERO);
        let mut rig = Self { shard, started: Instant::now(), taken: 0, _control: from_shard };
        while taken.get().is_none() {
            rig.turn();
        }
        rig.taken = taken.get().unwrap();
        (rig, theirs)
    }

    fn turn(&mut self) {
        let started = self.started;
        assert!(started.elapsed() < WATCHDOG, "the socket is still there: {:?}", self.shard.state());
        self.shard.turn(Some(Duration::from_millis(100)), || now(started)).unwrap();
    }
}

fn now(started: Instant) -> Time {
    Time::from_nanos(u64::try_from(started.elapsed().as_nanos()).unwrap())
}

/// All bytes there are, and how they ended.
fn read_all(mut stream: TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    (bytes, end.err().map(|error| error.kind()))
}

#[test]
fn a_reset_when_sent_comes_behind_every_byte_however_late_they_are_read() {
    let (mut rig, peer) = Rig::new();
    for _ in 0..10 {
        rig.turn();
    }
    assert_eq!(rig.shard.state().sockets, 1, "it counts until it is gone");
    let reader = thread::spawn(move || read_all(peer));
    while rig.shard.state().sockets > 0 {
        rig.turn();
    }
    let (bytes, end) = reader.join().unwrap();
    assert!(bytes == pattern(9, 0, rig.taken), "{} of {} bytes came", bytes.len(), rig.taken);
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    let state = rig.shard.state();
    assert_eq!((state.timers, state.slots_in_use), (0, 0));
}

#[test]
fn a_reset_when_sent_waits_no_longer_when_the_other_end_is_gone() {
    let (mut rig, peer) = Rig::new();
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    while rig.shard.state().sockets > 0 {
        rig.turn();
    }
    assert_eq!(rig.shard.state().timers, 0);
}

#[test]
fn a_stop_ends_a_reset_that_waits_at_once() {
    let (mut rig, peer) = Rig::new();
    rig.turn();
    assert_eq!(rig.shard.state().sockets, 1);
    let started = rig.started;
    rig.shard.close(|| now(started)).unwrap();
    let state = rig.shard.state();
    assert_eq!((state.sockets, state.timers), (0, 0));
    let (bytes, end) = read_all(peer);
    assert!(bytes.len() < rig.taken, "what the kernel still had is dropped");
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
}
