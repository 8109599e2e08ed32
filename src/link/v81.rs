//! A link that speaks 0x81: flows are streams with windows of their own, everything is sealed in records, and the tunnel is always read.
//!
//! ```text
//!   socket ─▶ Input: whole records, opened in place ─▶ Session: frames ─▶ events
//!   flows ─▶ queue ─▶ flush: control frames first, small frames gathered, large ones in place ─▶ seal ─▶ outbox ─▶ socket
//! ```
//!
//! What always holds between calls:
//! * what is in the outbox is sealed and cannot be overtaken, so it is kept short: control frames of the next turn stand behind little;
//! * a stream's DATA, FIN and RESET 0x13 keep their order in `queue`, or in `stalled` while its credit is used up;
//! * nothing of a stream that was reset leaves any more.

mod input;
mod liveness;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use self::input::Input;
use self::liveness::{Check, Liveness};
use super::{Busy, Due, Handle, LINK_TIMER, Link, LinkEvent, LinkFault, Pressure, Reset, Why};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::outbox::Outbox;
use crate::protocol::socks5::Target;
use crate::protocol::v81::frame::{goaway, kind};
use crate::protocol::v81::handshake::Authenticated;
use crate::protocol::v81::record::{PLAINTEXT_MAX, RecordWriter, TAG};
use crate::protocol::v81::session::{Fault, Incoming, Session};
use crate::shard::buffers::Chunk;
use crate::shard::core::{Core, Owner};
use crate::shard::io::Errno;
use crate::shard::slab::Key;
use crate::shard::time::Time;
use crate::shard::timers::TimerId;

/// Payloads up to this size are copied together; larger ones are sealed where they are.
const GATHERED_PAYLOAD: usize = 4096;
/// A gathered record is sealed when it has come to this.
const GATHERED: usize = 16_384;
/// Sealed bytes that wait for the kernel: one large record and the next.
const SEALED: usize = limits::QUEUE_BYTES;
/// Flows woken at once while others still wait their turn.
const WOKEN: usize = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct V81 {
    socket: Key,
    name: Option<Arc<str>>,
    session: Session,
    input: Input,
    writer: RecordWriter,
    /// What leaves next, in order.
    queue: VecDeque<(u32, Item)>,
    /// Bytes of payload in it.
    queued: usize,
    /// How many at its front hold a slot only if they may.
    settled: usize,
    /// What waits for its stream's credit.
    stalled: HashMap<u32, VecDeque<Item>>,
    outbox: Outbox,
    /// FIN goes behind everything.
    is_finishing: bool,
    waiting: VecDeque<Key>,
    liveness: Liveness,
    timer: Option<(Time, TimerId)>,
    bytes_in: u64,
    /// Sealed since the start.
    bytes_out: u64,
}

#[derive(Debug)]
enum Item {
    Data(Chunk),
    Fin,
    /// Since when.
    Reset(Time),
}

impl Item {
    fn let_go_of_slot(&mut self, low: bool) {
        if let Self::Data(chunk) = self {
            chunk.let_go_of_slot(low);
        }
    }
}

impl V81 {
    /// A link over an authenticated tunnel. `outbox` holds what the login has still to send.
    pub(super) fn new(socket: Key, proof: Authenticated, outbox: Outbox, now: Time) -> Self {
        let Authenticated { side, name, reader, writer, own, peer, .. } = proof;
        let mut link = Self {
            socket,
            name,
            session: Session::new(side, own, peer, limits::WINDOW_MAX),
            input: Input::new(reader),
            writer,
            queue: VecDeque::new(),
            queued: 0,
            settled: 0,
            stalled: HashMap::new(),
            bytes_out: outbox.bytes() as u64,
            outbox,
            is_finishing: false,
            waiting: VecDeque::new(),
            liveness: Liveness::new(now),
            timer: None,
            bytes_in: 0,
        };
        // Its answer says how long a round trip takes, by which windows grow.
        link.ping(now);
        link
    }

