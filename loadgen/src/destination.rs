//! The destination: takes flows, does with each what its header says, and keeps books per run, which a client may ask for.
//!
//! What always holds: bytes that come up are checked before they are counted, and what is wrong is in the books.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, What};
use crate::pattern::{Pattern, TELLING, Way};
use crate::ring::{self, Conn};
use crate::wire::{HEADER_LEN, Header, Task};

/// Largest buffer of a flow, whatever its header says.
const BUFFER_MAX: usize = 1 << 20;

/// Faults kept of a run: the first tell, and a broken relay makes millions.
const FAULTS_MAX: usize = 100;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the flows of one run have brought.
#[derive(Default, Debug)]
pub struct Book {
    up_bytes: AtomicU64,
    flows: AtomicU64,
    highest: AtomicU64,
    faults: Mutex<Vec<Fault>>,
}

/// All runs of this process, shared by its threads; a flow looks its book up once.
#[derive(Default, Debug)]
pub struct Books {
    runs: Mutex<HashMap<u64, Arc<Book>>>,
    strangers: Mutex<Vec<Fault>>,
}

/// What a book says.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Totals {
    /// Checked bytes that came up.
    pub up_bytes: u64,
    /// Flows that came.
    pub flows: u64,
    /// What went wrong, as seen from here.
    pub faults: Vec<Fault>,
}

/// The listeners and flows of one thread.
#[derive(Debug)]
pub struct Destination {
    books: Arc<Books>,
    listeners: RefCell<Vec<Rc<Conn>>>,
    flows: RefCell<Vec<Weak<Conn>>>,
    sweep_at: Cell<usize>,
    tasks: Tasks,
}

/// Counts tasks, to know when none is left.
#[derive(Clone, Default, Debug)]
pub struct Tasks(Rc<()>);

impl Tasks {
    /// Spawns a task that counts.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let counted = self.clone();
        drop(tokio_uring::spawn(async move {
            task.await;
            drop(counted);
        }));
    }

    /// How many are running.
    #[must_use]
    pub fn running(&self) -> usize {
        Rc::strong_count(&self.0) - 1
    }
}

impl Books {
    /// The totals of one run, with what came without a header that is known.
    #[must_use]
    pub fn totals(&self, seed: u64) -> Totals {
        let book = self.book(seed);
        let mut faults = lock(&book.faults).clone();
        faults.extend(lock(&self.strangers).iter().cloned());
        Totals { up_bytes: book.up_bytes.load(Ordering::Relaxed), flows: book.flows.load(Ordering::Relaxed), faults }
    }

    fn book(&self, seed: u64) -> Arc<Book> {
        Arc::clone(lock(&self.runs).entry(seed).or_default())
    }
}

impl Book {
    fn blame(&self, fault: Fault) {
        note(&self.faults, fault);
    }
}

impl Destination {
    /// Listens at each of `addresses` and serves whoever comes, on the ring of this thread.
    ///
    /// # Errors
    /// When an address cannot be listened at.
    pub fn start(addresses: &[SocketAddr], books: Arc<Books>) -> io::Result<Rc<Self>> {
        let this = Rc::new(Self {
            books,
            listeners: RefCell::default(),
            flows: RefCell::default(),
            sweep_at: Cell::default(),
            tasks: Tasks::default(),
        });
        for at in addresses {
            let listener = ring::listen(*at).map_err(|error| io::Error::other(format!("cannot listen at {at}: {error}")))?;
            this.listeners.borrow_mut().push(Rc::clone(&listener));
            this.tasks.spawn(Rc::clone(&this).accept(listener, *at));
        }
        Ok(this)
    }

    /// Ends everything, and says whether nothing is left.
    pub async fn stop(&self, patience: Duration) -> bool {
        self.listeners.borrow().iter().for_each(|listener| listener.shutdown());
        let step = Duration::from_millis(2);
        let mut left = patience;
        while self.tasks.running() > 0 {
            self.flows.borrow().iter().filter_map(Weak::upgrade).for_each(|flow| flow.shutdown());
            ring::sleep(step).await;
            left = left.saturating_sub(step);
            if left.is_zero() {
                return false;
            }
        }
        true
    }

