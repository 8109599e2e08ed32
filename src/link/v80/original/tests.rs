//! The author's rules in virtual time.

use super::*;
use crate::crypto::fixed_iv::Method;
use crate::protocol::v80::frame::{FrameReader, Piece};

const PLACE: Destination = Destination::V4([192, 0, 2, 7], 80);
const OTHER: Destination = Destination::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], 443);
const FLOW: Key = Key { index: 3, generation: 1 };

fn cipher() -> MessageCipher {
    MessageCipher::new(Method::Aes128Cfb, b"samplekeytomatch", [7; 16]).unwrap()
}

fn at(milliseconds: u64) -> Time {
    Time::from_nanos(milliseconds * 1_000_000)
}

/// Takes every frame out by `now`, each as soon as it may leave, and gives their lengths of data.
fn drain(original: &mut Original, mut now: Time) -> Vec<u32> {
    let mut lengths = Vec::new();
    while !original.queue.is_empty() {
        if let Some(mut frame) = original.next_frame(now) {
            let mut reader = FrameReader::new(cipher());
            let bytes = frame.as_mut_slice().unwrap();
            let Ok(Some(Piece::Header(header))) = reader.next(bytes, &mut 0) else { panic!("no frame") };
            lengths.push(header.length);
            original.on_sent(now);
        }
        now = now + limits::ORIGINAL_PACE;
    }
    lengths
}

#[test]
fn every_frame_fits_in_one_of_their_reads_and_together_they_are_what_was_sent() {
    for destination in [PLACE, OTHER] {
        for length in [1, 1000, 1001, 1002, 1013, 1014, 5000, 65_392] {
            let sent: Vec<u8> = (0..length).map(|n: usize| u8::try_from(n % 251).unwrap()).collect();
            let mut original = Original::default();
            original.queue(&cipher(), destination, &sent);
            let (mut received, mut bytes) = (Vec::new(), 0);
            let mut now = Time::ZERO;
            while let Some(mut frame) = original.next_frame(now) {
                assert!(frame.len() <= 1024, "{} bytes", frame.len());
                bytes += frame.len();
                let mut reader = FrameReader::new(cipher());
                let (frame, mut used) = (frame.as_mut_slice().unwrap(), 0);
                let mut headers = 0;
                while let Some(piece) = reader.next(frame, &mut used).unwrap() {
                    match piece {
                        Piece::Header(header) => {
                            headers += 1;
                            assert_eq!(header.destination, destination);
                        }
                        Piece::Payload { range, .. } => received.extend_from_slice(&frame[range]),
                    }
                }
                assert!(reader.is_between_frames());
                assert_eq!(headers, 1, "one frame by itself");
                original.on_sent(now);
                now = now + limits::ORIGINAL_PACE;
            }
            assert_eq!(received, sent);
            assert_eq!(original.queued_bytes(), 0);
            assert!(bytes > length);
        }
    }
}

#[test]
fn a_frame_waits_a_millisecond_after_the_one_before_was_taken_and_the_timer_says_so() {
    let mut original = Original::default();
    original.queue(&cipher(), PLACE, &[1; 3000]);
    assert!(original.next_frame(at(5)).is_some());
    assert_eq!(original.deadline(true), None, "while it is on its way nothing has to be done");
    original.on_sent(at(9));
    assert_eq!(original.deadline(false), Some(at(10)));
    assert!(original.next_frame(Time::from_nanos(9_999_999)).is_none());
    assert!(original.next_frame(at(10)).is_some());
}

#[test]
fn the_first_bytes_open_a_flow_and_nothing_else_does() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    assert_eq!(original.deadline(false), Some(at(200)));
    original.queue(&cipher(), PLACE, b"GET /");
    assert!(original.on_time(at(200)).unanswered.is_empty());
    assert_eq!(drain(&mut original, at(200)), [5]);
}

#[test]
fn a_silent_client_has_its_flow_opened_after_200_ms_once() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    original.on_time(at(199));
    assert!(original.next_frame(at(199)).is_none());
    original.on_time(at(200));
    original.on_time(at(201));
    assert_eq!(drain(&mut original, at(201)), [0]);
}

