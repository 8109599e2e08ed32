//! One flow over a line of 80 ms there and back, which would carry thirteen times what fits into a window that does not grow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::net::connect;
use crate::harness::{Destination, heavy, socks};
use crate::path::{Line, Path};
use crate::support::{Keys, await_tunnels, entry, exit};

/// 80 ms × 200 Mbit/s: what two roles, a proxy and both ends of a flow can do on two cores, checks and all.
const LONG: Line = Line { rate: 25_000_000, delay: Duration::from_millis(40) };
/// What a window of 256 KiB gives there: bytes per second.
const WITHOUT_GROWTH: u64 = (256 << 10) * 1000 / 80;
/// Time to grow, and time to look.
const GROW: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(2);

/// A destination that sends without end, or takes and counts, as the first byte says.
fn destination() -> (Destination, Arc<AtomicU64>) {
    let taken = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&taken);
    let destination = Destination::serve(move |mut stream, _| {
        let mut piece = vec![0; 65_536];
        if stream.read_exact(&mut piece[..1]).is_ok() && piece[0] == b'd' {
            while stream.write_all(&piece).is_ok() {}
        } else {
            count(&mut stream, &counts);
        }
    });
    (destination, taken)
}

fn count(stream: &mut TcpStream, bytes: &AtomicU64) {
    let mut piece = vec![0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        bytes.fetch_add(count as u64, Ordering::SeqCst);
    }
}

/// Bytes per second once it has grown.
fn rate(bytes: &AtomicU64) -> u64 {
    std::thread::sleep(GROW);
    let (before, start) = (bytes.load(Ordering::SeqCst), Instant::now());
    std::thread::sleep(LOOK);
    let came = bytes.load(Ordering::SeqCst) - before;
    came * 1000 / u64::try_from(start.elapsed().as_millis()).unwrap()
}

fn down(mut stream: TcpStream) -> u64 {
    let bytes = AtomicU64::new(0);
    let mut reading = stream.try_clone().unwrap();
    stream.write_all(b"d").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| count(&mut reading, &bytes));
        let rate = rate(&bytes);
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        rate
    })
}

fn up(mut stream: TcpStream, taken: &AtomicU64) -> u64 {
    let ending = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            stream.write_all(b"u").unwrap();
            while stream.write_all(&[7; 65_536]).is_ok() {}
        });
        let rate = rate(taken);
        ending.shutdown(std::net::Shutdown::Both).unwrap();
        rate
    })
}

fn flow(socks: SocketAddr, to: SocketAddr) -> TcpStream {
    socks::open(socks, to).unwrap()
}

#[test]
fn one_flow_over_a_long_line_carries_four_fifths_of_what_plain_tcp_does_there_in_either_direction() {
    let _alone = heavy();
    let (destination, taken) = destination();
    let plain = Path::start(destination.address, LONG);
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let path = Path::start(entry.tunnel, LONG);
    let _exit = exit(path.address, &key, &[]);
    await_tunnels(&entry.role, 1);

    let mut seen = Vec::new();
    let fills = (0..3).any(|_| {
        // Side by side in time: a machine that is busy is so for all of them.
        let plain = down(connect(plain.address).unwrap());
        let down = down(flow(entry.socks, destination.address));
        let up = up(flow(entry.socks, destination.address), &taken);
        seen.push((plain, down, up));
        let least = (plain * 4 / 5).max(WITHOUT_GROWTH * 2);
        down >= least && up >= least
    });
    assert!(fills, "bytes per second, plain, down and up: {seen:?}");
    assert_eq!(path.connections(), 1);
}
