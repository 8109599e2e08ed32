//! Both roles, unchanged, over the simulated network of `tests/sim`, with SOCKS5 clients on one side and destinations on the other, and flows that
//! are open. What a shard does above the seam is measured by the `Meter` of whoever includes this; what runs below [`Io`] is left out.
//!
//! ```text
//!   client ── entry ══ tunnel ══ exit ── destination         measured, per role: Shard::turn, without Io::turn in its midst
//! ```

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc::UnboundedReceiver;
use zhwkprox::limits::{BUFFER_MEMORY, V81_PAYLOAD_MAX};
use zhwkprox::shard::board::Board;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::core::{Core, Parts};
use zhwkprox::shard::inbox::{Inbox, ToControl};
use zhwkprox::shard::io::{Done, Io, Op, SocketId};
use zhwkprox::shard::time::Time;
use zhwkprox::shard::{Role, Shard};

use crate::engine::{Gauge, SimIo, Temper, address};
use crate::meter::Meter;
use crate::process::Machine;
use crate::rng::Rng;
use crate::roles::{self, ENTRY, EXIT, Topology, socks_at, tunnels_at};
use crate::world::{EndId, Link, MICROSECOND, Nanos, Owner, Read, SECOND, World};

/// A keystroke of every flow at once.
const ECHO: usize = 64;
/// What one receive takes of a download, in either version.
pub(crate) const BULK: usize = V81_PAYLOAD_MAX;
/// Room for a whole round on every connection: nothing here is about back-pressure.
const WIDE: Link = Link { latency: (50 * MICROSECOND, 50 * MICROSECOND), segment: 1 << 17, outbox: 4 << 20, inbox: 4 << 20, rate: None };
/// As many slots as a turn may need: that the real ring lends them in small numbers is the ring's affair.
const READY: Temper = Temper { posted: 128, ..Temper::CALM };
/// Simulated time in which anything here comes to pass, with room.
const PATIENCE: Nanos = 60 * SECOND;
pub(crate) const ROLES: [(&str, usize); 2] = [("entry", ENTRY), ("exit", EXIT)];

/// The simulated network with both roles in it, and flows that are open.
pub(crate) struct Rig {
    world: World,
    hosts: Vec<Host>,
    flows: Vec<Flow>,
    bytes: Vec<u8>,
    _control: UnboundedReceiver<ToControl>,
}

/// A flow's two far ends.
struct Flow {
    client: EndId,
    destination: EndId,
}

/// One role.
struct Host {
    shard: Box<dyn Machine>,
    above: Rc<Above>,
    gauge: Rc<RefCell<Gauge>>,
}

/// What stands between a shard and its simulated engine.
struct Above {
    meter: Meter,
    /// Operations on their way down: handing them over is the simulation's work.
    ops: RefCell<Vec<Op>>,
}

/// The engine, with the meter stopped while it works.
struct Metered {
    io: SimIo,
    above: Rc<Above>,
}

impl Metered {
    fn hand_over(&mut self) {
        for op in self.above.ops.borrow_mut().drain(..) {
            self.io.submit(op);
        }
    }
}

impl Io for Metered {
    fn submit(&mut self, op: Op) {
        self.above.ops.borrow_mut().push(op);
    }

    fn turn(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) -> std::io::Result<()> {
        let above = Rc::clone(&self.above);
        above.meter.pause(|| {
            self.hand_over();
            self.io.turn(wait, done)
        })
    }

    fn adopt(&mut self, id: SocketId, descriptor: OwnedFd) {
        self.hand_over();
        self.io.adopt(id, descriptor);
    }

    fn detach(&mut self, id: SocketId) -> OwnedFd {
        self.hand_over();
        self.io.detach(id)
    }

    fn is_lost(&self, id: SocketId) -> bool {
        self.io.is_lost(id)
    }

    fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        self.io.local_address(id)
    }

    fn unsent(&self, id: SocketId) -> usize {
        self.io.unsent(id)
    }

    fn slots_available(&self) -> usize {
        self.io.slots_available()
    }
}

impl Host {
    /// Turns until nothing is left to do now.
    fn run(&mut self, world: &World) {
        loop {
            self.above.meter.measure(|| self.shard.turn(world.now()));
            if self.above.ops.borrow().is_empty() && !self.gauge.borrow().work {
                return;
            }
        }
    }
}

impl Rig {
    /// Both roles, with as many flows open as asked for, each to a destination of its own.
    pub(crate) fn new(topology: &Topology, flows: usize) -> Self {
        let topology = Topology { tunnel_link: WIDE, ..*topology };
        let world = World::new(1);
        world.set_link(tunnels_at().ip(), WIDE);
        let (control, heard) = tokio::sync::mpsc::unbounded_channel();
        let mut rig = Self { world: world.clone(), hosts: Vec::new(), flows: Vec::new(), bytes: vec![0x5a; BULK], _control: heard };
        rig.hosts.push(host(&world, ENTRY, roles::inter_server_of(&topology, &world), &control));
        rig.hosts.push(host(&world, EXIT, roles::server_of(&topology, &world), &control));
        // A client that comes before the first tunnel is told that there is none.
        world.wake_at(Owner::Nobody, SECOND);
        rig.run_until(|world| world.now() >= SECOND);
        for flow in 0..flows {
            rig.open(u16::try_from(flow).expect("few flows"));
        }
        rig
    }

