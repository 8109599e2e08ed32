//! What happens in the simulated network: segments, ends, listeners and events. [`crate::world::World`] is what others see of it, and says
//! what always holds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use crate::observer::Observer;
use crate::rng::Rng;
use crate::world::{EndId, Handle, Link, ListenerId, Nanos, Owner, Path, Read, SECOND};

/// A path is taken for lost when probes have gone unanswered this long: keepalive 15 s, three probes 5 s apart.
const PROBED: Nanos = 30 * SECOND;
/// While bytes are unacknowledged there are no probes, and the kernel gives up only after this.
const RETRANSMITTED: Nanos = 924 * SECOND;
/// Connections of users have the system's keepalive.
const PROBED_BY_SYSTEM: Nanos = 7_875 * SECOND;

#[derive(Debug)]
pub(crate) enum Segment {
    Bytes(Vec<u8>),
    Fin,
    Rst,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Connecting,
    Open,
    /// The owner has closed it; the kernel still sends what is left.
    Orphan,
}

#[derive(Debug)]
pub(crate) struct End {
    pub(crate) peer: Option<EndId>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) owner: Owner,
    pub(crate) phase: Phase,
    pub(crate) connected: Option<Result<(), i32>>,
    pub(crate) inbox: VecDeque<u8>,
    pub(crate) fin_seen: bool,
    /// No more traffic: reset, timed out, refused.
    pub(crate) dead: bool,
    /// Reported once.
    pub(crate) error: Option<i32>,
    pub(crate) outbox: VecDeque<u8>,
    pub(crate) fin_queued: bool,
    pub(crate) fin_sent: bool,
    pub(crate) flight: VecDeque<Segment>,
    pub(crate) flight_bytes: usize,
    pub(crate) last_arrival: Nanos,
    /// Until when the wire is busy with what was sent last.
    pub(crate) departs: Nanos,
    pub(crate) stalled_until: Nanos,
    /// Since when nothing passes any more.
    pub(crate) lost: Option<Nanos>,
    pub(crate) link: Link,
    /// Has USER_TIMEOUT and short keepalive, so notices a lost path soon.
    pub(crate) tunnel: bool,
}

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) owner: Owner,
    pub(crate) backlog: VecDeque<EndId>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Event {
    /// The next segment that `0` sent arrives.
    Arrive(EndId),
    Syn(EndId),
    Connected(EndId, i32),
    TimedOut(EndId),
    Wake(Owner),
}

pub(crate) struct Net {
    pub(crate) now: Nanos,
    pub(crate) rng: Rng,
    pub(crate) sequence: u64,
    pub(crate) events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    pub(crate) ends: Vec<End>,
    pub(crate) listeners: Vec<Option<Listener>>,
    pub(crate) links: BTreeMap<IpAddr, Link>,
    pub(crate) paths: BTreeMap<IpAddr, Path>,
    pub(crate) next_port: u16,
    pub(crate) ready: BTreeSet<Owner>,
    pub(crate) touched: BTreeMap<usize, BTreeSet<EndId>>,
    pub(crate) handles: BTreeMap<RawFd, Handle>,
    pub(crate) no_descriptors_until: BTreeMap<usize, Nanos>,
    pub(crate) observer: Observer,
    pub(crate) history: u64,
    pub(crate) trace: bool,
}

impl Event {
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Arrive(end) => 8 * end as u64,
            Self::Syn(end) => 8 * end as u64 + 1,
            Self::Connected(end, errno) => 8 * end as u64 + 2 + (u64::from(errno.unsigned_abs()) << 40),
            Self::TimedOut(end) => 8 * end as u64 + 3,
            Self::Wake(Owner::Host(host)) => 8 * host as u64 + 4,
            Self::Wake(Owner::Actor(actor)) => 8 * actor as u64 + 5,
            Self::Wake(Owner::Nobody) => 6,
            Self::Wake(Owner::Control) => 7,
        }
    }
}

