//! The server (exit): dials inter-servers or lets them in, takes flows from their tunnels, connects to destinations. All IO is asked for through
//! the [`Core`]; what happens to bytes is the [`Relay`]'s.
//!
//! ```text
//!   making (dialled or accepted, logged in) ─▶ tunnel ─▶ Open ─▶ flow, opening ─▶ connected
//! ```
//!
//! What always holds between turns: a flow without a connection has an opening, and an opening has such a flow; after [`Message::Stop`] nothing
//! is dialled, nothing accepted and nothing opened.

pub mod opening;
pub mod policy;
pub mod race;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipnet::IpNet;
use tracing::{debug, info, warn};

use self::opening::{Opened, Openings, Outcome};
use self::policy::Policy;
use self::race::Fault;
pub use crate::dial::DialTarget;
use crate::limits;
use crate::link::{self, Handle, LinkFault, Why};
use crate::listen::ListenerKind;
use crate::making::{self, Made, Making};
use crate::protocol::Side;
use crate::protocol::login::Protocol;
use crate::protocol::socks5::Target;
use crate::protocol::v81::handshake::curve_operations;
use crate::relay::{Bounds, Lost, Notice, Patience, Relay, Tunnel};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::Message;
use crate::shard::slab::Key;
use crate::shard::state::State;
use crate::shard::{self, Plan, Role};

/// What the operator wants of the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The inter-servers, each served independently.
    pub dial: Vec<DialTarget>,
    /// Where inter-servers that dial may come from.
    pub allow_inter_servers: Vec<IpNet>,
    /// Most tunnels per inter-server and shard.
    pub max_tunnels: usize,
    /// Destinations allowed although the default policy denies them.
    pub allow: Vec<IpNet>,
    /// Source address for connections to destinations.
    pub source: Option<IpAddr>,
    /// Time for a destination to accept.
    pub connect_timeout: Duration,
    /// A half-open flow without progress ends after this.
    pub linger: Duration,
    /// A flow without a byte either way ends after this (`None`: never).
    pub idle: Option<Duration>,
}

/// Runs a server's shard on this thread until it is stopped.
///
/// # Errors
/// The engine cannot be started, or has failed.
pub fn run(plan: Plan, settings: Settings, protocol: Protocol) -> std::io::Result<()> {
    shard::run(plan, |listeners| Server::new(settings, protocol, listeners))
}

/// The role's timers: look at the tunnels; the end of the grace time. Those from [`making::FIRST_TIMER`] on are [`Making`]'s.
const LOOK: u8 = 0;
const GRACE: u8 = 1;
const _: () = assert!(making::FIRST_TIMER > GRACE);

/// See the module.
#[derive(Debug)]
pub struct Server {
    protocol: Protocol,
    /// With each flow its opening's key, which finds nothing once it is connected.
    relay: Relay<Key>,
    openings: Openings,
    making: Making,
    listeners: Vec<Key>,
    to_listen: Vec<OwnedFd>,
    stopping: bool,
    stopped: bool,
}

