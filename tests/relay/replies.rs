//! How flows begin and end on 0x81: the reply is the exit's answer and comes not before it, what a client sends early arrives, a reset is a
//! reset and an end is an end, each behind what came before.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::destination::{check_pattern, read_line, send_pattern};
use crate::harness::net::{End, Hole, free_port, has_ipv6, read_to_the_end, reset, small_receive_buffer};
use crate::harness::pattern::Checker;
use crate::harness::relay::start_entry;
use crate::harness::socks::{read_answer, read_reply};
use crate::harness::traffic::{all_well, in_parallel, in_turns, open_echo, round_trip};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, WATCHDOG, await_some, socks, within};

const SEED: u64 = 81;

/// A request for an address whose answer is read later.
fn ask(entry: SocketAddr, target: impl Into<socks::Target>) -> TcpStream {
    let mut stream = socks::ask(entry, target).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    stream
}

/// What a plain connect from here is told, in the reply's words. `None`: nothing in time.
fn plain_outcome(to: SocketAddr) -> Option<u8> {
    let error = TcpStream::connect_timeout(&to, Duration::from_secs(1)).err()?;
    Some(match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => return None,
        ErrorKind::ConnectionRefused => 5,
        ErrorKind::NetworkUnreachable => 3,
        ErrorKind::HostUnreachable => 4,
        _ => 1,
    })
}

#[test]
fn the_reply_is_what_the_destination_said() {
    let hole = Hole::new();
    let origin = Origin::new();
    let relay = Relay::start(&Options::v81().exit(&["--connect-timeout", "1s"]));
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let mut cases = vec![
        (SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())), 5),
        (hole.address, 6),
        // Not in --allow.
        (SocketAddr::from(([10, 0, 0, 1], 80)), 2),
    ];
    // Whatever this host's routes say of these: the client is told the same as somebody on the exit's host.
    for odd in ["240.0.0.1:80", "255.255.255.255:80", "[2001:db8::1]:80", "[100::1]:80", "[fd12::1]:80"] {
        let odd: SocketAddr = odd.parse().unwrap();
        if let Some(code) = plain_outcome(odd) {
            cases.push((odd, code));
        }
    }
    let relay_all = Relay::start(&Options::v81().allow(&["0.0.0.0/0", "::/0"]).exit(&["--connect-timeout", "1s"]));
    for (target, code) in cases {
        let relay = if code == 2 { &relay } else { &relay_all };
        let mut stream = ask(relay.socks, target);
        let answer = within("an answer", PROMPTLY, || read_answer(&mut stream)).unwrap();
        // A neighbour that does not answer is unreachable to who asks while the kernel remembers that, and silent to who asks anew.
        let code = if code == 4 && answer.0 == 6 { 6 } else { code };
        assert_eq!(answer, (code, nowhere), "{target}");
        let (rest, end) = read_to_the_end(&mut stream);
        assert_eq!((rest.len(), end), (0, End::Clean), "{target}: behind the refusal");
    }
    // An address kind that there is none of is refused before it comes to a tunnel; success has the address it came from.
    let mut stream = socks::ask(relay.socks, origin.address()).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    let (code, bound) = read_answer(&mut stream).unwrap();
    assert!(code == 0 && bound.ip() == Ipv4Addr::LOCALHOST && bound.port() != 0, "{code} {bound}");
    drop(stream);
    let mut stream = crate::harness::net::connect(relay.socks).unwrap();
    stream.write_all(b"\x05\x01\x00\x05\x01\x00\x07\x01\x02\x03\x04\x00\x50").unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(read_answer(&mut stream).unwrap(), (8, nowhere));
    drop(stream);
    relay.at_rest();
    relay_all.at_rest();
}

#[test]
fn the_reply_comes_not_before_the_destination_has_accepted_and_what_came_early_is_delivered() {
    let hole = Hole::new();
    let relay = Relay::start(&Options::v81().exit(&["--connect-timeout", "30s"]));
    let mut client = ask(relay.socks, hole.address);
    client.write_all(b"early ").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let nothing = client.read(&mut [0; 1]).unwrap_err();
    assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
    client.write_all(b"and late").unwrap();
    client.set_read_timeout(Some(WATCHDOG)).unwrap();
    let mut destination = hole.open(b"early and late");
    assert_eq!(read_answer(&mut client).unwrap(), (0, destination.peer_addr().unwrap()));
    destination.write_all(b"answer").unwrap();
    drop(destination);
    assert_eq!(read_to_the_end(&mut client), (b"answer".to_vec(), End::Clean));
    drop(client);
    relay.at_rest();
}

