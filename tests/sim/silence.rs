//! 0x81 in virtual time: paths and processes that go silent, exits that come back, tunnels that are replaced. Nothing is told; the roles have
//! to notice.

use zhwkprox::limits;
use zhwkprox::relay::Bounds;
use zhwkprox::shard::inbox::Message;

use crate::destination::Kind;
use crate::duplex::{Finish, Plan};
use crate::harness::{Fault, Simulation};
use crate::roles::{ENTRY, EXIT, Topology, add_exit};
use crate::scenarios::{MUTE, Scene, at};
use crate::seeds::finish;
use crate::traffic::{Ending, FIRST_CONNECTION, Pace};
use crate::verdict::check_flows;
use crate::world::{EndId, Link, MILLISECOND, SECOND};

/// One tunnel.
const ONE: Topology = Topology { max_tunnels: 1, ..Topology::SECURE };
/// The process that comes third: another exit.
const OTHER_EXIT: usize = 2;

/// What is on the tunnel when its path goes silent.
#[derive(Clone, Copy, Debug)]
enum Load {
    Idle,
    Up,
    Down,
    Both,
}

const LOADS: [Load; 4] = [Load::Idle, Load::Up, Load::Down, Load::Both];

/// A flow under that load, which would never end by itself.
fn loaded(topology: &Topology, load: Load) -> (Scene, u32) {
    let mut scene = Scene::new(topology);
    scene.plans.secure = true;
    let endless = Plan { finish: Finish::AfterEnd, ..Plan::send(1_000_000_000) };
    // Paced: what is at stake is time, not bytes.
    let endless = Plan { write: Pace { hold: 0, piece: 20_000, pause: 50 * MILLISECOND }, ..endless };
    let (up, down) = match load {
        Load::Idle => (MUTE, MUTE),
        Load::Up => (endless, MUTE),
        Load::Down => (MUTE, endless),
        Load::Both => (endless, endless),
    };
    scene.destination(at(1), Kind::Serves(down));
    let client = scene.client(at(1), up);
    scene.simulation.run_for(5 * SECOND);
    assert_eq!([ENTRY, EXIT].map(|host| scene.simulation.state(host).flows), [1, 1], "{load:?}");
    (scene, client)
}

/// Both ends of the flow have been reset, within so long.
fn is_reset_within(scene: &mut Scene, seconds: u64, what: &str) {
    let deadline = scene.simulation.now() + seconds * SECOND;
    let over = scene.simulation.run_until(deadline, |simulation| simulation.stage.book.borrow().unfinished().is_empty());
    let records = scene.simulation.stage.book.borrow().records.clone();
    assert!(over, "{what}: not noticed within {seconds} s: {records:?}");
    assert!(records.values().all(|record| record.ending == Some(Ending::Reset)), "{what}: {records:?}");
    assert_eq!(records.len(), 2, "{what}");
}

/// A new client is served without waiting.
fn serves_at_once(scene: &mut Scene, what: &str) {
    scene.destination(at(9), Kind::Serves(Plan::echo()));
    let client = scene.client(at(9), Plan::send(10_000));
    scene.run(3 * SECOND);
    let record = scene.record(client);
    assert_eq!((record.reply, record.received, record.ending), (Some(0), 10_000, Some(Ending::Fin)), "{what}: {record:?}");
}

fn only_tunnel(simulation: &Simulation) -> EndId {
    let tunnels = simulation.tunnels();
    assert_eq!(tunnels.len(), 1);
    tunnels[0]
}

#[test]
fn a_path_that_goes_silent_is_noticed_within_thirty_seconds_at_both_ends_and_service_is_back_at_once() {
    for load in LOADS {
        for way in ["both ways", "towards the entry", "towards the exit"] {
            let what = format!("{load:?}, silent {way}");
            let (mut scene, _) = loaded(&ONE, load);
            let (world, dialled) = (scene.simulation.world().clone(), only_tunnel(&scene.simulation));
            match way {
                "both ways" => world.lose(dialled),
                "towards the entry" => world.lose_from(dialled),
                _ => world.lose_from(world.peer(dialled)),
            }
            is_reset_within(&mut scene, 30, &what);
            scene.simulation.run_for(SECOND);
            serves_at_once(&mut scene, &what);
            finish(&scene.simulation);
        }
    }
}

