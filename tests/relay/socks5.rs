//! The front door: every way to cut a handshake, every way to get it wrong, and clients that are not what they seem.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::harness::destination::check_pattern;
use crate::harness::net::{End, connect, read_to_the_end, reset};
use crate::harness::socks::{Cut, Refusal, Target, open_glued, read_reply, request, user_and_password};
use crate::harness::traffic::{all_well, ask_for, download, in_turns, receive, works};
use crate::harness::{Options, Origin, PROMPTLY, Relay, protocol, socks, within};

/// The three ways to name one destination.
fn spellings(origin: &Origin) -> Vec<Target> {
    let address = origin.address();
    let mut all = vec![Target::from(address), ("localhost", address.port()).into()];
    // The same over IPv6 is an IPv4 address in its mapped form.
    if let std::net::IpAddr::V4(ip) = address.ip() {
        all.push(Target::Address((ip.to_ipv6_mapped(), address.port()).into()));
    }
    all
}

#[test]
fn a_handshake_that_comes_byte_by_byte_succeeds_for_every_kind_of_address() {
    let relay = Relay::usual();
    let origin = Origin::new();
    for target in spellings(&origin) {
        let mut stream = connect(relay.socks).unwrap();
        socks::handshake(&mut stream, None, &target, Cut::Bytes(Duration::from_millis(5))).unwrap();
        ask_for(&mut stream, 1, 1000).unwrap();
        receive(&mut stream, origin.seed, 1, 1000).unwrap();
    }
    // A first segment of one byte and a long pause.
    let mut stream = connect(relay.socks).unwrap();
    stream.write_all(&[5]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    stream.write_all(&[1, 0]).unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 0]);
}

#[test]
fn a_handshake_cut_in_two_anywhere_succeeds() {
    let relay = Relay::usual();
    let origin = Origin::new();
    let mut all = socks::GREETING.to_vec();
    all.extend(request(1, &("localhost", origin.address().port()).into()));
    all.extend(b"get 4 1000\n");
    for cut in 1..all.len() {
        let mut stream = connect(relay.socks).unwrap();
        stream.write_all(&all[..cut]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(&all[cut..]).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(read_reply(&mut stream).unwrap(), 0, "cut at {cut}");
        receive(&mut stream, origin.seed, 4, 1000).unwrap();
    }
}

pub(crate) fn glued(relay: &Relay) {
    let origin = Origin::new();
    let mut payload = b"put 2 65536\n".to_vec();
    payload.extend(crate::harness::pattern::bytes(origin.seed, 2, 65_536));
    for target in spellings(&origin) {
        let mut stream = open_glued(relay.socks, target, &payload).unwrap();
        crate::harness::traffic::verdict(&mut stream, 2, "ok").unwrap();
    }
}

#[test]
fn greeting_request_and_64_kib_of_payload_in_one_send_lose_nothing() {
    glued(&Relay::usual());
}

#[test]
fn the_longest_greeting_and_the_longest_name_are_understood_however_they_are_cut() {
    let relay = Relay::usual();
    // No name of 255 bytes resolves (labels are 63 at most), but its reply is complete and the port belongs to it.
    let name = "n".repeat(255);
    let long = request(1, &(name.as_str(), 80).into());
    for cut in [1, 2, 256] {
        let mut greeting = vec![5, 255];
        greeting.extend((0..255).rev().map(|m| if m == 128 { 0 } else { m }));
        let mut stream = connect(relay.socks).unwrap();
        stream.write_all(&greeting[..cut]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&greeting[cut..]).unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [5, 0]);
        stream.write_all(&long[..long.len() - 1]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&long[long.len() - 1..]).unwrap();
        let reply = read_reply(&mut stream).unwrap();
        assert!(reply == 1 || reply == 4, "reply {reply} to a name that cannot be");
        assert_eq!(read_to_the_end(&mut stream).0.len(), 0);
    }
}

