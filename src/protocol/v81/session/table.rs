//! The table of streams that are open, by their ids.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::windows::Stream;

/// Ids count up from 1, so that a peer cannot choose where they fall.
pub(super) type Streams = HashMap<u32, Stream, BuildHasherDefault<IdHasher>>;

/// Spreads ids over a table: one multiplication, for a lookup per frame.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
