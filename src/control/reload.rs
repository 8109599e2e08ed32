//! SIGHUP: the key files of a role are read again, and nothing else is.
//!
//! What always holds between calls: one reading per role is under way at most, on a thread that may wait for a slow disk; the keys in use
//! are those of the last reading without a fault.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use crate::keys::KeyError;
use crate::keys::v81::KeyRing;
use crate::protocol::v81::handshake::Keys;

/// What came of a reading.
#[derive(Debug)]
pub(super) struct ReadAgain {
    /// Whose keys.
    pub(super) group: usize,
    result: Result<(KeyRing, Vec<String>), KeyError>,
}

/// The key files of one role.
#[derive(Debug)]
pub(super) struct Reload {
    /// `None` on 0x80, which has nothing to reload.
    ring: Option<KeyRing>,
    reading: bool,
    /// A signal came during a reading: what changed since may have been missed.
    again: bool,
}

impl Reload {
    pub(super) const fn new(ring: Option<KeyRing>) -> Self {
        Self { ring, reading: false, again: false }
    }

    /// Reads; the end is sent to `events`, for [`Self::end`].
    pub(super) fn begin<E: From<ReadAgain> + Send + 'static>(&mut self, group: usize, events: &UnboundedSender<E>) {
        let Some(ring) = &self.ring else {
            tracing::info!("SIGHUP: nothing to reload in 0x80");
            return;
        };
        if ring.files().is_empty() {
            tracing::info!("SIGHUP: nothing to reload, the keys are in no file");
            return;
        }
        if self.reading {
            self.again = true;
            return;
        }
        self.reading = true;
        let (files, events) = (ring.files().to_vec(), events.clone());
        tokio::task::spawn_blocking(move || {
            let result = KeyRing::read(files);
            // The process is ending if nobody takes it.
            let _ = events.send(ReadAgain { group, result }.into());
        });
    }

    /// Takes the keys that were read, and gives them for the shards; nothing where the old ones stay.
    pub(super) fn end<E: From<ReadAgain> + Send + 'static>(&mut self, read: ReadAgain, events: &UnboundedSender<E>) -> Option<Arc<Keys>> {
        self.reading = false;
        let keys = self.take(read.result);
        if std::mem::take(&mut self.again) {
            self.begin(read.group, events);
        }
        keys
    }

    fn take(&mut self, result: Result<(KeyRing, Vec<String>), KeyError>) -> Option<Arc<Keys>> {
        let before = self.ring.as_ref()?;
        match result {
            Ok((ring, warnings)) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!("keys read again: {}. other settings need a restart", ring.compared_to(before));
                let keys = Arc::clone(ring.keys());
                self.ring = Some(ring);
                Some(keys)
            }
            Err(error) => {
                tracing::error!("keys not read again, the old ones stay: {error}");
                None
            }
        }
    }
}
