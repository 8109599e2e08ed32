//! What went wrong with a flow, said so that it can be looked up: which flow, where to, which way, at which byte.

use serde::{Deserialize, Serialize};

use crate::pattern::{Way, Wrong};

/// One thing that went wrong.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// The number of the flow in its run.
    pub flow: u64,
    /// Where it leads.
    pub destination: String,
    /// Which way the bytes were going.
    pub way: Way,
    /// The byte at which it was noticed.
    pub offset: u64,
    /// What it is.
    pub what: What,
}

/// Kinds of faults.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum What {
    /// Other bytes than were due.
    Wrong(Wrong),
    /// The other end closed, and should not have.
    Ended,
    /// Nothing moved.
    Stalled {
        /// For how long.
        seconds: f64,
    },
    /// The connection could not be opened.
    NotOpened {
        /// Why.
        why: String,
    },
    /// The connection broke.
    Broken {
        /// Why.
        why: String,
    },
    /// The destination got something that is no header of loadgen.
    NoHeader,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "flow {} to {}, {}, offset {}: ", self.flow, self.destination, self.way, self.offset)?;
        match &self.what {
            What::Wrong(wrong) => write!(f, "{wrong}"),
            What::Ended => write!(f, "the other end closed it"),
            What::Stalled { seconds } => write!(f, "stalled, no byte for {seconds:.1} s"),
            What::NotOpened { why } => write!(f, "not opened: {why}"),
            What::Broken { why } => write!(f, "broken: {why}"),
            What::NoHeader => write!(f, "the destination got no header that it knows"),
        }
    }
}
