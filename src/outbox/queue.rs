//! Chunks in order. Most sockets have nothing or one thing to send, and only where there is more is there a list on the heap. It stays while
//! it is used again and again, and goes when [`Queue::shrink`] finds it empty: neither load nor idleness pays for the other.

use std::collections::VecDeque;
use std::{mem, slice};

use crate::shard::buffers::Chunk;

/// See the module.
#[derive(Debug, Default)]
pub(super) enum Queue {
    #[default]
    Empty,
    One(Chunk),
    Many(VecDeque<Chunk>),
}

impl Queue {
    pub(super) fn push_back(&mut self, chunk: Chunk) {
        match self {
            Self::Empty => *self = Self::One(chunk),
            Self::One(_) | Self::Many(_) => self.list().push_back(chunk),
        }
    }

    pub(super) fn push_front(&mut self, chunk: Chunk) {
        match self {
            Self::Empty => *self = Self::One(chunk),
            Self::One(_) | Self::Many(_) => self.list().push_front(chunk),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Chunk> {
        if let Self::Many(chunks) = self {
            return chunks.pop_front();
        }
        match mem::take(self) {
            Self::One(chunk) => Some(chunk),
            Self::Empty | Self::Many(_) => None,
        }
    }

    /// Lets go of a list in which nothing is.
    pub(super) fn shrink(&mut self) {
        if matches!(self, Self::Many(chunks) if chunks.is_empty()) {
            *self = Self::Empty;
        }
    }

    pub(super) fn back_mut(&mut self) -> Option<&mut Chunk> {
        match self {
            Self::Empty => None,
            Self::One(chunk) => Some(chunk),
            Self::Many(chunks) => chunks.back_mut(),
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Chunk> {
        let (front, back): (&mut [_], &mut [_]) = match self {
            Self::Empty => (&mut [], &mut []),
            Self::One(chunk) => (slice::from_mut(chunk), &mut []),
            Self::Many(chunks) => chunks.as_mut_slices(),
        };
        front.iter_mut().chain(back)
    }

    /// The chunks as a list, which it is from now on.
    fn list(&mut self) -> &mut VecDeque<Chunk> {
        if !matches!(self, Self::Many(_)) {
            let mut chunks = VecDeque::with_capacity(2);
            chunks.extend(self.pop_front());
            *self = Self::Many(chunks);
        }
        let Self::Many(chunks) = self else { unreachable!("it has just been made one") };
        chunks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Move {
        PushBack(u8),
        PushFront(u8),
        PopFront,
        Shrink,
    }

    proptest! {
        #[test]
        fn it_is_a_queue(moves in proptest::collection::vec(
            prop_oneof![any::<u8>().prop_map(Move::PushBack), any::<u8>().prop_map(Move::PushFront), Just(Move::PopFront), Just(Move::Shrink)],
            0..64,
        )) {
            let mut queue = Queue::default();
            let mut model = VecDeque::new();
            for next in moves {
                match next {
                    Move::PushBack(byte) => {
                        queue.push_back(Chunk::copy_of(&[byte]));
                        model.push_back(byte);
                    }
                    Move::PushFront(byte) => {
                        queue.push_front(Chunk::copy_of(&[byte]));
                        model.push_front(byte);
                    }
                    Move::PopFront => {
                        prop_assert_eq!(queue.pop_front().map(|chunk| chunk.as_slice()[0]), model.pop_front());
                    }
                    Move::Shrink => {
                        queue.shrink();
                        prop_assert_eq!(matches!(queue, Queue::Empty), model.is_empty());
                    }
                }
                prop_assert_eq!(queue.back_mut().map(|chunk| chunk.as_slice()[0]), model.back().copied());
                prop_assert!(queue.iter_mut().map(|chunk| chunk.as_slice()[0]).eq(model.iter().copied()));
            }
        }
    }
}
