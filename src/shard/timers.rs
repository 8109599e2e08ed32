//! Deadlines of one shard, in order. Setting and cancelling are logarithmic, so that a count of timers is a count of things awaited.

use std::collections::BTreeMap;
use std::time::Duration;

use super::core::Owner;
use super::time::Time;

/// Names a timer that is set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TimerId {
    at: Time,
    sequence: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Timers {
    set: BTreeMap<TimerId, (Owner, u8)>,
    sequence: u64,
}

impl Timers {
    /// Sets a timer that fires for `owner` at `at`; `what` tells the owner which of its timers it is.
    pub fn set(&mut self, at: Time, owner: Owner, what: u8) -> TimerId {
        self.sequence += 1;
        let id = TimerId { at, sequence: self.sequence };
        self.set.insert(id, (owner, what));
        id
    }

    /// Unsets it; nothing happens if it has fired.
    pub fn cancel(&mut self, id: TimerId) {
        self.set.remove(&id);
    }

    /// Takes out the first timer that is due.
    pub fn pop_due(&mut self, now: Time) -> Option<(Owner, u8)> {
        let first = self.set.first_entry()?;
        if first.key().at > now { None } else { Some(first.remove()) }
    }

    /// How long until the first one.
    #[must_use]
    pub fn next_in(&self, now: Time) -> Option<Duration> {
        self.set.first_key_value().map(|(id, _)| id.at.since(now))
    }

    /// How many are set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_of_their_deadline_and_a_cancelled_one_never() {
        let mut timers = Timers::default();
        let at = |s| Time::ZERO + Duration::from_secs(s);
        timers.set(at(2), Owner::Role, 2);
        let cancelled = timers.set(at(1), Owner::Role, 1);
        timers.set(at(1), Owner::Role, 3);
        timers.cancel(cancelled);
        assert_eq!(timers.next_in(Time::ZERO), Some(Duration::from_secs(1)));
        assert_eq!(timers.pop_due(Time::ZERO), None);
        assert_eq!(timers.pop_due(at(5)), Some((Owner::Role, 3)));
        assert_eq!(timers.pop_due(at(5)), Some((Owner::Role, 2)));
        assert!(timers.is_empty());
    }
}
