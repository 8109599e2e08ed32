//! Puts a simulation together: hosts with a shard each, clients, destinations and faults, over one [`World`]. Runs them in one thread, event by
//! event, and stops the run when a shard spins or time runs out.
//!
//! What always holds between steps: everyone who was told of a change has looked at it, or will at a time that is in the world's events.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedReceiver;
use zhwkprox::limits::SLOT_BYTES;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::inbox::{Message, NameError, ToControl};
use zhwkprox::shard::state::State;

use crate::client::{Client, ClientPlan};
use crate::destination::{Destination, Kind};
use crate::engine::{Gauge, SimIo, Temper, address};
use crate::process::{Host, Part, Process, Started, Starter};
use crate::rng::Rng;
use crate::traffic::{Book, Stage};
use crate::world::{EndId, MICROSECOND, Nanos, Owner, SECOND, World};

/// The most turns a shard may take in one simulated second. A busy seed needs a tenth of it; a shard that spins needs a million.
const TURNS_PER_SECOND: u64 = 100_000;

/// What goes wrong, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A tunnel is reset on its way.
    Kill,
    /// Nothing passes a tunnel any more, and nobody is told.
    Lose,
    /// Nothing passes the tunnels for so long.
    Stall(Nanos),
    /// A process has no descriptors for so long.
    NoDescriptors(usize, Nanos),
    /// A process is killed, and started again so much later.
    Crash(usize, Nanos),
}

/// Work of the control threads.
enum Chore {
    Tell { process: usize, shard: usize, message: Message },
    Start(usize),
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
    processes: Vec<Process>,
    /// What names mean.
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
    /// How much later the other family's addresses are known.
    pub(crate) late_family: Nanos,
    /// What the control threads have to do, and when.
    chores: Vec<(Nanos, Chore)>,
    actors: Vec<Actor>,
    clients: u32,
    /// Longest time from a change to the turn that sees it.
    slowness: Nanos,
    /// What has been done to the tunnels: when, and until when it may be felt.
    pub(crate) disturbed: Vec<(Nanos, Nanos)>,
    /// When a process was killed, and which.
    pub(crate) crashes: Vec<(Nanos, usize)>,
    pub(crate) most_turns: u64,
}

impl Simulation {
    pub(crate) fn new(seed: u64, tunnels_at: SocketAddr, slowness: Nanos) -> Self {
        let mut rng = Rng::new(seed);
        let world = World::new(rng.next());
        world.with_observer(|observer| observer.watch(tunnels_at));
        let stage = Stage { world, seed, book: Rc::new(RefCell::new(Book::default())) };
        Self {
            stage,
            rng,
            tunnels_at,
            hosts: Vec::new(),
            processes: Vec::new(),
            names: BTreeMap::new(),
            late_family: 0,
            chores: Vec::new(),
            actors: Vec::new(),
            clients: 0,
            slowness,
            disturbed: Vec::new(),
            crashes: Vec::new(),
            most_turns: 0,
        }
    }

    pub(crate) fn world(&self) -> &World {
        &self.stage.world
    }

    pub(crate) fn now(&self) -> Nanos {
        self.stage.world.now()
    }

    // ---- processes

    /// Adds a process with so many shards of so many slots each, and starts it.
    pub(crate) fn add_process(&mut self, shards: usize, slots: usize, temper: Temper, starter: Starter) {
        let process = self.processes.len();
        let number = u8::try_from(process + 1).expect("few processes");
        let hosts = self.hosts.len()..self.hosts.len() + shards;
        for _ in hosts.clone() {
            let arena = Arena::new(slots * SLOT_BYTES).expect("memory for the arena");
            self.hosts.push(Host {
                process,
                machine: None,
                gauge: Rc::default(),
                bell: Rc::default(),
                arena,
                turn_at: None,
                timer_at: None,
                second: 0,
                turns: 0,
            });
        }
        let hosts = hosts.collect();
        let address = address(number);
        self.processes.push(Process { address, hosts, temper, starter, postboxes: Vec::new(), control: None, handed_over: 0 });
        self.start(process);
    }

    /// Starts a process, again.
    pub(crate) fn start(&mut self, process: usize) {
        let Process { address, hosts, temper, .. } = &self.processes[process];
        let mut parts = Vec::new();
        for &host in hosts {
            let arena = self.hosts[host].arena.clone();
            let io = SimIo::new(&self.stage.world, host, *address, arena.clone(), *temper, self.rng.fork());
            self.hosts[host].gauge = io.gauge();
            self.hosts[host].bell = io.bell();
            parts.push(Part { io, arena, seed: self.rng.next() });
        }
        let Started { machines, postboxes, control } = (self.processes[process].starter)(parts, &self.stage.world);
        for (&host, machine) in hosts.iter().zip(machines) {
            self.hosts[host].machine = Some(machine);
            self.stage.world.wake_at(Owner::Host(host), self.stage.world.now());
        }
        let process = &mut self.processes[process];
        process.postboxes = postboxes;
        process.control = Some(control);
        process.handed_over = 0;
    }

    /// Kills a process: the kernel closes its sockets.
    pub(crate) fn stop(&mut self, process: usize) {
        for &host in &self.processes[process].hosts {
            self.hosts[host].machine = None;
        }
        self.processes[process].postboxes.clear();
        self.processes[process].control = None;
        self.stage.world.close_in_transit(&self.processes[process].hosts);
    }

