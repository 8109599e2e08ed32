//! The clients of one thread: opens flows, through a proxy or straight, watches that they move, and notes what goes wrong.
//!
//! What always holds: a flow that stands still for too long is shut down by the watchdog, which is what ends its operations; who waits on
//! such a flow learns from it why it ended.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Notify;

use crate::destination::{Tasks, note};
use crate::fault::{Fault, What};
use crate::pattern::Way;
use crate::ring::{self, Conn};
use crate::socks;
use crate::spec::{Spec, Via, Workload};
use crate::wire::{Header, Task};

/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(50);

/// Where a measurement stands. Goes on only forwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Flows are opened, and begin; nothing counts.
    Opening,
    /// What is done counts.
    Measuring,
    /// Flows do a last exchange, finish what they do, and close.
    Last,
    /// Everything ends.
    Stop,
}

/// What threads and the one who conducts them share.
#[derive(Debug)]
pub struct Shared {
    phase: AtomicU8,
    /// Flows that are open, or have been.
    pub opened: AtomicU64,
    /// Flows that could not be opened at the start.
    pub failed: AtomicU64,
    /// Flows that are open from end to end, or have ended before they were.
    pub ready: AtomicU64,
    /// Flows at work.
    pub working: AtomicU64,
    /// One above the highest number of a flow.
    pub numbers: AtomicU64,
    /// What went wrong, as seen by clients.
    pub faults: Mutex<Vec<Fault>>,
}

/// What one thread counts; a cache line of its own.
#[derive(Default, Debug)]
#[repr(align(128))]
pub struct Counters {
    /// Checked bytes that came down in bulk.
    pub down_bytes: AtomicU64,
    /// Messages there and back.
    pub operations: AtomicU64,
}

/// The clients of one thread.
#[derive(Debug)]
pub struct Client {
    /// What to measure.
    pub spec: Arc<Spec>,
    /// What is shared.
    pub shared: Arc<Shared>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Nanoseconds of each operation while measuring.
    pub latency: RefCell<Histogram<u64>>,
    /// Flows at work.
    pub tasks: Tasks,
    /// Wakes those who wait for the last phase.
    pub last: Notify,
    /// Wakes those who wait until all flows are ready.
    all_ready: Notify,
    watched: RefCell<Vec<Weak<Flow>>>,
    destinations: Vec<SocketAddr>,
    headers: bool,
}

/// A flow, opened or being opened.
#[derive(Debug)]
pub struct Flow {
    /// Its connection.
    pub conn: Rc<Conn>,
    /// Its number.
    pub number: u64,
    /// Where it leads.
    pub destination: SocketAddr,
    /// Whether its bytes move until it is ended.
    pub bulk: bool,
    /// Whether it waits for the other end, so that standing still is a fault.
    pub waiting: Cell<bool>,
    ready: Cell<bool>,
    ending: Cell<Ending>,
    moved: Cell<u64>,
    moved_at: Cell<Instant>,
}

/// Why the watchdog has shut a flow down.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Ending {
    No,
    Stalled(Duration),
    Asked,
}

