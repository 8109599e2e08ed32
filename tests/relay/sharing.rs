//! What happens when there are fewer tunnels than flows: waiting for a free address, sharing one tunnel with a side that does not read
//! or has gone; and the other limits in time that an operator sets.

use std::io::{Read, Write};
use std::time::Duration;

use crate::harness::destination::{check_pattern, send_pattern};
use crate::harness::net::{End, read_to_the_end, reset, small_receive_buffer};
use crate::harness::socks::Refusal;
use crate::harness::traffic::{all_well, ask_for, close_echo, download, in_turns, open_echo, receive, round_trip, upload, works};
use crate::harness::{
    Destination, Options, Origin, PROMPTLY, Relay, WATCHDOG, await_some, skipped_on_0x80, skipped_on_0x81, socks, within,
};

const SEED: u64 = 82;

fn one_tunnel() -> Options {
    Options::default().one_tunnel()
}

#[test]
fn a_second_flow_to_one_address_waits_for_the_first_and_is_refused_when_that_lasts_too_long() {
    if skipped_on_0x81("a_second_flow_to_one_address_waits_for_the_first_and_is_refused_when_that_lasts_too_long") {
        return;
    }
    let relay = Relay::start(&one_tunnel().entry(&["--wait-for-tunnel", "2s"]));
    let origin = Origin::everywhere();
    let first = open_echo(relay.socks, origin.nth(1)).unwrap();
    // Another address shares the tunnel; the same one may not.
    download(relay.socks, &origin, origin.nth(2), 1, 10_000).unwrap();
    let refused = within("the refusal", PROMPTLY, || socks::open(relay.socks, origin.nth(1))).unwrap_err();
    assert!(matches!(refused, Refusal::Reply(1)), "{refused}");
    // One that waits gets the address as soon as it is free.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| download(relay.socks, &origin, origin.nth(1), 2, 10_000));
        relay.entry.await_state("the client that waits", |s| s.clients_pending == 1);
        close_echo(first).unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(relay.entry.state().tunnels, 1);
    relay.at_rest();
}

#[test]
fn on_a_shared_tunnel_a_destination_that_does_not_read_is_cut_and_the_others_go_on() {
    if skipped_on_0x81("on_a_shared_tunnel_a_destination_that_does_not_read_is_cut_and_the_others_go_on") {
        return;
    }
    let relay = Relay::start(&one_tunnel());
    let origin = Origin::everywhere();
    let deaf = Destination::serve(|stream, _| {
        small_receive_buffer(&stream);
        std::thread::sleep(2 * WATCHDOG);
    });
    let mut bystander = open_echo(relay.socks, origin.nth(1)).unwrap();
    let mut stalled = socks::open(relay.socks, deaf.address).unwrap();
    // More than all buffers on the way hold, so that the tunnel is full; after the cut the rest of it is dropped.
    let mut sender = stalled.try_clone().unwrap();
    let sending = std::thread::spawn(move || send_pattern(&mut sender, SEED, 1, 100 << 20));
    within("the cut", WATCHDOG, || {
        relay.exit.await_state("the deaf flow cut", |s| s.flows == 1);
    });
    round_trip(&mut bystander, b"unharmed").unwrap();
    upload(relay.socks, &origin, origin.nth(2), 2, 20_000_000).unwrap();
    // 0x80 can say no more than that the reply is over: the client hears it at once.
    let (got, end) = within("the end", PROMPTLY, || read_to_the_end(&mut stalled));
    assert!(got.is_empty() && end != End::Never, "{} bytes, {end:?}", got.len());
    let _ = sending.join().unwrap();
    drop(stalled);
    close_echo(bystander).unwrap();
    relay.entry.await_quiet();
    relay.exit.await_quiet();
}

