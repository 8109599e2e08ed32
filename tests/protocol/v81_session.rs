//! The streams of 0x81, rule by rule: what ends a tunnel and what only a stream, windows and their growth, GOAWAY, liveness, ids.

use std::time::Duration;

use zhwkprox::protocol::v81::Side;
use zhwkprox::protocol::v81::frame::{goaway, kind, reset};
use zhwkprox::protocol::v81::session::{Fault, Incoming, NotNow, Session};

use crate::v81_support::{NOW, carry, control, data, frame, give, open, open_one, opened, say, session, settings, target};

/// What a fault's GOAWAY is made of names the rule, and is short.
fn ends(told: Result<Option<Incoming>, Fault>, words: &str) {
    let fault = told.expect_err(words);
    let text = fault.to_string();
    assert!(text.contains(words) && text.len() <= 200, "{text:?} does not say {words:?}");
    assert_eq!(fault.code(), goaway::FAULT);
}

#[test]
fn what_only_a_broken_peer_can_send_ends_the_tunnel_and_is_named() {
    let fresh = || opened(65_536, 10);

    let (_, mut exit, stream) = fresh();
    say(&mut exit, kind::FIN, stream, b"").expect("the first");
    ends(say(&mut exit, kind::DATA, stream, b"x"), "DATA on stream 1 behind FIN");
    ends(say(&mut exit, kind::FIN, stream, b""), "FIN on stream 1 behind FIN");

    let (_, mut exit, stream) = fresh();
    say(&mut exit, kind::DATA, stream, &vec![0; 60_000]).expect("within the credit");
    ends(say(&mut exit, kind::DATA, stream, &vec![0; 5_537]), "DATA of 5537 bytes on stream 1: its credit is 5536");
    say(&mut exit, kind::DATA, stream, &vec![0; 5_536]).expect("all of the credit");
    ends(say(&mut exit, kind::DATA, stream, b"x"), "its credit is 0");
    ends(say(&mut exit, kind::DATA, stream, b""), "DATA with a payload of 0 bytes: expected 1 or more");

    let (mut entry, _, stream) = fresh();
    ends(say(&mut entry, kind::WINDOW, stream, &[0; 4]), "WINDOW of 0");
    ends(say(&mut entry, kind::WINDOW, stream, &0x8000_0000_u32.to_le_bytes()), "in all at most 2147483647");
    ends(say(&mut entry, kind::WINDOW, stream, &(i32::MAX as u32 - 65_535).to_le_bytes()), "with a credit of 65536");
    let all = say(&mut entry, kind::WINDOW, stream, &(i32::MAX as u32 - 65_536).to_le_bytes());
    assert_eq!((all, entry.allowance(stream)), (Ok(Some(Incoming::Credit { tag: 1 })), i32::MAX as u32));

    let (_, mut exit, _) = fresh();
    for wrong in [1, 3, u32::MAX] {
        ends(give(&mut exit, &open(wrong)), "expected 2, the last and one more");
    }
    give(&mut exit, &open(2)).expect("the last and one more");

    let (mut entry, mut exit, _) = fresh();
    for (kind, payload) in [(kind::DATA, vec![0]), (kind::FIN, vec![]), (kind::RESET, vec![1]), (kind::WINDOW, vec![1, 0, 0, 0])] {
        ends(say(&mut entry, kind, 2, &payload), "on stream 2: the last that was opened is 1");
        ends(say(&mut exit, kind, 2, &payload), "on stream 2: the last that was opened is 1");
    }
    ends(say(&mut entry, kind::OPENED, 2, &[4, 1, 2, 3, 4, 0, 80]), "OPENED on stream 2");
    ends(say(&mut exit, kind::DATAGRAM, 2, &[4, 1, 2, 3, 4, 0, 80]), "DATAGRAM on stream 2");
    entry.open(&target(), 3).expect("free");
    ends(say(&mut entry, kind::RESET, 2, &[1]), "the last that was opened is 1");

    for mut side in [session(Side::Entry, 65_536, 10), session(Side::Exit, 65_536, 10)] {
        ends(say(&mut side, kind::SETTINGS, 0, b""), "a second SETTINGS");
        say(&mut side, kind::PING, 0, &[1; 8]).expect("the first");
        ends(say(&mut side, kind::PING, 0, &[2; 8]), "a second PING");
        ends(say(&mut side, kind::PONG, 0, &[3; 8]), "a PONG without a PING");
        say(&mut side, kind::GOAWAY, 0, &[0]).expect("the first");
        ends(say(&mut side, kind::GOAWAY, 0, &[2]), "a second GOAWAY");
    }

    let (mut entry, _, stream) = fresh();
    ends(say(&mut entry, kind::OPENED, stream, &[4, 1, 2, 3, 4, 0, 80]), "a second OPENED");

    let (mut entry, mut exit, stream) = fresh();
    ends(give(&mut entry, &open(2)), "OPEN from the server");
    ends(say(&mut exit, kind::OPENED, stream, &[4, 1, 2, 3, 4, 0, 80]), "OPENED from the inter-server");
    ends(say(&mut exit, kind::DATAGRAM, stream, &[4, 1, 2, 3, 4, 0, 80, 1]), "DATAGRAM on stream 1, which carries tcp");
    ends(say(&mut exit, kind::DATA, 0, b"x"), "DATA on stream 0: expected one from 1 on");
    ends(say(&mut exit, kind::OPEN, 0, &[4, 1, 2, 3, 4, 0, 80]), "OPEN on stream 0");
    ends(say(&mut exit, kind::PING, stream, &[0; 8]), "PING on stream 1: expected 0");
    ends(say(&mut exit, kind::PAD, stream, &[0; 8]), "PAD on stream 1");
    ends(say(&mut exit, kind::GOAWAY, stream, &[0]), "GOAWAY on stream 1");
}

