//! What both roles do alike: bytes, ends and failures between a flow's connection and its tunnel. How tunnels come to be and how
//! flows are opened is the roles' own.
//!
//! ```text
//!   connection ──Received──▶ link.send ──▶ tunnel            a full outbox of the tunnel: the connection is not read
//!   connection ◀──outbox───  Data       ◀── tunnel            a full outbox of the connection: the tunnel is not read
//!
//!   FIN in ──▶ own end ─┐
//!                       ├─▶ both: detached, the key is free at once; what is queued is still written, then closed
//!   FIN out ◀─ peer end ┘
//! ```
//!
//! What always holds between calls:
//! * a flow with a tunnel has its key taken there, and the tunnel knows the flow; a detached flow has no tunnel;
//! * a flow has one timer at most; it and the flow go together;
//! * a tunnel is in `idle` exactly when nothing is on its link.

mod ends;
mod flows;
mod leaving;
mod tunnels;

use std::net::SocketAddr;
use std::time::Duration;

use tracing::debug;

use self::leaving::Leaving;
use crate::limits;
use crate::link::{Handle, LINK_TIMER, Link, Pressure, Why};
use crate::outbox::Outbox;
use crate::protocol::Side;
use crate::protocol::socks5::Target;
use crate::shard::core::{Closing, Core};
use crate::shard::slab::{GenSlab, Key};
use crate::shard::state::State;
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// A flow's timers, as [`crate::shard::core::Event::Timer`] names them. The roles' own start at [`FIRST_ROLE_TIMER`].
const WATCH: u8 = 0;
/// The first number free for timers of the roles.
pub const FIRST_ROLE_TIMER: u8 = 16;
/// A tunnel's timers.
const BLOCKED: u8 = 1;
const DISCARDING: u8 = 2;
const ENDING: u8 = 4;
const _: () = assert!(LINK_TIMER > DISCARDING && LINK_TIMER < ENDING && ENDING < FIRST_ROLE_TIMER);

/// Limits that the operator can set.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a half-open or detached flow without progress.
    pub linger: Duration,
    /// For a flow without a byte either way (`None`: without end).
    pub idle: Option<Duration>,
}

/// Bounds that tests reach with less.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// As [`limits::HELD_BYTES`].
    pub held_bytes: usize,
    /// As if that many streams had been on each tunnel.
    pub ids_used: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { held_bytes: limits::HELD_BYTES, ids_used: 0 }
    }
}

/// An authenticated tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// The wire.
    pub link: Box<dyn Link>,
    /// The role's number for the other end.
    pub peer: usize,
    /// Since when nothing has been on it.
    pub idle_since: Time,
    /// When it was authenticated.
    pub up_since: Time,
    /// Takes no new flow, and is closed when the last has ended.
    pub retired: bool,
    /// A flow has been on it.
    has_carried: bool,
    blocked_timer: Option<TimerId>,
    discarding_timer: Option<TimerId>,
    /// Set while our FIN is on its way and the peer's has not come.
    ending_timer: Option<TimerId>,
    is_dirty: bool,
    is_idle: bool,
    /// Keys taken and whether it was unread, when last looked at.
    seen: (usize, bool),
}

