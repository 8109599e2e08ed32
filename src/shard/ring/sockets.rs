//! What the ring keeps of a socket: its descriptor, and what the kernel may still read or write on its behalf.
//!
//! What always holds between calls: that memory stays at its address however the table of sockets grows (a box, a slot, a heap buffer).

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;
use socket2::{SockAddr, SockAddrStorage};

use crate::shard::buffers::Chunk;
use crate::shard::io::{SocketId, Token};
use crate::shard::records::{OpenSocket, Records};

pub(super) type Sockets = Records<Box<Accepting>, Socket>;

/// An accept that is outstanding.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) listener: SocketId,
    pub(super) token: Token,
    pub(super) address: SockAddrStorage,
    pub(super) length: libc::socklen_t,
}

/// A descriptor and what is outstanding on it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) descriptor: OwnedFd,
    pub(super) receiving: Option<Receiving>,
    pub(super) sending: Option<Chunk>,
    pub(super) connecting: Option<Box<SockAddr>>,
    /// Accepts outstanding on it.
    pub(super) accepting: u32,
    /// The last receive left bytes behind.
    pub(super) more: bool,
}

#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) max: u32,
    pub(super) cancelled: bool,
    /// What the kernel writes behind; `None` for a leased receive.
    pub(super) into: Option<Chunk>,
}

impl Socket {
    pub(super) const fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, receiving: None, sending: None, connecting: None, accepting: 0, more: false }
    }

    pub(super) fn fd(&self) -> types::Fd {
        types::Fd(self.descriptor.as_raw_fd())
    }
}

impl OpenSocket for Socket {
    fn is_idle(&self) -> bool {
        self.receiving.is_none() && self.sending.is_none() && self.connecting.is_none() && self.accepting == 0
    }

    fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }
}