#[test]
fn flags_sizes_and_unknown_types_are_faults_and_types_from_0x80_on_are_skipped() {
    let (_, mut exit, stream) = opened(65_536, 10);
    for (kind, stream, payload) in [
        (kind::PAD, 0, vec![]),
        (kind::DATA, stream, vec![1]),
        (kind::FIN, stream, vec![]),
        (kind::RESET, stream, vec![1]),
        (kind::WINDOW, stream, vec![1, 0, 0, 0]),
        (kind::PING, 0, vec![0; 8]),
        (kind::GOAWAY, 0, vec![0]),
    ] {
        ends(give(&mut exit, &frame(kind, 1, stream, &payload)), "with flags 0x01");
    }
    ends(give(&mut exit, &frame(kind::OPEN, 2, 2, &[4, 1, 2, 3, 4, 0, 80])), "OPEN with flags 0x02");
    for (kind, stream, sizes) in [
        (kind::FIN, stream, vec![1, 8]),
        (kind::RESET, stream, vec![0, 2]),
        (kind::WINDOW, stream, vec![0, 3, 5, 8]),
        (kind::PING, 0, vec![0, 7, 9]),
        (kind::PONG, 0, vec![0, 7, 9]),
        (kind::GOAWAY, 0, vec![0, 202]),
    ] {
        for size in sizes {
            ends(say(&mut exit, kind, stream, &vec![1; size]), "with a payload of");
        }
    }
    for payload in [vec![], vec![4; 6], vec![4; 8], vec![6; 18], vec![6; 20], vec![3], vec![3, 1, b'a', 0], vec![3, 1, b'a', b'b', 0, 80]] {
        ends(say(&mut exit, kind::OPEN, 2, &payload), "OPEN with a payload of");
    }
    let mut entry = session(Side::Entry, 65_536, 10);
    entry.open(&target(), 1).expect("free");
    control(&mut entry);
    for payload in [vec![], vec![4; 6], vec![6; 8], vec![3, 1, b'a', 0, 80], vec![5; 7]] {
        ends(say(&mut entry, kind::OPENED, 1, &payload), "OPENED with a payload of");
    }
    for kind in 0x0c..0x80 {
        ends(say(&mut exit, kind, 0, b""), "expected a known one, or one from 0x80 on");
    }
    let before = exit.clone();
    for kind in 0x80..=0xff {
        for stream in [0, 1, 77] {
            assert_eq!(give(&mut exit, &frame(kind, 0xff, stream, b"whatever")), Ok(None));
        }
    }
    say(&mut exit, kind::PAD, 0, &[7; 300]).expect("skipped");
    assert_eq!(exit, before, "what is skipped changes nothing");
}

