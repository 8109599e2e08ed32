//! The arena: one mapping per shard, cut into slots that the kernel fills, AES works in and sends leave from; and [`Chunk`], a view
//! of bytes in a slot or, where a slot must not be held, on the heap.
//!
//! ```text
//!   slot, 64 KiB   | headroom 128 | data 65,392                           | tail 16 |
//!   received       |              |xxxxxxxxxxxxxxxx|
//!   to the tunnel  |        header|xxxxxxxxxxxxxxxx|tag    written in front and behind, nothing moves
//!   a whole record |              |xxxxxxxxxxxxx|yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy|   the rest is received behind the part
//! ```
//!
//! What always holds between calls:
//! * a slot is in exactly one place: the free stack, lent to the kernel, or under one or more [`Slot`] handles;
//! * handles are counted; bytes can be changed only through the one handle there is;
//! * the free stack is last in, first out, so the slots in use stay few and warm in the cache;
//! * nothing here crosses threads.
#![expect(unsafe_code, reason = "owns the mapping and hands out parts of it")]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use super::pages::Pages;
use crate::limits::{RECORD_BYTES_MAX, SLOT_BYTES, SLOT_HEADROOM};

/// Headroom of a heap chunk that is to get a frame header.
const HEAP_HEADROOM: usize = 32;

/// A shard's slots. Cloning gives another handle on the same arena.
#[derive(Clone)]
pub struct Arena(Rc<Mapping>);

struct Mapping {
    pages: Pages,
    handles: Box<[Cell<u32>]>,
    free: RefCell<Vec<u32>>,
}

impl Arena {
    /// Maps `bytes` (rounded down to whole slots) of zeroed memory and touches all of it: taken once, at start, so that memory in use does
    /// not creep up with the number of slots that ever were in use, and no receive meets a page fault.
    ///
    /// # Errors
    /// What `mmap` says, or `InvalidInput` for less than one slot.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let slots = u32::try_from(bytes / SLOT_BYTES).map_err(|_| io::ErrorKind::InvalidInput)?;
        if slots == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = slots as usize * SLOT_BYTES;
        let pages = Pages::new(length)?;
        let handles = (0..slots).map(|_| Cell::new(0)).collect();
        let free = RefCell::new((0..slots).rev().collect());
        Ok(Self(Rc::new(Mapping { pages, handles, free })))
    }

    /// Takes a free slot, the one used last.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        let index = self.0.free.borrow_mut().pop()?;
        self.0.handles[index as usize].set(1);
        Some(Slot { mapping: Rc::clone(&self.0), index })
    }

    /// Slots in all.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.0.handles.len()
    }

    /// Slots on the free stack.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.free.borrow().len()
    }

    /// Where the mapping starts, for registering it.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.0.pages.base().as_ptr()
    }

    /// Takes back a slot lent with [`Slot::lend`]: the kernel has filled it, or will not touch it any more.
    ///
    /// # Panics
    /// When `index` is not lent out: a fault of the engine's that would end in two owners of one slot.
    #[must_use]
    pub fn reclaim(&self, index: u32) -> Slot {
        let handles = &self.0.handles[index as usize];
        assert_eq!(handles.get(), LENT, "slot {index} is reclaimed but was not lent");
        handles.set(1);
        Slot { mapping: Rc::clone(&self.0), index }
    }
}

/// The count of a slot that the kernel has.
const LENT: u32 = u32::MAX;

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("slots", &self.slots()).field("free", &self.free()).finish()
    }
}

/// A counted handle on one slot. The last one that goes gives the slot back.
pub struct Slot {
    mapping: Rc<Mapping>,
    index: u32,
}

impl Slot {
    /// Gives the slot to the kernel: its number and the address of its data part. It comes back through [`Arena::reclaim`].
    ///
    /// # Panics
    /// When another handle exists.
    #[must_use]
    pub fn lend(self) -> (u32, *mut u8) {
        let count = &self.mapping.handles[self.index as usize];
        assert_eq!(count.get(), 1, "slot {} is lent to the kernel while shared", self.index);
        count.set(LENT);
        let index = self.index;
        let data = self.start().as_ptr().wrapping_add(SLOT_HEADROOM);
        // The handle must not give the slot back, but its hold on the mapping has to be released.
        let me = std::mem::ManuallyDrop::new(self);
        // SAFETY: `me` is never used or dropped again, so the `Rc` is read out exactly once.
        drop(unsafe { std::ptr::read(&raw const me.mapping) });
        (index, data)
    }

