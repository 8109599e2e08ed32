//! From text to meaning, one function per kind of value. Each answers with the value or with what was expected instead.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::ListenAt;
use crate::crypto::aead;
use crate::crypto::fixed_iv::Method;
use crate::dial::DialTarget;
use crate::limits;
use crate::protocol::socks5::Credentials;
use crate::protocol::v80::{Profile, Side};
use crate::shard::affinity;
use crate::shard::engine::{Choice, Engine};
use crate::telemetry::log;

/// The common IV of the published programs.
pub(super) const DEFAULT_IV: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Longer times are a slip of the pen (and would overflow nothing): a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Most slots of a shard: the kernel's buffer ring names them with 16 bits.
const BUFFER_MEMORY_MAX: usize = limits::SLOT_BYTES << 16;

type Parsed<T> = Result<T, String>;

/// A cipher of 0x80.
pub(super) fn method(text: &str) -> Parsed<Method> {
    let later = text.split(',').all(|name| name.trim().parse::<aead::Method>().is_ok());
    let hint = if later { " with protocol 0x80: this is of protocol 0x81" } else { "" };
    text.parse().map_err(|_| format!("aes-128-ctr, aes-256-ctr or aes-128-cfb{hint}"))
}

/// Ciphers of 0x81, each once, most wanted first.
pub(super) fn methods(text: &str) -> Parsed<Vec<aead::Method>> {
    let hint = if text.parse::<Method>().is_ok() { " with protocol 0x81: this is of protocol 0x80" } else { "" };
    let expected = || format!("a list of aes-128-gcm, aes-256-gcm and chacha20-poly1305, most wanted first{hint}");
    let mut methods = Vec::new();
    for name in text.split(',') {
        let method = name.trim().parse().map_err(|_| expected())?;
        if methods.contains(&method) {
            return Err(format!("each cipher once: {method} comes twice"));
        }
        methods.push(method);
    }
    Ok(methods)
}

pub(super) fn profile(text: &str) -> Parsed<Profile> {
    match text {
        "ours" => Ok(Profile::Ours),
        "original" => Ok(Profile::Original),
        _ => Err("ours or original".to_owned()),
    }
}

pub(super) fn side(text: &str) -> Parsed<Side> {
    match text {
        "server" => Ok(Side::Exit),
        "inter-server" => Ok(Side::Entry),
        _ => Err("server or inter-server".to_owned()),
    }
}

pub(super) fn log_form(text: &str) -> Parsed<log::Form> {
    match text {
        "text" => Ok(log::Form::Text),
        "json" => Ok(log::Form::Json),
        _ => Err("text or json".to_owned()),
    }
}

pub(super) fn log_level(text: &str) -> Parsed<tracing::Level> {
    match text {
        "error" => Ok(tracing::Level::ERROR),
        "warn" => Ok(tracing::Level::WARN),
        "info" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        _ => Err("error, warn, info, debug or trace".to_owned()),
    }
}

pub(super) fn iv(text: &str) -> Parsed<[u8; 16]> {
    let expected = || "32 hex digits".to_owned();
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(expected());
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| expected())?;
    Ok(number.to_be_bytes())
}

/// A number with a unit: `250ms`, `10s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let expected = || "a time with its unit, as in 250ms, 10s, 5m or 1h".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(expected()),
    };
    let time = number.checked_mul(unit).map(Duration::from_millis).filter(|time| *time <= LONGEST);
    match time {
        Some(Duration::ZERO) => Err("a time above zero".to_owned()),
        Some(time) => Ok(time),
        None => Err("a time of at most a year".to_owned()),
    }
}

pub(super) fn duration_or_off(text: &str) -> Parsed<Option<Duration>> {
    match text {
        "off" => Ok(None),
        _ => duration(text).map(Some).map_err(|expected| format!("{expected}, or off")),
    }
}

/// A number of bytes, with or without a unit: `16MiB`, `16M`, `16777216`.
pub(super) fn size(text: &str) -> Parsed<usize> {
    let expected = || "a size, as in 16MiB, 512KiB or 1GiB".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().map_err(|_| expected())?;
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(expected()),
    };
    number.checked_mul(1 << shift).ok_or_else(expected)
}

pub(super) fn buffer_memory(text: &str) -> Parsed<usize> {
    let least = limits::SLOTS_MIN * limits::SLOT_BYTES;
    let size = size(text)?;
    if (least..=BUFFER_MEMORY_MAX).contains(&size) {
        return Ok(size);
    }
    Err(format!("{} KiB ({} buffers of 64 KiB) to {} GiB", least >> 10, limits::SLOTS_MIN, BUFFER_MEMORY_MAX >> 30))
}

pub(super) fn number(text: &str, range: RangeInclusive<usize>) -> Parsed<usize> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("a number from {} to {}", range.start(), range.end()))
}

