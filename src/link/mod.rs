//! One authenticated tunnel over one socket, in the shape that both roles see of either protocol version: flows are opened, carry
//! bytes, are finished or reset. What only one version needs stays in its file.
//!
//! ```text
//!   socket ─▶ take_in: decipher in place ─▶ next_event: Open, Opened, Data, Credit, Finished, Reset
//!   socket ◀─ flush ◀─ outbox ◀─ send: encipher in place, header in front ◀─ flows
//! ```
//!
//! The order of calls: `take_in` what was received, then `next_event` until there is none, then `receive`; `flush` once per turn in
//! which something was queued, `on_sent` for each send that has ended.

mod v80;
mod v81;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::limits;
use crate::outbox::Outbox;
use crate::protocol::login::Proof;
use crate::protocol::socks5::Target;
use crate::protocol::v80::frame::{Destination, FrameError};
use crate::protocol::v80::session::SessionFault;
use crate::protocol::v81::record::RecordError;
use crate::protocol::v81::session::Fault;
use crate::shard::buffers::Chunk;
use crate::shard::core::Core;
use crate::shard::io::Errno;
use crate::shard::slab::Key;
use crate::shard::time::Time;

/// The number of a link's own timer among its tunnel's.
pub const LINK_TIMER: u8 = 3;

/// What a flow is called on its tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Handle {
    /// On 0x80, its destination: one flow at a time to each.
    Destination(Destination),
    /// On 0x81, its stream.
    Stream(u32),
}

/// What the peer wants.
#[derive(Debug)]
pub enum LinkEvent {
    /// A flow to this target (exit only). Answer with [`Link::attach`] or [`Link::refuse`] before asking for the next event.
    Open(Handle, Target),
    /// The exit has connected the flow (entry, 0x81 only); from which address.
    Opened(Key, SocketAddr),
    /// Bytes of a flow.
    Data(Key, Chunk),
    /// The flow may send again: [`Link::allowance`] was zero (0x81 only).
    Credit(Key),
    /// The peer sends no more on this flow.
    Finished(Key),
    /// The peer sends no more on this flow and takes no more either; it is not on the tunnel any more (the author's programs only).
    Over(Key),
    /// The peer has given the flow up, for this reason; it is not on the tunnel any more (0x81 only).
    Reset(Key, u8),
}

/// What the peer cannot have meant: the tunnel ends.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// A frame of 0x80 that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame of 0x80 that does not fit what came before.
    #[error(transparent)]
    Session(#[from] SessionFault),
    /// A record that is none, or not the peer's.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A frame of 0x81 that breaks a rule.
    #[error(transparent)]
    Rule(#[from] Fault),
    /// The peer's key has been withdrawn here.
    #[error("its key has been withdrawn")]
    Withdrawn,
    /// The peer says that the tunnel is over.
    #[error("ended by the peer: {0}")]
    GoAway(String),
}

/// Why a flow is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its connection was reset; what came before that is still passed on.
    Broken,
    /// It took too long: idle, half-open without progress, no answer.
    NoProgress,
    /// Whoever wanted it does not want it any more.
    Cancelled,
    /// There is no room for it.
    Limit,
    /// It never came to be: the code that says why.
    Refused(u8),
}

impl Why {
    /// As 0x81 says it.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Broken => 0x13,
            Self::NoProgress => 0x10,
            Self::Cancelled => 0x14,
            Self::Limit => 0x12,
            Self::Refused(code) => code,
        }
    }
}

/// What giving a flow up came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// The peer is told, as far as it can be.
    Told,
    /// 0x80 has no word for it: the tunnel, on which the flow is alone, must end.
    TunnelMustEnd,
}

/// Why a flow cannot be opened on this tunnel now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not on this tunnel now")]
pub struct Busy;

/// How much memory the shard's flows hold, in stages: what it asks of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Pressure {
    /// Less than half of the budget.
    #[default]
    None,
    /// More than half: no window grows, no credit is renewed beyond the first.
    High,
    /// More than three quarters: no new flows.
    Full,
}

/// What time has brought a link.
#[derive(Debug, Default)]
pub struct Due {
    /// Flows that nothing at all has answered: to be given up.
    pub unanswered: Vec<Key>,
    /// The tunnel is lost, for this reason.
    pub lost: Option<&'static str>,
}

/// A tunnel's wire, whichever version it speaks.
pub trait Link: Debug {
    /// The tunnel's socket.
    fn socket(&self) -> Key;

    /// As if that many streams had been opened and closed: for tests of what happens when ids run out.
    #[doc(hidden)]
    fn use_ids(&mut self, _ids: u32) {}

    /// Whose tunnel it is: the name of the key at the entry (0x81).
    fn name(&self) -> Option<&Arc<str>> {
        None
    }

    // ---- what comes in

    /// Takes received bytes in and deciphers them where they are.
    fn take_in(&mut self, chunk: Chunk, now: Time);

    /// The next thing the received bytes say; `None` when they have been used up.
    ///
    /// # Errors
    /// A [`LinkFault`] ends the tunnel.
    fn next_event(&mut self, now: Time) -> Result<Option<LinkEvent>, LinkFault>;

    /// Waits for more from the socket, unless that is being done already.
    fn receive(&mut self, core: &mut Core);

    /// Names the flow of a [`LinkEvent::Open`].
    fn attach(&mut self, handle: Handle, flow: Key);

    /// Answers a [`LinkEvent::Open`] with a refusal: no flow comes of it.
    fn refuse(&mut self, handle: Handle, why: Why, now: Time);

    /// Drops what has been taken in and not been asked for.
    fn discard_input(&mut self);

