//! Names on 0x81, which the exit resolves: all addresses of both families are tried, a dead one costs little, look-ups are shared, and a
//! name that is slow or never answered holds up nobody.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::harness::dns::{Answer, Resolver};
use crate::harness::net::{Hole, free_port, has_ipv6, reset};
use crate::harness::socks::{Refusal, read_answer, read_reply};
use crate::harness::traffic::{all_well, download, in_parallel, in_turns, upload};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, WATCHDOG, await_some, socks, within};

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

fn relay_with(names: &[(&str, Answer)], options: Options) -> (Relay, Resolver) {
    let resolver = Resolver::start(names);
    let relay = Relay::start(&options.resolver(resolver.address));
    (relay, resolver)
}

/// A request for a name whose answer is read later.
fn ask(relay: &Relay, name: &str, port: u16) -> TcpStream {
    let mut stream = socks::ask(relay.socks, (name, port)).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    stream
}

/// The code of a refusal.
fn refused(relay: &Relay, name: &str, port: u16) -> u8 {
    match socks::open(relay.socks, (name, port)) {
        Err(Refusal::Reply(code)) => code,
        other => panic!("{name}: {other:?}, expected a refusal"),
    }
}

/// A destination that says which of its addresses was called.
fn says_its_address() -> Destination {
    Destination::serve_on(Ipv4Addr::UNSPECIFIED.into(), |mut stream, _| {
        let own = stream.local_addr().unwrap().ip().to_string();
        let _ = stream.write_all(own.as_bytes());
    })
}