impl Shared {
    /// At the start.
    #[must_use]
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let faults = Mutex::default();
        Self { phase: AtomicU8::new(0), opened: zero(), failed: zero(), ready: zero(), working: zero(), numbers: zero(), faults }
    }

    /// Where the measurement stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Opening,
            1 => Phase::Measuring,
            2 => Phase::Last,
            _ => Phase::Stop,
        }
    }

    /// Whether each of `all` flows is ready, or could not be opened.
    #[must_use]
    pub fn all_ready(&self, all: u64) -> bool {
        self.ready.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed) >= all
    }

    /// Goes on to `phase`.
    pub fn go_on(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// The clients of this thread, whose flows lead to `destinations` in turn.
    #[must_use]
    pub fn new(spec: Arc<Spec>, shared: Arc<Shared>, counters: Arc<Counters>, destinations: Vec<SocketAddr>, headers: bool) -> Rc<Self> {
        // From 1 ns on, resized as needed, three digits.
        let latency = RefCell::new(Histogram::new(3).unwrap_or_else(|error| unreachable!("three digits are allowed: {error}")));
        let (tasks, last, all_ready, watched) = (Tasks::default(), Notify::new(), Notify::new(), RefCell::default());
        Rc::new(Self { spec, shared, counters, latency, tasks, last, all_ready, watched, destinations, headers })
    }

    /// Opens flow `number`, as far as the proxy's consent. What fails is noted.
    pub async fn open(&self, number: u64, workload: Workload) -> Option<Rc<Flow>> {
        self.shared.numbers.fetch_max(number + 1, Ordering::Relaxed);
        let destination = self.destinations[usize::try_from(number).unwrap_or(0) % self.destinations.len()];
        let to = match self.spec.via {
            Via::Socks(proxy) | Via::Forwarder(proxy) => proxy,
            Via::Direct => destination,
        };
        let refused = |why: String| {
            self.note(Fault { flow: number, destination: destination.to_string(), way: Way::Up, offset: 0, what: What::NotOpened { why } });
        };
        let conn = Conn::towards(to).map_err(|error| refused(error.to_string())).ok()?;
        let flow = Rc::new(Flow {
            conn,
            number,
            destination,
            bulk: workload.is_bulk(),
            waiting: Cell::new(true),
            ready: Cell::new(false),
            ending: Cell::new(Ending::No),
            moved: Cell::new(0),
            moved_at: Cell::new(Instant::now()),
        });
        self.watched.borrow_mut().push(Rc::downgrade(&flow));
        let done = match flow.conn.connect(to).await {
            Ok(()) if matches!(self.spec.via, Via::Socks(_)) => greet(&flow.conn, destination).await,
            Ok(()) => Ok(()),
            Err(error) => Err(format!("cannot connect to {to}: {error}")),
        };
        match done {
            Ok(()) => Some(flow),
            Err(_) if flow.ending.get() == Ending::Asked => None,
            Err(why) => {
                let stalled = matches!(flow.ending.get(), Ending::Stalled(_));
                refused(if stalled { format!("no answer for {:?}: {why}", self.spec.stall) } else { why });
                None
            }
        }
    }

    /// What a flow sends before its first byte.
    #[must_use]
    pub fn hello(&self, flow: &Flow, task: Task) -> Vec<u8> {
        if !self.headers {
            return Vec::new();
        }
        let size = if flow.bulk { self.spec.bulk_size() } else { self.spec.size };
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        Header { task, seed: self.spec.seed, flow: flow.number, size }.encode().to_vec()
    }

    /// Notes that `flow` ended where it should not have, with the watchdog's reason if it was the watchdog.
    pub fn ended(&self, flow: &Flow, way: Way, offset: u64, error: Option<&io::Error>) {
        let what = match (flow.ending.get(), error) {
            (Ending::Asked, _) => return,
            (Ending::Stalled(time), _) => What::Stalled { seconds: time.as_secs_f64() },
            (Ending::No, None) => What::Ended,
            (Ending::No, Some(error)) => What::Broken { why: error.to_string() },
        };
        self.blame(flow, way, offset, what);
    }

    /// Notes what is wrong with `flow`.
    pub fn blame(&self, flow: &Flow, way: Way, offset: u64, what: What) {
        self.note(Fault { flow: flow.number, destination: flow.destination.to_string(), way, offset, what });
    }

    /// Notes how long an operation took, if it counts.
    pub fn took(&self, time: Duration) {
        if self.shared.phase() == Phase::Measuring {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
            // It grows as needed, and fails only for want of address space.
            let _recorded = self.latency.borrow_mut().record(nanos);
        }
    }

    /// Notes that `flow` is ready, or never will be.
    pub fn ready(&self, flow: &Flow) {
        if !flow.ready.replace(true) {
            self.shared.ready.fetch_add(1, Ordering::Relaxed);
            self.wake_when_all_are_ready();
        }
    }

    /// Waits until all flows are ready: those that are would take the relay's time from those that are not, and 10,000 would never be.
    pub async fn await_all(&self, flow: &Flow) {
        if !self.shared.all_ready(self.spec.all_flows()) && self.goes_on() {
            flow.waiting.set(false);
            self.all_ready.notified().await;
            flow.waiting.set(true);
        }
    }

    /// Wakes this thread's flows; those of other threads learn it from their watchdog.
    pub fn wake_when_all_are_ready(&self) {
        if self.shared.all_ready(self.spec.all_flows()) || !self.goes_on() {
            self.all_ready.notify_waiters();
        }
    }

    /// Whether flows are to go on.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.shared.phase() < Phase::Last
    }

    /// Looks after this thread's flows until the stop.
    pub async fn watch(self: Rc<Self>) {
        let mut was = Phase::Opening;
        while was < Phase::Stop {
            let phase = self.shared.phase();
            let last_words = phase >= Phase::Last && was < Phase::Last;
            self.look(Instant::now(), last_words);
            self.wake_when_all_are_ready();
            if last_words {
                self.last.notify_waiters();
            }
            was = phase;
            ring::sleep(TICK).await;
        }
    }

    /// Shuts down whoever is still there.
    pub fn end_all(&self) {
        for flow in self.watched.borrow().iter().filter_map(Weak::upgrade) {
            flow.end(Ending::Asked);
        }
    }

    fn look(&self, now: Instant, last_words: bool) {
        // Bulk is cut at the end of the measurement: by then it must have moved lately.
        let stall = if last_words { self.spec.stall.min(self.spec.time / 2) } else { self.spec.stall };
        self.watched.borrow_mut().retain(|flow| {
            let Some(flow) = flow.upgrade() else { return false };
            let moved = flow.conn.moved();
            if moved != flow.moved.replace(moved) || !flow.waiting.get() {
                flow.moved_at.set(now);
            }
            let still = now.saturating_duration_since(flow.moved_at.get());
            if still > stall && (flow.bulk || still > self.spec.stall) {
                flow.end(Ending::Stalled(still));
            } else if last_words && flow.bulk {
                flow.end(Ending::Asked);
            }
            true
        });
    }

    fn note(&self, fault: Fault) {
        note(&self.shared.faults, fault);
    }
}

