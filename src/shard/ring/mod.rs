//! The engine over io_uring: one ring per shard, made on the shard's pinned thread and used by no other. It owns the descriptors and
//! whatever the kernel may still read or write.
//!
//! ```text
//!   submit(Op) ──▶ queue ──▶ kernel          one io_uring_enter per turn
//!                  ◀── completions ──┐
//!   Done ◀── record of the socket ◀──┘       chunk of the send, address of the connect, slot or chunk of the receive
//! ```
//!
//! What always holds between calls:
//! * memory named in an entry is kept in the record of its socket until the completion, whatever happens to the flow;
//! * sockets are blocking ones, so that the kernel waits for us (it never waits on a socket that is O_NONBLOCK);
//! * a read of the inbox's bell is outstanding, so another thread can end the sleep;
//! * at most [`SLOTS_POSTED`] slots are lent to the kernel, and fewer while each is filled.
#![expect(unsafe_code, reason = "vouches for the memory that entries name")]

mod posted;
mod queue;
mod sockets;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use socket2::{SockAddr, SockAddrStorage, SockRef};

use self::posted::Posted;
use self::queue::Queue;
use self::sockets::{Accepting, Receiving, Socket, Sockets};
use super::buffers::{Arena, Chunk};
use super::inbox;
use super::io::{Done, Errno, Io, Kind, Op, Payload, Purpose, SocketId, Token, outcome_of_connect};
use super::records::{OpenSocket, Record};
use super::startup::{self, StartupError};
use super::{lost, options};
use crate::limits::{COMPLETIONS_PER_TURN, SLOTS_POSTED};

/// IORING_RECVSEND_POLL_FIRST (the crate has no name for it): wait for the socket to be readable before anything else.
const POLL_FIRST: u16 = 1;
/// `user_data` of entries that are nobody's operation: no [`Kind`] is zero.
const NOBODY: u64 = 0;
/// What a dropped ring waits for its operations to come back; afterwards it leaks their memory.
const DRAIN: Duration = Duration::from_secs(1);

/// [`SLOTS_POSTED`] as the kernel takes it.
#[expect(clippy::cast_possible_truncation, reason = "a few dozen")]
const SLOTS: u16 = SLOTS_POSTED as u16;
/// A count of the eventfd.
const COUNT_BYTES: u32 = u64::BITS / 8;

/// How large the queues are. The completion queue is well above the submission queue: one entry of the latter may be waiting for days.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of the submission queue: what one turn submits without a second system call.
    pub submissions: u32,
    /// Entries of the completion queue.
    pub completions: u32,
    /// Slots posted to the kernel at once, a power of two.
    pub slots: u16,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { submissions: 512, completions: 4096, slots: SLOTS }
    }
}

/// The kernel's ring as an engine.
///
/// ```
/// use zhwkprox::limits::SLOT_BYTES;
/// use zhwkprox::shard::buffers::Arena;
/// use zhwkprox::shard::inbox::Inbox;
/// use zhwkprox::shard::io::{Io, Kind, Op, Payload, SocketId, Token};
/// use zhwkprox::shard::ring::Ring;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (inbox, _postbox) = Inbox::new()?;
/// let arena = Arena::new(8 * SLOT_BYTES)?;
/// let mut ring = Ring::new(&arena, inbox.bell())?;
///
/// let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
/// let socket = SocketId(0);
/// ring.adopt(socket, ours.into());
/// ring.submit(Op::Receive { socket, max: 4096, token: Token::new(Kind::Receive, 0, socket) });
/// std::io::Write::write_all(&mut theirs, b"ping")?;
///
/// let mut done = Vec::new();
/// let mut over = false;
/// while !over {
///     ring.turn(None, &mut done)?;
///     for done in done.drain(..) {
///         match (done.token.kind(), done.result, done.payload) {
///             // The bytes leave from where they were received.
///             (Some(Kind::Receive), Ok(count), Payload::Received(slot)) => {
///                 let chunk = slot.received(count as usize);
///                 ring.submit(Op::Send { socket, chunk, wait: true, token: Token::new(Kind::Send, 0, socket) });
///             }
///             (Some(Kind::Send), Ok(_), _) => over = true,
///             other => panic!("{other:?}"),
///         }
///     }
/// }
/// // Nothing is outstanding, so the socket can be closed.
/// ring.submit(Op::Close { socket, reset: false });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Ring {
    // The order matters: the ring is closed first, then what it could reach is released.
    queue: Queue,
    posted: Posted,
    sockets: Sockets,
    /// Receives that found no slot posted while the arena has more: submitted again at the end of the turn.
    again: Vec<Token>,
    /// Completions of operations that failed before they reached the kernel.
    failed: VecDeque<Done>,
    bell: OwnedFd,
    /// What the outstanding read of the bell writes to.
    rings: Box<u64>,
    /// Operations that the kernel has, or will get with the next entering.
    outstanding: usize,
    arena: Arena,
}

