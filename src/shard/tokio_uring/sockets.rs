//! The sockets by their ids. A task holds the socket it works on; the table holds it too, until the shard gives it up.
//!
//! What always holds between calls: a socket that is idle is held by the table alone, so closing it is closing its descriptor.

use std::cell::Cell;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring_of_tokio::types;

use crate::shard::io::{Purpose, SocketId};

/// All records; the shard keeps its ids dense.
#[derive(Debug, Default)]
pub(super) struct Sockets(Vec<Record>);

/// What is known of an id.
#[derive(Debug, Default)]
pub(super) enum Record {
    #[default]
    Vacant,
    Accepting(Accepting),
    Open(Rc<Socket>),
}

/// An accept that is outstanding.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) listener: SocketId,
    pub(super) purpose: Purpose,
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

    pub(super) const fn is_idle(&self) -> bool {
        !self.receiving.get() && !self.sending.get() && !self.connecting.get() && self.accepting.get() == 0
    }
}

impl Sockets {
    /// What there is under an id.
    pub(super) fn get(&self, id: SocketId) -> Option<&Record> {
        self.0.get(id.0 as usize)
    }

    /// All records there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter()
    }

    /// The open socket `id`.
    ///
    /// # Panics
    /// When it is none: a fault of the shard's.
    pub(super) fn open(&self, id: SocketId) -> &Rc<Socket> {
        match self.get(id) {
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

    /// Empties the record of `id`.
    pub(super) fn take(&mut self, id: SocketId) -> Record {
        self.0.get_mut(id.0 as usize).map(mem::take).unwrap_or_default()
    }

    /// Takes out an idle socket.
    ///
    /// # Panics
    /// When something is outstanding on it: a fault of the shard's.
    pub(super) fn take_idle(&mut self, id: SocketId) -> OwnedFd {
        let socket = self.open(id);
        assert!(socket.is_idle(), "{id:?} is given up while something is outstanding: {socket:?}");
        let Record::Open(socket) = self.take(id) else { unreachable!("{id:?} was open") };
        match Rc::try_unwrap(socket) {
            Ok(socket) => socket.descriptor,
            Err(socket) => unreachable!("{id:?} is idle and a task holds it: {socket:?}"),
        }
    }
}
