//! Names, against a resolver that answers what the test wants: absent, failing, late, many addresses of which some are dead.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::harness::dns::{Answer, Resolver};
use crate::harness::net::has_ipv6;
use crate::harness::socks::Refusal;
use crate::harness::traffic::{all_well, download, in_parallel, in_turns};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, socks, within};

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

fn relay_with(names: &[(&str, Answer)]) -> (Relay, Resolver) {
    let resolver = Resolver::start(names);
    let relay = Relay::start(&Options::default().resolver(resolver.address));
    (relay, resolver)
}

#[test]
fn names_that_do_not_exist_or_cannot_be_resolved_get_their_reply() {
    let (relay, _resolver) =
        relay_with(&[("fails.test", Answer::Code(2)), ("empty.test", Answer::Addresses(vec![])), ("refused.test", Answer::Code(5))]);
    for name in ["absent.test", "fails.test", "empty.test", "refused.test"] {
        // A failing resolver is asked again a few times before it is believed.
        let refused = within(name, 3 * PROMPTLY, || socks::open(relay.socks, (name, 80))).unwrap_err();
        assert!(matches!(refused, Refusal::Reply(4 | 1)), "{name}: {refused}");
    }
    relay.at_rest();
}

#[test]
fn a_name_whose_first_address_refuses_is_reached_by_a_later_one() {
    // The origin listens on one address only; the others have nobody on that port.
    let origin = Origin::on(v4(77));
    let mut second = vec![("second.test", Answer::Addresses(vec![v4(70), v4(77)]))];
    second.push(("third.test", Answer::Addresses(vec![v4(71), v4(72), v4(77)])));
    if has_ipv6() {
        second.push(("dead6.test", Answer::Addresses(vec![Ipv6Addr::LOCALHOST.into(), v4(77)])));
    }
    let (relay, _resolver) = relay_with(&second);
    for (name, _) in &second {
        // The destination speaks only when asked: the client's first bytes are what is held back.
        for flow in 0..5 {
            download(relay.socks, &origin, (*name, origin.address().port()), flow, 50_000).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    relay.at_rest();
}

#[test]
fn a_destination_of_many_addresses_that_speaks_and_ends_at_once_is_over_with_its_client() {
    // Both come while the client's first bytes are held back.
    let destination = Destination::serve(|mut stream, _| drop(stream.write_all(b"Wed Nov 25")));
    let (relay, _resolver) = relay_with(&[("daytime.test", Answer::Addresses(vec![v4(1), v4(90)]))]);
    let mut client = socks::open(relay.socks, ("daytime.test", destination.address.port())).unwrap();
    let mut day = String::new();
    client.read_to_string(&mut day).unwrap();
    assert_eq!(day, "Wed Nov 25");
    drop(client);
    relay.at_rest();
}

#[test]
fn a_late_name_holds_up_nobody_but_its_own_flow() {
    let origin = Origin::new();
    let late = Answer::Late(Duration::from_secs(3), vec![v4(1)]);
    let names: Vec<String> = (0..100).map(|i| format!("late{i}.test")).collect();
    let mut all: Vec<(&str, Answer)> = names.iter().map(|n| (n.as_str(), late.clone())).collect();
    all.push(("fast.test", Answer::Addresses(vec![v4(1)])));
    let (relay, _resolver) = relay_with(&all);
    let port = origin.address().port();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| in_parallel(100, |i| download(relay.socks, &origin, (names[i].as_str(), port), 1, 1000)));
        std::thread::sleep(Duration::from_millis(300));
        within("flows beside a hundred late names", Duration::from_secs(2), || {
            for flow in 0..5 {
                download(relay.socks, &origin, origin.address(), flow, 1000).unwrap();
                download(relay.socks, &origin, ("fast.test", port), flow, 1000).unwrap();
            }
        });
        all_well(&waiting.join().unwrap());
    });
    relay.entry.await_quiet();
}

#[test]
fn a_name_is_asked_for_once_while_its_answer_is_fresh() {
    let origin = Origin::new();
    let (relay, resolver) = relay_with(&[("once.test", Answer::Addresses(vec![v4(1)]))]);
    let port = origin.address().port();
    all_well(&in_turns(8, 400, |i| download(relay.socks, &origin, ("once.test", port), u32::try_from(i).unwrap(), 100)));
    // One for each family; the first few clients may have asked before the first answer came.
    assert!(resolver.questions() <= 8, "{} questions for 400 flows to one name", resolver.questions());
    relay.entry.await_quiet();
}
