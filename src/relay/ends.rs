//! How flows end: both ends passed, given up, out of patience, or taken back to be opened elsewhere.

use tracing::debug;

use super::{Flow, Lost, Relay, WATCH};
use crate::link::Reset;
use crate::mutants::{self, Mutant};
use crate::protocol::v80::Side;
use crate::shard::core::{Closing, Core};
use crate::shard::slab::Key;

impl<E> Relay<E> {
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

    /// The peer sends no more and takes no more: both ends are passed at once.
    pub(super) fn on_over(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.is_deaf = !here.own_end;
        here.own_end = true;
        self.on_peer_end(core, flow);
    }

    pub(super) fn after_end(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        if here.own_end && here.peer_end {
            if here.blocking_since.take().is_some()
                && let Some(tunnel) = here.tunnel
            {
                self.unblock(core, tunnel);
            }
            self.detach(core, flow);
        } else if here.socket.is_some() && !here.is_held {
            // A held flow's one timer is the role's, which lets it go.
            self.watch(core, flow);
        }
    }

    /// Both ends have passed: the key is free, and the connection lives on without a tunnel until its bytes are written.
    pub(super) fn detach(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.tunnel = None;
        here.outbox.finish();
        if here.socket.is_some() {
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
        let lost = match place.link.reset(destination, unfinished, core.now()) {
            Reset::TunnelMustEnd if !self.begin_end(core, tunnel) => self.end_tunnel(core, tunnel, Closing::Graceful),
            Reset::TunnelMustEnd | Reset::Told => None,
        };
        if was_blocking {
            self.unblock(core, tunnel);
        }
        self.touch(core, tunnel);
        lost
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
    pub(super) fn watch(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        match here.limit(&self.patience) {
            Some(limit) => {
                let left = limit.saturating_sub(core.now().since(here.last_progress));
                self.set_flow_timer(core, flow, left, WATCH);
            }
            None => core.cancel_timer(&mut here.timer),
        }
    }

    pub(super) fn remove_flow(&mut self, core: &mut Core, flow: Key, how: Closing) {
        let Some(mut here) = self.flows.remove(flow) else { return };
        if !mutants::on(Mutant::TimerAfterClose) {
            core.cancel_timer(&mut here.timer);
        }
        match here.socket {
            Some(socket) => core.close(socket, how),
            None => self.abandoned.push(here.extra),
        }
    }
}
