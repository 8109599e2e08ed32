//! The second engine, on tokio-uring: for kernels without DEFER_TASKRUN or buffer rings, and to measure the first one against. Each
//! operation is a task; a turn runs the tasks until one has something to report.
//!
//! ```text
//!   submit(Op) ──▶ task ──▶ wait until ready (PollAdd, no memory) ──▶ Recv or Send that does not wait ──▶ finished
//!   turn ──▶ starts what was submitted, sleeps in tokio until something is finished ──▶ Done
//! ```
//!
//! What always holds between calls:
//! * a receive takes its slot when bytes are there, so an idle socket holds none, and no memory is named by an entry that waits;
//! * the engine is dropped only with nothing in the kernel (tokio-uring frees memory under operations otherwise), or leaks its runtime;
//! * a task watches the inbox's bell, so another thread can end the sleep;
//! * the shard's view is the same as over [`super::ring`]: a socket is busy until the `Done` of each operation was handed over.
//!
//! What it does differently, by design: timers are of whole milliseconds, so a turn may sleep up to one longer than told; one turn hands
//! over what one pass over the ready tasks finished, some sixty at most; slots are not lent to the kernel, so none is counted as that; a
//! kernel that takes no entry for want of memory ends the process, for tokio-uring panics.

mod finished;
mod ladder;
mod operations;
mod sockets;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio_uring::Runtime;

use self::finished::{Finished, Outcome, Queue};
use self::operations::Seen;
use self::sockets::{Accepting, Socket, Sockets};
use super::buffers::{Arena, Chunk};
use super::inbox;
use super::io::{Done, Errno, Io, Kind, Op, Payload, Purpose, SocketId, Token};
use super::records::{OpenSocket, Record};
use super::ring::Sizes;
use super::startup::{self, StartupError};
use super::{lost, options};
use crate::limits::COMPLETIONS_PER_TURN;

/// Its queues. Entries wait in the submission queue while tasks are ready, so it is small: a full one is handed over at once.
pub const SIZES: Sizes = Sizes { submissions: 64, completions: 4096, slots: 0 };
/// What a dropped engine waits for its operations to come back; afterwards it leaks them.
const DRAIN: Duration = Duration::from_secs(1);

/// tokio-uring as an engine. Used like [`super::ring::Ring`].
pub struct TokioUring {
    /// Counted only so that it can be leaked.
    runtime: Rc<Runtime>,
    /// Tasks submitted since the last turn: they can be started only inside the runtime.
    submitted: Vec<Pin<Box<dyn Future<Output = ()>>>>,
    queue: Rc<Queue>,
    sockets: Sockets,
    bell: Rc<Socket>,
    arena: Arena,
}

impl TokioUring {
    /// Makes the engine of the calling thread, which is the only one that may use it. `bell` is the inbox's eventfd.
    ///
    /// # Errors
    /// See [`StartupError`]: each says its cause and its cure.
    pub fn new(arena: &Arena, bell: RawFd) -> Result<Self, StartupError> {
        ladder::climb()?;
        let runtime = runtime().map_err(|error| startup::explain_setup(error, SIZES))?;
        let duplicate = || inbox::duplicate(bell).map_err(|source| StartupError::Other { what: "duplicate the inbox's eventfd", source });
        let (file, bell) = (File::from(duplicate()?), Rc::new(Socket::new(duplicate()?)));
        let mut engine = Self {
            runtime: Rc::new(runtime),
            submitted: Vec::new(),
            queue: Rc::default(),
            sockets: Sockets::default(),
            bell,
            arena: arena.clone(),
        };
        let (seen, queue) = (Seen::now(&engine.bell), Rc::clone(&engine.queue));
        let token = Token::new(Kind::Wake, 0, SocketId(0));
        engine.start(async move { operations::listen_to_bell(&seen, file, &queue, token).await });
        Ok(engine)
    }

    /// Keeps a task for the next turn, and counts it from then on.
    fn start(&mut self, task: impl Future<Output = ()> + 'static) {
        let queue = Rc::clone(&self.queue);
        self.submitted.push(Box::pin(async move {
            let _under_way = queue.begin();
            task.await;
        }));
    }

    fn accept(&mut self, listener: SocketId, into: SocketId, token: Token) {
        let socket = self.sockets.open(listener);
        if socket.accepting.get() == 0 {
            // Several accepts wait for the same clients, and all but one come too late. Fails only for a descriptor that is not open.
            let _ = SockRef::from(&socket.descriptor).set_nonblocking(true);
        }
        socket.accepting.set(socket.accepting.get() + 1);
        let (seen, queue, cancelled) = (Seen::now(socket), Rc::clone(&self.queue), Rc::new(Cell::new(false)));
        self.sockets.fill(into, Record::Accepting(Accepting { listener, cancelled: Rc::clone(&cancelled) }));
        self.start(async move {
            let result = operations::accept(&seen, &cancelled).await;
            queue.push(token, Outcome::Accepted(result));
        });
    }

