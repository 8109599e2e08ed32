//! One authenticated tunnel over one socket, in the shape that both roles and both protocol versions share: flows are opened, carry
//! bytes, are finished or reset. What only 0x80 needs (keys that are taken, ends that cross, a tunnel that must end so that the peer
//! notices) stays in here; what only the author's programs need, in `original`.
//!
//! ```text
//!   socket ─▶ take_in: decipher in place ─▶ next_event: Open, Data, Finished
//!   socket ◀─ flush ◀─ outbox ◀─ send: encipher in place, header in front ◀─ flows
//! ```
//!
//! What always holds between calls:
//! * a flow's key is free here exactly when both ends have passed ([`Session`]); no timer frees one;
//! * the tunnel is not read while a flow's queue is full (`blocked`): 0x80 has no windows;
//! * flows that found the outbox full are in `waiting`, and are woken when there is room.

mod original;

use std::collections::VecDeque;

use tracing::info;

use self::original::Original;
use crate::crypto::fixed_iv::MessageCipher;
use crate::limits::QUEUE_BYTES;
use crate::outbox::Outbox;
use crate::protocol::v80::frame::{self, Destination, FrameError, FrameReader, Header, Piece};
use crate::protocol::v80::handshake::Authenticated;
use crate::protocol::v80::session::{Busy, Incoming, Session, SessionFault};
use crate::protocol::v80::{Profile, Side};
use crate::shard::buffers::Chunk;
use crate::shard::core::Core;
use crate::shard::io::Errno;
use crate::shard::slab::Key;
use crate::shard::time::Time;

pub use self::original::ORIGINAL;

/// See the module.
#[derive(Debug)]
pub struct Link {
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

/// What the peer wants.
#[derive(Debug)]
pub enum LinkEvent {
    /// A flow to this destination (exit only). Answer with [`Link::attach`] or [`Link::refuse`] before asking for the next event.
    Open(Destination),
    /// Bytes of a flow.
    Data(Key, Chunk),
    /// The peer sends no more on this flow.
    Finished(Key),
    /// The peer sends no more on this flow and takes no more either; it is not on the tunnel any more ([`Profile::Original`] only).
    Over(Key),
}

/// What the peer cannot have meant: the tunnel ends.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// A frame that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that does not fit what came before.
    #[error(transparent)]
    Session(#[from] SessionFault),
}

/// What giving a flow up came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// The peer is told, as far as it can be.
    Told,
    /// 0x80 has no word for it: the tunnel, on which the flow is alone, must end.
    TunnelMustEnd,
}

