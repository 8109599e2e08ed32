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

use crate::net::{End, Event, Listener, Net, Phase};
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
    /// The processes' control threads, which look names up.
    Control,
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
    /// Bytes in a second, each way (`None`: at once).
    pub(crate) rate: Option<u64>,
}

impl Link {
    pub(crate) const PLAIN: Self =
        Self { latency: (50 * MICROSECOND, 50 * MICROSECOND), segment: 16_384, outbox: 65_536, inbox: 65_536, rate: None };
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

/// What a descriptor that goes through `Io::adopt` and `Io::detach` stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Handle {
    Listener(ListenerId),
    /// An end, and the host it came from.
    Connection(EndId, usize),
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

    pub(crate) fn local_address(&self, end: EndId) -> SocketAddr {
        self.net().ends[end].local
    }

    /// The path is gone: nothing arrives any more, nobody is told before a time-out.
    pub(crate) fn lose(&self, end: EndId) {
        let mut net = self.net();
        net.trace(|| format!("lose {end}"));
        let peer = net.ends[end].peer;
        for end in [Some(end), peer].into_iter().flatten() {
            net.lose(end);
        }
    }

    /// The path is gone in one direction: nothing that `end` sends arrives any more.
    pub(crate) fn lose_from(&self, end: EndId) {
        let mut net = self.net();
        net.trace(|| format!("lose from {end}"));
        net.lose(end);
    }

    /// The other end of a connection.
    pub(crate) fn peer(&self, end: EndId) -> EndId {
        self.net().ends[end].peer.expect("it is connected")
    }

    /// What the kernel knows of a lost path without being told.
    pub(crate) fn is_lost(&self, end: EndId) -> bool {
        self.net().is_lost(end)
    }

    /// What close with a linger of zero would throw away.
    pub(crate) fn unsent(&self, end: EndId) -> usize {
        self.net().unsent(end)
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
        let live = |end: &End| end.remote == address && !end.dead && end.lost.is_none() && end.connected == Some(Ok(()));
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

    /// What the kernel does with connections that were on their way from shard to shard when their process died.
    pub(crate) fn close_in_transit(&self, hosts: &[usize]) {
        let mut net = self.net();
        let dead = |handle: &Handle| if let Handle::Connection(end, host) = handle { hosts.contains(host).then_some(*end) } else { None };
        let ends: Vec<EndId> = net.handles.values().filter_map(dead).collect();
        net.handles.retain(|_, handle| dead(handle).is_none());
        for end in ends {
            net.close(end, false);
        }
    }

    pub(crate) fn redeem(&self, descriptor: RawFd) -> Option<Handle> {
        self.net().handles.remove(&descriptor)
    }
}
