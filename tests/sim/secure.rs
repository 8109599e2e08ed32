//! 0x81 in virtual time: many flows on one tunnel. Who does not read holds up nobody else and costs no more than a window.

use zhwkprox::limits::{self, QUEUE_BYTES, SLOT_BYTES, WINDOW_FIRST};
use zhwkprox::relay::Bounds;

use crate::destination::Kind;
use crate::duplex::{Begin, Finish, Plan};
use crate::roles::{ENTRY, EXIT, Topology};
use crate::scenarios::{NEVER_READS, Scene, at};
use crate::seeds::finish;
use crate::traffic::{Ending, Pace};
use crate::world::{Link, MICROSECOND, MILLISECOND, Nanos, SECOND};

/// One tunnel, with slots as production has them.
const ONE: Topology = Topology { max_tunnels: 1, slots: [256, 256], ..Topology::SECURE };

fn scene(topology: &Topology) -> Scene {
    let mut scene = Scene::new(topology);
    scene.plans.secure = true;
    scene
}

/// Runs in steps and looks in between.
fn run_in_steps(scene: &mut Scene, steps: u32, step: Nanos, mut look: impl FnMut(&Scene)) {
    for _ in 0..steps {
        scene.simulation.run_for(step);
        look(scene);
    }
}

#[test]
fn one_flow_fills_four_fifths_of_a_gigabit_over_eighty_milliseconds_once_its_window_has_grown() {
    let far =
        Link { latency: (40 * MILLISECOND, 40 * MILLISECOND), rate: Some(125_000_000), segment: 65_536, outbox: 16 << 20, inbox: 32 << 20 };
    for upload in [false, true] {
        let mut scene = scene(&Topology { tunnel_link: far, ..ONE });
        let bulk = Plan { finish: Finish::AfterEnd, ..Plan::send(usize::MAX) };
        let (client, destination) = if upload { (bulk, Plan::echo()) } else { (Plan::send(1_000), bulk) };
        let destination = if upload { Plan { begin: Begin::AfterEnd, ..Plan::send(1_000) } } else { destination };
        scene.destination(at(1), Kind::Serves(destination));
        let client = scene.client(at(1), client);
        scene.simulation.run_for(2 * SECOND);
        let reader = if upload { crate::traffic::FIRST_CONNECTION } else { client };
        let before = scene.record(reader).received;
        scene.simulation.run_for(SECOND);
        let bytes = scene.record(reader).received - before;
        assert!(bytes >= 100_000_000, "upload {upload}: {bytes} bytes in a second");
    }
}

#[test]
fn two_hundred_flows_do_not_notice_one_on_their_tunnel_whose_client_does_not_read() {
    let mut times = Vec::new();
    for stalled in [false, true] {
        let mut scene = scene(&ONE);
        scene.destination(at(1), Kind::Serves(Plan::send(1_000_000)));
        scene.destination(at(2), Kind::Serves(Plan::send(200_000)));
        let hold = if stalled { 60 * SECOND } else { 0 };
        let reader = scene.client(at(1), Plan { read: Pace { hold, ..Pace::FULL }, ..Plan::send(1_000) });
        scene.simulation.run_for(SECOND);
        let others: Vec<u32> = (0..200).map(|_| scene.client(at(2), Plan::send(1_000))).collect();
        scene.simulation.run_for(20 * SECOND);
        assert!(others.iter().all(|other| scene.record(*other).received == 200_000));
        times.push(others.iter().map(|other| scene.took(*other)).max().unwrap());
        if stalled {
            let state = scene.simulation.state(ENTRY);
            assert!(scene.record(reader).finished.is_none());
            // What its own kernel buffers hold is not ours.
            assert!((1..=u64::from(WINDOW_FIRST)).contains(&state.held_bytes), "{} bytes held", state.held_bytes);
            assert!(state.slots_in_use * SLOT_BYTES as u64 <= 2 * state.held_bytes, "a slot that is kept is half full: {state:?}");
            scene.run(60 * SECOND);
            assert_eq!(scene.record(reader).received, 1_000_000, "it goes on when it reads again");
        }
        scene.run(SECOND);
        scene.conclude();
    }
    assert!(times[1] < times[0] * 5 / 4, "{times:?}");
}

