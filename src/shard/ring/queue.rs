//! The two queues shared with the kernel, and the one system call that moves both on. Entries that find the submission queue full
//! wait in a backlog, in order, so a push never fails.
//!
//! What always holds between calls: an entry that was pushed reaches the kernel exactly once and in the order of the pushes; no
//! completion is lost, because the kernel keeps those that find the completion queue full (NODROP) and each entering fetches them.
#![expect(unsafe_code, reason = "hands addresses to the kernel")]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, squeue};

/// Both queues.
pub(super) struct Queue {
    uring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    overflows: u64,
}

impl Queue {
    pub(super) fn new(uring: IoUring) -> Self {
        Self { uring, backlog: VecDeque::new(), overflows: 0 }
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// The memory that the entry names must stay valid until its completion has been taken with [`Self::next`], and until then
    /// nobody may write to it, nor read what the kernel is to write.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            if self.uring.submission().is_full() {
                self.flush();
            }
            // SAFETY: the caller vouches for the memory.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Hands over all that was pushed and runs what the kernel has deferred; sleeps at most `wait` while there is no completion.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        while !self.backlog.is_empty() {
            self.refill();
            if self.backlog.is_empty() {
                break;
            }
            self.flush();
            if self.uring.submission().is_full() {
                // The kernel takes nothing at the moment. What there is of completions may be why.
                return self.call(0, None);
            }
        }
        match wait {
            Some(Duration::ZERO) => self.call(0, None),
            Some(_) | None => self.call(1, wait),
        }
    }

    /// As [`Self::enter`], sleeping until there are `count` completions, at most `wait`.
    pub(super) fn enter_for_all(&mut self, count: usize, wait: Duration) -> io::Result<()> {
        self.enter(Some(Duration::ZERO))?;
        self.call(u32::try_from(count).unwrap_or(u32::MAX), Some(wait))
    }

    /// The next completion.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }

    /// Whether [`Self::next`] has something.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// How often the completion queue was found overflowing.
    pub(super) const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Makes room by submitting without collecting. A failure leaves the queue full, which the next entering reports or overcomes.
    fn flush(&mut self) {
        let _ = self.uring.submit();
    }

    fn refill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed the entry vouched for its memory until its completion.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn call(&mut self, least: u32, wait: Option<Duration>) -> io::Result<()> {
        let queued = self.uring.submission().len();
        let timeout = wait.map(Timespec::from);
        let mut arguments = SubmitArgs::new();
        if let Some(timeout) = &timeout {
            arguments = arguments.timespec(timeout);
        }
        // GETEVENTS always: with DEFER_TASKRUN only an entering with this flag does the deferred work, also one that does not sleep.
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        let submit = u32::try_from(queued).unwrap_or(u32::MAX);
        let submitter = self.uring.submitter();
        // SAFETY: `arguments` is what EXT_ARG announces and outlives the call, and so does the time it points to; each entry was
        // vouched for when it was pushed.
        let result = unsafe { submitter.enter(submit, least, flags.bits(), Some(&arguments)) };
        if self.uring.submission().cq_overflow() {
            self.overflows += 1;
        }
        match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => Ok(()),
            // Slept to the end, or a signal; or the kernel is short of memory or of room for completions: what was not taken stays
            // queued, and the next entering takes it.
            Err((Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("backlog", &self.backlog.len()).field("overflows", &self.overflows).finish_non_exhaustive()
    }
}
