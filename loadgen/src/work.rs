//! What flows do, workload by workload. Each is a loop that reads like what it measures.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::{Client, Flow};
use crate::destination::collect;
use crate::fault::What;
use crate::pattern::{Pattern, TELLING, Way};
use crate::ring;
use crate::spec::Workload;
use crate::wire::Task;

/// When operations are to start, fixed in advance: a slow answer delays the next start, and that delay counts.
#[derive(Debug)]
struct Schedule {
    next: Instant,
    every: Duration,
}

/// Lets an opened flow work until it is to end.
pub async fn work(client: Rc<Client>, flow: Rc<Flow>, workload: Workload) {
    if !matches!(workload, Workload::Echo | Workload::Mixed | Workload::Idle) {
        client.ready(&flow);
    }
    match workload {
        Workload::BulkDown => take_down(&client, &flow, Task::Down).await,
        Workload::BulkUp => send_up(&client, &flow, true).await,
        Workload::BulkBoth => {
            let (other, up) = (Rc::clone(&client), Rc::clone(&flow));
            // The header goes first, and both ways may follow.
            if say_hello(&client, &flow, Task::Both).await {
                client.tasks.spawn(async move { send_up(&other, &up, false).await });
                take_down_from(&client, &flow).await;
            }
        }
        Workload::Echo | Workload::Mixed => {
            echo(&client, &flow).await;
            client.ready(&flow);
        }
        Workload::Connect => connect(&client, flow).await,
        Workload::Idle => {
            idle(&client, &flow).await;
            client.ready(&flow);
        }
    }
}

async fn take_down(client: &Rc<Client>, flow: &Rc<Flow>, task: Task) {
    if say_hello(client, flow, task).await {
        take_down_from(client, flow).await;
    }
}

async fn take_down_from(client: &Rc<Client>, flow: &Rc<Flow>) {
    let pattern = Pattern::new(client.spec.seed, flow.number, Way::Down);
    let mut buffer = vec![0; client.spec.bulk_size().max(TELLING)];
    let mut offset = 0;
    loop {
        let (got, back) = flow.conn.recv(buffer).await;
        buffer = back;
        let len = match got {
            Ok(0) => return client.ended(flow, Way::Down, offset, None),
            Ok(len) => len,
            Err(error) => return client.ended(flow, Way::Down, offset, Some(&error)),
        };
        if let Some(wrong) = pattern.check(offset, &buffer[..len]) {
            let seen = collect(&flow.conn, buffer[wrong..len].to_vec()).await;
            mismatch(client, flow, &pattern, Way::Down, offset + wrong as u64, &seen);
            return flow.conn.shutdown();
        }
        offset += len as u64;
        client.counters.down_bytes.fetch_add(len as u64, Ordering::Relaxed);
    }
}

async fn send_up(client: &Rc<Client>, flow: &Rc<Flow>, hello: bool) {
    if hello && !say_hello(client, flow, Task::Up).await {
        return;
    }
    let pattern = Pattern::new(client.spec.seed, flow.number, Way::Up);
    let mut buffer = vec![0; client.spec.bulk_size()];
    let mut offset = 0;
    loop {
        pattern.fill(offset, &mut buffer);
        let (sent, back) = flow.conn.send(buffer).await;
        buffer = back;
        match sent {
            Ok(()) => offset += buffer.len() as u64,
            Err(error) => return client.ended(flow, Way::Up, offset, Some(&error)),
        }
    }
}

/// One exchange, to have the flow open from end to end; when all are, one after the other.
async fn echo(client: &Rc<Client>, flow: &Rc<Flow>) {
    let mut hello = client.hello(flow, Task::Echo);
    let Some(mut buffer) = exchange(client, flow, &mut hello, Vec::new(), 0).await else { return };
    client.ready(flow);
    client.await_all(flow).await;
    let mut schedule = Schedule::of(client, flow);
    let mut offset = client.spec.size as u64;
    while client.goes_on() {
        let Some(started) = schedule.start(client, flow).await else { return };
        let Some(back) = exchange(client, flow, &mut hello, buffer, offset).await else { return };
        client.took(started.elapsed());
        client.counters.operations.fetch_add(1, Ordering::Relaxed);
        buffer = back;
        offset += client.spec.size as u64;
    }
}

/// The first flow was opened like all, to see that it goes; it is given up, and a new one is opened for each operation.
async fn connect(client: &Rc<Client>, flow: Rc<Flow>) {
    let mut schedule = Schedule::of(client, &flow);
    let mut number = flow.number;
    let mut hello = client.hello(&flow, Task::Echo);
    if exchange(client, &flow, &mut hello, Vec::new(), 0).await.is_none() {
        return;
    }
    drop(flow);
    while client.goes_on() {
        number += client.spec.flows;
        let Some(started) = schedule.start_free(client).await else { return };
        let Some(flow) = client.open(number, Workload::Connect).await else { return };
        let mut hello = client.hello(&flow, Task::Echo);
        if exchange(client, &flow, &mut hello, Vec::new(), 0).await.is_none() {
            return;
        }
        client.took(started.elapsed());
        client.counters.operations.fetch_add(1, Ordering::Relaxed);
    }
}

