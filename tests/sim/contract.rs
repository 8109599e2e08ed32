//! The simulation by itself: that its network and its engine behave as the kernel does, and that a shard which breaks the contract is
//! stopped. What the other tests show rests on these.

use std::net::SocketAddr;
use std::time::Duration;

use zhwkprox::limits::SLOT_BYTES;
use zhwkprox::shard::buffers::{Arena, Chunk};
use zhwkprox::shard::io::{Done, Errno, Io, Kind, Op, Payload, Purpose, SocketId, Token};

use crate::engine::{SimIo, Temper, address};
use crate::rng::Rng;
use crate::world::{EndId, Link, ListenerId, Owner, Path, Read, SECOND, World};

const PEER: Owner = Owner::Actor(0);
const ONE: SocketId = SocketId(1);

fn there() -> SocketAddr {
    SocketAddr::new(address(9), 80)
}

/// One engine, and a peer that the test plays by hand.
struct Rig {
    world: World,
    arena: Arena,
    io: SimIo,
    listener: ListenerId,
}

impl Rig {
    fn new(temper: Temper, slots: usize) -> Self {
        let world = World::new(7);
        let arena = Arena::new(slots * SLOT_BYTES).unwrap();
        let io = SimIo::new(&world, 0, address(1), arena.clone(), temper, Rng::new(8));
        let listener = world.listen(there(), PEER);
        Self { world, arena, io, listener }
    }

    /// Turns until nothing happens any more.
    fn settle(&mut self) -> Vec<Done> {
        let mut all = Vec::new();
        loop {
            let mut done = Vec::new();
            self.io.turn(Some(Duration::ZERO), &mut done).unwrap();
            all.append(&mut done);
            if !self.world.advance() {
                self.io.turn(Some(Duration::ZERO), &mut done).unwrap();
                let last = done.is_empty();
                all.append(&mut done);
                if last && self.world.next_event().is_none() {
                    return all;
                }
            }
        }
    }

    fn connect(&mut self, socket: SocketId) -> Vec<Done> {
        self.io.submit(Op::Connect {
            socket,
            to: there(),
            from: None,
            purpose: Purpose::Flow,
            token: Token::new(Kind::Connect, 0, socket),
        });
        self.settle()
    }

    /// A connected socket, and the peer's end of it.
    fn connected(&mut self, socket: SocketId) -> EndId {
        assert_eq!(self.connect(socket)[0].result, Ok(0));
        self.world.accept(self.listener, PEER).unwrap().0
    }

    fn receive(&mut self, socket: SocketId) {
        self.io.submit(Op::Receive { socket, max: 65_536, token: Token::new(Kind::Receive, 0, socket) });
    }

    fn send(&mut self, socket: SocketId, bytes: &[u8], wait: bool) {
        self.send_chunk(socket, Chunk::copy_of(bytes), wait);
    }

    fn send_chunk(&mut self, socket: SocketId, chunk: Chunk, wait: bool) {
        self.io.submit(Op::Send { socket, chunk, wait, token: Token::new(Kind::Send, 0, socket) });
    }
}

fn result_of(done: &[Done], kind: Kind) -> Result<u32, Errno> {
    let of_kind: Vec<_> = done.iter().filter(|done| done.token.kind() == Some(kind)).collect();
    assert_eq!(of_kind.len(), 1, "one {kind:?} in {done:?}");
    of_kind[0].result
}

fn drain(world: &World, end: EndId) -> Vec<u8> {
    let mut all = Vec::new();
    while world.unread(end) > 0 {
        let Read::Bytes(mut bytes) = world.read(end, usize::MAX) else { panic!("unread bytes are read first") };
        all.append(&mut bytes);
    }
    all
}

#[test]
fn a_fin_arrives_behind_the_bytes_before_it() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.send(ONE, &[7; 200_000], true);
    // The peer reads while the send goes on, or it would never end.
    let mut got = 0;
    while rig.settle().is_empty() {
        got += drain(&rig.world, peer).len();
    }
    rig.io.submit(Op::Shutdown { socket: ONE });
    rig.settle();
    got += drain(&rig.world, peer).len();
    while rig.world.read(peer, 1) != Read::Fin {
        rig.settle();
        got += drain(&rig.world, peer).len();
    }
    assert_eq!(got, 200_000);
}

#[test]
fn a_waiting_send_that_is_cancelled_gives_its_partial_count() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.send(ONE, &[7; 400_000], true);
    assert!(rig.settle().is_empty());
    rig.io.submit(Op::Cancel { socket: ONE });
    let count = result_of(&rig.settle(), Kind::Send).unwrap();
    // What both buffers hold is taken, the rest is not.
    assert!((65_536..=131_072).contains(&count), "{count}");
    let mut got = 0;
    loop {
        let now = drain(&rig.world, peer).len();
        got += now;
        rig.settle();
        if now == 0 {
            break;
        }
    }
    assert_eq!(got, count as usize);
}

