//! How the exit gets from a destination to a connection, by itself: the openings of production in a role that does nothing else, against
//! addresses that answer, refuse, cannot be reached or keep silent, in virtual time.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use zhwkprox::protocol::socks5::Target;
use zhwkprox::server::opening::{Opened, Openings, Outcome};
use zhwkprox::server::policy::Policy;
use zhwkprox::server::race::Fault;
use zhwkprox::shard::Role;
use zhwkprox::shard::core::{Core, Event, Owner};
use zhwkprox::shard::inbox::Message;
use zhwkprox::shard::slab::Key;
use zhwkprox::shard::state::State;

use crate::engine::Temper;
use crate::harness::Simulation;
use crate::roles::{start, tunnels_at};
use crate::world::{EndId, Link, MILLISECOND, Nanos, Owner as Whose, Path, SECOND};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 443;
/// A timer of the test's role: the openings are given up.
const GIVE_UP: u8 = 200;

/// When it ended, for which target, and how.
type Log = Rc<RefCell<Vec<(Nanos, usize, Result<Option<SocketAddr>, Fault>)>>>;

/// Opens what it is given, keeps what it gets.
struct Opener {
    openings: Openings,
    targets: Vec<Target>,
    give_up: Option<Duration>,
    keys: Vec<Key>,
    log: Log,
}

impl Opener {
    fn note(&self, core: &Core, index: usize, result: Result<Option<SocketAddr>, Fault>) {
        let now = u64::try_from((core.now() - zhwkprox::shard::time::Time::ZERO).as_nanos()).unwrap();
        self.log.borrow_mut().push((now, index, result));
    }

    fn on_outcome(&mut self, core: &mut Core, outcome: Option<Outcome>) {
        let Some(Outcome { flow, result }) = outcome else { return };
        let result = result.map(|Opened { socket, bound }| {
            core.set_owner(socket, Owner::Role);
            bound
        });
        self.note(core, flow.index as usize, result);
    }
}

impl Role for Opener {
    fn start(&mut self, core: &mut Core) {
        for (index, target) in std::mem::take(&mut self.targets).into_iter().enumerate() {
            match self.openings.begin(core, target) {
                Ok(key) => {
                    self.openings.set_flow(key, Key { index: u32::try_from(index).unwrap(), generation: 0 });
                    self.keys.push(key);
                }
                Err(fault) => self.note(core, index, Err(fault)),
            }
        }
        if let Some(after) = self.give_up {
            core.set_timer(after, Owner::Role, GIVE_UP);
        }
    }

    fn on_event(&mut self, core: &mut Core, event: Event) {
        let outcome = match event {
            Event::Message(Message::Resolved { ticket, result, more }) => {
                let key = Openings::of_ticket(ticket).expect("only openings ask");
                self.openings.on_resolved(core, key, result, more)
            }
            Event::Timer { owner: Owner::Role, what: GIVE_UP } => {
                for key in std::mem::take(&mut self.keys) {
                    self.openings.cancel(core, key);
                }
                None
            }
            Event::Connected { owner: Owner::Opening(key), .. } | Event::Timer { owner: Owner::Opening(key), .. } => {
                self.openings.on_event(core, key, event)
            }
            other => panic!("{other:?} is nobody's"),
        };
        self.on_outcome(core, outcome);
    }

    fn flush(&mut self, _: &mut Core) {}

    fn state(&self, _: &mut State) {}

    fn is_finished(&self) -> bool {
        false
    }
}

struct Rig {
    simulation: Simulation,
    log: Log,
}

impl Rig {
    /// Targets for an exit that allows `allow` beyond the defaults; names mean what `names` says.
    fn new(targets: Vec<Target>, allow: &[&str], names: &[(&str, Vec<IpAddr>)], give_up: Option<Duration>) -> Self {
        let log = Log::default();
        let mut simulation = Simulation::new(11, tunnels_at(), 20_000);
        simulation.names = names.iter().map(|(name, addresses)| ((*name).to_owned(), addresses.clone())).collect();
        let allow: Vec<_> = allow.iter().map(|net| net.parse().unwrap()).collect();
        let noted = Rc::clone(&log);
        let opener = move || Opener {
            openings: Openings::new(Policy::new(allow.clone()), None, CONNECT_TIMEOUT),
            targets: targets.clone(),
            give_up,
            keys: Vec::new(),
            log: Rc::clone(&noted),
        };
        simulation.add_process(1, 8, Temper::CALM, Box::new(move |parts, world| start(parts, world, |_| opener())));
        Self { simulation, log }
    }

    fn names(names: &[(&str, Vec<IpAddr>)]) -> Self {
        Self::new(names.iter().map(|(name, _)| by_name(name)).collect(), &[], names, None)
    }

