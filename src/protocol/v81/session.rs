//! The streams of one 0x81 tunnel, as one side sees them: which are open, what may still be sent on each, and what the tunnel owes the wire
//! besides their data. No socket, no clock, no cipher and no queue of payload: frames' headers in, events and headers out.
//!
//! ```text
//!            OPEN             OPENED              both FINs, or one RESET, have passed
//!   (none) ────────▶ opening ────────▶ open ──────────────────────────────────────────▶ closed: what still comes is skipped
//! ```
//!
//! What always holds: ids go up by one, so that a closed stream costs no memory; what a peer can make us owe is bounded (one PONG, one GOAWAY, per
//! stream one OPENED, WINDOW and RESET); a fault leaves no event behind and ends the tunnel.

mod control;
mod fault;
mod incoming;
mod table;
mod windows;

pub use fault::Fault;
pub use incoming::{Incoming, NotNow};

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use super::Side;
use super::frame::address::{self, Asked};
use super::frame::{FRAME_PAYLOAD_MAX, Header, goaway, kind, reset};
use super::settings::Settings;
use crate::limits::V81_STREAMS_MAX;
use crate::protocol::socks5::Target;
use control::Control;
use table::Streams;
use windows::{ATTACHED, GRANTING, Growth, OPENED, OPENING, OWN_FIN, PEER_FIN, Stream};

/// Most credit that a stream may have.
const CREDIT_MAX: u32 = i32::MAX as u32;
/// Places of the table that are kept when its last stream is closed: 12 KiB of them.
const TABLE_KEPT: usize = 256;
/// Ids that an inter-server leaves unused: when no more are left the tunnel winds down.
const IDS_KEPT: u32 = 1 << 16;

/// One tunnel's streams. Made when the settings of both sides are known; gone with the tunnel.
///
/// A stream has its number on the wire and an opaque tag that the role chose. What comes is given to [`Session::handle`], frame by frame. What
/// goes out are two kinds of frames. *Control* frames wait here, and go first: [`Session::poll_control`] until it says `false`. *Ordered* ones (DATA,
/// FIN, and the RESET that says a socket was reset) the role places behind each other, each stream's in order; it asks for their headers
/// **when they are really put on the tunnel**, behind all control frames: [`Session::data`], [`Session::finish`], [`Session::reset_in_order`].
///
/// **When a stream is closed the session forgets it at once**, while the role may still have bytes of it to write to its socket. From then on
/// calls for it do nothing; [`Session::is_open`] tells.
///
/// ```
/// # use std::time::Duration;
/// # use zhwkprox::protocol::socks5::Target;
/// # use zhwkprox::protocol::v81::{Side, frame::Frames, settings::Settings};
/// # use zhwkprox::protocol::v81::session::{Incoming, Session};
/// let (now, settings) = (Duration::ZERO, Settings { stream_window: 262_144, max_streams: 1024 });
/// let mut entry = Session::new(Side::Entry, settings, settings, 16 << 20);
/// let mut exit = Session::new(Side::Exit, settings, settings, 16 << 20);
///
/// let target = Target::Name("example.org".to_owned(), 443);
/// let stream = entry.open(&target, 7)?;
/// let mut record = Vec::new();
/// assert!(!entry.poll_control(&mut record, 65_388)); // nothing is left: data may follow
/// assert_eq!(entry.allowance(stream), 262_144);
/// record.extend_from_slice(&entry.data(stream, 2).encode());
/// record.extend_from_slice(b"hi"); // … to be sealed and sent …
///
/// let mut frames = Frames::new(&record);
/// let (header, range) = frames.next()?.ok_or("no OPEN")?;
/// assert_eq!(exit.handle(header, &record[range], now)?, Some(Incoming::Open { stream, target }));
/// exit.attach(stream, 12); // … look up, dial …
/// let (header, range) = frames.next()?.ok_or("no DATA")?;
/// assert_eq!(exit.handle(header, &record[range], now)?, Some(Incoming::Data { tag: 12 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    side: Side,
    /// Credit that each stream starts with for what we send.
    peer_window: u32,
    /// Streams at once: at the exit what we said, at the entry what the exit said.
    max_streams: usize,
    streams: Streams,
    /// The highest id that was opened. At the entry its OPEN may still wait here.
    last: u32,
    /// The highest id whose OPEN has passed on the wire; what comes for a higher one is a fault.
    known: u32,
    /// Exit: sockets and dials that were not released.
    behind: usize,
    /// Exit: OPENs that were answered here.
    answered: u64,
    growth: Growth,
    control: Control,
}