    async fn accept(self: Rc<Self>, listener: Rc<Conn>, at: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok(conn) => {
                    let mut flows = self.flows.borrow_mut();
                    // Forget those that have gone, when they can be half of the list.
                    if flows.len() >= self.sweep_at.get() {
                        flows.retain(|flow| flow.strong_count() > 0);
                        self.sweep_at.set(64 + 2 * flows.len());
                    }
                    flows.push(Rc::downgrade(&conn));
                    drop(flows);
                    self.tasks.spawn(Rc::clone(&self).serve(conn, at));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(_) => ring::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn serve(self: Rc<Self>, conn: Rc<Conn>, at: SocketAddr) {
        let (got, buffer) = conn.recv_full(vec![0; HEADER_LEN]).await;
        let header = match got {
            // A connection without a byte is a relay's probe or spare, and no fault.
            Ok(0) | Err(_) => return,
            Ok(_) => buffer.first_chunk().and_then(Header::decode),
        };
        let Some(header) = header else {
            let fault = Fault { flow: 0, destination: at.to_string(), way: Way::Up, offset: 0, what: What::NoHeader };
            note(&self.books.strangers, fault);
            conn.reset_on_close();
            return;
        };
        let book = self.books.book(header.seed);
        if header.task != Task::Report {
            book.flows.fetch_add(1, Ordering::Relaxed);
            book.highest.fetch_max(header.flow + 1, Ordering::Relaxed);
        }
        let size = usize::try_from(header.size).unwrap_or(BUFFER_MAX).clamp(1, BUFFER_MAX);
        match header.task {
            Task::Echo => echo(&conn, size).await,
            Task::Down => send_down(&conn, header, size).await,
            Task::Up => take_up(&conn, header, size, at, &book).await,
            Task::Both => {
                let other = Rc::clone(&conn);
                self.tasks.spawn(async move { send_down(&other, header, size).await });
                take_up(&conn, header, size, at, &book).await;
            }
            Task::Report => {
                let said = serde_json::to_vec(&self.books.totals(header.seed)).unwrap_or_default();
                let _client_may_have_gone = conn.send(said).await;
            }
        }
    }
}

/// Serves until the process is ended: what `loadgen destination` does.
///
/// # Errors
/// When there is no ring, or an address cannot be listened at.
pub fn serve_forever(addresses: &[SocketAddr]) -> io::Result<()> {
    let runtime = ring::runtime()?;
    runtime.block_on(async {
        let destination = Destination::start(addresses, Arc::default())?;
        while destination.tasks.running() > 0 {
            ring::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    })
}

/// Asks a destination, past any proxy, what it has in its books for this run.
///
/// # Errors
/// When it cannot be reached, or answers something else.
pub fn ask(destination: SocketAddr, seed: u64) -> io::Result<Totals> {
    use std::io::{Read as _, Write as _};
    let patience = Duration::from_secs(10);
    let mut stream = std::net::TcpStream::connect_timeout(&destination, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&Header { task: Task::Report, seed, flow: 0, size: 1 }.encode())?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    serde_json::from_slice(&said).map_err(|error| io::Error::other(format!("{destination} answers no report: {error}")))
}

async fn echo(conn: &Rc<Conn>, size: usize) {
    let mut buffer = vec![0; size];
    loop {
        let (got, back) = conn.recv(buffer).await;
        buffer = back;
        let Ok(len @ 1..) = got else { return };
        buffer.truncate(len);
        let (sent, back) = conn.send(buffer).await;
        buffer = back;
        if sent.is_err() {
            return;
        }
        buffer.resize(size, 0);
    }
}

async fn send_down(conn: &Rc<Conn>, header: Header, size: usize) {
    let pattern = Pattern::new(header.seed, header.flow, Way::Down);
    let mut buffer = vec![0; size];
    let mut offset = 0;
    loop {
        pattern.fill(offset, &mut buffer);
        offset += size as u64;
        let (sent, back) = conn.send(buffer).await;
        buffer = back;
        if sent.is_err() {
            return;
        }
    }
}

async fn take_up(conn: &Rc<Conn>, header: Header, size: usize, at: SocketAddr, book: &Book) {
    let pattern = Pattern::new(header.seed, header.flow, Way::Up);
    let mut buffer = vec![0; size.max(TELLING)];
    let mut offset = 0;
    loop {
        let (got, back) = conn.recv(buffer).await;
        buffer = back;
        let Ok(len @ 1..) = got else { return };
        if let Some(wrong) = pattern.check(offset, &buffer[..len]) {
            let (seen, offset) = (collect(conn, buffer[wrong..len].to_vec()).await, offset + wrong as u64);
            let flows = book.highest.load(Ordering::Relaxed);
            let what = What::Wrong(pattern.explain(offset, &seen, flows));
            book.blame(Fault { flow: header.flow, destination: at.to_string(), way: Way::Up, offset, what });
            conn.shutdown();
            return;
        }
        offset += len as u64;
        book.up_bytes.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Adds to wrong bytes what comes behind them, until they can tell where they belong.
pub(crate) async fn collect(conn: &Rc<Conn>, mut seen: Vec<u8>) -> Vec<u8> {
    while seen.len() < TELLING {
        let have = seen.len();
        seen.resize(TELLING, 0);
        let (got, back) = conn.recv_behind(seen, have).await;
        seen = back;
        let more = got.unwrap_or(0);
        seen.truncate(have + more);
        if more == 0 {
            break;
        }
    }
    seen
}

pub(crate) fn note(faults: &Mutex<Vec<Fault>>, fault: Fault) {
    let mut faults = lock(faults);
    if faults.len() < FAULTS_MAX {
        faults.push(fault);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
