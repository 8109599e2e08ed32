//! SOCKS5, the server's side: every split, every glue, every refusal with its answer (hard cases H-S5-01, 02, 03, 07, 08, 10–14).

use std::net::SocketAddr;

use proptest::prelude::*;
use zhwkprox::protocol::socks5::{Credentials, Negotiation, Refused, Reply, Request, Target, reply};

use crate::splits::pieces;

fn credentials(user: &[u8], password: &[u8]) -> Credentials {
    Credentials { user: user.to_vec(), password: password.to_vec() }
}

fn address(text: &str) -> Target {
    Target::Address(text.parse().expect("an address"))
}

fn name(name: &str, port: u16) -> Target {
    Target::Name(name.to_owned(), port)
}

/// What became of one client: what it was told, its request or why it was refused, and the bytes behind its request.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    out: Vec<u8>,
    result: Option<Result<Target, Refused>>,
    payload: Vec<u8>,
}

fn run<'a>(required: Option<&Credentials>, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut negotiation = Negotiation::new(required.cloned());
    let mut outcome = Outcome { out: Vec::new(), result: None, payload: Vec::new() };
    for piece in pieces {
        let mut input = piece;
        if outcome.result.is_none() {
            outcome.result = match negotiation.handle(&mut input, &mut outcome.out) {
                Ok(None) => {
                    assert!(input.is_empty(), "all is used before more is asked for");
                    None
                }
                Ok(Some(Request { target })) => Some(Ok(target)),
                Err(refused) => Some(Err(refused)),
            };
        }
        outcome.payload.extend_from_slice(input);
    }
    outcome
}

fn whole(required: Option<&Credentials>, bytes: &[u8]) -> Outcome {
    run(required, std::iter::once(bytes))
}

fn by_name(host: &[u8], port: u16) -> Vec<u8> {
    [&[5, 1, 0, 3, u8::try_from(host.len()).expect("fits")], host, &port.to_be_bytes()].concat()
}

fn password_message(user: &[u8], password: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| [u8::try_from(bytes.len()).expect("fits")];
    [&[1], length(user).as_slice(), user, &length(password), password].concat()
}

const GREETING: &[u8] = &[5, 1, 0];
const V4: &[u8] = &[5, 1, 0, 1, 192, 0, 2, 7, 1, 0xbb];
const V6: &[u8] = &[5, 1, 0, 4, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x1f, 0x90];

/// What is required, what the client says, what it is told, what it asks for.
type Conversation = (Option<Credentials>, Vec<u8>, Vec<u8>, Target);

/// Every kind of conversation that ends in a request.
fn conversations() -> Vec<Conversation> {
    let required = credentials(b"user", b"secret");
    let longest = [[b'a'; 63].as_slice(), &[b'b'; 63], &[b'c'; 63], &[b'd'; 61]].join(&b'.');
    assert_eq!(longest.len(), 253);
    let mut conversations = vec![
        (None, [GREETING, V4].concat(), vec![5, 0], address("192.0.2.7:443")),
        (None, [GREETING, V6].concat(), vec![5, 0], address("[2001:db8::1]:8080")),
        (None, [GREETING, &by_name(b"example.com", 80)].concat(), vec![5, 0], name("example.com", 80)),
        (None, [GREETING, &by_name(b"x", 65_535)].concat(), vec![5, 0], name("x", 65_535)),
        (None, [&[5, 3, 2, 0x80, 0], V4].concat(), vec![5, 0], address("192.0.2.7:443")),
        (None, [[5, 255].as_slice(), &[2; 254], &[0], V4].concat(), vec![5, 0], address("192.0.2.7:443")),
        (None, [GREETING, &by_name(&longest, 1)].concat(), vec![5, 0], name(std::str::from_utf8(&longest).expect("ascii"), 1)),
    ];
    for (user, password) in [
        (b"user".as_slice(), b"secret".as_slice()),
        (b"", b""),
        (b"", b"secret"),
        (b"user", b""),
        (&[0; 255], &[0xff; 255]),
        (b"u\0ser", b"\x01\x05"),
    ] {
        let bytes = [&[5, 2, 0, 2], password_message(user, password).as_slice(), V4].concat();
        conversations.push((Some(credentials(user, password)), bytes, vec![5, 2, 1, 0], address("192.0.2.7:443")));
    }
    conversations.push((
        Some(required),
        [&[5, 1, 2], password_message(b"user", b"secret").as_slice(), &by_name(b"example.com.", 443)].concat(),
        vec![5, 2, 1, 0],
        name("example.com.", 443),
    ));
    conversations
}

