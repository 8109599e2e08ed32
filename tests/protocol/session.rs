//! The table of keys, rule by rule: those of this project, and those for the author's original programs.

use zhwkprox::limits::V80_KEYS_MAX;
use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v80::frame::Destination;
use zhwkprox::protocol::v80::session::{Busy, Incoming, KeyState, Session, SessionFault};

use crate::support::{V4, V6, authenticated};

fn entry(profile: Profile) -> Session {
    Session::new(authenticated().0, profile)
}

fn exit(profile: Profile) -> Session {
    Session::new(authenticated().1, profile)
}

fn opened_exit(profile: Profile) -> Session {
    let mut session = exit(profile);
    assert_eq!(session.on_header(V4, 0), Ok(Incoming::Open { destination: V4, data: false }));
    session.attach(V4, 1);
    session
}

#[test]
fn a_key_carries_one_flow_at_a_time_and_other_keys_are_not_its_business() {
    let mut session = entry(Profile::Ours);
    assert_eq!(session.open(V4, 1), Ok(()));
    assert_eq!(session.open(V4, 2), Err(Busy { destination: V4 }));
    assert_eq!(session.open(V6, 3), Ok(()));
    let mapped = Destination::V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7], 443);
    assert!(session.is_free(mapped), "a mapped address is another key");
    assert_eq!((session.flows(), session.keys(), session.discarding()), (2, 2, 0));
    assert_eq!(session.tags().collect::<Vec<_>>(), [(V4, 1), (V6, 3)]);
    assert_eq!(session.on_header(V6, 9), Ok(Incoming::Data(3)));
}

#[test]
fn both_ends_in_either_order_free_the_key_at_once_on_both_sides() {
    for own_first in [false, true] {
        let mut session = entry(Profile::Ours);
        session.open(V4, 1).expect("free");
        for step in [own_first, !own_first] {
            assert!(!session.is_free(V4));
            if step {
                assert!(session.finish(V4));
            } else {
                assert_eq!(session.on_header(V4, 0), Ok(Incoming::End(Some(1))));
            }
        }
        assert_eq!((session.is_free(V4), session.keys()), (true, 0));

        let mut session = opened_exit(Profile::Ours);
        for step in [own_first, !own_first] {
            assert!(!session.is_free(V4));
            if step {
                assert!(session.finish(V4));
            } else {
                assert_eq!(session.on_header(V4, 0), Ok(Incoming::End(Some(1))));
            }
        }
        assert!(session.is_free(V4));
        assert_eq!(session.on_header(V4, 5), Ok(Incoming::Open { destination: V4, data: true }), "the next request is a new flow");
    }
}

#[test]
fn a_flow_that_was_given_up_keeps_its_key_until_the_peers_end() {
    for give_up_after_own_end in [false, true] {
        let mut session = entry(Profile::Ours);
        session.open(V4, 1).expect("free");
        if give_up_after_own_end {
            assert!(session.finish(V4));
        }
        assert_eq!(session.give_up(V4), !give_up_after_own_end, "exactly one end is sent");
        assert!(!session.give_up(V4) && !session.finish(V4));
        let given_up = KeyState { tag: None, own_end: true, peer_end: false, given_up: true };
        assert_eq!((session.state(V4), session.flows(), session.keys(), session.discarding()), (Some(given_up), 0, 1, 1));
        assert_eq!(session.on_header(V4, 70_000), Ok(Incoming::Drop));
        assert_eq!(session.open(V4, 2), Err(Busy { destination: V4 }));
        assert_eq!(session.on_header(V4, 0), Ok(Incoming::End(None)));
        assert_eq!((session.open(V4, 2), session.discarding()), (Ok(()), 0));
    }
}

#[test]
fn giving_up_after_the_peers_end_frees_the_key_at_once() {
    let mut session = opened_exit(Profile::Ours);
    assert_eq!(session.on_header(V4, 0), Ok(Incoming::End(Some(1))));
    assert!(session.give_up(V4));
    assert!(session.is_free(V4));
    assert!(!session.give_up(V4) && !session.finish(V4), "a key that is free has no end to send");
}

#[test]
fn an_exit_that_does_not_want_a_flow_gives_it_up_before_it_has_a_tag() {
    let mut session = exit(Profile::Ours);
    assert_eq!(session.on_header(V6, 10), Ok(Incoming::Open { destination: V6, data: true }));
    assert!(session.give_up(V6));
    assert_eq!(session.on_header(V6, 10), Ok(Incoming::Drop));
    assert_eq!(session.on_header(V6, 0), Ok(Incoming::End(None)));
    assert_eq!(session.keys(), 0);
}

