//! From a completion to an event: what is for nobody any more is dropped and counted, what found no slot waits its turn.

use super::sockets::Life;
use super::{Core, Event, Incoming, Owner};
use crate::limits::RECORD_BYTES_MAX;
use crate::mutants::{self, Mutant};
use crate::shard::buffers::Chunk;
use crate::shard::io::{Done, Errno, Payload, Token};
use crate::shard::slab::Key;

impl Core {
    pub(super) fn on_connect(&mut self, done: Done) -> Option<Event> {
        let index = done.token.socket().0;
        let entry = &mut self.entries[index as usize];
        let socket = Key { index, generation: done.token.generation() };
        let closing = entry.closing;
        let owner = entry.owner;
        match done.result {
            Ok(reset_since) => {
                entry.life = Life::Open;
                entry.has_failed = reset_since > 0;
            }
            Err(_) => {
                if closing.is_none() {
                    self.invalidate(index);
                }
                self.release(index);
            }
        }
        if closing.is_some() {
            self.stale += 1;
            if done.result.is_ok() {
                self.finish_close(index);
            }
            return None;
        }
        Some(Event::Connected { owner, socket, result: done.result.map(|_| ()) })
    }

    pub(super) fn on_receive(&mut self, done: Done) -> Option<Event> {
        let index = done.token.socket().0;
        self.entries[index as usize].receiving = false;
        let (socket, owner) = self.current(done.token)?;
        let what = match (done.result, done.payload) {
            (Ok(0), _) if self.entries[index as usize].has_failed => Incoming::Failed(Errno(libc::ECONNRESET)),
            (Ok(0), _) => Incoming::End,
            (Ok(_), Payload::Filled(chunk)) => Incoming::Data(chunk),
            (Err(Errno(libc::EINTR | libc::EAGAIN)), Payload::Filled(chunk)) => {
                self.submit_receive_into(socket, chunk);
                return None;
            }
            (Err(error), Payload::Filled(_)) => Incoming::Failed(error),
            (Ok(count), Payload::Received(slot)) => Incoming::Data(slot.received(count as usize)),
            (Err(Errno(libc::ENOBUFS)), _) if self.entries[index as usize].never_parks => {
                self.submit_receive_into(socket, Chunk::with_capacity(RECORD_BYTES_MAX));
                return None;
            }
            (Err(Errno(libc::ENOBUFS)), _) if !mutants::on(Mutant::EnobufsNotParked) => {
                let entry = &mut self.entries[index as usize];
                entry.parked = true;
                self.parked_count += 1;
                self.parked.push_back(socket);
                return None;
            }
            (Err(Errno(libc::EINTR | libc::EAGAIN)), _) => {
                self.submit_receive(socket);
                return None;
            }
            (Err(error), _) => Incoming::Failed(error),
            (Ok(_), _) => Incoming::Failed(Errno(libc::EIO)),
        };
        Some(Event::Received { owner, socket, what })
    }

    pub(super) fn on_send(&mut self, done: Done) -> Option<Event> {
        self.entries[done.token.socket().0 as usize].sending = false;
        let (socket, owner) = self.current(done.token)?;
        let Payload::Sent(chunk) = done.payload else { return None };
        let entry = &mut self.entries[socket.index as usize];
        entry.has_failed |= entry.sends_whole && done.result.is_ok_and(|count| (count as usize) < chunk.len());
        Some(Event::Sent { owner, socket, chunk, result: done.result })
    }

    /// The socket and owner a completion is for; if they are gone it is counted, and the close that waited for it goes on.
    pub(super) fn current(&mut self, token: Token) -> Option<(Key, Owner)> {
        let index = token.socket().0;
        let entry = &self.entries[index as usize];
        let socket = Key { index, generation: token.generation() };
        let owner = entry.owner;
        let is_current = entry.generation == token.generation() && entry.closing.is_none();
        if entry.closing.is_some() && self.is_quiet(index) {
            self.finish_close(index);
        }
        if !is_current {
            self.stale += 1;
            if !mutants::on(Mutant::NoGenerationCheck) {
                return None;
            }
        }
        Some((socket, owner))
    }

    /// One waiting receive for each slot that can be had, in the order in which they came.
    pub(super) fn rearm_parked(&mut self) {
        if self.parked.is_empty() || mutants::on(Mutant::ParkedNeverRearmed) {
            return;
        }
        let mut available = self.io.slots_available();
        while available > 0 {
            let Some(socket) = self.parked.pop_front() else { return };
            let Some(entry) = self.entry_mut(socket) else { continue };
            if !entry.parked {
                continue;
            }
            entry.parked = false;
            self.parked_count -= 1;
            available -= 1;
            self.submit_receive(socket);
        }
    }
}
