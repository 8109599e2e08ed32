//! The one place that reads a clock: CLOCK_MONOTONIC since the shard's start, as the [`Time`] that everything else gets as an argument.

use std::time::Instant;

use super::time::Time;

/// A shard's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at zero.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the shard's clock")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time now. Called once per turn.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_starts_at_zero_and_never_goes_back() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(first >= Time::ZERO && clock.now() >= first);
    }
}
