//! The waits of 0x80 §5, in real time, side by side: together they take as long as the longest, about half a minute.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{Destination, await_some, open, read_all, round_trip};
use crate::their_inter_server::{self, STRAY};
use crate::their_server;

#[test]
fn the_long_waits() {
    let scenarios: [(&str, fn()); 5] = [
        ("a silent flow is kept alive beyond their 20 s", a_silent_flow_is_kept_alive_beyond_their_20_s),
        ("a client that may have gone is left to their timer", a_client_that_may_have_gone_is_left_to_their_timer),
        ("a refused destination ends after 30 s and nobody else", a_refused_destination_ends_after_30_s_and_nobody_else),
        ("an address is used again when nothing can be left", an_address_is_used_again_when_nothing_can_be_left),
        ("our server ends a flow idle both ways", our_server_ends_a_flow_idle_both_ways),
    ];
    let failed: Vec<_> = std::thread::scope(|scope| {
        let running = scenarios.map(|(name, scenario)| (name, scope.spawn(scenario)));
        running.into_iter().filter_map(|(name, scenario)| scenario.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

/// Says a word when asked to, after as many seconds as it was told.
fn patient() -> Destination {
    Destination::serve(|mut stream, _| {
        let mut seconds = [0];
        while stream.read_exact(&mut seconds).is_ok() {
            std::thread::sleep(Duration::from_secs(u64::from(seconds[0])));
            if stream.write_all(b"word").is_err() {
                return;
            }
        }
    })
}

fn ask(stream: &mut (impl Read + Write), seconds: u8) -> Result<(), String> {
    let mut word = [0; 4];
    stream.write_all(&[seconds]).and_then(|()| stream.read_exact(&mut word)).map_err(|error| error.to_string())?;
    if &word == b"word" { Ok(()) } else { Err(format!("got {word:?}")) }
}

fn a_silent_flow_is_kept_alive_beyond_their_20_s() {
    let pair = their_server::pair(1);
    let destination = patient();
    let mut client = open(pair.address, destination.address, 0).unwrap();
    ask(&mut client, 0).unwrap();
    ask(&mut client, 24).unwrap();
    ask(&mut client, 0).unwrap();
    let server = &pair.servers[0];
    assert_eq!((server.count("open "), server.count("timer ")), (1, 0));
    assert!((2..=4).contains(&server.count("nothing ")), "requests of length 0 in 24 s: {}", server.count("nothing "));
    assert_eq!(destination.connections(), 1);
    pair.faults().unwrap();
}

fn a_client_that_may_have_gone_is_left_to_their_timer() {
    let pair = their_server::pair(1);
    let destination = Destination::echo();
    let mut client = open(pair.address, destination.address, 0).unwrap();
    round_trip(&mut client, b"hello").unwrap();
    // A FIN, as most clients leave; the destination, which is not told, stays open.
    drop(client);
    pair.servers[0].await_line("timer ");
    pair.entry.await_state("flows", 0);
    assert_eq!(pair.servers[0].count("nothing "), 0);
    pair.faults().unwrap();
}

fn a_refused_destination_ends_after_30_s_and_nobody_else() {
    let pair = their_server::pair(1);
    let start = Instant::now();
    let mut client = open(pair.address, Destination::refusing(), 0).unwrap();
    client.write_all(b"is anybody there?").unwrap();
    let other = Destination::echo();
    let mut neighbour = open(pair.address, other.address, 0).unwrap();
    round_trip(&mut neighbour, b"before").unwrap();
    let got = read_all(&mut client);
    assert!(got.is_err(), "a failure must not look like an empty answer: {got:?}");
    assert!(start.elapsed() >= Duration::from_secs(29), "ended after {:?}", start.elapsed());
    round_trip(&mut neighbour, b"after").unwrap();
    assert_eq!(pair.entry.count("no server attached"), 0);
    pair.faults().unwrap();
}

fn an_address_is_used_again_when_nothing_can_be_left() {
    let pair = their_server::pair(1);
    let destination = Destination::serve(|mut stream, _| {
        let _ = stream.read_exact(&mut [0; 5]).and_then(|()| stream.write_all(b"hello"));
    });
    let visit = |to: SocketAddr| -> Result<(), u8> {
        let mut client = open(pair.address, to, 0)?;
        round_trip(&mut client, b"hello").unwrap();
        assert_eq!(read_all(&mut client).unwrap(), b"", "it closes by itself");
        Ok(())
    };
    let start = Instant::now();
    visit(destination.address).unwrap();
    assert_eq!(visit(destination.address), Err(1), "it rests on the only tunnel: the client waits, and is told");
    let other = Destination::serve(|mut stream, _| {
        let _ = stream.read_exact(&mut [0; 5]).and_then(|()| stream.write_all(b"hello"));
    });
    visit(other.address).expect("another address is free");
    let rested = await_some("the address to be free again", || visit(destination.address).ok().map(|()| start.elapsed()));
    assert!(rested >= Duration::from_secs(25), "used again after {rested:?}");
    assert_eq!((destination.connections(), other.connections()), (2, 1));
    pair.faults().unwrap();
}

fn our_server_ends_a_flow_idle_both_ways() {
    let pair = their_inter_server::pair();
    let destination = Destination::echo();
    let mut client = open(pair.address, destination.address, STRAY).unwrap();
    round_trip(&mut client, b"hello").unwrap();
    let mut talker = open(pair.address, Destination::echo().address, STRAY).unwrap();
    round_trip(&mut talker, b"hello").unwrap();
    pair.exit.await_state("flows", 2);
    drop(client);
    pair.theirs.await_line("client gone");
    let start = Instant::now();
    while pair.exit.said().iter().all(|line| !line.contains("no progress")) {
        round_trip(&mut talker, b"still here").unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert!(start.elapsed() < Duration::from_secs(60), "the idle flow was not ended");
    }
    assert!(start.elapsed() >= Duration::from_secs(17), "ended after {:?}", start.elapsed());
    pair.exit.await_state("flows", 1);
    round_trip(&mut talker, b"and on").unwrap();
    pair.theirs.faults().unwrap();
}