    /// The data part and the tail, to be filled. `None` while shared.
    #[must_use]
    pub fn data_mut(&mut self) -> Option<&mut [u8]> {
        let whole = self.whole_mut()?;
        Some(&mut whole[SLOT_HEADROOM..SLOT_HEADROOM + RECORD_BYTES_MAX])
    }

    /// The first `length` bytes of the data part as a chunk.
    ///
    /// # Panics
    /// When `length` is above [`RECORD_BYTES_MAX`].
    #[must_use]
    pub fn received(self, length: usize) -> Chunk {
        assert!(length <= RECORD_BYTES_MAX, "a slot holds {RECORD_BYTES_MAX} bytes, not {length}");
        Chunk { bytes: Bytes::Slot(self), start: SLOT_HEADROOM, end: SLOT_HEADROOM + length }
    }

    fn is_shared(&self) -> bool {
        self.mapping.handles[self.index as usize].get() != 1
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: `index` is below the number of slots, so the offset stays inside the mapping.
        unsafe { self.mapping.pages.base().add(self.index as usize * SLOT_BYTES) }
    }

    fn whole(&self) -> &[u8] {
        // SAFETY: the range is inside the live mapping; it is initialised (zeroed by mmap); while a handle exists the kernel does not
        // write to it, and writes by us need the only handle, mutably.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), SLOT_BYTES) }
    }

    fn whole_mut(&mut self) -> Option<&mut [u8]> {
        if self.is_shared() {
            return None;
        }
        // SAFETY: as in `whole`, and this is the only handle, borrowed mutably, so there is no other view of the slot.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), SLOT_BYTES) })
    }
}

impl Clone for Slot {
    fn clone(&self) -> Self {
        let count = &self.mapping.handles[self.index as usize];
        count.set(count.get() + 1);
        Self { mapping: Rc::clone(&self.mapping), index: self.index }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let count = &self.mapping.handles[self.index as usize];
        #[cfg(feature = "mutants")]
        if count.get() == 0 && crate::mutants::on(crate::mutants::Mutant::SlotFreedAtSubmit) {
            return;
        }
        count.set(count.get() - 1);
        if count.get() == 0 {
            self.mapping.free.borrow_mut().push(self.index);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.index)
    }
}

/// A run of bytes: part of a slot, or on the heap. Never prints its content.
pub struct Chunk {
    bytes: Bytes,
    start: usize,
    end: usize,
}

enum Bytes {
    Slot(Slot),
    Heap(Vec<u8>),
}

