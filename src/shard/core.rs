//! What a role works with: sockets under generational keys, timers, randomness, the clock of this turn. Turns completions into
//! events for their owners, and closes sockets in the one order that is safe.
//!
//! ```text
//!   close ──▶ key invalid at once ──▶ cancel what is outstanding ──▶ every Done (dropped, counted) ──▶ Op::Close ──▶ place free
//! ```
//!
//! What always holds between calls:
//! * per socket at most one receive, one send and one connect are outstanding, also while it is parked or closing;
//! * a socket's place is free only when nothing is outstanding on it and it is closed, so a late completion never meets a new socket
//!   in the kernel's sense; in ours its generation is old, and it is dropped;
//! * receives that found no slot wait in `parked`, first in, first out.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::sync::mpsc::UnboundedSender;
use tracing::warn;

use super::board::Board;
use super::buffers::{Arena, Chunk};
use super::inbox::{Message, Postbox, ToControl};
use super::io::{Done, Errno, Io, Kind, Op, Payload, Purpose, SocketId, Token};
use super::slab::Key;
use super::state::State;
use super::time::Time;
use super::timers::{TimerId, Timers};
use crate::limits;
use crate::mutants::{self, Mutant};

/// Whom a socket or a timer belongs to: decides who is handed its events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The role as a whole.
    Role,
    /// The core itself: a listener's pause.
    Accepting(SocketId),
    /// A listener, by the role's number for it.
    Listener(u32),
    /// A connection that has not said yet, or not proven, what it is.
    Pending(Key),
    /// An authenticated tunnel.
    Tunnel(Key),
    /// A flow's connection: a client's or a destination's.
    Flow(Key),
    /// A client that waits for a tunnel.
    Waiting(Key),
}

/// What happened, for its owner.
#[derive(Debug)]
pub enum Event {
    /// A connection has come in.
    Accepted {
        /// The role's number for the listener.
        listener: u32,
        /// The connection; its owner is still the listener.
        socket: Key,
        /// The peer (`None`: a unix socket).
        peer: Option<SocketAddr>,
    },
    /// A connect has ended. On failure the socket is gone.
    Connected {
        /// Whose.
        owner: Owner,
        /// The socket.
        socket: Key,
        /// How it ended.
        result: Result<(), Errno>,
    },
    /// A receive has ended.
    Received {
        /// Whose.
        owner: Owner,
        /// The socket.
        socket: Key,
        /// What came.
        what: Incoming,
    },
    /// A send has ended.
    Sent {
        /// Whose.
        owner: Owner,
        /// The socket.
        socket: Key,
        /// The chunk, as it was sent.
        chunk: Chunk,
        /// How much of it was taken.
        result: Result<u32, Errno>,
    },
    /// A timer has fired.
    Timer {
        /// Whose.
        owner: Owner,
        /// Which of its timers.
        what: u8,
    },
    /// Something came from outside the thread.
    Message(Message),
}

/// How a receive ended.
#[derive(Debug)]
pub enum Incoming {
    /// Bytes, at least one.
    Data(Chunk),
    /// The peer's FIN.
    End,
    /// The connection is gone.
    Failed(Errno),
}

/// How a socket is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// What the kernel has is still delivered, then FIN.
    Graceful,
    /// RST; what is unsent is dropped.
    Reset,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Free,
    /// An accept is to fill it.
    Awaited {
        listener: SocketId,
    },
    Connecting,
    Open,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    life: Life,
    owner: Owner,
    receiving: bool,
    sending: bool,
    /// The outstanding send waits until all is taken.
    sends_whole: bool,
    /// Such a send came back short: the connection has failed. The kernel tells that once, so a receive would now look like a FIN.
    has_failed: bool,
    parked: bool,
    closing: Option<Closing>,
    accepts: Option<Box<Accepts>>,
}

/// What only a listener has.
#[derive(Debug)]
struct Accepts {
    purpose: Purpose,
    outstanding: usize,
    pause: Duration,
    paused: Option<TimerId>,
}

/// What a core is made of.
pub struct Parts {
    /// The engine.
    pub io: Box<dyn Io>,
    /// The memory the engine fills.
    pub arena: Arena,
    /// This shard's number.
    pub index: usize,
    /// Where questions to the control thread go.
    pub control: UnboundedSender<ToControl>,
    /// The inboxes of all shards of the process, this one's included.
    pub peers: Vec<Postbox>,
    /// The gauges of all shards.
    pub board: Board,
    /// Seeded from the system in production and from the seed in the simulation.
    pub rng: StdRng,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("index", &self.index).field("arena", &self.arena).finish_non_exhaustive()
    }
}

