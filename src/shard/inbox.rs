//! What reaches a shard from outside its thread: hand-overs from other shards, answers and orders from the control thread. The one
//! place of a shard with a lock; nothing on the data path passes here.
//!
//! What always holds between calls: a message that was posted is seen by a later [`Inbox::drain`], because the eventfd that the
//! engine reads is written after the message is in the queue.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::engine::Chosen;
use super::state::State;
use crate::protocol::login::Proof;
use crate::protocol::socks5::Target;
use crate::protocol::v81::handshake::Keys;

/// To a shard.
#[derive(Debug)]
pub enum Message {
    /// A tunnel that another shard of the process accepted and authenticated.
    Tunnel {
        /// The connection; nothing is outstanding on it.
        descriptor: OwnedFd,
        /// The other end's address.
        peer: SocketAddr,
        /// That it is one.
        proof: Proof,
        /// What has been received behind its login.
        rest: Vec<u8>,
    },
    /// A client whose shard has no free tunnel, after its request was read.
    Client {
        /// The connection; nothing is outstanding on it.
        descriptor: OwnedFd,
        /// The client's address, for the log (`None`: unix socket).
        peer: Option<SocketAddr>,
        /// What to try, in order; at least one.
        targets: Vec<Target>,
        /// What it sent behind its request.
        early: Vec<u8>,
    },
    /// A server has logged in on another shard: its tunnels here have to show that they live.
    Login {
        /// The name of its key.
        name: Arc<str>,
    },
    /// The answer to [`ToControl::Resolve`].
    Resolved {
        /// As in the question.
        ticket: u64,
        /// Addresses in the order in which to try them, at least one.
        result: Result<Vec<IpAddr>, NameError>,
        /// Another answer follows, with these addresses again and the other family's (only if asked for by steps).
        more: bool,
    },
    /// The keys to use from now on, on 0x81: the key files were read again. Tunnels whose key is gone end.
    Keys(Arc<Keys>),
    /// Answer with [`ToControl::State`].
    ReportState,
    /// Take nothing new; end when all flows have ended, at the latest after the grace time.
    Stop,
    /// End now.
    StopNow,
}

/// From a shard to the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// Look a name up.
    Resolve {
        /// Which shard asks.
        shard: usize,
        /// Comes back in the answer.
        ticket: u64,
        /// The name, as the client or the operator wrote it.
        name: String,
        /// The first family's addresses are wanted as soon as they are known. Otherwise one answer comes, with both families if they
        /// are not too far apart.
        by_steps: bool,
    },
    /// The shard's state, as asked for.
    State {
        /// Which shard.
        shard: usize,
        /// Its numbers.
        state: Box<State>,
    },
    /// What the shard runs on; said before anything else.
    Engine {
        /// Which shard.
        shard: usize,
        /// Its engine.
        chosen: Chosen,
    },
    /// The shard has ended, in order.
    Stopped {
        /// Which shard.
        shard: usize,
    },
}

/// Why a name has no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// The resolver says there is no such name, or none with an address.
    #[error("no such name")]
    NotFound,
    /// It did not answer, or said it failed.
    #[error("the resolver failed")]
    Failed,
    /// Too many look-ups are under way.
    #[error("too many names are being looked up")]
    Busy,
}

/// The receiving end, held by the shard.
#[derive(Debug)]
pub struct Inbox {
    shared: Arc<Shared>,
}

/// The sending end: any thread, any number of clones.
#[derive(Clone, Debug)]
pub struct Postbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Vec<Message>>,
    bell: File,
}

impl Inbox {
    /// A new inbox and its sending end.
    ///
    /// # Errors
    /// `EMFILE` and the like from `eventfd`.
    pub fn new() -> io::Result<(Self, Postbox)> {
        let shared = Arc::new(Shared { queue: Mutex::new(Vec::new()), bell: eventfd()? });
        Ok((Self { shared: Arc::clone(&shared) }, Postbox { shared }))
    }

    /// The eventfd to read: an 8-byte read completes when a message has come since the last one.
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.shared.bell.as_raw_fd()
    }

    /// Takes all messages.
    #[must_use]
    pub fn drain(&self) -> Vec<Message> {
        std::mem::take(&mut *self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Postbox {
    /// Puts a message in and rings.
    pub fn post(&self, message: Message) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        // The counter cannot overflow (2^64 rings), and a shard that is gone reads no more: no failure matters here.
        let _ = (&self.shared.bell).write(&1_u64.to_ne_bytes());
    }
}

/// Another descriptor of an inbox's eventfd: an engine's read must not hit whatever gets the number after the inbox has gone.
#[expect(unsafe_code, reason = "the inbox is not borrowed for as long as its engine lives")]
pub(super) fn duplicate(bell: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only; for a number that is not open it fails.
    let copy = unsafe { libc::fcntl(bell, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made by the call above, and known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[expect(unsafe_code, reason = "std has no eventfd")]
fn eventfd() -> io::Result<File> {
    // SAFETY: takes two integers and touches no memory of ours.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above just made this descriptor and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}
