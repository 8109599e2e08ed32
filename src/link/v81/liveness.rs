//! Whether the other end of a tunnel lives: a PING after silence, and what it takes to be sure that there is no answer.
//!
//! ```text
//!   silence 15 s ──▶ PING ──taken by the kernel──▶ 10 s without a byte ──▶ dead
//!                      └─not taken, and nothing else is either: 10 s ────▶ dead
//! ```
//!
//! What always holds between calls: one PING at most is unanswered; any byte counts as a sign of life.

use std::time::Duration;

use crate::limits;
use crate::shard::time::Time;

/// See the module.
#[derive(Debug)]
pub(super) struct Liveness {
    last_in: Time,
    ping: Option<Ping>,
    /// Since when this tunnel has had to show that it lives, because of another login under its name.
    suspected: Option<Time>,
}

#[derive(Debug)]
struct Ping {
    queued: Time,
    /// How many bytes the kernel must have taken before it is on its way; set when it is sealed.
    mark: Option<u64>,
    taken: Option<Time>,
    /// When the kernel last took anything.
    progress: Time,
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Check {
    /// Nothing, until then.
    Wait(Time),
    /// Send a PING, and say so by [`Liveness::on_ping`].
    Ping,
    /// The other end is gone.
    Dead,
}

impl Liveness {
    pub(super) const fn new(now: Time) -> Self {
        Self { last_in: now, ping: None, suspected: None }
    }

    /// Bytes have come.
    pub(super) const fn on_bytes(&mut self, now: Time) {
        self.last_in = now;
    }

    /// A PING has been queued.
    pub(super) const fn on_ping(&mut self, now: Time) {
        self.ping = Some(Ping { queued: now, mark: None, taken: None, progress: now });
    }

    /// Everything queued so far is among the first `pushed` bytes of the tunnel.
    pub(super) const fn on_sealed(&mut self, pushed: u64) {
        if let Some(ping) = &mut self.ping
            && ping.mark.is_none()
        {
            ping.mark = Some(pushed);
        }
    }

    /// The kernel has taken `sent` bytes in all.
    pub(super) fn on_sent(&mut self, sent: u64, now: Time) {
        if let Some(ping) = &mut self.ping {
            ping.progress = now;
            if ping.taken.is_none() && ping.mark.is_some_and(|mark| sent >= mark) {
                ping.taken = Some(now);
            }
        }
    }

    /// The answer has come; how long it took.
    pub(super) fn on_pong(&mut self, now: Time) -> Option<Duration> {
        self.suspected = None;
        self.ping.take().map(|ping| now.since(ping.queued))
    }

    /// Another has logged in under its name. `true`: a PING is needed.
    pub(super) const fn suspect(&mut self, now: Time) -> bool {
        if self.suspected.is_none() {
            self.suspected = Some(now);
        }
        self.ping.is_none()
    }

    /// Whether a new flow may be put on it.
    pub(super) fn is_sound(&self, now: Time) -> bool {
        self.suspected.is_none() && self.ping.as_ref().is_none_or(|ping| now.since(ping.queued) < limits::PING_FRESH)
    }

    pub(super) fn check(&self, now: Time) -> Check {
        let suspected = self.suspected.map(|since| since + limits::PROVE);
        if suspected.is_some_and(|until| now >= until) {
            return Check::Dead;
        }
        let Some(ping) = &self.ping else {
            let due = self.last_in + limits::SILENCE;
            return if now >= due { Check::Ping } else { Check::Wait(due) };
        };
        let due = ping.taken.unwrap_or(ping.progress).max(self.last_in) + limits::PONG;
        if now >= due {
            return Check::Dead;
        }
        Check::Wait(suspected.map_or(due, |until| due.min(until)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn pinged() -> Liveness {
        let mut liveness = Liveness::new(at(0));
        assert_eq!(liveness.check(at(14)), Check::Wait(at(15)));
        assert_eq!(liveness.check(at(15)), Check::Ping);
        liveness.on_ping(at(15));
        liveness.on_sealed(100);
        liveness
    }

    #[test]
    fn silence_is_asked_about_and_no_answer_is_death() {
        let mut liveness = pinged();
        liveness.on_sent(100, at(15));
        assert_eq!(liveness.check(at(24)), Check::Wait(at(25)));
        assert_eq!(liveness.check(at(25)), Check::Dead);
    }

    #[test]
    fn any_byte_is_an_answer() {
        let mut liveness = pinged();
        liveness.on_sent(100, at(15));
        liveness.on_bytes(at(20));
        assert_eq!(liveness.check(at(25)), Check::Wait(at(30)));
        assert_eq!(liveness.on_pong(at(26)), Some(Duration::from_secs(11)));
        assert_eq!(liveness.check(at(26)), Check::Wait(at(35)));
    }

    #[test]
    fn a_ping_behind_bytes_that_leave_slowly_is_waited_for() {
        let mut liveness = pinged();
        for second in 16..60 {
            liveness.on_sent(second, at(second));
            assert!(matches!(liveness.check(at(second)), Check::Wait(_)));
        }
        assert_eq!(liveness.check(at(69)), Check::Dead, "nothing has left for ten seconds");
    }

    #[test]
    fn another_login_under_its_name_is_answered_within_three_seconds_or_it_is_dead() {
        let mut liveness = Liveness::new(at(0));
        assert!(liveness.is_sound(at(1)));
        assert!(liveness.suspect(at(1)));
        liveness.on_ping(at(1));
        assert!(!liveness.is_sound(at(1)));
        assert_eq!(liveness.check(at(4)), Check::Dead);
        let _rtt = liveness.on_pong(at(3));
        assert!(liveness.is_sound(at(3)));
        assert!(matches!(liveness.check(at(4)), Check::Wait(_)));
    }
}
