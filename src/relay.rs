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

use std::time::Duration;

use tracing::debug;

use crate::limits;
use crate::link::{Link, LinkEvent, LinkFault, Reset};
use crate::mutants::{self, Mutant};
use crate::outbox::Outbox;
use crate::protocol::v80::Side;
use crate::protocol::v80::frame::Destination;
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Incoming, Owner};
use crate::shard::io::Errno;
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

/// Limits that the operator can set.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a half-open or detached flow without progress.
    pub linger: Duration,
    /// For a flow without a byte either way (`None`: without end).
    pub idle: Option<Duration>,
}

/// An authenticated tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// The wire.
    pub link: Link,
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
    /// Its key on the tunnel.
    pub destination: Destination,
    /// Its connection.
    pub socket: Key,
    /// Whether the connection is up.
    pub is_connected: bool,
    /// Whether the role holds its reading back.
    pub is_held: bool,
    /// Whether bytes of the connection have been sent into a tunnel.
    pub has_sent: bool,
    /// Whether anything has come for it from a tunnel.
    pub has_received: bool,
    /// What the role keeps with it.
    pub extra: E,
    /// What waits for its connection.
    pub outbox: Outbox,
    reading: Reading,
    own_end: bool,
    peer_end: bool,
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
    Ended,
}