fn called_address(relay: &Relay, name: &str, port: u16) -> String {
    let mut stream = socks::open(relay.socks, (name, port)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn an_ipv6_address_that_refuses_is_silent_or_has_no_route_costs_the_ipv4_one_next_to_nothing() {
    if !has_ipv6() {
        return crate::harness::programs::skip("[::1] cannot be bound", "enable IPv6 on the loopback device");
    }
    let origin = Origin::on(v4(77));
    let port = origin.address().port();
    let silent = Hole::at((Ipv6Addr::LOCALHOST, port).into());
    let nowhere = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    let names = [
        ("silent.test", Answer::Addresses(vec![Ipv6Addr::LOCALHOST.into(), v4(77)])),
        ("nowhere.test", Answer::Addresses(vec![nowhere, v4(77)])),
        ("many.test", Answer::Addresses(vec![nowhere, Ipv6Addr::LOCALHOST.into(), v4(77)])),
    ];
    let (relay, resolver) = relay_with(&names, Options::v81().exit(&["--connect-timeout", "60s"]));
    for (name, _) in &names {
        within(name, PROMPTLY, || download(relay.socks, &origin, (*name, port), 1, 50_000)).unwrap();
    }
    drop(silent);
    resolver.set("refuses.test", Answer::Addresses(vec![Ipv6Addr::LOCALHOST.into(), v4(77)]));
    within("refuses.test", PROMPTLY, || download(relay.socks, &origin, ("refuses.test", port), 1, 50_000)).unwrap();
    relay.at_rest();
}

#[test]
fn of_eight_addresses_of_which_three_are_silent_and_four_refuse_the_last_is_reached_and_the_losers_are_closed() {
    let origin = Origin::on(v4(77));
    let port = origin.address().port();
    let _silent: Vec<Hole> = (61..=63).map(|last| Hole::at(SocketAddr::new(v4(last), port))).collect();
    let all = [61, 64, 62, 65, 63, 66, 67, 77].map(v4).to_vec();
    let (relay, _resolver) = relay_with(&[("eight.test", Answer::Addresses(all))], Options::v81().exit(&["--connect-timeout", "60s"]));
    let before = relay.at_rest();
    for flow in 0..3 {
        within("one in eight", PROMPTLY, || upload(relay.socks, &origin, ("eight.test", port), flow, 50_000)).unwrap();
    }
    // Long before the silent ones would have timed out.
    relay.await_as_before(&before, PROMPTLY * 2);
}

#[test]
fn a_resolver_that_swallows_the_questions_for_one_family_costs_next_to_nothing() {
    let origin = Origin::on(v4(77));
    let (relay, _resolver) = relay_with(&[("half.test", Answer::Swallowed(vec![v4(77)]))], Options::v81());
    let port = origin.address().port();
    for flow in 0..3 {
        within("half an answer", PROMPTLY, || download(relay.socks, &origin, ("half.test", port), flow, 50_000)).unwrap();
    }
    relay.at_rest();
}

#[test]
fn what_becomes_of_a_name_is_told_in_the_reply() {
    let hole = Hole::new();
    let names = [
        ("fails.test", Answer::Code(2)),
        ("empty.test", Answer::Addresses(vec![])),
        ("here.test", Answer::Addresses(vec![v4(1)])),
        ("silence.test", Answer::Silence),
    ];
    let (relay, _resolver) = relay_with(&names, Options::v81().exit(&["--connect-timeout", "1s"]));
    assert_eq!(refused(&relay, "absent.test", 80), 4, "no such name");
    assert_eq!(refused(&relay, "empty.test", 80), 4, "a name without addresses");
    assert_eq!(refused(&relay, "fails.test", 80), 1, "a resolver that fails");
    assert_eq!(refused(&relay, "here.test", free_port()), 5, "nobody listens");
    assert_eq!(refused(&relay, "here.test", hole.address.port()), 6, "nobody answers");
    assert_eq!(refused(&relay, "silence.test", 80), 1, "a resolver that never answers");
    relay.at_rest();
}

#[test]
fn a_name_that_leads_inside_is_refused_by_policy_with_a_line_that_says_so() {
    let destination = Destination::serve(|mut stream, _| drop(stream.write_all(b"reached")));
    let port = destination.address.port();
    let names = [
        ("direct.test", Answer::Addresses(vec![v4(1)])),
        ("alias.test", Answer::Alias("localhost", vec![v4(1)])),
        ("rebound.test", Answer::Alias("inside.test", vec![v4(1), IpAddr::from([10, 0, 0, 1])])),
    ];
    let (relay, _resolver) = relay_with(&names, Options::v81().allow(&[]));
    for (name, _) in &names {
        assert_eq!(within(name, PROMPTLY, || refused(&relay, name, port)), 2);
        relay.exit.await_log("the refusal", |line| line.contains(name) && line.contains("loopback addresses need --allow"));
    }
    assert_eq!(destination.accepted(), 0);
    relay.at_rest();
}

#[test]
fn four_hundred_flows_to_one_name_ask_a_few_questions_at_the_exit_and_none_at_the_entry() {
    let origin = Origin::new();
    let at_entry = Resolver::start(&[("once.test", Answer::Addresses(vec![v4(1)]))]);
    let options = Options::v81().entry(&["--resolver", &at_entry.address.to_string()]);
    let (relay, resolver) = relay_with(&[("once.test", Answer::Late(Duration::from_millis(300), vec![v4(1)]))], options);
    let port = origin.address().port();
    all_well(&in_turns(40, 400, |i| download(relay.socks, &origin, ("once.test", port), u32::try_from(i).unwrap(), 100)));
    assert!(resolver.questions() <= 8, "{} questions for 400 flows to one name", resolver.questions());
    assert_eq!(at_entry.questions(), 0, "the entry asked");
    relay.at_rest();
}

#[test]
fn an_answer_is_kept_no_longer_than_it_says() {
    let destination = says_its_address();
    let port = destination.address.port();
    let names = [("moves.test", Answer::Fresh(1, vec![v4(61)])), ("stays.test", Answer::Fresh(600, vec![v4(61)]))];
    let (relay, resolver) = relay_with(&names, Options::v81());
    for (name, _) in &names {
        assert_eq!(called_address(&relay, name, port), "127.0.0.61");
        resolver.set(name, Answer::Fresh(600, vec![v4(62)]));
    }
    await_some("the new address", WATCHDOG, || (called_address(&relay, "moves.test", port) == "127.0.0.62").then_some(()));
    assert_eq!(called_address(&relay, "stays.test", port), "127.0.0.61", "a good answer was thrown away");
    relay.at_rest();
}

#[test]
fn five_hundred_names_that_are_never_answered_and_a_hundred_late_ones_hold_up_nobody() {
    let origin = Origin::new();
    let mut names: Vec<(String, Answer)> = (0..500).map(|i| (format!("never{i}.test"), Answer::Silence)).collect();
    names.extend((0..100).map(|i| (format!("late{i}.test"), Answer::Late(Duration::from_millis(500), vec![v4(1)]))));
    names.push(("fast.test".into(), Answer::Addresses(vec![v4(1)])));
    let named: Vec<(&str, Answer)> = names.iter().map(|(name, answer)| (name.as_str(), answer.clone())).collect();
    let (relay, _resolver) = relay_with(&named, Options::v81());
    let before = relay.at_rest();
    let port = origin.address().port();
    let mut waiting: Vec<TcpStream> = (0..500).map(|i| ask(&relay, &format!("never{i}.test"), port)).collect();
    within("flows beside five hundred names without an answer", PROMPTLY, || {
        for flow in 0..5 {
            download(relay.socks, &origin, ("fast.test", port), flow, 1000).unwrap();
            download(relay.socks, &origin, origin.address(), flow, 1000).unwrap();
        }
    });
    all_well(&in_parallel(100, |i| download(relay.socks, &origin, (format!("late{i}.test").as_str(), port), 1, 1000)));
    for stream in &mut waiting {
        // All look-ups were taken, or the resolver did not answer: both are the exit's own affair.
        assert_eq!(read_reply(stream).unwrap(), 1);
    }
    drop(waiting);
    relay.await_as_before(&before, WATCHDOG);
}

#[test]
fn a_client_may_be_gone_at_any_moment_of_its_flows_opening() {
    let origin = Origin::new();
    let hole = Hole::new();
    let port = origin.address().port();
    let late = |ms| Answer::Late(Duration::from_millis(ms), vec![v4(1)]);
    let names = [("never.test", Answer::Silence), ("late.test", late(10)), ("later.test", late(25)), ("fast.test", late(0))];
    // The look-up and the connect would last beyond the end of the test if nobody stopped them.
    let (relay, _resolver) = relay_with(&names, Options::v81().exit(&["--connect-timeout", "300s"]));
    let before = relay.at_rest();
    // While the name is looked up, and while the destination is silent: it is stopped, and soon.
    let looked_up: Vec<_> = (0..20).map(|_| ask(&relay, "never.test", port)).collect();
    let connecting: Vec<_> = (0..20).map(|_| ask(&relay, "fast.test", hole.address.port())).collect();
    relay.exit.await_state("all openings", |s| s.flows == 40);
    looked_up.into_iter().chain(connecting).for_each(reset);
    relay.await_as_before(&before, PROMPTLY * 2);
    // At all other moments, with a reset or an end, with and without something to send.
    all_well(&in_turns(8, 400, |i| {
        let name = ["late.test", "later.test", "fast.test"][i % 3];
        let mut stream = socks::ask(relay.socks, (name, port)).map_err(|e| e.to_string())?;
        if i % 4 > 1 {
            stream.write_all(b"get 1 100000\n").map_err(|e| e.to_string())?;
        }
        std::thread::sleep(Duration::from_micros(rand::random_range(0..40_000)));
        if i % 2 == 0 {
            reset(stream)
        } else {
            drop(stream)
        }
        Ok(())
    }));
    relay.await_as_before(&before, WATCHDOG);
}

#[test]
fn what_a_client_sends_while_its_name_is_looked_up_arrives_in_order_and_its_end_behind_it() {
    let origin = Origin::new();
    let late = Answer::Late(Duration::from_millis(300), vec![v4(1)]);
    let (relay, _resolver) = relay_with(&[("late.test", late)], Options::v81());
    let port = origin.address().port();
    // Within the first credit, and far beyond it.
    for (flow, len) in [(1, 100 << 10), (2, 4 << 20)] {
        let mut client = socks::ask(relay.socks, ("late.test", port)).unwrap();
        let mut reader = client.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut method = [0; 2];
            reader.read_exact(&mut method).unwrap();
            assert_eq!(read_reply(&mut reader).unwrap(), 0);
            let mut verdict = String::new();
            reader.read_to_string(&mut verdict).unwrap();
            verdict
        });
        client.write_all(format!("upto {flow}\n").as_bytes()).unwrap();
        crate::harness::destination::send_pattern(&mut client, origin.seed, flow, len).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reading.join().unwrap(), format!("{len} ok"));
    }
    relay.at_rest();
}