#[test]
fn a_role_that_is_stopped_for_a_minute_is_noticed_within_thirty_seconds_and_service_is_back_when_it_goes_on() {
    for load in LOADS {
        for process in [ENTRY, EXIT] {
            let what = format!("{load:?}, process {process} stopped");
            let (mut scene, client) = loaded(&ONE, load);
            let goes_on = scene.simulation.now() + 60 * SECOND;
            scene.simulation.happen(Fault::Freeze(process, 60 * SECOND));
            let other = if process == ENTRY { EXIT } else { ENTRY };
            let deadline = scene.simulation.now() + 30 * SECOND;
            assert!(scene.simulation.run_until(deadline, |simulation| simulation.state(other).flows == 0), "{what}");
            let theirs = if process == ENTRY { FIRST_CONNECTION } else { client };
            scene.simulation.run_for(SECOND);
            assert_eq!(scene.record(theirs).ending, Some(Ending::Reset), "{what}");
            scene.simulation.run_until(goes_on, |_| false);
            // What was dialled meanwhile may have been closed, too late to be seen: the next try is at most a back-off away.
            is_reset_within(&mut scene, 2, &what);
            let deadline = scene.simulation.now() + 12 * SECOND;
            assert!(scene.simulation.run_until(deadline, |simulation| simulation.state(ENTRY).tunnels > 0), "{what}");
            scene.simulation.run_for(4 * SECOND);
            serves_at_once(&mut scene, &what);
            finish(&scene.simulation);
        }
    }
}

#[test]
fn a_stop_of_twenty_seconds_costs_no_flow() {
    for process in [ENTRY, EXIT] {
        let (mut scene, client) = loaded(&ONE, Load::Both);
        let tunnel = only_tunnel(&scene.simulation);
        scene.simulation.happen(Fault::Freeze(process, 20 * SECOND));
        scene.simulation.run_for(25 * SECOND);
        assert_eq!(only_tunnel(&scene.simulation), tunnel, "process {process}");
        let before = scene.record(client);
        scene.simulation.run_for(5 * SECOND);
        let after = scene.record(client);
        assert!(after.sent > before.sent && after.received > before.received, "process {process}: {before:?}, {after:?}");
    }
}

#[test]
fn a_tunnel_of_a_megabit_under_full_upload_for_a_minute_is_not_taken_for_dead() {
    let slow = Link { rate: Some(125_000), outbox: 131_072, inbox: 262_144, latency: (20 * MILLISECOND, 20 * MILLISECOND), ..Link::PLAIN };
    let mut scene = Scene::new(&Topology { tunnel_link: slow, ..ONE });
    scene.plans.secure = true;
    let tunnel = only_tunnel(&scene.simulation);
    scene.destination(at(1), Kind::Serves(Plan { begin: crate::duplex::Begin::AfterEnd, ..Plan::send(100) }));
    let clients: Vec<u32> = (0..4).map(|_| scene.client(at(1), Plan { finish: Finish::WhenSent, ..Plan::send(2_000_000) })).collect();
    scene.run(100 * SECOND);
    assert!(clients.iter().any(|client| scene.took(*client) > 60 * SECOND), "it was slow");
    assert_eq!(only_tunnel(&scene.simulation), tunnel, "the tunnel is still the same");
    scene.conclude();
}

