//! The control thread: plain tokio, beside the shards. It takes signals, looks names up, reads key files again, gathers the shards'
//! states, and notices when a shard ends.
//!
//! ```text
//!   signals ─┐                              ┌─▶ postbox of each shard
//!   shards ──┼─▶ one queue of events ── run ┤
//!   names ───┤                              └─▶ state lines on standard output
//!   keys ────┘
//! ```
//!
//! What always holds between calls: nothing in the loop waits for anything but the next event, so one slow name, or a reader that
//! does not take its state line, holds up nobody.

mod names;
mod reload;
mod signals;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::exit::Failure;
use crate::keys::v81::KeyRing;
use crate::limits::{GRACE, STUCK};
use crate::shard::engine::Chosen;
use crate::shard::inbox::{Message, Postbox, ToControl};
use crate::shard::state::State;
use names::{Found, Names, Waiter};
use reload::{ReadAgain, Reload};
use signals::Signal;

/// The demo's tunnel is there in milliseconds, or something is wrong.
const FIRST_TUNNEL: Duration = Duration::from_secs(10);
/// How often the demo looks for its first tunnel.
const LOOK_FOR_TUNNEL: Duration = Duration::from_millis(10);

/// The shards of one role.
#[derive(Debug)]
pub struct Group {
    /// `server` or `inter-server`.
    pub role: &'static str,
    /// One per shard, in the order of their indices.
    pub postboxes: Vec<Postbox>,
    /// On 0x81: its keys and their files.
    pub keys: Option<KeyRing>,
}

/// Something for the control thread.
#[derive(Debug)]
pub enum Event {
    /// A shard says something.
    Shard {
        /// Which group it is of.
        group: usize,
        /// What it says.
        message: ToControl,
    },
    /// A shard's thread has ended.
    Ended {
        /// Which group it is of.
        group: usize,
        /// Which shard.
        shard: usize,
        /// In order, or why not.
        result: Result<(), String>,
    },
    /// A signal came.
    #[doc(hidden)]
    Signal(#[expect(private_interfaces, reason = "made in this module only")] Signal),
    /// A look-up has ended.
    #[doc(hidden)]
    Found(#[expect(private_interfaces, reason = "made in this module only")] Found),
    /// Key files were read again.
    #[doc(hidden)]
    Keys(#[expect(private_interfaces, reason = "made in this module only")] ReadAgain),
    /// A state line is out.
    Printed,
    /// A time is up.
    Time(Deadline),
}

/// What a time was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deadline {
    /// Ask again whether there is a tunnel.
    LookForTunnel,
    /// There should have been a tunnel by now.
    FirstTunnel,
    /// All shards should have ended by now.
    Stop,
}

impl From<Signal> for Event {
    fn from(signal: Signal) -> Self {
        Self::Signal(signal)
    }
}

impl From<ReadAgain> for Event {
    fn from(read: ReadAgain) -> Self {
        Self::Keys(read)
    }
}

impl From<Found> for Event {
    fn from(found: Found) -> Self {
        Self::Found(found)
    }
}

/// The control thread's queue. Made before the shards, inside the runtime.
#[derive(Debug)]
pub struct Events {
    sender: UnboundedSender<Event>,
    receiver: UnboundedReceiver<Event>,
}

impl Events {
    /// A new queue; signals go into it from now on.
    ///
    /// # Errors
    /// A handler for a signal cannot be set.
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = unbounded_channel();
        signals::forward(&sender)?;
        Ok(Self { sender, receiver })
    }

    /// For a shard's thread to say how it ended.
    #[must_use]
    pub fn sender(&self) -> UnboundedSender<Event> {
        self.sender.clone()
    }

    /// A queue for a group's shards that ends in this one.
    #[must_use]
    pub fn for_group(&self, group: usize) -> UnboundedSender<ToControl> {
        let (sender, mut receiver) = unbounded_channel();
        let events = self.sender();
        tokio::spawn(async move {
            while let Some(message) = receiver.recv().await {
                if events.send(Event::Shard { group, message }).is_err() {
                    return;
                }
            }
        });
        sender
    }

    fn later(&self, time: Duration, what: Deadline) {
        let events = self.sender();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            // Nobody waits for it any more if the process is ending.
            let _ = events.send(Event::Time(what));
        });
    }
}

