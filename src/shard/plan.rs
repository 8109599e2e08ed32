//! What a shard is made of, and its life on the thread it was started on: memory, ring, role, turns, end.

use std::io;
use std::os::fd::OwnedFd;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc::UnboundedSender;

use super::board::Board;
use super::clock::Clock;
use super::core::{Core, Parts};
use super::engine::Choice;
use super::inbox::{Inbox, Postbox, ToControl};
use super::{Role, Shard, startup};
use crate::listen::ListenerKind;

/// What a shard is made of.
#[derive(Debug)]
pub struct Plan {
    /// Its number in the process, from 0.
    pub index: usize,
    /// The core its thread is pinned to.
    pub core: usize,
    /// Bytes of its arena.
    pub buffer_memory: usize,
    /// What moves its bytes.
    pub engine: Choice,
    /// What reaches it from other threads.
    pub inbox: Inbox,
    /// Where its questions and answers go.
    pub control: UnboundedSender<ToControl>,
    /// The inboxes of all shards, its own included.
    pub peers: Vec<Postbox>,
    /// The gauges of all shards.
    pub board: Board,
    /// Its own listening sockets.
    pub listeners: Vec<(ListenerKind, OwnedFd)>,
}

/// Pins this thread and runs a shard on it until its role has ended.
///
/// # Errors
/// The arena or the ring cannot be made (one line with the cure), or the ring has failed.
pub fn run<R: Role>(plan: Plan, make_role: impl FnOnce(Vec<(ListenerKind, OwnedFd)>) -> R) -> io::Result<()> {
    let Plan { index, core, buffer_memory, engine, inbox, control, peers, board, listeners } = plan;
    let (arena, io, chosen) = startup::engine(core, buffer_memory, inbox.bell(), engine).map_err(io::Error::other)?;
    // Nobody takes it only when the process is ending anyway.
    let _ = control.send(ToControl::Engine { shard: index, chosen });
    let clock = Clock::start();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(format!("the system gives no randomness: {error}")))?;
    let parts = Parts { io, arena, index, control: control.clone(), peers, board, rng: StdRng::from_seed(seed) };
    let mut shard = Shard::new(Core::new(parts), make_role(listeners), inbox, clock.now());
    while !shard.is_finished() {
        shard.turn(None, || clock.now())?;
    }
    shard.close(|| clock.now())?;
    let _ = control.send(ToControl::Stopped { shard: index });
    Ok(())
}
