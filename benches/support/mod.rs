//! What the benches share: CPU time of the own thread as criterion's measurement, and a [`Meter`] for benches in which only a part of what
//! the thread does is to be counted.
//!
//! Wall time on a shared machine says how busy the others were; the thread's CPU time leaves them out (not what they do to the caches).
//!
//! What always holds: a [`Meter`] counts only between `start` and `stop`, and takes the cost of reading the clock off again.
#![allow(dead_code, reason = "no bench uses all of it")]
#![expect(unsafe_code, reason = "std has no clock of a thread's CPU time")]

use std::cell::Cell;
use std::time::Duration;

use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};

/// Time for caches and the branch predictor.
const WARM_UP: Duration = Duration::from_millis(300);
/// Enough for a per cent or two on a quiet core; all benches together take some minutes.
const MEASURE: Duration = Duration::from_millis(1000);
/// Criterion's least is 10; each is a mean of many iterations.
const SAMPLES: usize = 30;
/// Readings from which a [`Meter`] learns what reading costs.
const CALIBRATIONS: usize = 1001;

/// Criterion as every bench here uses it, set up from the command line.
pub(crate) fn criterion() -> Criterion<CpuTime> {
    let measures = std::env::args().any(|argument| argument == "--bench");
    if measures && cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build, its numbers mean nothing: use `cargo bench`");
    }
    let criterion = Criterion::default().with_measurement(CpuTime);
    criterion.warm_up_time(WARM_UP).measurement_time(MEASURE).sample_size(SAMPLES).configure_from_args()
}

/// CPU time that the calling thread has used, in user and kernel mode.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a structure that lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "a thread can read its own clock");
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// The measurement. A reading is a system call of half a microsecond, so criterion must be given more to do between two of them.
pub(crate) struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, start: Duration) -> Duration {
        cpu_time() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
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
}
