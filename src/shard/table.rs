//! A table that grows without moving: a page at a time. A vector that doubles copies all it has in the middle of a turn, and leaves the
//! memory of its smaller selves behind: with thousands of sockets, half of what each costs.

use std::iter::Flatten;
use std::ops::{Index, IndexMut};
use std::slice;

/// Rows in a page: a few kilobytes.
const PAGE: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Table<T> {
    /// All but the last are full; none is longer than [`PAGE`].
    pages: Vec<Vec<T>>,
}

/// All rows, in order.
pub(super) type Rows<'a, T> = Flatten<slice::Iter<'a, Vec<T>>>;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { pages: Vec::new() }
    }
}

impl<T> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    /// Adds a row at the end.
    pub(super) fn push(&mut self, row: T) {
        match self.pages.last_mut() {
            Some(last) if last.len() < PAGE => last.push(row),
            _ => {
                let mut page = Vec::with_capacity(PAGE);
                page.push(row);
                self.pages.push(page);
            }
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index / PAGE)?.get(index % PAGE)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.pages.get_mut(index / PAGE)?.get_mut(index % PAGE)
    }

    pub(super) fn iter(&self) -> Rows<'_, T> {
        self.pages.iter().flatten()
    }
}

impl<T> Index<usize> for Table<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.pages[index / PAGE][index % PAGE]
    }
}

impl<T> IndexMut<usize> for Table<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.pages[index / PAGE][index % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_number_and_their_place_while_it_grows() {
        let mut table = Table::default();
        table.push(0);
        let first = &raw const table[0];
        for row in 1..10 * PAGE + 1 {
            assert_eq!((table.len(), table.get(row)), (row, None));
            table.push(row);
            assert_eq!(table[row], row);
        }
        assert_eq!(&raw const table[0], first);
        assert!(table.iter().copied().eq(0..10 * PAGE + 1));
        table[PAGE] = 7;
        *table.get_mut(PAGE - 1).unwrap() = 8;
        assert_eq!((table.get(PAGE), table.get(PAGE - 1)), (Some(&7), Some(&8)));
    }
}
