//! [`SimIo`]: the seam `zhwkprox::shard::io::Io` over the simulated network, for one shard. It answers as the kernel does, in any order and
//! at any time the kernel could, and it stops the run when the shard breaks the contract written in `src/shard/io.rs`.
//!
//! What always holds between calls:
//! * operations take effect in the order of submission, at the next `turn`, `adopt` or `detach`;
//! * an operation is outstanding until its completion is in `completed`; from then on it only waits to be delivered;
//! * a chunk that is being sent is compared with what it was when it was submitted, at every step.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use zhwkprox::limits::RECORD_BYTES_MAX;
use zhwkprox::shard::buffers::{Arena, Chunk};
use zhwkprox::shard::io::{Done, Errno, Io, Kind, Op, Payload, Purpose, SocketId, Token};

use crate::pending::{Birth, Connection, PendingReceive, PendingSend, Socket, shuffle_sockets};
use crate::rng::Rng;
use crate::world::{EndId, Handle, MICROSECOND, Nanos, Owner, Read, World};

/// How far an engine strays from doing everything at once, whole and in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Temper {
    /// Percent of receives that give less than there is.
    pub(crate) short_receives: u64,
    /// Percent of completions that are delivered some turns later.
    pub(crate) delayed: u64,
    /// Percent of cancels that come too late for what could just be done.
    pub(crate) late_cancels: u64,
    /// Slots lent to the kernel at once.
    pub(crate) posted: usize,
    /// The most completions that one turn hands over.
    pub(crate) per_turn: usize,
}

impl Temper {
    pub(crate) const CALM: Self = Self { short_receives: 0, delayed: 0, late_cancels: 0, posted: 32, per_turn: 256 };
}

/// What the harness sees of an engine from outside.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    /// The last `wait` asked for ends then (`None`: never by itself).
    pub(crate) sleeps_until: Option<Nanos>,
    /// Operations are submitted, or completions wait to be delivered.
    pub(crate) work: bool,
    pub(crate) delivered: u64,
    pub(crate) no_buffers: u64,
    pub(crate) received: u64,
    pub(crate) connects: u64,
    pub(crate) sockets: usize,
    pub(crate) outstanding: usize,
    pub(crate) lent: usize,
}

/// The engine of host `host`.
pub(crate) struct SimIo {
    world: World,
    host: usize,
    address: IpAddr,
    arena: Arena,
    temper: Temper,
    rng: Rng,
    submitted: Vec<Op>,
    sockets: BTreeMap<SocketId, Socket>,
    ends: BTreeMap<EndId, SocketId>,
    lent: Vec<u32>,
    completed: Vec<Done>,
    /// Sockets whose connect or accept failed in what was delivered last: the shard may have cancelled them before it saw that.
    just_failed: BTreeSet<SocketId>,
    bell: Rc<RefCell<bool>>,
    gauge: Rc<RefCell<Gauge>>,
}

impl SimIo {
    pub(crate) fn new(world: &World, host: usize, address: IpAddr, arena: Arena, temper: Temper, rng: Rng) -> Self {
        let mut io = Self {
            world: world.clone(),
            host,
            address,
            arena,
            temper,
            rng,
            submitted: Vec::new(),
            sockets: BTreeMap::new(),
            ends: BTreeMap::new(),
            lent: Vec::new(),
            completed: Vec::new(),
            just_failed: BTreeSet::new(),
            bell: Rc::default(),
            gauge: Rc::default(),
        };
        io.post_slots();
        io.note();
        io
    }

    pub(crate) fn gauge(&self) -> Rc<RefCell<Gauge>> {
        Rc::clone(&self.gauge)
    }

    /// Set it to true and the engine reports that the inbox was written to.
    pub(crate) fn bell(&self) -> Rc<RefCell<bool>> {
        Rc::clone(&self.bell)
    }

    /// A descriptor that [`Io::adopt`] takes for a listener of `address`.
    pub(crate) fn listener_handle(world: &World, address: SocketAddr) -> OwnedFd {
        handle(world, Handle::Listener(world.listen(address, Owner::Nobody)))
    }

    fn post_slots(&mut self) {
        while self.lent.len() < self.temper.posted {
            let Some(slot) = self.arena.take() else { break };
            self.lent.push(slot.lend().0);
        }
    }

    fn note(&mut self) {
        let mut gauge = self.gauge.borrow_mut();
        gauge.work = !self.submitted.is_empty() || !self.completed.is_empty();
        gauge.sockets = self.sockets.len();
        gauge.lent = self.lent.len();
        gauge.outstanding = self.sockets.values().map(Socket::outstanding).sum();
    }