#[test]
fn nothing_of_the_servers_goes_before_opened_but_reset() {
    for (kind, payload) in [(kind::DATA, vec![0]), (kind::FIN, vec![]), (kind::WINDOW, vec![1, 0, 0, 0]), (kind::DATAGRAM, vec![4; 9])] {
        let mut entry = session(Side::Entry, 65_536, 10);
        entry.open(&target(), 1).expect("free");
        control(&mut entry);
        ends(say(&mut entry, kind, 1, &payload), "on stream 1 before OPENED");
    }
    let mut entry = session(Side::Entry, 65_536, 10);
    entry.open(&target(), 1).expect("free");
    control(&mut entry);
    assert_eq!(say(&mut entry, kind::RESET, 1, &[5]), Ok(Some(Incoming::Reset { tag: 1, code: reset::REFUSED })));

    let mut exit = session(Side::Exit, 16, 10);
    give(&mut exit, &open(1)).expect("the first");
    exit.attach(1, 2);
    assert_eq!((exit.allowance(1), exit.finish(1)), (0, None), "nothing may be sent");
    say(&mut exit, kind::DATA, 1, &[0; 16]).expect("DATA may follow OPEN at once");
    exit.consumed(1, 16, NOW);
    assert!(!exit.has_control(), "no WINDOW before OPENED");
    exit.opened(1, "192.0.2.1:1".parse().expect("an address"));
    let kinds: Vec<_> = control(&mut exit).iter().map(|(header, _)| header.kind).collect();
    assert_eq!((kinds, exit.allowance(1)), (vec![kind::OPENED, kind::WINDOW], 16));
}

#[test]
fn a_closed_stream_is_skipped_whatever_comes_for_it_but_an_open() {
    let (entry, exit, stream) = opened(65_536, 10);
    let close: [fn(&mut Session, u32); 4] = [
        |side, stream| {
            assert!(side.finish(stream).is_some());
            assert_eq!(side.streams(), 1, "half of it is open");
            assert!(matches!(say(side, kind::FIN, stream, b""), Ok(Some(Incoming::Finished { .. }))));
        },
        |side, stream| {
            assert!(matches!(say(side, kind::FIN, stream, b""), Ok(Some(Incoming::Finished { .. }))));
            assert!(side.finish(stream).is_some());
        },
        |side, stream| {
            side.reset(stream, reset::IDLE);
            assert_eq!(control(side), [frame(kind::RESET, 0, stream, &[reset::IDLE])]);
        },
        |side, stream| assert!(matches!(say(side, kind::RESET, stream, &[0x77]), Ok(Some(Incoming::Reset { code: 0x77, .. })))),
    ];
    for close in close {
        for mut side in [entry.clone(), exit.clone()] {
            close(&mut side, stream);
            assert_eq!((side.streams(), side.is_open(stream), side.tags().count()), (0, false, 0));
            let before = side.clone();
            for (kind, payload) in [(kind::DATA, vec![0; 65_000]), (kind::FIN, vec![]), (kind::RESET, vec![1]), (kind::WINDOW, vec![0; 4])]
            {
                for _ in 0..3 {
                    assert_eq!(say(&mut side, kind, stream, &payload), Ok(None));
                }
            }
            side.consumed(stream, 10, NOW);
            side.reset(stream, reset::GENERAL);
            assert_eq!((side.finish(stream), side.reset_in_order(stream), side.allowance(stream)), (None, None, 0));
            assert_eq!(side, before, "nothing changed");
            assert!(!side.has_control(), "nothing is answered");
        }
    }
    let (mut entry, mut exit, stream) = opened(65_536, 10);
    exit.reset(stream, reset::GENERAL);
    ends(give(&mut exit, &open(stream)), "expected 2");
    carry(&mut exit, &mut entry, &[]);
    assert_eq!(say(&mut entry, kind::OPENED, stream, &[4, 1, 2, 3, 4, 0, 80]), Ok(None), "not even a second OPENED");
}

