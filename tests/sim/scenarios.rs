//! Named scenarios in virtual time: an hour passes in milliseconds, so what the relay promises about waiting can be shown as promised.

use std::net::{IpAddr, SocketAddr};

use zhwkprox::shard::inbox::Message;

use crate::client::{ClientPlan, Manner, name_of};
use crate::destination::Kind;
use crate::duplex::{Abort, AbortWhen, Amount, Begin, Finish, Plan};
use crate::engine::address;
use crate::harness::{Fault, Simulation};
use crate::roles::{ENTRY, EXIT, Topology, Version, build, socks_at};
use crate::seeds::finish;
use crate::traffic::{Ending, FIRST_CONNECTION, NAME_BYTES, Pace, Record};
use crate::verdict::{Plans, check_flows, is_empty};
use crate::world::{Link, MILLISECOND, Nanos, Owner, Path, Read, SECOND};

/// A destination's address by number.
pub(crate) fn at(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([93, 184, 216, number]), 80)
}

/// Sends nothing, ever, and does not end.
pub(crate) const MUTE: Plan = Plan { write: Pace { hold: 1_000_000 * SECOND, piece: 1, pause: 0 }, ..Plan::send(NAME_BYTES) };

/// Takes connections and never reads from them.
pub(crate) const NEVER_READS: Plan = Plan { read: Pace { hold: 1_000_000 * SECOND, ..Pace::FULL }, ..MUTE };

pub(crate) struct Scene {
    pub(crate) simulation: Simulation,
    pub(crate) plans: Plans,
}

impl Scene {
    /// Both roles, with tunnels.
    pub(crate) fn new(topology: &Topology) -> Self {
        let mut simulation = build(1, topology);
        assert!(simulation.run_until(30 * SECOND, |simulation| simulation.state(ENTRY).tunnels > 0));
        simulation.run_for(SECOND);
        Self { simulation, plans: Plans { ample: true, calm: true, ..Plans::default() } }
    }

    pub(crate) fn destination(&mut self, at: SocketAddr, kind: Kind) {
        self.simulation.add_destination(at, kind);
        self.plans.destinations.insert(at, kind);
    }

    pub(crate) fn client_after(&mut self, wait: Nanos, target: SocketAddr, plan: Plan) -> u32 {
        let start = self.simulation.now() + wait;
        self.simulation.add_client(Self::plan(start, target, plan))
    }

    fn plan(start: Nanos, target: SocketAddr, plan: Plan) -> ClientPlan {
        let (entry, from, manner) = (socks_at(), address(9), Manner::Polite);
        ClientPlan { start, entry, from, target, by_name: false, manner, hang_up_at: None, plan }
    }

    /// A client that asks for the target's name, which has these addresses.
    fn client_by_name(&mut self, target: SocketAddr, addresses: Vec<IpAddr>, plan: Plan) -> u32 {
        self.simulation.names.insert(name_of(target), addresses);
        self.simulation.add_client(ClientPlan { by_name: true, ..Self::plan(self.simulation.now(), target, plan) })
    }

    pub(crate) fn client(&mut self, target: SocketAddr, plan: Plan) -> u32 {
        self.client_after(0, target, plan)
    }

    pub(crate) fn record(&self, number: u32) -> Record {
        self.simulation.stage.book.borrow().records[&number].clone()
    }

    /// Runs until every client and destination is done.
    pub(crate) fn run(&mut self, longest: Nanos) {
        let deadline = self.simulation.now() + longest;
        self.simulation.run_until(deadline, |simulation| simulation.stage.book.borrow().unfinished().is_empty());
        let unfinished = self.simulation.stage.book.borrow().unfinished();
        assert!(unfinished.is_empty(), "not over after {} s: {unfinished:?}", longest / SECOND);
    }

    /// All is whole, and all is given back.
    pub(crate) fn conclude(mut self) {
        check_flows(&self.simulation, &self.plans);
        let deadline = self.simulation.now() + 400 * SECOND;
        self.simulation.run_until(deadline, |simulation| [ENTRY, EXIT].iter().all(|host| is_empty(&simulation.state(*host))));
        finish(&self.simulation);
    }

    pub(crate) fn took(&self, number: u32) -> Nanos {
        let record = self.record(number);
        record.finished.expect("it is over") - record.started
    }
}

