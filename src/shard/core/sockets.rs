//! Sockets: made, used, closed, and their places.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use super::accepting::Accepts;
use super::leaving::Leaving;
use super::{Closing, Core, Owner};
use crate::limits;
#[cfg(feature = "mutants")]
use crate::mutants::{self, Mutant};
use crate::shard::buffers::Chunk;
use crate::shard::io::{Kind, Op, Purpose, SocketId, Token};
use crate::shard::slab::Key;

/// [`limits::SLOT_DATA`] as an operation takes it.
#[expect(clippy::cast_possible_truncation, reason = "less than 64 KiB")]
const SLOT_DATA: u32 = limits::SLOT_DATA as u32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    Free,
    /// An accept is to fill it.
    Awaited {
        listener: SocketId,
    },
    Connecting,
    Open,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) generation: u32,
    pub(super) life: Life,
    pub(super) owner: Owner,
    pub(super) receiving: bool,
    /// The most that one receive takes.
    pub(super) receive_max: u32,
    /// Such a receive takes memory of the heap where there is no slot.
    pub(super) never_parks: bool,
    pub(super) sending: bool,
    /// The outstanding send waits until all is taken.
    pub(super) sends_whole: bool,
    /// Such a send came back short, or it was reset before its connect was told: the connection has failed. The kernel tells that once, so a receive would now look like a FIN.
    pub(super) has_failed: bool,
    pub(super) parked: bool,
    pub(super) closing: Option<Closing>,
    /// Quiet, and waits until all is sent.
    pub(super) leaving: Option<Box<Leaving>>,
    pub(super) accepts: Option<Box<Accepts>>,
}

impl Core {
    /// Takes a descriptor from outside as an open connection.
    pub fn adopt(&mut self, descriptor: OwnedFd, owner: Owner) -> Key {
        let key = self.allocate(Life::Open, owner);
        self.io.adopt(SocketId(key.index), descriptor);
        key
    }

    /// Gives a connection on which nothing is outstanding away; `None` if there is something or the socket is gone.
    pub fn detach(&mut self, socket: Key) -> Option<OwnedFd> {
        let entry = self.entry(socket)?;
        if entry.receiving || entry.sending || entry.parked || entry.life != Life::Open {
            return None;
        }
        let descriptor = self.io.detach(SocketId(socket.index));
        self.invalidate(socket.index);
        self.release(socket.index);
        Some(descriptor)
    }