impl Flow {
    fn end(&self, ending: Ending) {
        if self.ending.get() == Ending::No {
            self.ending.set(ending);
        }
        self.conn.shutdown();
    }
}

/// SOCKS5, one question after the other, as clients do it.
async fn greet(conn: &Rc<Conn>, destination: SocketAddr) -> Result<(), String> {
    let method: [u8; 2] = ask(conn, socks::GREETING.to_vec()).await?;
    socks::method(method)?;
    let first: [u8; 5] = ask(conn, socks::request(destination)).await?;
    let rest = socks::reply_rest(first)?;
    let (got, _) = conn.recv_full(vec![0; rest]).await;
    match got {
        Ok(len) if len == rest => Ok(()),
        Ok(_) => Err("the proxy closed within its reply".to_owned()),
        Err(error) => Err(format!("within the proxy's reply: {error}")),
    }
}

async fn ask<const N: usize>(conn: &Rc<Conn>, question: Vec<u8>) -> Result<[u8; N], String> {
    let (sent, _) = conn.send(question).await;
    sent.map_err(|error| format!("cannot send to the proxy: {error}"))?;
    let (got, answer) = conn.recv_full(vec![0; N]).await;
    let got = got.map_err(|error| format!("no answer from the proxy: {error}"))?;
    if got < N {
        // A refusal may be short.
        return Err(format!("the proxy closed after {got} of {N} bytes of its answer: {:02x?}", &answer[..got]));
    }
    answer.first_chunk().copied().ok_or_else(|| "the proxy's answer is short".to_owned())
}
