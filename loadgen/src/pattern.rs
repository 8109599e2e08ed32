//! Every byte of every flow as a function of (seed, flow, way, offset), and what wrong bytes are.
//!
//! A stream is made of 64-bit words, each the one before plus an odd constant, from a start that is a hash of seed, flow and way. That is
//! as quick as memory, and it can be undone: of any three words' worth of bytes it can be said where in which flow they belong, so that a
//! mix-up is named, not only seen.
//!
//! What always holds: two flows, or two places of a flow, agree in a word only by a coincidence of 1 in 2^64.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What is added from word to word: odd, so that it has an inverse, and without structure in its low byte.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const STEP_INVERSE: u64 = inverse(STEP);

const WORD: u64 = 8;

/// Bytes that are enough to say where they belong: a word at any alignment, and the next to confirm it.
pub const TELLING: usize = 23;

/// A flow of 2^40 words is 8 TiB; what decodes to more belongs to no flow.
const WORDS_MAX: u64 = 1 << 40;

/// A change this long is looked for byte by byte; the rest of what arrived is behind it.
const CHANGE_MAX: usize = 4096;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the client to the destination.
    Up,
    /// From the destination to the client.
    Down,
}

/// The bytes of one flow, one way.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
    flow: u64,
    way: Way,
    start: u64,
}

/// What wrong bytes are, as far as they tell.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Wrong {
    /// The stream goes on, but this many bytes later than it should.
    Missing {
        /// How many.
        bytes: u64,
    },
    /// The stream goes on, but with bytes that were there already.
    Repeated {
        /// How many.
        bytes: u64,
    },
    /// Two neighbours stand in each other's place.
    Swapped,
    /// Some bytes differ, and behind them the stream goes on as it should.
    Changed {
        /// How many.
        bytes: u64,
    },
    /// The bytes of another flow, or of the other way.
    MixUp {
        /// Whose they are.
        flow: u64,
        /// Which way they were meant to go.
        way: Way,
        /// Where they belong.
        offset: u64,
    },
    /// They belong to no flow of this run.
    Unknown {
        /// The byte that was due.
        expected: u8,
        /// The byte that came.
        got: u8,
    },
}

impl Pattern {
    /// The bytes that `flow` carries in a run with this seed.
    #[must_use]
    pub fn new(seed: u64, flow: u64, way: Way) -> Self {
        let way_salt = match way {
            Way::Up => 0x75,
            Way::Down => 0x64_0000,
        };
        Self { seed, flow, way, start: mix(mix(seed ^ way_salt) ^ mix(flow.wrapping_add(1))) }
    }

