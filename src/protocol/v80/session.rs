//! Which (ip, port) are taken on one tunnel, and which of their ends have passed: the part of 0x80 that two sides can disagree on. The role
//! asks before it opens, reports every header that arrives and every end it wants to send, and is told what that means.
//!
//! ```text
//!           open / first request                 both ends have passed
//!   free ─────────────────────────▶ taken ───────────────────────────────▶ free   (at once, on both sides)
//!                                     │ give_up: own end sent, tag forgotten,    ▲
//!                                     └─────▶ given up: what comes is dropped ───┘ peer's end
//! ```
//!
//! What always holds: each direction of a taken key sends exactly one end; **no timer of one side frees a key**, only the two ends do; a key
//! that was given up stays taken until the peer's end has come. (The [`Profile::Original`] rules differ where the author's programs do:
//! see [`Session`].)

use std::collections::BTreeMap;

use super::frame::Destination;
use super::handshake::Authenticated;
use super::{Profile, Side};
use crate::limits::V80_KEYS_MAX;

/// The table of one tunnel's keys. Made from the proof that its handshake passed; gone with the tunnel.
///
/// A flow is known here by its key and an opaque tag that the role chose. **When a key becomes free the session forgets the tag**, while the
/// role may still have bytes of that flow to write: from then on the flow must not call `finish` or `give_up` any more, the key may be
/// another's. [`Session::tag`] tells.
///
/// With [`Profile::Original`]:
/// * on the entry no end of the client is ever sent; a reply's end ends the flow both ways; a key whose flow is over *rests*, its late
///   replies are dropped, until the role's timer (25 s after the last request) calls [`Session::release`];
/// * on the exit our own end frees the key at once, and any request for a key that is free opens it; a request of length 0 for a key that is
///   taken says nothing.
///
/// ```
/// # use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
/// # use zhwkprox::protocol::v80::{Profile, handshake::{EntryHandshake, Progress}, frame::Destination};
/// # use zhwkprox::protocol::v80::session::{Incoming, Session};
/// # let cipher = MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatch", [7; 16]).unwrap();
/// # let hello_challenge_verdict = [0x80, 0, 1, 9, 1];
/// # let Ok(Progress::Done(authenticated)) =
/// #     EntryHandshake::start(cipher, [0; 16]).handle(&mut hello_challenge_verdict.as_slice(), &mut Vec::new()) else { panic!() };
/// let mut session = Session::new(authenticated, Profile::Ours);
/// let destination = Destination::V4([192, 0, 2, 7], 22);
///
/// session.open(destination, 12)?; // … send frame::empty(destination) …
/// assert_eq!(session.on_header(destination, 40), Ok(Incoming::Data(12)));
/// assert!(session.finish(destination)); // … send frame::empty(destination): the client's end …
/// assert!(!session.is_free(destination));
/// assert_eq!(session.on_header(destination, 0), Ok(Incoming::End(Some(12))));
/// assert!(session.is_free(destination));
/// # Ok::<(), zhwkprox::protocol::v80::session::Busy>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Session {
    side: Side,
    profile: Profile,
    /// Ordered, so that a session can be compared and hashed; it rarely holds more than a few keys.
    keys: BTreeMap<Destination, KeyState>,
}

/// What is known of a key that is taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct KeyState {
    /// Whose it is; `None` before [`Session::attach`] and after the flow was given up.
    pub tag: Option<u64>,
    /// Our end has been sent.
    pub own_end: bool,
    /// The peer's end has come.
    pub peer_end: bool,
    /// We want nothing more of it: what still comes is dropped.
    pub given_up: bool,
}

/// What a header means to the role.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Incoming {
    /// Exit only: a flow begins. The key is taken; before the next header the role says [`Session::attach`] or [`Session::give_up`].
    Open {
        /// Where to.
        destination: Destination,
        /// Whether data of it follows in this frame.
        data: bool,
    },
    /// The frame's data is this flow's.
    Data(u64),
    /// The frame's data is nobody's: read it to its length and drop it.
    Drop,
    /// The peer sends no more for this flow (`None`: it was given up here). Whether the key is free now, [`Session::is_free`] tells.
    End(Option<u64>),
}