#[test]
fn a_send_that_does_not_wait_takes_what_fits_and_then_says_again() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let _peer = rig.connected(ONE);
    let mut counts = Vec::new();
    loop {
        rig.send(ONE, &[7; 50_000], false);
        match result_of(&rig.settle(), Kind::Send) {
            Ok(count) => counts.push(count),
            Err(error) => {
                assert_eq!(error, Errno(libc::EAGAIN));
                break;
            }
        }
    }
    assert!(counts.iter().any(|count| *count < 50_000), "{counts:?}");
}

#[test]
fn a_receive_takes_a_slot_only_when_bytes_come_and_without_one_keeps_them() {
    let mut rig = Rig::new(Temper::CALM, 1);
    let one = rig.connected(ONE);
    let two = rig.connected(SocketId(2));
    rig.receive(ONE);
    rig.receive(SocketId(2));
    assert!(rig.settle().is_empty());
    assert_eq!(rig.io.slots_available(), 1);
    rig.world.write(one, b"1").unwrap();
    let held = rig.settle();
    assert_eq!(result_of(&held, Kind::Receive), Ok(1));
    assert_eq!(rig.io.slots_available(), 0);
    rig.world.write(two, b"second").unwrap();
    assert_eq!(result_of(&rig.settle(), Kind::Receive), Err(Errno(libc::ENOBUFS)));
    drop(held);
    rig.receive(SocketId(2));
    let mut done = rig.settle();
    let Some(Done { result: Ok(6), payload: Payload::Received(slot), .. }) = done.pop() else { panic!("{done:?}") };
    assert_eq!(slot.received(6).as_slice(), b"second");
}

#[test]
fn a_receive_into_a_chunk_needs_no_slot_and_puts_at_most_what_it_was_told_behind_the_end() {
    let mut rig = Rig::new(Temper::CALM, 1);
    let peer = rig.connected(ONE);
    let into = |rig: &mut Rig, into: Chunk, max| {
        rig.io.submit(Op::ReceiveInto { socket: ONE, into, max, token: Token::new(Kind::Receive, 0, ONE) });
        rig.settle()
    };
    let mut chunk = Chunk::with_capacity(8);
    chunk.append(b"part");
    rig.world.write(peer, b"restnext").unwrap();
    let mut done = into(&mut rig, chunk, 4);
    let Some(Done { result: Ok(4), payload: Payload::Filled(chunk), .. }) = done.pop() else { panic!("{done:?}") };
    assert_eq!(chunk.as_slice(), b"partrest");
    rig.receive(ONE);
    assert_eq!(result_of(&rig.settle(), Kind::Receive), Ok(4));
    // A cancel and an end give it back as it was.
    assert!(into(&mut rig, Chunk::with_capacity(4), 4).is_empty());
    rig.io.submit(Op::Cancel { socket: ONE });
    let mut done = rig.settle();
    let Some(Done { result: Err(Errno(libc::ECANCELED)), payload: Payload::Filled(chunk), .. }) = done.pop() else { panic!("{done:?}") };
    rig.world.shutdown(peer);
    let mut done = into(&mut rig, chunk, 4);
    let Some(Done { result: Ok(0), payload: Payload::Filled(chunk), .. }) = done.pop() else { panic!("{done:?}") };
    assert_eq!((chunk.len(), chunk.room()), (0, 4));
}

#[test]
fn bytes_are_unsent_until_they_have_arrived() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.send(ONE, b"bytes", true);
    rig.io.turn(Some(Duration::ZERO), &mut Vec::new()).unwrap();
    assert_eq!(rig.io.unsent(ONE), 5);
    rig.settle();
    assert_eq!((rig.io.unsent(ONE), rig.world.unread(peer)), (0, 5));
}

#[test]
fn a_close_with_reset_discards_what_is_unsent_and_the_peer_is_told_once() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.send(ONE, &[7; 400_000], true);
    rig.settle();
    rig.io.submit(Op::Cancel { socket: ONE });
    let count = result_of(&rig.settle(), Kind::Send).unwrap();
    rig.io.submit(Op::Close { socket: ONE, reset: true });
    rig.settle();
    let got = drain(&rig.world, peer).len();
    assert!(got < count as usize, "{got} of {count}");
    assert_eq!(rig.world.write(peer, b"x"), Err(libc::ECONNRESET));
    assert_eq!(rig.world.write(peer, b"x"), Err(libc::EPIPE));
    assert_eq!(rig.world.read(peer, 1), Read::Fin, "the error was told to the write, and Linux tells it once");
}

