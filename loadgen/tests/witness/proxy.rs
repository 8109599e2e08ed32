//! A proxy that forwards as it should, and makes one fault at a byte of its choosing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What is done to the bytes on their way down, or up, of the connection that comes first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Harm {
    None,
    /// The byte at this offset is left out.
    Drop(usize),
    /// This byte and the next change places.
    Swap(usize),
    /// This byte is sent twice.
    Repeat(usize),
    /// A bit of this byte is flipped.
    Flip(usize),
    /// From this byte on, as much as comes at once is that of another connection.
    Mix(usize),
    /// From this byte on, nothing is forwarded any more.
    Stall(usize),
    /// The connection is closed in order at this byte.
    Close(usize),
}

/// Which bytes are harmed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Side {
    Up,
    Down,
}

/// What all connections of a proxy share.
struct Shared {
    harm: Harm,
    side: Side,
    /// Bytes that passed on some other connection.
    others: Mutex<Vec<u8>>,
    connections: AtomicUsize,
}

/// Starts one in front of `to`.
pub(crate) fn start(to: SocketAddr, side: Side, harm: Harm) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let shared = Arc::new(Shared { harm, side, others: Mutex::default(), connections: AtomicUsize::new(0) });
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let first = shared.connections.fetch_add(1, Ordering::SeqCst) == 0;
            forward(client, TcpStream::connect(to).unwrap(), &shared, first);
        }
    });
    at
}

/// Forwards both ways, each on a thread.
fn forward(client: TcpStream, server: TcpStream, shared: &Arc<Shared>, first: bool) {
    for side in [Side::Up, Side::Down] {
        let (from, to) = match side {
            Side::Up => (&client, &server),
            Side::Down => (&server, &client),
        };
        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        from.set_nodelay(true).unwrap();
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            pump(&from, &to, &shared, first, side == shared.side);
            let _ = to.shutdown(Shutdown::Write);
            // A reset on one side must reach the other, as it would without a proxy.
            let _ = from.shutdown(Shutdown::Read);
        });
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared, first: bool, harmed: bool) {
    let mut buffer = vec![0; 65536];
    let mut passed = 0;
    let mut done = false;
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..len].to_vec();
        if harmed && !first && shared.harm != Harm::None {
            shared.others.lock().unwrap().clone_from(&bytes);
        }
        if harmed && first && !done {
            match harm(shared, passed, &mut bytes) {
                Next::Pass => {}
                Next::Harmed => done = true,
                Next::Stall => {
                    let _ = to.write_all(&bytes);
                    // Open, and silent, until the test's process ends.
                    loop {
                        thread::park();
                    }
                }
                Next::Close => {
                    let _ = to.write_all(&bytes);
                    return;
                }
            }
        }
        passed += len;
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

enum Next {
    Pass,
    Harmed,
    Stall,
    Close,
}

/// Does its harm, if its byte is among these. `passed` bytes came before.
fn harm(shared: &Shared, passed: usize, bytes: &mut Vec<u8>) -> Next {
    let place = |at: usize, room: usize| at.checked_sub(passed).filter(|place| place + room < bytes.len());
    match shared.harm {
        Harm::None => return Next::Pass,
        Harm::Drop(at) => match place(at, 0) {
            Some(place) => drop(bytes.remove(place)),
            None => return Next::Pass,
        },
        Harm::Swap(at) => match place(at, 1) {
            Some(place) => bytes.swap(place, place + 1),
            None => return Next::Pass,
        },
        Harm::Repeat(at) => match place(at, 0) {
            Some(place) => bytes.insert(place, bytes[place]),
            None => return Next::Pass,
        },
        Harm::Flip(at) => match place(at, 0) {
            Some(place) => bytes[place] ^= 0x10,
            None => return Next::Pass,
        },
        Harm::Mix(at) => {
            let others = shared.others.lock().unwrap();
            if passed < at || others.len() < 48 || bytes.len() < 48 {
                return Next::Pass;
            }
            let len = bytes.len().min(others.len());
            bytes[..len].copy_from_slice(&others[..len]);
        }
        Harm::Stall(at) | Harm::Close(at) => {
            let Some(place) = place(at, 0) else { return Next::Pass };
            bytes.truncate(place);
            return if matches!(shared.harm, Harm::Stall(_)) { Next::Stall } else { Next::Close };
        }
    }
    Next::Harmed
}