/// One proxied connection.
#[derive(Debug)]
pub struct Flow<E> {
    /// Its tunnel; `None` when both ends have passed, or when it waits for one.
    pub tunnel: Option<Key>,
    /// What it is called there.
    pub handle: Handle,
    /// The tunnel it came by, to be told when its connection is gone.
    origin: Key,
    /// Its connection; `None` while that is still being made.
    pub socket: Option<Key>,
    /// Whether the role holds its reading back.
    pub is_held: bool,
    /// Whether bytes of the connection have been sent into a tunnel.
    pub has_sent: bool,
    /// Whether anything has come for it from a tunnel.
    pub has_received: bool,
    /// Whether the exit has said that its connection is up; 0x80 cannot, so there it is taken for so.
    pub is_opened: bool,
    /// What the role keeps with it.
    pub extra: E,
    /// What waits for its connection.
    pub outbox: Outbox,
    reading: Reading,
    own_end: bool,
    peer_end: bool,
    /// Bytes at the front of the outbox that are no bytes of the flow: a reply to a SOCKS5 client.
    own_bytes: usize,
    /// Given up by the peer or lost with its tunnel: what came before is still written, then its connection is reset.
    is_cut: bool,
    /// Its connection takes no bytes any more. What it gave before that is still passed on, then the flow is given up.
    is_broken: bool,
    /// What its connection still sends is dropped; only its end is waited for, so that closing does not destroy what was written.
    is_deaf: bool,
    /// Since when its full outbox has kept the tunnel unread.
    blocking_since: Option<Time>,
    last_progress: Time,
    timer: Option<TimerId>,
    is_dirty: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    Off,
    Armed,
    WaitingForRoom,
    WaitingForCredit,
    Ended,
}

/// What a role has to do.
#[derive(Debug)]
pub enum Notice {
    /// A flow is wanted (exit): answer with [`Relay::accept_flow`] or [`Relay::refuse`].
    Open(Handle, Target),
    /// A flow's connection is up, from this address (entry, 0x81).
    Opened(Key, SocketAddr),
    /// A flow has come to nothing, for this reason (entry, 0x81): take it back.
    Refused(Key, u8),
    /// The peer ended a flow whose reading is held and that has seen no byte (entry): its address does not work.
    EndedWhileHeld(Key),
}

/// What a lost tunnel leaves to its role.
#[derive(Debug)]
pub struct Lost {
    /// The role's number for the other end.
    pub peer: usize,
    /// How long it was up.
    pub was_up: Duration,
    /// A flow has been on it, so it ended in the course of work.
    pub has_carried: bool,
    /// Flows on which nothing has passed yet: they can go to another tunnel (entry only).
    pub untouched: Vec<Key>,
    /// Flows whose clients have had no answer, and whose first bytes are lost: take them back (entry, 0x81).
    pub unanswered: Vec<Key>,
}

/// See the module.
#[derive(Debug)]
pub struct Relay<E> {
    /// The tunnels.
    pub tunnels: GenSlab<Tunnel>,
    /// The flows.
    pub flows: GenSlab<Flow<E>>,
    side: Side,
    patience: Patience,
    #[doc(hidden)]
    pub bounds: Bounds,
    /// Tunnels that are over, whose peers are being told why.
    leaving: Leaving,
    /// Idle tunnels, the one used last at the end.
    idle: Vec<Key>,
    dirty_tunnels: Vec<Key>,
    dirty_flows: Vec<Key>,
    /// Flows for which a tunnel has room again, before they are told.
    woken: Vec<Key>,
    abandoned: Vec<E>,
    bytes_before: (u64, u64),
    has_openings: bool,
    /// Whether the tunnels' flows have windows: all of a process's do, or none.
    has_windows: bool,
    /// Bytes that wait in the flows' outboxes.
    held: usize,
    pressure: Pressure,
}

impl<E> Relay<E> {
    /// An empty relay of one side.
    #[must_use]
    pub fn new(side: Side, patience: Patience) -> Self {
        Self {
            tunnels: GenSlab::default(),
            flows: GenSlab::default(),
            side,
            patience,
            bounds: Bounds::default(),
            leaving: Leaving::default(),
            idle: Vec::new(),
            dirty_tunnels: Vec::new(),
            dirty_flows: Vec::new(),
            woken: Vec::new(),
            abandoned: Vec::new(),
            bytes_before: (0, 0),
            has_openings: false,
            has_windows: false,
            held: 0,
            pressure: Pressure::None,
        }
    }