    fn complete(&mut self, token: Token, result: Result<u32, i32>, payload: Payload) {
        self.completed.push(Done { token, result: result.map_err(Errno), payload });
    }

    /// Whether a completion that concerns `socket` has not been delivered yet.
    fn undelivered(&self, socket: SocketId) -> bool {
        self.completed.iter().any(|done| done.token.socket() == socket && done.token.kind() != Some(Kind::Wake))
    }

    fn insert(&mut self, id: SocketId, socket: Socket) {
        assert!(!self.undelivered(id), "socket id {} is used again before its last completion came", id.0);
        if let Some(old) = self.sockets.insert(id, socket) {
            panic!("socket id {} is used again though it was not closed: {old:?}", id.0);
        }
    }

    fn connection(&mut self, id: SocketId, what: &str) -> &mut Connection {
        match self.sockets.get_mut(&id) {
            Some(Socket::Connection(connection)) => connection,
            other => {
                panic!("{what} on socket {}, which is {}", id.0, other.map_or_else(|| "unknown".to_owned(), |other| format!("{other:?}")))
            }
        }
    }

    fn apply_submitted(&mut self) {
        for op in std::mem::take(&mut self.submitted) {
            self.world.trace(|| format!("host {} submits {op:?}", self.host));
            self.apply(op);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Accept { listener, into, token } => {
                self.insert(into, Socket::Accepting { listener });
                match self.sockets.get_mut(&listener) {
                    Some(Socket::Listener { accepts, .. }) => accepts.push_back((into, token)),
                    other => panic!("accept from socket {}, which is {other:?}", listener.0),
                }
                self.try_accept(listener, true);
            }
            Op::Connect { socket, to, from, purpose, token } => self.connect(socket, to, from, purpose, token),
            Op::Receive { socket, max, token } => self.receive(socket, None, max, token),
            Op::ReceiveInto { socket, into, max, token } => {
                assert!(into.room() > 0, "a receive on socket {} into a chunk that is shared or full", socket.0);
                self.receive(socket, Some(into), max, token);
            }
            Op::Send { socket, chunk, wait, token } => {
                assert!(!chunk.is_empty(), "an empty chunk is sent on socket {}", socket.0);
                let connection = self.connection(socket, "send");
                assert!(connection.send.is_none(), "two sends are outstanding on socket {}", socket.0);
                let copy = chunk.as_slice().to_vec();
                connection.send = Some(PendingSend { chunk, copy, taken: 0, wait, token });
                self.try_send(socket);
            }
            Op::Shutdown { socket } => {
                let connection = self.connection(socket, "shutdown");
                assert!(
                    connection.send.is_none(),
                    "shutdown of socket {} while a send is outstanding: its FIN would be before its bytes",
                    socket.0
                );
                connection.shut = true;
                let end = connection.end;
                self.world.shutdown(end);
            }
            Op::Cancel { socket } => self.cancel(socket),
            Op::Close { socket, reset } => self.close(socket, reset),
        }
    }

    fn receive(&mut self, socket: SocketId, into: Option<Chunk>, max: u32, token: Token) {
        assert!(max > 0, "a receive of at most nothing on socket {}", socket.0);
        let room = into.as_ref().map_or(RECORD_BYTES_MAX, Chunk::room);
        let max = usize::try_from(max).expect("fits").min(room);
        let connection = self.connection(socket, "receive");
        assert!(connection.receive.is_none(), "two receives are outstanding on socket {}", socket.0);
        connection.receive = Some(PendingReceive { max, into, token });
        self.try_receive(socket);
    }

    fn connect(&mut self, socket: SocketId, to: SocketAddr, from: Option<IpAddr>, purpose: Purpose, token: Token) {
        assert!(
            !self.undelivered(socket) && !self.sockets.contains_key(&socket),
            "socket id {} is used again though it was not closed",
            socket.0
        );
        self.gauge.borrow_mut().connects += 1;
        if self.world.out_of_descriptors(self.host) {
            return self.complete(token, Err(libc::EMFILE), Payload::None);
        }
        let end = self.world.connect(from.unwrap_or(self.address), to, Owner::Host(self.host), purpose == Purpose::Tunnel);
        self.insert(socket, Socket::Connecting { end, token });
        self.ends.insert(end, socket);
    }