/// The key is taken on this tunnel: the flow needs another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{destination} is taken on this tunnel: a flow to it needs another tunnel")]
pub struct Busy {
    /// The key.
    pub destination: Destination,
}

/// What a correct peer never sends. The two sides disagree on a key, so the tunnel must end before bytes of two flows mix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionFault {
    /// A reply for a flow that we do not have.
    #[error("server sent a reply of {length} bytes for {destination}: expected one for an open flow")]
    ReplyForFreeKey {
        /// The key.
        destination: Destination,
        /// The length that the header says.
        length: u32,
    },
    /// Data behind an end.
    #[error("peer sent {length} bytes for {destination} after its end of data: expected nothing more")]
    DataAfterEnd {
        /// The key.
        destination: Destination,
        /// The length that the header says.
        length: u32,
    },
    /// A second end in one direction.
    #[error("peer sent a second end of data for {destination}: expected one")]
    SecondEnd {
        /// The key.
        destination: Destination,
    },
    /// More keys than any use of one tunnel needs: the table would grow with what a peer says.
    #[error("inter-server opened {destination} while {V80_KEYS_MAX} keys are taken on its tunnel: expected no more")]
    TooManyKeys {
        /// The key.
        destination: Destination,
    },
}

impl Session {
    /// The table of a tunnel whose handshake has just passed: every key is free. The proof is used up: one handshake, one session.
    #[must_use]
    pub const fn new(proof: Authenticated, profile: Profile) -> Self {
        Self { side: proof.side(), profile, keys: BTreeMap::new() }
    }

    /// Entry: takes a key for a flow. The caller then sends a request of length 0 (with [`Profile::Original`]: when its rules say so).
    ///
    /// # Errors
    /// The key is taken, or not free yet.
    pub fn open(&mut self, destination: Destination, tag: u64) -> Result<(), Busy> {
        debug_assert_eq!(self.side, Side::Entry, "only an inter-server opens flows");
        if self.keys.contains_key(&destination) {
            return Err(Busy { destination });
        }
        self.keys.insert(destination, KeyState { tag: Some(tag), ..KeyState::default() });
        Ok(())
    }

    /// Exit: says whose the key is that [`Incoming::Open`] announced.
    pub fn attach(&mut self, destination: Destination, tag: u64) {
        let key = self.keys.get_mut(&destination).filter(|key| !key.given_up && key.tag.is_none());
        debug_assert!(key.is_some(), "{destination} was not just opened");
        if let Some(key) = key {
            key.tag = Some(tag);
        }
    }

    /// Takes a header that has arrived.
    ///
    /// # Errors
    /// A correct peer does not send it; the tunnel must end.
    pub fn on_header(&mut self, destination: Destination, length: u32) -> Result<Incoming, SessionFault> {
        match self.keys.get_mut(&destination) {
            None => self.on_header_for_free_key(destination, length),
            Some(_) if self.profile == Profile::Original => Ok(self.on_original_header(destination, length)),
            Some(key) if key.peer_end => {
                Err(if length == 0 { SessionFault::SecondEnd { destination } } else { SessionFault::DataAfterEnd { destination, length } })
            }
            Some(key) if length == 0 => {
                key.peer_end = true;
                let tag = key.tag;
                self.free_if_over(destination);
                Ok(Incoming::End(tag))
            }
            Some(key) => Ok(key.data()),
        }
    }

    /// We have no more data for this flow. `true`: its end must be sent now; `false`: it was sent already, or is never sent to this peer.
    #[must_use = "true: the end must be sent"]
    pub fn finish(&mut self, destination: Destination) -> bool {
        let Some(key) = self.keys.get_mut(&destination) else { return false };
        if key.own_end || !sends_ends(self.side, self.profile) {
            return false;
        }
        key.own_end = true;
        self.free_if_over(destination);
        true
    }