impl Link {
    /// A link over an authenticated tunnel. `outbox` holds what the handshake has still to send.
    #[must_use]
    pub fn new(socket: Key, cipher: MessageCipher, proof: Authenticated, profile: Profile, outbox: Outbox) -> Self {
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

    /// The tunnel's socket.
    #[must_use]
    pub const fn socket(&self) -> Key {
        self.socket
    }

    // ---- what comes in

    /// Takes received bytes in and deciphers them where they are.
    pub fn take_in(&mut self, mut chunk: Chunk) {
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

    /// The next thing the received bytes say; `None` when they have been used up.
    ///
    /// # Errors
    /// A [`LinkFault`] ends the tunnel.
    pub fn next_event(&mut self, now: Time) -> Result<Option<LinkEvent>, LinkFault> {
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

    fn on_header(&mut self, header: Header, now: Time) -> Result<Option<LinkEvent>, LinkFault> {
        self.reading_for = None;
        let incoming = self.session.on_header(header.destination, header.length)?;
        self.note_discarding(now);
        Ok(match incoming {
            Incoming::Open { destination, data } => {
                if data {
                    self.note_late(destination, now);
                }
                Some(LinkEvent::Open(destination))
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

    /// Names the flow of a [`LinkEvent::Open`].
    pub fn attach(&mut self, destination: Destination, flow: Key) {
        self.session.attach(destination, flow.to_bits());
        self.reading_for = Some(flow);
    }

    /// Answers a [`LinkEvent::Open`] with the end: no flow comes of it.
    pub fn refuse(&mut self, destination: Destination, now: Time) {
        self.end(destination, now, Session::give_up);
    }

    // ---- what goes out

    /// Opens a flow (entry only).
    ///
    /// # Errors
    /// [`Busy`] while the destination's (ip, port) is taken on this tunnel.
    pub fn open(&mut self, destination: Destination, flow: Key, now: Time) -> Result<(), Busy> {
        self.session.open(destination, flow.to_bits())?;
        match &mut self.original {
            None => self.push_end(destination),
            Some(original) => original.place(destination, flow, now),
        }
        Ok(())
    }

    /// Sends bytes of a flow, in place.
    pub fn send(&mut self, destination: Destination, mut chunk: Chunk) {
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

    /// No more bytes come from our side of the flow. `true`: its key is free, nothing comes from the other side either.
    pub fn finish(&mut self, destination: Destination, now: Time) -> bool {
        self.end(destination, now, Session::finish);
        if let Some(original) = &mut self.original {
            original.on_client_end(destination);
        }
        self.session.is_free(destination)
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

    /// Gives a flow up: what still comes for it is dropped. `unfinished`: the peer would take what it has got for whole.
    pub fn reset(&mut self, destination: Destination, unfinished: bool, now: Time) -> Reset {
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

    /// Sends FIN behind everything that is queued; from here on the tunnel only waits for the peer's. `false`: not with this profile.
    pub fn finish_sending(&mut self) -> bool {
        if self.original.is_none() {
            self.outbox.finish();
        }
        self.original.is_none()
    }

    /// Drops what has been taken in and not been asked for.
    pub fn discard_input(&mut self) {
        self.pieces.clear();
        self.received = Chunk::default();
        self.fault = None;
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

    /// Whether the kernel has everything that was to be sent.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.queued_bytes() == 0
    }

    /// Whether a flow may add bytes.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queued_bytes() < QUEUE_BYTES
    }

    fn queued_bytes(&self) -> usize {
        self.outbox.bytes() + self.original.as_ref().map_or(0, |original| original.queued_bytes())
    }

    /// Has the flow woken when there is room.
    pub fn wait_for_room(&mut self, flow: Key) {
        self.waiting.push_back(flow);
    }

    /// Takes the end of a send in; gives the flows that may go on.
    ///
    /// # Errors
    /// The socket's failure.
    pub fn on_sent(&mut self, chunk: Chunk, result: Result<u32, Errno>, now: Time) -> Result<VecDeque<Key>, Errno> {
        self.outbox.on_sent(chunk, result)?;
        if let Some(original) = &mut self.original {
            original.on_sent(now);
        }
        Ok(self.take_woken())
    }

    /// The flows that may go on, if there is room.
    #[must_use]
    pub fn take_woken(&mut self) -> VecDeque<Key> {
        if !self.waiting.is_empty() && self.has_room() { std::mem::take(&mut self.waiting) } else { VecDeque::new() }
    }

    /// Sends what has been queued. Once per turn; `tunnel` is whose timers are set.
    pub fn flush(&mut self, core: &mut Core, tunnel: Key) {
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

    // ---- time, with the author's programs

    /// The timer [`ORIGINAL`] has fired: the flows to give up, because nothing at all has answered them.
    #[must_use]
    pub fn on_time(&mut self, now: Time) -> Vec<Key> {
        let Some(original) = &mut self.original else { return Vec::new() };
        original.on_timer();
        let before = original.queued_bytes();
        let due = original.on_time(now);
        self.bytes_out += (original.queued_bytes() - before) as u64;
        for destination in due.rested {
            self.session.release(destination);
        }
        self.note_discarding(now);
        due.unanswered
    }

    /// Lets go of the link's timer, before the tunnel ends.
    pub fn cancel_timer(&mut self, core: &mut Core) {
        if let Some(original) = &mut self.original {
            original.cancel_timer(core);
        }
    }

    // ---- back-pressure

    /// A flow's queue is full: the tunnel waits for it.
    pub const fn block(&mut self) {
        self.blocked += 1;
    }

    /// It has drained, or is gone.
    pub const fn unblock(&mut self) {
        self.blocked -= 1;
    }

    /// Whether a flow's queue keeps the tunnel unread.
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.blocked > 0
    }

    // ---- what it is worth

    /// Whether nothing at all is on it, resting keys aside: it can be given to a flow that is then alone, or closed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.session.keys() == 0 || (self.original.is_some() && self.session.flows() == 0)
    }

    /// Keys taken on it, those of given-up flows included.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.session.keys()
    }

    /// Flows on it, given-up ones not counted.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.session.flows()
    }

    /// The flows on it.
    #[must_use]
    pub fn flow_keys(&self) -> Vec<Key> {
        self.session.tags().map(|(_, tag)| Key::from_bits(tag)).collect()
    }

    /// Whether a flow to this destination can be opened now.
    #[must_use]
    pub fn is_free(&self, destination: Destination) -> bool {
        self.session.is_free(destination)
    }

    /// Since when something is being dropped that the peer still sends.
    #[must_use]
    pub const fn discarding_since(&self) -> Option<Time> {
        self.discarding_since
    }

    /// Bytes taken in and queued to go out since the start.
    #[must_use]
    pub const fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }

    fn note_discarding(&mut self, now: Time) {
        if self.session.discarding() == 0 {
            self.discarding_since = None;
        } else if self.discarding_since.is_none() {
            self.discarding_since = Some(now);
        }
    }
}
