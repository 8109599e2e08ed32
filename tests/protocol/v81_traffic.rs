//! Two roles in miniature on one 0x81 tunnel without a cipher: real sessions, whole records, driven by any list of numbers. Every byte of payload is a
//! function of its stream, direction and place. Used by a property test and by a fuzz target.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use zhwkprox::protocol::socks5::Target;
use zhwkprox::protocol::v81::Side;
use zhwkprox::protocol::v81::frame::{FRAME_HEADER, Frames, Header, goaway, kind, reset};
use zhwkprox::protocol::v81::session::{Incoming, NotNow, Session};
use zhwkprox::protocol::v81::settings::Settings;

const ENTRY: usize = 0;
const EXIT: usize = 1;
const MAX_STREAMS: u32 = 5;
const WINDOWS: [u32; 4] = [1, 7, 100, 1000];
const GROWN: u32 = 4000;
/// More than any window. Through one of a byte each byte is a record of its own, and a fuzzer finds what takes long.
const QUEUED_MOST: u32 = 5000;

/// One stream as a role has it.
#[derive(Default, Debug)]
struct Flow {
    /// Bytes that its socket has for the tunnel.
    to_send: u32,
    /// Bytes that went.
    sent: u64,
    /// Its socket has ended, behind `to_send`: with FIN, or with a reset.
    ending: Option<Ending>,
    fin_sent: bool,
    /// Bytes that came, and those that went on to its socket.
    received: u64,
    consumed: u64,
    fin_received: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Fin,
    Reset,
}

struct End {
    session: Session,
    /// By stream id; gone when the stream is closed and all has been consumed.
    flows: BTreeMap<u32, Flow>,
    /// Exit: streams whose dial is under way.
    dials: Vec<u32>,
}

struct World {
    ends: [End; 2],
    /// Records to the entry, to the exit.
    pipes: [VecDeque<Vec<u8>>; 2],
    /// What each side sent on each stream in all, for who was to receive all of it.
    totals: [HashMap<u32, u64>; 2],
    now: Duration,
}

