//! Two roles in miniature over two byte pipes: real frames, real ciphers, real sessions, driven by any list of numbers. Every byte of payload is
//! a function of its flow, direction and place, so a byte that goes astray says whose it was. Used by a property test and by a fuzz target.

use std::collections::{HashMap, VecDeque};

use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v80::frame::{Destination, FrameReader, Piece, empty, seal};
use zhwkprox::protocol::v80::session::{Busy, Incoming, KeyState, Session};

use crate::support::{V4, V6, authenticated, cipher};

/// The third differs from the first only in its kind.
const MAPPED: Destination = Destination::V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7], 443);
const KEYS: [Destination; 3] = [V4, V6, MAPPED];

/// One direction of one flow, as seen by those who know.
#[derive(Default, Debug)]
struct Lane {
    sent: u64,
    received: u64,
    ended: bool,
    end_received: bool,
    /// The receiver wants no more.
    dropped: bool,
}

/// One role: session, reader, and the flow that has each key as this side believes.
struct End {
    session: Session,
    reader: FrameReader,
    holds: HashMap<Destination, u64>,
    /// Where the frame being read goes; `None`: dropped.
    route: Option<u64>,
}

struct World {
    cipher: MessageCipher,
    /// Entry, exit.
    ends: [End; 2],
    /// To the entry, to the exit.
    pipes: [VecDeque<u8>; 2],
    /// Per flow: towards the entry, towards the exit.
    lanes: HashMap<u64, [Lane; 2]>,
    /// Per key: flows opened at the entry that the exit has not seen yet.
    opened: HashMap<Destination, VecDeque<u64>>,
    flows: u64,
}

const ENTRY: usize = 0;
const EXIT: usize = 1;

