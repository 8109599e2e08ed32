//! What the tests of 0x81's channel share: keys, both sides of a handshake, and a wire between them that can be looked at.

use std::sync::Arc;

use zhwkprox::crypto::aead::Method;
use zhwkprox::protocol::v81::handshake::{Authenticated, EntryHandshake, ExitHandshake, HandshakeError, Keys, Progress, Psk};
use zhwkprox::protocol::v81::record::{RecordReader, RecordWriter};
use zhwkprox::protocol::v81::settings::Settings;

pub(crate) const NONCE: [u8; 32] = [0x5a; 32];
pub(crate) const AT_EXIT: Settings = Settings { stream_window: 300_000, max_streams: 7 };
pub(crate) const AT_ENTRY: Settings = Settings { stream_window: 16_384, max_streams: 1024 };

pub(crate) fn psk(seed: u8) -> Psk {
    Psk::new(&[seed; 32])
}

pub(crate) fn keys(named: &[(&str, u8)]) -> Arc<Keys> {
    Arc::new(Keys::new(named.iter().map(|(name, seed)| (Arc::from(*name), psk(*seed)))).expect("they go together"))
}

/// Either side, for tests that do the same to both.
#[derive(Debug)]
pub(crate) enum Side {
    Exit(ExitHandshake),
    Entry(EntryHandshake),
}

impl Side {
    pub(crate) fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, HandshakeError> {
        Ok(match self {
            Self::Exit(exit) => match exit.handle(input, out)? {
                Progress::More(exit) => Progress::More(Self::Exit(exit)),
                Progress::Done(authenticated) => Progress::Done(authenticated),
            },
            Self::Entry(entry) => match entry.handle(input, out)? {
                Progress::More(entry) => Progress::More(Self::Entry(entry)),
                Progress::Done(authenticated) => Progress::Done(authenticated),
            },
        })
    }

    pub(crate) fn closed(&self) -> HandshakeError {
        match self {
            Self::Exit(exit) => exit.closed(),
            Self::Entry(entry) => entry.closed(),
        }
    }

    pub(crate) fn awaits(&self) -> &'static str {
        match self {
            Self::Exit(exit) => exit.awaits(),
            Self::Entry(entry) => entry.awaits(),
        }
    }
}

/// A server with the key of `seed`; the same bytes every time.
pub(crate) fn exit(seed: u8, methods: &[Method], out: &mut Vec<u8>) -> Side {
    Side::Exit(ExitHandshake::start_with_known_ephemeral(&psk(seed), methods, AT_EXIT, [0x11; 32], out))
}

/// An inter-server; the same bytes every time.
pub(crate) fn entry(keys: Arc<Keys>, allowed: &[Method], nonce: [u8; 32]) -> Side {
    Side::Entry(EntryHandshake::start_with_known_ephemeral(keys, allowed, nonce, AT_ENTRY, [0x22; 32]))
}

/// How a meeting ended for each side, and every byte that passed.
pub(crate) struct Met {
    pub(crate) exit: Result<Authenticated, HandshakeError>,
    pub(crate) entry: Result<Authenticated, HandshakeError>,
    pub(crate) to_entry: Vec<u8>,
    pub(crate) to_exit: Vec<u8>,
}

/// One end of the wire: a side until it has an outcome.
struct End {
    side: Option<Side>,
    outcome: Option<Result<Authenticated, HandshakeError>>,
}

impl End {
    fn take(&mut self, arrived: &[u8], out: &mut Vec<u8>) {
        let Some(side) = self.side.take() else { return };
        let mut input = arrived;
        match side.handle(&mut input, out) {
            Ok(Progress::More(side)) => self.side = Some(side),
            Ok(Progress::Done(authenticated)) => self.outcome = Some(Ok(authenticated)),
            Err(error) => self.outcome = Some(Err(error)),
        }
        assert!(input.is_empty() || self.side.is_none(), "all is used before more is asked for");
    }

    /// The other end has closed.
    fn close(&mut self) {
        if let Some(side) = self.side.take() {
            self.outcome = Some(Err(side.closed()));
        }
    }
}

/// Lets both talk until nothing moves; one that fails closes. `to_entry` is what the exit has said at its start.
pub(crate) fn meet(exit: Side, to_entry: Vec<u8>, entry: Side) -> Met {
    let (mut exit, mut entry) = (End { side: Some(exit), outcome: None }, End { side: Some(entry), outcome: None });
    let (mut all_to_entry, mut all_to_exit) = (Vec::new(), Vec::new());
    let (mut to_entry, mut to_exit) = (to_entry, Vec::new());
    while !to_entry.is_empty() || !to_exit.is_empty() {
        let arrived = std::mem::take(&mut to_entry);
        all_to_entry.extend_from_slice(&arrived);
        entry.take(&arrived, &mut to_exit);
        let arrived = std::mem::take(&mut to_exit);
        all_to_exit.extend_from_slice(&arrived);
        exit.take(&arrived, &mut to_entry);
    }
    if matches!(exit.outcome, Some(Err(_))) {
        entry.close();
    }
    if matches!(entry.outcome, Some(Err(_))) {
        exit.close();
    }
    let outcome = |end: End| end.outcome.expect("nobody is left waiting for an open wire");
    Met { exit: outcome(exit), entry: outcome(entry), to_entry: all_to_entry, to_exit: all_to_exit }
}

/// Both sides of a tunnel with one key, offered this method.
pub(crate) fn tunnel(method: Method) -> Met {
    let mut hello = Vec::new();
    let exit = exit(7, &[method], &mut hello);
    meet(exit, hello, entry(keys(&[("berlin", 7)]), &Method::ALL, NONCE))
}

/// A whole record.
pub(crate) fn record(writer: &mut RecordWriter, plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = plaintext.to_vec();
    let (header, tag) = writer.seal(&mut sealed);
    [header.as_slice(), &sealed, &tag].concat()
}

/// Opens every record of a stream: what they held, and the error at the end, if there is one. Bytes of a record that is not whole are left.
pub(crate) fn open_all(
    reader: &mut RecordReader,
    mut stream: &mut [u8],
) -> (Vec<Vec<u8>>, Option<zhwkprox::protocol::v81::record::RecordError>) {
    let mut plaintexts = Vec::new();
    loop {
        let whole = match reader.whole(stream) {
            Err(error) => return (plaintexts, Some(error)),
            Ok(Some(whole)) if whole <= stream.len() => whole,
            Ok(_) => return (plaintexts, None),
        };
        let (record, rest) = stream.split_at_mut(whole);
        match reader.open(record) {
            Ok(plaintext) => plaintexts.push(record[plaintext].to_vec()),
            Err(error) => return (plaintexts, Some(error)),
        }
        stream = rest;
    }
}
