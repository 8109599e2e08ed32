//! Connections that could still be anybody, of one kind: their number is bounded, and above it a random older one goes and not the new one, so
//! that no number of silent connections keeps a genuine one out. Were it the oldest, a steady stream of them would, as soon as a login takes
//! longer than it takes them to come.
//!
//! What always holds between calls: every connection that has entered and not left is among `members`, of which there are at most twice as many.

use rand::{Rng, RngExt};

use crate::limits;
use crate::shard::slab::Key;

/// See the module.
#[derive(Debug, Default)]
pub struct Crowd {
    /// Keys of those that have left are passed over.
    members: Vec<Key>,
    count: usize,
}

impl Crowd {
    /// One more. If that is too many, who has to go: the caller removes it, and calls [`Crowd::leave`] for it as for any other.
    /// `is_there`: whether a key still names one of these.
    pub fn enter(&mut self, key: Key, is_there: impl Fn(Key) -> bool, rng: &mut impl Rng) -> Option<Key> {
        self.count += 1;
        if self.members.len() >= 2 * limits::UNAUTHENTICATED_MAX {
            self.members.retain(|&member| is_there(member));
        }
        let mut goes = None;
        while self.count > limits::UNAUTHENTICATED_MAX && goes.is_none() && !self.members.is_empty() {
            let chosen = self.members.swap_remove(rng.random_range(0..self.members.len()));
            goes = is_there(chosen).then_some(chosen);
        }
        self.members.push(key);
        goes
    }

    /// One fewer: it is gone, or has become something else.
    pub const fn leave(&mut self) {
        self.count = self.count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MAX: u32 = 1024;
    const _: () = assert!(limits::UNAUTHENTICATED_MAX == MAX as usize);

    #[test]
    fn above_the_bound_any_but_the_new_one_goes_and_each_only_once() {
        let mut crowd = Crowd::default();
        let mut rng = StdRng::seed_from_u64(1);
        let mut gone = BTreeSet::new();
        for index in 0..2 * MAX {
            let goes = crowd.enter(Key { index, generation: 0 }, |key| !gone.contains(&key.index), &mut rng);
            assert_eq!(goes.is_some(), index >= MAX, "at {index}");
            if let Some(goes) = goes {
                assert!(goes.index < index && gone.insert(goes.index), "at {index}");
                crowd.leave();
            }
        }
        assert!(gone.iter().any(|index| *index >= MAX), "not only the oldest");
    }

    #[test]
    fn those_that_have_left_take_no_place_and_are_forgotten() {
        let mut crowd = Crowd::default();
        let mut rng = StdRng::seed_from_u64(1);
        for index in 0..10 * MAX {
            let newest = |key: Key| key.index + 1 >= index;
            assert_eq!(crowd.enter(Key { index, generation: 0 }, newest, &mut rng), None);
            crowd.leave();
        }
        assert!(crowd.members.len() <= 2 * limits::UNAUTHENTICATED_MAX, "{}", crowd.members.len());
    }
}