/// A list of cores: `0-3,6`. Each must be among `available`, and none may be named twice.
pub(super) fn cores(text: &str, available: &[usize]) -> Parsed<Vec<usize>> {
    let expected = || "a list of cores, as in 0-3,6".to_owned();
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let core = |text: &str| text.trim().parse::<usize>().map_err(|_| expected());
        let (first, last) = (core(first)?, core(last)?);
        if first > last {
            return Err(expected());
        }
        for core in first..=last {
            if !available.contains(&core) {
                return Err(format!("cores this process may use ({})", affinity::as_text(available)));
            }
            if cores.contains(&core) {
                return Err(format!("each core once, one shard runs on each: {core} comes twice"));
            }
            cores.push(core);
        }
    }
    Ok(cores)
}

pub(super) fn ip(text: &str) -> Parsed<IpAddr> {
    let address: Option<IpAddr> = text.parse().ok();
    address.filter(|address| !address.is_unspecified()).ok_or_else(|| "an address, as in 192.0.2.7 or 2001:db8::7".to_owned())
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Parsed<IpNet> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map(|network| network.trunc()).map_err(|_| "a network, as in 10.0.0.0/8 or 2001:db8::/32".to_owned())
}

/// Address and port to listen on. Port 0 is a free one.
pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "an address and port, as in 127.0.0.1:1080 or [::1]:1080".to_owned())
}

pub(super) fn listen_at(text: &str) -> Parsed<ListenAt> {
    let Some(path) = text.strip_prefix("unix:") else {
        return address(text).map(ListenAt::Tcp).map_err(|expected| format!("{expected}, or unix:/path"));
    };
    // The kernel's sockaddr_un holds 108 bytes, the last of them a zero.
    if path.starts_with('/') && path.len() < 108 {
        return Ok(ListenAt::Unix(PathBuf::from(path)));
    }
    Err("unix: and a path from / on, shorter than 108 bytes".to_owned())
}

/// Port 53 unless another is named.
pub(super) fn resolver(text: &str) -> Parsed<SocketAddr> {
    let address = text.parse::<SocketAddr>().or_else(|_| ip(text).map(|ip| SocketAddr::new(ip, 53)));
    let address = address.ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| "the address of a name server, as in 192.0.2.53 or 127.0.0.1:5353".to_owned())
}

pub(super) fn dial_target(text: &str) -> Parsed<DialTarget> {
    let expected = || "host and port, as in entry.example:1992, 192.0.2.7:1992 or [2001:db8::7]:1992".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(expected)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().map(|_| bare).map_err(|_| expected())?,
        None if is_host(host) => host,
        None => return Err(expected()),
    };
    Ok(DialTarget { host: host.to_owned(), port })
}

/// An IPv4 address or a name: letters, digits and what else names have, in labels of at most 63.
fn is_host(host: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.chars().all(letter);
    let bare = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253 && bare.split('.').all(label)
}

/// One line `user:password`. The password may hold colons.
pub(super) fn credentials(contents: &[u8]) -> Option<Credentials> {
    let line = contents.strip_suffix(b"\n").unwrap_or(contents);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (user, password) = (&line[..colon], &line[colon + 1..]);
    let fits = |part: &[u8]| (1..=255).contains(&part.len());
    let whole = fits(user) && fits(password) && !line.contains(&b'\n');
    whole.then(|| Credentials { user: user.to_vec(), password: password.to_vec() })
}

