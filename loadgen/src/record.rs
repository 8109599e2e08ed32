//! What is kept of a run: every single outcome, with the machine and the command it came from, as JSON. Tables and pictures are made from
//! this and from nothing else.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::run::Outcome;

/// One run of this program.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The version of this program.
    pub loadgen: String,
    /// Seconds since 1970, at the start.
    pub unix_time: u64,
    /// How it was called.
    pub command: Vec<String>,
    /// Where.
    pub machine: Machine,
    /// What makes the numbers doubtful.
    pub doubts: Vec<String>,
    /// What was measured, in order.
    pub entries: Vec<Entry>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What was measured.
    pub target: String,
    /// Its version, as far as it tells.
    pub version: String,
    /// The work, with its numbers.
    pub work: String,
    /// Which of its numbers counts first.
    pub measure: Measure,
    /// Its place, if it is one of a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// The round.
    pub round: usize,
    /// What was found.
    pub outcome: Outcome,
}

/// A measurement's place in a row in which one number grows and all others stay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// The work, without the number that grows.
    pub row: String,
    /// Which number grows.
    pub axis: Axis,
    /// What it is here.
    pub at: u64,
}

/// The number that grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Flows at the same time.
    Flows,
    /// Bytes of a message.
    Size,
}

/// The number that a workload is judged by. Less is better, always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Seconds of CPU for 10^9 bytes.
    CpuPerByte,
    /// Microseconds of CPU for an operation.
    CpuPerOperation,
    /// Resident memory for an open flow.
    MemoryPerFlow,
}

impl Measure {
    /// What the number is counted in.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::CpuPerByte => "cpu-s/GB",
            Self::CpuPerOperation => "cpu-µs/op",
            Self::MemoryPerFlow => "KiB/flow",
        }
    }

    /// The number; nothing when no process was accounted.
    #[must_use]
    pub fn of(self, outcome: &Outcome) -> Option<f64> {
        match self {
            Self::CpuPerByte => outcome.cpu_seconds_per_gb(),
            Self::CpuPerOperation => outcome.cpu_us_per_operation(),
            Self::MemoryPerFlow => outcome.bytes_per_flow().map(|bytes| bytes / 1024.0),
        }
    }
}

impl Record {
    /// One without entries yet.
    #[must_use]
    pub fn start(machine: Machine, doubts: Vec<String>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            loadgen: env!("CARGO_PKG_VERSION").to_owned(),
            unix_time: now.as_secs(),
            command: std::env::args().skip(1).collect(),
            machine,
            doubts,
            entries: Vec::new(),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the file cannot be read, or is something else.
    pub fn load(path: &Path) -> io::Result<Self> {
        let said = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        let text = fs::read(path).map_err(|error| said(&error))?;
        serde_json::from_slice(&text).map_err(|error| said(&error))
    }

    /// As text, for a file or the standard output.
    ///
    /// # Errors
    /// Never, in fact: all keys are text.
    pub fn json(&self) -> io::Result<String> {
        serde_json::to_string_pretty(self).map_err(io::Error::other)
    }

    /// The works, but for those of a row of steps, and all targets, each in the order of appearance.
    #[must_use]
    pub fn works_and_targets(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut works, mut targets) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            if entry.step.is_none() && !works.contains(&entry.work.as_str()) {
                works.push(&entry.work);
            }
            if !targets.contains(&entry.target.as_str()) {
                targets.push(&entry.target);
            }
        }
        (works, targets)
    }

    /// The measurements of one target at one work, but for those of a row of steps.
    #[must_use]
    pub fn of(&self, work: &str, target: &str) -> Vec<&Entry> {
        self.entries.iter().filter(|entry| entry.step.is_none() && entry.work == work && entry.target == target).collect()
    }

    /// How many faults all measurements had.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.entries.iter().map(|entry| entry.outcome.faults.len()).sum()
    }
}
