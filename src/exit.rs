//! How the process ends: the one place that turns an error into an exit status and a line on standard error.

use std::process::ExitCode;

use crate::config::ConfigError;
use crate::keys::MARKS;

/// Why a command did not do what it was asked to. One line, lower case, facts first.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong use, or a configuration that cannot be meant: status 2.
    #[error("{0}")]
    Usage(String),
    /// Anything else: status 1.
    #[error("{0}")]
    Other(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl Failure {
    /// Anything but wrong use.
    pub fn other(what: impl Into<String>) -> Self {
        Self::Other(what.into())
    }

    /// Says what happened on standard error; the status to end with.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        use std::io::Write as _;
        let line = without_keys(&self.to_string().replace('\n', ", "));
        // Nothing helps where even standard error fails.
        let _ = writeln!(std::io::stderr(), "zhwkprox: {line}");
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Other(_) => ExitCode::from(1),
        }
    }
}

/// A key typed where something else belongs would come back in the message that refuses it, and from there get into logs.
fn without_keys(line: &str) -> String {
    let mut rest = line;
    let mut clean = String::with_capacity(line.len());
    while let Some(at) = MARKS.iter().filter_map(|mark| rest.find(*mark).map(|at| at + mark.len())).min() {
        let (before, after) = rest.split_at(at);
        let secret = after.find(['`', '\'', '"', ' ']).unwrap_or(after.len());
        clean.push_str(before);
        if secret > 0 {
            clean.push_str("...");
        }
        rest = &after[secret..];
    }
    clean.push_str(rest);
    clean
}
