//! Sides that stop reading, processes that stop altogether, thousands of flows that do nothing: what is held for them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::destination::{check_pattern, send_pattern};
use crate::harness::net::{Hole, read_to_the_end, small_receive_buffer};
use crate::harness::traffic::{
    all_well, ask_for, both_ways, download, in_parallel, in_turns, open_echo, receive, round_trip, upload, works,
};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, Role, WATCHDOG, await_some, heavy, on_0x81, quick, socks, within};

const SEED: u64 = 78;

/// Accepts, and reads only when told to.
struct Deaf {
    listener: Destination,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Deaf {
    fn new() -> Self {
        let streams = Arc::new(Mutex::new(Vec::new()));
        let listener = Destination::accept_on([127, 0, 0, 1].into(), {
            let streams = Arc::clone(&streams);
            move |stream, _| {
                small_receive_buffer(&stream);
                streams.lock().unwrap().push(stream);
            }
        });
        Self { listener, streams }
    }
}

/// Writes as much as is taken; returns how much that was when nothing more went for a while.
fn fill_up(stream: &mut TcpStream, flow: u32) -> u64 {
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut at = 0;
    let mut chunk = vec![0; 64 << 10];
    loop {
        crate::harness::pattern::fill(SEED, flow, at, &mut chunk);
        match stream.write(&chunk) {
            Ok(n) => at += n as u64,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => return at,
            Err(e) => panic!("the stalled flow broke after {at} bytes: {e}"),
        }
        assert!(at < 1 << 30, "a gibibyte was taken for a destination that does not read");
    }
}

/// Slots and memory of both roles over some time: the slots must not move, the memory not grow beyond what it was at the start of the
/// stall. The kernel counts in steps: it may join pages to huge ones of 2 MiB at any time, and its count lags by half a mebibyte.
fn watch_standing_still(relay: &Relay, stalled: (u64, u64), memory: (u64, u64), how_long: Duration) {
    let roles = [(&relay.entry, "inter-server", stalled.0, memory.0), (&relay.exit, "server", stalled.1, memory.1)];
    let start = Instant::now();
    while start.elapsed() < how_long {
        for (role, name, slots, before) in roles {
            let (in_use, kib) = (role.state().slots_in_use, role.memory_kib());
            assert_eq!(in_use, slots, "{name}: slots in use changed while nothing moved");
            assert!(kib <= before + 3 * 2048, "{name}: {kib} KiB resident, {before} KiB at the start of the stall");
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn stalled_slots(role: &Role) -> u64 {
    let state = role.await_state("a stall that holds next to nothing", |s| s.flows == 1 && s.slots_in_use <= 4);
    state.slots_in_use
}

pub(crate) fn a_deaf_destination(relay: &Relay, how_long: Duration) {
    let origin = Origin::new();
    // Both arenas are touched before memory is measured.
    upload(relay.socks, &origin, origin.address(), 1, 100_000_000).unwrap();
    download(relay.socks, &origin, origin.address(), 1, 100_000_000).unwrap();
    let deaf = Deaf::new();
    let mut stalled = socks::open(relay.socks, deaf.listener.address).unwrap();
    let sent = fill_up(&mut stalled, 1);
    let slots = (stalled_slots(&relay.entry), stalled_slots(&relay.exit));
    let memory = (relay.entry.memory_kib(), relay.exit.memory_kib());
    upload(relay.socks, &origin, origin.address(), 2, 200_000_000).expect("another tunnel's flow must not be held up");
    relay.entry.await_state("the other flow's end", |s| s.flows == 1);
    relay.exit.await_state("the other flow's end", |s| s.flows == 1);
    watch_standing_still(relay, slots, memory, how_long);
    // Nothing of it was lost: once the destination reads, all arrives.
    let mut reader = deaf.streams.lock().unwrap().pop().unwrap();
    drop(stalled);
    assert_eq!(check_pattern(&mut reader, SEED, 1, None).unwrap(), Ok(sent));
}

#[test]
fn a_destination_that_stops_reading_holds_neither_slots_nor_memory_and_others_move_200_megabytes() {
    let relay = Relay::usual();
    a_deaf_destination(&relay, Duration::from_secs(if quick() { 3 } else { 20 }));
    relay.at_rest();
}

#[test]
fn a_client_that_stops_reading_holds_neither_slots_nor_memory_and_others_move_200_megabytes() {
    let relay = Relay::usual();
    let origin = Origin::new();
    upload(relay.socks, &origin, origin.address(), 1, 100_000_000).unwrap();
    download(relay.socks, &origin, origin.address(), 1, 100_000_000).unwrap();
    let body = 300_000_000;
    let mut stalled = socks::open(relay.socks, origin.address()).unwrap();
    small_receive_buffer(&stalled);
    ask_for(&mut stalled, 7, body).unwrap();
    // It stands when the counters do.
    let moved = || (relay.entry.state().bytes_from_tunnels, relay.exit.state().bytes_to_tunnels);
    await_some("the stall", WATCHDOG, || {
        let first = moved();
        std::thread::sleep(Duration::from_millis(500));
        (first == moved()).then_some(())
    });
    let slots = (stalled_slots(&relay.entry), stalled_slots(&relay.exit));
    let memory = (relay.entry.memory_kib(), relay.exit.memory_kib());
    download(relay.socks, &origin, origin.address(), 2, 200_000_000).expect("another tunnel's flow must not be held up");
    relay.entry.await_state("the other flow's end", |s| s.flows == 1);
    relay.exit.await_state("the other flow's end", |s| s.flows == 1);
    watch_standing_still(&relay, slots, memory, Duration::from_secs(if quick() { 3 } else { 10 }));
    receive(&mut stalled, origin.seed, 7, body).unwrap();
    drop(stalled);
    relay.at_rest();
}

#[test]
fn memory_for_a_hundred_stalled_downloads_is_bounded_per_flow() {
    let _alone = heavy();
    let relay = Relay::usual();
    let origin = Origin::everywhere();
    download(relay.socks, &origin, origin.nth(0), 1, 100_000_000).unwrap();
    let memory = (relay.entry.memory_kib(), relay.exit.memory_kib());
    let mut streams = Vec::new();
    for i in 0..100 {
        let mut stream = socks::open(relay.socks, origin.nth(i)).unwrap();
        small_receive_buffer(&stream);
        ask_for(&mut stream, u32::try_from(i).unwrap(), 20_000_000).unwrap();
        streams.push(stream);
    }
    let moved = || (relay.entry.state().bytes_from_tunnels, relay.exit.state().bytes_to_tunnels);
    await_some("the stall", WATCHDOG, || {
        let first = moved();
        std::thread::sleep(Duration::from_millis(500));
        (first == moved()).then_some(())
    });
    for (role, before) in [(&relay.entry, memory.0), (&relay.exit, memory.1)] {
        let state = role.state();
        let grown = role.memory_kib().saturating_sub(before);
        // At most two slots' worth per flow and direction, and what a flow itself needs; the arena (16 MiB) may be touched further.
        assert!(grown <= 16 * 1024 + 100 * 150, "{grown} KiB for 100 stalled flows; {state:?}");
        assert!(state.slots_in_use <= state.slots / 2, "stalled readers hold slots: {state:?}");
    }
    works(relay.socks);
    for (i, mut stream) in streams.drain(..).enumerate().take(5) {
        check_pattern(&mut stream, origin.seed, u32::try_from(i).unwrap(), Some(20_000_000)).unwrap().unwrap();
    }
    relay.at_rest();
}

pub(crate) fn idle_flows(options: &Options, count: usize) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let destination = Destination::accept_on([0, 0, 0, 0].into(), {
        let held = Arc::clone(&held);
        move |stream, _| held.lock().unwrap().push(stream)
    });
    let at = |i: usize| {
        let [_, b, c, d] = u32::try_from(i + 257).unwrap().to_be_bytes();
        destination.at([127, b, c, d])
    };
    let relay = Relay::start(options);
    let before = relay.at_rest();
    let flows = Mutex::new(Vec::new());
    all_well(&in_turns(8, count, |i| {
        let flow = socks::open(relay.socks, at(i)).map_err(|e| format!("flow {i}: {e}"))?;
        flows.lock().unwrap().push(flow);
        Ok(())
    }));
    let expected = count as u64;
    for role in [&relay.entry, &relay.exit] {
        let state = role.await_state("all idle flows without a slot", |s| s.flows == expected && s.slots_in_use == 0);
        assert_eq!(state.parked, 0);
    }
    await_some("all connections", WATCHDOG, || (destination.accepted() == count).then_some(()));
    // They are alive: the destination speaks on each, and each client hears.
    for stream in held.lock().unwrap().iter_mut() {
        stream.write_all(b"hello").unwrap();
    }
    for flow in flows.lock().unwrap().iter_mut() {
        let mut word = [0; 5];
        flow.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
    }
    flows.lock().unwrap().clear();
    held.lock().unwrap().clear();
    // Spare tunnels stay for a minute.
    relay.await_as_before(&before, Duration::from_secs(150));
}

#[test]
fn five_thousand_idle_flows_hold_no_slot_on_either_role_and_leave_nothing_behind() {
    // The wait for spare tunnels to go is long and idle; only the rest keeps the cores busy, and not for long.
    idle_flows(&Options::default(), 5000);
}

pub(crate) fn many_flows_over_four_slots(options: Options) {
    let relay = Relay::start(&options.both(&["--buffer-memory", "256KiB"]));
    assert_eq!(relay.exit.state().slots, 4 * relay.exit.state().shards);
    let origin = Origin::everywhere();
    all_well(&in_parallel(200, |i| {
        let flow = u32::try_from(i).unwrap();
        match i % 3 {
            0 => download(relay.socks, &origin, origin.nth(i), flow, 500_000),
            1 => upload(relay.socks, &origin, origin.nth(i), flow, 500_000),
            _ => both_ways(relay.socks, &origin, origin.nth(i), flow, 500_000),
        }
    }));
    relay.entry.await_quiet();
    relay.exit.await_quiet();
    works(relay.socks);
}

#[test]
fn two_hundred_flows_over_four_slots_all_finish() {
    let _alone = heavy();
    many_flows_over_four_slots(Options::default());
}

/// Ten flows for each slot, held open; again and again all of them get bytes at the same moment, at one role and then at the other, because
/// that role stood still while they came. Each flow must get its own answer, whole.
pub(crate) fn all_wake_at_once(options: Options, flows: u32, message_bytes: usize) {
    const SLOTS: u64 = 64;
    let relay = Relay::start(&options.both(&["--buffer-memory", "4MiB"]).exit(&["--max-tunnels", "1024"]));
    let held = Arc::new(Mutex::new(Vec::new()));
    let destination = Destination::accept_on([127, 0, 0, 1].into(), {
        let held = Arc::clone(&held);
        move |stream, _| held.lock().unwrap().push(stream)
    });
    let shards = relay.entry.state().shards;
    assert!(relay.entry.state().slots == SLOTS * shards && u64::from(flows) >= 4 * SLOTS * shards, "not more flows than slots");
    let mut clients: Vec<_> = (0..flows).map(|_| socks::open(relay.socks, destination.address).unwrap()).collect();
    await_some("all connections", WATCHDOG, || (destination.accepted() == clients.len()).then_some(()));
    let mut held = held.lock().unwrap();
    let mut message = vec![0; message_bytes];
    for round in 0..4_u64 {
        let offset = round * message_bytes as u64;
        asleep(&relay.entry, || {
            for (flow, client) in (0..).zip(&mut clients) {
                crate::harness::pattern::fill(SEED, flow, offset, &mut message);
                client.write_all(&message).unwrap();
            }
        });
        let questions: Vec<Vec<u8>> = held.iter_mut().map(|stream| exactly(stream, message_bytes, "a question")).collect();
        asleep(&relay.exit, || {
            for (stream, question) in held.iter_mut().zip(&questions) {
                stream.write_all(question).unwrap();
            }
        });
        for (flow, client) in (0..).zip(&mut clients) {
            let answer = exactly(client, message_bytes, &format!("the answer of flow {flow} in round {round}"));
            crate::harness::pattern::fill(SEED, flow, offset, &mut message);
            assert!(answer == message, "flow {flow} got another's bytes in round {round}");
        }
    }
    for role in [&relay.entry, &relay.exit] {
        role.await_state("all flows idle, without a slot", |s| s.flows == u64::from(flows) && s.slots_in_use == 0 && s.parked == 0);
    }
    clients.clear();
    held.clear();
    relay.entry.await_quiet();
    relay.exit.await_quiet();
}

/// Does `work` while the role stands still.
fn asleep(role: &Role, work: impl FnOnce()) {
    role.signal("STOP");
    work();
    role.signal("CONT");
}

fn exactly(stream: &mut TcpStream, count: usize, what: &str) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{what} did not come: {error}"));
    bytes
}

#[test]
fn six_hundred_idle_flows_over_64_slots_that_all_wake_at_once_are_all_answered_every_time() {
    all_wake_at_once(Options::default(), 600, 64);
    all_wake_at_once(Options::default(), 600, 8000);
}

#[test]
fn slow_readers_on_a_relay_with_four_slots_do_not_stop_the_others() {
    let _alone = heavy();
    let relay = Relay::start(&Options::default().both(&["--buffer-memory", "256KiB"]));
    let origin = Origin::everywhere();
    let mut stalled: Vec<_> = (0..50)
        .map(|i| {
            let mut stream = socks::open(relay.socks, origin.nth(i)).unwrap();
            small_receive_buffer(&stream);
            ask_for(&mut stream, u32::try_from(i).unwrap(), 5_000_000).unwrap();
            stream
        })
        .collect();
    all_well(&in_turns(8, 50, |i| download(relay.socks, &origin, origin.nth(100 + i), u32::try_from(i).unwrap(), 500_000)));
    for (i, stream) in stalled.iter_mut().enumerate().take(10) {
        receive(stream, origin.seed, u32::try_from(i).unwrap(), 5_000_000).unwrap();
    }
    drop(stalled);
    relay.entry.await_quiet();
    relay.exit.await_quiet();
}

#[test]
fn a_role_that_was_stopped_for_a_while_goes_on_where_it_was() {
    let relay = Relay::usual();
    let origin = Origin::new();
    for role in [&relay.entry, &relay.exit] {
        let mut echo = open_echo(relay.socks, origin.address()).unwrap();
        let mut body = socks::open(relay.socks, origin.address()).unwrap();
        ask_for(&mut body, 3, 50_000_000).unwrap();
        check_pattern(&mut body, origin.seed, 3, Some(1_000_000)).unwrap().unwrap();
        role.signal("STOP");
        echo.write_all(b"waits").unwrap();
        std::thread::sleep(Duration::from_secs(3));
        role.signal("CONT");
        let mut word = [0; 5];
        echo.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"waits");
        drop(body);
        drop(echo);
        works(relay.socks);
    }
    relay.at_rest();
}

#[test]
fn a_destination_that_never_answers_the_connect_ends_after_the_time_out_and_holds_up_nobody() {
    let relay = Relay::start(&Options::default().exit(&["--connect-timeout", "2s"]));
    let hole = Hole::new();
    let before = relay.exit.open_files();
    // On 0x81 the answer comes when the connect is over, on 0x80 before it has begun.
    let mut waiting: Vec<_> = (0..20).map(|_| socks::ask(relay.socks, hole.address).unwrap()).collect();
    let origin = Origin::new();
    within("20 downloads beside 20 connects that hang", PROMPTLY, || {
        for flow in 0..20 {
            download(relay.socks, &origin, origin.address(), flow, 100_000).unwrap();
        }
    });
    for stream in &mut waiting {
        let (got, _) = within("the end", 2 * PROMPTLY, || read_to_the_end(stream));
        // The answers to greeting and request, and no byte more.
        assert_eq!((got.len(), got[3]), (12, if on_0x81() { 6 } else { 0 }), "{got:?}");
    }
    drop(waiting);
    relay.exit.await_quiet();
    let tunnels = relay.exit.state().tunnels;
    assert!(relay.exit.open_files() <= before + tunnels, "{} descriptors, {before} before", relay.exit.open_files());
}

#[test]
fn small_round_trips_beside_a_flood_never_wait_for_seconds() {
    let _alone = heavy();
    let relay = Relay::usual();
    let origin = Origin::new();
    let flood = Destination::serve(|mut stream, _| {
        let _ = send_pattern(&mut stream, SEED, 1, u64::MAX);
    });
    let mut bulk = socks::open(relay.socks, flood.address).unwrap();
    let reading = std::thread::spawn(move || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            if bulk.read(&mut vec![0; 1 << 20]).unwrap() == 0 {
                break;
            }
        }
    });
    let mut echo = open_echo(relay.socks, origin.address()).unwrap();
    // A round trip beside a flood: not a benchmark, but none may wait for seconds.
    while !reading.is_finished() {
        within("a round trip beside a flood", Duration::from_secs(1), || round_trip(&mut echo, b"ping").unwrap());
    }
    reading.join().unwrap();
}