    /// Sends everything that was queued in this turn.
    pub fn flush(&mut self, core: &mut Core) {
        self.relieve(core);
        let mut dirty = std::mem::take(&mut self.dirty_tunnels);
        for tunnel in dirty.drain(..) {
            if let Some(here) = self.tunnels.get_mut(tunnel) {
                here.is_dirty = false;
                here.link.flush(core, tunnel);
            }
            // A stream's last frame is its end: what is on the tunnel may be less now.
            self.look_at(core, tunnel);
        }
        use_again(&mut self.dirty_tunnels, dirty);
        let mut dirty = std::mem::take(&mut self.dirty_flows);
        for flow in dirty.drain(..) {
            if let Some(here) = self.flows.get_mut(flow) {
                here.is_dirty = false;
                self.flush_flow(core, flow);
            }
        }
        use_again(&mut self.dirty_flows, dirty);
    }

    fn flush_flow(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        let Some(socket) = here.socket else {
            // Destinations that do not answer must not keep the slots of those that do.
            here.outbox.let_go_of_slots(core);
            return;
        };
        here.outbox.flush(core, socket);
        if here.is_cut && here.outbox.bytes() == 0 {
            self.remove_flow(core, flow, Closing::ResetWhenSent);
        } else if here.outbox.is_done() && here.tunnel.is_none() && !here.is_deaf {
            self.remove_flow(core, flow, Closing::Graceful);
        }
    }

    /// What the flows hold has a budget. With windows of their own they fill it in stages; beyond it the one that holds most is given up.
    fn relieve(&mut self, core: &mut Core) {
        if !self.has_windows {
            return;
        }
        let budget = self.bounds.held_bytes;
        let pressure = match self.held {
            held if held >= budget / 4 * 3 => Pressure::Full,
            held if held >= budget / 2 => Pressure::High,
            _ => Pressure::None,
        };
        if pressure != self.pressure {
            self.pressure = pressure;
            for tunnel in self.tunnels.keys() {
                if let Some(here) = self.tunnels.get_mut(tunnel) {
                    here.link.set_pressure(pressure);
                }
                self.touch(core, tunnel);
            }
        }
        while self.held > budget {
            let most = self.flows.iter().max_by_key(|(_, flow)| flow.outbox.bytes()).map(|(key, _)| key);
            let Some(flow) = most else { return };
            debug!(flow = ?flow, "ended: it held most of a full shard");
            let _told = self.give_up(core, flow, Why::Limit);
        }
    }

    fn mark_dirty(&mut self, flow: Key) {
        if let Some(here) = self.flows.get_mut(flow)
            && !here.is_dirty
        {
            here.is_dirty = true;
            self.dirty_flows.push(flow);
        }
    }

    /// Fills in the numbers the relay knows.
    pub fn state(&self, state: &mut State) {
        for (_, flow) in self.flows.iter() {
            if flow.tunnel.is_none() {
                state.detached += 1;
            } else {
                state.flows += 1;
                state.half_open += u64::from(flow.own_end != flow.peer_end);
            }
        }
        state.held_bytes = self.held as u64;
        state.tunnels = self.tunnels.len() as u64;
        state.tunnels_idle = self.idle.len() as u64;
        (state.bytes_from_tunnels, state.bytes_to_tunnels) = self.bytes_before;
        for (_, tunnel) in self.tunnels.iter() {
            let (bytes_in, bytes_out) = tunnel.link.bytes();
            state.bytes_from_tunnels += bytes_in;
            state.bytes_to_tunnels += bytes_out;
        }
    }
}

/// Keeps the memory of a list that was worked off for what has come to it meanwhile, so that a turn does not allocate.
fn use_again(list: &mut Vec<Key>, mut emptied: Vec<Key>) {
    emptied.append(list);
    *list = emptied;
}

const _: () = assert!(size_of::<Flow<Box<()>>>() <= 160, "an idle flow is small");

impl<E> Flow<E> {
    /// How long the flow may go without progress in its present state.
    const fn limit(&self, patience: &Patience) -> Option<Duration> {
        if self.own_end || self.peer_end || self.is_broken || self.tunnel.is_none() { Some(patience.linger) } else { patience.idle }
    }
}
