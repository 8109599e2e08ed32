//! The seam between a shard and whatever moves its bytes. The kernel ring implements it ([`super::ring`]), and the simulation
//! under `tests/sim` does; everything above runs unchanged over both.
//!
//! ```text
//!   roles ── Cx ── Shard ──submit(Op)──▶ Io ──▶ kernel, or the simulated network
//!                        ◀──turn: Done──
//! ```
//!
//! What always holds between calls:
//! * a [`SocketId`] is chosen by the shard and names one socket until its [`Op::Close`]; the engine keeps the descriptor;
//! * per socket at most one receive, one send and one connect are outstanding, so (kind, socket) names an operation;
//! * every operation but `Shutdown`, `Cancel` and `Close` yields exactly one [`Done`], with the token it was submitted under;
//! * a [`Chunk`] in an operation belongs to the engine until its `Done` gives it back;
//! * `Close` comes only when nothing is outstanding on the socket: after a `Cancel` the shard waits for every `Done` first.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::buffers::{Chunk, Slot};

/// Which socket, as a dense index that the shard hands out. It is reused only after `Close`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SocketId(pub u32);

/// What an operation is called by in its completion: kind (8 bits), generation (24), socket index (32).
/// The engine passes it through as `user_data`; it is never a pointer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Token(pub u64);

/// The kind of operation a [`Token`] stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// An accept; the token's index is the socket that receives the connection.
    Accept = 1,
    /// A connect.
    Connect = 2,
    /// A receive, leased or into a chunk.
    Receive = 3,
    /// A send.
    Send = 4,
    /// Another thread has put something into the inbox. Made by the engine itself.
    Wake = 5,
}

impl Token {
    /// Packs a token. Only the low 24 bits of `generation` are kept.
    #[must_use]
    pub const fn new(kind: Kind, generation: u32, socket: SocketId) -> Self {
        Self(((kind as u64) << 56) | (((generation & 0x00ff_ffff) as u64) << 32) | socket.0 as u64)
    }

    /// The kind, or `None` for a value no shard made.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        Some(match self.0 >> 56 {
            1 => Kind::Accept,
            2 => Kind::Connect,
            3 => Kind::Receive,
            4 => Kind::Send,
            5 => Kind::Wake,
            _ => return None,
        })
    }

    /// The generation, 24 bits.
    #[must_use]
    pub const fn generation(self) -> u32 {
        ((self.0 >> 32) & 0x00ff_ffff) as u32
    }

    /// The socket.
    #[must_use]
    pub const fn socket(self) -> SocketId {
        SocketId((self.0 & 0xffff_ffff) as u32)
    }
}

/// What a connection is for: decides the socket options it is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Between inter-server and server: NODELAY, NOTSENT_LOWAT, keepalive 15/5/3.
    Tunnel,
    /// A client's or a destination's connection: NODELAY and the system's keepalive.
    Flow,
}