    /// Writes the bytes from `offset` on.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let (head, words) = out.split_at_mut(head_len(offset, out.len()));
        for (byte, at) in head.iter_mut().zip(offset..) {
            *byte = self.byte(at);
        }
        let mut word = self.word((offset + head.len() as u64) / WORD);
        let mut chunks = words.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&word.to_le_bytes());
            word = word.wrapping_add(STEP);
        }
        let tail = chunks.into_remainder();
        let last = word.to_le_bytes();
        tail.copy_from_slice(&last[..tail.len()]);
    }

    /// The first place in `bytes`, which stand at `offset`, that is not as it should be.
    #[must_use]
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Option<usize> {
        let head = head_len(offset, bytes.len());
        if let Some(wrong) = self.check_slowly(offset, bytes, 0..head) {
            return Some(wrong);
        }
        let mut word = self.word((offset + head as u64) / WORD);
        let mut at = head;
        // Differences are gathered over a block, so that the loop has no branch.
        while at < bytes.len() {
            let end = bytes.len().min(at + 512);
            let mut chunks = bytes[at..end].chunks_exact(8);
            let mut differs = 0;
            for chunk in &mut chunks {
                differs |= load(chunk) ^ word;
                word = word.wrapping_add(STEP);
            }
            let tail = chunks.remainder();
            if differs != 0 || *tail != word.to_le_bytes()[..tail.len()] {
                return self.check_slowly(offset, bytes, at..end);
            }
            at = end;
        }
        None
    }

    /// Says what the bytes are that stand at `offset`, of which the first is wrong. `flows` of the run may be mixed up.
    #[must_use]
    pub fn explain(&self, offset: u64, bytes: &[u8], flows: u64) -> Wrong {
        // Who can say where they belong goes first: also the bytes of another flow are changed ones, up to their end.
        self.swapped(offset, bytes)
            .or_else(|| self.place(bytes).and_then(|place| shifted(offset, place)))
            .or_else(|| self.mixed_up(bytes, flows))
            .or_else(|| self.changed(offset, bytes))
            .or_else(|| self.shifted_a_little(offset, bytes))
            .unwrap_or_else(|| Wrong::Unknown { expected: self.byte(offset), got: bytes.first().copied().unwrap_or_default() })
    }

    /// Where in this stream the bytes belong, if they do.
    #[must_use]
    pub fn place(&self, bytes: &[u8]) -> Option<u64> {
        (0..8).find_map(|skip| {
            let words = bytes.get(skip..skip + 16)?;
            let index = load(words).wrapping_sub(self.start).wrapping_mul(STEP_INVERSE);
            let next = load(&words[8..]) == self.word(index.wrapping_add(1));
            (index < WORDS_MAX && next).then(|| (index * WORD).checked_sub(skip as u64)).flatten()
        })
    }

    fn byte(&self, offset: u64) -> u8 {
        self.word(offset / WORD).to_le_bytes()[usize::try_from(offset % WORD).unwrap_or_default()]
    }

    fn word(&self, index: u64) -> u64 {
        self.start.wrapping_add(index.wrapping_mul(STEP))
    }

    fn check_slowly(&self, offset: u64, bytes: &[u8], range: Range<usize>) -> Option<usize> {
        range.into_iter().find(|at| bytes[*at] != self.byte(offset + *at as u64))
    }

    fn swapped(&self, offset: u64, bytes: &[u8]) -> Option<Wrong> {
        let [first, second, rest @ ..] = bytes else { return None };
        let crossed = *first == self.byte(offset + 1) && *second == self.byte(offset);
        let rest = &rest[..rest.len().min(8)];
        (crossed && self.check(offset + 2, rest).is_none()).then_some(Wrong::Swapped)
    }

    fn changed(&self, offset: u64, bytes: &[u8]) -> Option<Wrong> {
        // Behind a change eight bytes must be right, or coincidence would end it too early.
        let (mut changed, mut right) = (0, 0);
        for (byte, at) in bytes.iter().take(CHANGE_MAX).zip(0..) {
            (changed, right) = if *byte == self.byte(offset + at) { (changed, right + 1) } else { (at + 1, 0) };
            if right == 8 {
                return Some(Wrong::Changed { bytes: changed });
            }
        }
        None
    }

    fn mixed_up(&self, bytes: &[u8], flows: u64) -> Option<Wrong> {
        for way in [self.way, if self.way == Way::Up { Way::Down } else { Way::Up }] {
            for flow in (0..flows).filter(|flow| (*flow, way) != (self.flow, self.way)) {
                if let Some(offset) = Self::new(self.seed, flow, way).place(bytes) {
                    return Some(Wrong::MixUp { flow, way, offset });
                }
            }
        }
        None
    }

    /// For what is too short to tell by itself: the few bytes there are agree with a place nearby.
    fn shifted_a_little(&self, offset: u64, bytes: &[u8]) -> Option<Wrong> {
        let seen = &bytes[..bytes.len().min(TELLING)];
        if seen.len() < 3 {
            return None;
        }
        (1..=64).find_map(|by| {
            let later = self.check(offset + by, seen).is_none().then_some(Wrong::Missing { bytes: by });
            let earlier =
                || Some(offset.checked_sub(by)?).filter(|from| self.check(*from, seen).is_none()).map(|_| Wrong::Repeated { bytes: by });
            later.or_else(earlier)
        })
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { bytes } => write!(f, "{bytes} bytes are missing"),
            Self::Repeated { bytes } => write!(f, "{bytes} bytes are repeated"),
            Self::Swapped => write!(f, "two neighbouring bytes are swapped"),
            Self::Changed { bytes } => write!(f, "{bytes} bytes are changed"),
            Self::MixUp { flow, way, offset } => {
                write!(f, "mixed up: these bytes belong to flow {flow}, {way}, offset {offset}")
            }
            Self::Unknown { expected, got } => write!(f, "bytes of no flow of this run: expected {expected:#04x}, got {got:#04x}"),
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

fn shifted(due: u64, place: u64) -> Option<Wrong> {
    match place.cmp(&due) {
        std::cmp::Ordering::Greater => Some(Wrong::Missing { bytes: place - due }),
        std::cmp::Ordering::Less => Some(Wrong::Repeated { bytes: due - place }),
        std::cmp::Ordering::Equal => None,
    }
}

/// Bytes until the next word begins.
fn head_len(offset: u64, len: usize) -> usize {
    len.min(usize::try_from((WORD - offset % WORD) % WORD).unwrap_or_default())
}

fn load(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// The finaliser of splitmix64.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// By Newton: each round doubles the bits that are right, and an odd number is its own inverse to three bits.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut round = 0;
    while round < 5 {
        x = x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(flow: u64, way: Way, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Pattern::new(7, flow, way).fill(offset, &mut bytes);
        bytes
    }

    #[test]
    fn any_cut_of_a_stream_is_the_same_stream() {
        let whole = stream(3, Way::Down, 0, 3000);
        for (from, len) in [(0, 0), (1, 1), (5, 2), (7, 9), (8, 512), (13, 1501), (1024, 1976)] {
            let offset = u64::try_from(from).unwrap();
            assert_eq!(stream(3, Way::Down, offset, len), whole[from..from + len]);
            assert_eq!(Pattern::new(7, 3, Way::Down).check(offset, &whole[from..from + len]), None);
        }
    }

    #[test]
    fn one_changed_byte_is_found_wherever_it_stands() {
        let pattern = Pattern::new(7, 3, Way::Up);
        for at in 0..1100 {
            let mut bytes = stream(3, Way::Up, 5, 1100);
            bytes[at] ^= 0x40;
            assert_eq!(pattern.check(5, &bytes), Some(at));
            if at < 1000 {
                let offset = 5 + u64::try_from(at).unwrap();
                assert_eq!(pattern.explain(offset, &bytes[at..], 9), Wrong::Changed { bytes: 1 });
            }
        }
    }

    #[test]
    fn what_is_missing_or_repeated_is_counted() {
        let pattern = Pattern::new(7, 3, Way::Up);
        for by in [1, 2, 8, 64, 4096, 1 << 30] {
            assert_eq!(pattern.explain(5000, &stream(3, Way::Up, 5000 + by, 40), 9), Wrong::Missing { bytes: by });
        }
        assert_eq!(pattern.explain(5000, &stream(3, Way::Up, 4000, 40), 9), Wrong::Repeated { bytes: 1000 });
        assert_eq!(pattern.explain(5000, &stream(3, Way::Up, 5001, 6), 9), Wrong::Missing { bytes: 1 });
    }

    #[test]
    fn a_swap_is_a_swap_also_at_the_end() {
        let pattern = Pattern::new(7, 3, Way::Up);
        for len in [2, 3, 9, 10, 11, 64] {
            let mut bytes = stream(3, Way::Up, 21, len);
            bytes.swap(0, 1);
            assert_eq!(pattern.explain(21, &bytes, 9), Wrong::Swapped, "{len} bytes");
        }
    }

    #[test]
    fn the_owner_of_mixed_up_bytes_is_named() {
        let pattern = Pattern::new(7, 3, Way::Down);
        let named = |flow, way, offset| Wrong::MixUp { flow, way, offset };
        assert_eq!(pattern.explain(100, &stream(5, Way::Down, 777, 40), 9), named(5, Way::Down, 777));
        assert_eq!(pattern.explain(100, &stream(3, Way::Up, 100, 23), 9), named(3, Way::Up, 100));
        let unknown = pattern.explain(100, &stream(5, Way::Down, 777, 40), 4);
        assert!(matches!(unknown, Wrong::Unknown { .. }), "flow 5 of 4: {unknown:?}");
    }
}