#[test]
fn the_reply_names_the_address_that_the_destination_sees() {
    let says_who_came = |ip: IpAddr| {
        Destination::serve_on(ip, |mut stream, _| {
            let peer = stream.peer_addr().unwrap().to_string();
            let _ = stream.write_all(peer.as_bytes());
        })
    };
    let mut targets = vec![(says_who_came(v4(1)), None), (says_who_came(v4(1)), Some("v4.test"))];
    if has_ipv6() {
        targets.push((says_who_came(Ipv6Addr::LOCALHOST.into()), None));
        targets.push((says_who_came(Ipv6Addr::LOCALHOST.into()), Some("v6.test")));
    }
    let names = [("v4.test", Answer::Addresses(vec![v4(1)])), ("v6.test", Answer::Addresses(vec![Ipv6Addr::LOCALHOST.into()]))];
    let (relay, _resolver) = relay_with(&names, Options::v81());
    for (destination, name) in &targets {
        let mut stream = match name {
            Some(name) => ask(&relay, name, destination.address.port()),
            None => {
                let mut stream = socks::ask(relay.socks, destination.address).unwrap();
                stream.read_exact(&mut [0; 2]).unwrap();
                stream
            }
        };
        let (code, bound) = read_answer(&mut stream).unwrap();
        assert_eq!(code, 0);
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        assert_eq!(bound.to_string(), seen);
    }
    relay.at_rest();
}