impl Session {
    /// No stream is open. `window_max` is what a stream's window may grow to, should it be more than it starts with.
    #[must_use]
    pub fn new(side: Side, own: Settings, peer: Settings, window_max: u32) -> Self {
        let max_streams = match side {
            Side::Entry => peer.max_streams.min(V81_STREAMS_MAX),
            Side::Exit => own.max_streams,
        };
        let growth = Growth {
            first: own.stream_window,
            max: window_max.clamp(own.stream_window, CREDIT_MAX.max(own.stream_window)),
            rtt: Duration::ZERO,
            allowed: true,
            withheld: false,
        };
        Self {
            side,
            peer_window: peer.stream_window,
            max_streams: usize::try_from(max_streams).unwrap_or(usize::MAX),
            streams: Streams::default(),
            last: 0,
            known: 0,
            behind: 0,
            answered: 0,
            growth,
            control: Control::default(),
        }
    }

    /// As if that many streams had been opened and closed: for tests of what happens when ids run out.
    #[doc(hidden)]
    #[must_use]
    pub const fn with_ids_used(mut self, last: u32) -> Self {
        self.last = last;
        self.known = last;
        self
    }

    // ---- what comes

    /// Takes one frame that has come. Behind a GOAWAY that ends the tunnel, the peer's or ours, all is skipped.
    ///
    /// # Errors
    /// A correct peer does not send it; the tunnel ends with a GOAWAY of [`Fault::code`] and the fault's text.
    pub fn handle(&mut self, header: Header, payload: &[u8], now: Duration) -> Result<Option<Incoming>, Fault> {
        debug_assert_eq!(usize::from(header.length), payload.len(), "header and payload belong together");
        if self.control.is_ended() {
            return Ok(None);
        }
        fault::check(header, self.side.other())?;
        match header.kind {
            kind::OPEN => self.on_open(header, payload),
            kind::OPENED | kind::DATA | kind::FIN | kind::RESET | kind::WINDOW | kind::DATAGRAM => self.on_stream(header, payload, now),
            kind::PING => {
                if self.control.on_ping(payload.try_into().unwrap_or_default()) {
                    Ok(None)
                } else {
                    Err(Fault::SecondPing)
                }
            }
            kind::PONG => {
                let answers = self.control.on_pong(payload.try_into().unwrap_or_default());
                if answers { Ok(Some(Incoming::Pong)) } else { Err(Fault::StrayPong) }
            }
            kind::GOAWAY => {
                let (code, text) = payload.split_first().map_or((goaway::STOPPING, payload), |(code, text)| (*code, text));
                if self.control.on_goaway(code) {
                    Ok(Some(Incoming::GoAway { code, text: fault::for_the_log(text) }))
                } else {
                    Err(Fault::SecondGoAway { code })
                }
            }
            _ => Ok(None),
        }
    }

    fn on_open(&mut self, header: Header, payload: &[u8]) -> Result<Option<Incoming>, Fault> {
        let Header { flags, length, stream, .. } = header;
        let expected = u64::from(self.last) + 1;
        if u64::from(stream) != expected {
            return Err(Fault::OpenId { got: stream, expected });
        }
        if self.control.is_peer_winding() {
            return Err(Fault::OpenAfterGoAway { stream });
        }
        let owed = self.control.resets();
        if owed >= self.max_streams {
            return Err(Fault::TooManyOwed { stream, owed });
        }
        let asked = address::decode_target(payload);
        if asked == Asked::WrongSize {
            return Err(Fault::Size { kind: kind::OPEN, got: length, expected: "an address or a name, and a port" });
        }
        (self.last, self.known) = (stream, stream);
        let refused = match asked {
            _ if flags == fault::OPEN_UDP => reset::NO_UDP,
            Asked::Refused(code) => code,
            _ if self.behind.max(self.streams.len()) >= self.max_streams => reset::LIMIT,
            Asked::Target(target) => {
                self.streams.insert(stream, Stream::new(0, self.peer_window, self.growth.first, 0));
                return Ok(Some(Incoming::Open { stream, target }));
            }
            Asked::WrongSize => reset::ADDRESS,
        };
        self.answered += 1;
        self.control.reset(stream, refused);
        Ok(None)
    }

