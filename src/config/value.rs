//! Settings as text, each with the place it was written at, so that whatever is wrong with one can name the place.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ConfigError;
use crate::cli::Typed;

/// Where a value was written.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// On the command line.
    Flag,
    /// In the configuration file.
    Line {
        /// Which file.
        file: Arc<Path>,
        /// Counted from 1.
        line: usize,
    },
}

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// As written.
    pub(super) text: String,
    /// Where.
    pub(super) place: Place,
}

/// All settings of a role, by the flag's name.
#[derive(Clone, Default, Debug)]
pub(super) struct Values(BTreeMap<&'static str, Vec<Value>>);

impl Values {
    /// Only what was typed.
    pub(super) fn typed(typed: &Typed) -> Self {
        let value = |text: &String| Value { text: text.clone(), place: Place::Flag };
        Self(typed.iter().map(|(name, texts)| (name, texts.iter().map(value).collect())).collect())
    }

    /// Adds a setting that was not given in a place that wins.
    pub(super) fn add_weaker(&mut self, name: &'static str, values: Vec<Value>) {
        self.0.entry(name).or_insert(values);
    }

    /// A setting that is given at most once. `meaning` makes it out of the text, or says what was expected.
    pub(super) fn one<T>(&self, name: &str, meaning: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, ConfigError> {
        Ok(self.all(name, meaning)?.pop())
    }

    /// Like [`Self::one`], for a value that is not repeated in messages.
    pub(super) fn one_unseen<T>(&self, name: &str, meaning: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.written(name).first() else { return Ok(None) };
        let wrong = |expected| ConfigError(format!("{}expected {expected}, got {} characters", place(name, value), value.text.len()));
        meaning(&value.text).map(Some).map_err(wrong)
    }

    /// A setting that may be given several times.
    pub(super) fn all<T>(&self, name: &str, meaning: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, ConfigError> {
        let wrong = |value: &Value, expected| ConfigError(format!("{}got `{}`, expected {expected}", place(name, value), value.text));
        self.written(name).iter().map(|value| meaning(&value.text).map_err(|expected| wrong(value, expected))).collect()
    }

    /// The values of a setting as they were written.
    pub(super) fn written(&self, name: &str) -> &[Value] {
        self.0.get(name).map_or(&[][..], Vec::as_slice)
    }

    /// Whether a setting was given at all.
    pub(super) fn has(&self, name: &str) -> bool {
        !self.written(name).is_empty()
    }

    /// An error about a setting that only showed itself after its text was understood.
    pub(super) fn error(&self, name: &str, error: &dyn Display) -> ConfigError {
        let place = self.written(name).first().map(|value| place(name, value)).unwrap_or_default();
        ConfigError(format!("{place}{error}"))
    }
}

impl Value {
    /// The value as a path: one in a configuration file starts from that file's folder.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        match &self.place {
            Place::Line { file, .. } => file.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path)),
            Place::Flag => path.to_owned(),
        }
    }

    /// An error about this value.
    pub(super) fn error(&self, name: &str, error: &dyn Display) -> ConfigError {
        ConfigError(format!("{}{error}", place(name, self)))
    }
}

fn place(name: &str, value: &Value) -> String {
    match &value.place {
        Place::Flag => format!("--{name}: "),
        Place::Line { file, line } => format!("{}:{line}: {name}: ", file.display()),
    }
}
