//! Somebody on the way between the two roles, who sees where records begin and can change, drop, repeat, swap or cut them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::net::reset_when_closed;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    ToEntry,
    ToExit,
}

/// What is done. Units are the hello, the login message, and then each record; they are numbered from 0 in each direction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    /// One bit of the byte at this place of the direction's bytes.
    Flip { at: usize, bit: u8 },
    /// A unit twice.
    Repeat(usize),
    /// A unit not at all.
    Drop(usize),
    /// A unit behind the next.
    Swap(usize),
    /// A unit without its last byte.
    Truncate(usize),
    /// The end of the connection, by FIN or RST to the receiver, before the next unit or in the middle of it, once [`Wire::cut`] was called.
    Cut { inside: bool, reset: bool },
}

/// The first connection after it was asked for is harmed; what comes later passes, or is refused.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    harm: Mutex<Option<(Way, Harm)>>,
    only_one: AtomicBool,
    cut: AtomicBool,
    connections: AtomicUsize,
    ended: AtomicUsize,
    /// Of the first connection: what went each way, by units, as it came.
    seen: [Mutex<Vec<Vec<u8>>>; 2],
    /// The unit that was harmed.
    harmed: Mutex<Option<usize>>,
}

impl Wire {
    /// Passes connections on.
    pub(crate) fn start(to: SocketAddr) -> Self {
        Self::with(to, None, false)
    }

    /// Does harm to the first connection. `only_one`: later ones are closed at once.
    pub(crate) fn harming(to: SocketAddr, way: Way, harm: Harm, only_one: bool) -> Self {
        Self::with(to, Some((way, harm)), only_one)
    }

    fn with(to: SocketAddr, harm: Option<(Way, Harm)>, only_one: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { harm: Mutex::new(harm), only_one: only_one.into(), ..Shared::default() });
        let wire = Self { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                if number > 0 && shared.only_one.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(to) else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let harm = shared.harm.lock().unwrap().take();
                let ends = Arc::new((near, far));
                let left = Arc::new(AtomicUsize::new(2));
                for way in [Way::ToEntry, Way::ToExit] {
                    let (ends, shared, left) = (Arc::clone(&ends), Arc::clone(&shared), Arc::clone(&left));
                    std::thread::spawn(move || {
                        let (from, to) = if way == Way::ToEntry { (&ends.0, &ends.1) } else { (&ends.1, &ends.0) };
                        let harm = harm.filter(|(its, _)| *its == way).map(|(_, harm)| harm);
                        let seen = (number == 0).then_some(&shared.seen[way as usize]);
                        let mut pump = Pump { from, to, way, harm, shared: &shared, seen, unit: 0, passed: 0, held: Vec::new() };
                        if !pump.run() {
                            // One end gone, the other follows.
                            let _ = to.shutdown(Shutdown::Write);
                            let _ = from.shutdown(Shutdown::Read);
                        }
                        drop(ends);
                        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                            shared.ended.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                }
            }
        });
        wire
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Of these, those that both roles have ended.
    pub(crate) fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Lets a [`Harm::Cut`] happen with the next unit.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
    }

    /// The unit of the first connection that was harmed.
    pub(crate) fn harmed(&self) -> Option<usize> {
        *self.shared.harmed.lock().unwrap()
    }

    /// What went this way on the first connection, unit by unit.
    pub(crate) fn seen(&self, way: Way) -> Vec<Vec<u8>> {
        self.shared.seen[way as usize].lock().unwrap().clone()
    }
}

struct Pump<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    way: Way,
    harm: Option<Harm>,
    shared: &'a Shared,
    seen: Option<&'a Mutex<Vec<Vec<u8>>>>,
    unit: usize,
    /// Bytes in the units before.
    passed: usize,
    /// A unit that waits to be passed on behind the next.
    held: Vec<u8>,
}

impl Pump<'_> {
    /// `true`: it has ended the connection by RST.
    fn run(&mut self) -> bool {
        let mut waiting = Vec::new();
        let mut piece = vec![0; 65_536];
        while let Ok(count @ 1..) = self.from.read(&mut piece) {
            waiting.extend_from_slice(&piece[..count]);
            while let Some(length) = self.whole(&waiting) {
                let unit: Vec<u8> = waiting.drain(..length).collect();
                if let Some(seen) = self.seen {
                    seen.lock().unwrap().push(unit.clone());
                }
                match self.pass(unit) {
                    Ok(()) => {}
                    Err(is_reset) => return is_reset,
                }
            }
        }
        false
    }

    /// How long the unit is that begins here, if all of it is there.
    fn whole(&self, bytes: &[u8]) -> Option<usize> {
        let length = match (self.unit, self.way) {
            (0, Way::ToEntry) => 2 + usize::from(*bytes.get(1)?),
            (0, Way::ToExit) => 34,
            (1, _) => 49,
            _ => 4 + u32::from_le_bytes(*bytes.first_chunk()?) as usize,
        };
        (bytes.len() >= length).then_some(length)
    }

    /// `Err`: the connection ends here; whether by RST.
    fn pass(&mut self, mut unit: Vec<u8>) -> Result<(), bool> {
        let (number, before) = (self.unit, self.passed);
        self.unit += 1;
        self.passed += unit.len();
        let end = |_| false;
        match self.harm {
            Some(Harm::Flip { at, bit }) if (before..before + unit.len()).contains(&at) => {
                self.has_harmed(number);
                unit[at - before] ^= 1 << bit;
                self.write(&unit).map_err(end)?;
                if number > 1 && at - before < 4 {
                    // A record that has become longer gets what it wants.
                    self.write(&vec![0xa5; 66_000]).map_err(end)?;
                }
            }
            Some(Harm::Repeat(which)) if which == number => {
                self.has_harmed(number);
                self.write(&[&unit[..], &unit].concat()).map_err(end)?;
            }
            Some(Harm::Drop(which)) if which == number => self.has_harmed(number),
            Some(Harm::Truncate(which)) if which == number => {
                self.has_harmed(number);
                self.write(&unit[..unit.len() - 1]).map_err(end)?;
            }
            Some(Harm::Swap(which)) if which == number => self.held = unit,
            Some(Harm::Swap(which)) if which + 1 == number => {
                self.has_harmed(which);
                let held = std::mem::take(&mut self.held);
                self.write(&[unit, held].concat()).map_err(end)?;
            }
            Some(Harm::Cut { inside, reset }) if self.shared.cut.load(Ordering::SeqCst) && (!inside || unit.len() > 100) => {
                self.has_harmed(number);
                if inside {
                    self.write(&unit[..unit.len() / 2]).map_err(end)?;
                }
                if reset {
                    // The last close is the reset; the other direction leaves at once.
                    reset_when_closed(self.to);
                    reset_when_closed(self.from);
                    let _ = self.to.shutdown(Shutdown::Read);
                }
                return Err(reset);
            }
            _ => self.write(&unit).map_err(end)?,
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.to.write_all(bytes)
    }

    fn has_harmed(&self, number: usize) {
        *self.shared.harmed.lock().unwrap() = Some(number);
    }
}