    /// A frame for a stream that was opened, or should have been.
    fn on_stream(&mut self, header: Header, payload: &[u8], now: Duration) -> Result<Option<Incoming>, Fault> {
        let Header { kind, stream: id, length, .. } = header;
        if id > self.known {
            return Err(Fault::NotOpened { kind, got: id, last: self.known });
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // Closed. If it is a RESET, ours is not needed any more.
            if kind == kind::RESET {
                self.control.forget_reset(id);
            }
            return Ok(None);
        };
        if self.side == Side::Exit && !stream.is(ATTACHED) {
            debug_assert!(false, "stream {id} was neither attached nor refused");
            self.reset(id, reset::GENERAL);
            return Ok(None);
        }
        let tag = stream.tag;
        if self.side == Side::Entry && !stream.is(OPENED) && !matches!(kind, kind::OPENED | kind::RESET) {
            return Err(Fault::BeforeOpened { kind, stream: id });
        }
        match kind {
            kind::DATA if stream.is(PEER_FIN) => Err(Fault::AfterFin { kind, stream: id }),
            kind::DATA => match stream.arrive(length, now) {
                Ok(()) => Ok(Some(Incoming::Data { tag })),
                Err(credit) => Err(Fault::BeyondCredit { stream: id, got: length, credit }),
            },
            kind::FIN if stream.is(PEER_FIN) => Err(Fault::AfterFin { kind, stream: id }),
            kind::FIN => {
                stream.set(PEER_FIN);
                if stream.is(OWN_FIN) {
                    self.close(id);
                }
                Ok(Some(Incoming::Finished { tag }))
            }
            kind::RESET => {
                self.close(id);
                Ok(Some(Incoming::Reset { tag, code: payload.first().copied().unwrap_or(reset::GENERAL) }))
            }
            kind::WINDOW => {
                let got = u32::from_le_bytes(payload.try_into().unwrap_or_default());
                match stream.credit.checked_add(got).filter(|credit| got > 0 && *credit <= CREDIT_MAX) {
                    None => Err(Fault::Credit { stream: id, got, credit: stream.credit }),
                    Some(credit) => {
                        stream.credit = credit;
                        Ok((!stream.is(OWN_FIN)).then_some(Incoming::Credit { tag }))
                    }
                }
            }
            kind::OPENED if stream.is(OPENED) => Err(Fault::SecondOpened { stream: id }),
            kind::OPENED => {
                let wrong = Fault::Size { kind, got: length, expected: "an address and a port" };
                let bound = address::decode_address(payload).ok_or(wrong)?;
                stream.set(OPENED);
                Ok(Some(Incoming::Opened { tag, bound }))
            }
            _ => Err(Fault::DatagramOnTcp { stream: id }),
        }
    }

    // ---- streams begin

    /// Exit: says whose the stream is that [`Incoming::Open`] announced. It counts towards our limit until [`Session::release`].
    pub fn attach(&mut self, stream: u32, tag: u64) {
        let Some(stream) = self.streams.get_mut(&stream).filter(|stream| !stream.is(ATTACHED)) else {
            debug_assert!(false, "stream {stream} was not just opened");
            return;
        };
        stream.tag = tag;
        stream.set(ATTACHED);
        self.behind += 1;
    }

    /// Exit: answers [`Incoming::Open`] by a RESET, instead of [`Session::attach`].
    pub fn refuse(&mut self, stream: u32, code: u8) {
        debug_assert!(self.streams.get(&stream).is_some_and(|stream| !stream.is(ATTACHED)), "stream {stream} was not just opened");
        self.reset(stream, code);
    }

    /// Entry: opens a stream; its OPEN waits with the control frames. Data may follow behind that, within the credit.
    ///
    /// # Errors
    /// The flow needs another tunnel.
    pub fn open(&mut self, target: &Target, tag: u64) -> Result<u32, NotNow> {
        debug_assert_eq!(self.side, Side::Entry, "only an inter-server opens streams");
        if self.is_winding() {
            return Err(NotNow::Winding);
        }
        // Those whose RESET has not left are still open to the peer.
        if self.streams.len() + self.control.resets() >= self.max_streams {
            return Err(NotNow::TooMany);
        }
        if self.last >= u32::MAX - IDS_KEPT {
            self.control.go_away(goaway::NO_IDS, "stream ids are nearly used up");
            return Err(NotNow::NoIds);
        }
        self.last += 1;
        self.streams.insert(self.last, Stream::new(tag, self.peer_window, self.growth.first, ATTACHED | OPENING));
        self.control.open(self.last, target);
        Ok(self.last)
    }

    /// Entry: whether [`Session::open`] would take one more.
    #[must_use]
    pub fn has_place(&self) -> bool {
        !self.is_winding() && self.streams.len() + self.control.resets() < self.max_streams
    }

