//! Listeners: a few accepts outstanding each, and a pause that grows while accepting fails.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tracing::warn;

use super::sockets::Life;
use super::{Closing, Core, Event, Owner};
use crate::limits;
use crate::shard::io::{Done, Errno, Kind, Op, Payload, SocketId, Token};
use crate::shard::slab::Key;
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// What only a listener has.
#[derive(Debug)]
pub(super) struct Accepts {
    pub(super) outstanding: usize,
    pub(super) pause: Duration,
    pub(super) failed_at: Option<Time>,
    pub(super) paused: Option<TimerId>,
}

impl Core {
    /// Starts accepting on a listening descriptor; connections come as [`Event::Accepted`] with `number`.
    pub fn listen(&mut self, descriptor: OwnedFd, number: u32) -> Key {
        let key = self.adopt(descriptor, Owner::Listener(number));
        let accepts = Accepts { outstanding: 0, pause: Duration::ZERO, failed_at: None, paused: None };
        self.entries[key.index as usize].accepts = Some(Box::new(accepts));
        self.post_accepts(key.index);
        key
    }

    pub(super) fn on_accept(&mut self, done: Done) -> Option<Event> {
        let into = done.token.socket().0;
        let Life::Awaited { listener } = self.entries[into as usize].life else {
            self.stale += 1;
            return None;
        };
        let entry = &mut self.entries[listener.0 as usize];
        let closing = entry.closing.is_some();
        let owner = entry.owner;
        if let Some(accepts) = &mut entry.accepts {
            accepts.outstanding -= 1;
        }
        let event = match (done.result, closing) {
            (Ok(_), false) => {
                let entry = &mut self.entries[into as usize];
                entry.life = Life::Open;
                entry.owner = owner;
                let socket = Key { index: into, generation: entry.generation };
                let peer = if let Payload::Accepted(peer) = done.payload { peer } else { None };
                self.post_accepts(listener.0);
                let Owner::Listener(number) = owner else { return None };
                Some(Event::Accepted { listener: number, socket, peer })
            }
            (Ok(_), true) => {
                let entry = &mut self.entries[into as usize];
                entry.life = Life::Open;
                let socket = Key { index: into, generation: entry.generation };
                self.close(socket, Closing::Reset);
                None
            }
            (Err(error), closing) => {
                self.invalidate(into);
                self.release(into);
                if !closing {
                    self.on_accept_error(listener, error);
                }
                None
            }
        };
        if closing && self.is_quiet(listener.0) {
            self.finish_close(listener.0);
        }
        event
    }

    /// A failing accept costs nothing but a growing pause: the kernel keeps the clients, and the log stays quiet.
    pub(super) fn on_accept_error(&mut self, listener: SocketId, error: Errno) {
        if matches!(error.0, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) {
            self.post_accepts(listener.0);
            return;
        }
        let now = self.now;
        let Some(accepts) = &mut self.entries[listener.0 as usize].accepts else { return };
        if accepts.paused.is_some() {
            return;
        }
        // At the limit an accept succeeds whenever a client goes, so one success does not mean that it is over.
        let since_last = accepts.failed_at.map(|at| now.since(at));
        let is_new = since_last.is_none_or(|since| since > limits::ACCEPT_PAUSE_MAX * 2);
        accepts.pause = if is_new { limits::ACCEPT_PAUSE_MIN } else { (accepts.pause * 2).min(limits::ACCEPT_PAUSE_MAX) };
        accepts.failed_at = Some(now);
        let pause = accepts.pause;
        let timer = self.set_timer(pause, Owner::Accepting(listener), 0);
        if let Some(accepts) = &mut self.entries[listener.0 as usize].accepts {
            accepts.paused = Some(timer);
        }
        if is_new {
            warn!(%error, "cannot accept; trying again by itself, up to a second apart");
        }
    }

    pub(super) fn post_accepts(&mut self, index: u32) {
        let listener = SocketId(index);
        loop {
            let entry = &mut self.entries[index as usize];
            if entry.closing.is_some() {
                return;
            }
            let owner = entry.owner;
            let Some(accepts) = &mut entry.accepts else { return };
            if accepts.outstanding >= limits::ACCEPTS_POSTED || accepts.paused.is_some() {
                return;
            }
            accepts.outstanding += 1;
            let into = self.allocate(Life::Awaited { listener }, owner);
            let token = Token::new(Kind::Accept, into.generation, SocketId(into.index));
            self.io.submit(Op::Accept { listener, into: SocketId(into.index), token });
        }
    }
}