#[test]
fn a_client_that_half_closes_still_gets_its_answer_a_minute_later() {
    let mut scene = Scene::new(&Topology::PLAIN);
    let answer = Plan { begin: Begin::AfterEnd, write: Pace { hold: 60 * SECOND, ..Pace::FULL }, ..Plan::send(100_000) };
    scene.destination(at(1), Kind::Serves(answer));
    let client = scene.client(at(1), Plan::send(1_000));
    scene.run(100 * SECOND);
    assert!(scene.took(client) > 60 * SECOND);
    scene.conclude();
}

#[test]
fn a_client_goes_on_sending_a_minute_after_the_destination_has_ended() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan::send(1_000)));
    let client =
        scene.client(at(1), Plan { begin: Begin::AfterEnd, write: Pace { hold: 60 * SECOND, ..Pace::FULL }, ..Plan::send(100_000) });
    scene.run(100 * SECOND);
    assert!(scene.took(client) > 60 * SECOND);
    scene.conclude();
}

#[test]
fn a_half_open_flow_without_progress_is_gone_after_the_linger_and_not_before() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(MUTE));
    let client = scene.client(at(1), Plan::send(1_000));
    scene.simulation.run_for(295 * SECOND);
    assert_eq!(scene.simulation.state(ENTRY).half_open, 1);
    assert_eq!(scene.simulation.state(EXIT).half_open, 1);
    scene.simulation.run_for(10 * SECOND);
    assert_eq!(scene.simulation.state(EXIT).flows + scene.simulation.state(EXIT).detached, 0);
    assert!(scene.record(client).finished.is_some());
    finish(&scene.simulation);
}

#[test]
fn a_connect_that_is_never_answered_ends_its_flow_after_ten_seconds() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Path(Path::Silent));
    let client = scene.client(at(1), Plan::send(1_000));
    scene.run(20 * SECOND);
    let took = scene.took(client);
    assert!((9 * SECOND..=11 * SECOND).contains(&took), "{took}");
    assert_eq!(scene.record(client).received, 0);
    scene.conclude();
}

#[test]
fn a_refused_or_unreachable_destination_ends_its_flow_at_once() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Path(Path::Refused));
    scene.destination(at(2), Kind::Path(Path::Unreachable));
    let clients = [scene.client(at(1), Plan::send(1_000)), scene.client(at(2), Plan::send(1_000))];
    scene.run(SECOND);
    assert!(clients.iter().all(|client| scene.took(*client) < 100 * MILLISECOND));
    scene.conclude();
}

#[test]
fn a_flow_goes_to_another_tunnel_when_its_own_dies_before_the_first_byte() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan { write: Pace { hold: SECOND, ..Pace::FULL }, ..Plan::send(50_000) }));
    let client = scene.client(at(1), Plan { begin: Begin::After(NAME_BYTES), ..Plan::send(5_000) });
    scene.simulation.run_for(200 * MILLISECOND);
    let world = scene.simulation.world().clone();
    let carrying = |end: &usize| world.with_observer(|observer| observer.open_on(*end)) > 0;
    let tunnels: Vec<_> = scene.simulation.tunnels().into_iter().filter(carrying).collect();
    assert_eq!(tunnels.len(), 1);
    world.kill(tunnels[0]);
    scene.run(10 * SECOND);
    let connections = scene.simulation.stage.book.borrow().records.keys().filter(|number| **number >= FIRST_CONNECTION).count();
    assert_eq!(connections, 2, "the destination is connected to again");
    assert_eq!(scene.record(client).received, 50_000);
    scene.conclude();
}

#[test]
fn a_spare_that_closes_just_as_flows_open_costs_none_of_them() {
    let link = Link { latency: (80 * MILLISECOND, 80 * MILLISECOND), ..Link::PLAIN };
    let mut scene = Scene::new(&Topology { tunnel_link: link, ..Topology::PLAIN });
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    for _ in 0..8 {
        scene.client(at(1), Plan::send(1_000));
    }
    // The burst's tunnels become spares too many after 60 s, and are looked at every few seconds.
    for step in 0..60 {
        for _ in 0..1 + step % 5 {
            scene.client_after(56 * SECOND + step * 250 * MILLISECOND, at(1), Plan::send(1_000));
        }
    }
    scene.run(100 * SECOND);
    scene.conclude();
}