#[test]
fn a_client_that_ends_early_still_gets_its_answer_and_one_that_resets_cancels_the_connect() {
    let hole = Hole::new();
    let relay = Relay::start(&Options::v81().exit(&["--connect-timeout", "300s"]));
    let before = relay.at_rest();
    let leaving: Vec<_> = (0..10).map(|_| ask(relay.socks, hole.address)).collect();
    // One that has sent more than the exit takes before the destination is there.
    let mut full = ask(relay.socks, hole.address);
    full.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while full.write(&[7; 65_536]).is_ok() {}
    relay.exit.await_state("all openings", |s| s.flows == 11);
    leaving.into_iter().for_each(reset);
    within("ten cancelled openings", PROMPTLY, || relay.exit.await_state("one opening", |s| s.flows == 1));
    // Nobody reads that one, as it has sent all that it may: it is looked at now and then.
    reset(full);
    relay.await_as_before(&before, WATCHDOG);
    let mut client = ask(relay.socks, hole.address);
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut destination = hole.open(b"request");
    assert_eq!(read_reply(&mut client).unwrap(), 0);
    assert_eq!(read_to_the_end(&mut destination), (vec![], End::Clean));
    destination.write_all(b"answer").unwrap();
    drop(destination);
    assert_eq!(read_to_the_end(&mut client), (b"answer".to_vec(), End::Clean));
    drop(client);
    relay.await_as_before(&before, WATCHDOG);
}

#[test]
fn without_an_exit_a_client_is_told_at_once_also_when_the_last_one_has_just_gone() {
    let (_directory, _key, _entry, socks, _tunnel) = start_entry(&Options::v81());
    let none = || within("an answer without an exit", PROMPTLY, || socks::open(socks, SocketAddr::from(([192, 0, 2, 1], 80)))).unwrap_err();
    for _ in 0..20 {
        assert!(matches!(none(), socks::Refusal::Reply(1)));
    }
    let mut relay = Relay::start(&Options::v81());
    relay.exit.kill();
    // One that had been given a tunnel would wait for the next, for the time of --wait-for-tunnel.
    relay.entry.await_state("no tunnel", |s| s.tunnels == 0);
    let refusal = within("an answer with the exit gone", PROMPTLY, || socks::open(relay.socks, Origin::new().address())).unwrap_err();
    assert!(matches!(refusal, socks::Refusal::Reply(1)), "{refusal}");
}

#[test]
fn a_flow_whose_exit_dies_is_answered_if_it_was_not_and_reset_if_it_was() {
    let hole = Hole::new();
    let silent = Destination::serve(|mut stream, _| drop(stream.read(&mut [0; 1])));
    let origin = Origin::new();
    let mut relay = Relay::start(&Options::v81());
    let mut asking: Vec<_> = (0..5).map(|_| ask(relay.socks, hole.address)).collect();
    let mut talked = asking.split_off(2);
    for stream in &mut talked {
        stream.write_all(b"something").unwrap();
    }
    let mut echo = open_echo(relay.socks, origin.address()).unwrap();
    // Connected, and nothing was ever said.
    let mut quiet = socks::open(relay.socks, silent.address).unwrap();
    relay.exit.await_state("all flows", |s| s.flows == 7);
    relay.exit.kill();
    for stream in asking.iter_mut().chain(&mut talked) {
        // Those that have sent nothing wait for the next tunnel first, for 5 s.
        assert_eq!(within("an answer", 3 * PROMPTLY, || read_reply(stream)).unwrap(), 1);
    }
    for stream in [&mut echo, &mut quiet] {
        let (rest, end) = read_to_the_end(stream);
        assert_eq!((rest.len(), end), (0, End::Reset), "a cut flow ends with a reset and nothing before it: {rest:?}");
    }
    relay.entry.await_state("nothing", |s| s.flows == 0 && s.clients_pending == 0);
}