fn payload_byte(stream: u32, from: usize, place: u64) -> u8 {
    let mixed = (u64::from(stream) * 2 + from as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(place.wrapping_mul(0x0100_0193));
    mixed.to_le_bytes()[5]
}

/// Runs a list of operations, ends every stream, and sees that nothing is left on either side.
pub(crate) fn run(operations: &[u8]) {
    let mut world = World::new(operations.first().copied().unwrap_or_default());
    for operation in operations.chunks_exact(2) {
        world.operate(operation[0], operation[1]);
        world.check();
    }
    world.end_everything();
}

impl World {
    fn new(seed: u8) -> Self {
        let windows = [WINDOWS[usize::from(seed & 3)], WINDOWS[usize::from(seed >> 2 & 3)]];
        let settings = windows.map(|stream_window| Settings { stream_window, max_streams: MAX_STREAMS });
        let end = |side, own: usize| {
            let session = Session::new(side, settings[own], settings[1 - own], GROWN);
            End { session, flows: BTreeMap::new(), dials: Vec::new() }
        };
        let ends = [end(Side::Entry, ENTRY), end(Side::Exit, EXIT)];
        Self { ends, pipes: Default::default(), totals: Default::default(), now: Duration::ZERO }
    }

    fn operate(&mut self, operation: u8, argument: u8) {
        let side = usize::from(operation & 1);
        let amount = u32::from(argument >> 3);
        self.now += Duration::from_millis(u64::from(argument & 3));
        let chosen = self.ends[side].flows.keys().copied().nth(usize::from(argument & 7));
        match (operation >> 1) % 16 {
            0 => self.open(argument),
            1 | 2 => {
                if let Some(flow) = chosen.and_then(|id| self.ends[side].flows.get_mut(&id)).filter(|flow| flow.ending.is_none()) {
                    flow.to_send = QUEUED_MOST.min(flow.to_send + amount * amount);
                }
            }
            3..=5 => self.flush(side, usize::from(argument) * 4),
            6..=8 => {
                self.deliver(side);
            }
            9 | 10 => {
                if let Some(id) = chosen {
                    self.consume(side, id, amount * amount);
                }
            }
            11 => {
                if let Some(flow) = chosen.and_then(|id| self.ends[side].flows.get_mut(&id)) {
                    let ending = if argument & 0x80 == 0 { Ending::Fin } else { Ending::Reset };
                    flow.ending = flow.ending.or(Some(ending));
                }
            }
            12 => {
                if let Some(id) = chosen.filter(|_| argument & 0x40 != 0) {
                    self.ends[side].session.reset(id, reset::CANCELLED);
                    self.forget(side, id);
                }
            }
            13 => self.dial(argument),
            14 => {
                let session = &mut self.ends[side].session;
                session.set_rtt(Duration::from_millis(u64::from(argument & 0x0f)));
                session.withhold(argument & 0x40 != 0);
                session.allow_growth(argument & 0x20 != 0);
            }
            _ => {
                let session = &mut self.ends[side].session;
                let outstanding = session.ping_outstanding();
                assert_ne!(session.ping([argument; 8]), outstanding);
                if argument == 0xff {
                    session.go_away(goaway::STOPPING, "");
                }
            }
        }
    }

    fn open(&mut self, argument: u8) {
        let entry = &mut self.ends[ENTRY];
        let name = if argument & 7 == 7 { "no such name can be" } else { "example.org" };
        let winding = entry.session.is_winding();
        match entry.session.open(&Target::Name(name.to_owned(), 80), 0) {
            Ok(id) => {
                // The tag is the id, on both sides: it is known only now, and the session holds it already.
                assert!(!winding);
                entry.flows.insert(id, Flow::default());
            }
            Err(NotNow::Winding) => assert!(winding),
            Err(NotNow::TooMany) => assert!(entry.session.has_control() || entry.session.streams() == MAX_STREAMS as usize),
            Err(NotNow::NoIds) => panic!("ids do not run out"),
        }
    }

    /// A dial of the exit's comes to something.
    fn dial(&mut self, argument: u8) {
        let exit = &mut self.ends[EXIT];
        if exit.dials.is_empty() {
            return;
        }
        let id = exit.dials.remove(usize::from(argument & 7) % exit.dials.len());
        if argument & 0xc0 == 0 {
            exit.session.reset(id, reset::REFUSED);
            self.forget(EXIT, id);
        } else {
            exit.session.opened(id, "192.0.2.1:4000".parse().expect("an address"));
        }
    }

    /// One record: all control frames that there is room for and, when none is left, data of every stream in turn.
    fn flush(&mut self, side: usize, room: usize) {
        let end = &mut self.ends[side];
        let mut record = Vec::new();
        let more = end.session.poll_control(&mut record, room);
        assert!(record.len() <= room);
        assert!(more || !end.session.has_control());
        let mut over = Vec::new();
        for (id, flow) in end.flows.iter_mut().filter(|_| !more) {
            let sends = flow.to_send.min(end.session.allowance(*id)).min(u32::try_from(room).expect("small"));
            if sends > 0 {
                record.extend_from_slice(&end.session.data(*id, sends).encode());
                record.extend((flow.sent..).take(sends as usize).map(|place| payload_byte(*id, side, place)));
                flow.sent += u64::from(sends);
                flow.to_send -= sends;
            }
            // Before OPENED the exit sends nothing.
            let may = !end.dials.contains(id) && flow.to_send == 0 && !flow.fin_sent;
            match flow.ending {
                Some(Ending::Fin) if may => {
                    if let Some(header) = end.session.finish(*id) {
                        assert_eq!(header.kind, kind::FIN);
                        flow.fin_sent = true;
                        self.totals[side].insert(*id, flow.sent);
                        record.extend_from_slice(&header.encode());
                    }
                }
                Some(Ending::Reset) if may => {
                    if let Some((header, code)) = end.session.reset_in_order(*id) {
                        self.totals[side].insert(*id, flow.sent);
                        record.extend_from_slice(&header.encode());
                        record.push(code);
                        over.push(*id);
                    }
                }
                _ => {}
            }
        }
        for id in over {
            self.forget(side, id);
        }
        if !record.is_empty() {
            self.pipes[1 - side].push_back(record);
        }
    }

    /// One record arrives.
    fn deliver(&mut self, side: usize) -> bool {
        let Some(record) = self.pipes[side].pop_front() else { return false };
        let mut frames = Frames::new(&record);
        while let Some((header, range)) = frames.next().expect("whole frames") {
            self.on_frame(side, header, &record[range]);
        }
        true
    }

    fn on_frame(&mut self, side: usize, header: Header, payload: &[u8]) {
        let end = &mut self.ends[side];
        let was_open = end.session.is_open(header.stream);
        let incoming = end.session.handle(header, payload, self.now).expect("both sides keep the rules");
        let Some(incoming) = incoming else {
            return;
        };
        let id = header.stream;
        assert!(was_open || id == 0 || header.kind == kind::OPEN, "a closed stream is skipped");
        match incoming {
            Incoming::Open { stream, .. } => {
                if stream % 5 == 4 {
                    end.session.refuse(stream, reset::POLICY);
                } else {
                    end.session.attach(stream, u64::from(stream));
                    end.flows.insert(stream, Flow::default());
                    end.dials.push(stream);
                }
            }
            Incoming::Data { .. } => {
                let flow = end.flows.get_mut(&id).expect("open");
                for byte in payload {
                    assert_eq!(*byte, payload_byte(id, 1 - side, flow.received), "stream {id}, place {}", flow.received);
                    flow.received += 1;
                }
            }
            Incoming::Finished { .. } => {
                let flow = end.flows.get_mut(&id).expect("open");
                assert!(!flow.fin_received);
                flow.fin_received = true;
                assert_eq!(Some(&flow.received), self.totals[1 - side].get(&id), "stream {id} is whole when it ends");
            }
            Incoming::Reset { code, .. } => {
                if code == reset::SOCKET {
                    assert_eq!(Some(&end.flows[&id].received), self.totals[1 - side].get(&id), "what came before is there");
                }
                assert!(!end.session.is_open(id));
                self.forget(side, id);
            }
            Incoming::Opened { .. } | Incoming::Credit { .. } => assert!(end.session.is_open(id)),
            Incoming::Pong | Incoming::GoAway { .. } => assert_eq!(id, 0),
        }
    }

    fn consume(&mut self, side: usize, id: u32, bytes: u32) {
        let end = &mut self.ends[side];
        let Some(flow) = end.flows.get_mut(&id).filter(|_| !end.dials.contains(&id)) else { return };
        let bytes = u64::from(bytes).min(flow.received - flow.consumed);
        flow.consumed += bytes;
        end.session.consumed(id, u32::try_from(bytes).expect("small"), self.now);
        if !end.session.is_open(id) && flow.consumed == flow.received {
            self.forget(side, id);
        }
    }

    /// The role has no socket for it any more.
    fn forget(&mut self, side: usize, id: u32) {
        let end = &mut self.ends[side];
        end.dials.retain(|dial| *dial != id);
        if end.flows.remove(&id).is_some() && side == EXIT {
            end.session.release();
        }
    }

    fn check(&self) {
        for end in &self.ends {
            assert!(end.session.streams() <= MAX_STREAMS as usize);
            assert_eq!(end.session.streams(), end.flows.keys().filter(|id| end.session.is_open(**id)).count());
            assert_eq!(end.session.tags().count(), end.session.streams());
            for (id, flow) in end.flows.iter().filter(|(id, _)| end.session.is_open(**id)) {
                let window = end.session.window(*id);
                assert!(window <= GROWN);
                if !flow.fin_received {
                    assert_eq!(u64::from(end.session.held(*id)), flow.received - flow.consumed);
                }
                assert!(flow.received - flow.consumed <= u64::from(window), "no more is held than the window");
            }
        }
    }

    /// Everything that waits goes and comes, until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while !self.ends[EXIT].dials.is_empty() {
                self.dial(0xff);
            }
            for side in [ENTRY, EXIT] {
                let ids: Vec<u32> = self.ends[side].flows.keys().copied().collect();
                for id in ids {
                    self.consume(side, id, u32::MAX);
                }
                self.flush(side, 2000);
                moved |= self.deliver(1 - side);
                self.check();
            }
            if !moved && self.pipes.iter().all(VecDeque::is_empty) {
                return;
            }
        }
    }

    fn end_everything(&mut self) {
        for end in &mut self.ends {
            end.session.withhold(false);
        }
        self.settle();
        // Nothing is on the way and all has left: what one side may send is what the other is ready for, but for what is not due.
        for side in [ENTRY, EXIT] {
            let (here, there) = (&self.ends[side], &self.ends[1 - side]);
            assert_eq!(here.flows.keys().collect::<Vec<_>>(), there.flows.keys().collect::<Vec<_>>());
            for (id, flow) in &here.flows {
                assert_eq!((flow.to_send, flow.sent), (0, there.flows[id].received), "nobody waits for credit for good");
                if !flow.fin_sent {
                    let (window, allowance) = (there.session.window(*id), here.session.allowance(*id));
                    assert!(allowance <= window && window - allowance <= window / 4, "{allowance} of {window}");
                }
            }
        }
        for end in &mut self.ends {
            for flow in end.flows.values_mut() {
                flow.ending = Some(Ending::Fin);
            }
        }
        self.ends[EXIT].session.go_away(goaway::STOPPING, "");
        self.settle();
        for end in &self.ends {
            assert!(end.flows.is_empty() && end.session.is_finished() && !end.session.has_control(), "{:?}", end.session);
        }
    }
}