    /// Makes a connection; the outcome comes as [`super::Event::Connected`].
    pub fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>, purpose: Purpose, owner: Owner) -> Key {
        let key = self.allocate(Life::Connecting, owner);
        let socket = SocketId(key.index);
        self.io.submit(Op::Connect { socket, to, from, purpose, token: Token::new(Kind::Connect, key.generation, socket) });
        key
    }

    /// Hands the socket's events to another owner from now on.
    pub fn set_owner(&mut self, socket: Key, owner: Owner) {
        if let Some(entry) = self.entry_mut(socket) {
            entry.owner = owner;
        }
    }

    /// Waits for bytes, unless that is being done already. What comes leaves room for a tag behind it.
    pub fn receive(&mut self, socket: Key) {
        self.receive_at_most(socket, SLOT_DATA);
    }

    /// As [`Self::receive`], for at most `max` bytes: up to [`limits::RECORD_BYTES_MAX`].
    pub fn receive_at_most(&mut self, socket: Key, max: u32) {
        let Some(entry) = self.entry_mut(socket) else { return };
        if !entry.receiving && !entry.parked {
            entry.receive_max = max;
            entry.never_parks = false;
            self.submit_receive(socket);
        }
    }

    /// As [`Self::receive_at_most`], but what comes is taken also where no slot is free: for those on whom the slots of others wait.
    pub fn receive_without_fail(&mut self, socket: Key, max: u32) {
        self.receive_at_most(socket, max);
        if let Some(entry) = self.entry_mut(socket) {
            entry.never_parks = true;
        }
    }

    /// Waits for at most `max` bytes and puts them behind the chunk's end; the event brings the whole chunk. Where no bytes come any more
    /// the chunk is gone with that.
    ///
    /// # Panics
    /// When a receive is outstanding, or the chunk has no room: faults of the caller, for which bytes would be missing.
    pub fn receive_into(&mut self, socket: Key, chunk: Chunk, max: u32) {
        let Some(entry) = self.entry_mut(socket) else { return };
        assert!(!entry.receiving && !entry.parked, "a receive into a chunk while another is outstanding on socket {}", socket.index);
        entry.receive_max = max;
        self.submit_receive_into(socket, chunk);
    }

    /// A chunk that starts with a copy of `bytes` and has room for a whole record: in a free slot or, if there is none, on the heap.
    ///
    /// # Panics
    /// When `bytes` are more than [`limits::RECORD_BYTES_MAX`].
    #[must_use]
    pub fn fresh_chunk(&self, bytes: &[u8]) -> Chunk {
        let slot = self.arena.take().map(|slot| slot.received(0));
        let mut chunk = slot.unwrap_or_else(|| Chunk::with_capacity(limits::RECORD_BYTES_MAX));
        chunk.append(bytes);
        chunk
    }

    /// A chunk of just these bytes, for what is about to be sent: in a slot where they are plentiful, so that nothing is allocated, or on the heap.
    ///
    /// # Panics
    /// When `bytes` are more than [`limits::RECORD_BYTES_MAX`].
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> Chunk {
        if self.slots_are_low() || self.arena.free() == 0 { Chunk::copy_of(bytes) } else { self.fresh_chunk(bytes) }
    }

    /// Sends a chunk, of which at least one byte is left. One at a time per socket: [`crate::outbox::Outbox`] sees to it.
    pub fn send(&mut self, socket: Key, chunk: Chunk, wait: bool) {
        let Some(entry) = self.entry_mut(socket) else { return };
        entry.sending = true;
        entry.sends_whole = wait;
        #[cfg(feature = "mutants")]
        if mutants::on(Mutant::SlotFreedAtSubmit) {
            chunk.give_back_early();
        }
        let id = SocketId(socket.index);
        self.io.submit(Op::Send { socket: id, chunk, wait, token: Token::new(Kind::Send, socket.generation, id) });
    }

    /// Says that no more is sent; only when no send is outstanding.
    pub fn shutdown(&mut self, socket: Key) {
        if self.entry(socket).is_some() {
            self.io.submit(Op::Shutdown { socket: SocketId(socket.index) });
        }
    }

    /// Whether the other end of a connection is gone although no event has said so.
    #[must_use]
    pub fn is_lost(&self, socket: Key) -> bool {
        self.entry(socket).is_some() && self.io.is_lost(SocketId(socket.index))
    }

    /// A connection's own address: what a peer of the relay is told as the bound one.
    #[must_use]
    pub fn local_address(&self, socket: Key) -> Option<SocketAddr> {
        self.entry(socket).and_then(|_| self.io.local_address(SocketId(socket.index)))
    }

    /// Ends all sockets: flows with RST, so that nothing cut looks whole, the others in order.
    pub(in crate::shard) fn close_all(&mut self) {
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            let (is_closing, generation) = (entry.closing.is_some(), entry.generation);
            if matches!(entry.life, Life::Free | Life::Awaited { .. }) {
                continue;
            }
            let how = if matches!(entry.owner, Owner::Flow(_) | Owner::Waiting(_)) { Closing::Reset } else { Closing::Graceful };
            let index = u32::try_from(index).expect("descriptors are fewer than 2^32");
            if is_closing {
                self.stop_waiting(index);
                continue;
            }
            self.close(Key { index, generation }, how);
        }
    }

    /// Whether every socket is closed.
    pub(in crate::shard) const fn is_empty(&self) -> bool {
        self.in_use == 0
    }

    /// Ends a socket. From now on none of its completions reaches anybody.
    pub fn close(&mut self, socket: Key, how: Closing) {
        let Some(entry) = self.entry_mut(socket) else { return };
        entry.closing = Some(how);
        if entry.parked {
            entry.parked = false;
            self.parked_count -= 1;
        }
        self.invalidate(socket.index);
        if let Some(accepts) = &mut self.entries[socket.index as usize].accepts {
            let mut paused = accepts.paused.take();
            self.cancel_timer(&mut paused);
        }
        if self.is_quiet(socket.index) {
            self.finish_close(socket.index);
        } else {
            self.io.submit(Op::Cancel { socket: SocketId(socket.index) });
        }
    }

    pub(super) fn entry(&self, socket: Key) -> Option<&Entry> {
        self.entries.get(socket.index as usize).filter(|entry| entry.generation == socket.generation && entry.life != Life::Free)
    }

    pub(super) fn entry_mut(&mut self, socket: Key) -> Option<&mut Entry> {
        self.entries.get_mut(socket.index as usize).filter(|entry| entry.generation == socket.generation && entry.life != Life::Free)
    }

    pub(super) fn allocate(&mut self, life: Life, owner: Owner) -> Key {
        self.in_use += 1;
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.life = life;
            entry.owner = owner;
            return Key { index, generation: entry.generation };
        }
        let index = u32::try_from(self.entries.len()).expect("descriptors are fewer than 2^32");
        self.entries.push(Entry {
            generation: 0,
            life,
            owner,
            receiving: false,
            sending: false,
            sends_whole: false,
            has_failed: false,
            parked: false,
            receive_max: 0,
            never_parks: false,
            closing: None,
            leaving: None,
            accepts: None,
        });
        Key { index, generation: 0 }
    }

    /// Makes every key of the socket that is out there an old one.
    pub(super) fn invalidate(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation = (entry.generation + 1) & 0x00ff_ffff;
    }

    /// Makes the place free; the socket is closed, given away, or never came to be.
    pub(super) fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.life = Life::Free;
        entry.has_failed = false;
        entry.closing = None;
        entry.leaving = None;
        entry.accepts = None;
        self.free.push(index);
        self.in_use -= 1;
    }

    /// Whether nothing is outstanding.
    pub(super) fn is_quiet(&self, index: u32) -> bool {
        let entry = &self.entries[index as usize];
        let accepting = entry.accepts.as_ref().is_some_and(|accepts| accepts.outstanding > 0);
        !entry.receiving && !entry.sending && !accepting && entry.life == Life::Open
    }

    pub(super) fn finish_close(&mut self, index: u32) {
        if self.waits_for_unsent(index) {
            return;
        }
        let reset = matches!(self.entries[index as usize].closing, Some(Closing::Reset | Closing::ResetWhenSent));
        self.io.submit(Op::Close { socket: SocketId(index), reset });
        self.release(index);
    }

    pub(super) fn submit_receive(&mut self, socket: Key) {
        let entry = &mut self.entries[socket.index as usize];
        entry.receiving = true;
        let max = entry.receive_max;
        let id = SocketId(socket.index);
        self.io.submit(Op::Receive { socket: id, max, token: Token::new(Kind::Receive, socket.generation, id) });
    }

    pub(super) fn submit_receive_into(&mut self, socket: Key, into: Chunk) {
        let entry = &mut self.entries[socket.index as usize];
        entry.receiving = true;
        let max = entry.receive_max;
        let id = SocketId(socket.index);
        self.io.submit(Op::ReceiveInto { socket: id, into, max, token: Token::new(Kind::Receive, socket.generation, id) });
    }
}
