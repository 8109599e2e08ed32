//! One stream as one side sees it, and its two windows: what we may still send, and what the peer may. Credit is given as bytes leave, so what
//! a stream that does not drain holds is its window.
//!
//! What always holds: `allowed + pending ≤ window`, and the difference is what is held here; the window stays between 1 and its maximum.

use std::time::Duration;

/// Most bytes that wait to be given back before a WINDOW is due, however large the window is.
const GRANT_MAX: u32 = 65_536;

/// Our side has sent (queued in order) its FIN.
pub(super) const OWN_FIN: u8 = 1;
/// The peer's FIN has come.
pub(super) const PEER_FIN: u8 = 2;
/// Someone here is behind it: from `open` or `attach` on.
pub(super) const ATTACHED: u8 = 4;
/// The destination is connected: at the entry OPENED has come, at the exit it was queued.
pub(super) const OPENED: u8 = 8;
/// OPEN or OPENED waits to be sent: nothing else of the stream may go before it.
pub(super) const OPENING: u8 = 16;
/// It stands in the queue of those that are owed a WINDOW.
pub(super) const GRANTING: u8 = 32;

/// How windows grow, for all streams of one tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Growth {
    /// What each starts with.
    pub(super) first: u32,
    /// What none exceeds.
    pub(super) max: u32,
    /// The tunnel's round trip; zero: not known, nothing grows.
    pub(super) rtt: Duration,
    /// Whether any may grow.
    pub(super) allowed: bool,
    /// Whether credit beyond the first is kept back as it is used.
    pub(super) withheld: bool,
}

/// One stream that is open.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Stream {
    /// The role's name for it.
    pub(super) tag: u64,
    /// When the first of the `filled` bytes came, in nanoseconds of the caller's clock.
    since: u64,
    /// Bytes that we may still send.
    pub(super) credit: u32,
    /// Bytes that the peer may still send.
    allowed: u32,
    /// Bytes that we are ready to hold.
    window: u32,
    /// Credit that is due and not given yet.
    pending: u32,
    /// Bytes that came since the window was last measured.
    filled: u32,
    flags: u8,
}
const _: () = assert!(size_of::<Stream>() <= 40, "an idle stream is small");

impl Stream {
    pub(super) const fn new(tag: u64, credit: u32, window: u32, flags: u8) -> Self {
        Self { tag, since: 0, credit, allowed: window, window, pending: 0, filled: 0, flags }
    }

    pub(super) const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u8) {
        self.flags |= flag;
    }

    pub(super) const fn clear(&mut self, flag: u8) {
        self.flags &= !flag;
    }

    pub(super) const fn window(&self) -> u32 {
        self.window
    }

    /// Bytes that came and have not left.
    pub(super) const fn held(&self) -> u32 {
        self.window - self.allowed - self.pending
    }

    /// Bytes have come. `Err`: what was allowed, which is less.
    pub(super) fn arrive(&mut self, bytes: u16, now: Duration) -> Result<(), u32> {
        self.allowed = self.allowed.checked_sub(u32::from(bytes)).ok_or(self.allowed)?;
        if self.filled == 0 {
            self.since = nanoseconds(now);
        }
        self.filled = self.filled.saturating_add(u32::from(bytes));
        Ok(())
    }

    /// Bytes have left towards the socket.
    pub(super) fn leave(&mut self, bytes: u32, now: Duration, growth: &Growth) {
        debug_assert!(bytes <= self.held(), "{bytes} bytes left, of {}", self.held());
        self.pending += bytes.min(self.held());
        if self.filled >= self.window {
            // A sender that is held up by the window fills it in just above one round trip, one that is not in less. Twice as long takes one
            // that sends at half the rate that the window allows, or whose bytes waited here.
            let quick = nanoseconds(now).saturating_sub(self.since) <= nanoseconds(growth.rtt.saturating_mul(2));
            self.filled = 0;
            if quick && growth.allowed && !growth.withheld && !growth.rtt.is_zero() {
                let window = self.window.saturating_mul(2).min(growth.max).max(self.window);
                self.pending += window - self.window;
                self.window = window;
            }
        }
        self.keep_back(growth);
    }

    /// Whether enough waits to be given back.
    pub(super) fn is_due(&self) -> bool {
        self.pending > 0 && self.pending >= (self.window / 4).min(GRANT_MAX) && !self.is(PEER_FIN) && self.is(OPENED)
    }

    /// Gives all that waits: the credit of a WINDOW, or nothing.
    pub(super) fn take_grant(&mut self, growth: &Growth) -> Option<u32> {
        self.keep_back(growth);
        if self.is(PEER_FIN) || self.pending == 0 {
            return None;
        }
        let grant = std::mem::take(&mut self.pending);
        self.allowed += grant;
        Some(grant)
    }

    /// While memory is short the window shrinks to the first credit again, by what would have been given back.
    fn keep_back(&mut self, growth: &Growth) {
        if growth.withheld {
            let kept = self.window.saturating_sub(growth.first).min(self.pending);
            self.window -= kept;
            self.pending -= kept;
        }
    }
}

/// What 580 years fit in.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