/// See the module.
pub struct Core {
    io: Box<dyn Io>,
    arena: Arena,
    index: usize,
    control: UnboundedSender<ToControl>,
    peers: Vec<Postbox>,
    board: Board,
    rng: StdRng,
    now: Time,
    entries: Vec<Entry>,
    free: Vec<u32>,
    in_use: usize,
    timers: Timers,
    parked: VecDeque<Key>,
    parked_count: usize,
    stale: u64,
    handed_over: u64,
    published: (usize, usize),
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("index", &self.index).field("sockets", &self.in_use).finish_non_exhaustive()
    }
}

impl Core {
    /// Puts a core together; its clock stands at zero.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { io, arena, index, control, peers, board, rng } = parts;
        Self {
            io,
            arena,
            index,
            control,
            peers,
            board,
            rng,
            now: Time::ZERO,
            entries: Vec::new(),
            free: Vec::new(),
            in_use: 0,
            timers: Timers::default(),
            parked: VecDeque::new(),
            parked_count: 0,
            stale: 0,
            handed_over: 0,
            published: (0, 0),
        }
    }

    // ---- what surrounds a role

    /// The time of this turn.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    /// Randomness for challenges, jitter and choices.
    pub const fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// This shard's number.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// The gauges of all shards.
    #[must_use]
    pub const fn board(&self) -> &Board {
        &self.board
    }

    /// Says on the board what this shard has now.
    pub fn publish_tunnels(&mut self, tunnels: usize, idle: usize) {
        if self.published != (tunnels, idle) {
            self.published = (tunnels, idle);
            self.board.publish(self.index, tunnels, idle);
        }
    }

    /// Asks or tells the control thread. It outlives the shards, so a failure means the process is ending.
    pub fn tell_control(&self, message: ToControl) {
        let _ = self.control.send(message);
    }

    /// Posts to another shard.
    pub fn post(&mut self, shard: usize, message: Message) {
        self.handed_over += 1;
        self.peers[shard].post(message);
    }

    /// Whether fewer than half of the slots can be had: then nothing that waits may hold one.
    #[must_use]
    pub fn slots_are_low(&self) -> bool {
        self.io.slots_available() * 2 < self.arena.slots()
    }

    /// Fills in the numbers the core knows.
    pub fn state(&self, state: &mut State) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        state.slots = count(self.arena.slots());
        state.slots_in_use = count(self.arena.slots().saturating_sub(self.io.slots_available()));
        state.parked = count(self.parked_count);
        state.timers = count(self.timers.len());
        state.sockets = count(self.in_use);
        state.stale_completions = self.stale;
        state.handed_over = self.handed_over;
    }

    // ---- timers

    /// Sets a timer; it fires as [`Event::Timer`].
    pub fn set_timer(&mut self, after: Duration, owner: Owner, what: u8) -> TimerId {
        self.timers.set(self.now + after, owner, what)
    }

    /// Unsets a timer.
    pub fn cancel_timer(&mut self, timer: &mut Option<TimerId>) {
        if let Some(id) = timer.take() {
            self.timers.cancel(id);
        }
    }

    // ---- sockets

    /// Takes a descriptor from outside as an open connection.
    pub fn adopt(&mut self, descriptor: OwnedFd, owner: Owner) -> Key {
        let key = self.allocate(Life::Open, owner);
        self.io.adopt(SocketId(key.index), descriptor);
        key
    }

    /// Gives a connection on which nothing is outstanding away; `None` if there is something or the socket is gone.
    pub fn detach(&mut self, socket: Key) -> Option<OwnedFd> {
        let entry = self.entry(socket)?;
        if entry.receiving || entry.sending || entry.parked || entry.life != Life::Open {
            return None;
        }
        let descriptor = self.io.detach(SocketId(socket.index));
        self.invalidate(socket.index);
        self.release(socket.index);
        Some(descriptor)
    }

    /// Starts accepting on a listening descriptor; connections come as [`Event::Accepted`] with `number`.
    pub fn listen(&mut self, descriptor: OwnedFd, number: u32, purpose: Purpose) -> Key {
        let key = self.adopt(descriptor, Owner::Listener(number));
        let accepts = Accepts { purpose, outstanding: 0, pause: Duration::ZERO, paused: None };
        self.entries[key.index as usize].accepts = Some(Box::new(accepts));
        self.post_accepts(key.index);
        key
    }

    /// Makes a connection; the outcome comes as [`Event::Connected`].
    pub fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>, purpose: Purpose, owner: Owner) -> Key {
        let key = self.allocate(Life::Connecting, owner);
        let socket = SocketId(key.index);
        self.io.submit(Op::Connect { socket, to, from, purpose, token: Token::new(Kind::Connect, key.generation, socket) });
        key
    }

    /// Hands the socket's events to another owner from now on.
    pub fn set_owner(&mut self, socket: Key, owner: Owner) {
        if let Some(entry) = self.entry_mut(socket) {
            entry.owner = owner;
        }
    }

    /// Waits for bytes, unless that is being done already.
    pub fn receive(&mut self, socket: Key) {
        let Some(entry) = self.entry_mut(socket) else { return };
        if !entry.receiving && !entry.parked {
            self.submit_receive(socket);
        }
    }

    /// Sends a chunk, of which at least one byte is left. One at a time per socket: [`crate::outbox::Outbox`] sees to it.
    pub fn send(&mut self, socket: Key, chunk: Chunk, wait: bool) {
        let Some(entry) = self.entry_mut(socket) else { return };
        entry.sending = true;
        entry.sends_whole = wait;
        #[cfg(feature = "mutants")]
        if mutants::on(Mutant::SlotFreedAtSubmit) {
            chunk.give_back_early();
        }
        let id = SocketId(socket.index);
        self.io.submit(Op::Send { socket: id, chunk, wait, token: Token::new(Kind::Send, socket.generation, id) });
    }

    /// Says that no more is sent; only when no send is outstanding.
    pub fn shutdown(&mut self, socket: Key) {
        if self.entry(socket).is_some() {
            self.io.submit(Op::Shutdown { socket: SocketId(socket.index) });
        }
    }

    /// Whether the other end of a connection is gone although no event has said so.
    #[must_use]
    pub fn is_lost(&self, socket: Key) -> bool {
        self.entry(socket).is_some() && self.io.is_lost(SocketId(socket.index))
    }

    /// Ends all sockets: flows with RST, so that nothing cut looks whole, the others in order.
    pub(super) fn close_all(&mut self) {
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if matches!(entry.life, Life::Free | Life::Awaited { .. }) || entry.closing.is_some() {
                continue;
            }
            let how = if matches!(entry.owner, Owner::Flow(_) | Owner::Waiting(_)) { Closing::Reset } else { Closing::Graceful };
            let index = u32::try_from(index).expect("descriptors are fewer than 2^32");
            self.close(Key { index, generation: entry.generation }, how);
        }
    }

    /// Whether every socket is closed.
    pub(super) const fn is_empty(&self) -> bool {
        self.in_use == 0
    }

    /// Ends a socket. From now on none of its completions reaches anybody.
    pub fn close(&mut self, socket: Key, how: Closing) {
        let Some(entry) = self.entry_mut(socket) else { return };
        entry.closing = Some(how);
        if entry.parked {
            entry.parked = false;
            self.parked_count -= 1;
        }
        self.invalidate(socket.index);
        if let Some(accepts) = &mut self.entries[socket.index as usize].accepts {
            let mut paused = accepts.paused.take();
            self.cancel_timer(&mut paused);
        }
        if self.is_quiet(socket.index) {
            self.finish_close(socket.index);
        } else {
            self.io.submit(Op::Cancel { socket: SocketId(socket.index) });
        }
    }

    // ---- the turn, for the shard

    /// Runs the engine once.
    pub(super) fn turn_io(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) -> std::io::Result<()> {
        self.rearm_parked();
        let deadline = self.timers.next_in(self.now);
        let wait = match (wait, deadline) {
            (Some(wait), Some(deadline)) => Some(wait.min(deadline)),
            (wait, deadline) => wait.or(deadline),
        };
        self.io.turn(wait, done)
    }

    pub(super) const fn set_now(&mut self, now: Time) {
        self.now = now;
    }

    /// The next timer that is due, if it is for a role.
    pub(super) fn due_timer(&mut self) -> Option<(Owner, u8)> {
        loop {
            match self.timers.pop_due(self.now)? {
                (Owner::Accepting(listener), _) => {
                    if let Some(accepts) = &mut self.entries[listener.0 as usize].accepts {
                        accepts.paused = None;
                        self.post_accepts(listener.0);
                    }
                }
                due => return Some(due),
            }
        }
    }

    /// How long until the next timer.
    #[must_use]
    pub fn next_timer_in(&self) -> Option<Duration> {
        self.timers.next_in(self.now)
    }

    /// Takes a completion in; what it means for its owner, if it has one.
    pub(super) fn on_done(&mut self, done: Done) -> Option<Event> {
        let kind = done.token.kind()?;
        match kind {
            Kind::Wake => None,
            Kind::Accept => self.on_accept(done),
            Kind::Connect => self.on_connect(done),
            Kind::Receive => self.on_receive(done),
            Kind::Send => self.on_send(done),
        }
    }

    // ---- completions

    fn on_accept(&mut self, done: Done) -> Option<Event> {
        let into = done.token.socket().0;
        let Life::Awaited { listener } = self.entries[into as usize].life else {
            self.stale += 1;
            return None;
        };
        let entry = &mut self.entries[listener.0 as usize];
        let closing = entry.closing.is_some();
        let owner = entry.owner;
        if let Some(accepts) = &mut entry.accepts {
            accepts.outstanding -= 1;
            if done.result.is_ok() {
                accepts.pause = Duration::ZERO;
            }
        }
        let event = match (done.result, closing) {
            (Ok(_), false) => {
                let entry = &mut self.entries[into as usize];
                entry.life = Life::Open;
                entry.owner = owner;
                let socket = Key { index: into, generation: entry.generation };
                let peer = if let Payload::Accepted(peer) = done.payload { peer } else { None };
                self.post_accepts(listener.0);
                let Owner::Listener(number) = owner else { return None };
                Some(Event::Accepted { listener: number, socket, peer })
            }
            (Ok(_), true) => {
                let entry = &mut self.entries[into as usize];
                entry.life = Life::Open;
                let socket = Key { index: into, generation: entry.generation };
                self.close(socket, Closing::Reset);
                None
            }
            (Err(error), closing) => {
                self.invalidate(into);
                self.release(into);
                if !closing {
                    self.on_accept_error(listener, error);
                }
                None
            }
        };
        if closing && self.is_quiet(listener.0) {
            self.finish_close(listener.0);
        }
        event
    }

    /// A failing accept costs nothing but a growing pause: the kernel keeps the clients, and the log stays quiet.
    fn on_accept_error(&mut self, listener: SocketId, error: Errno) {
        if matches!(error.0, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) {
            self.post_accepts(listener.0);
            return;
        }
        let Some(accepts) = &mut self.entries[listener.0 as usize].accepts else { return };
        if accepts.paused.is_some() {
            return;
        }
        let first = accepts.pause.is_zero();
        accepts.pause = (accepts.pause * 2).clamp(limits::ACCEPT_PAUSE_MIN, limits::ACCEPT_PAUSE_MAX);
        let pause = accepts.pause;
        let timer = self.set_timer(pause, Owner::Accepting(listener), 0);
        if let Some(accepts) = &mut self.entries[listener.0 as usize].accepts {
            accepts.paused = Some(timer);
        }
        if first {
            warn!(%error, "cannot accept; trying again by itself, up to a second apart");
        }
    }

    fn on_connect(&mut self, done: Done) -> Option<Event> {
        let index = done.token.socket().0;
        let entry = &mut self.entries[index as usize];
        let socket = Key { index, generation: done.token.generation() };
        let closing = entry.closing;
        let owner = entry.owner;
        match done.result {
            Ok(_) => entry.life = Life::Open,
            Err(_) => {
                if closing.is_none() {
                    self.invalidate(index);
                }
                self.release(index);
            }
        }
        if closing.is_some() {
            self.stale += 1;
            if done.result.is_ok() {
                self.finish_close(index);
            }
            return None;
        }
        Some(Event::Connected { owner, socket, result: done.result.map(|_| ()) })
    }

    fn on_receive(&mut self, done: Done) -> Option<Event> {
        let index = done.token.socket().0;
        self.entries[index as usize].receiving = false;
        let (socket, owner) = self.current(done.token)?;
        let what = match (done.result, done.payload) {
            (Ok(0), _) if self.entries[index as usize].has_failed => Incoming::Failed(Errno(libc::ECONNRESET)),
            (Ok(0), _) => Incoming::End,
            (Ok(count), Payload::Received(slot)) => Incoming::Data(slot.received(count as usize)),
            (Err(Errno(libc::ENOBUFS)), _) if !mutants::on(Mutant::EnobufsNotParked) => {
                let entry = &mut self.entries[index as usize];
                entry.parked = true;
                self.parked_count += 1;
                self.parked.push_back(socket);
                return None;
            }
            (Err(Errno(libc::EINTR | libc::EAGAIN)), _) => {
                self.submit_receive(socket);
                return None;
            }
            (Err(error), _) => Incoming::Failed(error),
            (Ok(_), _) => Incoming::Failed(Errno(libc::EIO)),
        };
        Some(Event::Received { owner, socket, what })
    }

    fn on_send(&mut self, done: Done) -> Option<Event> {
        self.entries[done.token.socket().0 as usize].sending = false;
        let (socket, owner) = self.current(done.token)?;
        let Payload::Sent(chunk) = done.payload else { return None };
        let entry = &mut self.entries[socket.index as usize];
        entry.has_failed |= entry.sends_whole && done.result.is_ok_and(|count| (count as usize) < chunk.len());
        Some(Event::Sent { owner, socket, chunk, result: done.result })
    }

    /// The socket and owner a completion is for; if they are gone it is counted, and the close that waited for it goes on.
    fn current(&mut self, token: Token) -> Option<(Key, Owner)> {
        let index = token.socket().0;
        let entry = &self.entries[index as usize];
        let socket = Key { index, generation: token.generation() };
        let owner = entry.owner;
        let is_current = entry.generation == token.generation() && entry.closing.is_none();
        if entry.closing.is_some() && self.is_quiet(index) {
            self.finish_close(index);
        }
        if !is_current {
            self.stale += 1;
            if !mutants::on(Mutant::NoGenerationCheck) {
                return None;
            }
        }
        Some((socket, owner))
    }

    // ---- helpers

    fn entry(&self, socket: Key) -> Option<&Entry> {
        self.entries.get(socket.index as usize).filter(|entry| entry.generation == socket.generation && entry.life != Life::Free)
    }

    fn entry_mut(&mut self, socket: Key) -> Option<&mut Entry> {
        self.entries.get_mut(socket.index as usize).filter(|entry| entry.generation == socket.generation && entry.life != Life::Free)
    }

    fn allocate(&mut self, life: Life, owner: Owner) -> Key {
        self.in_use += 1;
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.life = life;
            entry.owner = owner;
            return Key { index, generation: entry.generation };
        }
        let index = u32::try_from(self.entries.len()).expect("descriptors are fewer than 2^32");
        self.entries.push(Entry {
            generation: 0,
            life,
            owner,
            receiving: false,
            sending: false,
            sends_whole: false,
            has_failed: false,
            parked: false,
            closing: None,
            accepts: None,
        });
        Key { index, generation: 0 }
    }

    /// Makes every key of the socket that is out there an old one.
    fn invalidate(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation = (entry.generation + 1) & 0x00ff_ffff;
    }

    /// Makes the place free; the socket is closed, given away, or never came to be.
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.life = Life::Free;
        entry.has_failed = false;
        entry.closing = None;
        entry.accepts = None;
        self.free.push(index);
        self.in_use -= 1;
    }

    /// Whether nothing is outstanding.
    fn is_quiet(&self, index: u32) -> bool {
        let entry = &self.entries[index as usize];
        let accepting = entry.accepts.as_ref().is_some_and(|accepts| accepts.outstanding > 0);
        !entry.receiving && !entry.sending && !accepting && entry.life == Life::Open
    }

    fn finish_close(&mut self, index: u32) {
        let reset = self.entries[index as usize].closing == Some(Closing::Reset);
        self.io.submit(Op::Close { socket: SocketId(index), reset });
        self.release(index);
    }

    fn submit_receive(&mut self, socket: Key) {
        self.entries[socket.index as usize].receiving = true;
        let id = SocketId(socket.index);
        let max = u32::try_from(limits::SLOT_DATA).expect("a slot is 64 KiB");
        self.io.submit(Op::Receive { socket: id, max, token: Token::new(Kind::Receive, socket.generation, id) });
    }

    /// One waiting receive for each slot that can be had, in the order in which they came.
    fn rearm_parked(&mut self) {
        if self.parked.is_empty() || mutants::on(Mutant::ParkedNeverRearmed) {
            return;
        }
        let mut available = self.io.slots_available();
        while available > 0 {
            let Some(socket) = self.parked.pop_front() else { return };
            let Some(entry) = self.entry_mut(socket) else { continue };
            if !entry.parked {
                continue;
            }
            entry.parked = false;
            self.parked_count -= 1;
            available -= 1;
            self.submit_receive(socket);
        }
    }

    fn post_accepts(&mut self, index: u32) {
        let listener = SocketId(index);
        loop {
            let entry = &mut self.entries[index as usize];
            if entry.closing.is_some() {
                return;
            }
            let owner = entry.owner;
            let Some(accepts) = &mut entry.accepts else { return };
            if accepts.outstanding >= limits::ACCEPTS_POSTED || accepts.paused.is_some() {
                return;
            }
            accepts.outstanding += 1;
            let purpose = accepts.purpose;
            let into = self.allocate(Life::Awaited { listener }, owner);
            let token = Token::new(Kind::Accept, into.generation, SocketId(into.index));
            self.io.submit(Op::Accept { listener, into: SocketId(into.index), purpose, token });
        }
    }
}
