//! Logins of those who have no key: replayed, garbled, many or silent. They cost no Diffie–Hellman and keep nobody out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::net::{End, connect, guard, read_to_the_end};
use crate::harness::traffic::works;
use crate::harness::{WATCHDOG, await_some, heavy};
use crate::peer::{GENEROUS, Peer};
use crate::support::{Keys, await_tunnels, entry, exit};
use crate::wire::{Way, Wire};

/// Says what a server says up to its login message; what comes behind the inter-server's answer.
fn log_in(at: SocketAddr, hello: &[u8], message: &[u8]) -> (Vec<u8>, End) {
    let mut socket = connect(at).unwrap();
    socket.write_all(hello).unwrap();
    socket.read_exact(&mut [0; 34]).unwrap();
    socket.write_all(message).unwrap();
    read_to_the_end(&mut socket)
}

#[test]
fn a_recorded_login_is_refused_without_a_byte_and_without_diffie_hellman() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let wire = Wire::start(entry.tunnel);
    let _exit = exit(wire.address, &key, &[]);
    await_tunnels(&entry.role, 1);
    works(entry.socks);
    let units = wire.seen(Way::ToEntry);
    let before = entry.role.state();
    assert_eq!(before.curve_operations, 2, "one login: a key pair, and what it and the other's make");
    assert_eq!(before.logins_refused, 0);
    let mut refused = 0;
    // As it was, with its records behind it, and with garbage in its place.
    let garbage = [&[48][..], &[0x5a; 48]].concat();
    for message in [units[1].clone(), units[1..].concat(), garbage] {
        let (said, _) = log_in(entry.tunnel, &units[0], &message);
        assert!(said.is_empty(), "a refused login is answered with {} bytes", said.len());
        refused += 1;
        entry.role.await_state("one more refused", |state| state.logins_refused == refused);
    }
    // All at once: it has nowhere seen an answer.
    let mut socket = connect(entry.tunnel).unwrap();
    socket.write_all(&units.concat()).unwrap();
    assert_eq!(read_to_the_end(&mut socket).0.len(), 34);
    let after = entry.role.await_state("the last one refused", |state| state.logins_refused == refused + 1);
    assert_eq!(after.curve_operations, before.curve_operations, "somebody without a key has made us compute");
    assert_eq!(after.tunnels, 1);
    entry.role.await_log("who", |line| line.contains("127.0.0.1") && line.contains("wrong key or not a zhwkproX server"));
}

#[test]
fn a_recorded_answer_of_the_inter_server_is_refused_by_the_server() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let wire = Wire::start(entry.tunnel);
    let first = exit(wire.address, &key, &[]);
    await_tunnels(&entry.role, 1);
    drop(first);
    let units = wire.seen(Way::ToExit);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fooled = exit(listener.local_addr().unwrap(), &key, &[]);
    let (mut socket, _) = listener.accept().unwrap();
    guard(&socket);
    socket.read_exact(&mut [0; 5]).unwrap();
    socket.write_all(&units[0]).unwrap();
    socket.read_exact(&mut [0; 49]).unwrap();
    socket.write_all(&units[1..].concat()).unwrap();
    assert!(read_to_the_end(&mut socket).0.is_empty(), "not a byte to somebody who does not know the key");
    fooled.await_log("why", |line| line.contains("does not verify: changed on the way, or not from an inter-server that knows this key"));
    let state = fooled.state();
    assert!(state.tunnels == 0 && state.logins_refused >= 1, "{state:?}");
}

#[test]
fn a_wrong_key_is_refused_with_a_line_on_both_sides_and_costs_the_inter_server_nothing() {
    let keys = Keys::new();
    let entry = entry(&[&keys.write("one", 1), &keys.write("two", 2)], &[]);
    let stranger = exit(entry.tunnel, &keys.write("three", 3), &[]);
    entry.role.await_log("a wrong key", |line| line.contains("server at 127.0.0.1") && line.contains("wrong key or not a zhwkproX server"));
    stranger
        .await_log("the same", |line| line.contains("closed after our login message: the inter-server does not know this key, or is none"));
    let state = entry.role.await_state("refused logins", |state| state.logins_refused >= 2);
    assert_eq!((state.curve_operations, state.tunnels), (0, 0));
}

#[test]
fn a_connection_that_does_not_log_in_is_closed_after_ten_seconds_however_far_it_came() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let start = Instant::now();
    let hello = [0x81, 3, 1, 2, 3];
    let mut silent = connect(entry.tunnel).unwrap();
    let mut slow = connect(entry.tunnel).unwrap();
    slow.write_all(&hello).unwrap();
    let mut halfway = connect(entry.tunnel).unwrap();
    halfway.write_all(&[&hello[..], &[48, 1, 2, 3]].concat()).unwrap();
    entry.role.await_state("three that have not logged in", |state| state.tunnels_pending == 3);
    for socket in [&mut silent, &mut slow, &mut halfway] {
        let (_, end) = read_to_the_end(socket);
        assert_ne!(end, End::Never);
    }
    assert!(start.elapsed() > Duration::from_secs(8), "closed after {:?} already", start.elapsed());
    entry.role.await_state("none any more", |state| state.tunnels_pending == 0);
    entry.role.await_log("what did not come", |line| line.contains("the server's hello did not come within 10 s"));
    entry.role.await_log("what did not come", |line| line.contains("the server's login message did not come within 10 s"));
}

#[test]
fn thousands_of_strangers_keep_no_server_out() {
    let _alone = heavy();
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &[]);
    let hello = [0x81, 3, 1, 2, 3];
    // Silent ones, beyond what is kept; the oldest are not the ones that go.
    let mut strangers: Vec<TcpStream> = (0..1_500).map(|_| connect(entry.tunnel).unwrap()).collect();
    for stranger in &mut strangers {
        let _ = stranger.write_all(&hello);
    }
    let state = entry.role.await_state("as many as are kept", |state| state.tunnels_pending == 1024);
    assert_eq!(state.tunnels, 0);
    await_some("the others to be closed", WATCHDOG, || {
        let closed = strangers.iter().filter(|stranger| is_closed(stranger)).count();
        (closed >= 1_500 - 1024).then_some(())
    });
    let first_half = strangers[..750].iter().filter(|stranger| is_closed(stranger)).count();
    assert!(first_half < 1_500 - 1024, "all that went are of the oldest: {first_half}");
    let _exit = exit(entry.tunnel, &key, &[]);
    await_tunnels(&entry.role, 1);
    works(entry.socks);

    // And a burst of wrong logins, far more than a turn takes: the tunnel goes on and the next one gets in.
    let before = entry.role.state();
    let message = [&[48][..], &[0x77; 48]].concat();
    for stranger in &mut strangers {
        let _ = stranger.write_all(&message);
    }
    entry.role.await_state("most of them refused", |state| state.logins_refused >= before.logins_refused + 900);
    assert_eq!(entry.role.state().curve_operations, before.curve_operations);
    works(entry.socks);
    let _peer = Peer::as_exit(entry.tunnel, 1, GENEROUS);
    await_tunnels(&entry.role, 2);
}

/// Whether the other side has closed; what it has said is left alone.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut piece = [0; 64];
    let is_closed = loop {
        match (&*stream).read(&mut piece) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    stream.set_nonblocking(false).unwrap();
    is_closed
}