    fn ping(&mut self, now: Time) {
        if self.session.ping(now.since(Time::ZERO).as_nanos().to_le_bytes()[..8].try_into().unwrap_or_default()) {
            self.liveness.on_ping(now);
        }
    }

    /// Queues what has its credit; what has none waits for it, and everything of the stream behind it: without a slot, as that may be for long.
    fn put(&mut self, stream: u32, mut item: Item) {
        if matches!(item, Item::Fin) && mutants::on(Mutant::FinOvertakesData) {
            return self.queue.push_front((stream, item));
        }
        if let Some(items) = self.stalled.get_mut(&stream) {
            item.let_go_of_slot(true);
            items.push_back(item);
        } else if let Some(rest) = self.put_within_credit(stream, item) {
            self.stalled.insert(stream, VecDeque::from([rest]));
        }
    }

    /// The stream has credit again.
    fn unstall(&mut self, stream: u32) {
        let Some(mut items) = self.stalled.remove(&stream) else { return };
        while let Some(item) = items.pop_front() {
            if let Some(rest) = self.put_within_credit(stream, item) {
                items.push_front(rest);
                self.stalled.insert(stream, items);
                return;
            }
        }
    }

    /// Gives back what the credit is not enough for.
    fn put_within_credit(&mut self, stream: u32, item: Item) -> Option<Item> {
        let (item, rest) = match item {
            Item::Data(chunk) => {
                let credit = self.session.allowance(stream) as usize;
                let (now, rest) = if credit >= chunk.len() {
                    (chunk, None)
                } else {
                    let (now, rest) = chunk.as_slice().split_at(credit);
                    (Chunk::copy_of(now), Some(Item::Data(Chunk::copy_of(rest))))
                };
                if now.is_empty() {
                    return rest;
                }
                self.session.reserve(stream, u32::try_from(now.len()).unwrap_or(u32::MAX));
                self.queued += now.len();
                (Item::Data(now), rest)
            }
            item => (item, None),
        };
        self.queue.push_back((stream, item));
        rest
    }

    /// Takes from the queue what fits, and seals it.
    fn seal_queue(&mut self, core: &mut Core) {
        let mut gathered = core.take_scratch();
        while self.outbox.bytes() + gathered.len() < SEALED {
            if self.session.has_control() {
                if !self.session.poll_control(&mut gathered, GATHERED) || gathered.len() < GATHERED / 2 {
                    continue;
                }
            } else if let Some((stream, item)) = self.queue.pop_front() {
                self.settled = self.settled.saturating_sub(1);
                self.seal_item(core, stream, item, &mut gathered);
                if gathered.len() < GATHERED {
                    continue;
                }
            } else {
                break;
            }
            self.seal(core, &mut gathered);
        }
        self.seal(core, &mut gathered);
        core.put_scratch(gathered);
        if !self.session.has_control() {
            self.liveness.on_sealed(self.bytes_out);
            if self.is_finishing && self.queue.is_empty() {
                self.outbox.finish();
            }
        }
    }

    fn seal_item(&mut self, core: &Core, stream: u32, item: Item, gathered: &mut Vec<u8>) {
        match item {
            Item::Data(chunk) => {
                self.queued -= chunk.len();
                self.seal_data(core, stream, chunk, gathered);
            }
            Item::Fin => {
                if let Some(header) = self.session.finish(stream) {
                    gathered.extend_from_slice(&header.encode());
                }
            }
            Item::Reset(_) => {
                if let Some((header, code)) = self.session.reset_in_order(stream) {
                    gathered.extend_from_slice(&header.encode());
                    gathered.push(code);
                }
            }
        }
    }

    fn seal_data(&mut self, core: &Core, stream: u32, mut chunk: Chunk, gathered: &mut Vec<u8>) {
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let Some(header) = self.session.reserved(stream, length) else { return };
        let header = header.encode();
        if chunk.len() <= GATHERED_PAYLOAD || chunk.room() < TAG {
            if gathered.len() + header.len() + chunk.len() > PLAINTEXT_MAX {
                self.seal(core, gathered);
            }
            gathered.extend_from_slice(&header);
            gathered.extend_from_slice(chunk.as_slice());
            return;
        }
        self.seal(core, gathered);
        chunk.prepend(&header);
        let plaintext = chunk.as_mut_slice().expect("bytes from a flow's socket are in a slot that nobody shares");
        let (length, tag) = self.writer.seal(plaintext);
        chunk.prepend(&length);
        chunk.append(&tag);
        self.push(chunk);
    }