/// The byte at `place` of one direction of a flow.
fn payload_byte(flow: u64, towards: usize, place: u64) -> u8 {
    let mixed = (flow * 2 + towards as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(place.wrapping_mul(0x0100_0193));
    mixed.to_le_bytes()[5]
}

/// Runs a list of operations, ends every flow, and sees that every key is free.
pub(crate) fn run(operations: &[u8]) {
    let mut world = World::new(Method::ALL[usize::from(operations.first().copied().unwrap_or_default()) % 3]);
    for operation in operations.chunks_exact(2) {
        world.operate(operation[0], operation[1]);
        world.check();
    }
    world.end_everything();
}

impl World {
    fn new(method: Method) -> Self {
        let cipher = cipher(method);
        let (entry, exit) = authenticated();
        let end = |proof| End {
            session: Session::new(proof, Profile::Ours),
            reader: FrameReader::new(cipher.clone()),
            holds: HashMap::new(),
            route: None,
        };
        let ends = [end(entry), end(exit)];
        Self { cipher, ends, pipes: Default::default(), lanes: HashMap::new(), opened: HashMap::new(), flows: 0 }
    }

    fn operate(&mut self, what: u8, amount: u8) {
        let key = KEYS[usize::from(what >> 4) % 3];
        let side = usize::from(what >> 3 & 1);
        match what & 7 {
            0 | 1 => self.open(key),
            2 | 3 => self.send(side, key, u64::from(amount) * u64::from(amount) / 16),
            4 => self.finish(side, key),
            5 if amount < 64 => self.give_up(side, key),
            _ => self.deliver(side, usize::from(amount) * 3),
        }
    }

    fn open(&mut self, key: Destination) {
        let flow = self.flows;
        let end = &mut self.ends[ENTRY];
        let free = end.session.is_free(key);
        assert_eq!(end.session.open(key, flow), if free { Ok(()) } else { Err(Busy { destination: key }) });
        if free {
            self.flows += 1;
            end.holds.insert(key, flow);
            self.lanes.insert(flow, Default::default());
            self.opened.entry(key).or_default().push_back(flow);
            self.pipes[EXIT].extend(empty(key).as_slice());
        }
    }

    fn send(&mut self, side: usize, key: Destination, count: u64) {
        let (Some(flow), Some(state)) = (self.ends[side].holds.get(&key).copied(), self.ends[side].session.state(key)) else { return };
        if count == 0 || state.own_end {
            return;
        }
        let towards = 1 - side;
        let lane = &mut self.lanes.get_mut(&flow).expect("known")[towards];
        let mut payload: Vec<u8> = (lane.sent..lane.sent + count).map(|place| payload_byte(flow, towards, place)).collect();
        lane.sent += count;
        let header = seal(&self.cipher, key, &mut payload);
        self.pipes[towards].extend(header.as_slice());
        self.pipes[towards].extend(&payload);
    }

    fn finish(&mut self, side: usize, key: Destination) {
        let Some(flow) = self.ends[side].holds.get(&key).copied() else { return };
        if self.ends[side].session.finish(key) {
            self.send_end(side, key, flow);
        }
        if self.ends[side].session.is_free(key) {
            self.ends[side].holds.remove(&key);
        }
    }

    fn give_up(&mut self, side: usize, key: Destination) {
        let Some(flow) = self.ends[side].holds.remove(&key) else { return };
        self.lanes.get_mut(&flow).expect("known")[side].dropped = true;
        if self.ends[side].route == Some(flow) {
            self.ends[side].route = None;
        }
        if self.ends[side].session.give_up(key) {
            self.send_end(side, key, flow);
        }
    }

    fn send_end(&mut self, side: usize, key: Destination, flow: u64) {
        let lane = &mut self.lanes.get_mut(&flow).expect("known")[1 - side];
        assert!(!lane.ended, "flow {flow}: one end per direction");
        lane.ended = true;
        self.pipes[1 - side].extend(empty(key).as_slice());
    }

    /// Some of the bytes on the way arrive.
    fn deliver(&mut self, side: usize, count: usize) {
        let count = count.min(self.pipes[side].len());
        let mut bytes: Vec<u8> = self.pipes[side].drain(..count).collect();
        let mut at = 0;
        while let Some(piece) = self.ends[side].reader.next(&mut bytes, &mut at).expect("frames of ours") {
            match piece {
                Piece::Header(header) => self.on_header(side, header.destination, header.length),
                Piece::Payload { range, .. } => {
                    if let Some(flow) = self.ends[side].route {
                        let lane = &mut self.lanes.get_mut(&flow).expect("known")[side];
                        for byte in &bytes[range] {
                            assert_eq!(*byte, payload_byte(flow, side, lane.received), "flow {flow}, place {}", lane.received);
                            lane.received += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(at, bytes.len());
    }

    fn on_header(&mut self, side: usize, key: Destination, length: u32) {
        let end = &mut self.ends[side];
        let held = end.holds.get(&key).copied();
        end.route = match end.session.on_header(key, length).expect("both sides keep the rules") {
            Incoming::Open { destination, data } => {
                assert_eq!((side, destination, data, held), (EXIT, key, false, None));
                let flow = self.opened.get_mut(&key).and_then(VecDeque::pop_front).expect("opened at the entry");
                end.session.attach(key, flow);
                end.holds.insert(key, flow);
                None
            }
            Incoming::Data(tag) => {
                assert_eq!((Some(tag), length > 0), (held, true));
                held
            }
            Incoming::Drop => {
                assert_eq!((held, length > 0), (None, true));
                None
            }
            Incoming::End(tag) => {
                assert_eq!((tag, length), (held, 0));
                if let Some(flow) = held {
                    let lane = &mut self.lanes.get_mut(&flow).expect("known")[side];
                    assert!(lane.ended && !lane.end_received && !lane.dropped, "flow {flow}: {lane:?}");
                    assert_eq!(lane.received, lane.sent, "flow {flow} is whole when it ends");
                    lane.end_received = true;
                }
                if end.session.is_free(key) {
                    end.holds.remove(&key);
                }
                None
            }
        };
    }

    fn check(&self) {
        for (side, end) in self.ends.iter().enumerate() {
            assert_eq!(end.session.flows(), end.holds.len(), "side {side}");
            assert_eq!(end.session.keys(), KEYS.iter().filter(|key| !end.session.is_free(**key)).count());
            for key in KEYS {
                assert_eq!(end.session.tag(key), end.holds.get(&key).copied());
            }
        }
        if self.pipes.iter().all(VecDeque::is_empty) {
            for key in KEYS {
                let [entry, exit] = [&self.ends[ENTRY].session, &self.ends[EXIT].session];
                assert_eq!(entry.is_free(key), exit.is_free(key), "the sides disagree on {key} with nothing on the way");
                if let (Some(at_entry), Some(at_exit)) = (entry.state(key), exit.state(key)) {
                    assert_eq!((at_entry.own_end, at_entry.peer_end), (at_exit.peer_end, at_exit.own_end));
                }
            }
        }
    }

    fn end_everything(&mut self) {
        for side in [ENTRY, EXIT, ENTRY] {
            self.deliver(side, usize::MAX);
        }
        for side in [ENTRY, EXIT] {
            for key in KEYS {
                self.finish(side, key);
            }
            self.deliver(1 - side, usize::MAX);
            self.check();
        }
        self.deliver(ENTRY, usize::MAX);
        self.deliver(EXIT, usize::MAX);
        self.check();
        assert_eq!(self.ends.each_ref().map(|end| end.session.keys()), [0, 0], "every key is free in the end");
        for (flow, lanes) in &self.lanes {
            for lane in lanes {
                assert!(lane.ended && (lane.end_received || lane.dropped), "flow {flow}: {lane:?}");
            }
        }
    }
}

/// Any headers from a peer that keeps no rules, and anything that a role may do: whatever happens, a key sends one end, is counted once, and
/// is freed by the two ends alone.
pub(crate) fn hostile(operations: &[u8]) {
    let profile = if operations.first().is_some_and(|first| first & 1 == 1) { Profile::Original } else { Profile::Ours };
    let (entry, exit) = authenticated();
    for mut session in [Session::new(entry, profile), Session::new(exit, profile)] {
        let is_entry = session.side() == zhwkprox::protocol::v80::Side::Entry;
        let mut tags = 0;
        for operation in operations.chunks_exact(2) {
            let key = KEYS[usize::from(operation[1]) % 3];
            let before = session.state(key);
            match operation[0] % 6 {
                0 if is_entry => {
                    tags += 1;
                    assert_eq!(session.open(key, tags).is_ok(), before.is_none());
                }
                1 => {
                    let sent = session.finish(key);
                    on_own_end(sent, before, &session, key, is_entry);
                }
                2 => {
                    let sent = session.give_up(key);
                    on_own_end(sent, before, &session, key, is_entry);
                }
                3 if session.release(key) => assert!(profile == Profile::Original && before.is_some_and(|key| key.given_up)),
                _ => {
                    let length = u32::from(operation[0] / 6) & 3;
                    match session.on_header(key, length) {
                        Ok(Incoming::Open { data, .. }) => {
                            assert_eq!((before, data, is_entry), (None, length > 0, false));
                            tags += 1;
                            if operation[1] & 0x80 == 0 {
                                session.attach(key, tags);
                            } else {
                                assert!(session.give_up(key), "a flow that is refused has its end sent");
                            }
                        }
                        Ok(Incoming::Data(tag)) => assert_eq!((before.and_then(|key| key.tag), length > 0), (Some(tag), true)),
                        Ok(Incoming::End(tag)) => assert_eq!((before.expect("taken").tag, length), (tag, 0)),
                        Ok(Incoming::Drop) => {}
                        Err(_) => assert_eq!((session.state(key), profile), (before, Profile::Ours), "a fault changes nothing"),
                    }
                }
            }
            assert!(session.flows() <= session.keys() && session.discarding() <= session.keys() && session.keys() <= KEYS.len());
            assert_eq!(session.tags().count(), session.flows());
        }
    }
}

/// An end is sent for a key that has not sent one, and the key is free only if both ends have passed.
fn on_own_end(sent: bool, before: Option<KeyState>, session: &Session, key: Destination, is_entry: bool) {
    let original = session.profile() == Profile::Original;
    let may = before.is_some_and(|key| !key.own_end) && !(is_entry && original);
    assert_eq!(sent, may);
    if let (Some(before), None) = (before, session.state(key)) {
        assert!(sent && (before.peer_end || original && !is_entry), "freed by both ends: {before:?}");
    }
}