    fn cancel(&mut self, id: SocketId) {
        if self.rng.chance(self.temper.late_cancels) {
            self.progress(id);
        }
        let on_the_way = self.undelivered(id) || self.just_failed.contains(&id);
        match self.sockets.get_mut(&id) {
            // It never came to be; the shard had not seen its completion yet.
            None if on_the_way => {}
            None => panic!("cancel on unknown socket {}", id.0),
            Some(Socket::Listener { accepts, .. }) => {
                for (into, token) in std::mem::take(accepts) {
                    self.sockets.remove(&into);
                    self.complete(token, Err(libc::ECANCELED), Payload::None);
                }
            }
            Some(Socket::Accepting { listener }) => {
                let listener = *listener;
                let Some(Socket::Listener { accepts, .. }) = self.sockets.get_mut(&listener) else {
                    panic!("an accept outlived its listener")
                };
                let at = accepts.iter().position(|(into, _)| *into == id).expect("an accepting socket is in its listener's queue");
                let (_, token) = accepts.remove(at).expect("just found");
                self.sockets.remove(&id);
                self.complete(token, Err(libc::ECANCELED), Payload::None);
            }
            Some(Socket::Connecting { end, token }) => {
                let (end, token) = (*end, *token);
                self.sockets.remove(&id);
                self.ends.remove(&end);
                self.world.close(end, true);
                self.complete(token, Err(libc::ECANCELED), Payload::None);
            }
            Some(Socket::Connection(connection)) => {
                let (receive, send) = (connection.receive.take(), connection.send.take());
                if let Some(receive) = receive {
                    let (token, payload) = receive.without_bytes();
                    self.complete(token, Err(libc::ECANCELED), payload);
                }
                if let Some(send) = send {
                    let result = if send.taken > 0 { Ok(send.taken) } else { Err(libc::ECANCELED) };
                    self.finish_send(send, result);
                }
            }
        }
    }

    fn close(&mut self, id: SocketId, reset: bool) {
        assert!(!self.undelivered(id), "close of socket {} before all its completions have been delivered", id.0);
        match self.sockets.remove(&id) {
            None => panic!("close of unknown socket {}", id.0),
            Some(Socket::Listener { listener, accepts }) => {
                assert!(accepts.is_empty(), "close of listener {} with accepts outstanding", id.0);
                self.world.close_listener(listener);
            }
            Some(Socket::Connection(connection)) => {
                assert!(connection.receive.is_none(), "close of socket {} with a receive outstanding", id.0);
                assert!(connection.send.is_none(), "close of socket {} with a send outstanding", id.0);
                self.ends.remove(&connection.end);
                self.world.close(connection.end, reset);
            }
            Some(socket) => panic!("close of socket {} with an operation outstanding: {socket:?}", id.0),
        }
    }

    fn try_accept(&mut self, id: SocketId, submitting: bool) {
        loop {
            let Some(Socket::Listener { listener, accepts }) = self.sockets.get_mut(&id) else { return };
            let listener = *listener;
            let Some(&(into, token)) = accepts.front() else { return };
            // The kernel takes a descriptor first, so a lack of them shows without any client.
            if self.world.out_of_descriptors(self.host) && (submitting || self.world.can_accept(listener)) {
                accepts.pop_front();
                self.sockets.remove(&into);
                self.complete(token, Err(libc::EMFILE), Payload::None);
                continue;
            }
            let Some((end, peer)) = self.world.accept(listener, Owner::Host(self.host)) else { return };
            accepts.pop_front();
            self.sockets.insert(into, Socket::Connection(Connection { end, receive: None, send: None, shut: false }));
            self.ends.insert(end, into);
            self.complete(token, Ok(0), Payload::Accepted(Some(peer)));
        }
    }

    fn try_connect(&mut self, id: SocketId) {
        let Some(&Socket::Connecting { end, token }) = self.sockets.get(&id) else { return };
        match self.world.connect_result(end) {
            None => {}
            Some(Ok(())) => {
                self.sockets.insert(id, Socket::Connection(Connection { end, receive: None, send: None, shut: false }));
                self.complete(token, Ok(0), Payload::None);
            }
            Some(Err(errno)) => {
                self.sockets.remove(&id);
                self.ends.remove(&end);
                self.complete(token, Err(errno), Payload::None);
            }
        }
    }

