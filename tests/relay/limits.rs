//! Descriptors that run out, and tens of thousands of flows after which everything is back where it was.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::net::{connect, free_address, read_to_the_end, reset};
use crate::harness::socks::Refusal;
use crate::harness::traffic::{all_well, close_echo, download, in_parallel, in_turns, open_echo, round_trip, upload, works};
use crate::harness::{Options, Origin, Relay, Role, WATCHDOG, await_some, heavy, on_0x81, quick, skipped_on_0x80, skipped_on_0x81, socks};

#[test]
fn both_roles_stay_within_64_mebibytes_while_they_are_busy() {
    let _alone = heavy();
    let (relay, origin) = (Relay::usual(), Origin::everywhere());
    all_well(&in_parallel(64, |i| {
        let flow = u32::try_from(i).unwrap();
        download(relay.socks, &origin, origin.nth(i), flow, 2_000_000)
    }));
    for (name, role) in [("inter-server", &relay.entry), ("server", &relay.exit)] {
        let peak = role.peak_memory_kib();
        assert!(peak <= 64 << 10, "{name}: {peak} KiB at its peak");
    }
    relay.at_rest();
}

#[test]
fn memory_is_flat_while_sixteen_uploads_and_sixteen_downloads_run_at_full_speed() {
    let _alone = heavy();
    let (relay, origin) = (Relay::usual(), Origin::everywhere());
    let over = AtomicBool::new(false);
    let moved = AtomicUsize::new(0);
    let memory = || [&relay.entry, &relay.exit].map(Role::memory_kib);
    std::thread::scope(|scope| {
        for i in 0..32 {
            let (over, moved, relay, origin) = (&over, &moved, &relay, &origin);
            scope.spawn(move || {
                let flow = u32::try_from(i).unwrap();
                while !over.load(Ordering::SeqCst) {
                    let len = 20_000_000_u32;
                    let done = if i % 2 == 0 {
                        download(relay.socks, origin, origin.nth(i), flow, len.into())
                    } else {
                        upload(relay.socks, origin, origin.nth(i), flow, len.into())
                    };
                    done.unwrap();
                    moved.fetch_add(len as usize, Ordering::SeqCst);
                }
            });
        }
        // Everything has been as full as it gets; from then on there is no more.
        let gigabyte = 1_000_000_000;
        await_some("the first gigabyte", WATCHDOG * 4, || (moved.load(Ordering::SeqCst) > gigabyte).then_some(()));
        let mut seen = vec![memory()];
        for more in 2..=if quick() { 2 } else { 4 } {
            await_some("another gigabyte", WATCHDOG * 4, || (moved.load(Ordering::SeqCst) > more * gigabyte).then_some(()));
            seen.push(memory());
        }
        over.store(true, Ordering::SeqCst);
        for at in 0..2 {
            let (first, most) = (seen[0][at], seen.iter().map(|kib| kib[at]).max().unwrap());
            assert!(most <= first + (8 << 10), "{first} KiB, then {most}: {seen:?}");
            assert!(most <= 96 << 10, "{seen:?}");
        }
    });
    relay.at_rest();
}

