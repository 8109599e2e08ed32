//! The `original` profile in virtual time: what no peer in real time can show, because its own clock is in the way.

use std::collections::BTreeMap;

use zhwkprox::protocol::v80::Profile;

use crate::destination::Kind;
use crate::duplex::{Abort, AbortWhen, Begin, Finish, Plan};
use crate::roles::{ENTRY, EXIT, Topology, Version};
use crate::scenarios::{MUTE, Scene, at};
use crate::traffic::Ending;
use crate::world::{EndId, MILLISECOND, SECOND};

const ORIGINAL: Topology = Topology { version: Version::V80(Profile::Original), max_tunnels: 1, ..Topology::PLAIN };

/// Sends an answer when so much has come, then its end.
const fn answer(request: usize, reply: usize) -> Kind {
    Kind::Serves(Plan { begin: Begin::After(request), ..Plan::send(reply) })
}

#[test]
fn each_send_on_a_tunnel_is_one_small_frame_and_they_are_a_millisecond_apart() {
    let mut scene = Scene::new(&ORIGINAL);
    let resting = [ENTRY, EXIT].map(|host| scene.simulation.state(host).timers);
    let clients: Vec<u32> = (1..=4)
        .map(|number| {
            scene.destination(at(number), answer(30_000, 40_000));
            scene.client(at(number), Plan { finish: Finish::AfterEnd, ..Plan::send(30_000) })
        })
        .collect();
    scene.run(60 * SECOND);
    for client in clients {
        let record = scene.record(client);
        assert_eq!((record.received, record.ending), (40_000, Some(Ending::Fin)), "{record:?}");
    }
    let mut by_end: BTreeMap<EndId, Vec<_>> = BTreeMap::new();
    for send in scene.simulation.world().with_observer(|observer| observer.sends()) {
        by_end.entry(send.by).or_default().push(send);
    }
    let mut frames = 0;
    for sends in by_end.values() {
        // Hello, challenge and verdict; version and reply.
        let handshake = if sends[0].bytes.len() == 3 { 3 } else { 2 };
        for pair in sends[handshake - 1..].windows(2) {
            let [before, send] = pair else { panic!("a window of two") };
            let header = if send.bytes[0] == 4 { 11 } else { 23 };
            let length = u32::from_le_bytes(send.bytes[header - 4..header].try_into().unwrap());
            assert_eq!(send.bytes.len(), header + usize::try_from(length).unwrap(), "one frame, and the whole of it");
            assert!(send.bytes.len() <= 1024);
            assert!(send.at >= before.at + MILLISECOND, "{} ns behind the one before", send.at - before.at);
            frames += 1;
        }
    }
    assert!(frames >= 4 * (30 + 40), "{frames} frames");
    // The keys' rest and all other waits are over, and nothing of them is left.
    scene.simulation.run_for(60 * SECOND);
    assert_eq!([ENTRY, EXIT].map(|host| scene.simulation.state(host).timers), resting);
}

#[test]
fn a_flow_that_waits_for_room_goes_on_when_the_one_that_took_it_is_given_up() {
    let mut scene = Scene::new(&ORIGINAL);
    scene.destination(at(1), Kind::Serves(MUTE));
    scene.destination(at(2), Kind::Serves(MUTE));
    scene.destination(at(3), Kind::Serves(MUTE));
    scene.destination(at(4), answer(5_000, 500));
    // The second one has to wait before it shares the tunnel; from then on others share at once.
    scene.client(at(1), MUTE);
    scene.client(at(2), MUTE);
    scene.simulation.run_for(SECOND);
    let gone = Abort { when: AbortWhen::Time(20 * MILLISECOND), reset: true };
    scene.client(at(3), Plan { abort: Some(gone), ..Plan::send(500_000) });
    let waits = scene.client_after(10 * MILLISECOND, at(4), Plan { finish: Finish::AfterEnd, ..Plan::send(5_000) });
    scene.simulation.run_for(SECOND);
    let record = scene.record(waits);
    assert_eq!((record.received, record.ending), (500, Some(Ending::Fin)), "{record:?}");
}

#[test]
fn a_client_that_leaves_lets_its_server_end_the_flow_and_a_key_that_rests_keeps_no_tunnel_busy() {
    let mut scene = Scene::new(&ORIGINAL);
    // The exit ends what is idle for 20 s, as theirs ends what has not been asked for.
    scene.destination(at(1), answer(1_000, 1_000));
    scene.destination(at(2), Kind::Serves(MUTE));
    let answered = scene.client(at(1), Plan { finish: Finish::AfterEnd, ..Plan::send(1_000) });
    scene.client(at(2), Plan::send(1_000));
    scene.simulation.run_for(5 * SECOND);
    assert_eq!(scene.record(answered).received, 1_000);
    assert_eq!([ENTRY, EXIT].map(|host| scene.simulation.state(host).flows), [1, 1]);
    scene.simulation.run_for(18 * SECOND);
    assert_eq!([ENTRY, EXIT].map(|host| scene.simulation.state(host).flows), [0, 0]);
    assert_eq!([ENTRY, EXIT].map(|host| scene.simulation.state(host).tunnels_idle), [1, 1]);
}