/// What a role has to do.
#[derive(Debug)]
pub enum Notice {
    /// A flow is wanted (exit): answer with [`Relay::add_flow`] and `attach`, or `refuse`, on the tunnel's link.
    Open(Destination),
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
    /// Idle tunnels, the one used last at the end.
    idle: Vec<Key>,
    dirty_tunnels: Vec<Key>,
    dirty_flows: Vec<Key>,
    bytes_before: (u64, u64),
    has_openings: bool,
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
            idle: Vec::new(),
            dirty_tunnels: Vec::new(),
            dirty_flows: Vec::new(),
            bytes_before: (0, 0),
            has_openings: false,
        }
    }

    // ---- tunnels

    /// Takes an authenticated tunnel in and starts reading it.
    pub fn add_tunnel(&mut self, core: &mut Core, link: Link, peer: usize) -> Key {
        let socket = link.socket();
        let now = core.now();
        let tunnel = self.tunnels.insert(Tunnel {
            link,
            peer,
            idle_since: now,
            up_since: now,
            retired: false,
            has_carried: false,
            blocked_timer: None,
            discarding_timer: None,
            is_dirty: false,
            is_idle: true,
            seen: (0, false),
        });
        self.idle.push(tunnel);
        self.has_openings = true;
        core.set_owner(socket, Owner::Tunnel(tunnel));
        core.receive(socket);
        tunnel
    }

    /// Idle tunnels, the one used last at the end.
    #[must_use]
    pub fn idle_tunnels(&self) -> &[Key] {
        &self.idle
    }

    /// Whether, since last asked, a tunnel has come, a key become free, or an unread tunnel been read again.
    pub const fn take_openings(&mut self) -> bool {
        std::mem::replace(&mut self.has_openings, false)
    }

    /// Takes bytes from a tunnel in. Then ask [`Relay::next_notice`] until there is none.
    pub fn on_tunnel_data(&mut self, tunnel: Key, chunk: Chunk) {
        if let Some(tunnel) = self.tunnels.get_mut(tunnel) {
            tunnel.link.take_in(chunk);
        }
    }

    /// Works on what the tunnel has said, up to the next thing that is the role's to decide.
    ///
    /// # Errors
    /// The peer's fault; end the tunnel with [`Relay::end_tunnel`].
    pub fn next_notice(&mut self, core: &mut Core, tunnel: Key) -> Result<Option<Notice>, LinkFault> {
        loop {
            let Some(here) = self.tunnels.get_mut(tunnel) else { return Ok(None) };
            let Some(event) = here.link.next_event(core.now())? else { break };
            match event {
                LinkEvent::Open(destination) => return Ok(Some(Notice::Open(destination))),
                LinkEvent::Data(flow, chunk) => self.on_data(core, tunnel, flow, chunk),
                LinkEvent::Finished(flow) => {
                    if self.flows.get(flow).is_some_and(|flow| flow.is_held && !flow.has_received) {
                        return Ok(Some(Notice::EndedWhileHeld(flow)));
                    }
                    self.on_peer_end(core, flow);
                }
            }
        }
        self.touch(core, tunnel);
        if let Some(here) = self.tunnels.get(tunnel)
            && !here.link.is_blocked()
        {
            core.receive(here.link.socket());
        }
        Ok(None)
    }

    /// Takes the end of a tunnel's send in. `Err`: the tunnel is broken; end it.
    ///
    /// # Errors
    /// The socket's failure.
    pub fn on_tunnel_sent(&mut self, core: &mut Core, tunnel: Key, chunk: Chunk, result: Result<u32, Errno>) -> Result<(), Errno> {
        let Some(here) = self.tunnels.get_mut(tunnel) else { return Ok(()) };
        let woken = here.link.on_sent(chunk, result)?;
        here.link.flush(core);
        for flow in woken {
            if let Some(flow) = self.flows.get_mut(flow)
                && flow.reading == Reading::WaitingForRoom
            {
                flow.reading = Reading::Off;
            }
            self.read_on(core, flow);
        }
        Ok(())
    }

    /// Ends a tunnel: its flows are reset, and the role gets those that nothing has touched.
    pub fn end_tunnel(&mut self, core: &mut Core, tunnel: Key, how: Closing) -> Option<Lost> {
        let mut here = self.tunnels.remove(tunnel)?;
        core.cancel_timer(&mut here.blocked_timer);
        core.cancel_timer(&mut here.discarding_timer);
        self.idle.retain(|&idle| idle != tunnel);
        let (bytes_in, bytes_out) = here.link.bytes();
        self.bytes_before.0 += bytes_in;
        self.bytes_before.1 += bytes_out;
        core.close(here.link.socket(), how);
        let mut untouched = Vec::new();
        for key in here.link.flow_keys() {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            flow.tunnel = None;
            flow.blocking_since = None;
            if self.side == Side::Entry && flow.peer_end {
                // The reply is whole; only the request is cut.
                self.detach(core, key);
            } else if self.side == Side::Entry && !flow.has_sent && !flow.has_received {
                untouched.push(key);
            } else {
                self.remove_flow(core, key, Closing::Reset);
            }
        }
        Some(Lost { peer: here.peer, was_up: core.now().since(here.up_since), has_carried: here.has_carried, untouched })
    }

    /// The tunnels whose other end is gone without a completion to say so: looked for where something is stuck.
    #[must_use]
    pub fn lost_tunnels(&self, core: &Core) -> Vec<Key> {
        let stuck = self.tunnels.iter().filter(|(_, tunnel)| tunnel.link.is_blocked() || !tunnel.link.is_flushed());
        stuck.filter(|(_, tunnel)| core.is_lost(tunnel.link.socket())).map(|(key, _)| key).collect()
    }

    /// A tunnel's timer has fired. `true`: it is done with and must be ended.
    pub fn on_tunnel_timer(&mut self, core: &mut Core, tunnel: Key, what: u8) -> bool {
        let Some(here) = self.tunnels.get_mut(tunnel) else { return false };
        if what == DISCARDING {
            here.discarding_timer = None;
            let since = here.link.discarding_since();
            if since.is_some_and(|since| core.now().since(since) >= limits::DISCARDING) {
                here.retired = true;
            }
        } else if what == BLOCKED {
            here.blocked_timer = None;
            if here.link.flows() > 1 {
                self.cut_blocking_flows(core, tunnel);
            }
        }
        self.touch(core, tunnel);
        self.tunnels.get(tunnel).is_some_and(|here| here.retired && here.link.flows() == 0)
    }

    /// On a shared tunnel two flows can lock each other up for good (0x80 §3): who has kept it unread too long is cut.
    fn cut_blocking_flows(&mut self, core: &mut Core, tunnel: Key) {
        let Some(here) = self.tunnels.get(tunnel) else { return };
        for key in here.link.flow_keys() {
            let since = self.flows.get(key).and_then(|flow| flow.blocking_since);
            if since.is_some_and(|since| core.now().since(since) >= limits::BLOCKED_SHARED_TUNNEL) {
                debug!(flow = ?key, "cut: its full queue kept a shared tunnel unread");
                let _told = self.give_up(core, key, false);
            }
        }
    }

    /// Brings what depends on a tunnel's link up to date after it may have changed: the idle stack, the timers, the list to flush.
    pub fn touch(&mut self, core: &mut Core, tunnel: Key) {
        let Some(here) = self.tunnels.get_mut(tunnel) else { return };
        if !here.is_dirty {
            here.is_dirty = true;
            self.dirty_tunnels.push(tunnel);
        }
        let is_idle = here.link.is_idle();
        if is_idle != here.is_idle {
            here.is_idle = is_idle;
            if is_idle {
                here.idle_since = core.now();
                self.idle.push(tunnel);
            } else {
                self.idle.retain(|&idle| idle != tunnel);
            }
        }
        let seen = (here.link.keys(), here.link.is_blocked());
        self.has_openings |= seen < here.seen;
        here.seen = seen;
        if here.link.is_blocked() && here.blocked_timer.is_none() {
            here.blocked_timer = Some(core.set_timer(limits::BLOCKED_SHARED_TUNNEL, Owner::Tunnel(tunnel), BLOCKED));
        } else if !here.link.is_blocked() {
            core.cancel_timer(&mut here.blocked_timer);
        }
        if here.link.discarding_since().is_some() && here.discarding_timer.is_none() && !here.retired {
            here.discarding_timer = Some(core.set_timer(limits::DISCARDING, Owner::Tunnel(tunnel), DISCARDING));
        } else if here.link.discarding_since().is_none() {
            core.cancel_timer(&mut here.discarding_timer);
        }
    }

    // ---- flows: opening

    /// Adds a flow over a socket; the caller has its key taken on the tunnel's link next.
    pub fn add_flow(&mut self, core: &mut Core, tunnel: Key, destination: Destination, socket: Key, is_connected: bool, extra: E) -> Key {
        let flow = self.flows.insert(Flow {
            tunnel: Some(tunnel),
            destination,
            socket,
            is_connected,
            is_held: false,
            has_sent: false,
            has_received: false,
            extra,
            outbox: Outbox::default(),
            reading: Reading::Off,
            own_end: false,
            peer_end: false,
            blocking_since: None,
            last_progress: core.now(),
            timer: None,
            is_dirty: false,
        });
        core.set_owner(socket, Owner::Flow(flow));
        if let Some(place) = self.tunnels.get_mut(tunnel) {
            place.has_carried = true;
        }
        flow
    }

    /// Sets the flow's one timer; the role's timers are numbered from [`FIRST_ROLE_TIMER`].
    pub fn set_flow_timer(&mut self, core: &mut Core, flow: Key, after: Duration, what: u8) {
        if let Some(here) = self.flows.get_mut(flow) {
            core.cancel_timer(&mut here.timer);
            here.timer = Some(core.set_timer(after, Owner::Flow(flow), what));
        }
    }

    /// Holds the flow's reading back for a while; the role is told by timer `what`, and calls [`Relay::start`].
    pub fn hold(&mut self, core: &mut Core, flow: Key, pause: Duration, what: u8) {
        if let Some(here) = self.flows.get_mut(flow) {
            here.is_held = true;
            self.set_flow_timer(core, flow, pause, what);
        }
    }

    /// Lets the flow go on with an outbox in which something may be under way.
    pub fn put_outbox(&mut self, flow: Key, outbox: Outbox) {
        if let Some(here) = self.flows.get_mut(flow) {
            here.outbox = outbox;
            self.mark_dirty(flow);
        }
    }

    /// The flow's connection is up: bytes may pass, and its idle time counts.
    pub fn start(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.is_connected = true;
        here.is_held = false;
        here.last_progress = core.now();
        self.mark_dirty(flow);
        self.watch(core, flow);
        self.read_on(core, flow);
    }

    /// Queues bytes of the role's own for the flow's connection (a SOCKS5 reply).
    pub fn write(&mut self, flow: Key, bytes: &[u8]) {
        if let Some(here) = self.flows.get_mut(flow) {
            here.outbox.push(Chunk::copy_of(bytes));
            self.mark_dirty(flow);
        }
    }

    /// Sends bytes as if they had been received from the flow's connection.
    pub fn send(&mut self, core: &mut Core, flow: Key, chunk: Chunk) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        let (tunnel, destination) = (here.tunnel, here.destination);
        here.has_sent = true;
        if let Some(tunnel) = tunnel
            && let Some(place) = self.tunnels.get_mut(tunnel)
        {
            place.link.send(destination, chunk);
            self.touch(core, tunnel);
        }
    }

    // ---- flows: bytes

    /// A receive on a flow's connection has ended. `Some`: its tunnel was lost with it.
    pub fn on_flow_received(&mut self, core: &mut Core, flow: Key, what: Incoming) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        here.reading = Reading::Off;
        match what {
            Incoming::Data(chunk) => {
                here.last_progress = core.now();
                self.send(core, flow, chunk);
                self.read_on(core, flow);
                None
            }
            Incoming::End => {
                here.reading = Reading::Ended;
                here.own_end = true;
                let (tunnel, destination) = (here.tunnel, here.destination);
                if let Some(tunnel) = tunnel
                    && let Some(place) = self.tunnels.get_mut(tunnel)
                {
                    place.link.finish(destination, core.now());
                    self.touch(core, tunnel);
                }
                self.after_end(core, flow);
                None
            }
            Incoming::Failed(error) => {
                debug!(flow = ?flow, %error, "connection failed");
                self.give_up(core, flow, true)
            }
        }
    }

    /// A send on a flow's connection has ended. `Some`: its tunnel was lost with it.
    pub fn on_flow_sent(&mut self, core: &mut Core, flow: Key, chunk: Chunk, result: Result<u32, Errno>) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        match here.outbox.on_sent(chunk, result) {
            Ok(count) => {
                if count > 0 {
                    here.last_progress = core.now();
                }
                self.unblock_if_drained(core, flow);
                self.flush_flow(core, flow);
                None
            }
            Err(error) => {
                debug!(flow = ?flow, %error, "connection failed");
                self.give_up(core, flow, true)
            }
        }
    }

    fn on_data(&mut self, core: &mut Core, tunnel: Key, flow: Key, chunk: Chunk) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.has_received = true;
        here.last_progress = core.now();
        here.outbox.push(chunk);
        if here.outbox.bytes() > limits::QUEUE_BYTES && here.blocking_since.is_none() {
            here.blocking_since = Some(core.now());
            if let Some(place) = self.tunnels.get_mut(tunnel) {
                place.link.block();
            }
        }
        self.mark_dirty(flow);
    }

    /// A drained queue lets its tunnel be read again.
    fn unblock_if_drained(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.blocking_since.is_some() && here.outbox.bytes() <= limits::QUEUE_BYTES / 2 {
            here.blocking_since = None;
            if let Some(tunnel) = here.tunnel {
                self.unblock(core, tunnel);
            }
        }
    }

    fn unblock(&mut self, core: &mut Core, tunnel: Key) {
        let Some(place) = self.tunnels.get_mut(tunnel) else { return };
        place.link.unblock();
        if !place.link.is_blocked() {
            core.receive(place.link.socket());
        }
        self.touch(core, tunnel);
    }

    /// Reads the flow's connection, if its tunnel has room.
    fn read_on(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.reading != Reading::Off || !here.is_connected || here.is_held {
            return;
        }
        let Some(place) = here.tunnel.and_then(|tunnel| self.tunnels.get_mut(tunnel)) else { return };
        if place.link.has_room() {
            here.reading = Reading::Armed;
            core.receive(here.socket);
        } else {
            here.reading = Reading::WaitingForRoom;
            place.link.wait_for_room(flow);
        }
    }

    // ---- flows: ends

    /// The peer sends no more on this flow.
    pub fn on_peer_end(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.own_end && mutants::on(Mutant::CrossedEndLost) {
            return;
        }
        here.peer_end = true;
        here.has_received = true;
        here.last_progress = core.now();
        here.outbox.finish();
        self.mark_dirty(flow);
        self.after_end(core, flow);
    }

    fn after_end(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.own_end && here.peer_end {
            if here.blocking_since.take().is_some()
                && let Some(tunnel) = here.tunnel
            {
                self.unblock(core, tunnel);
            }
            self.detach(core, flow);
        } else if here.is_connected {
            self.watch(core, flow);
        }
    }

    /// Both ends have passed: the key is free, and the connection lives on without a tunnel until its bytes are written.
    fn detach(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.tunnel = None;
        here.outbox.finish();
        if here.is_connected {
            self.watch(core, flow);
        }
        self.mark_dirty(flow);
    }

    /// Gives a flow up, whatever its state: the peer is told as far as 0x80 can say it, the connection is reset.
    /// `is_broken`: the connection failed, and did not just take too long. `Some`: the tunnel had to end.
    pub fn give_up(&mut self, core: &mut Core, flow: Key, is_broken: bool) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        let (tunnel, destination) = (here.tunnel.take(), here.destination);
        let unfinished = is_broken
            && match self.side {
                // One of the ends is missing, or there would be no tunnel: a request that was cut, or a reply that nobody takes.
                Side::Entry => true,
                Side::Exit => !here.own_end && here.has_sent,
            };
        let was_blocking = here.blocking_since.take().is_some();
        self.remove_flow(core, flow, Closing::Reset);
        let tunnel = tunnel?;
        let place = self.tunnels.get_mut(tunnel)?;
        match place.link.reset(destination, unfinished, core.now()) {
            Reset::TunnelMustEnd => return self.end_tunnel(core, tunnel, Closing::Graceful),
            Reset::Told => {}
        }
        if was_blocking {
            self.unblock(core, tunnel);
        }
        self.touch(core, tunnel);
        None
    }

    /// Takes a flow that nothing has touched out of the relay, to be opened again elsewhere. Its socket stays open.
    pub fn take_back(&mut self, core: &mut Core, flow: Key) -> Option<Flow<E>> {
        let mut here = self.flows.remove(flow)?;
        core.cancel_timer(&mut here.timer);
        if let Some(tunnel) = here.tunnel
            && let Some(place) = self.tunnels.get_mut(tunnel)
        {
            let _told = place.link.reset(here.destination, false, core.now());
            self.touch(core, tunnel);
        }
        Some(here)
    }

    /// A flow's timer has fired: its patience is at an end, or it has moved since. `Some`: its tunnel was lost with it.
    pub fn on_flow_timer(&mut self, core: &mut Core, flow: Key) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        here.timer = None;
        let limit = here.limit(&self.patience)?;
        if core.now().since(here.last_progress) >= limit {
            debug!(flow = ?flow, ?limit, "ended: no progress");
            return self.give_up(core, flow, false);
        }
        self.watch(core, flow);
        None
    }

    /// Sets the timer for the patience that applies now.
    fn watch(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        match here.limit(&self.patience) {
            Some(limit) => {
                let left = limit.saturating_sub(core.now().since(here.last_progress));
                self.set_flow_timer(core, flow, left, WATCH);
            }
            None => core.cancel_timer(&mut here.timer),
        }
    }

    fn remove_flow(&mut self, core: &mut Core, flow: Key, how: Closing) {
        let Some(mut here) = self.flows.remove(flow) else { return };
        if !mutants::on(Mutant::TimerAfterClose) {
            core.cancel_timer(&mut here.timer);
        }
        core.close(here.socket, how);
    }

    // ---- the end of a turn

    /// Sends everything that was queued in this turn.
    pub fn flush(&mut self, core: &mut Core) {
        for tunnel in std::mem::take(&mut self.dirty_tunnels) {
            if let Some(here) = self.tunnels.get_mut(tunnel) {
                here.is_dirty = false;
                here.link.flush(core);
            }
        }
        for flow in std::mem::take(&mut self.dirty_flows) {
            if let Some(here) = self.flows.get_mut(flow) {
                here.is_dirty = false;
                self.flush_flow(core, flow);
            }
        }
    }

    fn flush_flow(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if !here.is_connected {
            // Destinations that do not answer must not keep the slots of those that do.
            here.outbox.let_go_of_slots(core);
            return;
        }
        here.outbox.flush(core, here.socket);
        if here.outbox.is_done() && here.tunnel.is_none() {
            self.remove_flow(core, flow, Closing::Graceful);
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

impl<E> Flow<E> {
    /// How long the flow may go without progress in its present state.
    const fn limit(&self, patience: &Patience) -> Option<Duration> {
        if self.own_end || self.peer_end || self.tunnel.is_none() { Some(patience.linger) } else { patience.idle }
    }
}
