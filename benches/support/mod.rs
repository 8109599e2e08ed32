//! What the benches share: CPU time of the own thread as criterion's measurement, and a [`meter::Meter`] for benches in which only a part of
//! what the thread does is to be counted.
//!
//! Wall time on a shared machine says how busy the others were; the thread's CPU time leaves them out (not what they do to the caches).
#![allow(dead_code, reason = "no bench uses all of it")]

pub(crate) mod meter;

use std::time::Duration;

use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};

use self::meter::cpu_time;

/// Time for caches and the branch predictor.
const WARM_UP: Duration = Duration::from_millis(300);
/// Enough for a per cent or two on a quiet core; all benches together take some minutes.
const MEASURE: Duration = Duration::from_millis(1000);
/// Criterion's least is 10; each is a mean of many iterations.
const SAMPLES: usize = 30;

/// Criterion as every bench here uses it, set up from the command line.
pub(crate) fn criterion() -> Criterion<CpuTime> {
    let measures = std::env::args().any(|argument| argument == "--bench");
    if measures && cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build, its numbers mean nothing: use `cargo bench`");
    }
    let criterion = Criterion::default().with_measurement(CpuTime);
    criterion.warm_up_time(WARM_UP).measurement_time(MEASURE).sample_size(SAMPLES).configure_from_args()
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
