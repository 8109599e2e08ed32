//! The sockets by their ids, and for each what the kernel may still read or write on its behalf.
//!
//! What always holds between calls: memory in a record stays at its address however the table grows (a box, a slot, a heap buffer).

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;
use socket2::{SockAddr, SockAddrStorage};

use crate::shard::buffers::Chunk;
use crate::shard::io::{Purpose, SocketId, Token};

/// All records; the shard keeps its ids dense.
#[derive(Debug, Default)]
pub(super) struct Sockets(Vec<Record>);

/// What is known of an id.
#[derive(Debug, Default)]
pub(super) enum Record {
    #[default]
    Vacant,
    Accepting(Box<Accepting>),
    Open(Socket),
}

/// An accept that is outstanding.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) listener: SocketId,
    pub(super) token: Token,
    pub(super) purpose: Purpose,
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

    pub(super) const fn is_idle(&self) -> bool {
        self.receiving.is_none() && self.sending.is_none() && self.connecting.is_none() && self.accepting == 0
    }
}

impl Sockets {
    /// What there is under an id.
    pub(super) fn get(&self, id: SocketId) -> Option<&Record> {
        self.0.get(id.0 as usize)
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut Record> {
        self.0.get_mut(id.0 as usize)
    }

    /// The open socket `id`.
    ///
    /// # Panics
    /// When it is none: a fault of the shard's.
    pub(super) fn open(&mut self, id: SocketId) -> &mut Socket {
        match self.get_mut(id) {
            Some(Record::Open(socket)) => socket,
            other => panic!("{id:?} is no open socket but {other:?}"),
        }
    }

    /// Fills the vacant record of `id`.
    ///
    /// # Panics
    /// When it is not vacant: a fault of the shard's.
    pub(super) fn fill(&mut self, id: SocketId, with: Record) {
        let index = id.0 as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, Record::default);
        }
        let record = &mut self.0[index];
        assert!(matches!(record, Record::Vacant), "{id:?} is taken: {record:?}");
        *record = with;
    }

    /// Ends the accept that was to make `id`.
    pub(super) fn take_accepting(&mut self, id: SocketId) -> Box<Accepting> {
        match self.get_mut(id).map(mem::take) {
            Some(Record::Accepting(accepting)) => accepting,
            other => unreachable!("{id:?} was not being accepted but is {other:?}"),
        }
    }

    /// Empties the record of a socket that could not be connected.
    pub(super) fn forget(&mut self, id: SocketId) {
        if let Some(record) = self.get_mut(id) {
            *record = Record::Vacant;
        }
    }

    /// Takes out an idle socket.
    ///
    /// # Panics
    /// When something is outstanding on it: a fault of the shard's that would end in memory freed under the kernel.
    pub(super) fn take_idle(&mut self, id: SocketId) -> OwnedFd {
        let socket = self.open(id);
        assert!(socket.is_idle(), "{id:?} is given up while something is outstanding: {socket:?}");
        match self.get_mut(id).map(mem::take) {
            Some(Record::Open(socket)) => socket.descriptor,
            other => unreachable!("{id:?} was open and is {other:?}"),
        }
    }
}
