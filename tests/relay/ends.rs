//! How flows end: half-close in both directions, resets on each side, last bytes, readers that are slow to take them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::harness::destination::{check_pattern, read_line, send_pattern};
use crate::harness::net::{End, read_to_the_end, reset, small_receive_buffer};
use crate::harness::traffic::{all_well, ask_for, close_echo, in_parallel, in_turns, open_echo, receive, round_trip, verdict};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, WATCHDOG, heavy, quick, socks, within};

const SEED: u64 = 77;

/// A destination that reads to the end, waits, answers `answer` bytes of the flow that the first line names, and closes.
fn answers_after_the_end(answer: u64, pause: Duration) -> Destination {
    Destination::serve(move |mut stream, _| {
        let flow = read_line(&mut stream).unwrap().parse().unwrap();
        let got = check_pattern(&mut stream, SEED, flow, None).unwrap().unwrap();
        assert_eq!(got, 300_000, "the upload was cut");
        std::thread::sleep(pause);
        send_pattern(&mut stream, SEED, flow + 1000, answer).unwrap();
    })
}

/// Sends a file and FIN, then reads the answer to its clean end.
fn file_and_fin(relay: &Relay, to: &Destination, flow: u32, answer: u64, patience: Duration) -> Result<(), String> {
    let mut stream = socks::open(relay.socks, to.address).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(format!("{flow}\n").as_bytes()).map_err(|e| e.to_string())?;
    send_pattern(&mut stream, SEED, flow, 300_000).map_err(|e| e.to_string())?;
    stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    receive(&mut stream, SEED, flow + 1000, answer)
}

pub(crate) fn answers_after_the_clients_end(relay: &Relay) {
    let large = if quick() { 10 << 20 } else { 100 << 20 };
    for (flow, answer) in [(1, 0), (2, 1), (3, 1 << 20), (4, large)] {
        let destination = answers_after_the_end(answer, Duration::from_millis(50));
        file_and_fin(relay, &destination, flow, answer, WATCHDOG).unwrap();
    }
    relay.at_rest();
}

#[test]
fn what_the_destination_says_after_the_clients_end_arrives_be_it_nothing_a_byte_or_100_mebibytes() {
    answers_after_the_clients_end(&Relay::usual());
}

/// Reads nothing from the client until its own end is out; then checks the upload.
pub(crate) fn destination_ends_first(relay: &Relay, len: u64, pause: Duration) {
    let (sender, verdicts) = channel();
    let sender = std::sync::Mutex::new(sender);
    let destination = Destination::serve(move |mut stream, _| {
        stream.set_read_timeout(Some(pause + WATCHDOG)).unwrap();
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        sender.lock().unwrap().send(check_pattern(&mut stream, SEED, 9, None).unwrap()).unwrap();
    });
    let mut stream = socks::open(relay.socks, destination.address).unwrap();
    let (answer, end) = read_to_the_end(&mut stream);
    assert_eq!((answer.as_slice(), end), (b"that is all".as_slice(), End::Clean));
    std::thread::sleep(pause);
    send_pattern(&mut stream, SEED, 9, len).unwrap();
    drop(stream);
    assert_eq!(verdicts.recv_timeout(WATCHDOG).unwrap(), Ok(len));
}

#[test]
fn a_client_keeps_uploading_after_the_destination_has_ended() {
    let relay = Relay::usual();
    for len in [1, 50 << 20] {
        destination_ends_first(&relay, len, Duration::ZERO);
    }
    relay.at_rest();
}