impl Net {
    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>14.6} ms  {}", self.now as f64 / 1e6, line());
        }
    }

    pub(crate) fn schedule(&mut self, time: Nanos, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time.max(self.now), self.sequence, event)));
    }

    pub(crate) fn touch(&mut self, end: EndId) {
        let owner = self.ends[end].owner;
        if let Owner::Host(host) = owner {
            self.touched.entry(host).or_default().insert(end);
        }
        if owner != Owner::Nobody {
            self.ready.insert(owner);
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
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
            Event::TimedOut(id) => self.time_out(id),
            Event::Wake(owner) => {
                self.ready.insert(owner);
            }
        }
    }

    pub(crate) fn connect(&mut self, from: IpAddr, to: SocketAddr, owner: Owner, tunnel: bool) -> EndId {
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

    pub(crate) fn new_end(&mut self, local: SocketAddr, remote: SocketAddr, owner: Owner, link: Link, tunnel: bool, phase: Phase) -> EndId {
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
            departs: 0,
            stalled_until: 0,
            lost: None,
            link,
            tunnel,
        });
        self.ends.len() - 1
    }

    pub(crate) fn syn(&mut self, end: EndId) {
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
        // A listener is for what dials it.
        let tunnel = self.ends[end].tunnel;
        let other = self.new_end(to, from, Owner::Nobody, link, tunnel, Phase::Open);
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

    pub(crate) fn write(&mut self, id: EndId, bytes: &[u8]) -> Result<usize, i32> {
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

    pub(crate) fn read(&mut self, id: EndId, most: usize) -> Read {
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
    pub(crate) fn transmit(&mut self, id: EndId) {
        let Some(peer) = self.ends[id].peer else { return };
        if self.ends[id].dead || self.ends[id].lost.is_some() {
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

    pub(crate) fn launch(&mut self, id: EndId, segment: Segment) {
        let link = self.ends[id].link;
        let delay = self.rng.between(link.latency.0, link.latency.1);
        let end = &mut self.ends[id];
        end.departs = end.departs.max(self.now);
        if let (Some(rate), Segment::Bytes(bytes)) = (link.rate, &segment) {
            end.departs += bytes.len() as u64 * SECOND / rate;
        }
        end.last_arrival = end.last_arrival.max(end.departs + delay).max(end.stalled_until);
        end.flight.push_back(segment);
        let time = end.last_arrival;
        self.schedule(time, Event::Arrive(id));
    }

    pub(crate) fn arrive(&mut self, sender: EndId) {
        if self.now < self.ends[sender].stalled_until {
            let time = self.ends[sender].stalled_until;
            return self.schedule(time, Event::Arrive(sender));
        }
        if self.ends[sender].lost.is_some() {
            return;
        }
        let Some(segment) = self.ends[sender].flight.pop_front() else { return };
        let Some(to) = self.ends[sender].peer else { return };
        if self.ends[to].dead {
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

    /// Whether bytes or an end have been sent that no acknowledgement has come for.
    pub(crate) fn is_unacknowledged(&self, id: EndId) -> bool {
        let end = &self.ends[id];
        !end.outbox.is_empty() || !end.flight.is_empty() || (end.fin_queued && !end.fin_sent)
    }

    /// Bytes on the way to an end that is there.
    pub(crate) fn unsent(&self, id: EndId) -> usize {
        let end = &self.ends[id];
        if end.dead { 0 } else { end.outbox.len() + end.flight_bytes }
    }

    /// The kernel's patience with a lost path may be at its end.
    fn time_out(&mut self, id: EndId) {
        let (Some(since), false) = (self.ends[id].lost, self.ends[id].dead) else { return };
        if self.is_unacknowledged(id) && self.now < since + RETRANSMITTED {
            self.schedule(since + RETRANSMITTED, Event::TimedOut(id));
        } else {
            self.die(id, libc::ETIMEDOUT);
        }
    }

    /// Makes the path of one end a lost one.
    pub(crate) fn lose(&mut self, id: EndId) {
        self.ends[id].lost = Some(self.now);
        let patience = if self.ends[id].tunnel { PROBED } else { PROBED_BY_SYSTEM };
        self.schedule(self.now + patience, Event::TimedOut(id));
    }

    /// What TCP_INFO tells who asks: the connection has failed, or what was sent has been retransmitted in vain for long.
    pub(crate) fn is_lost(&self, id: EndId) -> bool {
        let silent = |since: Nanos| self.now >= since + PROBED && self.is_unacknowledged(id);
        self.ends[id].dead || self.ends[id].lost.is_some_and(silent)
    }

    /// No more traffic on this end; its owner is told the error once.
    pub(crate) fn die(&mut self, id: EndId, errno: i32) {
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
    pub(crate) fn reset(&mut self, id: EndId) {
        self.ends[id].dead = true;
        self.ends[id].outbox.clear();
        if self.ends[id].peer.is_some() && self.ends[id].lost.is_none() {
            self.launch(id, Segment::Rst);
        }
    }

    pub(crate) fn close(&mut self, id: EndId, reset: bool) {
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