#[test]
fn each_direction_ends_by_itself() {
    let (mut entry, mut exit, stream) = opened(65_536, 10);
    let fin = entry.finish(stream).expect("open");
    assert_eq!(entry.finish(stream), None, "once");
    assert_eq!(entry.allowance(stream), 0);
    assert_eq!(carry(&mut entry, &mut exit, &[(fin, vec![])]), [Incoming::Finished { tag: 2 }]);
    for _ in 0..5 {
        let sent = data(&mut exit, stream, 20_000);
        assert_eq!(carry(&mut exit, &mut entry, &[sent]), [Incoming::Data { tag: 1 }]);
        entry.consumed(stream, 20_000, NOW);
        assert_eq!(carry(&mut entry, &mut exit, &[]), [Incoming::Credit { tag: 2 }], "credit flows behind our FIN");
    }
    let fin = exit.finish(stream).expect("open");
    assert_eq!(carry(&mut exit, &mut entry, &[(fin, vec![])]), [Incoming::Finished { tag: 1 }]);
    assert_eq!((entry.streams(), exit.streams()), (0, 0));
}

#[test]
fn a_reset_in_order_says_that_the_socket_was_reset() {
    let (mut entry, mut exit, stream) = opened(65_536, 10);
    let sent = data(&mut exit, stream, 5);
    let (header, code) = exit.reset_in_order(stream).expect("open");
    let told = carry(&mut exit, &mut entry, &[sent, (header, vec![code])]);
    assert_eq!(told, [Incoming::Data { tag: 1 }, Incoming::Reset { tag: 1, code: reset::SOCKET }]);
    assert_eq!((entry.streams(), exit.streams()), (0, 0));
}

#[test]
fn credit_is_given_back_at_a_quarter_of_the_window_or_64_kib_and_added_up() {
    for (window, due) in [(16_384, 4_096), (262_144, 65_536), (4 << 20, 65_536), (1, 1), (3, 1)] {
        let (mut entry, mut exit, stream) = opened(window, 10);
        let sent = window.min(65_380);
        let frame = data(&mut entry, stream, sent);
        carry(&mut entry, &mut exit, &[frame]);
        let mut left = 0;
        if sent < due {
            let frame = data(&mut entry, stream, due - sent);
            carry(&mut entry, &mut exit, &[frame]);
        }
        if due > 1 {
            exit.consumed(stream, due - 1, NOW);
            left = due - 1;
            assert!(!exit.has_control(), "window {window}: nothing is due yet");
            assert_eq!(exit.held(stream), sent.max(due) - left);
        }
        exit.consumed(stream, 1, NOW);
        left += 1;
        assert!(exit.has_control(), "window {window}: due");
        if sent > due {
            exit.consumed(stream, 1, NOW);
            left += 1;
        }
        let told = control(&mut exit);
        assert_eq!(told, [frame_of_window(stream, left)], "window {window}: one WINDOW for all of it");
        assert_eq!(exit.window(stream), window);
        let before = entry.allowance(stream);
        give(&mut entry, &told[0]).expect("credit");
        assert_eq!(entry.allowance(stream), before + left);
    }
}

fn frame_of_window(stream: u32, credit: u32) -> crate::v81_support::Frame {
    frame(kind::WINDOW, 0, stream, &credit.to_le_bytes())
}

#[test]
fn no_window_is_sent_behind_the_peers_fin() {
    let (mut entry, mut exit, stream) = opened(100, 10);
    let sent = data(&mut entry, stream, 100);
    carry(&mut entry, &mut exit, &[sent]);
    exit.consumed(stream, 50, NOW);
    assert!(exit.has_control());
    let fin = entry.finish(stream).expect("open");
    carry(&mut entry, &mut exit, &[(fin, vec![])]);
    exit.consumed(stream, 50, NOW);
    assert_eq!(control(&mut exit), []);
}

#[test]
fn both_sides_keep_their_own_windows() {
    let mut entry = Session::new(Side::Entry, settings(1_000, 1), settings(2_000, 3), 5_000);
    let mut exit = Session::new(Side::Exit, settings(2_000, 3), settings(1_000, 1), 5_000);
    let streams: Vec<u32> = (0..3).map(|tag| open_one(&mut entry, &mut exit, tag, tag)).collect();
    assert_eq!(entry.open(&target(), 9), Err(NotNow::TooMany), "setting 2 of the exit counts");
    assert_eq!((entry.allowance(streams[0]), exit.allowance(streams[0])), (2_000, 1_000));
    assert_eq!((entry.window(streams[0]), exit.window(streams[0])), (1_000, 2_000));
}