#[test]
fn on_a_shared_tunnel_a_client_that_does_not_read_is_cut_and_the_others_go_on() {
    if skipped_on_0x81("on_a_shared_tunnel_a_client_that_does_not_read_is_cut_and_the_others_go_on") {
        return;
    }
    let relay = Relay::start(&one_tunnel());
    let origin = Origin::everywhere();
    let mut bystander = open_echo(relay.socks, origin.nth(1)).unwrap();
    let mut stalled = socks::open(relay.socks, origin.nth(2)).unwrap();
    small_receive_buffer(&stalled);
    let body = 200 << 20;
    ask_for(&mut stalled, 1, body).unwrap();
    relay.entry.await_state("the deaf flow cut", |s| s.flows == 1);
    round_trip(&mut bystander, b"unharmed").unwrap();
    // A tunnel takes no new flows while the rest of that body is dropped on it.
    await_some("a new flow", WATCHDOG, || download(relay.socks, &origin, origin.nth(3), 2, 20_000_000).ok());
    // What it has got by then does not end as if it were whole.
    let (got, end) = read_to_the_end(&mut stalled);
    assert!(end == End::Reset, "{} of {body} bytes, and the end was {end:?}", got.len());
    close_echo(bystander).unwrap();
    relay.entry.await_quiet();
}

#[test]
fn many_flows_to_one_address_share_one_tunnel_of_0x81() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::start(&one_tunnel());
    let origin = Origin::new();
    let before = relay.at_rest();
    assert_eq!((before.0.tunnels, before.1.tunnels), (1, 1));
    let echoes: Vec<_> = (0..100).map(|_| open_echo(relay.socks, origin.address()).unwrap()).collect();
    all_well(&in_turns(8, 40, |i| download(relay.socks, &origin, origin.address(), u32::try_from(i).unwrap(), 200_000)));
    for mut echo in echoes {
        round_trip(&mut echo, b"still here").unwrap();
        close_echo(echo).unwrap();
    }
    relay.await_as_before(&before, WATCHDOG);
}

#[test]
fn on_0x81_a_destination_that_does_not_read_holds_up_nobody_and_goes_on_when_it_reads() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::start(&one_tunnel());
    let origin = Origin::new();
    let (speak, spoken) = std::sync::mpsc::channel::<()>();
    let spoken = std::sync::Mutex::new(spoken);
    let deaf = Destination::serve(move |mut stream, _| {
        small_receive_buffer(&stream);
        spoken.lock().unwrap().recv().unwrap();
        let verdict = check_pattern(&mut stream, SEED, 1, None).unwrap();
        stream.write_all(format!("{verdict:?}").as_bytes()).unwrap();
    });
    let mut bystander = open_echo(relay.socks, origin.address()).unwrap();
    let mut stalled = socks::open(relay.socks, deaf.address).unwrap();
    let mut sender = stalled.try_clone().unwrap();
    let body = 60 << 20;
    let sending = std::thread::spawn(move || {
        send_pattern(&mut sender, SEED, 1, body).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    // Longer than 0x80 would leave it, in which as much again goes past it.
    let until = std::time::Instant::now() + Duration::from_secs(12);
    let mut flow = 2;
    while std::time::Instant::now() < until {
        upload(relay.socks, &origin, origin.address(), flow, 5_000_000).unwrap();
        within("a round trip beside a stalled flow", PROMPTLY, || round_trip(&mut bystander, b"unharmed").unwrap());
        flow += 1;
    }
    assert!(flow > 4, "the others were held up");
    speak.send(()).unwrap();
    let (verdict, end) = read_to_the_end(&mut stalled);
    assert_eq!((String::from_utf8(verdict).unwrap(), end), (format!("Ok({body})"), End::Clean));
    sending.join().unwrap();
    drop(stalled);
    close_echo(bystander).unwrap();
    relay.at_rest();
}

#[test]
fn on_0x81_a_client_that_does_not_read_holds_up_nobody_and_goes_on_when_it_reads() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::start(&one_tunnel());
    let origin = Origin::new();
    let mut bystander = open_echo(relay.socks, origin.address()).unwrap();
    let mut stalled = socks::open(relay.socks, origin.address()).unwrap();
    small_receive_buffer(&stalled);
    let body = 60 << 20;
    ask_for(&mut stalled, 1, body).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(12);
    let mut flow = 2;
    while std::time::Instant::now() < until {
        download(relay.socks, &origin, origin.address(), flow, 5_000_000).unwrap();
        within("a round trip beside a stalled flow", PROMPTLY, || round_trip(&mut bystander, b"unharmed").unwrap());
        flow += 1;
    }
    assert!(flow > 4, "the others were held up");
    receive(&mut stalled, origin.seed, 1, body).unwrap();
    drop(stalled);
    close_echo(bystander).unwrap();
    relay.at_rest();
}

