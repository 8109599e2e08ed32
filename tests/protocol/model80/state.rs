//! What a state of the model is: two flows with their clients, and the tunnels with the real sessions at both ends. The fields that are not
//! sessions and not messages are ghosts: what the clients and destinations have seen, for the invariants.

use zhwkprox::protocol::v80::session::Session;

/// A flow, by number: A is 0, B is 1.
pub(super) type FlowId = u8;

pub(super) const fn letter(flow: FlowId) -> char {
    if flow == 0 { 'A' } else { 'B' }
}

/// A short sequence of small numbers, in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Numbers {
    items: [u8; 4],
    len: u8,
}

impl Numbers {
    pub(super) fn push(&mut self, number: u8) {
        self.items[usize::from(self.len)] = number;
        self.len += 1;
    }

    pub(super) fn pop_front(&mut self) -> Option<u8> {
        let first = self.as_slice().first().copied()?;
        self.items.rotate_left(1);
        self.items[3] = 0;
        self.len -= 1;
        Some(first)
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.items[..usize::from(self.len)]
    }

    /// 0, 1, 2 …: in order and without a hole.
    pub(super) fn in_order(&self) -> bool {
        self.as_slice().iter().enumerate().all(|(at, number)| usize::from(*number) == at)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    New,
    Active,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    Open,
    Clean,
    Abort,
    Linger,
    Lost,
}

/// The entry's side of a flow and its client.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) phase: Phase,
    /// Pieces that the client has not sent yet.
    pub(super) to_send: u8,
    /// The client's end has been sent.
    pub(super) own_end: bool,
    /// The destination's end has come.
    pub(super) reply_end: bool,
    /// Replies are dropped.
    pub(super) discards: bool,
    /// What the client got.
    pub(super) got: Numbers,
    pub(super) fate: Fate,
    pub(super) tunnel: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Dialling,
    Up,
    Dead,
}

/// The exit's side of a flow and its destination.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Connection {
    pub(super) flow: FlowId,
    pub(super) stage: Stage,
    /// What the destination has not taken yet.
    pub(super) queue: Numbers,
    /// The client's end has come.
    pub(super) request_end: bool,
    /// The destination's end has been sent.
    pub(super) own_end: bool,
    /// Pieces that the destination has not sent yet.
    pub(super) to_send: u8,
    /// What the destination got.
    pub(super) got: Numbers,
    /// The destination got the client's FIN.
    pub(super) fin: bool,
    /// Nobody cut it.
    pub(super) clean: bool,
}

/// What a message is for; the wire carries only whether it has length 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Purpose {
    Open,
    End,
    Abort,
    Data(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Message {
    pub(super) flow: FlowId,
    pub(super) purpose: Purpose,
}

impl Message {
    /// All that the other side sees of it.
    pub(super) const fn length(self) -> u32 {
        if matches!(self.purpose, Purpose::Data(_)) { 1 } else { 0 }
    }
}

/// One tunnel. A side whose session is gone has lost it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Tunnel {
    pub(super) entry: Option<Session>,
    pub(super) exit: Option<Session>,
    pub(super) requests: Vec<Message>,
    pub(super) replies: Vec<Message>,
    /// Which flow has K at the entry.
    pub(super) owner: Option<FlowId>,
    /// The connection that has K at the exit.
    pub(super) connection: Option<Connection>,
    /// Connections that live on without K.
    pub(super) detached: Vec<Connection>,
    /// Flows that were opened on it.
    pub(super) opened: Vec<FlowId>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) flows: [Flow; 2],
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) lost: u8,
}