    /// Exit: the destination is connected. OPENED waits with the control frames.
    pub fn opened(&mut self, stream: u32, bound: SocketAddr) {
        debug_assert_eq!(self.side, Side::Exit, "only a server says OPENED");
        let Some(state) = self.streams.get_mut(&stream) else { return };
        debug_assert!(state.is(ATTACHED) && !state.is(OPENED), "stream {stream} is opened once, behind attach");
        state.set(OPENED | OPENING);
        self.control.opened(stream, bound);
        self.grant_if_due(stream);
    }

    // ---- data out

    /// Bytes of DATA that may be sent now. 0: the stream is closed or finished, the tunnel has ended, or it waits for [`Incoming::Credit`] or, at the exit, for
    /// [`Session::opened`].
    #[must_use]
    pub fn allowance(&self, stream: u32) -> u32 {
        self.streams.get(&stream).filter(|stream| self.may_send(stream)).map_or(0, |stream| stream.credit)
    }

    /// The header of a DATA frame, to be put before `bytes` bytes, which it takes from the credit. All control frames have been polled.
    pub fn data(&mut self, stream: u32, bytes: u32) -> Header {
        debug_assert!(0 < bytes && bytes <= self.allowance(stream), "{bytes} bytes on stream {stream}, of {}", self.allowance(stream));
        let length = u16::try_from(bytes).ok().filter(|length| usize::from(*length) <= FRAME_PAYLOAD_MAX);
        debug_assert!(length.is_some(), "{bytes} bytes fit no frame");
        if let Some(state) = self.streams.get_mut(&stream) {
            debug_assert!(!state.is(OPENING), "DATA on stream {stream} before its opening has left");
            state.credit = state.credit.saturating_sub(bytes);
        }
        Header { kind: kind::DATA, flags: 0, length: length.unwrap_or(u16::MAX), stream }
    }

    /// Takes credit for bytes that leave later, with the header of [`Session::reserved`]: until then nobody else can use it.
    pub fn reserve(&mut self, stream: u32, bytes: u32) {
        debug_assert!(bytes <= self.allowance(stream), "{bytes} bytes on stream {stream}, of {}", self.allowance(stream));
        if let Some(state) = self.streams.get_mut(&stream) {
            state.credit = state.credit.saturating_sub(bytes);
        }
    }

    /// The header of a DATA frame for which the credit was taken by [`Session::reserve`]. `None`: the stream is closed. All control frames have
    /// been polled.
    #[must_use]
    pub fn reserved(&self, stream: u32, bytes: u32) -> Option<Header> {
        let state = self.streams.get(&stream)?;
        debug_assert!(!state.is(OPENING), "DATA on stream {stream} before its opening has left");
        let length = u16::try_from(bytes).unwrap_or(u16::MAX);
        debug_assert!(usize::from(length) <= FRAME_PAYLOAD_MAX, "{bytes} bytes fit no frame");
        Some(Header { kind: kind::DATA, flags: 0, length, stream })
    }

    /// The FIN behind a stream's last DATA. `None`: it was sent, or the stream is closed. All control frames have been polled.
    #[must_use = "the header must be sent"]
    pub fn finish(&mut self, stream: u32) -> Option<Header> {
        let state = self.streams.get(&stream).filter(|state| self.may_send(state))?;
        debug_assert!(!state.is(OPENING), "FIN on stream {stream} before its opening has left");
        if state.is(PEER_FIN) {
            self.close(stream);
        } else if let Some(state) = self.streams.get_mut(&stream) {
            state.set(OWN_FIN);
        }
        Some(Header { kind: kind::FIN, flags: 0, length: 0, stream })
    }

    /// The RESET behind a stream's last DATA, which says that the socket it came from was reset; header and payload. `None`: the stream is
    /// closed. All control frames have been polled.
    #[must_use = "the frame must be sent"]
    pub fn reset_in_order(&mut self, stream: u32) -> Option<(Header, u8)> {
        debug_assert!(
            self.streams.get(&stream).is_none_or(|state| !state.is(OPENING)),
            "RESET on stream {stream} before its opening has left"
        );
        let was_open = self.close(stream);
        (was_open && !self.control.is_ended()).then_some((Header { kind: kind::RESET, flags: 0, length: 1, stream }, reset::SOCKET))
    }

    /// Resets a stream at once: the RESET waits with the control frames, and the role drops what it had queued.
    pub fn reset(&mut self, stream: u32, code: u8) {
        if self.close(stream) {
            self.control.reset(stream, code);
        }
    }

    // ---- data in