/// Opens flows without rest for a while, on many threads; whatever happens to them is fine.
fn press(entry: SocketAddr, to: SocketAddr, stop: &AtomicBool, tries: &AtomicUsize) {
    while !stop.load(Ordering::SeqCst) {
        tries.fetch_add(1, Ordering::SeqCst);
        if let Ok(mut stream) = connect(entry) {
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut all = socks::GREETING.to_vec();
            all.extend(socks::request(1, &to.into()));
            all.extend(b"echo\n");
            if stream.write_all(&all).is_ok() {
                // The two answers, then nothing until somebody gives up.
                let _ = read_to_the_end(&mut stream);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn out_of_descriptors(relay: &Relay, role: &Role) {
    let origin = Origin::everywhere();
    let mut bystander = open_echo(relay.socks, origin.nth(1)).unwrap();
    let limit = role.open_files() + 8;
    role.limit_files(limit);
    let (stop, tries) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (cpu, lines, seconds) = (role.cpu_time(), role.log().len(), if quick() { 5 } else { 20 });
    std::thread::scope(|scope| {
        for i in 0..100 {
            let (stop, tries, to) = (&stop, &tries, origin.nth(i + 10));
            scope.spawn(move || press(relay.socks, to, stop, tries));
        }
        // How long it lasts is the point; the limit is reached again and again, as connections come and go between pauses.
        let (began, mut most) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(seconds) {
            most = most.max(role.open_files());
            std::thread::sleep(Duration::from_millis(20));
        }
        let (used, logged) = (role.cpu_time() - cpu, role.log().len() - lines);
        stop.store(true, Ordering::SeqCst);
        assert!(most + 1 >= limit, "the limit was never reached: {most} of {limit} descriptors");
        assert!(used < Duration::from_secs(seconds) / 5, "{used:?} of processor time in {seconds} s without descriptors");
        assert!(logged < 50, "{logged} log lines in {seconds} s without descriptors: {:#?}", &role.log()[lines..][..50]);
        round_trip(&mut bystander, b"unharmed").unwrap();
    });
    assert!(tries.load(Ordering::SeqCst) > 100);
    role.limit_files(u64::MAX);
    await_some("service after the limit was raised", WATCHDOG, || download(relay.socks, &origin, origin.nth(2), 1, 10_000).ok());
    // Not once, but for good.
    all_well(&in_turns(4, 40, |i| download(relay.socks, &origin, origin.nth(500 + i), 1, 10_000)));
    close_echo(bystander).unwrap();
    relay.entry.await_quiet();
    relay.exit.await_quiet();
}

#[test]
fn an_inter_server_without_descriptors_stays_calm_and_recovers() {
    let relay = Relay::usual();
    out_of_descriptors(&relay, &relay.entry);
}

#[test]
fn a_server_without_descriptors_stays_calm_and_recovers() {
    let relay = Relay::usual();
    out_of_descriptors(&relay, &relay.exit);
}

/// Opens, asks for a few bytes, reads them, ends. `abort`: every tenth is broken off at one stage or another.
fn short_flow(relay: &Relay, origin: &Origin, i: usize, abort: bool) -> Result<(), String> {
    let flow = u32::try_from(i % 60_000).unwrap();
    // Four at a time, each with an address of its own, so that any tunnel will do.
    let to = origin.nth(i % 4);
    if !(abort && i.is_multiple_of(10)) {
        return download(relay.socks, origin, to, flow, 200);
    }
    let io = |e: std::io::Error| format!("flow {i}: {e}");
    let mut stream = connect(relay.socks).map_err(io)?;
    let stage = i / 10 % 6;
    if stage >= 1 {
        stream.write_all(&socks::GREETING).map_err(io)?;
    }
    if stage >= 2 {
        stream.read_exact(&mut [0; 2]).map_err(io)?;
        stream.write_all(&socks::request(1, &to.into())).map_err(io)?;
    }
    if stage >= 3 {
        socks::read_reply(&mut stream).map_err(io)?;
    }
    if stage >= 4 {
        stream.write_all(format!("get {flow} 100000\n").as_bytes()).map_err(io)?;
    }
    if stage >= 5 {
        stream.read_exact(&mut [0; 100]).map_err(io)?;
    }
    if (i / 10).is_multiple_of(2) {
        reset(stream)
    } else {
        drop(stream)
    }
    Ok(())
}

/// Two tunnels only: none grows for the load, so nothing has to be waited for afterwards (see the test of spare tunnels).
pub(crate) fn short_flows(options: Options, count: usize, abort: bool) {
    let relay = Relay::start(&options.exit(&["--max-tunnels", "2"]));
    let origin = Origin::everywhere();
    let before = relay.at_rest();
    let round = || {
        {
            let _alone = heavy();
            all_well(&in_turns(4, count, |i| short_flow(&relay, &origin, i, abort)));
        }
        relay.await_as_before(&before, WATCHDOG);
        (relay.entry.memory_kib(), relay.exit.memory_kib(), relay.entry.open_files(), relay.exit.open_files())
    };
    let (first, second) = (round(), round());
    assert!(second.0 <= first.0 + 2048, "inter-server: {} KiB after the second round, {} KiB after the first", second.0, first.0);
    assert!(second.1 <= first.1 + 2048, "server: {} KiB after the second round, {} KiB after the first", second.1, first.1);
    assert_eq!((first.2, first.3), (second.2, second.3), "descriptors after the rounds");
    works(relay.socks);
}

#[test]
fn after_twenty_thousand_short_flows_twice_everything_is_as_before() {
    short_flows(Options::default(), if quick() { 2000 } else { 20_000 }, false);
}

#[test]
fn after_thousands_of_flows_of_which_a_tenth_are_aborted_everything_is_as_before() {
    short_flows(Options::default(), if quick() { 1000 } else { 5000 }, true);
}

#[test]
fn two_thousand_refused_connects_leave_no_descriptor_behind() {
    let relay = Relay::start(&Options::default().exit(&["--max-tunnels", "2"]));
    let before = relay.at_rest();
    let port = free_address().port();
    all_well(&in_turns(4, 2000, |i| {
        let closed = SocketAddr::from(([127, 0, 1, u8::try_from(i % 4).unwrap()], port));
        let mut stream = match socks::open(relay.socks, closed) {
            // 0x81 says how it went.
            Err(Refusal::Reply(5)) if on_0x81() => return Ok(()),
            Ok(stream) if !on_0x81() => stream,
            Ok(_) => return Err(format!("flow {i}: opened to nowhere")),
            Err(e) => return Err(format!("flow {i}: {e}")),
        };
        let (got, _) = read_to_the_end(&mut stream);
        if got.is_empty() { Ok(()) } else { Err(format!("flow {i}: {} bytes from nowhere", got.len())) }
    }));
    relay.await_as_before(&before, WATCHDOG);
}

#[test]
fn spare_tunnels_grow_with_a_burst_and_shrink_back_to_two() {
    if skipped_on_0x81("spare_tunnels_grow_with_a_burst_and_shrink_back_to_two") {
        return;
    }
    let relay = Relay::start(&Options::default().exit(&["--max-tunnels", "128"]));
    let before = relay.at_rest();
    let spares = 2 * before.1.shards;
    assert_eq!(before.1.tunnels, spares, "spare tunnels at rest");
    let origin = Origin::new();
    all_well(&in_parallel(64, |i| download(relay.socks, &origin, origin.address(), u32::try_from(i).unwrap(), 500_000)));
    let grown = relay.exit.state().tunnels;
    assert!(grown > spares && grown <= 128 * before.1.shards, "{grown} tunnels");
    relay.await_as_before(&before, Duration::from_secs(150));
}

#[test]
fn on_0x81_a_burst_of_flows_dials_no_tunnel() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::usual();
    let before = relay.at_rest();
    let origin = Origin::new();
    all_well(&in_parallel(64, |i| download(relay.socks, &origin, origin.address(), u32::try_from(i).unwrap(), 500_000)));
    assert_eq!(relay.exit.state().tunnels, before.1.tunnels);
    relay.await_as_before(&before, WATCHDOG);
}
