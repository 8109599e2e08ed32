//! One shard: a thread pinned to a core, its engine, its memory, its sockets, its timers, and the role it plays. It shares nothing
//! with other shards but the [`inbox`] and the [`board`].
//!
//! ```text
//!   turn:  submit and wait (one system call) ─▶ completions ─▶ their owners ─▶ timers that are due ─▶ flush what they queued
//! ```
//!
//! What always holds between turns: the clock was read once; at most [`crate::limits::COMPLETIONS_PER_TURN`] completions were worked
//! on, the rest are first in the next; all that the role queued has been submitted or waits for a completion.

pub mod affinity;
pub mod board;
pub mod buffers;
pub mod clock;
pub mod core;
pub mod engine;
pub mod inbox;
pub mod io;
mod lost;
pub mod options;
mod pages;
mod plan;
mod records;
pub mod ring;
pub mod slab;
pub mod startup;
pub mod state;
mod table;
pub mod time;
pub mod timers;
#[cfg(feature = "engine-tokio-uring")]
pub mod tokio_uring;

use std::time::Duration;

pub use self::plan::{Plan, run};

use self::core::{Core, Event};
use self::inbox::{Inbox, Message, ToControl};
use self::io::{Done, Kind};
use self::state::State;
use self::time::Time;

/// What a shard plays: events in, operations out through the [`Core`]. No IO, clock or randomness of its own.
pub trait Role {
    /// Called once, before the first turn.
    fn start(&mut self, core: &mut Core);
    /// Takes one event.
    fn on_event(&mut self, core: &mut Core, event: Event);
    /// Called once per turn, after all events: submit what they have queued.
    fn flush(&mut self, core: &mut Core);
    /// Fills in the numbers the role knows.
    fn state(&self, state: &mut State);
    /// Whether all is done after [`Message::Stop`], or [`Message::StopNow`] has come.
    fn is_finished(&self) -> bool;
}

/// Turns that [`Shard::close`] takes at most, and how long each may wait.
const CLOSING_TURNS: usize = 200;
const CLOSING_TURN: Duration = Duration::from_millis(5);

/// A role in its core.
#[derive(Debug)]
pub struct Shard<R> {
    core: Core,
    role: R,
    inbox: Inbox,
    done: Vec<Done>,
}

impl<R: Role> Shard<R> {
    /// Puts a shard together and starts its role.
    pub fn new(mut core: Core, mut role: R, inbox: Inbox, now: Time) -> Self {
        core.set_now(now);
        role.start(&mut core);
        role.flush(&mut core);
        Self { core, role, inbox, done: Vec::new() }
    }

    /// Runs one turn, sleeping at most `wait` (`None`: until something happens). `clock` is read once, after the sleep.
    ///
    /// # Errors
    /// The engine's, which end the shard.
    pub fn turn(&mut self, wait: Option<Duration>, clock: impl FnOnce() -> Time) -> std::io::Result<()> {
        self.core.turn_io(wait, &mut self.done)?;
        self.core.set_now(clock());
        for done in self.done.drain(..) {
            if done.token.kind() == Some(Kind::Wake) {
                for message in self.inbox.drain() {
                    Self::on_message(&mut self.core, &mut self.role, message);
                }
            } else if let Some(event) = self.core.on_done(done) {
                self.role.on_event(&mut self.core, event);
            }
        }
        while let Some((owner, what)) = self.core.due_timer() {
            self.role.on_event(&mut self.core, Event::Timer { owner, what });
        }
        self.role.flush(&mut self.core);
        Ok(())
    }

    /// How long this shard could sleep.
    #[must_use]
    pub fn next_timer_in(&self) -> Option<Duration> {
        self.core.next_timer_in()
    }

    /// Whether the role has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.role.is_finished()
    }

    /// Ends what is left after the role has: connections that did not finish are reset. Takes as many turns as that needs, within a limit
    /// that only a kernel which does not answer can reach.
    ///
    /// # Errors
    /// The engine's.
    pub fn close(&mut self, mut clock: impl FnMut() -> Time) -> std::io::Result<()> {
        self.core.close_all();
        for _ in 0..CLOSING_TURNS {
            if self.core.is_empty() {
                break;
            }
            self.core.turn_io(Some(CLOSING_TURN), &mut self.done)?;
            self.core.set_now(clock());
            for done in self.done.drain(..) {
                // Everything is closing, so nothing is for the role any more.
                let _event = self.core.on_done(done);
            }
        }
        // What was submitted last has still to reach the kernel.
        self.core.turn_io(Some(Duration::ZERO), &mut self.done)
    }

    /// The numbers of this moment.
    #[must_use]
    pub fn state(&self) -> State {
        Self::state_of(&self.core, &self.role)
    }

    fn state_of(core: &Core, role: &R) -> State {
        let mut state = State::default();
        core.state(&mut state);
        role.state(&mut state);
        state
    }

    fn on_message(core: &mut Core, role: &mut R, message: Message) {
        if matches!(message, Message::ReportState) {
            let state = Box::new(Self::state_of(core, role));
            core.tell_control(ToControl::State { shard: core.index(), state });
        } else {
            role.on_event(core, Event::Message(message));
        }
    }
}
