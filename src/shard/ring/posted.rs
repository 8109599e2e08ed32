//! The buffer ring: slots that the kernel may fill when bytes arrive. Few are posted at a time, taken from the arena's stack, so that
//! the memory in use stays small and warm; which slot an entry stands for is kept here, never in the kernel's hands.
//!
//! The kernel takes the oldest first, so each receive goes to memory that was last touched as many receives ago as slots are posted. While
//! receives fill their slots only a few are posted; small messages touch little of theirs, and get all.
//!
//! What always holds between calls: each entry number is either free, or names one slot that is lent to the kernel.
#![expect(unsafe_code, reason = "owns the page of entries that the kernel reads")]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::limits::{RECORD_BYTES_MAX, WARM_BYTES};
use crate::shard::buffers::{Arena, Slot};
use crate::shard::pages::Pages;

/// The one buffer group there is.
pub(super) const GROUP: u16 = 0;

/// [`RECORD_BYTES_MAX`] as the kernel takes it.
#[expect(clippy::cast_possible_truncation, reason = "less than 64 KiB")]
pub(super) const DATA: u32 = RECORD_BYTES_MAX as u32;

/// Of how many receives [`Posted::typical`] is the average, about.
const RECENT: usize = 8;

/// The slots lent to the kernel.
pub(super) struct Posted {
    entries: Option<Pages>,
    /// Slot by entry number.
    slots: Box<[u32]>,
    /// Entry numbers not in use.
    free: Vec<u16>,
    tail: u16,
    /// Bytes that a receive has brought lately.
    typical: usize,
    arena: Arena,
}

impl Posted {
    /// Registers a ring of `count` entries (a power of two), none posted yet.
    pub(super) fn register(uring: &IoUring, count: u16, arena: Arena) -> io::Result<Self> {
        let page = Pages::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let address = page.base().as_ptr() as u64;
        // SAFETY: the page is zeroed, page aligned, large enough for `count` entries, and outlives the registration: it is unmapped
        // only when the ring is closed, or never (see `forget_memory`).
        unsafe { uring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0) }?;
        let slots = vec![0; usize::from(count)].into_boxed_slice();
        Ok(Self { entries: Some(page), slots, free: (0..count).rev().collect(), tail: 0, typical: 0, arena })
    }

    /// How many slots the kernel has.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many are to be posted: those that recent receives would have filled with [`WARM_BYTES`].
    fn wanted(&self) -> usize {
        (WARM_BYTES / self.typical.max(1)).min(self.slots.len())
    }

    /// Posts slots while there are free ones and room.
    pub(super) fn top_up(&mut self) {
        let wanted = self.wanted();
        let Some(page) = &self.entries else { return };
        let before = self.tail;
        while self.slots.len() - self.free.len() < wanted
            && let Some(&number) = self.free.last()
        {
            let Some(slot) = self.arena.take() else { break };
            self.free.pop();
            let (index, data) = slot.lend();
            self.slots[usize::from(number)] = index;
            let place = usize::from(self.tail) & (self.slots.len() - 1);
            // SAFETY: `place` is below the number of entries, so the entry lies in the page.
            let entry = unsafe { page.base().cast::<BufRingEntry>().add(place).as_ptr() };
            // SAFETY: the entry is behind the tail that the kernel knows, so the kernel does not look at it now; zeroed or written
            // before, it is valid, and nothing else refers to it.
            let entry = unsafe { &mut *entry };
            entry.set_addr(data as u64);
            entry.set_len(DATA);
            entry.set_bid(number);
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            publish(page, self.tail);
        }
    }

    /// The slot that the kernel took for a receive of so many bytes.
    pub(super) fn taken(&mut self, number: u16, bytes: usize) -> Slot {
        self.free.push(number);
        self.typical = (self.typical * (RECENT - 1) + bytes) / RECENT;
        self.arena.reclaim(self.slots[usize::from(number)])
    }

    /// Never unmaps what the kernel may still read or write: called when operations could not be got back.
    pub(super) fn forget_memory(&mut self) {
        std::mem::forget(self.entries.take());
        std::mem::forget(self.arena.clone());
    }
}

impl Drop for Posted {
    /// The ring is closed by now and no receive is outstanding, so no posted slot will be written to.
    fn drop(&mut self) {
        if self.entries.is_none() {
            return;
        }
        for (number, &slot) in self.slots.iter().enumerate() {
            if !self.free.iter().any(|&free| usize::from(free) == number) {
                drop(self.arena.reclaim(slot));
            }
        }
    }
}

impl fmt::Debug for Posted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Posted({} of {})", self.count(), self.slots.len())
    }
}

/// Lets the kernel see the entries before `tail`.
fn publish(page: &Pages, tail: u16) {
    // SAFETY: the page starts with an entry, whose spare field is the ring's tail.
    let address = unsafe { BufRingEntry::tail(page.base().as_ptr().cast()) };
    // SAFETY: the field is aligned, inside the page, and from now on accessed by us only through this atomic and by the kernel.
    let shared = unsafe { AtomicU16::from_ptr(address.cast_mut()) };
    // Release: the entries are written before the kernel sees the tail.
    shared.store(tail, Ordering::Release);
}
