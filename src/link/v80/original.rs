//! What the author's own programs need of a tunnel (0x80 §5), in one place: small frames one by one and never close together, flows
//! opened by the client's first bytes, requests that keep a flow alive, keys that rest before they are used again.
//!
//! ```text
//!   send ─▶ cut to 1,024 bytes ─▶ queue ─▶ one frame, one send, 1 ms ─▶ …
//!
//!   key:  placed ──first bytes, or 200 ms──▶ open ──their end, or given up──▶ resting ──25 s after the last request──▶ free
//!                                             │ a request of length 0 every 8 s
//!                                             └ nothing at all in 30 s: unanswered
//! ```
//!
//! What always holds between calls:
//! * a frame leaves only when the one before has been taken by the kernel for at least [`limits::ORIGINAL_PACE`];
//! * a key that is here is taken in the session too; a resting one has nothing in the queue, so nothing can open it again over there;
//! * on the exit no key is kept: our end frees it at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::LINK_TIMER;
use crate::crypto::fixed_iv::MessageCipher;
use crate::limits;
use crate::protocol::v80::Profile;
use crate::protocol::v80::frame::{self, Destination};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Core, Owner};
use crate::shard::slab::Key;
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// Ends of ours that are remembered, so that late data can be told from a new flow in the log.
const ENDS_REMEMBERED: usize = 16;
/// Data this soon after our end is most likely the old flow's.
const LATE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Original {
    queue: VecDeque<(Destination, Chunk)>,
    queued_bytes: usize,
    /// The next frame leaves no sooner.
    not_before: Time,
    /// Entry only.
    keys: BTreeMap<Destination, Placed>,
    /// Exit only: the last ends of ours.
    ended: VecDeque<(Destination, Time)>,
    timer: Option<(Time, TimerId)>,
}

/// A key on the entry: that of a flow, or one that rests.
#[derive(Debug)]
struct Placed {
    /// `None`: it rests.
    flow: Option<Key>,
    placed: Time,
    /// When its first and its last request left.
    requests: Option<(Time, Time)>,
    /// Requests of it in the queue.
    queued: usize,
    is_answered: bool,
    /// The client sends no more.
    is_half: bool,
    /// A reply has come since the client's end, or since the last request after it.
    is_moving: bool,
}

/// What time has brought.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Flows that nothing at all has answered: to be given up.
    pub(super) unanswered: Vec<Key>,
    /// Keys that have rested: to be released.
    pub(super) rested: Vec<Destination>,
}

impl Original {
    // ---- frames

    /// Queues a flow's bytes, in frames as small as these programs can take.
    pub(super) fn queue(&mut self, cipher: &MessageCipher, destination: Destination, bytes: &[u8]) {
        for part in bytes.chunks(Profile::Original.payload_max(destination)) {
            let mut chunk = Chunk::copy_of(part);
            // A heap chunk of its own has no other handle.
            let header = chunk.as_mut_slice().map(|bytes| frame::seal(cipher, destination, bytes));
            if let Some(header) = header {
                chunk.prepend(header.as_slice());
                self.push(destination, chunk);
            }
        }
    }

    /// Queues a frame without data: on the entry one that opens or keeps alive, on the exit the end.
    pub(super) fn queue_empty(&mut self, destination: Destination) {
        self.push(destination, Chunk::copy_of(&frame::empty(destination)));
    }

    fn push(&mut self, destination: Destination, chunk: Chunk) {
        self.queued_bytes += chunk.len();
        self.queue.push_back((destination, chunk));
        if let Some(key) = self.keys.get_mut(&destination) {
            key.queued += 1;
        }
    }

    /// Bytes in frames that have not left.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// The frame that leaves now, if the one before has been taken by the kernel.
    pub(super) fn next_frame(&mut self, now: Time) -> Option<Chunk> {
        if now < self.not_before {
            return None;
        }
        let (destination, chunk) = self.queue.pop_front()?;
        self.queued_bytes -= chunk.len();
        if let Some(key) = self.keys.get_mut(&destination) {
            key.queued -= 1;
            key.is_moving = false;
            key.requests = Some((key.requests.map_or(now, |(first, _)| first), now));
        }
        Some(chunk)
    }

    /// The frame before has been taken.
    pub(super) fn on_sent(&mut self, now: Time) {
        self.not_before = now + limits::ORIGINAL_PACE;
    }

    // ---- keys on the entry

    /// A flow has this key from now on. Nothing is sent: its client's first bytes open it, or time does.
    pub(super) fn place(&mut self, destination: Destination, flow: Key, now: Time) {
        let key = Placed { flow: Some(flow), placed: now, requests: None, queued: 0, is_answered: false, is_half: false, is_moving: false };
        self.keys.insert(destination, key);
    }

