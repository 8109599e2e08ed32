//! A slab whose keys carry a generation, so that a key of something that is gone finds nothing, even when its place is taken again.
//!
//! What always holds between calls: a place's generation is that of the value in it, or of the next one to come; it only grows
//! (24 bits: a wrong match needs 16 million re-uses of one place while a single key waits).

use slab::Slab;

use crate::mutants::{self, Mutant};

/// Names a value in a [`GenSlab`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The place.
    pub index: u32,
    /// The place's generation when the value came.
    pub generation: u32,
}

impl Key {
    /// As one number, for tables that hold opaque tags.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | self.index as u64
    }

    /// The reverse of [`Key::to_bits`].
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: (bits & 0xffff_ffff) as u32, generation: (bits >> 32) as u32 }
    }
}

/// See the module. Each value has a box: a table of a thousand tunnels that doubles would keep the room of two thousand, and leave that of
/// its smaller selves behind in the allocator.
#[derive(Debug)]
pub struct GenSlab<T> {
    values: Slab<Box<T>>,
    generations: Vec<u32>,
}

impl<T> Default for GenSlab<T> {
    fn default() -> Self {
        Self { values: Slab::new(), generations: Vec::new() }
    }
}

impl<T> GenSlab<T> {
    /// Puts a value in, given its own key.
    pub fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let place = self.values.vacant_entry();
        let index = place.key();
        if index == self.generations.len() {
            self.generations.push(0);
        }
        let key = Key { index: u32::try_from(index).expect("fewer than 2^32 values"), generation: self.generations[index] };
        place.insert(Box::new(make(key)));
        key
    }

    /// Puts a value in.
    pub fn insert(&mut self, value: T) -> Key {
        self.insert_with(|_| value)
    }

    /// The value, unless it is gone.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        if !self.is_current(key) {
            return None;
        }
        self.values.get(key.index as usize).map(Box::as_ref)
    }

    /// The value, unless it is gone.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        if !self.is_current(key) {
            return None;
        }
        self.values.get_mut(key.index as usize).map(Box::as_mut)
    }

    /// Takes the value out, unless it is gone already.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        if !self.is_current(key) {
            return None;
        }
        let value = self.values.try_remove(key.index as usize)?;
        let generation = &mut self.generations[key.index as usize];
        *generation = (*generation + 1) & 0x00ff_ffff;
        Some(*value)
    }

    fn is_current(&self, key: Key) -> bool {
        mutants::on(Mutant::NoGenerationCheck) || self.generations.get(key.index as usize) == Some(&key.generation)
    }

    /// How many values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All values with their keys, by place.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.values.iter().map(|(index, value)| (self.key(index), &**value))
    }

    /// All values, to be changed, by place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.values.iter_mut().map(|(_, value)| &mut **value)
    }

    /// The keys of all values, by place.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.values.iter().map(|(index, _)| self.key(index)).collect()
    }

    fn key(&self, index: usize) -> Key {
        Key { index: u32::try_from(index).expect("fewer than 2^32 values"), generation: self.generations[index] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_value_that_is_gone_finds_nothing_in_the_place_taken_again() {
        let mut slab = GenSlab::default();
        let old = slab.insert("old");
        assert_eq!(slab.remove(old), Some("old"));
        let new = slab.insert("new");
        assert_eq!(old.index, new.index);
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&"new"));
        assert_eq!(Key::from_bits(new.to_bits()), new);
    }
}