#[test]
fn while_the_client_is_there_a_request_leaves_every_eight_seconds_after_the_last() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    original.queue(&cipher(), PLACE, b"GET /");
    drain(&mut original, at(0));
    original.on_reply(PLACE);
    for second in [8, 16, 24, 32, 400] {
        let now = at(second * 1000);
        assert!(original.deadline(false).unwrap() <= now);
        original.on_time(now);
        assert_eq!(drain(&mut original, now), [0], "at {second} s");
    }
    assert_eq!(original.deadline(false), Some(at(408_000)));
    original.queue(&cipher(), PLACE, b"more");
    drain(&mut original, at(401_000));
    assert_eq!(original.deadline(false), Some(at(409_000)), "data is a request as well");
}

#[test]
fn behind_the_clients_end_a_flow_is_kept_alive_as_long_as_replies_move() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    original.queue(&cipher(), PLACE, b"GET /");
    drain(&mut original, at(0));
    original.on_reply(PLACE);
    original.on_client_end(PLACE);
    assert_eq!(original.deadline(false), None, "he may be gone: their server's own timer ends it");
    original.on_reply(PLACE);
    assert_eq!(original.deadline(false), Some(at(8000)));
    original.on_time(at(8000));
    assert_eq!(drain(&mut original, at(8000)), [0]);
    assert_eq!(original.deadline(false), None);
    original.on_reply(PLACE);
    assert_eq!(original.deadline(false), Some(at(16_000)));
}

#[test]
fn a_flow_that_nothing_answers_is_given_up_30_s_after_its_open() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    original.on_time(at(200));
    drain(&mut original, at(200));
    for second in [9, 18, 27, 30] {
        assert!(original.on_time(at(second * 1000)).unanswered.is_empty(), "at {second} s");
        drain(&mut original, at(second * 1000));
    }
    assert_eq!(original.on_time(at(30_200)).unanswered, [FLOW]);
    // Any answer in time, however small, is one.
    original.place(OTHER, FLOW, at(0));
    original.queue(&cipher(), OTHER, b"x");
    drain(&mut original, at(0));
    original.on_reply(OTHER);
    assert!(!original.rest(PLACE));
    assert!(original.on_time(at(60_000)).unanswered.is_empty());
}

#[test]
fn a_key_rests_25_s_after_its_last_request_and_what_was_queued_for_it_does_not_leave() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    original.queue(&cipher(), PLACE, &[1; 3000]);
    original.queue(&cipher(), OTHER, b"other");
    assert!(original.next_frame(at(1000)).is_some());
    original.on_sent(at(1000));
    assert!(!original.rest(PLACE), "a request of it has left");
    assert_eq!(drain(&mut original, at(1001)), [5], "only the other flow's");
    assert_eq!(original.queued_bytes(), 0);
    assert_eq!(original.deadline(false), Some(at(26_000)));
    assert!(original.on_time(at(25_999)).rested.is_empty());
    let due = original.on_time(at(26_000));
    assert_eq!((due.rested.as_slice(), due.unanswered.len()), ([PLACE].as_slice(), 0));
    assert_eq!(original.deadline(false), None);
}

#[test]
fn a_key_of_which_nothing_has_left_need_not_rest() {
    let mut original = Original::default();
    original.place(PLACE, FLOW, at(0));
    original.queue(&cipher(), PLACE, b"GET /");
    assert!(original.rest(PLACE));
    assert!(original.next_frame(at(500)).is_none(), "it never opens anything over there");
    assert_eq!(original.deadline(false), None);
}

#[test]
fn data_soon_after_our_end_is_told_from_that_of_a_new_flow() {
    let mut original = Original::default();
    original.on_own_end(PLACE, at(0));
    for _ in 0..ENDS_REMEMBERED - 1 {
        original.on_own_end(OTHER, at(1));
    }
    assert_eq!(original.is_late(PLACE, at(30)), Some(Duration::from_millis(30)));
    assert_eq!(original.is_late(PLACE, at(1000)), None);
    original.on_own_end(OTHER, at(1));
    assert_eq!(original.is_late(PLACE, at(30)), None, "only the last ones are remembered");
    assert_eq!(original.ended.len(), ENDS_REMEMBERED);
}
