//! Sockets that are reset behind the bytes they were given: a close with a linger of zero throws away what the other end has not
//! acknowledged, so it waits until nothing is, for a while.

use std::time::Duration;

use super::{Closing, Core, Owner};
use crate::limits;
use crate::shard::io::SocketId;
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// Which of the core's timers it is.
pub(super) const LOOK: u8 = 1;

/// What a socket that waits for its last acknowledgements has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    until: Time,
    pause: Duration,
    timer: TimerId,
}

impl Core {
    /// Whether the close of a socket that is quiet has to wait, and if so, sets the next look.
    pub(super) fn waits_for_unsent(&mut self, index: u32) -> bool {
        let socket = SocketId(index);
        let entry = &self.entries[index as usize];
        let before = entry.leaving.as_deref().copied();
        if entry.closing != Some(Closing::ResetWhenSent) || self.io.unsent(socket) == 0 {
            return false;
        }
        let until = before.map_or(self.now + limits::RESET_UNSENT, |leaving| leaving.until);
        if self.now >= until {
            return false;
        }
        let pause = before.map_or(limits::UNSENT_LOOK_MIN, |leaving| (leaving.pause * 2).min(limits::UNSENT_LOOK_MAX));
        let timer = self.set_timer(pause.min(until.since(self.now)), Owner::Accepting(socket), LOOK);
        self.entries[index as usize].leaving = Some(Box::new(Leaving { until, pause, timer }));
        true
    }

    /// Resets a socket that waits, at once.
    pub(super) fn stop_waiting(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.closing == Some(Closing::ResetWhenSent) {
            entry.closing = Some(Closing::Reset);
        }
        if let Some(leaving) = entry.leaving.take() {
            self.timers.cancel(leaving.timer);
            self.finish_close(index);
        }
    }
}
