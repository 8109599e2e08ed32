//! How flows end: both ends passed, given up, out of patience, or taken back to be opened elsewhere.

use tracing::debug;

use super::{Flow, Lost, Reading, Relay, WATCH};
use crate::link::{Reset, Why};
use crate::mutants::{self, Mutant};
use crate::outbox::Outbox;
use crate::protocol::Side;
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

    /// Gives a flow up, whatever its state: the peer is told as far as the protocol can say it, the connection is reset. `Some`: the tunnel
    /// had to end.
    pub fn give_up(&mut self, core: &mut Core, flow: Key, why: Why) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        let (tunnel, handle) = (here.tunnel.take(), here.handle);
        // Without its client a flow that is still being opened is wanted by nobody, nor is what was to go there.
        let why = if why == Why::Broken && !here.is_opened { Why::Cancelled } else { why };
        let unfinished = why == Why::Broken
            && match self.side {
                // One of the ends is missing, or there would be no tunnel: a request that was cut, or a reply that nobody takes.
                Side::Entry => true,
                Side::Exit => !here.own_end && here.has_sent,
            };
        let was_blocking = here.blocking_since.take().is_some();
        self.remove_flow(core, flow, Closing::Reset);
        let tunnel = tunnel?;
        let place = self.tunnels.get_mut(tunnel)?;
        let lost = match place.link.reset(handle, why, unfinished, core.now()) {
            Reset::TunnelMustEnd if !self.begin_end(core, tunnel) => self.end_tunnel(core, tunnel, Closing::Graceful),
            Reset::TunnelMustEnd | Reset::Told => None,
        };
        if was_blocking {
            self.unblock(core, tunnel);
        }
        self.touch(core, tunnel);
        lost
    }

    /// The flow's connection takes no bytes any more: what it gave before that is in the kernel, and is passed on before the flow is given up.
    /// As with a server that answers an upload with a refusal and closes. `None`: there is nothing to wait for.
    pub(super) fn hear_out(&mut self, core: &mut Core, flow: Key) -> Option<()> {
        let here = self.flows.get_mut(flow)?;
        let place = here.tunnel.and_then(|tunnel| self.tunnels.get(tunnel))?;
        if here.own_end || !here.is_opened || !place.link.has_windows() {
            return None;
        }
        here.is_broken = true;
        here.own_bytes = 0;
        self.held -= here.outbox.bytes();
        here.outbox = Outbox::default();
        self.watch(core, flow);
        self.read_on(core, flow);
        Some(())
    }

    /// Flows whose clients are gone while they are being opened, which nobody notices as they are not read: they sent all that they may.
    #[must_use]
    pub fn lost_openings(&self, core: &Core) -> Vec<Key> {
        let unread = |flow: &Flow<E>| !flow.is_opened && matches!(flow.reading, Reading::WaitingForCredit | Reading::WaitingForRoom);
        let unread = self.flows.iter().filter(|(_, flow)| unread(flow));
        unread.filter(|(_, flow)| flow.socket.is_some_and(|socket| core.is_lost(socket))).map(|(key, _)| key).collect()
    }

    /// Takes a flow out of the relay, to be opened again elsewhere or answered. Its socket stays open.
    pub fn take_back(&mut self, core: &mut Core, flow: Key) -> Option<Flow<E>> {
        let mut here = self.flows.remove(flow)?;
        self.held -= here.outbox.bytes();
        core.cancel_timer(&mut here.timer);
        if let Some(tunnel) = here.tunnel
            && let Some(place) = self.tunnels.get_mut(tunnel)
        {
            let _told = place.link.reset(here.handle, Why::Cancelled, false, core.now());
            self.touch(core, tunnel);
        }
        Some(here)
    }

    /// The peer has given the flow up: what came before is still written, then its connection is reset. What was on its way to the peer is
    /// nobody's any more.
    pub(super) fn on_reset(&mut self, core: &mut Core, flow: Key, code: u8) {
        debug!(flow = ?flow, "reset by the peer: {code:#04x}");
        self.cut(core, flow);
    }

    /// Ends a flow that is on no tunnel any more and not whole.
    pub(super) fn cut(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.flows.get_mut(flow) else { return };
        here.tunnel = None;
        if here.socket.is_none() {
            return self.remove_flow(core, flow, Closing::Reset);
        }
        here.is_cut = true;
        self.watch(core, flow);
        self.mark_dirty(flow);
    }

    /// A flow's timer has fired: its patience is at an end, or it has moved since. `Some`: its tunnel was lost with it.
    pub fn on_flow_timer(&mut self, core: &mut Core, flow: Key) -> Option<Lost> {
        let here = self.flows.get_mut(flow)?;
        here.timer = None;
        let limit = here.limit(&self.patience)?;
        if core.now().since(here.last_progress) >= limit {
            debug!(flow = ?flow, ?limit, "ended: no progress");
            return self.give_up(core, flow, Why::NoProgress);
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
        self.held -= here.outbox.bytes();
        if self.side == Side::Exit
            && let Some(place) = self.tunnels.get_mut(here.origin)
        {
            place.link.on_gone();
        }
        match here.socket {
            Some(socket) => core.close(socket, how),
            None => self.abandoned.push(here.extra),
        }
    }
}