/// Fills the whole window and lets it drain, `took` after the first byte came.
fn fill(entry: &mut Session, exit: &mut Session, stream: u32, from: Duration, took: Duration) {
    let mut left = exit.window(stream);
    while left > 0 {
        let sent = left.min(50_000).min(entry.allowance(stream));
        let (header, payload) = data(entry, stream, sent);
        exit.handle(header, &payload, from).expect("within the credit");
        left -= sent;
    }
    let held = exit.held(stream);
    exit.consumed(stream, held, from + took);
    for frame in control(exit) {
        give(entry, &frame).expect("credit");
    }
}

#[test]
fn a_window_that_is_filled_within_a_round_trip_grows_to_the_maximum_and_no_further() {
    let start = settings(16_384, 10);
    let mut entry = Session::new(Side::Entry, start, start, 0);
    let mut exit = Session::new(Side::Exit, start, start, 100_000);
    let stream = open_one(&mut entry, &mut exit, 1, 2);
    let (rtt, ms) = (Duration::from_millis(80), Duration::from_millis);
    fill(&mut entry, &mut exit, stream, ms(1_000), ms(1));
    assert_eq!(exit.window(stream), 16_384, "no round trip is known");
    exit.set_rtt(rtt);
    fill(&mut entry, &mut exit, stream, ms(2_000), ms(161));
    assert_eq!(exit.window(stream), 16_384, "too slow");
    for (at, window) in [(3_000, 32_768), (4_000, 65_536), (5_000, 100_000), (6_000, 100_000)] {
        fill(&mut entry, &mut exit, stream, ms(at), ms(90));
        assert_eq!((exit.window(stream), exit.held(stream)), (window, 0));
        assert_eq!(entry.allowance(stream), window, "what grew is given");
    }
    let other = open_one(&mut entry, &mut exit, 3, 4);
    assert_eq!(exit.window(other), 16_384, "each stream begins small");
    exit.allow_growth(false);
    fill(&mut entry, &mut exit, other, ms(7_000), ms(1));
    assert_eq!(exit.window(other), 16_384, "growth is forbidden");
    assert_eq!(entry.window(stream), 16_384, "the other direction is another window");
}

#[test]
fn credit_beyond_the_first_is_kept_back_while_it_must_be() {
    let start = settings(16_384, 10);
    let mut entry = Session::new(Side::Entry, start, start, 0);
    let mut exit = Session::new(Side::Exit, start, start, 1 << 20);
    let stream = open_one(&mut entry, &mut exit, 1, 2);
    exit.set_rtt(Duration::from_millis(80));
    fill(&mut entry, &mut exit, stream, NOW, NOW);
    fill(&mut entry, &mut exit, stream, NOW, NOW);
    assert_eq!((exit.window(stream), entry.allowance(stream)), (65_536, 65_536));
    exit.withhold(true);
    fill(&mut entry, &mut exit, stream, NOW, NOW);
    assert_eq!((exit.window(stream), entry.allowance(stream)), (16_384, 16_384), "back to the first");
    for _ in 0..3 {
        fill(&mut entry, &mut exit, stream, NOW, NOW);
        assert_eq!((exit.window(stream), entry.allowance(stream)), (16_384, 16_384), "a stream that drains goes on");
    }
    exit.withhold(false);
    fill(&mut entry, &mut exit, stream, NOW, NOW);
    assert_eq!(exit.window(stream), 32_768, "and grows again");
}

#[test]
fn bytes_that_waited_here_do_not_make_a_window_grow() {
    let start = settings(16_384, 10);
    let mut entry = Session::new(Side::Entry, start, start, 0);
    let mut exit = Session::new(Side::Exit, start, start, 1 << 20);
    let stream = open_one(&mut entry, &mut exit, 1, 2);
    exit.set_rtt(Duration::from_millis(80));
    for second in 1..10 {
        fill(&mut entry, &mut exit, stream, Duration::from_secs(second), Duration::from_millis(900));
        assert_eq!(exit.window(stream), 16_384, "the network was quick, the reader was not");
    }
}