    fn hosts_of(&self, process: usize) -> impl Iterator<Item = &Host> {
        self.processes[process].hosts.iter().map(|&host| &self.hosts[host])
    }

    /// The sum over its shards; nothing while it is dead.
    pub(crate) fn state(&self, process: usize) -> State {
        let mut sum = State::default();
        for machine in self.hosts_of(process).filter_map(|host| host.machine.as_ref()) {
            sum.add(&machine.state());
        }
        sum
    }

    /// Whether all its shards have ended in order.
    pub(crate) fn is_finished(&self, process: usize) -> bool {
        self.hosts_of(process).all(|host| host.machine.as_ref().is_some_and(|machine| machine.is_finished()))
    }

    /// A number of its engines', summed up.
    pub(crate) fn count(&self, process: usize, what: impl Fn(&Gauge) -> u64) -> u64 {
        self.hosts_of(process).map(|host| what(&host.gauge.borrow())).sum()
    }

    /// Slots that are free or lent to the kernel, and slots in all.
    pub(crate) fn free_slots(&self, process: usize) -> (usize, usize) {
        let free = self.hosts_of(process).map(|host| host.gauge.borrow().lent + host.arena.free()).sum();
        (free, self.hosts_of(process).map(|host| host.arena.slots()).sum())
    }

    /// Gives each shard of a process a message, as its control thread would.
    pub(crate) fn tell(&mut self, process: usize, message: impl Fn() -> Message) {
        for shard in 0..self.processes[process].hosts.len() {
            self.tell_shard(process, shard, message());
        }
    }

    fn tell_shard(&self, process: usize, shard: usize, message: Message) {
        if let Some(postbox) = self.processes[process].postboxes.get(shard) {
            postbox.post(message);
            self.ring(self.processes[process].hosts[shard]);
        }
    }

    fn ring(&self, host: usize) {
        *self.hosts[host].bell.borrow_mut() = true;
        self.stage.world.wake_at(Owner::Host(host), self.now());
    }

    /// Does what the control threads have to do by now.
    fn run_control(&mut self) {
        let now = self.now();
        while let Some(due) = self.chores.iter().position(|(time, _)| *time <= now) {
            match self.chores.swap_remove(due).1 {
                Chore::Tell { process, shard, message } => self.tell_shard(process, shard, message),
                Chore::Start(process) => self.start(process),
            }
        }
    }

    fn add_chore(&mut self, time: Nanos, chore: Chore) {
        self.chores.push((time, chore));
        self.stage.world.wake_at(Owner::Control, time);
    }

    /// Hears what a shard wants of its control thread and of the other shards.
    fn hear(&mut self, process: usize) {
        while let Some(Ok(question)) = self.processes[process].control.as_mut().map(UnboundedReceiver::try_recv) {
            if let ToControl::Resolve { shard, ticket, name, by_steps } = question {
                let result = self.names.get(&name).cloned().ok_or(NameError::NotFound);
                let time = self.now() + self.rng.below(20_000) * MICROSECOND;
                if by_steps && let Ok(addresses) = &result {
                    // The family of the first one comes first.
                    let first = addresses.iter().filter(|address| address.is_ipv4() == addresses[0].is_ipv4()).copied().collect();
                    let message = Message::Resolved { ticket, result: Ok(first), more: true };
                    self.add_chore(time, Chore::Tell { process, shard, message });
                }
                let time = time + u64::from(by_steps) * self.late_family;
                self.add_chore(time, Chore::Tell { process, shard, message: Message::Resolved { ticket, result, more: false } });
            }
        }
        if self.processes[process].hosts.len() > 1 {
            let handed_over = self.state(process).handed_over;
            if handed_over != self.processes[process].handed_over {
                self.processes[process].handed_over = handed_over;
                // To whom is not seen from outside; a bell without a message does no harm.
                for &host in &self.processes[process].hosts {
                    self.ring(host);
                }
            }
        }
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
                    Owner::Control => self.run_control(),
                    Owner::Nobody => {}
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
            Fault::Stall(time) | Fault::NoDescriptors(_, time) | Fault::Crash(_, time) => time + 12 * SECOND,
        };
        self.disturbed.push((now, now + felt));
        match fault {
            Fault::NoDescriptors(process, time) => {
                for &host in &self.processes[process].hosts {
                    self.stage.world.no_descriptors(host, now + time);
                }
            }
            Fault::Crash(process, _) if self.hosts_of(process).any(|host| host.machine.is_none()) => {}
            Fault::Crash(process, time) => {
                self.crashes.push((now, process));
                self.stop(process);
                self.add_chore(now + time, Chore::Start(process));
            }
            _ if tunnels.is_empty() => {}
            Fault::Kill => {
                let victim = self.victim(&tunnels);
                self.stage.world.kill(victim);
            }
            Fault::Lose => {
                let victim = self.victim(&tunnels);
                self.stage.world.lose(victim);
            }
            Fault::Stall(time) => {
                for tunnel in tunnels {
                    self.stage.world.stall(tunnel, now + time);
                }
            }
        }
    }

    /// Any tunnel, more often one that carries something.
    fn victim(&mut self, tunnels: &[EndId]) -> EndId {
        let carries = |end: &EndId| self.stage.world.with_observer(|observer| observer.open_on(*end)) > 0;
        let carrying: Vec<EndId> = tunnels.iter().copied().filter(carries).collect();
        let from = if carrying.is_empty() || self.rng.chance(25) { tunnels } else { &carrying };
        self.rng.pick(from)
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
        self.hear(self.hosts[index].process);
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
