//! Frames of 0x81: what each kind looks like on the wire, how a record is walked, and which destinations an exit takes.

use zhwkprox::protocol::socks5::Target;
use zhwkprox::protocol::v81::Side;
use zhwkprox::protocol::v81::frame::{FRAME_PAYLOAD_MAX, FrameFault, Frames, Header, goaway, kind, reset};
use zhwkprox::protocol::v81::session::Incoming;

use crate::support::unhex;
use crate::v81_support::{control, data, frame, frames, give, opened, session, target};

/// A session's control frames as they stand on the wire.
fn wire(session: &mut zhwkprox::protocol::v81::session::Session) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(!session.poll_control(&mut out, usize::MAX));
    out
}

#[test]
fn every_kind_of_frame_looks_as_the_protocol_says() {
    let mut entry = session(Side::Entry, 65_536, 10);
    entry.open(&"192.0.2.7:443".parse().map(Target::Address).expect("an address"), 1).expect("free");
    assert_eq!(wire(&mut entry), unhex("020007000100000004c000020701bb"), "OPEN of an IPv4 address");
    entry.open(&"[2001:db8::1]:443".parse().map(Target::Address).expect("an address"), 2).expect("free");
    assert_eq!(wire(&mut entry), unhex("02001300020000000620010db800000000000000000000000101bb"), "OPEN of an IPv6 address");
    entry.open(&"[::ffff:192.0.2.7]:443".parse().map(Target::Address).expect("an address"), 2).expect("free");
    assert_eq!(wire(&mut entry), unhex("020007000300000004c000020701bb"), "a mapped address is the address");
    entry.open(&Target::Name("a.example".to_owned(), 80), 3).expect("free");
    assert_eq!(wire(&mut entry), unhex("02000d00040000000309612e6578616d706c650050"), "OPEN of a name");
    entry.ping(*b"12345678");
    assert_eq!(wire(&mut entry), unhex("08000800000000003132333435363738"), "PING");
    entry.go_away(goaway::STOPPING, "bye");
    assert_eq!(wire(&mut entry), unhex("0a0004000000000000627965"), "GOAWAY");

    let mut exit = session(Side::Exit, 65_536, 10);
    let name = frame(kind::OPEN, 0, 1, &unhex("0309612e6578616d706c650050"));
    let asked = Target::Name("a.example".to_owned(), 80);
    assert_eq!(give(&mut exit, &name), Ok(Some(Incoming::Open { stream: 1, target: asked })));
    exit.attach(1, 7);
    exit.opened(1, "[2001:db8::2]:4000".parse().expect("an address"));
    assert_eq!(wire(&mut exit), unhex("03001300010000000620010db80000000000000000000000020fa0"), "OPENED");
    assert_eq!(exit.data(1, 0x1234).encode().to_vec(), unhex("0400341201000000"), "DATA");
    assert_eq!(exit.finish(1).map(|header| header.encode().to_vec()), Some(unhex("0500000001000000")), "FIN");
    let payload = vec![0; 16_384];
    assert_eq!(give(&mut exit, &frame(kind::DATA, 0, 1, &payload)), Ok(Some(Incoming::Data { tag: 7 })));
    exit.consumed(1, 16_384, std::time::Duration::ZERO);
    assert_eq!(wire(&mut exit), unhex("070004000100000000400000"), "WINDOW");
    let (header, code) = exit.reset_in_order(1).expect("open");
    assert_eq!((header.encode().to_vec(), code), (unhex("0600010001000000"), reset::SOCKET), "RESET behind data");
    assert_eq!(give(&mut exit, &frame(kind::PING, 0, 0, b"abcdefgh")), Ok(None));
    assert_eq!(wire(&mut exit), unhex("09000800000000006162636465666768"), "PONG");
    assert_eq!(give(&mut exit, &frame(kind::OPEN, 0, 2, &unhex("04c00002070050"))).map(|told| told.is_some()), Ok(true));
    exit.refuse(2, reset::REFUSED);
    assert_eq!(wire(&mut exit), unhex("060001000200000005"), "RESET");
}

