//! Tunnels over a line that is cut in the middle of a frame, brings single bytes, or is long.

use std::sync::mpsc::channel;
use std::sync::{Mutex, atomic::AtomicBool, atomic::AtomicUsize, atomic::Ordering};
use std::time::Duration;

use crate::harness::destination::{check_pattern, send_pattern};
use crate::harness::net::{End, read_to_the_end};
use crate::harness::protocol::one_tunnel;
use crate::harness::relay::{exit_arguments, start_entry};
use crate::harness::socks::Refusal;
use crate::harness::traffic::{all_well, both_ways, download, in_parallel, in_turns, open_echo, upload};
use crate::harness::wire::{Cut, Pace, Wire};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Role, await_some, heavy, quick, socks, within};

const SEED: u64 = 81;

/// Both roles with a wire between them.
struct Wired {
    entry: Role,
    exit: Role,
    wire: Wire,
    socks: std::net::SocketAddr,
    _directory: tempfile::TempDir,
}

impl Wired {
    fn start(options: &Options, pace: Pace) -> Self {
        let (directory, key, entry, socks, tunnel) = start_entry(options);
        let wire = Wire::start(tunnel, pace);
        let exit = Role::start("server", &exit_arguments(options, wire.address, &key));
        let wired = Self { entry, exit, wire, socks, _directory: directory };
        wired.await_tunnel();
        wired
    }

    fn await_tunnel(&self) {
        self.exit.await_state("a tunnel", |s| s.tunnels >= 1);
        self.entry.await_state("a tunnel", |s| s.tunnels >= 1);
    }
}

