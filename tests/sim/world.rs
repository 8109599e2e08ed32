//! The simulated network: hosts, listeners, connections and a clock that jumps from event to event. It behaves as Linux TCP does where
//! a relay can tell, and every decision it leaves open is taken by a seeded [`Rng`].
//!
//! ```text
//!   write ─▶ outbox ─▶ segments on the wire ─▶ inbox ─▶ read
//!            bounded    latency, random size     bounded: what it has no room for stays in the outbox
//! ```
//!
//! What always holds between calls:
//! * bytes of one direction arrive in order; a FIN arrives behind the bytes before it; a RST overtakes nothing that is on the wire, and
//!   what was still in an outbox is gone;
//! * what has arrived can be read even after a RST; the error is reported once, to whoever asks first, and from then on a read says 0 and
//!   a write EPIPE, as in Linux;
//! * a close with unread bytes, and bytes that reach a closed end, become a RST;
//! * whoever owns an end is told of every change of it.

use std::cell::{RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;

use crate::observer::Observer;
use crate::rng::Rng;

/// Nanoseconds since the simulation's start.
pub(crate) type Nanos = u64;
pub(crate) const MICROSECOND: Nanos = 1_000;
pub(crate) const MILLISECOND: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// A connection made by a client port; ends are never reused.
pub(crate) type EndId = usize;
/// A listening socket.
pub(crate) type ListenerId = usize;

/// Who is told of changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    /// A shard's engine.
    Host(usize),
    /// A client or destination.
    Actor(usize),
    Nobody,
}

/// How connections to one address behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) latency: (Nanos, Nanos),
    /// Largest segment; each has a random size up to this.
    pub(crate) segment: usize,
    pub(crate) outbox: usize,
    pub(crate) inbox: usize,
}

impl Link {
    pub(crate) const PLAIN: Self = Self { latency: (50 * MICROSECOND, 50 * MICROSECOND), segment: 16_384, outbox: 65_536, inbox: 65_536 };
}

/// What meets a SYN to an address that does not simply work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    Refused,
    Unreachable,
    /// Nothing ever answers; the kernel gives up after 127 s.
    Silent,
}

/// What a read found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Read {
    Nothing,
    Bytes(Vec<u8>),
    Fin,
    Error(i32),
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Fin,
    Rst,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Connecting,
    Open,
    /// The owner has closed it; the kernel still sends what is left.
    Orphan,
}

#[derive(Debug)]
struct End {
    peer: Option<EndId>,
    local: SocketAddr,
    remote: SocketAddr,
    owner: Owner,
    phase: Phase,
    connected: Option<Result<(), i32>>,
    inbox: VecDeque<u8>,
    fin_seen: bool,
    /// No more traffic: reset, timed out, refused.
    dead: bool,
    /// Reported once.
    error: Option<i32>,
    outbox: VecDeque<u8>,
    fin_queued: bool,
    fin_sent: bool,
    flight: VecDeque<Segment>,
    flight_bytes: usize,
    last_arrival: Nanos,
    stalled_until: Nanos,
    lost: bool,
    link: Link,
    /// Has USER_TIMEOUT and short keepalive, so notices a lost path soon.
    tunnel: bool,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    owner: Owner,
    backlog: VecDeque<EndId>,
}

/// What a descriptor that goes through `Io::adopt` and `Io::detach` stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Handle {
    Listener(ListenerId),
    Connection(EndId),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// The next segment that `0` sent arrives.
    Arrive(EndId),
    Syn(EndId),
    Connected(EndId, i32),
    TimedOut(EndId),
    Wake(Owner),
}

struct Net {
    now: Nanos,
    rng: Rng,
    sequence: u64,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    ends: Vec<End>,
    listeners: Vec<Option<Listener>>,
    links: BTreeMap<IpAddr, Link>,
    paths: BTreeMap<IpAddr, Path>,
    next_port: u16,
    ready: BTreeSet<Owner>,
    touched: BTreeMap<usize, BTreeSet<EndId>>,
    handles: BTreeMap<RawFd, Handle>,
    no_descriptors_until: BTreeMap<usize, Nanos>,
    observer: Observer,
    history: u64,
    trace: bool,
}

