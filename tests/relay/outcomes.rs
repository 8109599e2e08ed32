//! What 0x80 has no words for: replies that say how the connect went, the address it went from, and resets that arrive as resets. On 0x81 only.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::harness::destination::{check_pattern, send_pattern};
use crate::harness::dns::{Answer, Resolver};
use crate::harness::net::{End, free_address, read_to_the_end, reset, small_receive_buffer, unsent};
use crate::harness::socks::{Refusal, Target};
use crate::harness::traffic::{all_well, in_turns, open_echo, works};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, WATCHDOG, skipped_on_0x80, socks, within};

const SEED: u64 = 83;

fn code_for(relay: &Relay, target: impl Into<Target>) -> u8 {
    let target = target.into();
    let what = format!("{target:?}");
    match within(&what, PROMPTLY, || socks::open(relay.socks, target)) {
        Ok(_) => 0,
        Err(Refusal::Reply(code)) => code,
        Err(other) => panic!("{what}: {other}, expected a complete reply"),
    }
}

#[test]
fn on_0x81_the_reply_says_why_a_destination_was_not_reached() {
    if skipped_on_0x80() {
        return;
    }
    let names = [
        ("dead.test", Answer::Addresses(vec![Ipv4Addr::new(127, 0, 0, 70).into(), Ipv4Addr::new(127, 0, 0, 71).into()])),
        ("inside.test", Answer::Addresses(vec![Ipv4Addr::new(10, 0, 0, 1).into()])),
        ("empty.test", Answer::Addresses(vec![])),
        ("fails.test", Answer::Code(2)),
    ];
    let resolver = Resolver::start(&names);
    let relay = Relay::start(&Options::default().allow(&["127.0.0.0/8", "224.0.0.0/4"]).resolver(resolver.address));
    let nobody = free_address();
    let at = |address: [u8; 4], port: u16| SocketAddr::from((IpAddr::from(address), port));
    let cases: Vec<(Target, u8)> = vec![
        (nobody.into(), 5),
        // TCP to a group address fails in the kernel, as any unreachable network does.
        (at([224, 0, 0, 1], 80).into(), 3),
        (at([10, 0, 0, 1], 80).into(), 2),
        (at([169, 254, 169, 254], 80).into(), 2),
        (("dead.test", nobody.port()).into(), 5),
        (("inside.test", 80).into(), 2),
        (("10.0.0.1", 80).into(), 2),
        (("absent.test", 80).into(), 4),
        (("empty.test", 80).into(), 4),
        (("a..b", 80).into(), 4),
        (("no such host", 80).into(), 4),
        (("256.256.256.256", 80).into(), 4),
        // The entry's own word.
        (at([127, 0, 0, 1], 0).into(), 2),
        (("localhost", 0).into(), 2),
    ];
    for (target, expected) in cases {
        assert_eq!(code_for(&relay, target.clone()), expected, "{target:?}");
    }
    // A resolver that fails is asked again before it is believed.
    let refused = within("a failing resolver", 3 * PROMPTLY, || socks::open(relay.socks, ("fails.test", 80))).unwrap_err();
    assert!(matches!(refused, Refusal::Reply(1)), "{refused}");
    relay.at_rest();
}

#[test]
fn on_0x81_the_reply_holds_the_address_from_which_the_destination_was_reached() {
    if skipped_on_0x80() {
        return;
    }
    let (sender, peers) = channel();
    let sender = Mutex::new(sender);
    let destination = Destination::serve(move |stream, _| sender.lock().unwrap().send(stream.peer_addr().unwrap()).unwrap());
    let relay = Relay::usual();
    for target in [Target::from(destination.address), ("localhost", destination.address.port()).into()] {
        let mut stream = socks::ask(relay.socks, target).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        let (code, bound) = socks::read_answer(&mut stream).unwrap();
        assert_eq!((code, bound), (0, peers.recv_timeout(WATCHDOG).unwrap()));
    }
    relay.at_rest();
}

