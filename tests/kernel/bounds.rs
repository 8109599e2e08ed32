//! Too few slots.

use std::collections::VecDeque;
use std::mem::MaybeUninit;

use socket2::SockRef;
use zhwkprox::limits::{COMPLETIONS_PER_TURN, SLOTS_MIN};
use zhwkprox::shard::io::{Errno, Kind, Op};

use super::differences::skipped_on_tokio_uring;
use super::support::{Rig, received, tcp_pair, token, write_all};

const NO_SLOT: Errno = Errno(libc::ENOBUFS);

#[test]
fn with_all_slots_taken_receives_say_so_and_no_byte_is_lost() {
    let mut rig = Rig::new(SLOTS_MIN);
    let pairs: Vec<_> = (0..10).map(|_| rig.tcp()).collect();
    for (socket, peer) in &pairs {
        rig.receive(*socket);
        write_all(peer, &socket.0.to_ne_bytes());
    }
    let (mut held, mut parked) = (Vec::new(), VecDeque::new());
    for (socket, _) in &pairs {
        let done = rig.wait(Kind::Receive, *socket);
        match done.result {
            Ok(_) => held.push((*socket, received(done))),
            Err(error) => {
                assert_eq!(error, NO_SLOT);
                parked.push_back(*socket);
            }
        }
    }
    assert_eq!((held.len(), parked.len()), (SLOTS_MIN, 10 - SLOTS_MIN));
    assert_eq!(rig.ring.slots_available(), 0);
    // As slots come back, one parked receive each.
    while let Some((socket, chunk)) = held.pop() {
        assert_eq!(chunk.as_slice(), socket.0.to_ne_bytes());
        drop(chunk);
        assert!(rig.ring.slots_available() > 0);
        if let Some(socket) = parked.pop_front() {
            rig.receive(socket);
            let chunk = received(rig.wait(Kind::Receive, socket));
            held.push((socket, chunk));
        }
    }
    assert!(parked.is_empty());
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn without_a_slot_a_receive_waits_for_bytes_before_it_fails() {
    let mut rig = Rig::new(1);
    let (holder, holder_peer) = rig.tcp();
    rig.receive(holder);
    write_all(&holder_peer, b"x");
    let chunk = received(rig.wait(Kind::Receive, holder));
    assert_eq!(rig.ring.slots_available(), 0);
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty(), "nothing is there to be received, so there is nothing to fail for");
    write_all(&peer, b"y");
    assert_eq!(rig.wait(Kind::Receive, socket).result, Err(NO_SLOT));
    drop(chunk);
    rig.receive(socket);
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"y");
}

#[test]
fn a_slot_that_comes_back_while_receives_wait_is_found_by_them() {
    let mut rig = Rig::new(1);
    let (holder, holder_peer) = rig.tcp();
    rig.receive(holder);
    write_all(&holder_peer, b"x");
    let chunk = received(rig.wait(Kind::Receive, holder));
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    drop(chunk);
    assert!(rig.poll().is_empty());
    write_all(&peer, b"y");
    assert_eq!(received(rig.wait(Kind::Receive, socket)).as_slice(), b"y");
}

#[test]
fn more_sockets_ready_at_once_than_slots_posted_do_not_fail_while_the_arena_has_more() {
    let mut rig = Rig::new(200);
    let pairs: Vec<_> = (0..150).map(|_| rig.tcp()).collect();
    for (socket, peer) in &pairs {
        rig.receive(*socket);
        write_all(peer, &socket.0.to_ne_bytes());
    }
    let mut held = Vec::new();
    for (socket, _) in &pairs {
        let chunk = received(rig.wait(Kind::Receive, *socket));
        assert_eq!(chunk.as_slice(), socket.0.to_ne_bytes());
        held.push(chunk);
    }
    assert_eq!(rig.slots_in_use(), 150);
    drop(held);
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn a_receive_without_a_slot_that_is_cancelled_completes_once() {
    let mut rig = Rig::new(64);
    let pairs: Vec<_> = (0..64).map(|_| rig.tcp()).collect();
    for round in 0..20_u32 {
        for (socket, peer) in &pairs {
            rig.receive(*socket);
            write_all(peer, &round.to_ne_bytes());
        }
        // Before anything has happened, or while some are about to be tried again.
        for _ in 0..round % 4 {
            rig.turn();
        }
        for (socket, _) in &pairs {
            rig.cancel(*socket);
        }
        let mut held = Vec::new();
        let mut unread = Vec::new();
        for (socket, _) in &pairs {
            let done = rig.wait(Kind::Receive, *socket);
            match done.result {
                Ok(_) => held.push(received(done)),
                Err(error) => {
                    assert!(error == NO_SLOT || error == Errno(libc::ECANCELED), "{error}");
                    unread.push(*socket);
                }
            }
        }
        drop(held);
        for socket in unread {
            assert_eq!(rig.read_exactly(socket, 4), round.to_ne_bytes());
        }
    }
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn a_cancel_that_comes_between_the_failure_and_its_report_is_not_lost() {
    if skipped_on_tokio_uring("a_cancel_that_comes_between_the_failure_and_its_report_is_not_lost") {
        return;
    }
    let count = COMPLETIONS_PER_TURN + 100;
    let mut rig = Rig::new(count);
    let mut same = Vec::new();
    let pairs: Vec<_> = (0..count)
        .map(|_| {
            let (ours, peer) = tcp_pair();
            same.push(ours.try_clone().unwrap());
            (rig.adopt(ours), peer)
        })
        .collect();
    for (socket, peer) in &pairs {
        write_all(peer, b"ab");
        rig.ring.submit(Op::Receive { socket: *socket, max: 1, token: token(Kind::Receive, *socket) });
    }
    for (socket, _) in &pairs {
        assert_eq!(received(rig.wait(Kind::Receive, *socket)).as_slice(), b"a");
    }
    // All have a byte left, so all are tried at once, on few posted slots, and more fail than one turn reports.
    for (socket, _) in &pairs {
        rig.receive(*socket);
    }
    rig.turn();
    for (socket, _) in &pairs {
        rig.cancel(*socket);
    }
    // The bytes go elsewhere, so that a receive which outlives its cancel waits for ever.
    for same in &same {
        let _ = SockRef::from(same).recv_with_flags(&mut [MaybeUninit::uninit(); 1], libc::MSG_DONTWAIT);
    }
    let mut failed = 0;
    for (socket, _) in &pairs {
        let done = rig.wait(Kind::Receive, *socket);
        match done.result {
            Ok(_) => assert_eq!(received(done).as_slice(), b"b"),
            Err(error) => {
                assert!(error == NO_SLOT || error == Errno(libc::ECANCELED), "{error}");
                failed += 1;
            }
        }
        rig.close(*socket, false);
    }
    assert!(failed > 0, "no cancel came in between");
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn without_a_slot_even_the_end_waits_for_one_and_then_comes() {
    let mut rig = Rig::new(1);
    let (holder, holder_peer) = rig.tcp();
    rig.receive(holder);
    write_all(&holder_peer, b"x");
    let chunk = received(rig.wait(Kind::Receive, holder));
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    drop(peer);
    assert_eq!(rig.wait(Kind::Receive, socket).result, Err(NO_SLOT));
    drop(chunk);
    rig.receive(socket);
    assert_eq!(rig.wait(Kind::Receive, socket).result, Ok(0));
    assert_eq!(rig.slots_in_use(), 0);
}
