//! Records repeated, lost, swapped or cut short, and connections ended by FIN or RST between records and inside one, under flows that run: every
//! client and destination sees a reset, none a clean end, and the tunnels come back by themselves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use crate::harness::destination::{check_pattern, send_pattern};
use crate::harness::net::{End, read_to_the_end};
use crate::harness::traffic::{ask_for, works};
use crate::harness::{Destination, Origin, WATCHDOG, await_some, heavy, socks};
use crate::support::{Keys, await_tunnels, entry, exit};
use crate::wire::{Harm, Way, Wire};

const FLOWS: usize = 3;
/// More than any of these tests moves.
const ENDLESS: u64 = 1 << 40;

/// Takes all and says nothing; how each connection ended.
fn sink() -> (Destination, Arc<Mutex<Vec<End>>>) {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&ends);
    let sink = Destination::serve(move |mut stream, _| {
        let mut piece = vec![0; 65_536];
        let end = loop {
            match stream.read(&mut piece) {
                Ok(0) => break End::Clean,
                Ok(_) => {}
                Err(_) => break End::Reset,
            }
        };
        kept.lock().unwrap().push(end);
    });
    (sink, ends)
}

/// Downloads and uploads run; then this happens to their tunnel.
fn under_flows(way: Way, harm: Harm) {
    let what = format!("{way:?} {harm:?}");
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let wire = Wire::harming(entry.tunnel, way, harm, false);
    let exit = exit(wire.address, &key, &[]);
    await_tunnels(&entry.role, 1);
    let origin = Origin::new();
    let (sink, ends) = sink();
    std::thread::scope(|scope| {
        let downloads: Vec<TcpStream> = (0..FLOWS).filter_map(|_| socks::open(entry.socks, origin.address()).ok()).collect();
        let uploads: Vec<TcpStream> = (0..FLOWS).filter_map(|_| socks::open(entry.socks, sink.address).ok()).collect();
        assert_eq!((downloads.len(), uploads.len()), (FLOWS, FLOWS), "{what}: the harm came too early");
        let mut threads = Vec::new();
        for (number, mut stream) in downloads.into_iter().enumerate() {
            let (seed, what) = (origin.seed, &what);
            let flow = u32::try_from(number).unwrap();
            threads.push(scope.spawn(move || {
                ask_for(&mut stream, flow, ENDLESS).unwrap();
                let outcome = check_pattern(&mut stream, seed, flow, None);
                assert!(outcome.is_err(), "{what}: a download that was cut looks like {outcome:?}");
            }));
        }
        for mut stream in uploads {
            let what = &what;
            threads.push(scope.spawn(move || {
                assert!(send_pattern(&mut stream, 0, 0, ENDLESS).is_err(), "{what}: an upload has ended by itself");
            }));
        }
        await_some(&format!("{what}: flows that run"), WATCHDOG, || (wire.seen(way).len() > 30).then_some(()));
        wire.cut();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert!(wire.harmed().is_some(), "{what}: the flows have ended without it");
    let ends = await_some(&format!("{what}: the destinations' ends"), WATCHDOG, || {
        let ends = ends.lock().unwrap();
        (ends.len() == FLOWS).then(|| ends.clone())
    });
    assert_eq!(ends, [End::Reset; FLOWS], "{what}");
    await_tunnels(&entry.role, 1);
    works(entry.socks);
    assert!(wire.connections() > 1, "{what}: the tunnel was not dialled again");
    for role in [&entry.role, &exit] {
        role.await_state("no flow left", |state| state.flows == 0 && state.detached == 0);
    }
}

/// Later than the opening of all flows, earlier than what the test waits for.
const WHICH: usize = 28;

#[test]
fn records_repeated_lost_swapped_or_cut_short_end_the_tunnel() {
    let _alone = heavy();
    for way in [Way::ToEntry, Way::ToExit] {
        for harm in [Harm::Repeat(WHICH), Harm::Drop(WHICH), Harm::Swap(WHICH), Harm::Truncate(WHICH)] {
            under_flows(way, harm);
        }
    }
}

#[test]
fn a_fin_or_a_reset_between_records_or_inside_one_is_a_reset_for_everybody() {
    let _alone = heavy();
    for way in [Way::ToEntry, Way::ToExit] {
        for inside in [false, true] {
            for reset in [false, true] {
                under_flows(way, Harm::Cut { inside, reset });
            }
        }
    }
}

#[test]
fn an_end_of_the_tunnel_is_a_reset_for_flows_that_are_silent_too() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let harm = Harm::Cut { inside: false, reset: false };
    let wire = Wire::harming(entry.tunnel, Way::ToEntry, harm, false);
    let _exit = exit(wire.address, &key, &[]);
    await_tunnels(&entry.role, 1);
    let origin = Origin::new();
    let mut silent: Vec<_> = (0..5).map(|_| crate::harness::traffic::open_echo(entry.socks, origin.address()).unwrap()).collect();
    wire.cut();
    // Something has to be on its way.
    silent[0].write_all(b"?").unwrap();
    for stream in &mut silent {
        assert_eq!(read_to_the_end(stream), (Vec::new(), End::Reset));
    }
    await_tunnels(&entry.role, 1);
    works(entry.socks);
}
