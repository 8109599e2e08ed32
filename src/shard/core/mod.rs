//! What a role works with: sockets under generational keys, timers, randomness, the clock of this turn. Turns completions into
//! events for their owners, and closes sockets in the one order that is safe.
//!
//! ```text
//!   close ──▶ key invalid at once ──▶ cancel what is outstanding ──▶ every Done (dropped, counted) ──▶ Op::Close ──▶ place free
//!                                                                                      ResetWhenSent waits here ──┘
//! ```
//!
//! What always holds between calls:
//! * per socket at most one receive, one send and one connect are outstanding, also while it is parked or closing;
//! * a socket's place is free only when nothing is outstanding on it and it is closed, so a late completion never meets a new socket
//!   in the kernel's sense; in ours its generation is old, and it is dropped;
//! * receives that found no slot wait in `parked`, first in, first out.

mod accepting;
mod completions;
mod event;
mod leaving;
mod sockets;

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::sync::mpsc::UnboundedSender;

pub use self::event::{Closing, Event, Incoming, Owner};
use self::sockets::{Entry, Life};
use super::board::Board;
use super::buffers::Arena;
use super::inbox::{Message, Postbox, ToControl};
use super::io::{Done, Io, Kind, SocketId};
use super::slab::Key;
use super::state::State;
use super::table::Table;
use super::time::Time;
use super::timers::{TimerId, Timers};

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
    entries: Table<Entry>,
    free: Vec<u32>,
    in_use: usize,
    timers: Timers,
    parked: VecDeque<Key>,
    parked_count: usize,
    stale: u64,
    handed_over: u64,
    published: (usize, usize),
    scratch: Vec<u8>,
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
            entries: Table::default(),
            free: Vec::new(),
            in_use: 0,
            timers: Timers::default(),
            parked: VecDeque::new(),
            parked_count: 0,
            stale: 0,
            handed_over: 0,
            published: (0, 0),
            scratch: Vec::new(),
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

    /// A tunnel stays here: it counts from now on and not only when this turn's are published, or all that log in in one turn would stay.
    pub fn expect_tunnel(&mut self) {
        self.board.expect_tunnel(self.index);
        self.published = (usize::MAX, usize::MAX);
    }

    /// Asks or tells the control thread. It outlives the shards, so a failure means the process is ending.
    pub fn tell_control(&self, message: ToControl) {
        let _ = self.control.send(message);
    }

    /// Tells another shard something.
    pub fn tell(&self, shard: usize, message: Message) {
        self.peers[shard].post(message);
    }

    /// Gives another shard something.
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
        // The places that accepts are to fill have no descriptor yet.
        let open = |entry: &&Entry| matches!(entry.life, Life::Connecting | Life::Open);
        state.sockets = count(self.entries.iter().filter(open).count());
        state.stale_completions = self.stale;
        state.handed_over = self.handed_over;
    }

    /// An empty buffer that one caller at a time puts bytes together in: it keeps its memory from turn to turn.
    pub fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.scratch)
    }

    /// Gives the buffer back.
    pub fn put_scratch(&mut self, mut scratch: Vec<u8>) {
        scratch.clear();
        self.scratch = scratch;
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
                (Owner::Accepting(SocketId(index)), leaving::LOOK) => self.finish_close(index),
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
}
