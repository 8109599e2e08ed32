//! A link that speaks 0x80. What only 0x80 needs (keys that are taken, ends that cross, a tunnel that must end so that the peer
//! notices) stays in here; what only the author's programs need, in `original`.
//!
//! What always holds between calls:
//! * a flow's key is free here exactly when both ends have passed ([`Session`]); no timer frees one;
//! * the tunnel is not read while a flow's queue is full (`blocked`): 0x80 has no windows;
//! * flows that found the outbox full are in `waiting`, and are woken when there is room.

mod original;

use std::collections::VecDeque;

use tracing::info;

use self::original::Original;
use super::{Busy, Due, Handle, Link, LinkEvent, LinkFault, Reset, Why};
use crate::crypto::fixed_iv::MessageCipher;
use crate::outbox::Outbox;
use crate::protocol::Side;
use crate::protocol::socks5::Target;
use crate::protocol::v80::Profile;
use crate::protocol::v80::frame::{self, Destination, FrameError, FrameReader, Header, Piece};
use crate::protocol::v80::handshake::Authenticated;
use crate::protocol::v80::session::{Incoming, Session};
use crate::shard::buffers::Chunk;
use crate::shard::core::Core;
use crate::shard::io::Errno;
use crate::shard::slab::Key;
use crate::shard::time::Time;

/// See the module.
#[derive(Debug)]
pub(super) struct V80 {
    socket: Key,
    cipher: MessageCipher,
    session: Session,
    reader: FrameReader,
    received: Chunk,
    pieces: VecDeque<Piece>,
    fault: Option<FrameError>,
    /// Whose payload is being read: `None` is dropped.
    reading_for: Option<Key>,
    outbox: Outbox,
    blocked: usize,
    waiting: VecDeque<Key>,
    discarding_since: Option<Time>,
    bytes_in: u64,
    bytes_out: u64,
    /// With [`Profile::Original`] only.
    original: Option<Box<Original>>,
}

impl V80 {
    /// A link over an authenticated tunnel. `outbox` holds what the handshake has still to send.
    pub(super) fn new(socket: Key, cipher: MessageCipher, proof: Authenticated, profile: Profile, outbox: Outbox) -> Self {
        Self {
            socket,
            session: Session::new(proof, profile),
            reader: FrameReader::new(cipher.clone()),
            cipher,
            received: Chunk::default(),
            pieces: VecDeque::new(),
            fault: None,
            reading_for: None,
            outbox,
            blocked: 0,
            waiting: VecDeque::new(),
            discarding_since: None,
            bytes_in: 0,
            bytes_out: 0,
            original: (profile == Profile::Original).then(Box::default),
        }
    }

    fn on_header(&mut self, header: Header, now: Time) -> Result<Option<LinkEvent>, LinkFault> {
        self.reading_for = None;
        let incoming = self.session.on_header(header.destination, header.length)?;
        self.note_discarding(now);
        Ok(match incoming {
            Incoming::Open { destination, data } => {
                if data {
                    self.note_late(destination, now);
                }
                Some(LinkEvent::Open(Handle::Destination(destination), Target::Address(destination.to_socket_addr())))
            }
            Incoming::Data(tag) => {
                self.reading_for = Some(Key::from_bits(tag));
                if let Some(original) = &mut self.original {
                    original.on_reply(header.destination);
                }
                None
            }
            Incoming::End(tag) => {
                let ended = self.rest(header.destination);
                tag.map(|tag| if ended { LinkEvent::Over(Key::from_bits(tag)) } else { LinkEvent::Finished(Key::from_bits(tag)) })
            }
            Incoming::Drop => None,
        })
    }

    /// Late data of a flow that we ended opens a connection of its own, as it does in the author's server.
    fn note_late(&self, destination: Destination, now: Time) {
        if let Some(ago) = self.original.as_ref().and_then(|original| original.is_late(destination, now)) {
            info!(
                "data for {destination} came {} ms after its end: late, or of a new client; it gets a connection of its own",
                ago.as_millis()
            );
        }
    }

    /// With [`Profile::Original`], on the entry: the flow's key rests, nothing more of it leaves. `false`: other rules.
    fn rest(&mut self, destination: Destination) -> bool {
        let Some(original) = self.original.as_mut().filter(|_| self.session.side() == Side::Entry) else { return false };
        if original.rest(destination) {
            self.session.release(destination);
        }
        true
    }

