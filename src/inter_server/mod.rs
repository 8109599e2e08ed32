//! The inter-server (entry): takes SOCKS5 clients, lets servers in or dials them, and brings both together. All IO is asked for through the
//! [`Core`]; what happens to bytes is the [`Relay`]'s.
//!
//! ```text
//!   making (dialled or accepted, logged in) ─▶ shard with the fewest ─▶ tunnel
//!   SOCKS port  ─▶ Arriving (SOCKS5) ─▶ name looked up ─▶ waiting for a tunnel ─▶ flow
//! ```
//!
//! What always holds between turns:
//! * a client that has not asked anything has a timer, and there are at most [`limits::UNAUTHENTICATED_MAX`] of them: above that a
//!   random older one goes;
//! * a client that waits is in `waiting` until it is placed, handed to another shard, or told that there is no tunnel;
//! * after [`Message::Stop`] nothing is accepted and nothing dialled.

mod arrivals;
mod placing;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::{debug, info, warn};

use self::arrivals::Arriving;
use self::placing::Waiting;
use crate::dial::DialTarget;
use crate::limits;
use crate::link::{self, LinkFault, Why};
pub use crate::listen::ListenerKind;
use crate::making::{self, Crowd, Made, Making};
use crate::protocol::Side;
use crate::protocol::login::Protocol;
use crate::protocol::socks5::{self, Credentials, Reply, Target};
use crate::protocol::v81::handshake::{Keys, curve_operations};
use crate::relay::{Bounds, FIRST_ROLE_TIMER, Lost, Notice, Patience, Relay};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::Message;
use crate::shard::slab::{GenSlab, Key};
use crate::shard::state::State;
use crate::shard::time::Time;
use crate::shard::{self, Plan, Role};

/// What the operator wants of the inter-server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Servers to dial, each independently.
    pub dial: Vec<DialTarget>,
    /// Who may log in as a server.
    pub allow_servers: Vec<IpNet>,
    /// User and password that clients need where a listener asks for them. Never printed.
    pub credentials: Option<Credentials>,
    /// A half-open flow without progress ends after this.
    pub linger: Duration,
    /// A flow without a byte either way ends after this (`None`: never).
    pub idle: Option<Duration>,
    /// How long a client waits for a tunnel on which its (ip, port) is free.
    pub wait_for_tunnel: Duration,
}

/// Runs an inter-server's shard on this thread until it is stopped.
///
/// # Errors
/// The engine cannot be started, or has failed.
pub fn run(plan: Plan, settings: Settings, protocol: Protocol) -> std::io::Result<()> {
    shard::run(plan, |listeners| InterServer::new(settings, protocol, listeners))
}

/// A flow's timer: its first bytes have been held long enough.
const HOLD: u8 = FIRST_ROLE_TIMER;
/// The role's timers: look at the tunnels; the end of the grace time. Those from [`making::FIRST_TIMER`] on are [`Making`]'s.
const LOOK: u8 = 0;
const GRACE: u8 = 1;
const _: () = assert!(making::FIRST_TIMER > GRACE);

/// What the entry keeps with a flow.
#[derive(Debug)]
struct Client {
    /// For the log (`None`: unix socket).
    peer: Option<SocketAddr>,
    /// Where it goes.
    target: Target,
    /// The name's other addresses, to be tried if this one ends at once (0x80).
    others: Vec<Target>,
    /// What the client sent behind its request, while it is held.
    early: Vec<u8>,
    /// It has been moved to another tunnel once.
    retried: bool,
}

/// See the module.
#[derive(Debug)]
pub struct InterServer {
    protocol: Protocol,
    settings: Settings,
    listeners: Vec<(ListenerKind, Key)>,
    to_listen: Vec<(ListenerKind, OwnedFd)>,
    relay: Relay<Box<Client>>,
    making: Making,
    arriving: GenSlab<Arriving>,
    /// Arrivals that have not asked for anything.
    unproven: Crowd,
    waiting: GenSlab<Waiting>,
    /// Who waits, in order. Keys of those that are gone are passed over.
    waiting_order: VecDeque<Key>,
    /// Who waits may share from now on.
    try_placing: bool,
    /// Until then a server is about to dial again, as it was us who ended its last tunnel: clients wait for it.
    redial_until: Time,
    /// Until then flows share at once: a wait for an own tunnel was in vain.
    share_until: Time,
    stopping: bool,
    stopped: bool,
}

