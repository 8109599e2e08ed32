//! Frames of 0x81: any plaintext as one record, to a session of either side that has a stream or two: no panic, what is taken adds up, and the same
//! frames one record each mean the same.
#![no_main]

use std::time::Duration;

use zhwkprox::protocol::socks5::Target;
use zhwkprox::protocol::v81::Side;
use zhwkprox::protocol::v81::frame::{FRAME_HEADER, Frames, Header};
use zhwkprox::protocol::v81::session::{Incoming, Session};
use zhwkprox::protocol::v81::settings::Settings;

const SETTINGS: Settings = Settings { stream_window: 300, max_streams: 3 };

/// A session with two streams; at the exit one of them is connected.
fn session(side: Side) -> Session {
    let mut session = Session::new(side, SETTINGS, SETTINGS, 1000);
    let mut out = Vec::new();
    for stream in 1..=2 {
        if side == Side::Entry {
            assert_eq!(session.open(&Target::Name("a".to_owned(), 1), u64::from(stream)), Ok(stream));
        } else {
            let open = [2, 0, 7, 0, stream as u8, 0, 0, 0, 4, 192, 0, 2, 7, 0, 80];
            assert!(matches!(give(&mut session, &open).as_slice(), [Ok(Some(Incoming::Open { .. }))]));
            if stream == 2 {
                session.opened(2, "192.0.2.1:1".parse().unwrap());
            }
        }
    }
    session.ping(*b"12345678");
    assert!(!session.poll_control(&mut out, usize::MAX));
    session
}

type Told = Result<Option<Incoming>, String>;

fn give(session: &mut Session, record: &[u8]) -> Vec<Told> {
    let (mut frames, mut told) = (Frames::new(record), Vec::new());
    loop {
        match frames.next() {
            Ok(Some((header, range))) => {
                assert_eq!(Header::decode(&record[range.start - FRAME_HEADER..]), Some(header));
                assert_eq!(range.len(), usize::from(header.length));
                let held = session.held(header.stream);
                let meant = session.handle(header, &record[range.clone()], Duration::ZERO);
                if let Ok(Some(Incoming::Open { stream, .. })) = &meant {
                    session.attach(*stream, u64::from(*stream));
                }
                if let Ok(Some(Incoming::Data { .. })) = &meant {
                    assert_eq!(session.held(header.stream), held + u32::from(header.length));
                }
                let broken = meant.is_err();
                told.push(meant.map_err(|fault| fault.to_string()));
                if broken {
                    return told;
                }
            }
            Ok(None) => return told,
            Err(fault) => {
                told.push(Err(fault.to_string()));
                return told;
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|record: &[u8]| {
    for side in [Side::Entry, Side::Exit] {
        let mut whole = session(side);
        let told = give(&mut whole, record);
        assert!(whole.streams() <= 3 && whole.tags().count() == whole.streams());
        for stream in 0..5 {
            assert!(whole.held(stream) <= whole.window(stream));
        }
        let mut out = Vec::new();
        assert!(!whole.poll_control(&mut out, usize::MAX));
        assert!(out.len() <= 300, "{} bytes are owed", out.len());

        let (mut one_by_one, mut again, mut walk) = (session(side), Vec::new(), Frames::new(record));
        while let Ok(Some((_, range))) = walk.next() {
            again.extend(give(&mut one_by_one, &record[range.start - FRAME_HEADER..range.end]));
            if again.last().is_some_and(Result::is_err) {
                break;
            }
        }
        assert!(told.starts_with(&again) && told.len() <= again.len() + 1);
    }
});