#[test]
fn a_stream_counts_towards_the_limit_until_its_socket_or_dial_is_gone() {
    let (mut entry, mut exit) = (session(Side::Entry, 16_384, 2), session(Side::Exit, 16_384, 2));
    let first = open_one(&mut entry, &mut exit, 1, 1);
    let second = open_one(&mut entry, &mut exit, 2, 2);
    entry.reset(first, reset::CANCELLED);
    let third = entry.open(&target(), 3);
    assert_eq!(third, Err(NotNow::TooMany), "to the peer the first is open until the RESET has left");
    assert_eq!(carry(&mut entry, &mut exit, &[]), [Incoming::Reset { tag: 1, code: reset::CANCELLED }]);
    let third = entry.open(&target(), 3).expect("two are open");
    assert_eq!(carry(&mut entry, &mut exit, &[]), [], "the socket of the first is there");
    assert_eq!(carry(&mut exit, &mut entry, &[]), [Incoming::Reset { tag: 3, code: reset::LIMIT }]);
    assert_eq!((entry.is_open(third), exit.is_open(second), exit.answered()), (false, true, 1));
    exit.release();
    open_one(&mut entry, &mut exit, 4, 4);
}

#[test]
fn what_a_peer_makes_us_owe_is_bounded() {
    let mut exit = session(Side::Exit, 16_384, 3);
    for stream in 1..1_000 {
        give(&mut exit, &frame(kind::OPEN, 0, stream, &[9])).expect("refused");
        say(&mut exit, kind::RESET, stream, &[1]).expect("cancelled");
    }
    assert!(!exit.has_control(), "who cancels is owed nothing");
    for stream in 1_000..1_003 {
        give(&mut exit, &frame(kind::OPEN, 0, stream, &[9])).expect("refused");
    }
    let fault = give(&mut exit, &frame(kind::OPEN, 0, 1_003, &[9])).expect_err("no correct peer has four open");
    assert_eq!((fault.code(), fault), (goaway::TOO_MANY, Fault::TooManyOwed { stream: 1_003, owed: 3 }));

    let (mut entry, mut exit, stream) = opened(16_384, 10);
    let mut owed = 0;
    for _ in 0..100 {
        assert!(entry.allowance(stream) >= 100);
        let sent = data(&mut entry, stream, 100);
        carry(&mut entry, &mut exit, &[sent]);
        exit.consumed(stream, 100, NOW);
        owed += 100;
    }
    assert_eq!(control(&mut exit), [frame_of_window(stream, owed)]);
    for stream in 2..200 {
        give(&mut exit, &open(stream)).expect("the next");
        exit.attach(stream, 1);
        exit.opened(stream, "192.0.2.1:1".parse().expect("an address"));
        say(&mut exit, kind::RESET, stream, &[1]).expect("cancelled");
        exit.release();
    }
    assert!(!exit.has_control(), "an OPENED goes with its stream");
}

#[test]
fn udp_is_not_offered() {
    let (mut entry, mut exit, _) = opened(16_384, 10);
    give(&mut exit, &frame(kind::OPEN, 1, 2, &[4, 0, 0, 0, 0, 0, 0])).expect("an association");
    assert_eq!(exit.answered(), 1);
    say(&mut exit, kind::DATAGRAM, 2, &[4, 192, 0, 2, 7, 0, 53, 1]).expect("it came before our RESET: skipped");
    assert_eq!(control(&mut exit), [frame(kind::RESET, 0, 2, &[reset::NO_UDP])]);
    ends(say(&mut entry, kind::DATAGRAM, 1, &[4, 192, 0, 2, 7, 0, 53, 1]), "DATAGRAM on stream 1");
}

#[test]
fn one_ping_is_out_at_a_time_and_is_answered_with_its_bytes() {
    let (mut entry, mut exit, _) = opened(16_384, 10);
    assert!(entry.ping(*b"01234567") && entry.ping_outstanding());
    assert!(!entry.ping(*b"89abcdef"), "one waits");
    assert_eq!(carry(&mut entry, &mut exit, &[]), []);
    assert!(!entry.ping(*b"89abcdef"), "one is unanswered");
    assert!(!exit.ping_outstanding());
    assert_eq!(carry(&mut exit, &mut entry, &[]), [Incoming::Pong]);
    assert!(!entry.ping_outstanding() && entry.ping(*b"89abcdef"));
    assert_eq!(carry(&mut entry, &mut exit, &[]), []);
    ends(say(&mut entry, kind::PONG, 0, b"01234567"), "a PONG without a PING");
}

