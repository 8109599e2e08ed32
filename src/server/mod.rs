//! The server (exit): dials inter-servers, takes flows from their tunnels, connects to destinations. All IO is asked for through
//! the [`Core`]; what happens to bytes is the [`Relay`]'s.
//!
//! ```text
//!   dialer: how many ─▶ connect ─▶ handshake (Pending) ─▶ tunnel ─▶ Open ─▶ flow, opening ─▶ connected
//! ```
//!
//! What always holds between turns: every pending tunnel has its timer; the number of tunnels and pending ones per inter-server
//! stays within `max_tunnels`; a flow without a connection has an opening, and an opening has such a flow; after [`Message::Stop`] nothing is
//! dialled and nothing opened.

pub mod dialer;
pub mod opening;
pub mod policy;
pub mod race;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tracing::{debug, info, warn};

use self::dialer::Dialer;
use self::opening::{Opened, Openings, Outcome};
use self::policy::Policy;
use self::race::Fault;
pub use crate::dial::DialTarget;
use crate::limits;
use crate::link::{self, Handle, LinkFault, Why};
use crate::mutants::{self, Mutant};
use crate::outbox::Outbox;
use crate::protocol::Side;
use crate::protocol::login::{ExitLogin, Progress, Proof, Protocol};
use crate::protocol::socks5::Target;
use crate::protocol::v81::handshake::curve_operations;
use crate::relay::{Bounds, Lost, Notice, Patience, Relay, Tunnel};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::{Message, NameError, ToControl};
use crate::shard::io::Purpose;
use crate::shard::slab::{GenSlab, Key};
use crate::shard::state::State;
use crate::shard::timers::TimerId;
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
    shard::run(plan, |_| Server::new(settings, protocol))
}

/// The role's timers: look at the tunnels; the end of the grace time; the pause of dialler n is `RETRY + n`.
const LOOK: u8 = 0;
const GRACE: u8 = 1;
const RETRY: u8 = 2;
/// Most inter-servers of one server: a dialler's number has to fit a timer's.
pub const MAX_DIAL: usize = 128;

/// A tunnel that is being made.
#[derive(Debug)]
struct Pending {
    socket: Key,
    peer: usize,
    login: Option<ExitLogin>,
    outbox: Outbox,
    timer: Option<TimerId>,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    protocol: Protocol,
    settings: Settings,
    /// With each flow its opening's key, which finds nothing once it is connected.
    relay: Relay<Key>,
    openings: Openings,
    dialers: Vec<Dialer>,
    pending: GenSlab<Pending>,
    /// What [`Self::seen`] was when `balance` looked last.
    balanced: Option<[usize; 4]>,
    logins_refused: u64,
    stopping: bool,
    stopped: bool,
}