#[test]
fn a_flow_that_blocks_a_shared_tunnel_is_cut_after_ten_seconds_and_the_other_goes_on() {
    let mut scene = Scene::new(&Topology { max_tunnels: 1, ..Topology::PLAIN });
    scene.destination(at(1), Kind::Serves(NEVER_READS));
    scene.destination(at(2), Kind::Serves(Plan::echo()));
    let steady = Pace { hold: 0, piece: 5_000, pause: SECOND };
    let other = scene.client(at(2), Plan { write: steady, ..Plan::send(200_000) });
    let blocks = scene.client_after(3 * SECOND, at(1), Plan::send(2_000_000));
    let deadline = scene.simulation.now() + 100 * SECOND;
    assert!(scene.simulation.run_until(deadline, |simulation| simulation.stage.book.borrow().records[&other].finished.is_some()));
    let record = scene.record(other);
    assert_eq!((record.received, record.ending), (200_000, Some(Ending::Fin)));
    // Its sending takes 39 s, and the ten in which nothing passed are caught up with.
    assert!(scene.took(other) < 55 * SECOND, "{record:?}");
    let record = scene.record(blocks);
    assert!(record.ending.is_some() && record.ending_at.unwrap() - record.started < 15 * SECOND, "{record:?}");
}

#[test]
fn a_tunnel_that_a_flow_has_filled_takes_no_second_one_and_the_client_is_told_in_time() {
    let mut scene = Scene::new(&Topology { max_tunnels: 1, ..Topology::PLAIN });
    scene.destination(at(1), Kind::Serves(NEVER_READS));
    scene.destination(at(2), Kind::Serves(Plan::echo()));
    scene.client(at(1), Plan::send(2_000_000));
    let other = scene.client_after(3 * SECOND, at(2), Plan::send(1_000));
    scene.simulation.run_for(10 * SECOND);
    assert_eq!(scene.record(other).reply, Some(1));
    let took = scene.took(other);
    assert!((5 * SECOND..6 * SECOND).contains(&took), "{took}");
}

#[test]
fn a_flow_alone_on_its_tunnel_may_block_it_for_minutes() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan { read: Pace { hold: 120 * SECOND, ..Pace::FULL }, ..Plan::echo() }));
    scene.destination(at(2), Kind::Serves(Plan::echo()));
    let blocked = scene.client(at(1), Plan::send(1_000_000));
    let others: Vec<u32> = (0..5).map(|step| scene.client_after(step * 10 * SECOND, at(2), Plan::send(100_000))).collect();
    scene.simulation.run_for(60 * SECOND);
    let held = scene.simulation.state(EXIT).slots_in_use;
    scene.simulation.run_for(30 * SECOND);
    assert_eq!(scene.simulation.state(EXIT).slots_in_use, held, "a reader that stalls does not take more slots with time");
    scene.run(100 * SECOND);
    assert!(scene.took(blocked) >= 120 * SECOND);
    assert!(others.iter().all(|other| scene.took(*other) < SECOND), "the others do not notice");
    scene.conclude();
}

#[test]
fn two_hundred_flows_over_four_slots_all_finish() {
    let mut scene = Scene::new(&Topology { slots: [4, 4], ..Topology::PLAIN });
    scene.plans.ample = false;
    for number in 1..=20 {
        scene.destination(at(number), Kind::Serves(Plan::echo()));
    }
    let clients: Vec<u32> = (0..200_u32)
        .map(|client| scene.client(at(u8::try_from(client % 20 + 1).unwrap()), Plan::send(500 + 97 * client as usize)))
        .collect();
    scene.run(300 * SECOND);
    assert!(clients.iter().all(|client| scene.record(*client).reply == Some(0)), "each has a tunnel within its time");
    assert!(scene.simulation.count(EXIT, |gauge| gauge.no_buffers) > 0, "slots did run out");
    scene.conclude();
}

#[test]
fn idle_flows_hold_no_slot() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan { write: Pace { hold: 0, piece: 4, pause: 100 * SECOND }, ..Plan::send(NAME_BYTES) }));
    for client in 0..100 {
        scene.client_after(client * 20 * MILLISECOND, at(1), Plan { begin: Begin::After(NAME_BYTES), ..Plan::send(50) });
    }
    scene.simulation.run_for(20 * SECOND);
    for host in [ENTRY, EXIT] {
        let state = scene.simulation.state(host);
        assert_eq!((state.flows, state.slots_in_use, state.parked), (100, 0, 0), "host {host}");
    }
    scene.run(200 * SECOND);
    scene.conclude();
}

