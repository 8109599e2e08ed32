//! The log: one line per event on standard error, as text or JSON. Events are made with `tracing`'s macros anywhere; what is below
//! the level costs a comparison.
//!
//! ```text
//!   any thread ── level ── limit per call site ── format ──▶ bounded queue ──▶ thread `log` ──▶ standard error
//! ```
//!
//! What always holds between calls:
//! * no thread but `log` waits for standard error: a line that finds the queue full is dropped and counted;
//! * a call site gets at most [`LOG_LINES_PER_SECOND`] lines into one second, and what was held back is told by a line of its own;
//! * an event is one line, whatever a peer put into it.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{LOG_LINES_PER_SECOND, LOG_QUEUE};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// How long a leaving process waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(1);
/// Where this module's own events come from: they are not limited.
const OWN: &str = module_path!();

/// How to log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What a line looks like.
    pub form: Form,
    /// The least important level that is still said.
    pub level: Level,
}

/// What a line looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Holds the log open. Dropping it waits for the last lines.
#[derive(Debug)]
pub struct Log {
    queue: Queue,
}

/// Starts the log of this process.
///
/// # Errors
/// The thread cannot be started, or there is a log already.
pub fn start(settings: Settings) -> io::Result<Log> {
    let (log, dispatch) = to(settings, io::stderr())?;
    tracing::dispatcher::set_global_default(dispatch).map_err(io::Error::other)?;
    Ok(log)
}

/// A log with its thread, and the way into it.
fn to(settings: Settings, out: impl Write + Send + 'static) -> io::Result<(Log, Dispatch)> {
    let (sender, receiver) = sync_channel(LOG_QUEUE);
    let queue = Queue { sender, lost: Arc::default() };
    let limit = Limit { sites: Arc::default(), queue: queue.clone() };
    let writer = Writer { receiver, sites: Arc::clone(&limit.sites), lost: Arc::clone(&queue.lost), out };

    let level = LevelFilter::from_level(settings.level);
    let others = if settings.level >= Level::DEBUG { level } else { LevelFilter::ERROR };
    let levels = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level).with_default(others);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(queue.clone());
    let lines = match settings.form {
        Form::Text => lines.boxed(),
        Form::Json => lines.json().flatten_event(true).boxed(),
    };
    // Whole layers rather than filters of one: an event that a filter of one layer holds back at the last moment trips tracing's own
    // assertions (tracing-subscriber 0.3.23, debug builds).
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(lines).with(limit).with(levels));
    let own = dispatch.clone();
    std::thread::Builder::new().name("log".to_owned()).spawn(move || tracing::dispatcher::with_default(&own, || writer.run()))?;
    Ok((Log { queue }, dispatch))
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        if self.queue.sender.send(Item::Last(done)).is_ok() {
            let _ = wait.recv_timeout(LAST_LINES);
        }
    }
}

enum Item {
    Line(Vec<u8>),
    /// A call site has just gone over its limit: something will have to be told.
    Limited,
    /// Tell the sender when everything before is out.
    Last(SyncSender<()>),
}

/// The way to the writing thread.
#[derive(Clone, Debug)]
struct Queue {
    sender: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, bytes: Vec::new() }
    }
}

/// One line being written; it leaves when dropped.
struct Line<'a> {
    queue: &'a Queue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = one_line(std::mem::take(&mut self.bytes));
        if let Err(TrySendError::Full(_)) = self.queue.sender.try_send(Item::Line(line)) {
            self.queue.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Control characters, from a name that a client sent, say, must not look like a line of ours or talk to a terminal.
fn one_line(mut line: Vec<u8>) -> Vec<u8> {
    let end = line.len().saturating_sub(1);
    for byte in line.iter_mut().take(end).filter(|byte| byte.is_ascii_control()) {
        *byte = b' ';
    }
    line
}

/// What call sites did in their current second.
type Sites = Arc<Mutex<HashMap<tracing::callsite::Identifier, Site>>>;

struct Site {
    since: Instant,
    passed: u32,
    held: u64,
    /// Whether the writer knows that something is held.
    announced: bool,
    /// What the site says, from the first event that was held.
    says: String,
}

/// The layer that counts.
struct Limit {
    sites: Sites,
    queue: Queue,
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if event.metadata().target() == OWN {
            return true;
        }
        let now = now();
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let site = sites.entry(event.metadata().callsite()).or_insert_with(|| Site::new(now));
        // A site with something held keeps its second until the writer has told of it.
        if site.held == 0 && now.duration_since(site.since) >= WINDOW {
            *site = Site::new(now);
        }
        if site.passed < LOG_LINES_PER_SECOND {
            site.passed += 1;
            return true;
        }
        if site.held == 0 {
            event.record(&mut Message(&mut site.says));
        }
        if !site.announced {
            site.announced = self.queue.sender.try_send(Item::Limited).is_ok();
        }
        site.held += 1;
        false
    }
}