impl Server {
    /// A server that will listen on these, and has not dialled yet.
    #[must_use]
    pub fn new(settings: Settings, protocol: Protocol, listeners: Vec<(ListenerKind, OwnedFd)>) -> Self {
        let idle = if protocol.is_original() {
            // Their inter-server never says that a client has gone.
            Some(settings.idle.unwrap_or(limits::ORIGINAL_IDLE).min(limits::ORIGINAL_IDLE))
        } else {
            settings.idle
        };
        let patience = Patience { linger: settings.linger, idle };
        let Settings { dial, allow_inter_servers: allowed, max_tunnels, allow, source, connect_timeout, .. } = settings;
        Self {
            protocol,
            relay: Relay::new(Side::Exit, patience),
            openings: Openings::new(Policy::new(allow), source, connect_timeout),
            making: Making::new(Side::Exit, making::Settings { dial, allowed, max_tunnels }),
            listeners: Vec::new(),
            // Nothing but tunnels comes in at a server.
            to_listen: listeners.into_iter().map(|(_, descriptor)| descriptor).collect(),
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
        self.making.say_attached(&self.relay, &made);
        let Made { socket, peer, proof, outbox, rest, .. } = made;
        let link = link::new(socket, proof, outbox, core.now());
        let tunnel = self.relay.add_tunnel(core, link, peer, &rest);
        self.work_on(core, tunnel);
    }

    fn on_tunnel(&mut self, core: &mut Core, tunnel: Key, event: Event) {
        match event {
            Event::Received { what: Incoming::Data(chunk), .. } => self.on_tunnel_data(core, tunnel, chunk),
            Event::Received { what: Incoming::End, .. } => self.end_tunnel(core, tunnel, &"closed by the inter-server"),
            Event::Received { what: Incoming::Failed(error), .. } => self.end_tunnel(core, tunnel, &error),
            Event::Sent { chunk, result, .. } => {
                if let Err(error) = self.relay.on_tunnel_sent(core, tunnel, chunk, result) {
                    self.end_tunnel(core, tunnel, &error);
                }
            }
            Event::Timer { what, .. } => {
                if let Some(why) = self.relay.on_tunnel_timer(core, tunnel, what) {
                    self.end_tunnel(core, tunnel, &why);
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
                Ok(Some(Notice::Open(handle, target))) => self.open(core, tunnel, handle, target),
                // Only an entry opens flows.
                Ok(Some(Notice::Opened(..) | Notice::Refused(..))) => {}
                Ok(Some(Notice::EndedWhileHeld(flow))) => self.relay.on_peer_end(core, flow),
                Err(fault) => return self.end_faulty(core, tunnel, &fault),
            }
        }
    }

    fn end_tunnel(&mut self, core: &mut Core, tunnel: Key, why: &dyn std::fmt::Display) {
        let lost = self.relay.end_tunnel(core, tunnel, Closing::Graceful);
        self.after_loss(core, lost, why);
    }

    fn end_faulty(&mut self, core: &mut Core, tunnel: Key, fault: &LinkFault) {
        let lost = self.relay.end_faulty(core, tunnel, fault);
        let peer = lost.as_ref().map(|lost| lost.peer);
        self.after_loss(core, lost, fault);
        if let Some(peer) = peer {
            self.making.on_fault(core, &self.protocol, peer, fault);
        }
    }

    fn after_loss(&mut self, core: &mut Core, lost: Option<Lost>, why: &dyn std::fmt::Display) {
        let Some(lost) = lost else { return };
        debug!("tunnel ended: {why}");
        self.making.on_lost(core, &self.relay, &lost, why);
        if lost.peer == making::ACCEPTED && self.relay.tunnels.is_empty() && !self.stopping {
            warn!("no inter-server attached any more: {why}");
        }
    }

    // ---- flows

    fn open(&mut self, core: &mut Core, tunnel: Key, handle: Handle, target: Target) {
        // On 0x81 those that cross our GOAWAY are served as any other: its answer is what ends them.
        let begun = if self.stopping && !self.protocol.has_streams() { Err(Fault::General) } else { self.openings.begin(core, target) };
        match begun {
            Ok(opening) => {
                let flow = self.relay.accept_flow(core, tunnel, handle, opening);
                self.openings.set_flow(opening, flow);
            }
            Err(fault) => self.relay.refuse(core, tunnel, handle, Why::Refused(fault.code())),
        }
    }

    /// What an opening has come to: its flow goes on, or ends.
    fn on_outcome(&mut self, core: &mut Core, outcome: Option<Outcome>) {
        let Some(Outcome { flow, result }) = outcome else { return };
        match result {
            Ok(Opened { socket, bound }) => self.relay.connected(core, flow, socket, bound),
            Err(fault) => {
                let lost = self.relay.give_up(core, flow, Why::Refused(fault.code()));
                self.after_loss(core, lost, &"its only flow came to nothing");
            }
        }
    }

    fn on_flow(&mut self, core: &mut Core, flow: Key, event: Event) {
        let lost = match event {
            Event::Received { what, .. } => self.relay.on_flow_received(core, flow, what),
            Event::Sent { chunk, result, .. } => self.relay.on_flow_sent(core, flow, chunk, result),
            Event::Timer { .. } => self.relay.on_flow_timer(core, flow),
            Event::Accepted { .. } | Event::Connected { .. } | Event::Message(_) => None,
        };
        self.after_loss(core, lost, &"a destination reset the only flow on it");
    }

    // ---- time and orders

    fn on_role_timer(&mut self, core: &mut Core, what: u8) {
        match what {
            LOOK => {
                if self.protocol.has_streams() {
                    self.retire_old(core);
                } else {
                    for tunnel in self.making.surplus(core, &self.relay) {
                        self.relay.end_tunnel(core, tunnel, Closing::Graceful);
                    }
                }
                for tunnel in self.relay.lost_tunnels(core) {
                    self.end_tunnel(core, tunnel, &"the inter-server is gone");
                }
                self.relay.look_at_flows(core);
                core.set_timer(limits::LOOK_EVERY, Owner::Role, LOOK);
            }
            GRACE => {
                warn!("{} flows did not finish in time", self.relay.flows.len());
                self.stopped = true;
            }
            what => {
                for made in self.making.on_role_timer(core, what) {
                    self.on_made(core, Some(made));
                }
            }
        }
    }

    /// A tunnel that has been up for a day makes room for one with fresh keys.
    fn retire_old(&mut self, core: &mut Core) {
        let now = core.now();
        let old = self.relay.tunnels.iter().filter(|(_, here)| now.since(here.up_since) >= limits::TUNNEL_AGE && !here.link.is_winding());
        for tunnel in old.map(|(key, _)| key).collect::<Vec<_>>() {
            self.relay.wind_down(core, tunnel);
        }
    }

    fn on_message(&mut self, core: &mut Core, message: Message) {
        match message {
            Message::Resolved { ticket, result, more } => {
                if let Some(opening) = Openings::of_ticket(ticket) {
                    let outcome = self.openings.on_resolved(core, opening, result, more);
                    self.on_outcome(core, outcome);
                } else if let Some(peer) = self.making.of_ticket(ticket) {
                    self.making.on_resolved(core, &self.protocol, &self.relay, peer, result);
                }
            }
            Message::Stop if !self.stopping => {
                self.stopping = true;
                info!("stopping: {} flows have {} s to finish", self.relay.flows.len(), limits::GRACE.as_secs());
                core.set_timer(limits::GRACE, Owner::Role, GRACE);
                for listener in self.listeners.drain(..) {
                    core.close(listener, Closing::Graceful);
                }
                self.making.stop(core);
                for tunnel in self.relay.tunnels.keys() {
                    self.relay.wind_down(core, tunnel);
                }
            }
            Message::StopNow => self.stopped = true,
            Message::Keys(keys) => {
                let has_changed = self.protocol.differs(&keys);
                self.protocol.set_keys(keys);
                if has_changed {
                    self.on_another_key(core);
                }
            }
            Message::Tunnel { descriptor, peer, proof, rest } => {
                let made = Made::adopt(core, descriptor, peer, proof, rest);
                self.add_tunnel(core, made);
            }
            Message::Stop | Message::ReportState | Message::Client { .. } | Message::Login { .. } => {}
        }
    }

    /// The key is another now: whoever has the old one is not our inter-server any more.
    fn on_another_key(&mut self, core: &mut Core) {
        for tunnel in self.relay.tunnels.keys() {
            self.end_faulty(core, tunnel, &LinkFault::Withdrawn);
        }
        self.making.drop_all(core, &"its key has changed meanwhile");
    }

    /// Closes what is not needed any more.
    fn wind_down(&mut self, core: &mut Core) {
        let done = |tunnel: &Tunnel| tunnel.link.is_idle() && tunnel.link.is_flushed() && !tunnel.link.is_winding();
        let unused = self.relay.tunnels.iter().filter(|(_, tunnel)| done(tunnel));
        for tunnel in unused.map(|(key, _)| key).collect::<Vec<_>>() {
            self.relay.end_tunnel(core, tunnel, Closing::Graceful);
        }
        let mut left = self.relay.tunnels.iter();
        if self.relay.flows.is_empty()
            && left.all(|(_, tunnel)| tunnel.link.flows() == 0 && tunnel.link.is_flushed() && !tunnel.link.is_winding())
        {
            self.stopped = true;
        }
    }
}

impl Role for Server {
    fn start(&mut self, core: &mut Core) {
        for (number, descriptor) in (0..).zip(std::mem::take(&mut self.to_listen)) {
            self.listeners.push(core.listen(descriptor, number));
        }
        core.set_timer(limits::LOOK_EVERY, Owner::Role, LOOK);
    }

    fn on_event(&mut self, core: &mut Core, event: Event) {
        let owner = match &event {
            Event::Connected { owner, .. } | Event::Received { owner, .. } | Event::Sent { owner, .. } | Event::Timer { owner, .. } => {
                *owner
            }
            Event::Accepted { .. } | Event::Message(_) => Owner::Role,
        };
        match (owner, event) {
            (_, Event::Accepted { socket, peer, .. }) => {
                let made = self.making.accept(core, &self.protocol, (socket, peer), core.now(), &[]);
                self.on_made(core, made);
            }
            (Owner::Login(key), event) => {
                let made = self.making.on_event(core, &self.protocol, key, event);
                self.on_made(core, made);
            }
            (Owner::Tunnel(tunnel), event) => self.on_tunnel(core, tunnel, event),
            (Owner::Flow(flow), event) => self.on_flow(core, flow, event),
            (Owner::Opening(opening), event) => {
                let outcome = self.openings.on_event(core, opening, event);
                self.on_outcome(core, outcome);
            }
            (_, Event::Timer { what, .. }) => self.on_role_timer(core, what),
            (_, Event::Message(message)) => self.on_message(core, message),
            (Owner::Role | Owner::Listener(_) | Owner::Accepting(_) | Owner::Pending(_) | Owner::Waiting(_), _) => {}
        }
    }

    fn flush(&mut self, core: &mut Core) {
        self.making.next_turn();
        if self.stopping {
            self.wind_down(core);
        } else {
            self.making.balance(core, &self.protocol, &self.relay);
        }
        for opening in self.relay.take_abandoned() {
            self.openings.cancel(core, opening);
        }
        self.relay.flush(core);
        core.publish_tunnels(self.relay.tunnels.len(), self.relay.idle_tunnels().len());
    }

    fn state(&self, state: &mut State) {
        self.relay.state(state);
        state.tunnels_pending = self.making.pending() as u64;
        state.logins_refused = self.making.refused();
        state.curve_operations = curve_operations();
    }

    fn is_finished(&self) -> bool {
        self.stopped
    }
}