    fn connect(&mut self, id: SocketId, to: SocketAddr, from: Option<IpAddr>, purpose: Purpose, token: Token) {
        match options::for_connect(to, from, purpose) {
            Ok((descriptor, to)) => {
                let socket = Rc::new(Socket::new(descriptor));
                socket.connecting.set(true);
                let (seen, queue) = (Seen::now(&socket), Rc::clone(&self.queue));
                self.sockets.fill(id, Record::Open(socket));
                self.start(async move {
                    let result = operations::connect(&seen, to).await;
                    queue.push(token, Outcome::Connected(result));
                });
            }
            Err(error) => self.queue.push(token, Outcome::Connected(Err(Errno::of(&error)))),
        }
    }

    fn receive(&mut self, id: SocketId, max: u32, token: Token) {
        let (seen, queue, arena) = (self.begin_receive(id), Rc::clone(&self.queue), self.arena.clone());
        self.start(async move {
            let (result, payload) = operations::receive(&seen, &arena, max).await;
            queue.push(token, Outcome::Received(result, payload));
        });
    }

    fn receive_into(&mut self, id: SocketId, mut into: Chunk, max: u32, token: Token) {
        let (seen, queue) = (self.begin_receive(id), Rc::clone(&self.queue));
        let max = max.min(u32::try_from(into.room_mut().len()).unwrap_or(u32::MAX));
        assert!(max > 0, "a receive on {id:?} into a chunk without room, or of at most nothing");
        self.start(async move {
            let (result, payload) = operations::receive_into(&seen, into, max).await;
            queue.push(token, Outcome::Received(result, payload));
        });
    }

    fn begin_receive(&self, id: SocketId) -> Seen {
        let socket = self.sockets.open(id);
        assert!(!socket.receiving.replace(true), "one receive at a time on {id:?}");
        Seen::now(socket)
    }

    fn send(&mut self, id: SocketId, chunk: Chunk, wait: bool, token: Token) {
        let socket = self.sockets.open(id);
        assert!(!socket.sending.replace(true), "one send at a time on {id:?}");
        let (seen, queue) = (Seen::now(socket), Rc::clone(&self.queue));
        self.start(async move {
            let (result, chunk) = operations::send(&seen, chunk, wait).await;
            queue.push(token, Outcome::Sent(result, chunk));
        });
    }

    fn cancel(&mut self, id: SocketId) {
        let socket = match self.sockets.get(id) {
            Some(Record::Open(socket)) if !socket.is_idle() => {
                socket.cancels.set(socket.cancels.get().wrapping_add(1));
                socket
            }
            Some(Record::Accepting(accepting)) => {
                accepting.cancelled.set(true);
                self.sockets.open(accepting.listener)
            }
            // Nothing is outstanding, or it failed before it was begun and its `Done` is on the way.
            Some(Record::Open(_) | Record::Vacant) | None => return,
        };
        let socket = Rc::downgrade(socket);
        self.start(operations::cancel(socket));
    }

    /// What the end of a task says to the shard.
    fn report(&mut self, finished: Finished) -> Done {
        let Finished { token, outcome } = finished;
        let id = token.socket();
        let (result, payload) = match outcome {
            Outcome::Accepted(result) => self.accepted(id, result),
            Outcome::Connected(Ok(reset_since)) => {
                self.sockets.open(id).connecting.set(false);
                (Ok(reset_since), Payload::None)
            }
            Outcome::Connected(Err(error)) => {
                self.sockets.forget(id);
                (Err(error), Payload::None)
            }
            Outcome::Received(result, payload) => {
                self.sockets.open(id).receiving.set(false);
                (result, payload)
            }
            Outcome::Sent(result, chunk) => {
                self.sockets.open(id).sending.set(false);
                (result, Payload::Sent(chunk))
            }
            Outcome::Rung => (Ok(0), Payload::None),
        };
        Done { token, result, payload }
    }

    fn accepted(&mut self, into: SocketId, result: Result<(OwnedFd, Option<SocketAddr>), Errno>) -> (Result<u32, Errno>, Payload) {
        let accepting = self.sockets.take_accepting(into);
        let listener = self.sockets.open(accepting.listener);
        listener.accepting.set(listener.accepting.get() - 1);
        let (descriptor, peer) = match result {
            Ok(accepted) => accepted,
            Err(error) => return (Err(error), Payload::None),
        };
        if let Some(peer) = peer {
            options::suit(&SockRef::from(&descriptor), peer.ip());
        }
        self.sockets.fill(into, Record::Open(Rc::new(Socket::new(descriptor))));
        (Ok(0), Payload::Accepted(peer))
    }

