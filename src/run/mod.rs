//! Runs a configured process: sockets first, then a pinned thread per shard, then the control thread, which is the main one.
//!
//! What always holds between calls: a shard that ends with an error or a panic ends the process, for half-changed state is worse
//! than a restart; and nothing is said on standard error before every shard is up, so that a failed start is exactly one line.

pub mod listeners;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::config::{Config, Protocol, Role};
use crate::control::{Announce, Control, Event, Events, Group};
use crate::exit::Failure;
use crate::limits::{HELD_BYTES, QUEUE_BYTES, SLOT_BYTES};
use crate::listen::ListenerKind;
use crate::protocol::v80::Profile;
use crate::rlimits;
use crate::shard::board::Board;
use crate::shard::engine::{Chosen, Engine};
use crate::shard::inbox::Inbox;
use crate::shard::startup;
use crate::shard::{Plan, affinity};
use crate::telemetry::log;
use crate::{inter_server, server};
use listeners::Bound;

/// Runs until a signal ends it.
///
/// # Errors
/// What kept it from starting, or what ended it.
pub fn run(config: Config) -> Result<(), Failure> {
    let log = log::start(config.log).map_err(|cause| Failure::other(format!("cannot start the log: {cause}")))?;
    let descriptors = rlimits::raise_nofile();
    let mut bound = Bound::new(&config.listeners, config.cores.len())?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let events = events()?;
        let group = start(&config, bound.take(), 0, &events)?;
        let resolver = config.resolver;
        let addresses = std::mem::take(&mut bound.addresses);
        let started = move |chosen: Option<Chosen>| {
            say_start(&config, chosen.as_ref());
            match descriptors {
                Ok((before, limit)) => tracing::info!(before, limit, "open files: limit raised as far as it goes"),
                Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
            }
            for (kind, at) in addresses {
                tracing::info!(%at, serves = purpose(&config.role, kind), "listening");
            }
        };
        let announce = Announce { started: Some(Box::new(started)), tunnel: None };
        Control::new(events, vec![group], resolver, announce).run().await
    });
    // Not waited for: a thread that writes to a standard output that nobody reads, a look-up.
    runtime.shutdown_background();
    if ended.is_ok() {
        tracing::info!("stopped");
    }
    // What is still to be said comes before the error that ends the process.
    drop(log);
    ended
}

/// The control thread's runtime.
///
/// # Errors
/// The system has no room for one.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|cause| Failure::other(format!("cannot start the control thread: {cause}")))
}

/// The control thread's queue. From here on a panic, of whatever thread, is one line and the end.
///
/// # Errors
/// No handler can be set for a signal.
pub fn events() -> Result<Events, Failure> {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        let _ = Failure::other(format!("{} panicked{place}: {what}", thread.name().unwrap_or("a thread"))).report();
        std::process::exit(1);
    }));
    Events::new().map_err(|cause| Failure::other(format!("cannot handle signals: {cause}")))
}

/// Starts the shards of one role.
///
/// # Errors
/// A thread or its inbox cannot be made.
pub fn start(config: &Config, listeners: Vec<Vec<(ListenerKind, OwnedFd)>>, group: usize, events: &Events) -> Result<Group, Failure> {
    let shards = config.cores.len();
    let role = name(&config.role);
    let inboxes = (0..shards).map(|_| Inbox::new()).collect::<std::io::Result<Vec<_>>>();
    let inboxes = inboxes.map_err(|cause| Failure::other(format!("cannot make an eventfd per shard: {cause}")))?;
    let (inboxes, postboxes): (Vec<_>, Vec<_>) = inboxes.into_iter().unzip();
    let board = Board::new(shards);
    let control = events.for_group(group);
    for (index, (inbox, listeners)) in inboxes.into_iter().zip(listeners).enumerate() {
        let plan = Plan {
            index,
            core: config.cores[index],
            buffer_memory: config.buffer_memory,
            engine: config.engine,
            inbox,
            control: control.clone(),
            peers: postboxes.clone(),
            board: board.clone(),
            listeners,
        };
        let (role, protocol, ended) = (config.role.clone(), config.protocol.clone(), events.sender());
        let thread = std::thread::Builder::new().name(format!("shard-{index}"));
        let run = move || {
            let result = run_shard(plan, role, protocol);
            // The process is ending already if nobody takes it.
            let _ = ended.send(Event::Ended { group, shard: index, result });
        };
        thread.spawn(run).map_err(|cause| Failure::other(format!("cannot start a thread for shard {index}: {cause}")))?;
    }
    let keys = match &config.protocol {
        Protocol::V81 { keys, .. } => Some(keys.clone()),
        Protocol::V80 { .. } => None,
    };
    Ok(Group { role, postboxes, keys })
}