    /// Bytes that [`Incoming::Data`] announced have left towards their socket: credit for them is given back, and the window may grow.
    pub fn consumed(&mut self, stream: u32, bytes: u32, now: Duration) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.leave(bytes, now, &self.growth);
        self.grant_if_due(stream);
    }

    fn grant_if_due(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.is_due() && !state.is(GRANTING)) else { return };
        state.set(GRANTING);
        self.control.window(stream);
    }

    /// Bytes that a stream may hold now; 0 if it is closed.
    #[must_use]
    pub fn window(&self, stream: u32) -> u32 {
        self.streams.get(&stream).map_or(0, Stream::window)
    }

    /// Bytes of a stream that came and were not consumed; 0 if it is closed.
    #[must_use]
    pub fn held(&self, stream: u32) -> u32 {
        self.streams.get(&stream).map_or(0, Stream::held)
    }

    /// The tunnel's round trip, as a PING took it. Windows grow from then on.
    pub const fn set_rtt(&mut self, rtt: Duration) {
        self.growth.rtt = rtt;
    }

    /// Whether windows may grow.
    pub const fn allow_growth(&mut self, allowed: bool) {
        self.growth.allowed = allowed;
    }

    /// Whether credit beyond what a stream started with is kept back as it is used: a window that has grown shrinks to its first size, and no
    /// further, so that a stream that drains goes on.
    pub const fn withhold(&mut self, withheld: bool) {
        self.growth.withheld = withheld;
    }

    /// Exit: the socket or dial behind one stream that was attached is gone.
    pub fn release(&mut self) {
        debug_assert!(self.behind > 0, "as many are released as were attached");
        self.behind = self.behind.saturating_sub(1);
    }

    // ---- the tunnel

    /// Asks for a PONG. `false`: one is asked for already, or the tunnel has ended.
    pub fn ping(&mut self, data: [u8; 8]) -> bool {
        self.control.ping(data)
    }

    /// A PING of ours waits to be sent or answered.
    #[must_use]
    pub fn ping_outstanding(&self) -> bool {
        self.control.is_ping_unanswered()
    }

    /// Winds the tunnel down or, from [`goaway::ENDS_FROM`] on, ends it: then the GOAWAY is all that is still sent. `text` is for the
    /// peer's log; 200 bytes of it are sent.
    pub fn go_away(&mut self, code: u8, text: &str) {
        self.control.go_away(code, text);
    }

    /// No stream can be opened any more: a GOAWAY of ours waits or was sent, or the peer's has come.
    #[must_use]
    pub const fn is_winding(&self) -> bool {
        self.control.is_winding()
    }

    /// A GOAWAY that ends the tunnel waits, was sent or has come: nothing else is sent or taken.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.control.is_ended()
    }

    /// Both GOAWAYs have passed, no stream is open and nothing is owed: either side closes.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.streams.is_empty() && self.control.is_wound_down()
    }

    /// Appends whole control frames, at most `room` bytes of them. `true`: there are more; no ordered frame may be sent before them.
    #[must_use = "true: there are more"]
    pub fn poll_control(&mut self, out: &mut Vec<u8>, room: usize) -> bool {
        if self.control.is_empty() {
            return false;
        }
        self.control.poll(&mut self.streams, &mut self.known, &self.growth, out, room)
    }

    /// Control frames wait.
    #[must_use]
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The tags of all that are open, for the role to reset when the tunnel ends.
    pub fn tags(&self) -> impl Iterator<Item = u64> + '_ {
        self.streams.values().filter(|stream| stream.is(ATTACHED)).map(|stream| stream.tag)
    }

    /// Whether a stream is open.
    #[must_use]
    pub fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Exit: OPENs that were answered by a RESET here, without a word to the role.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.answered
    }

    /// Which side we are.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// We may send DATA and FIN: the entry at once, the exit behind OPENED.
    fn may_send(&self, stream: &Stream) -> bool {
        !stream.is(OWN_FIN) && (self.side == Side::Entry || stream.is(OPENED)) && !self.control.is_ended()
    }

    /// Forgets a stream. Whether it was open.
    fn close(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.remove(&id) else { return false };
        self.control.forget(id, stream.is(OPENING), stream.is(GRANTING));
        if self.streams.is_empty() && self.streams.capacity() > TABLE_KEPT {
            self.streams = Streams::default();
        }
        true
    }
}

impl Hash for Session {
    /// Streams in the order of their ids, so that equal sessions hash alike.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut ids: Vec<_> = self.streams.iter().collect();
        ids.sort_unstable_by_key(|(id, _)| **id);
        (self.side, ids, self.last, self.known, self.behind).hash(state);
        self.control.hash(state);
    }
}
