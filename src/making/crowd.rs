//! Connections that could still be anybody, of one kind: their number is bounded, and above it one of those there goes and not the new one,
//! so that no number of silent connections keeps a genuine one out.
//!
//! What always holds between calls: every connection that has entered and not left is in `order`; keys of others there are passed over.

use std::collections::VecDeque;

use rand::{Rng, RngExt};

use crate::limits;
use crate::shard::slab::Key;

/// See the module.
#[derive(Debug, Default)]
pub struct Crowd {
    /// In the order they came, as long as none was picked by chance.
    order: VecDeque<Key>,
    count: usize,
}

impl Crowd {
    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// One more. If that is too many, who has to go: the caller removes it, and [`Crowd::leave`] is called for it as for any other.
    ///
    /// `is_there`: whether a key still names one of these. `by_chance`: any of the others, so that nobody can time his connections to push a
    /// certain one out; otherwise the oldest.
    pub fn enter(&mut self, key: Key, is_there: impl Fn(Key) -> bool, by_chance: Option<&mut impl Rng>) -> Option<Key> {
        self.count += 1;
        while self.order.front().is_some_and(|&oldest| !is_there(oldest)) {
            self.order.pop_front();
        }
        let who = if self.count > limits::UNAUTHENTICATED_MAX { self.pick(is_there, by_chance) } else { None };
        self.order.push_back(key);
        who
    }

    /// One fewer: it is gone, or has become something else.
    pub const fn leave(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    fn pick(&mut self, is_there: impl Fn(Key) -> bool, by_chance: Option<&mut impl Rng>) -> Option<Key> {
        let Some(rng) = by_chance else { return self.order.pop_front() };
        while !self.order.is_empty() {
            let at = rng.random_range(0..self.order.len());
            let picked = self.order.swap_remove_back(at)?;
            if is_there(picked) {
                return Some(picked);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const MAX: u32 = 1024;
    const _: () = assert!(limits::UNAUTHENTICATED_MAX == MAX as usize);

    const fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    #[test]
    fn above_the_bound_the_oldest_goes_and_those_that_are_gone_are_passed_over() {
        let mut crowd = Crowd::default();
        for index in 0..MAX {
            assert_eq!(crowd.enter(key(index), |_| true, None::<&mut StdRng>), None);
        }
        crowd.leave();
        let is_there = |key: Key| key.index != 0;
        assert_eq!(crowd.enter(key(MAX), is_there, None::<&mut StdRng>), None);
        assert_eq!(crowd.enter(key(MAX + 1), is_there, None::<&mut StdRng>), Some(key(1)));
    }

    #[test]
    fn by_chance_any_goes_but_the_new_one_and_each_only_once() {
        let mut crowd = Crowd::default();
        let mut rng = StdRng::seed_from_u64(1);
        let mut gone = std::collections::BTreeSet::new();
        for index in 0..2 * MAX {
            let went = crowd.enter(key(index), |key| !gone.contains(&key.index), Some(&mut rng));
            assert_eq!(went.is_some(), index >= MAX, "at {index}");
            if let Some(went) = went {
                assert!(went.index < index && gone.insert(went.index));
                crowd.leave();
            }
        }
        assert_eq!(crowd.count(), limits::UNAUTHENTICATED_MAX);
        // The oldest half is not what went.
        assert!(gone.iter().any(|index| *index >= MAX) && (0..MAX).any(|index| !gone.contains(&index)));
    }
}