    /// We want nothing more of this flow, for whatever reason; the role forgets it, and what still comes is dropped until the peer's end.
    /// `true`: our end must be sent now; `false`: it was sent already, or is never sent to this peer.
    #[must_use = "true: the end must be sent"]
    pub fn give_up(&mut self, destination: Destination) -> bool {
        if let Some(key) = self.keys.get_mut(&destination) {
            key.given_up = true;
            key.tag = None;
        }
        self.finish(destination)
    }

    /// Entry, [`Profile::Original`]: nothing of the old flow can be left on the tunnel, the key is free. Says whether it rested.
    pub fn release(&mut self, destination: Destination) -> bool {
        let rests = self.profile == Profile::Original && self.keys.get(&destination).is_some_and(|key| key.given_up);
        if rests {
            self.keys.remove(&destination);
        }
        rests
    }

    /// Keys with a flow.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.keys.values().filter(|key| key.tag.is_some()).count()
    }

    /// Keys that are taken, those given up included.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Keys that were given up while the peer may still be sending.
    #[must_use]
    pub fn discarding(&self) -> usize {
        self.keys.values().filter(|key| key.given_up && !key.peer_end).count()
    }

    /// Whether a flow can be opened.
    #[must_use]
    pub fn is_free(&self, destination: Destination) -> bool {
        !self.keys.contains_key(&destination)
    }

    /// Whose the key is.
    #[must_use]
    pub fn tag(&self, destination: Destination) -> Option<u64> {
        self.keys.get(&destination)?.tag
    }

    /// What is known of a key that is taken.
    #[must_use]
    pub fn state(&self, destination: Destination) -> Option<KeyState> {
        self.keys.get(&destination).copied()
    }

    /// Every flow, for the role to reset when the tunnel ends.
    pub fn tags(&self) -> impl Iterator<Item = (Destination, u64)> + '_ {
        self.keys.iter().filter_map(|(destination, key)| Some((*destination, key.tag?)))
    }

    /// Which side we are.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// Which rules the peer keeps.
    #[must_use]
    pub const fn profile(&self) -> Profile {
        self.profile
    }

    fn on_header_for_free_key(&mut self, destination: Destination, length: u32) -> Result<Incoming, SessionFault> {
        match (self.side, self.profile) {
            (Side::Exit, _) if self.keys.len() >= V80_KEYS_MAX => Err(SessionFault::TooManyKeys { destination }),
            (Side::Exit, _) => {
                self.keys.insert(destination, KeyState::default());
                Ok(Incoming::Open { destination, data: length > 0 })
            }
            (Side::Entry, Profile::Ours) => Err(SessionFault::ReplyForFreeKey { destination, length }),
            (Side::Entry, Profile::Original) => Ok(Incoming::Drop),
        }
    }

    /// A header of one of the author's programs, for a key that is taken.
    fn on_original_header(&mut self, destination: Destination, length: u32) -> Incoming {
        let Some(key) = self.keys.get_mut(&destination) else { return Incoming::Drop };
        if length > 0 {
            return key.data();
        }
        match self.side {
            // To them a write of nothing: their inter-server never says that a client has gone.
            Side::Exit => Incoming::Drop,
            // Their server ends a flow both ways. Late data of ours may open a new connection there, so the key rests.
            Side::Entry => match key.tag.take() {
                Some(tag) => {
                    key.peer_end = true;
                    key.given_up = true;
                    Incoming::End(Some(tag))
                }
                None => Incoming::Drop,
            },
        }
    }

    fn free_if_over(&mut self, destination: Destination) {
        let frees_at_own_end = self.profile == Profile::Original && self.side == Side::Exit;
        if self.keys.get(&destination).is_some_and(|key| key.own_end && (key.peer_end || frees_at_own_end)) {
            self.keys.remove(&destination);
        }
    }
}

impl KeyState {
    /// Data has come for a key that is taken.
    fn data(&self) -> Incoming {
        debug_assert!(self.given_up || self.tag.is_some(), "a flow was opened, but neither attached nor given up");
        self.tag.map_or(Incoming::Drop, Incoming::Data)
    }
}

/// The author's server knows no end of a client's data: a request of length 0 is a write of nothing to it.
const fn sends_ends(side: Side, profile: Profile) -> bool {
    !matches!((side, profile), (Side::Entry, Profile::Original))
}
