//! An authenticated peer that breaks a rule: it is told which one, by a GOAWAY that it can read, and nobody else notices.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use zhwkprox::protocol::v81::frame::kind::{DATA, DATAGRAM, FIN, GOAWAY, OPEN, OPENED, PAD, PING, PONG, RESET, SETTINGS, WINDOW};

use crate::harness::net::{End, read_to_the_end};
use crate::harness::socks::{self, Refusal};
use crate::harness::traffic::{open_echo, round_trip, works};
use crate::harness::{Origin, Role};
use crate::peer::{GENEROUS, Peer, address, frame, frame_with_flags};
use crate::support::{Entry, Keys, await_tunnels, entry, exit};

/// What breaks a rule: the records to send for this stream, and what the GOAWAY says.
type Break = (fn(u32) -> Vec<Vec<u8>>, &'static str);

/// What either side can do wrong. The stream is open.
const BY_ANYBODY: &[Break] = &[
    (|s| vec![frame(DATA, s, b"")], "DATA with a payload of 0 bytes"),
    (|s| vec![[frame(FIN, s, b""), frame(DATA, s, b"x")].concat()], "DATA on stream 1 behind FIN"),
    (|s| vec![frame(FIN, s, b""), frame(FIN, s, b"")], "FIN on stream 1 behind FIN"),
    (|s| vec![frame(DATA, s, &[7; 60_000]); 1000], "its credit is"),
    (|s| vec![frame(WINDOW, s, &[0; 4])], "WINDOW of 0 on stream 1"),
    (|s| vec![frame(WINDOW, s, &[0xff; 4])], "in all at most 2147483647"),
    (|s| vec![frame(WINDOW, s, &[1; 3])], "WINDOW with a payload of 3 bytes"),
    (|s| vec![frame(RESET, s, &[1, 2])], "RESET with a payload of 2 bytes"),
    (|s| vec![frame(FIN, s, b"!")], "FIN with a payload of 1 bytes"),
    (|_| vec![frame(DATA, 9, b"x")], "DATA on stream 9: the last that was opened is 1"),
    (|_| vec![frame(RESET, u32::MAX, &[1])], "RESET on stream 4294967295: the last that was opened is 1"),
    (|_| vec![frame(SETTINGS, 0, &[])], "a second SETTINGS"),
    (|_| vec![[frame(PING, 0, &[1; 8]), frame(PING, 0, &[2; 8])].concat()], "a second PING"),
    (|_| vec![frame(PONG, 0, &[9; 8])], "a PONG without a PING"),
    (|_| vec![frame(PING, 0, &[9; 7])], "PING with a payload of 7 bytes"),
    (|_| vec![frame(0x0c, 0, b"")], "frame of type 0x0c"),
    (|_| vec![frame(0x7f, 3, b"")], "frame of type 0x7f"),
    (|s| vec![frame_with_flags(DATA, 1, s, b"x")], "DATA with flags 0x01"),
    (|_| vec![frame_with_flags(PAD, 0x80, 0, b"xxx")], "PAD with flags 0x80"),
    (|_| vec![frame(DATA, 0, b"x")], "DATA on stream 0"),
    (|_| vec![frame(PING, 1, &[0; 8])], "PING on stream 1: expected 0"),
    (|_| vec![frame(GOAWAY, 0, &[])], "GOAWAY with a payload of 0 bytes"),
    (|_| vec![frame(GOAWAY, 0, &[0; 202])], "GOAWAY with a payload of 202 bytes"),
    (|_| vec![frame(GOAWAY, 0, &[0]), frame(GOAWAY, 0, &[0])], "a second GOAWAY"),
    (|s| vec![frame(DATAGRAM, s, &[0; 20])], "DATAGRAM on stream 1, which carries tcp"),
    (|s| vec![[frame(DATA, s, b"x"), vec![4, 0, 9, 0]].concat()], "a record ends with 4 bytes behind its last frame"),
    (|s| vec![[&[4, 0, 200, 0][..], &s.to_le_bytes(), b"xxxx"].concat()], "a record ends 4 bytes into the payload of DATA"),
];

const BY_AN_EXIT: &[Break] = &[
    (|s| vec![frame(OPENED, s, &address(([127, 0, 0, 1], 1).into()))], "a second OPENED on stream 1"),
    (|_| vec![frame(OPEN, 2, &address(([127, 0, 0, 1], 1).into()))], "OPEN from the server"),
];

const BY_AN_ENTRY: &[Break] = &[
    (|s| vec![frame(OPENED, s, &address(([127, 0, 0, 1], 1).into()))], "OPENED from the inter-server"),
    (|_| vec![frame(OPEN, 1, &address(([127, 0, 0, 1], 1).into()))], "OPEN of stream 1: expected 2"),
    (|_| vec![frame(OPEN, 4, &address(([127, 0, 0, 1], 1).into()))], "OPEN of stream 4: expected 2"),
    (|_| vec![frame(OPEN, 2, &[4, 127, 0])], "OPEN with a payload of 3 bytes"),
    (|_| vec![frame(GOAWAY, 0, &[0]), frame(OPEN, 2, &address(([127, 0, 0, 1], 1).into()))], "behind GOAWAY"),
];

/// Behind it the records are not sent any more: the other side has heard enough.
fn send_all(peer: &mut Peer, records: Vec<Vec<u8>>) {
    for record in records {
        if peer.try_send(&record).is_err() {
            return;
        }
    }
}

/// An inter-server with a good exit on which one echo goes on, and the keys of a bad one.
struct WithGoodExit {
    entry: Entry,
    _good: Role,
    echo: TcpStream,
    origin: Origin,
    _keys: Keys,
}

impl WithGoodExit {
    fn start() -> Self {
        let keys = Keys::new();
        let files = [keys.write("good", 1), keys.write("bad", 2)];
        let entry = entry(&files.each_ref().map(|file| file.as_path()), &[]);
        let good = exit(entry.tunnel, &files[0], &[]);
        await_tunnels(&entry.role, 1);
        let origin = Origin::new();
        let echo = open_echo(entry.socks, origin.address()).unwrap();
        Self { entry, _good: good, echo, origin, _keys: keys }
    }

    /// The bad exit, with a client's flow: it has the fewest flows.
    fn bad_exit(&self) -> (Peer, TcpStream) {
        let mut peer = Peer::as_exit(self.entry.tunnel, 2, GENEROUS);
        await_tunnels(&self.entry.role, 2);
        let socks = self.entry.socks;
        let target = self.origin.address();
        let client = std::thread::spawn(move || socks::open(socks, target).unwrap());
        let open = peer.await_kind(OPEN);
        assert_eq!((open.stream, open.payload), (1, address(target)));
        peer.send(&frame(OPENED, 1, &address(([192, 0, 2, 1], 7).into())));
        (peer, client.join().unwrap())
    }
}

#[test]
fn an_exit_that_breaks_a_rule_is_told_which_and_the_flows_of_others_go_on() {
    let mut here = WithGoodExit::start();
    for (records, says) in BY_ANYBODY.iter().chain(BY_AN_EXIT) {
        let (mut peer, mut client) = here.bad_exit();
        send_all(&mut peer, records(1));
        let (code, text) = peer.await_goaway();
        assert!(code == 0x10 && text.contains(says), "GOAWAY {code:#04x} {text:?}, expected {says:?}");
        drop(peer);
        // A FIN that was in order is one.
        let end = read_to_the_end(&mut client).1;
        assert!(end == End::Reset || (end == End::Clean && says.contains("behind FIN")), "{says}: {end:?}");
        await_tunnels(&here.entry.role, 1);
        round_trip(&mut here.echo, says.as_bytes()).unwrap();
    }
    here.entry
        .role
        .await_log("the rule and whose fault it was", |line| line.contains("server bad: a tunnel has ended: DATA with a payload of 0"));
    works(here.entry.socks);
}

#[test]
fn an_exit_that_speaks_before_opened_is_told_so_and_the_client_that_nothing_came_of_it() {
    let mut here = WithGoodExit::start();
    for record in [frame(DATA, 1, b"x"), frame(FIN, 1, b""), frame(WINDOW, 1, &[1, 0, 0, 0])] {
        let mut peer = Peer::as_exit(here.entry.tunnel, 2, GENEROUS);
        await_tunnels(&here.entry.role, 2);
        let (socks, target) = (here.entry.socks, here.origin.address());
        // What the client has sent is lost with the tunnel, so that the flow cannot go to the other exit.
        let client = std::thread::spawn(move || socks::open_glued(socks, target, b"early"));
        peer.await_kind(DATA);
        peer.send(&record);
        let (code, text) = peer.await_goaway();
        assert!(code == 0x10 && text.contains("before OPENED"), "{code:#04x} {text}");
        assert!(matches!(client.join().unwrap(), Err(Refusal::Reply(1))));
        await_tunnels(&here.entry.role, 1);
        round_trip(&mut here.echo, b"still here").unwrap();
    }
}

#[test]
fn a_flow_that_a_bad_exit_did_not_open_goes_to_another() {
    let here = WithGoodExit::start();
    let mut peer = Peer::as_exit(here.entry.tunnel, 2, GENEROUS);
    await_tunnels(&here.entry.role, 2);
    let (socks, target) = (here.entry.socks, here.origin.address());
    let client = std::thread::spawn(move || open_echo(socks, target));
    peer.await_kind(OPEN);
    peer.send(&frame(0x22, 0, b""));
    peer.await_goaway();
    client.join().unwrap().unwrap();
}

/// A server that two inter-servers have, one of which is bad.
fn server_of_both(key: &Path, good: &Entry, bad: &TcpListener) -> Role {
    exit(good.tunnel, key, &["--dial", &bad.local_addr().unwrap().to_string()])
}

#[test]
fn an_inter_server_that_breaks_a_rule_is_told_which_and_the_flows_of_others_go_on() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let good = entry(&[&key], &[]);
    let bad = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server_of_both(&key, &good, &bad);
    await_tunnels(&good.role, 1);
    let origin = Origin::new();
    let mut echo = open_echo(good.socks, origin.address()).unwrap();
    for (records, says) in BY_ANYBODY.iter().chain(BY_AN_ENTRY) {
        let mut peer = Peer::as_entry(&bad, 1, GENEROUS);
        peer.send(&[frame(OPEN, 1, &address(origin.address())), frame(DATA, 1, b"echo\n")].concat());
        peer.await_kind(OPENED);
        send_all(&mut peer, records(1));
        let (code, text) = peer.await_goaway();
        assert!(code == 0x10 && text.contains(says), "GOAWAY {code:#04x} {text:?}, expected {says:?}");
        round_trip(&mut echo, says.as_bytes()).unwrap();
    }
    server.await_log("the rule", |line| line.contains("DATA with a payload of 0 bytes"));
    works(good.socks);
    server.await_state("only the echo", |state| state.flows == 1);
}

