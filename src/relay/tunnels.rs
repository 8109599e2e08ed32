//! Tunnels in use: what they say, what they have room for, and what their loss does to the flows on them.

use std::time::Duration;

use tracing::debug;

use super::{BLOCKED, DISCARDING, ENDING, Lost, Notice, Reading, Relay, Tunnel, use_again};
use crate::limits;
use crate::link::{LINK_TIMER, Link, LinkEvent, LinkFault, Pressure, Why};
use crate::protocol::Side;
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Owner};
use crate::shard::io::Errno;
use crate::shard::slab::Key;

impl<E> Relay<E> {
    /// Takes an authenticated tunnel in, with what has come behind its login. Ask [`Relay::next_notice`] until there is none: that starts
    /// reading it.
    pub fn add_tunnel(&mut self, core: &mut Core, mut link: Box<dyn Link>, peer: usize, rest: &[u8]) -> Key {
        let socket = link.socket();
        let now = core.now();
        link.set_pressure(self.pressure);
        if self.bounds.ids_used > 0 {
            link.use_ids(self.bounds.ids_used);
        }
        self.has_windows = link.has_windows();
        if !rest.is_empty() {
            link.take_in(Chunk::copy_of(rest), now);
        }
        let tunnel = self.tunnels.insert(Tunnel {
            link,
            peer,
            idle_since: now,
            up_since: now,
            retired: false,
            has_carried: false,
            blocked_timer: None,
            discarding_timer: None,
            ending_timer: None,
            is_dirty: false,
            is_idle: true,
            seen: (0, false),
        });
        self.idle.push(tunnel);
        self.has_openings = true;
        core.set_owner(socket, Owner::Tunnel(tunnel));
        self.touch(core, tunnel);
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
    pub fn on_tunnel_data(&mut self, core: &mut Core, tunnel: Key, chunk: Chunk) {
        if self.leaving.on_data(core, tunnel) {
            return;
        }
        if let Some(tunnel) = self.tunnels.get_mut(tunnel) {
            tunnel.link.take_in(chunk, core.now());
        }
    }

    /// Works on what the tunnel has said, up to the next thing that is the role's to decide.
    ///
    /// # Errors
    /// The peer's fault; end the tunnel with [`Relay::end_tunnel`].
    pub fn next_notice(&mut self, core: &mut Core, tunnel: Key) -> Result<Option<Notice>, LinkFault> {
        loop {
            let Some(here) = self.tunnels.get_mut(tunnel) else { return Ok(None) };
            if here.ending_timer.is_some() {
                here.link.discard_input();
                break;
            }
            let Some(event) = here.link.next_event(core.now())? else { break };
            match event {
                LinkEvent::Open(handle, _) if self.pressure == Pressure::Full => self.refuse(core, tunnel, handle, Why::Limit),
                LinkEvent::Open(handle, target) => return Ok(Some(Notice::Open(handle, target))),
                LinkEvent::Opened(flow, bound) => {
                    if let Some(here) = self.flows.get_mut(flow) {
                        here.is_opened = true;
                        return Ok(Some(Notice::Opened(flow, bound)));
                    }
                }
                LinkEvent::Credit(flow) => self.on_credit(core, flow),
                LinkEvent::Reset(flow, code) => match self.flows.get_mut(flow) {
                    Some(here) if !here.is_opened => {
                        here.tunnel = None;
                        return Ok(Some(Notice::Refused(flow, code)));
                    }
                    Some(_) => self.on_reset(core, flow, code),
                    None => {}
                },
                LinkEvent::Data(flow, chunk) => self.on_data(core, tunnel, flow, chunk),
                LinkEvent::Finished(flow) => {
                    if self.flows.get(flow).is_some_and(|flow| flow.is_held && !flow.has_received) {
                        return Ok(Some(Notice::EndedWhileHeld(flow)));
                    }
                    self.on_peer_end(core, flow);
                }
                LinkEvent::Over(flow) => self.on_over(core, flow),
            }
        }
        self.touch(core, tunnel);
        if let Some(here) = self.tunnels.get_mut(tunnel)
            && !here.link.is_blocked()
        {
            here.link.receive(core);
        }
        Ok(None)
    }

    /// Takes the end of a tunnel's send in. `Err`: the tunnel is broken; end it.
    ///
    /// # Errors
    /// The socket's failure.
    pub fn on_tunnel_sent(&mut self, core: &mut Core, tunnel: Key, chunk: Chunk, result: Result<u32, Errno>) -> Result<(), Errno> {
        let Some(here) = self.tunnels.get_mut(tunnel) else {
            self.leaving.on_sent(core, tunnel, chunk, result);
            return Ok(());
        };
        here.link.on_sent(chunk, result, core.now())?;
        here.link.flush(core, tunnel);
        self.look_at(core, tunnel);
        Ok(())
    }

    /// There is room for what the woken flows have to send.
    fn wake(&mut self, core: &mut Core) {
        let mut woken = std::mem::take(&mut self.woken);
        // A full tunnel takes no new flow either.
        self.has_openings |= !woken.is_empty();
        for flow in woken.drain(..) {
            if let Some(flow) = self.flows.get_mut(flow)
                && flow.reading == Reading::WaitingForRoom
            {
                flow.reading = Reading::Off;
            }
            self.read_on(core, flow);
        }
        use_again(&mut self.woken, woken);
    }

    /// The end of this tunnel is all that can tell the peer of a flow that was cut. It ends in order: our FIN goes behind what is queued, and
    /// the peer's is waited for, as a close with anything unread would destroy what earlier flows still have on the way.
    /// `false`: with the author's programs it cannot; end it at once.
    pub(super) fn begin_end(&mut self, core: &mut Core, tunnel: Key) -> bool {
        let Some(here) = self.tunnels.get_mut(tunnel) else { return true };
        if !here.link.finish_sending() {
            return false;
        }
        here.retired = true;
        here.ending_timer = Some(core.set_timer(limits::DISCARDING, Owner::Tunnel(tunnel), ENDING));
        self.touch(core, tunnel);
        true
    }

    /// The tunnel takes no new flow any more, and the peer is told where it can be.
    pub fn wind_down(&mut self, core: &mut Core, tunnel: Key) {
        if let Some(here) = self.tunnels.get_mut(tunnel) {
            here.link.wind_down();
        }
        self.touch(core, tunnel);
    }

    /// Whether a tunnel is being ended by us, and not by the peer.
    #[must_use]
    pub fn is_ending(&self, tunnel: Key) -> bool {
        self.tunnels.get(tunnel).is_some_and(|here| here.ending_timer.is_some())
    }

    /// Ends a tunnel because of what the peer sent, and says so to it where the protocol has a word for that: its flows end at once, the tunnel
    /// when the peer has had a second to read why.
    pub fn end_faulty(&mut self, core: &mut Core, tunnel: Key, fault: &LinkFault) -> Option<Lost> {
        let has_words = self.tunnels.get_mut(tunnel)?.link.last_word(fault);
        let (lost, link) = self.take_tunnel(core, tunnel)?;
        if has_words {
            self.leaving.insert(core, tunnel, link);
        } else {
            core.close(link.socket(), Closing::Graceful);
        }
        Some(lost)
    }

    /// Ends a tunnel: its flows are reset, and the role gets those that nothing has touched.
    pub fn end_tunnel(&mut self, core: &mut Core, tunnel: Key, how: Closing) -> Option<Lost> {
        self.leaving.close(core, tunnel);
        let (lost, link) = self.take_tunnel(core, tunnel)?;
        core.close(link.socket(), how);
        Some(lost)
    }

    /// Takes a tunnel and its flows apart; its socket stays open.
    fn take_tunnel(&mut self, core: &mut Core, tunnel: Key) -> Option<(Lost, Box<dyn Link>)> {
        let mut here = self.tunnels.remove(tunnel)?;
        core.cancel_timer(&mut here.blocked_timer);
        core.cancel_timer(&mut here.discarding_timer);
        core.cancel_timer(&mut here.ending_timer);
        here.link.cancel_timer(core);
        self.idle.retain(|&idle| idle != tunnel);
        let (bytes_in, bytes_out) = here.link.bytes();
        self.bytes_before.0 += bytes_in;
        self.bytes_before.1 += bytes_out;
        let (mut untouched, mut unanswered) = (Vec::new(), Vec::new());
        for key in here.link.flow_keys() {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            flow.tunnel = None;
            flow.blocking_since = None;
            // Where the exit's word is passed on, a client that has had it cannot be given another.
            let has_passed_nothing = !flow.has_sent && !flow.has_received && (!flow.is_opened || !here.link.has_windows());
            if self.side == Side::Entry && flow.peer_end && !here.link.has_windows() {
                // The reply is whole; only the request is cut. What still comes of it is read, or closing would destroy the reply's tail.
                flow.is_deaf = !flow.own_end;
                flow.own_end = true;
                if flow.reading == Reading::WaitingForRoom {
                    flow.reading = Reading::Off;
                }
                self.detach(core, key);
                self.read_on(core, key);
            } else if self.side == Side::Entry && has_passed_nothing {
                untouched.push(key);
            } else if !flow.is_opened {
                unanswered.push(key);
            } else if here.link.has_windows() {
                self.cut(core, key);
            } else {
                self.remove_flow(core, key, Closing::Reset);
            }
        }
        let was_up = core.now().since(here.up_since);
        Some((Lost { peer: here.peer, was_up, has_carried: here.has_carried, untouched, unanswered }, here.link))
    }

    /// The tunnels whose other end is gone without a completion to say so. All are asked: bytes that the kernel has taken and nobody
    /// acknowledges suspend keepalive, and the kernel itself gives up after a quarter of an hour.
    #[must_use]
    pub fn lost_tunnels(&self, core: &Core) -> Vec<Key> {
        self.tunnels.iter().filter(|(_, tunnel)| core.is_lost(tunnel.link.socket())).map(|(key, _)| key).collect()
    }

    /// A tunnel's timer has fired. `Some`: it is done with and must be ended, for this reason.
    pub fn on_tunnel_timer(&mut self, core: &mut Core, tunnel: Key, what: u8) -> Option<&'static str> {
        let Some(here) = self.tunnels.get_mut(tunnel) else {
            self.leaving.on_timer(core, tunnel, what);
            return None;
        };
        if what == ENDING {
            here.ending_timer = None;
            return Some("the other end did not close in time");
        }
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
        } else if what == LINK_TIMER {
            let due = here.link.on_timer(core.now());
            if due.lost.is_some() {
                return due.lost;
            }
            for flow in due.unanswered {
                debug!(flow = ?flow, "ended: no reply");
                let _told = self.give_up(core, flow, Why::NoProgress);
            }
        }
        self.touch(core, tunnel);
        let is_spent = |here: &Tunnel| (here.retired || here.link.is_over()) && here.ending_timer.is_none() && here.link.flows() == 0;
        // The last flow's end may still be queued.
        let is_to_end = self.tunnels.get(tunnel).is_some_and(is_spent) && !self.begin_end(core, tunnel);
        is_to_end.then_some("nothing was left on it but what is dropped")
    }

    /// On a shared tunnel two flows can lock each other up for good (0x80 §3): who has kept it unread too long is cut.
    pub(super) fn cut_blocking_flows(&mut self, core: &mut Core, tunnel: Key) {
        let Some(here) = self.tunnels.get(tunnel) else { return };
        for key in here.link.flow_keys() {
            let since = self.flows.get(key).and_then(|flow| flow.blocking_since);
            if since.is_some_and(|since| core.now().since(since) >= limits::BLOCKED_SHARED_TUNNEL) {
                debug!(flow = ?key, "cut: its full queue kept a shared tunnel unread");
                let _told = self.give_up(core, key, Why::NoProgress);
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
        self.look_at(core, tunnel);
    }

    /// The same where nothing has been queued.
    pub(super) fn look_at(&mut self, core: &mut Core, tunnel: Key) {
        let Some(here) = self.tunnels.get_mut(tunnel) else { return };
        let is_idle = here.link.is_idle();
        if is_idle != here.is_idle {
            here.is_idle = is_idle;
            if is_idle {
                here.idle_since = core.now();
                self.idle.push(tunnel);
                self.has_openings = true;
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
        if here.ending_timer.is_some() {
            core.cancel_timer(&mut here.discarding_timer);
        } else if here.retired || here.link.is_over() {
            // The others have ended: its timer ends it, at once.
            if here.link.flows() == 0 && here.discarding_timer.is_none() {
                here.discarding_timer = Some(core.set_timer(Duration::ZERO, Owner::Tunnel(tunnel), DISCARDING));
            }
        } else if here.link.discarding_since().is_some() && here.discarding_timer.is_none() {
            here.discarding_timer = Some(core.set_timer(limits::DISCARDING, Owner::Tunnel(tunnel), DISCARDING));
        } else if here.link.discarding_since().is_none() {
            core.cancel_timer(&mut here.discarding_timer);
        }
        here.link.take_woken(&mut self.woken);
        self.wake(core);
    }
}