#[test]
fn a_restarted_exit_takes_over_from_tunnels_that_nobody_has_closed_within_three_seconds() {
    let (mut scene, client) = loaded(&Topology::SECURE, Load::Down);
    // The machine is gone without a word, and another starts in its place.
    for tunnel in scene.simulation.tunnels() {
        scene.simulation.world().lose(tunnel);
    }
    scene.simulation.stop(EXIT);
    scene.simulation.start(EXIT);
    let deadline = scene.simulation.now() + SECOND;
    assert!(scene.simulation.run_until(deadline, |simulation| simulation.state(ENTRY).tunnels > 2), "it logs in beside the old tunnels");
    scene.simulation.run_for(100 * MILLISECOND);
    scene.destination(at(9), Kind::Serves(Plan::echo()));
    let fresh = scene.client(at(9), Plan::send(10_000));
    scene.simulation.run_for(SECOND);
    assert_eq!(scene.record(fresh).received, 10_000, "new flows go to the living: {:?}", scene.record(fresh));
    scene.simulation.run_for(3 * SECOND);
    assert_eq!(scene.simulation.state(ENTRY).tunnels, 2, "the dead ones are gone");
    assert_eq!(scene.record(client).ending, Some(Ending::Reset));
    scene.simulation.run_for(SECOND);
    finish(&scene.simulation);
}

#[test]
fn two_living_exits_with_one_key_share_the_flows_and_lose_none() {
    let mut scene = Scene::new(&Topology::SECURE);
    scene.plans.secure = true;
    let slow = Pace { hold: 0, piece: 1_000, pause: SECOND };
    scene.destination(at(1), Kind::Serves(Plan { write: slow, ..Plan::send(10_000) }));
    scene.destination(at(2), Kind::Serves(Plan { write: slow, ..Plan::send(10_000) }));
    for _ in 0..10 {
        scene.client(at(1), Plan::send(1_000));
    }
    scene.simulation.run_for(SECOND);
    add_exit(&mut scene.simulation, &Topology::SECURE);
    scene.simulation.run_for(SECOND);
    assert_eq!(scene.simulation.state(ENTRY).tunnels, 4, "the first ones have shown that they live");
    for _ in 0..30 {
        scene.client(at(2), Plan::send(1_000));
    }
    scene.simulation.run_for(SECOND);
    let flows = [EXIT, OTHER_EXIT].map(|exit| scene.simulation.state(exit).flows);
    assert_eq!(flows, [20, 20], "those with the fewest get the next");
    scene.run(20 * SECOND);
    check_flows(&scene.simulation, &scene.plans);
    assert_eq!(scene.simulation.state(ENTRY).tunnels, 4);
}

#[test]
fn a_server_that_stops_at_any_step_of_an_open_costs_no_flow() {
    let link = Link { latency: (10 * MILLISECOND, 10 * MILLISECOND), ..Link::PLAIN };
    let topology = Topology { tunnel_link: link, ..ONE };
    let mut served_by = [0, 0];
    for step in 0..60 {
        let mut scene = Scene::new(&topology);
        scene.plans.secure = true;
        add_exit(&mut scene.simulation, &topology);
        scene.simulation.run_for(2 * SECOND);
        scene.destination(at(1), Kind::Serves(Plan::echo()));
        // From both exits' tunnels, one flow each.
        let clients = [scene.client(at(1), Plan::send(2_000)), scene.client(at(1), Plan::send(2_000))];
        scene.simulation.run_for(step * MILLISECOND);
        scene.simulation.tell(EXIT, || Message::Stop);
        scene.run(20 * SECOND);
        for client in clients {
            let record = scene.record(client);
            assert_eq!((record.reply, record.received, record.ending), (Some(0), 2_000, Some(Ending::Fin)), "step {step}: {record:?}");
        }
        check_flows(&scene.simulation, &scene.plans);
        let deadline = scene.simulation.now() + 2 * SECOND;
        assert!(scene.simulation.run_until(deadline, |simulation| simulation.is_finished(EXIT)), "step {step}: it ends");
        let [first, second] = [EXIT, OTHER_EXIT].map(|exit| scene.simulation.count(exit, |gauge| gauge.connects) > 1);
        served_by[0] += u32::from(first);
        served_by[1] += u32::from(second);
    }
    assert!(served_by[0] > 10 && served_by[0] < 60, "some came before the stop and some behind it: {served_by:?}");
}