#[test]
fn what_a_correct_peer_never_sends_is_a_fault_in_words() {
    let mut session = entry(Profile::Ours);
    for (length, words) in [
        (0, "server sent a reply of 0 bytes for 192.0.2.7:443: expected one for an open flow"),
        (7, "server sent a reply of 7 bytes for 192.0.2.7:443: expected one for an open flow"),
    ] {
        let fault = session.on_header(V4, length).expect_err("no flow");
        assert_eq!((fault, fault.to_string().as_str()), (SessionFault::ReplyForFreeKey { destination: V4, length }, words));
    }
    for mut session in [
        {
            session.open(V4, 1).expect("free");
            session
        },
        opened_exit(Profile::Ours),
    ] {
        assert_eq!(session.on_header(V4, 0), Ok(Incoming::End(Some(1))));
        let fault = session.on_header(V4, 7).expect_err("data after the end");
        assert_eq!(fault.to_string(), "peer sent 7 bytes for 192.0.2.7:443 after its end of data: expected nothing more");
        let fault = session.on_header(V4, 0).expect_err("a second end");
        assert_eq!(fault.to_string(), "peer sent a second end of data for 192.0.2.7:443: expected one");
    }
    assert_eq!(Busy { destination: V4 }.to_string(), "192.0.2.7:443 is taken on this tunnel: a flow to it needs another tunnel");
}

#[test]
fn to_an_original_server_no_end_is_sent_and_its_end_ends_both_directions() {
    let mut session = entry(Profile::Original);
    assert_eq!(session.on_header(V4, 5), Ok(Incoming::Drop), "a late reply of an old flow");
    assert_eq!(session.on_header(V4, 0), Ok(Incoming::Drop));
    session.open(V4, 1).expect("free");
    assert!(!session.finish(V4), "to them a request of length 0 is a write of nothing");
    assert_eq!(session.on_header(V4, 5), Ok(Incoming::Data(1)));
    assert_eq!(session.on_header(V4, 0), Ok(Incoming::End(Some(1))));
    assert_eq!((session.flows(), session.discarding()), (0, 0));
    assert_eq!(session.open(V4, 2), Err(Busy { destination: V4 }), "it rests: late data of ours may have opened a second connection");
    assert_eq!(session.on_header(V4, 5), Ok(Incoming::Drop));
    assert_eq!(session.on_header(V4, 0), Ok(Incoming::Drop), "the second connection's end");
    assert!(session.release(V4));
    assert_eq!((session.release(V4), session.open(V4, 2)), (false, Ok(())));
    assert!(!session.release(V4), "a flow that lives is not released");
    assert!(!session.give_up(V4));
    assert!(!session.is_free(V4) && session.release(V4) && session.is_free(V4));
}

#[test]
fn to_an_original_inter_server_our_end_frees_the_key_at_once() {
    for give_up in [false, true] {
        let mut session = opened_exit(Profile::Original);
        assert_eq!(session.on_header(V4, 0), Ok(Incoming::Drop), "it never says that a client has gone");
        assert_eq!(session.on_header(V4, 3), Ok(Incoming::Data(1)));
        assert!(if give_up { session.give_up(V4) } else { session.finish(V4) });
        assert!(session.is_free(V4));
        assert_eq!(session.on_header(V4, 3), Ok(Incoming::Open { destination: V4, data: true }), "any request opens");
    }
}

#[test]
fn no_timer_of_one_side_frees_a_key_of_ours() {
    let mut session = entry(Profile::Ours);
    session.open(V4, 1).expect("free");
    assert!(session.give_up(V4));
    assert!(!session.release(V4) && !session.is_free(V4));
}

#[test]
fn a_peer_cannot_make_the_table_grow_without_end() {
    let mut session = exit(Profile::Ours);
    let key = |number: usize| Destination::V4(u32::try_from(number).expect("few").to_be_bytes(), 7);
    for number in 0..V80_KEYS_MAX {
        assert!(matches!(session.on_header(key(number), 0), Ok(Incoming::Open { .. })));
        assert!(session.give_up(key(number)), "refused: it stays taken until the peer's end");
    }
    let fault = session.on_header(key(V80_KEYS_MAX), 0).expect_err("one too many");
    assert_eq!(fault, SessionFault::TooManyKeys { destination: key(V80_KEYS_MAX) });
    assert_eq!(fault.to_string(), "inter-server opened 0.1.0.0:7 while 65536 keys are taken on its tunnel: expected no more");
    assert_eq!(session.on_header(key(5), 0), Ok(Incoming::End(None)));
    assert!(matches!(session.on_header(key(V80_KEYS_MAX), 0), Ok(Incoming::Open { .. })));
}