#[test]
fn names_that_cannot_be_are_refused_with_a_complete_reply() {
    let relay = Relay::usual();
    for name in ["localhost\0", "", "a..b", "-", "no such host", "\u{fc}ml\u{e4}ut", "127.0.0.1\0.example"] {
        let refused = within(name, 3 * PROMPTLY, || socks::open(relay.socks, (name, 80))).unwrap_err();
        assert!(matches!(refused, Refusal::Reply(1 | 4)), "{name:?}: {refused}");
    }
    works(relay.socks);
}

#[test]
fn requests_that_are_not_supported_get_their_reply_and_a_close_at_once() {
    let relay = Relay::usual();
    let target = Target::from(std::net::SocketAddr::from(([127, 0, 0, 1], 80)));
    let with = |at: usize, value: u8| {
        let mut bytes = request(1, &target);
        bytes[at] = value;
        bytes
    };
    let cases = [
        ("BIND", request(2, &target), 7),
        ("UDP ASSOCIATE", request(3, &target), 7),
        ("command 9", request(9, &target), 7),
        ("command 0", request(0, &target), 7),
        ("address type 2", with(3, 2), 8),
        ("address type 0", with(3, 0), 8),
    ];
    for (what, bytes, expected) in cases {
        let mut stream = connect(relay.socks).unwrap();
        stream.write_all(&socks::GREETING).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        stream.write_all(&bytes).unwrap();
        let reply = within(what, PROMPTLY, || read_reply(&mut stream)).unwrap();
        assert_eq!(reply, expected, "{what}");
        let (rest, end) = within(what, PROMPTLY, || read_to_the_end(&mut stream));
        assert!(rest.is_empty() && end != End::Never, "{what}: {rest:?} {end:?}");
    }
    // A wrong version or reserved byte: some refusal, and a close.
    for (what, bytes) in [("version 4", with(0, 4)), ("a reserved byte", with(2, 1))] {
        let mut stream = connect(relay.socks).unwrap();
        stream.write_all(&socks::GREETING).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        stream.write_all(&bytes).unwrap();
        let (answer, end) = within(what, PROMPTLY, || read_to_the_end(&mut stream));
        assert!(end != End::Never && answer.get(1) != Some(&0), "{what}: {answer:?} {end:?}");
    }
    relay.at_rest();
}

#[test]
fn what_is_not_socks5_is_closed_promptly_and_in_few_log_lines() {
    let relay = Relay::usual();
    let lines = relay.entry.log().len();
    let socks4 = [4, 1, 0, 80, 127, 0, 0, 1, 0];
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0];
    let cases: [(&str, &[u8]); 6] = [
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("tls", &hello),
        ("socks4", &socks4),
        ("only other methods", &[5, 2, 1, 0x80]),
        ("no method", &[5, 0]),
        ("http connect", b"CONNECT example:443 HTTP/1.1\r\n\r\n"),
    ];
    for (what, bytes) in cases {
        let mut stream = connect(relay.socks).unwrap();
        stream.write_all(bytes).unwrap();
        let (answer, end) = within(what, PROMPTLY, || read_to_the_end(&mut stream));
        assert!(end != End::Never, "{what} is still connected");
        assert!(answer.is_empty() || answer == [5, 0xff], "{what} was answered {answer:?}");
    }
    std::thread::sleep(Duration::from_millis(300));
    let logged = relay.entry.log().len() - lines;
    assert!(logged <= cases.len(), "{logged} log lines: {:#?}", relay.entry.log());
    works(relay.socks);
}

#[test]
fn a_thousand_clients_that_reset_between_greeting_and_request_leave_nothing_and_fill_no_log() {
    let relay = Relay::usual();
    let before = relay.at_rest();
    let lines = relay.entry.log().len();
    all_well(&in_turns(16, 1000, |i| {
        let mut stream = connect(relay.socks).map_err(|e| e.to_string())?;
        stream.write_all(&socks::GREETING).map_err(|e| e.to_string())?;
        if i % 2 == 0 {
            stream.read_exact(&mut [0; 2]).map_err(|e| e.to_string())?;
        }
        reset(stream);
        Ok(())
    }));
    relay.await_as_before(&before, crate::harness::WATCHDOG);
    assert!(relay.entry.log().len() - lines < 50, "{} log lines", relay.entry.log().len() - lines);
    works(relay.socks);
}

