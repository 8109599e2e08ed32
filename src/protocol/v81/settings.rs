//! Settings: what a side accepts, said in its first record, alone, once. A frame `01 | 00 | length (2, LE) | 0 (4)` and pairs of
//! `id (2, LE) | value (4, LE)`.
//!
//! What always holds: settings that were decoded lie within the protocol's bounds.

use super::Side;
use super::record::{FIRST_RECORD_MAX, TAG};

/// Type of the frame.
const TYPE: u8 = 0x01;
/// Bytes of a frame's header.
const HEADER: usize = 8;
/// Bytes of one setting.
const PAIR: usize = 6;
/// Id of [`Settings::stream_window`].
const STREAM_WINDOW: u16 = 1;
/// Id of [`Settings::max_streams`].
const MAX_STREAMS: u16 = 2;

/// Least credit that a stream may start with.
pub const STREAM_WINDOW_MIN: u32 = 16_384;
/// Most credit that a stream may ever have.
pub const STREAM_WINDOW_MAX: u32 = i32::MAX as u32;
/// The credit that a stream starts with where nothing is said.
pub const STREAM_WINDOW_DEFAULT: u32 = 262_144;
/// Streams that may be open at once where nothing is said.
pub const MAX_STREAMS_DEFAULT: u32 = 1024;

const _: () = assert!(HEADER + 2 * PAIR + TAG <= FIRST_RECORD_MAX);

/// What one side accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Credit that each stream starts with for data towards this side.
    pub stream_window: u32,
    /// How many streams may be open at once. The server's word; an inter-server's is neither sent nor read.
    pub max_streams: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { stream_window: STREAM_WINDOW_DEFAULT, max_streams: MAX_STREAMS_DEFAULT }
    }
}

/// Why a first record ends its tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SettingsError {
    /// The record holds another frame.
    #[error("peer's first frame has type {got:#04x}: expected SETTINGS, {TYPE:#04x}")]
    Type {
        /// The type that came.
        got: u8,
    },
    /// Its flags are not zero.
    #[error("peer's SETTINGS has flags {got:#04x}: expected none")]
    Flags {
        /// The flags that came.
        got: u8,
    },
    /// It is on a stream.
    #[error("peer's SETTINGS is on stream {got}: expected 0")]
    Stream {
        /// The stream that came.
        got: u32,
    },
    /// It does not fill its record, or more does.
    #[error("peer's SETTINGS has a payload of {got} bytes in a record with room for {room}: expected both to agree")]
    NotAlone {
        /// Bytes that the header announces.
        got: usize,
        /// Bytes behind the header.
        room: usize,
    },
    /// Its payload is not made of pairs.
    #[error("peer's SETTINGS has a payload of {got} bytes: expected a multiple of {PAIR}")]
    Size {
        /// Bytes of the payload.
        got: usize,
    },
    /// Setting 1 is out of bounds.
    #[error("peer's setting 1 (credit of a stream) is {got}: expected {STREAM_WINDOW_MIN} to {STREAM_WINDOW_MAX}")]
    StreamWindow {
        /// The value that came.
        got: u32,
    },
    /// Setting 2 lets nothing be opened.
    #[error("peer's setting 2 (streams at once) is 0: expected at least 1")]
    NoStreams,
    /// Setting 2 comes from the side that opens streams.
    #[error("inter-server sent setting 2 (streams at once): expected it from servers only")]
    NotForInterServers,
}

impl Settings {
    /// Appends the SETTINGS frame of side `from`.
    pub fn encode(&self, from: Side, out: &mut Vec<u8>) {
        let pairs: &[(u16, u32)] = match from {
            Side::Exit => &[(STREAM_WINDOW, self.stream_window), (MAX_STREAMS, self.max_streams)],
            Side::Entry => &[(STREAM_WINDOW, self.stream_window)],
        };
        let [low, high, ..] = (pairs.len() * PAIR).to_le_bytes();
        out.extend_from_slice(&[TYPE, 0, low, high, 0, 0, 0, 0]);
        for (id, value) in pairs {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// Reads what a first record of side `from` holds: a SETTINGS frame and nothing else. What is not said has its default.
    ///
    /// # Errors
    /// It holds something else, or a value that is out of bounds; the tunnel ends.
    pub fn decode(plaintext: &[u8], from: Side) -> Result<Self, SettingsError> {
        let Some((header, payload)) = plaintext.split_first_chunk::<HEADER>() else {
            return Err(SettingsError::NotAlone { got: 0, room: 0 });
        };
        let [kind, flags, low, high, stream @ ..] = *header;
        let (length, stream) = (usize::from(u16::from_le_bytes([low, high])), u32::from_le_bytes(stream));
        if kind != TYPE {
            return Err(SettingsError::Type { got: kind });
        }
        if flags != 0 {
            return Err(SettingsError::Flags { got: flags });
        }
        if stream != 0 {
            return Err(SettingsError::Stream { got: stream });
        }
        if length != payload.len() {
            return Err(SettingsError::NotAlone { got: length, room: payload.len() });
        }
        Self::decode_pairs(payload, from)
    }

    fn decode_pairs(payload: &[u8], from: Side) -> Result<Self, SettingsError> {
        let (pairs, rest) = payload.as_chunks::<PAIR>();
        if !rest.is_empty() {
            return Err(SettingsError::Size { got: payload.len() });
        }
        let mut settings = Self::default();
        for &[id_low, id_high, a, b, c, d] in pairs {
            let value = u32::from_le_bytes([a, b, c, d]);
            match (u16::from_le_bytes([id_low, id_high]), from) {
                (STREAM_WINDOW, _) => settings.stream_window = value,
                (MAX_STREAMS, Side::Exit) => settings.max_streams = value,
                (MAX_STREAMS, Side::Entry) => return Err(SettingsError::NotForInterServers),
                // One that came later than this program: nobody relies on it.
                _ => {}
            }
        }
        // Of a repeated setting only the last counts, so nothing is judged before the end.
        if !(STREAM_WINDOW_MIN..=STREAM_WINDOW_MAX).contains(&settings.stream_window) {
            return Err(SettingsError::StreamWindow { got: settings.stream_window });
        }
        if settings.max_streams == 0 {
            return Err(SettingsError::NoStreams);
        }
        Ok(settings)
    }
}