#[test]
fn a_close_with_unread_bytes_is_a_reset() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.world.write(peer, b"never read").unwrap();
    rig.settle();
    rig.io.submit(Op::Close { socket: ONE, reset: false });
    rig.settle();
    assert_eq!(rig.world.read(peer, 1), Read::Error(libc::ECONNRESET));
}

#[test]
fn bytes_for_a_closed_socket_bring_a_reset_behind_its_fin() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.io.submit(Op::Close { socket: ONE, reset: false });
    rig.settle();
    assert_eq!(rig.world.read(peer, 1), Read::Fin);
    assert_eq!(rig.world.write(peer, b"late"), Ok(4));
    rig.settle();
    assert_eq!(rig.world.write(peer, b"later"), Err(libc::EPIPE));
}

#[test]
fn a_connect_is_refused_unreachable_or_without_answer() {
    let mut rig = Rig::new(Temper::CALM, 4);
    for (path, errno) in [(Path::Refused, libc::ECONNREFUSED), (Path::Unreachable, libc::EHOSTUNREACH), (Path::Silent, libc::ETIMEDOUT)] {
        rig.world.set_path(there().ip(), Some(path));
        assert_eq!(result_of(&rig.connect(ONE), Kind::Connect), Err(Errno(errno)));
    }
    assert!(rig.world.now() > 127 * SECOND);
    rig.world.set_path(there().ip(), None);
    rig.world.close_listener(rig.listener);
    assert_eq!(result_of(&rig.connect(ONE), Kind::Connect), Err(Errno(libc::ECONNREFUSED)));
}

#[test]
fn without_descriptors_an_accept_fails_at_once_and_no_client_is_lost() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let here = SocketAddr::new(address(1), 1080);
    rig.io.adopt(ONE, SimIo::listener_handle(&rig.world, here));
    let accept = |into| Op::Accept { listener: ONE, into: SocketId(into), token: Token::new(Kind::Accept, 0, SocketId(into)) };
    rig.world.no_descriptors(0, SECOND);
    rig.io.submit(accept(2));
    assert_eq!(result_of(&rig.settle(), Kind::Accept), Err(Errno(libc::EMFILE)));
    let client = rig.world.connect(address(9), here, PEER, false);
    rig.settle();
    rig.world.wake_at(Owner::Host(0), 2 * SECOND);
    rig.settle();
    rig.io.submit(accept(2));
    assert_eq!(result_of(&rig.settle(), Kind::Accept), Ok(0));
    rig.world.write(client, b"hello").unwrap();
    rig.receive(SocketId(2));
    assert_eq!(result_of(&rig.settle(), Kind::Receive), Ok(5));
}

#[test]
fn a_lost_path_is_noticed_by_a_tunnel_after_half_a_minute_and_nothing_arrives_before() {
    let mut rig = Rig::new(Temper::CALM, 4);
    let peer = rig.connected(ONE);
    rig.world.set_tunnel(peer);
    rig.world.lose(peer);
    rig.send(ONE, b"into the void", true);
    let before = rig.world.now();
    while rig.world.read(peer, 1) == Read::Nothing {
        rig.world.advance();
    }
    assert_eq!(rig.world.now() - before, 30 * SECOND);
}

#[test]
fn completions_of_one_turn_come_in_any_order_and_some_of_them_later() {
    let temper = Temper { delayed: 30, ..Temper::CALM };
    let mut rig = Rig::new(temper, 32);
    let peers: Vec<EndId> = (1..=16).map(|id| rig.connected(SocketId(id))).collect();
    for (index, peer) in (1..).zip(&peers) {
        rig.receive(SocketId(index));
        rig.world.write(*peer, b"x").unwrap();
    }
    let order: Vec<u32> = rig.settle().iter().map(|done| done.token.socket().0).collect();
    assert_eq!(order.len(), 16);
    assert!(!order.is_sorted(), "{order:?}");
}

#[test]
#[should_panic(expected = "two sends are outstanding on socket 1")]
fn a_second_send_in_flight_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.send(ONE, &[7; 400_000], true);
    rig.send(ONE, b"second", true);
    rig.settle();
}

#[test]
#[should_panic(expected = "two receives are outstanding on socket 1")]
fn a_second_receive_in_flight_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.receive(ONE);
    rig.receive(ONE);
    rig.settle();
}

#[test]
#[should_panic(expected = "close of socket 1 with a receive outstanding")]
fn a_close_with_a_receive_outstanding_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.receive(ONE);
    rig.io.submit(Op::Close { socket: ONE, reset: false });
    rig.settle();
}

#[test]
#[should_panic(expected = "before all its completions have been delivered")]
fn a_close_that_does_not_wait_for_the_cancelled_receive_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.receive(ONE);
    rig.io.submit(Op::Cancel { socket: ONE });
    rig.io.submit(Op::Close { socket: ONE, reset: false });
    rig.settle();
}

