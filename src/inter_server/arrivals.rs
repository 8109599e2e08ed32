//! Connections that have not proven or asked anything yet: a server in its handshake, a client in SOCKS5, or, on a shared port,
//! one that has not said which. They hold no slot while they are silent, and their number is bounded.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use tracing::{debug, warn};

use super::placing::Waiting;
use super::{InterServer, LOGINS, ListenerKind};
use crate::limits;
use crate::outbox::Outbox;
use crate::protocol::login::{EntryLogin, Progress};
use crate::protocol::socks5::{self, Negotiation, Reply, Target};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::{NameError, ToControl};
use crate::shard::slab::Key;
use crate::shard::timers::TimerId;

/// A connection on its way to become a tunnel or a flow.
#[derive(Debug)]
pub(super) struct Arriving {
    socket: Key,
    peer: Option<SocketAddr>,
    stage: Stage,
    outbox: Outbox,
    timer: Option<TimerId>,
}

#[derive(Debug)]
enum Stage {
    /// On a shared port, before its first byte.
    Undecided { authenticate: bool, clients: bool },
    /// A server; `None` while its bytes are worked on.
    Server(Option<Box<EntryLogin>>),
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
            ListenerKind::Tunnel if !self.may_log_in(peer) => {
                core.close(socket, Closing::Graceful);
                return;
            }
            ListenerKind::Tunnel => Stage::Server(Some(self.begin_login(core))),
            ListenerKind::Socks { authenticate } => Stage::Client(self.begin_socks(authenticate)),
            ListenerKind::Shared { authenticate, clients } => Stage::Undecided { authenticate, clients },
        };
        let unproven = stage.unproven();
        let limit = if unproven == Some(Unproven::Server) { limits::TUNNEL_HANDSHAKE } else { limits::SOCKS_HANDSHAKE };
        let key = self.arriving.insert_with(|key| {
            let timer = Some(core.set_timer(limit, Owner::Pending(key), 0));
            Arriving { socket, peer, stage, outbox: Outbox::default(), timer }
        });
        self.count(core, key, None, unproven);
        core.set_owner(socket, Owner::Pending(key));
        core.receive_at_most(socket, if unproven == Some(Unproven::Server) { limits::LOGIN_BYTES } else { limits::EARLY });
    }

    /// Takes an arrival to its next stage.
    fn set_stage(&mut self, core: &mut Core, key: Key, stage: Stage) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        let (before, after) = (arriving.stage.unproven(), stage.unproven());
        arriving.stage = stage;
        if before != after {
            self.count(core, key, before, after);
        }
    }

    const fn crowd(&mut self, of: Unproven) -> &mut Crowd {
        match of {
            Unproven::Server => &mut self.unproven_servers,
            Unproven::Client => &mut self.unproven_clients,
        }
    }

    /// Counts an arrival against another bound. Above it a random older one goes, so that no number of silent connections keeps a genuine
    /// one out: were it the oldest, a steady stream of them would, as soon as a login takes longer than it takes them to come.
    fn count(&mut self, core: &mut Core, key: Key, before: Option<Unproven>, after: Option<Unproven>) {
        if let Some(before) = before {
            self.crowd(before).count -= 1;
        }
        let Some(after) = after else { return };
        let crowd = self.crowd(after);
        crowd.count += 1;
        crowd.members.push(key);
        if crowd.members.len() > 2 * limits::UNAUTHENTICATED_MAX {
            let mut members = std::mem::take(&mut crowd.members);
            members.retain(|&member| self.is_one_of(member, after));
            self.crowd(after).members = members;
        }
        while self.crowd(after).count > limits::UNAUTHENTICATED_MAX {
            let members = &mut self.crowd(after).members;
            // The new one stands last.
            let at = core.rng().random_range(0..members.len() - 1);
            let before_last = members.len() - 2;
            members.swap(at, before_last);
            let chosen = members.remove(before_last);
            if self.is_one_of(chosen, after) {
                debug!("closed one of more than {} silent connections", limits::UNAUTHENTICATED_MAX);
                self.drop_arrival(core, chosen, Closing::Reset);
            }
        }
    }

    /// Whether it is there, and still of this kind.
    fn is_one_of(&self, key: Key, kind: Unproven) -> bool {
        self.arriving.get(key).is_some_and(|arriving| arriving.stage.unproven() == Some(kind))
    }

    fn may_log_in(&self, peer: Option<SocketAddr>) -> bool {
        let Some(peer) = peer else { return true };
        let address = peer.ip().to_canonical();
        let allowed = self.settings.allow_servers.iter().any(|net| net.contains(&address));
        if !allowed {
            warn!("server at {peer} refused: {address} is not in --allow-servers");
        }
        allowed
    }

    fn begin_login(&self, core: &mut Core) -> Box<EntryLogin> {
        Box::new(self.protocol.entry_login(core.rng()))
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
            Stage::Server(login) => {
                let awaited = login.as_ref().map_or("nothing", |login| login.awaits());
                warn!("server at {}: {awaited} did not come within 10 s", Peer(arriving.peer));
                self.drop_arrival(core, key, Closing::Graceful);
            }
            Stage::Resolving { .. } => self.refuse(core, key, Reply::HostUnreachable),
            Stage::Undecided { .. } | Stage::Client(_) => self.drop_arrival(core, key, Closing::Graceful),
            Stage::Leaving => self.drop_arrival(core, key, Closing::Reset),
        }
    }

    fn on_arriving_bytes(&mut self, core: &mut Core, key: Key, chunk: &Chunk) {
        let bytes = chunk.as_slice();
        self.decide(core, key, bytes[0]);
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        match &mut arriving.stage {
            Stage::Server(_) => self.on_login_bytes(core, key, bytes),
            Stage::Client(_) => self.on_client_bytes(core, key, bytes),
            Stage::Leaving => core.receive(arriving.socket),
            // Nothing is received meanwhile.
            Stage::Undecided { .. } | Stage::Resolving { .. } => {}
        }
    }

    /// On a shared port the first byte tells a server from a client.
    fn decide(&mut self, core: &mut Core, key: Key, first: u8) {
        let Some(arriving) = self.arriving.get(key) else { return };
        let Stage::Undecided { authenticate, clients } = arriving.stage else { return };
        let peer = arriving.peer;
        let stage = if first == self.protocol.version() {
            if !self.may_log_in(peer) {
                return self.drop_arrival(core, key, Closing::Graceful);
            }
            Stage::Server(Some(self.begin_login(core)))
        } else if first == socks5::VERSION && !clients {
            warn!("client at {} closed: a shared port beyond private addresses takes clients only with a password", Peer(peer));
            return self.drop_arrival(core, key, Closing::Graceful);
        } else {
            Stage::Client(self.begin_socks(authenticate))
        };
        self.set_stage(core, key, stage);
    }

    // ---- servers

    /// At most so many logins are worked on in one turn: what comes beyond that waits for the next, in order.
    fn on_login_bytes(&mut self, core: &mut Core, key: Key, bytes: &[u8]) {
        let Some(Arriving { stage: Stage::Server(Some(login)), .. }) = self.arriving.get(key) else { return };
        if !login.is_costly() {
            self.on_server_bytes(core, key, bytes);
        } else if self.logins.is_full() {
            self.logins.later.push_back((key, bytes.to_vec()));
            if self.logins.timer.is_none() {
                // Not in this turn any more: its time stands still.
                self.logins.timer = Some(core.set_timer(Duration::from_nanos(1), Owner::Role, LOGINS));
            }
        } else {
            self.logins.this_turn += 1;
            self.on_server_bytes(core, key, bytes);
        }
    }

    /// Another turn: those that had to wait come first.
    pub(super) fn on_logins(&mut self, core: &mut Core) {
        self.logins.timer = None;
        for (key, bytes) in std::mem::take(&mut self.logins.later) {
            self.on_login_bytes(core, key, &bytes);
        }
    }

    fn on_server_bytes(&mut self, core: &mut Core, key: Key, bytes: &[u8]) {
        let Some(arriving) = self.arriving.get_mut(key) else { return };
        let Stage::Server(login) = &mut arriving.stage else { return };
        let Some(login) = login.take() else { return };
        let mut input = bytes;
        let mut out = Vec::new();
        let progress = login.handle(&mut input, &mut out);
        arriving.outbox.push(Chunk::copy_of(&out));
        arriving.outbox.flush(core, arriving.socket);
        match progress {
            Ok(Progress::More(login)) => {
                arriving.stage = Stage::Server(Some(Box::new(login)));
                core.receive_at_most(arriving.socket, limits::LOGIN_BYTES);
            }
            Ok(Progress::Done(proof)) => {
                let Some(Arriving { socket, peer, outbox, .. }) = self.take_arrival(core, key) else { return };
                // Tunnels come over TCP, so there is an address; a made-up one would only be logged.
                let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
                self.place_tunnel(core, socket, peer, proof, outbox, input);
            }
            Err(error) => {
                warn!("server at {}: {error}", Peer(arriving.peer));
                self.logins.refused += 1;
                self.drop_arrival(core, key, Closing::Graceful);
            }
        }
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
                self.set_stage(core, key, Stage::Resolving { port, early });
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
        let key = self.arriving.insert(Arriving { socket, peer, stage: Stage::Leaving, outbox, timer: None });
        core.set_owner(socket, Owner::Pending(key));
        self.refuse(core, key, code);
    }

    /// Sends what is queued, then FIN, and drops what comes until the client has closed: closing at once could destroy the answer.
    fn leave(&mut self, core: &mut Core, key: Key) {
        self.set_stage(core, key, Stage::Leaving);
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
        if let Some(unproven) = arriving.stage.unproven() {
            self.crowd(unproven).count -= 1;
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
    /// Which bound it counts against, while it could still be anybody.
    const fn unproven(&self) -> Option<Unproven> {
        match self {
            Self::Server(_) => Some(Unproven::Server),
            // On a shared port a silent connection counts with the clients: they are the ones it could crowd out.
            Self::Undecided { .. } | Self::Client(_) => Some(Unproven::Client),
            Self::Resolving { .. } | Self::Leaving => None,
        }
    }
}

/// Logins of servers: how much of a turn they have taken, and who waits for the next.
#[derive(Debug, Default)]
pub(super) struct Logins {
    /// Set while somebody waits.
    timer: Option<TimerId>,
    later: VecDeque<(Key, Vec<u8>)>,
    this_turn: usize,
    pub(super) refused: u64,
}

impl Logins {
    const fn is_full(&self) -> bool {
        self.this_turn >= limits::LOGINS_PER_TURN
    }

    /// A turn has ended.
    pub(super) const fn next_turn(&mut self) {
        self.this_turn = 0;
    }
}

/// The two kinds of connections that are bounded apart, so that neither crowds out the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unproven {
    Server,
    Client,
}

/// The unproven connections of one kind, the newest last. Keys of those that have become something else are passed over.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    members: Vec<Key>,
    pub(super) count: usize,
}

/// A client's or server's address, for the log.
pub(super) struct Peer(pub(super) Option<SocketAddr>);

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("a unix socket"),
        }
    }
}
