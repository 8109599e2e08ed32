//! Tunnels in the making, for both roles and both directions: connections are dialled or accepted, log in, and become [`Made`]. Which side's login is
//! spoken follows from the role; who dials only decides who keeps the number of tunnels.
//!
//! ```text
//!   dialer: how many ─▶ connect ─┐
//!                                ├─▶ login (Pending) ─▶ Made ─▶ of those accepted: the shard with the fewest ─▶ tunnel
//!   listener: is it allowed? ────┘
//! ```
//!
//! What always holds between turns:
//! * every pending connection has its timer, and there are at most [`limits::UNAUTHENTICATED_MAX`] accepted ones: above that a random older one
//!   goes;
//! * tunnels and pending ones to one that is dialled stay within `max_tunnels`;
//! * after [`Making::stop`] nothing is dialled and nothing accepted.

pub mod crowd;
pub mod dialer;
mod made;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tracing::{debug, info, warn};

pub use self::crowd::Crowd;
use self::dialer::Dialer;
pub use self::made::Made;
use crate::dial::{DialTarget, MAX_DIAL};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::outbox::Outbox;
use crate::protocol::Side;
use crate::protocol::login::{Login, Progress, Proof, Protocol};
use crate::relay::{Lost, Relay};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Event, Incoming, Owner};
use crate::shard::inbox::{NameError, ToControl};
use crate::shard::io::Purpose;
use crate::shard::slab::{GenSlab, Key};
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// What a tunnel that was accepted has for a peer's number: no dialler has it.
pub const ACCEPTED: usize = usize::MAX;
/// The role's timers from this number on are for [`Making::on_role_timer`].
pub const FIRST_TIMER: u8 = LOGINS;
/// Another turn for the logins that wait for one.
const LOGINS: u8 = 2;
/// From here on the diallers' pauses.
const RETRY: u8 = LOGINS + 1;
const _: () = assert!(RETRY as usize + MAX_DIAL <= u8::MAX as usize);
/// Marks the tickets of look-ups that are diallers': a key's bits reach up to 56, and bit 63 is the openings'.
const TICKET: u64 = 1 << 62;

/// What the operator wants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom to dial, each independently.
    pub dial: Vec<DialTarget>,
    /// Who may connect.
    pub allowed: Vec<IpNet>,
    /// Most tunnels to each that is dialled.
    pub max_tunnels: usize,
}

/// A tunnel that is being made.
#[derive(Debug)]
struct Pending {
    socket: Key,
    peer: usize,
    address: SocketAddr,
    stage: Stage,
    /// Anything has come from the other end.
    has_heard: bool,
    outbox: Outbox,
    timer: Option<TimerId>,
}

#[derive(Debug)]
enum Stage {
    /// No login has begun, or its bytes are being worked on.
    None,
    Login(Box<Login>),
    /// Another shard gets it as soon as all is sent.
    Leaving(Box<Proof>, Vec<u8>),
}

/// See the module.
#[derive(Debug)]
pub struct Making {
    side: Side,
    allowed: Vec<IpNet>,
    max_tunnels: usize,
    dialers: Vec<Dialer>,
    pending: GenSlab<Pending>,
    /// Those that were accepted.
    crowd: Crowd,
    /// What `balance` saw last: tunnels, idle ones, winding ones, pending ones.
    balanced: Option<[usize; 4]>,
    logins: Logins,
    stopping: bool,
}

/// Logins that cost something: how much of a turn they have taken, and who waits for the next.
#[derive(Debug, Default)]
struct Logins {
    /// Set while somebody waits.
    timer: Option<TimerId>,
    later: VecDeque<(Key, Vec<u8>)>,
    this_turn: usize,
    refused: u64,
}

impl Making {
    /// Nothing has been dialled yet.
    #[must_use]
    pub fn new(side: Side, settings: Settings) -> Self {
        let Settings { dial, allowed, max_tunnels } = settings;
        Self {
            side,
            allowed,
            max_tunnels,
            dialers: dial.into_iter().take(MAX_DIAL).map(Dialer::new).collect(),
            pending: GenSlab::default(),
            crowd: Crowd::default(),
            balanced: None,
            logins: Logins::default(),
            stopping: false,
        }
    }