    /// Seals what has been gathered.
    fn seal(&mut self, core: &Core, gathered: &mut Vec<u8>) {
        if gathered.is_empty() {
            return;
        }
        let plaintext = gathered.len();
        gathered.extend_from_slice(&[0; TAG]);
        let mut chunk = core.copy_of(gathered);
        gathered.clear();
        let bytes = chunk.as_mut_slice().expect("a copy is not shared");
        let (length, tag) = self.writer.seal(&mut bytes[..plaintext]);
        bytes[plaintext..].copy_from_slice(&tag);
        chunk.prepend(&length);
        self.push(chunk);
    }

    fn push(&mut self, chunk: Chunk) {
        self.bytes_out += chunk.len() as u64;
        self.outbox.push(chunk);
    }

    /// Copies out what waits and should not hold a slot meanwhile: two tunnels' ends that both have all their slots full of what they are to
    /// send would wait for each other for ever.
    fn let_go_of_slots(&mut self, core: &Core) {
        let low = core.slots_are_low();
        let from = if low { 0 } else { self.settled };
        for (_, item) in self.queue.iter_mut().skip(from) {
            item.let_go_of_slot(low);
        }
        self.settled = self.queue.len();
    }

    fn drop_queued(&mut self, stream: u32) {
        self.stalled.remove(&stream);
    }

    /// When to look next, and what at.
    fn check(&self, now: Time) -> Check {
        let check = self.liveness.check(now);
        match (check, self.input.part_since().map(|since| since + limits::RECORD_TIME)) {
            (_, Some(until)) if now >= until => Check::Dead,
            (Check::Wait(due), Some(until)) => Check::Wait(due.min(until)),
            (check, _) => check,
        }
    }

    /// One timer, never later than what is due; one that is early looks again.
    fn set_timer(&mut self, core: &mut Core, tunnel: Key) {
        let at = match self.check(core.now()) {
            Check::Wait(due) => due,
            Check::Ping | Check::Dead => core.now(),
        };
        if let Some((set, timer)) = self.timer {
            if set <= at {
                return;
            }
            core.cancel_timer(&mut Some(timer));
        }
        self.timer = Some((at, core.set_timer(at - core.now(), Owner::Tunnel(tunnel), LINK_TIMER)));
    }
}

/// A flow on 0x81 is called by its stream, and by nothing else.
fn stream(handle: Handle) -> u32 {
    match handle {
        Handle::Stream(stream) => stream,
        Handle::Destination(destination) => unreachable!("{destination} was not named by a link of 0x81"),
    }
}

/// Time as the session takes it.
fn since_start(now: Time) -> Duration {
    now.since(Time::ZERO)
}

impl Link for V81 {
    fn socket(&self) -> Key {
        self.socket
    }

    fn use_ids(&mut self, ids: u32) {
        self.session = self.session.clone().with_ids_used(ids);
    }

    fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    // ---- what comes in

    fn take_in(&mut self, chunk: Chunk, now: Time) {
        self.liveness.on_bytes(now);
        let before = self.input.held();
        self.bytes_in += (chunk.len() - before) as u64;
        self.input.take_in(chunk, now);
    }

