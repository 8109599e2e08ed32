//! What the engine keeps of a socket. A task holds the socket it works on; the table holds it too, until the shard gives it up.
//!
//! What always holds between calls: a socket that is idle is held by the table alone, so closing it is closing its descriptor.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring_of_tokio::types;

use crate::shard::io::SocketId;
use crate::shard::records::{OpenSocket, Records};

pub(super) type Sockets = Records<Accepting, Rc<Socket>>;

/// An accept that is outstanding.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) listener: SocketId,
    /// Set when this one accept is cancelled.
    pub(super) cancelled: Rc<Cell<bool>>,
}

/// A descriptor and what is outstanding on it: submitted, and its end not reported.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) descriptor: OwnedFd,
    pub(super) receiving: Cell<bool>,
    pub(super) sending: Cell<bool>,
    pub(super) connecting: Cell<bool>,
    /// Accepts outstanding on it.
    pub(super) accepting: Cell<u32>,
    /// How often all on it was cancelled: an operation that began before the last time is over.
    pub(super) cancels: Cell<u32>,
    /// The last receive left bytes behind.
    pub(super) more: Cell<bool>,
    /// Entries about it that the kernel has.
    pub(super) in_kernel: Cell<u32>,
}

impl Socket {
    pub(super) const fn new(descriptor: OwnedFd) -> Self {
        Self {
            descriptor,
            receiving: Cell::new(false),
            sending: Cell::new(false),
            connecting: Cell::new(false),
            accepting: Cell::new(0),
            cancels: Cell::new(0),
            more: Cell::new(false),
            in_kernel: Cell::new(0),
        }
    }

    pub(super) fn fd(&self) -> types::Fd {
        types::Fd(self.descriptor.as_raw_fd())
    }
}

impl OpenSocket for Rc<Socket> {
    fn is_idle(&self) -> bool {
        !self.receiving.get() && !self.sending.get() && !self.connecting.get() && self.accepting.get() == 0
    }

    fn into_descriptor(self) -> OwnedFd {
        match Self::try_unwrap(self) {
            Ok(socket) => socket.descriptor,
            Err(socket) => unreachable!("a socket is idle and a task holds it: {socket:?}"),
        }
    }
}
