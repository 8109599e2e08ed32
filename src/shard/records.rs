//! The sockets of an engine by their ids: an id is vacant, or an accept is to make it, or it is open.
//!
//! What always holds between calls:
//! * what a record keeps is given back only by who ends it: an accept by its completion, an open socket when nothing is outstanding on it;
//! * records are moved in and out, so what the kernel may read or write lies behind a pointer in them (a box, a slot, a heap buffer).

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;

use super::io::SocketId;
use super::table::{Rows, Table};

/// A descriptor with what an engine keeps about it.
pub(super) trait OpenSocket: fmt::Debug {
    /// Whether nothing is outstanding on it.
    fn is_idle(&self) -> bool;

    /// What is left of it when it is given up; only when it is idle.
    fn into_descriptor(self) -> OwnedFd;
}

/// All records; the shard keeps its ids dense. `A`: what an outstanding accept keeps; `S`: an open socket.
#[derive(Debug)]
pub(super) struct Records<A, S>(Table<Record<A, S>>);

/// What is known of an id.
#[derive(Debug, Default)]
pub(super) enum Record<A, S> {
    #[default]
    Vacant,
    Accepting(A),
    Open(S),
}

impl<A, S> Default for Records<A, S> {
    fn default() -> Self {
        Self(Table::default())
    }
}

impl<A: fmt::Debug, S: OpenSocket> Records<A, S> {
    /// What there is under an id.
    pub(super) fn get(&self, id: SocketId) -> Option<&Record<A, S>> {
        self.0.get(id.0 as usize)
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut Record<A, S>> {
        self.0.get_mut(id.0 as usize)
    }

    /// The socket `id`, if it is open.
    pub(super) fn if_open(&self, id: SocketId) -> Option<&S> {
        match self.get(id) {
            Some(Record::Open(socket)) => Some(socket),
            Some(Record::Vacant | Record::Accepting(_)) | None => None,
        }
    }

    /// The open socket `id`.
    ///
    /// # Panics
    /// When it is none: a fault of the shard's.
    pub(super) fn open(&self, id: SocketId) -> &S {
        match self.get(id) {
            Some(Record::Open(socket)) => socket,
            other => panic!("{id:?} is no open socket but {other:?}"),
        }
    }

    /// As [`Self::open`].
    pub(super) fn open_mut(&mut self, id: SocketId) -> &mut S {
        match self.get_mut(id) {
            Some(Record::Open(socket)) => socket,
            other => panic!("{id:?} is no open socket but {other:?}"),
        }
    }

    /// Fills the vacant record of `id`.
    ///
    /// # Panics
    /// When it is not vacant: a fault of the shard's.
    pub(super) fn fill(&mut self, id: SocketId, with: Record<A, S>) {
        let index = id.0 as usize;
        while self.0.len() <= index {
            self.0.push(Record::Vacant);
        }
        let record = &mut self.0[index];
        assert!(matches!(record, Record::Vacant), "{id:?} is taken: {record:?}");
        *record = with;
    }

    /// Ends the accept that was to make `id`.
    pub(super) fn take_accepting(&mut self, id: SocketId) -> A {
        match self.take(id) {
            Record::Accepting(accepting) => accepting,
            other => unreachable!("{id:?} was not being accepted but is {other:?}"),
        }
    }

    /// Empties the record of a socket that could not be connected.
    pub(super) fn forget(&mut self, id: SocketId) {
        drop(self.take(id));
    }

    /// Takes out an idle socket.
    ///
    /// # Panics
    /// When something is outstanding on it: a fault of the shard's that would end in memory freed under the kernel.
    pub(super) fn take_idle(&mut self, id: SocketId) -> OwnedFd {
        let socket = self.open(id);
        assert!(socket.is_idle(), "{id:?} is given up while something is outstanding: {socket:?}");
        match self.take(id) {
            Record::Open(socket) => socket.into_descriptor(),
            other => unreachable!("{id:?} was open and is {other:?}"),
        }
    }

    fn take(&mut self, id: SocketId) -> Record<A, S> {
        self.get_mut(id).map(mem::take).unwrap_or_default()
    }
}

impl<'a, A, S> IntoIterator for &'a Records<A, S> {
    type Item = &'a Record<A, S>;
    type IntoIter = Rows<'a, Record<A, S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
