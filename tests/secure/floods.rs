//! Authenticated peers that keep to every rule and are as tiresome as that allows: what they make us hold is bounded, and others go on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use zhwkprox::protocol::v81::frame::kind::{DATA, OPEN, OPENED, PAD, RESET, WINDOW};
use zhwkprox::protocol::v81::settings::Settings;

use crate::harness::net::Hole;
use crate::harness::traffic::{open_echo, round_trip, works};
use crate::harness::{Destination, Origin, Role, WATCHDOG, await_some, heavy, quick};
use crate::peer::{Frame, GENEROUS, Peer, address, frame};
use crate::support::{Entry, Keys, await_tunnels, entry, exit};

/// Above what a role needs at rest (its arena of 16 MiB, and some), and below what any of these floods would come to if it were kept.
const MEMORY_KIB: u64 = 160 << 10;

/// A server with a good inter-server, on which an echo goes on, and a bad one, which is ours.
struct Flooded {
    server: Role,
    good: Entry,
    echo: TcpStream,
    origin: Origin,
    bad: TcpListener,
    _keys: Keys,
}

impl Flooded {
    fn start() -> Self {
        let keys = Keys::new();
        let key = keys.write("key", 1);
        let good = entry(&[&key], &[]);
        let bad = TcpListener::bind("127.0.0.1:0").unwrap();
        // What is dialled in vain stays so, however long the flood takes.
        let more = ["--connect-timeout", "10m", "--dial", &bad.local_addr().unwrap().to_string()];
        let server = exit(good.tunnel, &key, &more);
        await_tunnels(&good.role, 1);
        let origin = Origin::new();
        let echo = open_echo(good.socks, origin.address()).unwrap();
        Self { server, good, echo, origin, bad, _keys: keys }
    }

    fn peer(&self, own: Settings) -> Peer {
        Peer::as_entry(&self.bad, 1, own)
    }

    /// The others' flow goes on, memory is bounded, and when the peer has gone nothing is left.
    fn bears_it(mut self, what: &str, peer: Peer) {
        round_trip(&mut self.echo, b"still here").unwrap_or_else(|error| panic!("{what}: {error}"));
        let memory = self.server.peak_memory_kib();
        assert!(memory < MEMORY_KIB, "{what}: {memory} KiB");
        drop(peer);
        self.server.await_state(&format!("{what}: nothing but the echo"), |state| {
            state.flows == 1 && state.detached == 0 && state.slots_in_use == 0 && state.parked == 0
        });
        round_trip(&mut self.echo, b"and still").unwrap_or_else(|error| panic!("{what}: {error}"));
        works(self.good.socks);
    }
}

/// Somewhere that refuses at once.
fn refusing() -> std::net::SocketAddr {
    crate::harness::net::free_address()
}

#[test]
fn a_flood_of_pings_is_answered_one_by_one() {
    let here = Flooded::start();
    let mut peer = here.peer(GENEROUS);
    for _ in 0..if quick() { 500 } else { 5_000 } {
        assert!(peer.round_trip().is_empty());
    }
    here.bears_it("pings", peer);
}

#[test]
fn a_flood_of_padding_and_of_records_with_nothing_in_them_costs_nothing() {
    let here = Flooded::start();
    let mut peer = here.peer(GENEROUS);
    let mut records = Vec::new();
    for _ in 0..20_000 {
        records.extend(peer.seal(&frame(PAD, 0, b"")));
    }
    for _ in 0..300 {
        records.extend(peer.seal(&frame(PAD, 0, &[0x5a; 65_380])));
    }
    // As many frames as a record can hold.
    for _ in 0..100 {
        records.extend(peer.seal(&frame(PAD, 0, b"").repeat(65_388 / 8)));
    }
    peer.socket.write_all(&records).unwrap();
    assert!(peer.round_trip().is_empty());
    here.bears_it("padding", peer);
}

#[test]
fn a_flood_of_streams_opened_and_reset_at_once_leaves_nothing() {
    let _alone = heavy();
    let here = Flooded::start();
    let mut peer = here.peer(GENEROUS);
    let (refusing, hole) = (refusing(), Hole::new());
    let mut stream = 0;
    for _ in 0..if quick() { 20 } else { 200 } {
        let mut record = Vec::new();
        for to in [refusing, hole.address, here.origin.address()].into_iter().cycle().take(100) {
            stream += 1;
            record.extend([frame(OPEN, stream, &address(to)), frame(RESET, stream, &[0x14])].concat());
        }
        peer.send(&record);
        // What they were answered with is nothing that goes on.
        assert!(peer.round_trip().iter().all(|frame| matches!(frame.kind, RESET | OPENED)));
    }
    here.bears_it("streams opened and reset", peer);
}

#[test]
fn credit_byte_by_byte_and_data_byte_by_byte_are_taken_as_they_come() {
    let here = Flooded::start();
    let mut peer = here.peer(Settings { stream_window: 16_384, max_streams: 1024 });
    peer.send(&[frame(OPEN, 1, &address(here.origin.address())), frame(DATA, 1, b"echo\n")].concat());
    peer.await_kind(OPENED);
    let one = frame(WINDOW, 1, &[1, 0, 0, 0]);
    for _ in 0..20 {
        peer.send(&one.repeat(5_000));
    }
    // More than the first credit came to, in records of one byte each.
    let mut records = Vec::new();
    for _ in 0..60_000 {
        records.extend(peer.seal(&frame(DATA, 1, b"y")));
    }
    let mut sender = peer.socket.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(&records).unwrap());
    let mut back = 0;
    while back < 60_000 {
        let frame = peer.await_kind(DATA);
        assert!(frame.payload.iter().all(|byte| *byte == b'y'));
        back += frame.payload.len();
    }
    sending.join().unwrap();
    here.bears_it("bytes one by one", peer);
}