impl Site {
    fn new(since: Instant) -> Self {
        Self { since, passed: 0, held: 0, announced: false, says: String::new() }
    }
}

/// Takes an event's message, without its fields.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

/// The thread `log`.
struct Writer<W> {
    receiver: Receiver<Item>,
    sites: Sites,
    lost: Arc<AtomicU64>,
    out: W,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        let mut tell_at: Option<Instant> = None;
        loop {
            let item = match tell_at {
                None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.receiver.recv_timeout(at.saturating_duration_since(now())),
            };
            match item {
                Ok(Item::Line(line)) => {
                    // Nothing helps where even standard error fails.
                    let _ = self.out.write_all(&line);
                    if self.lost.load(Ordering::Relaxed) > 0 {
                        tell_at.get_or_insert_with(|| now() + WINDOW);
                    }
                }
                Ok(Item::Limited) => {
                    tell_at.get_or_insert_with(|| now() + WINDOW);
                }
                Ok(Item::Last(done)) => {
                    self.tell();
                    // What was told just now stands behind this item in the queue.
                    while let Ok(item) = self.receiver.try_recv() {
                        if let Item::Line(line) = item {
                            let _ = self.out.write_all(&line);
                        }
                    }
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if tell_at.is_some_and(|at| at <= now()) {
                tell_at = None;
                self.tell();
            }
        }
    }

    /// Says what was held back, and opens a new second for these call sites.
    fn tell(&self) {
        let mut held = Vec::new();
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, site| {
            if site.held > 0 {
                held.push((site.held, std::mem::take(&mut site.says)));
            }
            site.held == 0
        });
        for (count, event) in held {
            tracing::warn!(suppressed = count, event, "more than {LOG_LINES_PER_SECOND} such events a second: the rest is not shown");
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "standard error does not take the log fast enough");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the log counts real seconds, and nothing of the relay depends on it")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, for looking at.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    /// What a log says about what happens in `events`.
    fn logged(form: Form, level: Level, events: impl FnOnce()) -> Vec<String> {
        let paper = Paper::default();
        let (log, dispatch) = to(Settings { form, level }, paper.clone()).unwrap();
        tracing::dispatcher::with_default(&dispatch, events);
        drop(log);
        paper.lines()
    }

    #[test]
    fn a_flood_from_one_place_is_cut_and_told_and_others_are_not_touched() {
        let lines = logged(Form::Text, Level::INFO, || {
            (0..10_000).for_each(|n| tracing::info!(n, "flood"));
            tracing::info!("still heard");
        });
        assert!(lines.iter().any(|line| line.contains("still heard")));
        let passed = lines.iter().filter(|line| line.contains("INFO flood n=")).count();
        let told: Vec<&String> = lines.iter().filter(|line| line.contains("event=\"flood\"")).collect();
        // One second's share, and another for each time that a second was over before the flood was.
        assert!((1..=LOG_LINES_PER_SECOND as usize * (told.len() + 1)).contains(&passed), "{passed} lines, {told:?}");
        let count = |line: &&String| line.split("suppressed=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        assert_eq!(passed + told.iter().filter_map(count).sum::<usize>(), 10_000, "every event was shown or counted");
    }

    #[test]
    fn an_event_is_one_line_whatever_a_peer_wrote() {
        let name = "evil\n2026-11-25T00:00:00Z ERROR all is lost\x1b[31m\r";
        let lines = logged(Form::Text, Level::INFO, || tracing::warn!(name, %name, "asked for {name}"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains(|c: char| c.is_control()), "{lines:?}");
    }

    #[test]
    fn json_lines_are_json() {
        let lines = logged(Form::Json, Level::INFO, || tracing::warn!(port = 1080, "line\none"));
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&line["level"], &line["port"], &line["message"]), (&"WARN".into(), &1080.into(), &"line\none".into()));
    }

    #[test]
    fn what_is_below_the_level_is_not_said() {
        let lines = logged(Form::Text, Level::WARN, || {
            tracing::info!("not this");
            tracing::debug!("nor this");
            tracing::error!("this");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}