#[test]
fn on_a_shared_tunnel_clients_that_go_away_in_mid_body_harm_nobody() {
    let relay = Relay::start(&one_tunnel());
    let origin = Origin::everywhere();
    let mut bystander = open_echo(relay.socks, origin.nth(1)).unwrap();
    for i in 0..10 {
        let mut stream = socks::open(relay.socks, origin.nth(10 + i)).unwrap();
        ask_for(&mut stream, 1, 2_000_000).unwrap();
        check_pattern(&mut stream, origin.seed, 1, Some(100_000)).unwrap().unwrap();
        reset(stream);
        round_trip(&mut bystander, b"unharmed").unwrap();
    }
    let mut body = socks::open(relay.socks, origin.nth(2)).unwrap();
    ask_for(&mut body, 3, 5_000_000).unwrap();
    receive(&mut body, origin.seed, 3, 5_000_000).unwrap();
    drop(body);
    close_echo(bystander).unwrap();
    relay.entry.await_quiet();
    relay.exit.await_quiet();
    works(relay.socks);
}

#[test]
fn a_flow_without_a_byte_either_way_ends_after_the_idle_time_and_a_busy_one_does_not() {
    let relay = Relay::start(&Options::default().both(&["--idle", "2s"]));
    let origin = Origin::everywhere();
    let mut busy = open_echo(relay.socks, origin.nth(1)).unwrap();
    let mut idle = open_echo(relay.socks, origin.nth(2)).unwrap();
    std::thread::scope(|scope| {
        let ending = scope.spawn(move || read_to_the_end(&mut idle).1);
        for _ in 0..50 {
            round_trip(&mut busy, b"still here").unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_ne!(ending.join().unwrap(), End::Never);
    });
    round_trip(&mut busy, b"still here").unwrap();
    close_echo(busy).unwrap();
    relay.at_rest();
}

#[test]
fn downloads_aborted_at_random_offsets_leave_neither_memory_nor_descriptors() {
    let _alone = crate::harness::heavy();
    let relay = Relay::start(&Options::default().exit(&["--max-tunnels", "8"]));
    let origin = Origin::new();
    let round = |count| {
        all_well(&in_turns(4, count, |i| {
            let mut stream = socks::open(relay.socks, origin.address()).map_err(|e| format!("flow {i}: {e}"))?;
            ask_for(&mut stream, 1, 5_000_000)?;
            let mut left = rand::random_range(0..3_000_000usize);
            let mut chunk = vec![0; 64 << 10];
            while left > 0 {
                let want = left.min(chunk.len());
                match stream.read(&mut chunk[..want]) {
                    Ok(n @ 1..) => left -= n,
                    other => return Err(format!("flow {i}: cut by nobody: {other:?}")),
                }
            }
            if i % 2 == 0 {
                reset(stream);
            }
            Ok(())
        }));
        relay.entry.await_quiet();
        relay.exit.await_quiet();
        (relay.entry.memory_kib(), relay.exit.memory_kib())
    };
    let (first, second) = (round(200), round(400));
    assert!(second.0 <= first.0 + 2048 && second.1 <= first.1 + 2048, "KiB: {first:?}, then {second:?}");
    download(relay.socks, &origin, origin.address(), 2, 10_000_000).unwrap();
}

#[test]
fn the_state_line_counts_what_proc_counts() {
    let relay = Relay::usual();
    let origin = Origin::everywhere();
    let echoes: Vec<_> = (0..10).map(|i| open_echo(relay.socks, origin.nth(i)).unwrap()).collect();
    for role in [&relay.entry, &relay.exit] {
        let state = role.await_state("ten flows, no dials", |s| s.flows == 10 && s.tunnels_pending == 0);
        assert_eq!(state.descriptors, role.open_files(), "{state:?}");
        assert!(state.tunnels >= state.tunnels_idle && state.sockets < state.descriptors, "{state:?}");
    }
    let (before, body) = (relay.entry.state(), 1_000_000);
    download(relay.socks, &origin, origin.nth(20), 1, body).unwrap();
    let after = relay.entry.state();
    let moved = after.bytes_from_tunnels - before.bytes_from_tunnels;
    // The body and its frames' headers.
    assert!((body..body + body / 100).contains(&moved), "{moved} bytes from tunnels for a body of {body}");
    for mut echo in echoes {
        echo.write_all(b"x").unwrap();
        echo.read_exact(&mut [0]).unwrap();
        close_echo(echo).unwrap();
    }
    relay.at_rest();
}