#[test]
fn pieces_of_a_byte_on_a_stalled_stream_beside_bulk_hold_no_more_than_twice_its_window() {
    let mut scene = scene(&ONE);
    let dribble = Pace { hold: 0, piece: 1, pause: 50 * MICROSECOND };
    scene.destination(at(1), Kind::Serves(Plan { write: dribble, ..Plan::send(40_000) }));
    scene.destination(at(2), Kind::Serves(Plan::send(20_000_000)));
    let stalled = scene.client(at(1), Plan { read: Pace { hold: 30 * SECOND, ..Pace::FULL }, ..Plan::send(1_000) });
    scene.client(at(2), Plan::send(1_000));
    let window = u64::from(WINDOW_FIRST);
    run_in_steps(&mut scene, 50, 100 * MILLISECOND, |scene| {
        let state = scene.simulation.state(ENTRY);
        let memory = state.slots_in_use * SLOT_BYTES as u64 + state.held_bytes;
        // The bulk stream's own turn is under way as well.
        assert!(memory <= 2 * window + 4 * SLOT_BYTES as u64, "{} slots and {} bytes", state.slots_in_use, state.held_bytes);
    });
    assert!(scene.record(stalled).finished.is_none());
    scene.run(60 * SECOND);
    scene.conclude();
}

#[test]
fn both_directions_full_at_once_lock_nothing_up() {
    for slots in [4, 8, 256] {
        let tight = Link { outbox: 16_384, inbox: 16_384, ..Link::PLAIN };
        let mut scene = scene(&Topology { slots: [slots, slots], tunnel_link: tight, ..ONE });
        scene.destination(at(1), Kind::Serves(Plan::send(1_000_000)));
        let clients: Vec<u32> = (0..20).map(|_| scene.client(at(1), Plan::send(1_000_000))).collect();
        scene.run(60 * SECOND);
        assert!(clients.iter().all(|client| scene.record(*client).received == 1_000_000));
        scene.conclude();
    }
}

#[test]
fn an_echo_beside_bulk_on_one_tunnel_waits_for_one_turn_of_each_other_flow_and_the_queues_in_front_of_it() {
    for flows in [1, 8] {
        let rate = 12_500_000;
        let (outbox, inbox) = (131_072, 131_072);
        let latency = 5 * MILLISECOND;
        let link = Link { rate: Some(rate), outbox, inbox, latency: (latency, latency), ..Link::PLAIN };
        let mut scene = scene(&Topology { tunnel_link: link, ..ONE });
        let bulk = Plan { finish: Finish::AfterEnd, ..Plan::send(1_000_000_000) };
        scene.destination(at(1), Kind::Serves(bulk));
        for _ in 0..flows {
            scene.client(at(1), bulk);
        }
        // Each way: what the kernel has, what is sealed, what waits to be, and turns of one buffer each.
        let queues = (outbox + inbox + 2 * QUEUE_BYTES + (flows + 1) * SLOT_BYTES) as u64 * SECOND / rate;
        let most = 2 * (queues + latency);
        scene.destination(at(2), Kind::Serves(Plan::echo()));
        let echo = scene.client(at(2), Plan { write: Pace { hold: 0, piece: 64, pause: most }, ..Plan::send(64_000) });
        let (mut pieces, mut sent) = (0, 0);
        run_in_steps(&mut scene, 4_000, MILLISECOND, |scene| {
            let record = scene.record(echo);
            if record.sent > sent {
                // The next one goes out: the one before has come back.
                assert!(record.received + 64 >= record.sent, "{flows} flows: not back after {} ms: {record:?}", most / MILLISECOND);
                (pieces, sent) = (pieces + 1, record.sent);
            }
        });
        assert!(pieces > 20, "{pieces} pieces");
        assert_eq!(scene.simulation.state(EXIT).flows, flows as u64 + 1, "the bulk goes on");
    }
}

