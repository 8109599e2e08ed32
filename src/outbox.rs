//! What waits to be sent on one socket: a queue with one send outstanding, and the end behind it. Both a tunnel and a flow's
//! connection send through one of these.
//!
//! ```text
//!   push ─▶ | chunk | chunk | small+small+small | ─▶ flush ─▶ one send ─▶ on_sent ─▶ …  ─▶ FIN, when wanted and all is gone
//! ```
//!
//! What always holds between turns:
//! * one send at most is outstanding, so bytes never overtake each other;
//! * small chunks of one turn leave together: they are gathered in one heap chunk;
//! * what waits behind a send that did not finish holds no slot if slots are low or it fills less than half of one: a reader that
//!   stalls keeps memory of the heap, bounded by [`crate::limits::QUEUE_BYTES`], and not what others receive into;
//! * the FIN goes out behind the last byte, once.

mod queue;

use self::queue::Queue;
use crate::limits::SLOT_BYTES;
use crate::mutants::{self, Mutant};
use crate::shard::buffers::Chunk;
use crate::shard::core::Core;
use crate::shard::io::Errno;
use crate::shard::slab::Key;

/// Chunks up to this size are copied together; larger ones are sent from where they are.
const GATHERED_CHUNK: usize = 4096;
/// How large a gathered chunk may grow.
const GATHERED: usize = SLOT_BYTES;

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: Queue,
    /// Bytes in the queue and in the outstanding send: bounded by windows and queues of a few megabytes.
    bytes: u32,
    outstanding: bool,
    /// Bytes have left since [`Outbox::look`].
    has_moved: bool,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum End {
    #[default]
    Open,
    Wanted,
    Sent,
}

impl Outbox {
    /// Queues a chunk; it leaves at the next [`Outbox::flush`]. Empty ones are dropped.
    pub fn push(&mut self, chunk: Chunk) {
        if chunk.is_empty() {
            return;
        }
        self.bytes += u32::try_from(chunk.len()).expect("a chunk is shorter than 4 GiB");
        if chunk.len() <= GATHERED_CHUNK
            && let Some(last) = self.queue.back_mut().filter(|last| last.len() <= GATHERED_CHUNK || !last.holds_slot())
        {
            last.leave_slot();
            if last.try_append(chunk.as_slice(), GATHERED) {
                return;
            }
        }
        self.queue.push_back(chunk);
    }

    /// Wants the end sent behind what is queued.
    pub fn finish(&mut self) {
        if self.end == End::Open {
            self.end = End::Wanted;
        }
    }

    /// Bytes that wait, those of the outstanding send included.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Whether everything, the end too, has been given to the kernel.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.end == End::Sent
    }

    /// Sends what can be sent. Call once per turn, and when a send has ended.
    pub fn flush(&mut self, core: &mut Core, socket: Key) {
        if self.outstanding && !mutants::on(Mutant::SecondSendInFlight) {
            self.let_go_of_slots(core);
            return;
        }
        if self.end == End::Wanted && (self.bytes == 0 || mutants::on(Mutant::FinBeforeBytes)) {
            self.end = End::Sent;
            core.shutdown(socket);
        }
        if let Some(chunk) = self.queue.pop_front() {
            self.outstanding = true;
            // A slot may wait inside the kernel only where most of it is filled and there are plenty.
            let wait = !chunk.holds_slot() || (chunk.len() > SLOT_BYTES / 2 && !core.slots_are_low());
            core.send(socket, chunk, wait);
        }
        self.let_go_of_slots(core);
    }

    /// Takes the end of a send in; the count of bytes that left. Flush afterwards.
    ///
    /// # Errors
    /// The socket's failure: nothing more can be sent on it.
    pub fn on_sent(&mut self, mut chunk: Chunk, result: Result<u32, Errno>) -> Result<usize, Errno> {
        self.outstanding = false;
        let count = match result {
            Ok(count) => count,
            Err(Errno(libc::EAGAIN | libc::EINTR)) => 0,
            Err(error) => return Err(error),
        };
        chunk.advance(count as usize);
        self.bytes -= count;
        self.has_moved |= count > 0;
        if !chunk.is_empty() {
            chunk.leave_slot();
            self.queue.push_front(chunk);
        }
        Ok(count as usize)
    }

    /// To be called every few seconds: what waits and has not moved since the last time holds no slot from now on.
    pub fn look(&mut self) {
        if !std::mem::take(&mut self.has_moved) {
            for chunk in self.queue.iter_mut() {
                chunk.leave_slot();
            }
            self.queue.shrink();
        }
    }

    /// Copies out what waits behind the outstanding send and should not hold a slot meanwhile.
    pub fn let_go_of_slots(&mut self, core: &Core) {
        let low = core.slots_are_low();
        for chunk in self.queue.iter_mut() {
            chunk.let_go_of_slot(low);
        }
    }
}