    fn try_receive(&mut self, id: SocketId) {
        let Some(Socket::Connection(connection)) = self.sockets.get_mut(&id) else { return };
        if connection.receive.is_none() || !self.world.readable(connection.end) {
            return;
        }
        let end = connection.end;
        let Some(receive) = connection.receive.take() else { return };
        let most = if self.rng.chance(self.temper.short_receives) { self.rng.size(1, receive.max) } else { receive.max };
        if receive.into.is_some() {
            return self.fill(end, receive, most);
        }
        // The kernel chooses the slot before it looks what there is: also an end or an error needs one.
        let Some(index) = self.lent.pop() else {
            self.gauge.borrow_mut().no_buffers += 1;
            return self.complete(receive.token, Err(libc::ENOBUFS), Payload::None);
        };
        let mut slot = self.arena.reclaim(index);
        match self.world.read(end, most) {
            Read::Bytes(bytes) => {
                slot.data_mut().expect("nobody else holds a slot that was lent")[..bytes.len()].copy_from_slice(&bytes);
                self.gauge.borrow_mut().received += 1;
                let count = u32::try_from(bytes.len()).expect("at most a slot");
                self.complete(receive.token, Ok(count), Payload::Received(slot));
            }
            other => {
                self.lent.push(slot.lend().0);
                let result = match other {
                    Read::Error(errno) => Err(errno),
                    _ => Ok(0),
                };
                self.complete(receive.token, result, Payload::None);
            }
        }
    }

    fn fill(&mut self, end: EndId, receive: PendingReceive, most: usize) {
        let read = self.world.read(end, most);
        let (token, mut payload) = receive.without_bytes();
        let result = match (read, &mut payload) {
            (Read::Bytes(bytes), Payload::Filled(chunk)) => {
                chunk.append(&bytes);
                self.gauge.borrow_mut().received += 1;
                Ok(u32::try_from(bytes.len()).expect("at most the chunk's room"))
            }
            (Read::Error(errno), _) => Err(errno),
            _ => Ok(0),
        };
        self.complete(token, result, payload);
    }

    fn try_send(&mut self, id: SocketId) {
        let Some(Socket::Connection(connection)) = self.sockets.get_mut(&id) else { return };
        let Some(mut send) = connection.send.take() else { return };
        let (end, shut) = (connection.end, connection.shut);
        send.check(id);
        assert!(!shut, "a send on socket {} behind its own shutdown", id.0);
        match self.world.write(end, &send.chunk.as_slice()[send.taken..]) {
            Ok(count) => {
                let (now, bytes) = (self.world.now(), &send.chunk.as_slice()[send.taken..send.taken + count]);
                self.world.with_observer(|observer| observer.on_send(end, now, bytes));
                send.taken += count;
                if send.taken == send.chunk.len() || !send.wait {
                    let taken = send.taken;
                    return self.finish_send(send, Ok(taken));
                }
            }
            Err(libc::EAGAIN) if send.wait => {}
            // As in the kernel: the count hides the error, and the error has been reported with that.
            Err(_) if send.taken > 0 => {
                let taken = send.taken;
                return self.finish_send(send, Ok(taken));
            }
            Err(errno) => return self.finish_send(send, Err(errno)),
        }
        let Some(Socket::Connection(connection)) = self.sockets.get_mut(&id) else { return };
        connection.send = Some(send);
    }

    fn finish_send(&mut self, send: PendingSend, result: Result<usize, i32>) {
        send.check(send.token.socket());
        let count = result.map(|count| u32::try_from(count).expect("a chunk's length fits"));
        self.complete(send.token, count, Payload::Sent(send.chunk));
    }

    fn progress(&mut self, id: SocketId) {
        match self.sockets.get(&id) {
            Some(Socket::Listener { .. }) => self.try_accept(id, false),
            Some(Socket::Connecting { .. }) => self.try_connect(id),
            Some(Socket::Connection(_)) => {
                if self.rng.chance(50) {
                    self.try_receive(id);
                    self.try_send(id);
                } else {
                    self.try_send(id);
                    self.try_receive(id);
                }
            }
            Some(Socket::Accepting { .. }) | None => {}
        }
    }

    /// Gives out what is completed, in any order, and keeps some of it for later. Only the order of one socket's completions is kept, as
    /// in the kernel: a send that was told of a reset is seen before the receive that, for that reason, is not.
    fn deliver(&mut self, done: &mut Vec<Done>) {
        let mut kept = BTreeSet::new();
        for one in std::mem::take(&mut self.completed) {
            let socket = one.token.socket();
            if kept.contains(&socket) || done.len() == self.temper.per_turn || self.rng.chance(self.temper.delayed) {
                kept.insert(socket);
                self.completed.push(one);
            } else {
                done.push(one);
            }
        }
        shuffle_sockets(done, &mut self.rng);
        self.just_failed = done.iter().filter(|done| done.is_failed_birth()).map(|done| done.token.socket()).collect();
        self.gauge.borrow_mut().delivered += done.len() as u64;
        if !self.completed.is_empty() {
            let time = self.world.now() + self.rng.between(1, 50) * MICROSECOND;
            self.world.wake_at(Owner::Host(self.host), time);
        }
    }
}