    fn path(self, ip: IpAddr, path: Path) -> Self {
        self.simulation.world().set_path(ip, Some(path));
        self
    }

    /// Somebody is there, so far away.
    fn listen(self, ip: IpAddr, one_way: Nanos) -> Self {
        let world = self.simulation.world();
        world.set_link(ip, Link { latency: (one_way, one_way), ..Link::PLAIN });
        world.listen(SocketAddr::new(ip, PORT), Whose::Nobody);
        self
    }

    /// Runs until so many have ended.
    fn ended(&mut self, count: usize) -> Vec<(Nanos, usize, Result<Option<SocketAddr>, Fault>)> {
        let log = Rc::clone(&self.log);
        assert!(self.simulation.run_until(100 * SECOND, |_| log.borrow().len() == count), "{:?}", log.borrow());
        let mut ended = log.borrow().clone();
        ended.sort_by_key(|(_, index, _)| *index);
        ended
    }

    /// What is left when all is over, losers that were half connected included: so many sockets, no timer.
    fn rests_with(&mut self, sockets: u64) {
        self.simulation.run_for(200 * SECOND);
        let state = self.simulation.state(0);
        assert_eq!((state.sockets, state.timers), (sockets, 0));
    }

    fn connections(&self, ip: IpAddr) -> Vec<EndId> {
        self.simulation.world().connections_to(SocketAddr::new(ip, PORT))
    }
}

fn by_name(name: &str) -> Target {
    Target::Name(name.to_owned(), PORT)
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn v6(last: u16) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])
}

#[test]
fn a_silent_ipv6_address_costs_a_quarter_of_a_second_and_its_socket_is_closed() {
    let mut rig = Rig::names(&[("a.test", vec![v6(1), v4(1)])]).path(v6(1), Path::Silent).listen(v4(1), MILLISECOND);
    let (at, _, result) = rig.ended(1)[0];
    assert!(matches!(result, Ok(Some(bound)) if bound.ip() == crate::engine::address(1)), "{result:?}");
    assert!((250 * MILLISECOND..300 * MILLISECOND).contains(&at), "{at}");
    rig.rests_with(1);
}

#[test]
fn an_ipv6_address_without_a_route_costs_nothing_and_the_first_three_silent_of_eight_three_quarters_of_a_second() {
    let eight: Vec<_> = (1..=8).map(v4).collect();
    let mut rig = Rig::names(&[("a.test", vec![v6(1), v4(9)]), ("b.test", eight)])
        .path(v6(1), Path::Unreachable)
        .path(v4(1), Path::Silent)
        .path(v4(2), Path::Silent)
        .path(v4(3), Path::Silent)
        .listen(v4(4), MILLISECOND)
        .listen(v4(9), MILLISECOND);
    let ended = rig.ended(2);
    assert!(ended.iter().all(|(_, _, result)| result.is_ok()), "{ended:?}");
    assert!(ended[0].0 < 30 * MILLISECOND, "{ended:?}");
    assert!((750 * MILLISECOND..800 * MILLISECOND).contains(&ended[1].0), "{ended:?}");
    rig.rests_with(2);
}

#[test]
fn of_two_that_answer_the_first_wins_and_the_other_connection_is_closed() {
    // Both are under way after 250 ms; IPv6 answers after 400, IPv4 after 350.
    let mut rig = Rig::names(&[("a.test", vec![v6(1), v4(1)])]).listen(v6(1), 200 * MILLISECOND).listen(v4(1), 50 * MILLISECOND);
    let (at, _, result) = rig.ended(1)[0];
    assert!(result.is_ok() && (350 * MILLISECOND..380 * MILLISECOND).contains(&at), "{at} {result:?}");
    rig.rests_with(1);
    assert_eq!((rig.connections(v4(1)).len(), rig.connections(v6(1)).len()), (1, 0), "the loser is gone");
}

#[test]
fn the_first_family_begins_without_the_other_which_joins_when_it_comes() {
    let mut rig = Rig::names(&[("a.test", vec![v6(1), v4(1)]), ("b.test", vec![v6(2), v4(2)])])
        .listen(v6(1), MILLISECOND)
        .path(v6(2), Path::Unreachable)
        .listen(v4(2), MILLISECOND);
    rig.simulation.late_family = SECOND;
    let ended = rig.ended(2);
    assert!(ended[0].2.is_ok() && ended[0].0 < 30 * MILLISECOND, "the look-up of the other family is not waited for: {ended:?}");
    assert!(ended[1].2.is_ok() && (SECOND..SECOND + 30 * MILLISECOND).contains(&ended[1].0), "{ended:?}");
    rig.rests_with(2);
}

