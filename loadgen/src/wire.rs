//! What a client tells a destination at the start of a flow: which run, which flow, and what to do with it. Fixed in length, with a check
//! of its own, so that a header that was damaged on its way is not taken for another flow's.

/// Bytes of a header.
pub const HEADER_LEN: usize = 32;

const MAGIC: [u8; 4] = *b"LG1\n";

/// What the destination is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Send back what comes.
    Echo,
    /// Send the flow's bytes, as quickly as they are taken.
    Down,
    /// Take the flow's bytes and check them.
    Up,
    /// Both at once.
    Both,
    /// Say what this run's flows have brought so far, as JSON, and close.
    Report,
}

/// The header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What to do.
    pub task: Task,
    /// The run.
    pub seed: u64,
    /// The flow's number in it.
    pub flow: u64,
    /// Bytes of a message, or of one send.
    pub size: u32,
}

impl Header {
    /// As sent.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = match self.task {
            Task::Echo => 1,
            Task::Down => 2,
            Task::Up => 3,
            Task::Both => 4,
            Task::Report => 5,
        };
        out[8..16].copy_from_slice(&self.seed.to_le_bytes());
        out[16..24].copy_from_slice(&self.flow.to_le_bytes());
        out[24..28].copy_from_slice(&self.size.to_le_bytes());
        let check = check(&out[..28]);
        out[28..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// As received; nothing if it is damaged.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let long = |at: usize| bytes[at..].first_chunk().map(|part| u64::from_le_bytes(*part));
        let short = |at: usize| bytes[at..].first_chunk().map(|part| u32::from_le_bytes(*part));
        if bytes[..4] != MAGIC || short(28)? != check(&bytes[..28]) {
            return None;
        }
        let task = match bytes[4] {
            1 => Task::Echo,
            2 => Task::Down,
            3 => Task::Up,
            4 => Task::Both,
            5 => Task::Report,
            _ => return None,
        };
        Some(Self { task, seed: long(8)?, flow: long(16)?, size: short(24)? })
    }
}

/// FNV-1a.
fn check(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire_and_no_damage() {
        let header = Header { task: Task::Both, seed: 99, flow: 1 << 40, size: 65536 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for at in 0..HEADER_LEN {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(Header::decode(&damaged), None, "byte {at}");
        }
    }
}
