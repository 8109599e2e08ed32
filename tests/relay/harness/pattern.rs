//! Bytes that are a function of (seed, flow, offset) and can be asked whose they are: each aligned group of eight is an invertible
//! mix of the flow's number and the group's index, so a byte in the wrong place names the flow and the offset it came from.

/// Largest flow number and largest index of a group: 24 and 40 bits.
const INDEX_BITS: u32 = 40;

const fn mix(seed: u64, mut x: u64) -> u64 {
    x ^= seed;
    x ^= x >> 32;
    x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

const fn inverse_odd(a: u64) -> u64 {
    // Newton's iteration doubles the number of right bits each time, from three.
    let mut x = a;
    let mut round = 0;
    while round < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(a.wrapping_mul(x)));
        round += 1;
    }
    x
}

const fn unmix(seed: u64, mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(inverse_odd(0xbf58_476d_1ce4_e5b9));
    x ^= (x >> 29) ^ (x >> 58);
    x = x.wrapping_mul(inverse_odd(0x9e37_79b9_7f4a_7c15));
    x ^= x >> 32;
    x ^ seed
}

fn word(seed: u64, flow: u32, index: u64) -> [u8; 8] {
    mix(seed, (u64::from(flow) << INDEX_BITS) | index).to_le_bytes()
}

/// Writes the bytes of `flow` that stand at `offset`.
pub(crate) fn fill(seed: u64, flow: u32, offset: u64, out: &mut [u8]) {
    let mut index = offset / 8;
    let skip = usize::try_from(offset % 8).unwrap();
    let (first, rest) = out.split_at_mut(if skip == 0 { 0 } else { (8 - skip).min(out.len()) });
    if !first.is_empty() {
        first.copy_from_slice(&word(seed, flow, index)[skip..skip + first.len()]);
        index += 1;
    }
    let mut groups = rest.chunks_exact_mut(8);
    for group in &mut groups {
        group.copy_from_slice(&word(seed, flow, index));
        index += 1;
    }
    let last = groups.into_remainder();
    last.copy_from_slice(&word(seed, flow, index)[..last.len()]);
}

/// All bytes of a small flow.
pub(crate) fn bytes(seed: u64, flow: u32, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    fill(seed, flow, 0, &mut out);
    out
}

/// Compares what arrives with what should.
#[derive(Debug)]
pub(crate) struct Checker {
    seed: u64,
    flow: u32,
    offset: u64,
    expected: Vec<u8>,
}

impl Checker {
    /// Expects the bytes of `flow` from its first on.
    pub(crate) fn new(seed: u64, flow: u32) -> Self {
        Self { seed, flow, offset: 0, expected: Vec::new() }
    }

    /// Bytes that were right.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes; the error names the owner of the first wrong one.
    pub(crate) fn take(&mut self, got: &[u8]) -> Result<(), String> {
        self.expected.resize(got.len(), 0);
        fill(self.seed, self.flow, self.offset, &mut self.expected);
        if let Some(at) = got.iter().zip(&self.expected).position(|(a, b)| a != b) {
            return Err(format!("flow {}: wrong byte at offset {}: {}", self.flow, self.offset + at as u64, owner(self.seed, &got[at..])));
        }
        self.offset += got.len() as u64;
        Ok(())
    }
}

/// Whose bytes these are, if they are anybody's: tried at each of the eight alignments.
fn owner(seed: u64, got: &[u8]) -> String {
    for shift in 0..8usize {
        if let Some(group) = got.get(shift..shift + 8) {
            let plain = unmix(seed, u64::from_le_bytes(group.try_into().unwrap()));
            let (flow, index) = (plain >> INDEX_BITS, plain & ((1 << INDEX_BITS) - 1));
            // A random group passes this with a chance of 2⁻¹⁶.
            if flow < 1 << 20 && index < 1 << 28 {
                let offset = index * 8;
                return format!("it belongs to flow {flow}, offset {} ({} bytes seen)", offset.saturating_sub(shift as u64), got.len());
            }
        }
    }
    format!("it belongs to nobody ({:02x?})", &got[..got.len().min(16)])
}

#[test]
fn a_byte_in_the_wrong_place_names_the_flow_and_offset_it_came_from() {
    let seed = 0x1234_5678_9abc_def0;
    for (flow, index) in [(0, 0), (1, 2), (1_000_000, (1 << 28) - 1)] {
        assert_eq!(unmix(seed, mix(seed, (flow << INDEX_BITS) | index)), (flow << INDEX_BITS) | index);
    }
    let mut whole = vec![0; 100];
    fill(seed, 7, 0, &mut whole);
    for offset in 0..40usize {
        for len in 0..40 {
            let mut part = vec![0; len];
            fill(seed, 7, offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + len]);
        }
    }
    let mut checker = Checker::new(seed, 3);
    checker.take(&bytes(seed, 3, 64)).unwrap();
    let wrong = checker.take(&bytes(seed, 7, 100)[13..]).unwrap_err();
    assert!(wrong.contains("flow 3: wrong byte at offset 64") && wrong.contains("belongs to flow 7, offset 13"), "{wrong}");
}