#[test]
fn every_2_way_split_and_every_byte_alone_ends_in_the_same_request_and_leaves_the_payload() {
    let mut ran = 0;
    for (required, bytes, out, target) in conversations() {
        let stream = [bytes.as_slice(), b"\x05\x01\x00payload"].concat();
        let expected = Outcome { out, result: Some(Ok(target)), payload: b"\x05\x01\x00payload".to_vec() };
        for cut in 0..=stream.len() {
            assert_eq!(run(required.as_ref(), pieces(&stream, std::iter::once(cut))), expected, "cut at {cut}");
            ran += 1;
        }
        assert_eq!(run(required.as_ref(), stream.chunks(1)), expected, "byte by byte");
        ran += 1;
        for end in 0..bytes.len() {
            assert_eq!(whole(required.as_ref(), &bytes[..end]).result, None, "{end} bytes are no request yet");
        }
    }
    println!("{ran} splits ran (socks5)");
    assert!(ran > 1400);
}

#[test]
fn every_split_of_greeting_request_and_payload_ends_in_the_same_request() {
    let stream = [GREETING, V4, b"GET /"].concat();
    assert_eq!(stream.len(), 18);
    let expected = Outcome { out: vec![5, 0], result: Some(Ok(address("192.0.2.7:443"))), payload: b"GET /".to_vec() };
    for mask in 0..1_u32 << 17 {
        let cuts = (1..18).filter(move |place| mask >> (place - 1) & 1 == 1);
        assert_eq!(run(None, pieces(&stream, cuts)), expected, "mask {mask:#b}");
    }
    println!("{} splits ran (socks5, all of one conversation)", 1 << 17);
}

#[test]
fn every_3_way_split_of_a_conversation_with_a_password_ends_in_the_same_request() {
    let required = credentials(b"user", b"secret");
    let stream = [&[5, 2, 0, 2], password_message(b"user", b"secret").as_slice(), &by_name(b"example.com", 443), b"hello"].concat();
    let expected = Outcome { out: vec![5, 2, 1, 0], result: Some(Ok(name("example.com", 443))), payload: b"hello".to_vec() };
    let mut ran = 0;
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            assert_eq!(run(Some(&required), pieces(&stream, [first, second].into_iter())), expected, "cut at {first}, {second}");
            ran += 1;
        }
    }
    println!("{ran} splits ran (socks5, with a password)");
}

#[test]
fn payload_of_64_kib_glued_to_the_request_stays_in_the_input() {
    let payload: Vec<u8> = (0..65_536_u32).map(|i| u8::try_from(i * 31 % 251).expect("below 251")).collect();
    for (required, bytes, out, target) in conversations() {
        let outcome = whole(required.as_ref(), &[bytes, payload.clone()].concat());
        assert_eq!((outcome.out, outcome.result), (out, Some(Ok(target))));
        assert!(outcome.payload == payload);
    }
}

#[test]
fn a_client_without_the_method_that_is_needed_is_told_so() {
    let required = credentials(b"user", b"secret");
    for (required, greeting) in [
        (None, vec![5, 2, 1, 0x80]),
        (None, vec![5, 1, 2]),
        (None, vec![5, 0]),
        (Some(&required), vec![5, 1, 0]),
        (Some(&required), vec![5, 2, 0, 1]),
        (Some(&required), [[5, 255].as_slice(), &[0xff; 255]].concat()),
    ] {
        let outcome = run(required, greeting.chunks(1));
        assert_eq!(outcome.out, [5, 0xff]);
        let refused = outcome.result.expect("complete").expect_err("no method");
        let expected = if required.is_some() { "user and password (method 2)" } else { "no authentication (method 0)" };
        assert_eq!(refused.to_string(), format!("client offers no way to authenticate that is taken here: expected {expected}"));
    }
}

