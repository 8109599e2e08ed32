//! Clients that have not asked for anything yet, and, on a shared port, connections that have not said whether they are a client or a server.
//! They hold no slot while they are silent, and their number is bounded.

use std::net::{IpAddr, SocketAddr};

use tracing::{debug, warn};

use super::InterServer;
use super::placing::Waiting;
use crate::limits;
use crate::listen::ListenerKind;
use crate::outbox::Outbox;
use crate::protocol::socks5::{self, Negotiation, Reply, Target};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::{NameError, ToControl};
use crate::shard::slab::Key;
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// A connection on its way to become a flow, or to log in.
#[derive(Debug)]
pub(super) struct Arriving {
    socket: Key,
    peer: Option<SocketAddr>,
    since: Time,
    stage: Stage,
    outbox: Outbox,
    timer: Option<TimerId>,
}

#[derive(Debug)]
enum Stage {
    /// On a shared port, before its first byte.
    Undecided { authenticate: bool, clients: bool },
    /// A client.
    Client(Negotiation),
    /// A client whose name is being looked up, with what it sent behind the request.
    Resolving { port: u16, early: Vec<u8> },
    /// Refused: the answer is on its way, what still comes is dropped.
    Leaving,
}

impl InterServer {
    pub(super) fn on_accepted(&mut self, core: &mut Core, listener: u32, socket: Key, peer: Option<SocketAddr>) {
        let Some(&(kind, _)) = self.listeners.get(listener as usize) else {
            core.close(socket, Closing::Reset);
            return;
        };
        let stage = match kind {
            ListenerKind::Tunnel => {
                let made = self.making.accept(core, &self.protocol, (socket, peer), core.now(), &[]);
                return self.on_made(core, made);
            }
            ListenerKind::Socks { authenticate } => Stage::Client(self.begin_socks(authenticate)),
            ListenerKind::Shared { authenticate, clients } => Stage::Undecided { authenticate, clients },
        };
        let since = core.now();
        let key = self.arriving.insert_with(|key| {
            let timer = Some(core.set_timer(limits::SOCKS_HANDSHAKE, Owner::Pending(key), 0));
            Arriving { socket, peer, since, stage, outbox: Outbox::default(), timer }
        });
        let arriving = &self.arriving;
        let is_there = |key| arriving.get(key).is_some_and(|arriving| arriving.stage.is_unproven());
        if let Some(goes) = self.unproven.enter(key, is_there, core.rng()) {
            debug!("closed one of more than {} silent connections", limits::UNAUTHENTICATED_MAX);
            self.drop_arrival(core, goes, Closing::Reset);
        }
        core.set_owner(socket, Owner::Pending(key));
        core.receive_at_most(socket, limits::EARLY);
    }