    /// Tunnels being made.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Logins that were refused, by us or by the other end, since the start.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.logins.refused
    }

    // ---- dialling

    /// Dials what is missing. Call once per turn; it costs nothing while nothing has changed.
    pub fn balance<E>(&mut self, core: &mut Core, protocol: &Protocol, relay: &Relay<E>) {
        if self.stopping || self.dialers.is_empty() || self.balanced == Some(self.seen(protocol, relay)) {
            return;
        }
        for peer in 0..self.dialers.len() {
            let wanted = self.wanted(protocol, relay, peer);
            if wanted == 0 {
                continue;
            }
            if self.dialers[peer].is_name() {
                self.dialers[peer].is_resolving = true;
                let name = self.dialers[peer].target.host.clone();
                core.tell_control(ToControl::Resolve { shard: core.index(), ticket: TICKET | peer as u64, name, by_steps: false });
            } else {
                self.dial(core, peer, wanted);
            }
        }
        self.balanced = Some(self.seen(protocol, relay));
    }

    fn seen<E>(&self, protocol: &Protocol, relay: &Relay<E>) -> [usize; 4] {
        // The other end may want no new flows on a tunnel: another is dialled for it.
        let winding = if protocol.has_streams() { relay.tunnels.iter().filter(|(_, here)| here.link.is_winding()).count() } else { 0 };
        [relay.tunnels.len(), relay.idle_tunnels().len(), winding, self.pending.len()]
    }

    /// Has the next [`Making::balance`] look again.
    pub const fn look_again(&mut self) {
        self.balanced = None;
    }

    fn wanted<E>(&self, protocol: &Protocol, relay: &Relay<E>, peer: usize) -> usize {
        let (idle, all) = count(relay, peer);
        if protocol.has_streams() {
            // Flows share them, so their number does not follow the flows'.
            let few = self.max_tunnels.min(limits::V81_TUNNELS);
            self.dialers[peer].wanted_of(few.saturating_sub(all), all, few)
        } else {
            self.dialers[peer].wanted(idle, all, self.max_tunnels)
        }
    }

    fn dial(&mut self, core: &mut Core, peer: usize, connections: usize) {
        for _ in 0..connections {
            let Some(address) = self.dialers[peer].next_address() else { return };
            self.dialers[peer].in_progress += 1;
            self.pending.insert_with(|key| {
                let socket = core.connect(address, None, Purpose::Tunnel, Owner::Login(key));
                let timer = Some(core.set_timer(limits::TUNNEL_HANDSHAKE, Owner::Login(key), 0));
                Pending { socket, peer, address, stage: Stage::None, has_heard: false, outbox: Outbox::default(), timer }
            });
        }
    }

    /// Whose look-up a ticket names: `Some` if it is a dialler's.
    #[must_use]
    pub fn of_ticket(&self, ticket: u64) -> Option<usize> {
        let peer = usize::try_from(ticket & !TICKET).ok()?;
        (ticket & TICKET != 0 && peer < self.dialers.len()).then_some(peer)
    }

    /// A dialler's name has been looked up.
    pub fn on_resolved<E>(
        &mut self,
        core: &mut Core,
        protocol: &Protocol,
        relay: &Relay<E>,
        peer: usize,
        result: Result<Vec<IpAddr>, NameError>,
    ) {
        self.look_again();
        if self.stopping {
            return;
        }
        match result {
            Ok(addresses) => {
                self.dialers[peer].resolved(addresses);
                let wanted = self.wanted(protocol, relay, peer);
                self.dial(core, peer, wanted);
            }
            Err(error) => {
                self.dialers[peer].is_resolving = false;
                self.back_off(core, peer, &error);
            }
        }
    }

    fn back_off(&mut self, core: &mut Core, peer: usize, why: &dyn std::fmt::Display) {
        let other = self.other();
        let dialer = &mut self.dialers[peer];
        if dialer.pause.is_some() {
            return;
        }
        let pause = dialer.failed(core.rng());
        let what = RETRY + u8::try_from(peer).unwrap_or(u8::MAX - RETRY);
        dialer.pause = Some(core.set_timer(pause, Owner::Role, what));
        warn!("{other} {}: {why}; next try in {} ms", dialer.target, pause.as_millis());
    }

    /// A timer of the role from [`FIRST_TIMER`] on has fired; gives the tunnels that are made now.
    #[must_use]
    pub fn on_role_timer(&mut self, core: &mut Core, what: u8) -> Vec<Made> {
        if what == LOGINS {
            self.logins.timer = None;
            let later = std::mem::take(&mut self.logins.later);
            return later.into_iter().filter_map(|(key, bytes)| self.on_bytes(core, key, &bytes)).collect();
        }
        if let Some(dialer) = what.checked_sub(RETRY).and_then(|peer| self.dialers.get_mut(usize::from(peer))) {
            dialer.pause = None;
            self.look_again();
        }
        Vec::new()
    }

    /// A turn has ended.
    pub const fn next_turn(&mut self) {
        self.logins.this_turn = 0;
    }

    /// Spares that have been idle long enough, among tunnels that we dialled (0x80); those used last stay, as the inter-server takes those first.
    #[must_use]
    pub fn surplus<E>(&self, core: &Core, relay: &Relay<E>) -> Vec<Key> {
        let mut surplus = Vec::new();
        for peer in 0..self.dialers.len() {
            let (idle, all) = count(relay, peer);
            let too_many = idle.saturating_sub(dialer::spares(all - idle));
            let now = core.now();
            let of_peer = relay.tunnels.iter().filter(|(_, tunnel)| tunnel.peer == peer);
            let mut old: Vec<_> = of_peer
                .filter(|(_, tunnel)| tunnel.link.is_idle() || mutants::on(Mutant::TunnelFreedWithFlow))
                .filter(|(_, tunnel)| now.since(tunnel.idle_since) >= limits::SPARE_IDLE && tunnel.link.is_flushed())
                .map(|(key, tunnel)| (tunnel.idle_since, key))
                .collect();
            old.sort_unstable();
            let too_many = if mutants::on(Mutant::TunnelFreedWithFlow) { old.len() } else { too_many };
            surplus.extend(old.into_iter().take(too_many).map(|(_, key)| key));
        }
        surplus
    }

    // ---- accepting

    /// A connection has come in, at `since`; `first`: what it has said already. Gives the tunnel if that was all of its login.
    pub fn accept(
        &mut self,
        core: &mut Core,
        protocol: &Protocol,
        (socket, peer): (Key, Option<SocketAddr>),
        since: Time,
        first: &[u8],
    ) -> Option<Made> {
        if self.stopping || !self.is_allowed(peer) {
            core.close(socket, Closing::Graceful);
            return None;
        }
        // Tunnels come over TCP, so there is an address; a made-up one would only be logged.
        let address = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        let left = limits::TUNNEL_HANDSHAKE.saturating_sub(core.now().since(since));
        let key = self.pending.insert_with(|key| {
            let timer = Some(core.set_timer(left, Owner::Login(key), 0));
            let (stage, outbox) = (Stage::None, Outbox::default());
            Pending { socket, peer: ACCEPTED, address, stage, has_heard: false, outbox, timer }
        });
        core.set_owner(socket, Owner::Login(key));
        let pending = &self.pending;
        let is_there = |key| pending.get(key).is_some_and(|pending| pending.peer == ACCEPTED);
        if let Some(goes) = self.crowd.enter(key, is_there, core.rng()) {
            debug!("closed one of more than {} connections that have not logged in", limits::UNAUTHENTICATED_MAX);
            self.drop_pending(core, goes, Closing::Reset);
        }
        self.begin(core, protocol, key, first)
    }

    fn is_allowed(&self, peer: Option<SocketAddr>) -> bool {
        let Some(peer) = peer else { return true };
        let address = peer.ip().to_canonical();
        let allowed = self.allowed.iter().any(|net| net.contains(&address));
        if !allowed {
            let other = self.other();
            warn!("{other} at {peer} refused: {address} is not in --allow-{other}s");
        }
        allowed
    }

    // ---- logging in

    /// Begins the login of a connection that is up. The server speaks first, whoever dialled.
    fn begin(&mut self, core: &mut Core, protocol: &Protocol, key: Key, first: &[u8]) -> Option<Made> {
        let pending = self.pending.get_mut(key)?;
        let mut out = Vec::new();
        let Some(login) = protocol.login(self.side, core.rng(), &mut out) else {
            self.fail(core, key, &"there is no key");
            return None;
        };
        pending.stage = Stage::Login(Box::new(login));
        pending.outbox.push(Chunk::copy_of(&out));
        pending.outbox.flush(core, pending.socket);
        if first.is_empty() {
            core.receive_at_most(pending.socket, limits::LOGIN_BYTES);
            return None;
        }
        self.on_bytes(core, key, first)
    }

    /// Takes an event of an [`Owner::Login`]; gives the tunnel when it is made.
    pub fn on_event(&mut self, core: &mut Core, protocol: &Protocol, key: Key, event: Event) -> Option<Made> {
        match event {
            Event::Connected { result: Ok(()), .. } => return self.begin(core, protocol, key, &[]),
            Event::Connected { result: Err(error), .. } => self.fail(core, key, &error),
            Event::Received { what: Incoming::Data(chunk), .. } => return self.on_bytes(core, key, chunk.as_slice()),
            Event::Received { what: Incoming::End, .. } => self.on_closed(core, key),
            Event::Received { what: Incoming::Failed(error), .. } => self.fail(core, key, &error),
            Event::Sent { chunk, result, .. } => {
                let pending = self.pending.get_mut(key)?;
                match pending.outbox.on_sent(chunk, result) {
                    Ok(_) => pending.outbox.flush(core, pending.socket),
                    Err(error) => {
                        self.fail(core, key, &error);
                        return None;
                    }
                }
                if pending.outbox.bytes() == 0 && matches!(pending.stage, Stage::Leaving(..)) {
                    return self.take_made(core, key);
                }
            }
            Event::Timer { .. } => self.on_timer(core, key),
            Event::Accepted { .. } | Event::Message(_) => {}
        }
        None
    }

    /// At most so many costly logins are worked on in one turn: what comes beyond that waits for the next, in order.
    fn on_bytes(&mut self, core: &mut Core, key: Key, bytes: &[u8]) -> Option<Made> {
        let Stage::Login(login) = &self.pending.get(key)?.stage else { return None };
        if login.is_costly() {
            if self.logins.this_turn >= limits::LOGINS_PER_TURN {
                self.logins.later.push_back((key, bytes.to_vec()));
                if self.logins.timer.is_none() {
                    // Not in this turn any more: its time stands still.
                    self.logins.timer = Some(core.set_timer(Duration::from_nanos(1), Owner::Role, LOGINS));
                }
                return None;
            }
            self.logins.this_turn += 1;
        }
        self.work_on(core, key, bytes)
    }

    fn work_on(&mut self, core: &mut Core, key: Key, mut input: &[u8]) -> Option<Made> {
        let pending = self.pending.get_mut(key)?;
        pending.has_heard = true;
        let Stage::Login(login) = std::mem::replace(&mut pending.stage, Stage::None) else { return None };
        let mut out = Vec::new();
        let progress = login.handle(&mut input, &mut out);
        pending.outbox.push(Chunk::copy_of(&out));
        pending.outbox.flush(core, pending.socket);
        match progress {
            Ok(Progress::More(login)) => {
                pending.stage = Stage::Login(Box::new(login));
                core.receive_at_most(pending.socket, limits::LOGIN_BYTES);
            }
            Ok(Progress::Done(proof)) => {
                pending.stage = Stage::Leaving(Box::new(proof), input.to_vec());
                // Only a connection on which nothing is outstanding can be handed over.
                let stays = pending.peer != ACCEPTED || core.board().fewest_tunnels(core.index()) == core.index();
                if stays || pending.outbox.bytes() == 0 {
                    return self.take_made(core, key);
                }
            }
            Err(error) => {
                self.logins.refused += 1;
                self.fail(core, key, &error);
            }
        }
        None
    }

    fn on_closed(&mut self, core: &mut Core, key: Key) {
        let Some(pending) = self.pending.get(key) else { return };
        let is_dialled = pending.peer != ACCEPTED;
        if !is_dialled && !pending.has_heard {
            // Somebody who looked whether the port is open.
            return self.drop_pending(core, key, Closing::Graceful);
        }
        // The inter-server decides first, and refuses by closing.
        self.logins.refused += u64::from(self.side == Side::Exit);
        let closed = if let Stage::Login(login) = &pending.stage { login.closed(is_dialled) } else { "closed".to_owned() };
        let may_be_refused = is_dialled && !pending.has_heard && !closed.contains("--allow");
        let ours = if self.side == Side::Exit { "servers" } else { "inter-servers" };
        if may_be_refused {
            self.fail(core, key, &format_args!("{closed}: it speaks another protocol, or our address is not in its --allow-{ours}"));
        } else {
            self.fail(core, key, &closed);
        }
    }

    fn on_timer(&mut self, core: &mut Core, key: Key) {
        let Some(pending) = self.pending.get_mut(key) else { return };
        pending.timer = None;
        if pending.peer != ACCEPTED {
            return self.fail(core, key, &"no connection and handshake within 10 s");
        }
        let awaited = if let Stage::Login(login) = &pending.stage { login.awaits() } else { "the end of the login" };
        self.fail(core, key, &format_args!("{awaited} did not come within 10 s"));
    }

    /// The key of a login was withdrawn while it was under way.
    pub fn on_withdrawn(&mut self, core: &mut Core, made: &Made) {
        warn!("{} at {}: its key was withdrawn during its login", self.other(), made.address);
        self.logins.refused += 1;
        core.close(made.socket, Closing::Graceful);
    }

    /// Nothing that is under way is wanted as it is any more.
    pub fn drop_all(&mut self, core: &mut Core, why: &dyn std::fmt::Display) {
        for key in self.pending.keys() {
            self.fail(core, key, why);
        }
    }

    /// A connection has come to nothing: whoever dials tries again later.
    fn fail(&mut self, core: &mut Core, key: Key, why: &dyn std::fmt::Display) {
        let Some(pending) = self.pending.get(key) else { return };
        let (peer, address) = (pending.peer, pending.address);
        self.drop_pending(core, key, Closing::Graceful);
        if peer != ACCEPTED {
            self.back_off(core, peer, why);
        } else {
            warn!("{} at {address}: {why}", self.other());
        }
    }

    fn drop_pending(&mut self, core: &mut Core, key: Key, how: Closing) {
        if let Some(pending) = self.take(core, key) {
            core.close(pending.socket, how);
        }
    }

    fn take(&mut self, core: &mut Core, key: Key) -> Option<Pending> {
        let mut pending = self.pending.remove(key)?;
        core.cancel_timer(&mut pending.timer);
        match self.dialers.get_mut(pending.peer) {
            Some(dialer) => dialer.in_progress -= 1,
            None => self.crowd.leave(),
        }
        Some(pending)
    }

    // ---- made, and lost

    fn take_made(&mut self, core: &mut Core, key: Key) -> Option<Made> {
        let Pending { socket, peer, address, stage, outbox, .. } = self.take(core, key)?;
        let Stage::Leaving(proof, rest) = stage else { return None };
        Some(Made { socket, peer, address, proof: *proof, outbox, rest })
    }

    /// Says so if a tunnel that is about to be added is the first of its peer.
    pub fn say_attached<E>(&self, relay: &Relay<E>, made: &Made) {
        if count(relay, made.peer).1 > 0 {
            return;
        }
        match self.dialers.get(made.peer) {
            Some(dialer) => info!("{} {}: attached", self.other(), dialer.target),
            None => info!("{} attached from {}", self.other(), made.address.ip()),
        }
    }

    /// A tunnel has been lost: whether it is dialled again at once or after a pause.
    pub fn on_lost<E>(&mut self, core: &mut Core, relay: &Relay<E>, lost: &Lost, why: &dyn std::fmt::Display) {
        self.look_again();
        let other = self.other();
        let Some(dialer) = self.dialers.get_mut(lost.peer) else { return };
        // On 0x80 a tunnel ends when the client of its only flow is gone: that is work, not failure, and the next one is dialled at once.
        let was_of_use = lost.has_carried || lost.was_up >= limits::BACKOFF_RESET;
        if was_of_use {
            dialer.recovered();
        }
        if count(relay, lost.peer).1 > 0 || self.stopping {
            return;
        }
        if !was_of_use {
            self.back_off(core, lost.peer, why);
        } else if !lost.has_carried {
            warn!("{other} {}: the last tunnel has ended: {why}", dialer.target);
        }
    }

    /// A tunnel has been ended for what the other end did on it: one that breaks rules, or refuses us, must not have us dial as fast as it can do so
    /// (0x81).
    pub fn on_fault(&mut self, core: &mut Core, protocol: &Protocol, peer: usize, fault: &dyn std::fmt::Display) {
        if protocol.has_streams() && !self.stopping && peer < self.dialers.len() {
            self.back_off(core, peer, fault);
        }
    }

    /// Ends all that is pending; nothing new is begun.
    pub fn stop(&mut self, core: &mut Core) {
        self.stopping = true;
        for key in self.pending.keys() {
            self.drop_pending(core, key, Closing::Graceful);
        }
    }

    const fn other(&self) -> &'static str {
        match self.side {
            Side::Exit => "inter-server",
            Side::Entry => "server",
        }
    }
}

/// A peer's tunnels: idle ones, and all; one that takes no new flows is as good as gone.
fn count<E>(relay: &Relay<E>, peer: usize) -> (usize, usize) {
    let idle = relay.idle_tunnels().iter().filter_map(|&tunnel| relay.tunnels.get(tunnel));
    let all = relay.tunnels.iter().filter(|(_, tunnel)| tunnel.peer == peer && !tunnel.link.is_winding()).count();
    (idle.filter(|tunnel| tunnel.peer == peer).count(), all)
}