    /// Data has come for a flow.
    pub(super) fn on_reply(&mut self, destination: Destination) {
        if let Some(key) = self.keys.get_mut(&destination) {
            key.is_answered = true;
            key.is_moving = true;
        }
    }

    /// The client sends no more; its server is not told.
    pub(super) fn on_client_end(&mut self, destination: Destination) {
        if let Some(key) = self.keys.get_mut(&destination) {
            key.is_half = true;
            key.is_moving = false;
        }
    }

    /// The flow is over: nothing more of it leaves, and its key rests. `true`: nothing has left, so there is nothing to rest for.
    pub(super) fn rest(&mut self, destination: Destination) -> bool {
        let Some(key) = self.keys.get_mut(&destination) else { return false };
        key.flow = None;
        let unused = key.requests.is_none();
        if key.queued > 0 {
            key.queued = 0;
            self.queue.retain(|(of, _)| *of != destination);
            self.queued_bytes = self.queue.iter().map(|(_, chunk)| chunk.len()).sum();
        }
        if unused {
            self.keys.remove(&destination);
        }
        unused
    }

    // ---- keys on the exit

    /// Our end of a flow has been queued, which frees its key.
    pub(super) fn on_own_end(&mut self, destination: Destination, now: Time) {
        self.ended.truncate(ENDS_REMEMBERED - 1);
        self.ended.push_front((destination, now));
    }

    /// How long ago our end of this key was, if data for it now must be taken for late.
    pub(super) fn is_late(&self, destination: Destination, now: Time) -> Option<Duration> {
        let (_, end) = self.ended.iter().find(|(of, _)| *of == destination)?;
        Some(now.since(*end)).filter(|ago| *ago < LATE)
    }

    // ---- time

    /// Does what is due: queues the requests that open and keep alive, and says what the tunnel's owner has to do.
    pub(super) fn on_time(&mut self, now: Time) -> Due {
        let mut due = Due::default();
        let mut requests = Vec::new();
        for (&destination, key) in &self.keys {
            if key.deadline().is_none_or(|at| at > now) {
                continue;
            }
            match key.flow {
                None => due.rested.push(destination),
                Some(flow) if key.is_unanswered(now) => due.unanswered.push(flow),
                Some(_) => requests.push(destination),
            }
        }
        for destination in &due.rested {
            self.keys.remove(destination);
        }
        for destination in requests {
            self.queue_empty(destination);
        }
        due
    }

    /// When [`Original::on_time`] or [`Original::next_frame`] has something to do. `is_sending`: a frame is on its way into the kernel.
    fn deadline(&self, is_sending: bool) -> Option<Time> {
        let frame = (!is_sending && !self.queue.is_empty()).then_some(self.not_before);
        self.keys.values().filter_map(Placed::deadline).chain(frame).min()
    }

    /// Has the tunnel's owner called at the next deadline.
    pub(super) fn set_timer(&mut self, core: &mut Core, tunnel: Key, is_sending: bool) {
        let wanted = self.deadline(is_sending);
        if self.timer.map(|(at, _)| at) == wanted {
            return;
        }
        self.cancel_timer(core);
        self.timer = wanted.map(|at| {
            let after = at.since(core.now());
            (at, core.set_timer(after, Owner::Tunnel(tunnel), LINK_TIMER))
        });
    }

    /// The timer has fired.
    pub(super) const fn on_timer(&mut self) {
        self.timer = None;
    }

    /// The tunnel ends.
    pub(super) fn cancel_timer(&mut self, core: &mut Core) {
        core.cancel_timer(&mut self.timer.take().map(|(_, timer)| timer));
    }
}

impl Placed {
    /// When there is something to do for this key.
    fn deadline(&self) -> Option<Time> {
        let Some((first, last)) = self.requests else {
            // Only one that nothing opens yet has to be opened.
            return (self.queued == 0).then(|| self.placed + limits::ORIGINAL_OPEN);
        };
        if self.flow.is_none() {
            return Some(last + limits::ORIGINAL_REST);
        }
        // Behind the client's end we cannot see whether he is still there. As long as replies move their server is kept from cutting
        // them off; when they have stopped, it is left to end the flow.
        let is_kept = !self.is_half || self.is_moving;
        let keep_alive = (self.queued == 0 && is_kept).then(|| last + limits::ORIGINAL_KEEP_ALIVE);
        let answer = (!self.is_answered).then(|| first + limits::ORIGINAL_ANSWER);
        keep_alive.into_iter().chain(answer).min()
    }

    fn is_unanswered(&self, now: Time) -> bool {
        !self.is_answered && self.requests.is_some_and(|(first, _)| now.since(first) >= limits::ORIGINAL_ANSWER)
    }
}

#[cfg(test)]
mod tests;
