//! CPU time of the own thread, of parts of what it does.
//!
//! What always holds: a [`Meter`] counts only between `start` and `stop`, and takes the cost of reading the clock off again.
#![allow(dead_code, reason = "no bench uses all of it")]
#![expect(unsafe_code, reason = "std has no clock of a thread's CPU time")]

use std::cell::Cell;
use std::time::Duration;

/// Readings from which a [`Meter`] learns what reading costs.
const CALIBRATIONS: usize = 1001;

/// CPU time that the calling thread has used, in user and kernel mode.
pub(crate) fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a structure that lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "a thread can read its own clock");
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// Adds up the CPU time between `start` and `stop`.
pub(crate) struct Meter {
    total: Cell<Duration>,
    since: Cell<Duration>,
    /// What nothing at all measures: taken off at each stop.
    reading: Duration,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let mut nothing: Vec<Duration> = (0..CALIBRATIONS).map(|_| cpu_time()).map(|start| cpu_time() - start).collect();
        nothing.sort_unstable();
        Self { total: Cell::default(), since: Cell::default(), reading: nothing[CALIBRATIONS / 2] }
    }

    pub(crate) fn start(&self) {
        self.since.set(cpu_time());
    }

    pub(crate) fn stop(&self) {
        let took = cpu_time() - self.since.get();
        self.total.set(self.total.get() + took.saturating_sub(self.reading));
    }

    /// The sum, and begins a new one.
    pub(crate) fn take(&self) -> Duration {
        self.total.take()
    }

    /// Counts what `work` takes.
    pub(crate) fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        self.start();
        let result = work();
        self.stop();
        result
    }

    /// Leaves what `work` takes out of what is being measured.
    pub(crate) fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stop();
        let result = work();
        self.start();
        result
    }
}
