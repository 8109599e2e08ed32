//! What the tests share: hex, ciphers, and both sides of a handshake.

use std::mem::take;

use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::frame::{Destination, FrameReader, Piece};
use zhwkprox::protocol::v80::handshake::{Authenticated, EntryHandshake, ExitHandshake, HandshakeError, Progress};

pub(crate) const IV: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
pub(crate) const V4: Destination = Destination::V4([192, 0, 2, 7], 443);
pub(crate) const V6: Destination = Destination::V6([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 8080);

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "odd number of hex digits");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits")).collect()
}

pub(crate) fn key_of(method: Method) -> Vec<u8> {
    match method {
        Method::Aes128Ctr | Method::Aes128Cfb => b"samplekeytomatch".to_vec(),
        Method::Aes256Ctr => (0..32).collect(),
    }
}

pub(crate) fn cipher(method: Method) -> MessageCipher {
    MessageCipher::new(method, &key_of(method), IV).expect("the key fits")
}

/// A whole handshake over nothing but vectors: the proofs of both sides.
pub(crate) fn authenticated() -> (Authenticated, Authenticated) {
    let cipher = cipher(Method::Aes128Ctr);
    let (mut to_entry, mut to_exit) = (Vec::new(), Vec::new());
    let mut exit = ExitHandshake::start(cipher.clone(), [7; 32], &mut to_entry);
    let mut entry = EntryHandshake::start(cipher, [8; 16]);
    // Three rounds: hello and version, challenge and reply, verdict.
    for _ in 0..2 {
        entry = match entry.handle(&mut take(&mut to_entry).as_slice(), &mut to_exit).expect("the exit keeps the protocol") {
            Progress::More(entry) => entry,
            Progress::Done(_) => panic!("passed without a verdict"),
        };
        exit = match exit.handle(&mut take(&mut to_exit).as_slice(), &mut to_entry).expect("the entry keeps the protocol") {
            Progress::More(exit) => exit,
            Progress::Done(exit) => match entry.handle(&mut take(&mut to_entry).as_slice(), &mut to_exit) {
                Ok(Progress::Done(entry)) => return (entry, exit),
                other => panic!("the verdict was good: {other:?}"),
            },
        };
    }
    panic!("no verdict after the reply");
}

/// Either side, for tests that do the same to both.
pub(crate) enum Side {
    Exit(ExitHandshake),
    Entry(EntryHandshake),
}

impl Side {
    /// `None`: passed.
    pub(crate) fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<Self>, HandshakeError> {
        Ok(match self {
            Self::Exit(exit) => match exit.handle(input, out)? {
                Progress::More(exit) => Some(Self::Exit(exit)),
                Progress::Done(_) => None,
            },
            Self::Entry(entry) => match entry.handle(input, out)? {
                Progress::More(entry) => Some(Self::Entry(entry)),
                Progress::Done(_) => None,
            },
        })
    }
}

/// What a reader saw, with the payload's cuts taken out again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SeenFrame {
    pub(crate) destination: Destination,
    pub(crate) length: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) complete: bool,
}

/// Reads `bytes` to their end and adds what stands there to `seen`.
pub(crate) fn read_frames(reader: &mut FrameReader, bytes: &mut [u8], seen: &mut Vec<SeenFrame>) {
    let mut at = 0;
    while let Some(piece) = reader.next(bytes, &mut at).expect("frames of ours") {
        match piece {
            Piece::Header(header) => seen.push(SeenFrame {
                destination: header.destination,
                length: header.length,
                payload: Vec::new(),
                complete: header.length == 0,
            }),
            Piece::Payload { destination, range, last } => {
                let frame = seen.last_mut().expect("a header comes first");
                assert!(!frame.complete && frame.destination == destination && !range.is_empty() && range.end == at);
                frame.payload.extend_from_slice(&bytes[range]);
                frame.complete = last;
                assert_eq!(last, frame.payload.len() == usize::try_from(frame.length).expect("fits"));
            }
        }
    }
    assert_eq!(at, bytes.len(), "every byte is used before more is asked for");
}
