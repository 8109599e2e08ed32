//! Where the exit may connect to. The address actually dialled is looked at, and every spelling in which IPv6 carries an IPv4
//! address is reduced to that address first, so that no spelling reaches what another would not.
//!
//! Sources: the IANA special-purpose registries (RFC 6890 and its updates), RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo),
//! and the clouds' metadata addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The default denials and the operator's exceptions.
#[derive(Clone, Debug)]
pub struct Policy {
    allow: Vec<IpNet>,
}

/// Why a destination is not dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// No service has port 0.
    #[error("port 0")]
    PortZero,
    /// On Linux 0.0.0.0 and :: would be this host.
    #[error("the unspecified address")]
    Unspecified,
    /// The address is in a range that is denied by default.
    #[error("{0} addresses need --allow")]
    Range(&'static str),
}

const DENIED_V4: [(Ipv4Addr, u8, &str); 13] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this-network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared (carrier NAT)"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "cloud metadata"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol-assignment"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved and broadcast"),
];

const DENIED_V6: [(Ipv6Addr, u8, &str); 7] = [
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "discard"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "private"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

impl Policy {
    /// The defaults with these exceptions.
    #[must_use]
    pub const fn new(allow: Vec<IpNet>) -> Self {
        Self { allow }
    }

    /// Whether this address may be dialled.
    ///
    /// # Errors
    /// [`Denied`], with the reason in words.
    pub fn check(&self, to: SocketAddr) -> Result<(), Denied> {
        if to.port() == 0 {
            return Err(Denied::PortZero);
        }
        let reduced = reduce(to.ip());
        if to.ip().is_unspecified() || reduced.is_unspecified() {
            return Err(Denied::Unspecified);
        }
        if self.allow.iter().any(|net| net.contains(&to.ip()) || net.contains(&reduced)) {
            return Ok(());
        }
        denied_range(reduced).map_or(Ok(()), |range| Err(Denied::Range(range)))
    }
}

/// The IPv4 address inside an IPv6 one, where there is one.
fn reduce(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if v6 == Ipv6Addr::LOCALHOST || v6 == Ipv6Addr::UNSPECIFIED {
        return address;
    }
    let segments = v6.segments();
    let v4_at = |index: usize| {
        let [a, b] = segments[index].to_be_bytes();
        let [c, d] = segments[index + 1].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // Mapped (::ffff:a.b.c.d), translated (::ffff:0:a.b.c.d) and compatible (::a.b.c.d).
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0, 0, 0, 0, 0, 0, _, _] => v4_at(6).into(),
        // NAT64, the well-known prefix and the local-use one with a /96 inside.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, _, _, _, _, _] => v4_at(6).into(),
        [0x2002, ..] => v4_at(1).into(),
        // Teredo: the client's address, inverted.
        [0x2001, 0, ..] => Ipv4Addr::from_bits(!v4_at(6).to_bits()).into(),
        _ => address,
    }
}

fn denied_range(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => {
            let within = |&&(net, length, _): &&(Ipv4Addr, u8, _)| Ipv4Net::new(net, length).is_ok_and(|net| net.contains(&v4));
            DENIED_V4.iter().find(within).map(|&(_, _, name)| name)
        }
        IpAddr::V6(v6) => {
            let within = |&&(net, length, _): &&(Ipv6Addr, u8, _)| Ipv6Net::new(net, length).is_ok_and(|net| net.contains(&v6));
            DENIED_V6.iter().find(within).map(|&(_, _, name)| name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &Policy, to: &str) -> Result<(), Denied> {
        policy.check(to.parse().unwrap())
    }

    #[test]
    fn public_addresses_are_allowed_and_special_ones_are_not() {
        let policy = Policy::new(Vec::new());
        for to in ["192.0.2.7:443", "8.8.8.8:53", "[2001:db8::1]:80", "[2606:4700::1111]:443", "[64:ff9b::808:808]:53", "172.32.0.1:1"] {
            assert_eq!(check(&policy, to), Ok(()), "{to}");
        }
        for to in [
            "127.0.0.1:80",
            "127.255.255.254:80",
            "10.1.2.3:1",
            "100.64.0.1:1",
            "169.254.169.254:80",
            "168.63.129.16:80",
            "172.31.255.255:1",
            "192.168.0.1:1",
            "198.19.0.1:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::1]:1",
            "[fe80::1]:1",
            "[fd00:ec2::254]:80",
            "[ff02::1]:1",
        ] {
            assert!(matches!(check(&policy, to), Err(Denied::Range(_))), "{to}");
        }
        assert_eq!(check(&policy, "8.8.8.8:0"), Err(Denied::PortZero));
        assert_eq!(check(&policy, "0.0.0.0:80"), Err(Denied::Unspecified));
        assert_eq!(check(&policy, "[::]:80"), Err(Denied::Unspecified));
        assert_eq!(check(&policy, "[::ffff:0.0.0.0]:80"), Err(Denied::Unspecified));
    }

    #[test]
    fn no_spelling_of_loopback_in_ipv6_gets_past() {
        let policy = Policy::new(Vec::new());
        for to in [
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[::ffff:0:7f00:1]:80",
            "[64:ff9b::7f00:1]:80",
            "[64:ff9b:1::7f00:1]:80",
            "[2002:7f00:1::1]:80",
            "[2001:0:1:2:3:4:80ff:fffe]:80",
        ] {
            assert!(matches!(check(&policy, to), Err(Denied::Range("loopback"))), "{to}");
        }
    }

    #[test]
    fn an_exception_holds_for_every_spelling_but_not_for_port_zero() {
        let policy = Policy::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        for to in ["127.0.0.1:80", "[::ffff:127.0.0.1]:80", "[::1]:80"] {
            assert_eq!(check(&policy, to), Ok(()), "{to}");
        }
        assert_eq!(check(&policy, "127.0.0.1:0"), Err(Denied::PortZero));
        assert!(check(&policy, "10.0.0.1:80").is_err());
    }
}