    fn next_event(&mut self, now: Time) -> Result<Option<LinkEvent>, LinkFault> {
        while let Some((header, range)) = self.input.next_frame()? {
            if header.kind == kind::GOAWAY && mutants::on(Mutant::GoAwayUnanswered) {
                continue;
            }
            if header.kind == kind::DATA && !self.session.is_open(header.stream) && mutants::on(Mutant::ClosedNotSkipped) {
                return Err(Fault::NotOpened { kind: header.kind, got: header.stream, last: 0 }.into());
            }
            let incoming = self.session.handle(header, self.input.payload(range.clone()), since_start(now))?;
            let Some(incoming) = incoming else { continue };
            return Ok(Some(match incoming {
                Incoming::Open { stream, target } => LinkEvent::Open(Handle::Stream(stream), target),
                Incoming::Opened { tag, bound } => LinkEvent::Opened(Key::from_bits(tag), bound),
                Incoming::Data { tag } => LinkEvent::Data(Key::from_bits(tag), self.input.part(range)),
                Incoming::Finished { tag } => LinkEvent::Finished(Key::from_bits(tag)),
                Incoming::Reset { tag, code } => {
                    self.drop_queued(header.stream);
                    LinkEvent::Reset(Key::from_bits(tag), code)
                }
                Incoming::Credit { tag } => {
                    self.unstall(header.stream);
                    LinkEvent::Credit(Key::from_bits(tag))
                }
                Incoming::Pong => {
                    if let Some(rtt) = self.liveness.on_pong(now) {
                        self.session.set_rtt(rtt);
                    }
                    continue;
                }
                Incoming::GoAway { code, text } => {
                    debug!("the peer says: {code:#04x} {text}");
                    if code >= goaway::ENDS_FROM {
                        return Err(LinkFault::GoAway(text));
                    }
                    continue;
                }
            }));
        }
        Ok(None)
    }

    fn receive(&mut self, core: &mut Core) {
        self.input.receive(core, self.socket);
    }

    fn attach(&mut self, handle: Handle, flow: Key) {
        self.session.attach(stream(handle), flow.to_bits());
    }

    fn refuse(&mut self, handle: Handle, why: Why, _now: Time) {
        self.session.refuse(stream(handle), why.code());
    }

    fn discard_input(&mut self) {
        self.input.discard();
    }

    // ---- what goes out

    fn open(&mut self, target: &Target, flow: Key, _now: Time) -> Result<Handle, Busy> {
        self.session.open(target, flow.to_bits()).map(Handle::Stream).map_err(|_| Busy)
    }

    fn opened(&mut self, handle: Handle, bound: Option<SocketAddr>) {
        // A connection that has lost its address is about to end.
        let bound = bound.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        self.session.opened(stream(handle), bound);
    }

    fn allowance(&self, handle: Handle) -> usize {
        let stream = stream(handle);
        if self.stalled.contains_key(&stream) {
            return 0;
        }
        (self.session.allowance(stream) as usize).min(limits::V81_PAYLOAD_MAX)
    }

    fn send(&mut self, handle: Handle, chunk: Chunk) {
        self.put(stream(handle), Item::Data(chunk));
    }

    fn finish(&mut self, handle: Handle, _now: Time) -> bool {
        self.put(stream(handle), Item::Fin);
        false
    }

    fn reset(&mut self, handle: Handle, why: Why, _unfinished: bool, now: Time) -> Reset {
        let stream = stream(handle);
        if why == Why::Broken {
            self.put(stream, Item::Reset(now));
        } else {
            self.drop_queued(stream);
            self.session.reset(stream, why.code());
        }
        Reset::Told
    }

    fn give_up_stalled(&mut self, now: Time, patience: Duration) {
        let is_over = |items: &VecDeque<Item>| matches!(items.back(), Some(Item::Reset(since)) if now.since(*since) >= patience);
        let over: Vec<u32> = self.stalled.iter().filter(|(_, items)| is_over(items)).map(|(stream, _)| *stream).collect();
        for stream in over {
            self.drop_queued(stream);
            self.session.reset(stream, Why::Broken.code());
        }
    }

    fn on_taken(&mut self, handle: Handle, bytes: usize, now: Time) {
        self.session.consumed(stream(handle), u32::try_from(bytes).unwrap_or(u32::MAX), since_start(now));
    }

    fn held(&self, handle: Handle) -> Option<usize> {
        let stream = stream(handle);
        self.session.is_open(stream).then(|| self.session.held(stream) as usize)
    }

