//! Which tunnel a client gets. On 0x80 an (ip, port) carries one flow at a time per tunnel, so a flow wants a tunnel on which its
//! (ip, port) is free, and one of its own if there is one: a flow that does not read holds up all others on its tunnel.
//!
//! ```text
//!   idle here ─▶ idle on another shard ─▶ wait a little, the server is dialling ─▶ share ─▶ wait ─▶ clear failure
//! ```

use std::net::SocketAddr;

use tracing::{debug, info};

use super::arrivals::Peer;
use super::{Client, HOLD, InterServer};
use crate::limits;
use crate::link::Why;
use crate::mutants::{self, Mutant};
use crate::outbox::Outbox;
use crate::protocol::socks5::{self, Reply, Target};
use crate::relay::{Flow, Tunnel};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::Message;
use crate::shard::slab::Key;
use crate::shard::timers::TimerId;

/// A client that has asked and has no tunnel yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) socket: Key,
    pub(super) peer: Option<SocketAddr>,
    /// Addresses to try, the next one first; at least one.
    targets: Vec<Target>,
    early: Vec<u8>,
    /// What the handshake has still to send.
    pub(super) outbox: Outbox,
    /// The success reply is out: from here on a failure is a reset.
    replied: bool,
    retried: bool,
    handed_over: bool,
    may_share: bool,
    timer: Option<TimerId>,
}

/// Timers of a waiting client.
const SHARE: u8 = 0;
const GIVE_UP: u8 = 1;

impl Waiting {
    pub(super) fn new(socket: Key, peer: Option<SocketAddr>, targets: Vec<Target>, early: Vec<u8>) -> Self {
        let outbox = Outbox::default();
        Self { socket, peer, targets, early, outbox, replied: false, retried: false, handed_over: false, may_share: false, timer: None }
    }

    /// With what the handshake has still to send.
    pub(super) fn with_outbox(mut self, outbox: Outbox) -> Self {
        self.outbox = outbox;
        self
    }

    /// From another shard: it is not handed on again.
    pub(super) const fn handed_over(mut self) -> Self {
        self.handed_over = true;
        self
    }
}