#[test]
fn a_thousand_flows_share_one_tunnel() {
    let mut scene = scene(&ONE);
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    let clients: Vec<u32> = (0..1_000)
        .map(|number| scene.client_after(number * 50 * MICROSECOND, at(1), Plan { gap: 5 * SECOND, ..Plan::send(5_000) }))
        .collect();
    scene.simulation.run_for(3 * SECOND);
    assert_eq!([ENTRY, EXIT].map(|host| scene.simulation.state(host).flows), [1_000, 1_000]);
    assert_eq!(scene.simulation.tunnels().len(), 1);
    scene.run(60 * SECOND);
    assert!(clients.iter().all(|client| scene.record(*client).received == 5_000));
    scene.conclude();
}

#[test]
fn two_thousand_flows_that_open_within_a_tenth_of_a_second_are_all_served() {
    let mut scene = scene(&ONE);
    scene.destination(at(1), Kind::Serves(Plan::echo()));
    let clients: Vec<u32> = (0..2_000).map(|number| scene.client_after(number * 50 * MICROSECOND, at(1), Plan::send(500))).collect();
    scene.run(60 * SECOND);
    assert!(clients.iter().all(|client| scene.record(*client).received == 500));
    scene.conclude();
}

#[test]
fn what_flows_hold_stays_within_the_shards_budget_by_refusing_new_ones_and_then_by_ending_the_largest() {
    let budget = 4 * WINDOW_FIRST as usize;
    let bounds = Bounds { held_bytes: budget, ids_used: 0 };
    let mut scene = scene(&Topology { bounds, ..ONE });
    scene.destination(at(1), Kind::Serves(NEVER_READS));
    scene.destination(at(2), Kind::Serves(Plan::echo()));
    let upload = Plan { finish: Finish::AfterEnd, ..Plan::send(1_000_000) };
    // Two hold half of it: others are served.
    let first = [scene.client(at(1), upload), scene.client(at(1), upload)];
    scene.simulation.run_for(SECOND);
    assert!(scene.simulation.state(EXIT).held_bytes > budget as u64 / 4, "{:?}", scene.simulation.state(EXIT));
    let served = scene.client(at(2), Plan::send(100_000));
    scene.simulation.run_for(SECOND);
    assert_eq!(scene.record(served).received, 100_000);
    // Six at once hold more than all of it: some of them are ended, and nothing new is taken.
    let more: Vec<u32> = (0..6).map(|_| scene.client(at(1), upload)).collect();
    run_in_steps(&mut scene, 100, 10 * MILLISECOND, |scene| {
        let held = scene.simulation.state(EXIT).held_bytes;
        assert!(held <= budget as u64, "{held} bytes of {budget}");
    });
    let ended = first.iter().chain(&more).filter(|client| scene.record(**client).ending == Some(Ending::Reset)).count();
    assert!((1..8).contains(&ended), "{ended} of 8 ended");
    let held = scene.simulation.state(EXIT).held_bytes;
    assert!(held >= budget as u64 / 4 * 3, "{held} bytes of {budget}");
    let refused = scene.client(at(2), Plan::send(1_000));
    scene.simulation.run_for(SECOND);
    assert_eq!(scene.record(refused).reply, Some(1), "{:?}", scene.record(refused));
    // When those are gone, all is as before.
    scene.simulation.run_for(limits::IDLE_V80.as_secs() * SECOND + 10 * SECOND);
    let served = scene.client(at(2), Plan::send(100_000));
    scene.simulation.run_for(SECOND);
    assert_eq!(scene.record(served).received, 100_000);
    finish(&scene.simulation);
}