    fn on_gone(&mut self) {
        self.session.release();
    }

    fn wind_down(&mut self) {
        self.session.go_away(goaway::STOPPING, "stopping");
    }

    fn finish_sending(&mut self) -> bool {
        self.is_finishing = true;
        true
    }

    fn last_word(&mut self, fault: &LinkFault) -> bool {
        let code = match fault {
            LinkFault::Rule(fault) => fault.code(),
            LinkFault::Withdrawn => goaway::KEY,
            // What does not verify is not answered.
            _ => return false,
        };
        self.session.go_away(code, &fault.to_string());
        self.queue.clear();
        self.is_finishing = true;
        true
    }

    fn flush(&mut self, core: &mut Core, tunnel: Key) {
        self.seal_queue(core);
        self.outbox.flush(core, self.socket);
        self.let_go_of_slots(core);
        self.set_timer(core, tunnel);
    }

    fn on_sent(&mut self, chunk: Chunk, result: Result<u32, Errno>, now: Time) -> Result<(), Errno> {
        self.outbox.on_sent(chunk, result)?;
        self.liveness.on_sent(self.bytes_out - self.outbox.bytes() as u64, now);
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        self.queued_bytes() == 0 && !self.session.has_control()
    }

    fn queued_bytes(&self) -> usize {
        self.queued + self.outbox.bytes()
    }

    /// A full queue stops the reading of connections, and with that their ends: alone it keeps a FIN from ever meeting data here.
    fn has_room(&self) -> bool {
        self.queued_bytes() < limits::QUEUE_BYTES || mutants::on(Mutant::FinOvertakesData)
    }

    fn wait_for_room(&mut self, flow: Key) {
        self.waiting.push_back(flow);
    }

    /// Streams share the tunnel in turns of one buffer: a few at a time, or those that come last would stand behind all others' buffers. Who
    /// has nothing to send after all must not hold up the rest, so when everything has left all go on.
    fn take_woken(&mut self, woken: &mut Vec<Key>) {
        if !self.has_room() {
            return;
        }
        let count = if self.queued_bytes() == 0 { self.waiting.len() } else { WOKEN.min(self.waiting.len()) };
        woken.extend(self.waiting.drain(..count));
    }

    // ---- time

    fn on_timer(&mut self, now: Time) -> Due {
        self.timer = None;
        match self.check(now) {
            Check::Wait(_) => {}
            Check::Ping => self.ping(now),
            Check::Dead => {
                let is_slow = self.input.part_since().is_some_and(|since| now >= since + limits::RECORD_TIME);
                let why = if is_slow { "a record was not whole in time" } else { "no sign of life from the other end" };
                return Due { unanswered: Vec::new(), lost: Some(why) };
            }
        }
        Due::default()
    }

    fn cancel_timer(&mut self, core: &mut Core) {
        if let Some((_, timer)) = self.timer.take() {
            core.cancel_timer(&mut Some(timer));
        }
    }

    fn prove(&mut self, now: Time) {
        if self.liveness.suspect(now) {
            self.ping(now);
        }
    }

    // ---- back-pressure

    fn has_windows(&self) -> bool {
        true
    }

    fn set_pressure(&mut self, pressure: Pressure) {
        self.session.allow_growth(pressure == Pressure::None);
        self.session.withhold(pressure != Pressure::None);
    }

    // ---- what it is worth

    fn is_idle(&self) -> bool {
        self.session.streams() == 0
    }

    fn keys(&self) -> usize {
        self.session.streams()
    }

    fn flows(&self) -> usize {
        self.session.streams()
    }

    fn flow_keys(&self) -> Vec<Key> {
        self.session.tags().map(Key::from_bits).collect()
    }

    fn can_open(&self, _target: &Target, now: Time) -> bool {
        !self.session.is_winding() && self.liveness.is_sound(now) && self.session.has_place()
    }

    fn is_winding(&self) -> bool {
        self.session.is_winding()
    }

    fn is_over(&self) -> bool {
        self.session.is_finished()
    }

    fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }
}
