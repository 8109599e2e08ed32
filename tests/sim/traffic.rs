//! The bytes that flow, and the book in which clients and destinations write down what they saw. Each byte is a function of (seed, flow,
//! direction, offset), so a byte in the wrong place names where it belongs.
//!
//! A client's stream is called by the client's number; a destination's by the number of its connection, from [`FIRST_CONNECTION`] on, as a
//! destination does not know its client. Each stream opens with its name, so that both ends learn whom they were brought together with.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::rng::mix;
use crate::world::{MICROSECOND, Nanos, Owner, World};

/// Length of the name that opens a stream.
pub(crate) const NAME_BYTES: usize = 8;
/// Numbers below are clients'.
pub(crate) const FIRST_CONNECTION: u32 = 10_000;

/// One direction of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stream {
    pub(crate) seed: u64,
    pub(crate) number: u32,
}

impl Stream {
    fn name(self) -> [u8; NAME_BYTES] {
        let [a, b, c, d] = self.number.to_be_bytes();
        let check = mix(self.seed ^ u64::from(self.number)).to_be_bytes();
        [b'#', a, b, c, d, check[0], check[1], check[2]]
    }

    fn byte(self, offset: usize) -> u8 {
        if offset < NAME_BYTES {
            return self.name()[offset];
        }
        self.block(offset / 8)[offset % 8]
    }

    /// The bytes `from..to` of the stream.
    pub(crate) fn bytes(self, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(to - from + 16);
        let first = from / 8 * 8;
        for offset in (first..to).step_by(8) {
            if offset == 0 {
                bytes.extend_from_slice(&self.name());
            } else {
                bytes.extend_from_slice(&self.block(offset / 8));
            }
        }
        bytes.truncate(to - first);
        bytes.drain(..from - first);
        bytes
    }

    fn block(self, block: usize) -> [u8; 8] {
        mix(self.seed.wrapping_mul(0x0100_0000_01b3) ^ (u64::from(self.number) << 40) ^ block as u64).to_le_bytes()
    }
}

/// Checks a stream as it comes in, in whatever pieces.
#[derive(Debug)]
pub(crate) struct Checker {
    seed: u64,
    reader: String,
    name: Vec<u8>,
    received: usize,
    pub(crate) from: Option<u32>,
}

impl Checker {
    pub(crate) const fn new(seed: u64, reader: String) -> Self {
        Self { seed, reader, name: Vec::new(), received: 0, from: None }
    }

    pub(crate) const fn received(&self) -> usize {
        self.received
    }

    /// Takes bytes; stops the run at the first wrong one.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let missing = (NAME_BYTES - self.name.len()).min(bytes.len());
        self.name.extend_from_slice(&bytes[..missing]);
        if self.from.is_none() && self.name.len() == NAME_BYTES {
            let number = u32::from_be_bytes([self.name[1], self.name[2], self.name[3], self.name[4]]);
            let stream = Stream { seed: self.seed, number };
            if stream.name()[..] != self.name[..] {
                panic!("{}: the stream opens with bytes {}", self.reader, owner_of(self.seed, bytes));
            }
            self.from = Some(number);
        }
        if let Some(number) = self.from {
            let expected = Stream { seed: self.seed, number }.bytes(self.received, self.received + bytes.len());
            if let Some(index) = bytes.iter().zip(&expected).position(|(got, expected)| got != expected) {
                let (offset, owner) = (self.received + index, owner_of(self.seed, &bytes[index..]));
                panic!("{}: at offset {offset} of stream {number} come bytes {owner}", self.reader);
            }
        }
        self.received += bytes.len();
    }
}

/// Where bytes belong that came to the wrong place.
fn owner_of(seed: u64, bytes: &[u8]) -> String {
    let sample = &bytes[..bytes.len().min(16)];
    if sample.len() < 4 {
        return format!("{sample:02x?}, too few to tell whose they are");
    }
    for number in (0..80).chain(FIRST_CONNECTION..FIRST_CONNECTION + 120) {
        let stream = Stream { seed, number };
        for from in 0..20_000 {
            if (0..sample.len()).all(|index| stream.byte(from + index) == sample[index]) {
                return format!("of stream {number} from offset {from}");
            }
        }
    }
    format!("{sample:02x?} of no stream")
}