#[test]
fn on_0x81_a_client_that_sent_early_bytes_and_its_end_gets_one_refusal_and_nothing_more() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::usual();
    let before = relay.at_rest();
    let nobody = free_address();
    all_well(&in_turns(4, 40, |i| {
        let mut stream = socks::ask(relay.socks, nobody).map_err(|e| e.to_string())?;
        let _ = stream.write_all(&vec![7; 200_000]);
        if i % 2 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let (got, _) = read_to_the_end(&mut stream);
        if got == [5, 0, 5, 5, 0, 1, 0, 0, 0, 0, 0, 0] { Ok(()) } else { Err(format!("flow {i}: {got:?}")) }
    }));
    relay.await_as_before(&before, WATCHDOG);
}

#[test]
fn on_0x81_a_destinations_reset_is_a_reset_for_its_client_behind_every_byte_that_came_before() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::usual();
    let mut bystander = open_echo(relay.socks, Origin::new().address()).unwrap();
    let at_once = Destination::serve(|stream, _| reset(stream));
    let (sender, resets) = channel();
    let sender = Mutex::new(sender);
    let after_a_body = Destination::serve(move |mut stream, _| {
        send_pattern(&mut stream, SEED, 1, 150_000).unwrap();
        // A reset destroys what its sender's kernel still holds: it waits until the exit's has it all.
        while unsent(&stream) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        reset(stream);
        sender.lock().unwrap().send(()).unwrap();
    });
    for _ in 0..20 {
        // The connection was up, however short: it is opened, and then reset.
        match socks::open(relay.socks, at_once.address) {
            Ok(mut stream) => {
                let (got, end) = within("the reset of a flow that was just opened", PROMPTLY, || read_to_the_end(&mut stream));
                assert_eq!((got.len(), end), (0, End::Reset));
            }
            Err(Refusal::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            Err(other) => panic!("{other}"),
        }
        let mut stream = socks::open(relay.socks, after_a_body.address).unwrap();
        // Some of it waits in the relay while the reset comes.
        small_receive_buffer(&stream);
        std::thread::sleep(Duration::from_millis(20));
        check_pattern(&mut stream, SEED, 1, Some(150_000)).unwrap().unwrap();
        resets.recv_timeout(WATCHDOG).expect("the destination resets when the exit has all of it");
        let (rest, end) = within("the reset behind a body", PROMPTLY, || read_to_the_end(&mut stream));
        assert_eq!((rest.len(), end), (0, End::Reset));
        crate::harness::traffic::round_trip(&mut bystander, b"unharmed").unwrap();
    }
    crate::harness::traffic::close_echo(bystander).unwrap();
    relay.at_rest();
}

#[test]
fn on_0x81_a_clients_reset_is_a_reset_for_its_destination_whatever_that_does() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::usual();
    let (sender, ends) = channel();
    let sender = Mutex::new(sender);
    let listening = Destination::serve(move |mut stream, _| {
        let got = check_pattern(&mut stream, SEED, 2, Some(100_000)).unwrap();
        let (rest, end) = read_to_the_end(&mut stream);
        sender.lock().unwrap().send((got, rest.len(), end)).unwrap();
    });
    for _ in 0..20 {
        let mut stream = socks::open(relay.socks, listening.address).unwrap();
        send_pattern(&mut stream, SEED, 2, 100_000).unwrap();
        while unsent(&stream) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        reset(stream);
        let told = ends.recv_timeout(PROMPTLY).expect("the destination must learn that the client has gone");
        assert_eq!(told, (Ok(100_000), 0, End::Reset));
    }
    works(relay.socks);
    relay.at_rest();
}

#[test]
fn on_0x81_a_clients_reset_behind_bytes_that_nobody_takes_arrives_after_the_linger() {
    if skipped_on_0x80() {
        return;
    }
    let relay = Relay::start(&Options::default().both(&["--linger", "2s"]));
    let before = relay.at_rest();
    let held = std::sync::Arc::new(Mutex::new(Vec::new()));
    let deaf = Destination::accept_on([127, 0, 0, 1].into(), {
        let held = std::sync::Arc::clone(&held);
        move |stream, _| {
            small_receive_buffer(&stream);
            held.lock().unwrap().push(stream);
        }
    });
    let mut stream = socks::open(relay.socks, deaf.address).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    while stream.write(&[7; 64 << 10]).is_ok() {}
    reset(stream);
    // Nobody reads, and still nothing is kept.
    relay.await_as_before(&before, WATCHDOG);
    let mut kept = held.lock().unwrap().pop().unwrap();
    assert_eq!(read_to_the_end(&mut kept).1, End::Reset);
}
