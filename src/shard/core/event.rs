//! What happens to sockets and timers, and to whom.

use std::net::SocketAddr;

use crate::shard::buffers::Chunk;
use crate::shard::inbox::Message;
use crate::shard::io::{Errno, SocketId};
use crate::shard::slab::Key;

/// Whom a socket or a timer belongs to: decides who is handed its events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The role as a whole.
    Role,
    /// The core itself: a listener's pause, or the looks at a socket that is reset when all is sent.
    Accepting(SocketId),
    /// A listener, by the role's number for it.
    Listener(u32),
    /// A connection that has not said yet what it is or wants.
    Pending(Key),
    /// A connection that is to become a tunnel: being made, or in its login.
    Login(Key),
    /// An authenticated tunnel.
    Tunnel(Key),
    /// A flow's connection: a client's or a destination's.
    Flow(Key),
    /// A connect to a destination, one of several perhaps, before it is known which of them the flow gets.
    Opening(Key),
    /// A client that waits for a tunnel.
    Waiting(Key),
}

/// What happened, for its owner.
#[derive(Debug)]
pub enum Event {
    /// A connection has come in.
    Accepted {
        /// The role's number for the listener.
        listener: u32,
        /// The connection; its owner is still the listener.
        socket: Key,
        /// The peer (`None`: a unix socket).
        peer: Option<SocketAddr>,
    },
    /// A connect has ended. On failure the socket is gone.
    Connected {
        /// Whose.
        owner: Owner,
        /// The socket.
        socket: Key,
        /// How it ended.
        result: Result<(), Errno>,
    },
    /// A receive has ended.
    Received {
        /// Whose.
        owner: Owner,
        /// The socket.
        socket: Key,
        /// What came.
        what: Incoming,
    },
    /// A send has ended.
    Sent {
        /// Whose.
        owner: Owner,
        /// The socket.
        socket: Key,
        /// The chunk, as it was sent.
        chunk: Chunk,
        /// How much of it was taken.
        result: Result<u32, Errno>,
    },
    /// A timer has fired.
    Timer {
        /// Whose.
        owner: Owner,
        /// Which of its timers.
        what: u8,
    },
    /// Something came from outside the thread.
    Message(Message),
}

/// How a receive ended.
#[derive(Debug)]
pub enum Incoming {
    /// Bytes, at least one. Of a receive into a chunk: that chunk, with the new ones behind what was there.
    Data(Chunk),
    /// The peer's FIN.
    End,
    /// The connection is gone.
    Failed(Errno),
}

/// How a socket is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// What the kernel has is still delivered, then FIN.
    Graceful,
    /// RST; what is unsent is dropped.
    Reset,
    /// RST behind what the kernel has, or after [`crate::limits::RESET_UNSENT`].
    ResetWhenSent,
}
