//! When a turn sleeps, when it does not, and that nothing is lost at the edges of the queues.
#![allow(clippy::disallowed_methods, reason = "measures waits")]

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use zhwkprox::limits::COMPLETIONS_PER_TURN;
use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::engine::Engine;
use zhwkprox::shard::inbox::Message;
use zhwkprox::shard::io::{Errno, Io, Kind};
use zhwkprox::shard::ring::Sizes;

use super::differences::skipped_on_tokio_uring;
use super::support::{Rig, WATCHDOG, engine, received, sent, write_all};

#[test]
fn a_turn_that_does_not_sleep_still_sees_what_comes_later() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    rig.receive(socket);
    assert!(rig.poll().is_empty());
    write_all(&peer, b"x");
    // Deferred work must be run by turns of zero wait alone.
    let until = Instant::now() + WATCHDOG;
    loop {
        let done = rig.poll();
        if !done.is_empty() {
            assert_eq!(received(done.into_iter().next().unwrap()).as_slice(), b"x");
            return;
        }
        assert!(Instant::now() < until, "busy turns see no completion");
    }
}

#[test]
fn a_turn_sleeps_no_longer_than_it_may_and_no_shorter() {
    let mut rig = Rig::new(8);
    let mut done = Vec::new();
    let before = Instant::now();
    rig.ring.turn(Some(Duration::from_millis(60)), &mut done).unwrap();
    let slept = before.elapsed();
    assert!(done.is_empty());
    assert!(slept >= Duration::from_millis(50) && slept < WATCHDOG, "slept {slept:?}");
}

#[test]
fn another_thread_wakes_a_shard_that_sleeps_without_limit_again_and_again() {
    let mut rig = Rig::new(8);
    for _ in 0..3 {
        let postbox = rig.postbox.clone();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            postbox.post(Message::ReportState);
        });
        rig.wait_wake();
        assert!(matches!(rig.inbox.drain().as_slice(), [Message::ReportState]));
        other.join().unwrap();
    }
}

#[test]
fn many_rings_of_the_bell_wake_at_least_once_and_lose_no_message() {
    let mut rig = Rig::new(8);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let postbox = rig.postbox.clone();
            thread::spawn(move || (0..1000).for_each(|_| postbox.post(Message::Stop)))
        })
        .collect();
    let mut messages = 0;
    while messages < 4000 {
        rig.wait_wake();
        messages += rig.inbox.drain().len();
    }
    assert_eq!(messages, 4000);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Sends and receives on `pairs` pairs at once, and checks that each operation completes with what its peer sent.
fn exchange<E: Io + ?Sized>(rig: &mut Rig<E>, pairs: usize) {
    let pairs: Vec<_> = (0..pairs)
        .map(|_| {
            let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
            (rig.adopt(one), rig.adopt(other))
        })
        .collect();
    for &(one, other) in &pairs {
        rig.receive(one);
        rig.receive(other);
        rig.send(one, Chunk::copy_of(&one.0.to_ne_bytes()), true);
        rig.send(other, Chunk::copy_of(&other.0.to_ne_bytes()), true);
    }
    let (mut received_by, mut sent_by) = (vec![0; pairs.len() * 2], vec![0; pairs.len() * 2]);
    let mut missing = pairs.len() * 4;
    let first = pairs[0].0.0;
    let mut parked = VecDeque::new();
    while missing > 0 {
        for _ in 0..parked.len().min(rig.ring.slots_available()) {
            rig.receive(parked.pop_front().unwrap());
        }
        let turn = rig.any();
        assert!(turn.len() <= COMPLETIONS_PER_TURN);
        for done in turn {
            let socket = done.token.socket();
            let place = (socket.0 - first) as usize;
            match done.token.kind().unwrap() {
                Kind::Receive if done.result == Err(Errno(libc::ENOBUFS)) => {
                    parked.push_back(socket);
                    continue;
                }
                Kind::Receive => {
                    let from = if place.is_multiple_of(2) { socket.0 + 1 } else { socket.0 - 1 };
                    assert_eq!(received(done).as_slice(), from.to_ne_bytes());
                    received_by[place] += 1;
                }
                Kind::Send => {
                    assert_eq!(sent(done).0, Ok(4));
                    sent_by[place] += 1;
                }
                other => panic!("{other:?}"),
            }
            missing -= 1;
        }
    }
    assert!(received_by.iter().chain(&sent_by).all(|&count| count == 1), "each operation completes once");
    for (one, other) in pairs {
        rig.close(one, false);
        rig.close(other, false);
    }
    assert_eq!(rig.slots_in_use(), 0);
}

#[test]
fn ten_thousand_operations_in_one_turn_all_complete() {
    let mut rig = Rig::new(64);
    exchange(&mut rig, 2500);
    assert!(rig.poll().is_empty());
}

#[test]
fn with_queues_far_too_small_nothing_is_lost_and_the_overflow_is_counted() {
    if skipped_on_tokio_uring("with_queues_far_too_small_nothing_is_lost_and_the_overflow_is_counted") {
        return;
    }
    let mut rig = Rig::with_sizes(64, Sizes { submissions: 4, completions: 4, slots: 32 });
    exchange(&mut rig, 2500);
    assert!(rig.ring.overflows() > 0);
    exchange(&mut rig, 10);
}

#[test]
fn a_turn_yields_a_bounded_number_and_the_next_one_the_rest_without_sleeping() {
    let mut rig = Rig::new(8);
    let count = COMPLETIONS_PER_TURN + 100;
    let pairs: Vec<_> = (0..count).map(|_| rig.unix()).collect();
    for (socket, _) in &pairs {
        rig.send(*socket, Chunk::copy_of(b"x"), true);
    }
    let (mut done, mut all) = (Vec::new(), 0);
    while all < count {
        // Would sleep for ever if it slept.
        rig.ring.turn(None, &mut done).unwrap();
        assert!((1..=COMPLETIONS_PER_TURN).contains(&done.len()), "{} in one turn", done.len());
        assert!(engine() == Engine::TokioUring || done.len() == COMPLETIONS_PER_TURN.min(count - all), "all were there");
        all += done.len();
        done.clear();
    }
    assert_eq!(all, count);
}