#[test]
fn what_failed_is_told_with_the_best_explanation() {
    let targets = vec![
        Target::Address(SocketAddr::new(v4(1), PORT)),
        Target::Address(SocketAddr::new(v4(2), PORT)),
        Target::Address(SocketAddr::new(v4(3), PORT)),
        by_name("all.test"),
        by_name("absent.test"),
    ];
    let names = [("all.test", vec![v4(1), v4(2), v4(3)])];
    let mut rig = Rig::new(targets, &[], &names, None).path(v4(1), Path::Unreachable).path(v4(2), Path::Refused).path(v4(3), Path::Silent);
    let ended = rig.ended(5);
    let faults: Vec<_> = ended.iter().map(|(_, _, result)| result.unwrap_err()).collect();
    assert_eq!(faults, [Fault::HostUnreachable, Fault::Refused, Fault::TimedOut, Fault::Refused, Fault::HostUnreachable]);
    assert!((10 * SECOND..11 * SECOND).contains(&ended[2].0) && (10 * SECOND..11 * SECOND).contains(&ended[3].0), "{ended:?}");
    rig.rests_with(0);
}

#[test]
fn the_policy_holds_for_every_address_a_name_stands_for_in_every_spelling() {
    let inside = |text: &str| text.parse::<IpAddr>().unwrap();
    let spellings = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "10.0.0.9", "169.254.169.254", "::"];
    let mut names: Vec<(&str, Vec<IpAddr>)> = vec![("inside.test", spellings.iter().map(|text| inside(text)).collect())];
    // A denied address beside an allowed one is passed over.
    names.push(("mixed.test", vec![inside("::ffff:127.0.0.1"), inside("10.0.0.9"), v4(1)]));
    let mut targets: Vec<_> = names.iter().map(|(name, _)| by_name(name)).collect();
    targets.extend(spellings.iter().map(|text| Target::Address(SocketAddr::new(inside(text), PORT))));
    targets.push(Target::Address(SocketAddr::new(v4(1), 0)));
    targets.push(Target::Name("mixed.test".to_owned(), 0));
    let count = targets.len();
    let mut rig = Rig::new(targets, &[], &names, None).listen(v4(1), MILLISECOND);
    for text in spellings {
        rig = rig.listen(inside(text).to_canonical(), MILLISECOND);
    }
    let ended = rig.ended(count);
    for (_, index, result) in &ended {
        assert_eq!(result.is_ok(), *index == 1, "{index}: {result:?}");
        assert!(result.is_ok() || *result == Err(Fault::Denied), "{index}: {result:?}");
    }
    assert_eq!(rig.simulation.count(0, |gauge| gauge.connects), 1, "a denied address was dialled");
    rig.rests_with(1);
}

#[test]
fn a_mapped_address_is_dialled_as_the_ipv4_address_it_is() {
    let mapped = "::ffff:192.0.2.1".parse().unwrap();
    let mut rig = Rig::names(&[("a.test", vec![mapped, v4(1)])]).listen(v4(1), MILLISECOND);
    assert!(rig.ended(1)[0].2.is_ok());
    rig.rests_with(1);
    assert_eq!(rig.simulation.count(0, |gauge| gauge.connects), 1);
}

#[test]
fn giving_up_at_any_moment_leaves_no_socket_and_no_timer_and_a_late_answer_finds_nobody() {
    for after in [0, 5, 19, 20, 30, 260, 340, 360, 700] {
        let names = [("a.test", vec![v6(1), v4(1), v4(2)])];
        let mut rig = Rig::new(vec![by_name("a.test")], &[], &names, Some(Duration::from_millis(after)))
            .path(v6(1), Path::Silent)
            .path(v4(1), Path::Silent)
            .listen(v4(2), 200 * MILLISECOND);
        rig.rests_with(0);
        assert!(rig.log.borrow().is_empty(), "after {after} ms: {:?}", rig.log.borrow());
        assert!(rig.connections(v4(2)).is_empty());
    }
}

#[test]
fn without_descriptors_the_fault_is_a_limit() {
    let names = [("a.test", vec![v6(1), v4(1)])];
    let mut rig = Rig::names(&names).listen(v6(1), MILLISECOND).listen(v4(1), MILLISECOND);
    rig.simulation.world().no_descriptors(0, SECOND);
    assert_eq!(rig.ended(1)[0].2, Err(Fault::Limit));
    rig.rests_with(0);
}

#[test]
fn a_destination_that_keeps_silent_holds_up_no_other_opening() {
    let names = [("a.test", vec![v4(1)]), ("silent.test", vec![v4(2)])];
    let mut rig = Rig::names(&names).listen(v4(1), MILLISECOND).path(v4(2), Path::Silent);
    let first = rig.ended(1);
    assert!(first[0].1 == 0 && first[0].2.is_ok() && first[0].0 < 30 * MILLISECOND, "{first:?}");
    assert_eq!(rig.ended(2)[1].2, Err(Fault::TimedOut));
    rig.rests_with(1);
}
