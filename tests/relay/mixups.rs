//! Whose bytes are these: many flows to one address and port at once, while both ends break some of them off at random.
//! A byte that reaches the wrong flow names its owner, whatever else went wrong.

use std::collections::HashSet;
use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::destination::{check_pattern, read_line, send_pattern};
use crate::harness::net::reset_when_closed;
use crate::harness::traffic::{all_well, in_parallel, verdict};
use crate::harness::{Destination, Options, Relay, heavy, quick, socks};

const SEED: u64 = 80;
/// What is added to a flow's number for its bytes in the other direction.
const UPWARDS: u32 = 500_000;

/// Sends and checks as the first line says (`FLOW UP DOWN`; UP is `-` when the client is going to break it off), and breaks off
/// one flow in ten itself.
fn treacherous(killed: Arc<Mutex<HashSet<u32>>>, wrong: Arc<Mutex<Vec<String>>>) -> Destination {
    Destination::serve(move |mut stream, _| {
        let Ok(line) = read_line(&mut stream) else { return };
        let fault = |what: String| wrong.lock().unwrap().push(format!("at the destination: {what}"));
        let mut words = line.split(' ');
        let flow = words.next().and_then(|w| w.parse().ok());
        let up: Option<u64> = words.next().and_then(|w| w.parse().ok());
        let (Some(flow), Some(down)) = (flow, words.next().and_then(|w| w.parse::<u64>().ok())) else {
            return fault(format!("it was asked {line:?}"));
        };
        let kill: Option<u64> = rand::random_ratio(1, 10).then(|| rand::random_range(0..=down));
        if kill.is_some() {
            killed.lock().unwrap().insert(flow);
        }
        let mut sender = stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            let sent = send_pattern(&mut sender, SEED, flow, kill.unwrap_or(down));
            if kill.is_some() {
                // The reading thread sees an end, leaves, and its close is the reset.
                reset_when_closed(&sender);
                let _ = sender.shutdown(Shutdown::Read);
            } else if sent.is_ok() {
                let _ = sender.shutdown(Shutdown::Write);
            }
        });
        match check_pattern(&mut stream, SEED, flow + UPWARDS, None) {
            Ok(Err(e)) => fault(e),
            Ok(Ok(got)) if kill.is_none() && up.is_some_and(|up| up != got) => {
                fault(format!("flow {flow} ended cleanly after {got} of {up:?} bytes"));
            }
            _ => {}
        }
        let _ = sending.join();
    })
}

/// One exchange; whether it was whole. Its error is a fault unless somebody broke the flow off.
fn exchange(relay: &Relay, to: &Destination, flow: u32, killed: &Mutex<HashSet<u32>>) -> Result<bool, String> {
    let (up, down) = (rand::random_range(0..400_000u64), rand::random_range(0..800_000u64));
    let abort: Option<u64> = rand::random_ratio(1, 10).then(|| rand::random_range(0..=down));
    let attempt = || -> Result<(), String> {
        let io = |e| format!("flow {flow}: {e}");
        let mut stream = socks::open(relay.socks, to.address).map_err(|e| format!("flow {flow}: not opened: {e}"))?;
        let announced = if abort.is_some() { "-".into() } else { up.to_string() };
        stream.write_all(format!("{flow} {announced} {down}\n").as_bytes()).map_err(io)?;
        let mut sender = stream.try_clone().map_err(io)?;
        let sending = std::thread::spawn(move || {
            let sent = send_pattern(&mut sender, SEED, flow + UPWARDS, up);
            if abort.is_none() { sent.and_then(|()| sender.shutdown(Shutdown::Write)) } else { Ok(()) }
        });
        let received = check_pattern(&mut stream, SEED, flow, Some(abort.unwrap_or(down))).map_err(io).and_then(|r| r.map(drop));
        if abort.is_some() {
            reset_when_closed(&stream);
        }
        let received = if abort.is_none() && received.is_ok() { verdict(&mut stream, flow, "") } else { received };
        let sent = sending.join().unwrap().map_err(io);
        received.and(sent)
    };
    match attempt() {
        Ok(()) => Ok(abort.is_none()),
        Err(e) if e.contains("wrong byte") => Err(e),
        Err(_) if abort.is_some() || killed.lock().unwrap().contains(&flow) => Ok(false),
        Err(e) => Err(e),
    }
}

pub(crate) fn mix(options: &Options, how_long: Duration) {
    let relay = Relay::start(options);
    let (killed, wrong) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(Mutex::new(Vec::new())));
    let destination = treacherous(Arc::clone(&killed), Arc::clone(&wrong));
    let (next, whole) = (AtomicU32::new(1), AtomicUsize::new(0));
    let start = Instant::now();
    let mut failed = in_parallel(64, |_| {
        while start.elapsed() < how_long {
            let flow = next.fetch_add(1, Ordering::SeqCst);
            if exchange(&relay, &destination, flow, &killed)? {
                whole.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    });
    failed.extend(wrong.lock().unwrap().drain(..));
    all_well(&failed);
    let whole = whole.load(Ordering::SeqCst);
    assert!(whole >= 64, "only {whole} flows were exchanged whole");
    relay.entry.await_quiet();
    relay.exit.await_quiet();
}

#[test]
fn no_byte_of_64_flows_to_one_address_goes_astray_while_both_ends_kill_some() {
    let _alone = heavy();
    // `ZHWKPROX_MIX_SECONDS=600` for a long run.
    let given = std::env::var("ZHWKPROX_MIX_SECONDS").ok().and_then(|s| s.parse().ok());
    mix(&Options::default(), Duration::from_secs(given.unwrap_or_else(|| if quick() { 5 } else { 20 })));
}

#[test]
fn no_byte_goes_astray_when_there_are_fewer_tunnels_than_flows() {
    let _alone = heavy();
    // Flows wait for a tunnel on which their address is free.
    mix(&Options::default().exit(&["--max-tunnels", "24"]).entry(&["--wait-for-tunnel", "30s"]), Duration::from_secs(5));
}
