//! The two roles, exactly as production builds them, over the simulated engine: the exit dials the entry, or the entry the exit, and the entry
//! takes SOCKS5 clients.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use zhwkprox::crypto::aead;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::dial::DialTarget;
use zhwkprox::inter_server::{self, InterServer};
use zhwkprox::limits;
use zhwkprox::listen::ListenerKind;
use zhwkprox::protocol::login::Protocol;
use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v81::handshake::{Keys, Psk};
use zhwkprox::relay::Bounds;
use zhwkprox::server::{self, Server};
use zhwkprox::shard::board::Board;
use zhwkprox::shard::core::{Core, Parts};
use zhwkprox::shard::inbox::{Inbox, Postbox};
use zhwkprox::shard::time::Time;
use zhwkprox::shard::{Role, Shard};

use crate::engine::{SimIo, Temper, address};
use crate::harness::Simulation;
use crate::observer::Observer;
use crate::process::{Machine, Part, Started};
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
    pub(crate) shards: [usize; 2],
    pub(crate) slots: [usize; 2],
    pub(crate) temper: [Temper; 2],
    pub(crate) slowness: Nanos,
    pub(crate) tunnel_link: Link,
    pub(crate) max_tunnels: usize,
    pub(crate) linger: Duration,
    pub(crate) idle: Option<Duration>,
    pub(crate) version: Version,
    pub(crate) bounds: Bounds,
    /// The entry dials, and the exit listens.
    pub(crate) entry_dials: bool,
}

/// What the tunnels speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    V80(Profile),
    V81,
}

impl Topology {
    pub(crate) const PLAIN: Self = Self {
        shards: [1, 1],
        slots: [64, 64],
        temper: [Temper::CALM, Temper::CALM],
        slowness: 20_000,
        tunnel_link: Link::PLAIN,
        max_tunnels: limits::MAX_TUNNELS,
        linger: limits::LINGER,
        idle: Some(limits::IDLE_V80),
        version: Version::V80(Profile::Ours),
        bounds: Bounds { held_bytes: limits::HELD_BYTES, ids_used: 0 },
        entry_dials: false,
    };

    /// The same on 0x81.
    pub(crate) const SECURE: Self = Self { version: Version::V81, ..Self::PLAIN };

    /// Where tunnels are dialled to.
    fn tunnels_at(&self) -> SocketAddr {
        if self.entry_dials { SocketAddr::new(address(2), 1992) } else { tunnels_at() }
    }

    /// Whom a role has to dial: the other one, or nobody.
    fn dial(&self, process: usize) -> Vec<DialTarget> {
        let at = self.tunnels_at();
        let dials = self.entry_dials == (process == ENTRY);
        dials.then(|| DialTarget { host: at.ip().to_string(), port: at.port() }).into_iter().collect()
    }

    /// Where a role waits for tunnels, if it does.
    fn tunnel_listener(&self, process: usize, world: &World) -> Option<(ListenerKind, OwnedFd)> {
        let listens = self.entry_dials == (process == EXIT);
        listens.then(|| (ListenerKind::Tunnel, SimIo::listener_handle(world, self.tunnels_at())))
    }
}

fn protocol(version: Version) -> Protocol {
    match version {
        Version::V80(profile) => {
            let iv = std::array::from_fn(|index| u8::try_from(index).expect("below 16"));
            Protocol::V80 { cipher: MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatch", iv).expect("16 bytes"), profile }
        }
        Version::V81 => {
            let keys = Keys::new([(Arc::from("exit"), Psk::new(&[7; 32]))]).expect("one key");
            Protocol::V81 { keys: Arc::new(keys), methods: Arc::new([aead::Method::Aes128Gcm]) }
        }
    }
}

/// Both roles, started, in a world of this seed.
pub(crate) fn build(seed: u64, topology: &Topology) -> Simulation {
    let tunnels_at = topology.tunnels_at();
    let mut simulation = Simulation::new(seed, tunnels_at, topology.slowness);
    if topology.entry_dials {
        simulation.world().with_observer(Observer::watch_for_entries);
    }
    if topology.version == Version::V80(Profile::Original) {
        simulation.world().with_observer(Observer::keep_sends);
    }
    if topology.version == Version::V81 {
        simulation.world().with_observer(Observer::expect_records);
    }
    simulation.world().set_link(tunnels_at.ip(), topology.tunnel_link);
    let Topology { shards, slots, temper, .. } = *topology;
    let settings = *topology;
    simulation.add_process(
        shards[ENTRY],
        slots[ENTRY],
        temper[ENTRY],
        Box::new(move |parts, world| start(parts, world, |world| inter_server_of(&settings, world))),
    );
    add_exit(&mut simulation, topology);
    simulation
}

/// Another server with the same key.
pub(crate) fn add_exit(simulation: &mut Simulation, topology: &Topology) {
    let Topology { shards, slots, temper, .. } = *topology;
    let settings = *topology;
    simulation.add_process(
        shards[EXIT],
        slots[EXIT],
        temper[EXIT],
        Box::new(move |parts, world| start(parts, world, |world| server_of(&settings, world))),
    );
}

pub(crate) fn inter_server_of(topology: &Topology, world: &World) -> InterServer {
    let settings = inter_server::Settings {
        dial: topology.dial(ENTRY),
        allow_servers: vec!["10.0.0.0/8".parse().expect("a network")],
        credentials: None,
        linger: topology.linger,
        idle: topology.idle,
        wait_for_tunnel: limits::WAIT_FOR_TUNNEL,
    };
    let socks = (ListenerKind::Socks { authenticate: false }, SimIo::listener_handle(world, socks_at()));
    let listeners = topology.tunnel_listener(ENTRY, world).into_iter().chain([socks]);
    InterServer::new(settings, protocol(topology.version), listeners.collect()).with_bounds(topology.bounds)
}

pub(crate) fn server_of(topology: &Topology, world: &World) -> Server {
    let settings = server::Settings {
        dial: topology.dial(EXIT),
        allow_inter_servers: vec!["10.0.0.0/8".parse().expect("a network")],
        max_tunnels: topology.max_tunnels,
        allow: Vec::new(),
        source: None,
        connect_timeout: limits::CONNECT_TIMEOUT,
        linger: topology.linger,
        idle: topology.idle,
    };
    Server::new(settings, protocol(topology.version), topology.tunnel_listener(EXIT, world).into_iter().collect())
        .with_bounds(topology.bounds)
}

/// Puts the shards of one process together.
pub(crate) fn start<R: Role + 'static>(parts: Vec<Part>, world: &World, role: impl Fn(&World) -> R) -> Started {
    let (inboxes, postboxes): (Vec<Inbox>, Vec<Postbox>) = parts.iter().map(|_| Inbox::new().expect("an eventfd")).unzip();
    let (to_control, control) = tokio::sync::mpsc::unbounded_channel();
    let board = Board::new(parts.len());
    let now = Time::from_nanos(world.now());
    let shard = |(index, (Part { io, arena, seed }, inbox)): (usize, (Part, Inbox))| -> Box<dyn Machine> {
        let parts = Parts {
            io: Box::new(io),
            arena,
            index,
            control: to_control.clone(),
            peers: postboxes.clone(),
            board: board.clone(),
            rng: StdRng::seed_from_u64(seed),
        };
        Box::new(Shard::new(Core::new(parts), role(world), inbox, now))
    };
    let machines = parts.into_iter().zip(inboxes).enumerate().map(shard).collect();
    Started { machines, postboxes, control }
}