#[test]
fn an_open_that_crosses_a_goaway_is_served_and_one_behind_the_answer_is_a_fault() {
    let (mut entry, mut exit, old) = opened(16_384, 10);
    exit.go_away(goaway::STOPPING, "restarting\n\x1b[31m");
    assert!(exit.is_winding() && !exit.is_finished());
    let going = control(&mut exit);
    let crossing = entry.open(&target(), 5).expect("the GOAWAY has not come");
    let waiting = entry.clone();
    assert_eq!(carry(&mut entry, &mut exit, &[]), [Incoming::Open { stream: crossing, target: target() }]);
    exit.attach(crossing, 6);
    let text = "restarting\\n\\x1b[31m".to_owned();
    assert_eq!(give(&mut entry, &going[0]), Ok(Some(Incoming::GoAway { code: goaway::STOPPING, text })));
    assert_eq!(entry.open(&target(), 7), Err(NotNow::Winding));
    assert_eq!(carry(&mut entry, &mut exit, &[]), [Incoming::GoAway { code: goaway::STOPPING, text: String::new() }]);
    ends(give(&mut exit, &open(crossing + 1)), "OPEN of stream 3 behind GOAWAY");
    for stream in [old, crossing] {
        assert!(!entry.is_finished() && !exit.is_finished(), "streams are open");
        exit.reset(stream, reset::GENERAL);
        assert!(!exit.is_finished(), "the RESET waits");
        carry(&mut exit, &mut entry, &[]);
    }
    assert!(entry.is_finished() && exit.is_finished());

    // The same with the OPEN still waiting when the GOAWAY comes: it goes before the answer.
    let mut entry = waiting;
    give(&mut entry, &going[0]).expect("the first");
    let kinds: Vec<_> = control(&mut entry).iter().map(|(header, _)| header.kind).collect();
    assert_eq!(kinds, [kind::OPEN, kind::GOAWAY]);
}

#[test]
fn a_goaway_that_ends_the_tunnel_is_the_last_that_is_sent_and_may_follow_one_that_winds_down() {
    let (mut entry, mut exit, stream) = opened(16_384, 10);
    let other = open_one(&mut entry, &mut exit, 3, 4);
    let sent = data(&mut entry, other, 16_384);
    let third = entry.open(&target(), 5).expect("free");
    assert_eq!(carry(&mut entry, &mut exit, &[sent]).len(), 2);
    exit.attach(third, 6);
    exit.go_away(goaway::STOPPING, "");
    assert_eq!(carry(&mut exit, &mut entry, &[]).len(), 1);
    exit.reset(stream, reset::GENERAL);
    exit.ping([0; 8]);
    exit.go_away(goaway::FAULT, &"x".repeat(300));
    exit.go_away(goaway::KEY, "too late");
    assert!(exit.has_ended() && !exit.is_finished());
    let last = control(&mut exit);
    assert_eq!(last, [frame(kind::GOAWAY, 0, 0, &[&[0x10], "x".repeat(200).as_bytes()].concat())]);
    assert_eq!(give(&mut entry, &last[0]), Ok(Some(Incoming::GoAway { code: goaway::FAULT, text: "x".repeat(200) })));
    assert!(entry.has_ended());
    exit.consumed(other, 16_384, NOW);
    exit.opened(third, "192.0.2.1:1".parse().expect("an address"));
    for (mut side, open) in [(entry, 3), (exit, 2)] {
        assert_eq!(say(&mut side, kind::SETTINGS, 0, b""), Ok(None), "all that follows is skipped");
        assert_eq!((side.ping([1; 8]), control(&mut side)), (false, vec![]), "nothing is said any more");
        assert_eq!(side.tags().count(), open, "the role resets what is open");
        assert_eq!((side.allowance(other), side.finish(other), side.reset_in_order(other)), (0, None, None), "no data goes any more");
    }
}

#[test]
fn a_peers_words_are_escaped_and_cut_for_the_log() {
    let mut entry = session(Side::Entry, 16_384, 10);
    let told = say(&mut entry, kind::GOAWAY, 0, &[&[0x11], [0xff; 200].as_slice()].concat());
    let Ok(Some(Incoming::GoAway { code: 0x11, text })) = told else { panic!("{told:?}") };
    assert_eq!(text, "\\xff".repeat(50));
}