/// Which engine to run on.
pub(super) fn engine(text: &str) -> Result<Choice, String> {
    let named = Engine::ALL.into_iter().find(|engine| engine.name() == text);
    match (text, named) {
        ("auto", _) => Ok(Choice::Auto),
        (_, Some(engine)) if engine.is_built() => Ok(Choice::Only(engine)),
        (_, Some(engine)) => Err(format!("an engine that this program was built with: the cargo feature engine-{engine} was off")),
        (_, None) => Err("auto, ring or tokio-uring".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_chosen_by_name_or_by_themselves() {
        assert_eq!(engine("auto"), Ok(Choice::Auto));
        assert_eq!(engine("ring"), Ok(Choice::Only(Engine::Ring)));
        assert_eq!(engine("tokio-uring").is_ok(), Engine::TokioUring.is_built());
        for wrong in ["", "Ring", "tokio", "epoll", "ring,tokio-uring"] {
            assert!(engine(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_need_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in
            ["", "10", "s", "10 s", "1.5s", "-1s", "10d", "10S", "0s", "0ms", "99999999h", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(duration_or_off("off"), Ok(None));
        assert_eq!(duration_or_off("1s"), Ok(Some(Duration::from_secs(1))));
        assert!(duration_or_off("never").is_err());
    }

    #[test]
    fn sizes_are_binary_and_bounded() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("512KiB"), Ok(512 << 10));
        assert_eq!(size("16M"), Ok(16 << 20));
        assert_eq!(size("16 MiB"), Ok(16 << 20));
        assert_eq!(size("1G"), Ok(1 << 30));
        for wrong in ["", "MiB", "16MB", "16mb", "-1", "1.5GiB", "99999999999999999999", "18014398509481984GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(buffer_memory("256KiB"), Ok(256 << 10));
        assert_eq!(buffer_memory("4GiB"), Ok(4 << 30));
        assert!(buffer_memory("255KiB").is_err());
        assert!(buffer_memory("5GiB").is_err());
    }

    #[test]
    fn cores_are_lists_of_what_may_be_used() {
        let available = [0, 1, 2, 3, 6];
        assert_eq!(cores("0", &available), Ok(vec![0]));
        assert_eq!(cores("0-3,6", &available), Ok(vec![0, 1, 2, 3, 6]));
        assert_eq!(cores("6,0", &available), Ok(vec![6, 0]));
        for wrong in ["", "a", "0-", "-1", "3-0", "0,,1", "0-6", "4", "7", "0,0", "0-2,1", "1-18446744073709551615"] {
            assert!(cores(wrong, &available).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_to_dial_are_names_or_addresses_with_a_port() {
        let target = |host: &str, port| Ok(DialTarget { host: host.to_owned(), port });
        assert_eq!(dial_target("entry.example:1992"), target("entry.example", 1992));
        assert_eq!(dial_target("192.0.2.7:1"), target("192.0.2.7", 1));
        assert_eq!(dial_target("[2001:db8::7]:1992"), target("2001:db8::7", 1992));
        let long = format!("{}:1", "a".repeat(64));
        for wrong in [
            "",
            "entry.example",
            "entry.example:",
            ":1992",
            "a:0",
            "a:65536",
            "2001:db8::7:1992",
            "[192.0.2.7]:1",
            "[::1]",
            "a..b:1",
            "a b:1",
            &long,
        ] {
            assert!(dial_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn listening_addresses_are_literal_or_unix_paths() {
        assert_eq!(listen_at("[::1]:1080"), Ok(ListenAt::Tcp(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 1080)))));
        assert_eq!(listen_at("unix:/run/relay/socks"), Ok(ListenAt::Unix(PathBuf::from("/run/relay/socks"))));
        let long = format!("unix:/{}", "a".repeat(107));
        for wrong in ["localhost:1080", "1080", "::1:1080", "unix:", "unix:socks", &long] {
            assert!(listen_at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ciphers_of_0x81_are_a_list_with_each_once() {
        use aead::Method::{Aes128Gcm, Aes256Gcm, ChaCha20Poly1305};
        assert_eq!(methods("aes-256-gcm"), Ok(vec![Aes256Gcm]));
        assert_eq!(methods("chacha20-poly1305, aes-128-gcm"), Ok(vec![ChaCha20Poly1305, Aes128Gcm]));
        for wrong in ["", ",", "aes-128-gcm,", "aes-128-gcm,aes-128-gcm", "aes-128-ctr", "aes-128-gcm aes-256-gcm"] {
            assert!(methods(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_may_be_single_addresses_and_lose_their_host_bits() {
        assert_eq!(network("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
        assert!(network("10.0.0.0/33").is_err());
        assert!(network("example.com").is_err());
    }

    #[test]
    fn the_iv_is_sixteen_bytes_in_hex() {
        assert_eq!(iv("000102030405060708090a0b0c0d0e0f"), Ok(DEFAULT_IV));
        assert_eq!(iv("FFfF0000000000000000000000000000").unwrap()[..3], [255, 255, 0]);
        for wrong in
            ["", "00", "+00102030405060708090a0b0c0d0e0f0", "000102030405060708090a0b0c0d0e0g", "000102030405060708090a0b0c0d0e0f0"]
        {
            assert!(iv(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn name_servers_have_port_53_unless_another_is_named() {
        assert_eq!(resolver("192.0.2.53"), Ok(SocketAddr::from(([192, 0, 2, 53], 53))));
        assert_eq!(resolver("[::1]:5353"), Ok(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 5353))));
        for wrong in ["", "dns.example", "192.0.2.53:0", "0.0.0.0"] {
            assert!(resolver(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_one_line_with_a_colon() {
        let found = credentials(b"user:pass:word\n").unwrap();
        assert_eq!((found.user.as_slice(), found.password.as_slice()), (&b"user"[..], &b"pass:word"[..]));
        assert_eq!(credentials(b"user:p\xff\r\n").unwrap().password, b"p\xff");
        let long = [b"u:".to_vec(), vec![b'p'; 256]].concat();
        for wrong in [&b""[..], b"user", b":password", b"user:", b"a:b\nc:d\n", &long] {
            assert!(credentials(wrong).is_none());
        }
    }
}
