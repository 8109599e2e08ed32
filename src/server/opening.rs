//! From a destination, by address or by name, to a connection: the look-up, the policy on each address that is really dialled, and the race
//! between those that are left. An opening belongs to a flow, which waits for it with what the peer has already sent.
//!
//! ```text
//!   begin ─▶ name: control thread ─▶ addresses, in one or two answers ┐
//!        └─▶ address ─────────────────────────────────────────────────┴▶ policy ─▶ race ─▶ Outcome: a connection, or a fault's code
//! ```
//!
//! What always holds between calls: the sockets of an opening are exactly the running attempts of its race; its one timer is set for what
//! the race waits for next; when it is over or cancelled nothing of it is left but perhaps a look-up, whose answer finds nobody.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tracing::{debug, warn};

use super::policy::{Denied, Policy};
use super::race::{Fault, Race, Rules, Step};
use crate::limits;
use crate::protocol::socks5::Target;
use crate::shard::core::{Closing, Core, Event, Owner};
use crate::shard::inbox::{NameError, ToControl};
use crate::shard::io::{Errno, Purpose};
use crate::shard::slab::{GenSlab, Key};
use crate::shard::timers::TimerId;

/// Marks the tickets of look-ups that are openings': a key's bits reach up to 56.
const TICKET: u64 = 1 << 63;

/// All openings of a shard.
///
/// The calling order: [`Openings::begin`], then [`Openings::set_flow`]; every event of an [`Owner::Opening`] to [`Openings::on_event`] and every
/// answer to a look-up to [`Openings::on_resolved`], until one of them gives the [`Outcome`], or [`Openings::cancel`].
#[derive(Debug)]
pub struct Openings {
    policy: Policy,
    source: Option<IpAddr>,
    rules: Rules,
    openings: GenSlab<Opening>,
}

/// One destination that is being connected to.
#[derive(Debug)]
struct Opening {
    flow: Option<Key>,
    target: Target,
    race: Race,
    sockets: Vec<(SocketAddr, Key)>,
    timer: Option<TimerId>,
    /// The first address that the policy has denied, for the log.
    denied: Option<(SocketAddr, Denied)>,
}

/// How an opening ended. It is forgotten with that.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Whose it was.
    pub flow: Key,
    /// What came of it.
    pub result: Result<Opened, Fault>,
}

/// A connection that is up. It belongs to the flow from now on.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The connection.
    pub socket: Key,
    /// Its own address, for the client's reply.
    pub bound: Option<SocketAddr>,
}

/// The code for an error of the kernel's.
#[must_use]
pub fn code_of(error: Errno) -> u8 {
    Fault::from(error).code()
}

impl Openings {
    /// None yet. `source`: the address to connect from; `connect_timeout`: how long one address has to accept.
    #[must_use]
    pub fn new(policy: Policy, source: Option<IpAddr>, connect_timeout: Duration) -> Self {
        let rules = Rules { stagger: limits::OPENING_STAGGER, each: connect_timeout, whole: limits::OPENING.max(connect_timeout) };
        Self { policy, source, rules, openings: GenSlab::default() }
    }

    /// Begins to connect to a destination. Name the flow before the next event.
    ///
    /// # Errors
    /// What can be said at once: the policy denies it.
    pub fn begin(&mut self, core: &mut Core, target: Target) -> Result<Key, Fault> {
        let race = Race::new(self.rules, core.now());
        let mut opening = Opening { flow: None, target, race, sockets: Vec::new(), timer: None, denied: None };
        let name = match &opening.target {
            Target::Address(address) => {
                let address = *address;
                opening.add(&self.policy, address);
                opening.race.no_more();
                None
            }
            // What no address could make right.
            Target::Name(_, 0) => {
                warn!("destination {} refused: {}", opening.target, Denied::PortZero);
                return Err(Fault::Denied);
            }
            Target::Name(name, _) => Some(name.clone()),
        };
        let key = self.openings.insert(opening);
        if let Some(name) = name {
            core.tell_control(ToControl::Resolve { shard: core.index(), ticket: TICKET | key.to_bits(), name, by_steps: true });
        }
        self.drive(core, key).map_or(Ok(key), Err)
    }

    /// Says whose an opening is.
    pub fn set_flow(&mut self, key: Key, flow: Key) {
        if let Some(opening) = self.openings.get_mut(key) {
            opening.flow = Some(flow);
        }
    }