#[test]
#[should_panic(expected = "its FIN would be before its bytes")]
fn a_shutdown_with_a_send_outstanding_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.send(ONE, &[7; 400_000], true);
    rig.io.submit(Op::Shutdown { socket: ONE });
    rig.settle();
}

#[test]
#[should_panic(expected = "receive on socket 3, which is unknown")]
fn a_socket_that_does_not_exist_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.receive(SocketId(3));
    rig.settle();
}

#[test]
#[should_panic(expected = "socket id 1 is used again though it was not closed")]
fn an_id_that_is_not_free_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.connect(ONE);
}

#[test]
#[should_panic(expected = "an empty chunk is sent on socket 1")]
fn an_empty_send_stops_the_run() {
    let mut rig = Rig::new(Temper::CALM, 4);
    rig.connected(ONE);
    rig.send(ONE, b"", true);
    rig.settle();
}

/// A role in a few lines: takes connections, sends back what comes, closes behind the peer's FIN.
fn echo(rig: &mut Rig, done: Vec<Done>, next: &mut u32) {
    for done in done {
        let socket = done.token.socket();
        match (done.token.kind(), done.result, done.payload) {
            (Some(Kind::Accept), Ok(_), _) => {
                rig.receive(socket);
                *next += 1;
                let into = SocketId(*next);
                rig.io.submit(Op::Accept { listener: SocketId(0), into, token: Token::new(Kind::Accept, 0, into) });
            }
            (Some(Kind::Receive), Ok(0), _) => rig.io.submit(Op::Close { socket, reset: false }),
            (Some(Kind::Receive), Ok(count), Payload::Received(slot)) => rig.send_chunk(socket, slot.received(count as usize), true),
            (Some(Kind::Receive), Err(Errno(libc::ENOBUFS)), _) => rig.receive(socket),
            (Some(Kind::Send), Ok(count), Payload::Sent(chunk)) => {
                assert_eq!(count as usize, chunk.len());
                rig.receive(socket);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_echo_over_a_jumpy_network_gives_every_byte_back_and_every_slot() {
    for seed in 0..50 {
        let mut rig = Rig::new(Temper { short_receives: 50, delayed: 40, late_cancels: 0, posted: 2, per_turn: 3 }, 4);
        rig.world = World::new(seed);
        rig.io = SimIo::new(
            &rig.world,
            0,
            address(1),
            rig.arena.clone(),
            Temper { short_receives: 50, delayed: 40, late_cancels: 0, posted: 2, per_turn: 3 },
            Rng::new(seed),
        );
        rig.world.set_link(address(1), Link { latency: (1, 5_000_000), segment: 3_000, outbox: 4_096, inbox: 8_192, rate: None });
        let here = SocketAddr::new(address(1), 7);
        rig.io.adopt(SocketId(0), SimIo::listener_handle(&rig.world, here));
        rig.io.submit(Op::Accept { listener: SocketId(0), into: ONE, token: Token::new(Kind::Accept, 0, ONE) });
        let mut next = 1;
        let clients: Vec<EndId> = (0..6).map(|_| rig.world.connect(address(9), here, PEER, false)).collect();
        let mut sent = [0_usize; 6];
        let mut got: Vec<Vec<u8>> = vec![Vec::new(); 6];
        let mut ended = [false; 6];
        let byte = |client: usize, at: usize| u8::try_from((client * 37 + at * 11) % 251).unwrap();
        let mut steps = 0;
        while ended.contains(&false) {
            steps += 1;
            assert!(steps < 100_000, "seed {seed} does not end");
            for client in 0..clients.len() {
                let end = clients[client];
                if rig.world.connect_result(end) != Some(Ok(())) || ended[client] {
                    continue;
                }
                if sent[client] < 20_000 {
                    let bytes: Vec<u8> = (sent[client]..20_000).map(|at| byte(client, at)).collect();
                    sent[client] += rig.world.write(end, &bytes).unwrap_or(0);
                    if sent[client] == 20_000 {
                        rig.world.shutdown(end);
                    }
                }
                match rig.world.read(end, 5_000) {
                    Read::Bytes(mut bytes) => got[client].append(&mut bytes),
                    Read::Fin => ended[client] = true,
                    Read::Nothing => {}
                    Read::Error(errno) => panic!("{errno}"),
                }
            }
            let mut done = Vec::new();
            rig.io.turn(Some(Duration::ZERO), &mut done).unwrap();
            echo(&mut rig, done, &mut next);
            rig.world.advance();
        }
        for (client, got) in got.iter().enumerate() {
            assert!(got.iter().enumerate().all(|(at, got)| *got == byte(client, at)) && got.len() == 20_000, "seed {seed} client {client}");
        }
        assert_eq!(rig.io.slots_available(), 4, "seed {seed}");
    }
}
