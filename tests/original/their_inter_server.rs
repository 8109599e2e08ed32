//! Our server, their inter-server: one port for SOCKS5 and servers, twelve stray bytes in its answer, no word about clients that go.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::support::{Destination, Process, checksum, open, pattern, read_all, round_trip};
use crate::try_three_times;

/// Bytes of their SOCKS5 answer that no client expects.
pub(crate) const STRAY: usize = 12;

/// Their inter-server and our server on its port.
pub(crate) struct Pair {
    pub(crate) theirs: Process,
    pub(crate) address: SocketAddr,
    pub(crate) exit: Process,
}

pub(crate) fn pair() -> Pair {
    let (theirs, address) = Process::their_inter_server();
    let exit = Process::ours("server", &["--dial", &address.to_string(), "--allow", "127.0.0.0/8"]);
    theirs.await_line("tunnel");
    exit.await_state("tunnels", 1);
    Pair { theirs, address, exit }
}

#[test]
fn a_page_is_fetched_whole_again_and_again_from_one_address() {
    let page = pattern(60_000);
    try_three_times(|| {
        let pair = pair();
        let site = Destination::http(page.clone());
        // The (ip, port) is free when our end has been sent: the next client's request opens it at once.
        for _ in 0..3 {
            let mut client = open(pair.address, site.address, STRAY).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let answer = read_all(&mut client)?;
            if !answer.ends_with(&page) {
                return Err(format!("got {}, the page has {}", checksum(&answer), checksum(&page)));
            }
        }
        pair.exit.await_state("flows", 0);
        pair.theirs.faults()
    });
}

#[test]
fn bytes_go_both_ways_although_their_messages_come_glued_and_ours_must_not() {
    try_three_times(|| {
        let pair = pair();
        let destination = Destination::echo();
        let mut client = open(pair.address, destination.address, STRAY).unwrap();
        let mut reader = client.try_clone().unwrap();
        let sent = pattern(30_000);
        let length = sent.len();
        let received = std::thread::spawn(move || {
            let mut received = vec![0; length];
            reader.read_exact(&mut received).map(|()| received)
        });
        client.write_all(&sent).unwrap();
        // Where a frame of ours was lost, the last bytes never come.
        client.set_read_timeout(Some(std::time::Duration::from_secs(15))).unwrap();
        let received = received.join().unwrap().map_err(|error| error.to_string())?;
        if received != sent {
            return Err(format!("{} came back as {}", checksum(&sent), checksum(&received)));
        }
        pair.theirs.faults()
    });
}

#[test]
fn a_refused_destination_ends_the_client_at_once() {
    let pair = pair();
    let mut client = open(pair.address, Destination::refusing(), STRAY).unwrap();
    client.write_all(b"anybody?").unwrap();
    assert_eq!(read_all(&mut client).unwrap(), b"");
    pair.exit.await_state("flows", 0);
    pair.theirs.faults().unwrap();
}

#[test]
fn late_data_after_our_end_opens_a_connection_of_its_own_and_is_logged() {
    let pair = pair();
    let destination = Destination::serve(|mut stream, number| {
        let mut request = [0; 5];
        let _ = stream.read_exact(&mut request);
        // The first is closed at once; the second answers what came late.
        if number > 0 {
            let _ = stream.write_all(&request);
        }
    });
    let mut client = open(pair.address, destination.address, STRAY).unwrap();
    client.write_all(b"early").unwrap();
    assert_eq!(read_all(&mut client).unwrap(), b"", "our end has come");
    client.write_all(b"later").unwrap();
    pair.exit.await_line("after its end");
    crate::support::await_some("the second connection", || (destination.connections() == 2).then_some(()));
    pair.exit.await_state("flows", 0);
    pair.theirs.faults().unwrap();
}

#[test]
fn one_tunnel_is_kept_for_any_number_of_destinations() {
    let pair = pair();
    let destinations: Vec<_> = (0..5).map(|_| Destination::echo()).collect();
    let mut clients: Vec<_> = destinations.iter().map(|to| open(pair.address, to.address, STRAY).unwrap()).collect();
    for client in &mut clients {
        round_trip(client, b"hello").unwrap();
    }
    pair.exit.await_state("flows", 5);
    pair.exit.await_state("tunnels", 1);
    assert_eq!(pair.theirs.count("tunnel"), 1);
    pair.theirs.faults().unwrap();
}
