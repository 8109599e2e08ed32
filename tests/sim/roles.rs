//! The two roles, exactly as production builds them, over the simulated engine: the exit dials the entry, and the entry takes SOCKS5
//! clients.

use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::inter_server::{self, InterServer, ListenerKind};
use zhwkprox::limits;
use zhwkprox::protocol::v80::Profile;
use zhwkprox::server::{self, DialTarget, Server};
use zhwkprox::shard::board::Board;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::core::{Core, Parts};
use zhwkprox::shard::inbox::Inbox;
use zhwkprox::shard::time::Time;
use zhwkprox::shard::{Role, Shard};

use crate::engine::{SimIo, Temper, address};
use crate::harness::{Machine, Simulation};
use crate::observer::Observer;
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
    pub(crate) profile: Profile,
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
        profile: Profile::Ours,
    };
}

fn cipher() -> MessageCipher {
    MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatch", std::array::from_fn(|index| u8::try_from(index).expect("below 16")))
        .expect("16 bytes")
}

/// Both roles, started, in a world of this seed.
pub(crate) fn build(seed: u64, topology: &Topology) -> Simulation {
    let mut simulation = Simulation::new(seed, tunnels_at(), topology.slowness);
    if topology.profile == Profile::Original {
        simulation.world().with_observer(Observer::keep_sends);
    }
    simulation.world().set_link(tunnels_at().ip(), topology.tunnel_link);
    let [entry, exit] = [ENTRY, EXIT].map(|host| (topology.slots[host], topology.temper[host]));
    simulation.add_host(entry.0, entry.1, |io, arena, seed, world| entry_shard(topology, io, arena, seed, world));
    simulation.add_host(exit.0, exit.1, |io, arena, seed, world| exit_shard(topology, io, arena, seed, world));
    simulation
}

/// Starts the entry's process again after [`Simulation::stop_host`].
pub(crate) fn restart_entry(simulation: &mut Simulation, topology: &Topology) {
    simulation.start_host(ENTRY, topology.temper[ENTRY], |io, arena, seed, world| entry_shard(topology, io, arena, seed, world));
}

fn entry_shard(topology: &Topology, io: SimIo, arena: Arena, seed: u64, world: &World) -> Box<dyn Machine> {
    let settings = inter_server::Settings {
        profile: topology.profile,
        allow_servers: vec!["10.0.0.0/8".parse().expect("a network")],
        credentials: None,
        linger: topology.linger,
        idle: topology.idle,
        wait_for_tunnel: limits::WAIT_FOR_TUNNEL,
    };
    let listeners = vec![
        (ListenerKind::Tunnel, SimIo::listener_handle(world, tunnels_at())),
        (ListenerKind::Socks { authenticate: false }, SimIo::listener_handle(world, socks_at())),
    ];
    shard(InterServer::new(settings, cipher(), listeners), io, arena, seed, world)
}

fn exit_shard(topology: &Topology, io: SimIo, arena: Arena, seed: u64, world: &World) -> Box<dyn Machine> {
    let settings = server::Settings {
        profile: topology.profile,
        dial: vec![DialTarget { host: tunnels_at().ip().to_string(), port: tunnels_at().port() }],
        max_tunnels: topology.max_tunnels,
        allow: Vec::new(),
        source: None,
        connect_timeout: limits::CONNECT_TIMEOUT,
        linger: topology.linger,
        idle: topology.idle,
    };
    shard(Server::new(settings, cipher()), io, arena, seed, world)
}

fn shard<R: Role + 'static>(role: R, io: SimIo, arena: Arena, seed: u64, world: &World) -> Box<dyn Machine> {
    let (inbox, postbox) = Inbox::new().expect("an eventfd");
    let (control, _) = tokio::sync::mpsc::unbounded_channel();
    let parts =
        Parts { io: Box::new(io), arena, index: 0, control, peers: vec![postbox], board: Board::new(1), rng: StdRng::seed_from_u64(seed) };
    Box::new(Shard::new(Core::new(parts), role, inbox, Time::from_nanos(world.now())))
}