    /// Takes what happened to one of the opening's sockets or to its timer.
    pub fn on_event(&mut self, core: &mut Core, key: Key, event: Event) -> Option<Outcome> {
        let opening = self.openings.get_mut(key)?;
        match event {
            Event::Connected { socket, result, .. } => {
                let place = opening.sockets.iter().position(|(_, its)| *its == socket)?;
                let (address, _) = opening.sockets.swap_remove(place);
                match result {
                    Ok(()) => {
                        let flow = opening.flow;
                        debug!("destination {} reached at {address}", opening.target);
                        self.cancel(core, key);
                        let bound = core.local_address(socket);
                        return Some(Outcome { flow: flow?, result: Ok(Opened { socket, bound }) });
                    }
                    Err(error) => {
                        debug!("destination {} not reached at {address}: {error}", opening.target);
                        opening.race.on_failed(address, error.into(), core.now());
                    }
                }
            }
            Event::Timer { .. } => opening.timer = None,
            Event::Accepted { .. } | Event::Received { .. } | Event::Sent { .. } | Event::Message(_) => return None,
        }
        self.go_on(core, key)
    }

    /// Whose look-up a ticket names: `Some` if it is an opening's.
    #[must_use]
    pub const fn of_ticket(ticket: u64) -> Option<Key> {
        if ticket & TICKET == 0 { None } else { Some(Key::from_bits(ticket & !TICKET)) }
    }

    /// Takes an answer to a look-up. `more`: the other family's is still to come.
    pub fn on_resolved(&mut self, core: &mut Core, key: Key, result: Result<Vec<IpAddr>, NameError>, more: bool) -> Option<Outcome> {
        let opening = self.openings.get_mut(key)?;
        let Target::Name(_, port) = opening.target else { return None };
        match result {
            Ok(addresses) => {
                for address in addresses {
                    opening.add(&self.policy, SocketAddr::new(address, port));
                }
            }
            Err(error) => {
                debug!("destination {}: {error}", opening.target);
                opening.race.note(match error {
                    NameError::NotFound => Fault::HostUnreachable,
                    NameError::Failed => Fault::General,
                    NameError::Busy => Fault::Limit,
                });
            }
        }
        if !more {
            opening.race.no_more();
        }
        self.go_on(core, key)
    }

    /// Gives an opening up, and closes what it has.
    pub fn cancel(&mut self, core: &mut Core, key: Key) {
        let Some(mut opening) = self.openings.remove(key) else { return };
        core.cancel_timer(&mut opening.timer);
        for (_, socket) in opening.sockets {
            core.close(socket, Closing::Graceful);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.openings.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.openings.is_empty()
    }

    fn go_on(&mut self, core: &mut Core, key: Key) -> Option<Outcome> {
        let flow = self.openings.get(key)?.flow;
        let fault = self.drive(core, key)?;
        Some(Outcome { flow: flow?, result: Err(fault) })
    }

    /// Does what the race says. `Some`: it has failed.
    fn drive(&mut self, core: &mut Core, key: Key) -> Option<Fault> {
        loop {
            let opening = self.openings.get_mut(key)?;
            match opening.race.poll(core.now()) {
                Step::Connect(address) => {
                    let socket = core.connect(address, self.source, Purpose::Flow, Owner::Opening(key));
                    opening.sockets.push((address, socket));
                }
                Step::Abandon(address) => {
                    debug!("destination {} not reached at {address} in time", opening.target);
                    if let Some(place) = opening.sockets.iter().position(|(its, _)| *its == address) {
                        let (_, socket) = opening.sockets.swap_remove(place);
                        core.close(socket, Closing::Graceful);
                    }
                }
                Step::Wait(until) => {
                    core.cancel_timer(&mut opening.timer);
                    opening.timer = Some(core.set_timer(until - core.now(), Owner::Opening(key), 0));
                    return None;
                }
                Step::Failed(fault) => {
                    opening.explain(fault);
                    self.cancel(core, key);
                    return Some(fault);
                }
            }
        }
    }
}

impl Opening {
    /// Lets an address take part, if the policy does.
    fn add(&mut self, policy: &Policy, address: SocketAddr) {
        match policy.check(address) {
            // A mapped address is the same destination for the kernel, and could not be dialled from an IPv4 source.
            Ok(()) => self.race.add(SocketAddr::new(address.ip().to_canonical(), address.port())),
            Err(denied) => {
                self.race.note(Fault::Denied);
                self.denied.get_or_insert((address, denied));
            }
        }
    }

    /// Says in the log why it failed: a denial is what an operator has to know of, everything else is the destination's affair.
    fn explain(&self, fault: Fault) {
        match (&self.target, self.denied) {
            (Target::Address(address), Some((_, denied))) if fault == Fault::Denied => warn!("destination {address} refused: {denied}"),
            (Target::Name(..), Some((address, denied))) if fault == Fault::Denied => {
                warn!("destination {} refused: {}: {denied}", self.target, address.ip());
            }
            _ => debug!("destination {} not reached: {fault}", self.target),
        }
    }
}
