//! Tunnels that have ended because of what the peer did, while the peer is told why: our last words and FIN go out, what still comes is read
//! and dropped, as closing with anything unread would be a RST, which destroys what it has not read of ours.
//!
//! What always holds between calls: nothing that comes here is deciphered or kept; each leaves after [`limits::FAREWELL`] at most.

use std::collections::HashMap;

use super::ENDING;
use crate::limits;
use crate::link::Link;
use crate::shard::buffers::Chunk;
use crate::shard::core::{Closing, Core, Owner};
use crate::shard::io::Errno;
use crate::shard::slab::Key;
use crate::shard::timers::TimerId;

/// See the module. By the keys that the tunnels had.
#[derive(Debug, Default)]
pub(super) struct Leaving(HashMap<Key, Leaver>);

#[derive(Debug)]
struct Leaver {
    link: Box<dyn Link>,
    timer: Option<TimerId>,
}

impl Leaving {
    /// Takes a tunnel that is none any more; its last words are in its link.
    pub(super) fn insert(&mut self, core: &mut Core, tunnel: Key, mut link: Box<dyn Link>) {
        link.discard_input();
        core.receive(link.socket());
        link.flush(core, tunnel);
        let timer = Some(core.set_timer(limits::FAREWELL, Owner::Tunnel(tunnel), ENDING));
        self.0.insert(tunnel, Leaver { link, timer });
    }

    /// Drops what has come. `true`: it was for one of these.
    pub(super) fn on_data(&self, core: &mut Core, tunnel: Key) -> bool {
        let Some(leaver) = self.0.get(&tunnel) else { return false };
        core.receive(leaver.link.socket());
        true
    }

    /// Takes the end of a send in; after a failure there is nothing left to wait for.
    pub(super) fn on_sent(&mut self, core: &mut Core, tunnel: Key, chunk: Chunk, result: Result<u32, Errno>) {
        let Some(leaver) = self.0.get_mut(&tunnel) else { return };
        if leaver.link.on_sent(chunk, result, core.now()).is_ok() {
            leaver.link.flush(core, tunnel);
        } else {
            self.close(core, tunnel);
        }
    }

    /// One of its timers has fired: its time is over, or it was the link's, which is of no use any more.
    pub(super) fn on_timer(&mut self, core: &mut Core, tunnel: Key, what: u8) {
        if what == ENDING {
            self.close(core, tunnel);
        }
    }

    /// The peer has closed too, or the time is over.
    pub(super) fn close(&mut self, core: &mut Core, tunnel: Key) {
        let Some(mut leaver) = self.0.remove(&tunnel) else { return };
        core.cancel_timer(&mut leaver.timer);
        leaver.link.cancel_timer(core);
        core.close(leaver.link.socket(), Closing::Graceful);
    }
}
