//! Allocations of the own thread, of parts of what it does.

use std::cell::Cell;

/// Adds up allocations, growing and shrinking included.
#[derive(Default)]
pub(crate) struct Meter {
    total: Cell<u64>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Counts what `work` allocates.
    pub(crate) fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut result = None;
        let counts = allocation_counter::measure(|| result = Some(work()));
        self.total.set(self.total.get() + counts.count_total);
        result.expect("the work was done")
    }

    /// Leaves what `work` allocates out of what is being counted.
    pub(crate) fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut result = None;
        allocation_counter::opt_out(|| result = Some(work()));
        result.expect("the work was done")
    }

    /// The sum, and begins a new one.
    pub(crate) fn take(&self) -> u64 {
        self.total.take()
    }
}