impl Ring {
    /// Makes the ring of the calling thread, which is the only one that may use it. `bell` is the inbox's eventfd.
    ///
    /// # Errors
    /// See [`StartupError`]: each says its cause and its cure.
    pub fn new(arena: &Arena, bell: RawFd) -> Result<Self, StartupError> {
        Self::with_sizes(arena, bell, Sizes::default())
    }

    /// As [`Self::new`], with other sizes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_sizes(arena: &Arena, bell: RawFd, sizes: Sizes) -> Result<Self, StartupError> {
        let uring = startup::open(sizes)?;
        let posted = Posted::register(&uring, sizes.slots, arena.clone()).map_err(|error| startup::explain_buffer_ring(error, sizes))?;
        // A descriptor of our own: the read must not hit whatever gets the number after the inbox has gone.
        let bell = inbox::duplicate(bell).map_err(|source| StartupError::Other { what: "duplicate the inbox's eventfd", source })?;
        let mut ring = Self {
            queue: Queue::new(uring),
            posted,
            sockets: Sockets::default(),
            again: Vec::new(),
            failed: VecDeque::new(),
            bell,
            rings: Box::new(0),
            outstanding: 0,
            arena: arena.clone(),
        };
        ring.read_bell();
        Ok(ring)
    }

    /// How often more completions were ready than the completion queue holds. None was lost: the kernel keeps them.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.queue.overflows()
    }

    fn accept(&mut self, listener: SocketId, into: SocketId, token: Token) {
        let socket = self.sockets.open_mut(listener);
        socket.accepting += 1;
        let fd = socket.fd();
        let address = SockAddrStorage::zeroed();
        let length = address.size_of();
        let mut accepting = Box::new(Accepting { listener, token, address, length });
        let entry = opcode::Accept::new(fd, (&raw mut accepting.address).cast(), &raw mut accepting.length).flags(libc::SOCK_CLOEXEC);
        self.sockets.fill(into, Record::Accepting(accepting));
        self.push(entry.build(), token);
    }

    fn connect(&mut self, id: SocketId, to: SocketAddr, from: Option<IpAddr>, purpose: Purpose, token: Token) {
        match options::for_connect(to, from, purpose) {
            Ok((descriptor, to)) => {
                let mut socket = Socket::new(descriptor);
                let to = Box::new(to);
                let entry = opcode::Connect::new(socket.fd(), to.as_ptr().cast(), to.len());
                socket.connecting = Some(to);
                self.sockets.fill(id, Record::Open(socket));
                self.push(entry.build(), token);
            }
            Err(error) => self.failed.push_back(Done { token, result: Err(Errno::of(&error)), payload: Payload::None }),
        }
    }

    fn receive(&mut self, id: SocketId, max: u32, token: Token) {
        let socket = self.sockets.open_mut(id);
        assert!(socket.receiving.is_none(), "one receive at a time on {id:?}");
        let max = max.min(posted::DATA);
        socket.receiving = Some(Receiving { max, cancelled: false, into: None });
        // Waiting first keeps an idle socket from taking a slot, and from failing for want of one while there is nothing to receive.
        // Where the last receive left bytes behind there is no idleness, and trying at once is cheaper.
        let first = if std::mem::take(&mut socket.more) { 0 } else { POLL_FIRST };
        let fd = socket.fd();
        self.push_receive(fd, max, first, token);
    }

    fn receive_into(&mut self, id: SocketId, mut into: Chunk, max: u32, token: Token) {
        let socket = self.sockets.open_mut(id);
        // A second one would release the first one's memory under the kernel.
        assert!(socket.receiving.is_none(), "one receive at a time on {id:?}");
        let room = into.room_mut();
        let max = max.min(u32::try_from(room.len()).unwrap_or(u32::MAX));
        assert!(max > 0, "a receive on {id:?} into a chunk without room, or of at most nothing");
        let first = if std::mem::take(&mut socket.more) { 0 } else { POLL_FIRST };
        let entry = opcode::Recv::new(socket.fd(), room.as_mut_ptr(), max).ioprio(first).build();
        socket.receiving = Some(Receiving { max, cancelled: false, into: Some(into) });
        self.push(entry, token);
    }

    fn push_receive(&mut self, fd: types::Fd, max: u32, first: u16, token: Token) {
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), max).ioprio(first).buf_group(posted::GROUP).build();
        self.push(entry.flags(squeue::Flags::BUFFER_SELECT), token);
    }

    fn send(&mut self, id: SocketId, chunk: Chunk, wait: bool, token: Token) {
        let socket = self.sockets.open_mut(id);
        debug_assert!(socket.sending.is_none(), "one send at a time on {id:?}");
        let bytes = chunk.as_slice();
        let how = if wait { libc::MSG_WAITALL } else { libc::MSG_DONTWAIT };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(socket.fd(), bytes.as_ptr(), length).flags(how | libc::MSG_NOSIGNAL).build();
        socket.sending = Some(chunk);
        self.push(entry, token);
    }

    fn cancel(&mut self, id: SocketId) {
        let what = match self.sockets.get_mut(id) {
            Some(Record::Open(socket)) if !socket.is_idle() => {
                if let Some(receiving) = &mut socket.receiving {
                    receiving.cancelled = true;
                }
                types::CancelBuilder::fd(socket.fd()).all()
            }
            Some(Record::Accepting(accepting)) => types::CancelBuilder::user_data(accepting.token.0),
            // Nothing is outstanding, or it failed before it reached the kernel and its `Done` is on the way.
            Some(Record::Open(_) | Record::Vacant) | None => return,
        };
        self.push_for_nobody(opcode::AsyncCancel2::new(what).build());
    }

    fn read_bell(&mut self) {
        let entry = opcode::Read::new(types::Fd(self.bell.as_raw_fd()), (&raw mut *self.rings).cast(), COUNT_BYTES);
        self.push(entry.build(), Token::new(Kind::Wake, 0, SocketId(0)));
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) {
        self.outstanding += 1;
        // SAFETY: an entry made here names nothing, or memory that `sockets` or `rings` keep, at an address that does not change when
        // they move (a box, a slot, a heap buffer), until `complete` has seen its completion; `drop` waits for that, or leaks.
        unsafe { self.queue.push(entry.user_data(token.0)) };
    }

    fn push_for_nobody(&mut self, entry: squeue::Entry) {
        // SAFETY: a cancel names no memory.
        unsafe { self.queue.push(entry.user_data(NOBODY)) };
    }

    /// What a completion says to the shard, if anything.
    fn complete(&mut self, completion: &cqueue::Entry) -> Option<Done> {
        let token = Token(completion.user_data());
        let kind = token.kind()?;
        self.outstanding -= 1;
        let result = u32::try_from(completion.result()).map_err(|_| Errno(-completion.result()));
        let (result, payload) = match kind {
            Kind::Accept => self.accepted(token.socket(), result),
            Kind::Connect => self.connected(token.socket(), result),
            Kind::Receive => self.received(token, result, completion.flags())?,
            Kind::Send => (result, self.sockets.open_mut(token.socket()).sending.take().map_or(Payload::None, Payload::Sent)),
            Kind::Wake => {
                self.read_bell();
                (Ok(0), Payload::None)
            }
        };
        Some(Done { token, result, payload })
    }

    fn accepted(&mut self, into: SocketId, result: Result<u32, Errno>) -> (Result<u32, Errno>, Payload) {
        let accepting = self.sockets.take_accepting(into);
        self.sockets.open_mut(accepting.listener).accepting -= 1;
        let descriptor = match result {
            Ok(descriptor) => own(descriptor),
            Err(error) => return (Err(error), Payload::None),
        };
        // SAFETY: the kernel wrote an address of this length, or left it zeroed, which is the family "unspecified".
        let peer = unsafe { SockAddr::new(accepting.address, accepting.length) }.as_socket();
        if let Some(peer) = peer {
            options::suit(&SockRef::from(&descriptor), peer.ip());
        }
        self.sockets.fill(into, Record::Open(Socket::new(descriptor)));
        (Ok(0), Payload::Accepted(peer))
    }

    fn connected(&mut self, id: SocketId, result: Result<u32, Errno>) -> (Result<u32, Errno>, Payload) {
        let result = outcome_of_connect(result);
        if result.is_ok() {
            self.sockets.open_mut(id).connecting = None;
        } else {
            self.sockets.forget(id);
        }
        (result, Payload::None)
    }

    /// `None`: the posted slots were used up while the arena has more, so the receive is not over.
    fn received(&mut self, token: Token, result: Result<u32, Errno>, flags: u32) -> Option<(Result<u32, Errno>, Payload)> {
        let slot = cqueue::buffer_select(flags).map(|number| self.posted.taken(number, result.unwrap_or(0) as usize));
        // No more of them than there are slots, or thousands would compete for a few, turn after turn.
        let another_try = result == Err(Errno(libc::ENOBUFS)) && self.again.len() < self.slots_available();
        let socket = self.sockets.open_mut(token.socket());
        socket.more = cqueue::sock_nonempty(flags);
        if another_try && socket.receiving.as_ref().is_some_and(|receiving| !receiving.cancelled && receiving.into.is_none()) {
            self.again.push(token);
            return None;
        }
        let into = socket.receiving.take().and_then(|receiving| receiving.into);
        let payload = match (into, slot) {
            (Some(mut chunk), _) => {
                chunk.lengthen(result.map_or(0, |count| count as usize));
                Payload::Filled(chunk)
            }
            (None, Some(slot)) if matches!(result, Ok(1..)) => Payload::Received(slot),
            (None, Some(_) | None) => Payload::None,
        };
        Some((result, payload))
    }

    /// Before the shard submits anything, so that a cancel finds the receive.
    fn receive_again(&mut self) {
        if self.again.is_empty() {
            return;
        }
        self.posted.top_up();
        let mut again = std::mem::take(&mut self.again);
        for token in again.drain(..) {
            let socket = self.sockets.open_mut(token.socket());
            if let Some(&Receiving { max, .. }) = socket.receiving.as_ref() {
                let fd = socket.fd();
                // Bytes are there, so there is nothing to wait for.
                self.push_receive(fd, max, 0, token);
            }
        }
        self.again = again;
    }

    /// Cancels everything and waits for it; says whether all came back.
    fn drain(&mut self) -> bool {
        self.push_for_nobody(opcode::AsyncCancel2::new(types::CancelBuilder::any()).build());
        loop {
            while let Some(completion) = self.queue.next() {
                self.drained(&completion);
            }
            if self.outstanding == 0 {
                return true;
            }
            if self.queue.enter_for_all(self.outstanding, DRAIN).is_err() || !self.queue.has_completions() {
                return false;
            }
        }
    }

    fn drained(&mut self, completion: &cqueue::Entry) {
        let token = Token(completion.user_data());
        let Some(kind) = token.kind() else { return };
        self.outstanding -= 1;
        if let Some(number) = cqueue::buffer_select(completion.flags()) {
            drop(self.posted.taken(number, 0));
        }
        if let (Kind::Accept, Ok(descriptor)) = (kind, u32::try_from(completion.result())) {
            drop(own(descriptor));
        }
    }
}