impl InterServer {
    /// An inter-server that will listen on these.
    #[must_use]
    pub fn new(settings: Settings, protocol: Protocol, listeners: Vec<(ListenerKind, OwnedFd)>) -> Self {
        let patience = Patience { linger: settings.linger, idle: settings.idle };
        let (dial, allowed) = (settings.dial.clone(), settings.allow_servers.clone());
        Self {
            protocol,
            settings,
            listeners: Vec::new(),
            to_listen: listeners,
            relay: Relay::new(Side::Entry, patience),
            making: Making::new(Side::Entry, making::Settings { dial, allowed, max_tunnels: limits::MAX_TUNNELS }),
            arriving: GenSlab::default(),
            unproven: Crowd::default(),
            waiting: GenSlab::default(),
            waiting_order: VecDeque::new(),
            try_placing: false,
            redial_until: Time::ZERO,
            share_until: Time::ZERO,
            stopping: false,
            stopped: false,
        }
    }

    #[doc(hidden)]
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.relay.bounds = bounds;
        self
    }

    // ---- tunnels

    /// A login has passed: the tunnel goes to the shard with the fewest, or stays.
    fn on_made(&mut self, core: &mut Core, made: Option<Made>) {
        if let Some(made) = made.and_then(|made| made.hand_over(core)) {
            self.add_tunnel(core, made);
        }
    }

    fn add_tunnel(&mut self, core: &mut Core, made: Made) {
        if !self.protocol.still_holds(&made.proof) {
            return self.making.on_withdrawn(core, &made);
        }
        self.making.say_attached(&self.relay, &made);
        let Made { socket, peer, proof, outbox, rest, .. } = made;
        let link = link::new(socket, proof, outbox, core.now());
        let name = link.name().cloned();
        let tunnel = self.relay.add_tunnel(core, link, peer, &rest);
        if let Some(name) = name {
            self.on_login(core, &name, Some(tunnel));
            for shard in (0..core.board().shards()).filter(|&shard| shard != core.index()) {
                core.tell(shard, Message::Login { name: name.clone() });
            }
        }
        self.work_on(core, tunnel);
    }

    /// Somebody has logged in under this name: its other tunnels may be those of a server that is gone, and have to show that they are not.
    fn on_login(&mut self, core: &mut Core, name: &str, except: Option<Key>) {
        for tunnel in self.relay.tunnels.keys() {
            let Some(here) = self.relay.tunnels.get_mut(tunnel) else { continue };
            if Some(tunnel) != except && here.link.name().is_some_and(|its| **its == *name) {
                here.link.prove(core.now());
                self.relay.touch(core, tunnel);
            }
        }
    }

    /// The keys have been read again: tunnels of those that are gone, or are others now, end.
    fn on_keys(&mut self, core: &mut Core, keys: Arc<Keys>) {
        let Protocol::V81 { keys: before, .. } = &self.protocol else { return };
        let is_kept = |name: &str| keys.agrees_with(before, name);
        let withdrawn = self.relay.tunnels.iter().filter(|(_, here)| here.link.name().is_some_and(|name| !is_kept(name)));
        for tunnel in withdrawn.map(|(key, _)| key).collect::<Vec<_>>() {
            self.end_faulty(core, tunnel, &LinkFault::Withdrawn);
        }
        self.protocol.set_keys(keys);
    }

    fn on_tunnel(&mut self, core: &mut Core, tunnel: Key, event: Event) {
        if self.relay.is_ending(tunnel) {
            self.redial_until = core.now() + limits::WAIT_FOR_REDIAL;
        }
        match event {
            Event::Received { what: Incoming::Data(chunk), .. } => self.on_tunnel_data(core, tunnel, chunk),
            Event::Received { what: Incoming::End, .. } => self.end_tunnel(core, tunnel, Closing::Graceful, &"closed by the server"),
            Event::Received { what: Incoming::Failed(error), .. } => self.end_tunnel(core, tunnel, Closing::Reset, &error),
            Event::Sent { chunk, result, .. } => {
                if let Err(error) = self.relay.on_tunnel_sent(core, tunnel, chunk, result) {
                    self.end_tunnel(core, tunnel, Closing::Reset, &error);
                }
            }
            Event::Timer { what, .. } => {
                if let Some(why) = self.relay.on_tunnel_timer(core, tunnel, what) {
                    self.end_tunnel(core, tunnel, Closing::Reset, &why);
                }
            }
            Event::Accepted { .. } | Event::Connected { .. } | Event::Message(_) => {}
        }
    }

    fn on_tunnel_data(&mut self, core: &mut Core, tunnel: Key, chunk: Chunk) {
        self.relay.on_tunnel_data(core, tunnel, chunk);
        self.work_on(core, tunnel);
    }

    /// Does what the tunnel's bytes ask for, and reads on.
    fn work_on(&mut self, core: &mut Core, tunnel: Key) {
        loop {
            match self.relay.next_notice(core, tunnel) {
                Ok(None) => return,
                // The session of an entry never says so.
                Ok(Some(Notice::Open(..))) => {}
                Ok(Some(Notice::Opened(flow, bound))) => self.relay.write(flow, &socks5::reply(Reply::Succeeded, Some(bound))),
                Ok(Some(Notice::Refused(flow, code))) => self.answer_refused(core, flow, Reply::from_code(code)),
                Ok(Some(Notice::EndedWhileHeld(flow))) => self.try_next_address(core, flow),
                Err(fault) => return self.end_faulty(core, tunnel, &fault),
            }
        }
    }

    fn end_tunnel(&mut self, core: &mut Core, tunnel: Key, how: Closing, why: &dyn std::fmt::Display) {
        let lost = self.relay.end_tunnel(core, tunnel, how);
        self.after_loss(core, lost, why);
    }

    fn end_faulty(&mut self, core: &mut Core, tunnel: Key, fault: &LinkFault) {
        if let Some(name) = self.relay.tunnels.get(tunnel).and_then(|here| here.link.name()) {
            warn!("server {name}: a tunnel has ended: {fault}");
        }
        let lost = self.relay.end_faulty(core, tunnel, fault);
        let peer = lost.as_ref().map(|lost| lost.peer);
        self.after_loss(core, lost, fault);
        if let Some(peer) = peer {
            self.making.on_fault(core, &self.protocol, peer, fault);
        }
    }

    /// Flows that nothing has touched go to another tunnel, once.
    fn after_loss(&mut self, core: &mut Core, lost: Option<Lost>, why: &dyn std::fmt::Display) {
        let Some(lost) = lost else { return };
        debug!("tunnel ended: {why}");
        self.making.on_lost(core, &self.relay, &lost, why);
        for flow in lost.untouched {
            self.retry(core, flow);
        }
        for flow in lost.unanswered {
            self.answer_refused(core, flow, Reply::GeneralFailure);
        }
        if self.relay.tunnels.is_empty() && !self.stopping && core.now() >= self.redial_until {
            warn!("no server attached any more: {why}");
        }
    }

    // ---- flows

    fn on_flow(&mut self, core: &mut Core, flow: Key, event: Event) {
        let lost = match event {
            Event::Received { what, .. } => self.relay.on_flow_received(core, flow, what),
            Event::Sent { chunk, result, .. } => self.relay.on_flow_sent(core, flow, chunk, result),
            Event::Timer { what: HOLD, .. } => {
                self.release(core, flow);
                None
            }
            Event::Timer { .. } => self.relay.on_flow_timer(core, flow),
            Event::Accepted { .. } | Event::Connected { .. } | Event::Message(_) => None,
        };
        if lost.is_some() {
            self.redial_until = core.now() + limits::WAIT_FOR_REDIAL;
        }
        self.after_loss(core, lost, &"the client of its only flow is gone");
    }

    // ---- time and orders

    fn on_role_timer(&mut self, core: &mut Core, event: Event) {
        let Event::Timer { what, .. } = event else { return };
        if what >= making::FIRST_TIMER {
            for made in self.making.on_role_timer(core, what) {
                self.on_made(core, Some(made));
            }
        } else if what == LOOK {
            if !self.protocol.has_streams() {
                for tunnel in self.making.surplus(core, &self.relay) {
                    self.relay.end_tunnel(core, tunnel, Closing::Graceful);
                }
            }
            for tunnel in self.relay.lost_tunnels(core) {
                self.end_tunnel(core, tunnel, Closing::Reset, &"the server is gone");
            }
            self.relay.look_at_flows(core);
            for flow in self.relay.lost_openings(core) {
                let _lost = self.relay.give_up(core, flow, Why::Cancelled);
            }
            core.set_timer(limits::LOOK_EVERY, Owner::Role, LOOK);
        } else {
            warn!("{} flows did not finish in time", self.relay.flows.len());
            self.stopped = true;
        }
    }

    fn on_message(&mut self, core: &mut Core, message: Message) {
        match message {
            Message::Tunnel { descriptor, peer, proof, rest } => {
                let made = Made::adopt(core, descriptor, peer, proof, rest);
                self.add_tunnel(core, made);
            }
            Message::Client { descriptor, peer, targets, early } => {
                let socket = core.adopt(descriptor, Owner::Role);
                self.place(core, Waiting::new(socket, peer, targets, early).handed_over());
            }
            Message::Resolved { ticket, result, .. } => match self.making.of_ticket(ticket) {
                Some(peer) => self.making.on_resolved(core, &self.protocol, &self.relay, peer, result),
                None => self.on_resolved(core, Key::from_bits(ticket), result),
            },
            Message::Stop if !self.stopping => {
                self.stopping = true;
                info!("stopping: {} flows have {} s to finish", self.relay.flows.len(), limits::GRACE.as_secs());
                for (_, listener) in self.listeners.drain(..) {
                    core.close(listener, Closing::Graceful);
                }
                self.making.stop(core);
                for key in self.arriving.keys() {
                    self.drop_arrival(core, key, Closing::Graceful);
                }
                core.set_timer(limits::GRACE, Owner::Role, GRACE);
                for tunnel in self.relay.tunnels.keys() {
                    self.relay.wind_down(core, tunnel);
                }
            }
            Message::StopNow => self.stopped = true,
            Message::Login { name } => self.on_login(core, &name, None),
            Message::Keys(keys) => self.on_keys(core, keys),
            Message::Stop | Message::ReportState => {}
        }
    }
}