/// A shard from its thread's begin to its end.
fn run_shard(plan: Plan, role: Role, protocol: Protocol) -> Result<(), String> {
    let result = match role {
        Role::Server(settings) => server::run(plan, settings, protocol.for_tunnels()),
        Role::InterServer(settings) => inter_server::run(plan, settings, protocol.for_tunnels()),
    };
    result.map_err(|cause| cause.to_string())
}

const fn name(role: &Role) -> &'static str {
    match role {
        Role::Server(_) => "server",
        Role::InterServer(_) => "inter-server",
    }
}

const fn purpose(role: &Role, kind: ListenerKind) -> &'static str {
    match kind {
        ListenerKind::Tunnel if matches!(role, Role::Server(_)) => "inter-servers",
        ListenerKind::Tunnel => "servers",
        ListenerKind::Socks { .. } => "socks5 clients",
        ListenerKind::Shared { clients: true, .. } => "servers and socks5 clients",
        ListenerKind::Shared { clients: false, .. } => "servers",
    }
}

/// What an operator has to know of this process.
fn say_start(config: &Config, chosen: Option<&Chosen>) {
    say_protocol(&config.protocol);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shards = config.cores.len();
    tracing::info!(role = name(&config.role), shards, cores = affinity::as_text(&config.cores), "started");
    let engine = chosen.map_or(Engine::Ring, |chosen| chosen.engine);
    chosen.map(say_engine);
    let slots = config.buffer_memory / SLOT_BYTES;
    let (slot_kib, ring_kib) = (SLOT_BYTES >> 10, usize::try_from(startup::locked_kib(engine.sizes())).unwrap_or(0));
    let beyond = match &config.protocol {
        Protocol::V80 { .. } => format!("{} KiB for each socket that does not take its bytes", (QUEUE_BYTES + SLOT_BYTES) >> 10),
        Protocol::V81 { .. } => format!("{} KiB for all sockets that do not take their bytes", shards * (HELD_BYTES >> 10)),
    };
    tracing::info!(
        "memory: {shards} x ({slots} slots x {slot_kib} KiB + ring {ring_kib} KiB) = {} KiB, taken once; beyond that at most {beyond}",
        shards * (slots * slot_kib + ring_kib),
    );
    let dial = match &config.role {
        Role::Server(settings) => &settings.dial,
        Role::InterServer(settings) => &settings.dial,
    };
    for target in dial {
        tracing::info!(host = target.host, port = target.port, "dialling");
    }
}

/// What the shards run on, if that is not the first choice.
pub fn say_engine(chosen: &Chosen) {
    match (chosen.engine, &chosen.instead) {
        (engine, Some(why)) => tracing::warn!("engine {engine}, which costs more per byte, because ring cannot be had: {why}"),
        (Engine::Ring, None) => {}
        (engine, None) => tracing::info!("engine {engine}, as asked for"),
    }
}

fn say_protocol(protocol: &Protocol) {
    match protocol {
        Protocol::V80 { profile, .. } => {
            tracing::warn!(
                "protocol 0x80 is for trusted wires only: every message has the same keystream, so whoever knows one can read the others; \
                 nothing is authenticated; destinations are readable; whoever reaches the inter-server's port from an allowed address can log in as a server"
            );
            if *profile == Profile::Original {
                tracing::warn!("profile original: for looking at the author's programs, not for work");
            }
        }
        Protocol::V81 { keys, methods } => {
            let ciphers: Vec<_> = methods.iter().map(|method| method.name()).collect();
            let count = keys.keys().iter().count();
            tracing::info!(keys = count, ciphers = ciphers.join(","), "protocol 0x81");
        }
    }
}

/// An address somebody can connect to.
#[must_use]
pub fn tcp_address(bound: &Bound, wanted: impl Fn(ListenerKind) -> bool) -> Option<SocketAddr> {
    bound.addresses.iter().find_map(|(kind, at)| match at {
        crate::config::ListenAt::Tcp(address) if wanted(*kind) => Some(*address),
        _ => None,
    })
}