/// Any frames from a peer that keeps no rules, and anything that a role may do: no panic, what is owed and held stays bounded.
pub(crate) fn hostile(plaintexts: &[u8]) {
    for side in [Side::Entry, Side::Exit] {
        let settings = Settings { stream_window: 1000, max_streams: MAX_STREAMS };
        let mut session = Session::new(side, settings, settings, 4000);
        let mut input = plaintexts;
        let (mut attached, mut out) = (Vec::new(), Vec::new());
        while let Some((order, rest)) = input.split_first() {
            let id = u32::from(order >> 4 & 7);
            let released = attached.len();
            attached.retain(|id| session.is_open(*id));
            for _ in attached.len()..released {
                session.release();
            }
            match order & 15 {
                0 if side == Side::Entry => drop(session.open(&Target::Name("a".to_owned(), 1), 1)),
                0 if attached.contains(&id) && session.allowance(id) == 0 && session.finish(id).is_none() => {
                    // Not opened yet, or finished; only the first may be opened.
                    if !opened_before(&session, id) {
                        session.opened(id, "192.0.2.1:1".parse().expect("an address"));
                    }
                }
                1 => session.consumed(id, session.held(id).min(u32::from(order >> 4)), Duration::ZERO),
                2 => session.reset(id, reset::IDLE),
                3 => drop(session.ping([*order; 8])),
                4 | 5 => {
                    out.clear();
                    let more = session.poll_control(&mut out, usize::from(*order) * 4);
                    assert!(out.len() <= usize::from(*order) * 4);
                    if !more && session.allowance(id) > 0 {
                        let header = session.data(id, 1);
                        assert_eq!((header.kind, header.length, header.stream), (kind::DATA, 1, id));
                    } else if !more {
                        let fin = session.finish(id);
                        assert!(fin.is_none_or(|header| (header.kind, header.stream) == (kind::FIN, id)));
                    }
                }
                _ => {
                    let length = rest.first().map_or(0, |length| usize::from(*length)).min(rest.len());
                    let (record, rest) = rest.split_at(length);
                    input = rest;
                    if !walk(&mut session, record, &mut attached) {
                        break;
                    }
                    continue;
                }
            }
            input = rest;
        }
        out.clear();
        assert!(!session.poll_control(&mut out, usize::MAX));
        let most = 2 * (FRAME_HEADER + 8) + (FRAME_HEADER + 201) + 3 * MAX_STREAMS as usize * (FRAME_HEADER + 32);
        assert!(out.len() <= most, "{} bytes are owed", out.len());
        assert!(session.streams() <= MAX_STREAMS as usize);
    }
}