#[test]
fn an_entry_that_is_dead_for_an_hour_costs_the_exit_nothing_and_service_is_back_in_seconds() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    scene.simulation.stop(ENTRY);
    scene.simulation.run_for(60 * SECOND);
    let before = scene.simulation.count(EXIT, |gauge| gauge.connects);
    let mut attempts = Vec::new();
    for _ in 0..360 {
        scene.simulation.run_for(10 * SECOND);
        let state = scene.simulation.state(EXIT);
        assert!(state.sockets <= 2 && state.timers <= 4, "{state:?}");
        assert!(is_empty(&state), "{state:?}");
        attempts.push(scene.simulation.count(EXIT, |gauge| gauge.connects));
    }
    let count = attempts[359] - before;
    // Full jitter up to 10 s: about one in 5 s, and never a storm.
    assert!((360..3_600).contains(&count), "{count} attempts in an hour");
    let steps: Vec<u64> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(steps.iter().any(|step| *step != steps[0]), "the pauses are jittered");
    scene.simulation.start(ENTRY);
    let back = scene.simulation.now() + 11 * SECOND;
    assert!(scene.simulation.run_until(back, |simulation| simulation.state(ENTRY).tunnels > 0));
    scene.client(at(1), Plan::send(10_000));
    scene.run(10 * SECOND);
    scene.conclude();
}

#[test]
fn a_shared_tunnel_on_which_only_dropped_replies_are_left_is_closed_and_service_goes_on() {
    let mut scene = Scene::new(&Topology { max_tunnels: 1, ..Topology::PLAIN });
    scene.plans.calm = false;
    let endless = Pace { hold: 0, piece: 100, pause: 100 * MILLISECOND };
    scene.destination(at(1), Kind::Serves(Plan { write: endless, ..Plan::send(10_000_000) }));
    scene.destination(at(2), Kind::Serves(Plan { write: Pace { hold: 40 * SECOND, ..Pace::FULL }, ..Plan::send(1_000) }));
    scene.destination(at(3), Kind::Serves(Plan::echo()));
    scene.client(at(2), Plan::send(1_000));
    let gone = Abort { when: AbortWhen::Time(2 * SECOND), reset: true };
    scene.client(at(1), Plan { finish: Finish::AfterEnd, abort: Some(gone), ..Plan::send(1_000) });
    scene.simulation.run_for(60 * SECOND);
    let next = scene.client(at(3), Plan::send(5_000));
    scene.simulation.run_for(5 * SECOND);
    assert_eq!(scene.record(next).received, 5_000, "{:?}", scene.record(next));
}

#[test]
fn a_tunnel_that_is_reset_resets_all_its_flows_at_both_ends_at_once() {
    let mut scene = Scene::new(&Topology { max_tunnels: 1, ..Topology::PLAIN });
    for number in 1..=3 {
        scene.destination(
            at(number),
            Kind::Serves(Plan { write: Pace { hold: 0, piece: 100, pause: 100 * MILLISECOND }, ..Plan::send(50_000) }),
        );
        scene.client(at(number), Plan { finish: Finish::AfterEnd, ..Plan::send(1_000) });
    }
    scene.simulation.run_for(5 * SECOND);
    assert_eq!(scene.simulation.state(EXIT).flows, 3);
    scene.simulation.happen(Fault::Kill);
    scene.run(100 * MILLISECOND);
    let book = scene.simulation.stage.book.borrow().records.clone();
    assert_eq!(book.len(), 6);
    assert!(book.values().all(|record| record.ending == Some(Ending::Reset)), "{book:#?}");
    scene.conclude();
}