/// How one direction ended for its reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    Fin,
    Reset,
}

/// What one side of a flow saw and did.
#[derive(Clone)]
pub(crate) struct Record {
    /// The destination's address.
    pub(crate) address: SocketAddr,
    pub(crate) started: Nanos,
    pub(crate) finished: Option<Nanos>,
    /// A client's: the SOCKS5 reply code.
    pub(crate) reply: Option<u8>,
    pub(crate) sent: usize,
    /// All that was to be sent was, and a FIN behind it.
    pub(crate) ended: bool,
    pub(crate) received: usize,
    pub(crate) ending: Option<Ending>,
    /// When the other side's end came.
    pub(crate) ending_at: Option<Nanos>,
    /// Number of the stream that came.
    pub(crate) from: Option<u32>,
    /// It gave up by itself, as planned.
    pub(crate) aborted: bool,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Nanos| format!("{:.3} ms", time as f64 / 1e6);
        write!(f, "[{} from {}", self.address, time(self.started))?;
        if let Some(reply) = self.reply {
            write!(f, ", reply {reply}")?;
        }
        write!(f, ", sent {}{}, received {}", self.sent, if self.ended { " and FIN" } else { "" }, self.received)?;
        if let (Some(ending), Some(at)) = (self.ending, self.ending_at) {
            write!(f, " and {ending:?} at {}", time(at))?;
        }
        if let Some(from) = self.from {
            write!(f, " of stream {from}")?;
        }
        if self.aborted {
            f.write_str(", aborted")?;
        }
        match self.finished {
            Some(at) => write!(f, ", over at {}]", time(at)),
            None => f.write_str(", not over]"),
        }
    }
}

impl Record {
    pub(crate) const fn new(address: SocketAddr, started: Nanos) -> Self {
        Self {
            address,
            started,
            finished: None,
            reply: None,
            sent: 0,
            ended: false,
            received: 0,
            ending: None,
            ending_at: None,
            from: None,
            aborted: false,
        }
    }
}

/// All records, by stream number.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) records: BTreeMap<u32, Record>,
    connections: u32,
}

impl Book {
    pub(crate) fn new_connection(&mut self) -> u32 {
        self.connections += 1;
        FIRST_CONNECTION + self.connections - 1
    }

    pub(crate) fn unfinished(&self) -> Vec<u32> {
        self.records.iter().filter(|(_, record)| record.finished.is_none()).map(|(number, _)| *number).collect()
    }
}

/// What actors are given.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) seed: u64,
    pub(crate) book: Rc<RefCell<Book>>,
}

/// How fast something is read or written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Nothing before this long after the start.
    pub(crate) hold: Nanos,
    /// At most this many bytes …
    pub(crate) piece: usize,
    /// … then a pause.
    pub(crate) pause: Nanos,
}

impl Pace {
    pub(crate) const FULL: Self = Self { hold: 0, piece: usize::MAX, pause: 0 };
}

/// Keeps to a [`Pace`].
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Pace,
    next: Option<Nanos>,
}

impl Pacer {
    pub(crate) const fn new(pace: Pace) -> Self {
        Self { pace, next: None }
    }

    /// How much may be moved now; zero: `actor` is woken when it may.
    pub(crate) fn allowance(&mut self, world: &World, actor: usize) -> usize {
        let now = world.now();
        let next = *self.next.get_or_insert(now + self.pace.hold);
        if now < next {
            world.wake_at(Owner::Actor(actor), next);
            return 0;
        }
        self.pace.piece
    }

    /// Something was moved: the pause begins.
    pub(crate) fn moved(&mut self, world: &World, actor: usize) {
        if self.pace.pause > 0 {
            let next = world.now() + self.pace.pause.max(MICROSECOND);
            self.next = Some(next);
            world.wake_at(Owner::Actor(actor), next);
        }
    }
}
