//! Conducts one measurement: starts a thread per core with its destinations and its clients, opens the flows, lets them run, measures
//! between two moments, and ends everything in order.
//!
//! What always holds: numbers are differences between two moments at which all flows that could be opened were at work; a thread that
//! could not end all its operations leaks its ring instead of dropping it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Counters, Phase, Shared};
use crate::destination::{Books, Destination, Totals, ask, lock};
use crate::fault::Fault;
use crate::latency::Latency;
use crate::machine;
use crate::procs::Usage;
use crate::ring;
use crate::spec::{Destinations, Spec, Workload};
use crate::work::work;

/// Flows that a thread opens at the same time. As many again wait in no listener's queue.
const OPENERS: u64 = 64;

/// How long the destinations of a thread may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How often the conductor looks.
const LOOK: Duration = Duration::from_millis(20);

/// What one measurement found.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Seconds between the two moments.
    pub seconds: f64,
    /// Flows that were opened at the start.
    pub flows: u64,
    /// Checked bytes that came down.
    pub down_bytes: u64,
    /// Checked bytes that came up.
    pub up_bytes: u64,
    /// Messages there and back.
    pub operations: u64,
    /// How long each took.
    pub latency: Option<Latency>,
    /// What the processes used in that time.
    pub usage: Usage,
    /// What they held before the first flow.
    pub rss_before_bytes: u64,
    /// CPU time of this process, to see whether it was the one at its limit.
    pub own_cpu_seconds: f64,
    /// What went wrong.
    pub faults: Vec<Fault>,
}

/// How far a measurement is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Progress {
    /// So many flows of all are open.
    Opening(u64, u64),
    /// This part of the time is over.
    Running(f64),
    /// It is ending.
    Ending,
}

impl Outcome {
    /// Bulk bytes, both ways.
    #[must_use]
    pub fn bulk_bytes(&self) -> u64 {
        self.down_bytes + self.up_bytes
    }

    /// Seconds of CPU for a gigabyte (10^9).
    #[must_use]
    pub fn cpu_seconds_per_gb(&self) -> Option<f64> {
        (self.bulk_bytes() > 0 && self.usage.processes > 0).then(|| self.usage.cpu_seconds / self.bulk_bytes() as f64 * 1e9)
    }

    /// Microseconds of CPU for an operation.
    #[must_use]
    pub fn cpu_us_per_operation(&self) -> Option<f64> {
        (self.operations > 0 && self.usage.processes > 0).then(|| self.usage.cpu_seconds / self.operations as f64 * 1e6)
    }

    /// Resident memory that each open flow added.
    #[must_use]
    pub fn bytes_per_flow(&self) -> Option<f64> {
        let grown = self.usage.rss_bytes.saturating_sub(self.rss_before_bytes);
        (self.flows > 0 && self.usage.processes > 0).then(|| grown as f64 / self.flows as f64)
    }
}

struct Thread {
    handle: JoinHandle<io::Result<Histogram<u64>>>,
    counters: Arc<Counters>,
}

/// Everything that threads are given.
struct Plan {
    spec: Arc<Spec>,
    shared: Arc<Shared>,
    books: Arc<Books>,
    listen: Vec<SocketAddr>,
    destinations: Vec<SocketAddr>,
    ready: Barrier,
    not_ready: AtomicUsize,
}

/// The counts of one moment.
struct Moment {
    at: Instant,
    down_bytes: u64,
    operations: u64,
    up_bytes: u64,
    usage: Usage,
    own: Usage,
}

