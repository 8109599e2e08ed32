//! Records: `length (4, LE) | ciphertext (length − 16) | tag (16)`, opened and sealed where they lie, one reader and one writer per tunnel.
//!
//! What always holds: the length field is bound to the record as associated data, so no byte of a record can change unseen; a record that is
//! lost, repeated or out of turn does not verify; after a record that was refused the reader refuses all.

use std::fmt;
use std::ops::Range;

use crate::crypto::aead::{Opener, Sealer, TAG_BYTES, Unauthentic};
use crate::limits::{SLOT_BYTES, SLOT_HEADROOM};

/// Bytes of the length field.
pub const RECORD_HEADER: usize = 4;
/// Bytes of the tag.
pub const TAG: usize = TAG_BYTES;
/// Least that a length field may say: one frame without payload, and the tag.
pub const RECORD_MIN: usize = 24;
/// Most that it may say: the whole record fits one slot behind its headroom.
pub const RECORD_MAX: usize = 65_404;
/// Most that it may say in the first record of each side, which holds settings and nothing else.
pub const FIRST_RECORD_MAX: usize = 256;
/// Least that a record carries.
pub const PLAINTEXT_MIN: usize = RECORD_MIN - TAG;
/// Most that a record carries.
pub const PLAINTEXT_MAX: usize = RECORD_MAX - TAG;

const _: () = assert!(RECORD_HEADER + RECORD_MAX == SLOT_BYTES - SLOT_HEADROOM);

/// Why a record ends its tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Its length field says what none may say.
    #[error("peer's record has length {got}: expected {RECORD_MIN} to {RECORD_MAX}")]
    Length {
        /// The length that came.
        got: u32,
    },
    /// The same, of the first record.
    #[error("peer's first record has length {got}: expected {RECORD_MIN} to {FIRST_RECORD_MAX}")]
    FirstLength {
        /// The length that came.
        got: u32,
    },
    /// The bytes are not those of one whole record.
    #[error("got {got} bytes for a record of {expected}")]
    NotWhole {
        /// Bytes that were given.
        got: usize,
        /// Bytes that its length field announces.
        expected: usize,
    },
    /// It is not what the peer sealed next.
    #[error("peer's record does not verify: changed on the way, out of order, or not from our peer")]
    Unauthentic,
    /// One before it was refused.
    #[error("a record before this one was refused")]
    AfterRefused,
}

/// Opens what the peer sends.
///
/// ```
/// use zhwkprox::crypto::aead::{Method, Opener, Sealer};
/// use zhwkprox::protocol::v81::record::{RecordReader, RecordWriter};
///
/// let secret = [7; 32]; // a handshake's
/// let mut writer = RecordWriter::new(Sealer::new(Method::Aes128Gcm, &secret));
/// let mut reader = RecordReader::new(Opener::new(Method::Aes128Gcm, &secret));
///
/// let mut plaintext = *b"whole frames";
/// let (header, tag) = writer.seal(&mut plaintext);
/// let mut stream = [header.as_slice(), &plaintext, &tag, b"what follows"].concat();
///
/// assert_eq!(reader.whole(&stream[..3])?, None, "not even a length");
/// let whole = reader.whole(&stream)?.expect("the length is there");
/// let record = &mut stream[..whole];
/// let plaintext = reader.open(record)?;
/// assert_eq!(&record[plaintext], b"whole frames");
/// # Ok::<(), zhwkprox::protocol::v81::record::RecordError>(())
/// ```
pub struct RecordReader {
    opener: Opener,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    First,
    Later,
    Refused,
}

impl RecordReader {
    /// Begins with the peer's first record. Tunnels get theirs from a handshake.
    #[must_use]
    pub const fn new(opener: Opener) -> Self {
        Self { opener, state: State::First }
    }

    /// Bytes that the record beginning in `bytes` has in all, its length field included; `None` while fewer than four are there.
    ///
    /// # Errors
    /// No record may be of that length, or one before was refused; the tunnel ends.
    pub fn whole(&self, bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        if self.state == State::Refused {
            return Err(RecordError::AfterRefused);
        }
        let Some(header) = bytes.first_chunk::<RECORD_HEADER>() else { return Ok(None) };
        let got = u32::from_le_bytes(*header);
        let first = self.state == State::First;
        let most = if first { FIRST_RECORD_MAX } else { RECORD_MAX };
        match usize::try_from(got) {
            Ok(length) if (RECORD_MIN..=most).contains(&length) => Ok(Some(RECORD_HEADER + length)),
            _ if first => Err(RecordError::FirstLength { got }),
            _ => Err(RecordError::Length { got }),
        }
    }

    /// Opens a whole record in place; where in `record` its plaintext is.
    ///
    /// # Errors
    /// It does not verify, or is not a whole record: nothing of it may be used (what was enciphered is overwritten), and the tunnel ends.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Range<usize>, RecordError> {
        let opened = self.open_next(record);
        self.state = if opened.is_ok() { State::Later } else { State::Refused };
        opened
    }

    fn open_next(&mut self, record: &mut [u8]) -> Result<Range<usize>, RecordError> {
        let expected = self.whole(record)?.unwrap_or(RECORD_HEADER + RECORD_MIN);
        if record.len() != expected {
            return Err(RecordError::NotWhole { got: record.len(), expected });
        }
        let (header, sealed) = record.split_at_mut(RECORD_HEADER);
        let (ciphertext, tag) = sealed.split_at_mut(expected - RECORD_HEADER - TAG);
        self.opener.open(header, ciphertext, tag).map_err(|Unauthentic| RecordError::Unauthentic)?;
        Ok(RECORD_HEADER..expected - TAG)
    }
}

/// Seals what we send.
pub struct RecordWriter {
    sealer: Sealer,
}

impl RecordWriter {
    /// Begins with our first record. Tunnels get theirs from a handshake.
    #[must_use]
    pub const fn new(sealer: Sealer) -> Self {
        Self { sealer }
    }

    /// Enciphers in place; gives the length field to be put in front and the tag to be put behind. The plaintext is whole frames:
    /// [`PLAINTEXT_MIN`] to [`PLAINTEXT_MAX`] bytes. Records must be sent in the order in which they were sealed.
    pub fn seal(&mut self, plaintext: &mut [u8]) -> ([u8; RECORD_HEADER], [u8; TAG]) {
        debug_assert!((PLAINTEXT_MIN..=PLAINTEXT_MAX).contains(&plaintext.len()), "a record of {} bytes", plaintext.len());
        let length = u32::try_from(plaintext.len() + TAG).expect("a record is shorter than 64 KiB");
        let header = length.to_le_bytes();
        let tag = self.sealer.seal(&header, plaintext);
        (header, tag)
    }

    /// Seals `out[from..]` where it lies and closes the gap: what follows `from` is a whole record then.
    pub(super) fn seal_from(&mut self, out: &mut Vec<u8>, from: usize) {
        let (header, tag) = self.seal(&mut out[from..]);
        out.splice(from..from, header);
        out.extend_from_slice(&tag);
    }
}

impl fmt::Debug for RecordReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordReader({:?})", self.opener)
    }
}

impl fmt::Debug for RecordWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordWriter({:?})", self.sealer)
    }
}
