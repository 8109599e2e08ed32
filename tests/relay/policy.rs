//! Where the exit goes and where it does not: the default policy in every spelling, ports and addresses that mean something else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::harness::dns::{Answer, Resolver};
use crate::harness::net::{End, has_ipv6, read_to_the_end};
use crate::harness::socks::{Refusal, Target};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, protocol, socks, within};

/// Asks for a target that must not be reached: refused in the reply, or ended without a byte; promptly.
fn must_not_be_reached(relay: &Relay, target: &Target) {
    let what = format!("{target:?}");
    within(&what, PROMPTLY, || match socks::open(relay.socks, target.clone()) {
        Ok(mut stream) => {
            let (got, end) = read_to_the_end(&mut stream);
            assert!(got.is_empty() && end != End::Never, "{what}: {} bytes, {end:?}", got.len());
        }
        Err(Refusal::Reply(code)) => assert_ne!(code, 0),
        Err(other) => panic!("{what}: {other}, expected a complete reply"),
    });
}

/// Every way to write a loopback address that some kernel or resolver understands.
fn spellings_of_loopback() -> Vec<IpAddr> {
    let mapped = |prefix: [u16; 6]| {
        let [a, b, c, d, e, f] = prefix;
        Ipv6Addr::new(a, b, c, d, e, f, 0x7f00, 1)
    };
    vec![
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 1, 2, 3).into(),
        Ipv6Addr::LOCALHOST.into(),
        mapped([0, 0, 0, 0, 0, 0xffff]).into(),
        mapped([0, 0, 0, 0, 0, 0]).into(),
        mapped([0, 0, 0, 0, 0xffff, 0]).into(),
        mapped([0x64, 0xff9b, 0, 0, 0, 0]).into(),
        Ipv6Addr::new(0x2002, 0x7f00, 1, 0, 0, 0, 0, 1).into(),
    ]
}

#[test]
fn by_default_loopback_is_denied_in_all_its_spellings_also_behind_a_name() {
    let all: Vec<IpAddr> = if has_ipv6() { vec![Ipv6Addr::UNSPECIFIED.into()] } else { vec![Ipv4Addr::UNSPECIFIED.into()] };
    let destination = Destination::serve_on(all[0], |mut stream, _| {
        let _ = std::io::Write::write_all(&mut stream, b"reached");
    });
    let port = destination.address.port();
    let named: Vec<_> = ["v4", "v6"].into_iter().zip([Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)]).collect();
    let names: Vec<(String, Answer)> = named.iter().map(|(n, ip)| (format!("{n}.test"), Answer::Addresses(vec![*ip]))).collect();
    let names: Vec<(&str, Answer)> = names.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
    let resolver = Resolver::start(&names);
    let relay = Relay::start(&Options::default().allow(&[]).resolver(resolver.address));
    for ip in spellings_of_loopback() {
        must_not_be_reached(&relay, &SocketAddr::from((ip, port)).into());
    }
    for name in ["localhost", "v4.test", "v6.test"] {
        must_not_be_reached(&relay, &(name, port).into());
    }
    assert_eq!(destination.accepted(), 0, "a denied destination was connected to");
    relay.at_rest();
}

#[test]
fn other_places_inside_are_denied_by_default() {
    let relay = Relay::start(&Options::default().allow(&[]));
    let inside =
        ["10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "fe80::1", "fd00::1", "ff02::1"];
    for ip in inside {
        must_not_be_reached(&relay, &SocketAddr::from((ip.parse::<IpAddr>().unwrap(), 80)).into());
    }
    relay.at_rest();
}

#[test]
fn port_0_and_the_unspecified_addresses_are_refused_whatever_is_allowed() {
    let all: IpAddr = if has_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let destination = Destination::serve_on(all, |mut stream, _| {
        let _ = std::io::Write::write_all(&mut stream, b"reached");
    });
    let port = destination.address.port();
    let relay = Relay::start(&Options::default().allow(&["0.0.0.0/0", "::/0"]));
    for (ip, port) in [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), port),
        (Ipv6Addr::UNSPECIFIED.into(), port),
        (Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), port),
        (Ipv4Addr::LOCALHOST.into(), 0),
        (Ipv6Addr::LOCALHOST.into(), 0),
    ] {
        must_not_be_reached(&relay, &SocketAddr::from((ip, port)).into());
    }
    must_not_be_reached(&relay, &("localhost", 0).into());
    assert_eq!(destination.accepted(), 0, "an unspecified destination was connected to");
    relay.at_rest();
}

#[test]
fn what_is_allowed_is_reached_and_its_neighbour_is_not() {
    let origin = Origin::everywhere();
    let relay = Relay::start(&Options::default().allow(&["127.0.0.8/32"]));
    crate::harness::traffic::download(relay.socks, &origin, origin.at([127, 0, 0, 8]), 1, 1000).unwrap();
    let mapped = Ipv4Addr::new(127, 0, 0, 8).to_ipv6_mapped();
    crate::harness::traffic::download(relay.socks, &origin, SocketAddr::from((mapped, origin.address().port())), 2, 1000).unwrap();
    must_not_be_reached(&relay, &origin.at([127, 0, 0, 9]).into());
    assert_eq!(origin.accepted(), 2);
    relay.at_rest();
}

#[test]
fn servers_from_addresses_that_are_not_allowed_may_not_log_in() {
    let relay = Relay::start(&Options::default());
    let (_directory, key, entry, socks, tunnel) =
        crate::harness::relay::start_entry(&Options::default().entry(&["--allow-servers", "192.0.2.0/24"]));
    let arguments: Vec<String> = ["server", "--protocol", protocol().name(), "--dial", &tunnel.to_string(), "--cores", "0", "--key-file"]
        .map(Into::into)
        .into_iter()
        .chain([key.display().to_string()])
        .collect();
    let stranger = crate::harness::Role::start("server", &arguments);
    entry.await_log("who was turned away", |l| l.contains("127.0.0.1") && l.to_lowercase().contains("allow"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!((stranger.state().tunnels, entry.state().tunnels), (0, 0));
    assert!(matches!(socks::open(socks, ("localhost", 1)), Err(Refusal::Reply(1))));
    assert!(entry.log().len() < 50 && stranger.log().len() < 50);
    crate::harness::traffic::works(relay.socks);
}