/// Reads all of a flow, slowly, and checks it.
fn read_slowly(stream: &mut TcpStream, flow: u32) -> (u64, End) {
    let mut checker = Checker::new(SEED, flow);
    let mut chunk = vec![0; 16 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (checker.offset(), End::Clean),
            Ok(n) => checker.take(&chunk[..n]).unwrap(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return (checker.offset(), End::Never),
            Err(_) => return (checker.offset(), End::Reset),
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// How a side ends what it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Fin,
    Rst,
}

/// The bytes that have left a role by its tunnels, when they do not become more.
fn settled(count: impl Fn() -> u64) -> u64 {
    await_some("the bytes to stand", WATCHDOG, || {
        let first = count();
        std::thread::sleep(Duration::from_millis(300));
        (count() == first).then_some(first)
    })
}

/// Of so many bytes on a tunnel the records' and frames' share is less than this.
fn payload_at_least(bytes: u64) -> u64 {
    bytes - bytes / 50
}

#[test]
fn a_slow_client_gets_all_that_the_exit_had_read_then_the_destinations_reset_or_end() {
    for (number, how) in [How::Rst, How::Fin, How::Rst].into_iter().enumerate() {
        for len in [0, 1000, 1_000_000_u64] {
            let (sent, told) = (Arc::new(Mutex::new(0)), channel::<()>());
            let (go, wait) = (told.0, Mutex::new(told.1));
            let destination = Destination::serve({
                let sent = Arc::clone(&sent);
                move |mut stream, _| {
                    send_pattern(&mut stream, SEED, 1, len).unwrap();
                    *sent.lock().unwrap() = len;
                    wait.lock().unwrap().recv().unwrap();
                    match how {
                        How::Rst => reset(stream),
                        How::Fin => drop(stream),
                    }
                }
            });
            let relay = Relay::start(&Options::v81());
            let base = relay.exit.state().bytes_to_tunnels;
            let mut client = socks::open(relay.socks, destination.address).unwrap();
            small_receive_buffer(&client);
            await_some("the destination's last byte", WATCHDOG, || (*sent.lock().unwrap() == len).then_some(()));
            let on_tunnel = settled(|| relay.exit.state().bytes_to_tunnels) - base;
            go.send(()).unwrap();
            let (got, end) = read_slowly(&mut client, 1);
            let case = format!("round {number}: {how:?} behind {len}, {on_tunnel} on the tunnel");
            match how {
                How::Fin => assert_eq!((got, end), (len, End::Clean), "{case}"),
                How::Rst => {
                    assert_eq!(end, End::Reset, "{case}");
                    assert!(got >= len.min(payload_at_least(on_tunnel)).saturating_sub(200), "{case}: got {got}");
                }
            }
            drop(client);
            relay.at_rest();
        }
    }
}

#[test]
fn a_slow_destination_gets_all_that_the_entry_had_read_then_the_clients_reset_or_end() {
    for (how, len) in [(How::Rst, 1000), (How::Rst, 1_000_000), (How::Fin, 1_000_000_u64)] {
        let (told, outcome) = (channel::<()>(), channel());
        let (go, wait) = (told.0, Mutex::new(told.1));
        let destination = Destination::serve(move |mut stream, _| {
            small_receive_buffer(&stream);
            wait.lock().unwrap().recv().unwrap();
            outcome.0.send(read_slowly(&mut stream, 1)).unwrap();
        });
        let relay = Relay::start(&Options::v81());
        let base = relay.entry.state().bytes_to_tunnels;
        let mut client = socks::open(relay.socks, destination.address).unwrap();
        send_pattern(&mut client, SEED, 1, len).unwrap();
        let on_tunnel = settled(|| relay.entry.state().bytes_to_tunnels) - base;
        match how {
            How::Rst => reset(client),
            How::Fin => client.shutdown(Shutdown::Write).unwrap(),
        }
        go.send(()).unwrap();
        let (got, end) = outcome.1.recv_timeout(WATCHDOG).unwrap();
        let case = format!("{how:?} behind {len}, {on_tunnel} on the tunnel");
        match how {
            How::Fin => assert_eq!((got, end), (len, End::Clean), "{case}"),
            How::Rst => {
                assert_eq!(end, End::Reset, "{case}");
                assert!(got >= len.min(payload_at_least(on_tunnel)).saturating_sub(200), "{case}: got {got}");
            }
        }
        relay.at_rest();
    }
}

#[test]
fn resets_in_mid_transfer_are_resets_at_the_other_end_both_ways_also_many_at_once() {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let destination = Destination::serve({
        let outcomes = Arc::clone(&outcomes);
        move |mut stream, _| {
            let Ok(line) = read_line(&mut stream) else { return };
            if line == "send" {
                let _ = send_pattern(&mut stream, SEED, 1, rand::random_range(1..400_000));
                reset(stream);
            } else {
                let end = read_to_the_end(&mut stream).1;
                outcomes.lock().unwrap().push(end);
            }
        }
    });
    let relay = Relay::start(&Options::v81());
    all_well(&in_parallel(50, |i| {
        let mut client = socks::open(relay.socks, destination.address).map_err(|e| e.to_string())?;
        if i % 2 == 0 {
            client.write_all(b"send\n").map_err(|e| e.to_string())?;
            match check_pattern(&mut client, SEED, 1, None) {
                Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
                other => Err(format!("{other:?}, expected a reset behind right bytes")),
            }
        } else {
            client.write_all(b"take\n").map_err(|e| e.to_string())?;
            send_pattern(&mut client, SEED, 1, rand::random_range(1..400_000)).map_err(|e| e.to_string())?;
            reset(client);
            Ok(())
        }
    }));
    await_some("all destinations", WATCHDOG, || (outcomes.lock().unwrap().len() == 25).then_some(()));
    assert!(outcomes.lock().unwrap().iter().all(|end| *end == End::Reset), "{:?}", outcomes.lock().unwrap());
    relay.at_rest();
}

/// What a side says before it closes with bytes unread, which makes the close a reset.
const LAST_WORDS: [u8; 5000] = [b'w'; 5000];

fn speaks_and_closes(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; 100])?;
    stream.write_all(&LAST_WORDS)
}

