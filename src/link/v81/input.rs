//! Received bytes of a tunnel, as records that are whole: each is opened where it lies, and what is missing of one is received right
//! behind the part that is there.
//!
//! ```text
//!   received   | record | record | part |                  opened in place; then, with nothing moved but the part:
//!   into       | part ░░░░░░░░ rest of the record |        at most as much as is missing
//! ```
//!
//! What always holds between calls: a chunk that is taken in begins with a record; of a record that does not verify, and of what comes
//! behind it, nothing comes out.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::LinkFault;
use crate::limits;
use crate::protocol::v81::frame::{Frames, Header};
use crate::protocol::v81::record::{RecordError, RecordReader};
use crate::protocol::v81::session::Fault;
use crate::shard::buffers::Chunk;
use crate::shard::core::Core;
use crate::shard::slab::Key;
use crate::shard::time::Time;

/// Most that a receive takes: the largest record.
#[expect(clippy::cast_possible_truncation, reason = "it fits a slot")]
const RECORD_BYTES: u32 = limits::RECORD_BYTES_MAX as u32;

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    reader: RecordReader,
    chunk: Chunk,
    /// The plaintexts in the chunk that have not been walked to their end.
    plaintexts: VecDeque<Range<usize>>,
    /// Where in the first of them the next frame begins.
    at: usize,
    /// Where in the chunk the record begins that is not whole.
    part: usize,
    /// Since when it has been waited for.
    part_since: Option<Time>,
    /// How many of its bytes are in the chunk that is being received into.
    held: usize,
    is_receiving: bool,
    fault: Option<RecordError>,
}

impl Input {
    pub(super) fn new(reader: RecordReader) -> Self {
        Self {
            reader,
            chunk: Chunk::default(),
            plaintexts: VecDeque::new(),
            at: 0,
            part: 0,
            part_since: None,
            held: 0,
            is_receiving: false,
            fault: None,
        }
    }

    /// Opens the records that are whole.
    pub(super) fn take_in(&mut self, mut chunk: Chunk, now: Time) {
        self.is_receiving = false;
        let bytes = chunk.as_mut_slice().expect("bytes from the tunnel's socket are in a slot that nobody shares");
        let mut at = 0;
        loop {
            match self.reader.whole(&bytes[at..]) {
                Ok(Some(length)) if length <= bytes.len() - at => match self.reader.open(&mut bytes[at..at + length]) {
                    Ok(plaintext) => {
                        self.plaintexts.push_back(at + plaintext.start..at + plaintext.end);
                        at += length;
                    }
                    Err(error) => {
                        self.fault = Some(error);
                        break;
                    }
                },
                Ok(_) => break,
                Err(error) => {
                    self.fault = Some(error);
                    break;
                }
            }
        }
        self.part = at;
        self.part_since = match self.part_since {
            // The same record as before, still not whole.
            Some(since) if at == 0 => Some(since),
            _ => (at < bytes.len()).then_some(now),
        };
        self.chunk = chunk;
    }

    /// The next frame, and where in the chunk its payload is.
    pub(super) fn next_frame(&mut self) -> Result<Option<(Header, Range<usize>)>, LinkFault> {
        while let Some(plaintext) = self.plaintexts.front().cloned() {
            let mut frames = Frames::starting_at(&self.chunk.as_slice()[plaintext.clone()], self.at);
            if let Some((header, payload)) = frames.next().map_err(Fault::from)? {
                self.at = payload.end;
                return Ok(Some((header, plaintext.start + payload.start..plaintext.start + payload.end)));
            }
            self.at = 0;
            self.plaintexts.pop_front();
        }
        self.fault.take().map_or(Ok(None), |fault| Err(fault.into()))
    }

    /// A payload that [`Input::next_frame`] has named.
    pub(super) fn payload(&self, range: Range<usize>) -> &[u8] {
        &self.chunk.as_slice()[range]
    }

    /// The same as a chunk, in place.
    pub(super) fn part(&self, range: Range<usize>) -> Chunk {
        self.chunk.part(range.start, range.end)
    }

    /// Receives more, behind a part of a record if there is one. It never waits for a slot: the credit that lets go of others' is in it.
    pub(super) fn receive(&mut self, core: &mut Core, socket: Key) {
        if self.is_receiving || !self.plaintexts.is_empty() {
            return;
        }
        self.is_receiving = true;
        let chunk = std::mem::take(&mut self.chunk);
        let part = &chunk.as_slice()[self.part..];
        self.held = part.len();
        if part.is_empty() {
            core.receive_without_fail(socket, RECORD_BYTES);
            return;
        }
        let missing = match self.reader.whole(part) {
            Ok(Some(length)) => length - part.len(),
            // Not even its length field is whole.
            _ => limits::RECORD_BYTES_MAX - part.len(),
        };
        // At the chunk's start nothing else refers to it.
        let chunk = if self.part == 0 && chunk.room() >= missing { chunk } else { core.fresh_chunk(part) };
        core.receive_into(socket, chunk, u32::try_from(missing).unwrap_or(RECORD_BYTES));
    }

    pub(super) fn discard(&mut self) {
        self.plaintexts.clear();
        self.chunk = Chunk::default();
        (self.at, self.part, self.part_since, self.fault) = (0, 0, None, None);
    }

    /// Bytes of a record that is not whole: those that will be taken in again with what is behind them.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Since when a record has been waited for that is not whole.
    pub(super) const fn part_since(&self) -> Option<Time> {
        self.part_since
    }
}
