//! Receives behind what has come: the rest of a record lands where its first part is.

use std::time::Duration;

use zhwkprox::limits::RECORD_BYTES_MAX;
use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::io::{Done, Errno, Kind, Op, Payload, SocketId};

use super::support::{Rig, pattern, received, token, write_all};

fn receive_into(rig: &mut Rig, socket: SocketId, into: Chunk, max: u32) {
    rig.ring.submit(Op::ReceiveInto { socket, into, max, token: token(Kind::Receive, socket) });
}

/// Result and chunk of a receive into one.
#[track_caller]
fn filled(done: Done) -> (Result<u32, Errno>, Chunk) {
    match done.payload {
        Payload::Filled(chunk) => (done.result, chunk),
        other => panic!("no chunk came back but {other:?} ({:?})", done.result),
    }
}

#[test]
fn a_record_that_came_in_part_is_finished_in_place_and_fills_its_slot_to_the_end() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let record = pattern(1, 0, RECORD_BYTES_MAX);
    rig.receive(socket);
    write_all(&peer, &record[..1000]);
    let mut chunk = received(rig.wait(Kind::Receive, socket));
    let place = chunk.as_slice().as_ptr();
    write_all(&peer, &record[1000..]);
    // More than the record is there, and none of that comes with it.
    write_all(&peer, b"next");
    while chunk.len() < record.len() {
        let (before, missing) = (chunk.len(), u32::try_from(record.len() - chunk.len()).unwrap());
        receive_into(&mut rig, socket, chunk, missing);
        let (count, whole) = filled(rig.wait(Kind::Receive, socket));
        assert_eq!(whole.len(), before + count.unwrap() as usize);
        chunk = whole;
    }
    assert!(chunk.as_slice() == record);
    assert_eq!((chunk.as_slice().as_ptr(), chunk.room(), rig.slots_in_use()), (place, 0, 1));
    assert_eq!(rig.read_exactly(socket, 4), b"next");
}

#[test]
fn a_receive_into_a_chunk_waits_and_takes_no_more_than_it_was_told() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    let mut chunk = rig.arena.take().unwrap().received(0);
    chunk.append(b"<");
    receive_into(&mut rig, socket, chunk, 3);
    assert!(rig.poll().is_empty());
    write_all(&peer, b"abcdef");
    let (count, chunk) = filled(rig.wait(Kind::Receive, socket));
    assert_eq!((count, chunk.as_slice()), (Ok(3), b"<abc".as_slice()));
    assert_eq!(rig.read_exactly(socket, 3), b"def");
}

#[test]
fn a_heap_chunk_is_filled_up_to_its_room() {
    let mut rig = Rig::new(8);
    let (socket, peer) = rig.tcp();
    write_all(&peer, b"abcdef");
    let mut chunk = Chunk::with_capacity(6);
    chunk.append(b"<>");
    receive_into(&mut rig, socket, chunk, u32::MAX);
    let (count, mut chunk) = filled(rig.wait(Kind::Receive, socket));
    assert_eq!((count, chunk.as_slice(), chunk.room()), (Ok(4), b"<>abcd".as_slice(), 0));
    chunk.prepend(b"header");
    assert_eq!(chunk.as_slice(), b"header<>abcd");
    assert_eq!(rig.slots_in_use(), 0);
    assert_eq!(rig.read_exactly(socket, 2), b"ef");
}

#[test]
fn an_end_a_reset_and_a_cancel_give_the_chunk_back_as_it_was() {
    let mut rig = Rig::new(8);
    for way in 0..3 {
        let (socket, peer) = rig.tcp();
        receive_into(
            &mut rig,
            socket,
            {
                let mut part = Chunk::with_capacity(64);
                part.append(b"part");
                part
            },
            8,
        );
        assert!(rig.poll().is_empty());
        let expected = match way {
            0 => {
                peer.shutdown(std::net::Shutdown::Write).unwrap();
                Ok(0)
            }
            1 => {
                socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                drop(peer);
                Err(Errno(libc::ECONNRESET))
            }
            _ => {
                rig.cancel(socket);
                Err(Errno(libc::ECANCELED))
            }
        };
        let (result, chunk) = filled(rig.wait(Kind::Receive, socket));
        assert_eq!((result, chunk.as_slice(), chunk.room()), (expected, b"part".as_slice(), 60));
        rig.close(socket, false);
    }
}

#[test]
fn a_dropped_ring_gives_the_chunks_slot_back() {
    let mut rig = Rig::new(8);
    let (socket, _peer) = rig.tcp();
    let chunk = rig.arena.take().unwrap().received(10);
    receive_into(&mut rig, socket, chunk, 8);
    assert!(rig.poll().is_empty());
    let arena = rig.arena.clone();
    drop(rig);
    assert_eq!(arena.free(), arena.slots());
}

#[test]
#[should_panic(expected = "one receive at a time")]
fn a_receive_into_a_chunk_beside_another_receive_is_noticed() {
    let mut rig = Rig::new(8);
    let (socket, _peer) = rig.tcp();
    rig.receive(socket);
    receive_into(&mut rig, socket, Chunk::with_capacity(8), 8);
}

#[test]
#[should_panic(expected = "into a chunk without room")]
fn a_receive_into_a_shared_chunk_is_noticed() {
    let mut rig = Rig::new(8);
    let (socket, _peer) = rig.tcp();
    let chunk = rig.arena.take().unwrap().received(10);
    let _other = chunk.part(0, 5);
    receive_into(&mut rig, socket, chunk, 8);
}