/// The network. Cloning gives another handle on the same one.
#[derive(Clone)]
pub(crate) struct World(Rc<RefCell<Net>>);

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Net {
            now: 0,
            rng: Rng::new(seed),
            sequence: 0,
            events: BinaryHeap::new(),
            ends: Vec::new(),
            listeners: Vec::new(),
            links: BTreeMap::new(),
            paths: BTreeMap::new(),
            next_port: 1024,
            ready: BTreeSet::new(),
            touched: BTreeMap::new(),
            handles: BTreeMap::new(),
            no_descriptors_until: BTreeMap::new(),
            observer: Observer::default(),
            history: 0,
            trace: std::env::var_os("ZHWKPROX_SIM_TRACE").is_some(),
        })))
    }

    fn net(&self) -> RefMut<'_, Net> {
        self.0.borrow_mut()
    }

    // ---- time ----

    pub(crate) fn now(&self) -> Nanos {
        self.net().now
    }

    /// Tells `owner` at `time`.
    pub(crate) fn wake_at(&self, owner: Owner, time: Nanos) {
        self.net().schedule(time, Event::Wake(owner));
    }

    /// Who has something to look at now. Empties the list.
    pub(crate) fn take_ready(&self) -> Vec<Owner> {
        std::mem::take(&mut self.net().ready).into_iter().collect()
    }

    /// Jumps to the next event and lets it happen. False when nothing will ever happen again.
    pub(crate) fn advance(&self) -> bool {
        let mut net = self.net();
        let Some(Reverse((time, _, event))) = net.events.pop() else { return false };
        net.now = net.now.max(time);
        net.history = crate::rng::mix(net.history ^ time.wrapping_mul(31).wrapping_add(event.number()));
        net.happen(event);
        true
    }

    /// When the next event is.
    pub(crate) fn next_event(&self) -> Option<Nanos> {
        self.net().events.peek().map(|Reverse((time, _, _))| *time)
    }

    /// A number that two runs share only if the same events came at the same times.
    pub(crate) fn history(&self) -> u64 {
        self.net().history
    }

    /// Prints a line when `ZHWKPROX_SIM_TRACE` is set.
    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        self.net().trace(line);
    }

    /// What passed on the tunnels, as seen from outside.
    pub(crate) fn with_observer<T>(&self, look: impl FnOnce(&mut Observer) -> T) -> T {
        look(&mut self.net().observer)
    }

    // ---- faults and topology ----

    /// Connections to `address` made from now on get this link.
    pub(crate) fn set_link(&self, address: IpAddr, link: Link) {
        self.net().links.insert(address, link);
    }

    /// SYNs to `address` meet this from now on; `None`: whatever listens there.
    pub(crate) fn set_path(&self, address: IpAddr, path: Option<Path>) {
        let mut net = self.net();
        match path {
            Some(path) => net.paths.insert(address, path),
            None => net.paths.remove(&address),
        };
    }

    /// Host `host` gets EMFILE for new descriptors until then.
    pub(crate) fn no_descriptors(&self, host: usize, until: Nanos) {
        let mut net = self.net();
        net.no_descriptors_until.insert(host, until);
        net.ready.insert(Owner::Host(host));
    }

    pub(crate) fn out_of_descriptors(&self, host: usize) -> bool {
        let net = self.net();
        net.no_descriptors_until.get(&host).is_some_and(|until| net.now < *until)
    }

    /// A middlebox resets the connection: both ends see a RST now.
    pub(crate) fn kill(&self, end: EndId) {
        let mut net = self.net();
        net.trace(|| format!("kill {end}"));
        let peer = net.ends[end].peer;
        for end in [Some(end), peer].into_iter().flatten() {
            net.die(end, libc::ECONNRESET);
        }
    }

    /// The path is gone: nothing arrives any more, nobody is told before a time-out.
    pub(crate) fn lose(&self, end: EndId) {
        let mut net = self.net();
        net.trace(|| format!("lose {end}"));
        let peer = net.ends[end].peer;
        for end in [Some(end), peer].into_iter().flatten() {
            net.ends[end].lost = true;
            let patience = if net.ends[end].tunnel { 30 * SECOND } else { 7_875 * SECOND };
            let time = net.now + patience;
            net.schedule(time, Event::TimedOut(end));
        }
    }

    /// Nothing arrives at either end until then; then everything does.
    pub(crate) fn stall(&self, end: EndId, until: Nanos) {
        let mut net = self.net();
        net.trace(|| format!("stall {end} until {until}"));
        let peer = net.ends[end].peer;
        for end in [Some(end), peer].into_iter().flatten() {
            net.ends[end].stalled_until = net.ends[end].stalled_until.max(until);
        }
    }

    /// Live connections that reached a listener of `address`: their connecting ends.
    pub(crate) fn connections_to(&self, address: SocketAddr) -> Vec<EndId> {
        let net = self.net();
        let live = |end: &End| end.remote == address && !end.dead && !end.lost && end.connected == Some(Ok(()));
        net.ends.iter().enumerate().filter(|(_, end)| live(end) && end.phase == Phase::Open).map(|(id, _)| id).collect()
    }

    // ---- sockets ----

    pub(crate) fn listen(&self, address: SocketAddr, owner: Owner) -> ListenerId {
        let mut net = self.net();
        net.listeners.push(Some(Listener { address, owner, backlog: VecDeque::new() }));
        net.listeners.len() - 1
    }

    /// Closes a listener: connections nobody has accepted are reset.
    pub(crate) fn close_listener(&self, listener: ListenerId) {
        let mut net = self.net();
        let waiting = net.listeners[listener].take().map(|listener| listener.backlog).unwrap_or_default();
        for end in waiting {
            net.close(end, true);
        }
    }

    pub(crate) fn set_listener_owner(&self, listener: ListenerId, owner: Owner) {
        if let Some(listener) = &mut self.net().listeners[listener] {
            listener.owner = owner;
        }
    }

    pub(crate) fn can_accept(&self, listener: ListenerId) -> bool {
        self.net().listeners[listener].as_ref().is_some_and(|listener| !listener.backlog.is_empty())
    }

    /// Takes a connection, the one that has waited longest.
    pub(crate) fn accept(&self, listener: ListenerId, owner: Owner) -> Option<(EndId, SocketAddr)> {
        let mut net = self.net();
        let end = net.listeners[listener].as_mut()?.backlog.pop_front()?;
        net.ends[end].owner = owner;
        net.touch(end);
        Some((end, net.ends[end].remote))
    }

    /// Starts to connect. The result is in [`World::connect_result`] when the owner is told.
    pub(crate) fn connect(&self, from: IpAddr, to: SocketAddr, owner: Owner, tunnel: bool) -> EndId {
        self.net().connect(from, to, owner, tunnel)
    }

    pub(crate) fn connect_result(&self, end: EndId) -> Option<Result<(), i32>> {
        self.net().ends[end].connected
    }

    pub(crate) fn set_tunnel(&self, end: EndId) {
        self.net().ends[end].tunnel = true;
    }

    pub(crate) fn set_owner(&self, end: EndId, owner: Owner) {
        let mut net = self.net();
        net.ends[end].owner = owner;
        net.touch(end);
    }

    /// Takes what there is room for; `EAGAIN` when there is none.
    pub(crate) fn write(&self, end: EndId, bytes: &[u8]) -> Result<usize, i32> {
        self.net().write(end, bytes)
    }

    pub(crate) fn read(&self, end: EndId, most: usize) -> Read {
        self.net().read(end, most)
    }

    /// Whether a read would find something.
    pub(crate) fn readable(&self, end: EndId) -> bool {
        let net = self.net();
        let end = &net.ends[end];
        !end.inbox.is_empty() || end.fin_seen || end.dead
    }

    /// Bytes that have arrived and wait.
    pub(crate) fn unread(&self, end: EndId) -> usize {
        self.net().ends[end].inbox.len()
    }

    /// FIN, behind what was written.
    pub(crate) fn shutdown(&self, end: EndId) {
        let mut net = self.net();
        net.trace(|| format!("shutdown {end}"));
        net.ends[end].fin_queued = true;
        net.transmit(end);
    }

    pub(crate) fn close(&self, end: EndId, reset: bool) {
        self.net().close(end, reset);
    }

    // ---- for the engine ----

    /// Ends of `host` that have changed since it asked last.
    pub(crate) fn take_touched(&self, host: usize) -> BTreeSet<EndId> {
        self.net().touched.remove(&host).unwrap_or_default()
    }

    pub(crate) fn register(&self, descriptor: RawFd, handle: Handle) {
        self.net().handles.insert(descriptor, handle);
    }

    pub(crate) fn redeem(&self, descriptor: RawFd) -> Option<Handle> {
        self.net().handles.remove(&descriptor)
    }
}