    // ---- what goes out

    /// Opens a flow (entry only).
    ///
    /// # Errors
    /// [`Busy`] where [`Link::can_open`] is false.
    fn open(&mut self, target: &Target, flow: Key, now: Time) -> Result<Handle, Busy>;

    /// Says that the flow's connection is up (exit only).
    fn opened(&mut self, _handle: Handle, _bound: Option<SocketAddr>) {}

    /// Most bytes the flow may send at once; zero: after the next [`LinkEvent::Credit`].
    fn allowance(&self, handle: Handle) -> usize;

    /// Sends bytes of a flow, in place.
    fn send(&mut self, handle: Handle, chunk: Chunk);

    /// No more bytes come from our side of the flow. `true`: its name is free, nothing comes from the other side either.
    fn finish(&mut self, handle: Handle, now: Time) -> bool;

    /// Gives a flow up: what still comes for it is dropped. `unfinished`: the peer would take what it has got for whole.
    fn reset(&mut self, handle: Handle, why: Why, unfinished: bool, now: Time) -> Reset;

    /// Resets that have waited this long for credit, behind bytes that the other side's socket does not take, go without them (0x81).
    fn give_up_stalled(&mut self, _now: Time, _patience: Duration) {}

    /// Bytes of a flow have left towards its connection.
    fn on_taken(&mut self, _handle: Handle, _bytes: usize, _now: Time) {}

    /// Bytes of a flow that have come and not left, as far as the peer has been told; `None`: it is told nothing of the kind.
    fn held(&self, _handle: Handle) -> Option<usize> {
        None
    }

    /// The connection of a flow that was attached here is gone (exit).
    fn on_gone(&mut self) {}

    /// The tunnel takes no new flow any more, and the peer is told so where it can be.
    fn wind_down(&mut self) {}

    /// Sends FIN behind everything that is queued; from here on the tunnel only waits for the peer's. `false`: this link just closes.
    fn finish_sending(&mut self) -> bool;

    /// Says what ended the tunnel, behind everything that is queued, and FIN. `false`: there is no word for it.
    fn last_word(&mut self, _fault: &LinkFault) -> bool {
        false
    }

    /// Sends what has been queued. Once per turn; `tunnel` is whose timers are set.
    fn flush(&mut self, core: &mut Core, tunnel: Key);

    /// Takes the end of a send in. Then flush, and ask [`Link::take_woken`].
    ///
    /// # Errors
    /// The socket's failure.
    fn on_sent(&mut self, chunk: Chunk, result: Result<u32, Errno>, now: Time) -> Result<(), Errno>;

    /// Whether the kernel has everything that was to be sent.
    fn is_flushed(&self) -> bool;

    /// Bytes that wait to be sent.
    fn queued_bytes(&self) -> usize;

    /// Whether a flow may add bytes.
    fn has_room(&self) -> bool {
        self.queued_bytes() < limits::QUEUE_BYTES
    }

    /// Has the flow woken when there is room.
    fn wait_for_room(&mut self, flow: Key);

    /// Puts the flows that may go on behind `woken`, if there is room.
    fn take_woken(&mut self, woken: &mut Vec<Key>);

    // ---- time

    /// The timer [`LINK_TIMER`] has fired.
    fn on_timer(&mut self, _now: Time) -> Due {
        Due::default()
    }

    /// Lets go of the link's timer, before the tunnel ends.
    fn cancel_timer(&mut self, _core: &mut Core) {}

    /// Somebody else has logged in under the same name: this tunnel takes no new flow until it has shown that it lives (0x81).
    fn prove(&mut self, _now: Time) {}

    // ---- back-pressure

    /// Whether flows hold the tunnel up by a full queue ([`Link::block`]); with windows of their own they do not.
    fn has_windows(&self) -> bool {
        false
    }

    /// What the shard's memory asks for.
    fn set_pressure(&mut self, _pressure: Pressure) {}

    /// A flow's queue is full: the tunnel waits for it.
    fn block(&mut self) {}

    /// It has drained, or is gone.
    fn unblock(&mut self) {}

    /// Whether a flow's queue keeps the tunnel unread.
    fn is_blocked(&self) -> bool {
        false
    }

    // ---- what it is worth

    /// Whether nothing at all is on it.
    fn is_idle(&self) -> bool;

    /// Names taken on it, those of given-up flows included.
    fn keys(&self) -> usize;

    /// Flows on it, given-up ones not counted.
    fn flows(&self) -> usize;

    /// The flows on it.
    fn flow_keys(&self) -> Vec<Key>;

    /// Whether a flow to this target can be opened now.
    fn can_open(&self, target: &Target, now: Time) -> bool;

    /// Whether one of the sides wants no new flows on it.
    fn is_winding(&self) -> bool {
        false
    }

    /// Whether both sides have said so and no flow is left: it is done with.
    fn is_over(&self) -> bool {
        false
    }

    /// Since when something is being dropped that the peer still sends.
    fn discarding_since(&self) -> Option<Time> {
        None
    }

    /// Bytes taken in and queued to go out since the start.
    fn bytes(&self) -> (u64, u64);
}

/// The link over an authenticated tunnel. `outbox` holds what the login has still to send.
#[must_use]
pub fn new(socket: Key, proof: Proof, outbox: Outbox, now: Time) -> Box<dyn Link> {
    match proof {
        Proof::V80(proof, cipher, profile) => Box::new(v80::V80::new(socket, cipher, proof, profile, outbox)),
        Proof::V81(proof) => Box::new(v81::V81::new(socket, *proof, outbox, now)),
    }
}