#[test]
fn the_last_word_is_heard_also_by_a_peer_that_goes_on_sending() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let bad = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = exit(bad.local_addr().unwrap(), &key, &[]);
    let mut peer = Peer::as_entry(&bad, 1, GENEROUS);
    let mut sending = peer.socket.try_clone().unwrap();
    peer.send(&frame(0x22, 0, b""));
    let flood = std::thread::spawn(move || {
        // For as long as it is let.
        let mut sent = 0_u64;
        while sending.write_all(&[0xa5; 16_384]).is_ok() {
            sent += 16_384;
        }
        sent
    });
    let (code, text) = peer.await_goaway();
    assert!(code == 0x10 && text.contains("0x22"), "{code:#04x} {text}");
    assert!(flood.join().unwrap() > 0);
    server.await_state("no tunnel and no socket of it", |state| state.tunnels == 0);
}

#[test]
fn what_is_to_be_skipped_is_skipped() {
    let here = WithGoodExit::start();
    let (mut peer, client) = here.bad_exit();
    // Unknown types from 0x80 on with any flags and streams, padding, and frames for a stream that is closed.
    peer.send(&[frame_with_flags(0x80, 0xff, 77, b"?"), frame(PAD, 0, &[1; 500]), frame_with_flags(0xff, 3, 0, b"")].concat());
    peer.send(&frame(RESET, 1, &[0x13]));
    peer.send(&[frame(DATA, 1, b"x"), frame(FIN, 1, b""), frame(FIN, 1, b""), frame(WINDOW, 1, &[0; 4]), frame(RESET, 1, &[1])].concat());
    peer.round_trip();
    drop(client);
}

#[test]
fn records_may_come_in_one_piece_with_the_login_or_begin_there_and_go_on_later() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = exit(listener.local_addr().unwrap(), &key, &[]);
    // Each with its length and its tag is 1,028 bytes.
    let record = frame(PAD, 0, &[0; 1000]);
    for glued in [0, 1, 3, 4, 5, 500, 1027, 1028, 1029, 1032, 2056] {
        let mut peer = Peer::as_entry_with(&listener, 1, GENEROUS, &[record.clone(), record.clone()], glued);
        assert!(peer.round_trip().is_empty(), "{glued} bytes came in one piece with the login");
    }
    server.await_state("no tunnel left", |state| state.tunnels == 0);
}