#[test]
fn more_streams_than_the_server_allows_are_refused_one_by_one() {
    let _alone = heavy();
    let here = Flooded::start();
    let mut peer = here.peer(GENEROUS);
    let hole = Hole::new();
    let count: u32 = 16_384 + 2_000;
    let (mut stream, mut refused) = (0, Vec::<Frame>::new());
    while stream < count {
        let mut record = Vec::new();
        for _ in 0..1_000 {
            stream += 1;
            record.extend(frame(OPEN, stream, &address(hole.address)));
        }
        peer.send(&record);
        refused.extend(peer.round_trip());
    }
    let limit = refused.iter().filter(|frame| frame.kind == RESET && frame.payload == [0x12]).count();
    assert!(limit >= 1_000, "{limit} of {} were refused for want of room, expected those beyond 16,384", refused.len());
    let mut here = here;
    round_trip(&mut here.echo, b"still here").unwrap();
    let state = here.server.state();
    assert!(state.flows <= 16_385, "{state:?}");
    drop(peer);
    here.server.await_state("nothing but the echo", |state| state.flows == 1);
    works(here.good.socks);
}

#[test]
fn a_peer_that_never_reads_is_owed_no_more_than_its_streams() {
    let _alone = heavy();
    // Destinations that send without end, to a peer that gives all the credit there is and takes nothing.
    let source = Destination::serve(|mut stream, _| while stream.write_all(&[0x77; 65_536]).is_ok() {});
    let here = Flooded::start();
    let mut peer = here.peer(GENEROUS);
    for stream in 1..=300 {
        peer.send(&frame(OPEN, stream, &address(source.address)));
    }
    await_some("the destinations to be reached", WATCHDOG, || (source.accepted() == 300).then_some(()));
    // It goes on sending: each of these is answered by one RESET at most, and it reads none.
    let refusing = refusing();
    let (start, mut stream) = (Instant::now(), 300);
    while start.elapsed() < Duration::from_secs(3) {
        stream += 1;
        if peer.try_send(&frame(OPEN, stream, &address(refusing))).is_err() {
            break;
        }
    }
    let memory = here.server.peak_memory_kib();
    assert!(memory < MEMORY_KIB, "{memory} KiB behind {stream} streams of a peer that does not read");
    here.bears_it("a peer that does not read", peer);
}

#[test]
fn a_client_that_does_not_read_is_held_no_more_than_its_window() {
    let _alone = heavy();
    let keys = Keys::new();
    let key = keys.write("bad", 2);
    let entry = entry(&[&key], &[]);
    let mut peer = Peer::as_exit(entry.tunnel, 2, GENEROUS);
    let (socks, target) = (entry.socks, refusing());
    let clients: Vec<_> = (0..64).map(|_| std::thread::spawn(move || crate::harness::socks::open(socks, target).unwrap())).collect();
    let mut credit = Vec::new();
    for _ in 0..64 {
        let open = peer.await_kind(OPEN);
        peer.send(&frame(OPENED, open.stream, &address(([192, 0, 2, 1], 7).into())));
        credit.push((open.stream, 262_144_usize));
    }
    let clients: Vec<TcpStream> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    // All that each may be sent, until no more is granted for a while.
    peer.socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut total = 0_u64;
    loop {
        for (stream, credit) in &mut credit {
            while *credit > 0 {
                let now = (*credit).min(60_000);
                peer.send(&frame(DATA, *stream, &vec![0x33; now]));
                *credit -= now;
                total += now as u64;
            }
        }
        match peer.try_receive() {
            Ok(Some(frame)) if frame.kind == WINDOW => {
                let granted = u32::from_le_bytes(frame.payload[..].try_into().unwrap()) as usize;
                credit.iter_mut().find(|(stream, _)| *stream == frame.stream).unwrap().1 += granted;
            }
            // The one that holds most is given up when there is too much: that is what bounds it.
            Ok(Some(frame)) if frame.kind == RESET => credit.retain(|(stream, _)| *stream != frame.stream),
            Ok(Some(frame)) => panic!("{frame:?}"),
            Ok(None) => panic!("the inter-server has closed"),
            Err(_) => break,
        }
    }
    let memory = entry.role.peak_memory_kib();
    assert!(total > 64 * 262_144, "only {total} bytes were taken in all");
    assert!(memory < MEMORY_KIB, "{memory} KiB for {total} bytes sent to 64 clients that do not read");
    drop(clients);
}

#[test]
fn a_record_that_comes_in_drips_ends_the_tunnel_after_a_minute() {
    let mut here = Flooded::start();
    let mut peer = here.peer(GENEROUS);
    let record = peer.seal(&frame(PAD, 0, &[0; 60_000]));
    let start = Instant::now();
    peer.socket.set_nonblocking(true).unwrap();
    let mut bytes = record.iter();
    let ended = loop {
        // Each byte is a sign of life, and all of them no record.
        if peer.socket.write_all(&[*bytes.next().unwrap()]).is_err() {
            break start.elapsed();
        }
        match peer.socket.read(&mut [0; 4096]) {
            Ok(0) => break start.elapsed(),
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break start.elapsed(),
            _ => {}
        }
        assert!(start.elapsed() < Duration::from_secs(180), "the tunnel is still there");
        round_trip(&mut here.echo, b"meanwhile").unwrap();
        std::thread::sleep(Duration::from_millis(250));
    };
    assert!(ended > Duration::from_secs(55), "it ended after {ended:?} already");
    round_trip(&mut here.echo, b"still here").unwrap();
}