#[test]
fn half_closed_flows_outlive_a_minute_of_silence_in_either_direction() {
    let relay = Relay::usual();
    let gap = Duration::from_secs(if quick() { 5 } else { 60 });
    let after_upload = answers_after_the_end(1 << 20, gap);
    let silent_from_the_start = Destination::serve(move |mut stream, _| {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the client's end");
        std::thread::sleep(gap);
        stream.write_all(b"still here").unwrap();
    });
    all_well(&in_parallel(3, |i| match i {
        0 => file_and_fin(&relay, &after_upload, 1, 1 << 20, gap + WATCHDOG),
        1 => {
            destination_ends_first(&relay, 1 << 20, gap);
            Ok(())
        }
        _ => {
            let mut stream = socks::open(relay.socks, silent_from_the_start.address).map_err(|e| e.to_string())?;
            stream.set_read_timeout(Some(gap + WATCHDOG)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            verdict(&mut stream, 0, "still here")
        }
    }));
    relay.at_rest();
}

#[test]
fn a_destinations_end_reaches_a_silent_client_at_once_and_the_rest_goes_after_the_linger() {
    let relay = Relay::start(&Options::default().both(&["--linger", "2s"]).exit(&["--max-tunnels", "2"]));
    let before = relay.at_rest();
    let destination = Destination::serve(|mut stream, _| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let mut stream = socks::open(relay.socks, destination.address).unwrap();
    let (all, end) = within("the end to arrive", PROMPTLY, || read_to_the_end(&mut stream));
    assert_eq!((all.as_slice(), end), (b"bye".as_slice(), End::Clean));
    relay.entry.await_state("the flow given up after the linger", |s| s.flows == 0);
    relay.exit.await_state("the flow given up after the linger", |s| s.flows == 0);
    relay.await_as_before(&before, WATCHDOG);
    drop(stream);
}

pub(crate) fn reset_in_mid_body_is_no_clean_end(relay: &Relay) {
    // The client has everything that was sent, and asks for the reset.
    let destination = Destination::serve(|mut stream, _| {
        send_pattern(&mut stream, SEED, 5, 200_000).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
    });
    let mut bystander = open_echo(relay.socks, Origin::new().address()).unwrap();
    for _ in 0..10 {
        let mut stream = socks::open(relay.socks, destination.address).unwrap();
        check_pattern(&mut stream, SEED, 5, Some(200_000)).unwrap().unwrap();
        stream.write_all(b"x").unwrap();
        let (rest, end) = within("the reset to arrive", PROMPTLY, || read_to_the_end(&mut stream));
        assert_eq!((rest.len(), end), (0, End::Reset), "a destination's reset must not look like the end of the body");
    }
    // The reset overtakes the body.
    let hasty = Destination::serve(|mut stream, _| {
        let _ = stream.read_exact(&mut [0]);
        let _ = send_pattern(&mut stream, SEED, 5, 3_000_000);
        reset(stream);
    });
    for _ in 0..10 {
        let mut stream = socks::open(relay.socks, hasty.address).unwrap();
        stream.write_all(b"x").unwrap();
        let (got, end) = within("the reset to arrive", PROMPTLY, || read_to_the_end(&mut stream));
        let innocent = end == End::Reset || (end == End::Clean && (got.is_empty() || got.len() == 3_000_000));
        assert!(innocent, "{} of 3,000,000 bytes came and the end was {end:?}", got.len());
    }
    round_trip(&mut bystander, b"unharmed").unwrap();
    close_echo(bystander).unwrap();
    relay.at_rest();
}

#[test]
fn a_destinations_reset_in_mid_body_never_looks_like_a_clean_end_to_the_client() {
    reset_in_mid_body_is_no_clean_end(&Relay::usual());
}

#[test]
fn a_destination_that_resets_before_it_has_said_anything_ends_the_flow_promptly() {
    let relay = Relay::usual();
    let destination = Destination::serve(|stream, _| reset(stream));
    for _ in 0..10 {
        let mut stream = socks::open(relay.socks, destination.address).unwrap();
        let (got, end) = within("the end", PROMPTLY, || read_to_the_end(&mut stream));
        assert!(got.is_empty() && end != End::Never, "{} bytes, {end:?}", got.len());
    }
    relay.at_rest();
}

pub(crate) fn clients_reset_reaches_the_destination(relay: &Relay) {
    let (sender, ends) = channel();
    let sender = std::sync::Mutex::new(sender);
    let endless = Destination::serve(move |mut stream, _| {
        let error = send_pattern(&mut stream, SEED, 6, u64::MAX).unwrap_err();
        sender.lock().unwrap().send(error.kind()).unwrap();
    });
    let mut bystander = open_echo(relay.socks, Origin::new().address()).unwrap();
    for _ in 0..10 {
        let mut stream = socks::open(relay.socks, endless.address).unwrap();
        check_pattern(&mut stream, SEED, 6, Some(1_000_000)).unwrap().unwrap();
        reset(stream);
        let kind = ends.recv_timeout(PROMPTLY).expect("the destination must learn that the client has gone");
        assert!(matches!(kind, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "the destination was told {kind:?}");
    }
    round_trip(&mut bystander, b"unharmed").unwrap();
    close_echo(bystander).unwrap();
    relay.at_rest();
}

#[test]
fn a_clients_reset_reaches_a_destination_that_is_sending() {
    clients_reset_reaches_the_destination(&Relay::usual());
}

#[test]
fn a_clients_reset_ends_a_silent_destinations_connection_promptly() {
    let relay = Relay::usual();
    let (sender, ends) = channel();
    let sender = std::sync::Mutex::new(sender);
    let listening = Destination::serve(move |mut stream, _| {
        stream.read_exact(&mut [0]).unwrap();
        let (rest, end) = read_to_the_end(&mut stream);
        sender.lock().unwrap().send((rest.len(), end)).unwrap();
    });
    for _ in 0..10 {
        let mut stream = socks::open(relay.socks, listening.address).unwrap();
        stream.write_all(b"x").unwrap();
        relay.exit.await_state("the flow", |s| s.flows == 1);
        std::thread::sleep(Duration::from_millis(20));
        reset(stream);
        let (rest, end) = ends.recv_timeout(PROMPTLY).expect("the destination must learn that the client has gone");
        assert!(rest == 0 && end != End::Never, "{rest} bytes, {end:?}");
    }
    relay.at_rest();
}

#[test]
fn three_hundred_kilobytes_and_a_close_arrive_though_the_server_is_told_to_stop() {
    let mut relay = Relay::usual();
    let (sender, closed) = channel();
    let sender = std::sync::Mutex::new(sender);
    let destination = Destination::serve(move |mut stream, _| {
        send_pattern(&mut stream, SEED, 8, 300_000).unwrap();
        drop(stream);
        sender.lock().unwrap().send(()).unwrap();
    });
    let mut stream = socks::open(relay.socks, destination.address).unwrap();
    closed.recv_timeout(WATCHDOG).unwrap();
    relay.exit.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    receive(&mut stream, SEED, 8, 300_000).unwrap();
    drop(stream);
    assert!(relay.exit.await_end(WATCHDOG).success());
}

fn read_slowly(stream: &mut TcpStream, flow: u32, len: u64) -> Result<(), String> {
    small_receive_buffer(stream);
    let mut at = 0;
    let mut checker = crate::harness::pattern::Checker::new(SEED, flow);
    let mut chunk = vec![0; 64 << 10];
    while at < len {
        let n = stream.read(&mut chunk).map_err(|e| format!("flow {flow}, after {at} bytes: {e}"))?;
        if n == 0 {
            return Err(format!("flow {flow}: cut after {at} of {len} bytes"));
        }
        checker.take(&chunk[..n])?;
        at += n as u64;
        // 64 KiB each 40 ms, however small the pieces.
        std::thread::sleep(Duration::from_millis(40) * u32::try_from(n).unwrap() / 65_536);
    }
    verdict(stream, flow, "")
}

pub(crate) fn slow_readers_get_everything(relay: &Relay) {
    let destination = Destination::serve(|mut stream, number| {
        send_pattern(&mut stream, SEED, 100 + u32::try_from(number).unwrap(), 4 << 20).unwrap();
    });
    // One after the other is opened, so that the destination's numbers are the flows'; then all read at once.
    let streams: Vec<_> = (0..4)
        .map(|number| {
            let stream = socks::open(relay.socks, destination.address).unwrap();
            crate::harness::await_some("the connection", WATCHDOG, || (destination.accepted() == number + 1).then_some(()));
            std::sync::Mutex::new(stream)
        })
        .collect();
    all_well(&in_parallel(4, |i| read_slowly(&mut streams[i].lock().unwrap(), 100 + u32::try_from(i).unwrap(), 4 << 20)));
}

#[test]
fn a_slow_reader_gets_the_whole_body_of_a_destination_that_closed_long_ago() {
    let relay = Relay::usual();
    slow_readers_get_everything(&relay);
    relay.at_rest();
}

/// Opens a flow and ends it in one of six ways.
fn end_in_order(relay: &Relay, destination: &Destination, order: usize) -> Result<(), String> {
    let io = |e: std::io::Error| format!("order {order}: {e}");
    let mut stream = socks::open(relay.socks, destination.address).map_err(|e| format!("order {order}: {e}"))?;
    // The destination does what the byte says, see below.
    stream.write_all(&[b'0' + u8::try_from(order).unwrap()]).map_err(io)?;
    match order {
        // Client first, destination first, both at once.
        0 => {
            stream.shutdown(Shutdown::Write).map_err(io)?;
            verdict(&mut stream, 0, "end")
        }
        1 => {
            verdict(&mut stream, 1, "end")?;
            stream.shutdown(Shutdown::Write).map_err(io)
        }
        2 => {
            stream.read_exact(&mut [0; 3]).map_err(io)?;
            stream.shutdown(Shutdown::Write).map_err(io)?;
            verdict(&mut stream, 2, "")
        }
        // The client resets; the destination resets; the client closes with bytes unread.
        3 => {
            stream.read_exact(&mut [0; 3]).map_err(io)?;
            reset(stream);
            Ok(())
        }
        4 => match read_to_the_end(&mut stream).1 {
            End::Never => Err("order 4: never ended".into()),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

pub(crate) fn every_order_of_ends_leaves_nothing_behind(relay: &Relay, rounds: usize) {
    let destination = Destination::serve(|mut stream, _| {
        let mut order = [0];
        if stream.read_exact(&mut order).is_err() {
            return;
        }
        match order[0] {
            b'0' => {
                let _ = stream.read(&mut [0]);
                let _ = stream.write_all(b"end");
            }
            b'1' => {
                let _ = stream.write_all(b"end");
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut [0]);
            }
            b'4' => {
                let _ = stream.write_all(b"end");
                reset(stream);
            }
            _ => {
                let _ = stream.write_all(b"end");
            }
        }
    });
    all_well(&in_turns(8, 6 * rounds, |i| end_in_order(relay, &destination, i % 6)));
    relay.entry.await_quiet();
    relay.exit.await_quiet();
}

#[test]
fn every_order_of_ends_and_resets_leaves_nothing_behind() {
    let relay = Relay::start(&Options::default().exit(&["--max-tunnels", "12"]));
    every_order_of_ends_leaves_nothing_behind(&relay, 150);
    relay.at_rest();
}

#[test]
fn an_upload_closed_right_after_its_last_write_is_not_cut_by_a_slow_destination() {
    let relay = Relay::usual();
    let (sender, verdicts) = channel();
    let sender = std::sync::Mutex::new(sender);
    let destination = Destination::serve(move |mut stream, _| {
        let verdict = read_slowly(&mut stream, 12, 4 << 20);
        sender.lock().unwrap().send(verdict).unwrap();
    });
    let mut stream = socks::open(relay.socks, destination.address).unwrap();
    send_pattern(&mut stream, SEED, 12, 4 << 20).unwrap();
    drop(stream);
    verdicts.recv_timeout(2 * WATCHDOG).unwrap().unwrap();
    relay.at_rest();
}

#[test]
fn a_client_that_gives_up_at_any_moment_of_the_opening_leaves_nothing_behind() {
    let _alone = heavy();
    let relay = Relay::start(&Options::default().exit(&["--max-tunnels", "8"]));
    let origin = Origin::new();
    let wrong = in_turns(4, 600, |i| {
        let mut stream = crate::harness::net::connect(relay.socks).map_err(|e| e.to_string())?;
        let mut all = socks::GREETING.to_vec();
        all.extend(socks::request(1, &origin.address().into()));
        stream.write_all(&all).map_err(|e| e.to_string())?;
        std::thread::sleep(Duration::from_micros(10 * u64::try_from(i % 300).unwrap()));
        if i % 2 == 0 {
            reset(stream);
        }
        Ok(())
    });
    all_well(&wrong);
    relay.entry.await_quiet();
    relay.exit.await_quiet();
    relay.await_tunnel();
    let mut stream = socks::open(relay.socks, origin.address()).unwrap();
    ask_for(&mut stream, 3, 1000).unwrap();
    receive(&mut stream, origin.seed, 3, 1000).unwrap();
}