/// One operation. Sizes are bytes.
#[derive(Debug)]
pub enum Op {
    /// Takes the next connection from `listener` and makes it the socket `into` (non-existent until then). It has its listener's options.
    Accept {
        /// A socket given by [`Io::adopt`] that is listening.
        listener: SocketId,
        /// Free id that the connection gets when the `Done` is a success.
        into: SocketId,
        /// Comes back in the `Done`.
        token: Token,
    },
    /// Makes the socket and connects it. On failure the socket exists no more and needs no `Close`. `Ok(1)` instead of `Ok(0)`: it was
    /// connected and has been reset since; the kernel tells that once, so a receive, behind what came before, will look like the peer's FIN.
    Connect {
        /// Free id.
        socket: SocketId,
        /// Where to.
        to: SocketAddr,
        /// Source address (port 0), if one is configured. Its family is mapped to that of `to` where it can be.
        from: Option<std::net::IpAddr>,
        /// Decides the options.
        purpose: Purpose,
        /// Comes back in the `Done`.
        token: Token,
    },
    /// Waits for bytes without holding memory; the engine takes a slot when they arrive and writes them behind the slot's headroom.
    /// `Done` with `ENOBUFS` means: bytes are there, no slot was; nothing is lost, submit again when a slot is free.
    Receive {
        /// From where.
        socket: SocketId,
        /// At most this many, and at most [`crate::limits::RECORD_BYTES_MAX`].
        max: u32,
        /// Comes back in the `Done`.
        token: Token,
    },
    /// Waits for bytes and receives them directly behind the chunk's end, in the same memory: the rest of what has come in part.
    /// It is the socket's one receive; the `Done` gives the chunk back, lengthened by the count, and unchanged for every other end.
    ReceiveInto {
        /// From where.
        socket: SocketId,
        /// Not shared, and with room behind its end.
        into: Chunk,
        /// At most this many, at least one, and at most [`Chunk::room`].
        max: u32,
        /// Comes back in the `Done`; its kind is [`Kind::Receive`].
        token: Token,
    },
    /// Sends the chunk. May be short: the `Done` gives the chunk back with the count, and the shard sends the rest.
    Send {
        /// To where.
        socket: SocketId,
        /// What; never empty.
        chunk: Chunk,
        /// `true`: wait for room until everything is taken (or it fails). `false`: take what fits now, `EAGAIN` if nothing.
        wait: bool,
        /// Comes back in the `Done`.
        token: Token,
    },
    /// `shutdown(SHUT_WR)`, at once; submitted only when no send is outstanding.
    Shutdown {
        /// Which.
        socket: SocketId,
    },
    /// Cancels all that is outstanding on the socket; each operation still yields its `Done`. Also for a listener.
    Cancel {
        /// Which; for an accept or connect in progress, the id it was to get.
        socket: SocketId,
    },
    /// Closes; nothing is outstanding any more.
    Close {
        /// Which.
        socket: SocketId,
        /// `true`: with RST and without sending what is unsent (SO_LINGER 0).
        reset: bool,
    },
}

/// What came with a completion.
#[derive(Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// A receive's bytes: `Done::result` bytes behind the slot's headroom, in a slot that nobody else holds.
    Received(Slot),
    /// The chunk of a receive into it, with what came behind what was there.
    Filled(Chunk),
    /// The chunk of a send, unchanged.
    Sent(Chunk),
    /// The address of the accepted peer (`None` for a unix socket).
    Accepted(Option<SocketAddr>),
}

/// The completion of one operation.
#[derive(Debug)]
pub struct Done {
    /// As submitted.
    pub token: Token,
    /// A count, or an error. A receive that yields `Ok(0)` is the peer's FIN.
    pub result: Result<u32, Errno>,
    /// What came with it.
    pub payload: Payload,
}

/// An error number of the kernel's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Of an error that came from a plain system call.
    pub(super) fn of(error: &std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// What a kernel's answer to a connect says: a refusal is another error than a reset of what was connected, so the latter was a success.
pub(super) const fn outcome_of_connect(answer: Result<u32, Errno>) -> Result<u32, Errno> {
    match answer {
        Ok(_) => Ok(0),
        Err(Errno(libc::ECONNRESET | libc::EPIPE)) => Ok(1),
        Err(error) => Err(error),
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({self})")
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

/// An engine: takes operations, gives completions. Object-safe, so that the choice is made once, at start.
pub trait Io {
    /// Queues an operation. Never blocks and never fails: a failure is the operation's `Done`.
    fn submit(&mut self, op: Op);

    /// Hands over all that was submitted, then collects completions into `done`, sleeping at most `wait` (`None`: without limit)
    /// if there is none yet. A `wait` of zero still collects what is ready. One system call in the kernel's case.
    ///
    /// # Errors
    /// Only what makes the engine unusable; the process ends.
    fn turn(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) -> std::io::Result<()>;

    /// A connection's own address, as the kernel chose it; `None` for a unix socket or an id that is none.
    fn local_address(&self, id: SocketId) -> Option<SocketAddr>;

    /// Makes a descriptor that came from elsewhere (a listener, a handed-over connection) the socket `id`.
    fn adopt(&mut self, id: SocketId, descriptor: OwnedFd);

    /// Takes the descriptor out, to hand it to another shard. Nothing may be outstanding on it.
    fn detach(&mut self, id: SocketId) -> OwnedFd;

    /// Whether a connection's other end is gone although no operation has said so: asked now and then about tunnels that are stuck.
    fn is_lost(&self, id: SocketId) -> bool;

    /// How many bytes of an open connection the other end's kernel has not acknowledged; 0 also where it never will.
    fn unsent(&self, id: SocketId) -> usize;

    /// How many slots a receive could get now: free ones and those already lent to the kernel.
    fn slots_available(&self) -> usize;
}