/// Writes until that fails.
fn pour(mut stream: TcpStream) {
    let chunk = vec![0; 16 << 10];
    for _ in 0..2000 {
        if stream.write_all(&chunk).is_err() {
            return;
        }
    }
}

#[test]
fn the_last_words_of_a_side_that_is_being_sent_to_arrive_before_its_reset() {
    // As an HTTP server does that refuses an upload: the answer is there, and the connection broken.
    let destination = Destination::serve(|stream, _| drop(speaks_and_closes(stream)));
    let relay = Relay::start(&Options::v81());
    let wrong = in_turns(4, 200, |i| {
        let mut client = socks::open(relay.socks, destination.address).map_err(|e| e.to_string())?;
        let writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || pour(writer));
        let (got, _) = read_to_the_end(&mut client);
        writing.join().unwrap();
        if got == LAST_WORDS { Ok(()) } else { Err(format!("flow {i}: {} bytes of {}", got.len(), LAST_WORDS.len())) }
    });
    all_well(&wrong);
    relay.at_rest();
    // The same of a client.
    let heard = Arc::new(Mutex::new(Vec::new()));
    let destination = Destination::serve({
        let heard = Arc::clone(&heard);
        move |mut stream, _| {
            let writer = stream.try_clone().unwrap();
            let writing = std::thread::spawn(move || pour(writer));
            let got = read_to_the_end(&mut stream).0.len();
            writing.join().unwrap();
            heard.lock().unwrap().push(got);
        }
    });
    all_well(&in_turns(4, 200, |i| {
        let client = socks::open(relay.socks, destination.address).map_err(|e| e.to_string())?;
        speaks_and_closes(client).map_err(|e| format!("flow {i}: {e}"))
    }));
    await_some("all destinations", WATCHDOG, || (heard.lock().unwrap().len() == 200).then_some(()));
    assert!(heard.lock().unwrap().iter().all(|got| *got == LAST_WORDS.len()), "{:?}", heard.lock().unwrap());
    relay.at_rest();
}

#[test]
fn early_bytes_glued_to_the_request_or_right_behind_it_arrive_in_order() {
    let origin = Origin::everywhere();
    let mut targets: Vec<socks::Target> = vec![origin.address().into(), ("localhost", origin.address().port()).into()];
    if has_ipv6() {
        targets.push(("::ffff:127.0.0.1", origin.address().port()).into());
    }
    targets[0] = SocketAddr::from((Ipv4Addr::LOCALHOST, origin.address().port())).into();
    let relay = Relay::start(&Options::v81());
    all_well(&in_turns(8, 120, |i| {
        let target = targets[i % targets.len()].clone();
        let len = [1, 1000, 20_000, 200_000][i / 3 % 4];
        let mut bytes = format!("upto {i}\n").into_bytes();
        send_pattern(&mut bytes, origin.seed, u32::try_from(i).unwrap(), len).unwrap();
        let mut client = if i % 2 == 0 {
            let (glued, behind) = bytes.split_at(bytes.len() / 2);
            let mut client = socks::open_glued(relay.socks, target, glued).map_err(|e| e.to_string())?;
            client.write_all(behind).map_err(|e| e.to_string())?;
            client
        } else {
            let mut client = socks::ask(relay.socks, target).map_err(|e| e.to_string())?;
            client.write_all(&bytes).map_err(|e| e.to_string())?;
            client.read_exact(&mut [0; 2]).map_err(|e| e.to_string())?;
            let code = read_reply(&mut client).map_err(|e| e.to_string())?;
            if code != 0 {
                return Err(format!("flow {i}: code {code}"));
            }
            client
        };
        client.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
        crate::harness::traffic::verdict(&mut client, u32::try_from(i).unwrap(), &format!("{len} ok"))
    }));
    let mut echo = open_echo(relay.socks, SocketAddr::from((Ipv4Addr::LOCALHOST, origin.address().port()))).unwrap();
    round_trip(&mut echo, b"still here").unwrap();
    drop(echo);
    relay.at_rest();
}
