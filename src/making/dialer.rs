//! How many tunnels who dials keeps to one of the others, and when it dials the next one: spares grow with use and shrink when idle,
//! failures back off with full jitter.
//!
//! What always holds between calls: while `pause` is set nothing is dialled; `in_progress` counts the connections that are being
//! made or are in their handshake.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::{Rng, RngExt};

use crate::dial::DialTarget;
use crate::limits;
use crate::shard::timers::TimerId;

/// One of the other side, as who dials sees it.
#[derive(Debug)]
pub struct Dialer {
    /// Where it is.
    pub target: DialTarget,
    /// Connections being made or in their handshake.
    pub in_progress: usize,
    /// A look-up of the target's name is under way.
    pub is_resolving: bool,
    /// The pause after a failure.
    pub pause: Option<TimerId>,
    addresses: Vec<IpAddr>,
    turn: usize,
    failures: u32,
}

impl Dialer {
    /// A dialer that has not dialled yet.
    #[must_use]
    pub fn new(target: DialTarget) -> Self {
        let addresses = target.host.parse().into_iter().collect();
        Self { target, in_progress: 0, is_resolving: false, pause: None, addresses, turn: 0, failures: 0 }
    }

    /// Whether the target has to be looked up at each try.
    #[must_use]
    pub fn is_name(&self) -> bool {
        self.target.host.parse::<IpAddr>().is_err()
    }

    /// How many connections to start now, with so many tunnels idle and in all.
    #[must_use]
    pub fn wanted(&self, idle: usize, all: usize, max_tunnels: usize) -> usize {
        self.wanted_of(spares(all - idle).saturating_sub(idle), all, max_tunnels)
    }

    /// The same where it is known how many are missing, those being made not counted.
    #[must_use]
    pub fn wanted_of(&self, missing: usize, all: usize, max_tunnels: usize) -> usize {
        if self.pause.is_some() || self.is_resolving {
            return 0;
        }
        let missing = missing.saturating_sub(self.in_progress);
        let room = max_tunnels.saturating_sub(all + self.in_progress);
        let wanted = missing.min(room);
        // After a failure one attempt is enough to find out whether it is over.
        if self.failures > 0 && all == 0 { wanted.min(1_usize.saturating_sub(self.in_progress)) } else { wanted }
    }

    /// Where the next connection goes: the addresses in turn.
    pub fn next_address(&mut self) -> Option<SocketAddr> {
        let address = *self.addresses.get(self.turn % self.addresses.len().max(1))?;
        Some(SocketAddr::new(address, self.target.port))
    }

    /// What the name means now.
    pub fn resolved(&mut self, addresses: Vec<IpAddr>) {
        self.is_resolving = false;
        self.addresses = addresses;
    }

    /// A try failed, or a tunnel was lost soon: how long to wait.
    pub fn failed(&mut self, rng: &mut impl Rng) -> Duration {
        self.turn = self.turn.wrapping_add(1);
        self.failures = self.failures.saturating_add(1);
        let ceiling = (limits::BACKOFF_MIN * 2_u32.saturating_pow(self.failures.min(16))).min(limits::BACKOFF_MAX);
        rng.random_range(limits::BACKOFF_MIN..=ceiling)
    }

    /// A tunnel was up for long enough.
    pub const fn recovered(&mut self) {
        self.failures = 0;
    }
}

/// Idle tunnels to keep with so many busy ones.
#[must_use]
pub fn spares(busy: usize) -> usize {
    limits::SPARE_MIN.max(busy / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn dialer() -> Dialer {
        Dialer::new(DialTarget { host: "192.0.2.1".into(), port: 1992 })
    }

    #[test]
    fn spares_grow_with_use_and_never_beyond_the_limit() {
        let mut dialer = dialer();
        assert_eq!(dialer.wanted(0, 0, 256), 2);
        dialer.in_progress = 2;
        assert_eq!(dialer.wanted(0, 0, 256), 0);
        dialer.in_progress = 0;
        assert_eq!(dialer.wanted(0, 2, 256), 2, "two busy, two more as spares");
        assert_eq!(dialer.wanted(0, 40, 256), 20);
        assert_eq!(dialer.wanted(0, 40, 45), 5);
        assert_eq!(dialer.wanted(20, 60, 256), 0);
    }

    #[test]
    fn pauses_are_jittered_and_bounded_and_after_a_failure_one_attempt_is_made() {
        let mut dialer = dialer();
        let mut rng = StdRng::seed_from_u64(1);
        let pauses: Vec<_> = (0..200).map(|_| dialer.failed(&mut rng)).collect();
        assert!(pauses.iter().all(|pause| (limits::BACKOFF_MIN..=limits::BACKOFF_MAX).contains(pause)));
        assert!(pauses.iter().max() > pauses.iter().min());
        assert_eq!(dialer.wanted(0, 0, 256), 1);
        dialer.recovered();
        assert_eq!(dialer.wanted(0, 0, 256), 2);
    }
}
