//! Flows from their opening on: bytes between the connection and the tunnel, each side waiting for the other's room.

use std::time::Duration;

use tracing::debug;

use super::{Flow, Lost, Reading, Relay};
use crate::limits;
use crate::outbox::Outbox;
use crate::protocol::v80::Profile;
use crate::protocol::v80::frame::Destination;
use crate::shard::buffers::Chunk;
use crate::shard::core::{Core, Incoming, Owner};
use crate::shard::io::Errno;
use crate::shard::slab::Key;

impl<E> Relay<E> {
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
            is_deaf: false,
            blocking_since: None,
            last_progress: core.now(),
            timer: None,
            is_dirty: false,
        });
        core.set_owner(socket, Owner::Flow(flow));
        core.limit_receives(socket, Profile::Ours.payload_max(destination));
        if let Some(place) = self.tunnels.get_mut(tunnel) {
            place.has_carried = true;
        }
        flow
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

    /// A receive on a flow's connection has ended. `Some`: its tunnel was lost with it.
    pub fn on_flow_received(&mut self, core: &mut Core, flow: Key, what: Incoming) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        here.reading = Reading::Off;
        match what {
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
                let (tunnel, destination) = (here.tunnel, here.destination);
                if let Some(tunnel) = tunnel
                    && let Some(place) = self.tunnels.get_mut(tunnel)
                {
                    here.peer_end |= place.link.finish(destination, core.now());
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

    pub(super) fn on_data(&mut self, core: &mut Core, tunnel: Key, flow: Key, chunk: Chunk) {
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
    pub(super) fn unblock_if_drained(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.blocking_since.is_some() && here.outbox.bytes() <= limits::QUEUE_BYTES / 2 {
            here.blocking_since = None;
            if let Some(tunnel) = here.tunnel {
                self.unblock(core, tunnel);
            }
        }
    }

    pub(super) fn unblock(&mut self, core: &mut Core, tunnel: Key) {
        let Some(place) = self.tunnels.get_mut(tunnel) else { return };
        place.link.unblock();
        if !place.link.is_blocked() {
            core.receive(place.link.socket());
        }
        self.touch(core, tunnel);
    }

    /// Reads the flow's connection, if its tunnel has room.
    pub(super) fn read_on(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.reading != Reading::Off || !here.is_connected || here.is_held {
            return;
        }
        if here.is_deaf {
            here.reading = Reading::Armed;
            core.receive(here.socket);
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
}
