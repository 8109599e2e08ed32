//! Our inter-server, their server. The waits that 0x80 §5 prescribes are in [`crate::long`].

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::Command;

use crate::support::{Destination, Process, await_some, checksum, open, pattern, read_all, round_trip};
use crate::try_three_times;

/// Our inter-server, SOCKS5 and servers on one port as with theirs, and their servers: a tunnel each.
pub(crate) struct Pair {
    pub(crate) entry: Process,
    pub(crate) address: SocketAddr,
    pub(crate) servers: Vec<Process>,
}

pub(crate) fn pair(servers: u64) -> Pair {
    let entry = Process::ours("inter-server", &["--shared", "127.0.0.1:0", "--cores", "0"]);
    let listening = entry.await_line("listening");
    let address = listening.split(&['=', ' ', '"'][..]).find_map(|word| word.parse().ok()).unwrap();
    let theirs: Vec<_> = (0..servers).map(|_| Process::their_server(address)).collect();
    entry.await_state("tunnels", servers);
    Pair { entry, address, servers: theirs }
}

impl Pair {
    pub(crate) fn faults(&self) -> Result<(), String> {
        self.servers.iter().try_for_each(Process::faults)
    }
}

/// What curl printed.
fn curl(pair: &Pair, arguments: &[&str], to: SocketAddr) -> Result<Vec<u8>, String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "40", "--proxy", &format!("socks5h://{}", pair.address)])
        .args(arguments)
        .arg(format!("http://{to}/"))
        .output()
        .unwrap();
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn curl_fetches_a_page_and_posts_one_through_the_authors_server() {
    let page = pattern(200_000);
    try_three_times(|| {
        let pair = pair(1);
        let site = Destination::http(page.clone());
        let fetched = curl(&pair, &[], site.address)?;
        if fetched != page {
            return Err(format!("fetched {}, expected {}", checksum(&fetched), checksum(&page)));
        }
        // Some forty frames of ours, none of which may be lost or overtaken.
        let body = pattern(40_000);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &body).unwrap();
        let data = format!("@{}", file.path().display());
        let other = Destination::http(Vec::new());
        let answer = curl(&pair, &["--header", "expect:", "--data-binary", &data], other.address)?;
        if answer != checksum(&body).into_bytes() {
            return Err(format!("posted {}, they got {}", checksum(&body), String::from_utf8_lossy(&answer)));
        }
        pair.faults()
    });
}

#[test]
fn a_destination_that_speaks_first_is_heard_by_a_client_that_says_nothing() {
    let pair = pair(1);
    let destination = Destination::serve(|mut stream, _| {
        stream.write_all(b"SSH-2.0-banner\r\n").unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
    });
    let mut client = open(pair.address, destination.address, 0).unwrap();
    let mut banner = [0; 16];
    client.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0-banner\r\n");
    client.write_all(b"quit").unwrap();
    assert_eq!(read_all(&mut client).unwrap(), b"quit", "their end closes the flow");
    let opened = pair.servers[0].await_line("open ");
    assert!(opened.ends_with(" 0"), "a request without data opened it: {opened}");
    pair.faults().unwrap();
}

#[test]
fn the_clients_first_bytes_open_the_flow_and_no_request_goes_before_them() {
    let pair = pair(1);
    let destination = Destination::echo();
    let mut client = open(pair.address, destination.address, 0).unwrap();
    round_trip(&mut client, b"first words").unwrap();
    assert!(pair.servers[0].await_line("open ").ends_with(" 11"));
    assert_eq!(destination.connections(), 1);
    pair.faults().unwrap();
}

#[test]
fn many_words_back_and_forth_come_in_order() {
    try_three_times(|| {
        let pair = pair(1);
        let destination = Destination::echo();
        let mut client = open(pair.address, destination.address, 0).unwrap();
        for number in 0..50 {
            round_trip(&mut client, format!("word {number}").as_bytes())?;
        }
        round_trip(&mut client, &pattern(20_000))?;
        pair.faults()
    });
}

#[test]
fn the_end_of_a_client_is_not_sent_and_the_answer_still_comes_whole() {
    let pair = pair(1);
    let answer = pattern(30_000);
    let destination = Destination::serve({
        let answer = answer.clone();
        move |mut stream, _| {
            let mut request = [0; 7];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    let mut client = open(pair.address, destination.address, 0).unwrap();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(checksum(&read_all(&mut client).unwrap()), checksum(&answer));
    // Had the end been sent as ours is, it would have come as a request of length 0 for an open flow, or have opened another.
    pair.servers[0].await_count("open ", 1);
    assert_eq!(pair.servers[0].count("nothing "), 0);
    pair.entry.await_state("flows", 0);
    pair.faults().unwrap();
}

#[test]
fn what_the_client_still_sends_after_their_end_destroys_nothing_and_opens_nothing() {
    let pair = pair(1);
    let answer = pattern(100_000);
    let destination = Destination::serve({
        let answer = answer.clone();
        move |mut stream, _| {
            let mut request = [0; 7];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    let mut client = open(pair.address, destination.address, 0).unwrap();
    client.write_all(b"request").unwrap();
    pair.servers[0].await_line("end ");
    // Their end is on its way to a client that has not read yet and goes on sending: closing on it would destroy the answer.
    client.write_all(&pattern(50_000)).unwrap();
    assert_eq!(checksum(&read_all(&mut client).unwrap()), checksum(&answer));
    pair.entry.await_state("flows", 0);
    client.write_all(b"more").unwrap();
    drop(client);
    pair.entry.await_state("detached", 0);
    assert_eq!((pair.servers[0].count("open "), destination.connections()), (1, 1));
}

#[test]
fn a_client_that_is_gone_ends_the_tunnel_it_was_alone_on_and_the_next_one_is_served() {
    let pair = pair(1);
    let destination = Destination::serve(|mut stream, _| while stream.write_all(&[7; 1000]).is_ok() {});
    let mut client = open(pair.address, destination.address, 0).unwrap();
    client.read_exact(&mut [0; 100]).unwrap();
    // Closed with bytes unread: a reset.
    drop(client);
    pair.servers[0].await_line("tunnel lost");
    // "tunnel", "tunnel lost", "tunnel".
    await_some("their server to be back", || (pair.servers[0].count("tunnel") >= 3).then_some(()));
    pair.entry.await_state("tunnels", 1);
    let echo = Destination::echo();
    round_trip(&mut open(pair.address, echo.address, 0).unwrap(), b"next").unwrap();
}

#[test]
fn a_second_flow_to_the_same_destination_gets_another_tunnel() {
    let pair = pair(2);
    let destination = Destination::echo();
    let mut clients: Vec<_> = (0..2).map(|_| open(pair.address, destination.address, 0).unwrap()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        round_trip(client, format!("client {number}").as_bytes()).unwrap();
    }
    assert_eq!(destination.connections(), 2);
    pair.servers.iter().for_each(|server| server.await_count("open ", 1));
    pair.faults().unwrap();
}
