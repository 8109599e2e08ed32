//! Which of a destination's addresses gets the flow: happy eyeballs (RFC 8305) without IO. It is told what came of each attempt and what time
//! it is, and says what to do next.
//!
//! ```text
//!   add ─▶ v6 ▯▯▯ ┐ by turns,
//!          v4 ▯▯  ┘ v6 first ──▶ Connect ──▶ running ──▶ the first that connects wins; the caller closes the others
//!                   250 ms apart, or at once           └─ failed, or Abandon after its time: the next, at once
//!                   when one has failed
//! ```
//!
//! What always holds between calls: an address is tried once at most; an attempt in `running` has been asked for by [`Step::Connect`] and has
//! neither failed nor been abandoned; at most [`limits::OPENING_ADDRESSES`] of each family are ever taken.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::limits;
use crate::shard::io::Errno;
use crate::shard::time::Time;

/// How long a race may take.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// From one attempt to the next, if none has failed.
    pub stagger: Duration,
    /// One address has this long to accept.
    pub each: Duration,
    /// All of it, the look-up included.
    pub whole: Duration,
}

/// Why a destination was not reached, the better explanations behind the worse: of several that apply to a race the greatest is reported.
/// A refusal proves that somebody is there; silence, that a way seemed to exist; what we had no means to try says nothing about the
/// destination, and a missing route to one family least of all, on a host that never had that family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Fault {
    /// The exit's policy.
    #[error("refused by the policy")]
    Denied,
    /// What has no code of its own.
    #[error("it failed")]
    General,
    /// There is no way to its network.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// There is no way to it, or nothing of this name.
    #[error("host unreachable, or no such name")]
    HostUnreachable,
    /// Descriptors, ports or look-ups are used up here.
    #[error("a limit of this host is reached")]
    Limit,
    /// Nobody answered.
    #[error("timed out")]
    TimedOut,
    /// It said no.
    #[error("connection refused")]
    Refused,
}

impl Fault {
    /// The code that goes on the wire: as in SOCKS5 (RFC 1928), and 0x12 for a limit that is reached.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::General => 0x01,
            Self::Denied => 0x02,
            Self::NetworkUnreachable => 0x03,
            Self::HostUnreachable => 0x04,
            Self::Refused => 0x05,
            Self::TimedOut => 0x06,
            Self::Limit => 0x12,
        }
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        match error.0 {
            libc::ECONNREFUSED | libc::ECONNRESET => Self::Refused,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ENETUNREACH | libc::ENETDOWN | libc::EAFNOSUPPORT => Self::NetworkUnreachable,
            libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENONET => Self::HostUnreachable,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL => Self::Limit,
            _ => Self::General,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Connect to this address.
    Connect(SocketAddr),
    /// It has had its time: close its socket.
    Abandon(SocketAddr),
    /// Nothing, until something happens or this time has come.
    Wait(Time),
    /// All have failed, and no more come.
    Failed(Fault),
}

/// See the module.
///
/// ```
/// use std::time::Duration;
/// use zhwkprox::server::race::{Fault, Race, Rules, Step};
/// use zhwkprox::shard::time::Time;
///
/// let seconds = Duration::from_secs;
/// let rules = Rules { stagger: Duration::from_millis(250), each: seconds(10), whole: seconds(30) };
/// let (v6, v4) = ("[2001:db8::1]:443".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
/// let mut now = Time::ZERO;
/// let mut race = Race::new(rules, now);
/// race.add(v4);
/// race.add(v6);
/// race.no_more();
/// assert_eq!(race.poll(now), Step::Connect(v6));
/// let Step::Wait(until) = race.poll(now) else { panic!("one attempt at a time") };
/// now = until;
/// assert_eq!(race.poll(now), Step::Connect(v4));
/// race.on_failed(v4, Fault::Refused, now);
/// race.on_failed(v6, Fault::NetworkUnreachable, now);
/// assert_eq!(race.poll(now), Step::Failed(Fault::Refused));
/// ```
#[derive(Debug)]
pub struct Race {
    rules: Rules,
    /// Those not tried yet, in the resolver's order: IPv6, IPv4.
    waiting: [VecDeque<SocketAddr>; 2],
    /// All that were ever added.
    seen: Vec<SocketAddr>,
    /// The family whose turn it is.
    turn: usize,
    running: Vec<Attempt>,
    /// The next attempt may begin then.
    next_at: Time,
    over_at: Time,
    /// More addresses may come.
    is_open: bool,
    fault: Option<Fault>,
}

#[derive(Debug)]
struct Attempt {
    address: SocketAddr,
    until: Time,
}

impl Race {
    /// A race without addresses, begun now.
    #[must_use]
    pub fn new(rules: Rules, now: Time) -> Self {
        Self {
            rules,
            waiting: [VecDeque::new(), VecDeque::new()],
            seen: Vec::new(),
            turn: 0,
            running: Vec::new(),
            next_at: now,
            over_at: now + rules.whole,
            is_open: true,
            fault: None,
        }
    }

    /// Lets an address take part, behind those of its family that are there already. One that was added before, or is one too many, is not.
    pub fn add(&mut self, address: SocketAddr) {
        let family = usize::from(address.is_ipv4());
        let of_family = self.seen.iter().filter(|seen| seen.is_ipv4() == address.is_ipv4()).count();
        if !self.seen.contains(&address) && of_family < limits::OPENING_ADDRESSES {
            self.seen.push(address);
            self.waiting[family].push_back(address);
        }
    }

    /// All addresses are there.
    pub const fn no_more(&mut self) {
        self.is_open = false;
    }

    /// Something that explains why it may fail, other than an attempt.
    pub fn note(&mut self, fault: Fault) {
        self.fault = self.fault.max(Some(fault));
    }

    /// An attempt has failed: the next one need not wait.
    pub fn on_failed(&mut self, address: SocketAddr, fault: Fault, now: Time) {
        self.running.retain(|attempt| attempt.address != address);
        self.next_at = now;
        self.note(fault);
    }

    /// What to do now; ask until it says [`Step::Wait`] or [`Step::Failed`].
    pub fn poll(&mut self, now: Time) -> Step {
        let is_over = now >= self.over_at;
        if let Some(late) = self.running.iter().find(|attempt| is_over || now >= attempt.until) {
            let address = late.address;
            self.on_failed(address, Fault::TimedOut, now);
            return Step::Abandon(address);
        }
        if is_over {
            self.note(Fault::TimedOut);
            return Step::Failed(Fault::TimedOut.max(self.fault.unwrap_or(Fault::TimedOut)));
        }
        let is_due = self.running.is_empty() || now >= self.next_at;
        if is_due && let Some(address) = self.take() {
            self.next_at = now + self.rules.stagger;
            self.running.push(Attempt { address, until: now + self.rules.each });
            return Step::Connect(address);
        }
        if self.running.is_empty() && !self.is_open {
            return Step::Failed(self.fault.unwrap_or(Fault::General));
        }
        let next = (!self.is_exhausted()).then_some(self.next_at);
        let times = self.running.iter().map(|attempt| attempt.until).chain(next);
        Step::Wait(times.fold(self.over_at, Time::min))
    }

    fn is_exhausted(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// The next address: of the family whose turn it is, if there is one.
    fn take(&mut self) -> Option<SocketAddr> {
        for family in [self.turn, 1 - self.turn] {
            if let Some(address) = self.waiting[family].pop_front() {
                self.turn = 1 - family;
                return Some(address);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