#[test]
fn a_tunnel_winds_down_when_its_ids_are_nearly_used_up_and_old_streams_live_on() {
    let last = u32::MAX - (1 << 16);
    let mut entry = session(Side::Entry, 16_384, 10).with_ids_used(last - 1);
    let mut exit = session(Side::Exit, 16_384, 10).with_ids_used(last - 1);
    let stream = open_one(&mut entry, &mut exit, 1, 2);
    assert_eq!((stream, entry.is_winding()), (last, false));
    assert_eq!(entry.open(&target(), 3), Err(NotNow::NoIds));
    assert_eq!(entry.open(&target(), 3), Err(NotNow::Winding));
    let told = carry(&mut entry, &mut exit, &[]);
    assert!(matches!(told[..], [Incoming::GoAway { code: goaway::NO_IDS, .. }]), "{told:?}");
    let sent = data(&mut exit, stream, 10);
    let told = carry(&mut exit, &mut entry, &[sent]);
    assert!(matches!(told[..], [Incoming::GoAway { code: goaway::STOPPING, .. }, Incoming::Data { tag: 1 }]), "{told:?}");

    let mut exit = session(Side::Exit, 16_384, 10).with_ids_used(u32::MAX - 1);
    give(&mut exit, &open(u32::MAX)).expect("the very last");
    exit.refuse(u32::MAX, reset::GENERAL);
    ends(give(&mut exit, &open(1)), "expected 4294967296");
    ends(give(&mut exit, &open(u32::MAX)), "expected 4294967296");
}

#[test]
fn a_stream_that_is_reset_before_its_open_has_left_is_opened_and_reset() {
    let (mut entry, mut exit, _) = opened(16_384, 10);
    let stream = entry.open(&target(), 5).expect("free");
    entry.reset(stream, reset::CANCELLED);
    let sent = control(&mut entry);
    assert_eq!(sent.iter().map(|(header, _)| (header.kind, header.stream)).collect::<Vec<_>>(), [(kind::OPEN, 2), (kind::RESET, 2)]);
    assert_eq!(give(&mut exit, &sent[0]), Ok(Some(Incoming::Open { stream, target: target() })));
    exit.attach(stream, 6);
    assert_eq!(give(&mut exit, &sent[1]), Ok(Some(Incoming::Reset { tag: 6, code: reset::CANCELLED })));
    assert_eq!(entry.open(&target(), 7), Ok(3));
}

#[test]
fn streams_that_were_closed_in_any_order_leave_nothing_behind_and_do_not_count() {
    let (mut entry, mut exit) = (session(Side::Entry, 16_384, 2), session(Side::Exit, 16_384, 2));
    // Who ends the stream, in turn, and how: true is a FIN.
    let orders = [[(0, true), (1, true)], [(1, true), (0, true)], [(0, true), (1, false)], [(1, true), (0, false)]];
    let resets = [[(0, false), (0, true)], [(1, false), (1, true)]];
    for order in orders.iter().chain(&resets).cycle().take(600) {
        let stream = open_one(&mut entry, &mut exit, 1, 2);
        for (who, fin) in order {
            let (from, to) = if *who == 0 { (&mut entry, &mut exit) } else { (&mut exit, &mut entry) };
            if !fin {
                from.reset(stream, reset::CANCELLED);
            }
            let fin = if *fin { from.finish(stream) } else { None };
            let ordered: Vec<_> = fin.map(|header| (header, vec![])).into_iter().collect();
            carry(from, to, &ordered);
        }
        exit.release();
        assert_eq!((entry.streams(), exit.streams()), (0, 0), "{order:?}");
    }
    assert_eq!(entry, session(Side::Entry, 16_384, 2).with_ids_used(600));
    assert_eq!(exit, session(Side::Exit, 16_384, 2).with_ids_used(600));
}

#[test]
fn data_and_its_credit_cost_no_allocation() {
    let (mut entry, mut exit, stream) = opened(16_384, 10);
    let (payload, mut out) = ([0; 4_096], Vec::with_capacity(100));
    let mut round = || {
        let header = entry.data(stream, 4_096);
        exit.handle(header, &payload, NOW).expect("within the credit");
        exit.consumed(stream, 4_096, NOW);
        out.clear();
        assert!(!exit.poll_control(&mut out, 100) && !out.is_empty());
        let mut walk = zhwkprox::protocol::v81::frame::Frames::new(&out);
        while let Some((header, range)) = walk.next().expect("whole frames") {
            assert_eq!(entry.handle(header, &out[range], NOW), Ok(Some(Incoming::Credit { tag: 1 })));
        }
    };
    round();
    assert_eq!(crate::counting::allocations_of(|| (0..1_000).for_each(|_| round())), 0);
}
