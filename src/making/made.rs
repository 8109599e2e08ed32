//! A tunnel that is made: authenticated, and nobody's yet. It may be given to another shard before somebody takes it.
//!
//! What always holds: nothing is being received on its connection, and bytes that came behind the login are in `rest`.

use std::net::SocketAddr;

use super::ACCEPTED;
use crate::outbox::Outbox;
use crate::protocol::login::Proof;
use crate::shard::core::{Core, Owner};
use crate::shard::inbox::Message;
use crate::shard::slab::Key;

/// An authenticated tunnel that nobody has yet.
#[derive(Debug)]
pub struct Made {
    /// Its connection; nothing is being received on it.
    pub socket: Key,
    /// Which dialler's it is, or [`ACCEPTED`].
    pub peer: usize,
    /// The other end.
    pub address: SocketAddr,
    /// That it is one.
    pub proof: Proof,
    /// What the login has still to send.
    pub outbox: Outbox,
    /// What came behind the login.
    pub rest: Vec<u8>,
}

impl Made {
    /// A tunnel that another shard has accepted.
    #[must_use]
    pub fn adopt(core: &mut Core, descriptor: std::os::fd::OwnedFd, address: SocketAddr, proof: Proof, rest: Vec<u8>) -> Self {
        let socket = core.adopt(descriptor, Owner::Role);
        Self { socket, peer: ACCEPTED, address, proof, outbox: Outbox::default(), rest }
    }

    /// Gives a tunnel that was accepted to the shard with the fewest. Gives it back if it stays; those that are dialled do.
    #[must_use]
    pub fn hand_over(self, core: &mut Core) -> Option<Self> {
        let shard = core.board().fewest_tunnels(core.index());
        if self.peer != ACCEPTED || shard == core.index() || self.outbox.bytes() > 0 {
            core.expect_tunnel();
            return Some(self);
        }
        let Some(descriptor) = core.detach(self.socket) else { return Some(self) };
        core.board().expect_tunnel(shard);
        let Self { address: peer, proof, rest, .. } = self;
        core.post(shard, Message::Tunnel { descriptor, peer, proof, rest });
        None
    }
}