impl Io for Ring {
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
        self.posted.top_up();
        let ready = !self.failed.is_empty() || self.queue.has_completions();
        self.queue.enter(if ready { Some(Duration::ZERO) } else { wait })?;
        for _ in 0..COMPLETIONS_PER_TURN {
            if let Some(failed) = self.failed.pop_front() {
                done.push(failed);
            } else if let Some(completion) = self.queue.next() {
                done.extend(self.complete(&completion));
            } else {
                break;
            }
        }
        self.receive_again();
        Ok(())
    }

    fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        SockRef::from(&self.sockets.if_open(id)?.descriptor).local_addr().ok()?.as_socket()
    }

    fn adopt(&mut self, id: SocketId, descriptor: OwnedFd) {
        // Whoever made it may have wanted it otherwise; fails only for a descriptor that is not open.
        let _ = SockRef::from(&descriptor).set_nonblocking(false);
        self.sockets.fill(id, Record::Open(Socket::new(descriptor)));
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
        self.arena.free() + self.posted.count()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.drain() {
            // The kernel may still read or write these, so nobody else may ever get them.
            std::mem::forget(std::mem::take(&mut self.sockets));
            std::mem::forget(std::mem::take(&mut self.rings));
            self.posted.forget_memory();
        }
    }
}

fn own(descriptor: u32) -> OwnedFd {
    // SAFETY: the kernel has just opened it for an accept, and told only us.
    unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) }
}