    /// Takes an arrival to its next stage.
    fn set_stage(&mut self, key: Key, stage: Stage) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        let (before, after) = (arriving.stage.is_unproven(), stage.is_unproven());
        arriving.stage = stage;
        if before && !after {
            self.unproven.leave();
        }
    }

    fn begin_socks(&self, authenticate: bool) -> Negotiation {
        Negotiation::new(if authenticate { self.settings.credentials.clone() } else { None })
    }

    // ---- events

    pub(super) fn on_arriving(&mut self, core: &mut Core, key: Key, event: Event) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        match event {
            Event::Received { what: Incoming::Data(chunk), .. } => self.on_arriving_bytes(core, key, &chunk),
            Event::Received { what: Incoming::End, .. } => self.drop_arrival(core, key, Closing::Graceful),
            Event::Received { what: Incoming::Failed(_), .. } => self.drop_arrival(core, key, Closing::Reset),
            Event::Sent { chunk, result, .. } => match arriving.outbox.on_sent(chunk, result) {
                Ok(_) => arriving.outbox.flush(core, arriving.socket),
                Err(_) => self.drop_arrival(core, key, Closing::Reset),
            },
            Event::Timer { .. } => self.on_arriving_timer(core, key),
            Event::Accepted { .. } | Event::Connected { .. } | Event::Message(_) => {}
        }
    }

    fn on_arriving_timer(&mut self, core: &mut Core, key: Key) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        arriving.timer = None;
        match &arriving.stage {
            Stage::Resolving { .. } => self.refuse(core, key, Reply::HostUnreachable),
            Stage::Undecided { .. } | Stage::Client(_) => self.drop_arrival(core, key, Closing::Graceful),
            Stage::Leaving => self.drop_arrival(core, key, Closing::Reset),
        }
    }

    fn on_arriving_bytes(&mut self, core: &mut Core, key: Key, chunk: &Chunk) {
        let bytes = chunk.as_slice();
        self.decide(core, key, bytes);
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        match &mut arriving.stage {
            Stage::Client(_) => self.on_client_bytes(core, key, bytes),
            Stage::Leaving => core.receive(arriving.socket),
            // Nothing is received meanwhile.
            Stage::Undecided { .. } | Stage::Resolving { .. } => {}
        }
    }

    /// On a shared port the first byte tells a server from a client.
    fn decide(&mut self, core: &mut Core, key: Key, bytes: &[u8]) {
        let Some(arriving) = self.arriving.get(key) else { return };
        let Stage::Undecided { authenticate, clients } = arriving.stage else { return };
        let (peer, first) = (arriving.peer, bytes[0]);
        let stage = if first == self.protocol.version() {
            let Some(Arriving { socket, since, .. }) = self.take_arrival(core, key) else { return };
            let made = self.making.accept(core, &self.protocol, (socket, peer), since, bytes);
            return self.on_made(core, made);
        } else if first == socks5::VERSION && !clients {
            warn!("client at {} closed: a shared port beyond private addresses takes clients only with a password", Peer(peer));
            return self.drop_arrival(core, key, Closing::Graceful);
        } else {
            Stage::Client(self.begin_socks(authenticate))
        };
        self.set_stage(key, stage);
    }

    // ---- clients

    fn on_client_bytes(&mut self, core: &mut Core, key: Key, bytes: &[u8]) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        let Stage::Client(negotiation) = &mut arriving.stage else { return };
        let mut input = bytes;
        let mut out = Vec::new();
        let outcome = negotiation.handle(&mut input, &mut out);
        arriving.outbox.push(Chunk::copy_of(&out));
        match outcome {
            Ok(None) => {
                arriving.outbox.flush(core, arriving.socket);
                core.receive_at_most(arriving.socket, limits::EARLY);
            }
            Ok(Some(request)) => self.on_request(core, key, request.target, input.to_vec()),
            Err(refused) => {
                warn!("client at {}: {refused}", Peer(arriving.peer));
                self.leave(core, key);
            }
        }
    }

    fn on_request(&mut self, core: &mut Core, key: Key, target: Target, early: Vec<u8>) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        match target {
            Target::Name(name, port) if !self.protocol.has_streams() => {
                arriving.outbox.flush(core, arriving.socket);
                self.set_stage(key, Stage::Resolving { port, early });
                core.tell_control(ToControl::Resolve { shard: core.index(), ticket: key.to_bits(), name, by_steps: false });
            }
            // On 0x81 names are looked up at the exit.
            target => {
                let Some(Arriving { socket, peer, outbox, .. }) = self.take_arrival(core, key) else { return };
                self.place(core, Waiting::new(socket, peer, vec![target], early).with_outbox(outbox));
            }
        }
    }

    pub(super) fn on_resolved(&mut self, core: &mut Core, key: Key, result: Result<Vec<IpAddr>, NameError>) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        let Stage::Resolving { port, early } = &mut arriving.stage else { return };
        let (port, early) = (*port, std::mem::take(early));
        match result {
            Ok(addresses) if !addresses.is_empty() => {
                let target = |address: IpAddr| Target::Address(SocketAddr::new(address.to_canonical(), port));
                let targets = addresses.into_iter().map(target).collect();
                let Some(Arriving { socket, peer, outbox, .. }) = self.take_arrival(core, key) else { return };
                self.place(core, Waiting::new(socket, peer, targets, early).with_outbox(outbox));
            }
            Ok(_) | Err(NameError::NotFound) => self.refuse(core, key, Reply::HostUnreachable),
            Err(error @ (NameError::Failed | NameError::Busy)) => {
                debug!("client at {}: {error}", Peer(arriving.peer));
                self.refuse(core, key, Reply::GeneralFailure);
            }
        }
    }

    /// Answers a request with a failure, and closes once the client can have read it.
    fn refuse(&mut self, core: &mut Core, key: Key, code: Reply) {
        if let Some(arriving) = self.arriving.get_mut(key) {
            arriving.outbox.push(Chunk::copy_of(&socks5::reply(code, None)));
        }
        self.leave(core, key);
    }

    /// The same for a client that got as far as waiting for a tunnel.
    pub(super) fn refuse_waiting(&mut self, core: &mut Core, waiting: Waiting, code: Reply) {
        let Waiting { socket, peer, outbox, .. } = waiting;
        let key = self.arriving.insert(Arriving { socket, peer, since: core.now(), stage: Stage::Leaving, outbox, timer: None });
        core.set_owner(socket, Owner::Pending(key));
        self.refuse(core, key, code);
    }

    /// Sends what is queued, then FIN, and drops what comes until the client has closed: closing at once could destroy the answer.
    fn leave(&mut self, core: &mut Core, key: Key) {
        self.set_stage(key, Stage::Leaving);
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        core.cancel_timer(&mut arriving.timer);
        arriving.timer = Some(core.set_timer(limits::FAREWELL, Owner::Pending(key), 0));
        arriving.outbox.finish();
        arriving.outbox.flush(core, arriving.socket);
        core.receive_at_most(arriving.socket, limits::EARLY);
    }

    // ---- the end of an arrival

    /// Takes it out: it has become something else.
    fn take_arrival(&mut self, core: &mut Core, key: Key) -> Option<Arriving> {
        let mut arriving = self.arriving.remove(key)?;
        core.cancel_timer(&mut arriving.timer);
        if arriving.stage.is_unproven() {
            self.unproven.leave();
        }
        Some(arriving)
    }

    pub(super) fn drop_arrival(&mut self, core: &mut Core, key: Key, how: Closing) {
        if let Some(arriving) = self.take_arrival(core, key) {
            core.close(arriving.socket, how);
        }
    }
}

impl Stage {
    /// Whether it could still be anybody, and counts against the bound.
    const fn is_unproven(&self) -> bool {
        matches!(self, Self::Undecided { .. } | Self::Client(_))
    }
}

/// A client's address, for the log.
pub(super) struct Peer(pub(super) Option<SocketAddr>);

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("a unix socket"),
        }
    }
}