/// One exchange, to have the flow open from end to end; then nothing; then another, to see that it still is.
async fn idle(client: &Rc<Client>, flow: &Rc<Flow>) {
    let mut hello = client.hello(flow, Task::Echo);
    let last = client.last.notified();
    let Some(buffer) = exchange(client, flow, &mut hello, Vec::new(), 0).await else { return };
    flow.waiting.set(false);
    client.ready(flow);
    if client.goes_on() {
        last.await;
    }
    flow.waiting.set(true);
    // What fails is noted where it fails.
    let _went = exchange(client, flow, &mut hello, buffer, client.spec.size as u64).await;
}

async fn say_hello(client: &Rc<Client>, flow: &Rc<Flow>, task: Task) -> bool {
    match flow.conn.send(client.hello(flow, task)).await.0 {
        Ok(()) => true,
        Err(error) => {
            client.ended(flow, Way::Up, 0, Some(&error));
            false
        }
    }
}

/// Sends a message, behind the hello if there is one left, and takes it back. Gives the buffer for the next, or nothing if it failed.
async fn exchange(client: &Rc<Client>, flow: &Rc<Flow>, hello: &mut Vec<u8>, mut buffer: Vec<u8>, offset: u64) -> Option<Vec<u8>> {
    let pattern = Pattern::new(client.spec.seed, flow.number, Way::Up);
    let (size, head) = (client.spec.size, hello.len());
    buffer.clear();
    buffer.append(hello);
    buffer.resize(head + size, 0);
    pattern.fill(offset, &mut buffer[head..]);
    let (sent, mut buffer) = flow.conn.send(buffer).await;
    if let Err(error) = sent {
        client.ended(flow, Way::Up, offset, Some(&error));
        return None;
    }
    buffer.truncate(size);
    let mut have = 0;
    while have < size {
        let (got, back) = flow.conn.recv_behind(buffer, have).await;
        buffer = back;
        let at = offset + have as u64;
        let len = match got {
            Ok(len @ 1..) => len,
            other => {
                client.ended(flow, Way::Down, at, other.err().as_ref());
                return None;
            }
        };
        if let Some(wrong) = pattern.check(at, &buffer[have..have + len]) {
            let wrong = have + wrong;
            mismatch(client, flow, &pattern, Way::Down, offset + wrong as u64, &buffer[wrong..have + len]);
            return None;
        }
        have += len;
    }
    Some(buffer)
}

fn mismatch(client: &Client, flow: &Flow, pattern: &Pattern, way: Way, offset: u64, seen: &[u8]) {
    let flows = client.shared.numbers.load(Ordering::Relaxed);
    client.blame(flow, way, offset, What::Wrong(pattern.explain(offset, seen, flows)));
}

impl Schedule {
    /// The flow's share of the rate, its first start at its own place within the first interval.
    fn of(client: &Client, flow: &Flow) -> Option<Self> {
        let spec = &client.spec;
        let every = spec.flows as f64 / spec.rate?;
        let share = (flow.number % spec.flows) as f64 / spec.flows as f64;
        let every = Duration::from_secs_f64(every);
        Some(Self { next: Instant::now() + every.mul_f64(share), every })
    }
}

/// A schedule, or none: then an operation starts when the one before is done.
trait Start {
    /// Waits for the next start, and gives its time. Nothing: the measurement ends before.
    async fn start(&mut self, client: &Client, flow: &Flow) -> Option<Instant>;
    /// The same, without a flow that could be watched.
    async fn start_free(&mut self, client: &Client) -> Option<Instant>;
}

impl Start for Option<Schedule> {
    async fn start(&mut self, client: &Client, flow: &Flow) -> Option<Instant> {
        flow.waiting.set(false);
        let started = self.start_free(client).await;
        flow.waiting.set(true);
        started
    }

    async fn start_free(&mut self, client: &Client) -> Option<Instant> {
        let Some(schedule) = self else { return Some(Instant::now()) };
        let (start, now) = (schedule.next, Instant::now());
        schedule.next += schedule.every;
        // In pieces, so that a slow schedule does not outlive the measurement.
        let mut left = start.saturating_duration_since(now);
        while !left.is_zero() {
            ring::sleep(left.min(Duration::from_millis(200))).await;
            if !client.goes_on() {
                return None;
            }
            left = start.saturating_duration_since(Instant::now());
        }
        Some(start)
    }
}
