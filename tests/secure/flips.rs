//! One bit flipped on the way, in a whole short session of the real roles: every byte of the login and of the first records, then bytes at random.
//! The tunnel ends, and not a byte of the record that was touched comes out on either side.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use crate::harness::net::{End, read_to_the_end};
use crate::harness::traffic::{all_well, in_turns};
use crate::harness::{Destination, WATCHDOG, await_some, heavy, quick, socks};
use crate::support::{Entry, Keys, entry, exit};
use crate::wire::{Harm, Way, Wire};

/// Bytes of the session's two bodies.
const UP: usize = 300;
const DOWN: usize = 400;
/// How many sessions go on at once.
const AT_ONCE: usize = 4;
/// Positions at random, each way.
const RANDOM: usize = 30;

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + length) % 251).unwrap()).collect()
}

/// What came to one side, and how it ended.
type Outcome = (Vec<u8>, End);

/// Answers a whole body with one, and keeps what it got.
fn destination() -> (Destination, Arc<Mutex<Vec<Outcome>>>) {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&outcomes);
    let destination = Destination::serve(move |mut stream, _| {
        let mut got = vec![0; UP];
        let mut at = 0;
        let end = loop {
            match stream.read(&mut got[at..]) {
                Ok(0) => break End::Clean,
                Ok(count) => at += count,
                Err(_) => break End::Reset,
            }
            if at == UP {
                let _ = stream.write_all(&body(DOWN));
                let _ = stream.shutdown(Shutdown::Write);
                break read_to_the_end(&mut stream).1;
            }
        };
        got.truncate(at);
        kept.lock().unwrap().push((got, end));
    });
    (destination, outcomes)
}

/// The client's side.
fn session(entry: &Entry, to: &Destination) -> Outcome {
    let Ok(mut stream) = socks::open(entry.socks, to.address) else { return (Vec::new(), End::Reset) };
    if stream.write_all(&body(UP)).is_err() {
        return (Vec::new(), End::Reset);
    }
    let _ = stream.shutdown(Shutdown::Write);
    read_to_the_end(&mut stream)
}

/// A clean end means all of it, whatever happened; `most`: what the records before the one that was touched can have held.
fn judge(whose: &str, (got, end): &Outcome, whole: &[u8], most: Option<usize>) -> Result<(), String> {
    if !whole.starts_with(got) {
        return Err(format!("{whose} got wrong bytes"));
    }
    if *end == End::Never || (*end == End::Clean && got.len() < whole.len()) {
        return Err(format!("{whose} got {} of {} bytes and then {end:?}", got.len(), whole.len()));
    }
    match most {
        Some(most) if got.len() > most => Err(format!("{whose} got {} bytes of which {most} were before what was touched", got.len())),
        _ => Ok(()),
    }
}

/// What the records before this unit can have held.
fn most_before(units: &[Vec<u8>], unit: usize) -> usize {
    units.iter().take(unit).skip(2).map(|record| record.len().saturating_sub(4 + 8 + 16)).sum()
}

fn flip(entry: &Entry, keys: &Keys, way: Way, at: usize, is_login: bool) -> Result<(), String> {
    let bit = rand::random_range(0..8);
    let what = format!("{way:?}, bit {bit} of byte {at}");
    let wrong = |why: String| format!("{what}: {why}");
    let wire = Wire::harming(entry.tunnel, way, Harm::Flip { at, bit }, true);
    let (destination, outcomes) = destination();
    let _exit = exit(wire.address, &keys.write("key", 1), &[]);
    let is_up = || wire.seen(Way::ToExit).len() > 2 || wire.ended() > 0;
    let client = if is_login {
        (Vec::new(), End::Reset)
    } else {
        await_some(&format!("{what}: a tunnel"), WATCHDOG, || is_up().then_some(()));
        session(entry, &destination)
    };
    if is_login || wire.harmed().is_some() {
        await_some(&format!("{what}: the end of the tunnel"), 2 * WATCHDOG, || (wire.ended() > 0).then_some(()));
    }
    let harmed = wire.harmed();
    let most = |its: Way| harmed.filter(|_| way == its).map(|unit| most_before(&wire.seen(its), unit));
    judge("the client", &client, &body(DOWN), most(Way::ToEntry)).map_err(wrong)?;
    if destination.accepted() > 0 {
        let outcome = await_some(&format!("{what}: the destination's end"), WATCHDOG, || outcomes.lock().unwrap().first().cloned());
        judge("the destination", &outcome, &body(UP), most(Way::ToExit)).map_err(wrong)?;
    }
    if harmed.is_none() && client != (body(DOWN), End::Clean) {
        return Err(wrong(format!("nothing was touched, and the client got {} bytes and then {:?}", client.0.len(), client.1)));
    }
    Ok(())
}

#[test]
fn a_bit_flipped_anywhere_ends_the_tunnel_and_nothing_of_its_record_comes_out() {
    let _alone = heavy();
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entries: Vec<Entry> = (0..AT_ONCE).map(|_| entry(&[&key], &["--wait-for-tunnel", "500ms"])).collect();

    // Untouched it works, and shows how long everything is.
    let wire = Wire::start(entries[0].tunnel);
    let (to, _) = destination();
    let whole = {
        let _exit = exit(wire.address, &key, &[]);
        await_some("a tunnel", WATCHDOG, || (wire.seen(Way::ToExit).len() > 2).then_some(()));
        session(&entries[0], &to)
    };
    assert_eq!(whole, (body(DOWN), End::Clean));
    await_some("the end of that tunnel", WATCHDOG, || (wire.ended() == 1).then_some(()));

    let mut positions = Vec::new();
    for way in [Way::ToEntry, Way::ToExit] {
        let lengths: Vec<usize> = wire.seen(way).iter().map(Vec::len).collect();
        let login: usize = lengths[..3].iter().sum();
        let first: usize = lengths[..lengths.len().min(5)].iter().sum::<usize>().min(login + 120);
        let all: usize = lengths.iter().sum();
        assert!(all > login + if way == Way::ToEntry { DOWN } else { UP }, "{way:?}: {lengths:?}");
        positions.extend((0..first).map(|at| (way, at, at < login)));
        positions.extend((0..RANDOM).map(|_| (way, rand::random_range(login..all), false)));
    }
    if quick() {
        positions = positions.into_iter().step_by(9).collect();
    }
    let wrong = in_turns(AT_ONCE, positions.len(), |number| {
        let (way, at, is_login) = positions[number];
        flip(&entries[number % AT_ONCE], &Keys::new(), way, at, is_login)
    });
    all_well(&wrong);
    for entry in &entries {
        entry.role.await_state("nothing left", |state| state.tunnels == 0 && state.tunnels_pending == 0 && state.flows == 0);
    }
}