impl InterServer {
    /// Gives a client a tunnel, or a place in the queue, or to another shard, or an answer.
    pub(super) fn place(&mut self, core: &mut Core, mut waiting: Waiting) {
        waiting.may_share = core.now() < self.share_until;
        if let Some(tunnel) = self.choose(core, &waiting) {
            self.open(core, tunnel, waiting);
            return;
        }
        let Some(waiting) = self.hand_over(core, waiting) else { return };
        // It stays although others have tunnels: the answer to its greeting is still on its way out.
        let is_going = !waiting.handed_over && core.board().most_tunnels_elsewhere(core.index()).is_some();
        // One that has just lost its tunnel waits for the next: its server is about to dial again.
        let has_lost = waiting.replied || waiting.retried;
        let refusal = if self.relay.tunnels.is_empty() && !has_lost && !is_going && core.now() >= self.redial_until {
            Some("no server attached")
        } else if self.waiting.len() >= limits::WAITING_MAX {
            Some("too many clients wait for a tunnel")
        } else {
            None
        };
        if let Some(why) = refusal {
            info!("client at {}: {why}", Peer(waiting.peer));
            self.turn_away(core, waiting);
            return;
        }
        let pause = if waiting.may_share { self.settings.wait_for_tunnel } else { limits::WAIT_FOR_OWN_TUNNEL };
        let what = if waiting.may_share { GIVE_UP } else { SHARE };
        let socket = waiting.socket;
        let key = self.waiting.insert_with(|key| Waiting { timer: Some(core.set_timer(pause, Owner::Waiting(key), what)), ..waiting });
        core.set_owner(socket, Owner::Waiting(key));
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.outbox.flush(core, socket);
        }
        self.waiting_order.push_back(key);
    }

    /// The tunnel for a client: the idle one used last (those used longest ago are about to be dropped by the server) on which its
    /// (ip, port) does not rest, or, if it may share, the one with the fewest flows that has it free and is being read.
    fn choose(&self, core: &Core, waiting: &Waiting) -> Option<Key> {
        let target = waiting.targets.first()?;
        let now = core.now();
        if mutants::on(Mutant::SpareHandedOutTwice)
            && let Some((key, _)) = self.relay.tunnels.iter().find(|(_, tunnel)| tunnel.link.flows() > 0)
        {
            return Some(key);
        }
        let is_usable = |tunnel: &Tunnel| !tunnel.retired && tunnel.link.can_open(target, now);
        if self.protocol.has_streams() {
            // With as many tunnels per core of each server, the fewest flows on a tunnel are the fewest per core of a server.
            let usable = self.relay.tunnels.iter().filter(|(_, tunnel)| is_usable(tunnel));
            return usable.min_by_key(|(_, tunnel)| (tunnel.link.flows(), tunnel.link.queued_bytes())).map(|(key, _)| key);
        }
        let idle = self.relay.idle_tunnels().iter().rev().find(|&&key| self.relay.tunnels.get(key).is_some_and(is_usable));
        if let Some(&idle) = idle {
            return Some(idle);
        }
        if !waiting.may_share {
            return None;
        }
        let usable =
            self.relay.tunnels.iter().filter(|(_, tunnel)| is_usable(tunnel) && tunnel.link.has_room() && !tunnel.link.is_blocked());
        // One on which replies are being dropped will be retired if that goes on, so it is taken only where there is no other.
        usable.min_by_key(|(_, tunnel)| (tunnel.link.discarding_since().is_some(), tunnel.link.flows())).map(|(key, _)| key)
    }

    /// Another shard may have what this one lacks. Gives the client back if it stays.
    fn hand_over(&self, core: &mut Core, waiting: Waiting) -> Option<Waiting> {
        if waiting.handed_over || waiting.replied || waiting.outbox.bytes() > 0 {
            return Some(waiting);
        }
        let elsewhere = core.board().most_idle_elsewhere(core.index());
        let elsewhere = elsewhere.or_else(|| {
            let none_here = self.relay.tunnels.is_empty();
            if none_here { core.board().most_tunnels_elsewhere(core.index()) } else { None }
        });
        let Some(shard) = elsewhere else { return Some(waiting) };
        let Some(descriptor) = core.detach(waiting.socket) else { return Some(waiting) };
        let Waiting { peer, targets, early, .. } = waiting;
        core.post(shard, Message::Client { descriptor, peer, targets, early });
        None
    }

    /// A client that waits may have become free to go to a shard that has what it waits for.
    fn hand_over_late(&mut self, core: &mut Core, key: Key) {
        let Some(waiting) = self.waiting.get(key) else { return };
        let none_elsewhere = core.board().most_tunnels_elsewhere(core.index()).is_none();
        if none_elsewhere || waiting.handed_over || waiting.outbox.bytes() > 0 || self.choose(core, waiting).is_some() {
            return;
        }
        let Some(mut waiting) = self.waiting.remove(key) else { return };
        core.cancel_timer(&mut waiting.timer);
        self.place(core, waiting);
    }

    /// A tunnel came or a key became free: first come, first served.
    pub(super) fn place_waiting(&mut self, core: &mut Core) {
        for key in std::mem::take(&mut self.waiting_order) {
            let Some(waiting) = self.waiting.get(key) else { continue };
            match self.choose(core, waiting) {
                Some(tunnel) => {
                    if let Some(mut waiting) = self.waiting.remove(key) {
                        core.cancel_timer(&mut waiting.timer);
                        self.open(core, tunnel, waiting);
                    }
                }
                None => self.waiting_order.push_back(key),
            }
        }
    }

    pub(super) fn on_waiting(&mut self, core: &mut Core, key: Key, event: Event) {
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        match event {
            Event::Sent { chunk, result, .. } => match waiting.outbox.on_sent(chunk, result) {
                Ok(_) => {
                    waiting.outbox.flush(core, waiting.socket);
                    self.hand_over_late(core, key);
                }
                Err(_) => self.abandon(core, key),
            },
            Event::Timer { what: SHARE, .. } => {
                // Nobody dialled a tunnel for this one in time: neither it nor the next ones wait for that.
                waiting.may_share = true;
                let rest = self.settings.wait_for_tunnel.saturating_sub(limits::WAIT_FOR_OWN_TUNNEL);
                waiting.timer = Some(core.set_timer(rest, Owner::Waiting(key), GIVE_UP));
                self.share_until = core.now() + limits::SHARE_AT_ONCE;
                self.try_placing = true;
                self.hand_over_late(core, key);
            }
            Event::Timer { .. } => {
                let Some(waiting) = self.waiting.remove(key) else { return };
                // Its time is over here, but another shard may have what it waits for.
                let may_go = core.board().most_idle_elsewhere(core.index()).is_some();
                let Some(waiting) = (if may_go { self.hand_over(core, waiting) } else { Some(waiting) }) else { return };
                info!("client at {}: no tunnel became free in time", Peer(waiting.peer));
                self.turn_away(core, waiting);
            }
            // A receive was outstanding when the flow lost its tunnel: what comes goes first on the next one. A FIN is found again there.
            Event::Received { what: Incoming::Data(chunk), .. } => waiting.early.extend_from_slice(chunk.as_slice()),
            Event::Received { what: Incoming::End, .. } => {}
            Event::Received { what: Incoming::Failed(_), .. } => self.abandon(core, key),
            Event::Accepted { .. } | Event::Connected { .. } | Event::Message(_) => {}
        }
    }

    /// No tunnel for this client: it is told, or reset if it has been told success before.
    fn turn_away(&mut self, core: &mut Core, waiting: Waiting) {
        if waiting.replied {
            core.close(waiting.socket, Closing::Reset);
        } else {
            self.refuse_waiting(core, waiting, Reply::GeneralFailure);
        }
    }

    fn abandon(&mut self, core: &mut Core, key: Key) {
        if let Some(mut waiting) = self.waiting.remove(key) {
            core.cancel_timer(&mut waiting.timer);
            core.close(waiting.socket, Closing::Reset);
        }
    }

    // ---- opening

    /// Opens the flow on a tunnel. The success reply of 0x80 cannot say how the connect went; that of 0x81 waits for the exit's word.
    fn open(&mut self, core: &mut Core, tunnel: Key, waiting: Waiting) {
        let Waiting { socket, peer, mut targets, early, outbox, replied, retried, .. } = waiting;
        let target = targets.remove(0);
        let is_last = targets.is_empty();
        let client = Box::new(Client { peer, target: target.clone(), others: targets, early, retried });
        let flow = match self.relay.open_flow(core, tunnel, &target, socket, client) {
            Ok(flow) => flow,
            Err((_busy, client)) => {
                // Not reached: `choose` gives a tunnel only where there is room. If it did, the client must not hang.
                let waiting = Waiting { replied, ..Waiting::new(socket, peer, vec![target], client.early).with_outbox(outbox) };
                return self.turn_away(core, waiting);
            }
        };
        self.relay.put_outbox(flow, outbox);
        debug!("client at {}: {target}", Peer(peer));
        let has_streams = self.protocol.has_streams();
        if !replied && !has_streams {
            self.relay.write(flow, &socks5::reply(Reply::Succeeded, None));
        }
        // The author's server never says that a connect has failed, and takes the first bytes for the open: nothing is held for it.
        if is_last || has_streams || self.protocol.is_original() {
            self.release(core, flow);
        } else {
            self.relay.hold(core, flow, limits::HOLD_FIRST_BYTES, HOLD);
        }
    }

    /// A flow has come to nothing before its client had an answer: here it is.
    pub(super) fn answer_refused(&mut self, core: &mut Core, flow: Key, code: Reply) {
        let Some(Flow { socket: Some(socket), extra, outbox, .. }) = self.relay.take_back(core, flow) else { return };
        debug!("client at {}: {} refused: {code:?}", Peer(extra.peer), extra.target);
        self.refuse_waiting(core, Waiting::new(socket, extra.peer, vec![extra.target], Vec::new()).with_outbox(outbox), code);
    }

    /// Lets a flow's bytes go: first those that came behind the request.
    pub(super) fn release(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.relay.flows.get_mut(flow) else { return };
        here.extra.others = Vec::new();
        let early = std::mem::take(&mut here.extra.early);
        for part in early.chunks(limits::EARLY as usize) {
            self.relay.send(core, flow, Chunk::copy_of(part));
        }
        self.relay.start(core, flow);
    }

    /// The address ended at once and nothing was sent: the next one.
    pub(super) fn try_next_address(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.relay.flows.get(flow) else { return };
        let (retried, others) = (here.extra.retried, here.extra.others.clone());
        self.move_flow(core, flow, others, retried);
    }

    /// The tunnel was lost and nothing had passed: another tunnel, once.
    pub(super) fn retry(&mut self, core: &mut Core, flow: Key) {
        let Some(here) = self.relay.flows.get(flow) else { return };
        if here.extra.retried && !here.is_opened {
            return self.answer_refused(core, flow, Reply::GeneralFailure);
        }
        if here.extra.retried {
            if self.protocol.has_streams() {
                return self.answer_refused(core, flow, Reply::GeneralFailure);
            }
            let _lost = self.relay.give_up(core, flow, Why::Broken);
            return;
        }
        let mut targets = vec![here.extra.target.clone()];
        targets.extend(here.extra.others.iter().cloned());
        self.move_flow(core, flow, targets, true);
    }

    fn move_flow(&mut self, core: &mut Core, flow: Key, targets: Vec<Target>, retried: bool) {
        let Some(Flow { socket: Some(socket), extra, outbox, .. }) = self.relay.take_back(core, flow) else { return };
        let Client { peer, early, .. } = *extra;
        let mut waiting = Waiting::new(socket, peer, targets, early).with_outbox(outbox);
        waiting.replied = !self.protocol.has_streams();
        waiting.retried = retried;
        self.place(core, waiting);
    }
}
