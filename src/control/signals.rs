//! Signals, as events of the control thread.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGUSR1.
    Report,
    /// SIGHUP.
    Reload,
}

/// From now on these signals become events and do nothing else.
pub(super) fn forward<E: From<Signal> + Send + 'static>(events: &UnboundedSender<E>) -> io::Result<()> {
    let kinds = [
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::user_defined1(), Signal::Report),
        (SignalKind::hangup(), Signal::Reload),
    ];
    for (kind, meaning) in kinds {
        let mut stream = signal(kind)?;
        let events = events.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && events.send(meaning.into()).is_ok() {} });
    }
    Ok(())
}