#[test]
fn a_tunnel_whose_path_is_lost_resets_its_flows_within_forty_seconds_and_new_ones_work() {
    let mut scene = Scene::new(&Topology { max_tunnels: 1, ..Topology::PLAIN });
    scene.destination(at(1), Kind::Serves(Plan { write: Pace { hold: 0, piece: 100, pause: 100 * MILLISECOND }, ..Plan::send(500_000) }));
    let client = scene.client(at(1), Plan { finish: Finish::AfterEnd, ..Plan::send(1_000) });
    scene.simulation.run_for(5 * SECOND);
    scene.simulation.happen(Fault::Lose);
    scene.run(36 * SECOND);
    assert_eq!(scene.record(client).ending, Some(Ending::Reset));
    scene.simulation.run_for(12 * SECOND);
    scene.destination(at(2), Kind::Serves(Plan::echo()));
    let again = scene.client(at(2), Plan { amount: Amount::Bytes(5_000), ..Plan::send(0) });
    scene.run(10 * SECOND);
    assert_eq!(scene.record(again).received, 5_000);
    scene.conclude();
}

#[test]
fn without_an_exit_a_client_is_told_so_at_once() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.simulation.stop(EXIT);
    scene.simulation.run_for(SECOND);
    let client = scene.client(at(1), Plan::send(1_000));
    scene.simulation.run_for(SECOND);
    assert_eq!(scene.record(client).reply, Some(1));
    assert!(scene.took(client) < 100 * MILLISECOND);
    assert!(is_empty(&scene.simulation.state(ENTRY)));
}

#[test]
fn a_client_that_says_nothing_is_gone_after_ten_seconds() {
    let mut scene = Scene::new(&Topology::PLAIN);
    let world = scene.simulation.world().clone();
    let end = world.connect(address(9), socks_at(), Owner::Nobody, false);
    scene.simulation.run_for(9 * SECOND);
    assert_eq!(world.read(end, 1), Read::Nothing);
    assert_eq!(scene.simulation.state(ENTRY).clients_pending, 1);
    scene.simulation.run_for(2 * SECOND);
    assert_ne!(world.read(end, 1), Read::Nothing);
    assert!(is_empty(&scene.simulation.state(ENTRY)));
}

#[test]
fn without_descriptors_for_twenty_seconds_the_entry_stays_quiet_and_then_serves_who_waited() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    scene.simulation.happen(Fault::NoDescriptors(ENTRY, 20 * SECOND));
    scene.simulation.most_turns = 0;
    let clients: Vec<u32> = (0..10).map(|client| scene.client_after(client * SECOND, at(1), Plan::send(1_000))).collect();
    scene.simulation.run_for(19 * SECOND);
    assert!(scene.simulation.most_turns < 2_000, "{} turns in a second", scene.simulation.most_turns);
    scene.run(20 * SECOND);
    assert!(clients.iter().all(|client| scene.record(*client).received == 1_000));
    scene.conclude();
}

#[test]
fn a_name_whose_first_addresses_do_not_work_is_served_by_the_next() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    scene.destination(at(2), Kind::Path(Path::Refused));
    scene.destination(at(3), Kind::Path(Path::Unreachable));
    let client = scene.client_by_name(at(1), vec![at(2).ip(), at(3).ip(), at(1).ip()], Plan::send(5_000));
    scene.run(SECOND);
    let record = scene.record(client);
    assert_eq!((record.received, record.ending), (5_000, Some(Ending::Fin)));
    scene.conclude();
}

#[test]
fn an_unknown_name_is_answered_as_an_unreachable_host() {
    let mut scene = Scene::new(&Topology::PLAIN);
    let start = scene.simulation.now();
    let client = scene.simulation.add_client(ClientPlan { by_name: true, ..Scene::plan(start, at(1), Plan::send(5_000)) });
    scene.run(SECOND);
    assert_eq!(scene.record(client).reply, Some(4));
    scene.simulation.run_for(2 * SECOND);
    finish(&scene.simulation);
}

#[test]
fn clients_of_a_shard_without_a_tunnel_are_handed_to_the_one_that_has_it() {
    let mut scene = Scene::new(&Topology { shards: [2, 1], max_tunnels: 1, ..Topology::PLAIN });
    for number in 1..=20 {
        scene.destination(at(number), Kind::Serves(Plan::echo()));
        scene.client(at(number), Plan::send(2_000));
    }
    scene.run(10 * SECOND);
    let handed_over = scene.simulation.state(ENTRY).handed_over;
    assert!((1..=20).contains(&handed_over), "{handed_over} of 20, the tunnel perhaps too");
    scene.conclude();
}

