//! Puts a simulation together: hosts with a shard each, clients, destinations and faults, over one [`World`]. Runs them in one thread, event by
//! event, and stops the run when a shard spins or time runs out.
//!
//! What always holds between steps: everyone who was told of a change has looked at it, or will at a time that is in the world's events.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use zhwkprox::limits::SLOT_BYTES;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::state::State;
use zhwkprox::shard::time::Time;
use zhwkprox::shard::{Role, Shard};

use crate::client::{Client, ClientPlan};
use crate::destination::{Destination, Kind};
use crate::engine::{Gauge, SimIo, Temper, address};
use crate::rng::Rng;
use crate::traffic::{Book, Stage};
use crate::world::{EndId, MICROSECOND, Nanos, Owner, SECOND, World};

/// The most turns a shard may take in one simulated second. A busy seed needs a tenth of it; a shard that spins needs a million.
const TURNS_PER_SECOND: u64 = 100_000;

/// A shard, whatever its role.
pub(crate) trait Machine {
    fn turn(&mut self, now: Nanos);
    fn next_timer_in(&self) -> Option<Duration>;
    fn state(&self) -> State;
}

impl<R: Role> Machine for Shard<R> {
    fn turn(&mut self, now: Nanos) {
        let wait = self.next_timer_in();
        Self::turn(self, wait, || Time::from_nanos(now)).expect("the simulated engine does not fail");
    }

    fn next_timer_in(&self) -> Option<Duration> {
        Self::next_timer_in(self)
    }

    fn state(&self) -> State {
        Self::state(self)
    }
}

/// What goes wrong, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A tunnel is reset on its way.
    Kill,
    /// Nothing passes a tunnel any more, and nobody is told.
    Lose,
    /// Nothing passes the tunnels for so long.
    Stall(Nanos),
    /// A host has no descriptors for so long.
    NoDescriptors(usize, Nanos),
}

struct Host {
    machine: Option<Box<dyn Machine>>,
    gauge: Rc<RefCell<Gauge>>,
    arena: Arena,
    /// A turn is due then.
    turn_at: Option<Nanos>,
    /// A wake-up for its timers is in the world's events for then.
    timer_at: Option<Nanos>,
    second: Nanos,
    turns: u64,
}

enum Actor {
    Client(Box<Client>),
    Destination(Destination),
    Faults(Vec<(Nanos, Fault)>),
}

/// See the module.
pub(crate) struct Simulation {
    pub(crate) stage: Stage,
    pub(crate) rng: Rng,
    /// Where tunnels are dialled to.
    pub(crate) tunnels_at: SocketAddr,
    hosts: Vec<Host>,
    actors: Vec<Actor>,
    clients: u32,
    /// Longest time from a change to the turn that sees it.
    slowness: Nanos,
    /// What has been done to the tunnels: when, and until when it may be felt.
    pub(crate) disturbed: Vec<(Nanos, Nanos)>,
    pub(crate) most_turns: u64,
}

impl Simulation {
    pub(crate) fn new(seed: u64, tunnels_at: SocketAddr, slowness: Nanos) -> Self {
        let mut rng = Rng::new(seed);
        let world = World::new(rng.next());
        world.with_observer(|observer| observer.watch(tunnels_at));
        let stage = Stage { world, seed, book: Rc::new(RefCell::new(Book::default())) };
        Self { stage, rng, tunnels_at, hosts: Vec::new(), actors: Vec::new(), clients: 0, slowness, disturbed: Vec::new(), most_turns: 0 }
    }

    pub(crate) fn world(&self) -> &World {
        &self.stage.world
    }

    pub(crate) fn now(&self) -> Nanos {
        self.stage.world.now()
    }

    // ---- hosts

    /// Adds a host with so many slots; `build` makes its shard over the engine given to it.
    pub(crate) fn add_host(
        &mut self,
        slots: usize,
        temper: Temper,
        build: impl FnOnce(SimIo, Arena, u64, &World) -> Box<dyn Machine>,
    ) -> usize {
        let host = self.hosts.len();
        let arena = Arena::new(slots * SLOT_BYTES).expect("memory for the arena");
        self.hosts.push(Host { machine: None, gauge: Rc::default(), arena, turn_at: None, timer_at: None, second: 0, turns: 0 });
        self.start_host(host, temper, build);
        host
    }

    /// Starts the process of a host, again.
    pub(crate) fn start_host(&mut self, host: usize, temper: Temper, build: impl FnOnce(SimIo, Arena, u64, &World) -> Box<dyn Machine>) {
        let arena = self.hosts[host].arena.clone();
        let number = u8::try_from(host + 1).expect("few hosts");
        let io = SimIo::new(&self.stage.world, host, address(number), arena.clone(), temper, self.rng.fork());
        self.hosts[host].gauge = io.gauge();
        let machine = build(io, arena, self.rng.next(), &self.stage.world);
        self.hosts[host].machine = Some(machine);
        self.stage.world.wake_at(Owner::Host(host), self.now());
    }

    /// Kills the process of a host: the kernel closes its sockets.
    pub(crate) fn stop_host(&mut self, host: usize) {
        self.hosts[host].machine = None;
    }

    pub(crate) fn state(&self, host: usize) -> State {
        self.hosts[host].machine.as_ref().expect("the host runs").state()
    }