    /// Sends our end, if the session says so.
    fn end(&mut self, destination: Destination, now: Time, how: impl FnOnce(&mut Session, Destination) -> bool) {
        if how(&mut self.session, destination) {
            self.push_end(destination);
            if let Some(original) = &mut self.original {
                original.on_own_end(destination, now);
            }
        }
        self.note_discarding(now);
    }

    /// A frame without payload: an open or an end.
    fn push_end(&mut self, destination: Destination) {
        if let Some(original) = &mut self.original {
            self.bytes_out += destination.header_bytes() as u64;
            return original.queue_empty(destination);
        }
        let header = Header { destination, length: 0 }.encode();
        self.push(Chunk::copy_of(header.as_slice()));
    }

    fn push(&mut self, chunk: Chunk) {
        self.bytes_out += chunk.len() as u64;
        self.outbox.push(chunk);
    }

    fn note_discarding(&mut self, now: Time) {
        if self.session.discarding() == 0 {
            self.discarding_since = None;
        } else if self.discarding_since.is_none() {
            self.discarding_since = Some(now);
        }
    }
}

/// A flow on 0x80 is called by its destination, and by nothing else.
fn destination(handle: Handle) -> Destination {
    match handle {
        Handle::Destination(destination) => destination,
        Handle::Stream(stream) => unreachable!("stream {stream} was not made by a link of 0x80"),
    }
}

impl Link for V80 {
    fn socket(&self) -> Key {
        self.socket
    }

    // ---- what comes in

    fn take_in(&mut self, mut chunk: Chunk, _now: Time) {
        self.bytes_in += chunk.len() as u64;
        let mut at = 0;
        let bytes = chunk.as_mut_slice().expect("bytes from the tunnel's socket are in a slot that nobody shares");
        loop {
            match self.reader.next(bytes, &mut at) {
                Ok(Some(piece)) => self.pieces.push_back(piece),
                Ok(None) => break,
                Err(error) => {
                    self.fault = Some(error);
                    break;
                }
            }
        }
        self.received = chunk;
    }

    fn next_event(&mut self, now: Time) -> Result<Option<LinkEvent>, LinkFault> {
        while let Some(piece) = self.pieces.pop_front() {
            let event = match piece {
                Piece::Header(header) => self.on_header(header, now)?,
                Piece::Payload { range, .. } => {
                    self.reading_for.map(|flow| LinkEvent::Data(flow, self.received.part(range.start, range.end)))
                }
            };
            if event.is_some() {
                if self.pieces.is_empty() {
                    self.received = Chunk::default();
                }
                return Ok(event);
            }
        }
        self.received = Chunk::default();
        // Thousands of small frames can come in one slot; a tunnel that is idle keeps no list of them.
        self.pieces = VecDeque::new();
        self.fault.take().map_or(Ok(None), |fault| Err(fault.into()))
    }

    fn receive(&mut self, core: &mut Core) {
        core.receive(self.socket);
    }

    fn attach(&mut self, handle: Handle, flow: Key) {
        self.session.attach(destination(handle), flow.to_bits());
        self.reading_for = Some(flow);
    }

    fn refuse(&mut self, handle: Handle, _why: Why, now: Time) {
        self.end(destination(handle), now, Session::give_up);
    }

    fn discard_input(&mut self) {
        self.pieces.clear();
        self.received = Chunk::default();
        self.fault = None;
    }

    // ---- what goes out

    fn open(&mut self, target: &Target, flow: Key, now: Time) -> Result<Handle, Busy> {
        // A name is looked up before a tunnel is chosen.
        let Target::Address(address) = target else { return Err(Busy) };
        let destination = Destination::from(*address);
        self.session.open(destination, flow.to_bits()).map_err(|_| Busy)?;
        match &mut self.original {
            None => self.push_end(destination),
            Some(original) => original.place(destination, flow, now),
        }
        Ok(Handle::Destination(destination))
    }

    fn allowance(&self, handle: Handle) -> usize {
        Profile::Ours.payload_max(destination(handle))
    }