impl Event {
    fn number(self) -> u64 {
        match self {
            Self::Arrive(end) => 8 * end as u64,
            Self::Syn(end) => 8 * end as u64 + 1,
            Self::Connected(end, errno) => 8 * end as u64 + 2 + (u64::from(errno.unsigned_abs()) << 40),
            Self::TimedOut(end) => 8 * end as u64 + 3,
            Self::Wake(Owner::Host(host)) => 8 * host as u64 + 4,
            Self::Wake(Owner::Actor(actor)) => 8 * actor as u64 + 5,
            Self::Wake(Owner::Nobody) => 6,
        }
    }
}

impl Net {
    fn trace(&self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>14.6} ms  {}", self.now as f64 / 1e6, line());
        }
    }

    fn schedule(&mut self, time: Nanos, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time.max(self.now), self.sequence, event)));
    }

    fn touch(&mut self, end: EndId) {
        let owner = self.ends[end].owner;
        if let Owner::Host(host) = owner {
            self.touched.entry(host).or_default().insert(end);
        }
        if owner != Owner::Nobody {
            self.ready.insert(owner);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(sender) => self.arrive(sender),
            Event::Syn(end) => self.syn(end),
            Event::Connected(end, errno) => {
                let result = if errno == 0 { Ok(()) } else { Err(errno) };
                if self.ends[end].phase == Phase::Connecting {
                    self.ends[end].phase = if errno == 0 { Phase::Open } else { Phase::Orphan };
                    self.ends[end].dead |= errno != 0;
                    self.ends[end].connected = Some(result);
                    self.trace(|| format!("connect {end} to {}: {result:?}", self.ends[end].remote));
                    self.touch(end);
                }
            }
            Event::TimedOut(end) => {
                if !self.ends[end].dead {
                    self.die(end, libc::ETIMEDOUT);
                }
            }
            Event::Wake(owner) => {
                self.ready.insert(owner);
            }
        }
    }

    fn connect(&mut self, from: IpAddr, to: SocketAddr, owner: Owner, tunnel: bool) -> EndId {
        let link = self.links.get(&to.ip()).copied().unwrap_or(Link::PLAIN);
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        let local = SocketAddr::new(from, self.next_port);
        let end = self.new_end(local, to, owner, link, tunnel, Phase::Connecting);
        self.trace(|| format!("connect {end} from {local} to {to}"));
        let delay = self.rng.between(link.latency.0, link.latency.1);
        match self.paths.get(&to.ip()) {
            None => self.schedule(self.now + delay, Event::Syn(end)),
            Some(Path::Refused) => self.schedule(self.now + 2 * delay, Event::Connected(end, libc::ECONNREFUSED)),
            Some(Path::Unreachable) => self.schedule(self.now + delay, Event::Connected(end, libc::EHOSTUNREACH)),
            Some(Path::Silent) => self.schedule(self.now + 127 * SECOND, Event::Connected(end, libc::ETIMEDOUT)),
        }
        end
    }

    fn new_end(&mut self, local: SocketAddr, remote: SocketAddr, owner: Owner, link: Link, tunnel: bool, phase: Phase) -> EndId {
        self.ends.push(End {
            peer: None,
            local,
            remote,
            owner,
            phase,
            connected: None,
            inbox: VecDeque::new(),
            fin_seen: false,
            dead: false,
            error: None,
            outbox: VecDeque::new(),
            fin_queued: false,
            fin_sent: false,
            flight: VecDeque::new(),
            flight_bytes: 0,
            last_arrival: 0,
            stalled_until: 0,
            lost: false,
            link,
            tunnel,
        });
        self.ends.len() - 1
    }

    fn syn(&mut self, end: EndId) {
        if self.ends[end].phase != Phase::Connecting {
            return;
        }
        let (link, from, to) = (self.ends[end].link, self.ends[end].local, self.ends[end].remote);
        let delay = self.rng.between(link.latency.0, link.latency.1);
        let fits = |listener: &Option<Listener>| listener.as_ref().is_some_and(|listener| listener.address == to);
        let candidates: Vec<ListenerId> = (0..self.listeners.len()).filter(|&id| fits(&self.listeners[id])).collect();
        if candidates.is_empty() {
            return self.schedule(self.now + delay, Event::Connected(end, libc::ECONNREFUSED));
        }
        let listener = self.rng.pick(&candidates);
        let other = self.new_end(to, from, Owner::Nobody, link, false, Phase::Open);
        self.ends[other].peer = Some(end);
        self.ends[end].peer = Some(other);
        self.ends[end].last_arrival = self.now;
        self.ends[other].last_arrival = self.now + delay;
        self.schedule(self.now + delay, Event::Connected(end, 0));
        self.observer.on_connection(end, other, to);
        let listener = self.listeners[listener].as_mut().expect("a candidate exists");
        listener.backlog.push_back(other);
        self.ready.insert(listener.owner);
    }

    fn write(&mut self, id: EndId, bytes: &[u8]) -> Result<usize, i32> {
        assert!(!bytes.is_empty(), "a write of nothing");
        let end = &mut self.ends[id];
        assert_eq!(end.phase, Phase::Open, "write to an end that is not open");
        if let Some(error) = end.error.take() {
            return Err(error);
        }
        if end.dead || end.fin_queued {
            return Err(libc::EPIPE);
        }
        let room = end.link.outbox.saturating_sub(end.outbox.len());
        if room == 0 {
            return Err(libc::EAGAIN);
        }
        let taken = room.min(bytes.len());
        end.outbox.extend(&bytes[..taken]);
        self.transmit(id);
        Ok(taken)
    }

    fn read(&mut self, id: EndId, most: usize) -> Read {
        let end = &mut self.ends[id];
        assert!(end.phase == Phase::Open, "read from an end that is not open");
        if !end.inbox.is_empty() {
            let count = most.min(end.inbox.len());
            let bytes = end.inbox.drain(..count).collect();
            if let Some(peer) = end.peer {
                self.transmit(peer);
            }
            return Read::Bytes(bytes);
        }
        if end.fin_seen {
            return Read::Fin;
        }
        match end.error.take() {
            Some(error) => Read::Error(error),
            None if end.dead => Read::Fin,
            None => Read::Nothing,
        }
    }

    /// Puts on the wire what the other end has room for.
    fn transmit(&mut self, id: EndId) {
        let Some(peer) = self.ends[id].peer else { return };
        if self.ends[id].dead || self.ends[id].lost {
            return;
        }
        let mut freed = false;
        loop {
            let waiting = self.ends[id].outbox.len();
            if waiting == 0 {
                break;
            }
            let capacity = self.ends[peer].link.inbox;
            let room = capacity.saturating_sub(self.ends[peer].inbox.len() + self.ends[id].flight_bytes);
            // As TCP does, no silly little segments into a window that has opened by a byte.
            if room < waiting.min(capacity.div_ceil(4)) {
                break;
            }
            let most = self.ends[id].link.segment.min(waiting).min(room);
            let size = if self.rng.chance(50) { most } else { self.rng.size(1, most) };
            let bytes: Vec<u8> = self.ends[id].outbox.drain(..size).collect();
            self.observer.on_bytes(id, &bytes);
            self.ends[id].flight_bytes += size;
            self.launch(id, Segment::Bytes(bytes));
            freed = true;
        }
        if self.ends[id].outbox.is_empty() && self.ends[id].fin_queued && !self.ends[id].fin_sent {
            self.ends[id].fin_sent = true;
            self.launch(id, Segment::Fin);
        }
        if freed {
            self.touch(id);
        }
    }

    fn launch(&mut self, id: EndId, segment: Segment) {
        let link = self.ends[id].link;
        let delay = self.rng.between(link.latency.0, link.latency.1);
        let end = &mut self.ends[id];
        end.last_arrival = end.last_arrival.max(self.now + delay).max(end.stalled_until);
        end.flight.push_back(segment);
        let time = end.last_arrival;
        self.schedule(time, Event::Arrive(id));
    }

    fn arrive(&mut self, sender: EndId) {
        if self.now < self.ends[sender].stalled_until {
            let time = self.ends[sender].stalled_until;
            return self.schedule(time, Event::Arrive(sender));
        }
        let Some(segment) = self.ends[sender].flight.pop_front() else { return };
        let Some(to) = self.ends[sender].peer else { return };
        if self.ends[sender].lost || self.ends[to].dead {
            return;
        }
        match segment {
            Segment::Bytes(bytes) => {
                self.trace(|| format!("{sender} -> {to}: {} bytes", bytes.len()));
                self.ends[sender].flight_bytes -= bytes.len();
                if self.ends[to].phase == Phase::Orphan {
                    // Nobody can read them any more.
                    self.reset(to);
                    return;
                }
                self.ends[to].inbox.extend(bytes);
            }
            Segment::Fin => {
                self.trace(|| format!("{sender} -> {to}: FIN"));
                self.ends[to].fin_seen = true;
            }
            Segment::Rst => {
                self.trace(|| format!("{sender} -> {to}: RST"));
                let errno = if self.ends[to].fin_seen { libc::EPIPE } else { libc::ECONNRESET };
                return self.die(to, errno);
            }
        }
        self.touch(to);
    }

    /// No more traffic on this end; its owner is told the error once.
    fn die(&mut self, id: EndId, errno: i32) {
        let end = &mut self.ends[id];
        if end.dead {
            return;
        }
        end.dead = true;
        end.error = Some(errno);
        end.outbox.clear();
        self.touch(id);
    }

    /// Sends a RST in place of all that is unsent.
    fn reset(&mut self, id: EndId) {
        self.ends[id].dead = true;
        self.ends[id].outbox.clear();
        if self.ends[id].peer.is_some() && !self.ends[id].lost {
            self.launch(id, Segment::Rst);
        }
    }

    fn close(&mut self, id: EndId, reset: bool) {
        self.trace(|| format!("close {id}{}", if reset { " with RST" } else { "" }));
        let end = &mut self.ends[id];
        if matches!(end.connected, Some(Err(_))) {
            return;
        }
        assert_ne!(end.phase, Phase::Orphan, "closed twice");
        let connecting = end.phase == Phase::Connecting;
        end.phase = Phase::Orphan;
        end.owner = Owner::Nobody;
        if end.dead {
            return;
        }
        let over = end.fin_seen && end.fin_sent && end.flight.is_empty();
        if !over && (reset || connecting || !end.inbox.is_empty()) {
            end.inbox.clear();
            self.reset(id);
        } else {
            end.fin_queued = true;
            self.transmit(id);
        }
    }
}