impl Role for InterServer {
    fn start(&mut self, core: &mut Core) {
        for (kind, descriptor) in std::mem::take(&mut self.to_listen) {
            let number = u32::try_from(self.listeners.len()).unwrap_or(u32::MAX);
            let socket = core.listen(descriptor, number);
            self.listeners.push((kind, socket));
        }
        core.set_timer(limits::LOOK_EVERY, Owner::Role, LOOK);
    }

    fn on_event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Accepted { listener, socket, peer } => self.on_accepted(core, listener, socket, peer),
            Event::Message(message) => self.on_message(core, message),
            Event::Connected { owner, .. } | Event::Received { owner, .. } | Event::Sent { owner, .. } | Event::Timer { owner, .. } => {
                match owner {
                    Owner::Login(key) => {
                        let made = self.making.on_event(core, &self.protocol, key, event);
                        self.on_made(core, made);
                    }
                    Owner::Pending(key) => self.on_arriving(core, key, event),
                    Owner::Tunnel(tunnel) => self.on_tunnel(core, tunnel, event),
                    Owner::Flow(flow) => self.on_flow(core, flow, event),
                    Owner::Waiting(key) => self.on_waiting(core, key, event),
                    Owner::Role => self.on_role_timer(core, event),
                    Owner::Listener(_) | Owner::Accepting(_) | Owner::Opening(_) => {}
                }
            }
        }
    }

    fn flush(&mut self, core: &mut Core) {
        self.making.next_turn();
        if std::mem::take(&mut self.try_placing) | self.relay.take_openings() {
            self.place_waiting(core);
        }
        self.making.balance(core, &self.protocol, &self.relay);
        self.relay.flush(core);
        core.publish_tunnels(self.relay.tunnels.len(), self.relay.idle_tunnels().len());
        let is_winding = self.relay.tunnels.iter().any(|(_, tunnel)| tunnel.link.is_winding());
        if self.stopping && self.relay.flows.is_empty() && self.waiting.is_empty() && !is_winding {
            self.stopped = true;
        }
    }

    fn state(&self, state: &mut State) {
        self.relay.state(state);
        state.tunnels_pending = self.making.pending() as u64;
        state.logins_refused = self.making.refused();
        state.curve_operations = curve_operations();
        state.clients_pending = (self.arriving.len() + self.waiting.len()) as u64;
    }

    fn is_finished(&self) -> bool {
        self.stopped
    }
}