/// Measures `spec`, telling `progress` how far it is.
///
/// # Errors
/// When nothing could be measured: no ring, no destination, not one flow opened. What goes wrong with single flows is in the outcome.
pub fn run(spec: &Spec, progress: &mut dyn FnMut(Progress)) -> io::Result<Outcome> {
    let (listen, destinations) = places(&spec.destinations)?;
    let rss_before_bytes = Usage::of(&spec.pids).rss_bytes;
    let cores: Vec<Option<usize>> = if spec.cores.is_empty() { vec![None] } else { spec.cores.iter().copied().map(Some).collect() };
    let plan = Arc::new(Plan {
        spec: Arc::new(spec.clone()),
        shared: Arc::default(),
        books: Arc::default(),
        listen,
        destinations,
        ready: Barrier::new(cores.len() + 1),
        not_ready: AtomicUsize::new(0),
    });
    let threads: Vec<Thread> = cores.iter().enumerate().map(|(index, core)| start(&plan, index, cores.len(), *core)).collect();
    plan.ready.wait();
    let conducted = if plan.not_ready.load(Ordering::Acquire) == 0 { Some(conduct(&plan, &threads, progress)) } else { None };
    plan.shared.go_on(Phase::Stop);
    progress(Progress::Ending);
    let mut latency = Histogram::<u64>::new(3).map_err(io::Error::other)?;
    for thread in threads {
        let one = thread.handle.join().map_err(|_| io::Error::other("a thread of loadgen has panicked"))??;
        latency.add(one).map_err(io::Error::other)?;
    }
    let (first, second, faults) = conducted.unwrap_or_else(|| Err(io::Error::other("loadgen could not start")))?;
    Ok(Outcome {
        seconds: (second.at - first.at).as_secs_f64(),
        flows: plan.shared.opened.load(Ordering::Relaxed),
        down_bytes: second.down_bytes - first.down_bytes,
        up_bytes: second.up_bytes - first.up_bytes,
        operations: second.operations - first.operations,
        latency: Latency::of(&latency),
        usage: second.usage.since(&first.usage),
        rss_before_bytes,
        own_cpu_seconds: second.own.since(&first.own).cpu_seconds,
        faults,
    })
}

/// Where to listen, and where flows lead.
fn places(destinations: &Destinations) -> io::Result<(Vec<SocketAddr>, Vec<SocketAddr>)> {
    match destinations {
        Destinations::Plain(at) => Ok((Vec::new(), vec![*at])),
        Destinations::There(at) if at.is_empty() => Err(io::Error::other("no destination is given")),
        Destinations::There(at) => Ok((Vec::new(), at.clone())),
        Destinations::Here(count) => {
            // One port that is free, for all.
            let port = std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 1, 1), 0))?.local_addr()?.port();
            let all: Vec<_> = addresses((*count).max(1), port).collect();
            Ok((all.clone(), all))
        }
    }
}

/// 127.0.1.1, 127.0.1.2 and so on: 250 in each of 250 nets.
pub fn addresses(count: usize, port: u16) -> impl Iterator<Item = SocketAddr> {
    let part = |number: usize| u8::try_from(number % 250 + 1).unwrap_or(1);
    (0..count).map(move |index| SocketAddr::from((Ipv4Addr::new(127, 0, part(index / 250), part(index)), port)))
}

fn start(plan: &Arc<Plan>, index: usize, threads: usize, core: Option<usize>) -> Thread {
    let counters = Arc::new(Counters::default());
    let (plan, own) = (Arc::clone(plan), Arc::clone(&counters));
    let handle = std::thread::spawn(move || {
        let begun = core.map_or(Ok(()), |core| machine::pin(&[core])).and_then(|()| ring::runtime());
        match begun {
            Ok(runtime) => {
                let (latency, clean) = runtime.block_on(thread(&plan, own, index, threads))?;
                if !clean {
                    std::mem::forget(runtime);
                }
                Ok(latency)
            }
            Err(error) => {
                plan.not_ready.fetch_add(1, Ordering::AcqRel);
                plan.ready.wait();
                Err(error)
            }
        }
    });
    Thread { handle, counters }
}

/// A thread's life. Gives its latencies, and whether no operation is left.
async fn thread(plan: &Plan, counters: Arc<Counters>, index: usize, threads: usize) -> io::Result<(Histogram<u64>, bool)> {
    let destination = Destination::start(&plan.listen, Arc::clone(&plan.books));
    if destination.is_err() {
        plan.not_ready.fetch_add(1, Ordering::AcqRel);
    }
    // Here, and only here, the thread blocks: no flow exists yet.
    plan.ready.wait();
    let destination = destination?;
    let headers = !matches!(plan.spec.destinations, Destinations::Plain(_));
    let client = Client::new(Arc::clone(&plan.spec), Arc::clone(&plan.shared), counters, plan.destinations.clone(), headers);
    let (step, own) = (threads as u64, index as u64);
    for opener in 0..OPENERS {
        client.tasks.spawn(open(Rc::clone(&client), own + opener * step, step * OPENERS));
    }
    Rc::clone(&client).watch().await;
    let mut clean = destination.stop(STOP_PATIENCE).await;
    let patience = Instant::now() + STOP_PATIENCE;
    while client.tasks.running() > 0 && Instant::now() < patience {
        client.end_all();
        ring::sleep(Duration::from_millis(2)).await;
    }
    clean &= client.tasks.running() == 0;
    let latency = client.latency.replace(Histogram::new(3).map_err(io::Error::other)?);
    Ok((latency, clean))
}