/// What to do once everything is up.
#[derive(Default)]
pub struct Announce {
    /// When every shard has answered for the first time, with what they run on.
    pub started: Option<Box<dyn FnOnce(Option<Chosen>)>>,
    /// When, after that, the inter-server has a tunnel.
    pub tunnel: Option<Box<dyn FnOnce()>>,
}

impl std::fmt::Debug for Announce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Announce(..)")
    }
}

/// The control thread's own state.
#[derive(Debug)]
pub struct Control {
    events: Events,
    groups: Vec<Members>,
    names: Names,
    announce: Announce,
    /// What the first shard that said so runs on; the others differ in nothing that the choice depends on.
    engine: Option<Chosen>,
    /// A round of asking every shard for its state is under way.
    asking: bool,
    /// The answers of this round make a state line.
    for_line: bool,
    /// A state line is wanted, from answers to questions that are still to be asked.
    wanted: bool,
    printing: bool,
    stops: u32,
}

#[derive(Debug)]
struct Members {
    role: &'static str,
    shards: Vec<Member>,
    reload: Reload,
}

#[derive(Debug)]
struct Member {
    postbox: Postbox,
    running: bool,
    state: Option<State>,
}

impl Members {
    fn running(&self) -> impl Iterator<Item = &Member> {
        self.shards.iter().filter(|shard| shard.running)
    }
}

impl Control {
    /// Control over these shards.
    #[must_use]
    pub fn new(events: Events, groups: Vec<Group>, resolver: Option<SocketAddr>, announce: Announce) -> Self {
        let member = |postbox| Member { postbox, running: true, state: None };
        let members = |group: Group| Members {
            role: group.role,
            shards: group.postboxes.into_iter().map(member).collect(),
            reload: Reload::new(group.keys),
        };
        Self {
            events,
            groups: groups.into_iter().map(members).collect(),
            names: Names::new(resolver),
            announce,
            engine: None,
            asking: false,
            for_line: false,
            wanted: false,
            printing: false,
            stops: 0,
        }
    }

    /// Runs until every shard has ended.
    ///
    /// # Errors
    /// A shard ended by itself, or did not end when it should have.
    pub async fn run(mut self) -> Result<(), Failure> {
        self.ask();
        while self.groups.iter().any(|group| group.running().next().is_some()) {
            // The sender that this thread keeps makes the queue endless.
            let Some(event) = self.events.receiver.recv().await else { break };
            self.on_event(event)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Shard { group, message } => self.on_shard(group, message),
            Event::Ended { group, shard, result } => self.on_ended(group, shard, result)?,
            Event::Signal(Signal::Stop) => self.stop(),
            Event::Signal(Signal::Report) => {
                self.wanted = true;
                self.ask_if_wanted();
            }
            Event::Signal(Signal::Reload) => {
                for (index, group) in self.groups.iter_mut().enumerate() {
                    group.reload.begin(index, &self.events.sender);
                }
            }
            Event::Keys(read) => self.on_keys(read),
            Event::Found(found) => self.names.on_found(&found, &self.events.sender),
            Event::Printed => {
                self.printing = false;
                self.ask_if_wanted();
            }
            Event::Time(Deadline::LookForTunnel) => self.ask(),
            Event::Time(Deadline::FirstTunnel) if self.announce.tunnel.is_some() => {
                return Err(Failure::other(format!("no tunnel between the two roles after {} s", FIRST_TUNNEL.as_secs())));
            }
            Event::Time(Deadline::FirstTunnel) => {}
            Event::Time(Deadline::Stop) => {
                let stuck: usize = self.groups.iter().map(|group| group.running().count()).sum();
                return Err(Failure::other(format!("{stuck} shards did not stop in time: left them")));
            }
        }
        Ok(())
    }

    fn on_shard(&mut self, group: usize, message: ToControl) {
        match message {
            ToControl::Resolve { shard, ticket, name, by_steps } => {
                let postbox = self.groups[group].shards[shard].postbox.clone();
                self.names.look_up(&name, Waiter { postbox, ticket, by_steps }, &self.events.sender);
            }
            ToControl::State { shard, state } => {
                self.groups[group].shards[shard].state = Some(*state);
                self.look_whether_all_answered();
            }
            ToControl::Engine { shard, chosen } => {
                tracing::debug!(shard, engine = %chosen.engine, "shard has its engine");
                self.engine.get_or_insert(chosen);
            }
            // Its thread ends next, and that is what counts.
            ToControl::Stopped { shard } => tracing::debug!(shard, role = self.groups[group].role, "shard has stopped"),
        }
    }