    pub(crate) fn gauge(&self, host: usize) -> std::cell::Ref<'_, Gauge> {
        self.hosts[host].gauge.borrow()
    }

    pub(crate) fn free_slots(&self, host: usize) -> (usize, usize) {
        let arena = &self.hosts[host].arena;
        (self.gauge(host).lent + arena.free(), arena.slots())
    }

    // ---- actors

    pub(crate) fn add_client(&mut self, plan: ClientPlan) -> u32 {
        let number = self.clients;
        self.clients += 1;
        let actor = self.actors.len();
        self.actors.push(Actor::Client(Box::new(Client::new(&self.stage, number, actor, plan))));
        number
    }

    pub(crate) fn add_destination(&mut self, address: SocketAddr, kind: Kind) {
        let actor = self.actors.len();
        let rng = self.rng.fork();
        self.actors.push(Actor::Destination(Destination::new(&self.stage, address, actor, kind, rng)));
    }

    pub(crate) fn add_faults(&mut self, mut faults: Vec<(Nanos, Fault)>) {
        faults.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        for (time, _) in &faults {
            self.stage.world.wake_at(Owner::Actor(self.actors.len()), *time);
        }
        self.actors.push(Actor::Faults(faults));
    }

    /// Connections to the tunnels' address that are alive.
    pub(crate) fn tunnels(&self) -> Vec<EndId> {
        self.stage.world.connections_to(self.tunnels_at)
    }

    // ---- running

    /// Runs until `over`; false when `deadline` passes first or nothing will ever happen.
    pub(crate) fn run_until(&mut self, deadline: Nanos, mut over: impl FnMut(&Self) -> bool) -> bool {
        loop {
            self.settle();
            if over(self) {
                return true;
            }
            match self.stage.world.next_event() {
                Some(time) if time <= deadline => {}
                next => {
                    self.stage.world.wake_at(Owner::Nobody, deadline);
                    self.stage.world.advance();
                    assert!(next.is_some() || deadline < Nanos::MAX, "nothing will ever happen again");
                    return false;
                }
            }
            self.stage.world.advance();
            while self.stage.world.next_event() == Some(self.now()) {
                self.stage.world.advance();
            }
        }
    }

    /// Runs for so long.
    pub(crate) fn run_for(&mut self, time: Nanos) {
        let deadline = self.now() + time;
        self.run_until(deadline, |_| false);
    }

    /// Lets everyone who was told of something look at it.
    fn settle(&mut self) {
        loop {
            let mut ready = self.stage.world.take_ready();
            if ready.is_empty() {
                return;
            }
            self.rng.shuffle(&mut ready);
            for owner in ready {
                match owner {
                    Owner::Actor(actor) => self.run_actor(actor),
                    Owner::Host(host) => self.wake_host(host),
                    Owner::Control | Owner::Nobody => {}
                }
            }
        }
    }

    fn run_actor(&mut self, actor: usize) {
        match &mut self.actors[actor] {
            Actor::Client(client) => client.run(&self.stage),
            Actor::Destination(destination) => destination.run(&self.stage),
            Actor::Faults(faults) => {
                let now = self.stage.world.now();
                let mut due = Vec::new();
                while faults.last().is_some_and(|(time, _)| *time <= now) {
                    due.extend(faults.pop());
                }
                for (_, fault) in due {
                    self.happen(fault);
                }
            }
        }
    }

    /// Lets a fault happen now.
    pub(crate) fn happen(&mut self, fault: Fault) {
        let now = self.now();
        let tunnels = self.tunnels();
        // How long it takes until new flows work again: what was lost is noticed, what was refused is tried again.
        let felt = match fault {
            Fault::Kill => 12 * SECOND,
            Fault::Lose => 45 * SECOND,
            Fault::Stall(time) | Fault::NoDescriptors(_, time) => time + 12 * SECOND,
        };
        self.disturbed.push((now, now + felt));
        match fault {
            Fault::NoDescriptors(host, time) => self.stage.world.no_descriptors(host, now + time),
            _ if tunnels.is_empty() => {}
            Fault::Kill => self.stage.world.kill(self.rng.pick(&tunnels)),
            Fault::Lose => self.stage.world.lose(self.rng.pick(&tunnels)),
            Fault::Stall(time) => {
                for tunnel in tunnels {
                    self.stage.world.stall(tunnel, now + time);
                }
            }
        }
    }

    fn wake_host(&mut self, index: usize) {
        let now = self.now();
        let host = &mut self.hosts[index];
        if host.timer_at.is_some_and(|time| time <= now) {
            host.timer_at = None;
        }
        match host.turn_at {
            Some(time) if now < time => return,
            Some(_) => host.turn_at = None,
            None => {
                let time = now + self.rng.between(0, self.slowness);
                host.turn_at = Some(time);
                return self.stage.world.wake_at(Owner::Host(index), time);
            }
        }
        let Some(machine) = &mut host.machine else { return };
        machine.turn(now);
        let next_timer = machine.next_timer_in().map(|wait| now + u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX / 2));
        self.count_turn(index);
        let host = &mut self.hosts[index];
        if host.gauge.borrow().work {
            let time = now + self.rng.between(1, 20) * MICROSECOND;
            host.turn_at = Some(time);
            self.stage.world.wake_at(Owner::Host(index), time);
        }
        if let Some(time) = next_timer
            && host.timer_at.is_none_or(|earlier| time < earlier)
        {
            let time = time.max(now + MICROSECOND);
            host.timer_at = Some(time);
            self.stage.world.wake_at(Owner::Host(index), time);
        }
    }

    fn count_turn(&mut self, index: usize) {
        let now = self.now();
        let host = &mut self.hosts[index];
        if now / SECOND != host.second {
            host.second = now / SECOND;
            host.turns = 0;
        }
        host.turns += 1;
        self.most_turns = self.most_turns.max(host.turns);
        assert!(host.turns < TURNS_PER_SECOND, "host {index} spins: {TURNS_PER_SECOND} turns in simulated second {}", host.second);
    }
}
