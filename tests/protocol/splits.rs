//! Every way to cut a stream gives the same answers and the same frames: all 2^(n−1) splits of short exchanges, all 3-way splits of long
//! ones, byte by byte, and everything glued together. Each test prints how many splits ran.

use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::frame::{FrameReader, seal};
use zhwkprox::protocol::v80::handshake::EntryHandshake;

use crate::support::{SeenFrame, Side, V4, V6, cipher, read_frames};
use crate::transcript::Transcript;

/// Makes a side, and says what it says first.
type Start = Box<dyn Fn(&mut Vec<u8>) -> Side>;

/// One side from its start: what it says and what frames it sees.
struct Run {
    cipher: MessageCipher,
    start: Start,
    said: Vec<u8>,
    frames: Vec<SeenFrame>,
}

impl Run {
    /// Feeds the pieces and compares.
    fn check<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>, which: &dyn Fn() -> String) {
        let (mut said, mut seen, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let mut side = Some((self.start)(&mut said));
        let mut reader = FrameReader::new(self.cipher.clone());
        for piece in pieces {
            let mut input = piece;
            if let Some(handshake) = side {
                side = handshake.handle(&mut input, &mut said).unwrap_or_else(|error| panic!("{}: {error}", which()));
                assert!(side.is_none() || input.is_empty(), "{}", which());
            }
            scratch.clear();
            scratch.extend_from_slice(input);
            read_frames(&mut reader, &mut scratch, &mut seen);
        }
        assert!(side.is_none() && reader.is_between_frames(), "{}", which());
        assert!(said == self.said && seen == self.frames, "{}: said {said:02x?}, saw {seen:?}", which());
    }

    /// All splits of `window` (at most 18 bytes) in a stream whose rest stays whole.
    fn every_split(&self, stream: &[u8], window: std::ops::Range<usize>) -> u64 {
        let places: Vec<usize> = (window.start.max(1)..window.end).collect();
        assert!(places.len() <= 18);
        let masks = 1_u32 << places.len();
        for mask in 0..masks {
            let cuts = || places.iter().enumerate().filter(move |(bit, _)| mask >> bit & 1 == 1).map(|(_, place)| *place);
            self.check(pieces(stream, cuts()), &|| format!("cut at {:?}", cuts().collect::<Vec<_>>()));
        }
        u64::from(masks)
    }

    fn every_3_way_split(&self, stream: &[u8]) -> u64 {
        let mut ran = 0;
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                self.check(pieces(stream, [first, second].into_iter()), &|| format!("cut at {first} and {second}"));
                ran += 1;
            }
        }
        ran
    }

    fn bytes_and_glue(&self, stream: &[u8]) -> u64 {
        self.check(stream.chunks(1), &|| "byte by byte".to_owned());
        self.check(std::iter::once(stream), &|| "in one piece".to_owned());
        2
    }
}

/// The pieces between ascending cuts; one may be empty, as a receive of nothing would be.
pub(crate) fn pieces(stream: &[u8], cuts: impl Iterator<Item = usize>) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    cuts.chain(std::iter::once(stream.len())).map(move |to| {
        let piece = &stream[from..to];
        from = to;
        piece
    })
}

fn get_with_one_byte(cipher: &MessageCipher, destination: zhwkprox::protocol::v80::frame::Destination) -> (Vec<u8>, SeenFrame) {
    let mut payload = *b"G";
    let header = seal(cipher, destination, &mut payload);
    let frame = SeenFrame { destination, length: 1, payload: b"G".to_vec(), complete: true };
    ([header.as_slice(), &payload].concat(), frame)
}