#[test]
fn what_is_not_socks5_is_closed_without_a_byte_at_its_first_one() {
    for (bytes, words) in [
        (b"GET / HTTP/1.1\r\n".as_slice(), "client does not speak socks5: its first byte is 0x47 (http?), expected 0x05"),
        (b"\x16\x03\x01\x02\x00\x01", "client does not speak socks5: its first byte is 0x16 (tls?), expected 0x05"),
        (b"\x04\x01\x00\x50\xc0\x00\x02\x07\x00", "client does not speak socks5: its first byte is 0x04 (socks4?), expected 0x05"),
        (b"\x80\x01\x00", "client does not speak socks5: its first byte is 0x80 (a server's tunnel?), expected 0x05"),
        (b"\x00", "client does not speak socks5: its first byte is 0x00, expected 0x05"),
    ] {
        for outcome in [whole(None, bytes), whole(None, &bytes[..1]), run(Some(&credentials(b"", b"")), bytes.chunks(1))] {
            assert!(outcome.out.is_empty());
            assert_eq!(outcome.result.expect("decided").expect_err("not socks5").to_string(), words);
        }
    }
}

#[test]
fn a_wrong_user_or_password_is_answered_with_01_01() {
    let required = credentials(b"user", b"secret");
    let full = credentials(&[7; 255], &[8; 255]);
    for (required, user, password) in [
        (&required, b"user".as_slice(), b"secreT".as_slice()),
        (&required, b"User", b"secret"),
        (&required, b"user", b"secret\0"),
        (&required, b"user", b"secre"),
        (&required, b"usersecret", b""),
        (&required, b"", b""),
        (&full, &[7; 255], &[8; 254]),
        (&full, &[7; 254], &[8; 255]),
    ] {
        let bytes = [&[5, 1, 2], password_message(user, password).as_slice()].concat();
        for outcome in [whole(Some(required), &bytes), run(Some(required), bytes.chunks(1))] {
            assert_eq!((outcome.out, outcome.result), (vec![5, 2, 1, 1], Some(Err(Refused::WrongCredentials))));
        }
    }
    // RFC 1929 has a version of its own; a client that sends SOCKS5's is told at once.
    let outcome = whole(Some(&required), &[5, 1, 2, 5, 4]);
    assert_eq!((outcome.out, outcome.result), (vec![5, 2, 1, 1], Some(Err(Refused::AuthVersion { got: 5 }))));
}

#[test]
fn credentials_that_cannot_be_sent_never_match() {
    let required = credentials(&[b'x'; 256], b"");
    let outcome = whole(Some(&required), &[&[5, 1, 2], password_message(&[b'x'; 255], b"").as_slice()].concat());
    assert_eq!(outcome.result, Some(Err(Refused::WrongCredentials)));
}