    /// Cancels everything and waits for it; says whether all came back.
    fn drain(&mut self) -> bool {
        // What was never started is not in the kernel.
        self.submitted.clear();
        self.bell.cancels.set(self.bell.cancels.get().wrapping_add(1));
        for record in &self.sockets {
            match record {
                Record::Open(socket) => socket.cancels.set(socket.cancels.get().wrapping_add(1)),
                Record::Accepting(accepting) => accepting.cancelled.set(true),
                Record::Vacant => {}
            }
        }
        let queue = Rc::clone(&self.queue);
        self.runtime.block_on(async move {
            drop(tokio_uring::spawn(operations::cancel_all()));
            tokio::time::timeout(DRAIN, queue.deserted()).await.is_ok()
        })
    }
}

impl Io for TokioUring {
    fn submit(&mut self, op: Op) {
        match op {
            Op::Accept { listener, into, token } => self.accept(listener, into, token),
            Op::Connect { socket, to, from, purpose, token } => self.connect(socket, to, from, purpose, token),
            Op::Receive { socket, max, token } => self.receive(socket, max, token),
            Op::ReceiveInto { socket, into, max, token } => self.receive_into(socket, into, max, token),
            Op::Send { socket, chunk, wait, token } => self.send(socket, chunk, wait, token),
            Op::Shutdown { socket } => {
                // A peer that has reset meanwhile is the only failure, and the receive tells it.
                let _ = SockRef::from(&self.sockets.open(socket).descriptor).shutdown(Shutdown::Write);
            }
            Op::Cancel { socket } => self.cancel(socket),
            Op::Close { socket, reset } => options::close(self.sockets.take_idle(socket), reset),
        }
    }

    fn turn(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let submitted = std::mem::take(&mut self.submitted);
        let queue = &self.queue;
        let wait = if queue.is_empty() { wait } else { Some(Duration::ZERO) };
        self.runtime.block_on(async {
            for task in submitted {
                drop(tokio_uring::spawn(task));
            }
            match wait {
                None => queue.filled().await,
                // tokio hands entries over only when it goes to sleep, and with a time of zero it would sleep for a millisecond.
                Some(Duration::ZERO) => operations::flush().await,
                Some(wait) => {
                    let _in_time = tokio::time::timeout(wait, queue.filled()).await;
                }
            }
        });
        for _ in 0..COMPLETIONS_PER_TURN {
            let Some(finished) = self.queue.pop() else { break };
            done.push(self.report(finished));
        }
        Ok(())
    }

    fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        SockRef::from(&self.sockets.if_open(id)?.descriptor).local_addr().ok()?.as_socket()
    }

    fn adopt(&mut self, id: SocketId, descriptor: OwnedFd) {
        // Whoever gets it next may want it so; fails only for a descriptor that is not open.
        let _ = SockRef::from(&descriptor).set_nonblocking(false);
        self.sockets.fill(id, Record::Open(Rc::new(Socket::new(descriptor))));
    }

    fn detach(&mut self, id: SocketId) -> OwnedFd {
        self.sockets.take_idle(id)
    }

    fn is_lost(&self, id: SocketId) -> bool {
        self.sockets.if_open(id).is_some_and(|socket| lost::is_lost(&socket.descriptor))
    }

    fn unsent(&self, id: SocketId) -> usize {
        self.sockets.if_open(id).map_or(0, |socket| lost::unsent(&socket.descriptor))
    }

    fn slots_available(&self) -> usize {
        self.arena.free()
    }
}

impl Drop for TokioUring {
    fn drop(&mut self) {
        if !self.drain() {
            // With it go the tasks and all that they hold: the kernel may still have entries about it.
            std::mem::forget(Rc::clone(&self.runtime));
        }
    }
}

impl fmt::Debug for TokioUring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokioUring").field("queue", &self.queue).field("submitted", &self.submitted.len()).finish_non_exhaustive()
    }
}

/// A runtime with the flags that cost the least; older kernels do without.
fn runtime() -> io::Result<Runtime> {
    let mut best = tokio_uring::uring_builder();
    best.setup_coop_taskrun().setup_single_issuer().setup_submit_all().setup_cqsize(SIZES.completions);
    let mut plain = tokio_uring::uring_builder();
    plain.setup_cqsize(SIZES.completions);
    let with = |ring| Runtime::new(tokio_uring::builder().entries(SIZES.submissions).uring_builder(ring));
    with(&best).or_else(|error| if error.raw_os_error() == Some(libc::EINVAL) { with(&plain) } else { Err(error) })
}