impl Io for SimIo {
    fn submit(&mut self, op: Op) {
        self.submitted.push(op);
        self.gauge.borrow_mut().work = true;
    }

    fn turn(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) -> std::io::Result<()> {
        assert!(done.is_empty(), "turn is given a list that still has {} completions", done.len());
        self.post_slots();
        self.apply_submitted();
        let mut touched: Vec<SocketId> = self.world.take_touched(self.host).iter().filter_map(|end| self.ends.get(end).copied()).collect();
        touched.extend(self.sockets.iter().filter(|(_, socket)| matches!(socket, Socket::Listener { .. })).map(|(id, _)| *id));
        self.rng.shuffle(&mut touched);
        for id in touched {
            self.progress(id);
        }
        if std::mem::take(&mut *self.bell.borrow_mut()) {
            self.complete(Token::new(Kind::Wake, 0, SocketId(0)), Ok(0), Payload::None);
        }
        self.deliver(done);
        for one in done.iter() {
            self.world.trace(|| format!("host {} gets {:?} of socket {}: {one:?}", self.host, one.token.kind(), one.token.socket().0));
        }
        self.post_slots();
        self.note();
        let until = wait.map(|wait| self.world.now().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)));
        self.gauge.borrow_mut().sleeps_until = until;
        Ok(())
    }

    fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        match self.sockets.get(&id) {
            Some(Socket::Connection(connection)) => Some(self.world.local_address(connection.end)),
            _ => None,
        }
    }

    fn adopt(&mut self, id: SocketId, descriptor: OwnedFd) {
        // It comes behind what was submitted before: perhaps the close of who had the id.
        self.apply_submitted();
        let what = self.world.redeem(descriptor.as_raw_fd()).expect("the simulation made this descriptor");
        match what {
            Handle::Listener(listener) => {
                self.world.set_listener_owner(listener, Owner::Host(self.host));
                self.insert(id, Socket::Listener { listener, accepts: VecDeque::new() });
            }
            Handle::Connection(end, _) => {
                self.insert(id, Socket::Connection(Connection { end, receive: None, send: None, shut: false }));
                self.ends.insert(end, id);
                self.world.set_owner(end, Owner::Host(self.host));
            }
        }
        self.note();
    }

    fn detach(&mut self, id: SocketId) -> OwnedFd {
        self.apply_submitted();
        assert!(!self.undelivered(id), "socket {} is detached before all its completions have been delivered", id.0);
        match self.sockets.remove(&id) {
            Some(Socket::Connection(Connection { end, receive: None, send: None, .. })) => {
                self.ends.remove(&end);
                self.world.set_owner(end, Owner::Nobody);
                handle(&self.world, Handle::Connection(end, self.host))
            }
            other => panic!("socket {} cannot be detached: it is {other:?}", id.0),
        }
    }

    fn is_lost(&self, id: SocketId) -> bool {
        match self.sockets.get(&id) {
            Some(Socket::Connection(connection)) => self.world.is_lost(connection.end),
            other => panic!("whether socket {} is lost is asked, but it is {other:?}", id.0),
        }
    }

    fn unsent(&self, id: SocketId) -> usize {
        match self.sockets.get(&id) {
            Some(Socket::Connection(connection)) => self.world.unsent(connection.end),
            other => panic!("what socket {} has not sent is asked, but it is {other:?}", id.0),
        }
    }

    fn slots_available(&self) -> usize {
        self.arena.free() + self.lent.len()
    }
}

impl Drop for SimIo {
    /// As when a process dies: the kernel closes everything.
    fn drop(&mut self) {
        for index in std::mem::take(&mut self.lent) {
            // A run that failed may have left the arena in disorder; a second panic would hide what was wrong.
            if !std::thread::panicking() {
                drop(self.arena.reclaim(index));
            }
        }
        for socket in std::mem::take(&mut self.sockets).into_values() {
            match socket {
                Socket::Listener { listener, .. } => self.world.close_listener(listener),
                Socket::Connecting { end, .. } | Socket::Connection(Connection { end, .. }) => self.world.close(end, false),
                Socket::Accepting { .. } => {}
            }
        }
    }
}

fn handle(world: &World, what: Handle) -> OwnedFd {
    let file = std::fs::File::open("/dev/null").expect("/dev/null can be opened");
    let descriptor = OwnedFd::from(file);
    world.register(descriptor.as_raw_fd(), what);
    descriptor
}

/// The address of simulated host number `number`.
pub(crate) fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
}