impl Chunk {
    /// A heap chunk of just these bytes, with room in front for a header.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut heap = Vec::with_capacity(HEAP_HEADROOM + bytes.len());
        heap.resize(HEAP_HEADROOM, 0);
        heap.extend_from_slice(bytes);
        Self { start: HEAP_HEADROOM, end: heap.len(), bytes: Bytes::Heap(heap) }
    }

    /// An empty heap chunk with room in front for headers and for `capacity` bytes behind.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Bytes::Heap(vec![0; HEAP_HEADROOM + capacity]), start: HEAP_HEADROOM, end: HEAP_HEADROOM }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether it keeps a slot from being used.
    #[must_use]
    pub fn holds_slot(&self) -> bool {
        matches!(self.bytes, Bytes::Slot(_))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        let whole = match &self.bytes {
            Bytes::Slot(slot) => slot.whole(),
            Bytes::Heap(heap) => heap,
        };
        &whole[self.start..self.end]
    }

    /// The bytes, to be changed in place. `None` while the slot is shared.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        let whole = match &mut self.bytes {
            Bytes::Slot(slot) => slot.whole_mut()?,
            Bytes::Heap(heap) => heap,
        };
        Some(&mut whole[self.start..self.end])
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "cannot drop {count} of {} bytes", self.len());
        self.start += count;
    }

    /// A view of `from..to` of this chunk: of the same slot, or a copy where the bytes are on the heap.
    ///
    /// # Panics
    /// When the range is not inside.
    #[must_use]
    pub fn part(&self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.len(), "no part {from}..{to} in {} bytes", self.len());
        match &self.bytes {
            Bytes::Slot(slot) => Self { bytes: Bytes::Slot(slot.clone()), start: self.start + from, end: self.start + to },
            Bytes::Heap(_) => Self::copy_of(&self.as_slice()[from..to]),
        }
    }

    /// Puts `header` in front, in place.
    ///
    /// # Panics
    /// When the chunk is shared or has no room in front: both are faults of the caller.
    pub fn prepend(&mut self, header: &[u8]) {
        assert!(header.len() <= self.start, "no room for a header of {} bytes", header.len());
        self.start -= header.len();
        let bytes = self.as_mut_slice().expect("a header goes in front of a chunk that nobody shares");
        bytes[..header.len()].copy_from_slice(header);
    }

    /// How many bytes can be put behind its end without moving any: up to the end of the slot or of the heap buffer. None while shared.
    #[must_use]
    pub fn room(&self) -> usize {
        match &self.bytes {
            Bytes::Slot(slot) if slot.is_shared() => 0,
            Bytes::Slot(_) => SLOT_BYTES - self.end,
            Bytes::Heap(heap) => heap.len() - self.end,
        }
    }

    /// The room behind its end, to be filled and then counted in with [`Self::lengthen`].
    #[must_use]
    pub fn room_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Slot(slot) => slot.whole_mut().map_or(&mut [], |whole| &mut whole[self.end..]),
            Bytes::Heap(heap) => &mut heap[self.end..],
        }
    }

    /// Counts in `count` bytes that were written to [`Self::room_mut`].
    ///
    /// # Panics
    /// When there is no such room.
    pub fn lengthen(&mut self, count: usize) {
        let room = self.room();
        assert!(count <= room, "no room for {count} bytes behind a chunk, but for {room}");
        self.end += count;
    }

    /// Puts `bytes` behind its end, in place.
    ///
    /// # Panics
    /// When the chunk is shared or has no room behind: both are faults of the caller.
    pub fn append(&mut self, bytes: &[u8]) {
        let room = self.room_mut();
        assert!(bytes.len() <= room.len(), "no room for {} bytes behind a chunk, but for {}", bytes.len(), room.len());
        room[..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Copies the bytes out of a slot, so that it holds none.
    pub fn leave_slot(&mut self) {
        if self.holds_slot() {
            *self = Self::copy_of(self.as_slice());
        }
    }

    /// As [`Self::leave_slot`], if it should not hold one while it waits: slots are low, or it fills no more than half of it.
    pub fn let_go_of_slot(&mut self, low: bool) {
        if low || self.len() <= SLOT_BYTES / 2 {
            self.leave_slot();
        }
    }

    /// The fault of [`crate::mutants::Mutant::SlotFreedAtSubmit`]: the slot can be taken again while this handle is in use.
    #[cfg(feature = "mutants")]
    pub(super) fn give_back_early(&self) {
        if let Bytes::Slot(slot) = &self.bytes {
            slot.mapping.free.borrow_mut().push(slot.index);
        }
    }

    /// Appends to a heap chunk that stays within `limit` bytes; says whether it did.
    #[must_use]
    pub fn try_append(&mut self, bytes: &[u8], limit: usize) -> bool {
        let length = self.len();
        match &mut self.bytes {
            Bytes::Heap(heap) if length + bytes.len() <= limit => {
                let end = self.end + bytes.len();
                if let Some(room) = heap.get_mut(self.end..end) {
                    room.copy_from_slice(bytes);
                } else {
                    heap.truncate(self.end);
                    heap.extend_from_slice(bytes);
                }
                self.end = end;
                true
            }
            Bytes::Heap(_) | Bytes::Slot(_) => false,
        }
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self { bytes: Bytes::Heap(Vec::new()), start: 0, end: 0 }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.holds_slot() { "slot" } else { "heap" };
        write!(f, "Chunk({} bytes, {place})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_handle_gives_the_slot_back_and_it_is_the_next_one_taken() {
        let arena = Arena::new(4 * SLOT_BYTES).unwrap();
        let slot = arena.take().unwrap();
        let number = format!("{slot:?}");
        let chunk = slot.received(10);
        let part = chunk.part(2, 5);
        assert_eq!(arena.free(), 3);
        drop(chunk);
        assert_eq!(arena.free(), 3);
        drop(part);
        assert_eq!(arena.free(), 4);
        assert_eq!(format!("{:?}", arena.take().unwrap()), number);
    }

    #[test]
    fn bytes_are_changed_only_through_the_only_handle() {
        let arena = Arena::new(SLOT_BYTES).unwrap();
        let mut chunk = arena.take().unwrap().received(4);
        chunk.as_mut_slice().unwrap().copy_from_slice(b"data");
        let other = chunk.part(0, 2);
        assert!(chunk.as_mut_slice().is_none());
        assert_eq!(other.as_slice(), b"da");
        drop(other);
        chunk.prepend(b"head");
        assert_eq!(chunk.as_slice(), b"headdata");
    }

    #[test]
    fn a_lent_slot_is_neither_free_nor_held_until_reclaimed() {
        let arena = Arena::new(SLOT_BYTES).unwrap();
        let (index, _) = arena.take().unwrap().lend();
        assert!(arena.take().is_none());
        drop(arena.reclaim(index));
        assert_eq!(arena.free(), 1);
    }

    #[test]
    #[should_panic(expected = "was not lent")]
    fn reclaiming_twice_is_noticed() {
        let arena = Arena::new(SLOT_BYTES).unwrap();
        let (index, _) = arena.take().unwrap().lend();
        let _one = arena.reclaim(index);
        let _two = arena.reclaim(index);
    }

    #[test]
    fn heap_chunks_take_headers_and_grow() {
        let mut chunk = Chunk::copy_of(b"abc");
        assert!(chunk.try_append(b"def", 6));
        assert!(!chunk.try_append(b"g", 6));
        chunk.advance(1);
        chunk.prepend(b"X");
        assert_eq!(chunk.as_slice(), b"Xbcdef");
        assert!(!chunk.holds_slot());
    }

    #[test]
    fn bytes_go_behind_a_chunk_up_to_the_end_of_its_slot() {
        let arena = Arena::new(SLOT_BYTES).unwrap();
        let mut chunk = arena.take().unwrap().received(RECORD_BYTES_MAX - 4);
        assert_eq!(chunk.room(), 4);
        chunk.append(b"ta");
        chunk.room_mut().copy_from_slice(b"gs");
        chunk.lengthen(2);
        assert_eq!((chunk.room(), chunk.len()), (0, RECORD_BYTES_MAX));
        assert!(chunk.as_slice().ends_with(b"tags"));
    }

    #[test]
    fn a_shared_chunk_has_no_room() {
        let arena = Arena::new(SLOT_BYTES).unwrap();
        let mut chunk = arena.take().unwrap().received(4);
        let other = chunk.part(0, 2);
        assert_eq!((chunk.room(), other.room()), (0, 0));
        assert!(chunk.room_mut().is_empty());
        drop(other);
        assert_eq!(chunk.room(), RECORD_BYTES_MAX - 4);
    }

    #[test]
    #[should_panic(expected = "no room for 1 bytes behind a chunk")]
    fn appending_to_a_shared_chunk_is_noticed() {
        let arena = Arena::new(SLOT_BYTES).unwrap();
        let mut chunk = arena.take().unwrap().received(4);
        let _other = chunk.part(0, 2);
        chunk.append(b"x");
    }

    #[test]
    fn a_heap_chunk_with_room_takes_a_header_frames_and_a_tag_where_it_is() {
        let mut chunk = Chunk::with_capacity(10);
        assert!(chunk.is_empty());
        assert!(chunk.try_append(b"frame", 8));
        assert!(!chunk.try_append(b"more", 8));
        assert_eq!(chunk.room(), 5);
        chunk.append(b"tag");
        chunk.prepend(b"length");
        assert_eq!(chunk.as_slice(), b"lengthframetag");
        assert_eq!(chunk.room(), 2);
    }
}
