//! What is outstanding on the sockets of a simulated engine, and the order in which completions are handed over.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::io::{Done, Kind, Payload, SocketId, Token};

use crate::rng::Rng;
use crate::world::{EndId, ListenerId};

#[derive(Debug)]
pub(crate) struct PendingSend {
    pub(crate) chunk: Chunk,
    /// What the chunk was at submission.
    pub(crate) copy: Vec<u8>,
    pub(crate) taken: usize,
    pub(crate) wait: bool,
    pub(crate) token: Token,
}

#[derive(Debug)]
pub(crate) struct PendingReceive {
    pub(crate) max: usize,
    /// What it is received behind, in place of a slot.
    pub(crate) into: Option<Chunk>,
    pub(crate) token: Token,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) end: EndId,
    pub(crate) receive: Option<PendingReceive>,
    pub(crate) send: Option<PendingSend>,
    pub(crate) shut: bool,
}

#[derive(Debug)]
pub(crate) enum Socket {
    Listener { listener: ListenerId, accepts: VecDeque<(SocketId, Token)> },
    Accepting { listener: SocketId },
    Connecting { end: EndId, token: Token },
    Connection(Connection),
}

impl PendingSend {
    pub(crate) fn check(&self, id: SocketId) {
        let now = self.chunk.as_slice();
        if now != self.copy {
            let at = now.iter().zip(&self.copy).position(|(now, then)| now != then).unwrap_or(0);
            panic!("the chunk being sent on socket {} was changed at byte {at} of {} before its completion", id.0, self.copy.len());
        }
    }
}

impl PendingReceive {
    /// The token, and what a receive without bytes gives back.
    pub(crate) fn without_bytes(self) -> (Token, Payload) {
        (self.token, self.into.map_or(Payload::None, Payload::Filled))
    }
}

impl Socket {
    pub(crate) fn outstanding(&self) -> usize {
        match self {
            Self::Listener { .. } => 0,
            Self::Accepting { .. } | Self::Connecting { .. } => 1,
            Self::Connection(connection) => usize::from(connection.receive.is_some()) + usize::from(connection.send.is_some()),
        }
    }
}

pub(crate) trait Birth {
    /// Whether a socket did not come to be.
    fn is_failed_birth(&self) -> bool;
}

impl Birth for Done {
    fn is_failed_birth(&self) -> bool {
        self.result.is_err() && matches!(self.token.kind(), Some(Kind::Connect | Kind::Accept))
    }
}

/// Puts completions into any order, but for those of one socket: what happened first on it comes first, as in the kernel.
pub(crate) fn shuffle_sockets(done: &mut Vec<Done>, rng: &mut Rng) {
    let sockets: Vec<SocketId> = done.iter().map(|done| done.token.socket()).collect();
    let mut places: Vec<usize> = (0..done.len()).collect();
    rng.shuffle(&mut places);
    // Where several are of one socket, they take its places from the first to the last.
    let mut of_socket: BTreeMap<SocketId, BinaryHeap<Reverse<usize>>> = BTreeMap::new();
    for (socket, place) in sockets.iter().zip(&places) {
        of_socket.entry(*socket).or_default().push(Reverse(*place));
    }
    let mut placed: Vec<(usize, Done)> = Vec::with_capacity(done.len());
    for (socket, one) in sockets.iter().zip(done.drain(..)) {
        let place = of_socket.get_mut(socket).and_then(BinaryHeap::pop).expect("a place for each");
        placed.push((place.0, one));
    }
    placed.sort_by_key(|(place, _)| *place);
    done.extend(placed.into_iter().map(|(_, one)| one));
}