    /// What one role's turns have taken.
    pub(crate) fn meter(&self, role: usize) -> &Meter {
        &self.hosts[role].above.meter
    }

    /// Opens a flow as a client does.
    fn open(&mut self, number: u16) {
        let [_, low] = number.to_be_bytes();
        let ip = [93, 184, 216, 1 + low];
        let to = SocketAddr::new(IpAddr::from(ip), 443);
        self.world.set_link(to.ip(), WIDE);
        let listener = self.world.listen(to, Owner::Nobody);
        let client = self.world.connect(address(9), socks_at(), Owner::Nobody, false);
        self.run_until(|world| world.connect_result(client) == Some(Ok(())));
        let request = [&[5, 1, 0, 5, 1, 0, 1], &ip[..], &443_u16.to_be_bytes()].concat();
        assert_eq!(self.world.write(client, &request), Ok(request.len()));
        let answer = 2 + 10;
        self.run_until(|world| world.unread(client) >= answer && world.can_accept(listener));
        let bytes = read(&self.world, client, answer);
        assert_eq!(bytes[..4], [5, 0, 5, 0], "the entry lets the client in and its flow opens");
        let (destination, _) = self.world.accept(listener, Owner::Nobody).expect("a connection waits");
        self.flows.push(Flow { client, destination });
    }

    /// Every flow's client sends, and has the same back.
    pub(crate) fn echo(&mut self) {
        self.pass(ECHO, |flow| (flow.client, flow.destination));
        self.pass(ECHO, |flow| (flow.destination, flow.client));
    }

    pub(crate) fn down(&mut self) {
        self.pass(BULK, |flow| (flow.destination, flow.client));
    }

    pub(crate) fn up(&mut self) {
        self.pass(BULK, |flow| (flow.client, flow.destination));
    }

    /// Bytes of every flow from one end to the other.
    fn pass(&mut self, bytes: usize, ends: fn(&Flow) -> (EndId, EndId)) {
        for (from, _) in self.flows.iter().map(ends) {
            assert_eq!(self.world.write(from, &self.bytes[..bytes]), Ok(bytes));
        }
        let ends: Vec<_> = self.flows.iter().map(ends).collect();
        self.run_until(|world| ends.iter().all(|(_, to)| world.unread(*to) >= bytes));
        for (_, to) in ends {
            read(&self.world, to, bytes);
        }
    }

    /// Lets things happen until then. What happens at one time is seen in one turn.
    fn run_until(&mut self, over: impl Fn(&World) -> bool) {
        let deadline = self.world.now() + PATIENCE;
        while !over(&self.world) {
            assert!(self.world.now() < deadline, "what is awaited does not come");
            let ready = self.world.take_ready();
            for owner in &ready {
                if let Owner::Host(index) = owner {
                    self.hosts[*index].run(&self.world);
                }
            }
            if !ready.is_empty() {
                continue;
            }
            self.wake_for_timers();
            assert!(self.world.advance(), "nothing will ever happen again");
            while self.world.next_event() == Some(self.world.now()) {
                self.world.advance();
            }
        }
    }

    /// A timer that is due before anything else wakes its role.
    fn wake_for_timers(&self) {
        let timer = |(index, host): (usize, &Host)| Some((host.shard.next_timer_in()?, index));
        let Some((wait, index)) = self.hosts.iter().enumerate().filter_map(timer).min() else { return };
        let at = self.world.now().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        if self.world.next_event().is_none_or(|next| at < next) {
            self.world.wake_at(Owner::Host(index), at);
        }
    }
}

/// One shard with its engine.
fn host<R: Role + 'static>(world: &World, index: usize, role: R, control: &tokio::sync::mpsc::UnboundedSender<ToControl>) -> Host {
    let number = u8::try_from(index + 1).expect("two of them");
    let arena = Arena::new(BUFFER_MEMORY).expect("memory for the arena");
    let io = SimIo::new(world, index, address(number), arena.clone(), READY, Rng::new(u64::from(number)));
    let gauge = io.gauge();
    let above = Rc::new(Above { meter: Meter::new(), ops: RefCell::default() });
    let (inbox, postbox) = Inbox::new().expect("an eventfd");
    let parts = Parts {
        io: Box::new(Metered { io, above: Rc::clone(&above) }),
        arena,
        index: 0,
        control: control.clone(),
        peers: vec![postbox],
        board: Board::new(1),
        rng: StdRng::seed_from_u64(u64::from(number)),
    };
    let shard = Shard::new(Core::new(parts), role, inbox, Time::from_nanos(world.now()));
    world.wake_at(Owner::Host(index), world.now());
    Host { shard: Box::new(shard), above, gauge }
}

/// Reads what must be there.
fn read(world: &World, end: EndId, bytes: usize) -> Vec<u8> {
    match world.read(end, bytes) {
        Read::Bytes(got) if got.len() == bytes => got,
        other => panic!("expected {bytes} bytes, got {other:?}"),
    }
}