    fn send(&mut self, handle: Handle, mut chunk: Chunk) {
        let destination = destination(handle);
        if let Some(original) = &mut self.original {
            let before = original.queued_bytes();
            original.queue(&self.cipher, destination, chunk.as_slice());
            self.bytes_out += (original.queued_bytes() - before) as u64;
            return;
        }
        let bytes = chunk.as_mut_slice().expect("bytes from a flow's socket are in a slot that nobody shares");
        let header = frame::seal(&self.cipher, destination, bytes);
        chunk.prepend(header.as_slice());
        self.push(chunk);
    }

    fn finish(&mut self, handle: Handle, now: Time) -> bool {
        let destination = destination(handle);
        self.end(destination, now, Session::finish);
        if let Some(original) = &mut self.original {
            original.on_client_end(destination);
        }
        self.session.is_free(destination)
    }

    fn reset(&mut self, handle: Handle, _why: Why, unfinished: bool, now: Time) -> Reset {
        let destination = destination(handle);
        // Keys that rest are nobody's.
        let others = if self.original.is_some() { self.session.flows() } else { self.session.keys() };
        if unfinished && others == 1 {
            // The end stays unsaid: it would make whole what is not.
            let _unsaid = self.session.give_up(destination);
            return Reset::TunnelMustEnd;
        }
        self.end(destination, now, Session::give_up);
        self.rest(destination);
        Reset::Told
    }

    fn finish_sending(&mut self) -> bool {
        if self.original.is_none() {
            self.outbox.finish();
        }
        self.original.is_none()
    }

    fn flush(&mut self, core: &mut Core, tunnel: Key) {
        if let Some(original) = &mut self.original {
            if self.outbox.bytes() == 0
                && let Some(frame) = original.next_frame(core.now())
            {
                self.outbox.push(frame);
            }
            original.set_timer(core, tunnel, self.outbox.bytes() > 0);
        }
        self.outbox.flush(core, self.socket);
    }

    fn on_sent(&mut self, chunk: Chunk, result: Result<u32, Errno>, now: Time) -> Result<(), Errno> {
        self.outbox.on_sent(chunk, result)?;
        if let Some(original) = &mut self.original {
            original.on_sent(now);
        }
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        self.queued_bytes() == 0
    }

    fn queued_bytes(&self) -> usize {
        self.outbox.bytes() + self.original.as_ref().map_or(0, |original| original.queued_bytes())
    }

    fn wait_for_room(&mut self, flow: Key) {
        self.waiting.push_back(flow);
    }

    fn take_woken(&mut self, woken: &mut Vec<Key>) {
        if self.has_room() {
            woken.extend(self.waiting.drain(..));
        }
    }

    // ---- time, with the author's programs

    fn on_timer(&mut self, now: Time) -> Due {
        let Some(original) = &mut self.original else { return Due::default() };
        original.on_timer();
        let before = original.queued_bytes();
        let due = original.on_time(now);
        self.bytes_out += (original.queued_bytes() - before) as u64;
        for destination in due.rested {
            self.session.release(destination);
        }
        self.note_discarding(now);
        Due { unanswered: due.unanswered, lost: None }
    }

    fn cancel_timer(&mut self, core: &mut Core) {
        if let Some(original) = &mut self.original {
            original.cancel_timer(core);
        }
    }

    // ---- back-pressure

    fn block(&mut self) {
        self.blocked += 1;
    }

    fn unblock(&mut self) {
        self.blocked -= 1;
    }

    fn is_blocked(&self) -> bool {
        self.blocked > 0
    }

    // ---- what it is worth

    /// Resting keys aside: it can be given to a flow that is then alone, or closed.
    fn is_idle(&self) -> bool {
        self.session.keys() == 0 || (self.original.is_some() && self.session.flows() == 0)
    }

    fn keys(&self) -> usize {
        self.session.keys()
    }

    fn flows(&self) -> usize {
        self.session.flows()
    }

    fn flow_keys(&self) -> Vec<Key> {
        self.session.tags().map(|(_, tag)| Key::from_bits(tag)).collect()
    }

    fn can_open(&self, target: &Target, _now: Time) -> bool {
        matches!(target, Target::Address(address) if self.session.is_free(Destination::from(*address)))
    }

    fn discarding_since(&self) -> Option<Time> {
        self.discarding_since
    }

    fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }
}
