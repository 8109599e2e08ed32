//! Flows from their opening on: bytes between the connection and the tunnel, each side waiting for the other's room.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::debug;

use super::{Flow, Lost, Reading, Relay};
use crate::limits;
use crate::link::{Busy, Handle, Why};
use crate::outbox::Outbox;
use crate::protocol::socks5::Target;
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Incoming, Owner};
use crate::shard::io::Errno;
use crate::shard::slab::Key;
use crate::shard::time::Time;

impl<E> Relay<E> {
    /// Opens a flow over a client's connection (entry).
    ///
    /// # Errors
    /// [`Busy`] with what was given where the tunnel cannot take it: nothing has happened.
    pub fn open_flow(&mut self, core: &mut Core, tunnel: Key, target: &Target, socket: Key, extra: E) -> Result<Key, (Busy, E)> {
        let Some(place) = self.tunnels.get_mut(tunnel) else { return Err((Busy, extra)) };
        let is_opened = !place.link.has_windows();
        // Its name is not known before the flow is, and the other way round.
        let unnamed = Handle::Stream(0);
        let flow = self.flows.insert(Flow::new(tunnel, unnamed, Some(socket), is_opened, extra, core.now()));
        let opened = place.link.open(target, flow, core.now());
        match opened {
            Ok(handle) => {
                if let Some(here) = self.flows.get_mut(flow) {
                    here.handle = handle;
                }
                place.has_carried = true;
                core.set_owner(socket, Owner::Flow(flow));
                self.touch(core, tunnel);
                Ok(flow)
            }
            Err(busy) => Err((busy, self.flows.remove(flow).expect("inserted above").extra)),
        }
    }

    /// Takes a flow that the peer has opened (exit). Its connection comes later ([`Relay::connected`]).
    pub fn accept_flow(&mut self, core: &mut Core, tunnel: Key, handle: Handle, extra: E) -> Key {
        let flow = self.flows.insert(Flow::new(tunnel, handle, None, true, extra, core.now()));
        if let Some(place) = self.tunnels.get_mut(tunnel) {
            place.link.attach(handle, flow);
            place.has_carried = true;
        }
        self.touch(core, tunnel);
        flow
    }

    /// Takes no flow of what the peer wanted to open (exit).
    pub fn refuse(&mut self, core: &mut Core, tunnel: Key, handle: Handle, why: Why) {
        if let Some(place) = self.tunnels.get_mut(tunnel) {
            place.link.refuse(handle, why, core.now());
        }
        self.touch(core, tunnel);
    }