impl Server {
    /// A server that has not dialled yet.
    #[must_use]
    pub fn new(settings: Settings, protocol: Protocol) -> Self {
        let idle = if protocol.is_original() {
            // Their inter-server never says that a client has gone.
            Some(settings.idle.unwrap_or(limits::ORIGINAL_IDLE).min(limits::ORIGINAL_IDLE))
        } else {
            settings.idle
        };
        let patience = Patience { linger: settings.linger, idle };
        Self {
            protocol,
            relay: Relay::new(Side::Exit, patience),
            openings: Openings::new(Policy::new(settings.allow.clone()), settings.source, settings.connect_timeout),
            dialers: settings.dial.iter().take(MAX_DIAL).cloned().map(Dialer::new).collect(),
            settings,
            pending: GenSlab::default(),
            balanced: None,
            logins_refused: 0,
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

    // ---- tunnels: dialling

    /// Dials what is missing and, when stopping, closes what is not needed any more.
    fn balance(&mut self, core: &mut Core) {
        if self.stopping {
            self.wind_down(core);
            return;
        }
        if self.balanced == Some(self.seen()) {
            return;
        }
        for peer in 0..self.dialers.len() {
            let (idle, all) = self.count(peer);
            let wanted = self.wanted(peer, idle, all);
            if wanted == 0 {
                continue;
            }
            if self.dialers[peer].is_name() {
                self.dialers[peer].is_resolving = true;
                let name = self.dialers[peer].target.host.clone();
                core.tell_control(ToControl::Resolve { shard: core.index(), ticket: peer as u64, name, by_steps: false });
            } else {
                self.dial(core, peer, wanted);
            }
        }
        self.balanced = Some(self.seen());
    }

    /// What decides how many tunnels are missing: tunnels, those that take no new flows, idle ones, pending ones.
    fn seen(&self) -> [usize; 4] {
        let winding = self.relay.tunnels.iter().filter(|(_, tunnel)| tunnel.link.is_winding()).count();
        [self.relay.tunnels.len(), winding, self.relay.idle_tunnels().len(), self.pending.len()]
    }

    fn wanted(&self, peer: usize, idle: usize, all: usize) -> usize {
        if self.protocol.has_streams() {
            // Flows share them, so their number does not follow the flows'.
            let few = self.settings.max_tunnels.min(limits::V81_TUNNELS);
            self.dialers[peer].wanted_of(few.saturating_sub(all), all, few)
        } else {
            self.dialers[peer].wanted(idle, all, self.settings.max_tunnels)
        }
    }

    fn count(&self, peer: usize) -> (usize, usize) {
        let idle = self.relay.idle_tunnels().iter().filter_map(|&tunnel| self.relay.tunnels.get(tunnel));
        // One that takes no new flows is as good as gone.
        let all = self.relay.tunnels.iter().filter(|(_, tunnel)| tunnel.peer == peer && !tunnel.link.is_winding()).count();
        (idle.filter(|tunnel| tunnel.peer == peer).count(), all)
    }

    fn dial(&mut self, core: &mut Core, peer: usize, connections: usize) {
        for _ in 0..connections {
            let Some(address) = self.dialers[peer].next_address() else { return };
            self.dialers[peer].in_progress += 1;
            self.pending.insert_with(|key| {
                let socket = core.connect(address, None, Purpose::Tunnel, Owner::Pending(key));
                let timer = Some(core.set_timer(limits::TUNNEL_HANDSHAKE, Owner::Pending(key), 0));
                Pending { socket, peer, login: None, outbox: Outbox::default(), timer }
            });
        }
    }

    fn on_resolved(&mut self, core: &mut Core, peer: usize, result: Result<Vec<IpAddr>, NameError>) {
        self.balanced = None;
        match result {
            Ok(addresses) => {
                self.dialers[peer].resolved(addresses);
                let (idle, all) = self.count(peer);
                let wanted = self.wanted(peer, idle, all);
                if !self.stopping {
                    self.dial(core, peer, wanted);
                }
            }
            Err(error) => {
                self.dialers[peer].is_resolving = false;
                self.back_off(core, peer, &error);
            }
        }
    }

    fn back_off(&mut self, core: &mut Core, peer: usize, why: &dyn std::fmt::Display) {
        let dialer = &mut self.dialers[peer];
        if dialer.pause.is_some() {
            return;
        }
        let pause = dialer.failed(core.rng());
        let what = RETRY + u8::try_from(peer).unwrap_or(u8::MAX - RETRY);
        dialer.pause = Some(core.set_timer(pause, Owner::Role, what));
        let DialTarget { host, port } = &dialer.target;
        warn!("inter-server {host}:{port}: {why}; next try in {} ms", pause.as_millis());
    }

    // ---- tunnels: handshake

    fn on_pending(&mut self, core: &mut Core, key: Key, event: Event) {
        match event {
            Event::Connected { result: Ok(()), .. } => {
                let Some(pending) = self.pending.get_mut(key) else { return };
                let mut out = Vec::new();
                pending.login = self.protocol.exit_login(core.rng(), &mut out);
                pending.outbox.push(Chunk::copy_of(&out));
                pending.outbox.flush(core, pending.socket);
                core.receive(pending.socket);
            }
            Event::Connected { result: Err(error), .. } => self.pending_failed(core, key, &error),
            Event::Received { what: Incoming::Data(chunk), .. } => self.on_handshake_bytes(core, key, &chunk),
            Event::Received { what: Incoming::End, .. } => {
                let Some(pending) = self.pending.get(key) else { return };
                let why = pending.login.as_ref().map_or_else(|| "closed".to_owned(), ExitLogin::closed);
                self.logins_refused += 1;
                self.pending_failed(core, key, &why);
            }
            Event::Received { what: Incoming::Failed(error), .. } => self.pending_failed(core, key, &error),
            Event::Sent { chunk, result, .. } => {
                let Some(pending) = self.pending.get_mut(key) else { return };
                match pending.outbox.on_sent(chunk, result) {
                    Ok(_) => pending.outbox.flush(core, pending.socket),
                    Err(error) => self.pending_failed(core, key, &error),
                }
            }
            Event::Timer { .. } => self.pending_failed(core, key, &"no connection and handshake within 10 s"),
            Event::Accepted { .. } | Event::Message(_) => {}
        }
    }

    fn on_handshake_bytes(&mut self, core: &mut Core, key: Key, chunk: &Chunk) {
        let Some(pending) = self.pending.get_mut(key) else { return };
        let Some(login) = pending.login.take() else { return };
        let mut input = chunk.as_slice();
        let mut out = Vec::new();
        let progress = login.handle(&mut input, &mut out);
        pending.outbox.push(Chunk::copy_of(&out));
        pending.outbox.flush(core, pending.socket);
        match progress {
            Ok(Progress::More(login)) => {
                pending.login = Some(login);
                core.receive(pending.socket);
            }
            Ok(Progress::Done(proof)) => self.on_authenticated(core, key, proof, input),
            Err(error) => {
                self.logins_refused += 1;
                self.pending_failed(core, key, &error);
            }
        }
    }

    fn on_authenticated(&mut self, core: &mut Core, key: Key, proof: Proof, rest: &[u8]) {
        let Some(mut pending) = self.pending.remove(key) else { return };
        core.cancel_timer(&mut pending.timer);
        self.dialers[pending.peer].in_progress -= 1;
        let (_, before) = self.count(pending.peer);
        if before == 0 {
            let DialTarget { host, port } = &self.dialers[pending.peer].target;
            info!("inter-server {host}:{port}: attached");
        }
        let link = link::new(pending.socket, proof, pending.outbox, core.now());
        let tunnel = self.relay.add_tunnel(core, link, pending.peer, rest);
        self.work_on(core, tunnel);
    }

    fn pending_failed(&mut self, core: &mut Core, key: Key, why: &dyn std::fmt::Display) {
        let Some(mut pending) = self.pending.remove(key) else { return };
        core.cancel_timer(&mut pending.timer);
        core.close(pending.socket, Closing::Graceful);
        self.dialers[pending.peer].in_progress -= 1;
        if !self.stopping {
            self.back_off(core, pending.peer, why);
        }
    }

    // ---- tunnels: in use

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
        if let Some(peer) = peer
            && self.protocol.has_streams()
            && !self.stopping
        {
            // An inter-server that breaks rules, or refuses us, must not have us dial as fast as it can do so.
            self.back_off(core, peer, fault);
        }
    }

    fn after_loss(&mut self, core: &mut Core, lost: Option<Lost>, why: &dyn std::fmt::Display) {
        let Some(lost) = lost else { return };
        self.balanced = None;
        debug!("tunnel ended: {why}");
        let (_, left) = self.count(lost.peer);
        // On 0x80 a tunnel ends when the client of its only flow is gone: that is work, not failure, and the next one is dialled at once.
        let was_of_use = lost.has_carried || lost.was_up >= limits::BACKOFF_RESET;
        if was_of_use {
            self.dialers[lost.peer].recovered();
        }
        if left > 0 || self.stopping {
            return;
        }
        let DialTarget { host, port } = self.dialers[lost.peer].target.clone();
        if !was_of_use {
            self.back_off(core, lost.peer, why);
        } else if !lost.has_carried {
            warn!("inter-server {host}:{port}: the last tunnel has ended: {why}");
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
                    self.drop_idle_spares(core);
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
            retry => {
                if let Some(dialer) = self.dialers.get_mut(usize::from(retry - RETRY)) {
                    dialer.pause = None;
                    self.balanced = None;
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
            self.balanced = None;
        }
    }

    /// Closes spares that have been idle long enough; those used last stay, as the inter-server takes those first.
    fn drop_idle_spares(&mut self, core: &mut Core) {
        for peer in 0..self.dialers.len() {
            let (idle, all) = self.count(peer);
            let surplus = idle.saturating_sub(dialer::spares(all - idle));
            let now = core.now();
            let of_peer = self.relay.tunnels.iter().filter(|(_, tunnel)| tunnel.peer == peer);
            let mut old: Vec<_> = of_peer
                .filter(|(_, tunnel)| tunnel.link.is_idle() || mutants::on(Mutant::TunnelFreedWithFlow))
                .filter(|(_, tunnel)| now.since(tunnel.idle_since) >= limits::SPARE_IDLE && tunnel.link.is_flushed())
                .map(|(key, tunnel)| (tunnel.idle_since, key))
                .collect();
            old.sort_unstable();
            let surplus = if mutants::on(Mutant::TunnelFreedWithFlow) { old.len() } else { surplus };
            for (_, tunnel) in old.into_iter().take(surplus) {
                self.relay.end_tunnel(core, tunnel, Closing::Graceful);
            }
        }
    }

    fn on_message(&mut self, core: &mut Core, message: Message) {
        match message {
            Message::Resolved { ticket, result, more } => {
                if let Some(opening) = Openings::of_ticket(ticket) {
                    let outcome = self.openings.on_resolved(core, opening, result, more);
                    self.on_outcome(core, outcome);
                } else if let Ok(peer) = usize::try_from(ticket)
                    && peer < self.dialers.len()
                {
                    self.on_resolved(core, peer, result);
                }
            }
            Message::Stop if !self.stopping => {
                self.stopping = true;
                info!("stopping: {} flows have {} s to finish", self.relay.flows.len(), limits::GRACE.as_secs());
                core.set_timer(limits::GRACE, Owner::Role, GRACE);
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
            Message::Stop | Message::ReportState | Message::Tunnel { .. } | Message::Client { .. } | Message::Login { .. } => {}
        }
    }

    /// The key is another now: whoever has the old one is not our inter-server any more.
    fn on_another_key(&mut self, core: &mut Core) {
        for tunnel in self.relay.tunnels.keys() {
            self.end_faulty(core, tunnel, &LinkFault::Withdrawn);
        }
        for pending in self.pending.keys() {
            self.pending_failed(core, pending, &"its key has changed meanwhile");
        }
    }

    fn wind_down(&mut self, core: &mut Core) {
        for key in self.pending.keys() {
            self.pending_failed(core, key, &"stopping");
        }
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
            (Owner::Pending(key), event) => self.on_pending(core, key, event),
            (Owner::Tunnel(tunnel), event) => self.on_tunnel(core, tunnel, event),
            (Owner::Flow(flow), event) => self.on_flow(core, flow, event),
            (Owner::Opening(opening), event) => {
                let outcome = self.openings.on_event(core, opening, event);
                self.on_outcome(core, outcome);
            }
            (_, Event::Timer { what, .. }) => self.on_role_timer(core, what),
            (_, Event::Message(message)) => self.on_message(core, message),
            (Owner::Role | Owner::Listener(_) | Owner::Accepting(_) | Owner::Waiting(_), _) => {}
        }
    }

    fn flush(&mut self, core: &mut Core) {
        self.balance(core);
        for opening in self.relay.take_abandoned() {
            self.openings.cancel(core, opening);
        }
        self.relay.flush(core);
        core.publish_tunnels(self.relay.tunnels.len(), self.relay.idle_tunnels().len());
    }

    fn state(&self, state: &mut State) {
        self.relay.state(state);
        state.tunnels_pending = self.pending.len() as u64;
        state.logins_refused = self.logins_refused;
        state.curve_operations = curve_operations();
    }

    fn is_finished(&self) -> bool {
        self.stopped
    }
}
