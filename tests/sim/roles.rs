//! The two roles, exactly as production builds them, over the simulated engine: the exit dials the entry, and the entry takes SOCKS5
//! clients.

use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use zhwkprox::limits;
use zhwkprox::server::{DialTarget, Server};
use zhwkprox::shard::Shard;
use zhwkprox::shard::board::Board;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::core::{Core, Parts};
use zhwkprox::shard::inbox::Inbox;
use zhwkprox::shard::time::Time;

use crate::engine::{SimIo, Temper, address};
use crate::harness::{Machine, Simulation};
use crate::world::{Link, Nanos, World};

pub(crate) const ENTRY: usize = 0;
pub(crate) const EXIT: usize = 1;

/// Where servers log in.
pub(crate) fn tunnels_at() -> SocketAddr {
    SocketAddr::new(address(1), 1992)
}

/// Where clients come to.
pub(crate) fn socks_at() -> SocketAddr {
    SocketAddr::new(address(1), 1080)
}

/// How the two roles are set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    pub(crate) slots: [usize; 2],
    pub(crate) temper: [Temper; 2],
    pub(crate) slowness: Nanos,
    pub(crate) tunnel_link: Link,
    pub(crate) max_tunnels: usize,
    pub(crate) linger: Duration,
    pub(crate) idle: Option<Duration>,
}

impl Topology {
    pub(crate) const PLAIN: Self = Self {
        slots: [64, 64],
        temper: [Temper::CALM, Temper::CALM],
        slowness: 20_000,
        tunnel_link: Link::PLAIN,
        max_tunnels: limits::MAX_TUNNELS,
        linger: limits::LINGER,
        idle: Some(limits::IDLE_V80),
    };
}