#[test]
fn a_tunnel_cut_in_whatever_way_resets_its_flows_at_both_ends_and_new_ones_work_at_once() {
    let wired = Wired::start(&Options::default(), Pace::Plain);
    let (sender, ends) = channel();
    let sender = Mutex::new(sender);
    let endless = Destination::serve(move |mut stream, _| {
        let error = send_pattern(&mut stream, SEED, 1, u64::MAX).unwrap_err();
        sender.lock().unwrap().send(error.kind()).unwrap();
    });
    let origin = Origin::new();
    for how in [Cut::Fin, Cut::Rst, Cut::Fin, Cut::Rst] {
        let mut running = socks::open(wired.socks, endless.address).unwrap();
        check_pattern(&mut running, SEED, 1, Some(3_000_000)).unwrap().unwrap();
        let mut quiet = open_echo(wired.socks, origin.address()).unwrap();
        assert!(wired.wire.cut(how) >= if one_tunnel() { 1 } else { 2 });
        for (what, stream) in [("running", &mut running), ("quiet", &mut quiet)] {
            let (_, end) = within("the reset", PROMPTLY, || read_to_the_end(stream));
            assert_eq!(end, End::Reset, "the {what} flow of a tunnel cut by {how:?}");
        }
        let kind = ends.recv_timeout(PROMPTLY).expect("the destination must be told");
        assert!(matches!(kind, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "cut by {how:?}: {kind:?}");
        wired.exit.await_state("its flows gone", |s| s.flows == 0);
        wired.entry.await_state("its flows gone", |s| s.flows == 0);
        wired.await_tunnel();
        for flow in 0..5 {
            download(wired.socks, &origin, origin.address(), flow, 10_000).unwrap();
        }
    }
}

#[test]
fn frames_that_come_in_tiny_pieces_are_whole() {
    let wired = Wired::start(&Options::default(), Pace::Pieces(7));
    let origin = Origin::everywhere();
    all_well(&in_parallel(6, |i| {
        let flow = u32::try_from(i).unwrap();
        match i % 3 {
            0 => download(wired.socks, &origin, origin.nth(i), flow, 150_000),
            1 => upload(wired.socks, &origin, origin.nth(i), flow, 150_000),
            _ => both_ways(wired.socks, &origin, origin.nth(i), flow, 150_000),
        }
    }));
    wired.entry.await_quiet();
    wired.exit.await_quiet();
}

#[test]
fn many_flows_on_one_tunnel_that_comes_in_pieces_stay_apart() {
    // One tunnel for all: every frame of every flow goes through the same splits.
    let wired = Wired::start(&Options::default().exit(&["--max-tunnels", "1"]), Pace::Pieces(1500));
    let origin = Origin::everywhere();
    all_well(&in_parallel(20, |i| {
        let flow = u32::try_from(i).unwrap();
        match i % 3 {
            0 => download(wired.socks, &origin, origin.nth(i), flow, 300_000),
            1 => upload(wired.socks, &origin, origin.nth(i), flow, 300_000),
            _ => both_ways(wired.socks, &origin, origin.nth(i), flow, 300_000),
        }
    }));
    wired.entry.await_quiet();
    wired.exit.await_quiet();
}

#[test]
fn a_long_line_delays_and_loses_nothing() {
    let wired = Wired::start(&Options::default(), Pace::Late(Duration::from_millis(20)));
    let origin = Origin::everywhere();
    all_well(&in_parallel(12, |i| both_ways(wired.socks, &origin, origin.nth(i), u32::try_from(i).unwrap(), 1_000_000)));
    // Short ones too, by name: nothing waits for a timer that should not.
    all_well(&in_turns(4, 20, |i| download(wired.socks, &origin, origin.nth(i), u32::try_from(i).unwrap(), 1000)));
    wired.entry.await_quiet();
    wired.exit.await_quiet();
}

#[test]
fn under_random_cuts_no_body_is_wrong_and_none_that_is_short_ends_cleanly() {
    let _alone = heavy();
    let wired = Wired::start(&Options::default().entry(&["--wait-for-tunnel", "20s"]), Pace::Plain);
    let origin = Origin::new();
    let (over, whole, broken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..16u32 {
            let (over, whole, broken, wrong, wired, origin) = (&over, &whole, &broken, &wrong, &wired, &origin);
            scope.spawn(move || {
                let mut flow = thread;
                while !over.load(Ordering::SeqCst) {
                    flow += 16;
                    let len = rand::random_range(1..600_000);
                    let done = match flow % 3 {
                        0 => download(wired.socks, origin, origin.address(), flow, len),
                        1 => upload(wired.socks, origin, origin.address(), flow, len),
                        _ => both_ways(wired.socks, origin, origin.address(), flow, len),
                    };
                    match done {
                        Ok(()) => whole.fetch_add(1, Ordering::SeqCst),
                        // A clean end that came too early, or bytes of somebody else.
                        Err(e) if e.contains("wrong byte") || e.contains("ended after") || e.contains("end Clean") => {
                            wrong.lock().unwrap().push(e);
                            0
                        }
                        Err(_) => broken.fetch_add(1, Ordering::SeqCst),
                    };
                }
            });
        }
        for round in 0..if quick() { 10 } else { 30 } {
            std::thread::sleep(Duration::from_millis(rand::random_range(50..400)));
            wired.wire.cut(if round % 2 == 0 { Cut::Fin } else { Cut::Rst });
        }
        over.store(true, Ordering::SeqCst);
    });
    let (whole, broken) = (whole.into_inner(), broken.into_inner());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{whole} whole, {broken} broken, and wrong: {wrong:#?}");
    assert!(whole > 16 && broken > 0, "{whole} whole, {broken} broken");
    wired.entry.await_quiet();
    wired.exit.await_quiet();
}

#[test]
fn an_exit_that_cannot_come_back_leaves_clients_refused_at_once_until_it_can() {
    let wired = Wired::start(&Options::default(), Pace::Plain);
    wired.wire.set_open(false);
    wired.wire.cut(Cut::Rst);
    wired.entry.await_state("no tunnel", |s| s.tunnels == 0);
    let refused = within("the refusal", PROMPTLY, || socks::open(wired.socks, ("localhost", 80))).unwrap_err();
    assert!(matches!(refused, Refusal::Reply(1)), "{refused}");
    std::thread::sleep(Duration::from_secs(2));
    wired.wire.set_open(true);
    wired.await_tunnel();
    let origin = Origin::new();
    await_some("service", PROMPTLY, || download(wired.socks, &origin, origin.address(), 1, 1000).ok());
}