/// Whether OPENED was said: then a stream without allowance has used it up, or has finished. The sessions do not tell; a clone tries.
fn opened_before(session: &Session, id: u32) -> bool {
    let mut clone = session.clone();
    let credit = Header { kind: kind::WINDOW, flags: 0, length: 4, stream: id };
    let told = clone.handle(credit, &1_u32.to_le_bytes(), Duration::ZERO);
    clone.allowance(id) > 0 || !matches!(told, Ok(Some(Incoming::Credit { .. })))
}

/// Gives a record to a session. `false`: the tunnel has ended.
fn walk(session: &mut Session, record: &[u8], attached: &mut Vec<u32>) -> bool {
    let mut frames = Frames::new(record);
    loop {
        let (header, range) = match frames.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => return true,
            Err(_) => return false,
        };
        match session.handle(header, &record[range], Duration::ZERO) {
            Ok(Some(Incoming::Open { stream, .. })) => {
                session.attach(stream, 1);
                attached.push(stream);
            }
            Ok(Some(Incoming::GoAway { text, .. })) => assert!(text.len() <= 200 && text.is_ascii()),
            Ok(_) => {}
            Err(fault) => {
                assert!(fault.to_string().len() <= 200 && fault.code() >= goaway::ENDS_FROM);
                session.go_away(fault.code(), &fault.to_string());
                for id in attached {
                    session.consumed(*id, session.held(*id), Duration::ZERO);
                }
                let mut out = Vec::new();
                assert!(!session.poll_control(&mut out, usize::MAX));
                assert_eq!(out.first(), Some(&kind::GOAWAY));
                assert_eq!(out.len(), FRAME_HEADER + 1 + fault.to_string().len(), "nothing else is said");
                return false;
            }
        }
    }
}