    fn on_keys(&mut self, read: ReadAgain) {
        let group = &mut self.groups[read.group];
        if let Some(keys) = group.reload.end(read, &self.events.sender) {
            for shard in group.running() {
                shard.postbox.post(Message::Keys(keys.clone()));
            }
        }
    }

    fn on_ended(&mut self, group: usize, shard: usize, result: Result<(), String>) -> Result<(), Failure> {
        self.groups[group].shards[shard].running = false;
        match result {
            Err(cause) => return Err(Failure::other(cause)),
            Ok(()) if self.stops == 0 => return Err(Failure::other(format!("shard {shard} ended without being asked to"))),
            Ok(()) => self.look_whether_all_answered(),
        }
        Ok(())
    }

    /// The first time: nothing new, running flows go on. The second time: now.
    fn stop(&mut self) {
        self.stops += 1;
        let now = self.stops > 1;
        if now {
            tracing::info!("stopping now");
        } else {
            tracing::info!("stopping: running flows have {} s; a second signal stops at once", GRACE.as_secs());
        }
        // In the demo the exit comes first: it need not wonder why its tunnels go.
        for shard in self.groups.iter().rev().flat_map(Members::running) {
            shard.postbox.post(if now { Message::StopNow } else { Message::Stop });
        }
        self.events.later(if now { STUCK } else { GRACE + STUCK }, Deadline::Stop);
    }

    fn ask_if_wanted(&mut self) {
        if self.wanted && !self.asking && !self.printing {
            self.ask();
        }
    }

    fn ask(&mut self) {
        if self.asking {
            return;
        }
        self.asking = true;
        if !self.printing {
            self.for_line = std::mem::take(&mut self.wanted);
        }
        for shard in self.groups.iter_mut().flat_map(|group| &mut group.shards) {
            shard.state = None;
            if shard.running {
                shard.postbox.post(Message::ReportState);
            }
        }
    }

    fn look_whether_all_answered(&mut self) {
        let silent = self.groups.iter().flat_map(Members::running).any(|shard| shard.state.is_none());
        if !self.asking || silent {
            return;
        }
        self.asking = false;
        if let Some(started) = self.announce.started.take() {
            started(self.engine.take());
            self.names.prepare();
            if self.announce.tunnel.is_some() {
                self.events.later(FIRST_TUNNEL, Deadline::FirstTunnel);
            }
        }
        self.look_for_tunnel();
        if std::mem::take(&mut self.for_line) {
            self.print();
        }
        // A signal that came after the questions wants later answers.
        self.ask_if_wanted();
    }

    fn look_for_tunnel(&mut self) {
        if self.announce.tunnel.is_none() {
            return;
        }
        let mut entries = self.groups.iter().filter(|group| group.role == "inter-server").flat_map(|group| &group.shards);
        if entries.any(|shard| shard.state.as_ref().is_some_and(|state| state.tunnels > 0)) {
            if let Some(tunnel) = self.announce.tunnel.take() {
                tunnel();
            }
        } else {
            self.events.later(LOOK_FOR_TUNNEL, Deadline::LookForTunnel);
        }
    }

    /// Standard output may be a pipe that nobody reads: a thread of its own waits for it.
    fn print(&mut self) {
        self.printing = true;
        let lines: Vec<String> = self.groups.iter().map(line).collect();
        let events = self.events.sender();
        tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            // Nobody to tell where standard output is closed.
            let _ = lines.iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
            let _ = events.send(Event::Printed);
        });
    }
}

/// A group's state line.
fn line(group: &Members) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        role: &'a str,
        shards: usize,
        descriptors: usize,
        #[serde(flatten)]
        sum: State,
    }
    let mut sum = State::default();
    for state in group.shards.iter().filter_map(|shard| shard.state.as_ref()) {
        sum.add(state);
    }
    let line = Line { role: group.role, shards: group.shards.len(), descriptors: descriptors(), sum };
    serde_json::to_string(&line).unwrap_or_default()
}

/// Open descriptors of this process, without the one that counts them.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}