#[test]
fn a_tunnel_is_replaced_after_a_day_and_its_flows_go_on() {
    let mut scene = Scene::new(&Topology { idle: None, ..Topology::SECURE });
    scene.plans.secure = true;
    let before = scene.simulation.tunnels();
    let hourly = Pace { hold: 0, piece: 1_000, pause: 3_600 * SECOND };
    scene.destination(at(1), Kind::Serves(Plan { write: hourly, ..Plan::send(26_000) }));
    scene.destination(at(2), Kind::Serves(Plan::echo()));
    let long = scene.client(at(1), Plan { finish: Finish::AfterEnd, ..Plan::send(1_000) });
    let day = limits::TUNNEL_AGE.as_secs() * SECOND;
    // One client each second of the minute in which the tunnels are replaced.
    let clients: Vec<u32> =
        (0..120).map(|second| scene.client_after(day - 60 * SECOND + second * SECOND / 2, at(2), Plan::send(1_000))).collect();
    scene.simulation.run_for(day + 60 * SECOND);
    assert!(clients.iter().all(|client| scene.record(*client).received == 1_000), "nobody notices");
    let after = scene.simulation.tunnels();
    assert!(after.iter().any(|tunnel| before.contains(tunnel)), "the old one stays for the flow on it");
    assert!(after.iter().filter(|tunnel| !before.contains(tunnel)).count() >= 2, "{before:?}, {after:?}");
    scene.run(3 * 3_600 * SECOND);
    assert_eq!(scene.record(long).received, 26_000);
    scene.simulation.run_for(SECOND);
    let last = scene.simulation.tunnels();
    assert!(last.len() == 2 && last.iter().all(|tunnel| !before.contains(tunnel)), "{before:?}, {last:?}");
    scene.conclude();
}

#[test]
fn when_stream_ids_run_out_a_new_tunnel_takes_over_and_old_flows_live_on() {
    let bounds = Bounds { held_bytes: limits::HELD_BYTES, ids_used: u32::MAX - (1 << 16) - 5 };
    let mut scene = Scene::new(&Topology { bounds, ..ONE });
    scene.plans.secure = true;
    let before = only_tunnel(&scene.simulation);
    scene.destination(at(1), Kind::Serves(Plan { write: Pace { hold: 0, piece: 1_000, pause: SECOND }, ..Plan::send(10_000) }));
    let clients: Vec<u32> = (0..23).map(|number| scene.client_after(number * 200 * MILLISECOND, at(1), Plan::send(1_000))).collect();
    scene.run(60 * SECOND);
    for client in clients {
        let record = scene.record(client);
        assert_eq!((record.reply, record.received, record.ending), (Some(0), 10_000, Some(Ending::Fin)), "{record:?}");
    }
    scene.simulation.run_for(SECOND);
    assert_ne!(only_tunnel(&scene.simulation), before);
    scene.conclude();
}

#[test]
fn an_inter_server_that_stops_at_any_step_of_an_open_serves_the_flow_or_says_that_it_does_not() {
    let link = Link { latency: (10 * MILLISECOND, 10 * MILLISECOND), ..Link::PLAIN };
    let topology = Topology { tunnel_link: link, ..ONE };
    let (mut served, mut refused) = (0, 0);
    for step in 0..150 {
        let mut scene = Scene::new(&topology);
        scene.plans.secure = true;
        scene.destination(at(1), Kind::Serves(Plan::echo()));
        let client = scene.client(at(1), Plan::send(2_000));
        scene.simulation.run_for(step * MILLISECOND);
        scene.simulation.tell(ENTRY, || Message::Stop);
        scene.run(20 * SECOND);
        let record = scene.record(client);
        match record.reply {
            Some(0) => {
                assert_eq!((record.received, record.ending), (2_000, Some(Ending::Fin)), "step {step}: {record:?}");
                served += 1;
            }
            _ => {
                assert!(record.received == 0 && record.finished.is_some(), "step {step}: {record:?}");
                refused += 1;
            }
        }
        let deadline = scene.simulation.now() + 2 * SECOND;
        assert!(scene.simulation.run_until(deadline, |simulation| simulation.is_finished(ENTRY)), "step {step}: it ends");
    }
    assert!(served > 50 && refused > 20, "{served} served, {refused} refused");
}