#[test]
fn every_split_of_hello_challenge_verdict_and_one_frame_is_understood_by_the_entry() {
    let mut ran = 0;
    for method in Method::ALL {
        let cipher = cipher(method);
        let (get, frame) = get_with_one_byte(&cipher, V4);
        // hello, a challenge of one byte, the verdict: 18 bytes with the frame, so all 2^17 splits can run.
        let stream = [&[0x80, 1, 0, 1, 0x7f, 1], get.as_slice()].concat();
        assert_eq!(stream.len(), 18);
        let mut reply = [[0x7f].as_slice(), &[9; 16]].concat();
        cipher.begin_encrypt().apply(&mut reply);
        let said = [[0x80, 17].as_slice(), &reply].concat();
        let start = {
            let cipher = cipher.clone();
            move |_: &mut Vec<u8>| Side::Entry(EntryHandshake::start(cipher.clone(), [9; 16]))
        };
        let run = Run { cipher, start: Box::new(start), said, frames: vec![frame] };
        ran += run.every_split(&stream, 0..18) + run.every_3_way_split(&stream) + run.bytes_and_glue(&stream);
    }
    println!("{ran} splits ran (entry, handshake and one frame)");
    assert!(ran >= 3 << 17);
}

#[test]
fn every_split_of_version_reply_and_one_frame_is_understood_by_the_exit() {
    let mut ran = 0;
    for transcript in Transcript::all() {
        let (get, frame) = get_with_one_byte(&transcript.cipher, V4);
        let [version, reply] = [transcript.steps[1].bytes.clone(), transcript.steps[3].bytes.clone()];
        let stream = [version, reply, get].concat();
        assert_eq!(stream.len(), 62);
        let (challenge, cipher) = (transcript.challenge, transcript.cipher.clone());
        let start =
            move |out: &mut Vec<u8>| Side::Exit(zhwkprox::protocol::v80::handshake::ExitHandshake::start(cipher.clone(), challenge, out));
        let run = Run { cipher: transcript.cipher.clone(), start: Box::new(start), said: transcript.answers(true), frames: vec![frame] };
        // The stream is longer than 18 bytes: all splits of its beginning, of the end of the challenge, of the step to the frame.
        for window in [0..18, 26..44, 44..62] {
            ran += run.every_split(&stream, window);
        }
        ran += run.every_3_way_split(&stream) + run.bytes_and_glue(&stream);
    }
    println!("{ran} splits ran (exit, handshake and one frame)");
    assert!(ran >= 9 << 17);
}

#[test]
fn every_split_of_one_frame_is_understood() {
    let mut ran = 0;
    for method in Method::ALL {
        for destination in [V4, V6] {
            let cipher = cipher(method);
            let (get, frame) = get_with_one_byte(&cipher, destination);
            let passed = [0x80, 0, 1, 0x7f, 1];
            let mut reply = [[0x7f].as_slice(), &[9; 16]].concat();
            cipher.begin_encrypt().apply(&mut reply);
            let said = [[0x80, 17].as_slice(), &reply].concat();
            let start = {
                let cipher = cipher.clone();
                move |_: &mut Vec<u8>| Side::Entry(EntryHandshake::start(cipher.clone(), [9; 16]))
            };
            let run = Run { cipher, start: Box::new(start), said, frames: vec![frame] };
            let stream = [&passed, get.as_slice()].concat();
            let end = stream.len();
            ran += run.every_split(&stream, end - 18.min(end)..end) + run.every_3_way_split(&stream) + run.bytes_and_glue(&stream);
        }
    }
    println!("{ran} splits ran (one frame, both kinds of address)");
    assert!(ran >= 6 << 16);
}

#[test]
fn every_3_way_split_of_a_whole_session_is_understood_by_both_sides() {
    let mut ran = 0;
    for transcript in Transcript::all() {
        for exit in [false, true] {
            let stream = transcript.stream(!exit);
            let (cipher, challenge, tail) = (transcript.cipher.clone(), transcript.challenge, transcript.tail);
            let shape = Transcript { cipher, challenge, tail, steps: Vec::new() };
            let run = Run {
                cipher: transcript.cipher.clone(),
                start: Box::new(move |out| shape.start(exit, out)),
                said: transcript.answers(exit),
                frames: transcript.frames(!exit),
            };
            ran += run.every_3_way_split(&stream) + run.bytes_and_glue(&stream);
        }
    }
    println!("{ran} splits ran (whole sessions)");
    assert!(ran > 500_000);
}
