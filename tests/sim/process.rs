//! The processes of the simulation: each has shards, over an engine each, and the control thread's part, which here is played by the
//! harness. A process can be killed and started again.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use zhwkprox::shard::buffers::Arena;
use zhwkprox::shard::inbox::{Postbox, ToControl};
use zhwkprox::shard::state::State;
use zhwkprox::shard::time::Time;
use zhwkprox::shard::{Role, Shard};

use crate::engine::{Gauge, SimIo, Temper};
use crate::world::{Nanos, World};

/// A shard, whatever its role.
pub(crate) trait Machine {
    fn turn(&mut self, now: Nanos);
    fn next_timer_in(&self) -> Option<Duration>;
    fn state(&self) -> State;
    fn is_finished(&self) -> bool;
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

    fn is_finished(&self) -> bool {
        Self::is_finished(self)
    }
}

/// What one shard is made of.
pub(crate) struct Part {
    pub(crate) io: SimIo,
    pub(crate) arena: Arena,
    pub(crate) seed: u64,
}

/// What a start gives: the shards, and the ends of their queues.
pub(crate) struct Started {
    pub(crate) machines: Vec<Box<dyn Machine>>,
    pub(crate) postboxes: Vec<Postbox>,
    pub(crate) control: UnboundedReceiver<ToControl>,
}

/// Makes the shards of a process over the engines given to it.
pub(crate) type Starter = Box<dyn Fn(Vec<Part>, &World) -> Started>;

/// Where one shard runs.
pub(crate) struct Host {
    pub(crate) process: usize,
    pub(crate) machine: Option<Box<dyn Machine>>,
    pub(crate) gauge: Rc<RefCell<Gauge>>,
    pub(crate) bell: Rc<RefCell<bool>>,
    pub(crate) arena: Arena,
    /// A turn is due then.
    pub(crate) turn_at: Option<Nanos>,
    /// A wake-up for its timers is in the world's events for then.
    pub(crate) timer_at: Option<Nanos>,
    pub(crate) second: Nanos,
    pub(crate) turns: u64,
    /// Its process has been stopped until then.
    pub(crate) frozen_until: Nanos,
}

/// Shards that live and die together.
pub(crate) struct Process {
    pub(crate) address: IpAddr,
    /// Its shards' places among the hosts.
    pub(crate) hosts: Vec<usize>,
    pub(crate) temper: Temper,
    pub(crate) starter: Starter,
    pub(crate) postboxes: Vec<Postbox>,
    pub(crate) control: Option<UnboundedReceiver<ToControl>>,
    /// How much its shards had given to each other when they were looked at last.
    pub(crate) handed_over: u64,
}