#[test]
fn every_request_that_is_not_done_has_its_answer() {
    let v4 = |head: [u8; 4]| [head.as_slice(), &[192, 0, 2, 7, 1, 0xbb]].concat();
    for (request, code, words) in [
        (v4([5, 2, 0, 1]), 7, "client asks for bind (command 2): only connect (command 1) is done here"),
        (v4([5, 3, 0, 1]), 7, "client asks for udp associate (command 3): only connect (command 1) is done here"),
        (v4([5, 9, 0, 1]), 7, "client asks for unknown command 9: only connect (command 1) is done here"),
        (v4([5, 0, 0, 1]), 7, "client asks for unknown command 0: only connect (command 1) is done here"),
        (v4([5, 1, 1, 1]), 7, "client's request has 0x01 in its reserved byte: expected 0x00"),
        (v4([4, 1, 0, 1]), 7, "client sent a request of version 4: expected 5"),
        (vec![5, 1, 0, 2], 8, "client asks for an address of unknown kind 2: expected 1 (ipv4), 3 (name) or 4 (ipv6)"),
        (vec![5, 1, 0, 0], 8, "client asks for an address of unknown kind 0: expected 1 (ipv4), 3 (name) or 4 (ipv6)"),
        (vec![5, 3, 0, 9], 7, "client asks for udp associate (command 3): only connect (command 1) is done here"),
        (by_name(b"example.com\0", 80), 4, "client asks for the name \"example.com\\0\", which cannot exist: it holds a nul byte"),
        (by_name(b"\0", 80), 4, "client asks for the name \"\\0\", which cannot exist: it holds a nul byte"),
        (by_name(b"", 80), 4, "client asks for the name \"\", which cannot exist: it is empty"),
        (by_name(b".", 80), 4, "client asks for the name \".\", which cannot exist: it is empty"),
        (
            by_name(b"a b", 80),
            4,
            "client asks for the name \"a b\", which cannot exist: it holds a blank, a control or a non-ascii character",
        ),
        (
            by_name(b"a..b", 80),
            4,
            "client asks for the name \"a..b\", which cannot exist: a part of it is empty or longer than 63 characters",
        ),
        (by_name(b"\xff\xfe", 80), 4, "client asks for the name \"\u{fffd}\u{fffd}\", which cannot exist: it is not text"),
        (by_name(b"example.com", 0), 2, "client asks for example.com:0: port 0 is never listened on"),
        (vec![5, 1, 0, 1, 192, 0, 2, 7, 0, 0], 2, "client asks for 192.0.2.7:0: port 0 is never listened on"),
        (vec![5, 1, 0, 1, 0, 0, 0, 0, 0, 80], 2, "client asks for 0.0.0.0:80: the unspecified address is no destination"),
        (by_name(b"0.0.0.0", 80), 2, "client asks for 0.0.0.0:80: the unspecified address is no destination"),
        (by_name(b"::", 80), 2, "client asks for [::]:80: the unspecified address is no destination"),
        (by_name(b"::ffff:0.0.0.0", 80), 2, "client asks for 0.0.0.0:80: the unspecified address is no destination"),
        ([[5, 1, 0, 4].as_slice(), &[0; 16], &[0, 80]].concat(), 2, "client asks for [::]:80: the unspecified address is no destination"),
    ] {
        let bytes = [GREETING, &request].concat();
        for outcome in [whole(None, &bytes), run(None, bytes.chunks(1))] {
            assert_eq!(outcome.out, [5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{words}");
            assert_eq!(outcome.result.expect("complete").expect_err("refused").to_string(), words);
        }
    }
    let long = [b'a'; 64];
    let outcome = whole(None, &[GREETING, &by_name(&long, 80)].concat());
    assert_eq!(outcome.out[3], 4, "a part of 64 characters");
    let long = vec![b'a'; 255].chunks(50).collect::<Vec<_>>().join(&b'.');
    let outcome = whole(None, &[GREETING, &by_name(&long[..255], 80)].concat());
    assert!(outcome.result.expect("complete").expect_err("255 characters").to_string().ends_with("it is longer than 253 characters"));
}

#[test]
fn a_refusal_is_final() {
    let mut negotiation = Negotiation::new(None);
    let mut out = Vec::new();
    let refused = negotiation.handle(&mut b"\x05\x01\x02".as_slice(), &mut out).expect_err("no method");
    out.clear();
    let mut more = [GREETING, V4].concat();
    for _ in 0..2 {
        let mut input = more.as_slice();
        assert_eq!(negotiation.handle(&mut input, &mut out), Err(refused.clone()));
        assert_eq!((input.len(), out.len()), (more.len(), 0));
        more.truncate(1);
    }
}

#[test]
fn after_its_request_nothing_of_the_client_is_looked_at() {
    let mut negotiation = Negotiation::new(None);
    let mut out = Vec::new();
    assert!(negotiation.handle(&mut [GREETING, V4].concat().as_slice(), &mut out).expect("correct").is_some());
    let mut input = GREETING;
    assert_eq!(negotiation.handle(&mut input, &mut out), Ok(None));
    assert_eq!((input, out.as_slice()), (GREETING, [5, 0].as_slice()));
}

#[test]
fn a_name_that_reads_as_an_address_is_that_address() {
    for (written, meant) in [
        ("127.0.0.1", "127.0.0.1:80"),
        ("::1", "[::1]:80"),
        ("[2001:db8::7]", "[2001:db8::7]:80"),
        ("::ffff:10.0.0.1", "10.0.0.1:80"),
        ("[::ffff:7f00:1]", "127.0.0.1:80"),
    ] {
        assert_eq!(whole(None, &[GREETING, &by_name(written.as_bytes(), 80)].concat()).result, Some(Ok(address(meant))), "{written}");
    }
    for written in ["127.1", "0x7f.0.0.1", "localhost", "[10.0.0.1]", "xn--bcher-kva.example", "_sip._tcp.example.com"] {
        assert_eq!(whole(None, &[GREETING, &by_name(written.as_bytes(), 80)].concat()).result, Some(Ok(name(written, 80))), "{written}");
    }
}

#[test]
fn a_mapped_address_is_the_ipv4_address() {
    let request = [[5, 1, 0, 4].as_slice(), &[0; 10], &[0xff, 0xff, 10, 1, 2, 3], &[0, 22]].concat();
    assert_eq!(whole(None, &[GREETING, &request].concat()).result, Some(Ok(address("10.1.2.3:22"))));
}

#[test]
fn a_reply_has_an_address_of_kind_ipv4_or_ipv6_always() {
    let bound = |text: &str| Some(text.parse::<SocketAddr>().expect("an address"));
    assert_eq!(reply(Reply::Succeeded, None), [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reply(Reply::Succeeded, bound("10.0.0.1:4660")), [5, 0, 0, 1, 10, 0, 0, 1, 0x12, 0x34]);
    let v6 = reply(Reply::TtlExpired, bound("[2001:db8::1]:8080"));
    assert_eq!(v6, [[5, 6, 0, 4].as_slice(), &V6[4..]].concat());
    for (code, said) in [
        (Reply::Succeeded, 0),
        (Reply::GeneralFailure, 1),
        (Reply::NotAllowed, 2),
        (Reply::NetworkUnreachable, 3),
        (Reply::HostUnreachable, 4),
        (Reply::ConnectionRefused, 5),
        (Reply::TtlExpired, 6),
        (Reply::CommandNotSupported, 7),
        (Reply::AddressTypeNotSupported, 8),
    ] {
        assert_eq!(reply(code, None)[1], said);
    }
}

#[test]
fn debug_prints_no_password_and_the_awaited_message_is_named() {
    let mut negotiation = Negotiation::new(Some(credentials(b"user", b"secret")));
    assert_eq!(negotiation.awaits(), "the client's greeting");
    let mut out = Vec::new();
    assert_eq!(negotiation.handle(&mut b"\x05\x01\x02\x01\x04user\x06sec".as_slice(), &mut out), Ok(None));
    assert_eq!(negotiation.awaits(), "the client's user and password");
    assert_eq!(format!("{negotiation:?}"), "Negotiation(awaits the client's user and password)");
    assert_eq!(format!("{:?}", credentials(b"user", b"secret")), "Credentials(..)");
    assert_eq!(negotiation.handle(&mut b"ret".as_slice(), &mut out), Ok(None));
    assert_eq!(negotiation.awaits(), "the client's request");
}

proptest! {
    #![proptest_config(crate::properties::config())]

    /// Whatever a client sends and however it is cut: the same outcome, and never more than the two or three answers there are.
    #[test]
    fn any_bytes_in_any_pieces_have_one_outcome(
        start in prop::sample::select(vec![vec![], vec![5], vec![5, 1, 0], vec![5, 1, 0, 5, 1, 0], vec![5, 1, 2, 1]]),
        garbage in prop::collection::vec(any::<u8>(), 0..600),
        cuts in prop::collection::vec(0..600_usize, 0..6),
        secured in any::<bool>(),
    ) {
        let required = secured.then(|| credentials(b"", b""));
        let bytes = [start, garbage].concat();
        let expected = whole(required.as_ref(), &bytes);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let got = run(required.as_ref(), pieces(&bytes, cuts.into_iter()));
        prop_assert_eq!(&got.out, &expected.out);
        prop_assert_eq!(&got.result, &expected.result);
        prop_assert!(got.out.len() <= 2 + 2 + 10);
        if matches!(got.result, Some(Ok(_))) {
            prop_assert_eq!(got.payload, expected.payload);
        }
    }
}