    /// Sets the flow's one timer; the role's timers are numbered from [`super::FIRST_ROLE_TIMER`].
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
            here.own_bytes = outbox.bytes();
            self.held += outbox.bytes();
            here.outbox = outbox;
            self.mark_dirty(flow);
        }
    }

    /// The connection of a flow that waited for it: what has queued up leaves, and it is read.
    pub fn connected(&mut self, core: &mut Core, flow: Key, socket: Key, bound: Option<SocketAddr>) {
        let Some(here) = self.flows.get_mut(flow) else { return core.close(socket, Closing::Reset) };
        here.socket = Some(socket);
        let (tunnel, handle) = (here.tunnel, here.handle);
        if let Some(tunnel) = tunnel
            && let Some(place) = self.tunnels.get_mut(tunnel)
        {
            place.link.opened(handle, bound);
            self.touch(core, tunnel);
        }
        core.set_owner(socket, Owner::Flow(flow));
        self.start(core, flow);
    }

    /// What the roles keep with the flows that have ended before their connection came: it is not wanted any more.
    #[must_use]
    pub fn take_abandoned(&mut self) -> Vec<E> {
        std::mem::take(&mut self.abandoned)
    }

    /// The flow's connection is up: bytes may pass, and its idle time counts.
    pub fn start(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.is_held = false;
        here.last_progress = core.now();
        self.mark_dirty(flow);
        self.watch(core, flow);
        self.read_on(core, flow);
    }

    /// Queues bytes of the role's own for the flow's connection (a SOCKS5 reply).
    pub fn write(&mut self, flow: Key, bytes: &[u8]) {
        if let Some(here) = self.flows.get_mut(flow) {
            here.own_bytes += bytes.len();
            self.held += bytes.len();
            here.outbox.push(Chunk::copy_of(bytes));
            self.mark_dirty(flow);
        }
    }

    /// Sends bytes as if they had been received from the flow's connection.
    pub fn send(&mut self, core: &mut Core, flow: Key, chunk: Chunk) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        let (tunnel, handle) = (here.tunnel, here.handle);
        here.has_sent = true;
        if let Some(tunnel) = tunnel
            && let Some(place) = self.tunnels.get_mut(tunnel)
        {
            place.link.send(handle, chunk);
            self.touch(core, tunnel);
        }
    }

    /// A receive on a flow's connection has ended. `Some`: its tunnel was lost with it.
    pub fn on_flow_received(&mut self, core: &mut Core, flow: Key, what: Incoming) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        here.reading = Reading::Off;
        match what {
            // How it ends is known already, and may be told as a plain end now.
            Incoming::End | Incoming::Failed(_) if here.is_broken => self.give_up(core, flow, Why::Broken),
            Incoming::Data(chunk) => {
                if !here.is_deaf {
                    here.last_progress = core.now();
                }
                self.send(core, flow, chunk);
                self.read_on(core, flow);
                None
            }
            Incoming::End => {
                here.reading = Reading::Ended;
                here.own_end = true;
                here.is_deaf = false;
                let (tunnel, handle) = (here.tunnel, here.handle);
                if let Some(tunnel) = tunnel
                    && let Some(place) = self.tunnels.get_mut(tunnel)
                {
                    here.peer_end |= place.link.finish(handle, core.now());
                    self.touch(core, tunnel);
                }
                self.after_end(core, flow);
                None
            }
            Incoming::Failed(error) => {
                debug!(flow = ?flow, %error, "connection failed");
                self.give_up(core, flow, Why::Broken)
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
                    self.on_written(core, flow, count);
                }
                self.unblock_if_drained(core, flow);
                self.flush_flow(core, flow);
                None
            }
            Err(error) => {
                debug!(flow = ?flow, %error, "connection failed");
                if self.hear_out(core, flow).is_some() { None } else { self.give_up(core, flow, Why::Broken) }
            }
        }
    }

    /// Bytes have left towards the connection.
    fn on_written(&mut self, core: &mut Core, flow: Key, count: usize) {
        self.held -= count;
        let Some(here) = self.flows.get_mut(flow) else { return };
        let own = here.own_bytes.min(count);
        here.own_bytes -= own;
        let (tunnel, handle) = (here.tunnel, here.handle);
        if count > own
            && let Some(tunnel) = tunnel
            && let Some(place) = self.tunnels.get_mut(tunnel)
            && place.link.has_windows()
        {
            place.link.on_taken(handle, count - own, core.now());
            self.touch(core, tunnel);
        }
    }

    pub(super) fn on_data(&mut self, core: &mut Core, tunnel: Key, flow: Key, chunk: Chunk) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.has_received = true;
        if here.is_broken {
            return;
        }
        here.last_progress = core.now();
        self.held += chunk.len();
        here.outbox.push(chunk);
        if here.outbox.bytes() > limits::QUEUE_BYTES
            && here.blocking_since.is_none()
            && let Some(place) = self.tunnels.get_mut(tunnel)
            && !place.link.has_windows()
        {
            here.blocking_since = Some(core.now());
            place.link.block();
        }
        self.mark_dirty(flow);
    }

    /// A drained queue lets its tunnel be read again.
    pub(super) fn unblock_if_drained(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.blocking_since.is_some() && here.outbox.bytes() <= limits::QUEUE_BYTES / 2 {
            here.blocking_since = None;
            if let Some(tunnel) = here.tunnel {
                self.unblock(core, tunnel);
            }
        }
    }

    /// To be called every few seconds: a side that does not read may hold its window, but no slots, and may keep a reset from its connection
    /// only as long as a half-open flow may stand still.
    pub fn look_at_flows(&mut self, core: &mut Core) {
        for flow in self.flows.values_mut() {
            flow.outbox.look();
        }
        for tunnel in self.tunnels.keys() {
            if let Some(place) = self.tunnels.get_mut(tunnel) {
                place.link.give_up_stalled(core.now(), self.patience.linger);
            }
            self.touch(core, tunnel);
        }
    }

    pub(super) fn unblock(&mut self, core: &mut Core, tunnel: Key) {
        let Some(place) = self.tunnels.get_mut(tunnel) else { return };
        place.link.unblock();
        if !place.link.is_blocked() {
            place.link.receive(core);
        }
        self.touch(core, tunnel);
    }

    /// Reads the flow's connection, if its tunnel has room.
    pub(super) fn read_on(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        let Some(socket) = here.socket else { return };
        if here.reading != Reading::Off || here.is_held {
            return;
        }
        if here.is_deaf {
            here.reading = Reading::Armed;
            core.receive(socket);
            return;
        }
        let Some(place) = here.tunnel.and_then(|tunnel| self.tunnels.get_mut(tunnel)) else { return };
        let allowance = place.link.allowance(here.handle);
        if allowance == 0 {
            here.reading = Reading::WaitingForCredit;
        } else if place.link.has_room() {
            here.reading = Reading::Armed;
            core.receive_at_most(socket, u32::try_from(allowance).unwrap_or(u32::MAX));
        } else {
            here.reading = Reading::WaitingForRoom;
            place.link.wait_for_room(flow);
        }
    }

    /// The flow may send again.
    pub(super) fn on_credit(&mut self, core: &mut Core, flow: Key) {
        if let Some(here) = self.flows.get_mut(flow)
            && here.reading == Reading::WaitingForCredit
        {
            here.reading = Reading::Off;
            self.read_on(core, flow);
        }
    }
}

impl<E> Flow<E> {
    fn new(tunnel: Key, handle: Handle, socket: Option<Key>, is_opened: bool, extra: E, now: Time) -> Self {
        Self {
            tunnel: Some(tunnel),
            handle,
            origin: tunnel,
            socket,
            is_held: false,
            has_sent: false,
            has_received: false,
            is_opened,
            extra,
            outbox: Outbox::default(),
            reading: Reading::Off,
            own_end: false,
            peer_end: false,
            own_bytes: 0,
            is_cut: false,
            is_broken: false,
            is_deaf: false,
            blocking_since: None,
            last_progress: now,
            timer: None,
            is_dirty: false,
        }
    }
}
