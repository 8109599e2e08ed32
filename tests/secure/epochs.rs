//! More than a million records each way on one tunnel of the real binary: both sides step to the next epoch's keys by counting, in the middle of a
//! flow, and nobody notices.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use zhwkprox::crypto::aead::EPOCH_RECORDS;
use zhwkprox::protocol::v81::frame::kind::{DATA, OPEN, OPENED};

use crate::harness::Origin;
use crate::peer::{GENEROUS, Peer, address, frame};
use crate::support::{Keys, exit};

/// Through the server to an echo and back.
fn echo(peer: &mut Peer, bytes: &[u8]) {
    peer.send(&frame(DATA, 1, bytes));
    let mut back = Vec::new();
    while back.len() < bytes.len() {
        let got = peer.receive();
        assert_eq!((got.kind, got.stream), (DATA, 1), "{got:?}");
        back.extend(got.payload);
    }
    assert_eq!(back, bytes);
}

#[test]
fn a_flow_goes_on_over_the_step_to_the_next_epoch_in_both_directions() {
    let keys = Keys::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = exit(listener.local_addr().unwrap(), &keys.write("key", 1), &[]);
    let mut peer = Peer::as_entry(&listener, 1, GENEROUS);
    let origin = Origin::new();
    peer.send(&frame(OPEN, 1, &address(origin.address())));
    assert_eq!(peer.await_kind(OPENED).stream, 1);
    peer.send(&frame(DATA, 1, b"echo\n"));
    echo(&mut peer, b"in the first epoch");

    let wanted = u64::from(EPOCH_RECORDS);
    let start = Instant::now();
    while peer.records().iter().any(|count| *count < wanted + 100) {
        // A PING is a record, and so is its PONG. Where either side steps the flow is in every record, and else now and then.
        if peer.records().iter().any(|count| count.abs_diff(wanted) < 20 || count.is_multiple_of(50_000)) {
            echo(&mut peer, b"where it steps");
        } else {
            let between = peer.round_trip();
            assert!(between.is_empty(), "{between:?} after {:?} records", peer.records());
        }
        assert!(start.elapsed() < Duration::from_secs(300), "so far {:?} records", peer.records());
    }
    echo(&mut peer, b"in the second");
    let state = server.state();
    assert_eq!((state.tunnels, state.flows), (1, 1));
}