#[test]
fn user_and_password_are_asked_for_and_compared_whole_also_at_their_longest() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials");
    let (user, password) = (vec![b'u'; 255], vec![b'p'; 255]);
    std::fs::write(&file, [&user[..], b":", &password, b"\n"].concat()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let relay = Relay::start(&Options::default().entry(&["--credentials-file", file.to_str().unwrap()]));
    let origin = Origin::new();
    let target = Target::from(origin.address());
    for cut in [Cut::Messages, Cut::Bytes(Duration::from_millis(1))] {
        let mut stream = connect(relay.socks).unwrap();
        socks::handshake(&mut stream, Some((&user, &password)), &target, cut).unwrap();
        ask_for(&mut stream, 1, 1000).unwrap();
        receive(&mut stream, origin.seed, 1, 1000).unwrap();
    }
    let short = &user[..254];
    let wrong: [(&[u8], &[u8]); 6] =
        [(&user, b""), (b"", &password), (b"", b""), (short, &password), (&user, &password[..254]), (&password, &user)];
    for (user, password) in wrong {
        let mut stream = connect(relay.socks).unwrap();
        let refused = socks::handshake(&mut stream, Some((user, password)), &target, Cut::Messages).unwrap_err();
        assert!(matches!(refused, Refusal::Credentials(1..)), "{refused}");
        assert_ne!(read_to_the_end(&mut stream).1, End::Never);
    }
    // A wrong version of the negotiation, and no credentials at all.
    let mut stream = connect(relay.socks).unwrap();
    stream.write_all(&[5, 1, 2]).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    let mut message = user_and_password(&user, &password);
    message[0] = 5;
    stream.write_all(&message).unwrap();
    let (answer, end) = read_to_the_end(&mut stream);
    assert!(end != End::Never && answer.get(1) != Some(&0), "{answer:?}");
    let refused = socks::open(relay.socks, target).unwrap_err();
    assert!(matches!(refused, Refusal::Method(0xff)), "{refused}");
    assert_eq!(origin.accepted(), 2);
    let log = relay.entry.log().join("\n");
    assert!(!log.contains("ppp") && !log.contains("uuu"), "the log shows credentials: {log}");
}

#[test]
fn clients_come_in_by_a_unix_socket_and_by_a_port_shared_with_servers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socks");
    let shared = crate::harness::net::free_address();
    let by_unix = format!("unix:{}", path.display());
    let relay = Relay::start(&Options::default().entry(&["--socks", &by_unix, "--shared", &shared.to_string()]));
    let origin = Origin::new();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(crate::harness::WATCHDOG)).unwrap();
    stream.write_all(&socks::GREETING).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    stream.write_all(&request(1, &origin.address().into())).unwrap();
    assert_eq!(read_reply(&mut stream).unwrap(), 0);
    stream.write_all(b"get 5 100000\n").unwrap();
    assert_eq!(check_pattern(&mut stream, origin.seed, 5, None).unwrap(), Ok(100_000));
    drop(stream);
    // One port for both: a server logs in there, and clients are served there.
    let server: Vec<String> = ["server", "--protocol", protocol().name(), "--dial", &shared.to_string(), "--key-file"]
        .map(Into::into)
        .into_iter()
        .chain([relay.key.display().to_string()])
        .chain(["--cores", "0", "--allow", "127.0.0.0/8"].map(Into::into))
        .collect();
    let second = crate::harness::Role::start("server on the shared port", &server);
    second.await_state("a tunnel", |s| s.tunnels >= 1);
    download(shared, &origin, origin.address(), 6, 100_000).unwrap();
}

#[test]
fn a_client_that_sends_its_bytes_and_leaves_at_once_is_still_served() {
    let relay = Relay::usual();
    let origin = Origin::new();
    let mut all = socks::GREETING.to_vec();
    all.extend(request(1, &origin.address().into()));
    all.extend(b"get 8 50000\n");
    for _ in 0..20 {
        let mut stream = connect(relay.socks).unwrap();
        stream.write_all(&all).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(read_reply(&mut stream).unwrap(), 0);
        receive(&mut stream, origin.seed, 8, 50_000).unwrap();
    }
    relay.at_rest();
}