#[test]
fn a_header_is_read_as_it_was_written() {
    for kind in 0..=u8::MAX {
        let header = Header { kind, flags: kind ^ 0x55, length: u16::from(kind) * 257, stream: u32::from(kind) * 0x0101_0101 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        assert_eq!(Header::decode(&[&bytes, b"and more".as_slice()].concat()), Some(header));
        assert_eq!(Header::decode(&bytes[..7]), None);
    }
}

#[test]
fn a_record_that_its_frames_do_not_fill_exactly_is_a_fault() {
    let row = [frame(kind::PAD, 0, 0, &[9; 3]), frame(kind::FIN, 0, 1, &[]), frame(kind::DATA, 0, 1, b"x")];
    let mut record = Vec::new();
    let mut ends = vec![0];
    for (header, payload) in &row {
        record.extend_from_slice(&header.encode());
        record.extend_from_slice(payload);
        ends.push(record.len());
    }
    assert_eq!(frames(&record), row);
    for cut in 0..record.len() {
        let (mut walk, mut seen) = (Frames::new(&record[..cut]), 0);
        let end = loop {
            match walk.next() {
                Ok(Some(_)) => seen += 1,
                other => break other,
            }
        };
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        assert_eq!(seen, whole, "cut at {cut}");
        let rest = cut - ends[whole];
        match end {
            Ok(_) => assert!(rest == 0 && cut > 0, "cut at {cut}"),
            Err(FrameFault::Empty) => assert_eq!(cut, 0),
            Err(FrameFault::Header { got }) => assert!(got == rest && rest < 8, "cut at {cut}"),
            Err(FrameFault::Payload { got, .. }) => assert!(got == rest - 8, "cut at {cut}"),
        }
    }
    let largest = frame(kind::DATA, 0, 1, &vec![7; FRAME_PAYLOAD_MAX]);
    assert_eq!(frames(&[largest.0.encode().as_slice(), &largest.1].concat()), [largest]);
}

#[test]
fn an_exit_takes_what_can_be_looked_up_or_dialled_and_refuses_the_rest_by_its_code() {
    let longest = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    let name = |name: &[u8], port: u16| [&[3, u8::try_from(name.len()).unwrap()], name, &port.to_be_bytes()].concat();
    let v6 = |ip: &str| [&[6], ip.parse::<std::net::Ipv6Addr>().unwrap().octets().as_slice(), &[0, 80]].concat();
    let a_name = |name: &str| Ok(Target::Name(name.to_owned(), 80));
    let an_address = |address: &str| Ok(Target::Address(address.parse().unwrap()));
    let cases = [
        (name(b"example.org", 80), a_name("example.org")),
        (name(b"EXAMPLE.org.", 80), a_name("EXAMPLE.org.")),
        (name(b"_srv.my-host", 80), a_name("_srv.my-host")),
        (name(b"localhost", 80), a_name("localhost")),
        (name(b"4chan.1x", 80), a_name("4chan.1x")),
        (name(longest.as_bytes(), 80), a_name(&longest)),
        (name(format!("{longest}.").as_bytes(), 80), a_name(&format!("{longest}."))),
        (name(b"192.0.2.7", 80), an_address("192.0.2.7:80")),
        (name(b"2001:db8::1", 80), an_address("[2001:db8::1]:80")),
        (name(b"[2001:db8::1]", 80), an_address("[2001:db8::1]:80")),
        (name(b"::ffff:192.0.2.7", 80), an_address("192.0.2.7:80")),
        (v6("::ffff:192.0.2.7"), an_address("192.0.2.7:80")),
        (vec![4, 192, 0, 2, 7, 0, 80], an_address("192.0.2.7:80")),
        (name(format!("{longest}x").as_bytes(), 80), Err(reset::HOST)),
        (name(b"", 80), Err(reset::HOST)),
        (name(b".", 80), Err(reset::HOST)),
        (name(b"a..b", 80), Err(reset::HOST)),
        (name(b".a", 80), Err(reset::HOST)),
        (name("a".repeat(64).as_bytes(), 80), Err(reset::HOST)),
        (name(b"a b", 80), Err(reset::HOST)),
        (name(b"a/b", 80), Err(reset::HOST)),
        (name(b"a\0b", 80), Err(reset::HOST)),
        (name("bücher.example".as_bytes(), 80), Err(reset::HOST)),
        (name(b"\xff\xfe", 80), Err(reset::HOST)),
        (name(b"192.0.2.256", 80), Err(reset::HOST)),
        (name(b"192.0.2.7.", 80), Err(reset::HOST)),
        (name(b"127.1", 80), Err(reset::HOST)),
        (name(b"2130706433", 80), Err(reset::HOST)),
        (name(b"0.0.0.0", 80), Err(reset::POLICY)),
        (name(b"::", 80), Err(reset::POLICY)),
        (vec![4, 0, 0, 0, 0, 0, 80], Err(reset::POLICY)),
        (v6("::"), Err(reset::POLICY)),
        (v6("::ffff:0.0.0.0"), Err(reset::POLICY)),
        (vec![4, 192, 0, 2, 7, 0, 0], Err(reset::ADDRESS)),
        (name(b"example.org", 0), Err(reset::ADDRESS)),
        (name(b"not a name", 0), Err(reset::ADDRESS)),
        (vec![1, 192, 0, 2, 7, 0, 80], Err(reset::ADDRESS)),
        (vec![0xff], Err(reset::ADDRESS)),
    ];
    let mut exit = session(Side::Exit, 65_536, 100);
    let mut refused = 0;
    for (stream, (payload, expected)) in (1..).zip(cases) {
        let told = give(&mut exit, &frame(kind::OPEN, 0, stream, &payload)).expect("no client can bring about a fault");
        match expected {
            Ok(target) => {
                assert_eq!(told, Some(Incoming::Open { stream, target }));
                exit.attach(stream, 1);
            }
            Err(code) => {
                refused += 1;
                assert_eq!((told, exit.answered()), (None, refused), "{:?}", String::from_utf8_lossy(&payload));
                assert_eq!(control(&mut exit), [frame(kind::RESET, 0, stream, &[code])], "{:?}", String::from_utf8_lossy(&payload));
            }
        }
    }
}

#[test]
fn an_entry_passes_a_name_on_as_the_client_gave_it() {
    for name in ["EXAMPLE.org.", "a b", "1.2.3.999", &"x".repeat(255)] {
        let mut entry = session(Side::Entry, 65_536, 10);
        entry.open(&Target::Name(name.to_owned(), 8080), 1).expect("free");
        let payload = [&[3, u8::try_from(name.len()).unwrap()], name.as_bytes(), &[0x1f, 0x90]].concat();
        assert_eq!(control(&mut entry), [frame(kind::OPEN, 0, 1, &payload)]);
    }
}

#[test]
fn control_frames_go_in_their_order_and_only_whole() {
    let (mut entry, mut exit, stream) = opened(16, 10);
    let sent = data(&mut exit, stream, 9);
    give(&mut entry, &sent).expect("within the credit");
    entry.consumed(stream, 9, std::time::Duration::ZERO);
    entry.open(&target(), 5).expect("free");
    let cancelled = entry.open(&target(), 6).expect("free");
    entry.reset(cancelled, reset::CANCELLED);
    entry.go_away(goaway::SPARE, "not needed");
    give(&mut entry, &frame(kind::PING, 0, 0, b"abcdefgh")).expect("the first");
    assert!(entry.ping(*b"12345678"));

    let mut whole = entry.clone();
    let all = control(&mut whole);
    let kinds: Vec<_> = all.iter().map(|(header, _)| header.kind).collect();
    // OPEN before GOAWAY: behind it, it would be a fault.
    assert_eq!(kinds, [kind::PING, kind::PONG, kind::OPEN, kind::OPEN, kind::GOAWAY, kind::WINDOW, kind::RESET]);
    for room in 0..60 {
        let mut piecemeal = entry.clone();
        let mut seen = Vec::new();
        for _ in 0..20 {
            let mut out = b"before".to_vec();
            let more = piecemeal.poll_control(&mut out, room);
            assert!(out.len() <= 6 + room);
            seen.extend(frames(&out[6..]));
            assert_eq!(more, piecemeal.has_control());
            if !more {
                break;
            }
        }
        let largest = all.iter().map(|(_, payload)| 8 + payload.len()).max().unwrap();
        assert_eq!(seen == all, room >= largest, "room for {room}");
    }
}

#[test]
fn the_worked_frames_of_the_protocols_page_are_what_the_sessions_say() {
    let mut entry = session(Side::Entry, 262_144, 10);
    let mut exit = session(Side::Exit, 262_144, 10);
    let mut said = Vec::new();
    for target in [Target::Address("192.0.2.7:443".parse().expect("an address")), Target::Name("a.example".to_owned(), 80)] {
        entry.open(&target, 1).expect("free");
    }
    said.extend(control(&mut entry));
    for (tag, frame) in (1..).zip(&said) {
        assert!(matches!(give(&mut exit, frame), Ok(Some(Incoming::Open { .. }))));
        exit.attach(frame.0.stream, tag);
    }
    exit.opened(1, "198.51.100.1:4000".parse().expect("an address"));
    said.extend(control(&mut exit));
    said.push((entry.data(1, 2), b"hi".to_vec()));
    said.push((entry.finish(1).expect("open"), vec![]));
    exit.reset(2, reset::HOST);
    said.extend(control(&mut exit));
    give(&mut exit, &frame(kind::DATA, 0, 1, &[0; 65_000])).expect("within the credit");
    give(&mut exit, &frame(kind::DATA, 0, 1, &[0; 536])).expect("within the credit");
    exit.consumed(1, 65_536, std::time::Duration::ZERO);
    said.extend(control(&mut exit));
    entry.ping(*b"12345678");
    let ping = control(&mut entry);
    give(&mut exit, &ping[0]).expect("the first");
    said.extend(ping);
    said.extend(control(&mut exit));
    entry.go_away(goaway::STOPPING, "bye");
    said.extend(control(&mut entry));
    said.push(frame(kind::PAD, 0, 0, &[0; 3]));

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PROTOCOL.md")).expect("the page");
    let block = page.split_once("<!-- worked: 0x81 frames -->").expect("the marker").1.split("```").nth(1).expect("a block");
    let lines = block.lines().skip(1).filter(|line| !line.is_empty());
    let written: Vec<(String, Vec<u8>)> = lines
        .map(|line| {
            let mut words = line.split('#').next().expect("a beginning").split_whitespace();
            (words.next().expect("a name").to_owned(), unhex(&words.collect::<String>()))
        })
        .collect();
    let said: Vec<_> = said
        .iter()
        .map(|(header, payload)| (kind::name(header.kind).to_owned(), [&header.encode(), payload.as_slice()].concat()))
        .collect();
    assert_eq!(written, said);
}