#[test]
fn after_a_stop_running_flows_finish_nothing_new_is_taken_and_both_roles_end() {
    let mut scene = Scene::new(&Topology::PLAIN);
    let slow = Pace { hold: 0, piece: 1_000, pause: SECOND };
    scene.destination(at(1), Kind::Serves(Plan { write: slow, ..Plan::send(15_000) }));
    let running = scene.client(at(1), Plan::send(1_000));
    scene.simulation.run_for(5 * SECOND);
    for process in [ENTRY, EXIT] {
        scene.simulation.tell(process, || Message::Stop);
    }
    scene.simulation.run_for(SECOND);
    let late = scene.client(at(1), Plan::send(1_000));
    scene.run(20 * SECOND);
    let record = scene.record(running);
    assert_eq!((record.received, record.ending), (15_000, Some(Ending::Fin)));
    assert_eq!(scene.record(late).reply, None);
    let deadline = scene.simulation.now() + SECOND;
    let ended = |simulation: &Simulation| simulation.is_finished(ENTRY) && simulation.is_finished(EXIT);
    assert!(scene.simulation.run_until(deadline, ended));
}

#[test]
fn an_exit_that_is_killed_and_started_again_serves_within_seconds() {
    let mut scene = Scene::new(&Topology::PLAIN);
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    scene.client(at(1), Plan { gap: 100 * SECOND, ..Plan::send(1_000) });
    scene.simulation.run_for(SECOND);
    scene.simulation.happen(Fault::Crash(EXIT, 2 * SECOND));
    scene.simulation.run_for(3 * SECOND);
    let again = scene.client(at(1), Plan::send(1_000));
    scene.run(5 * SECOND);
    assert_eq!(scene.record(again).received, 1_000);
    scene.conclude();
}

#[test]
fn the_last_bytes_of_a_flow_arrive_although_its_tunnel_is_closed_behind_it() {
    let mut scene = Scene::new(&Topology { max_tunnels: 1, ..Topology::PLAIN });
    // One flow's client goes away, and its destination sends on: after half a minute of dropping that the tunnel is to be closed …
    let endless = Pace { hold: 0, piece: 100, pause: SECOND };
    scene.destination(at(1), Kind::Serves(Plan { write: endless, ..Plan::send(20_000) }));
    let gone = Some(Abort { when: AbortWhen::Time(2 * SECOND), reset: true });
    scene.client(at(1), Plan { finish: Finish::AfterEnd, abort: gone, ..Plan::send(1_000) });
    // … as soon as the other has ended, and what that one says last is the end of its request.
    scene.destination(at(2), Kind::Serves(Plan::send(1_000)));
    let late = Pace { hold: 60 * SECOND, ..Pace::FULL };
    let other = scene.client(at(2), Plan { begin: Begin::AfterEnd, write: late, ..Plan::send(30_000) });
    scene.run(300 * SECOND);
    let number = scene.record(other).from.unwrap();
    let record = scene.record(number);
    assert_eq!((record.received, record.ending), (30_000, Some(Ending::Fin)), "{record:?}");
    scene.simulation.run_for(20 * SECOND);
    finish(&scene.simulation);
}

#[test]
fn for_two_hours_beside_a_long_flow_a_new_one_every_ten_seconds_works() {
    for topology in [Topology::PLAIN, Topology::SECURE] {
        let mut scene = Scene::new(&topology);
        scene.plans.secure = topology.version == Version::V81;
        let slow = Pace { hold: 0, piece: 100, pause: 5 * SECOND };
        scene.destination(at(1), Kind::Serves(Plan { write: slow, ..Plan::send(144_000) }));
        let long = scene.client(at(1), Plan { finish: Finish::AfterEnd, ..Plan::send(1_000) });
        scene.destination(at(2), Kind::Serves(Plan::echo()));
        let clients: Vec<u32> = (0..720).map(|number| scene.client_after(number * 10 * SECOND, at(2), Plan::send(3_000))).collect();
        scene.run(3 * 3_600 * SECOND);
        for client in clients {
            let record = scene.record(client);
            assert_eq!(
                (record.reply, record.received, record.ending),
                (Some(0), 3_000, Some(Ending::Fin)),
                "{:?}: {record:?}",
                topology.version
            );
        }
        assert!(scene.took(long) > 7_000 * SECOND && scene.record(long).received == 144_000, "{:?}", scene.record(long));
        scene.conclude();
    }
}
