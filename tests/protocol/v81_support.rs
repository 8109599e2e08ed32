//! What the tests of 0x81's streams share: frames made by hand, sessions that talk, and what they say.

use std::time::Duration;

use zhwkprox::protocol::socks5::Target;
use zhwkprox::protocol::v81::Side;
use zhwkprox::protocol::v81::frame::{FRAME_HEADER, Frames, Header, kind};
use zhwkprox::protocol::v81::session::{Fault, Incoming, Session};
use zhwkprox::protocol::v81::settings::Settings;

/// The clock that stands still.
pub(crate) const NOW: Duration = Duration::ZERO;

/// A frame that was taken apart.
pub(crate) type Frame = (Header, Vec<u8>);

pub(crate) fn settings(stream_window: u32, max_streams: u32) -> Settings {
    Settings { stream_window, max_streams }
}

/// A session whose windows do not grow, with the same settings on both sides.
pub(crate) fn session(side: Side, window: u32, max_streams: u32) -> Session {
    Session::new(side, settings(window, max_streams), settings(window, max_streams), window)
}

pub(crate) fn target() -> Target {
    Target::Name("example.org".to_owned(), 443)
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Frame {
    (Header { kind, flags, length: u16::try_from(payload.len()).expect("fits a frame"), stream }, payload.to_vec())
}

/// The OPEN of a target that can be.
pub(crate) fn open(stream: u32) -> Frame {
    frame(kind::OPEN, 0, stream, &[4, 192, 0, 2, 7, 0, 80])
}

pub(crate) fn give(session: &mut Session, (header, payload): &Frame) -> Result<Option<Incoming>, Fault> {
    session.handle(*header, payload, NOW)
}

/// One frame by hand.
pub(crate) fn say(session: &mut Session, kind: u8, stream: u32, payload: &[u8]) -> Result<Option<Incoming>, Fault> {
    give(session, &frame(kind, 0, stream, payload))
}

/// Takes a plaintext apart.
pub(crate) fn frames(plaintext: &[u8]) -> Vec<Frame> {
    let (mut walk, mut found) = (Frames::new(plaintext), Vec::new());
    if plaintext.is_empty() {
        return found;
    }
    while let Some((header, range)) = walk.next().expect("whole frames") {
        found.push((header, plaintext[range].to_vec()));
    }
    found
}

/// All control frames that wait.
pub(crate) fn control(session: &mut Session) -> Vec<Frame> {
    let mut out = Vec::new();
    assert!(!session.poll_control(&mut out, usize::MAX), "there is room for all");
    frames(&out)
}

/// Both kinds of frame from one side to the other: its control frames, then those given; what they mean there.
pub(crate) fn carry(from: &mut Session, to: &mut Session, ordered: &[Frame]) -> Vec<Incoming> {
    let all = control(from);
    let told = all.iter().chain(ordered).map(|frame| give(to, frame).expect("both sides keep the rules"));
    told.collect::<Vec<_>>().into_iter().flatten().collect()
}

/// A stream that is open on both sides, tag 1 at the entry and 2 at the exit.
pub(crate) fn opened(window: u32, max_streams: u32) -> (Session, Session, u32) {
    let (mut entry, mut exit) = (session(Side::Entry, window, max_streams), session(Side::Exit, window, max_streams));
    let stream = open_one(&mut entry, &mut exit, 1, 2);
    (entry, exit, stream)
}

pub(crate) fn open_one(entry: &mut Session, exit: &mut Session, entry_tag: u64, exit_tag: u64) -> u32 {
    let stream = entry.open(&target(), entry_tag).expect("there is room");
    assert_eq!(carry(entry, exit, &[]), [Incoming::Open { stream, target: target() }]);
    exit.attach(stream, exit_tag);
    let bound = "198.51.100.1:4000".parse().expect("an address");
    exit.opened(stream, bound);
    assert_eq!(carry(exit, entry, &[]), [Incoming::Opened { tag: entry_tag, bound }]);
    stream
}

/// DATA of as many zeros.
pub(crate) fn data(session: &mut Session, stream: u32, bytes: u32) -> Frame {
    let header = session.data(stream, bytes);
    assert_eq!((header.kind, u32::from(header.length), header.encode().len()), (kind::DATA, bytes, FRAME_HEADER));
    (header, vec![0; bytes as usize])
}