/// Opens every `step`th flow from `first` on, one after the other, and sets each to work.
async fn open(client: Rc<Client>, first: u64, step: u64) {
    let all = client.spec.all_flows();
    let mut number = first;
    while number < all && client.goes_on() {
        let workload = if number < client.spec.flows { client.spec.workload } else { Workload::BulkDown };
        if let Some(flow) = client.open(number, workload).await {
            client.shared.working.fetch_add(1, Ordering::Relaxed);
            client.shared.opened.fetch_add(1, Ordering::Relaxed);
            let own = Rc::clone(&client);
            client.tasks.spawn(async move {
                work(Rc::clone(&own), flow, workload).await;
                own.shared.working.fetch_sub(1, Ordering::Relaxed);
            });
        } else {
            client.shared.failed.fetch_add(1, Ordering::Relaxed);
            client.wake_when_all_are_ready();
        }
        number += step;
    }
}

fn conduct(plan: &Plan, threads: &[Thread], progress: &mut dyn FnMut(Progress)) -> io::Result<(Moment, Moment, Vec<Fault>)> {
    let (spec, shared) = (&plan.spec, &plan.shared);
    let all = spec.all_flows();
    while !shared.all_ready(all) {
        progress(Progress::Opening(shared.ready.load(Ordering::Relaxed), all));
        std::thread::sleep(LOOK);
    }
    if shared.opened.load(Ordering::Relaxed) == 0 {
        let why = lock(&shared.faults).first().map_or_else(String::new, ToString::to_string);
        return Err(io::Error::other(format!("no flow could be opened; {why}")));
    }
    std::thread::sleep(spec.warm_up);
    let first = moment(plan, threads)?;
    shared.go_on(Phase::Measuring);
    let end = first.at + spec.time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        // With every flow broken there is nothing to wait for.
        if shared.working.load(Ordering::Relaxed) == 0 {
            break;
        }
        progress(Progress::Running(1.0 - left.as_secs_f64() / spec.time.as_secs_f64()));
        std::thread::sleep(left.min(LOOK * 10));
    }
    let second = moment(plan, threads)?;
    shared.go_on(Phase::Last);
    progress(Progress::Ending);
    let patience = Instant::now() + spec.stall + STOP_PATIENCE;
    while shared.working.load(Ordering::Relaxed) > 0 && Instant::now() < patience {
        std::thread::sleep(LOOK);
    }
    let mut faults = lock(&shared.faults).clone();
    faults.extend(totals(plan)?.faults);
    Ok((first, second, faults))
}

fn operations(threads: &[Thread]) -> u64 {
    threads.iter().map(|thread| thread.counters.operations.load(Ordering::Relaxed)).sum()
}

fn moment(plan: &Plan, threads: &[Thread]) -> io::Result<Moment> {
    let up_bytes = totals(plan)?.up_bytes;
    let usage = Usage::of(&plan.spec.pids);
    let own = Usage::of_this();
    let down_bytes = threads.iter().map(|thread| thread.counters.down_bytes.load(Ordering::Relaxed)).sum();
    Ok(Moment { at: Instant::now(), down_bytes, operations: operations(threads), up_bytes, usage, own })
}

/// What the destinations have in their books.
fn totals(plan: &Plan) -> io::Result<Totals> {
    match &plan.spec.destinations {
        Destinations::Here(_) => Ok(plan.books.totals(plan.spec.seed)),
        Destinations::There(at) => ask(at[0], plan.spec.seed),
        Destinations::Plain(_) => Ok(Totals::default()),
    }
}
